"""Who may import whom, and what ``import fastserve`` costs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# each line may import from itself and from the lines above it
ORDER = [
    {"errors", "formatting", "json_object"},
    {"environment"},
    {"ops", "config", "comm"},
    {"core"},
    {"layers"},
    {"losses", "metrics", "optimizers", "schedules", "data", "utils"},
    {"training"},
    {"models"},
    {"assemble", "bench"},
    {"summary"},
    {"trained", "printing"},
    {"worker", "estimate", "import_export", "merge_lora", "predictions"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
# within a line, who may use whom
SIDEWAYS = {
    ("metrics", "losses"),
    ("optimizers", "schedules"),
    ("comm", "ops"),
    ("utils", "data"),
}
LAUNCH_MAY_USE = {"errors", "formatting", "json_object", "environment", "config"}
ENVIRONMENT_READERS = {"environment.py"}


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Return the dotted names of all modules that a file imports."""
    found: set[str] = set()
    tree = ast.parse(path.read_text("utf-8"))
    package = ".".join(path.relative_to(ROOT).with_suffix("").parts[:-1])
    skipped = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)
    ]
    if top_level_only:
        skipped += [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    ignored = {id(inner) for node in skipped for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in ignored:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(filter(None, [package, base]))
            found |= {f"{base}.{alias.name}" for alias in node.names} | {base}
    return found


def parts(names: set[str]) -> set[str]:
    """Return the parts of fastserve among dotted names."""
    split = [name.split(".") for name in names]
    return {s[1] for s in split if s[0] == "fastserve" and len(s) > 1 and s[1] in LEVEL}


LIBRARY = sorted((ROOT / "fastserve").rglob("*.py"))
LAUNCH = sorted((ROOT / "launch").rglob("*.py"))


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    if path == ROOT / "fastserve/__init__.py":
        return  # it is lazy: it names everything and imports nothing
    own = path.relative_to(ROOT / "fastserve").parts[0].removesuffix(".py")
    assert own in LEVEL, f"{own} has no place in the order of imports"
    for other in parts(imports(path)) - {own}:
        allowed = LEVEL[other] < LEVEL[own] or (own, other) in SIDEWAYS
        assert allowed, f"{own} may not import {other}"


@pytest.mark.parametrize("path", LAUNCH, ids=lambda p: p.name)
def test_launch_loads_no_numpy(path: Path) -> None:
    names = imports(path, top_level_only=True)
    assert not {n for n in names if n.split(".")[0] in ("numpy", "mpi4py")}
    assert parts(names) <= LAUNCH_MAY_USE


def test_mpi4py_is_imported_in_one_file() -> None:
    users = [
        p
        for p in LIBRARY + LAUNCH
        if any(n.split(".")[0] == "mpi4py" for n in imports(p))
    ]
    assert [p.relative_to(ROOT).as_posix() for p in users] == ["fastserve/comm/mpi.py"]


def test_environment_variables_are_read_in_one_file() -> None:
    readers = {
        p.name
        for p in LIBRARY
        if "os.environ" in p.read_text("utf-8") or "getenv" in p.read_text("utf-8")
    }
    assert readers <= ENVIRONMENT_READERS


def run(code: str, **more: str) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("COV_")} | more
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env=env,
        check=True,
    )
    return result.stdout.strip()


USED = "import fastserve as fs; fs.models.Sequential([fs.layers.Dense(2)])"


@pytest.mark.parametrize("module", ["mpi4py", "pydantic", "rich", "yaml", "click"])
def test_a_script_loads_neither_mpi_nor_the_launcher(module: str) -> None:
    assert run(f"{USED}; import sys; print({module!r} in sys.modules)") == "False"


def test_import_takes_less_than_a_quarter_of_a_second_beyond_numpy(
    tmp_path: Path,
) -> None:
    code = (
        "import numpy, time; start = time.process_time(); "
        f"{USED}; print(time.process_time() - start)"
    )
    # bytecode is kept, as where it is installed: compiling is another matter
    kept = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    # what else the machine does can only make it longer
    assert any(float(run(code, **kept)) < 0.25 for _ in range(6))


NETWORK = {"ftplib", "http", "httpx", "huggingface_hub", "requests", "urllib"}


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_downloaded(path: Path) -> None:
    """Nodes of clusters have no internet: data are files that are there before."""
    assert not {name.partition(".")[0] for name in imports(path)} & NETWORK
