"""Nothing of a job becomes a word of a shell, or an option that nobody asked for."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mpi_environments import FLAVOURS, Started, require, variables
from pydantic import ValidationError
from test_launch_plan import BOTH, job, plan
from test_slurm import job as batch_job

from fastserve.config import Job, load_job
from fastserve.config.schema import Launch
from fastserve.errors import ConfigError, LaunchError
from launch import submit
from launch.cli import main
from launch.hosts import Host, parse_hosts, read_hostfile
from launch.mpi import FoundMPI, identify
from launch.remote import _ssh

TEXT = """name: tiny
model: {type: gpt}
data: {type: text, source: pydoc-topics}
train: {global_batch: 6, steps: 12}
launch: {env: """
RUN = ["-m", "launch.cli", "run"]
EVIL = [
    "a b",
    "a'b",
    'a"b',
    "a;touch x",
    "$(touch x)",
    "`touch x`",
    "a\nb",
    "a|b",
    "a&b",
    "a>b",
    "*",
    "~",
    "-oProxyCommand=x",
    "--x",
    "$(touch${IFS}x)",
    "a`touch${IFS}x`",
    "a;touch${IFS}x;",
    'a";touch${IFS}x;"',
    "a\ntouch x #",
]


@pytest.mark.parametrize("text", EVIL)
def test_no_such_host_or_variable(text: str, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(text + "\n")
    if "\n" not in text:  # two lines of a file
        with pytest.raises(LaunchError):
            read_hostfile(hosts)
    with pytest.raises((ConfigError, LaunchError)):
        parse_hosts(text)
    with pytest.raises(ValidationError):
        Launch(hosts=[text])
    path = tmp_path / "job.yaml"
    path.write_text(TEXT + json.dumps({text: "b"}) + "}\n")
    with pytest.raises(ConfigError, match=r"launch\.env: expected names of letters"):
        load_job(path, files=False)


@BOTH
@pytest.mark.parametrize("text", EVIL)
def test_values_of_the_environment_are_no_words(mpi: Any, text: str) -> None:
    made = plan(job(env={"SECRET": text}), mpi)
    assert made.environment["SECRET"] == text
    assert not any(text in word for word in made.command if len(text) > 2)


def test_secrets_are_shown_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(TEXT + "{KEY: hunter2}, ranks: 1}\n")
    settings = ["--set", "launch.env.KEY=hunter3", "--set", "train.steps=3"]
    for command in ("run", "submit"):
        more = ["--dry-run"] if command == "run" else ["--print"]
        with pytest.raises(SystemExit) as ended:
            main([command, "job.yaml", *settings, *more])
        shown = "".join(capsys.readouterr())
        assert "hunter" not in shown
        if command == "run":
            assert ended.value.code == 0
            assert "KEY=(hidden)" in shown
            assert "train.steps=3" in shown
        else:
            assert "expected launch.env in the job's file" in shown
    with pytest.raises(SystemExit):
        main(["run", "job.yaml", "--set", "launch={env: {KEY: hunter2}}"])
    assert "expected --set of single keys of launch" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", [*EVIL, "a=b c", "\\"])
def test_what_a_remote_shell_gets_are_the_same_words(text: str) -> None:
    words = ["env", f"X={text}", "printf", "%s\\0", text, f"/{text}/python"]
    command = _ssh(Host("node1", user="me"), ["-i", text], 8.0, words)
    assert command[command.index("--") - 1] == "me@node1"
    assert shlex.split(command[-1]) == words
    done = subprocess.run(
        ["sh", "-c", command[-1]], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.stdout == f"{text}\0/{text}/python\0"


@pytest.mark.parametrize("text", [*EVIL, "a\tb", "", "\\", "a${IFS}b", "-i$(x)"])
def test_arguments_of_ssh_are_no_words_of_a_shell(text: str) -> None:
    # the MPIs put them into one line, which they cut at blanks, and Open MPI sends
    # that line to the shells of the other hosts, within double quotes
    if text not in ("~", "-oProxyCommand=x", "--x"):  # options of ssh are trusted
        with pytest.raises(ValidationError):
            Launch(ssh=["-i", text])
    assert Launch(ssh=["-i", "~/.ssh/key", "-oPort=22"]).ssh[1] == "~/.ssh/key"


# As ssh does: it joins the words after the host for the shell there.
FAKE_SSH = """#!/usr/bin/env python3
import json, os, sys
with open(os.environ["SEEN"], "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
sys.exit(255)
"""


def places(text: str) -> list[dict[str, Any]]:
    """Return launch sections with a text wherever it could reach another host."""
    hosts = ["far.invalid:1"]
    return [
        {"hosts": [f"{text}:1"]},
        {"hosts": [f"{text}@far.invalid:1"]},
        {"hosts": hosts, "interface": text},
        {"hosts": hosts, "ssh": ["-i", text]},
        {"hosts": hosts, "ssh": [text]},
        {"hosts": hosts, "ssh": ["-o", f"IdentityFile={text}"]},
        {"hosts": hosts, "env": {text: "b"}},
        {"hosts": hosts, "env": {"SECRET": text}},
        {"hosts": hosts, "env": {"PRTE_MCA_foo": text}},
        {"hosts": hosts, "env": {"HYDRA_FOO": text}},
        {"hosts": hosts, "python": text},
    ]


def accepted(text: str, mpi: FoundMPI) -> list[dict[str, Any]]:
    found = []
    for section in places(text):
        try:
            launch = Launch(**section)
            plan(job(1, **section), mpi, hosts=",".join(launch.hosts or []))
        except (ValidationError, ConfigError, LaunchError):
            continue
        found.append(section)
    return found


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("text", EVIL)
def test_what_an_mpi_gives_to_a_remote_shell(
    flavour: str, text: str, tmp_path: Path
) -> None:
    mpi = identify(require(flavour) / "bin" / "mpirun")
    assert mpi is not None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ssh").write_text(FAKE_SSH)
    (tmp_path / "bin" / "ssh").chmod(0o755)
    section: dict[str, Any] = {"hosts": ["far.invalid:1"], "env": {}, "ssh": []}
    for kept in accepted(text, mpi):
        env = {**section["env"], **kept.get("env", {})}
        ssh = section["ssh"] + kept.get("ssh", [])
        section = {**section, **kept, "env": env, "ssh": ssh}
    assert section["env"]["SECRET"] == text
    listed = ",".join(section["hosts"])
    made = plan(job(1, **section), mpi, hosts=listed, root=os.geteuid() == 0)
    seen = tmp_path / "seen"
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    given = variables(**{**made.environment, "PATH": path, "SEEN": str(seen)})
    work = tmp_path / "work"
    work.mkdir()
    with Started(made.command, env=given, cwd=work) as started:
        done = started.finish(60)
    assert seen.exists(), (done.stdout, done.stderr)
    calls = [json.loads(line) for line in seen.read_text().splitlines()]
    assert calls
    for words in calls:
        command = " ".join(words[words.index("far.invalid") + 1 :])
        # the MPI's own program would start to wait for its mpirun
        command, count = re.subn(
            r"[^\s;\"]*/(prted|orted|hydra_pmi_proxy)", ":", command
        )
        assert count
        assert subprocess.run(["sh", "-c", command], cwd=work).returncode == 0
    assert not list(work.iterdir())


@BOTH
@pytest.mark.parametrize("text", EVIL)
def test_paths_of_an_mpi(mpi: FoundMPI, text: str) -> None:
    # Open MPI writes its folder bare into the command for a remote shell
    found = FoundMPI(mpi.flavour, Path(f"/{text}/bin/mpirun"), mpi.version)
    if re.fullmatch(r"[\w~=-]+", text):
        assert plan(job(), found, hosts="node1:2").command[0] == str(found.command)
        return
    with pytest.raises(LaunchError, match="expected a path of the MPI"):
        plan(job(), found, hosts="node1:2")
    assert plan(job(), found).command[0] == str(found.command)


@pytest.mark.parametrize("text", EVIL)
def test_a_batch_script_has_the_same_words(text: str, tmp_path: Path) -> None:
    words = [f"/work/{text}", "--set", text]
    folder, python = Path(f"/runs/{text}"), f"/{text}/python"
    if "\n" in text:
        for places in ((folder, Path("/")), (Path("/"), folder)):
            with pytest.raises(LaunchError, match="without line ends"):
                submit.script(batch_job(), *places, words, python)
        with pytest.raises(ValidationError):
            Job.model_validate({**batch_job().model_dump(), "run_dir": text})
        return
    made = submit.script(batch_job(), folder, folder, words, python)
    assert subprocess.run(["bash", "-n"], input=made, text=True).returncode == 0
    line = next(line for line in made.splitlines() if "launch.cli" in line)
    assert shlex.split(line) == [python, *RUN, *words, "&"]
    head = made[: made.index("export ")]
    done = subprocess.run(["bash"], input=head, text=True, cwd=tmp_path)
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []  # all of it are comments
    option = next(line for line in head.splitlines() if "--output=" in line)
    # as sbatch cuts it: quotes, backslashes, and # for a comment
    assert shlex.split(option.removeprefix("#SBATCH "), comments=True) == [
        f"--output={folder}/slurm-%j.out"
    ]
