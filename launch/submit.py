"""``fastserve submit``: a Slurm batch script for a job, and its submission.

Slurm warns the script some time before the job's time is over. Then the ranks save and
stop, and the script puts the job back into the queue, where it goes on from the newest
checkpoint once it runs again.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastserve.errors import LaunchError

if TYPE_CHECKING:
    from fastserve.config import Job

_SECONDS = 60.0  # for sbatch
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SAVED = 75
# bash runs a trap only between commands, so the job runs beside the script's wait.
_RUN = """\
warned=
{command} &
job=$!
trap 'warned=yes; kill -USR1 $job' USR1   # the time is nearly over: save and stop
trap 'kill -TERM $job' TERM
wait $job
status=$?
while kill -0 $job 2>/dev/null; do   # a signal has ended the wait, not the job
    wait $job
    status=$?
done
"""
_REQUEUE = """\
if [ -n "$warned" ] && [ $status = {saved} ]; then
    echo "saved; back into the queue, to go on from there"
    scontrol requeue "$SLURM_JOB_ID" && exit 0
fi
"""


def script(
    job: Job,
    run_dir: Path,
    cwd: Path,
    arguments: Sequence[str],
    python: str = sys.executable,
) -> str:
    """Return the batch script; ``arguments`` are those of ``fastserve run``."""
    slurm = job.launch.slurm
    command = shlex.join([python, "-m", "launch.cli", "run", *arguments])
    lines = ["#!/bin/bash"]
    lines += [f"#SBATCH {option}" for option in _options(job, run_dir, cwd)]
    lines += ["", *slurm.prologue] if slurm.prologue else []
    # between the warning and the end, the ranks may take their time to save
    lines += ["", f"export FASTSERVE_GRACE=${{FASTSERVE_GRACE:-{_grace(job)}}}"]
    lines.append(_RUN.format(command=command).rstrip())
    if slurm.requeue:
        lines.append(_REQUEUE.format(saved=_SAVED).rstrip())
    return "\n".join([*lines, "exit $status", ""])


def submit(text: str, run_dir: Path) -> str:
    """Write the script into the run folder, submit it, and return what sbatch says.

    Raises LaunchError if the folder can't be written to, or sbatch doesn't take it.
    """
    path = run_dir / "submit.sh"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    except OSError as error:
        raise LaunchError(
            "expected a run folder that can be written to",
            f"{run_dir}: {error.strerror}",
            "choose another folder with --set run_dir=FOLDER",
        ) from error
    try:
        done = subprocess.run(
            ["sbatch", str(path)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise LaunchError(
            "expected Slurm's sbatch on PATH",
            "no such program",
            f"run this on a login node of the cluster; the script is {path}",
        ) from None
    except subprocess.TimeoutExpired:
        raise LaunchError(
            "expected an answer of Slurm's controller",
            f"none within {_SECONDS:g} s",
            f"see with squeue whether it has the job; the script is {path}",
        ) from None
    if done.returncode:
        raise LaunchError(
            "expected Slurm to take the job",
            (done.stderr or done.stdout).strip(),
            f"correct launch.slurm in the job; the script is {path}",
        )
    return done.stdout.strip()


def clock(text: str) -> str:
    """Return a duration such as ``90m``, ``12h`` or ``2d`` as Slurm writes it."""
    match = re.fullmatch(r"(\d+)([smhd])", text)
    if not match:
        return text  # it is in Slurm's form already
    seconds = int(match[1]) * _UNITS[match[2]]
    days, rest = divmod(seconds, 86400)
    time = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days}-{time}" if days else time


def _options(job: Job, run_dir: Path, cwd: Path) -> list[str]:
    launch, slurm = job.launch, job.launch.slurm
    threads = launch.threads if isinstance(launch.threads, int) else None
    given = {
        "job-name": job.name,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "time": clock(slurm.time) if slurm.time else None,
        "nodes": slurm.nodes,
        "ntasks": launch.ranks,
        "ntasks-per-node": slurm.tasks_per_node,
        "cpus-per-task": slurm.cpus_per_task or threads,
        "mem": slurm.mem,
        "constraint": slurm.constraint,
        "gres": slurm.gres,
        "chdir": str(cwd),
        # a job that was requeued goes on in the same file
        "output": f"{run_dir}/slurm-%j.out".replace("%", "%%").replace("%%j", "%j"),
        "open-mode": "append",
        "signal": f"B:USR1@{slurm.signal_seconds}",
    }
    options = [f"--{k}={_quote(str(v))}" for k, v in given.items() if v is not None]
    options.append("--requeue" if slurm.requeue else "--no-requeue")
    options += ["--exclusive"] if slurm.exclusive else []
    return [*options, *slurm.extra]


def _grace(job: Job) -> int:
    """Return the seconds that ranks get to save, of those until the time is over."""
    return max(1, job.launch.slurm.signal_seconds - 15)


def _quote(text: str) -> str:
    """Quote for an #SBATCH line, which knows double quotes, backslashes and comments.

    Raises LaunchError for a line end: what is behind it would be a command.
    """
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise LaunchError(
            "expected folders without line ends and control characters",
            repr(text),
            "rename it: Slurm's batch script can't name it",
        )
    if not re.search(r"[^A-Za-z0-9_@%+=:,./-]", text):
        return text
    escaped = re.sub(r'(["\\])', r"\\\1", text)
    return f'"{escaped}"'
