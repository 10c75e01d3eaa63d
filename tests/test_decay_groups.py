"""Which weights decay: as in nanoGPT, all with two axes or more, and no others."""

from __future__ import annotations

import numpy as np

from fastserve.models import GPT
from fastserve.optimizers import AdamW


def test_matrices_and_embeddings_decay_but_norms_and_biases_do_not() -> None:
    model = GPT(11, 8, n_layer=2, n_head=2, n_embd=8)
    model.compile(AdamW(0.1, weight_decay=0.5))
    assert model.optimizer is not None
    model.optimizer.bind(model.store)
    for parameter in model.store.parameters:
        parameter.value[...] = 1.0
    model.store.grads.fill(0)
    model.optimizer.update()
    changed = {p.path for p in model.store.parameters if (p.value != 1).any()}
    assert changed == {p.path for p in model.store.parameters if len(p.shape) >= 2}
    assert {"tokens.embeddings", "positions.embeddings"} <= changed
    kept = {p.path for p in model.store.parameters} - changed
    assert {path.rpartition(".")[2] for path in kept} == {"gamma", "beta", "bias"}
    for parameter in model.store.parameters:
        wanted = 1 - 0.1 * 0.5 if parameter.path in changed else 1.0
        np.testing.assert_allclose(parameter.value, wanted, rtol=1e-6)
