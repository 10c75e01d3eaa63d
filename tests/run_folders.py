"""Run folders as a training leaves them, made without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastserve.config import dump_yaml

START = 1_700_000_000.0  # unix time of the first line of metrics


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")


def make_run(folder: Path, steps: int = 100, every: int = 5, **job: Any) -> Path:
    """Make the folder of a run of ``steps`` steps that has ended, with two ranks.

    A line of metrics every ``every`` steps; the validation loss is the lowest at 4/5.
    """
    config = {
        "name": folder.name,
        "model": {"type": "sequential", "loss": "mse", "layers": [], "metrics": []},
        "data": {"type": "arrays", "file": "data.npz", "validation_split": 0.2},
        "train": {"steps": steps, "epochs": None},
        "launch": {"ranks": 2, "env": {}},
        **job,
    }
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_yaml(config), "utf-8")
    lines: list[dict[str, Any]] = []
    for step in range(every, steps + 1, every):
        now = START + 0.5 * step
        values = {"loss": 2 / step + 0.01 * (step % 3), "grad_norm": 1.0}
        rates = {"learning_rate": 1e-3, "samples_per_s": 12_345.0, "gflops": 1.5}
        lines.append({"step": step, **values, **rates, "time": now})
        if step % (every * 4) == 0:
            loss = 0.1 + abs(step / steps - 0.8)
            found = {"val_loss": loss, "val_accuracy": 1 - loss}
            lines.append({"step": step, **found, "time": now + 0.1})
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(v)}\n" for v in lines))
    state = {"samples": 80, "global_batch": 8, "val_loss": 0.1}
    checkpoint = folder / "checkpoints" / f"step-{steps:08d}"
    write_json(checkpoint / "state.json", {"step": steps, "state": state, "files": {}})
    done = {"steps": steps, "ranks": 2, "time": START + steps}
    write_json(folder / "done.json", done)
    (folder / ".lock").touch()
    return folder
