"""A job's optimizer, schedule, loss and metrics reach the model as objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import fastserve as fs
from fastserve.assemble.model import compile_model
from fastserve.config import load_job
from fastserve.errors import ConfigError

JOB: dict[str, Any] = {
    "name": "numbers",
    "model": {
        "type": "sequential",
        "layers": [
            {"Dense": {"units": 3, "kernel_regularizer": {"L2": {"l2": 0.001}}}},
            {"Dense": {"units": 2, "kernel_constraint": "max_norm"}},
        ],
        "loss": {"Huber": {"delta": 2.0}},
        "metrics": [
            "mae",
            {"R2Score": {"class_aggregation": None}},
            {"MeanIoU": {"num_classes": 2}},
        ],
        "input_shape": [4],
    },
    "data": {"type": "arrays", "file": "data.npz"},
    "train": {"steps": 30},
}


def compiled(folder: Path, **sections: Any) -> Any:
    np.savez(folder / "data.npz", x_train=np.zeros((4, 4)), y_train=np.zeros((4, 2)))
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(JOB | sections))
    job = load_job(path)
    model = fs.models.Sequential([fs.layers.Dense(2, input_shape=(4,))])
    compile_model(job, model, 30)
    return model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("section", "cls", "values"),
    [
        ({"type": "sgd", "momentum": 0.5}, "SGD", {"momentum": 0.5}),
        ({"type": "rmsprop", "centered": True}, "RMSprop", {"centered": True}),
        ({"type": "adam", "amsgrad": True, "eps": 1e-3}, "Adam", {"epsilon": 1e-3}),
        ({"type": "adamw", "betas": [0.5, 0.6]}, "AdamW", {"beta_2": 0.6}),
        ({"type": "adamax", "weight_decay": 0.2}, "Adamax", {"weight_decay": 0.2}),
        ({"type": "nadam", "betas": [0.5, 0.6]}, "Nadam", {"beta_1": 0.5}),
        ({"type": "lamb"}, "Lamb", {"weight_decay": 0.01}),
        ({"type": "lion"}, "Lion", {"beta_2": 0.99, "learning_rate(0)": 1e-4}),
        (
            {"type": "adagrad", "initial_accumulator_value": 0.4},
            "Adagrad",
            {"initial": {"v": 0.4}},
        ),
        ({"type": "adadelta", "lr": 1, "rho": 0.8}, "Adadelta", {"rho": 0.8}),
        (
            {"type": "ftrl", "l1": 0.3, "l2": 0.2},
            "Ftrl",
            {"l1_regularization_strength": 0.3, "l2_regularization_strength": 0.2},
        ),
    ],
)
def test_optimizers(folder: Path, section: Any, cls: str, values: Any) -> None:
    optimizer = compiled(folder, optimizer=section).optimizer
    assert type(optimizer) is getattr(fs.optimizers, cls)
    for name, value in values.items():
        if name == "learning_rate(0)":
            assert optimizer.current_lr() == value
        else:
            assert getattr(optimizer, name) == value


def test_schedules(folder: Path) -> None:
    rates: Any = {
        "cosine_restarts": {"first_decay_steps": 10, "t_mul": 1, "min_lr": 1e-4},
        "polynomial": {"power": 2, "decay_steps": 20},
        "piecewise": {"boundaries": [10, 20], "factors": [0.5, 0.1]},
    }
    for kind, keys in rates.items():
        section = {"type": kind, "warmup_steps": 4, **keys}
        optimizer = compiled(folder, schedule=section).optimizer
        assert optimizer.current_lr() == pytest.approx(1e-3 / 4)
        optimizer.step = 20
        expected = {"polynomial": 0.0, "piecewise": 1e-4}.get(kind)
        if expected is not None:
            assert optimizer.current_lr() == pytest.approx(expected)


def test_boundaries_that_do_not_fit(folder: Path) -> None:
    for keys in (
        {"boundaries": [5, 3], "factors": [1, 0.5]},
        {"boundaries": [5], "factors": [1, 0.5]},
        {"boundaries": [2], "factors": [1], "warmup_steps": 4},
    ):
        with pytest.raises(ConfigError):
            compiled(folder, schedule={"type": "piecewise", **keys})


def test_loss_and_metrics_with_arguments(folder: Path) -> None:
    model = compiled(folder)
    assert isinstance(model.loss, fs.losses.Huber) and model.loss.delta == 2.0
    name, r2, iou = model.metrics
    assert name == "mae" and r2.class_aggregation is None and iou.num_classes == 2
    wrong = JOB["model"] | {"loss": {"Huber": {"delta": 1}, "mse": {}}}
    with pytest.raises(ConfigError, match="mapping of one name to its arguments"):
        compiled(folder, model=wrong)
    wrong = JOB["model"] | {"loss": {"Huber": {"width": 1}}}
    with pytest.raises(fs.errors.ArgumentError, match="Huber: expected arguments"):
        compiled(folder, model=wrong)


def test_evaluate_prints_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from fastserve import trained
    from launch import cli, jobs

    found = {"loss": 0.25, "confusion_matrix": np.array([[3.0, 1.0], [0.0, 2.5]])}
    monkeypatch.setattr(trained, "evaluate", lambda *_: found)
    monkeypatch.setattr(jobs, "prepare_process", lambda: None)
    result = CliRunner().invoke(cli.cli, ["evaluate", "runs/x"], catch_exceptions=False)
    assert result.output.splitlines() == [
        "loss 0.2500",
        "confusion_matrix",
        "  3  1",
        "  0  2.5",
    ]
