"""Where samples come from, and in which order."""

from fastserve.data.sampler import Sampler
from fastserve.data.sources import ArraySource, Source, TokenSource
from fastserve.data.streams import PyDataset

Sequence = PyDataset  # Keras' older name

__all__ = ["ArraySource", "PyDataset", "Sampler", "Sequence", "Source", "TokenSource"]
