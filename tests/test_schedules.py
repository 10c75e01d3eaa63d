"""Schedules: Keras' formulas, PyTorch's arrays, and what the YAML types do."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from fastserve import schedules as s
from fastserve.errors import ArgumentError, UnknownNameError

REFERENCE = np.load(Path(__file__).parent / "references" / "schedules.npz")
STEPS, WARMUP, LR, LEAST = 40, 8, 0.1, 0.01
SPAN = STEPS - WARMUP


def rates(schedule, steps=SPAN):
    return [schedule(step) for step in range(steps)]


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("cosine", s.CosineDecay(LR, SPAN, alpha=LEAST / LR)),
        ("linear", s.LinearDecay(LR, SPAN, LEAST)),
        ("exponential", s.ExponentialDecay(LR, 10, 0.2)),
        ("step", s.ExponentialDecay(LR, 6, 0.5, staircase=True)),
        ("polynomial", s.PolynomialDecay(LR, SPAN, 0.0, power=2.0)),
        # Keras' boundaries belong to the value before, PyTorch's to the one after
        ("piecewise", s.PiecewiseConstantDecay([4, 10], [LR, LR / 10, LR / 100])),
    ],
)
def test_pytorchs_rates(name, schedule):
    np.testing.assert_allclose(rates(schedule), REFERENCE[name], rtol=1e-9)
    assert all(type(rate) is float for rate in rates(schedule))


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("cosine", {"min_lr": LEAST}),
        ("linear", {"min_lr": LEAST}),
        ("step", {"step_size": 6, "gamma": 0.5}),
    ],
)
def test_from_config_is_pytorchs_with_warm_up(name, keys):
    made = s.from_config(name, LR, STEPS, warmup_steps=WARMUP, **keys)
    expected = REFERENCE[f"warm_{name}"]
    np.testing.assert_allclose(rates(made, STEPS), expected, rtol=1e-9)


@pytest.mark.parametrize("name", [t for t in s.TYPES if t != "piecewise"])
def test_warm_up_of_all_types(name):
    made = s.from_config(name, 0.8, 100, warmup_steps=4, step_size=10)
    np.testing.assert_allclose(rates(made, 5), [0.2, 0.4, 0.6, 0.8, 0.8], rtol=1e-12)
    assert s.from_config(name, 0.8, 100, step_size=10)(0) == pytest.approx(0.8)


def test_from_config_values_by_hand():
    linear = s.from_config("linear", 1.0, 100, 10, min_lr=0.1, decay_steps=60)
    assert linear(35) == pytest.approx(0.55)
    assert linear(60) == linear(99) == pytest.approx(0.1)
    cosine = s.from_config("cosine", 1.0, 110, 10, min_lr=0.2)
    assert cosine(60) == pytest.approx(0.6)
    assert cosine(110) == cosine(500) == pytest.approx(0.2)
    power = s.from_config("exponential", 1.0, 100, 10, rate=0.25, decay_steps=20)
    assert power(20) == pytest.approx(0.5)
    assert power(30) == pytest.approx(0.25)
    assert s.from_config("exponential", 1.0, 50)(50) == pytest.approx(0.1)
    floor = s.from_config("exponential", 1.0, 50, min_lr=0.3, rate=1e-3)
    assert floor(49) == 0.3
    stairs = s.from_config("step", 1.0, 100, 10, step_size=5, gamma=0.5, min_lr=0.2)
    assert [stairs(i) for i in (14, 15, 19, 20, 25, 99)] == [
        1,
        0.5,
        0.5,
        0.25,
        0.2,
        0.2,
    ]
    assert s.from_config("constant", 0.3, 5)(4) == 0.3
    again = s.from_config("cosine_restarts", 1.0, 99, 10, 0.2, first_decay_steps=8)
    assert [again(i) for i in (10, 14, 18)] == pytest.approx([1.0, 0.6, 1.0])
    square = s.from_config("polynomial", 1.0, 20, 10, min_lr=0.2, power=2)
    assert [square(i) for i in (10, 15, 20)] == pytest.approx([1.0, 0.4, 0.2])
    pieces = s.from_config(
        "piecewise", 1.0, 20, 4, boundaries=[4, 9], factors=[0.5, 0.1]
    )
    assert [pieces(i) for i in (3, 4, 8, 9, 19)] == [1, 0.5, 0.5, 0.1, 0.1]
    all_warm = s.from_config("cosine", 1.0, 4, 4)
    assert rates(all_warm, 4) == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lr": 0}, "lr above 0"),
        ({"steps": 0}, "1 step or more"),
        ({"warmup_steps": 11}, "warmup_steps 11, steps 10"),
        ({"min_lr": 0.2}, "min_lr 0.2, lr 0.1"),
        ({"decay_steps": 2, "warmup_steps": 2}, "decay_steps 2, warmup_steps 2"),
        ({"type": "step"}, "set schedule.step_size"),
        ({"type": "piecewise", "boundaries": [3]}, "a factor for each boundary"),
        (
            {
                "type": "piecewise",
                "boundaries": [3],
                "factors": [1.0],
                "warmup_steps": 5,
            },
            "from the end of the warm-up on",
        ),
        ({"type": "exponential", "rate": 0}, "decay_rate above 0"),
    ],
)
def test_from_config_errors(change, words):
    keys = {"type": "cosine", "lr": 0.1, "steps": 10} | change
    with pytest.raises(ArgumentError, match=words):
        s.from_config(**keys)


def test_from_config_names_the_nearest_type():
    with pytest.raises(UnknownNameError, match="did you mean 'cosine'"):
        s.from_config("cosin", 0.1, 10)


def test_cosine_with_kerass_warm_up():
    schedule = s.CosineDecay(0.0, 100, 0.1, warmup_target=0.4, warmup_steps=10)
    assert [schedule(i) for i in (0, 5, 10)] == pytest.approx([0.0, 0.2, 0.4])
    assert schedule(60) == pytest.approx(0.4 * (0.9 * 0.5 + 0.1))
    assert schedule(110) == schedule(999) == pytest.approx(0.04)
    # without a target there is no warm-up, whatever its steps
    assert s.CosineDecay(0.4, 100, warmup_steps=10)(0) == 0.4


def test_piecewise_boundaries_belong_to_the_value_before():
    schedule = s.PiecewiseConstantDecay([3, 8], [1.0, 0.5, 0.1])
    assert [schedule(i) for i in (0, 3, 4, 8, 9, 99)] == [1, 1, 0.5, 0.5, 0.1, 0.1]
    assert s.PiecewiseConstantDecay([], [0.7])(5) == 0.7


def test_staircases_and_inverse_time():
    assert s.ExponentialDecay(1.0, 4, 0.5)(2) == pytest.approx(math.sqrt(0.5))
    assert s.ExponentialDecay(1.0, 4, 0.5, staircase=True)(7) == 0.5
    assert s.InverseTimeDecay(1.0, 4, 0.5)(6) == pytest.approx(1 / 1.75)
    assert s.InverseTimeDecay(1.0, 4, 0.5, staircase=True)(7) == pytest.approx(1 / 1.5)


def test_polynomial_that_cycles():
    schedule = s.PolynomialDecay(1.0, 10, 0.0, cycle=True)
    assert [schedule(i) for i in (0, 5, 10, 15, 20, 25)] == pytest.approx(
        [1, 0.5, 0, 0.25, 0, 1 / 6]
    )
    assert s.PolynomialDecay(1.0, 10)(10) == pytest.approx(0.0001)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: s.Constant(-1), "learning_rate of 0 or more"),
        (lambda: s.Constant(math.nan), "received: nan"),
        (lambda: s.ExponentialDecay(1, 0, 0.5), "decay_steps above 0"),
        (lambda: s.InverseTimeDecay(1, 5, -1), "decay_rate of 0 or more"),
        (lambda: s.PolynomialDecay(1, -5), "decay_steps above 0"),
        (lambda: s.LinearDecay(1, 5, -0.1), "end_learning_rate of 0 or more"),
        (lambda: s.CosineDecay(1, 0), "decay_steps above 0"),
        (lambda: s.CosineDecay(1, 5, warmup_target=-2), "warmup_target of 0 or more"),
        (lambda: s.PiecewiseConstantDecay([1], [1.0]), "1 boundaries, 1 values"),
        (lambda: s.PiecewiseConstantDecay([3, 2], [1.0] * 3), "boundaries that grow"),
        (lambda: s.PiecewiseConstantDecay([3], [1.0, -1.0]), "value of 0 or more"),
    ],
)
def test_errors(make, words):
    with pytest.raises(ArgumentError, match=words) as error:
        make()
    assert len(str(error.value).splitlines()) == 3
