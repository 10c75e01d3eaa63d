"""What people read at the start and at the end of a run."""

from __future__ import annotations

from pathlib import Path

from fastserve import config
from fastserve.assemble import Data
from fastserve.comm import Communicator
from fastserve.core import generator
from fastserve.data.sampler import Sampler
from fastserve.models import GPT, Model
from fastserve.training.progress import Progress, count, duration, number


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
            f", {m.n_layer} layers, {m.n_head} heads, width {m.n_embd}, "
            f"context {m.block_size}, variant {m.variant}"
        )
    passes = steps * job.train.global_batch / sampler.samples
    lines = [
        f"model    {m.type}{shape}: {_weights(model)}",
        f"data     {data.summary}",
        f"batch    {_split(job, comm)}",
        f"steps    {steps}, {passes:.3g} passes over the data",
        f"compute  {_compute()}",
        f"run      {short(run_dir)}",
    ]
    if first:
        lines.append(f"resume   after step {first}")
    elif m.type == "gpt" and m.init_from:
        lines.append(f"start    from the weights in {m.init_from}")
    return "\n".join(lines)


def _weights(model: Model) -> str:
    trained = ""
    if model.store.frozen_parameters:
        trained = f", {count(model.store.count)} of them trained"
    return f"{count(model.count_params)} weights{trained}"


def _split(job: config.Job, comm: Communicator) -> str:
    total, size = job.train.global_batch, comm.size
    rows = -(-total // size)
    micro = min(job.train.micro_batch or rows, rows)
    ranks = f"{size} rank{'s' if size > 1 else ''}"
    uneven = "up to " if total % size or rows % micro else ""
    return (
        f"global {total} = {ranks} x {uneven}{micro} x {-(-rows // micro)} accumulation"
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
    progress: Progress,
) -> str:
    """Return results, a sample of text, and what to type next."""
    lines = [f"trained  {duration(progress.seconds)}"]
    results = {k: v[-1] for k, v in history.items() if k.startswith("val_")}
    for name, value in results.items():
        lines.append(f"{name:8} {number(value)}")
    baseline = data.baseline() if job.train.baseline and results else None
    if baseline is not None:
        better = "below" if results["val_loss"] < baseline else "NOT below"
        lines[-1] += f" nats a token, {better} a 2-gram model's {number(baseline)}"
    sample = _sample(job, data, model)
    if sample:
        lines += ["sample", *(f"  {line}" for line in sample.splitlines())]
    lines.append(f"run      {short(run_dir)}")
    if isinstance(model, GPT) and data.tokenizer is not None:
        lines.append(f"next     fastserve generate {short(run_dir)} --prompt 'The '")
    return "\n".join(lines)


def _sample(job: config.Job, data: Data, model: Model) -> str:
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
