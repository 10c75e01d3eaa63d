"""Several documents in one row, kept apart where an end token is."""

from __future__ import annotations

import numpy as np

from fastserve.core import Array, Layer, Training
from fastserve.layers.chain import Chain


def document_starts(tokens: Array, end: int, starts: Array) -> None:
    """Write for each of tokens (B, T) the place where its document starts.

    An end token is the last of its document. Of the row's first document only a part
    may be there; it starts at 0.
    """
    time = tokens.shape[1]
    starts[:, :1] = 0
    after = starts[:, 1:]
    np.multiply(tokens[:, :-1] == end, np.arange(1, time), out=after)
    np.maximum.accumulate(after, axis=1, out=after)


class Documents(Chain):
    """A chain that starts with tokens (batch, time), and looks for documents in them.

    With ``end`` set to a token, attention doesn't look across it, and learned
    positions start again at 0 behind it. Rotary positions needn't: there only the
    distance of two tokens counts. So each document has the outputs that it has alone.
    """

    end: int | None = None

    def _forward(self, layers: list[Layer], x: Array, training: Training) -> Array:
        self.find_documents(x)
        return super()._forward(layers, x, training)

    def find_documents(self, x: Array) -> None:
        """Tell the layers inside where the documents of x (batch, time) start."""
        starts = None
        if self.end is not None:
            starts = self.buffer("starts", x.shape, np.int64)
            document_starts(x, self.end, starts)
        for _, layer in self.walk():
            if hasattr(layer, "starts"):
                layer.starts = starts
