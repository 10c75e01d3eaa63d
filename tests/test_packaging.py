"""The wheel and the sdist hold what they should, and what is installed runs."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fastserve

ROOT = Path(__file__).parents[1]
CLEAN = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}  # no sources
NAME = f"fastserve_train-{fastserve.__version__}"


def run(*command: object, cwd: Path = ROOT) -> str:
    result = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        env=CLEAN,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an sdist and of the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder)
    return folder


@pytest.mark.slow
def test_the_wheel_has_all_modules_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl") as wheel:
        names = set(wheel.namelist())
        info = f"{NAME}.dist-info"
        entry = wheel.read(f"{info}/entry_points.txt").decode()
        metadata = wheel.read(f"{info}/METADATA").decode()
    expected = {
        p.relative_to(ROOT).as_posix()
        for part in ("fastserve", "launch")
        for p in (ROOT / part).rglob("*")
        if p.suffix in (".py", ".css", ".js", ".yaml") or p.name == "py.typed"
    }
    assert {n for n in names if ".dist-info/" not in n} == expected
    assert "fastserve = launch.cli:main" in entry
    assert "Name: fastserve-train" in metadata
    for extra in ("openmpi", "mpich", "text", "plot", "tensorboard", "test"):
        assert f"Provides-Extra: {extra}" in metadata


@pytest.mark.slow
def test_the_sdist_has_what_builds_and_tests_it(built: Path) -> None:
    with tarfile.open(built / f"{NAME}.tar.gz") as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"README.md", "LICENSE", "setup.cfg", "pyproject.toml", "Makefile"} <= names
    for folder in ("benchmarks", "configs", "docs", "hostfiles", "tests"):
        missing = {
            path
            for path in run("git", "ls-files", folder).splitlines()
            if (ROOT / path).exists() and path not in names
        }
        assert not missing
    assert not [name for name in names if name.endswith(".pyc")]


@pytest.mark.slow
def test_registries_would_take_both(built: Path) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir())
    check = "import check_wheel_contents.__main__ as it; it.main()"
    wheel = built / f"{NAME}-py3-none-any.whl"
    run(sys.executable, "-c", check, "--toplevel", "fastserve,launch", wheel)


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel, and what it needs from the running one."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    # a path file: behind the wheel, and without the running environment's checkout
    (site,) = folder.glob("lib/python*/site-packages")
    needed = [path for path in sys.path if path.endswith("site-packages")]
    (site / "needed.pth").write_text("\n".join(needed))
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    run(*pip, "install", "-q", "--no-deps", built / f"{NAME}-py3-none-any.whl")
    return folder


@pytest.mark.slow
def test_the_wheel_runs_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    command = installed / "bin" / "fastserve"
    where = "import fastserve, launch; print(fastserve.__file__, launch.__file__)"
    places = run(installed / "bin" / "python", "-c", where, cwd=tmp_path).split()
    assert all(Path(place).is_relative_to(installed) for place in places)
    run(command, "new", "image", "mine", cwd=tmp_path)
    few = ("--set", "train.epochs=2", "--set", "launch.threads=1")
    assert "val_accuracy" in run(command, "run", "mine/job.yaml", *few, cwd=tmp_path)
    classes = run(
        command, "predict", "runs/mine", "--input", "mine/to-predict", cwd=tmp_path
    )
    assert classes.count("\n") == 6


@pytest.mark.slow
def test_types_are_shipped(installed: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file=", program]
    mypy += ["--python-executable", installed / "bin" / "python"]
    assert "Success" in run(*mypy, cwd=tmp_path)
    run(installed / "bin" / "python", program, cwd=tmp_path)
    program.write_text(PROGRAM.replace("Dense(8,", "Dense('8',"))
    done = subprocess.run(
        list(map(str, mypy)), capture_output=True, text=True, cwd=tmp_path, env=CLEAN
    )
    wrong = 'Argument 1 to "Dense" has incompatible type "str"; expected "int"'
    assert done.returncode == 1 and wrong in done.stdout


PROGRAM = """\
from __future__ import annotations

import numpy as np

import fastserve as fs


def train(x: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> float:
    model = fs.models.Sequential()
    model.add(fs.layers.Dense(8, activation="relu", input_shape=(4,)))
    model.add(fs.layers.Dense(1))
    model.compile(fs.optimizers.Adam(fs.schedules.CosineDecay(1e-2, 10)), "mse")
    stop = fs.callbacks.EarlyStopping("loss", patience=3)
    history = model.fit(x, x[:, :1], 8, 2, verbose=0, callbacks=[stop])
    return float(history.history["loss"][-1])


print(train(np.ones((16, 4), np.float32)))
"""
