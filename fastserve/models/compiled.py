"""What ``compile`` was told, for each output: losses, metrics, and their trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastserve import losses
from fastserve import metrics as metric_names
from fastserve.comm import world
from fastserve.data.sources import Batch
from fastserve.errors import ArgumentError, UnknownNameError
from fastserve.layers.graph import Graph, flatten
from fastserve.metrics import Metric
from fastserve.models.inputs_outputs import for_each, metrics_for_each
from fastserve.models.last_activation import check_activation
from fastserve.optimizers import Optimizer
from fastserve.training.several_outputs import Output, OutputsTrainer
from fastserve.training.step import Trainer

if TYPE_CHECKING:
    from fastserve.models.model import Model


def make_trainer(model: Model, sample: Batch, optimizer: Optimizer) -> Trainer:
    """Return the trainer for batches like ``sample``."""
    options = model.options
    if options.bucket_bytes != model.store.bucket_bytes:
        model.store.regroup(options.bucket_bytes)
    if not options.shard_optimizer:
        optimizer.bind(model.store)
    rest = (world(), model.seed, model.clip_norm, options)
    if weighs_outputs(model):
        outputs = outputs_of(model, sample)
        return OutputsTrainer(
            model.root, model.store, outputs, sample, optimizer, *rest
        )
    loss = single(model, model.loss)
    metrics = metric_names.get_all(
        _leaves(model.metrics),
        _leaves(model.weighted_metrics),
        loss,
        sample.y.shape[1:],
        model.output_shape,
    )
    return Trainer(model.root, model.store, loss, optimizer, metrics, *rest)


def check_targets(model: Model, targets: Any, sample: Batch) -> None:
    _, loss = model._compiled("fit")
    if not weighs_outputs(model):
        loss = single(model, loss)
        loss.check_targets(targets, model.output_shape)
        check_activation(loss, model.root)
        return
    outputs = outputs_of(model, sample)
    several = len(outputs) > 1
    shapes = model.output_shape if several else (model.output_shape,)
    for i, (output, shape) in enumerate(zip(outputs, shapes, strict=True)):
        if output.loss is not None:
            output.loss.check_targets(targets[i] if several else targets, shape)


def weighs_outputs(model: Model) -> bool:
    """Whether the losses of the outputs must be put together."""
    several = isinstance(model.root, Graph) and model.root.several_outputs
    return several or model.loss_weights is not None


def single(model: Model, value: Any) -> Any:
    """Return the value that a list or dict has for a model's only output."""
    if isinstance(value, (list, tuple, dict)):
        return for_each("loss", value, model.output_names)[0]
    return value


def outputs_of(model: Model, sample: Batch) -> list[Output]:
    """Return what each output is trained for."""
    names = model.output_names if isinstance(model.root, Graph) else ["output"]
    shapes = model.output_shape if len(names) > 1 else (model.output_shape,)
    weights = for_each("loss_weights", model.loss_weights, names)
    found = []
    for i, (name, loss, metrics, weighted, shape) in enumerate(
        zip(
            names,
            for_each("loss", model.loss, names),
            metrics_for_each(model.metrics, names),
            metrics_for_each(model.weighted_metrics, names),
            shapes,
            strict=True,
        )
    ):
        y = sample.y[i] if isinstance(sample.y, tuple) else sample.y
        made = _metrics_of(name, metrics, weighted, loss, y, shape)
        weight = 1.0 if weights[i] is None else float(weights[i])
        found.append(Output(name, loss, weight, made))
    if all(output.loss is None for output in found):
        raise ArgumentError(
            "compile: expected a loss for at least one output",
            "none",
            "for example loss='mse'",
        )
    return found


def _metrics_of(
    name: str, metrics: Any, weighted: Any, loss: Any, y: Any, shape: Any
) -> list[Metric]:
    if not (metrics or weighted):
        return []
    if y is None:
        raise ArgumentError(
            f"compile: expected metrics of outputs with a loss, not {name}",
            "a metric, but no targets",
            "give it a loss; loss_weights may be 0",
        )
    like = loss or losses.MeanSquaredError()
    return metric_names.get_all(metrics, weighted, like, y.shape[1:], shape)


def _leaves(values: Any) -> list[Any]:
    """Return what is inside of lists and dicts in each other."""
    if isinstance(values, (list, tuple, dict)):
        return [leaf for value in flatten(values) for leaf in _leaves(value)]
    return [values]


def known_metrics(metrics: Any) -> Any:
    """Return a list or dict of metrics; raise UnknownNameError for unknown names."""
    metrics = [metrics] if isinstance(metrics, (str, Metric)) else metrics or ()
    for metric in _leaves(metrics):
        if isinstance(metric, str) and metric not in metric_names.KNOWN:
            raise UnknownNameError("metric", metric, metric_names.KNOWN)
    return metrics if isinstance(metrics, dict) else list(metrics)


def check_loss_weights(weights: Any) -> None:
    """Raise ArgumentError for what isn't a number, or a list or dict of numbers."""
    for weight in _leaves(weights):
        if weight is not None and not isinstance(weight, (int, float, np.number)):
            raise ArgumentError(
                "compile: expected loss_weights, the third argument, as numbers",
                f"{weight!r}",
                "write metrics=[...] if metrics are meant",
            )


# what Keras' fit asks a subclass for
_STEPS = ("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics")


def check_steps(model: Model) -> None:
    """Raise ArgumentError for methods that Keras would call and nobody does here."""
    for name in _STEPS:
        if callable(getattr(model, name, None)):
            raise ArgumentError(
                f"{type(model).__name__}: expected a model whose steps fit makes",
                f"a method {name}, which would never be called",
                "there is no automatic differentiation: give compile a loss with its "
                "gradient, or train models in turns with train_on_batch",
            )
