"""``python -m fastserve job.yaml``: one rank of a job, as mpirun and srun start it."""

import sys
import warnings

from fastserve.environment import prepare_process

if __name__ == "__main__":
    prepare_process()  # before NumPy is loaded

    # A number that isn't finite is an error of ours, which names step, layer and rank;
    # NumPy's warnings on the way there would come from each rank, and bury it.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"fastserve\.")

    from fastserve.worker import main

    sys.exit(main())
