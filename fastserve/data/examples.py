"""Examples as they lie in files or memory, and the source that encodes them."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from fastserve.core import Array
from fastserve.data.preprocessing import ArrayInput, Preprocessing
from fastserve.data.sources import ArraySource, Batch, Source
from fastserve.data.splits import digest
from fastserve.data.targets import Classes

IN_MEMORY = 1 << 28  # bytes of encoded examples that are kept


class Examples(ABC):
    """Raw examples by number, and how they become the model's numbers.

    Attributes:
        samples: how many there are.
        targets: (samples,) numbers of classes, or numbers to predict; None: a sample
            has several.
        preprocessing: how they are encoded; whole once they are fitted.
    """

    samples: int
    targets: Array | None
    preprocessing: Preprocessing

    @property
    def notes(self) -> list[str]:
        """What is worth telling at the start of a run."""
        return []

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one encoded example."""
        return self.preprocessing.input.input_shape

    def fit(self, rows: Array) -> None:  # noqa: B027  most learn nothing
        """Learn from the training part's examples what encoding needs, if anything."""

    @abstractmethod
    def encode(self, rows: Array) -> Batch:
        """Return inputs and targets of these examples; any thread may call it."""

    def digests(self) -> bytes | bytearray:
        """Return 8 bytes for each example, the same for equal inputs."""
        raise NotImplementedError

    def source(self, rows: Array) -> Source:
        """Return the source of some examples; what is small is encoded once."""
        size = 4 * int(np.prod(self.input_shape)) * len(rows)
        if size > IN_MEMORY:
            return EncodedSource(self, rows)
        parts = [self.encode(rows[i : i + 4096]) for i in range(0, len(rows), 4096)]
        return ArraySource(
            np.concatenate([part.x for part in parts]),
            np.concatenate([part.y for part in parts]),
        )


class EncodedSource(Source):
    """Examples that are read and encoded when their batch is wanted."""

    def __init__(self, examples: Examples, rows: Array) -> None:
        self.examples, self.rows, self.samples = examples, rows, len(rows)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.examples.input_shape

    def batch(self, rows: Array, epochs: Array) -> Batch:
        return self.examples.encode(self.rows[rows])


class ArrayExamples(Examples):
    """Arrays in memory. x: (samples, ...). targets: (samples, ...).

    Args:
        scale: what x is multiplied with, batch by batch; 1 leaves its type.
        channel: x gets a last axis of size 1.
    """

    def __init__(
        self,
        x: Array,
        targets: Array,
        target: Classes | None = None,
        scale: float = 1.0,
        channel: bool = False,
    ) -> None:
        self.x = x[..., None] if channel else x
        self.targets: Array = targets
        self.scale, self.samples = scale, len(x)
        self.preprocessing = Preprocessing(
            ArrayInput(self.x.shape[1:], scale, channel), target
        )

    def encode(self, rows: Array) -> Batch:
        return ScaledSource(self.x, self.targets, self.scale).batch(rows, rows)

    def digests(self) -> bytes:
        return b"".join(digest(row.tobytes()) for row in self.x)

    def source(self, rows: Array) -> Source:
        if len(rows) == self.samples and (rows == np.arange(self.samples)).all():
            return ScaledSource(self.x, self.targets, self.scale)
        return ScaledSource(self.x[rows], self.targets[rows], self.scale)


class ScaledSource(ArraySource):
    """Arrays whose x is multiplied with a factor, batch by batch: bytes stay bytes."""

    def __init__(self, x: Array, y: Array, scale: float = 1.0) -> None:
        super().__init__(x, y)
        self.scale = scale
        self._scaled: Array | None = None

    def batch(self, rows: Array, epochs: Array) -> Batch:
        batch = super().batch(rows, epochs)
        if self.scale == 1.0:
            return batch
        if self._scaled is None or len(self._scaled) < len(rows):
            self._scaled = np.empty(batch.x.shape, np.float32)
        out = self._scaled[: len(rows)]
        np.multiply(batch.x, np.float32(self.scale), out=out, casting="unsafe")
        return batch._replace(x=out)
