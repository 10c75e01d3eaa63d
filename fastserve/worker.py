"""What each rank runs: configuration, data, model, training."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO, Any

from fastserve import config, environment
from fastserve.assemble.data import Data, make_data, read_text
from fastserve.assemble.model import (
    check_start,
    check_wishes,
    compile_model,
    make_model,
    make_sampler,
    only_first_batches,
    total_steps,
)
from fastserve.comm import Communicator, init
from fastserve.config import schema
from fastserve.config.labelled import Splits
from fastserve.config.run_folders import (
    refuse_to_replace,
    run_folder,
    saved_states,
)
from fastserve.config.trace import joined, steps_of
from fastserve.core import without_initial_values
from fastserve.data import preprocessing
from fastserve.data.encode import share_text
from fastserve.errors import CheckpointError, CommError, DataError, FastserveError
from fastserve.models import GPT, Model, huggingface
from fastserve.printing import (
    JSON,
    QUIET,
    WORDS,
    Printer,
    error_values,
    result_line,
    results_of,
    start_values,
)
from fastserve.summary import conclusion, interruption, introduction, sample
from fastserve.trained import check_tokenizer, kept_tokenizer
from fastserve.training import checkpoint, files, sharded_optimizer
from fastserve.training.callbacks import (
    Callback,
    EarlyStopping,
    ReduceLROnPlateau,
)
from fastserve.training.environment_file import write_environment
from fastserve.training.job_callbacks import BestCheckpoint, Checkpoints, StopAfter
from fastserve.training.loop import Schedule, run
from fastserve.training.metrics_file import MetricsFile
from fastserve.training.metrics_outputs import (
    CsvOutput,
    EventOutput,
    MetricsOutput,
    TensorBoardOutput,
)
from fastserve.training.numerics import numerics, odd_rank
from fastserve.training.progress import Progress
from fastserve.training.records import (
    describe_error,
    exit_status,
    start_logs,
    write_end,
    write_error,
)
from fastserve.training.recovery import Recovery
from fastserve.training.saver import Saver
from fastserve.training.status import Status
from fastserve.training.status_file import NAME as STATUS
from fastserve.training.status_file import mark_failed, trained_seconds
from fastserve.training.text_samples import Samples
from fastserve.training.trace import Tracing

USAGE = 2
UNRECORDED = 74  # why it failed can't be written into the run folder
STOPPED_EARLY = 75
_MEETING_SECONDS = 60.0
# what training and ``fastserve report`` leave, beside folders
_OF_A_RUN = ("metrics.jsonl", "metrics.csv", "trace.json", STATUS, "report.html")
_SAME_KEY = 0.5  # s; one Ctrl-C comes from the terminal, and from an mpirun as well
_STOPPING = (
    b"stopping: the ranks finish their step and save; Ctrl-C again ends them at once\n"
)
_OTHER_BITS = "from here on the bits aren't those of a run that wasn't stopped"
log = logging.getLogger("fastserve")
_held: list[IO[str]] = []  # run folders, until the process ends


def main(argv: Sequence[str] | None = None) -> int:
    """Run this rank of the job; return its exit status.

    An exception on one rank ends the job on all of them: its record goes to the run
    folder, or, while there is none yet, to standard error.
    """
    options = _parse(argv)
    printer = Printer(options.prints)
    try:
        comm = init()
    except FastserveError as error:
        printer.event("error", {**error_values(error), "status": USAGE})
        print(error, file=sys.stderr)
        return USAGE
    started: list[_Run] = []  # the training, once it has the run folder

    def departed(error: FastserveError) -> None:
        _report(error, comm, started, printer)

    comm.on_departure = departed
    try:
        _meet(comm)
        return _train(options, comm, started, printer)
    except BaseException as error:  # noqa: BLE001  all of them must end the job
        status = _report(error, comm, started, printer)
        if comm.size > 1:
            comm.abort(status)
        return status
    finally:
        printer.close()


def _meet(comm: Communicator) -> None:
    """See that messages reach all ranks, before anything that may take long."""
    comm.timeout = _MEETING_SECONDS
    comm.barrier()
    comm.timeout = None


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m fastserve", description="One rank of a training job."
    )
    parser.add_argument("config", help="the job's YAML file")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE"
    )
    parser.add_argument("--resume", metavar="auto|PATH")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--stop-after", type=int, metavar="STEPS")
    parser.add_argument("--trace", metavar="FIRST:COUNT")  # or auto: the default
    parser.add_argument(
        "--quiet", dest="prints", action="store_const", const=QUIET, default=WORDS
    )
    parser.add_argument("--json", dest="prints", action="store_const", const=JSON)
    return parser.parse_args(joined(sys.argv[1:] if argv is None else argv))


def _report(
    error: BaseException, comm: Communicator, started: list[_Run], printer: Printer
) -> int:
    """Say and record why this rank ends; return the status of the job."""
    status = exit_status(error) or 1  # leaving the others alone is a failure too
    recorded = False
    if started:
        with suppress(OSError, CheckpointError):  # the disk may be what is wrong
            folder, made = started[0].folder, started[0].made
            write_error(folder, comm, error, made)
            recorded = True
            if comm.rank == 0:
                mark_failed(folder, environment.setting("JOB"), made)
        log.info("%s", describe_error(error))
        if not recorded:
            status = UNRECORDED  # the launcher knows by it that the reason is shown
    else:
        status = USAGE  # refused before there is a run; the reason is shown below
    if not recorded or environment.setting("JOB") is None:
        printer.error(error, comm, status)
    return status


def _train(
    options: argparse.Namespace,
    comm: Communicator,
    started: list[_Run],
    printer: Printer,
) -> int:
    """Train; ``started`` gets the training once the run folder is this run's."""
    recovery = Recovery()
    recovery.done("Python and MPI")
    traced = steps_of(options.trace) if options.trace else None
    job, folder = _agree(options, comm)
    data, model = _prepare(job, comm, _resumed(options, folder))
    training = _Run(options, comm, printer, job, folder, data, model, recovery)
    _compare_ranks(job, comm)
    recovery.done("data and model")
    training.resume()
    recovery.done("checkpoint")
    training.take_folder()
    started.append(training)
    training.start()
    comm.timeout = job.comm.timeout
    training.train(traced)
    comm.timeout = None  # what follows is rank 0's alone, and may take its time
    return training.end()


class _Run:
    """The training of a job on this rank.

    Attributes:
        sampler: which rows each step has. steps: when it ends.
        first: the steps that were made already. seconds: the time they took.
        plan: what of the job the number of a step depends on.
        cut: how a batch is cut and summed, on which the bits depend.
        extras: the callbacks that have a state, by its name.
        progress, schedule, status, best, history: once it has been trained.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        comm: Communicator,
        printer: Printer,
        job: config.Job,
        folder: Path,
        data: Data,
        model: Model,
        recovery: Recovery,
    ) -> None:
        self.options, self.comm, self.printer = options, comm, printer
        self.recovery = recovery
        self.job, self.folder, self.data, self.model = job, folder, data, model
        self.sampler = make_sampler(job, data)
        self.steps = total_steps(job, self.sampler)
        self.trainer = model.prepare(data.train)
        samples = data.train.samples
        batch = job.train.global_batch
        self.plan = {"global_batch": batch, "samples": samples, "seed": job.seed}
        self.cut = {"algorithm": job.comm.algorithm, "shard_rows": job.shard_rows}
        self.numerics = numerics()
        self.early = _early_stopping(job)
        self.extras = _extras(job)
        self.metrics = MetricsFile(
            folder / "metrics.jsonl",
            job.train.log_every,
            _outputs(job, folder, printer),
        )
        self.first = 0
        self._loaded = False  # a checkpoint was loaded
        self.seconds = 0.0

    @property
    def made(self) -> int:
        """Steps made, those before a checkpoint that was loaded included."""
        return self.trainer.optimizer.step

    def resume(self) -> None:
        """Take over the checkpoint to go on from, or the weights to start from."""
        self.first, saved = _load(
            self.options,
            self.folder,
            self.model,
            self.data,
            self.comm,
            self.plan,
            self.early,
        )
        self._loaded = bool(saved)
        self.metrics.set_state(saved.get("metrics", {}))
        for name, callback in self.extras.items():
            if name in saved:
                callback.set_state(saved[name])
        if self.comm.rank == 0:
            _compare_numerics(self.job, saved.get("numerics"), self.numerics)
            _compare_cut(saved, self.cut)
        if self.first > self.steps:
            raise CheckpointError(
                f"--resume: expected a checkpoint of at most {self.steps} steps",
                f"one of step {self.first}",
                "raise train.steps or train.epochs",
            )
        if self.first == 0:
            _load_start(self.job, self.model, self.comm)

    def _state(self) -> dict[str, Any]:
        """Return what a checkpoint has beside weights and the optimizer's state."""
        # as text, because JSON has no NaN and no infinity
        totals = [repr(total) for total in self.trainer.totals.tolist()]
        parts = {
            "early_stop": self.early,
            "spikes": self.trainer.guard,
            "metrics": self.metrics,
            **self.extras,
        }
        states = {name: part.get_state() for name, part in parts.items() if part}
        known = {**self.plan, **self.cut, "numerics": self.numerics}
        return {"totals": totals, **states, **known}

    def take_folder(self) -> None:
        """Keep others out of the run folder, and write what every run has."""
        another = _from_another(self.options, self.folder)
        fresh = self.first == 0 or another
        self.seconds = 0.0 if fresh else trained_seconds(self.folder)
        if self.comm.rank == 0:
            _hold(self.folder)
            if (another or not self._loaded) and not self.options.overwrite:
                # another job may have trained there since we looked
                refuse_to_replace(self.folder)
        _start_folder(self.folder, self.job, self.data, self.comm, fresh)

    def start(self) -> None:
        """Begin the logs, and say what is trained."""
        job, data, folder, comm = self.job, self.data, self.folder, self.comm
        start_logs(folder / "logs", comm)
        _catch_signals(self.trainer, comm)
        surroundings = write_environment(folder, comm)
        if surroundings is None:
            return
        model, steps, first = self.model, self.steps, self.first
        self.printer.block(
            introduction(job, data, model, steps, self.sampler, comm, folder, first)
        )
        known = job, data, model, steps, first, folder, surroundings
        self.printer.event("start", start_values(*known))

    def train(self, traced: tuple[int, int] | None) -> None:
        """Make the steps; ``traced`` of them, if they are to be traced."""
        job, data, trainer, printer = self.job, self.data, self.trainer, self.printer
        # 1: a bar on a terminal, else a line every log_every steps
        level = 1 if printer.mode == WORDS else 0
        self.progress = Progress(
            level,
            job.train.log_every,
            whole=True,
            say=printer.say,
            means=lambda: self.metrics.means,
        )
        self.schedule = Schedule(
            job.train.eval_every
            or (self.sampler.steps_per_epoch if job.train.epochs else self.steps),
            self.steps,
            self.first,
            validation_batches=job.train.eval_batches,
        )
        saver = Saver(
            self.folder / "checkpoints",
            trainer.store,
            trainer.optimizer,
            self.comm,
            job.comm.check_every > 0,
            _lock_of(self.folder),
            trainer.timing,
            self.metrics.path,
            job.checkpoint.keep_every,
        )
        self.status = Status(self.folder / STATUS, self.seconds)
        self.best = BestCheckpoint(saver, self._state)
        try:
            self.history = run(
                self.model,
                trainer,
                data.train,
                self.sampler,
                self.schedule,
                data.validation,
                job.train.global_batch,
                self._callbacks(saver, traced),
                level,
                data.bytes_per_token,
            )
        except BaseException as error:
            saver.settle(error)
            raise

    def _callbacks(
        self, saver: Saver, traced: tuple[int, int] | None
    ) -> list[Callback]:
        job, options, say = self.job, self.options, self.progress.say
        if isinstance(plateau := self.extras.get("plateau"), ReduceLROnPlateau):
            plateau.say = say
        # the progress shows what the metrics have come to
        found = [self.metrics, self.progress, self.status]
        if self.comm.rank == 0 and self.recovery.parts:
            found.append(self.recovery.tell(say))
        if self.early:
            found.append(self.early)  # before those that save its state
        found += self.extras.values()
        if job.checkpoint.best:
            found.append(self.best)
        kept = job.checkpoint
        found.append(
            Checkpoints(saver, kept.every, kept.keep, kept.at_end, self._state)
        )
        if job.train.sample_every is not None:
            made = partial(sample, job, self.data, self.model)
            found.append(Samples(job.train.sample_every, made, say))
        if options.stop_after:
            found.append(StopAfter(self.trainer, options.stop_after))
        if options.trace:
            found.append(Tracing(self.folder / "trace.json", say, traced))  # the last
        return found

    def end(self) -> int:
        """Say and record how the training has ended; return the exit status."""
        made = self.made
        early = self.early
        why = _why_early(early, made, self.schedule) if early else None
        stopped = made < self.steps and not why
        self.status.end("stopped" if stopped else "ended")
        if stopped:
            return self._end_stopped(made)
        self._end_done(made, why)
        return 0

    def _end_stopped(self, made: int) -> int:
        launched = environment.setting("JOB") is not None
        if self.comm.rank == 0:
            self._tell_stopped(f"after step {made} of {self.steps}, saved", launched)
        write_end(self.folder / "stopped.json", self.comm, {"steps": made})
        if self.comm.rank == 0:
            end = {"state": "stopped", "status": STOPPED_EARLY, "steps": made}
            self.printer.event("end", {**end, "run": str(self.folder)})
        # An MPI may kill the ranks that are still ending once one has ended with
        # another status than 0, so the launcher gives it to the user.
        return 0 if launched else STOPPED_EARLY

    def _tell_stopped(self, when: str, launched: bool) -> None:
        """Say how far the training came; a launcher adds what to type next, as it knows
        the command."""
        if self.printer.mode == QUIET:
            cure = "" if launched else "; --resume auto goes on"
            self.printer.result(f"stopped {when}{cure}")
            return
        epochs = self.history.epoch
        validated = (epochs[-1] + 1) * self.schedule.steps_per_epoch if epochs else 0
        told = interruption(
            self.history.history, self.folder, self.status, self.best, when, validated
        )
        if not launched:
            told += "\nnext     the same command with --resume auto"
        self.printer.block(told)

    def _end_done(self, made: int, early: str | None) -> None:
        printer, rank = self.printer, self.comm.rank
        if rank == 0:
            printer.block(
                conclusion(
                    self.job,
                    self.data,
                    self.model,
                    self.history.history,
                    self.folder,
                    self.status,
                    self.best,
                    early,
                )
            )
        why = {"stopped": early} if early else {}
        write_end(self.folder / "done.json", self.comm, {"steps": made, **why})
        if rank == 0:
            results = results_of(self.history.history)
            seconds = self.status.before + self.status.elapsed
            if printer.mode == QUIET:
                line = result_line(self.folder, made, results, seconds)
                printer.result(line)
            end = {"state": "ended", "status": 0, "steps": made, "results": results}
            end |= {**why, "seconds": seconds, "best_step": self.best.step}
            printer.event("end", {**end, "run": str(self.folder)})


def _early_stopping(job: config.Job) -> EarlyStopping | None:
    patience = job.train.early_stop
    return None if patience is None else EarlyStopping(patience=patience)


def _extras(job: config.Job) -> dict[str, Callback]:
    """Return the callbacks that the job asks for, by the names of their states."""
    found: dict[str, Callback] = {}
    plateau = job.schedule
    if isinstance(plateau, schema.Plateau):
        found["plateau"] = ReduceLROnPlateau(
            factor=plateau.factor,
            patience=plateau.patience,
            verbose=1,
            min_delta=plateau.min_delta,
            cooldown=plateau.cooldown,
            min_lr=plateau.min_lr,
        )
    return found


def _outputs(job: config.Job, run_dir: Path, printer: Printer) -> list[MetricsOutput]:
    """Return what takes the lines of metrics.jsonl as well."""
    found: list[MetricsOutput] = [EventOutput(printer.event)]
    if job.train.csv:
        found.append(CsvOutput(run_dir / "metrics.csv"))
    if job.train.tensorboard:
        found.append(TensorBoardOutput(run_dir / "tensorboard"))
    return found


def _why_early(early: EarlyStopping, made: int, schedule: Schedule) -> str | None:
    """Return why the training has ended before its last step; None if it hasn't."""
    if not early.stopped_epoch:
        return None
    when = (early.best_epoch + 1) * schedule.steps_per_epoch
    times = "1 validation" if early.wait == 1 else f"{early.wait} validations"
    best = "" if early.best is None else f" than {early.best:.4f} at step {when}"
    return f"after step {made}: {times} without a lower loss{best} (train.early_stop)"


def _agree(options: argparse.Namespace, comm: Communicator) -> tuple[config.Job, Path]:
    """Return the job and its run folder; rank 0 reads and decides, all take it over.

    Raises CheckpointError if the folder holds checkpoints that a new run would lose.
    """
    found = None
    if comm.rank == 0:
        job = config.load_job(options.config, options.overrides)
        given = environment.setting("RUN_DIR")
        run_dir = Path(given).absolute() if given else run_folder(job, Path.cwd())
        new = not options.resume or _from_another(options, run_dir)
        if new and not options.overwrite:
            refuse_to_replace(run_dir)
        found = (job.model_dump(), str(run_dir))
    values, folder = comm.broadcast_obj(found)
    return config.Job.model_validate(values), Path(folder)


def _prepare(
    job: config.Job, comm: Communicator, resumed: Path | None
) -> tuple[Data, Model]:
    """Make data and model, compiled, on rank 0 first: a fault in them or in how they
    fit is then said once.

    A text is read by rank 0 alone, and its tokens are sent to the others.
    """
    text = None
    if isinstance(job.data, schema.TextData) and comm.rank == 0:
        text = read_text(job.data, kept_tokenizer(job, resumed))

    found: preprocessing.Preprocessing | None = None

    def make() -> tuple[Data, Model]:
        data = make_data(job, text, comm.rank == 0, preprocessing=found)
        if comm.rank == 0:
            check_start(job, data)
        if job.train.overfit_batches:
            data = only_first_batches(job, data)
        loads = getattr(job.model, "init_from", None)  # all but what LoRA adds
        with without_initial_values() if loads else nullcontext():
            shape = data.train.input_shape
            model = make_model(job, data.vocab_size, shape, data.classes)
        if isinstance(model, GPT):
            model.reset_at = data.reset_at
        compile_model(job, model, total_steps(job, make_sampler(job, data)))
        check_wishes(job, data, model)
        for source in filter(None, (data.train, data.validation)):
            model.check_source(source)
        return data, model

    made = make() if comm.rank == 0 else None
    comm.barrier()
    if isinstance(job.data, Splits):  # only rank 0 has to look for it in the data
        found = comm.broadcast_obj(made and made[0].preprocessing)
    if isinstance(job.data, schema.TextData):
        text = share_text(text, comm)
    return made or make()


def _resumed(options: argparse.Namespace, run_dir: Path) -> Path | None:
    """Return the run folder that training goes on from, if any."""
    if options.resume in (None, "auto"):
        # without checkpoints it starts anew, with a tokenizer of its own
        return run_dir if options.resume and saved_states(run_dir) else None
    source = Path(options.resume).absolute()
    return source.parent.parent if (source / "state.json").exists() else source


def _from_another(options: argparse.Namespace, run_dir: Path) -> bool:
    """Return whether training goes on from another run than that of ``run_dir``."""
    source = _resumed(options, run_dir)
    if source is None or not source.exists():
        return False
    return source.resolve() != run_dir.resolve()


def _load(
    options: argparse.Namespace,
    run_dir: Path,
    model: Model,
    data: Data,
    comm: Communicator,
    plan: dict[str, int],
    early: EarlyStopping | None,
) -> tuple[int, dict[str, Any]]:
    """Load the checkpoint to go on from, if any; return the steps already made, and
    what was saved with them."""
    if not options.resume:
        return 0, {}
    trainer = model.prepare(data.train)
    source = run_dir if options.resume == "auto" else Path(options.resume).absolute()
    state = None
    loaded: list[Path] = []
    refuses = True
    if comm.rank == 0:
        if run_dir.exists():
            _hold(run_dir)
        goals = trainer.store, trainer.optimizer, loaded.append
        if (source / "state.json").exists():
            _check_kept(source.parent.parent, data)
            state = checkpoint.load(source, *goals)
        else:
            folder = source / "checkpoints"
            if saved_states(source):
                _check_kept(source, data)
            state = checkpoint.load_newest(folder, *goals)
            # what is later there was damaged, and will be replaced
            refuses = source.resolve() != run_dir.resolve()
        if state is None and options.resume != "auto":
            raise CheckpointError(
                "--resume: expected a run folder or a checkpoint",
                str(source),
                "give a folder: runs/NAME or runs/NAME/checkpoints/step-00000200",
            )
        for name, value in plan.items() if state else ():
            if state and state.get(name, value) != value:
                raise CheckpointError(
                    f"--resume: expected the {name} that the run was started with, "
                    f"{state[name]}: the number of a step means other data otherwise",
                    f"{value}",
                    "take the same again, or start a new run",
                )
        if refuses or options.overwrite:
            _clear_later(run_dir, trainer.optimizer.step, options.overwrite)
    step, state = comm.broadcast_obj((trainer.optimizer.step, state or {}))
    comm.broadcast(trainer.store.values)
    if step:
        path = loaded[-1] if loaded else None
        sharded_optimizer.hand_out(path, trainer.store, trainer.optimizer, comm)
    trainer.optimizer.step = step
    totals = state.get("totals", ())
    if len(totals) == len(trainer.totals):
        trainer.totals[...] = [float(total) for total in totals]
    if early is not None:
        early.set_state(state.get("early_stop", {}))
    if trainer.guard is not None and "spikes" in state:
        trainer.guard.set_state(state["spikes"])
    return int(step), state


def _compare_ranks(job: config.Job, comm: Communicator) -> None:
    """See that all ranks compute alike: an error with the algorithm exact, where the
    bits of the result would depend on who computes what; a warning else."""
    odd = odd_rank(comm)
    if odd is None:
        return
    if job.comm.algorithm != "exact":
        if comm.rank == 0:
            log.warning("ranks compute with other rounding: %s", odd)
        return
    if comm.rank == 0:
        raise CommError(
            "expected the same NumPy, BLAS, kernels and threads on all ranks, with "
            "comm.algorithm exact",
            odd,
            "install the same versions, set launch.threads and OPENBLAS_CORETYPE; for "
            "SIMD name what the others haven't in NPY_DISABLE_CPU_FEATURES",
        )
    comm.barrier()  # rank 0, which says it once, ends all


def _compare_numerics(job: config.Job, saved: Any, own: environment.Numerics) -> None:
    if not isinstance(saved, dict):
        return
    found = environment.differences_from_recorded(saved, own)
    if found:
        means = "results will be the same but for rounding"
        log.warning(
            "resumed with %s: %s",
            found,
            _OTHER_BITS if job.comm.algorithm == "exact" else means,
        )


def _compare_cut(saved: dict[str, Any], own: dict[str, Any]) -> None:
    """Warn if a batch is cut or summed otherwise than before, where that promised or
    promises bits. Older checkpoints don't tell how they were made."""
    names = {"algorithm": "comm.algorithm", "shard_rows": "shards of"}
    if "exact" not in (saved.get("algorithm"), own["algorithm"]):
        return
    found = [
        f"{shown} {own[name]} instead of {saved[name]}"
        for name, shown in names.items()
        if name in saved and None not in (saved[name], own[name])
        if saved[name] != own[name]
    ]
    if found:
        log.warning("resumed with %s: %s", ", ".join(found), _OTHER_BITS)


def _load_start(job: config.Job, model: Model, comm: Communicator) -> None:
    """Fill the model of rank 0 from ``model.init_from``; the loop sends it to all."""
    folder = getattr(job.model, "init_from", None)
    if folder is not None and comm.rank == 0:
        assert isinstance(model, GPT)  # only a gpt has this key
        huggingface.load_weights(model, folder)


def _clear_later(run_dir: Path, step: int, overwrite: bool) -> None:
    """See that no checkpoint is left of steps that are about to be made again.

    Raises CheckpointError if there are some, unless they may be overwritten.
    """
    later = checkpoint.candidates(run_dir / "checkpoints", after=step)
    if later and not overwrite:
        raise CheckpointError(
            f"--resume from step {step}: expected no later checkpoints in {run_dir}",
            ", ".join(sorted(f.name for f in later)),
            "remove them with --overwrite, or take another name with --set name=NAME",
        )
    best = run_dir / "checkpoints" / checkpoint.BEST
    known = checkpoint.read_state(best)
    if overwrite and known and known["step"] > step:
        later.append(best)
    with files.writing(run_dir):
        for folder in later:
            files.discard(folder)


def _check_kept(run_dir: Path, data: Data) -> None:
    """See that the data are encoded as those that the run was started with."""
    check_tokenizer(run_dir, data)
    kept, made = preprocessing.read(run_dir), data.preprocessing
    if kept is None or made is None or kept.dumps() == made.dumps():
        return
    what = "inputs" if kept.target == made.target else "targets"
    raise DataError(
        f"expected the data that the run was started with, encoded as in "
        f"{run_dir / preprocessing.FILE}",
        f"data of other {what}",
        "use the same data and the same keys of the data section, or start a new run",
    )


def _hold(run_dir: Path) -> None:
    """Keep other jobs out of the run folder; raises CheckpointError if one is in it."""
    if _lock_of(run_dir) is None:
        _held.append(files.hold(run_dir))


def _lock_of(run_dir: Path) -> IO[str] | None:
    return next((lock for lock in _held if Path(lock.name).parent == run_dir), None)


def _start_folder(
    run_dir: Path, job: config.Job, data: Data, comm: Communicator, fresh: bool
) -> None:
    if comm.rank == 0:
        with files.writing(run_dir):
            if fresh:
                files.clear(run_dir / "checkpoints")
                for name in ("errors", "logs", "plots", "tensorboard"):
                    # NFS can't remove a folder while somebody reads a file of it, and
                    # nothing goes on from what is left
                    with suppress(OSError):
                        files.clear(run_dir / name)
                for name in _OF_A_RUN:
                    files.remove(run_dir / name)
            for name in ("done.json", "stopped.json"):  # of STATUS the times go on
                (run_dir / name).unlink(missing_ok=True)
        # values of launch.env may be secrets, and a run folder may be shared
        known = environment.numeric_variables(job.launch.env)
        public = job.launch.model_copy(update={"env": known})
        kept = job.model_copy(update={"launch": public})
        files.write_atomically(run_dir / "config.yaml", config.dump_job(kept))
        if data.tokenizer is not None:
            text = json.dumps(data.tokenizer.to_json())
            files.write_atomically(run_dir / "tokenizer.json", text)
        if data.preprocessing is not None:
            made = data.preprocessing.dumps()
            files.write_atomically(run_dir / preprocessing.FILE, made)
    comm.barrier()


def _catch_signals(trainer: Any, comm: Communicator) -> None:
    """Finish the step, save and end on SIGTERM and SIGUSR1, and on SIGINT where no
    launcher makes SIGUSR1 of it; a second SIGINT ends at once."""
    asked: list[float] = []

    def stop(number: int, frame: FrameType | None) -> None:
        trainer.stop_requested = True

    def interrupt(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if asked and now - asked[0] > _SAME_KEY:
            raise KeyboardInterrupt
        if not asked and comm.rank == 0:
            os.write(2, _STOPPING)  # a print of the main program may be under way
        asked.append(now)
        trainer.stop_requested = True

    if environment.setting("NO_SIGNALS") is not None:
        return
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGUSR1, stop)
    # it is ignored in a job that a shell has put into the background
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours and environment.setting("JOB") is None:
        signal.signal(signal.SIGINT, interrupt)
