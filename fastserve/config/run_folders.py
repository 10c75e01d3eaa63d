"""Where a job's run goes, which folders are runs, and what to say of one that isn't."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastserve.errors import CheckpointError, nearest

if TYPE_CHECKING:
    from fastserve.config.schema import Job

CONFIG, METRICS = "config.yaml", "metrics.jsonl"
_RUNS = Path("runs")  # where jobs put theirs if they don't say otherwise
_SHOWN = 10  # names of other runs in a message


def run_folder(job: Job, cwd: Path) -> Path:
    """Return the absolute path of the job's run folder."""
    return cwd / (job.run_dir or _RUNS / job.name)


def refuse_to_replace(folder: Path) -> None:
    """Raise CheckpointError if a new run in the folder would lose checkpoints."""
    if any(folder.glob("checkpoints/step-*")) or any(folder.glob("checkpoints/best")):
        raise CheckpointError(
            "expected a run folder without checkpoints for a new run",
            str(folder),
            "go on with --resume auto, replace it with --overwrite, or take another "
            "name with --set name=NAME",
        )


def is_run(folder: Path | str, files: Sequence[str] = (CONFIG, METRICS)) -> bool:
    """Return whether a folder has one of the files that make it a run's."""
    return any((Path(folder) / name).is_file() for name in files)


def find_run(folder: Path | str, files: Sequence[str] = (CONFIG,)) -> Path:
    """Return the path of a run's folder, which has one of ``files``.

    Raises CheckpointError if it isn't one; the message names the runs that are near:
    in the folder itself, beside it, or in runs/.
    """
    path = Path(folder)
    if is_run(path, files):
        return path
    wanted = " or a ".join(files)
    received = f"{path}, which doesn't exist"
    if path.is_dir():
        received = f"{path}, which has no {' and no '.join(files)}"
    elif path.exists():
        received = f"{path}, which is a file"
    raise CheckpointError(
        f"expected the folder of a run, with a {wanted}", received, _instead(path)
    )


def saved_states(folder: Path) -> list[Path]:
    """Return state.json of each complete checkpoint; hidden folders were cut off."""
    return sorted(folder.glob("checkpoints/[!.]*/state.json"))


def find_checkpoints(folder: Path) -> None:
    """Raise CheckpointError if a folder is neither a checkpoint nor has some."""
    if (folder / "state.json").is_file() or saved_states(folder):
        return
    raise CheckpointError(
        "--resume: expected a run folder or a checkpoint",
        f"{find_run(folder)}, a run without checkpoints",
        "start it anew with --overwrite",
    )


def _instead(path: Path) -> str:
    """Return which runs there are to give instead of ``path``."""
    for place in (path, path.parent, _RUNS):
        names = _runs_in(place)
        if names:
            break
    else:
        return "train one, as fastserve run JOB.yaml, or go to where its runs/ is"
    near = nearest(path.name, names)
    meant = f"did you mean {place / near}? " if near else "give one of them: "
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{meant}{place}/ has {', '.join(names[:_SHOWN])}{more}"


def _runs_in(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if is_run(path))
    except OSError:  # not a folder, or one that can't be read
        return []
