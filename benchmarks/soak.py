"""Trains for long on a busy host; looks whether memory grows or a step is lost.

    python benchmarks/soak.py [--minutes 60] [--ranks 2] [--json]

A small GPT on some ranks, with evaluations and a checkpoint every 100 steps. Beside it
one process a core computes without end, and one takes a quarter of the free memory and
gives it back, again and again. At the end the job is asked to stop. Memory is the
resident set of each rank; its slope is that of a straight line through all samples
after the first tenth. Ends with status 1 if a rank's is above 1 MB per 1000 steps, or
if a step is missing in metrics.jsonl or in the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from launch.process import job_processes

JOB = """
name: soak
model: {type: gpt, n_layer: 2, n_head: 2, n_embd: 64, block_size: 32, dropout: 0.1}
data: {type: text, source: pydoc-topics}
train: {global_batch: 8, steps: 1000000000, log_every: 1, eval_every: 500,
        eval_batches: 4, baseline: false}
checkpoint: {every: 100, keep: 2}
comm: {algorithm: exact, check_every: 100, timeout: 300}
launch: {oversubscribe: true}
"""
COMPUTES = "while True: sum(range(10**6))"
ALLOCATES = """
import time
def free():
    with open("/proc/meminfo") as file:
        known = dict(line.split(":") for line in file)
    return int(known["MemAvailable"].split()[0]) * 1024
while True:
    block = bytearray(free() // 4)
    block[::4096] = b"x" * len(block[::4096])
    time.sleep(1)
    del block
    time.sleep(1)
"""
EVERY = 2.0  # seconds between two samples
LIMIT = 1.0  # MB per 1000 steps
MB = 1 << 20


def ranks_of(run_dir: Path) -> list[int]:
    """Return the ids of the processes that train."""
    found = []
    for pid in job_processes(str(run_dir), "FASTSERVE_RUN_DIR"):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if words[1:3] == [b"-m", b"fastserve"]:
            found.append(pid)
    return sorted(found)


def resident(pid: int) -> float:
    """Return the MB of memory that a process has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MB


def steps_of(run_dir: Path) -> list[int]:
    lines = (run_dir / "metrics.jsonl").read_text("utf-8").splitlines()
    return [line["step"] for line in map(json.loads, lines) if "grad_norm" in line]


def last_step(run_dir: Path) -> int:
    """Return the last step that has a line, without reading them all."""
    with (run_dir / "metrics.jsonl").open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
        return int(json.loads(file.read().rsplit(b"\n", 2)[-2])["step"])


def watch(run_dir: Path, job: subprocess.Popen[bytes], seconds: float) -> np.ndarray:
    """Return samples (n, 1 + ranks): the step, and the MB of each rank."""
    samples: list[list[float]] = []
    end, pids = time.monotonic() + seconds, []
    while time.monotonic() < end and job.poll() is None:
        time.sleep(EVERY)
        pids = pids or (
            ranks_of(run_dir) if (run_dir / "metrics.jsonl").exists() else []
        )
        if pids:
            samples.append([last_step(run_dir), *map(resident, pids)])
    return np.array(samples)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fastserve-soak-") as name:
        folder = Path(name)
        (folder / "job.yaml").write_text(JOB)
        run_dir = folder / "runs" / "soak"
        beside = [COMPUTES] * len(os.sched_getaffinity(0)) + [ALLOCATES]
        pressure = [subprocess.Popen([sys.executable, "-c", code]) for code in beside]
        command = ["-m", "launch.cli", "run", "job.yaml", "-n", str(options.ranks)]
        job = subprocess.Popen(
            [sys.executable, *command], cwd=folder, stdout=subprocess.DEVNULL
        )
        try:
            samples = watch(run_dir, job, options.minutes * 60)
            job.send_signal(signal.SIGTERM)
            status = job.wait(120)
        finally:
            for process in (job, *pressure):
                process.kill()
                process.wait()
        steps = steps_of(run_dir)
        saved = max(run_dir.glob("checkpoints/step-*/state.json"), default=None)
        known = json.loads(saved.read_text())["step"] if saved else 0
    kept = samples[len(samples) // 10 :]
    slopes = [1000 * np.polyfit(kept[:, 0], mb, 1)[0] for mb in kept[:, 1:].T]
    whole = steps == list(range(1, known + 1))
    found = {
        "minutes": options.minutes,
        "ranks": options.ranks,
        "steps": known,
        "no_step_lost": whole,
        "status": status,
        "mb": [round(float(mb), 1) for mb in kept[-1, 1:]],
        "mb_per_1000_steps": [round(float(slope), 3) for slope in slopes],
    }
    if options.json:
        print(json.dumps(found))
    else:
        for key, value in found.items():
            print(f"{key:20}{value}")
    return 0 if whole and status == 75 and max(slopes) < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
