"""Words and numbers of a vocabulary as indices: StringLookup, IntegerLookup."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastserve.core import Array, Done, Layer, Shape, Training, nothing
from fastserve.errors import (
    ArgumentError,
    DataError,
    ShapeError,
    StateError,
    UnknownNameError,
)
from fastserve.ops.encoding import encode

MODES = ("int", "one_hot", "multi_hot", "count", "tf_idf")
_SHOWN = 5  # values that an error names


class IndexLookup(Layer):
    """Base of ``StringLookup`` and ``IntegerLookup``: a table from terms to indices.

    Index 0 is that of ``mask_token`` if there is one and the output is 'int'; then
    come ``num_oov_indices`` for terms that aren't in the vocabulary; then its terms.
    """

    takes_integers = True  # nothing to differentiate

    def __init__(
        self,
        max_tokens: int | None,
        num_oov_indices: int,
        mask_token: Any,
        oov_token: Any,
        vocabulary: Any,
        idf_weights: Any,
        invert: bool,
        output_mode: str,
        pad_to_max_tokens: bool,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(input_shape, name)
        if output_mode not in MODES:
            raise UnknownNameError("output_mode", output_mode, MODES)
        self._refuse(
            max_tokens is not None and max_tokens <= 1,
            "max_tokens above 1, as some are reserved",
            f"max_tokens={max_tokens}",
        )
        self._refuse(
            pad_to_max_tokens and max_tokens is None,
            "max_tokens beside pad_to_max_tokens",
            "max_tokens=None",
        )
        self._refuse(
            invert and output_mode != "int",
            "output_mode 'int' with invert",
            f"output_mode={output_mode!r}",
        )
        self._refuse(
            idf_weights is not None and output_mode != "tf_idf",
            "idf_weights with output_mode 'tf_idf' alone",
            f"output_mode={output_mode!r}",
        )
        self.max_tokens, self.num_oov_indices = max_tokens, num_oov_indices
        self.mask_token, self.oov_token = mask_token, oov_token
        self.invert, self.output_mode = invert, output_mode
        self.pad_to_max_tokens = pad_to_max_tokens
        self.idf_weights: Array | None = None  # (depth,) float32
        self._terms: list[Any] = []
        self._table: dict[Any, int] = {}  # -1: a mask token that isn't encoded
        self._adaptable = vocabulary is None
        self.reset_state()
        if vocabulary is not None:
            self.set_vocabulary(vocabulary, idf_weights)

    def _refuse(self, fault: bool, expected: str, received: str) -> None:
        if fault:
            kind = type(self).__name__
            raise ArgumentError(f"{kind}: expected {expected}", received)

    # -- the vocabulary ----------------------------------------------------------

    @property
    def _first_oov(self) -> int:
        return int(self.mask_token is not None and self.output_mode == "int")

    @property
    def _first_term(self) -> int:
        return self._first_oov + self.num_oov_indices

    def _special(self) -> list[Any]:
        return [self.mask_token] * self._first_oov + [
            self.oov_token
        ] * self.num_oov_indices

    def get_vocabulary(self, include_special_tokens: bool = True) -> list[Any]:
        """Return the terms; a term's place is its index, with the special ones."""
        return (self._special() if include_special_tokens else []) + self._terms

    def vocabulary_size(self) -> int:
        """Return the number of indices, those of special tokens included."""
        return self._first_term + len(self._terms)

    @property
    def depth(self) -> int:
        """Length of an encoded vector."""
        if self.pad_to_max_tokens and self.max_tokens is not None:
            return self.max_tokens
        self._check_known()
        return self.vocabulary_size()

    def _check_known(self) -> None:
        if not self._terms:
            raise StateError(
                f"{type(self).__name__}: expected a vocabulary",
                "none yet",
                "call adapt(data) or set_vocabulary, or give vocabulary",
            )

    def set_vocabulary(self, vocabulary: Any, idf_weights: Any = None) -> None:
        """Use these terms from now on.

        Args:
            vocabulary: a list or array, with or without the special tokens at its
                start, or the path of a file in UTF-8 with a term a line.
            idf_weights: a number for each term; needed by 'tf_idf' alone.

        Raises DataError for a vocabulary that can't be one, ArgumentError for weights
        that don't fit.
        """
        self._refuse(
            (idf_weights is None) == (self.output_mode == "tf_idf"),
            "idf_weights for output_mode 'tf_idf', and for no other",
            f"{'none' if idf_weights is None else 'some'} for {self.output_mode!r}",
        )
        given = self._read(vocabulary)
        special = self._special()
        found = bool(special) and given[: len(special)] == special
        terms = given[len(special) :] if found else given
        self._check(terms)
        weights = None
        if idf_weights is not None:
            weights = np.asarray(idf_weights, np.float32)
            self._refuse(
                weights.shape != (len(given),),
                f"idf_weights of shape ({len(given)},), one for each term",
                f"shape {weights.shape}",
            )
            if not found:  # no document tells how rare an unknown term is
                front = np.full(self._first_term, weights.mean(), np.float32)
                weights = np.concatenate([front, weights])
        self._take(terms, weights)

    def _read(self, vocabulary: Any) -> list[Any]:
        if isinstance(vocabulary, (str, Path)):
            try:
                text = Path(vocabulary).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(
                    f"expected a file with a term a line: {vocabulary}", str(error)
                ) from None
            return [self._term(line) for line in text.splitlines()]
        return [self._term(value) for value in _listed(vocabulary)]

    def _check(self, terms: list[Any]) -> None:
        twice = [term for term, count in Counter(terms).items() if count > 1]
        kind = type(self).__name__
        if not terms or twice:
            raise DataError(
                f"{kind}: expected a vocabulary of different terms",
                f"{twice[:_SHOWN]} more than once" if twice else "no terms",
                "remove what is repeated",
            )
        reserved = [self.mask_token] if self.mask_token is not None else []
        reserved += [self.oov_token] if self.invert else []
        for token in reserved:
            if token in terms:
                raise DataError(
                    f"{kind}: expected the special tokens {self._special()} at the "
                    "start of the vocabulary, or none of them",
                    f"{token!r} as term {terms.index(token)}",
                    "remove it",
                )
        size = self._first_term + len(terms)
        if self.max_tokens is not None and size > self.max_tokens:
            raise DataError(
                f"{kind}: expected a vocabulary of at most max_tokens = "
                f"{self.max_tokens} with its special tokens",
                f"{size}",
                "raise max_tokens, or cut the vocabulary",
            )

    def _take(self, terms: list[Any], weights: Array | None) -> None:
        """Use checked terms, and remember them as if the constructor had got them."""
        self._terms = terms
        self._table = {term: self._first_term + i for i, term in enumerate(terms)}
        if self.mask_token is not None:
            self._table[self.mask_token] = 0 if self.output_mode == "int" else -1
        args, kwargs = self.arguments
        bound = inspect.signature(type(self)).bind(*args, **kwargs).arguments
        known: dict[str, Any] = {**bound, "vocabulary": self.get_vocabulary()}
        if weights is not None:
            known["idf_weights"] = weights.tolist()
            rest = max(0, self.depth - len(weights))
            self.idf_weights = np.concatenate([weights, np.zeros(rest, np.float32)])
        self.arguments = ((), known)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as JSON types, with what was learned."""
        args, kwargs = self.arguments
        return dict(inspect.signature(type(self)).bind(*args, **kwargs).arguments)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> IndexLookup:
        """Make a layer from what ``get_config`` returned."""
        return cls(**config)

    # -- learning it ---------------------------------------------------------------

    def adapt(
        self, data: Any, batch_size: int | None = None, steps: int | None = None
    ) -> None:
        """Learn the vocabulary: the most frequent terms, ties from high to low.

        Args:
            data: a list or array, or an iterable of such batches.
            batch_size: unused; Keras has it.
            steps: how many batches of an iterable are taken; None: all.
        """
        if not self._adaptable:
            raise StateError(
                f"{type(self).__name__}.adapt: expected a layer without vocabulary",
                "one that was made with a vocabulary",
                "leave out vocabulary",
            )
        self.reset_state()
        if isinstance(data, (list, tuple, np.ndarray, str)):
            self.update_state(self._documents(data))
        else:
            for i, batch in enumerate(data):
                if steps is not None and i >= steps:
                    break
                self.update_state(self._documents(batch))
        self.finalize_state()

    def reset_state(self) -> None:
        self._counts: Counter[Any] = Counter()
        self._containing: Counter[Any] = Counter()  # documents with a term
        self._seen = 0  # documents

    def update_state(self, documents: Iterable[Sequence[Any]]) -> None:
        """Count the terms of some documents."""
        for document in documents:
            self._counts.update(document)
            if self.output_mode == "tf_idf":
                self._containing.update(set(document))
            self._seen += 1

    def finalize_state(self) -> None:
        """Make the vocabulary of what was counted."""
        for token in (self.mask_token, self.oov_token):
            self._counts.pop(token, None)
        order = sorted(self._counts.items(), key=lambda item: (item[1], item[0]))
        room = None if self.max_tokens is None else self.max_tokens - self._first_term
        terms = [term for term, _ in reversed(order)][:room]
        if not terms:
            raise DataError(
                f"{type(self).__name__}.adapt: expected data with terms", "none"
            )
        weights = None
        if self.output_mode == "tf_idf":
            containing = np.array([self._containing[term] for term in terms])
            idf = np.log(1 + self._seen / (1 + containing))
            front = np.full(self._first_term, idf.mean())
            weights = np.concatenate([front, idf]).astype(np.float32)
        self.reset_state()
        self._take(terms, weights)

    def _documents(self, data: Any) -> Iterable[list[Any]]:
        values = self._array(data)
        rows = values.reshape(len(values), -1) if values.ndim > 1 else values[:, None]
        return [[self._term(value) for value in row] for row in rows.tolist()]

    # -- using it ------------------------------------------------------------------

    def build(self, input_shape: Shape) -> Shape:
        if self.output_mode == "int":
            return input_shape
        if self.output_mode == "one_hot":
            places = input_shape[:-1] if input_shape[-1:] == (1,) else input_shape
            return (*places, self.depth)
        if not input_shape:
            raise ShapeError(
                f"{type(self).__name__}: expected samples with an axis of terms",
                "samples without axes",
                "reshape them to (batch, 1)",
            )
        return (*input_shape[:-1], self.depth)

    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        """Return an array for terms, in lists or an array of any shape."""
        if len(inputs) == 1 and isinstance(inputs[0], (str, list, tuple, np.ndarray)):
            return self.forward(self._array(inputs[0]))
        return super().__call__(*inputs, **kwargs)

    def forward(self, x: Array, training: Training = False) -> Array:
        if self.invert:
            return self._terms_of(np.asarray(x))
        indices = np.array(
            self._lookup(list(map(self._term, x.reshape(-1).tolist()))), np.int64
        ).reshape(x.shape)
        if self.output_mode == "int":
            return indices
        if self.output_mode == "one_hot":
            indices = indices[..., 0] if x.ndim > 1 and x.shape[-1] == 1 else indices
            return self.encode(indices.reshape(-1, 1)).reshape(*indices.shape, -1)
        rows = indices.reshape(-1, x.shape[-1])
        return self.encode(rows).reshape(*x.shape[:-1], -1)

    def backward(self, dy: Array, done: Done = nothing) -> None:
        return None

    def encode(self, rows: Iterable[Sequence[int]]) -> Array:
        """Return (rows, depth) of lists of indices; those below 0 don't count."""
        lists = [np.asarray(row, np.int64) for row in rows]
        lengths = [len(row) for row in lists]
        flat = np.concatenate([np.empty(0, np.int64), *lists])
        out = np.empty((len(lists), self.depth), self.dtype)
        hot = self.output_mode in ("one_hot", "multi_hot")
        encode(np.repeat(np.arange(len(lists)), lengths), flat, out, hot)
        if self.idf_weights is not None:
            np.multiply(out, self.idf_weights, out=out)
        return out

    def _lookup(self, terms: list[Any]) -> list[int]:
        """Return the index of each term; -1 for a mask token that isn't encoded."""
        self._check_known()
        get, unknown = self._table.get, self._first_oov
        if self.num_oov_indices == 1:
            return [get(term, unknown) for term in terms]
        return [
            self._outside(term) if (i := get(term)) is None else i for term in terms
        ]

    def _outside(self, term: Any) -> int:
        raise DataError(
            f"{type(self).__name__}: expected terms of the vocabulary, as "
            "num_oov_indices is 0",
            repr(term),
            "set num_oov_indices to 1, or remove such data",
        )

    def _terms_of(self, indices: Array) -> Array:
        self._check_known()
        vocabulary = self.get_vocabulary()
        size = len(vocabulary)
        flat = [
            vocabulary[i] if 0 <= i < size else self.oov_token
            for i in indices.reshape(-1).tolist()
        ]
        return np.array(flat).reshape(indices.shape)

    def _array(self, data: Any) -> Array:
        raise NotImplementedError

    def _term(self, value: Any) -> Hashable:
        raise NotImplementedError


class StringLookup(IndexLookup):
    """Strings -> indices, or with ``invert`` indices -> strings; any shape.

    Args:
        max_tokens: the vocabulary's largest size, with the special tokens.
        num_oov_indices: 1, or 0 to refuse strings that aren't in the vocabulary.
        mask_token: stands for a place that doesn't count: index 0 of 'int' output.
        oov_token: stands for what isn't in the vocabulary.
        vocabulary, idf_weights: see ``set_vocabulary``.
        output_mode: 'int'; 'one_hot', for each string; 'multi_hot', 'count' or
            'tf_idf', for the strings of the last axis together.
        pad_to_max_tokens: encoded vectors have the length ``max_tokens``.
        encoding: of strings that come as bytes.
    """

    takes_strings = True

    def __init__(
        self,
        max_tokens: int | None = None,
        num_oov_indices: int = 1,
        mask_token: str | None = None,
        oov_token: str = "[UNK]",
        vocabulary: Any = None,
        idf_weights: Any = None,
        invert: bool = False,
        output_mode: str = "int",
        pad_to_max_tokens: bool = False,
        encoding: str = "utf-8",
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        self.encoding = encoding
        if num_oov_indices not in (0, 1):
            raise ArgumentError(
                "StringLookup: expected num_oov_indices 0 or 1", f"{num_oov_indices}"
            )
        self.takes_strings = not invert
        super().__init__(
            max_tokens,
            num_oov_indices,
            mask_token,
            oov_token,
            vocabulary,
            idf_weights,
            invert,
            output_mode,
            pad_to_max_tokens,
            input_shape,
            name,
        )

    def _array(self, data: Any) -> Array:
        return np.asarray(data) if self.invert else as_strings(data)

    def _term(self, value: Any) -> str:
        if isinstance(value, bytes):
            return value.decode(self.encoding)
        return str(value)


class IntegerLookup(IndexLookup):
    """Integers of a vocabulary -> indices, or with ``invert`` back; any shape.

    The arguments are those of ``StringLookup``, and ``vocabulary_dtype``, which must be
    'int64'. With several ``num_oov_indices`` a number outside of the vocabulary has
    that of its remainder.
    """

    def __init__(
        self,
        max_tokens: int | None = None,
        num_oov_indices: int = 1,
        mask_token: int | None = None,
        oov_token: int = -1,
        vocabulary: Any = None,
        vocabulary_dtype: str = "int64",
        idf_weights: Any = None,
        invert: bool = False,
        output_mode: str = "int",
        pad_to_max_tokens: bool = False,
        input_shape: Shape | None = None,
        name: str | None = None,
    ) -> None:
        if vocabulary_dtype != "int64":
            raise ArgumentError(
                "IntegerLookup: expected vocabulary_dtype 'int64'", vocabulary_dtype
            )
        if num_oov_indices < 0:
            raise ArgumentError(
                "IntegerLookup: expected num_oov_indices of 0 or more",
                f"{num_oov_indices}",
            )
        super().__init__(
            max_tokens,
            num_oov_indices,
            mask_token,
            oov_token,
            vocabulary,
            idf_weights,
            invert,
            output_mode,
            pad_to_max_tokens,
            input_shape,
            name,
        )

    def _outside(self, term: Any) -> int:
        if self.num_oov_indices == 0:
            return super()._outside(term)
        return self._first_oov + int(term % self.num_oov_indices)

    def _array(self, data: Any) -> Array:
        values = np.asarray(data)
        if values.dtype.kind not in "iub":
            raise DataError(
                "IntegerLookup: expected integers", f"type {values.dtype}", "round them"
            )
        return values

    def _term(self, value: Any) -> int:
        return int(value)


def as_strings(data: Any) -> Array:
    """Return strings, in lists or an array, as an array of them; bytes stay bytes."""
    values = np.asarray(data, dtype=object)
    flat = values.reshape(-1).tolist()
    wrong = next((v for v in flat if not isinstance(v, (str, bytes))), None)
    if wrong is not None:
        raise DataError(
            "expected strings, in lists of one length or an array",
            f"{type(wrong).__name__} {wrong!r}"[:80],
            "convert the data to str; lists must have one length",
        )
    return values


def _listed(vocabulary: Any) -> list[Any]:
    if isinstance(vocabulary, np.ndarray) and vocabulary.ndim != 1:
        raise DataError(
            "expected a vocabulary with one axis", f"shape {vocabulary.shape}"
        )
    return list(vocabulary)
