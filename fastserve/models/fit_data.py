"""What ``fit``, ``evaluate`` and ``predict`` are given, as sources and shares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fastserve.comm import world
from fastserve.core import Array
from fastserve.data.prefetch import Share, shares
from fastserve.data.sampler import Sampler, share
from fastserve.data.sources import ArraySource, Batch, Source, numeric
from fastserve.data.streams import OPEN, Stream, as_stream
from fastserve.errors import ArgumentError, DataError
from fastserve.layers.graph import Graph, flatten
from fastserve.models.compiled import check_targets, single
from fastserve.models.inputs_outputs import arrays_for, each, for_each
from fastserve.training.predict import slices

if TYPE_CHECKING:
    from fastserve.models.model import Model


def inputs_of(model: Model, x: Any) -> Any:
    """Return inputs as an array, or as a tuple of arrays if there are several."""
    if model._traced and not model.root.built:
        several = isinstance(x, (list, tuple, dict)) and all(
            isinstance(array, np.ndarray) for array in flatten(x)
        )
        model.build(each(lambda a: a.shape[1:], x if several else np.asarray(x)))
    if isinstance(model.root, Graph):
        x = arrays_for("x", x, model.root.input_names)
    elif isinstance(x, (list, tuple)) and len(x) == 1 and isinstance(x[0], np.ndarray):
        known = model.known_input_shape  # a list of one input, or of one sample
        if known is not None and x[0].ndim == len(known) + 1:
            x = x[0]
    if model.known_input_shape == (1,) and np.ndim(x) == 1:  # as Keras does
        return np.asarray(x)[:, None]
    return x


def numbers_of(model: Model, x: Any) -> Any:
    """Return inputs as above, of numbers that are all finite."""
    arrays = inputs_of(model, x)
    if isinstance(arrays, tuple):
        return tuple(numeric(f"x[{i}]", array) for i, array in enumerate(arrays))
    return numeric("x", arrays, model.root.takes_strings)


def targets_of(model: Model, y: Any, weights: Any) -> tuple[Any, Any]:
    """Return targets and weights as arrays, or as tuples for several outputs."""
    if not isinstance(model.root, Graph):
        return y, weights
    names = model.root.output_names
    given = for_each("loss", model.loss, names)
    y = arrays_for("targets y", y, names, [loss is None for loss in given])
    if len(names) == 1:
        return y, None if weights is None else arrays_for("weights", weights, names)
    if isinstance(weights, (list, tuple, dict)):
        some = [True] * len(names)
        weights = arrays_for("sample_weight", weights, names, some)
    elif weights is not None:
        weights = (weights,) * len(names)
    return y, weights


def _arrange_parts(model: Model, x: Any, y: Any, weights: Any) -> tuple[Any, Any, Any]:
    """Return what a generator gives in the order of the inputs and outputs."""
    if not isinstance(model.root, Graph):
        return x, y, weights
    if y is not None:
        y, weights = targets_of(model, y, weights)
    return inputs_of(model, x), y, weights


def source_of(
    model: Model,
    verb: str,
    x: Any,
    y: Any,
    weights: Any = None,
    shuffle: bool = False,
) -> Source:
    """Return the data as a source whose targets fit the loss and the output."""
    if isinstance(x, Source):
        if y is not None or weights is not None:
            raise ArgumentError(
                f"{verb}: expected no y and sample_weight beside a source",
                "both",
                "put them into the source",
            )
        return x
    model._compiled(verb)
    stream = None if y is not None else as_stream(x, shuffle, model.seed)
    if stream is not None:
        if weights is not None:
            raise ArgumentError(
                f"{verb}: expected no sample_weight beside a generator",
                "both",
                "let it yield (x, y, sample_weight)",
            )
        _fit_stream(model, stream)
        check_source(model, stream)
        stream.transform = partial(_checked, model)
        return stream
    if y is None:
        raise DataError(f"{verb}: expected targets y", "None", f"{verb}(x, y)")
    x = inputs_of(model, x)
    y, weights = targets_of(model, y, weights)
    source = ArraySource(x, y, weights, model.root.takes_strings)
    check_source(model, source)
    return source


def _fit_stream(model: Model, stream: Stream) -> None:
    stream.arrange = partial(_arrange_parts, model)
    stream.strings = model.root.takes_strings


def check_source(model: Model, source: Source) -> None:
    """See ``Model.check_source``."""
    rows = np.zeros(1, np.int64)
    sample = source.batch(rows, rows)
    model._build_for(sample.x)
    targets = source.y if isinstance(source, ArraySource) else sample.y
    check_targets(model, targets, sample)


def _checked(model: Model, batch: Batch) -> Batch:
    """Return a stream's batch; raise ShapeError or DataError unless it fits."""
    model._build_for(batch.x)
    check_targets(model, batch.y, batch)
    return batch


def split(
    model: Model, x: Any, y: Any, weights: Any, validation_split: float, shuffle: bool
) -> tuple[Source, Source | None]:
    if not 0 <= validation_split < 1:
        raise ArgumentError(
            "fit: expected validation_split from 0 up to below 1",
            f"{validation_split}",
            "give the share that is held out, for example 0.2",
        )
    source = source_of(model, "fit", x, y, weights, shuffle)
    if validation_split == 0:
        return source, None
    if not isinstance(source, ArraySource):
        raise ArgumentError(
            "fit: expected validation_split with arrays alone",
            type(source).__name__,
            "give validation_data",
        )
    cut = int(source.samples * (1 - validation_split))
    if cut in (0, source.samples):
        raise DataError(
            "fit: expected rows on both sides of validation_split",
            f"{source.samples} rows, split {validation_split}",
            "change validation_split, or add data",
        )
    return source.rows(slice(cut)), source.rows(slice(cut, None))


def weigh_classes(model: Model, source: Source, class_weight: Any) -> Source:
    """Return the source with each label's weight times that of its class."""
    if isinstance(source, Stream) and isinstance(class_weight, Mapping):
        check = source.transform

        def weigh(batch: Batch) -> Batch:
            batch = check(batch)
            weights = _weighed(model, batch.y, batch.weights, class_weight)
            return batch._replace(weights=weights)

        source.transform = weigh
        return source
    if not isinstance(source, ArraySource) or not isinstance(class_weight, Mapping):
        raise ArgumentError(
            "expected class_weight as a dict, with arrays",
            f"{type(class_weight).__name__}, {type(source).__name__}",
        )
    weights = _weighed(model, source.y, source.weights, class_weight)
    return ArraySource(source.x, source.y, weights, source.strings)


def _weighed(
    model: Model, y: Any, given: Any, class_weight: Mapping[int, float]
) -> Array:
    """Return the weights of samples, or labels, times those of their classes."""
    wrong = [k for k in class_weight if not isinstance(k, (int, float, np.number))]
    if wrong:
        raise ArgumentError(
            "expected class_weight's keys to be numbers of classes",
            f"{wrong[0]!r}",
            "give the classes as y has them, for example {0: 1.0, 1: 5.0}",
        )
    if isinstance(y, tuple):
        raise ArgumentError(
            "expected class_weight for a model with a single output",
            f"{len(y)} outputs",
            "use sample_weight, a list or dict of arrays for the outputs",
        )
    loss = single(model, model.loss)
    if loss.fused_loss == "sigmoid" and y.ndim > 1 and y.shape[-1] > 1:
        raise DataError(
            "class_weight: expected one class for each sample",
            f"targets of shape {y.shape} for {loss.name}",
            "use sample_weight",
        )
    one_hot = not loss.targets.sparse and y.ndim > 1 and y.shape[-1] > 1
    classes = y.argmax(axis=-1) if one_hot else y
    if classes.ndim == 2 and classes.shape[1] == 1:
        classes = classes.reshape(-1)
    weights: Array = np.ones(classes.shape, np.float32)
    for label, weight in class_weight.items():
        weights[classes == label] = weight
    if given is None:
        return weights
    if given.ndim < weights.ndim:
        given = given.reshape(*given.shape, *[1] * (weights.ndim - given.ndim))
    return weights * given


def validation_of(model: Model, data: Any, held_out: Source | None) -> Source | None:
    if data is None:
        return held_out
    if isinstance(data, Source) or as_stream(data) is not None:
        return source_of(model, "validation_data", data, None)
    if not isinstance(data, (tuple, list)) or len(data) not in (2, 3):
        raise ArgumentError(
            "fit: expected validation_data (x, y) or (x, y, sample_weight), or batches",
            type(data).__name__,
            "put inputs and targets into a tuple",
        )
    return source_of(model, "validation_data", *data)


def shares_of(
    model: Model, x: Any, batch_size: int
) -> tuple[Stream | None, Iterator[Share], int | None]:
    """Return the stream they come from, this rank's rows of each batch, and the
    number of batches, if it is known."""
    comm = world()

    def rows_of(total: int, full: int) -> slice:
        return share(total, comm.rank, comm.size)

    stream = as_stream(x, targets=False)
    if stream is not None:
        _fit_stream(model, stream)
        model._build_for(stream.example.x)

        def check(batch: Batch) -> Batch:
            model._build_for(batch.x)
            return batch

        stream.transform = check
        steps = OPEN if stream.batches is None else range(stream.batches)
        return stream, stream.shares(steps, rows_of), stream.batches
    if isinstance(x, Source):
        order = Sampler(x.samples, batch_size, 0, shuffle=False, wrap=False)
        rows = np.zeros(1, np.int64)
        model._build_for(x.batch(rows, rows).x)
        made = order.steps_per_epoch
        return None, shares(x, order, range(made), rows_of), made
    inputs = numbers_of(model, x)
    model._build_for(inputs)
    samples = {len(array) for array in flatten(inputs)}
    if len(samples) > 1:
        raise DataError(
            "expected as many rows in all inputs",
            ", ".join(str(len(array)) for array in inputs),
        )
    order = Sampler(samples.pop(), batch_size, 0, shuffle=False, wrap=False)
    return None, slices(inputs, order.batch, comm), order.steps_per_epoch
