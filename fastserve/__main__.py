"""``python -m fastserve job.yaml``: one rank of a job, as mpirun and srun start it."""

import sys

from fastserve.environment import prepare_process

if __name__ == "__main__":
    prepare_process()  # before NumPy is loaded

    from fastserve.worker import main

    sys.exit(main())
