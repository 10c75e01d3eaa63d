"""Callbacks that save: models to keep, and backups to go on from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastserve.core import Array
from fastserve.errors import ArgumentError, CheckpointError
from fastserve.training import checkpoint, files, sharded_optimizer
from fastserve.training.callbacks.base import Callback, Logs, Monitor

if TYPE_CHECKING:
    from fastserve.comm import Communicator
    from fastserve.training.step import Trainer


class ModelCheckpoint(Monitor):
    """Saves the model at the end of each epoch, or of the best ones; as Keras'.

    A file is replaced only once the new one is complete. Rank 0 writes; what differs
    between ranks isn't saved: ``fit`` raises ReplicaError.

    Args:
        filepath: may hold ``{epoch}``, ``{batch}`` and names of the logs, for example
            ``runs/{epoch:02d}-{val_loss:.2f}.safetensors``; epochs count from 1.
        monitor, mode: see ``Monitor``; for ``save_best_only``.
        verbose: 1 prints each save.
        save_best_only: save only what is better than all before.
        save_weights_only: leave out the architecture, which ``load_model`` needs.
        save_freq: 'epoch', or a number of batches.
        initial_value_threshold: value that the first one saved must be better than.
    """

    def __init__(
        self,
        filepath: str | Path,
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: str | int = "epoch",
        initial_value_threshold: float | None = None,
    ) -> None:
        super().__init__(monitor, mode)
        if save_freq != "epoch" and not (isinstance(save_freq, int) and save_freq > 0):
            raise ArgumentError(
                "ModelCheckpoint: expected save_freq 'epoch' or a number of batches",
                repr(save_freq),
            )
        self.filepath, self.verbose = str(filepath), verbose
        self.save_best_only = save_best_only
        self.save_weights_only = save_weights_only
        self.save_freq, self.best = save_freq, initial_value_threshold

    def on_train_begin(self, logs: Logs | None = None) -> None:
        if self.save_best_only:
            super().on_train_begin(logs)
        self._epoch = self._batches = 0

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._batches += 1
        if self.save_freq != "epoch" and self._batches % int(self.save_freq) == 0:
            self._save(batch, logs)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if self.save_freq == "epoch":
            self._save(None, logs)

    def _save(self, batch: int | None, logs: Logs | None) -> None:
        if self.save_best_only:
            value = self.current(logs)
            if value is None or not self.improves(value, self.best):
                return
            self.best = value
        path = self._path(batch, logs or {})
        if self.model.trainer is not None:
            self.model.trainer.compare()
        if self.save_weights_only:
            self.model.save_weights(path)
        else:
            self.model.save(path)
        if self.verbose and self.rank == 0:
            print(f"epoch {self._epoch + 1}: saved {path}", flush=True)

    def _path(self, batch: int | None, logs: Logs) -> str:
        known = {"epoch": self._epoch + 1, **logs}
        if batch is not None:
            known["batch"] = batch + 1
        try:
            return self.filepath.format(**known)
        except (KeyError, IndexError, ValueError) as error:
            raise ArgumentError(
                "ModelCheckpoint: expected a filepath with names of values, such as "
                "'{epoch:02d}-{val_loss:.2f}.safetensors'",
                f"{self.filepath!r}: {error}",
                f"known: {', '.join(sorted(known))}",
            ) from None


class BackupAndRestore(Callback):
    """Lets ``fit`` go on where a training that was killed has been saved; as Keras'.

    A backup holds weights, the optimizer's state, the step, the learning rate, the
    metrics of the epoch so far, and the states of the other callbacks; the order of
    the samples follows from the step. So the same call of ``fit`` gives the same
    weights as if it hadn't been killed. It is complete or not there at all, and gone
    once ``fit`` has ended. The history starts with the epoch that is gone on with.

    Args:
        backup_dir: a folder for this training alone.
        save_freq: 'epoch', or a number of batches.
        double_checkpoint: keep the backup before, too.
        delete_checkpoint: delete the backup when ``fit`` has ended.

    ``fit`` raises CheckpointError if a backup is there that can't be loaded, or was
    made with other data or another batch size; ReplicaError, before it saves, for
    weights that differ between ranks.
    """

    def __init__(
        self,
        backup_dir: str | Path,
        save_freq: str | int = "epoch",
        double_checkpoint: bool = False,
        delete_checkpoint: bool = True,
    ) -> None:
        if not str(backup_dir):
            raise ArgumentError("BackupAndRestore: expected a folder", "''", "name one")
        if save_freq != "epoch" and not (isinstance(save_freq, int) and save_freq > 0):
            raise ArgumentError(
                "BackupAndRestore: expected save_freq 'epoch' or a number of batches",
                repr(save_freq),
            )
        self.folder, self.save_freq = Path(backup_dir), save_freq
        self.keep = 2 if double_checkpoint else 1
        self.delete_checkpoint = delete_checkpoint

    def restore(
        self, trainer: Trainer, callbacks: Sequence[Callback], plan: dict[str, Any]
    ) -> int | None:
        """Load the backup, if there is one; return the steps that it has made.

        ``plan`` must be as it was when the backup was made. All ranks call it.
        """
        self._trainer, self._callbacks, self._plan = trainer, callbacks, plan
        if plan["steps"] is None:
            raise ArgumentError(
                "BackupAndRestore: expected a training with a known number of steps",
                "data of unknown length",
                "give fit steps_per_epoch",
            )
        comm, store, optimizer = trainer.comm, trainer.store, trainer.optimizer
        state = None
        loaded: list[Path] = []
        if comm.rank == 0:
            goals = store, optimizer, loaded.append
            state = checkpoint.load_newest(self.folder, *goals)
            if state is not None:
                self._check(state)
        state, made = comm.broadcast_obj((state, optimizer.step))
        if state is None:
            return None
        trainer.share_weights()
        path = loaded[-1] if loaded else None
        sharded_optimizer.hand_out(path, store, optimizer, comm)
        optimizer.step = made
        if state["learning_rate"] is not None:
            optimizer.learning_rate = state["learning_rate"]
        if len(state["totals"]) == len(trainer.totals):
            trainer.totals[...] = [float(total) for total in state["totals"]]
        if trainer.guard is not None and state["spikes"] is not None:
            trainer.guard.set_state(state["spikes"])
        arrays = self._read_arrays(state, trainer.comm)
        for name, callback in self._named():
            if name in state["callbacks"]:
                callback.set_state(state["callbacks"][name])
            if name in arrays:
                callback.set_arrays(arrays[name])
        return int(state["step"])

    def _read_arrays(
        self, state: dict[str, Any], comm: Communicator
    ) -> dict[str, dict[str, Array]]:
        """Return the callbacks' arrays, that rank 0 reads, on all ranks."""
        kinds = state["arrays"]
        read: dict[str, Array] = {}
        if comm.rank == 0 and kinds:
            read = checkpoint.read_arrays(self.folder / _arrays_file(state["step"]))
        found: dict[str, dict[str, Array]] = {}
        for name, inside in kinds.items():
            for part, (shape, dtype) in inside.items():
                array = read.get(f"{name}/{part}", np.empty(shape, dtype))
                comm.broadcast(array)
                found.setdefault(name, {})[part] = array
        return found

    def _check(self, state: dict[str, Any]) -> None:
        for name, value in self._plan.items():
            found = state.get("plan", {}).get(name)
            if found != value:
                raise CheckpointError(
                    f"BackupAndRestore: expected a backup of this training in "
                    f"{self.folder}, with {name} {value}",
                    f"{found}",
                    "call fit with the same data and batch size, or delete the folder",
                )

    def _named(self) -> list[tuple[str, Callback]]:
        others = [c for c in self._callbacks if c is not self]
        return [(f"{i} {type(c).__name__}", c) for i, c in enumerate(others)]

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._step = self.params["first_step"]

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._step += 1
        if self._step % self.params["steps"]:  # else what ends the epoch comes first
            self._save_if_due()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if self._step % self.params["steps"] == 0:
            self._save_if_due(ended=True)

    def _save_if_due(self, ended: bool = False) -> None:
        if self.save_freq == "epoch":
            due = ended
        else:
            due = self._step % int(self.save_freq) == 0
        if due:
            self._save()

    def _save(self) -> None:
        trainer = self._trainer
        trainer.compare()
        rate = trainer.optimizer.learning_rate
        states = {name: callback.get_state() for name, callback in self._named()}
        guard, arrays = trainer.guard, self._write_arrays()
        state = {
            "plan": self._plan,
            "learning_rate": None if callable(rate) else rate,
            # as text, because JSON has no NaN and no infinity
            "totals": [repr(total) for total in trainer.totals.tolist()],
            "spikes": None if guard is None else guard.get_state(),
            "callbacks": {name: state for name, state in states.items() if state},
            "arrays": arrays,
        }
        store, optimizer, comm = trainer.store, trainer.optimizer, trainer.comm
        sharded_optimizer.save(
            self.folder, self._step, store, optimizer, state, self.keep, comm
        )
        if self.rank == 0:  # those of backups that are gone
            for path in self.folder.glob("callbacks-*.safetensors"):
                if not (self.folder / f"step-{path.stem[10:]}").exists():
                    path.unlink()

    def _write_arrays(self) -> dict[str, dict[str, Any]]:
        """Write the callbacks' arrays, and return their shapes and types."""
        named = [(name, callback.get_arrays()) for name, callback in self._named()]
        flat = {f"{n}/{part}": a for n, arrays in named for part, a in arrays.items()}
        if flat and self.rank == 0:
            checkpoint.write_arrays(self.folder / _arrays_file(self._step), flat)
        return {
            name: {part: [list(a.shape), a.dtype.str] for part, a in arrays.items()}
            for name, arrays in named
            if arrays
        }

    def on_train_end(self, logs: Logs | None = None) -> None:
        if not self.delete_checkpoint or self.rank != 0:
            return
        for path in reversed(checkpoint.candidates(self.folder)):  # the newest last
            files.discard(path)
        for path in self.folder.glob("callbacks-*.safetensors"):
            path.unlink()
        for name in (checkpoint.LATEST, Path(checkpoint.BASE).name):
            (self.folder / name).unlink(missing_ok=True)
        if self.folder.exists() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def _arrays_file(step: int) -> str:
    return f"callbacks-{step:08d}.safetensors"
