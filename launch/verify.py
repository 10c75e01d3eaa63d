"""``fastserve verify``: the first steps of a run again, on other numbers of ranks."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from fastserve.errors import ArgumentError, LaunchError

STOPPED = 75
_COMMAND = (sys.executable, "-c", "from launch.cli import main; main()", "run")
# of a run, what doesn't fit a few steps on other numbers of ranks
ALONE = "launch.min_ranks=null", "launch.max_restarts=0", "checkpoint.at_end=true"
_SHOWN = 16  # digits of a hash
_TAIL = 15  # lines of a job that failed


class Outcome(NamedTuple):
    """Hashes of all weights and of the optimizer's state after some steps."""

    ranks: int
    weights: str
    optimizer: str
    seconds: float


def parse_ranks(text: str) -> list[int]:
    """Return numbers of ranks from ``1,2,4``; raises ArgumentError for others."""
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise ArgumentError(
            "--ranks: expected numbers above 0", repr(text), "for example --ranks 1,2,4"
        )
    ranks = sorted({int(word) for word in words})
    if len(ranks) < 2:
        raise ArgumentError(
            "--ranks: expected two numbers or more, to compare",
            repr(text),
            "for example --ranks 1,2,4",
        )
    return ranks


def verify(
    config: Path,
    ranks: Sequence[int],
    steps: int,
    arguments: Sequence[str],
    say: Callable[[str], None],
    beside: Path | None = None,
) -> bool:
    """Make the first steps of a job on each number of ranks; print a line for each.

    Returns whether all came to the same bits. ``arguments`` are further ones of
    ``fastserve run``; ``beside`` is a folder that several hosts share.
    Raises LaunchError if a job fails.
    """
    say(f"{'ranks':>5}  {'weights':{_SHOWN}}  {'optimizer':{_SHOWN}}  seconds")
    outcomes = []
    prefix = ".verify-" if beside else "fastserve-verify-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=beside) as folder:
        for count in ranks:
            made = _train(config, Path(folder, str(count)), count, steps, arguments)
            outcomes.append(made)
            say(
                f"{count:5}  {made.weights[:_SHOWN]}  {made.optimizer[:_SHOWN]}  "
                f"{made.seconds:.1f}"
            )
    first = outcomes[0]
    odd = [o for o in outcomes if o[1:3] != first[1:3]]
    if odd:
        named = ", ".join(str(o.ranks) for o in odd)
        say(f"other bits than on {first.ranks} on {named} ranks, after {steps} steps")
    else:
        say(f"the same bits on {', '.join(map(str, ranks))} ranks, after {steps} steps")
    return not odd


def _train(
    config: Path, folder: Path, ranks: int, steps: int, arguments: Sequence[str]
) -> Outcome:
    command = [*_COMMAND, str(config), "-n", str(ranks), "--oversubscribe"]
    command += ["--stop-after", str(steps)]
    for override in (*ALONE, f"run_dir={folder}"):
        command += ["--set", override]
    command += arguments
    start = time.perf_counter()
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    if done.returncode not in (0, STOPPED):
        lines = (done.stdout + done.stderr).strip().splitlines()[-_TAIL:]
        raise LaunchError(
            f"verify: expected the job to make {steps} steps on {ranks} ranks",
            f"exit status {done.returncode}:\n" + "\n".join(f"  {x}" for x in lines),
            "see what it says; fastserve run gives the same",
        )
    newest = max(folder.glob("checkpoints/step-*/state.json"))
    files = json.loads(newest.read_text("utf-8"))["files"]
    weights, optimizer = (
        files[f"{name}.safetensors"]["sha256"] for name in ("model", "optimizer")
    )
    return Outcome(ranks, weights, optimizer, seconds)
