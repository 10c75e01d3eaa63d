"""Where the run of a job goes, and whether a new one may begin there."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError
from .schema import Job


def run_folder(job: Job, cwd: Path) -> Path:
    """Return the absolute path of the job's run folder."""
    return cwd / (job.run_dir or Path("runs") / job.name)


def refuse_to_replace(folder: Path) -> None:
    """Raise CheckpointError if a new run in the folder would lose checkpoints."""
    if any(folder.glob("checkpoints/step-*")) or any(folder.glob("checkpoints/best")):
        raise CheckpointError(
            "expected a run folder without checkpoints for a new run",
            str(folder),
            "go on with --resume auto, replace it with --overwrite, or take another "
            "name with --set name=NAME",
        )
