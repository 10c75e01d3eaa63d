"""A rank as the launcher sees it: it succeeds, fails, hangs or dies as told.

Usage: launch_rank.py MODE
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import signal
import sys
import termios
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from fastserve import environment

environment.prepare_process()
JOB = os.environ["FASTSERVE_JOB"]
RUN = Path(os.environ["FASTSERVE_RUN_DIR"])
PLACE = environment.expected_ranks()
LAST = PLACE.rank == PLACE.size - 1  # the rank that the modes below happen to
WORLD: Any = None
if os.environ.get("FASTSERVE_COMM") != "local":
    from mpi4py import MPI

    WORLD = MPI.COMM_WORLD
elif "mpi4py" in sys.modules:
    sys.exit("a local job must not load MPI")


def barrier() -> None:
    if WORLD is not None:
        WORLD.Barrier()


def write(name: str, content: object) -> None:
    path = RUN / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")


def fail(error: Exception, status: int) -> NoReturn:
    write(
        f"errors/rank-{PLACE.rank:05d}.json",
        {
            "rank": PLACE.rank,
            "host": "testhost",
            "time": time.time(),
            "type": type(error).__name__,
            "message": str(error),
            "traceback": "".join(traceback.format_exception(error)),
            "status": status,
        },
    )
    if WORLD is not None:
        WORLD.Abort(status)
    sys.exit(status)


def until_it_is_read() -> None:
    """Wait until nothing of what was printed is left in the pipe, if it is one."""
    left = array.array("i", [1])
    with suppress(OSError):
        while left[0]:
            fcntl.ioctl(1, termios.FIONREAD, left)
            time.sleep(0.01)


def wait_forever() -> NoReturn:
    while True:
        time.sleep(0.05)


def main(mode: str) -> None:
    if mode == "stubborn":
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    stop: list[int] = []
    if mode == "saves":
        signal.signal(signal.SIGUSR1, lambda number, frame: stop.append(number))
    write(f"pids/{PLACE.rank}", os.getpid())
    barrier()
    if mode == "saves":
        while not stop:
            time.sleep(0.05)
        if PLACE.rank == 0:
            write("stopped.json", {"job": JOB, "ranks": PLACE.size, "steps": 1})
        barrier()
        # the last one ends as if the MPI had killed it on its way out
        sys.exit(1 if LAST and PLACE.size > 1 else 0)
    if mode in ("hangs", "stubborn"):
        wait_forever()
    print("at work")
    until_it_is_read()  # Hydra drops what it hasn't passed on when a rank aborts
    time.sleep(0.3)
    if mode == "recorded" and LAST:
        fail(KeyError("the true cause"), 3)
    if mode == "recorded_hang" and LAST:
        global WORLD
        WORLD = None  # the abort is lost
        try:
            fail(KeyError("the true cause"), 3)
        finally:
            wait_forever()
    if mode == "killed" and LAST:
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "exit" and LAST:
        os._exit(4)
    if mode in ("recorded", "recorded_hang", "killed", "exit"):
        wait_forever()
    print(f"rank {PLACE.rank} of {PLACE.size}")
    print(f"warning of rank {PLACE.rank}", file=sys.stderr)
    barrier()
    if mode == "succeeds" and PLACE.rank == 0:
        write("done.json", {"job": JOB, "ranks": PLACE.size, "steps": 1})


main(sys.argv[1])
