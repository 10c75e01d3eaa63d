"""What people read at the start and at the end of a run."""

from __future__ import annotations

import shlex
from pathlib import Path

from fastserve import config
from fastserve.assemble.data import Data
from fastserve.comm import Communicator
from fastserve.core import generator
from fastserve.data.end_token import WithEnd
from fastserve.data.linear_baseline import linear_r2, r2
from fastserve.data.sampler import Sampler
from fastserve.data.tokenizers import Tokenizer
from fastserve.errors import DataError
from fastserve.formatting import count, duration, number
from fastserve.models import GPT, Model
from fastserve.training.job_callbacks import BestCheckpoint
from fastserve.training.status import Status

_HOSTS = 8  # that the start block names


def introduction(
    job: config.Job,
    data: Data,
    model: Model,
    steps: int,
    sampler: Sampler,
    comm: Communicator,
    run_dir: Path,
    first: int,
) -> str:
    """Return model, data, split of the batch and compute, a line each."""
    m = job.model
    shape = ""
    if m.type == "gpt":
        shape = (
            f", {several(m.n_layer, 'layer')}, {several(m.n_head, 'head')}, "
            f"width {m.n_embd}, context {m.block_size}, variant {m.variant}"
        )
    lines = [
        f"model    {m.type}{shape}: {_weights(model)}",
        f"data     {data.summary}",
        *(f"         {note}" for note in data.notes),
        f"ranks    {_ranks(comm)}",
        f"batch    {_split(job, comm)}",
        f"steps    {steps}, {_passes(sampler.passes(steps))} over the data",
        f"compute  {_compute()}",
        f"run      {short(run_dir)}",
    ]
    if first:
        more = "train.steps" if job.train.epochs is None else "train.epochs"
        over = f": all {steps} steps are made; raise {more} to go on"
        lines.append(f"resume   after step {first}{over if first >= steps else ''}")
    elif m.type == "gpt" and m.init_from:
        lines.append(f"start    from the weights in {m.init_from}")
    return "\n".join(lines)


def several(count: int, name: str) -> str:
    """Return a count with its noun: 1 layer, 2 layers."""
    return f"{count} {name}{'s' if count != 1 else ''}"


def _passes(passes: float) -> str:
    shown = f"{passes:.3g}"
    return f"{shown} pass{'es' if shown != '1' else ''}"


def _weights(model: Model) -> str:
    trained = ""
    if model.store.frozen_parameters:
        trained = f", {count(model.store.count)} of them trained"
    return f"{count(model.count_params())} weights{trained}"


def _ranks(comm: Communicator) -> str:
    """Return ``4 on node1 (2), node2 (2), Open MPI 5.0.11``; of many hosts some."""
    if comm.size == 1:
        return f"1, a single process on {comm.host}"
    counts = [(comm.hosts[group[0]], len(group)) for group in comm.groups]
    shown = ", ".join(f"{host} ({ranks})" for host, ranks in counts[:_HOSTS])
    more = f" and {len(counts) - _HOSTS} more" if len(counts) > _HOSTS else ""
    where = counts[0][0] if len(counts) == 1 else f"{shown}{more}"
    return f"{comm.size} on {where}" + (f", {comm.library}" if comm.library else "")


def _split(job: config.Job, comm: Communicator) -> str:
    total, size = job.train.global_batch, comm.size
    if job.shard_rows is not None:  # a rank has whole shards
        micro = min(job.shard_rows, total)
        shards = -(-total // micro)
        accumulation = -(-shards // size)
        even = total % (size * micro) == 0
        cut = f", in {several(shards, 'shard')}"
    else:
        rows = -(-total // size)
        micro = min(job.train.micro_batch or rows, rows)
        accumulation = -(-rows // micro)
        even = total % size == 0 and rows % micro == 0
        cut = ""
    return (
        f"global {total} = {several(size, 'rank')} x {'' if even else 'up to '}{micro} "
        f"x {accumulation} accumulation{cut}"
    )


def _compute() -> str:
    from threadpoolctl import threadpool_info

    parts = []
    for pool in threadpool_info():
        if pool["user_api"] == "blas":
            threads = pool["num_threads"]
            plural = "s" if threads > 1 else ""
            kernel = pool.get("architecture", "unknown")
            parts.append(
                f"{threads} thread{plural} a rank, {pool['internal_api']} "
                f"{pool['version']} with {kernel} kernels"
            )
    return "; ".join(parts) or "unknown BLAS"


def conclusion(
    job: config.Job,
    data: Data,
    model: Model,
    history: dict[str, list[float]],
    run_dir: Path,
    status: Status,
    best: BestCheckpoint,
    ended: str | None = None,
) -> str:
    """Return results, where the time went, a sample of text, and what to type next."""
    lines = _times(status)
    lines += [f"stopped  {ended}"] if ended else []
    lines += _validation(history, _compared(job, data, history))
    lines += _explained(data, model)
    lines += _best(best, run_dir)
    text = sample(job, data, model)
    if text:
        lines += ["sample", *(f"  {line}" for line in text.splitlines())]
    lines.append(f"run      {short(run_dir)}")
    lines.append(f"next     fastserve {_next(data, model, run_dir)}")
    return "\n".join(lines)


def interruption(
    history: dict[str, list[float]],
    run_dir: Path,
    status: Status,
    best: BestCheckpoint,
    when: str,
    validated: int,
) -> str:
    """Return how far a training that was stopped came; ``validated`` is the step of its
    last validation. There may be little time left, so nothing is computed for it."""
    lines = [*_times(status), f"stopped  {when}"]
    lines += _validation(history, [f"at step {validated}"])
    lines += _best(best, run_dir)
    return "\n".join([*lines, f"run      {short(run_dir)}"])


def _validation(history: dict[str, list[float]], more: list[str]) -> list[str]:
    """Return the last values of the validation; ``more`` goes behind the loss."""
    results = {k: v[-1] for k, v in history.items() if k.startswith("val_")}
    lines = []
    loss = results.pop("val_loss", None)
    if loss is not None:
        parts = [number(loss)]
        if "val_perplexity" in results:
            parts = [f"{number(loss)} nats a token"]
            parts.append(f"perplexity {number(results.pop('val_perplexity'))}")
        if "val_bits_per_byte" in results:
            parts.append(f"{number(results.pop('val_bits_per_byte'))} bits a byte")
        lines.append(f"val_loss {', '.join([*parts, *more])}")
    return lines + [f"{name:8} {number(value)}" for name, value in results.items()]


def _best(best: BestCheckpoint, run_dir: Path) -> list[str]:
    if best.best is None:
        return []
    where = short(run_dir / "checkpoints" / "best")
    return [f"best     val_loss {number(best.best)} at step {best.step}, in {where}"]


def _next(data: Data, model: Model, run_dir: Path) -> str:
    run = shlex.quote(short(run_dir))
    if not any(run_dir.glob("checkpoints/*/state.json")):  # only numbers are left
        return f"report {run}"
    if isinstance(model, GPT) and data.tokenizer is not None:
        prompt = shlex.quote(data.prompt) if data.prompt else opening(data.tokenizer)
        return f"generate {run} --prompt {prompt}"
    if data.test is not None:
        return f"evaluate {run} --split test"
    if data.preprocessing is not None:
        return f"predict {run} --input FILE"
    return f"report {run}"


def _times(status: Status) -> list[str]:
    """Say how long the training took, in all starts of the run, and with what."""
    if not status.made:
        earlier = f"{duration(status.before)} before; " if status.before else ""
        return [f"trained  {earlier}nothing was left to do"]
    whole = duration(status.before + status.elapsed)
    now = f", {duration(status.elapsed)} of it since the resume"
    times = status.summary().split("\n")
    heads = ["time    ", *[" " * 8] * (len(times) - 1)]
    return [
        f"trained  {whole}{now if status.before else ''}",
        *(f"{head} {line}" for head, line in zip(heads, times, strict=True)),
    ]


def _explained(data: Data, model: Model) -> list[str]:
    """Say how much of a number's variance the model explains, and a linear one."""
    held = data.validation
    if held is None or data.target_value is None:
        return []
    found, linear = r2(model.forward, held), linear_r2(data.train, held)
    beside = "" if linear is None else f", a linear model's {linear:.4f}"
    return [f"R2       {found:.4f} to validate{beside}"]


def opening(tokenizer: Tokenizer | WithEnd) -> str:
    """Return a prompt that the tokenizer knows, quoted for a shell."""
    if isinstance(tokenizer, WithEnd):  # its last token may be the end
        tokenizer = tokenizer.tokenizer
    try:
        tokenizer.encode("The ")
    except DataError:  # of characters
        return shlex.quote(tokenizer.decode([tokenizer.vocab_size - 1]))
    return "'The '"


def _compared(
    job: config.Job, data: Data, history: dict[str, list[float]]
) -> list[str]:
    """Say whether a language model's loss is below that of counted pairs of tokens."""
    t = job.train
    compared = t.baseline and not t.overfit_batches
    if not compared or not history.get("val_perplexity"):
        return []
    samples = t.eval_batches and t.eval_batches * t.global_batch
    baseline = data.baseline(samples)
    if baseline is None:
        return []
    better = "below" if history["val_loss"][-1] < baseline else "NOT below"
    return [f"{better} a 2-gram model's {number(baseline)} nats"]


def sample(job: config.Job, data: Data, model: Model) -> str:
    """Return text that the model goes on with after a piece of the validation text."""
    tokens, tokenizer = data.tokens, data.tokenizer
    if not isinstance(model, GPT) or tokens is None or tokenizer is None:
        return ""
    text = tokens[1] if len(tokens[1]) else tokens[0]
    start = int(generator(job.seed, "sample").integers(max(1, len(text) - 32)))
    prompt = text[start : start + 32].tolist()
    made = model.generate(prompt, job.train.sample_tokens, 0.8, seed=job.seed)
    known = [t for t in made if t < tokenizer.vocab_size]  # it may be padded
    return tokenizer.decode(prompt + known) if made else ""


def short(path: Path) -> str:
    """Return the path relative to the working directory where that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
