"""What the environment says of ranks, threads and cores, and what is set from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from mpi_environments import FLAVOURS, ROOT, mpi_command, run, variables

from fastserve import environment
from fastserve.environment import Ranks, expected_ranks

OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_RANK": "3",
}
HYDRA = {
    "PMI_RANK": "2",
    "PMI_SIZE": "6",
    "MPI_LOCALRANKID": "0",
    "MPI_LOCALNRANKS": "2",
}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "9",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "9",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),1",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, Ranks(0, 1, 0, 1, "none")),
        (OPENMPI, Ranks(3, 4, 1, 2, "openmpi")),
        (HYDRA, Ranks(2, 6, 0, 2, "mpich")),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, Ranks(1, 2, 1, 2, "mpich")),
        (
            {"MV2_COMM_WORLD_RANK": "0", "MV2_COMM_WORLD_SIZE": "2"},
            Ranks(0, 2, 0, 2, "mpich"),
        ),
        (SRUN, Ranks(5, 9, 1, 4, "slurm")),
        ({**SRUN, "PMIX_RANK": "5"}, Ranks(5, 9, 1, 4, "pmix")),
        ({**SRUN, **OPENMPI}, Ranks(3, 4, 1, 2, "openmpi")),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, Ranks(0, 1, 0, 1, "none")),
        ({"PMIX_RANK": "2"}, Ranks(2, 3, 2, 3, "pmix")),
        ({"PMI_RANK": "x"}, Ranks(0, 1, 0, 1, "none")),
        # A batch script sees the job's tasks, but is none of them.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, Ranks(0, 1, 0, 1, "none")),
    ],
)
def test_expected_ranks(env: dict[str, str], expected: Ranks) -> None:
    assert expected_ranks(env) == expected


@pytest.mark.parametrize(
    ("cores", "ranks", "threads"), [(8, 2, 4), (8, 3, 2), (2, 4, 1), (1, 1, 1)]
)
def test_threads_per_rank(cores: int, ranks: int, threads: int) -> None:
    assert environment.threads_per_rank(cores, ranks) == threads


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        ({"OMP_NUM_THREADS": "3"}, (3, "OMP_NUM_THREADS")),
        ({"OMP_NUM_THREADS": "4,2"}, (4, "OMP_NUM_THREADS")),
        (
            {"OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "5"},
            (5, "OPENBLAS_NUM_THREADS"),
        ),
        ({"OMP_NUM_THREADS": "many", "MKL_NUM_THREADS": "2"}, (2, "MKL_NUM_THREADS")),
        ({"OMP_NUM_THREADS": "0"}, None),
    ],
)
def test_user_threads(env: dict[str, str], expected: tuple[int, str] | None) -> None:
    assert environment.user_threads(env) == expected


def test_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs with a number that isn't in its list of users."""

    def unknown(number: int) -> None:
        raise KeyError(number)

    for name in ("HOME", "XDG_CACHE_HOME", "FASTSERVE_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # /tmp may hold one
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(RuntimeError):
        Path("~").expanduser()
    own = Path(tempfile.gettempdir()) / f"fastserve-{os.getuid()}"
    assert environment.cache_dir({}) == own
    assert environment.cache_dir({"XDG_CACHE_HOME": "/x"}) == Path("/x/fastserve")
    assert environment.remembered_kernel() is None


def test_cache_dir_follows_the_variables() -> None:
    home = Path("~").expanduser()
    assert environment.cache_dir({}) == home / ".cache" / "fastserve"
    xdg = {"XDG_CACHE_HOME": "/x"}
    assert environment.cache_dir(xdg) == Path("/x/fastserve")
    assert environment.cache_dir({**xdg, "FASTSERVE_CACHE_DIR": "/c"}) == Path("/c")


def test_cpus_of_one_name_with_other_instructions_differ() -> None:
    text = "model name\t: AMD EPYC\nmodel\t: 2\ncpu family\t: 26\nflags\t: avx2{}\n"
    plain = environment._cpu_model(text.format(""), "x86_64")
    wide = environment._cpu_model(text.format(" avx512f"), "x86_64")
    assert plain == "AMD EPYC 26 2 avx2 x86_64"
    assert wide == "AMD EPYC 26 2 avx512f x86_64"
    assert environment.cpu_model()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, None),
        ("{broken", None),
        ("[]", None),
        ('{"KEY": {}}', None),
        ('{"KEY": {"kernel": ""}}', ""),
        ('{"KEY": {"kernel": "SkylakeX"}}', "SkylakeX"),
        ('{"another": {"kernel": "SkylakeX"}}', None),
    ],
)
def test_remembered_kernel(
    content: str | None,
    expected: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FASTSERVE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(environment, "kernel_key", lambda kind="": "KEY")
    if content is not None:
        (tmp_path / "blas.json").write_text(content)
    assert environment.remembered_kernel() == expected


_SHOW = """
import json, os, sys
from fastserve import environment
if sys.argv[1:]:
    os.sched_setaffinity(0, map(int, sys.argv[1:]))
environment.prepare_process()
names = sorted(environment.thread_variables(1)) + ['OPENBLAS_CORETYPE']
print(json.dumps([[os.environ.get(n) for n in names], environment.affinity_cores(),
    sorted({'numpy', 'mpi4py', 'click', 'pydantic'} & set(sys.modules))]))
"""


def prepared(
    env: dict[str, str], cores: set[int] | None = None
) -> tuple[list[str | None], list[int], list[str]]:
    """Return the variables, cores and heavy modules of a prepared process."""
    names = (*environment.thread_variables(1), "OPENBLAS_CORETYPE")
    clean = {n: v for n, v in variables().items() if n not in names}
    done = subprocess.run(
        [sys.executable, "-c", _SHOW, *map(str, sorted(cores or ()))],
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    found = json.loads(done.stdout)
    return found[0], found[1], found[2]


def ranks_env(rank: int, size: int) -> dict[str, str]:
    names = ("RANK", "LOCAL_RANK"), ("SIZE", "LOCAL_SIZE")
    return {
        f"OMPI_COMM_WORLD_{name}": str(value)
        for group, value in zip(names, (rank, size), strict=True)
        for name in group
    }


def test_a_single_process_takes_all_cores(tmp_path: Path) -> None:
    cores = environment.affinity_cores()
    found, own, heavy = prepared({"FASTSERVE_CACHE_DIR": str(tmp_path)})
    assert found == [str(len(cores))] * 5 + [None]
    assert own == cores
    assert heavy == []


def test_a_taskset_mask_decides(tmp_path: Path) -> None:
    core = environment.affinity_cores()[-1]
    found, own, _ = prepared({"FASTSERVE_CACHE_DIR": str(tmp_path)}, {core})
    assert found[:5] == ["1"] * 5
    assert own == [core]


def test_what_the_user_set_stays(tmp_path: Path) -> None:
    key = environment.kernel_key()
    content = {key: {"kernel": "SkylakeX"}}
    (tmp_path / "blas.json").write_text(json.dumps(content))
    cache = {"FASTSERVE_CACHE_DIR": str(tmp_path)}
    assert prepared(cache)[0][5] == "SkylakeX"
    # the launcher chose for the job; no variable is OpenBLAS' own choice
    assert prepared({**cache, "FASTSERVE_JOB": "token"})[0][5] is None
    given = {"OMP_NUM_THREADS": "7", "OPENBLAS_CORETYPE": "Haswell"}
    assert prepared({**cache, **given})[0] == ["7"] * 5 + ["Haswell"]


@pytest.mark.skipif(len(environment.affinity_cores()) < 2, reason="needs two cores")
def test_ranks_are_pinned_to_their_slice() -> None:
    first, second = environment.affinity_cores()[:2]
    bind = {"FASTSERVE_BIND": "core", "OMP_NUM_THREADS": "1"}
    for rank, core in enumerate((first, second)):
        env = {**bind, **ranks_env(rank, 2)}
        assert prepared(env, {first, second})[1] == [core]
        assert prepared({**env, "FASTSERVE_BIND": "none"})[1] != [core]
    too_many = {**bind, **ranks_env(2, 3)}
    assert prepared(too_many, {first, second})[1] == [first, second]


@pytest.mark.mpi
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_real_ranks_know_their_place_before_mpi_is_loaded(flavour: str) -> None:
    code = (
        "import sys; from fastserve import environment as e; p = e.expected_ranks();"
        "e.prepare_process(); t = e.user_threads();"
        "sys.stdout.write(f'{p.rank}{p.size}{p.local_rank}{p.local_size} {p.launcher}"
        " {t[0]}\\n')"
    )
    names = environment.thread_variables(1)
    env = {n: v for n, v in variables().items() if n not in names}
    done = run(mpi_command(flavour, 2, "-c", code), 30, env=env, cwd=ROOT)
    threads = max(1, len(environment.affinity_cores()) // 2)
    expected = [f"0202 {flavour} {threads}", f"1212 {flavour} {threads}"]
    assert sorted(done.stdout.split("\n"))[1:] == expected, done.stderr
