"""Optimizers and schedules against numbers that Keras gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras_cases as cases
import numpy as np
import pytest

from fastserve import optimizers, schedules
from fastserve.core import Layer, ParameterStore, initializers

HERE = Path(__file__).parent / "references"
REFERENCE = np.load(HERE / "numbers_optimizers.npz")
SCHEDULES = np.load(HERE / "numbers_schedules.npz")


class Box(Layer):
    """The parameters of the cases, and nothing else."""

    def build(self, input_shape: Any) -> Any:
        for name, shape in cases.SHAPES.items():
            self.param(name, shape, initializers.Zeros())
        return input_shape


def given(arguments: dict[str, Any]) -> dict[str, Any]:
    made = dict(arguments)
    for name, value in arguments.items():
        if isinstance(value, dict) and "schedule" in value:
            kind, keys = value["schedule"]
            made[name] = getattr(schedules, kind)(**keys)
    return made


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("case", cases.OPTIMIZERS)
def test_optimizer_is_kerass(case: str, resumed: bool) -> None:
    """Five updates; with ``resumed`` the last two with a new optimizer."""
    kind, arguments = cases.OPTIMIZERS[case]
    box = Box()
    box.build_once((1,))
    store = ParameterStore(box)
    first, grads = cases.optimizer_inputs()
    for parameter in store.parameters:
        parameter.value[...] = first[parameter.path]

    def new() -> optimizers.Optimizer:
        made: optimizers.Optimizer = getattr(optimizers, kind)(**given(arguments))
        made.bind(store)
        return made

    optimizer = new()
    for i, step in enumerate(grads):
        if resumed and i == 3:
            before, optimizer = optimizer, new()
            optimizer.step = before.step
            for name, vector in before.state.items():
                optimizer.state[name][...] = vector
        for parameter in store.parameters:
            parameter.grad[...] = step[parameter.path]
        optimizer.update()
        compare(case, store, i)
    optimizer.finalize()
    if arguments.get("use_ema"):
        compare(case, store, len(grads))


def compare(case: str, store: ParameterStore, row: int) -> None:
    for parameter in store.parameters:
        expected = REFERENCE[f"{case}/{parameter.path}"][row]
        np.testing.assert_allclose(
            parameter.value, expected, 1e-5, 1e-5, err_msg=f"{parameter.path} {row}"
        )


@pytest.mark.parametrize("case", cases.SCHEDULES)
def test_schedule_is_kerass(case: str) -> None:
    kind, arguments = cases.SCHEDULES[case]
    schedule = getattr(optimizers.schedules, kind)(**arguments)
    rates = [schedule(step) for step in range(cases.SCHEDULE_STEPS)]
    assert all(type(rate) is float for rate in rates)
    np.testing.assert_allclose(rates, SCHEDULES[case], 1e-5, 1e-6)
