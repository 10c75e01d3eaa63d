"""``fastserve report``: what is in the page, and what must never be."""

from __future__ import annotations

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from mpi_environments import run as run_program
from mpi_environments import variables
from run_folders import make_run, write_json
from test_labelled_jobs import images

from fastserve import formatting
from fastserve.errors import ArgumentError, CheckpointError, DataError
from launch.cli import cli
from launch.html_report import evaluation, logs, parts
from launch.html_report.markup import data, element, join
from launch.html_report.redact import HIDDEN, Redactor
from launch.runs import read_run

EVIL = "<script>alert(1)</script><img src=http://x.invalid/a onerror=alert(2)>&\"'"


def report(*words: object) -> Result:
    words = ("report", *words)
    return CliRunner().invoke(cli, [str(w) for w in words], catch_exceptions=False)


class Page(HTMLParser):
    """Elements and texts of a page, and what it would load or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, text: str) -> None:
        if self._open[-1:] not in (["script"], ["style"]):
            self.texts.append(text)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


def read(path: Path) -> Page:
    """Read a report; whatever is in it, it loads nothing and runs only its program."""
    page = Page(path.read_text("utf-8"))
    programs = [attrs for tag, attrs in page.tags if tag == "script"]
    assert programs.count({}) == 1
    assert all(a == {} or a["type"] == "application/json" for a in programs)
    for tag, attrs in page.tags:
        assert tag not in ("img", "link", "iframe", "object", "base", "form", "embed")
        assert not [name for name in attrs if name.startswith("on")]
        assert "src" not in attrs
        if "href" in attrs:
            assert (attrs["href"] or "").startswith("#")
    return page


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "one")


def test_a_report_has_all_parts(run: Path) -> None:
    write_json(run / "status.json", STATUS)
    write_json(run / "environment.json", {"numpy": "9.9", "command": ["fastserve"]})
    assert report(run).stdout == f"{run / 'report.html'}\n"
    page = read(run / "report.html")
    for text in (
        *("one", "ended", "Results", "Curves", "Timing", "Checkpoints", "Environment"),
        *("Warnings and errors", "Config", "0.1", "best, at step 80; last 0.3", "100"),
        *("loss (mse)", "★ best 0.1 at step 80", "9.9", "rank 1 node2", "fastserve"),
        *("step-00000100", "2", "12.3k", "samples/s"),
    ):
        assert text in page.texts, text
    assert page.count("figure") == 6
    assert [p.name for p in run.glob(".report*")] == []


def test_checkpoints_have_the_loss_of_their_step(run: Path) -> None:
    for step in (40, 50):
        path = run / "checkpoints" / f"step-{step:08d}" / "state.json"
        write_json(path, {"step": step, "state": {}, "files": {}})
    report(run)
    texts = read(run / "report.html").texts
    place = texts.index("step-00000040")
    assert texts[place + 1 : place + 3] == ["40", "0.5"]  # |0.4 - 0.8| + 0.1
    place = texts.index("step-00000050")  # not validated there
    assert texts[place + 1] == "50" and texts[place + 2].startswith("20")


STATUS = {
    "version": 1,
    "state": "ended",
    "step": 100,
    "total_steps": 100,
    "ranks": [
        {
            "rank": i,
            "host": f"node{i + 1}",
            "rss_mb": 200.5,
            "seconds": {"compute": 30.0 + i, "communication": 2.0, "waiting": 1.0 - i},
            "step_seconds": {"compute": 0.11, "communication": None},
        }
        for i in range(2)
    ],
}


@pytest.mark.parametrize(
    "status",
    [
        *({}, {"ranks": None}, {"ranks": "many"}, {"ranks": [None, 3, {}]}),
        {"ranks": [{"rank": 0, "seconds": {"compute": None}}]},
        {"ranks": [{"seconds": {"compute": 1.5, "sleeping": 2}, "step_seconds": 3}]},
    ],
)
def test_any_status_will_do(run: Path, status: dict[str, Any]) -> None:
    write_json(run / "status.json", status)
    assert report(run).exit_code == 0
    page = read(run / "report.html")
    assert ("Timing" in page.texts) == ("sleeping" in str(status))


def test_bars_of_many_ranks(run: Path) -> None:
    ranks = [{"rank": i, "seconds": {"compute": 1.0 + i}} for i in range(300)]
    write_json(run / "status.json", {"ranks": ranks})
    section = parts.timing(read_run(run))
    assert section is not None
    assert "The 64 of 300 ranks that computed longest." in section.content
    assert "rank 299" in section.content
    assert "rank 200<" not in section.content


def test_every_text_is_escaped(tmp_path: Path) -> None:
    name = "a<script>alert(1)<&'\""  # all that a folder's name can have of it
    run = make_run(tmp_path / name, name=EVIL, note={EVIL: [EVIL]})
    lines = (run / "metrics.jsonl").read_text()
    more = {"step": 100, EVIL: 1.0, f"val_{EVIL}": 2.0, "time": 1.7e9}
    (run / "metrics.jsonl").write_text(f"{lines}{json.dumps(more)}\n")
    (run / "logs").mkdir()
    line = f"2026-01-01 00:00:00,000 WARNING {EVIL}\nsecond line {EVIL}\n"
    (run / "logs" / "rank-00000.log").write_text(line)
    rank = {"rank": EVIL, "host": EVIL, "seconds": {EVIL: 3.0, "compute": 1.0}}
    write_json(run / "status.json", {**STATUS, "ranks": [rank]})
    write_json(run / "environment.json", {EVIL: {EVIL: EVIL}})
    write_json(run / "done.json", {"steps": 100, "stopped": EVIL})
    error = {"rank": 0, "host": EVIL, "time": 4e9, "type": EVIL, "message": EVIL}
    write_json(run / "errors" / "rank-00000.json", {**error, "status": 1})
    (run / "checkpoints" / EVIL.replace("/", "")).mkdir()
    odd = {"step": EVIL, "state": {"val_loss": EVIL}, "files": {EVIL: EVIL}}
    write_json(run / "checkpoints" / EVIL.replace("/", "") / "state.json", odd)
    assert report(run).exit_code == 0
    page = read(run / "report.html")
    assert page.text.count("<script>alert(1)") > 10  # as text
    other = make_run(tmp_path / "b")
    assert report(run, other, "--output", tmp_path / "c.html").exit_code == 0
    assert "<script>alert(1)" in read(tmp_path / "c.html").text


def test_values_for_the_program_cannot_end_their_element() -> None:
    made = data({"name": "</script><!--&"}, "values")
    inner = made.partition(">")[2].removesuffix("</script>")
    assert not set("<>&") & set(inner)
    assert json.loads(inner) == {"name": "</script><!--&"}


def test_elements() -> None:
    made = element(
        "p", "a<b", element("b", "&"), None, class_='x"y', hidden=True, id=None
    )
    assert made == '<p class="x&quot;y" hidden>a&lt;b<b>&amp;</b></p>'
    assert join(("<", made)) == f"&lt;{made}"


SECRET = "correct-horse-battery"


def test_secrets_are_never_in_a_report(run: Path) -> None:
    config = (run / "config.yaml").read_text()
    config = config.replace("env: {}", f"env: {{MY_VAR: {SECRET}, HF_TOKEN: {SECRET}}}")
    assert SECRET in config
    (run / "config.yaml").write_text(f"{config}api_key: {SECRET}2\n")
    (run / "logs").mkdir()
    words = (
        f"using {SECRET} here\npassword={SECRET}3 and AWS_SECRET_ACCESS_KEY: {SECRET}4 "
        f"https://user:{SECRET}5@host/x Authorization: Bearer {SECRET}6 hf_{'a' * 30}"
    )
    line = f"2026-01-01 00:00:00,000 ERROR {words}\n"
    (run / "logs" / "rank-00001.log").write_text(line)
    command = ["fastserve", "run", "--set", f"launch.env.X={SECRET} 7", "--set=a=b"]
    write_json(
        run / "environment.json",
        {"command": command, "token": {"HF_TOKEN": SECRET}, "env": {"Y": f"{SECRET}8"}},
    )
    assert report(run).exit_code == 0
    text = (run / "report.html").read_text()
    assert "horse" not in text
    assert "aaaaaaaa" not in text
    assert "MY_VAR" in text and HIDDEN in text
    assert "https://(hidden)@host/x" in text


@pytest.mark.parametrize(
    "text",
    [
        *("sample_tokens: 200", "tokens_per_s 5.1", "max_tokens=20000", "loss: 0.25"),
        *("tokenizer: char", "key: value", "see https://host/path", "a@b.c", "rank 0"),
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert Redactor().text(text) == text
    name, _, value = text.partition(": ")
    assert Redactor().tree({name: value}) == {name: value}


def test_variables_of_numerics_are_no_secrets() -> None:
    env = {"OPENBLAS_CORETYPE": "Haswell", "OTHER": "hunter2"}
    redactor = Redactor([{"launch": {"env": env}}])
    assert redactor.text("Haswell hunter2") == f"Haswell {HIDDEN}"


def test_a_run_that_failed_at_once(tmp_path: Path) -> None:
    run = tmp_path / "failed"
    run.mkdir()
    (run / "config.yaml").write_text("name: failed\n")
    traceback = "Traceback (most recent call last):\n  File x\nValueError: bad <data>"
    record = {
        "rank": 1,
        "host": "node2",
        "time": 4e9,
        "type": "ValueError",
        "status": 1,
    }
    record |= {"message": "bad <data>", "traceback": traceback}
    write_json(run / "errors" / "rank-00001.json", record)
    assert report(run).exit_code == 0
    page = read(run / "report.html")
    assert "failed" in page.texts
    assert "ValueError on rank 1, node2" in page.texts
    assert "bad <data>" in page.text
    assert "no line of metrics" in page.text


def test_a_run_that_failed_before_a_checkpoint(run: Path) -> None:
    """Nothing is offered that can't be made, and no microsecond is a bar."""
    shutil.rmtree(run / "checkpoints")
    (run / "done.json").unlink()
    target = {"target": {"kind": "classes", "names": ["a", "b"]}}
    write_json(run / "preprocessing.json", target)
    ranks = [{"rank": 0, "seconds": {"compute": 0.0, "other": 5e-6}}]
    write_json(run / "status.json", {"state": "failed", "step": 0, "ranks": ranks})
    (run / "metrics.jsonl").unlink()
    record = {"rank": 0, "host": "a", "time": 4e9, "type": "E", "message": "m"}
    path = run / "errors" / "rank-00000.json"
    write_json(path, {**record, "status": 1, "step": 2})
    assert report(run).exit_code == 0
    page = read(run / "report.html")
    assert "Not made, as there is no checkpoint." in page.texts
    assert "Timing" not in page.texts
    assert "E on rank 0, a, after step 2" in page.texts
    place = page.texts.index("steps")
    assert page.texts[place + 1] == "2"


def test_damaged_files_are_no_fault(run: Path) -> None:
    for name in ("config.yaml", "status.json", "environment.json", "done.json"):
        (run / name).write_bytes(b"\xff{[\x00")
    (run / "preprocessing.json").write_bytes(b"\xff")
    (run / "checkpoints" / "step-00000100" / "state.json").write_bytes(b"\xff")
    (run / "logs").mkdir()
    (run / "logs" / "rank-00000.log").write_bytes(b"\xff\x00 WARNING \n")
    assert report(run).exit_code == 0
    page = read(run / "report.html")
    assert "None: config.yaml can't be read." in page.text
    assert "step-00000100 (damaged)" in page.texts


def test_logs_are_put_together(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    for rank in (0, 1):
        (tmp_path / "logs" / f"rank-{rank:05}.log").write_text(
            "half a line\n2026-01-01 00:00:05,123 INFO fine\nfine too\n"
            f"2026-01-01 00:00:0{6 - rank},123 WARNING slow\n  to do: hurry\n"
            f"2026-01-01 00:00:09,123 ERROR of {rank}\n"
        )
    first, *others = logs.messages(tmp_path)
    assert (first.time, first.level) == ("2026-01-01 00:00:05", "WARNING")
    assert first.text == "slow\n  to do: hurry"
    assert (first.ranks, first.times) == ({0, 1}, 2)
    assert [m.text for m in others] == ["of 0", "of 1"]


def test_several_runs_are_compared(tmp_path: Path, monkeypatch: Any) -> None:
    one = make_run(tmp_path / "one", train={"steps": 100, "epochs": None}, seed=1)
    two = make_run(tmp_path / "two", steps=60, seed=2)
    for i, path in enumerate((one, two)):
        write_json(path / "environment.json", {"started": 1.7e9 + 3600 * i})
    monkeypatch.chdir(tmp_path)
    assert report(one, two).stdout == "comparison.html\n"
    page = read(tmp_path / "comparison.html")
    for text in ("one and two", "seed", "train.steps", "1", "2", "60", "100"):
        assert text in page.texts, text
    assert "model.loss" not in page.texts  # it is the same
    assert formatting.date(1.7e9 + 3600) in page.texts  # not the seconds since 1970
    drawn = (tmp_path / "comparison.html").read_text()
    assert set(re.findall(r'class="line (?:dashed )?(c\d)"', drawn)) == {"c0", "c1"}
    assert 'class="mark' not in drawn  # the legend tells nothing of marks
    names = set(re.findall(r'"name":"([^"]*)"', drawn))
    assert names == {f"{n}, {k}" for n in ("one", "two") for k in TWO}


TWO = ("training", "validation")


def test_what_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected the folder of a run"):
        report(tmp_path)
    with pytest.raises(ArgumentError, match="classifier or of a language model"):
        report(run, "--evaluate")
    (run / "report.html").mkdir()
    with pytest.raises(CheckpointError, match="choose another file with --output"):
        report(run)


# -- using the model ------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tells bright left halves from bright right ones."""
    folder = tmp_path_factory.mktemp("trained")
    job = images(folder).replace("folder: pics", f"folder: {folder / 'pics'}")
    (folder / "job.yaml").write_text(job)
    program = [sys.executable, "-m", "fastserve", "job.yaml"]
    done = run_program(program, 60, cwd=folder, env=variables())
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "images"


def test_a_classifier_has_a_confusion_matrix(trained: Path) -> None:
    result = report(trained, "--split", "test")
    assert (
        f"using the model of {trained} (--no-evaluate leaves it out)" in result.stderr
    )
    page = read(trained / "report.html")
    cells = [a for tag, a in page.tags if tag == "td" and "title" in a]
    assert [cell["title"] for cell in cells] == ["100.00% of the row"] * 2
    assert "The best checkpoint, of step" in page.text
    assert "on the test data: loss" in page.text
    assert {"left", "right", "precision", "1.000"} <= set(page.texts)


LANGUAGE = """
name: text
model: {type: gpt, n_layer: 1, n_head: 1, n_embd: 8, block_size: 16}
data: {type: text, source: SOURCE, tokenizer: char}
train: {global_batch: 4, steps: 4, log_every: 1, sample_tokens: 1, baseline: false}
"""


def test_a_language_model_makes_texts(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The <b>cat</b> & the dog.\n" * 99)
    job = LANGUAGE.replace("SOURCE", str(tmp_path / "text.txt"))
    (tmp_path / "job.yaml").write_text(job)
    program = [sys.executable, "-m", "fastserve", "job.yaml"]
    done = run_program(program, 60, cwd=tmp_path, env=variables())
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "text"
    assert report(run).exit_code == 0
    page = read(run / "report.html")
    assert {"Samples", "The ", "loss (nats per token)", "perplexity"} <= set(page.texts)
    assert report(run, "--prompt", "<b>", "--prompt", "dog").exit_code == 0
    assert {"<b>", "dog"} <= set(read(run / "report.html").texts)
    assert report(run, "--prompt", "%").exit_code == 0  # it isn't in the text
    assert "--prompt" in read(run / "report.html").text
    with pytest.raises(DataError, match="--prompt"):
        report(run, "--prompt", "%", "--evaluate")


def test_the_matrix_can_be_left_out(trained: Path) -> None:
    assert report(trained, "--no-evaluate").stderr == ""
    assert "Confusion matrix" not in read(trained / "report.html").texts


def test_what_cannot_be_evaluated_is_said(trained: Path, tmp_path: Path) -> None:
    pictures = trained.parent.parent / "pics"
    pictures.rename(tmp_path / "gone")
    try:
        assert report(trained).exit_code == 0
        page = read(trained / "report.html")
        assert "Confusion matrix" in page.texts
        assert "pics" in page.text
        with pytest.raises(Exception, match="pics"):
            report(trained, "--evaluate")
    finally:
        (tmp_path / "gone").rename(pictures)


def test_many_classes_are_gathered() -> None:
    n = 40
    counts = [[0.0] * n for _ in range(n)]
    for i in range(n):
        counts[i][i], counts[i][(i + 1) % n] = 100.0 + i, 3.0
    shown, names = evaluation._gathered(counts, [f"k{i}" for i in range(n)])
    assert len(shown) == len(names) == 25
    assert names[0] == "k16" and names[-1] == "16 others"
    assert sum(map(sum, shown)) == sum(map(sum, counts))
    made = evaluation.show_matrix(counts, [f"k{i}" for i in range(n)])
    assert "All 40 classes" in made
    assert made.count("<tr>") > 80
    first = made.partition('scope="col">F1')[2].partition("</table>")[0]
    assert re.findall(r"<tr><td>(k\d+)", first) == names[:-1]  # in the matrix' order


def test_measures_of_classes() -> None:
    made = evaluation.show_matrix([[3, 1], [0, 0]], ["cat", "dog"])
    rows = re.findall(r"<tr>(.*?)</tr>", made)
    texts = [re.sub(r"<[^>]*>", " ", row).split() for row in rows]
    made = evaluation.show_matrix([[1, 0], [1, 3]], ["cat", "dog"])
    rows = re.findall(r"<tr><td>(\w+)</td><td", made)
    assert rows[:2] == ["cat", "dog"]  # as in the matrix, not the most frequent first
    assert ["cat", "1.000", "0.750", "0.857", "4"] in texts
    assert ["dog", "0.000", "–", "0.000", "0"] in texts
    assert ["cat", "dog", "1", "25.0%"] in texts


def test_logits_have_a_threshold_of_zero(run: Path) -> None:
    read_one = read_run(run)
    read_one.config["model"]["metrics"] = ["accuracy", {"ConfusionMatrix": {}}]
    assert evaluation._with_matrix(read_one) == ["accuracy", "confusion_matrix"]
    loss = {"BinaryCrossentropy": {"from_logits": True}}
    read_one.config["model"]["loss"] = loss
    asked = evaluation._with_matrix(read_one)
    assert asked == ["accuracy", {"ConfusionMatrix": {"threshold": 0.0}}]
