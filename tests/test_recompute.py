"""Recomputed activations: the same gradients to the bit, less memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastserve as fs
from fastserve.data.sources import ArraySource, Batch
from fastserve.errors import ArgumentError
from fastserve.models import GPT
from fastserve.training.step import Options, Trainer

TIME = 12


def trainer(model: Any, x: np.ndarray, y: np.ndarray, **options: Any) -> Trainer:
    model.options = Options(**options)
    return model.prepare(ArraySource(x, y))


def gpt(layers: int = 4, dropout: float = 0.2) -> GPT:
    model = GPT(17, TIME, layers, 2, 8, dropout, seed=2)
    model.compile("adamw")
    return model


def tokens(rows: int = 6) -> tuple[np.ndarray, np.ndarray]:
    both = np.random.default_rng(0).integers(0, 17, (rows, TIME + 1))
    return both[:, :-1].copy(), both[:, 1:].copy()


def trained(model: Any, x: Any, y: Any, steps: int = 3, **options: Any) -> list[Any]:
    """Return losses, gradients of the last step, and weights."""
    t = trainer(model, x, y, **options)
    batch, rows = Batch(x, y, None), slice(0, len(x))
    losses = [t.train_batch(batch, rows, len(x), i).loss for i in range(steps)]
    return [losses, model.store.grads.copy(), model.store.values.copy()]


def same(one: list[Any], other: list[Any]) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("micro_batch", [None, 4])
@pytest.mark.parametrize("layers", [1, 4])
def test_gpt_is_the_same_to_the_bit(
    dropout: float, micro_batch: int | None, layers: int
) -> None:
    x, y = tokens()
    kept = trained(gpt(layers, dropout), x, y, micro_batch=micro_batch)
    again = gpt(layers, dropout)
    again.memory.poison = True
    same(
        trained(again, x, y, micro_batch=micro_batch, recompute=True),
        kept,
    )


def test_blocks_of_different_kinds_with_a_mask() -> None:
    def model() -> fs.models.Sequential:
        made = fs.models.Sequential(
            [
                fs.layers.Embedding(17, 8, mask_zero=True, input_shape=(TIME,)),
                fs.layers.TransformerBlock(2, dropout=0.1),
                fs.layers.TransformerBlock(2, 5, activation="relu"),
                fs.layers.TransformerBlock(2, dropout=0.1),
                fs.layers.Dense(17, "softmax"),
            ],
            seed=1,
        )
        made.compile("adam", "sparse_categorical_crossentropy")
        return made

    x, y = tokens()
    x[:, -3:] = 0
    same(trained(model(), x, y, recompute=True), trained(model(), x, y))


def test_evaluation_between_forward_steps_changes_nothing() -> None:
    x, y = tokens()
    plain, saving = gpt(), gpt()
    saving.options = Options(recompute=True)
    for model in (plain, saving):
        model.fit(x, y, 4, epochs=2, verbose=0, validation_data=(x[:3], y[:3]))
    np.testing.assert_array_equal(plain.store.values, saving.store.values)
    np.testing.assert_array_equal(plain.predict(x), saving.predict(x))
    assert plain.generate([1], 5) == saving.generate([1], 5)


def test_blocks_add_their_inputs_alone() -> None:
    def kept_bytes(layers: int, recompute: bool) -> int:
        model, (x, y) = gpt(layers), tokens()
        trained(model, x, y, steps=1, recompute=recompute)
        blocks = {
            id(block): block.nbytes
            for _, layer in model.root.walk()
            for block in layer._blocks.values()
        }
        return sum(blocks.values())

    activation = 6 * TIME * 8 * 4  # bytes of one block's input
    assert kept_bytes(6, True) - kept_bytes(2, True) == 4 * activation
    assert kept_bytes(6, False) - kept_bytes(2, False) > 4 * 15 * activation


def test_a_model_without_blocks_is_refused() -> None:
    model = fs.models.Sequential([fs.layers.Dense(3, input_shape=(2,))])
    model.compile("sgd", "mse")
    with pytest.raises(ArgumentError, match="transformer blocks"):
        trainer(model, np.zeros((4, 2)), np.zeros((4, 3)), recompute=True)
