"""``Model``: compile, fit, evaluate, predict, save, by Keras' contracts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastserve import losses, optimizers
from fastserve import metrics as metric_names
from fastserve.comm import world
from fastserve.core import Array, Layer, Memory, Parameter, ParameterStore, Shape
from fastserve.data.sampler import Sampler
from fastserve.data.sources import ArraySource, Source, check_input, numeric
from fastserve.errors import (
    ArgumentError,
    DataError,
    ShapeError,
    StateError,
    UnknownNameError,
)
from fastserve.losses import Loss
from fastserve.metrics import Metric
from fastserve.optimizers import Optimizer
from fastserve.training import checkpoint
from fastserve.training.callbacks import Callback, History
from fastserve.training.loop import Schedule, run
from fastserve.training.progress import Progress, describe, terminal_width
from fastserve.training.step import Options, StepResult, Trainer

Targets = Any


class Model:
    """A network with what is needed to train it; base of ``Sequential`` and ``GPT``.

    Args:
        root: the network.
        seed: determines the initial weights, the order of samples and dropout.
    """

    def __init__(self, root: Layer, seed: int = 0, dtype: str = "float32") -> None:
        if seed < 0:
            raise ArgumentError("expected a seed of 0 or more", f"{seed}")
        self.root, self.seed = root, int(seed)
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise ArgumentError("expected dtype float32 or float64", repr(dtype))
        self._store: ParameterStore | None = None
        self.memory = Memory()
        self.optimizer: Optimizer | None = None
        self.loss: Loss | None = None
        self.metrics: list[str | Metric] = []
        self.weighted_metrics: list[str | Metric] = []
        self.trainer: Trainer | None = None
        self.last_step: StepResult | None = None
        self.stop_training = False
        self._epochs_made = 0  # since compile
        self.options = Options()
        self.clip_norm: float | None = None

    @property
    def trainable(self) -> bool:
        """Whether the weights are trained; see ``Layer.trainable``."""
        return self.root.trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self.root.trainable = value

    # -- building ----------------------------------------------------------------

    @property
    def built(self) -> bool:
        return self._store is not None

    @property
    def store(self) -> ParameterStore:
        """The parameters; raises StateError if the input's shape isn't known yet."""
        if self._store is None and self.known_input_shape is not None:
            self.build(self.known_input_shape)
        if self._store is None:
            raise StateError(
                "expected a model that is built",
                "a model that doesn't know the shape of its input",
                "give the first layer an input_shape, or call build or fit",
            )
        return self._store

    @property
    def output_shape(self) -> Shape:
        self.store  # noqa: B018  raises if the model isn't built
        return self.root.output_shape or ()

    @property
    def known_input_shape(self) -> tuple[int | None, ...] | None:
        """Shape of one sample if the model was told, else None."""
        return self.root.input_shape

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the weights for samples of ``input_shape`` (without the batch)."""
        if self._store is None:
            self.root.build_once(tuple(input_shape))
            self.root.bind(self.memory, self.dtype)
            self._store = ParameterStore(self.root, self.seed, self.dtype)
            self._skip_input_gradient()

    def _skip_input_gradient(self) -> None:
        if hasattr(self.root, "skip_input_gradient"):
            self.root.skip_input_gradient()

    def _build_for(self, x: Array) -> None:
        if self._store is None:
            self.build(self.known_input_shape or x.shape[1:])
        check_input(x, self.root.input_shape or ())

    # -- compile -----------------------------------------------------------------

    def compile(
        self,
        optimizer: str | Optimizer = "rmsprop",
        loss: Any = None,
        metrics: str | Sequence[str | Metric] | None = (),
        weighted_metrics: str | Sequence[str | Metric] | None = (),
    ) -> None:
        """Choose optimizer, loss and metrics, by name or as objects.

        ``weighted_metrics`` count samples by their weights, ``metrics`` each once. One
        whose result is an array isn't in the logs: ``evaluate`` returns it.
        Raises UnknownNameError for a name that isn't known.
        """
        if loss is None:
            raise ArgumentError(
                "compile: expected a loss", "None", "for example loss='mse'"
            )
        self.optimizer = optimizers.get(optimizer)
        self.loss = losses.get(loss)
        lists: list[list[str | Metric]] = [
            [m] if isinstance(m, (str, Metric)) else list(m or ())
            for m in (metrics, weighted_metrics)
        ]
        for metric in itertools.chain(*lists):
            if isinstance(metric, str) and metric not in metric_names.KNOWN:
                raise UnknownNameError("metric", metric, metric_names.KNOWN)
        self.metrics, self.weighted_metrics = lists
        if self._store is not None and self._store.stale:
            self._renew_store()
        self.trainer, self._epochs_made = None, 0

    def _compiled(self, verb: str) -> tuple[Optimizer, Loss]:
        if self.optimizer is None or self.loss is None:
            raise StateError(
                f"{verb}: expected a compiled model",
                "a model without loss and optimizer",
                "call compile(optimizer=..., loss=...) first",
            )
        return self.optimizer, self.loss

    def prepare(self, source: Source, verb: str = "prepare") -> Trainer:
        """Return the trainer for data like ``source``; check the data first."""
        optimizer, loss = self._compiled(verb)
        rows = np.zeros(1, np.int64)
        sample = source.batch(rows, rows)
        self._build_for(sample.x)
        if self.store.stale:
            raise StateError(
                f"{verb}: expected the layers' trainable as it was in compile",
                "one that was changed since",
                "call compile again; it takes the change into account",
            )
        if self.trainer is None:
            named = metric_names.get_all(
                self.metrics,
                self.weighted_metrics,
                loss,
                sample.y.shape[1:],
                self.output_shape,
            )
            if self.options.bucket_bytes != self.store.bucket_bytes:
                self.store.regroup(self.options.bucket_bytes)
            if not self.options.shard_optimizer:
                optimizer.bind(self.store)
            self.trainer = Trainer(
                self.root,
                self.store,
                loss,
                optimizer,
                named,
                world(),
                self.seed,
                self.clip_norm,
                self.options,
            )
        self.trainer.clip_norm = self.clip_norm
        return self.trainer

    def _source(self, verb: str, x: Any, y: Any, weights: Any = None) -> Source:
        """Return the data as a source whose targets fit the loss and the output."""
        if isinstance(x, Source):
            if y is not None or weights is not None:
                raise ArgumentError(
                    f"{verb}: expected no y and sample_weight beside a source",
                    "both",
                    "put them into the source",
                )
            return x
        if y is None:
            raise DataError(f"{verb}: expected targets y", "None", f"{verb}(x, y)")
        self._compiled(verb)
        source = ArraySource(x, y, weights)
        self.check_source(source)
        return source

    def check_source(self, source: Source) -> None:
        """Raise ShapeError or DataError unless inputs and targets fit the model.

        Builds the model if it isn't yet. Of arrays every target is looked at, of
        other sources the first one.
        """
        _, loss = self._compiled("fit")
        rows = np.zeros(1, np.int64)
        sample = source.batch(rows, rows)
        self._build_for(sample.x)
        targets = source.y if isinstance(source, ArraySource) else sample.y
        loss.check_targets(targets, self.output_shape)

    # -- fit ---------------------------------------------------------------------

    def fit(
        self,
        x: Any,
        y: Targets = None,
        batch_size: int | None = 32,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: Callback | Sequence[Callback] | None = (),
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: Mapping[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        validation_freq: int = 1,
        *,
        validation_steps: int | None = None,
    ) -> History:
        """Train for the epochs from ``initial_epoch`` up to ``epochs``.

        Args:
            x: (samples, ...) inputs, or a ``Source``. y: targets, as the loss wants.
            batch_size: the global batch, over all ranks.
            epochs: number of the final epoch, not of epochs to add.
            verbose: 0 silent, 1 a bar, 2 a line an epoch; 'auto' is 1 on a terminal.
            validation_split: share of the rows, the last ones before shuffling.
            validation_data: (x, y), (x, y, sample_weight) or a ``Source``.
            class_weight: class -> weight of its samples' losses.
            sample_weight: (samples,) weights of the losses.
            validation_steps: batches of a validation, always the first; None: all.

        Returns:
            History with ``history['loss']`` and so on, one value an epoch.

        Raises StateError if the model isn't compiled, DataError and ShapeError for
        data that can't be used, NonFiniteError when the loss becomes NaN.
        """
        self._compiled("fit")
        if epochs < 1 or not 0 <= initial_epoch < max(1, epochs):
            raise ArgumentError(
                "fit: expected 0 <= initial_epoch < epochs",
                f"initial_epoch={initial_epoch}, epochs={epochs}",
                "epochs is the number of the final epoch",
            )
        for name, value in (
            ("validation_freq", validation_freq),
            ("validation_steps", validation_steps),
        ):
            if value is not None and value < 1:
                raise ArgumentError(f"fit: expected a {name} of 1 or more", f"{value}")
        batch_size = 32 if batch_size is None else batch_size
        callbacks = [callbacks] if isinstance(callbacks, Callback) else callbacks or ()
        source, held_out = self._split(x, y, sample_weight, validation_split)
        if class_weight is not None:
            source = self._weigh_classes(source, class_weight)
        validation = self._validation(validation_data, held_out)
        trainer = self.prepare(source, "fit")
        sampler = Sampler(
            source.samples,
            batch_size,
            self.seed,
            shuffle,
            wrap=False,
            first_epoch=0 if initial_epoch else self._epochs_made,
        )
        self._epochs_made = sampler.first_epoch + epochs
        steps = sampler.steps_per_epoch
        schedule = Schedule(
            steps,
            epochs * steps,
            initial_epoch * steps,
            validation_freq,
            validation_steps,
        )
        level = _verbosity(verbose)
        shown = [Progress(level)] if level else []
        return run(
            self,
            trainer,
            source,
            sampler,
            schedule,
            validation,
            batch_size,
            [*shown, *callbacks],
            level,
        )

    def _split(
        self, x: Any, y: Any, weights: Any, validation_split: float
    ) -> tuple[Source, Source | None]:
        if not 0 <= validation_split < 1:
            raise ArgumentError(
                "fit: expected validation_split from 0 up to below 1",
                f"{validation_split}",
            )
        source = self._source("fit", x, y, weights)
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
        parts = [
            ArraySource(
                source.x[part],
                source.y[part],
                None if source.weights is None else source.weights[part],
            )
            for part in (slice(cut), slice(cut, None))
        ]
        return parts[0], parts[1]

    def _weigh_classes(
        self, source: Source, class_weight: Mapping[int, float]
    ) -> Source:
        """Return the source with each label's weight times that of its class."""
        if not isinstance(source, ArraySource) or not isinstance(class_weight, Mapping):
            raise ArgumentError(
                "expected class_weight as a dict, with arrays",
                f"{type(class_weight).__name__}, {type(source).__name__}",
            )
        _, loss = self._compiled("fit")
        y = source.y
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
        weights = np.ones(classes.shape, np.float32)
        for label, weight in class_weight.items():
            weights[classes == label] = weight
        if source.weights is not None:
            given = source.weights
            if given.ndim < weights.ndim:
                given = given.reshape(*given.shape, *[1] * (weights.ndim - given.ndim))
            weights = weights * given
        return ArraySource(source.x, source.y, weights)

    def _validation(self, data: Any, held_out: Source | None) -> Source | None:
        if data is None:
            return held_out
        if isinstance(data, Source):
            return data
        if not isinstance(data, (tuple, list)) or len(data) not in (2, 3):
            raise ArgumentError(
                "fit: expected validation_data (x, y) or (x, y, sample_weight)",
                type(data).__name__,
            )
        return self._source("validation_data", *data)

    # -- evaluate, predict -------------------------------------------------------

    def evaluate(
        self,
        x: Any,
        y: Targets = None,
        batch_size: int = 32,
        verbose: str | int = "auto",
        sample_weight: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """Return the loss, or [loss, *metrics], or a dict; every sample counts once.

        Metrics may be arrays, such as a confusion matrix.
        """
        source = self._source("evaluate", x, y, sample_weight)
        trainer = self.prepare(source, "evaluate")
        results = trainer.evaluate(source, batch_size)
        if _verbosity(verbose) and world().rank == 0:
            print(describe(results), flush=True)
        everything = trainer.with_arrays(results)
        if return_dict:
            return everything
        values = list(everything.values())
        return values[0] if len(values) == 1 else values

    def predict(
        self, x: Any, batch_size: int | None = 32, verbose: str | int = 0
    ) -> Array:
        """Return the outputs (samples, ...) in a new array; every rank gets all."""
        inputs = numeric("x", x)
        self._build_for(inputs)
        batch_size = Sampler(
            len(inputs),
            32 if batch_size is None else batch_size,
            0,
            shuffle=False,
            wrap=False,
        ).batch
        out: Array | None = None
        for start in range(0, len(inputs), batch_size):
            y = self.forward(inputs[start : start + batch_size])
            if out is None:
                out = np.empty((len(inputs), *y.shape[1:]), y.dtype)
            out[start : start + len(y)] = y
        assert out is not None  # numeric() refuses empty inputs
        return out

    def forward(self, x: Array) -> Array:
        """Return the output for one batch in the model's own memory: the next call
        writes over it."""
        if not self.root.takes_integers:
            x = np.ascontiguousarray(x, self.dtype)
        return self.root.forward(x, False)

    # -- single batches ----------------------------------------------------------

    def train_on_batch(
        self,
        x: Any,
        y: Targets,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """Make one step on this global batch; return its loss, or [loss, *metrics].

        On several ranks each gives the whole batch, and computes its share.
        """
        source: Source = self._source("train_on_batch", x, y, sample_weight)
        if class_weight is not None:
            source = self._weigh_classes(source, class_weight)
        trainer = self.prepare(source, "train_on_batch")
        trainer.reset_totals()
        sampler = Sampler(source.samples, source.samples, 0, shuffle=False, wrap=False)
        optimizer, _ = self._compiled("train_on_batch")
        self.last_step = trainer.train(source, sampler, optimizer.step)
        results = trainer.results()
        if return_dict:
            return results
        values = list(results.values())
        return values[0] if len(values) == 1 else values

    def test_on_batch(self, x: Any, y: Targets, sample_weight: Any = None) -> Any:
        """Return the loss, or [loss, *metrics], of one batch."""
        return self.evaluate(x, y, len(x), 0, sample_weight)

    # -- weights -----------------------------------------------------------------

    def get_weights(self) -> list[Array]:
        """Return copies of all weights in order of execution."""
        return [p.value.copy() for p in self._in_order()]

    def set_weights(self, weights: Sequence[Array]) -> None:
        """Set all weights, in the order of ``get_weights``."""
        parameters = self._in_order()
        if len(weights) != len(parameters):
            raise ShapeError(
                f"set_weights: expected {len(parameters)} arrays", f"{len(weights)}"
            )
        for parameter, value in zip(parameters, weights, strict=True):
            parameter.assign(value)

    def _in_order(self) -> list[Parameter]:
        self.store  # noqa: B018  raises if the model isn't built
        return list({id(p): p for p in self.root.parameters()}.values())

    def save_weights(self, path: str | Path) -> None:
        """Write the weights as safetensors, under the paths of the parameters."""
        if world().rank == 0:
            checkpoint.save_weights(Path(path), self.store, {})
        world().barrier()

    def load_weights(self, path: str | Path) -> None:
        """Read what ``save_weights`` or ``save`` wrote; all of it or nothing."""
        checkpoint.load_weights(Path(path), self.store)

    def save(self, path: str | Path) -> None:
        """Write weights and architecture to one safetensors file."""
        metadata = {"fastserve": json.dumps(self.get_config())}
        if world().rank == 0:
            checkpoint.save_weights(Path(path), self.store, metadata)
        world().barrier()

    def get_config(self) -> dict[str, Any]:
        """Return what ``load_model`` needs to make the model again, as JSON types."""
        raise NotImplementedError(f"{type(self).__name__}.get_config")

    def _renew_store(self) -> None:
        """Take the parameters in again after layers came, went or were frozen."""
        self.root.bind(self.memory, self.dtype)
        self.store.rebuild(self.seed)
        self._skip_input_gradient()
        self.trainer = None

    @property
    def count_params(self) -> int:
        """Number of all weights, trained or not."""
        return self.store.count + sum(p.size for p in self.store.frozen_parameters)

    def summary(self) -> None:
        """Print the layers with their output shapes and numbers of weights."""
        if world().rank == 0:
            print(self.describe())

    def describe(self) -> str:
        """Return the table that ``summary`` prints."""
        self.store  # noqa: B018  raises if the model isn't built
        rows = [("layer", "output", "weights")]
        for name, layer in self.root.children().items():
            size = sum(p.size for p in layer.parameters())
            shape = ", ".join(str(n or "None") for n in layer.output_shape or ())
            rows.append(
                (f"{name} ({type(layer).__name__})", f"(batch, {shape})", f"{size:,}")
            )
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [
            f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows
        ]
        lines.insert(1, "─" * len(lines[0]))
        lines.append(f"{self.count_params:,} weights in {self.dtype}")
        if self.store.frozen_parameters:
            rest = self.count_params - self.store.count
            lines[-1] += f", {self.store.count:,} of them trained, {rest:,} not"
        return "\n".join(lines)


def _verbosity(verbose: str | int) -> int:
    if verbose == "auto":
        return 1 if terminal_width() else 2
    if verbose in (0, 1, 2):
        return int(verbose)
    raise ArgumentError("expected verbose 'auto', 0, 1 or 2", repr(verbose))
