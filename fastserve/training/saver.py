"""``Saver``: writes checkpoints while the training goes on."""

from __future__ import annotations

import copy
import logging
import threading
import time
from pathlib import Path
from typing import IO, Any

import numpy as np

from fastserve.comm import Communicator
from fastserve.core import Array, Parameter, ParameterStore
from fastserve.errors import LossSpikeError, NonFiniteError, ReplicaError
from fastserve.optimizers import Optimizer
from fastserve.training import checkpoint, files, sharded_optimizer
from fastserve.training.diagnose import check_replicas
from fastserve.training.timing import Timing

_ALIKE = LossSpikeError, NonFiniteError, ReplicaError  # what all ranks raise together
_PATIENCE = 20.0  # seconds
THREAD = "saver"  # its name
_SLOW = 30.0  # seconds after which a save is said to take long

log = logging.getLogger("fastserve")


class Snapshot:
    """A copy of weights and of the optimizer's state, as a checkpoint needs them.

    Weights that never change are not copied. The memory is taken once.
    """

    def __init__(self, store: ParameterStore, optimizer: Optimizer) -> None:
        self._store, self._optimizer = store, optimizer
        self._values = np.empty_like(store.values)
        self._moved: list[tuple[Array, Array]] = []  # frozen ones that change
        self.state = {k: np.empty_like(v) for k, v in optimizer.state.items()}
        self.own, self.step = optimizer.own, optimizer.step
        self.parameters = [self._copied(p) for p in store.parameters]
        self.frozen_parameters = [
            p if p.base else self._copied(p) for p in store.frozen_parameters
        ]

    def _copied(self, parameter: Parameter) -> Parameter:
        twin = copy.copy(parameter)
        if parameter.trainable:
            value = self.view(self._values, parameter)
        else:
            value = np.empty_like(parameter.value)
            self._moved.append((value, parameter.value))
        twin.bind(value, value)
        return twin

    def view(self, vector: Array, parameter: Parameter) -> Array:
        return self._store.view(vector, parameter)

    def take(self) -> None:
        """Copy everything as it is now."""
        np.copyto(self._values, self._store.values)
        for value, source in self._moved:
            np.copyto(value, source)
        for name, vector in self._optimizer.state.items():
            np.copyto(self.state[name], vector)
        self.step = self._optimizer.step


class Saver:
    """Saves a trainer's checkpoints; all ranks call ``save`` and ``finish``.

    Rank 0 copies what is to be saved, and a thread writes the copy, so a step waits for
    the copy alone, and for the checkpoint before if that is still being written. For a
    file they wait as long as it takes, whatever the communicator's ``timeout``. What
    goes wrong is raised by the next call. The state of a sharded optimizer comes from
    all ranks through the gradients' memory, so there the ranks wait for the file.

    With ``compare`` nothing is saved that isn't the same on all ranks: ``save`` raises
    ReplicaError then. ``lock`` is what ``files.hold`` returned for the run folder: one
    that was removed isn't made again, ``save`` raises CheckpointError. ``timing`` notes
    the time that training waits for. The lines of the file ``history``, if it is there,
    are on the disk before a checkpoint that comes after them is. ``keep_every`` is
    that of ``checkpoint.save``.
    """

    def __init__(
        self,
        folder: Path,
        store: ParameterStore,
        optimizer: Optimizer,
        comm: Communicator,
        compare: bool = True,
        lock: IO[str] | None = None,
        timing: Timing | None = None,
        history: Path | None = None,
        keep_every: int | None = None,
    ) -> None:
        self.folder, self._comm, self._history = folder, comm, history
        self._timing, self._keep_every = timing or Timing(), keep_every
        self._compare, self._lock = compare and comm.size > 1, lock
        self._store, self._optimizer = store, optimizer
        self._snapshot: Snapshot | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, state: dict[str, Any], keep: int | None) -> None:
        """Save the checkpoint of ``step``, or with ``keep`` None the best one."""
        self.finish()
        with self._timing.within("saving"):
            self._save(step, state, keep)

    def _save(self, step: int, state: dict[str, Any], keep: int | None) -> None:
        if self._compare:
            check_replicas(self._store, self._comm, step - 1, self._optimizer)
        if self._comm.rank == 0:
            files.check_there(self.folder.parent, self._lock)
        if self._optimizer.own is not None:
            with self._comm.after_rank_0():
                if self._comm.rank == 0:
                    self._sync_history()
            parts = self._store, self._optimizer, state, keep, self._comm
            sharded_optimizer.save(self.folder, step, *parts, self._keep_every)
        elif self._comm.rank == 0:
            if self._snapshot is None:
                self._snapshot = Snapshot(self._store, self._optimizer)
            self._snapshot.take()
            # a daemon, because a failed rank must end whatever this thread does
            self._thread = threading.Thread(
                target=self._write, args=(step, state, keep), name=THREAD, daemon=True
            )
            self._thread.start()

    def _write(self, step: int, state: dict[str, Any], keep: int | None) -> None:
        assert self._snapshot is not None
        try:
            held: Any = self._snapshot
            with self._timing.on_thread(THREAD, "write checkpoint", step=step):
                self._sync_history()
                parts = held, held, state, keep, None, self._keep_every
                checkpoint.save(self.folder, step, *parts)
                files.check_there(self.folder.parent, self._lock)
        except BaseException as error:  # noqa: BLE001  raised in the training's thread
            self._error = error

    def _sync_history(self) -> None:
        """Else a machine that loses its power keeps a checkpoint without the lines."""
        if self._history is not None and self._history.exists():
            with files.writing(self._history):
                files.sync(self._history)

    def settle(self, error: BaseException) -> None:
        """Let rank 0 write to its end what it is writing, before ``error`` ends the
        job; at most for some seconds, and not after Ctrl-C, which is to end it at once.

        A rank that fails alone ends the job at once.
        """
        if isinstance(error, KeyboardInterrupt):
            return
        if self._thread is not None:
            self._thread.join(_PATIENCE)
        elif self._comm.rank and isinstance(error, _ALIKE):
            time.sleep(_PATIENCE)  # rank 0 ends all ranks before

    def check(self) -> None:
        """Raise what went wrong since the last call, if anything did."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def finish(self) -> None:
        """Wait until all is written; raise what went wrong."""
        waiting = self._timing.within("saving", "wait for the saver")
        with waiting, self._comm.after_rank_0():
            if self._thread is not None:
                self._join(self._thread)
                self._thread = None
            self.check()

    def _join(self, thread: threading.Thread) -> None:
        start, said = time.monotonic(), _SLOW
        while thread.is_alive():
            thread.join(start + said - time.monotonic())
            if thread.is_alive():
                log.warning(
                    f"a checkpoint is still being written after {said:g} s, and all "
                    f"ranks wait for it: see how busy the disk of {self.folder} is"
                )
                said *= 2
