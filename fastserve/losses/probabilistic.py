"""Losses between distributions: Kullback-Leibler divergence, Poisson."""

from __future__ import annotations

import numpy as np

from fastserve.core import Array
from fastserve.losses.base import CLIP, ElementwiseLoss
from fastserve.losses.targets import Targets


class KLDivergence(ElementwiseLoss):
    """Σ y log(y / x) over the last axis; both are kept within 1e-7..1, and where that
    clips x there is no gradient.

    Shapes: y_true and y_pred (B, ..., C), a loss for each row.
    """

    name = "kl_divergence"
    targets = Targets(name)
    mean = False

    def elements(self, y: Array, x: Array, values: Array, dx: Array | None) -> None:
        least, one = x.dtype.type(CLIP), x.dtype.type(1)
        p = np.clip(x, least, one, out=self.kept("p", x.shape, x.dtype))
        t = np.clip(y, least, one, out=self.kept("t", x.shape, x.dtype))
        np.divide(t, p, out=values)
        if dx is not None:
            inside = self.kept("inside", x.shape, np.dtype(np.bool_))
            np.equal(p, x, out=inside)
            np.negative(values, out=dx)
            np.multiply(dx, inside, out=dx)
        np.log(values, out=values)
        np.multiply(values, t, out=values)


class Poisson(ElementwiseLoss):
    """mean(x - y log(x + 1e-7)) over the last axis: x is the rate of counts y.

    Shapes: y_true and y_pred (B, ..., C), a loss for each row. A last axis of 1 may be
    missing in y_true. x must be above 0, for example by an exponential activation.
    """

    name = "poisson"
    targets = Targets(name)

    def elements(self, y: Array, x: Array, values: Array, dx: Array | None) -> None:
        rate = np.add(x, x.dtype.type(CLIP), out=self.kept("rate", x.shape, x.dtype))
        if dx is not None:
            np.divide(y, rate, out=dx)
            np.subtract(x.dtype.type(1), dx, out=dx)
        np.log(rate, out=rate)
        np.multiply(rate, y, out=rate)
        np.subtract(x, rate, out=values)
