"""``python -m fastserve.bench``: one rank of ``fastserve bench allreduce``."""

import sys

from fastserve.environment import prepare_process

if __name__ == "__main__":
    prepare_process()  # before NumPy is loaded

    from fastserve.bench.allreduce import main

    sys.exit(main())
