"""The table that every layer joins: what holds for each of them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from gradcheck import check_layer, each, flat, frozen, poison, prepare, run

from fastserve import layers
from fastserve.core import (
    Done,
    Layer,
    Memory,
    ParameterStore,
    StepKey,
    Training,
    is_several,
    nothing,
)
from fastserve.layers.documents import Documents
from fastserve.layers.graph import Graph
from fastserve.layers.lora import LoRA
from fastserve.ops import activations
from fastserve.ops.attention import TILE

Array = np.ndarray[Any, np.dtype[Any]]
KEY = StepKey(seed=5, step=3, first_row=2)
KINKS = (-3, -1, -0.5, 0, 0.5, 1, 3, 6)


@dataclass
class Row:
    """A layer, the shape of one sample, and what to expect of it.

    With several inputs or outputs ``shape``, ``output``, ``integers`` and ``masked``
    are tuples of what they are for one.
    """

    name: str
    make: Callable[[], Layer]
    shape: tuple[Any, ...]
    output: tuple[Any, ...] | None = None  # None: as the input
    weights: tuple[str, ...] = ()  # paths, in the order of execution
    integers: Any = 0  # the input holds indices below this
    masked: Any = False
    kinks: tuple[float, ...] = ()  # inputs keep away from these
    training: Training = KEY
    together: bool = False  # a sample's output depends on the others of its batch
    tolerance: float = 1e-6

    def sample(self, batch: int, dtype: Any = np.float64) -> Any:
        rng = np.random.default_rng(11)

        def draw(shape: tuple[int, ...], integers: int) -> Array:
            if integers:
                return rng.integers(0, integers, (batch, *shape))
            x = 2 * rng.standard_normal((batch, *shape))
            for kink in self.kinks:
                x[np.abs(x - kink) < 0.01] += 0.05
            return x.astype(dtype)

        if not is_several(self.shape):
            return draw(self.shape, self.integers)
        integers = self.integers or (0,) * len(self.shape)
        return tuple(map(draw, self.shape, integers))

    def build(self, dtype: Any = np.float64) -> tuple[Layer, ParameterStore]:
        layer = self.make()
        return layer, prepare(layer, self.shape, dtype)

    def mask(self, layer: Layer, batch: int) -> None:
        """Give the layer its mask: in each sample other last positions don't count."""

        def make(shape: tuple[int, ...], masked: bool) -> Array | None:
            if not masked:
                return None
            ends = shape[0] - np.arange(batch)[:, None] * (shape[0] // 4) % shape[0]
            mask: Array = np.arange(shape[0]) < ends
            return mask

        if self.masked:
            layer.mask = (
                tuple(map(make, self.shape, self.masked))
                if is_several(self.shape)
                else make(self.shape, self.masked)
            )


L = layers


def tied(mask_zero: bool = False) -> Layer:
    table = L.Embedding(9, 6, mask_zero=mask_zero, name="tokens")
    return L.Chain(table, L.PositionEmbedding(8), L.Dense(6, "tanh"), L.TiedHead(table))


def documents(rope_theta: float | None = None, dropout: float = 0.0) -> Layer:
    """Rows of several documents: token 2 ends one."""
    chain = Documents(
        L.Embedding(9, 8, name="tokens"),
        L.PositionEmbedding(TILE + 40),
        L.MultiHeadAttention(
            2, dropout=dropout, causal=True, num_kv_heads=1, rope_theta=rope_theta
        ),
    )
    chain.end = 2
    return chain


def heads(*args: Any, **kwargs: Any) -> Callable[[], Layer]:
    return lambda: L.MultiHeadAttention(*args, **kwargs)


class Fork(Layer):
    """x -> (x, (x², x²)): a layer of several outputs."""

    def build(self, input_shape: Any) -> Any:
        return input_shape, (*input_shape[:-1], 2 * input_shape[-1])

    def forward(self, x: Array, training: Training = False) -> Any:
        self._x = x
        wide = self.buffer("wide", (*x.shape[:-1], 2 * x.shape[-1]))
        return x, np.concatenate((x**2, x**2), axis=-1, out=wide)

    def backward(self, dy: Any, done: Done = nothing) -> Any:
        d_wide = dy[1].reshape(*self._x.shape[:-1], 2, -1).sum(axis=-2)
        return dy[0] + 2 * self._x * d_wide


class Mixed(Layer):
    """y = x + table[i] where the mask of x says so, else x."""

    several_inputs = True
    takes_integers = (False, True)

    def build(self, input_shape: Any) -> Any:
        self.table = self.child("table", L.Embedding(5, input_shape[0][-1]))
        return self.table.build_once(input_shape[1])

    def forward(self, x: Any, training: Training = False) -> Any:
        mask = self.mask and self.mask[0]
        self._keep = 1 if mask is None else mask[..., None]
        return x[0] + self.table.forward(x[1]) * self._keep

    def backward(self, dy: Any, done: Done = nothing) -> Any:
        self.table.backward(dy * self._keep)
        done(self.table)
        return dy, None


DENSE = ("kernel", "bias")
TWO = ((4, 3), (4, 3))


def graph() -> Layer:
    """Branches, and layers that are called several times, on other shapes too."""
    a, b = L.Input((3, 4)), L.Input((3, 4))
    shared = L.Dense(5, "tanh")
    one, two = shared(a), shared(b)
    last = L.Dense(5, name="last")(shared(a[:, 1]))
    return Graph([a, b], L.concatenate([one * two - 0.5 * one, one + last]))


def forks() -> Layer:
    """A tensor is an output twice, another is used further."""
    x = L.Input((4,))
    square = L.Dense(4, use_bias=False)
    halves = [square(x)[:, :2], square(square(x))[:, 2:]]
    return Graph(x, [halves[0], halves[0], L.add([square(x), x])])


def nested() -> Layer:
    """A graph in a graph, called twice, and one that shares a layer with it."""
    x, shared = L.Input((4,)), L.Dense(4, "tanh")
    inner = Graph(x, [shared(x), L.Dense(1)(shared(x))], name="inner")
    other = Graph(x, L.Chain(L.Dropout(0.3), L.Dense(4))(shared(x)), name="other")
    one, two = inner(x)
    return Graph(x, L.concatenate([*inner(one), other(one * two)]))


def embeddings() -> Layer:
    """An embedding of two inputs of different length."""
    a, b = L.Input((5,)), L.Input((3,), dtype="int32")
    table = L.Embedding(9, 4)
    return Graph([a, b], table(a)[:, 1] * table(b)[:, -1])


GRAPH = ("dense.kernel", "dense.bias", "last.kernel", "last.bias")
NESTED = (
    *(f"inner.{layer}.{w}" for layer in ("dense", "dense_1") for w in DENSE),
    *(f"other.chain.1.{w}" for w in DENSE),
)
HEADS = ("qkv.kernel", "qkv.bias", "output.kernel", "output.bias")
QV = ((4, 5), (6, 5))
CROSS = tuple(
    f"cross.{part}.{w}"
    for part in ("query", "key", "value", "attention_output")
    for w in DENSE
)
NORM = ("norm.gamma", "norm.beta")
BLOCK = (
    *(f"attention.{w}" for w in NORM),
    *(f"attention.heads.{w}" for w in HEADS),
    *(f"mlp.{w}" for w in NORM),
    *(f"mlp.{part}.{w}" for part in ("expand", "contract") for w in DENSE),
)
BATCH_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
GB = ("gamma", "beta")
GATED = tuple(f"{part}.{w}" for part in ("gate", "expand", "contract") for w in DENSE)
LLAMA = (
    "attention.norm.gamma",
    "attention.heads.qkv.kernel",
    "attention.heads.output.kernel",
    "mlp.norm.gamma",
    *(f"mlp.{part}.kernel" for part in ("gate", "expand", "contract")),
)


def llama(*args: Any, **kwargs: Any) -> Callable[[], Layer]:
    options = {"causal": True, "use_bias": False, "norm": "rms"} | kwargs
    return lambda: L.TransformerBlock(*args, activation="swiglu", **options)


RECURRENT = ("kernel", "recurrent_kernel", "bias")


def recurrent(
    kind: str, name: str = "", masked: bool = False, states: int = 0, **options: Any
) -> Row:
    """A row for a recurrent layer of 4 units on 8 steps of 3 features."""
    shape, output = (8, 3), (8, 4) if options.get("return_sequences") else (4,)
    state = 2 if kind == "LSTM" else 1
    return Row(
        f"{kind} {name or ' '.join(options)}",
        lambda: getattr(L, kind)(4, **options),
        (shape, *((4,),) * states) if states else shape,
        (output, *((4,),) * state) if options.get("return_state") else output,
        RECURRENT[: 2 + options.get("use_bias", True)],
        masked=(masked, *(False,) * states) if states and masked else masked,
    )


SEQUENCES: dict[str, Any] = {"return_sequences": True}
ROWS = [
    *(
        recurrent(kind, name, **options)
        for kind in ("SimpleRNN", "LSTM", "GRU")
        for name, options in (
            ("last", {}),
            ("sequences", SEQUENCES),
            ("backwards", SEQUENCES | {"go_backwards": True}),
            ("masked", SEQUENCES | {"masked": True}),
            ("last masked", {"masked": True}),
            (
                "backwards masked",
                SEQUENCES | {"go_backwards": True, "masked": True},
            ),
            (
                "zeros masked",
                SEQUENCES | {"zero_output_for_mask": True, "masked": True},
            ),
            ("last zeros masked", {"zero_output_for_mask": True, "masked": True}),
            ("state", {"return_state": True}),
            ("sequences state", SEQUENCES | {"return_state": True}),
            ("without bias", {"use_bias": False}),
            ("dropout", SEQUENCES | {"dropout": 0.3}),
            (
                "both dropouts masked",
                SEQUENCES | {"dropout": 0.3, "recurrent_dropout": 0.4, "masked": True},
            ),
            (
                "recurrent dropout, seed",
                {"recurrent_dropout": 0.4, "seed": 3, "return_state": True},
            ),
            ("linear", {"activation": None}),
            ("gelu", {"activation": "gelu", **SEQUENCES}),
            ("softmax", {"activation": "softmax"}),
            ("initial", {"states": 2 if kind == "LSTM" else 1}),
            (
                "everything",
                SEQUENCES
                | {
                    "states": 2 if kind == "LSTM" else 1,
                    "return_state": True,
                    "go_backwards": True,
                    "masked": True,
                    "dropout": 0.2,
                    "recurrent_dropout": 0.2,
                },
            ),
        )
    ),
    *(
        Row(
            f"bidirectional {mode} {' '.join(options)} {'masked' if masked else ''}",
            lambda mode=mode, options=options: L.Bidirectional(
                L.LSTM(4, **options), mode
            ),
            (8, 3),
            output,
            tuple(f"{d}_layer.{w}" for d in ("forward", "backward") for w in RECURRENT),
            masked=masked,
        )
        for mode, options, output, masked in (
            ("concat", SEQUENCES, (8, 8), False),
            ("concat", {}, (8,), False),
            ("concat", SEQUENCES, (8, 8), True),
            ("sum", SEQUENCES, (8, 4), True),
            ("ave", SEQUENCES, (8, 4), False),
            ("mul", SEQUENCES, (8, 4), True),
            ("mul", {}, (4,), True),
            (None, SEQUENCES, ((8, 4), (8, 4)), True),
            (
                None,
                SEQUENCES | {"return_state": True},
                ((8, 4), (8, 4), (4,), (4,), (4,), (4,)),
                False,
            ),
            ("concat", {"return_state": True}, ((8,), *((4,),) * 4), True),
            ("concat", SEQUENCES | {"recurrent_dropout": 0.2}, (8, 8), False),
        )
    ),
    Row(
        "bidirectional of two kinds, initial states",
        lambda: L.Bidirectional(
            L.GRU(4, return_sequences=True),
            backward_layer=L.GRU(4, return_sequences=True, go_backwards=True),
        ),
        ((8, 3), (4,), (4,)),
        (8, 8),
        tuple(f"{d}_layer.{w}" for d in ("forward", "backward") for w in RECURRENT),
        masked=(True, False, False),
    ),
    Row("masking", lambda: L.Masking(), (8, 3)),
    Row(
        "time distributed",
        lambda: L.TimeDistributed(L.Dense(4, "softmax")),
        (5, 3),
        (5, 4),
        ("layer.kernel", "layer.bias"),
    ),
    Row(
        "time distributed LSTM",
        lambda: L.TimeDistributed(
            L.Chain(L.LSTM(4, dropout=0.2), L.Dropout(0.3), L.Dense(2))
        ),
        (3, 5, 3),
        (3, 2),
        (*(f"layer.0.{w}" for w in RECURRENT), "layer.2.kernel", "layer.2.bias"),
    ),
    *(
        recurrent(kind, name, **options)
        for kind, more in (
            ("LSTM", {"unit_forget_bias": False}),
            ("GRU", {"reset_after": False}),
        )
        for name, options in (
            ("other", more),
            ("other mish", more | {"activation": "mish"}),
            ("other gates", more | {"recurrent_activation": "gelu"} | SEQUENCES),
            ("other masked", more | SEQUENCES | {"masked": True}),
            (
                "other everything",
                more
                | SEQUENCES
                | {
                    "states": 2 if kind == "LSTM" else 1,
                    "return_state": True,
                    "go_backwards": True,
                    "masked": True,
                    "dropout": 0.2,
                    "recurrent_dropout": 0.2,
                },
            ),
        )
    ),
    Row("dense", lambda: L.Dense(5), (4,), (5,), DENSE),
    Row("dense without bias", lambda: L.Dense(5, None, False), (4,), (5,), ("kernel",)),
    Row("dense 3-D", lambda: L.Dense(5), (3, 4), (3, 5), DENSE),
    Row("dense relu", lambda: L.Dense(5, "relu"), (4,), (5,), DENSE),
    Row("dense relu 3-D", lambda: L.Dense(5, "relu"), (3, 4), (3, 5), DENSE),
    Row("dense gelu", lambda: L.Dense(5, "gelu"), (4,), (5,), DENSE),
    Row("dense gelu_tanh", lambda: L.Dense(5, "gelu_tanh"), (2, 4), (2, 5), DENSE),
    Row("dense sigmoid", lambda: L.Dense(5, "sigmoid"), (4,), (5,), DENSE),
    Row("dense tanh", lambda: L.Dense(5, "tanh", False), (4,), (5,), ("kernel",)),
    Row("dense softmax", lambda: L.Dense(5, "softmax"), (4,), (5,), DENSE),
    Row("dense softmax 3-D", lambda: L.Dense(5, "softmax"), (3, 4), (3, 5), DENSE),
    Row("dense log_softmax", lambda: L.Dense(5, "log_softmax"), (4,), (5,), DENSE),
    Row("dense in pieces", lambda: L.Dense(3000, "gelu"), (3,), (3000,), DENSE),
    Row("dropout", lambda: L.Dropout(0.4), (6, 5)),
    Row("dropout 0", lambda: L.Dropout(0.0), (6, 5)),
    Row("dropout not training", lambda: L.Dropout(0.4), (6,), training=False),
    Row("input", lambda: L.InputLayer((3, 4)), (3, 4)),
    Row("flatten", lambda: L.Flatten(), (2, 3, 4), (24,)),
    Row("reshape", lambda: L.Reshape((4, 6)), (2, 3, 4), (4, 6)),
    Row("reshape -1", lambda: L.Reshape((3, -1)), (2, 3, 4), (3, 8)),
    Row(
        "embedding",
        lambda: L.Embedding(7, 5),
        (6,),
        (6, 5),
        ("embeddings",),
        integers=7,
    ),
    Row(
        "embedding 2-D",
        lambda: L.Embedding(7, 5, mask_zero=True),
        (3, 2),
        (3, 2, 5),
        ("embeddings",),
        integers=7,
    ),
    Row("positions", lambda: L.PositionEmbedding(9), (6, 5), weights=("embeddings",)),
    Row(
        "tied head",
        tied,
        (6,),
        (6, 9),
        ("tokens.embeddings", "1.embeddings", "2.kernel", "2.bias"),
        integers=9,
    ),
    *(
        Row(
            f"documents {name}",
            lambda arguments=arguments: documents(*arguments),
            (time,),
            (time, 8),
            (
                "tokens.embeddings",
                "1.embeddings",
                "2.qkv.kernel",
                "2.qkv.bias",
                "2.output.kernel",
                "2.output.bias",
            ),
            integers=9,
        )
        for name, time, arguments in (
            ("short", 12, ()),
            ("in tiles", TILE + 37, ()),
            ("in tiles, rotary, dropout", 2 * TILE - 8, (1e4, 0.2)),
        )
    ),
    Row("lora", lambda: LoRA(6, 3, 5.0, 0.3), (5, 4), (5, 6), ("a", "b")),
    *(
        Row(
            f"batch norm {name}",
            lambda arguments=arguments: L.BatchNormalization(**arguments),
            shape,
            weights=weights,
            masked="masked" in name,
            training=training,
            together=bool(training),
        )
        for name, shape, arguments, weights, training in (
            ("1-D", (6,), {}, BATCH_NORM, KEY),
            ("2-D", (5, 4, 3), {"epsilon": 1e-5}, BATCH_NORM, KEY),
            ("without scale", (5, 3), {"scale": False}, BATCH_NORM[1:], KEY),
            (
                "without center",
                (5, 3),
                {"center": False},
                (BATCH_NORM[0], *BATCH_NORM[2:]),
                KEY,
            ),
            ("masked", (8, 3), {}, BATCH_NORM, KEY),
            ("masked 2-D", (8, 2, 3), {}, BATCH_NORM, KEY),
            ("axis 1", (3, 4, 2), {"axis": 1}, BATCH_NORM, KEY),
            ("axis -2", (3, 4, 2), {"axis": -2}, BATCH_NORM, KEY),
            ("in pieces", (71, 9, 301), {}, BATCH_NORM, KEY),
            ("wide", (3, 1100), {}, BATCH_NORM, KEY),
            ("not training", (5, 3), {}, BATCH_NORM, False),
        )
    ),
    *(
        Row(
            f"{name} {shape}",
            lambda kind=kind, arguments=arguments: getattr(L, kind)(**arguments),
            shape,
            weights=weights,
            masked="masked" in name,
            kinks=kinks,
        )
        for name, kind, shape, arguments, weights, kinks in (
            ("norm axis 1", "LayerNormalization", (3, 4), {"axis": 1}, GB, ()),
            ("norm axes", "LayerNormalization", (3, 4, 2), {"axis": [1, 3]}, GB, ()),
            ("norm axes", "LayerNormalization", (3, 4, 2), {"axis": [2, 3]}, GB, ()),
            ("rms norm axis", "RMSNormalization", (3, 4), {"axis": 1}, GB[:1], ()),
            ("unit norm", "UnitNormalization", (3, 4), {}, (), ()),
            (
                "unit norm axes",
                "UnitNormalization",
                (3, 4, 2),
                {"axis": [1, 2]},
                (),
                (),
            ),
            ("group norm", "GroupNormalization", (5, 6), {"groups": 3}, GB, ()),
            ("group norm", "GroupNormalization", (3, 2, 6), {"groups": 1}, GB, ()),
            ("group norm", "GroupNormalization", (6,), {"groups": 2}, GB, ()),
            ("group norm", "GroupNormalization", (171, 201), {"groups": 3}, GB, ()),
            ("instance norm", "GroupNormalization", (5, 4), {"groups": -1}, GB, ()),
            (
                "group norm axis alone",
                "GroupNormalization",
                (4, 5),
                {"groups": 2, "axis": 1, "scale": False, "center": False},
                (),
                (),
            ),
            ("spatial dropout", "SpatialDropout1D", (5, 6), {"rate": 0.4}, (), ()),
            ("spatial dropout", "SpatialDropout2D", (5, 3, 6), {"rate": 0.4}, (), ()),
            (
                "dropout of rows",
                "Dropout",
                (5, 6),
                {"rate": 0.3, "noise_shape": (None, None, 1), "seed": 3},
                (),
                (),
            ),
            ("noise", "GaussianNoise", (5, 6), {"stddev": 0.5}, (), ()),
            ("gaussian dropout", "GaussianDropout", (5, 6), {"rate": 0.3}, (), ()),
            ("alpha dropout", "AlphaDropout", (5, 6), {"rate": 0.3}, (), ()),
            ("relu", "ReLU", (7, 9), {}, (), (0,)),
            (
                "relu of all arguments",
                "ReLU",
                (7, 9),
                {"max_value": 2.0, "negative_slope": 0.2, "threshold": 0.5},
                (),
                (0.5, 2),
            ),
            ("leaky relu", "LeakyReLU", (7, 9), {}, (), (0,)),
            ("elu", "ELU", (7, 9), {"alpha": 0.7}, (), (0,)),
            ("prelu", "PReLU", (4, 3), {}, ("alpha",), (0,)),
            ("prelu", "PReLU", (4, 3, 5), {"shared_axes": [1, 2]}, ("alpha",), (0,)),
            ("prelu", "PReLU", (300, 211), {"shared_axes": 1}, ("alpha",), (0,)),
            ("softmax", "Softmax", (4, 5), {}, (), ()),
            ("softmax axis 1", "Softmax", (4, 5), {"axis": 1}, (), ()),
            ("softmax axes", "Softmax", (4, 5), {"axis": [1, 2]}, (), ()),
            ("softmax masked", "Softmax", (8,), {}, (), ()),
        )
    ),
    *(
        Row(
            f"{name} {shape}",
            lambda kind=kind, arguments=arguments: getattr(L, kind)(**arguments),
            shape,
            output,
            integers=integers,
            training=training,
        )
        for name, kind, shape, arguments, output, training, integers in (
            ("rescaling", "Rescaling", (3, 4), {"scale": 0.5}, None, KEY, 0),
            (
                "rescaling of channels",
                "Rescaling",
                (3, 2),
                {"scale": [2.0, 3.0], "offset": [1.0, -1.0]},
                None,
                KEY,
                0,
            ),
            (
                "normalization",
                "Normalization",
                (3, 2),
                {"mean": [1.0, 2.0], "variance": [4.0, 0.0]},
                None,
                KEY,
                0,
            ),
            (
                "normalization inverted",
                "Normalization",
                (3, 2),
                {"axis": None, "mean": 1.0, "variance": 4.0, "invert": True},
                None,
                KEY,
                0,
            ),
            (
                "bins counted",
                "Discretization",
                (4,),
                {"bin_boundaries": [1, 3], "output_mode": "count"},
                (3,),
                KEY,
                5,
            ),
            ("categories", "CategoryEncoding", (4,), {"num_tokens": 5}, (5,), KEY, 5),
            (
                "categories one hot",
                "CategoryEncoding",
                (4,),
                {"num_tokens": 5, "output_mode": "one_hot"},
                (4, 5),
                KEY,
                5,
            ),
            (
                "crop",
                "CenterCrop",
                (5, 6, 2),
                {"height": 2, "width": 4},
                (2, 4, 2),
                1,
                0,
            ),
            (
                "crop up",
                "CenterCrop",
                (3, 4, 2),
                {"height": 5, "width": 3},
                (5, 3, 2),
                1,
                0,
            ),
            *(
                ("resizing", "Resizing", (5, 6, channels), arguments, out, KEY, 0)
                for channels, arguments, out in (
                    (2, {"height": 7, "width": 3}, (7, 3, 2)),
                    (5, {"height": 7, "width": 3, "antialias": True}, (7, 3, 5)),
                    (
                        1,
                        {"height": 3, "width": 4, "interpolation": "nearest"},
                        (3, 4, 1),
                    ),
                    (
                        3,
                        {"height": 3, "width": 3, "crop_to_aspect_ratio": True},
                        (3, 3, 3),
                    ),
                )
            ),
            ("flip", "RandomFlip", (4, 3, 2), {}, None, KEY, 0),
            ("flip", "RandomFlip", (4, 5, 1), {"mode": "horizontal"}, None, KEY, 0),
            ("flip", "RandomFlip", (4, 3, 1), {"mode": "vertical"}, None, KEY, 0),
            (
                "random crop",
                "RandomCrop",
                (6, 7, 2),
                {"height": 3, "width": 4},
                (3, 4, 2),
                KEY,
                0,
            ),
            (
                "random crop not training",
                "RandomCrop",
                (6, 7, 2),
                {"height": 3, "width": 4},
                (3, 4, 2),
                False,
                0,
            ),
            *(
                (f"{kind} {mode} {how}", kind, (5, 6, 2), arguments, None, KEY, 0)
                for kind, factors in (
                    ("RandomRotation", {"factor": 0.3}),
                    (
                        "RandomTranslation",
                        {"height_factor": 0.4, "width_factor": [0.1, 0.6]},
                    ),
                    ("RandomZoom", {"height_factor": 0.5}),
                    ("RandomZoom", {"height_factor": 0.5, "width_factor": 0.3}),
                )
                for mode in ("reflect", "wrap", "constant", "nearest")
                for how in ("bilinear", "nearest")
                for arguments in [{**factors, "fill_mode": mode, "interpolation": how}]
            ),
            (
                "contrast",
                "RandomContrast",
                (4, 5, 2),
                {"factor": 0.5, "value_range": (-3, 3)},
                None,
                KEY,
                0,
            ),
            (
                "brightness",
                "RandomBrightness",
                (4, 5, 2),
                {"factor": 0.2, "value_range": (-3, 3)},
                None,
                KEY,
                0,
            ),
            (
                "brightness",
                "RandomBrightness",
                (4, 5, 2),
                {"factor": 0.2},
                None,
                False,
                0,
            ),
        )
    ),
    Row("norm", lambda: L.LayerNormalization(), (6,), weights=("gamma", "beta")),
    Row("norm 3-D", lambda: L.LayerNormalization(), (4, 6), weights=("gamma", "beta")),
    Row(
        "norm without scale",
        lambda: L.LayerNormalization(scale=False),
        (6,),
        weights=("beta",),
    ),
    Row(
        "norm without center",
        lambda: L.LayerNormalization(center=False),
        (4, 6),
        weights=("gamma",),
    ),
    Row("norm alone", lambda: L.LayerNormalization(-1, 1e-5, False, False), (6,)),
    Row("rms norm", lambda: L.RMSNormalization(), (6,), weights=("gamma",)),
    Row(
        "rms norm 3-D",
        lambda: L.RMSNormalization(epsilon=0.1),
        (4, 6),
        weights=("gamma",),
    ),
    Row("swiglu", lambda: L.SwiGLU(5), (4,), weights=GATED),
    Row(
        "swiglu 3-D",
        lambda: L.SwiGLU(5, False),
        (3, 4),
        weights=GATED[::2],
    ),
    *(
        Row(
            f"{kind} {name}",
            lambda kind=kind, arguments=arguments: getattr(L, kind)(**arguments),
            shapes,
            output,
            weights,
            integers=integers,
            masked=masked,
        )
        for kind, name, arguments, shapes, output, weights, integers, masked in (
            ("Attention", "dot", {}, QV, (4, 5), (), 0, False),
            (
                "Attention",
                "scaled causal dropout",
                {"use_scale": True, "causal": True, "dropout": 0.3},
                ((4, 3), (6, 5), (6, 3)),
                (4, 5),
                ("scale",),
                0,
                False,
            ),
            (
                "Attention",
                "concat",
                {"score_mode": "concat"},
                QV,
                (4, 5),
                ("concat_score_weight",),
                0,
                False,
            ),
            (
                "Attention",
                "concat scaled masked",
                {"score_mode": "concat", "use_scale": True},
                ((8, 3), (8, 3)),
                (8, 3),
                ("scale", "concat_score_weight"),
                0,
                (True, True),
            ),
            (
                "AdditiveAttention",
                "",
                {},
                ((4, 3), (6, 5), (6, 3)),
                (4, 5),
                ("scale",),
                0,
                False,
            ),
            (
                "AdditiveAttention",
                "in pieces",
                {"use_scale": False},
                ((70, 9), (90, 9)),
                (70, 9),
                (),
                0,
                False,
            ),
            (
                "MultiHeadAttention",
                "of a value",
                {"num_heads": 2, "key_dim": 3},
                ((4, 5), (6, 7)),
                (4, 5),
                CROSS,
                0,
                False,
            ),
            (
                "MultiHeadAttention",
                "of all",
                {
                    "num_heads": 2,
                    "key_dim": 3,
                    "value_dim": 4,
                    "output_shape": 9,
                    "dropout": 0.3,
                    "causal": True,
                },
                ((8, 5), (8, 7), (8, 6)),
                (8, 9),
                CROSS,
                0,
                (True, True, True),
            ),
            (
                "MultiHeadAttention",
                "with a mask",
                {"num_heads": 2, "key_dim": 3, "use_bias": False},
                ((4, 5), (6, 7), (6, 5), (4, 6)),
                (4, 5),
                CROSS[::2],
                (0, 0, 0, 2),
                False,
            ),
        )
    ),
    Row("attention", heads(2), (5, 6), weights=HEADS),
    Row("attention causal", heads(2, causal=True), (5, 6), weights=HEADS),
    Row("attention masked", heads(2), (8, 6), weights=HEADS, masked=True),
    Row(
        "attention causal masked",
        heads(2, causal=True),
        (8, 6),
        weights=HEADS,
        masked=True,
    ),
    Row("attention dropout", heads(2, dropout=0.3), (5, 6), weights=HEADS),
    Row(
        "attention causal masked dropout",
        heads(2, 4, dropout=0.3, causal=True),
        (8, 6),
        weights=HEADS,
        masked=True,
    ),
    Row(
        "attention without bias",
        heads(3, 4, use_bias=False),
        (5, 6),
        weights=("qkv.kernel", "output.kernel"),
    ),
    Row("attention one position", heads(2, causal=True), (1, 6), weights=HEADS),
    Row("attention tile", heads(1, 2, causal=True), (TILE, 2), weights=HEADS),
    Row("attention tile + 1", heads(1, 2, causal=True), (TILE + 1, 2), weights=HEADS),
    Row("attention tiles", heads(2, 2), (150, 4), weights=HEADS),
    Row("attention tiles causal", heads(2, 2, causal=True), (150, 4), weights=HEADS),
    Row(
        "attention tiles masked dropout",
        heads(2, 2, dropout=0.2, causal=True),
        (150, 4),
        weights=HEADS,
        masked=True,
    ),
    Row("attention groups", heads(22, 1, causal=True), (150, 3), weights=HEADS),
    Row(
        "attention rotary",
        heads(3, rope_theta=100.0, causal=True),
        (7, 12),
        weights=HEADS,
    ),
    Row("attention grouped", heads(4, 3, num_kv_heads=2), (5, 6), weights=HEADS),
    Row(
        "attention one key head",
        heads(3, 2, num_kv_heads=1, causal=True),
        (TILE + 2, 4),
        weights=HEADS,
    ),
    Row(
        "attention grouped rotary masked dropout",
        heads(4, 2, dropout=0.3, causal=True, num_kv_heads=2, rope_theta=10.0),
        (8, 6),
        weights=HEADS,
        masked=True,
    ),
    Row(
        "attention grouped in pieces",
        heads(44, 2, causal=True, num_kv_heads=2, rope_theta=10.0),
        (150, 3),
        weights=HEADS,
    ),
    Row(
        "block llama",
        llama(4, 7, num_kv_heads=2, rope_theta=50.0),
        (5, 8),
        weights=LLAMA,
    ),
    Row(
        "block swiglu biases dropout",
        llama(2, 7, 0.2, use_bias=True, norm="layer"),
        (5, 6),
        weights=(*BLOCK[:8], *(f"mlp.{w}" for w in GATED)),
    ),
    Row(
        "block without biases",
        lambda: L.TransformerBlock(2, use_bias=False, norm_bias=False),
        (5, 6),
        weights=tuple(w for w in BLOCK if not w.endswith(("bias", "beta"))),
    ),
    Row("block", lambda: L.TransformerBlock(2), (5, 6), weights=BLOCK),
    Row(
        "block causal",
        lambda: L.TransformerBlock(2, 7, 0.2, "relu", causal=True),
        (5, 6),
        weights=BLOCK,
    ),
    Row(
        "chain",
        lambda: L.Chain(L.Dense(4, "tanh"), L.Flatten(), L.Dense(3, name="last")),
        (2, 5),
        (3,),
        ("0.kernel", "0.bias", "last.kernel", "last.bias"),
    ),
    Row("empty chain", lambda: L.Chain(), (4,)),
    Row(
        "residual",
        lambda: L.Residual(L.Dense(6, "tanh"), L.Residual(L.Dense(6))),
        (2, 6),
        weights=("0.kernel", "0.bias", "1.0.kernel", "1.0.bias"),
    ),
    Row("add", lambda: L.Add(), ((3, 5), (3, 5), (3, 5)), (3, 5)),
    Row("add broadcast", lambda: L.Add(), ((5,), (3, 1), (2, 3, 5)), (2, 3, 5)),
    Row("subtract", lambda: L.Subtract(), ((3, 5), (3, 1)), (3, 5)),
    Row("average", lambda: L.Average(), ((3, 5), (1, 5), (3, 5)), (3, 5)),
    Row("multiply", lambda: L.Multiply(), ((3, 5), (3, 5), (5,)), (3, 5)),
    Row("multiply masked", lambda: L.Multiply(), TWO, (4, 3), masked=(True, True)),
    Row("multiply one mask", lambda: L.Multiply(), TWO, (4, 3), masked=(True, False)),
    Row("divide", lambda: L.Divide(), ((3, 5), (5,)), (3, 5), kinks=(0,)),
    *(
        Row(f"{name} {i}", make, shapes, (4, 3), masked=masked)
        for name, make in (("maximum", L.Maximum), ("minimum", L.Minimum))
        for i, (shapes, masked) in enumerate(
            (
                ((*TWO, (1, 3)), False),
                (TWO, (True, False)),
                (TWO, (False, True)),
                ((*TWO, (4, 3)), (True, True, False)),
            )
        )
    ),
    Row("concatenate", lambda: L.Concatenate(), ((3, 2), (3, 5)), (3, 7)),
    Row("concatenate 1", lambda: L.Concatenate(1), ((1, 4), (3, 4)), (4, 4)),
    Row("dot", lambda: L.Dot(1), ((5,), (5,)), (1,)),
    Row("dot of ranks", lambda: L.Dot((2, 1)), ((3, 4), (4, 2, 5)), (3, 2, 5)),
    Row("dot -1", lambda: L.Dot(-1), ((3, 4), (2, 4)), (3, 2)),
    Row("dot cosine", lambda: L.Dot((1, 2), True), ((4, 3), (2, 4)), (3, 2)),
    Row("identity", lambda: L.Identity(), (3, 2)),
    Row("affine", lambda: L.Affine(-2.5, 3), (3, 2)),
    Row("item", lambda: L.Item([[None, None, None], 1]), (3, 2), (2,)),
    Row(
        "items",
        lambda: L.Item(["...", [None, None, -2], None]),
        (3, 5),
        (3, 3, 1),
    ),
    Row(
        "lambda",
        lambda: L.Lambda(np.square, gradient=lambda x, y, dy: 2 * x * dy),
        (3, 5),
    ),
    Row(
        "lambda of two",
        lambda: L.Lambda(
            lambda x: x[0] * x[1],
            gradient=lambda x, y, dy: (x[1] * dy, x[0] * dy),
        ),
        ((3, 5), (3, 5)),
        (3, 5),
    ),
    Row("graph", graph, ((3, 4), (3, 4)), (3, 10), GRAPH),
    Row("graph of outputs", forks, (4,), ((2,), (2,), (4,)), ("dense.kernel",)),
    Row("nested graphs", nested, (4,), (9,), NESTED),
    Row(
        "graph of embeddings",
        embeddings,
        ((5,), (3,)),
        (4,),
        ("embedding.embeddings",),
        integers=(9, 9),
    ),
    Row("several outputs", Fork, (3, 2), ((3, 2), (3, 4))),
    Row(
        "integers and masks",
        Mixed,
        ((4, 3), (4,)),
        (4, 3),
        ("table.embeddings",),
        integers=(0, 5),
        masked=(True, False),
    ),
] + [
    Row(
        f"activation {name}",
        lambda name=name: L.Activation(name),  # type: ignore[misc]
        (3, 5),
        kinks=KINKS,
    )
    for name in activations.NAMED
]

SEPARABLE = ("depthwise_kernel", "pointwise_kernel", "bias")
IMAGES = [
    Row("conv1d", lambda: L.Conv1D(4, 3), (7, 3), (5, 4), DENSE),
    Row(
        "conv1d strides same relu",
        lambda: L.Conv1D(4, 4, 3, "same", activation="relu"),
        (8, 3),
        (3, 4),
        DENSE,
    ),
    Row(
        "conv1d causal dilation groups gelu",
        lambda: L.Conv1D(
            6, 3, padding="causal", dilation_rate=2, groups=2, activation="gelu"
        ),
        (9, 4),
        (9, 6),
        DENSE,
    ),
    Row(
        "conv1d winograd",
        lambda: L.Conv1D(24, 3, padding="same"),
        (9, 24),
        (9, 24),
        DENSE,
    ),
    Row(
        "conv1d softmax",
        lambda: L.Conv1D(3, 2, activation="softmax"),
        (4, 2),
        (3, 3),
        DENSE,
    ),
    Row("conv2d", lambda: L.Conv2D(4, 3), (6, 5, 3), (4, 3, 4), DENSE),
    Row("conv2d 1 channel", lambda: L.Conv2D(3, (3, 2)), (6, 5, 1), (4, 4, 3), DENSE),
    Row(
        "conv2d 1 x 1 without bias",
        lambda: L.Conv2D(4, 1, use_bias=False),
        (4, 5, 3),
        (4, 5, 4),
        ("kernel",),
    ),
    Row("conv2d 1 x 1 strides", lambda: L.Conv2D(4, 1, 2), (4, 5, 3), (2, 3, 4), DENSE),
    Row(
        "conv2d strides same even",
        lambda: L.Conv2D(4, 3, 2, "same", activation="tanh"),
        (6, 8, 3),
        (3, 4, 4),
        DENSE,
    ),
    Row(
        "conv2d strides beyond the kernel",
        lambda: L.Conv2D(4, 2, (3, 4)),
        (9, 7, 3),
        (3, 2, 4),
        DENSE,
    ),
    Row(
        "conv2d dilation same groups",
        lambda: L.Conv2D(6, 3, padding="same", dilation_rate=(2, 1), groups=2),
        (7, 6, 4),
        (7, 6, 6),
        DENSE,
    ),
    Row(
        "conv2d kernel rows silu",
        lambda: L.Conv2D(12, 3, padding="same", activation="silu"),
        (6, 7, 10),
        (6, 7, 12),
        DENSE,
    ),
    Row(
        "conv2d winograd same silu",
        lambda: L.Conv2D(20, 3, padding="same", activation="silu"),
        (8, 7, 24),
        (8, 7, 20),
        DENSE,
    ),
    Row(
        "conv2d winograd 5 x 5 groups",
        lambda: L.Conv2D(44, 5, groups=2),
        (8, 6, 44),
        (4, 2, 44),
        DENSE,
    ),
    Row(
        "conv2d softmax",
        lambda: L.Conv2D(3, 2, activation="softmax"),
        (3, 4, 2),
        (2, 3, 3),
        DENSE,
    ),
    Row(
        "conv2d in bands", lambda: L.Conv2D(2, 3, 2), (70, 150, 24), (34, 74, 2), DENSE
    ),
    Row("depthwise", lambda: L.DepthwiseConv2D(3), (6, 5, 3), (4, 3, 3), DENSE),
    Row(
        "depthwise same multiplier dilation",
        lambda: L.DepthwiseConv2D((3, 2), 1, "same", 2, dilation_rate=(1, 2)),
        (6, 5, 3),
        (6, 5, 6),
        DENSE,
    ),
    Row(
        "depthwise strides multiplier relu",
        lambda: L.DepthwiseConv2D(3, 2, "same", 2, activation="relu"),
        (6, 8, 3),
        (3, 4, 6),
        DENSE,
    ),
    Row("depthwise 1d", lambda: L.DepthwiseConv1D(3, 2, "same"), (6, 3), (3, 3), DENSE),
    Row(
        "separable",
        lambda: L.SeparableConv2D(5, 3, 2, "same", depth_multiplier=2),
        (6, 5, 3),
        (3, 3, 5),
        SEPARABLE,
    ),
    Row("separable 1d", lambda: L.SeparableConv1D(5, 3), (6, 3), (4, 5), SEPARABLE),
    Row("transpose", lambda: L.Conv2DTranspose(4, 3), (3, 4, 2), (5, 6, 4), DENSE),
    Row(
        "transpose strides same",
        lambda: L.Conv2DTranspose(4, 3, 2, "same", activation="relu"),
        (3, 4, 2),
        (6, 8, 4),
        DENSE,
    ),
    Row(
        "transpose output padding",
        lambda: L.Conv2DTranspose(4, (3, 2), (3, 2), "same", (2, 1)),
        (3, 4, 2),
        (9, 7, 4),
        DENSE,
    ),
    Row(
        "transpose dilation",
        lambda: L.Conv2DTranspose(4, 3, dilation_rate=2, use_bias=False),
        (3, 4, 2),
        (7, 8, 4),
        ("kernel",),
    ),
    Row(
        "transpose 1d strides beyond the kernel",
        lambda: L.Conv1DTranspose(4, 2, 3),
        (4, 2),
        (12, 4),
        DENSE,
    ),
    Row(
        "transpose winograd",
        lambda: L.Conv2DTranspose(24, 3, padding="same"),
        (8, 8, 24),
        (8, 8, 24),
        DENSE,
    ),
    Row("max pooling", lambda: L.MaxPooling2D(), (5, 6, 3), (2, 3, 3)),
    Row("max pooling same", lambda: L.MaxPool2D(3, 2, "same"), (6, 7, 3), (3, 4, 3)),
    Row("max pooling gaps", lambda: L.MaxPool2D(2, (3, 4)), (7, 9, 2), (2, 2, 2)),
    Row("max pooling large", lambda: L.MaxPool2D(17), (17, 18, 2), (1, 1, 2)),
    Row("max pooling 1d", lambda: L.MaxPooling1D(3, 1), (6, 3), (4, 3)),
    Row("average pooling", lambda: L.AveragePooling2D(2), (5, 6, 3), (2, 3, 3)),
    Row(
        "average pooling same", lambda: L.AvgPool2D(3, 2, "same"), (6, 7, 2), (3, 4, 2)
    ),
    Row("average pooling 1d", lambda: L.AveragePooling1D(2, 3), (8, 3), (3, 3)),
    Row("global average", lambda: L.GlobalAveragePooling2D(), (3, 4, 5), (5,)),
    Row(
        "global average 1d masked",
        lambda: L.GlobalAveragePooling1D(keepdims=True),
        (8, 5),
        (1, 5),
        masked=True,
    ),
    Row("global average 1d", lambda: L.GlobalAveragePooling1D(), (8, 5), (5,)),
    Row(
        "global max", lambda: L.GlobalMaxPooling2D(keepdims=True), (3, 4, 5), (1, 1, 5)
    ),
    Row("global max 1d", lambda: L.GlobalMaxPooling1D(), (8, 5), (5,)),
    Row("up sampling", lambda: L.UpSampling2D((2, 3)), (3, 4, 2), (6, 12, 2)),
    Row(
        "up sampling bilinear",
        lambda: L.UpSampling2D((2, 3), interpolation="bilinear"),
        (3, 4, 2),
        (6, 12, 2),
    ),
    Row("up sampling 1d", lambda: L.UpSampling1D(3), (4, 2), (12, 2)),
    Row(
        "zero padding", lambda: L.ZeroPadding2D(((1, 0), (2, 3))), (3, 4, 2), (4, 9, 2)
    ),
    Row("zero padding 1d", lambda: L.ZeroPadding1D(2), (4, 2), (8, 2)),
    Row("cropping", lambda: L.Cropping2D(((1, 0), (2, 1))), (3, 5, 2), (2, 2, 2)),
    Row("cropping 1d", lambda: L.Cropping1D(), (4, 2), (2, 2)),
    Row("permute", lambda: L.Permute((3, 1, 2)), (2, 3, 4), (4, 2, 3)),
    Row("repeat vector", lambda: L.RepeatVector(3), (4,), (3, 4)),
]
ROWS += IMAGES

table = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def first(count: int, arrays: Any) -> Any:
    return each(lambda array: array[:count], arrays)


def alike(one: Any, other: Any) -> None:
    each(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12),
        one,
        other,
    )


def equal(one: Any, other: Any) -> None:
    each(np.testing.assert_array_equal, one, other)


def grads(store: ParameterStore) -> dict[str, Array]:
    return {p.path: p.grad.copy() for p in store.parameters}


@table
def test_gradients(row: Row) -> None:
    layer, store = row.build()
    x = row.sample(3)
    row.mask(layer, 3)
    check_layer(layer, store, x, row.training, row.tolerance)


@table
def test_names_and_shapes(row: Row) -> None:
    layer = row.make()
    assert not layer.built
    shape = layer.build_once(row.shape)
    assert shape == (row.output or row.shape)
    assert layer.built
    first = ParameterStore(layer, seed=4)
    named = [p.path for p in dict.fromkeys(layer.parameters())]
    assert tuple(named) == row.weights
    again = row.make()
    again.build_once(row.shape)
    second = ParameterStore(again, seed=4)
    assert [p.path for p in second.parameters] == [p.path for p in first.parameters]
    assert np.array_equal(second.values, first.values)


@table
def test_float32_stays_float32(row: Row) -> None:
    layer, store = row.build(np.float32)
    x = row.sample(2, np.float32)
    row.mask(layer, 2)
    y, _, dx = run(layer, x, training=row.training)
    shapes = row.output or row.shape
    for out, shape in zip(
        flat(y), shapes if is_several(shapes) else [shapes], strict=True
    ):
        assert out.dtype == np.float32
        assert out.shape == (2, *shape)
        assert np.isfinite(out).all()
    assert np.isfinite(store.grads).all()
    for array, gradient in zip(flat(x), flat(dx), strict=True):
        if array.dtype.kind == "f":
            assert gradient is not None
            assert gradient.dtype == np.float32
            assert np.isfinite(gradient).all()


@table
def test_batches_of_other_sizes(row: Row) -> None:
    layer, store = row.build()
    big = row.sample(5)
    row.mask(layer, 5)
    y, dy, dx = run(layer, big, training=row.training)
    kept = grads(store)
    row.mask(layer, 2)
    few, _, dfew = run(layer, first(2, big), first(2, dy), row.training)
    if not row.together:
        alike(few, first(2, y))
        alike(first(2, dx), dfew)
    row.mask(layer, 5)
    again, _, dagain = run(layer, big, dy, row.training)
    equal(again, y)
    equal(dagain, dx)
    for path, gradient in grads(store).items():
        assert np.array_equal(gradient, kept[path]), path


@pytest.mark.parametrize(
    "row", [row for row in ROWS if not row.together], ids=lambda row: row.name
)
def test_a_batch_is_its_samples(row: Row) -> None:
    layer, _ = row.build()
    x = row.sample(4)
    row.mask(layer, 4)
    y = each(np.copy, layer.forward(frozen(x), row.training))
    mask = layer.mask
    for i in range(4):
        key = row.training and StepKey(KEY.seed, KEY.step, KEY.first_row + i)

        def only(array: Array, i: int = i) -> Array:
            return array[i : i + 1]

        layer.mask = each(only, mask)
        alike(layer.forward(frozen(each(only, x)), key), each(only, y))


@table
def test_backward_overwrites_gradients(row: Row) -> None:
    layer, store = row.build()
    x = row.sample(3)
    row.mask(layer, 3)
    _, dy, dx = run(layer, x, training=row.training)
    kept = grads(store)
    for parameter in store.parameters:
        parameter.grad.fill(np.nan)
    again = layer.backward(frozen(dy))
    for path, gradient in grads(store).items():
        assert np.array_equal(gradient, kept[path]), path
    equal(again, dx)


@table
def test_input_gradient_may_be_left_out(row: Row) -> None:
    layer, store = row.build()
    x = row.sample(3)
    row.mask(layer, 3)
    _, dy, _ = run(layer, x, training=row.training)
    kept = grads(store)
    layer.input_gradient = False
    if isinstance(layer, (L.Chain, Graph)):
        layer.skip_input_gradient()
    run(layer, x, dy, row.training)
    for path, gradient in grads(store).items():
        assert np.array_equal(gradient, kept[path]), path


def test_a_gradient_that_nobody_needs_is_not_computed() -> None:
    for layer in (
        L.Dense(3, "relu"),
        L.Chain(L.Flatten(), L.Dense(3), L.Dense(2)),
        L.Residual(L.Dense(4)),
    ):
        prepare(layer, (4,))
        if isinstance(layer, L.Chain):
            layer.skip_input_gradient()
        layer.input_gradient = False
        y = layer.forward(np.ones((2, 4)), True)
        assert layer.backward(np.ones_like(y)) is None


@table
def test_done_reports_every_layer_with_weights(row: Row) -> None:
    layer, store = row.build()
    x = row.sample(2)
    row.mask(layer, 2)
    y = layer.forward(x, row.training)
    reported: list[Layer] = []
    layer.backward(each(np.ones_like, y), reported.append)
    if isinstance(layer, Graph):  # some of its layers are reported as a whole
        inside = (x for part in reported for _, x in part.walk())
        reported = list({id(x): x for x in inside}.values())
    reports = [p.path for part in [*reported, layer] for p in part.own_parameters()]
    users = {p.path: p.users for p in store.parameters}
    assert {path: reports.count(path) for path in users} == users


BIG = [
    *(
        (name, lambda name=name, options=options: getattr(L, name)(**options), s, KEY)
        for name, options, s in (
            ("BatchNormalization", {}, (32, 32, 16)),
            ("GroupNormalization", {"groups": 4}, (32, 32, 16)),
            ("LayerNormalization", {"axis": [1, 2]}, (32, 32, 16)),
            ("UnitNormalization", {}, (32, 32, 16)),
            ("ReLU", {"max_value": 1.0, "negative_slope": 0.1}, (32, 32, 16)),
            ("PReLU", {"shared_axes": [1, 2]}, (32, 32, 16)),
            ("ELU", {}, (32, 32, 16)),
            ("Softmax", {}, (32, 32, 16)),
            ("AlphaDropout", {"rate": 0.2}, (32, 32, 16)),
            ("GaussianNoise", {"stddev": 0.2}, (32, 32, 16)),
            ("Rescaling", {"scale": 0.2}, (32, 32, 16)),
            ("Resizing", {"height": 32, "width": 24}, (32, 32, 16)),
            ("RandomFlip", {}, (32, 32, 16)),
        )
    ),
    *(
        (
            kind,
            lambda kind=kind: getattr(L, kind)(64, return_sequences=True),
            (300, 64),
            KEY,
        )
        for kind in ("SimpleRNN", "LSTM", "GRU")
    ),
    (
        "bidirectional",
        lambda: L.Bidirectional(L.LSTM(64, return_sequences=True)),
        (300, 64),
        KEY,
    ),
    ("block", lambda: L.TransformerBlock(4, causal=True), (128, 64), KEY),
    ("dropout", lambda: L.TransformerBlock(4, dropout=0.1), (128, 64), KEY),
    ("llama", llama(4, num_kv_heads=2, rope_theta=50.0), (128, 64), KEY),
    *(
        (name, lambda name=name: L.Dense(256, name), (300, 64), KEY)
        for name in activations.NAMED
    ),
    *(
        (name, make, shape, KEY)
        for name, make, shape in (
            ("conv", lambda: L.Conv2D(32, 3, 2, activation="gelu"), (33, 32, 16)),
            ("conv winograd", lambda: L.Conv2D(40, 3, padding="same"), (33, 32, 32)),
            ("conv 1 channel", lambda: L.Conv2D(32, 3), (33, 32, 1)),
            ("depthwise", lambda: L.DepthwiseConv2D(3, 1, "same"), (33, 32, 32)),
            ("depthwise strides", lambda: L.DepthwiseConv2D(3, 2), (65, 64, 16)),
            ("separable", lambda: L.SeparableConv2D(32, 3), (33, 32, 32)),
            ("transpose", lambda: L.Conv2DTranspose(32, 3, 2, "same"), (17, 16, 32)),
            ("max pooling", lambda: L.MaxPooling2D(), (65, 64, 32)),
            ("max pooling same", lambda: L.MaxPooling2D(3, 2, "same"), (65, 64, 32)),
            ("average pooling", lambda: L.AveragePooling2D(), (65, 64, 32)),
            ("global average", lambda: L.GlobalAveragePooling2D(), (65, 64, 32)),
            ("global max", lambda: L.GlobalMaxPooling2D(), (65, 64, 32)),
            ("up sampling", lambda: L.UpSampling2D(), (33, 32, 32)),
            (
                "bilinear",
                lambda: L.UpSampling2D(2, interpolation="bilinear"),
                (33, 32, 32),
            ),
            ("zero padding", lambda: L.ZeroPadding2D(), (33, 32, 32)),
            ("cropping", lambda: L.Cropping2D(1), (33, 32, 32)),
            ("permute", lambda: L.Permute((2, 1)), (300, 128)),
        )
    ),
]


@pytest.mark.parametrize(
    ("make", "shape", "training"), [b[1:] for b in BIG], ids=[b[0] for b in BIG]
)
def test_nothing_large_is_allocated(
    make: Callable[[], Layer], shape: tuple[int, ...], training: Training
) -> None:
    layer = make()
    layer.build_once(shape)
    ParameterStore(layer)
    layer.bind(Memory(), np.dtype(np.float32))
    x = np.random.default_rng(0).standard_normal((4, *shape)).astype(np.float32)
    dy = np.zeros_like(layer.forward(x, training))
    layer.backward(dy)
    for _ in range(2):
        tracemalloc.start()
        layer.forward(x, training)
        layer.backward(dy)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # one of the layer's arrays would be 131 kB at least; NumPy's own buffers for an
    # operation on three strided arrays are 98
    assert peak < 120_000


def test_poison_reaches_kept_memory() -> None:
    layer = L.Dense(3)
    prepare(layer, (2,))
    y = layer.forward(np.ones((1, 2)))
    poison(layer)
    assert np.isnan(y).all()
