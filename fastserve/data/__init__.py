"""Where samples come from, and in which order."""

from fastserve.data.sampler import Sampler
from fastserve.data.sources import ArraySource, Source, TokenSource

__all__ = ["ArraySource", "Sampler", "Source", "TokenSource"]
