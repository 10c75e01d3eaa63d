"""StringLookup, IntegerLookup and TextVectorization: the rules of Keras 3's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastserve as fs
from fastserve.errors import ArgumentError, DataError, StateError, UnknownNameError
from fastserve.models.serialization import layer_config, layer_from_config

Lookup, Integers = fs.layers.StringLookup, fs.layers.IntegerLookup
Vectorize = fs.layers.TextVectorization
TEXTS = ["foo bar", "bar baz", "baz bada boom"]


def again(layer: Any) -> Any:
    """The layer after a way through JSON."""
    return layer_from_config(json.loads(json.dumps(layer_config(layer))))


# -- TextVectorization -----------------------------------------------------------------


def test_the_example_of_keras() -> None:
    layer = Vectorize(max_tokens=5000, output_mode="int", output_sequence_length=4)
    layer.adapt(TEXTS)
    # by count, ties from high to low
    assert layer.get_vocabulary() == ["", "[UNK]", "baz", "bar", "foo", "boom", "bada"]
    assert layer.get_vocabulary(False) == ["baz", "bar", "foo", "boom", "bada"]
    assert layer.vocabulary_size() == 7
    expected = [[4, 1, 3, 0], [1, 2, 0, 0]]
    for texts in (
        [["foo qux bar"], ["qux baz"]],
        ["foo qux bar", "qux baz"],
        np.array(["foo qux bar", "qux baz"]),
        np.array([b"foo qux bar", b"qux baz"]),
    ):
        found = layer(texts)
        assert found.dtype == np.int64
        assert found.tolist() == expected
        assert again(layer)(texts).tolist() == expected


def test_a_vocabulary_that_is_given() -> None:
    layer = Vectorize(vocabulary=["earth", "wind", "and", "fire"])
    assert layer.get_vocabulary() == ["", "[UNK]", "earth", "wind", "and", "fire"]
    assert layer(["Wind, and FIRE!", "x"]).tolist() == [[3, 4, 5], [1, 0, 0]]
    with pytest.raises(StateError, match="adapt"):
        layer.adapt(TEXTS)
    other = Vectorize()
    other.set_vocabulary(["", "[UNK]", "earth"])
    assert other(["earth"]).tolist() == [[2]]


def test_max_tokens_counts_the_special_ones() -> None:
    layer = Vectorize(max_tokens=4)
    layer.adapt(TEXTS)
    assert layer.get_vocabulary() == ["", "[UNK]", "baz", "bar"]
    layer = Vectorize(max_tokens=3, output_mode="count")
    layer.adapt(TEXTS)
    assert layer.get_vocabulary() == ["[UNK]", "baz", "bar"]
    assert layer(["baz x baz y z bar"]).tolist() == [[3, 2, 1]]


def test_standardize_and_split() -> None:
    text = "Don't  STOP\u00a0me\tÜber-all_1"
    for standardize, expected in (
        (None, ["Don't", "STOP\u00a0me", "Über-all_1"]),
        ("lower", ["don't", "stop\u00a0me", "Über-all_1"]),
        ("strip_punctuation", ["Dont", "STOP\u00a0me", "Überall1"]),
        ("lower_and_strip_punctuation", ["dont", "stop\u00a0me", "Überall1"]),
        (np.char.upper, ["DON'T", "STOP\u00a0ME", "ÜBER-ALL_1"]),
    ):
        layer = Vectorize(standardize=standardize)
        layer.adapt([text])
        assert sorted(layer.get_vocabulary(False)) == sorted(expected)
    for split, expected in (
        ("character", [" ", "a", "b"]),
        (None, ["a b a"]),
        (lambda texts: [t.split("a") for t in texts], [" b "]),
    ):
        layer = Vectorize(split=split)
        layer.adapt(["a b a"])
        assert sorted(layer.get_vocabulary(False)) == expected


def test_ngrams() -> None:
    for ngrams, expected in (
        (1, [["a", "b", "c"]]),
        (2, [["a", "b", "c", "a b", "b c"]]),
        ((2, 3), [["a b", "b c", "a b c"]]),
        ([3], [["a b c"]]),
    ):
        layer = Vectorize(ngrams=ngrams)
        assert layer._documents(["a b c"]) == expected
    with pytest.raises(ArgumentError, match="ngrams"):
        Vectorize(ngrams=0)


def test_modes() -> None:
    texts = ["a b b", "b c", "d"]
    for mode, expected in (
        ("multi_hot", [[1, 1, 1, 0]]),
        ("count", [[1, 3, 1, 0]]),
    ):
        layer = Vectorize(output_mode=mode, vocabulary=["b", "a", "c"])
        assert layer(["b a b b x"]).tolist() == expected
        assert layer(["", " . "]).tolist() == [[0] * 4] * 2
    layer = Vectorize(output_mode="tf_idf", max_tokens=6, pad_to_max_tokens=True)
    layer.adapt(texts)
    assert layer.get_vocabulary() == ["[UNK]", "b", "d", "c", "a"]
    idf = np.log(1 + 3 / (1 + np.array([2, 1, 1, 1])))
    weights = np.array([idf.mean(), *idf, 0])
    counts = np.array([[2, 1, 0, 0, 1, 0]])
    for one in (layer, again(layer)):
        np.testing.assert_allclose(one(["b a q r"]), counts * weights, rtol=1e-6)


def test_adapt_takes_batches() -> None:
    whole, parts, few = Vectorize(), Vectorize(), Vectorize()
    whole.adapt(TEXTS)
    parts.adapt(TEXTS[i : i + 1] for i in range(3))
    assert parts.get_vocabulary() == whole.get_vocabulary()
    few.adapt((TEXTS[i : i + 1] for i in range(3)), steps=1)
    assert few.get_vocabulary(False) == ["foo", "bar"]
    whole.adapt(["x"])  # starts anew
    assert whole.get_vocabulary(False) == ["x"]


def test_a_vocabulary_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.txt"
    path.write_text("baz\nbär\n", encoding="utf-8")
    layer = Vectorize(vocabulary=str(path))
    path.unlink()
    assert again(layer)(["bär"]).tolist() == [[3]]
    with pytest.raises(DataError, match="term a line"):
        Vectorize(vocabulary=str(path))


def test_wrong_use_of_text_vectorization() -> None:
    with pytest.raises(StateError, match="vocabulary"):
        Vectorize()(["a"])
    for arguments in ({"standardize": "upper"}, {"split": "words"}):
        with pytest.raises(UnknownNameError):
            Vectorize(**arguments)
    with pytest.raises(UnknownNameError):
        Vectorize(output_mode="one_hot")
    with pytest.raises(ArgumentError, match="output_sequence_length"):
        Vectorize(output_mode="count", output_sequence_length=3)
    with pytest.raises(ArgumentError, match="max_tokens"):
        Vectorize(output_mode="count", pad_to_max_tokens=True)
    layer = Vectorize(vocabulary=["a"])
    with pytest.raises(DataError, match="strings"):
        layer([1, 2])
    with pytest.raises(DataError, match="one text"):
        layer([["a", "b"]])
    with pytest.raises(DataError, match="terms"):
        Vectorize().adapt(["...", " "])


# -- lookups ---------------------------------------------------------------------------


def test_string_lookup() -> None:
    layer = Lookup(vocabulary=["a", "b", "c", "d"])
    data = [["a", "c", "d"], ["d", "z", "b"]]
    assert layer(data).tolist() == [[1, 3, 4], [4, 0, 2]]
    assert layer.get_vocabulary() == ["[UNK]", "a", "b", "c", "d"]
    masked = Lookup(vocabulary=["a", "b"], mask_token="")
    assert masked(["a", "", "q"]).tolist() == [2, 0, 1]
    assert masked.get_vocabulary() == ["", "[UNK]", "a", "b"]
    strict = Lookup(vocabulary=["a"], num_oov_indices=0)
    assert strict(["a"]).tolist() == [0]
    with pytest.raises(DataError, match="'q'"):
        strict(["q"])


def test_lookup_modes() -> None:
    vocabulary = ["a", "b", "c", "d"]
    one_hot = Lookup(vocabulary=vocabulary, output_mode="one_hot")
    assert one_hot(["a", "b", "z"]).tolist() == [
        [0, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [1, 0, 0, 0, 0],
    ]
    assert one_hot([["a"], ["b"]]).shape == (2, 5)
    assert one_hot([["a", "b"]]).shape == (1, 2, 5)
    data = [["a", "c", "d", "d"], ["d", "z", "b", "z"]]
    multi = Lookup(vocabulary=vocabulary, output_mode="multi_hot")
    assert multi(data).tolist() == [[0, 1, 0, 1, 1], [1, 0, 1, 0, 1]]
    assert multi(["a", "c"]).tolist() == [0, 1, 0, 1, 0]
    count = Lookup(vocabulary=vocabulary, output_mode="count", mask_token="z")
    assert count(data).tolist() == [[0, 1, 0, 1, 2], [0, 0, 1, 0, 1]]
    idf = Lookup(
        vocabulary=vocabulary, idf_weights=[0.25, 0.75, 0.6, 0.4], output_mode="tf_idf"
    )
    expected = [[0, 0.25, 0, 0.6, 0.8], [1.0, 0, 0.75, 0, 0.4]]  # Keras' own example
    np.testing.assert_allclose(idf(data), expected, rtol=1e-6)
    np.testing.assert_allclose(again(idf)(data), expected, rtol=1e-6)


def test_invert() -> None:
    layer = Lookup(vocabulary=["a", "b", "c", "d"], invert=True)
    found = layer([[1, 3, 4], [4, 0, 2]])
    assert found.tolist() == [["a", "c", "d"], ["d", "[UNK]", "b"]]
    assert Integers(vocabulary=[12, 36], invert=True)([0, 2, 9]).tolist() == [
        -1,
        36,
        -1,
    ]


def test_integer_lookup() -> None:
    layer = Integers(vocabulary=[12, 36, 1138, 42])
    data = np.array([[12, 1138, 42], [42, 1000, 36]])
    assert layer(data).tolist() == [[1, 3, 4], [4, 0, 2]]
    assert layer.get_vocabulary() == [-1, 12, 36, 1138, 42]
    several = Integers(vocabulary=[12, 36], num_oov_indices=2)
    assert several([12, 37, 1000, 36]).tolist() == [2, 1, 0, 3]
    learned = Integers()
    learned.adapt([[12, 1138, 42], [42, 1000, 36]])
    assert learned.get_vocabulary() == [-1, 42, 1138, 1000, 36, 12]
    assert again(learned)(data).tolist() == learned(data).tolist()
    with pytest.raises(DataError, match="integers"):
        layer([0.5])


@pytest.mark.parametrize("vocabulary", [[], ["a", "a"], ["a", "", "b"], [["a"], ["b"]]])
def test_wrong_vocabularies(vocabulary: Any) -> None:
    with pytest.raises(DataError):
        Vectorize(vocabulary=np.array(vocabulary))
    with pytest.raises(DataError, match="max_tokens"):
        Lookup(2, vocabulary=["a", "b"])
    with pytest.raises(ArgumentError, match="idf_weights"):
        Lookup(vocabulary=["a", "b"], output_mode="tf_idf")
    with pytest.raises(ArgumentError, match="idf_weights"):
        Lookup(vocabulary=["a", "b"], output_mode="tf_idf", idf_weights=[1])


# -- in models -------------------------------------------------------------------------

REVIEWS = [
    "a good film",
    "good, very good!",
    "what a bad film",
    "bad. just bad",
    "a good actor",
    "the bad actor",
] * 4
LABELS = np.array([1, 1, 0, 0, 1, 0] * 4)


@pytest.mark.parametrize(
    "texts", [REVIEWS, np.array(REVIEWS), np.array(REVIEWS)[:, None]]
)
@pytest.mark.parametrize("mode", ["int", "tf_idf"])
def test_a_model_takes_texts(texts: Any, mode: str, tmp_path: Path) -> None:
    vectorize = Vectorize(
        output_mode=mode, output_sequence_length=5 if mode == "int" else None
    )
    vectorize.adapt(REVIEWS)
    layers = [fs.layers.Dense(1, "sigmoid")]
    if mode == "int":
        words = vectorize.vocabulary_size()
        layers = [fs.layers.Embedding(words, 8), fs.layers.Flatten(), *layers]
    model = fs.models.Sequential([vectorize, *layers], seed=1)
    model.compile(fs.optimizers.Adam(0.05), "binary_crossentropy", metrics=["accuracy"])
    history = model.fit(
        texts, LABELS, 8, epochs=15, validation_split=0.25, verbose=0
    ).history
    assert history["val_accuracy"][-1] == 1
    assert model.evaluate(texts, LABELS, verbose=0)[1] == 1
    found = model.predict(texts)
    assert ((found[:, 0] > 0.5) == LABELS).all()
    model.save(tmp_path / "m.safetensors")
    loaded = fs.models.load_model(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(loaded.predict(texts), found)


def test_ranks_train_on_texts_alike() -> None:
    def program(comm: fs.comm.Communicator) -> Any:
        vectorize = Vectorize(output_mode="multi_hot")
        vectorize.adapt(REVIEWS)
        model = fs.models.Sequential([vectorize, fs.layers.Dense(1)], dtype="float64")
        model.compile("adam", "mse")
        model.fit(REVIEWS, LABELS, 10, epochs=2, verbose=0)
        return model.get_weights()

    (alone,) = fs.comm.run_threads(1, program)
    for weights in fs.comm.run_threads(3, program):
        for ours, theirs in zip(weights, alone, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-8)


def test_other_models_refuse_texts() -> None:
    model = fs.models.Sequential([fs.layers.Dense(1)])
    model.compile("adam", "mse")
    with pytest.raises(DataError, match="numbers"):
        model.fit(REVIEWS, LABELS, verbose=0)
    other = fs.models.Sequential([Vectorize(vocabulary=["a"]), fs.layers.Dense(1)])
    other.compile("adam", "mse")
    with pytest.raises(DataError, match="strings"):
        other.fit(np.ones((24, 1)), LABELS, verbose=0)
