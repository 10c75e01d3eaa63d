"""Learning rates as pure functions of the step: ``schedule(step) -> float``.

``step`` is the number of updates that were made before, so the first call is with 0.
The classes are Keras', arguments and formulas (``initial_learning_rate`` is the rate of
the first step, ``name`` a label); ``from_config``
makes the schedules of the job's YAML, which add a linear warm-up to each.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastserve.errors import ArgumentError, UnknownNameError

Schedule = Callable[[int], float]


class LearningRateSchedule:
    """Base of the schedules, also of a user's own: ``__call__(step)`` is the rate."""

    def __call__(self, step: int) -> float:
        raise NotImplementedError(f"{type(self).__name__}.__call__")


def _check(schedule: object, **positive: float) -> None:
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ArgumentError(
                f"{type(schedule).__name__}: expected {name} above 0",
                str(value),
                f"choose a positive {name}",
            )


def _check_rate(schedule: object, name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ArgumentError(
            f"{type(schedule).__name__}: expected {name} of 0 or more",
            str(value),
            f"choose a {name} that isn't negative",
        )


@dataclass(frozen=True)
class Constant(LearningRateSchedule):
    """``learning_rate`` at every step."""

    learning_rate: float

    def __post_init__(self) -> None:
        _check_rate(self, "learning_rate", self.learning_rate)

    def __call__(self, step: int) -> float:
        return float(self.learning_rate)


@dataclass(frozen=True)
class ExponentialDecay(LearningRateSchedule):
    """initial_learning_rate * decay_rate ** (step / decay_steps).

    With ``staircase`` the exponent is rounded down.
    """

    initial_learning_rate: float
    decay_steps: float
    decay_rate: float
    staircase: bool = False
    name: str = "ExponentialDecay"

    def __post_init__(self) -> None:
        _check(self, decay_steps=self.decay_steps, decay_rate=self.decay_rate)
        _check_rate(self, "initial_learning_rate", self.initial_learning_rate)

    def __call__(self, step: int) -> float:
        p = _progress(step, self.decay_steps, self.staircase)
        return float(self.initial_learning_rate * self.decay_rate**p)


@dataclass(frozen=True)
class InverseTimeDecay(LearningRateSchedule):
    """initial_learning_rate / (1 + decay_rate * step / decay_steps).

    With ``staircase`` the quotient of the steps is rounded down.
    """

    initial_learning_rate: float
    decay_steps: float
    decay_rate: float
    staircase: bool = False
    name: str = "InverseTimeDecay"

    def __post_init__(self) -> None:
        _check(self, decay_steps=self.decay_steps)
        _check_rate(self, "decay_rate", self.decay_rate)
        _check_rate(self, "initial_learning_rate", self.initial_learning_rate)

    def __call__(self, step: int) -> float:
        p = _progress(step, self.decay_steps, self.staircase)
        return float(self.initial_learning_rate / (1 + self.decay_rate * p))


@dataclass(frozen=True)
class PolynomialDecay(LearningRateSchedule):
    """(initial - end) * (1 - step / decay_steps) ** power + end.

    From ``decay_steps`` on the rate stays at ``end_learning_rate``; with ``cycle``,
    ``decay_steps`` is instead multiplied until it isn't below the step.
    """

    initial_learning_rate: float
    decay_steps: float
    end_learning_rate: float = 0.0001
    power: float = 1.0
    cycle: bool = False
    name: str = "PolynomialDecay"

    def __post_init__(self) -> None:
        _check(self, decay_steps=self.decay_steps, power=self.power)
        _check_rate(self, "initial_learning_rate", self.initial_learning_rate)
        _check_rate(self, "end_learning_rate", self.end_learning_rate)

    def __call__(self, step: int) -> float:
        span = self.decay_steps
        if self.cycle:
            span *= max(1, math.ceil(step / span))
        left = 1 - min(step, span) / span
        fall = self.initial_learning_rate - self.end_learning_rate
        return float(fall * left**self.power + self.end_learning_rate)


class LinearDecay(PolynomialDecay):
    """A straight line down to ``end_learning_rate``, within ``decay_steps`` steps."""

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float,
        end_learning_rate: float = 0.0,
    ) -> None:
        super().__init__(initial_learning_rate, decay_steps, end_learning_rate)


@dataclass(frozen=True)
class CosineDecay(LearningRateSchedule):
    """Half a cosine from the initial rate to ``alpha`` times it (Loshchilov, 2016).

        rate * ((1 - alpha) * (1 + cos(pi * step / decay_steps)) / 2 + alpha)

    With ``warmup_target``, the rate first grows in a line from
    ``initial_learning_rate``, at step 0, to ``warmup_target``, at ``warmup_steps``, and
    then decays from there in ``decay_steps`` more. This is Keras' warm-up: with an
    initial rate of 0 the first update does nothing; ``from_config``'s differs.
    """

    initial_learning_rate: float
    decay_steps: float
    alpha: float = 0.0
    name: str = "CosineDecay"
    warmup_target: float | None = None
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        _check(self, decay_steps=self.decay_steps)
        for name in ("initial_learning_rate", "alpha", "warmup_steps"):
            _check_rate(self, name, getattr(self, name))
        if self.warmup_target is not None:
            _check_rate(self, "warmup_target", self.warmup_target)

    def __call__(self, step: int) -> float:
        peak = self.initial_learning_rate
        if self.warmup_target is not None:
            if step < self.warmup_steps:
                grown = (self.warmup_target - peak) * step / self.warmup_steps
                return float(peak + grown)
            peak, step = self.warmup_target, step - self.warmup_steps
        part = min(step, self.decay_steps) / self.decay_steps
        cosine = 0.5 * (1 + math.cos(math.pi * part))
        return float(peak * ((1 - self.alpha) * cosine + self.alpha))


@dataclass(frozen=True)
class CosineDecayRestarts(LearningRateSchedule):
    """Half cosines from ``initial_learning_rate`` down, again and again.

    The first takes ``first_decay_steps``, each later one ``t_mul`` times as many as the
    one before, and begins ``m_mul`` times as high; the rate never falls below ``alpha``
    times the initial one (Loshchilov, Hutter, 2016: "SGDR").
    """

    initial_learning_rate: float
    first_decay_steps: float
    t_mul: float = 2.0
    m_mul: float = 1.0
    alpha: float = 0.0
    name: str = "SGDRDecay"

    def __post_init__(self) -> None:
        _check(self, first_decay_steps=self.first_decay_steps, t_mul=self.t_mul)
        for name in ("initial_learning_rate", "m_mul", "alpha"):
            _check_rate(self, name, getattr(self, name))
        if self.t_mul < 1:
            raise ArgumentError(
                "CosineDecayRestarts: expected t_mul of 1 or more",
                f"{self.t_mul}",
                "periods that get shorter would come to an end",
            )

    def __call__(self, step: int) -> float:
        done, span = step / self.first_decay_steps, self.t_mul
        if span == 1:
            period, part = divmod(done, 1)
        else:
            period = math.floor(math.log(1 + done * (span - 1)) / math.log(span))
            # the logarithm may be a hair's breadth off where a period begins
            if (span ** (period + 1) - 1) / (span - 1) <= done:
                period += 1
            begun = (span**period - 1) / (span - 1)
            if begun > done:
                period -= 1
                begun = (span**period - 1) / (span - 1)
            part = (done - begun) / span**period
        cosine = 0.5 * self.m_mul**period * (1 + math.cos(math.pi * part))
        level = (1 - self.alpha) * cosine + self.alpha
        return float(self.initial_learning_rate * level)


class PiecewiseConstantDecay(LearningRateSchedule):
    """``values[i]`` up to and including step ``boundaries[i]``, then the next value.

    There is one value more than there are boundaries, and boundaries grow.
    """

    def __init__(
        self,
        boundaries: Sequence[float],
        values: Sequence[float],
        name: str = "PiecewiseConstant",
    ) -> None:
        self.name = name
        if len(boundaries) != len(values) - 1:
            raise ArgumentError(
                "PiecewiseConstantDecay: expected one value more than boundaries",
                f"{len(boundaries)} boundaries, {len(values)} values",
                "add the value that holds after the last boundary",
            )
        if sorted(set(boundaries)) != list(boundaries):
            raise ArgumentError(
                "PiecewiseConstantDecay: expected boundaries that grow",
                str(list(boundaries)),
                "sort them",
            )
        for value in values:
            _check_rate(self, "value", value)
        self.boundaries, self.values = tuple(boundaries), tuple(values)

    def __call__(self, step: int) -> float:
        return float(self.values[bisect.bisect_left(self.boundaries, step)])


@dataclass(frozen=True)
class WarmUp(LearningRateSchedule):
    """A linear warm-up to ``target``, then ``schedule`` from its own step 0 on.

    The first of ``steps`` updates uses target / steps, not 0, so that it isn't lost;
    the last uses ``target``.
    """

    schedule: Schedule
    target: float
    steps: int

    def __call__(self, step: int) -> float:
        if step < self.steps:
            return self.target * (step + 1) / self.steps
        return self.schedule(step - self.steps)


@dataclass(frozen=True)
class Floor(LearningRateSchedule):
    """The schedule's rate, but never below ``least``."""

    schedule: Schedule
    least: float

    def __call__(self, step: int) -> float:
        return max(self.least, self.schedule(step))


class Adjustable:
    """A rate that can be set, with a linear warm-up to it over the first ``steps``."""

    def __init__(self, rate: float, steps: int = 0) -> None:
        self.rate, self.steps = rate, steps

    def __call__(self, step: int) -> float:
        return WarmUp(Constant(self.rate), self.rate, self.steps)(step)


TYPES = (
    "constant",
    "linear",
    "cosine",
    "exponential",
    "step",
    "cosine_restarts",
    "polynomial",
    "piecewise",
    "plateau",
)


def from_config(
    type: str,
    lr: float,
    steps: int,
    warmup_steps: int = 0,
    min_lr: float = 0.0,
    decay_steps: int | None = None,
    rate: float = 0.1,
    step_size: int | None = None,
    gamma: float = 0.1,
    first_decay_steps: int | None = None,
    t_mul: float = 2.0,
    m_mul: float = 1.0,
    power: float = 1.0,
    cycle: bool = False,
    boundaries: Sequence[int] = (),
    factors: Sequence[float] = (),
    **plateau: float,
) -> Schedule:
    """Return the schedule of a job's ``schedule`` section.

    All types begin with the same warm-up: update ``i`` (from 0) of ``warmup_steps``
    uses ``lr * (i + 1) / warmup_steps``. With t steps since the warm-up:

    - constant: lr
    - linear, cosine: from lr to ``min_lr``, which is reached at step ``decay_steps``
      of the job (None: ``steps``), and kept
    - exponential: lr * rate ** (t / decay_steps), at least ``min_lr``
    - step: lr * gamma ** (t // step_size), at least ``min_lr``
    - cosine_restarts: half cosines from lr to ``min_lr``; see ``CosineDecayRestarts``
    - polynomial: from lr to ``min_lr`` as (1 - t / decay_steps) ** power; see
      ``PolynomialDecay``
    - piecewise: lr, from step ``boundaries[i]`` of the job on times ``factors[i]``
    - plateau: an ``Adjustable`` lr; when it is lowered the callback knows, which has
      the other arguments

    Raises:
        UnknownNameError: another ``type``.
        ArgumentError: values that don't fit together.
    """
    if type not in TYPES:
        raise UnknownNameError("schedule", type, TYPES)
    last = steps if decay_steps is None else decay_steps
    _check_config(lr, steps, warmup_steps, min_lr)
    if type == "plateau":
        return Adjustable(lr, warmup_steps)
    if type == "constant":
        after: Schedule = Constant(lr)
    elif type == "piecewise":
        return _piecewise(lr, warmup_steps, boundaries, factors)
    elif type == "cosine_restarts":
        first = max(1, steps - warmup_steps)
        first = first if first_decay_steps is None else first_decay_steps
        after = CosineDecayRestarts(lr, first, t_mul, m_mul, alpha=min_lr / lr)
    elif type == "exponential":
        after = Floor(ExponentialDecay(lr, last, rate), min_lr)
    elif type == "step":
        if step_size is None:
            raise ArgumentError(
                "schedule step: expected step_size, the steps between two reductions",
                "none",
                "set schedule.step_size",
            )
        after = Floor(ExponentialDecay(lr, step_size, gamma, staircase=True), min_lr)
    else:
        if decay_steps is not None and decay_steps <= warmup_steps:
            raise ArgumentError(
                f"schedule {type}: expected decay_steps above warmup_steps",
                f"decay_steps {decay_steps}, warmup_steps {warmup_steps}",
                "decay_steps counts from the start of the job, warm-up included",
            )
        span = max(1, last - warmup_steps)
        if type == "linear":
            after = LinearDecay(lr, span, min_lr)
        elif type == "polynomial":
            after = PolynomialDecay(lr, span, min_lr, power, cycle)
        else:
            after = CosineDecay(lr, span, alpha=min_lr / lr)
    return WarmUp(after, lr, warmup_steps)


def _piecewise(
    lr: float, warmup_steps: int, boundaries: Sequence[int], factors: Sequence[float]
) -> Schedule:
    """Return the schedule whose values change at steps of the job, not after them."""
    if len(boundaries) != len(factors):
        raise ArgumentError(
            "schedule piecewise: expected a factor for each boundary",
            f"{len(boundaries)} boundaries, {len(factors)} factors",
            "from boundaries[i] on the rate is lr x factors[i]",
        )
    if boundaries and boundaries[0] < max(1, warmup_steps):
        raise ArgumentError(
            "schedule piecewise: expected boundaries from the end of the warm-up on",
            f"boundary {boundaries[0]}, warmup_steps {warmup_steps}",
            "boundaries count from the start of the job, warm-up included",
        )
    places = [boundary - warmup_steps - 1 for boundary in boundaries]
    after = PiecewiseConstantDecay(places, [lr, *(lr * f for f in factors)])
    return WarmUp(after, lr, warmup_steps)


def _check_config(lr: float, steps: int, warmup_steps: int, min_lr: float) -> None:
    for good, wanted, received, todo in (
        (0 < lr < math.inf, "lr above 0", f"lr {lr}", "set the optimizer's lr"),
        (steps >= 1, "1 step or more", f"steps {steps}", "train for more steps"),
        (
            0 <= warmup_steps <= steps,
            "warmup_steps in 0..steps",
            f"warmup_steps {warmup_steps}, steps {steps}",
            "take fewer warmup_steps, or train for more steps",
        ),
        (
            0 <= min_lr <= lr,
            "min_lr in 0..lr",
            f"min_lr {min_lr}, lr {lr}",
            "lower the schedule's min_lr, or raise the optimizer's lr",
        ),
    ):
        if not good:
            raise ArgumentError(f"schedule: expected {wanted}", received, todo)


def _progress(step: int, decay_steps: float, staircase: bool) -> float:
    return step // decay_steps if staircase else step / decay_steps
