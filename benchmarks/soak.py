"""Trains for long on a busy host; looks whether memory grows or a step is lost.

    python benchmarks/soak.py [--minutes 60] [--ranks 2] [--memory 0.25] [--json]

A small GPT on some ranks, with evaluations and a checkpoint every 100 steps. Beside it
one process a core computes without end, and one takes a share of the free memory and
gives it back, again and again. At the end the job is asked to stop. Memory is what each
rank has in memory and in the swap; its slope is that of a straight line through all
samples after the first tenth. Ends with status 1 if a rank's is above 1 MB per 1000
steps, if a step is missing in metrics.jsonl or in the last checkpoint, or if the
pressure or the job ended before its time.
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
import sys, time
def free():
    with open("/proc/meminfo") as file:
        known = dict(line.split(":") for line in file)
    return int(known["MemAvailable"].split()[0]) * 1024
while True:
    block = bytearray(int(free() * float(sys.argv[1])))
    block[::4096] = b"x" * len(block[::4096])
    time.sleep(1)
    del block
    time.sleep(1)
"""
EVERY = 2.0  # seconds between two samples
LIMIT = 1.0  # MB per 1000 steps


def ranks_of(run_dir: Path) -> list[int]:
    """Return the ids of the processes that train."""
    found = []
    for pid in job_processes(str(run_dir), "FASTSERVE_RUN_DIR"):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if words[1:3] == [b"-m", b"fastserve"]:
            found.append(pid)
    return sorted(found)


def resident(pid: int) -> float:
    """Return the MB of memory that a process has, also those that were swapped out."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    known = dict(line.split(":", 1) for line in lines)
    return sum(int(known[k].split()[0]) for k in ("VmRSS", "VmSwap")) / 1024


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def steps_of(run_dir: Path) -> list[int]:
    lines = (run_dir / "metrics.jsonl").read_text("utf-8").splitlines()
    return [line["step"] for line in map(json.loads, lines) if "grad_norm" in line]


def last_step(run_dir: Path) -> int | None:
    """Return the last step that has a line, without reading them all."""
    try:
        with (run_dir / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().rsplit(b"\n", 2)
    except FileNotFoundError:
        return None
    return int(json.loads(lines[-2])["step"]) if len(lines) > 1 else None


def watch(
    run_dir: Path, ranks: int, seconds: float, processes: list[subprocess.Popen[bytes]]
) -> list[list[float]]:
    """Return samples for so many seconds, or until a process ends.

    A sample is the time, the step, and for each rank its MB and its seconds of CPU.
    """
    samples: list[list[float]] = []
    pids: list[int] = []
    end, said = time.monotonic() + seconds, time.monotonic()
    while time.monotonic() < end and all(p.poll() is None for p in processes):
        time.sleep(EVERY)
        step = last_step(run_dir)
        if step is None:
            continue
        pids = pids or ranks_of(run_dir)
        try:
            known = [f(pid) for f in (resident, cpu_seconds) for pid in pids]
        except (FileNotFoundError, ProcessLookupError, KeyError):
            break  # a rank has ended
        samples.append([time.monotonic(), step, *known])
        if len(pids) != ranks:
            sys.exit(f"expected {ranks} processes of ranks; received: {pids}")
        if time.monotonic() > said + 60:
            said = time.monotonic()
            mb = ", ".join(f"{m:.1f}" for m in known[:ranks])
            print(f"step {step}: {mb} MB", file=sys.stderr)
    return samples


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument(
        "--memory", type=float, default=0.25, help="share of the free memory to take"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fastserve-soak-") as name:
        folder = Path(name)
        (folder / "job.yaml").write_text(JOB)
        run_dir = folder / "runs" / "soak"
        beside = [[COMPUTES]] * len(os.sched_getaffinity(0))
        beside.append([ALLOCATES, str(options.memory)])
        pressure = [subprocess.Popen([sys.executable, "-c", *b]) for b in beside]
        command = ["-m", "launch.cli", "run", "job.yaml", "-n", str(options.ranks)]
        job = subprocess.Popen(
            [sys.executable, *command], cwd=folder, stdout=subprocess.DEVNULL
        )
        try:
            seconds = options.minutes * 60
            samples = watch(run_dir, options.ranks, seconds, [job, *pressure])
            pressed = all(process.poll() is None for process in pressure)
            job.send_signal(signal.SIGTERM)
            status = job.wait(300)
        finally:
            job.terminate()  # does nothing to one that has ended
            for process in pressure:
                process.kill()
                process.wait()
            job.wait(60)
        if len(samples) < 20:
            sys.exit(f"expected some samples; received {len(samples)}, status {status}")
        steps = steps_of(run_dir)
        saved = max(run_dir.glob("checkpoints/step-*/state.json"), default=None)
        known = json.loads(saved.read_text())["step"] if saved else 0
    kept = np.array(samples[len(samples) // 10 :])
    times, mb, cpu = kept[:, 0], *np.split(kept[:, 2:], 2, axis=1)
    slopes = 1000 * np.polyfit(kept[:, 1], mb, 1)[0]
    shares = (cpu[-1] - cpu[0]) / (times[-1] - times[0])
    whole = steps == list(range(1, known + 1))
    found = {
        "minutes": round(float(times[-1] - samples[0][0]) / 60, 1),
        "ranks": options.ranks,
        "steps": known,
        "no_step_lost": whole,
        "status": status,
        "pressure_to_the_end": pressed,
        "share_of_a_core": shares.round(2).tolist(),
        "mb_first": mb[0].round(1).tolist(),
        "mb_last": mb[-1].round(1).tolist(),
        "mb_per_1000_steps": slopes.round(3).tolist(),
    }
    if options.json:
        print(json.dumps(found))
    else:
        for key, value in found.items():
            print(f"{key:20}{value}")
    return 0 if whole and pressed and status == 75 and max(slopes) < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
