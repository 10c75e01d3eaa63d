"""Prompts and completions: the file, the rows, the loss, whole jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastserve import trained, worker
from fastserve.comm import Communicator, run_threads
from fastserve.config import load_job
from fastserve.data.completions import (
    CompletionSource,
    Example,
    Pair,
    encode_pairs,
    pack,
    read_pairs,
)
from fastserve.data.end_token import WithEnd
from fastserve.data.sampler import Sampler
from fastserve.data.subset import first_batches
from fastserve.data.tokenizers import (
    ByteTokenizer,
    CharTokenizer,
    tokenizer_from_json,
)
from fastserve.errors import ConfigError, DataError
from fastserve.import_export import export_run
from fastserve.models import GPT
from fastserve.training import large_vocabulary
from fastserve.training.step import Options

Array = np.ndarray[Any, np.dtype[Any]]
END = 10


def examples(count: int = 23, longest: int = 17, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        length = int(rng.integers(3, longest + 1))
        tokens = rng.integers(0, END, length).astype(np.int32)
        tokens[-1] = END
        made.append(Example(tokens, int(rng.integers(1, length - 1))))
    return made


def test_tokens_of_a_pair() -> None:
    tokenizer = WithEnd(CharTokenizer.train("abc"))
    made = encode_pairs("f", [Pair(1, "ab", "c")], tokenizer, 8, cut=False)
    (example,) = made.examples
    assert example.tokens.tolist() == [0, 1, 2, 3]
    assert example.prompt == 2
    source = CompletionSource(made.examples, 5, 3)
    batch = source.batch(np.array([0]), np.array([0]))
    assert batch.x.tolist() == [[0, 1, 2, 3, 3]]
    assert batch.y.tolist() == [[1, 2, 3, 3, 3]]
    assert batch.weights is not None
    assert batch.weights.tolist() == [[0, 1, 1, 0, 0]]
    assert source.losses(np.array([0])) == 2
    assert source.filled == pytest.approx(4 / 6)


def test_packing_fills_rows_and_keeps_all() -> None:
    lengths = [5, 6, 3, 10, 2, 2, 1]
    rows = pack(lengths, 10)
    assert rows == [[0, 2, 4], [1, 5, 6], [3]]
    made = examples(200)
    packed = CompletionSource(made, 40, END)
    single = CompletionSource(made, 40, END, packing=False)
    assert packed.samples < single.samples == 200
    assert (
        packed.counted == single.counted == sum(len(e.tokens) - e.prompt for e in made)
    )
    assert packed.filled > 0.9


def test_long_examples() -> None:
    tokenizer = WithEnd(CharTokenizer.train("abc"))
    pairs = [Pair(1, "aaaa", "bbbb"), Pair(4, "a" * 7, "b"), Pair(5, "aaa", "bbb")]
    with pytest.raises(DataError, match=r"file, line 1: 9 tokens") as error:
        encode_pairs("file", pairs, tokenizer, 6, cut=False)
    assert "at most 7 tokens" in error.value.expected
    made = encode_pairs("file", pairs, tokenizer, 6, cut=True)
    assert (made.cut, made.left_out) == (1, 1)
    assert made.examples[0].tokens.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert made.examples[1].tokens.tolist() == [0, 0, 0, 1, 1, 1, 3]
    with pytest.raises(DataError, match="1 longer ones"):
        encode_pairs("file", pairs[1:2], tokenizer, 6, cut=True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "a"', "no JSON"),
        (b'["prompt"]', "JSON that is no object"),
        (b'{"prompt": "a"}', "no completion"),
        (b'{"completion": "a"}', "no prompt"),
        (b'{"prompt": "a", "completion": ""}', "an empty completion"),
        (b'{"prompt": "", "completion": "a"}', "an empty prompt"),
        (b'{"prompt": 3, "completion": "a"}', "prompt: 3"),
        (b'{"prompt": "a", "completion": "\\ud800"}', "half a surrogate pair"),
        (b'{"prompt": "\xff", "completion": "a"}', "byte 0xff"),
        (b"[" * 100_000, "no JSON"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"prompt": "a", "completion": "b"}\n\n' + line + b"\n")
    with pytest.raises(DataError) as error:
        read_pairs(path)
    assert f"x.jsonl, line 3: {message}" in str(error.value)
    assert error.value.todo


def test_files_without_pairs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_pairs(tmp_path / "none")
    (tmp_path / "empty").write_text("\n\n")
    with pytest.raises(DataError, match="at least one line"):
        read_pairs(tmp_path / "empty")


def test_texts_that_the_tokenizer_or_the_end_token_forbid() -> None:
    line_end = WithEnd(CharTokenizer.train("ab\n"), "\n")
    with pytest.raises(DataError, match=r"line 7: 'a.nb' with the end token"):
        encode_pairs("f", [Pair(7, "a\nb", "b")], line_end, 9, cut=False)
    with pytest.raises(DataError, match="line 8: 'c'"):
        encode_pairs("f", [Pair(8, "a", "c")], line_end, 9, cut=False)


def test_a_tokenizer_with_an_end() -> None:
    for tokenizer in (
        WithEnd(ByteTokenizer()),
        WithEnd(CharTokenizer.train("ab\n"), "\n"),
    ):
        again = tokenizer_from_json(json.loads(json.dumps(tokenizer.to_json())))
        assert isinstance(again, WithEnd)
        assert (again.end, again.vocab_size) == (tokenizer.end, tokenizer.vocab_size)
        assert again.decode(again.encode("ab")) == "ab"
    assert WithEnd(ByteTokenizer()).decode([97, 256, 98]) == "ab"
    assert WithEnd(CharTokenizer.train("ab\n"), "\n").vocab_size == 3
    with pytest.raises(DataError, match="'ab', which is 2 tokens"):
        WithEnd(ByteTokenizer(), "ab")
    for wrong in ({}, {"tokenizer": 3}, {"tokenizer": {"type": "with_end"}}):
        with pytest.raises(DataError, match="with_end"):
            tokenizer_from_json({"type": "with_end", "text": None, **wrong})


# -- the loss --------------------------------------------------------------------------


def gpt(block: int = 24, reset: bool = True, **options: Any) -> GPT:
    model = GPT(END + 1, block, 2, 2, 16, seed=4, **options)
    model.reset_at = END if reset else None
    model.compile("sgd", metrics=["accuracy"])
    return model


def gradient(comm: Communicator, packing: bool, **options: Any) -> tuple[float, Array]:
    """Return loss and gradient of one step over all examples, in float64."""
    model = gpt(dtype="float64")
    model.options = Options(**options)
    source = CompletionSource(examples(), 24, END, packing)
    assert model.optimizer is not None
    trainer = model.prepare(source)
    sampler = Sampler(source.samples, source.samples, 0, shuffle=False, wrap=False)
    result = trainer.train(source, sampler, 0)
    return result.loss, model.store.grads.copy()


def one_by_one() -> tuple[float, Array, int]:
    """Return summed loss, its gradient, and count, from each example alone."""
    total, count = 0.0, 0
    grads: Any = 0.0
    model = gpt(reset=False, dtype="float64")
    loss = model.loss
    assert loss is not None
    for example in examples():
        x, y = example.tokens[None, :-1], example.tokens[None, 1:]
        weights = (np.arange(y.shape[1]) >= example.prompt - 1)[None].astype(float)
        logits = model.root.forward(x.astype(np.int64), True)
        dy = np.empty_like(logits)
        total += loss.sum_and_gradient(y, logits, weights, 1.0, dy)
        model.root.backward(dy)
        grads = grads + model.store.grads
        count += int(weights.sum())
    return total, grads, count


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize(
    ("ranks", "options"),
    [(1, {}), (1, {"micro_batch": 3}), (2, {"micro_batch": 2}), (5, {})],
)
def test_neither_packing_nor_the_split_changes_the_gradient(
    packing: bool, ranks: int, options: dict[str, Any]
) -> None:
    total, grads, count = one_by_one()
    for loss, found in run_threads(ranks, lambda c: gradient(c, packing, **options)):
        assert loss == pytest.approx(total / count, rel=1e-9)
        np.testing.assert_allclose(found, grads / count, atol=1e-9)


def test_evaluation_is_the_mean_of_what_counts() -> None:
    total, _, count = one_by_one()

    def program(comm: Communicator, packing: bool) -> Any:
        model = gpt(dtype="float64")
        source = CompletionSource(examples(), 24, END, packing)
        return model.evaluate(source, batch_size=5, verbose=0)

    results = [
        result
        for ranks in (1, 3)
        for packing in (True, False)
        for result in run_threads(ranks, lambda c, p=packing: program(c, p))
    ]
    for loss, accuracy in results:
        assert loss == pytest.approx(total / count, rel=1e-9)
        assert accuracy == pytest.approx(results[0][1], abs=1e-12)


@pytest.mark.parametrize("packing", [True, False])
def test_the_head_in_pieces_counts_and_looks_alike(
    packing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks, metrics and documents are those of the logits as a whole."""
    total, grads, count = one_by_one()

    def evaluate(comm: Communicator) -> Any:
        source = CompletionSource(examples(), 24, END, packing)
        return gpt(dtype="float64").evaluate(source, batch_size=5, verbose=0)

    whole = run_threads(1, evaluate)[0]
    monkeypatch.setattr(large_vocabulary, "PIECE_BYTES", 500)  # of 24 x 11 x 8 a row
    options = {"micro_batch": 3}
    for loss, found in run_threads(2, lambda c: gradient(c, packing, **options)):
        assert loss == pytest.approx(total / count, rel=1e-9)
        np.testing.assert_allclose(found, grads / count, atol=1e-9)
    for pieces in run_threads(2, evaluate):
        assert pieces == pytest.approx(whole, rel=1e-9)


def test_some_batches_of_completions_divide_by_their_own_losses() -> None:
    source = CompletionSource(examples(), 24, END, packing=False)
    sampler = Sampler(source.samples, 5, 3, shuffle=True, wrap=False)
    chosen = first_batches(source, sampler, 2)
    plain = Sampler(chosen.samples, 5, 3, shuffle=False, wrap=False)
    steps = []
    for data, order in ((source, sampler), (chosen, plain)):
        trainer = gpt(reset=False).prepare(data)
        steps.append([trainer.train(data, order, step).loss for step in range(2)])
    assert steps[0] == steps[1]


def test_exact_is_what_generation_gives() -> None:
    model = gpt(reset=False)
    rng = np.random.default_rng(1)
    for parameter in model.store.parameters:
        parameter.value[...] += 0.3 * rng.standard_normal(parameter.shape)
    made = []
    for example in examples(12):
        prompt = example.tokens[: example.prompt].tolist()
        answer = model.generate(prompt, 3, 0)
        if len(made) % 3 == 0:
            answer[1] = (answer[1] + 1) % END
        made.append(Example(np.array(prompt + answer, np.int32), len(prompt)))
    source = CompletionSource(made, 24, END, packing=False)
    assert source.exact(model.forward, rows=2) == pytest.approx(8 / 12)


# -- whole jobs ------------------------------------------------------------------------

JOB = """
name: tiny
seed: 1
model: {type: gpt, n_layer: 1, n_head: 2, n_embd: 32, block_size: 24}
data: {type: completions, file: tasks.jsonl, validation_split: 0.2}
train: {global_batch: 8, steps: 60, log_every: 20}
optimizer: {type: adamw, lr: 1e-2}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a job: the completion is the prompt's letter in capitals."""
    letters = "abcdefgh"
    rng = np.random.default_rng(0)
    with (tmp_path / "tasks.jsonl").open("w") as file:
        for _ in range(300):
            letter, times = letters[rng.integers(8)], int(rng.integers(1, 4))
            pair = {"prompt": f"{letter}:", "completion": letter.upper() * 2}
            file.write(json.dumps({"times": times, **pair}) + "\n")
    (tmp_path / "job.yaml").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_job_from_the_file_to_answers(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert worker.main(["job.yaml"]) == 0
    out = capsys.readouterr().out
    assert "tasks.jsonl, 240 examples and 60 to validate, in 48 rows of 24" in out
    asked = json.loads((folder / "tasks.jsonl").read_text().splitlines()[0])["prompt"]
    assert f"fastserve generate runs/tiny --prompt {asked}" in out
    assert [trained.generate("runs/tiny", f"{x}:", 20, 0) for x in "ceh"] == [
        "c:CC",
        "e:EE",
        "h:HH",
    ]
    found = trained.evaluate("runs/tiny")
    assert found["loss"] < 0.05
    assert found["exact"] == 1
    pair = {"prompt": "h:", "completion": "HH"}  # with few of the characters
    (folder / "other.jsonl").write_text(json.dumps(pair) + "\n" + json.dumps(pair))
    other = trained.evaluate("runs/tiny", overrides=["data.validation=other.jsonl"])
    assert other["exact"] == 1
    other = trained.evaluate(
        "runs/tiny", overrides=["data.file=other.jsonl", "data.validation_split=0.5"]
    )
    assert other["exact"] == 1
    shapes, forward = [], GPT.forward

    def seen(model: GPT, x: Any) -> Any:
        shapes.append(x.shape)
        return forward(model, x)

    monkeypatch.setattr(GPT, "forward", seen)
    monkeypatch.setattr(
        large_vocabulary, "PIECE_BYTES", 2000
    )  # less than a row's logits
    assert trained.evaluate("runs/tiny") == pytest.approx(found, rel=1e-3)
    assert set(shapes) == {(1, 24)}


def test_a_job_that_cuts_and_ends_lines(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (folder / "tasks.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "a:", "completion": "A" * 40}) + "\n")
    assert worker.main(["job.yaml", "--set", "data.validation_split=0"]) == 2
    assert "tasks.jsonl, line 301: 43 tokens" in capsys.readouterr().err
    assert not (folder / "runs").exists()
    options = ["data.too_long=cut", 'data.end="\\n"', "train.steps=1"]
    assert worker.main(["job.yaml", *(x for o in options for x in ("--set", o))]) == 0
    out = capsys.readouterr().out
    assert "too long: 1 cut, 0 left out" in out
    tokenizer = json.loads((folder / "runs/tiny/tokenizer.json").read_text())
    assert tokenizer["text"] == "\n"


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("data.tokenizer=bpe", "expected char or byte, or an existing tokenizer"),
        ("data.tokenizer=nope.json", "received 'nope.json'"),
        ("train.sample_every=5", "train.sample_every: expected null"),
    ],
)
def test_faults_that_a_check_finds(folder: Path, override: str, fault: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_job("job.yaml", [override])
    assert fault in str(error.value)


def test_a_job_goes_on_from_another_tokenizer(folder: Path) -> None:
    assert worker.main(["job.yaml", "--set", "train.steps=1"]) == 0
    other = ["--set", "data.tokenizer=runs/tiny/tokenizer.json", "--set", "name=next"]
    assert worker.main(["job.yaml", "--set", "train.steps=1", *other]) == 0
    texts = [
        (folder / f"runs/{n}/tokenizer.json").read_text() for n in ("tiny", "next")
    ]
    assert texts[0] == texts[1]
    export_run("runs/tiny", "start")
    for name in ("runs/tiny/tokenizer.json", "start/tokenizer.json"):
        more = ["model.init_from=start", f"data.tokenizer={name}", "train.steps=1"]
        raw = JOB.replace("n_layer: 1, n_head: 2, n_embd: 32, block_size: 24", "")
        (folder / "more.yaml").write_text(raw.replace("gpt, }", "gpt}"))
        words = [x for o in [*more, "name=more"] for x in ("--set", o)]
        assert worker.main(["more.yaml", *words, "--overwrite"]) == 0
    (folder / "runs/tiny/tokenizer.json").unlink()  # the other run has a copy
    assert trained.evaluate("runs/next")["loss"] > 0


@pytest.mark.parametrize("end", [0, None, 99])
def test_text_whose_attention_is_reset(
    folder: Path,
    end: int | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (folder / "text").write_text("one two three\nfour five six\n" * 40)
    lines = JOB.replace(
        "type: completions, file: tasks.jsonl", "type: text, source: text"
    )
    (folder / "job.yaml").write_text(lines)
    chosen = [
        "data.reset_attention=true",
        f"data.end_token={end or (0 if end == 0 else 'null')}",
    ]
    arguments = [x for o in [*chosen, "train.steps=3"] for x in ("--set", o)]
    assert worker.main(["job.yaml", *arguments]) == (0 if end == 0 else 2)
    if end == 0:
        assert "\n" not in trained.generate("runs/tiny", "on", 40)
        seen = []
        monkeypatch.setattr(
            GPT, "generate", lambda model, *_: seen.append(model.reset_at) or []
        )
        trained.generate("runs/tiny", "one\ntwo", 1)
        assert seen == [0]  # the line's end
        trained.evaluate("runs/tiny")
    else:
        expected = "data.end_token: expected a token" if end is None else "received: 99"
        assert expected in capsys.readouterr().err
