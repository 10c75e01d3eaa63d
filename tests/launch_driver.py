"""Runs a plan as the command does, with tests/launch_rank.py as the ranks' program.

Usage: launch_driver.py LAUNCHER RANKS RUN_DIR MODE
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fastserve import environment
from fastserve.config.schema import Launch
from launch.mpi import find_mpi
from launch.plan import Machine, make_plan
from launch.process import run_plan

launcher, ranks, run_dir, mode = sys.argv[1:]
job: Any = SimpleNamespace(
    name="test",
    run_dir=run_dir,
    train=SimpleNamespace(global_batch=8, micro_batch=None),
    shard_rows=None,
    launch=Launch(ranks=int(ranks)),
)
cores = environment.affinity_cores()
plan = make_plan(
    job,
    [],
    None if launcher == "local" else find_mpi(launcher),
    Machine(tuple(cores), dict(os.environ), Path.cwd(), root=os.geteuid() == 0),
    token=secrets.token_hex(8),
    program=[sys.executable, str(Path(__file__).with_name("launch_rank.py")), mode],
)
sys.exit(run_plan(plan))
