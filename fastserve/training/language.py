"""What a language model's loss means: perplexity and bits per byte."""

from __future__ import annotations

import math

from fastserve.data.sources import Source
from fastserve.losses import Loss, SparseCategoricalCrossentropy
from fastserve.metrics import perplexity


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Return a mean loss in nats a token as bits for each byte of the text.

    It compares models with different tokens: the number of bits that each byte would
    take in a text that was compressed with the model (Gao et al., "The Pile", 2020,
    section 3.1).
    """
    return loss / (math.log(2) * bytes_per_token)


def language_measures(
    loss: float, function: Loss, source: Source, bytes_per_token: float | None
) -> dict[str, float]:
    """Return perplexity and, if the length of a token is known, bits per byte.

    Nothing where ``source`` holds no tokens, or ``function`` isn't their cross-entropy,
    as one with smoothed labels isn't.
    """
    if not source.tokens_per_sample:
        return {}
    if not isinstance(function, SparseCategoricalCrossentropy) or function.smoothing:
        return {}
    found = {"perplexity": perplexity(loss)}
    if bytes_per_token:
        found["bits_per_byte"] = bits_per_byte(loss, bytes_per_token)
    return found
