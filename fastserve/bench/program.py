"""What each rank of a benchmark over several ranks runs."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence

from fastserve.bench import allreduce, ranks
from fastserve.comm import world
from fastserve.errors import FastserveError

PROGRAMS = {"allreduce": allreduce, "step": ranks}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure over all ranks, print the result on rank 0; return the exit status."""
    parser = argparse.ArgumentParser("python -m fastserve.bench")
    kinds = parser.add_subparsers(dest="program", required=True)
    for name, module in PROGRAMS.items():
        module.add_options(kinds.add_parser(name))
    options = parser.parse_args(argv)
    comm = world()
    try:
        text = PROGRAMS[options.program].report(comm, options)
    except BaseException as error:  # noqa: BLE001  the other ranks wait for this one
        said = str(error) if isinstance(error, FastserveError) else None
        print(said or traceback.format_exc(), file=sys.stderr, flush=True)
        if comm.size > 1:
            comm.abort(1)
        return 1
    if comm.rank == 0:
        print(text, flush=True)
    return 0
