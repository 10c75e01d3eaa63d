"""The order of samples, and where they come from."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastserve.data import ArraySource, Sampler, TokenSource
from fastserve.data.sampler import micro_batches, share
from fastserve.data.token_files import open_token_file
from fastserve.errors import ArgumentError, DataError

SIZES = st.integers(1, 60)


@given(SIZES, st.integers(1, 12))
def test_shares_are_contiguous_and_cover_all_rows(total: int, size: int) -> None:
    parts = [share(total, rank, size) for rank in range(size)]
    assert parts[0].start == 0
    assert parts[-1].stop == total
    assert all(a.stop == b.start for a, b in itertools.pairwise(parts))
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) - min(lengths) <= 1


@given(SIZES, SIZES, st.integers(1, 70) | st.none())
def test_micro_batches_cover_a_share(
    start: int, length: int, micro: int | None
) -> None:
    pieces = list(micro_batches(slice(start, start + length), micro))
    rows = [row for piece in pieces for row in range(piece.start, piece.stop)]
    assert rows == list(range(start, start + length))
    assert all(piece.stop - piece.start <= (micro or length) for piece in pieces)


@given(SIZES, st.integers(1, 70), st.integers(0, 3), st.booleans())
def test_an_epoch_has_every_sample_once(
    samples: int, batch: int, seed: int, shuffle: bool
) -> None:
    sampler = Sampler(samples, batch, seed, shuffle, wrap=False)
    for epoch in range(2):
        first = epoch * sampler.steps_per_epoch
        steps = range(first, first + sampler.steps_per_epoch)
        rows = np.concatenate([sampler.step(step)[0] for step in steps])
        assert sorted(rows) == list(range(samples))
        assert all(
            sampler.rows_of(step) == len(sampler.step(step)[0]) for step in steps
        )
        assert all((sampler.step(step)[1] == epoch).all() for step in steps)


@given(SIZES, st.integers(1, 70), st.integers(1, 9))
def test_wrapped_batches_are_full_and_go_on_in_the_next_epoch(
    samples: int, batch: int, steps: int
) -> None:
    sampler = Sampler(samples, batch, 1, shuffle=True, wrap=True)
    made = [sampler.step(step) for step in range(steps)]
    assert all(len(rows) == batch for rows, _ in made)
    rows = np.concatenate([rows for rows, _ in made])
    epochs = np.concatenate([epochs for _, epochs in made])
    np.testing.assert_array_equal(epochs, np.arange(steps * batch) // samples)
    for epoch in range(steps * batch // samples):
        assert sorted(rows[epochs == epoch]) == list(range(samples))


def test_the_passes_of_some_steps() -> None:
    short, full = (Sampler(57, 8, 1, True, wrap) for wrap in (False, True))
    assert short.passes(40) == 5  # of 8 steps each
    assert full.passes(57) == 8
    assert full.passes(3) == pytest.approx(24 / 57)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    one, two = (Sampler(50, 7, 3, shuffle=True, wrap=True) for _ in range(2))
    jumped = two.step(40)  # as after a resume, without the steps before
    for step in range(40):
        one.step(step)
    np.testing.assert_array_equal(one.step(40)[0], jumped[0])
    orders = [
        Sampler(50, 7, seed, True, True).order(epoch).tolist()
        for seed in (3, 4)
        for epoch in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 4


def test_bad_samplers() -> None:
    with pytest.raises(DataError):
        Sampler(0, 4, 1, shuffle=True, wrap=True)
    with pytest.raises(ArgumentError):
        Sampler(4, 0, 1, shuffle=True, wrap=True)


def test_windows_of_tokens_have_the_next_token_as_target() -> None:
    source = TokenSource(np.arange(100), 8, seed=1)
    offsets = set()
    for epoch in range(20):
        rows = np.arange(source.samples)
        batch = source.batch(rows, np.full(len(rows), epoch))
        np.testing.assert_array_equal(batch.y, batch.x + 1)
        x = batch.x.reshape(-1)
        np.testing.assert_array_equal(x, np.arange(x[0], x[0] + len(x)))
        offsets.add(int(x[0]))
    assert min(offsets) >= 0
    assert max(offsets) < 8
    assert len(offsets) > 4
    still = TokenSource(np.arange(100), 8, shift=False)
    assert still.samples == 12
    assert still.batch(np.array([0]), np.array([5])).x[0, 0] == 0


def test_rows_of_two_epochs_in_one_batch() -> None:
    source = TokenSource(np.arange(100), 8, seed=1)
    both = source.batch(np.array([2, 2]), np.array([0, 1])).x.copy()
    for i in (0, 1):
        one = source.batch(np.array([2]), np.array([i])).x[0]
        np.testing.assert_array_equal(both[i], one)


def test_batches_of_arrays_use_the_same_memory() -> None:
    x = np.arange(24.0).reshape(8, 3)
    source = ArraySource(x, np.arange(8), np.arange(8) / 2)
    first = source.batch(np.array([5, 1]), np.zeros(2))
    np.testing.assert_array_equal(first.x, x[[5, 1]])
    np.testing.assert_array_equal(first.y, [5, 1])
    assert first.weights is not None
    np.testing.assert_array_equal(first.weights, [2.5, 0.5])
    second = source.batch(np.array([0]), np.zeros(1))
    assert np.shares_memory(first.x, second.x)


def test_arrays_that_are_not_contiguous() -> None:
    x = np.asfortranarray(np.arange(24.0).reshape(8, 3))
    source = ArraySource(x[:, ::2], np.arange(8))
    batch = source.batch(np.array([5, 1]), np.zeros(2))
    np.testing.assert_array_equal(batch.x, x[[5, 1]][:, ::2])
    assert batch.x.flags.c_contiguous


def test_token_files(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 60_000, 5000).astype(np.uint16)
    np.save(tmp_path / "tokens.npy", tokens)
    tokens.tofile(tmp_path / "tokens.bin")
    for name in ("tokens.npy", "tokens.bin"):
        opened = open_token_file(tmp_path / name, 60_000).tokens
        assert isinstance(opened, np.memmap)
        np.testing.assert_array_equal(opened, tokens)
    with pytest.raises(DataError) as error:
        open_token_file(tmp_path / "tokens.bin", int(tokens.max()))
    assert f"{tokens.max()} at place {int(tokens.argmax())}" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("missing.bin", None, "missing.bin"),
        ("odd.bin", b"abc", "odd number"),
        ("empty.bin", b"", "empty.bin"),
        ("empty.npy", b"", "empty.npy"),
        (
            "forged.npy",
            b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, "
            b"'shape': (3,), }" + b" " * 50 + b"\n",
            "forged.npy",
        ),
        ("cut.npy", b"\x93NUMPY\x01\x00", "cut.npy"),
    ],
)
def test_bad_token_files(
    name: str, content: bytes | None, part: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        open_token_file(tmp_path / name, 100)
    assert part in str(error.value)
    assert "received" in str(error.value)
