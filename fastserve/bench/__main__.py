"""``python -m fastserve.bench allreduce|step``: one rank of ``fastserve bench``."""

import sys

from fastserve.environment import prepare_process

if __name__ == "__main__":
    prepare_process()  # before NumPy is loaded

    from fastserve.bench.program import main

    sys.exit(main())
