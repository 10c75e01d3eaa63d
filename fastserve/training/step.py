"""``Trainer``: one training step, on any number of ranks.

A step is: this rank's rows of the global batch, in micro-batches: forward, loss,
backward; the sum of the gradients over all ranks; a look at loss and gradients; the
optimizer. The loss is divided once, by the number of losses of the *global* batch,
so uneven shares and micro-batches give the same gradient as one big batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastserve.comm import Communicator, GradientSync
from fastserve.core import Array, Layer, ParameterStore, StepKey
from fastserve.core.parameter import BUCKET_BYTES
from fastserve.data.prefetch import Pace, Share, load, share_of, shares
from fastserve.data.sampler import Sampler, micro_batches, share
from fastserve.data.sources import Batch, Source
from fastserve.errors import ArgumentError, NonFiniteError
from fastserve.layers.chain import skip_input_gradient
from fastserve.layers.recompute import recompute_blocks
from fastserve.losses import Loss
from fastserve.metrics import Metric
from fastserve.optimizers import Optimizer, global_norm, quick_norm
from fastserve.training.diagnose import check_replicas, first_nonfinite_layer
from fastserve.training.exact import ExactStep, Shards, ShardTable, make_shards
from fastserve.training.large_vocabulary import make_head, pieces_of
from fastserve.training.masks import apply_mask
from fastserve.training.moving_weights import MovingWeights
from fastserve.training.numerics import fix_threads
from fastserve.training.spike_guard import LIMIT, SpikeGuard
from fastserve.training.synchronized import Together
from fastserve.training.timing import Timing

if TYPE_CHECKING:
    from fastserve.training.callbacks import CallbackList


# In the flags that all ranks add up, whole numbers ask to stop and parts to look.
_LOOK = 2.0**-30


@dataclass
class Options:
    """How a trainer spreads and guards its steps; only ``wire`` changes the result.

    Attributes:
        micro_batch: rows that a rank computes at a time; None: its whole share.
        algorithm: of the sum over ranks, 'ring', 'mpi' or 'exact'. With exact a batch
            is cut into shards of ``micro_batch`` rows (None: into 8 shards) that the
            ranks share, and the result has the same bits on any number of ranks.
        overlap: send gradients during backward; None: where there are several hosts.
        wire: type of the gradients in messages between hosts; float16 and bfloat16
            halve the bytes and round, so they do change the result a little.
        check_every: steps between comparisons of the ranks' parameters; 0: never.
        bucket_bytes: gradients that are summed at once; a bucket is closed when it
            holds this much.
        spike_factor: a step is skipped if its loss is above this factor x the median
            of the steps before, or isn't finite; see ``SpikeGuard``. None: never.
        recompute: keep the inputs of transformer blocks only, and compute the rest
            again in backward.
        shard_optimizer: each rank keeps the optimizer's state of its own part of the
            weights alone (ZeRO stage 1).
        threads: of BLAS in each rank with the algorithm exact, whose bits depend on it;
            None: 1. Other algorithms leave it to the environment.
    """

    micro_batch: int | None = None
    algorithm: str = "ring"
    overlap: bool | None = None
    wire: str = "float32"
    check_every: int = 100
    bucket_bytes: int = BUCKET_BYTES
    spike_factor: float | None = None
    recompute: bool = False
    shard_optimizer: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.spike_factor is not None and not self.spike_factor > 1:
            raise ArgumentError(
                "expected a spike_factor above 1", f"{self.spike_factor}"
            )
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ArgumentError("expected a micro_batch above 0", f"{self.micro_batch}")


@dataclass(frozen=True)
class StepResult:
    """What one step gave, the same on every rank.

    Attributes:
        loss: mean over the global batch.
        grad_norm: Euclidean norm of the whole gradient, before clipping.
        stop: some rank was asked to stop.
        look: some rank wants all of them to compare something after this step.
        skipped: the weights were left as they were.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    rows: int
    stop: bool
    skipped: bool = False
    look: bool = False


class Trainer:
    """Runs training and evaluation steps of one model on one rank.

    Args:
        root: a built layer, bound to ``store``.
        loss: called on the logits if ``root`` ends in the softmax or sigmoid that
            the loss can be fused with.
        clip_norm: the gradient is scaled down to this norm; None: never.
        seed: of dropout.

    Attributes:
        timing: where this rank's time goes.
        loading: seconds of the last step that it waited for its data.
        rows: samples that it had in that step.
    """

    def __init__(
        self,
        root: Layer,
        store: ParameterStore,
        loss: Loss,
        optimizer: Optimizer,
        metrics: Sequence[Metric],
        comm: Communicator,
        seed: int = 0,
        clip_norm: float | None = None,
        options: Options | None = None,
    ) -> None:
        self.root, self.store, self.optimizer = root, store, optimizer
        self.metrics, self.comm, self.seed = list(metrics), comm, seed
        self.clip_norm, self.options = clip_norm, options or Options()
        self.fused = root.fused_loss is not None and root.fused_loss == loss.fused_loss
        self.loss = loss.with_logits() if self.fused else loss
        self.timing = Timing()
        self._head = make_head(root, self.loss, self._measure_piece, self.timing.to)
        o = self.options
        self.together = Together(root, comm, o.algorithm, self.timing)
        overlap = False if self.together.layers else o.overlap
        loss.check_training(
            comm.size > 1 or bool(o.micro_batch) or o.algorithm == "exact"
        )
        self.sync = GradientSync(
            store, comm, o.algorithm, overlap, o.wire, sharded=o.shard_optimizer
        )
        if o.recompute:
            recompute_blocks(root)
        if o.shard_optimizer:
            optimizer.bind(store, self.sync.own, comm.allreduce)
        factor = o.spike_factor
        self.guard = None if factor is None else SpikeGuard(factor)
        self.stop_requested = self.look_requested = False
        self.loading, self.rows = 0.0, 0
        trained = store.parameters
        self._regularized = [(p, r) for p in trained if (r := p.regularizer)]
        self._constrained = [(p, c) for p in trained if (c := p.constraint)]
        self.moving = MovingWeights(store, comm)
        tree = self.sync.exact
        if tree is not None:
            fix_threads(o.threads or 1)
        self.exact = None if tree is None else ExactStep(comm, tree, self.moving)
        self._sum: Array | None = None  # gradients of earlier micro-batches
        # sum of the losses, their number, flags, how many are hidden; metrics
        self._status = np.zeros(4 + sum(m.state.size for m in self.metrics))
        self._total = 0
        self._count: int | None = None  # losses of the global batch, if it is masked
        self._measured = self._status  # where metrics of a piece of a batch go
        self.totals = np.zeros_like(self._status)  # since reset_totals, all ranks
        self.share_weights()

    def share_weights(self) -> None:
        """Give all ranks the weights of rank 0, also those that aren't trained."""
        self.comm.broadcast(self.store.values)
        if self.store.frozen.size:
            self.comm.broadcast(self.store.frozen)

    # -- training ----------------------------------------------------------------

    def train(self, source: Source, sampler: Sampler, step: int) -> StepResult:
        """Make step number ``step``; raises NonFiniteError before it would spoil
        the weights, and LossSpikeError as ``SpikeGuard`` does."""
        start = self.timing.to_data()
        part = share_of(source, sampler, step, self.rows_of)
        return self.train_share(part, step, self.timing.to("other") - start)

    def train_share(self, part: Share, step: int, loading: float = 0.0) -> StepResult:
        """Make step number ``step`` from this rank's share of its data, which it took
        ``loading`` seconds to get."""
        self._cut(part)
        result = self.train_batch(part.batch, part.mine, part.total, step, part.losses)
        self.loading = loading
        return result

    def train_batch(
        self,
        batch: Batch | None,
        mine: slice,
        total: int,
        step: int,
        count: int | None = None,
    ) -> StepResult:
        """Make a step from this rank's rows ``mine`` of a global batch of ``total``.

        ``batch`` holds just these rows; it is None if there are none. ``count`` is the
        number of losses of the global batch if it is masked.
        """
        timing = self.timing
        timing.to("forward")
        self.optimizer.check_store(self.store)
        if self.store.claim():
            skip_input_gradient(self.root)
        self._status.fill(0)
        self._total, self._count = total, count
        if count is not None and self.comm.rank == 0:
            self._status[1] = count
        self.moving.begin()
        if self.exact is not None:
            self.exact.begin()
        with self.together.within(mine, total, self.options.micro_batch):
            if batch is None:
                self.sync.begin()
                self.store.grads.fill(0)
                self.sync.done(self.root)
            else:
                self._accumulate(batch, mine)
        self._status[2] = self.stop_requested + _LOOK * self.look_requested
        self.look_requested = False
        timing.to("sums", "sum of gradients")
        self.sync.finish()
        if self.exact is not None:
            self.exact.finish(self._status)
        else:
            self.comm.allreduce(self._status)
            self.moving.sum((mine.stop - mine.start) / total)
        timing.to("optimizer")
        stop, look = divmod(float(self._status[2]), 1)
        self._status[2] = 0.0  # flags are no part of the totals
        counted = self._rescale()
        if self.loss.reduction == "sum":  # over an epoch, sums are averaged by counts
            self._status[0] *= counted
        penalty = self._regularize()
        self._status[0] += penalty * counted
        norm = self._norm()
        loss = float(self._status[0]) / counted if counted else penalty
        speaks = self.comm.rank == 0
        guard = self.guard
        skip = guard is not None and guard.refuses(step, loss, norm, speaks)
        finite = math.isfinite(loss) and math.isfinite(norm)
        if not finite and (guard is None or guard.in_a_row >= LIMIT):
            self._raise_nonfinite(batch, mine, step, loss)
        rate = self.optimizer.current_lr()
        if skip:
            self.optimizer.skip()  # it counts: the next step has the next data
        else:
            clip = self.clip_norm
            scale = 1.0 if not clip or norm <= clip else clip / norm
            self.optimizer.update(scale, norm)
            if self.sync.own is not None:
                with timing.within("sums", "exchange of weights"):
                    self.sync.gather(self.store.values)
            self.moving.apply()
            for parameter, constraint in self._constrained:
                constraint.apply(parameter.value)
            self.totals += self._status
        self.rows = mine.stop - mine.start
        every = self.options.check_every
        if every and self.comm.size > 1 and (step + 1) % every == 0:
            timing.to("sums", "comparison of replicas")
            check_replicas(self.store, self.comm, step)
        timing.to("other", "callbacks")
        return StepResult(loss, norm, rate, total, stop > 0, skip, look > 0)

    def compare(self) -> None:
        """Raise ReplicaError, on all ranks, if weights or the optimizer's state differ
        between them, unless ``check_every`` is 0: for what is about to be saved."""
        if self.options.check_every and self.comm.size > 1:
            step = self.optimizer.step - 1
            check_replicas(self.store, self.comm, step, self.optimizer)

    def _scale(self, shape: tuple[int, ...]) -> float:
        """Note how many losses a part of the batch has, whose outputs are of ``shape``;
        return 1 / their number in the global batch, and 1 where losses are summed."""
        count = self._count
        if count is None:
            losses = self.loss.count(shape)
            self._status[1] += losses
            count = losses // shape[0] * self._total
        return 1.0 if self.loss.reduction == "sum" else 1.0 / count

    def _rescale(self) -> int:
        """Return how many losses of the step count. Those that masks hide don't, nor
        labels that are ignored; the gradients, divided by all, are put right."""
        assumed, hidden = int(self._status[1]), int(self._status[3])
        self._status[3] = 0
        if not hidden or self.loss.reduction == "sum":
            return assumed
        self._status[1] = counted = assumed - hidden
        factor = self.store.grads.dtype.type(assumed / max(1, counted))
        np.multiply(self.store.grads, factor, out=self.store.grads)
        return counted

    def _regularize(self) -> float:
        """Add the regularizers' gradients to the sum over all ranks, which has them
        once; return their penalty, which is part of the loss."""
        for parameter, regularizer in self._regularized:
            regularizer.add_gradient(parameter.value, parameter.grad)
        return self._penalty()

    def _penalty(self) -> float:
        return sum(r.penalty(p.value) for p, r in self._regularized)

    def _norm(self) -> float:
        """Return the norm of all gradients, of which this rank may have a part."""
        if self.sync.own is None:
            # all ranks need the same bits if the step depends on them
            clips = self.clip_norm or self.optimizer.global_clipnorm
            norm = global_norm if clips or self.guard else quick_norm
            return norm(self.store.grads)
        square = np.zeros(1)
        with np.errstate(all="ignore"):
            for part in self.sync.own:
                square += np.square(np.float64(global_norm(self.store.grads[part])))
            with self.timing.within("sums", "sum of norms"):
                self.comm.allreduce(square)
        return float(np.sqrt(square[0]))

    def _accumulate(self, batch: Batch, mine: slice) -> None:
        pieces = list(self._pieces(batch, mine))
        exact = self.exact
        for i, (first_row, part) in enumerate(pieces):
            key = StepKey(self.seed, self.optimizer.step, first_row)
            last = i == len(pieces) - 1
            if last:  # the gradients of all are sent while the last are computed
                self.sync.begin(add=self._sum if i and exact is None else None)
            self._status[0] += self._forward_backward(part, key, last)
            if exact is not None:
                exact.put(i, self._status, last)
            elif not last:
                self._add_up(first=i == 0)

    def _add_up(self, first: bool) -> None:
        """Add the gradients of a micro-batch to those before it, on the flat vector."""
        grads = self.store.grads
        if self._sum is None:
            self._sum = np.empty_like(grads)
        if first:
            np.copyto(self._sum, grads)
        else:
            np.add(self._sum, grads, out=self._sum)

    def _forward_backward(self, batch: Batch, key: StepKey, last: bool) -> float:
        root = self.root
        # gradients of a micro-batch that isn't the last are not yet those of the step
        done = self.sync.done if last else _ignore
        self.timing.to("forward")
        if self._head is not None and self._in_pieces(batch):
            x = self._input(batch.x)
            self._measured = self._status
            total, hidden = self._head.train(x, batch, key, self._scale, done)
            self._status[3] += hidden
            done(root)
            return total
        y = root.forward(self._input(batch.x), key)
        prediction = root.logits() if self.fused else y
        gradient = root.scratch(prediction.shape)
        scale = self._scale(prediction.shape)
        batch, hidden = apply_mask(
            batch, root.output_mask(), prediction.shape, self.loss
        )
        self._status[3] += hidden
        total = self.loss.sum_and_gradient(
            batch.y, prediction, batch.weights, scale, gradient
        )
        self._measure(batch, y, self._status)
        self.timing.to("backward")
        if self.fused:
            root.backward_logits(gradient, done)
        else:
            root.backward(gradient, done)
        done(root)
        return total

    def finish(self) -> None:
        """Let the optimizer's moving average, if there is one, take the weights'
        place."""
        if self.optimizer.use_ema:
            self.optimizer.finalize()
            self.sync.gather(self.store.values)

    # -- evaluation --------------------------------------------------------------

    def evaluate(
        self, source: Source, batch_size: int, batches: int | None = None
    ) -> dict[str, float]:
        """Return loss and metrics over all of ``source``, every sample once.

        With ``batches`` only so many are looked at, always the first ones.
        """
        sampler = Sampler(source.samples, batch_size, 0, shuffle=False, wrap=False)
        steps = sampler.steps_per_epoch
        wanted = range(min(steps, batches or steps))
        parts = shares(source, sampler, wanted, self.rows_of)
        with closing(load(parts, Pace(), source)) as loaded:
            return self.evaluate_shares(loaded)

    def evaluate_shares(
        self, parts: Iterable[Share], call: CallbackList | None = None
    ) -> dict[str, float]:
        """Return loss and metrics over the data of which these are this rank's.

        ``call`` is told of each batch and, if someone hears it, of the results so
        far, which takes a message to all ranks.
        """
        status = np.zeros_like(self._status)
        exact, table, shards = self.exact, ShardTable(self.comm), 0
        for number, mine in enumerate(parts):
            if call is not None:
                call("test_batch_begin", number, {})
            self._cut(mine)
            pieces = self._pieces(mine.batch, mine.mine) if mine.batch else ()
            self._total, self._count = mine.total, mine.losses
            for place, (_, part) in enumerate(pieces):
                self._evaluate_part(part, status)
                if exact is not None:
                    index = exact.shards.of[self.comm.rank][place]
                    table.put(shards + index, status)
                    status.fill(0)
            if exact is not None:
                shards += exact.shards.count
            if call is not None and call.hears("test_batch_end"):
                call("test_batch_end", number, self._so_far(status))
        if exact is not None:
            status = table.total(shards, status.size)
        else:
            self.comm.allreduce(status)
        status[0] += self._penalty() * status[1]
        return self.results(status)

    def _so_far(self, status: Array) -> dict[str, float]:
        if self.exact is not None:
            return {}  # the sums of the shards are added up at the end
        whole = status.copy()
        self.comm.allreduce(whole)
        whole[0] += self._penalty() * whole[1]
        return self.results(whole)

    def _evaluate_part(self, part: Batch, status: Array) -> None:
        if self._head is not None and self._in_pieces(part):
            self._measured = status
            total, hidden = self._head.evaluate(self._input(part.x), part)
            self._add_losses(status, part, (*part.y.shape, 1), total, hidden)
            return
        y = self.root.forward(self._input(part.x), False)
        prediction = self.root.logits() if self.fused else y
        shape = prediction.shape
        masked, hidden = apply_mask(part, self.root.output_mask(), shape, self.loss)
        total = self.loss.sum_and_gradient(
            masked.y, prediction, masked.weights, 1.0, None
        )
        self._add_losses(status, part, shape, total, hidden)
        self._measure(masked, y, status)

    def _add_losses(
        self,
        status: Array,
        part: Batch,
        shape: tuple[int, ...],
        total: float,
        hidden: int,
    ) -> None:
        """Add a part's losses: as a mean over those that count; the sum of a batch
        counts as often as the batch has losses, so that large ones weigh more."""
        count = _losses(part, self.loss.count(shape))
        if self.loss.reduction == "sum":
            status[0] += total * (self._count or count // shape[0] * self._total)
            status[1] += count
        else:
            status[0] += total
            status[1] += count - hidden

    def results(self, totals: Array | None = None) -> dict[str, float]:
        """Return mean loss and metrics of ``totals``, by default of all steps since
        ``reset_totals``; metrics whose result is an array are left out."""
        totals = self.totals if totals is None else totals
        named = {"loss": self.mean_loss(totals)}
        for metric, part in self._states(totals):
            metric.state[...] = part
            value = metric.result()
            if np.ndim(value) == 0:
                named[metric.name] = float(value)
        return named

    @property
    def step_totals(self) -> Array:
        """What the last step added to ``totals``, if it wasn't skipped."""
        return self._status

    def mean_loss(self, totals: Array | None = None) -> float:
        """Return the loss of ``results``."""
        totals = self.totals if totals is None else totals
        return float(totals[0] / totals[1]) if totals[1] else 0.0

    def with_arrays(self, results: dict[str, float]) -> dict[str, Any]:
        """Return the last results with those of metrics that are arrays, in order."""
        measured = {m.name: m.result() for m in self.metrics if m.name not in results}
        known = {**results, **measured}
        return {name: known[name] for name in ("loss", *(m.name for m in self.metrics))}

    def reset_totals(self) -> None:
        self.totals.fill(0)

    # -- helpers -----------------------------------------------------------------

    def _pieces(self, batch: Batch, mine: slice) -> Iterable[tuple[int, Batch]]:
        """Cut this rank's rows into micro-batches; yield (first global row, part)."""
        at_once = self.options.micro_batch
        if self.exact is not None:
            at_once = self.exact.shards.rows
        for piece in micro_batches(mine, at_once):
            local = slice(piece.start - mine.start, piece.stop - mine.start)
            x, y, weights = (_cut(part, local) for part in batch[:3])
            yield piece.start, Batch(x, y, weights, batch.masked)

    def _in_pieces(self, batch: Batch) -> bool:
        """Return whether the logits are too large to be computed whole."""
        return pieces_of(batch.y.size, self.root) > 1

    def _input(self, x: Any) -> Any:
        """Return x as the model computes it: floats of its type, or integers."""
        if isinstance(x, tuple):
            return tuple(
                self._converted(f"input{i}", array, integers)
                for i, (array, integers) in enumerate(
                    zip(x, self.root.takes_integers, strict=True)  # type: ignore
                )
            )
        return self._converted("input", x, bool(self.root.takes_integers))

    def _converted(self, name: str, x: Array, integers: bool) -> Array:
        if integers or x.dtype == self.root.dtype:
            return x
        out = self.root.buffer(name, x.shape)
        np.copyto(out, x, casting="unsafe")
        return out

    def rows_of(self, total: int, full: int) -> slice:
        """Return this rank's rows of a batch of ``total``; a full one has ``full``."""
        if self.exact is None:
            return share(total, self.comm.rank, self.comm.size)
        return self._shards(total, full).rows_of(self.comm.rank)

    def _shards(self, total: int, full: int) -> Shards:
        return make_shards(total, full, self.options.micro_batch, self.comm.size)

    def _cut(self, part: Share) -> None:
        if self.exact is not None:
            self.exact.shards = self._shards(part.total, part.full)

    def _measure(self, batch: Batch, y: Array, status: Array) -> None:
        """Add the metrics of a micro-batch to their places in ``status``.

        As in Keras, ``metrics=`` are not weighted by sample or class weights,
        ``weighted_metrics=`` are; what a mask leaves out isn't measured.
        """
        weights = batch.measured
        if weights is None and batch.masked:
            weights = batch.weights
        for metric, part in self._states(status):
            metric.reset()
            metric.take(batch.y, y, batch.weights if metric.weighted else weights)
            part += metric.state

    def _measure_piece(self, part: Batch, y: Array) -> None:
        self._measure(part, y, self._measured)

    def _states(self, status: Array) -> Iterable[tuple[Metric, Array]]:
        start = 4
        for metric in self.metrics:
            yield metric, status[start : start + metric.state.size]
            start += metric.state.size

    def _raise_nonfinite(
        self, batch: Batch | None, mine: slice, step: int, loss: float
    ) -> None:
        """Say where the first value that isn't finite arose, alike on all ranks."""
        place = None
        if batch is not None:
            for first_row, part in self._pieces(batch, mine):
                key = StepKey(self.seed, self.optimizer.step, first_row)
                x = self._input(part.x)
                place = place or first_nonfinite_layer(self.root, x, key)
            self.moving.undo()
        if place:
            place = f"output of {place} on rank {self.comm.rank} ({self.comm.host})"
        found = self.comm.gather_obj(place)
        first = next((p for p in found or [] if p), None)
        first = self.comm.broadcast_obj(first)
        if first is None:
            first = self._nonfinite_gradient() or "the loss itself"
        raise NonFiniteError(
            f"step {step + 1}: expected a finite loss and gradient",
            f"loss {loss}; not finite first: {first}",
            "lower the learning rate, clip the gradient (clip_norm), or look at the "
            "data of this step; the weights are those before the step",
        )

    def _nonfinite_gradient(self) -> str | None:
        """Return the first gradient that isn't finite, alike on all ranks."""
        grads = self.store.grads
        parts = self.sync.own or [slice(0, grads.size)]
        bad = [
            part.start + int(places[0])
            for part in parts
            if len(places := np.flatnonzero(~np.isfinite(grads[part])))
        ]
        everyone = self.comm.gather_obj(min(bad, default=None))
        found = [place for place in everyone or [] if place is not None]
        place = self.comm.broadcast_obj(min(found, default=None))
        return None if place is None else f"gradient of {self.store.at(place).path}"


def _losses(batch: Batch, outputs: int) -> int:
    """Return how many of the losses of so many outputs count."""
    if batch.masked and batch.weights is not None:
        return int(np.count_nonzero(batch.weights))
    return outputs


def _cut(part: Any, rows: slice) -> Any:
    """Return some rows of an array, or of each in a tuple; of None None."""
    if isinstance(part, tuple):
        return tuple(_cut(array, rows) for array in part)
    return None if part is None else part[rows]


def _ignore(layer: Any) -> None:
    pass
