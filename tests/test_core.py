"""Memory, ParameterStore, initializers, random numbers, and the Layer base class."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import numpy as np
import pytest

from fastserve import layers
from fastserve.core import (
    Layer,
    Memory,
    Parameter,
    ParameterStore,
    StepKey,
    generator,
    initializers,
    without_initial_values,
)
from fastserve.errors import (
    ArgumentError,
    FastserveError,
    ShapeError,
    StateError,
    UnknownNameError,
)

# -- Memory --------------------------------------------------------------------------


def address(array: np.ndarray[Any, Any]) -> int:
    return int(array.ctypes.data)


@pytest.mark.parametrize("shape", [(3, 4), (), (0, 5), (1000,)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.bool_])
def test_take_gives_what_was_asked_for(shape: tuple[int, ...], dtype: Any) -> None:
    array = Memory().take(shape, dtype)
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert address(array) % 64 == 0
    array.fill(1)
    assert array.sum() == array.size


def test_what_is_dropped_is_used_again() -> None:
    memory = Memory()
    first = memory.take((100,), np.float32)
    place = address(first)
    held = first[10:20].reshape(2, 5)  # a view keeps the memory
    del first
    other = memory.take((100,), np.float32)
    assert address(other) != place
    del held
    assert address(memory.take((100,), np.float32)) == place
    assert memory.allocated == 2 * 400


def test_arrays_in_use_do_not_overlap() -> None:
    memory = Memory()
    rng = np.random.default_rng(0)
    held: list[tuple[np.ndarray[Any, Any], int]] = []
    for number in range(400):
        if held and rng.random() < 0.5:
            array, value = held.pop(rng.integers(len(held)))
            assert (array == value).all()
            del array
        array = memory.take((int(rng.integers(1, 300)),), np.int64)
        array.fill(number)
        held.append((array, number))
    assert all((array == value).all() for array, value in held)


def test_the_smallest_block_that_fits_serves() -> None:
    memory = Memory()
    blocks = [memory.take((n,), np.uint8) for n in (4000, 1000, 1500)]
    places = [address(block) for block in blocks]
    del blocks
    assert address(memory.take((900,), np.uint8)) == places[1]
    allocated = memory.allocated
    small = memory.take((100,), np.uint8)  # all others are more than twice as large
    assert address(small) not in places
    assert memory.allocated == allocated + 100


def test_no_growth_after_the_first_round() -> None:
    memory = Memory()

    def round_of_work() -> None:
        x = memory.take((64, 1000), np.float32)
        for width in (500, 2000, 1000):
            x = memory.take((64, width), np.float32)
            x.fill(0)

    round_of_work()
    allocated = memory.allocated
    gc.collect()
    tracemalloc.start()
    for _ in range(20):
        round_of_work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert memory.allocated == allocated
    assert peak < 10_000


def test_poison() -> None:
    memory = Memory(poison=True)
    assert np.isnan(memory.take((5,), np.float32)).all()
    assert memory.take((5,), np.int32).shape == (5,)


# -- ParameterStore -------------------------------------------------------------------


def model() -> layers.Chain:
    table = layers.Embedding(11, 6, name="tokens")
    return layers.Chain(
        table,
        layers.PositionEmbedding(8, name="positions"),
        layers.TransformerBlock(2, name="block"),
        layers.LayerNormalization(name="norm"),
        layers.TiedHead(table, name="head"),
    )


def store_of(
    layer: Layer, shape: tuple[int, ...] = (8,), **kwargs: Any
) -> ParameterStore:
    layer.build_once(shape)
    return ParameterStore(layer, **kwargs)


def in_order_of_execution(layer: Layer) -> list[Parameter]:
    return list(dict.fromkeys(layer.parameters()))


@pytest.mark.parametrize("bucket_bytes", [1, 300, 1000, 1 << 20])
def test_layout(bucket_bytes: int) -> None:
    root = model()
    store = store_of(root, bucket_bytes=bucket_bytes)
    order = {p.path: i for i, p in enumerate(in_order_of_execution(root))}
    assert store.buckets[0].start == 0
    assert store.buckets[-1].stop == store.grads.size == store.values.size
    for bucket, following in zip(store.buckets, store.buckets[1:], strict=False):
        assert bucket.stop == following.start
    earliest = len(order)
    for i, bucket in enumerate(store.buckets):
        group = store.parameters_of_bucket(i)
        places = [order[p.path] for p in group]
        # what backward completes first is in the first bucket
        assert max(places) == earliest - 1
        earliest = min(places)
        assert sorted(places) == list(range(earliest, max(places) + 1))
        for p in group:
            start = store.offsets[p.path]
            assert bucket.start <= start
            assert start + p.size <= bucket.stop
        assert [p.decay for p in group] == sorted(
            (p.decay for p in group), reverse=True
        )
        # a bucket closes as soon as it is full
        last = next(p for p in group if order[p.path] == earliest)
        assert sum(p.size * 4 for p in group if p is not last) < bucket_bytes
    assert earliest == 0
    if bucket_bytes in (1, 1 << 20):
        assert len(store.buckets) == (len(order) if bucket_bytes == 1 else 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parameters_are_aligned_views(dtype: Any) -> None:
    store = store_of(model(), dtype=dtype, bucket_bytes=500)
    store.values.fill(0)
    for i, p in enumerate(store.parameters, 1):
        assert p.value.dtype == p.grad.dtype == dtype
        assert address(p.value) % 64 == address(p.grad) % 64 == 0
        p.value.fill(i)
        p.grad.fill(-i)
    covered = np.zeros(store.values.size, bool)
    for i, p in enumerate(store.parameters, 1):
        start = store.offsets[p.path]
        place = slice(start, start + p.size)
        assert (store.values[place] == i).all()
        assert (store.grads[place] == -i).all()
        assert not covered[place].any()
        covered[place] = True
        assert store.at(start) is store.at(start + p.size - 1) is p
        assert np.shares_memory(store.view(store.values, p), p.value)
    assert covered.sum() == store.count
    assert not store.values[~covered].any()
    assert not store.grads[~covered].any()


@pytest.mark.parametrize("bucket_bytes", [200, 1 << 20])
def test_decayed_slices_are_the_matrices(bucket_bytes: int) -> None:
    store = store_of(model(), bucket_bytes=bucket_bytes)
    marked = np.zeros(store.values.size, bool)
    for part in store.decayed:
        marked[part] = True
    for p in store.parameters:
        inside = store.view(marked, p)
        assert inside.all() if len(p.shape) >= 2 else not inside.any()
    if bucket_bytes == 1 << 20:
        assert len(store.decayed) == 1


def test_weights_that_will_be_loaded_are_not_drawn() -> None:
    with without_initial_values():
        empty = layers.Dense(3, input_shape=(2,))
        empty.build_once((2,))
        assert not ParameterStore(empty).values.any()
    drawn = layers.Dense(3, input_shape=(2,))
    drawn.build_once((2,))
    assert ParameterStore(drawn).values.any()


def test_a_tied_parameter_counts_once() -> None:
    root = model()
    store = store_of(root)
    tied = [p for p in store.parameters if p.path == "tokens.embeddings"]
    assert len(tied) == 1
    assert tied[0].users == 2
    head, table = root.layers[-1], root.layers[0]
    assert isinstance(head, layers.TiedHead)
    assert isinstance(table, layers.Embedding)
    assert head.table is table.embeddings
    attention = 4 * 6 * 6 + 4 * 6
    mlp = 2 * 4 * 6 * 6 + 5 * 6
    assert store.count == 11 * 6 + 8 * 6 + 2 * 2 * 6 + attention + mlp + 2 * 6


def test_values_follow_from_seed_and_path() -> None:
    one, other = store_of(model(), seed=3), store_of(model(), seed=3, bucket_bytes=1)
    values = {p.path: p.value for p in one.parameters}
    for p in other.parameters:
        assert np.array_equal(p.value, values[p.path]), p.path
    assert not np.array_equal(store_of(model(), seed=4).values, one.values)
    # float64 holds the same numbers
    double = store_of(model(), seed=3, dtype=np.float64)
    for p in double.parameters:
        np.testing.assert_allclose(p.value, values[p.path], rtol=1e-7)


def test_a_layer_in_front_does_not_change_the_others() -> None:
    short = store_of(layers.Chain(layers.Dense(4, name="last")), (3,))
    long = store_of(
        layers.Chain(layers.Dense(3, name="first"), layers.Dense(4, name="last")), (3,)
    )
    values = {p.path: p.value for p in long.parameters}
    for p in short.parameters:
        assert np.array_equal(p.value, values[p.path])


def test_no_parameters() -> None:
    store = store_of(layers.Chain(layers.Flatten()), (2, 3))
    assert (store.count, store.buckets, store.decayed) == (0, [], [])
    assert store.values.size == 0


def test_assign() -> None:
    store = store_of(layers.Dense(2), (3,))
    kernel = next(p for p in store.parameters if p.name == "kernel")
    kernel.assign(np.ones((3, 2)))
    assert (kernel.value == 1).all()
    with pytest.raises(
        ShapeError, match=r"kernel: expected an array of shape \(3, 2\)"
    ):
        kernel.assign(np.ones((2, 3)))


def test_parameters_without_a_store_say_so() -> None:
    layer = layers.Dense(2)
    layer.build_once((3,))
    for attribute in ("value", "grad"):
        with pytest.raises(StateError, match="without a ParameterStore"):
            getattr(layer.kernel, attribute)
    with pytest.raises(ArgumentError, match="bucket_bytes"):
        ParameterStore(layer, bucket_bytes=0)


# -- initializers ---------------------------------------------------------------------

SHAPE = (300, 200)
MOMENTS = {
    "zeros": (0, 0, (0, 0)),
    "ones": (1, 0, (1, 1)),
    "random_normal": (0, 0.05, None),
    "random_uniform": (0, 0.05 / np.sqrt(3), (-0.05, 0.05)),
    "truncated_normal": (0, 0.05 * 0.8796, (-0.1, 0.1)),
    "glorot_uniform": (0, np.sqrt(2 / 500), (-np.sqrt(6 / 500), np.sqrt(6 / 500))),
    "glorot_normal": (0, np.sqrt(2 / 500), None),
    "he_uniform": (0, np.sqrt(2 / 300), (-np.sqrt(6 / 300), np.sqrt(6 / 300))),
    "he_normal": (0, np.sqrt(2 / 300), None),
    "lecun_uniform": (0, np.sqrt(1 / 300), (-np.sqrt(3 / 300), np.sqrt(3 / 300))),
    "lecun_normal": (0, np.sqrt(1 / 300), None),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_moments_and_bounds(name: str) -> None:
    mean, deviation, bounds = MOMENTS[name]
    made = initializers.get(name)(SHAPE, generator(0, name))
    values = np.broadcast_to(np.asarray(made, np.float32), SHAPE)
    assert values.mean() == pytest.approx(mean, abs=4 * deviation / 245)
    assert values.std() == pytest.approx(deviation, rel=0.015)
    if bounds is not None:
        low, high = np.float32(bounds[0]), np.float32(bounds[1])
        assert values.min() >= low
        assert values.max() <= high
        assert values.min() == pytest.approx(low, rel=0.01)
    if name.endswith("_normal") and name != "random_normal":
        assert np.abs(values).max() < 2.3 * deviation  # two of the uncut deviations


def test_other_initializers() -> None:
    rng = generator(0)
    for shape in ((6, 4), (4, 6), (3, 2, 5)):
        q = initializers.Orthogonal(2.0)(shape, rng).reshape(-1, shape[-1])
        product = q @ q.T if len(q) < q.shape[1] else q.T @ q
        np.testing.assert_allclose(product, 4 * np.eye(len(product)), atol=1e-5)
    assert np.array_equal(initializers.Identity()((3, 4), rng), np.eye(3, 4))
    assert initializers.Constant(0.5)((2,), rng) == 0.5
    untruncated = initializers.VarianceScaling(1, "fan_out", "untruncated_normal")
    assert untruncated(SHAPE, rng).std() == pytest.approx(np.sqrt(1 / 200), rel=0.02)
    assert np.abs(untruncated(SHAPE, rng)).max() > 3 * np.sqrt(1 / 200)


@pytest.mark.parametrize(
    ("shape", "fans"), [((3, 4), (3, 4)), ((5, 2, 3, 4), (30, 40)), ((7,), (7, 7))]
)
def test_fans(shape: tuple[int, ...], fans: tuple[int, int]) -> None:
    assert initializers.fans(shape) == fans


@pytest.mark.parametrize("name", sorted(initializers._NAMED))
def test_initializers_depend_on_the_path_alone(name: str) -> None:
    made = initializers.get(name)
    first = made((6, 5), generator(1, "init", "0.kernel"))
    made((9, 9), generator(1, "init", "1.kernel"))
    assert np.array_equal(made((6, 5), generator(1, "init", "0.kernel")), first)
    fixed = (initializers.Constant, initializers.Identity)
    if not isinstance(made, fixed):
        assert np.asarray(first).dtype == np.float32
        assert not np.array_equal(made((6, 5), generator(1, "init", "2")), first)


@pytest.mark.parametrize(
    "name",
    ["RandomNormal", "RandomUniform", "TruncatedNormal", "HeNormal", "Orthogonal"],
)
def test_a_seed_of_its_own(name: str) -> None:
    made = initializers.get({name: {"seed": 3}})
    first = made((6, 5), generator(0, "a"))
    assert np.array_equal(made((6, 5), generator(1, "b")), first)
    other = getattr(initializers, name)(seed=4)
    assert not np.array_equal(other((6, 5), generator(0, "a")), first)


def test_initializers_by_class_and_alias() -> None:
    assert initializers.get("normal") == initializers.RandomNormal()
    assert initializers.get("GlorotUniform") == initializers.GlorotUniform()
    assert initializers.get(initializers.HeUniform) == initializers.HeUniform()  # type: ignore[arg-type]
    keras = {"class_name": "Constant", "config": {"value": 2.0}}
    assert initializers.get(keras) == initializers.Constant(2.0)
    normal = initializers.VarianceScaling(2.0, "fan_out", "normal")
    assert normal.distribution == "truncated_normal"
    with pytest.raises(ArgumentError, match="HeNormal: expected arguments") as error:
        initializers.get({"HeNormal": {"scale": 3}})
    three_parts(error.value)


def test_initializer_errors() -> None:
    own = initializers.RandomNormal(0, 1)
    assert initializers.get(own) is own
    with pytest.raises(UnknownNameError, match="did you mean 'he_normal'"):
        initializers.get("he_norml")
    with pytest.raises(UnknownNameError, match="fan_avg"):
        initializers.VarianceScaling(1, "fan_sum")
    with pytest.raises(ArgumentError, match="scale above 0") as error:
        initializers.VarianceScaling(0)
    three_parts(error.value)
    with pytest.raises(ArgumentError, match="two axes"):
        initializers.Orthogonal()((3,), generator(0))
    with pytest.raises(ArgumentError, match="two axes"):
        initializers.Identity()((3, 3, 3), generator(0))


# -- random numbers -------------------------------------------------------------------


def test_generator_is_a_function_of_its_arguments() -> None:
    first = generator(1, "order", 2).random(4)
    assert np.array_equal(generator(1, "order", 2).random(4), first)
    for other in (
        (2, "order", 2),
        (1, "other", 2),
        (1, "order", 3),
        (1, "order"),
        (1,),
    ):
        assert not np.array_equal(generator(*other).random(4), first)


def test_generator_gives_these_numbers() -> None:
    """Fixed for ever: runs and checkpoints of other versions depend on them."""
    assert generator(0, "init", "kernel").integers(0, 1000, 5).tolist() == [
        585,
        147,
        133,
        55,
        372,
    ]


def test_step_key_is_true_and_fixed() -> None:
    assert bool(StepKey())
    with pytest.raises(AttributeError):
        StepKey().step = 3  # type: ignore[misc]


# -- Layer ----------------------------------------------------------------------------


def test_kept_buffers() -> None:
    layer = layers.Dense(2)
    first = layer.buffer("a", (4, 5))
    assert layer.buffer("a", (4, 5)) is first
    assert layer.buffer("b", (4, 5)) is not first
    small = layer.buffer("a", (2, 5))
    assert np.shares_memory(small, first)
    assert np.shares_memory(layer.buffer("a", (4, 5)), first)
    assert not np.shares_memory(layer.buffer("a", (5, 5)), first)
    assert layer.buffer("a", (4, 5), np.int32).dtype == np.int32


def test_built_once_and_for_one_shape() -> None:
    layer = layers.Dense(2)
    assert layer.build_once((3,)) == layer.build_once((3,)) == (2,)
    kernel = layer.kernel
    assert layer.build_once((None,)) == (2,)
    assert layer.kernel is kernel
    for shape in ((4,), (3, 3)):
        with pytest.raises(ShapeError, match=r"shape \(3,\) \(besides") as error:
            layer.build_once(shape)
        assert error.value.received == f"shape {shape}"
        assert error.value.todo


def test_a_declared_shape_is_held() -> None:
    chain = layers.Chain(layers.Dense(3), layers.Dense(2, input_shape=(4,)))
    with pytest.raises(ShapeError, match=r"input of shape \(4,\)"):
        chain.build_once((5,))
    variable = layers.TransformerBlock(2, input_shape=(None, 6))
    assert variable.build_once((9, 6)) == (9, 6)


def test_paths_are_places_in_the_tree() -> None:
    root = model()
    root.build_once((8,))
    root.bind(Memory(), np.dtype(np.float32))
    paths = [path for path, _ in root.walk()]
    assert paths[:3] == ["", "tokens", "positions"]
    assert "block.attention.heads.qkv" in paths
    assert all(layer.path == path for path, layer in root.walk())


@pytest.mark.parametrize("name", ["", "a.b", "a/b"])
def test_names_that_are_not_paths(name: str) -> None:
    with pytest.raises(ArgumentError, match="layer name"):
        layers.Dense(2, name=name)


def test_layers_of_the_same_name_or_twice() -> None:
    with pytest.raises(ArgumentError, match="different names"):
        layers.Chain(layers.Dense(2, name="a"), layers.Dense(2, name="a"))
    layer = layers.Dense(2)
    with pytest.raises(ArgumentError, match="each layer once"):
        layers.Chain(layer, layer)


def test_a_subclass_has_to_write_its_methods() -> None:
    layer = Layer()
    for call in (
        lambda: layer.forward(np.ones(1)),
        lambda: layer.backward(np.ones(1)),
        lambda: layer.logits(),
        lambda: layer.backward_logits(np.ones(1)),
    ):
        with pytest.raises(NotImplementedError, match="Layer"):
            call()


L = layers
BUILD_ERRORS = [
    (lambda: L.Dense(3), (None,), "known last axis"),
    (lambda: L.Dense(3), (), "known last axis"),
    (lambda: L.LayerNormalization(), (None,), "known last axis"),
    (lambda: L.PositionEmbedding(4), (6,), "2 axes"),
    (lambda: L.MultiHeadAttention(2), (6,), "2 axes"),
    (lambda: L.MultiHeadAttention(4), (5, 6), "4 heads divide"),
    (lambda: L.TransformerBlock(4), (5, 6), "4 heads divide"),
    (lambda: L.TransformerBlock(2), (6,), "2 axes"),
    (lambda: L.Flatten(), (None, 3), "known axes"),
    (lambda: L.Reshape((3, 3)), (2, 4), "target of 8 elements"),
    (lambda: L.Reshape((3, -1)), (2, 4), "target of 8 elements"),
]
ARGUMENT_ERRORS = [
    (lambda: L.Dense(0), "units"),
    (lambda: L.Dense(2.5), "units"),  # type: ignore[arg-type]
    (lambda: L.Dense(True), "units"),
    (lambda: L.Dense(3, "reluu"), "activation"),
    (lambda: L.Dense(3, kernel_initializer="norml"), "initializer"),
    (lambda: L.Activation("reluu"), "activation"),
    (lambda: L.Dropout(1.0), "rate"),
    (lambda: L.Dropout(-0.1), "rate"),
    (lambda: L.Embedding(0, 3), "input_dim"),
    (lambda: L.Embedding(3, -1), "output_dim"),
    (lambda: L.PositionEmbedding(0), "length"),
    (lambda: L.LayerNormalization(epsilon=0), "epsilon"),
    (lambda: L.MultiHeadAttention(0), "num_heads"),
    (lambda: L.MultiHeadAttention(2, 0), "key_dim"),
    (lambda: L.MultiHeadAttention(2, dropout=2), "rate"),
    (lambda: L.Reshape((-1, -1)), "at most one"),
    (lambda: L.Reshape((0, 3)), "1 or more"),
]
RUN_ERRORS = [
    (lambda: L.Embedding(5, 3), (4,), np.ones((2, 4)), "expected integers"),
    (lambda: L.Embedding(5, 3), (4,), np.array([[0, 1, 5, 2]]), "5 at (0, 2)"),
    (lambda: L.Embedding(5, 3), (4,), np.array([[0, 1, -1, 2]]), "-1 at (0, 2)"),
    (lambda: L.PositionEmbedding(3), (None, 2), np.ones((1, 4, 2)), "3 positions"),
]


def three_parts(error: FastserveError) -> None:
    assert "expected" in error.expected
    assert error.received
    assert error.todo
    assert f"received: {error.received}\n  to do: {error.todo}" in str(error)


@pytest.mark.parametrize(("make", "shape", "words"), BUILD_ERRORS)
def test_shapes_that_do_not_fit(make: Any, shape: Any, words: str) -> None:
    with pytest.raises(ShapeError, match=words) as error:
        make().build_once(shape)
    three_parts(error.value)


@pytest.mark.parametrize(("make", "words"), ARGUMENT_ERRORS)
def test_arguments_out_of_range(make: Any, words: str) -> None:
    with pytest.raises((ArgumentError, UnknownNameError), match=words) as error:
        make()
    three_parts(error.value)


@pytest.mark.parametrize(("make", "shape", "x", "words"), RUN_ERRORS)
def test_inputs_that_do_not_fit(make: Any, shape: Any, x: Any, words: str) -> None:
    layer = make()
    store_of(layer, shape)
    with pytest.raises(FastserveError) as error:
        layer.forward(x)
    assert words in str(error.value)
    three_parts(error.value)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: L.Dense(3), (2,)),
        (lambda: L.Dense(3, "relu"), (2,)),
        (lambda: L.Activation("gelu"), (2,)),
        (lambda: L.Embedding(5, 3), (2,)),
        (lambda: L.LayerNormalization(), (2,)),
        (lambda: L.MultiHeadAttention(1), (3, 2)),
        (lambda: L.Flatten(), (2, 2)),
        (lambda: L.Reshape((4,)), (2, 2)),
        (lambda: L.Dense(3, "softmax"), (2,)),
    ],
)
def test_backward_before_forward(make: Any, shape: tuple[int, ...]) -> None:
    layer = make()
    store_of(layer, shape)
    dy = np.ones((1, *layer.output_shape), np.float32)
    with pytest.raises(StateError, match="expected forward before backward") as error:
        layer.backward(dy)
    three_parts(error.value)
