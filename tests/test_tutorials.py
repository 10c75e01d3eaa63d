"""The tutorials, followed from their first block to their last in a fresh folder.

Trainings that take longer than some seconds are shortened, as ``SHORTER`` says: by
other numbers of steps or epochs in what the page shows. Of such a page the commands,
the files and the form of what is printed are checked, of the others the results, too.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from mpi_environments import ROOT, require, run, variables
from pages import Reader
from real_data import FOLDER, real

TUTORIALS = ROOT / "docs" / "tutorials"
OTHERS = {"from-pytorch", "from-horovod", "from-nanogpt"}  # in docs
LIMIT = 300  # seconds for a block; a hanging one ends then
# what a page trains on
DATA = {
    "first-network": ["mnist-sample"],
    "image-recognition": ["fashion-mnist"],
    "text-classification": ["spam"],
    "sentiment-lstm": ["film-sentiment"],
    "character-gpt": ["shakespeare"],
    "bpe-gpt": ["shakespeare"],
    "finetune-gpt2": ["shakespeare"],
    "write-a-layer": ["digits"],
    "write-a-callback": ["mnist-sample"],
    "from-pytorch": ["mnist-sample"],
    "from-horovod": ["mnist-sample"],
    "from-nanogpt": ["shakespeare"],
}
# (what the page says, what is done instead), each in one place of the page or more
SHORTER = {
    "image-recognition": [
        ("epochs: 5, log_every: 100", "steps: 20, log_every: 10"),
        ("warmup_steps: 100", "warmup_steps: 5"),
    ],
    "text-classification": [
        ("epochs: 3, log_every: 100", "epochs: 1, log_every: 50"),
        ("epochs: 3}", "epochs: 1}"),
    ],
    "character-gpt": [
        ("steps: 2000, clip_norm: 1.0, eval_every: 500", "steps: 40, eval_every: 10"),
        ("eval_batches: 100, log_every: 500", "eval_batches: 2, log_every: 10"),
        ("warmup_steps: 100", "warmup_steps: 5"),
        ("every: 500", "every: 20"),
        ("train.steps=2200", "train.steps=44"),
        ("n_embd: 128", "n_embd: 32"),
        (
            "evaluate runs/bard",
            "evaluate runs/bard --set data.validation_split=0.01",
        ),
    ],
    "finetune-gpt2": [
        ("n_layer: 3", "n_layer: 2"),
        ("steps: 400, clip_norm: 1.0, eval_every: 200", "steps: 20, eval_every: 10"),
        ("steps: 200, clip_norm: 1.0, eval_every: 50", "steps: 20, eval_every: 10"),
        ("eval_batches: 20, log_every: 200", "eval_batches: 2, log_every: 10"),
        ("eval_batches: 20, log_every: 50", "eval_batches: 2, log_every: 10"),
        ("warmup_steps: 40", "warmup_steps: 5"),
        ("warmup_steps: 20", "warmup_steps: 5"),
        (
            "--set data.source=shakespeare",
            "--set data.source=shakespeare --set data.validation_split=0.01",
        ),
    ],
    "from-nanogpt": [
        ("steps: 200, clip_norm: 1.0, eval_every: 100", "steps: 20, eval_every: 10"),
        ("eval_batches: 20, log_every: 100", "eval_batches: 2, log_every: 10"),
        ("warmup_steps: 100", "warmup_steps: 5"),
    ],
    "bpe-gpt": [
        ("n_embd: 256", "n_embd: 32"),
        ("steps: 400, clip_norm: 1.0, eval_every: 100", "steps: 8, eval_every: 2"),
        ("eval_batches: 20, log_every: 100", "eval_batches: 1, log_every: 2"),
        ("warmup_steps: 40", "warmup_steps: 2"),
    ],
}


def environment() -> dict[str, str]:
    """Return a reader's: the commands on PATH, and more ranks than cores allowed."""
    return variables(
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        FASTSERVE_DATA_DIR=os.environ.get("FASTSERVE_DATA_DIR", str(FOLDER)),
        PRTE_MCA_rmaps_default_mapping_policy=":oversubscribe",
        COLUMNS="80",
    )


def shortened(name: str) -> str:
    """Return a page with the changes that are made to it."""
    folder = TUTORIALS.parent if name in OTHERS else TUTORIALS
    text = (folder / f"{name}.md").read_text("utf-8")
    for shown, instead in SHORTER.get(name, []):
        assert shown in text, f"{name}.md doesn't say {shown!r} any more"
        text = text.replace(shown, instead)
    return text


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA)
def test_a_reader_can_follow(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for known in DATA[name]:
        real(known, monkeypatch)
    require("openmpi")
    env = environment()
    if shutil.which("fastserve", path=env["PATH"]) is None:
        pytest.fail("expected the fastserve command beside this interpreter")

    def runner(command: Sequence[str]) -> tuple[int, str]:
        done = run(
            ["sh", "-c", 'exec "$@" 2>&1', "sh", *command], LIMIT, cwd=tmp_path, env=env
        )
        return done.returncode, done.stdout

    Reader(tmp_path, runner).follow(shortened(name), results=name not in SHORTER)


CLUSTERS = {"two-machines", "slurm"}  # followed in tests/cluster


def test_all_tutorials_are_followed() -> None:
    followed = {*DATA, *CLUSTERS} - OTHERS
    assert {page.stem for page in TUTORIALS.glob("*.md")} == followed


def test_every_tutorial_says_how_to_go_on() -> None:
    for page in TUTORIALS.glob("*.md"):
        last = page.read_text("utf-8").split("\n## ")[-1]
        assert last.startswith("What to change next"), page.name
