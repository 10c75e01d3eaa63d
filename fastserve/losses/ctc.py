"""CTC: the loss of a sequence of labels whose places in time aren't known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastserve.core import Array, Shape
from fastserve.errors import DataError, ShapeError
from fastserve.losses.base import Loss
from fastserve.losses.targets import Targets

_NEVER = -1e5  # the logarithm of a probability that counts as 0, as in Keras


class CTC(Loss):
    """-log of the probability of all alignments of the labels (Graves et al., 2006).

    At each time a blank, class 0, or a label is emitted; repeated labels without a
    blank between them are one. The labels of a sample are its first ones that aren't 0.
    A sequence that is too short for its labels has a loss of about 1e5.

    Shapes: y_true (B, L), labels in 1..C-1 with zeros behind; y_pred (B, T, C), logits,
    the class 0 being the blank. A loss for each sample.
    """

    name = "ctc"
    targets = Targets(name)
    block_size = 1 << 20

    def loss_shape(self, y_pred_shape: tuple[int, ...]) -> tuple[int, ...]:
        return y_pred_shape[:1]

    def _check_shape(self, y_shape: Shape, output_shape: Shape) -> None:
        if len(y_shape) != 1 or len(output_shape) != 2:
            raise ShapeError(
                f"{self.name}: expected labels (samples, length), and outputs "
                "(samples, time, classes)",
                f"labels (samples, {', '.join(map(str, y_shape))}), outputs (samples, "
                f"{', '.join(map(str, output_shape))})",
                "pad the labels of all samples with zeros to one length",
            )

    def check_values(self, y: Array, classes: int, first: int = 0) -> None:
        wrong = (y < 0) | (y >= classes) | (y != np.floor(y))
        wrong[:, 1:] |= (y[:, 1:] != 0) & (y[:, :-1] == 0)
        if wrong.any():
            sample, place = np.argwhere(wrong)[0]
            raise DataError(
                f"{self.name}: expected labels in 1..{classes - 1}, then zeros",
                f"{y[sample, place]} at sample {first + sample}, position {place}",
                "0 is the blank and ends a sample's labels: number them from 1",
            )

    def rows(self, y_true: Any, y_pred: Array) -> tuple[Array, Array]:
        y, x = np.asarray(y_true), np.ascontiguousarray(y_pred)
        self._check_shape(y.shape[1:], x.shape[1:])
        if len(y) != len(x):
            raise ShapeError(
                f"{self.name}: expected as many targets as predictions",
                f"targets {y.shape}, predictions {x.shape}",
                "pass arrays whose first axis is the batch",
            )
        self.check_values(y, x.shape[2])
        self._steps = x.shape[1]
        return y, x.reshape(len(x), math.prod(x.shape[1:]))

    def block(
        self, y: Array, x: Array, losses: Array, dx: Array | None, factor: Array
    ) -> None:
        """Forward in time over log-probabilities, then back through each step.

        phi (R, L + 1) are those of having emitted n labels, and a blank or nothing
        since; emit (R, L) of having emitted label n just now. R samples of the block.
        """
        double = np.dtype(np.float64)
        z = x.reshape(len(x), self._steps, -1)
        labels = y.astype(np.int64)
        size, length = labels.shape
        logs = self.kept("logs", z.shape, double)  # (R, T, C) log-probabilities
        np.subtract(z, z.max(axis=2, keepdims=True), out=logs)
        probabilities = np.exp(logs, out=self.kept("p", z.shape, double))
        sums = probabilities.sum(axis=2, keepdims=True)
        np.subtract(logs, np.log(sums), out=logs)
        np.divide(probabilities, sums, out=probabilities)
        each = np.arange(size)[:, None]
        repeat = np.zeros((size, length))
        repeat[:, :-1] = labels[:, :-1] == labels[:, 1:]
        apart, together = _NEVER * repeat, _NEVER * (1 - repeat)
        phis = self.kept("phis", (self._steps + 1, size, length + 1), double)
        emits = self.kept("emits", (self._steps + 1, size, length), double)
        phis[0], emits[0] = _NEVER, _NEVER
        phis[0, :, 0] = 0
        for t in range(self._steps):
            emitted, blank = logs[each, t, labels], logs[:, t, :1]
            opened, emit, _, phi = _step(
                phis[t], emits[t], emitted, blank, apart, together
            )
            phis[t + 1], emits[t + 1] = phi, emit
        ends = np.count_nonzero(labels, axis=1)
        last = phis[-1].copy()
        last[:, 1:] = np.logaddexp(last[:, 1:], emits[-1])
        np.negative(last[each[:, 0], ends], out=losses)
        if dx is None:
            return
        # gradients of -losses by phi and emit after the last step
        dphi, demit = np.zeros_like(last), np.zeros((size, length))
        dphi[each[:, 0], ends] = 1
        demit[...] = dphi[:, 1:] * np.exp(emits[-1] - last[:, 1:])
        dphi[:, 1:] *= np.exp(phis[-1, :, 1:] - last[:, 1:])
        dlogs = self.kept("dlogs", z.shape, double)
        dlogs.fill(0)
        for t in reversed(range(self._steps)):
            emitted, blank = logs[each, t, labels], logs[:, t, :1]
            phi, emit = phis[t], emits[t]
            opened, _, closed, _ = _step(phi, emit, emitted, blank, apart, together)
            after, after_emit = phis[t + 1], emits[t + 1]
            np.add.at(dlogs[:, t], (each, labels), demit)
            dlogs[:, t, 0] += dphi.sum(axis=1)
            back = dphi[:, 1:] * np.exp(emit + blank + together - after[:, 1:])
            dphi[:, 1:] *= np.exp(closed[:, 1:] - after[:, 1:])
            dphi[:, :-1] += demit * np.exp(opened[:, :-1] + emitted - after_emit)
            back += demit * np.exp(emit + emitted - after_emit)
            back += dphi[:, 1:] * np.exp(emit + apart - opened[:, 1:])
            dphi[:, 1:] *= np.exp(phi[:, 1:] - opened[:, 1:])
            demit = back
        # by the logits: p Σ dlogs - dlogs, of the losses
        mass = dlogs.sum(axis=2, keepdims=True)
        np.multiply(probabilities, mass, out=probabilities)
        np.subtract(probabilities, dlogs, out=probabilities)
        rows = probabilities.reshape(len(x), -1)
        np.multiply(rows, factor[:, None] if factor.ndim else factor, out=rows)
        np.copyto(dx, rows, casting="same_kind")


def _step(
    phi: Array, emit: Array, emitted: Array, blank: Array, apart: Array, together: Array
) -> tuple[Array, Array, Array, Array]:
    """Return (phi after the emitted labels were closed without a blank, the new emit,
    the same phi with a blank, the new phi)."""
    opened = phi.copy()
    opened[:, 1:] = np.logaddexp(phi[:, 1:], emit + apart)
    new_emit = np.logaddexp(opened[:, :-1] + emitted, emit + emitted)
    closed = opened + blank
    new_phi = closed.copy()
    new_phi[:, 1:] = np.logaddexp(closed[:, 1:], emit + blank + together)
    return opened, new_emit, closed, new_phi
