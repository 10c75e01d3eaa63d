"""``fastserve prepare``: text into token files."""

from __future__ import annotations

from typing import Any

import click

from .. import jobs
from . import options


@click.command()
@click.argument(
    "inputs", nargs=-1, required=True, type=options.PATH, metavar="INPUT..."
)
@click.option(
    "--to",
    required=True,
    type=options.PATH,
    metavar="FOLDER",
    help="The folder to make.",
)
@click.option(
    "--tokenizer",
    default="bpe",
    show_default=True,
    metavar="char|byte|bpe|PATH",
    help="What a token is; a path of a tokenizer.json, or of a folder with one.",
)
@click.option(
    "--vocab-size", type=click.IntRange(257), help="Of bpe; 8192 if not given."
)
@click.option(
    "--validation-split",
    type=click.FloatRange(0.0, 1.0, max_open=True),
    default=0.0,
    show_default=True,
    help="Share of the text, at its end, to validate on.",
)
@click.option(
    "--jsonl-key", default="text", show_default=True, help="Key of a line's text."
)
@click.option(
    "--errors",
    type=click.Choice(["strict", "replace"]),
    default="strict",
    show_default=True,
    help="What to do with bytes that aren't UTF-8.",
)
@click.option("--overwrite", is_flag=True, help="Replace a folder that is there.")
@options.where
def prepare(
    inputs: tuple[str, ...],
    to: str,
    tokenizer: str,
    vocab_size: int | None,
    validation_split: float,
    jsonl_key: str,
    errors: str,
    overwrite: bool,
    **where: Any,
) -> int:
    """Turn text or JSONL into token files, in parallel over ranks.

    Of a folder all of these that are in it are taken.

    \b
    Examples:
      fastserve prepare books/ --to tokens --vocab-size 8192 --validation-split 0.01
      fastserve prepare a.jsonl b.jsonl --to tokens --tokenizer byte -n 4
    """
    words = ["--to", to, "--tokenizer", tokenizer, "--jsonl-key", jsonl_key]
    words += ["--validation-split", str(validation_split), "--errors", errors]
    words += ["--vocab-size", str(vocab_size)] if vocab_size is not None else []
    words += ["--overwrite"] if overwrite else []
    one = {"TOKENIZERS_PARALLELISM": "false"}  # the ranks are what is parallel
    words += ["--", *inputs]
    said = {**jobs.launch_keys(**where), "env": one}
    return jobs.start_program("fastserve.data.prepare", words, said)
