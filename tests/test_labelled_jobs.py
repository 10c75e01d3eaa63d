"""Jobs on data with labels, from the YAML to what ``fastserve predict`` says."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi_environments import mpi_command, run, variables
from test_labelled_data import idx, pgm, write

import fastserve as fs
from fastserve import predictions
from fastserve.assemble.data import make_data
from fastserve.assemble.model import with_sizes
from fastserve.config import dump_yaml, load_job
from fastserve.errors import CheckpointError, ConfigError, DataError
from fastserve.trained import evaluate

LOSS = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}
HEAD = {"Dense": {"units": "classes", "activation": "softmax"}}


def job(name: str, data: dict[str, Any], layers: list[Any], **more: Any) -> str:
    model = {"type": "sequential", "layers": layers, **(more.pop("loss", LOSS))}
    train = {"global_batch": 8, "epochs": 12, "log_every": 100, **more}
    return dump_yaml(
        {
            "name": name,
            "seed": 1,
            "data": data,
            "model": model,
            "train": train,
            "optimizer": {"type": "adam", "lr": 0.02},
            "checkpoint": {"best": True},
        }
    )


def images(folder: Path) -> str:
    rng = np.random.default_rng(0)
    for i in range(48):
        image = rng.integers(0, 120, (6, 6), np.uint8)
        image[:, 3 * (i % 2) : 3 * (i % 2) + 3] += 130
        write(folder / "pics" / ("left", "right")[i % 2] / f"{i:02}.pgm", pgm(image))
    data = {"type": "images", "folder": "pics", "size": [6, 6], "channels": 1}
    shares = {"validation_split": 0.2, "test_split": 0.2}
    return job("images", data | shares, ["Flatten", HEAD])


def arrays(folder: Path) -> str:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 120, (64, 4, 4), np.uint8)
    y = np.arange(64, dtype=np.uint8) % 3
    for i, place in enumerate(y.tolist()):
        x[i, place] += 130
    for name, part in (("train", slice(48)), ("test", slice(48, None))):
        write(folder / f"{name}-x", idx(x[part]))
        write(folder / f"{name}-y", idx(y[part]))
    data = {"type": "idx", "train_images": "train-x", "train_labels": "train-y"}
    data |= {"test_images": "test-x", "test_labels": "test-y"}
    names = {"class_names": ["top", "middle", "bottom"], "validation_split": 0.25}
    return job("arrays", data | names, ["Flatten", HEAD])


def texts(folder: Path) -> str:
    words = {"cat": "purr mew whisker", "dog": "bark woof tail"}
    rng = np.random.default_rng(0)
    rows = []
    for i in range(60):
        kind = ("cat", "dog")[i % 2]
        chosen = [*rng.choice(words[kind].split(), 2), *rng.choice(["a", "the"], 3)]
        rows.append({"body": " ".join(chosen) + f" {i}", "kind": kind})
    write(folder / "texts.jsonl", "\n".join(map(json.dumps, rows)))
    data = {"type": "texts", "source": "texts.jsonl", "text": "body", "label": "kind"}
    shares = {"validation_split": 0.2, "test_split": 0.1}
    return job("texts", data | shares, ["UnitNormalization", HEAD])


def words(folder: Path) -> str:
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(60):
        chosen = rng.integers(0, 8, rng.integers(2, 9)).tolist()
        lines.append(" ".join(f"{'ab'[n % 2]}{n}x/{'XY'[n % 2]}" for n in chosen))
    write(folder / "words.txt", "\n".join(lines))
    data = {"type": "tagged", "file": "words.txt", "format": "slashes"}
    shares = {"validation_split": 0.2, "words": {"length": 4, "min_count": 1}}
    embed = {"Embedding": {"input_dim": "vocabulary", "output_dim": 4}}
    return job("words", data | shares, [embed, HEAD])


def table(folder: Path) -> str:
    rng = np.random.default_rng(0)
    rows = ["size,colour,price"]
    for _ in range(80):
        size, colour = rng.uniform(1, 5), rng.choice(["red", "blue"])
        price = 100 + 20 * size * size + 30 * (colour == "red")
        rows.append(f"{size:.4f},{colour},{price:.4f}")
    write(folder / "table.csv", "\n".join(rows))
    data = {"type": "csv", "file": "table.csv", "target": "price"}
    data |= {"task": "regression", "validation_split": 0.2, "test_split": 0.1}
    layers = [{"Dense": {"units": 16, "activation": "relu"}}, {"Dense": {"units": 1}}]
    return job("table", data, layers, loss={"loss": "mse"}, epochs=40)


JOBS: dict[str, Callable[[Path], str]] = {
    "images": images,
    "arrays": arrays,
    "texts": texts,
    "words": words,
    "table": table,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run of each job, and what the runs have said."""
    folder = tmp_path_factory.mktemp("jobs")
    program = "import sys; from fastserve import worker\n"
    program += "for name in sys.argv[1:]: assert worker.main([name]) == 0\n"
    for name, make in JOBS.items():
        write(folder / f"{name}.yaml", make(folder))
    command = ["-c", program, *(f"{name}.yaml" for name in JOBS)]
    done = run([sys.executable, *command], 120, cwd=folder, env=variables())
    assert done.returncode == 0, done.stderr
    write(folder / "out.txt", done.stdout)
    return folder


@pytest.fixture
def folder(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


def said(*arguments: Any, **more: Any) -> list[str]:
    lines: list[str] = []
    predictions.predict(*arguments, **more, say=lines.append)
    return lines


def test_runs_show_classes_and_their_balance(folder: Path) -> None:
    out = (folder / "out.txt").read_text()
    assert "pics, 30 samples, 9 to validate, 9 to test" in out
    assert "to train: left 15, right 15" in out
    assert re.search(r"words, tags: [XY] \d+, [XY] \d+", out)
    assert re.search(r"R2 +0\.9\d+ to validate, a linear model's 0\.\d+", out)


@pytest.mark.parametrize("name", ["images", "arrays", "texts", "words"])
def test_evaluate_the_test_part(folder: Path, name: str) -> None:
    results = evaluate(f"runs/{name}", "best")
    assert results["accuracy"] > 0.9, results
    if name == "words":
        with pytest.raises(DataError, match="a job with test data"):
            evaluate(f"runs/{name}", split="test")
    else:
        assert evaluate(f"runs/{name}", "best", split="test")["accuracy"] > 0.8
    train = evaluate(f"runs/{name}", "best", split="train")
    assert train["accuracy"] > 0.9


def test_predict_images(folder: Path) -> None:
    lines = said("runs/images", ["pics/left/00.pgm", "pics/right"])
    assert len(lines) == 25
    assert re.fullmatch(r"pics/left/00.pgm\tleft [01]\.\d{4}", lines[0])
    assert sum("\tright " in line for line in lines) >= 23
    np.save("some.npy", np.zeros((2, 6, 6), np.uint8))
    assert len(said("runs/images", ["some.npy"])) == 2
    with pytest.raises(DataError, match="samples of shape"):
        np.save("wrong.npy", np.zeros((2, 6, 7)))
        said("runs/images", ["wrong.npy"])
    with pytest.raises(DataError, match="an array of numbers"):
        np.save("objects.npy", np.array([{}], object), allow_pickle=True)
        said("runs/images", ["objects.npy"])


def test_predict_arrays_and_images_of_them(folder: Path) -> None:
    lines = said("runs/arrays", ["test-x"])
    names = [line.split("\t")[1].split()[0] for line in lines]
    wanted = [("top", "middle", "bottom")[i % 3] for i in range(48, 64)]
    assert lines[0].startswith("test-x[0]\t") and names == wanted
    image = np.zeros((4, 4), np.uint8)
    image[2] = 255
    write(folder / "one.pgm", pgm(image))
    assert said("runs/arrays", ["one.pgm"])[0].startswith("one.pgm\tbottom ")
    with pytest.raises(DataError, match="expected an IDX file"):
        said("runs/arrays", ["arrays.yaml"])


def test_predict_writes_tables_lines_and_arrays(folder: Path) -> None:
    write(folder / "new.txt", "mew the purr\n\nbark bark\n")
    assert [line.split("\t")[1][:3] for line in said("runs/texts", ["new.txt"])] == [
        "cat",
        "dog",
    ]
    shown = said("runs/texts", [], ["woof tail"], top=5)[0].split("\t")
    assert [part[:3] for part in shown[1:]] == ["dog", "cat"]
    assert said("runs/texts", ["new.txt"], output="o.csv", top=2)[0].startswith("2 pre")
    with open("o.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["input", "class", "probability", "class_2", "probability_2"]
    assert [row[:2] for row in rows[1:]] == [["line 1", "cat"], ["line 3", "dog"]]
    said("runs/texts", ["texts.jsonl"], output="o.jsonl")
    found = [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()]
    kinds = [one["class"] for one in found]
    assert len(found) == 60 and sum(k == "cat" for k in kinds[::2]) > 27
    said("runs/texts", ["texts.jsonl"], output="o.npy")
    shares = np.load("o.npy")
    assert shares.shape == (60, 2) and np.allclose(shares.sum(1), 1, atol=1e-5)


def test_predict_gives_what_evaluate_counts(folder: Path) -> None:
    said("runs/table", ["table.csv"], output="o.csv")
    with open("o.csv", newline="") as file:
        predicted = np.array([float(row["price"]) for row in csv.DictReader(file)])
    with open("table.csv", newline="") as file:
        prices = np.array([float(row["price"]) for row in csv.DictReader(file)])
    error = np.square(predicted - prices).sum()
    assert 1 - error / np.square(prices - prices.mean()).sum() > 0.97


def test_predict_needs_just_the_inputs_columns(folder: Path) -> None:
    write(folder / "new.csv", "note,colour,size\nx,red,2\ny,green,2\n")
    values = [float(line.split("\t")[1]) for line in said("runs/table", ["new.csv"])]
    assert abs(values[0] - 210) < 30
    for text, named in (
        ("colour\nred\n", "expected a column 'size'"),
        ("colour,size\nred,\n", "line 2: expected a value in column 'size'"),
        ("colour,size\nred,big\n", "line 2: expected in column 'size' a number"),
    ):
        write(folder / "new.csv", text)
        with pytest.raises(DataError, match=named):
            said("runs/table", ["new.csv"], output="none.csv")
        assert not list(folder.glob("*none.csv*"))


def test_predict_tags(folder: Path) -> None:
    lines = said("runs/words", [], ["a2x b3x a4x b1x a2x", "zzz"])
    assert lines[0] == "a2x/X b3x/Y a4x/X b1x/Y a2x/X"
    said("runs/words", [], ["a2x b3x"], output="o.csv")
    with open("o.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert [row[:3] for row in rows[1:]] == [
        ["a2x b3x", "a2x", "X"],
        ["a2x b3x", "b3x", "Y"],
    ]
    with pytest.raises(DataError, match="for tagged words"):
        said("runs/words", [], ["a2x"], output="o.npy")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("runs/texts", []), "--input FILE, or --text"),
        (("runs/texts", ["none.txt"]), "no such file[^$]*--text takes a text"),
        (("runs/images", ["none.png"]), "no such file\n  to do: give one that"),
        (("runs/images", [], ["a"]), "trained on texts"),
        (("runs/texts", [], ["a"], "o.txt"), "ends in .csv"),
        (("runs/texts", [], ["a"], "none/o.csv"), "an existing folder"),
    ],
)
def test_predict_refuses(folder: Path, arguments: Any, named: str) -> None:
    with pytest.raises(DataError, match=named):
        said(*arguments)


def test_predict_needs_a_run_with_preprocessing(folder: Path, tmp_path: Path) -> None:
    text = (folder / "runs/texts/config.yaml").read_text()
    write(tmp_path / "config.yaml", text)
    with pytest.raises(CheckpointError, match=r"a run with a preprocessing\.json"):
        said(str(tmp_path), [], ["a"])
    write(
        tmp_path / "config.yaml",
        "name: a\nmodel: {type: gpt}\ndata: {type: text, source: a.txt}\n"
        "train: {steps: 1}\n",
    )
    with pytest.raises(CheckpointError, match="use fastserve generate"):
        said(str(tmp_path), [], ["a"])


@pytest.mark.mpi
def test_ranks_resume_and_changed_data(folder: Path) -> None:
    """Two ranks give what one gives; a resumed run refuses other data."""
    words = ["-m", "fastserve", "texts.yaml", "--set", "name=two"]
    env = variables(FASTSERVE_NO_SIGNALS="1")
    done = run(mpi_command("openmpi", 2, *words), 120, cwd=folder, env=env)
    assert done.returncode == 0, done.stderr
    kept = [Path("runs", name, "preprocessing.json") for name in ("texts", "two")]
    assert kept[0].read_text() == kept[1].read_text()
    alone = evaluate("runs/texts")
    both = evaluate("runs/two")
    assert abs(alone["loss"] - both["loss"]) < 1e-4
    (folder / "runs" / "two" / "done.json").unlink()
    more = ["--set", "data.vectorize.max_tokens=5", "--resume", "auto"]
    more += ["--set", "train.epochs=20"]
    done = run([sys.executable, *words, *more], 60, cwd=folder, env=env)
    assert done.returncode != 0
    assert "expected the data that the run was started with" in done.stderr


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"type": "dataset", "name": "spma"}, "did you mean 'spam'"),
        ({"type": "idx", "train_images": "job.yaml"}, "train_labels"),
        (
            {"type": "csv", "file": "none.csv", "target": "a", "task": "regression"},
            "an existing file",
        ),
        (
            {
                "type": "dataset",
                "name": "spam",
                "validation_split": 0.5,
                "test_split": 0.5,
            },
            "less than 1 together with test_split",
        ),
        (
            {"type": "dataset", "name": "spam", "vectorize": {"output_mode": "int"}},
            "a number of tokens for the output_mode int",
        ),
        ({"type": "images", "folder": "none", "size": [2, 2]}, "an existing folder"),
        ({"type": "arrays"}, "an .npz file here, or .npy files in x and y"),
        ({"type": "arrays", "x": "job.yaml"}, "a file that ends in .npy"),
        (
            {
                "type": "jsonl",
                "file": "job.yaml",
                "target": "a",
                "task": "regression",
                "features": ["a"],
            },
            "columns without the target",
        ),
    ],
)
def test_faults_of_the_data_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: dict[str, Any], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "job.yaml", job("a", data, [HEAD]))
    with pytest.raises(ConfigError, match=re.escape(named)):
        load_job("job.yaml")


def test_arrays_of_npy_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x = np.arange(40, dtype=np.uint8).reshape(10, 4)
    np.save("x.npy", x)
    np.save("y.npy", np.arange(10) % 3)
    data = {"type": "arrays", "x": "x.npy", "y": "y.npy", "scale": 0.5}
    data |= {"x_test": "x.npy", "y_test": "y.npy", "validation_split": 0.2}
    write(tmp_path / "job.yaml", job("a", data, [HEAD]))
    made = make_data(load_job("job.yaml"))
    assert (made.train.samples, made.classes) == (8, 3)
    assert made.test is not None and made.test.samples == 10
    rows = np.array([1])
    assert made.train.batch(rows, rows).x.tolist() == (x[1:2] * 0.5).tolist()


@pytest.mark.parametrize(("word", "units"), [("classes", "Dense"), ("vocabulary", "E")])
def test_words_for_numbers_that_the_data_lack(word: str, units: str) -> None:
    key = "units" if word == "classes" else "input_dim"
    sizes: dict[str, int | None] = {"classes": 3, "vocabulary": 7}
    nested = {"layer": {"LSTM": {key: word}}, "other": word}
    found = with_sizes("Bidirectional", nested, sizes)
    assert found == {"layer": {"LSTM": {key: sizes[word]}}, "other": word}
    with pytest.raises(fs.errors.ShapeError, match="write a number"):
        with_sizes(units, {key: word}, {"classes": None, "vocabulary": None})
