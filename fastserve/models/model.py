"""``Model``: compile, fit, evaluate, predict, save, by Keras' contracts."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fastserve import environment, losses, optimizers
from fastserve.comm import world
from fastserve.core import Layer, Memory, Parameter, ParameterStore, Tensor
from fastserve.core.parameter import named_parameters
from fastserve.core.random import default_seed
from fastserve.core.weights import Weighted
from fastserve.data.prefetch import Pace, load
from fastserve.data.sampler import Sampler
from fastserve.data.sources import Source, check_input
from fastserve.data.streams import Stream, agreed
from fastserve.errors import (
    ArgumentError,
    StateError,
    UnknownNameError,
)
from fastserve.layers.chain import skip_input_gradient
from fastserve.layers.graph import Graph, arrange, flatten
from fastserve.models import saving, summary_table
from fastserve.models.compiled import (
    check_loss_weights,
    check_steps,
    known_metrics,
    make_trainer,
)
from fastserve.models.fit_data import (
    check_source,
    inputs_of,
    numbers_of,
    shares_of,
    source_of,
    split,
    validation_of,
    weigh_classes,
)
from fastserve.models.functional import chain_graph, check_traceable, trace
from fastserve.models.inputs_outputs import each
from fastserve.models.serialization import Reader, Writer
from fastserve.optimizers import Optimizer
from fastserve.training.callbacks import Callback, CallbackList, History
from fastserve.training.loop import Schedule, evaluate, run
from fastserve.training.predict import predict
from fastserve.training.progress import BatchProgress, Progress, describe
from fastserve.training.step import Options, StepResult, Trainer

Targets = Any


class Model(Weighted):
    """A network with what is needed to train it; base of ``Sequential`` and ``GPT``.

    ``Model(inputs, outputs)`` is what layers made of the inputs by being called. A
    subclass may have a method ``call(self, inputs)`` instead, that calls its layers: it
    is run once, on symbolic tensors, when the shape of the input is known.

    Args:
        inputs, outputs: tensors, or lists or dicts of them; see ``Graph``.
        name: of the model as a layer of others.
        seed: determines the initial weights, the order of samples and dropout; None:
            that of ``utils.set_random_seed``, or 0.
        dtype: 'float32' or 'float64', in which all is computed.
        trainable: false freezes all layers.
        root: the network, in place of inputs and outputs.
    """

    def __init__(
        self,
        inputs: Any = None,
        outputs: Any = None,
        name: str | None = None,
        seed: int | None = None,
        dtype: str = "float32",
        *,
        trainable: bool = True,
        root: Layer | None = None,
    ) -> None:
        seed = default_seed() if seed is None else seed
        if seed < 0:
            raise ArgumentError("expected a seed of 0 or more", f"{seed}")
        self._traced = root is None and inputs is None and outputs is None
        if self._traced:
            check_traceable(self)
            root = Layer()  # until the call is traced
        elif root is None:
            root = Graph(inputs, outputs)
        self.root, self.seed = root, int(seed)
        if name is not None:
            root.name = Layer(name=name).given_name
        if type(self) is not Model:
            root.label = type(self).__name__
        if not trainable:
            root.trainable = False
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise ArgumentError("expected dtype float32 or float64", repr(dtype))
        self._store: ParameterStore | None = None
        self.memory = Memory()
        self.optimizer: Optimizer | None = None
        self.loss: Any = None
        self.metrics: Any = []
        self.weighted_metrics: Any = []
        self.trainer: Trainer | None = None
        self.history: History | None = None  # of the last fit
        self.last_step: StepResult | None = None
        self.stop_training = False
        self.loss_weights: Any = None
        self._as_graph: Graph | None = None
        self._epochs_made = 0  # since compile
        self.options = Options()
        self.clip_norm: float | None = None
        self._hold_layers()

    @property
    def trainable(self) -> bool:
        """Whether the weights are trained; see ``Layer.trainable``."""
        return self.root.trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self.root.trainable = value

    # -- as a layer, and its layers ------------------------------------------------

    @property
    def name(self) -> str:
        """The name that was given, or else the kind: functional, sequential."""
        return self.root.name

    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        """Return the tensors that the model makes of others, as a layer would.

        Of arrays it returns what ``predict`` does, all in one batch. Called on tensors
        it becomes a part of another model, with the same weights.
        """
        given = inputs[0] if len(inputs) == 1 else list(inputs)
        symbolic = [isinstance(value, Tensor) for value in flatten(given)]
        if not any(symbolic) and not any(
            isinstance(v, Tensor) for v in kwargs.values()
        ):
            x = numbers_of(self, given)
            self._build_for(x)
            return self._arranged(self.forward(x), np.copy)
        if self._traced and not self.root.built:
            self._trace(each(lambda tensor: tensor.shape[1:], given))
        return self.root(*inputs, **kwargs)

    def as_layer(self) -> Layer:
        """Return the network, to put it into other models; its weights stay shared."""
        if self._traced and not self.root.built:
            raise StateError(
                f"{self.name}: expected a model that knows the shape of its input",
                "a class with a method call that wasn't built yet",
                "call build(input_shape) first",
            )
        return self.root

    def _trace(self, shape: Any) -> None:
        """Run ``call`` on symbolic tensors; the network is what it did."""
        name, trainable = self.root.given_name, self.root.trainable
        self.root = trace(self, shape)
        self.root.name, self.root.label = name, type(self).__name__
        if not trainable:
            self.root.trainable = False
        self._hold_layers()

    def _hold_layers(self) -> None:
        """Let the layers find the model that gives them their weights."""
        if isinstance(self.root, Graph):
            for layer in self.layers:
                if layer.within is None or layer.within() is None:
                    layer.within = weakref.ref(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what a copy has, also by pickle; its layers don't know it yet."""
        self.__dict__.update(state)
        for layer in self.layers:
            layer.within = layer.within or weakref.ref(self)
        for part in (*(part for _, part in self.root.walk()), self._as_graph):
            for node in part.nodes if isinstance(part, Graph) else ():
                node.layer._called.append(weakref.ref(node))

    @property
    def _graph(self) -> Graph:
        """The network as a graph; of a ``Sequential`` it is made for the purpose."""
        if isinstance(self.root, Graph):
            return self.root
        self.store  # noqa: B018  raises if the model isn't built
        if self._as_graph is None:
            self._as_graph = chain_graph(self.root)
        return self._as_graph

    @property
    def inputs(self) -> list[Tensor]:
        return self._graph.inputs

    @property
    def outputs(self) -> list[Tensor]:
        return self._graph.outputs

    @property
    def input(self) -> Any:
        return self._graph.inputs_like

    @property
    def output(self) -> Any:
        return self._graph.outputs_like

    @property
    def input_names(self) -> list[str]:
        return self._graph.input_names

    @property
    def output_names(self) -> list[str]:
        return self._graph.output_names

    @property
    def layers(self) -> list[Layer]:
        """The layers, farthest from the outputs first."""
        known = getattr(self.root, "layers", None)
        return list(self.root.children().values() if known is None else known)

    def get_layer(self, name: str | None = None, index: int | None = None) -> Layer:
        """Return a layer by its name, or by its place ``index`` in ``layers``.

        Raises UnknownNameError or ArgumentError if there is none.
        """
        if index is not None:
            if not -len(self.layers) <= index < len(self.layers):
                raise ArgumentError(
                    f"get_layer: expected an index below {len(self.layers)}", f"{index}"
                )
            return self.layers[index]
        children = self.root.children()
        if name not in children:
            raise UnknownNameError("layer", str(name), children)
        return children[name]

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
        if self._store.claim():
            self._skip_input_gradient()
        return self._store

    @property
    def input_shape(self) -> Any:
        """Shape of one sample, without the batch; None before it is known."""
        return self.root.input_shape

    @property
    def output_shape(self) -> Any:
        self.store  # noqa: B018  raises if the model isn't built
        return self.root.output_shape or ()

    @property
    def known_input_shape(self) -> tuple[int | None, ...] | None:
        """Shape of one sample if the model was told, else None."""
        return self.root.input_shape

    def build(self, input_shape: Any) -> None:
        """Make the weights for samples of ``input_shape`` (without the batch).

        Of several inputs it is a list or dict of shapes. Weights that layers have
        already, as parts of another model, stay as they are.
        """
        if self._store is not None:
            return
        if self._traced and not self.root.built:
            self._trace(input_shape)
        if isinstance(self.root, Graph):
            self.root.build_once(self.root.input_shape or ())
        else:
            self.root.build_once(tuple(input_shape))
        known = [p for p in named_parameters(self.root) if p.bound]
        if any(p.value.dtype != self.dtype for p in known):
            raise ArgumentError(
                f"expected layers whose weights are {self.dtype}, as the model's dtype",
                f"weights of another model in {known[0].value.dtype}",
                "give both models the same dtype",
            )
        values = [p.value for p in known]
        self.root.bind(self.memory, self.dtype)
        self._store = ParameterStore(self.root, self.seed, self.dtype)
        for parameter, value in zip(known, values, strict=True):
            parameter.value[...] = value
        self._skip_input_gradient()

    def _skip_input_gradient(self) -> None:
        skip_input_gradient(self.root)

    def _build_for(self, x: Any) -> None:
        if self._store is None:
            shape = each(lambda array: array.shape[1:], x)
            self.build(self.known_input_shape or shape)
        check_input(x, self.root.input_shape or ())

    # -- several inputs and outputs ------------------------------------------------

    def _arranged(self, outputs: Any, change: Any = lambda y: y) -> Any:
        """Return what ``forward`` gave as the model's outputs are: a list or a dict."""
        values = [change(y) for y in flatten(outputs)]
        like = self.root.outputs_like if isinstance(self.root, Graph) else None
        return arrange(values, like)

    # -- compile -----------------------------------------------------------------

    def compile(
        self,
        optimizer: str | Optimizer = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = (),
        weighted_metrics: Any = (),
    ) -> None:
        """Choose optimizer, loss and metrics, by name or as objects.

        Args:
            optimizer: a name, or one of ``fs.optimizers``.
            loss: of a model with several outputs one for all, or a list or dict with
                one for each, None for those without.
            loss_weights: a list or dict of factors of the losses in their sum.
            metrics: a list; of several outputs a list or dict with a metric or a list
                of them for each. One whose result is an array isn't in the logs:
                ``evaluate`` returns it.
            weighted_metrics: metrics that count samples by their weights.

        Raises UnknownNameError for a name that isn't known, ArgumentError without a
        loss.
        """
        if loss is None:
            raise ArgumentError(
                "compile: expected a loss", "None", "for example loss='mse'"
            )
        check_loss_weights(loss_weights)
        check_steps(self)
        self.optimizer = optimizers.get(optimizer)
        self.loss = each(lambda one: one and losses.get(one), loss)
        self.metrics = known_metrics(metrics)
        self.weighted_metrics = known_metrics(weighted_metrics)
        self.loss_weights = loss_weights
        if self._store is not None and self._store.stale:
            self._renew_store()
        self.trainer, self._epochs_made = None, 0

    def _compiled(self, verb: str) -> tuple[Optimizer, Any]:
        if self.optimizer is None or self.loss is None:
            raise StateError(
                f"{verb}: expected a compiled model",
                "a model without loss and optimizer",
                "call compile(optimizer=..., loss=...) first",
            )
        return self.optimizer, self.loss

    def prepare(self, source: Source, verb: str = "prepare") -> Trainer:
        """Return the trainer for data like ``source``; check the data first."""
        optimizer, _ = self._compiled(verb)
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
            self.trainer = make_trainer(self, sample, optimizer)
        self.trainer.clip_norm = self.clip_norm
        return self.trainer

    def check_source(self, source: Source) -> None:
        """Raise ShapeError or DataError unless inputs and targets fit the model.

        Builds the model if it isn't yet. Of arrays every target is looked at, of
        other sources the first one.
        """
        check_source(self, source)

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
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int | Collection[int] = 1,
    ) -> History:
        """Train for the epochs from ``initial_epoch`` up to ``epochs``.

        Args:
            x: (samples, ...) inputs, or a ``Source``; or batches ``(x, y)`` or ``(x, y,
                sample_weight)`` of a generator, an iterable or a ``PyDataset``: the
                same global batches on all ranks, of which each takes its share.
            y: targets, as the loss wants.
            batch_size: the global batch, over all ranks.
            epochs: number of the final epoch, not of epochs to add.
            verbose: 0 silent, 1 a bar (where there is a terminal, else 2), 2 a line an
                epoch; 'auto' is 1 on a terminal.
            callbacks: one or several, told of each moment of the training.
            validation_split: share of the rows, the last ones before shuffling.
            validation_data: (x, y), (x, y, sample_weight), or what x may be.
            shuffle: whether each epoch has another order of the samples.
            class_weight: class -> weight of its samples' losses.
            sample_weight: (samples,) weights of the losses.
            steps_per_epoch: an epoch has so many batches; None: all that there are. A
                generator is gone on with in the next epoch.
            validation_steps: batches of a validation, the first ones of arrays; None:
                all.
            validation_batch_size: None: as batch_size.
            validation_freq: epochs between validations, or the numbers of the epochs,
                from 1, that have one.

        Returns:
            History with ``history['loss']`` and so on, one value an epoch.

        Raises:
            StateError: the model isn't compiled.
            ArgumentError: arguments out of range, or that don't go together.
            DataError, ShapeError: data that can't be used.
            NonFiniteError: the loss became NaN; the weights are those before.
            ReplicaError: the ranks' weights differ.
        """
        self._compiled("fit")
        if epochs < 1 or not 0 <= initial_epoch < max(1, epochs):
            raise ArgumentError(
                "fit: expected 0 <= initial_epoch < epochs",
                f"initial_epoch={initial_epoch}, epochs={epochs}",
                "epochs is the number of the final epoch",
            )
        freq = validation_freq
        _check_counts(
            "fit",
            batch_size=batch_size,
            validation_freq=freq if isinstance(freq, int) else min(freq, default=0),
            validation_steps=validation_steps,
            validation_batch_size=validation_batch_size,
            steps_per_epoch=steps_per_epoch,
        )
        batch_size = 32 if batch_size is None else batch_size
        callbacks = [callbacks] if isinstance(callbacks, Callback) else callbacks or ()
        source, held_out = split(self, x, y, sample_weight, validation_split, shuffle)
        if class_weight is not None:
            source = weigh_classes(self, source, class_weight)
        validation = validation_of(self, validation_data, held_out)
        trainer = self.prepare(source, "fit")
        first = 0 if initial_epoch else self._epochs_made
        sampler = None
        if isinstance(source, Stream):
            steps = steps_per_epoch or source.batches or 0
        else:
            sampler = Sampler(
                source.samples, batch_size, self.seed, shuffle, False, first
            )
            steps = steps_per_epoch or sampler.steps_per_epoch
        self._epochs_made = first + epochs
        schedule = Schedule(
            steps,
            epochs * steps,
            initial_epoch * steps,
            validation_freq,
            validation_steps,
            range(initial_epoch, epochs),
        )
        level = _verbosity(verbose)
        shown = [Progress(level)] if level else []
        self.history = run(
            self,
            trainer,
            source,
            sampler,
            schedule,
            validation,
            validation_batch_size or batch_size,
            [*shown, *callbacks],
            level,
        )
        return self.history

    # -- evaluate, predict -------------------------------------------------------

    def evaluate(
        self,
        x: Any,
        y: Targets = None,
        batch_size: int | None = 32,
        verbose: str | int = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Callback | Sequence[Callback] | None = (),
        return_dict: bool = False,
    ) -> Any:
        """Return the loss, or [loss, *metrics], or a dict; every sample counts once.

        Metrics may be arrays, such as a confusion matrix. On several ranks all call it,
        and get the same.

        Args:
            x, y, sample_weight: what ``fit`` takes.
            batch_size: the global batch, over all ranks.
            verbose: 0 silent, 1 the results, and on a terminal a bar, 2 the results
                alone; 'auto' is 1 on a terminal, else 2.
            steps: only so many batches.
            callbacks: told of each batch, and of begin and end.
            return_dict: return a dict of the names.

        Raises StateError if the model isn't compiled, DataError and ShapeError for
        data that can't be used.
        """
        _check_counts("evaluate", batch_size=batch_size, steps=steps)
        source = source_of(self, "evaluate", x, y, sample_weight)
        trainer = self.prepare(source, "evaluate")
        made = source.batches if isinstance(source, Stream) else None
        if not isinstance(source, Stream):
            made = -(-source.samples // (batch_size or 32))
        call = self._callbacks(callbacks, verbose, "evaluate", made, steps)
        results = evaluate(trainer, source, batch_size or 32, steps, call)
        if _verbosity(verbose) and world().rank == 0:
            print(describe(results), flush=True)
        return _shown(trainer.with_arrays(results), return_dict)

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        steps: int | None = None,
        callbacks: Callback | Sequence[Callback] | None = (),
    ) -> Any:
        """Return the outputs (samples, ...) in a new array, in the order of the inputs.

        Of several outputs it is a list or dict of arrays.
        On several ranks all call it; each computes its rows of every batch, and gets
        all rows. ``x`` may be batches, as for ``fit``: ``x`` or ``(x, ...)``.

        Args:
            batch_size: the global batch, over all ranks; None: 32.
            verbose: 0 silent, 1 a bar, 2 a line; 'auto' is 1 on a terminal, else 0.
            steps: only so many batches.
            callbacks: told of each batch, and of begin and end.

        Raises ShapeError for inputs of another shape, StateError for a model that
        doesn't know the shape of its input.
        """
        comm = world()
        batch_size = 32 if batch_size is None else batch_size
        _check_counts("predict", batch_size=batch_size, steps=steps)
        stream, parts, made = shares_of(self, x, batch_size)
        if steps is not None:
            parts = islice(parts, steps)
        if verbose == "auto":
            verbose = 1 if environment.terminal_width() else 0
        call = self._callbacks(callbacks, verbose, "predict", made, steps)
        source = x if isinstance(x, Source) else None
        with closing(load(parts, Pace(), source)) as loaded:
            alike = agreed(loaded, comm) if stream and comm.size > 1 else loaded
            return self._arranged(predict(self.forward, alike, comm, call))

    def predict_on_batch(self, x: Any) -> Any:
        """Return the outputs of the one batch x; see ``predict``."""
        return self.predict(x, max(map(len, flatten(inputs_of(self, x)))), 0)

    def _callbacks(
        self,
        callbacks: Any,
        verbose: str | int,
        verb: str,
        batches: int | None,
        wanted: int | None,
    ) -> CallbackList:
        level = _verbosity(verbose)
        of = min((n for n in (batches, wanted) if n is not None), default=None)
        callbacks = [callbacks] if isinstance(callbacks, Callback) else callbacks or ()
        shown = [BatchProgress(verb)] if level else []
        return CallbackList([*shown, *callbacks], self, {"verbose": level, "steps": of})

    def forward(self, x: Any) -> Any:
        """Return the output for one batch x in the model's own memory: the next call
        writes over it. x is a tuple for several inputs, the output for several outputs.
        """
        takes: Any = self.root.takes_integers
        if isinstance(x, tuple):
            each = takes if isinstance(takes, tuple) else (takes,) * len(x)
            x = tuple(
                a if integers else np.ascontiguousarray(a, self.dtype)
                for a, integers in zip(x, each, strict=True)
            )
        elif not takes:
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

        Args:
            x, y, sample_weight, class_weight: as for ``fit``, of one batch.
            return_dict: return a dict of the names.

        Raises what ``fit`` raises.
        """
        source: Source = source_of(self, "train_on_batch", x, y, sample_weight)
        if class_weight is not None:
            source = weigh_classes(self, source, class_weight)
        trainer = self.prepare(source, "train_on_batch")
        trainer.reset_totals()
        sampler = Sampler(source.samples, source.samples, 0, shuffle=False, wrap=False)
        optimizer, _ = self._compiled("train_on_batch")
        self.last_step = trainer.train(source, sampler, optimizer.step)
        return _shown(trainer.with_arrays(trainer.results()), return_dict)

    def test_on_batch(
        self, x: Any, y: Targets, sample_weight: Any = None, return_dict: bool = False
    ) -> Any:
        """Return the loss, or [loss, *metrics], or a dict, of one batch.

        ``x``, ``y``, ``sample_weight`` and ``return_dict`` are as for ``evaluate``.
        """
        rows = len(flatten(x)[0]) if isinstance(x, (tuple, dict)) else len(x)
        if isinstance(x, list) and isinstance(x[0], np.ndarray):
            rows = len(x[0])
        return self.evaluate(x, y, rows, 0, sample_weight, return_dict=return_dict)

    @property
    def metrics_names(self) -> list[str]:
        """Names of what ``train_on_batch`` returns; the metrics' after a first step."""
        named = [] if self.trainer is None else [m.name for m in self.trainer.metrics]
        return ["loss", *named]

    def reset_metrics(self) -> None:
        """Start the means of loss and metrics anew."""
        if self.trainer is not None:
            self.trainer.reset_totals()

    # -- weights -----------------------------------------------------------------

    def _built_root(self) -> Layer:
        self.store  # noqa: B018  raises if the model isn't built
        return self.root

    def _in_order(self) -> list[Parameter]:
        return list({id(p): p for p in self._built_root().parameters()}.values())

    def save_weights(self, filepath: str | Path, overwrite: bool = True) -> None:
        """Write the weights to ``filepath``: as safetensors, by the parameters' paths,
        or, with the ending ``.weights.h5``, as Keras 3 does, which can read them.

        Raises CheckpointError if it can't be written, or is there and ``overwrite`` is
        false.
        """
        saving.save_weights(self, Path(filepath), overwrite)

    def load_weights(
        self, filepath: str | Path, skip_mismatch: bool = False, by_name: bool = False
    ) -> None:
        """Read what ``save_weights`` or ``save`` wrote; all of it or nothing.

        A ``filepath`` that ends in ``.h5`` or ``.hdf5`` is one of Keras 3 or 2.

        Args:
            skip_mismatch: of Keras' files: leave weights as they are that the file has
                not, or in another shape, with a warning.
            by_name: of Keras 2 files: only layers of the same name.

        Raises CheckpointError for a file that is damaged or of another model.
        """
        saving.load_weights(self, Path(filepath), skip_mismatch, by_name)

    def save(self, filepath: str | Path, overwrite: bool = True) -> None:
        """Write weights and architecture to one safetensors file, ``filepath``.

        Arrays of ``initializers.Constant`` aren't in it: new weights of what
        ``load_model`` returns, as those of a clone, begin with NaN there.

        Raises CheckpointError if the file is there and ``overwrite`` is false,
        ArgumentError for the ending of Keras' HDF5 files, which hold weights alone.
        """
        saving.save(self, Path(filepath), overwrite)

    def get_config(self) -> dict[str, Any]:
        """Return what ``load_model`` needs to make the model again, as JSON types.

        A class with a method ``call`` becomes the graph of what it calls.
        """
        self.store  # noqa: B018  raises if the model isn't built
        if not isinstance(self.root, Graph):
            raise NotImplementedError(f"{type(self).__name__}.get_config")
        return {
            "class": "Functional",
            "name": self.root.given_name,
            "seed": self.seed,
            "dtype": self.dtype.name,
            "graph": Writer().graph(self.root),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Model:
        """Make a model from what ``get_config`` returned; its weights are new."""
        root = Reader(custom_objects).graph(config["graph"])
        dtype = config.get("dtype", "float32")
        return Model(name=config["name"], seed=config["seed"], dtype=dtype, root=root)

    def to_json(self, **options: Any) -> str:
        """Return the architecture as text for ``model_from_json``; ``options`` are
        those of ``json.dumps``."""
        return json.dumps(self.get_config(), **options)

    def _renew_store(self) -> None:
        """Take the parameters in again after layers came, went or were frozen."""
        self.root.bind(self.memory, self.dtype)
        self.store.rebuild(self.seed)
        self._skip_input_gradient()
        self.trainer = None

    def summary(
        self,
        *,
        print_fn: Callable[[str], Any] | None = None,
        expand_nested: bool = False,
        show_trainable: bool = False,
    ) -> None:
        """Print the layers with their output shapes and numbers of weights.

        Args:
            print_fn: gets each line in place of ``print``.
            expand_nested: show the layers of models in the model as well.
            show_trainable: say of each layer whether it is trained.
        """
        if world().rank == 0:
            for line in self.describe(expand_nested, show_trainable).splitlines():
                (print_fn or print)(line)

    def describe(
        self, expand_nested: bool = False, show_trainable: bool = False
    ) -> str:
        """Return the table that ``summary`` prints."""
        return summary_table.describe(self, expand_nested, show_trainable)


def _check_counts(verb: str, **counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ArgumentError(f"{verb}: expected a {name} of 1 or more", f"{value}")


def _shown(results: dict[str, Any], as_dict: bool) -> Any:
    if as_dict:
        return results
    values = list(results.values())
    return values[0] if len(values) == 1 else values


def _verbosity(verbose: str | int) -> int:
    if verbose == "auto":
        return 1 if environment.terminal_width() else 2
    if verbose in (0, 1, 2):
        return int(verbose)
    raise ArgumentError(
        "expected verbose 'auto', 0, 1 or 2", repr(verbose), "give one of these"
    )
