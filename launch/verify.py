"""``fastserve verify``: the first steps of a run again, on other numbers of ranks.

What comes of it is compared among the numbers of ranks, and with the run's own
checkpoint of one of these steps if it has kept one. What the bits depend on besides the
job is compared with what the run has recorded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastserve import environment
from fastserve.config.run_folders import saved_states
from fastserve.environment import Numerics
from fastserve.errors import ArgumentError, LaunchError
from fastserve.json_object import read_object

STOPPED = 75
_COMMAND = (sys.executable, "-c", "from launch.cli import main; main()", "run")
# of a run, what doesn't fit a few steps on other numbers of ranks
ALONE = "launch.min_ranks=null", "launch.max_restarts=0", "checkpoint.at_end=true"
_SHOWN = 16  # digits of a hash
_TAIL = 15  # lines of a job that failed


class Hashes(NamedTuple):
    """SHA-256 of all weights and of the optimizer's state after some steps."""

    weights: str
    optimizer: str


class Recorded(NamedTuple):
    """What a run has kept that its first steps can be compared with.

    ``hashes`` are those of ``step``, which is 0 if the run has no checkpoint of the
    first steps any more.
    """

    numerics: Numerics
    step: int
    hashes: Hashes | None


class Outcome(NamedTuple):
    """What some steps came to: the hashes after each step that was saved."""

    ranks: int
    hashes: dict[int, Hashes]
    numerics: Numerics
    seconds: float

    @property
    def last(self) -> Hashes:
        return self.hashes[max(self.hashes)]


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


def recorded(run: Path, steps: int) -> Recorded:
    """Read what a run folder tells of its first ``steps`` steps.

    Of the checkpoints that of the latest of these steps counts, else the oldest one,
    for its numerics; environment.json tells of the run's last start.
    """
    states = sorted(map(read_object, saved_states(run)), key=_step)
    early = [state for state in states if 0 < _step(state) <= steps and _hashes(state)]
    if early:
        return Recorded(_numerics(early[-1]), _step(early[-1]), _hashes(early[-1]))
    for state in states:
        if found := _numerics(state):
            return Recorded(found, 0, None)
    known = read_object(run / "environment.json")
    keys = environment.NUMERICS_KEYS.items()
    found = {name: str(known[key]) for name, key in keys if known.get(key) is not None}
    return Recorded(found, 0, None)


def verify(
    config: Path,
    ranks: Sequence[int],
    steps: int,
    arguments: Sequence[str],
    say: Callable[[str], None],
    beside: Path | None = None,
    run: Recorded | None = None,
) -> bool:
    """Make the first steps of a job on each number of ranks; print a line for each.

    Returns whether all came to the same bits, and whether nothing speaks against it
    that these are the bits of ``run``, if that is given. ``arguments`` are further ones
    of ``fastserve run``; ``beside`` is a folder that several hosts share.
    Raises LaunchError if a job fails.
    """
    say(f"{'ranks':>5}  {'weights':{_SHOWN}}  {'optimizer':{_SHOWN}}  seconds")
    outcomes = []
    if run and run.step:
        saved = {"every": run.step, "keep": steps, "keep_every": "null"}
        for key, value in saved.items():
            arguments = [*arguments, "--set", f"checkpoint.{key}={value}"]
    prefix = ".verify-" if beside else "fastserve-verify-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=beside) as folder:
        for count in ranks:
            made = _train(config, Path(folder, str(count)), count, steps, arguments)
            outcomes.append(made)
            say(
                f"{count:5}  {made.last.weights[:_SHOWN]}  "
                f"{made.last.optimizer[:_SHOWN]}  {made.seconds:.1f}"
            )
    first = outcomes[0]
    odd = [o for o in outcomes if o.hashes != first.hashes]
    if odd:
        named = ", ".join(str(o.ranks) for o in odd)
        say(f"other bits than on {first.ranks} on {named} ranks, after {steps} steps")
    else:
        say(f"the same bits on {', '.join(map(str, ranks))} ranks, after {steps} steps")
    return _compare(run, first, steps, say) and not odd


def _compare(
    run: Recorded | None, made: Outcome, steps: int, say: Callable[[str], None]
) -> bool:
    """Say how the steps that were made agree with the run's own; return whether
    nothing speaks against it."""
    if run is None:
        say("compared among these alone: with --set it isn't the run's job")
        return True
    other = environment.differences_from_recorded(run.numerics, made.numerics)
    if other:
        say(f"computed otherwise than the run: {other}")
    if run.step == 0:
        means = "the run's own bits may be others: make them again as it was computed"
        kept = f"the run has kept no checkpoint of its first {steps} steps"
        say(f"compared among these alone: {kept}" + (f"; {means}" if other else ""))
        return not other
    if made.hashes.get(run.step) == run.hashes:
        say(f"the bits of the run's own checkpoint of step {run.step}")
        return True
    why = "its data, code or config.yaml were others"
    if other:
        why = "to be expected where it is computed otherwise"
    assert run.hashes is not None  # there is a step
    say(
        f"other bits than the run's own checkpoint of step {run.step}, "
        f"{run.hashes.weights[:_SHOWN]}  {run.hashes.optimizer[:_SHOWN]}: {why}"
    )
    return False


def kernel_words(run: Recorded, given: Mapping[str, str]) -> list[str]:
    """Return the words that let OpenBLAS take the kernel family of the run, unless
    the job's variables or this process's choose one."""
    chosen = environment.chosen_kernel({**os.environ, **given})
    if chosen or not run.numerics.get("BLAS", "").startswith("openblas"):
        return []
    variables = environment.kernel_variable(run.numerics.get("kernels"))
    return [w for k, v in variables.items() for w in ("--set", f"launch.env.{k}={v}")]


def _train(
    config: Path, folder: Path, ranks: int, steps: int, arguments: Sequence[str]
) -> Outcome:
    command = [*_COMMAND, str(config), "-n", str(ranks), "--oversubscribe"]
    command += ["--stop-after", str(steps)]
    for override in (*ALONE, f"run_dir={json.dumps(str(folder))}"):
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
    states = sorted(map(read_object, saved_states(folder)), key=_step)
    hashes = {_step(state): found for state in states if (found := _hashes(state))}
    return Outcome(ranks, hashes, _numerics(states[-1]), seconds)


def _step(state: dict[str, Any]) -> int:
    return state["step"] if isinstance(state.get("step"), int) else 0


def _hashes(state: dict[str, Any]) -> Hashes | None:
    try:
        files = state["files"]
        return Hashes(
            *(files[f"{x}.safetensors"]["sha256"] for x in ("model", "optimizer"))
        )
    except (KeyError, TypeError):  # damaged, or not a checkpoint's
        return None


def _numerics(state: dict[str, Any]) -> Numerics:
    kept = state.get("state")
    found = kept.get("numerics") if isinstance(kept, dict) else None
    return found if isinstance(found, dict) else {}
