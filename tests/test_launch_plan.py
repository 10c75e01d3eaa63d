"""The command lines, environments and splits that jobs are started with."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastserve.config.schema import Launch
from fastserve.errors import LaunchError
from launch import plan_text
from launch.hosts import Host, parse_hosts, read_hostfile
from launch.mpi import FoundMPI, find_mpi, parse_version
from launch.mpi_messages import NoiseFilter
from launch.plan import (
    LaunchPlan,
    Machine,
    make_plan,
    plan_program,
    split_batch,
    split_shards,
)

OPENMPI = FoundMPI("openmpi", Path("/env/bin/mpirun"), "Open MPI 5.0.11")
MPICH = FoundMPI("mpich", Path("/env/bin/mpiexec"), "MPICH 5.0.2")
BOTH = pytest.mark.parametrize("mpi", [OPENMPI, MPICH], ids=["openmpi", "mpich"])
HOSTFILES = Path(__file__).parents[1] / "hostfiles"
PROGRAM = ["/env/bin/python", "-m", "fastserve"]
THREADS = {
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
}


def job(ranks: int | None = 2, micro: int | None = None, **launch: Any) -> Any:
    return SimpleNamespace(
        name="quick",
        run_dir=None,
        train=SimpleNamespace(global_batch=32, micro_batch=micro),
        shard_rows=None,
        launch=Launch(ranks=ranks, **launch),
    )


def plan(
    job: Any,
    mpi: FoundMPI | None = OPENMPI,
    cores: int | tuple[int, ...] = 4,
    root: bool = False,
    environ: dict[str, str] | None = None,
    hosts: str = "",
    names: str = "",
    others: dict[str, int] | None = None,
    **more: Any,
) -> LaunchPlan:
    listed = tuple(range(cores)) if isinstance(cores, int) else cores
    machine = Machine(
        listed,
        environ or {},
        Path("/work"),
        root,
        more.pop("cols", None),
        frozenset(names.split()),
    )
    return make_plan(
        job,
        parse_hosts(hosts) if hosts else [],
        mpi,
        machine,
        token="abc",
        arguments=["/work/job.yaml", "--set", "seed=2"],
        program=PROGRAM,
        cores=others,
        **more,
    )


def pinned_cores(made: LaunchPlan) -> tuple[tuple[int, ...], ...]:
    return tuple(made.cores_of(rank) for rank in range(made.ranks))


def test_open_mpi_golden() -> None:
    made = plan(job(), kernel="SkylakeX", cols=80)
    assert " ".join(made.command) == (
        "/env/bin/mpirun -n 2 --map-by slot:OVERSUBSCRIBE --bind-to none "
        "--mca mpi_yield_when_idle 1 "
        "-x BLIS_NUM_THREADS -x FASTSERVE_BIND -x FASTSERVE_JOB -x FASTSERVE_RANKS "
        "-x FASTSERVE_RUN_DIR -x FASTSERVE_TERMINAL -x MKL_NUM_THREADS "
        "-x NUMEXPR_NUM_THREADS -x OMP_NUM_THREADS -x OPENBLAS_CORETYPE "
        "-x OPENBLAS_NUM_THREADS -x PYTHONUNBUFFERED "
        "/env/bin/python -m fastserve /work/job.yaml --set seed=2"
    )
    assert made.environment == {
        **dict.fromkeys(THREADS, "2"),
        "OPENBLAS_CORETYPE": "SkylakeX",
        "FASTSERVE_BIND": "core",
        "FASTSERVE_JOB": "abc",
        "FASTSERVE_RANKS": "2",
        "FASTSERVE_RUN_DIR": "/work/runs/quick",
        "PYTHONUNBUFFERED": "",
        "FASTSERVE_TERMINAL": "80",
    }


def test_mpich_golden() -> None:
    made = plan(job(), MPICH)
    assert " ".join(made.command) == (
        "/env/bin/mpiexec -bind-to none -n 2 "
        "/env/bin/python -m fastserve /work/job.yaml --set seed=2"
    )
    assert made.environment == {
        **dict.fromkeys(THREADS, "2"),
        "FASTSERVE_BIND": "core",
        "FASTSERVE_JOB": "abc",
        "FASTSERVE_RANKS": "2",
        "FASTSERVE_RUN_DIR": "/work/runs/quick",
        "PYTHONUNBUFFERED": "",
    }


def test_a_single_process_golden() -> None:
    made = plan(job(ranks=1), None)
    assert made.command == (*PROGRAM, "/work/job.yaml", "--set", "seed=2")
    assert made.launcher == "local"
    assert made.environment["FASTSERVE_COMM"] == "local"
    assert made.environment["FASTSERVE_RANKS"] == "1"
    assert made.environment["FASTSERVE_BIND"] == "none"
    assert made.threads == 4


@BOTH
def test_one_rank_under_mpi_if_asked_for(mpi: FoundMPI) -> None:
    made = plan(job(ranks=1), mpi)
    assert made.command[0] == str(mpi.command)
    assert "FASTSERVE_COMM" not in made.environment


def test_several_ranks_need_an_mpi() -> None:
    with pytest.raises(LaunchError, match=r"(?s)'local'.*received: 2 ranks.*-n 1"):
        plan(job(), None)


@BOTH
@pytest.mark.parametrize(
    ("ranks", "cores", "settings", "threads", "slices"),
    [
        (2, 2, {}, 1, ((0,), (1,))),
        (2, 5, {}, 2, ((0, 1), (2, 3))),
        (2, (3, 5, 8, 9), {}, 2, ((3, 5), (8, 9))),  # a taskset mask
        (2, (7,), {}, 1, ()),
        (3, 2, {}, 1, ()),
        (2, 4, {"threads": 1}, 1, ((0,), (1,))),
        (2, 4, {"threads": 3}, 3, ()),
        (2, 4, {"bind": "none"}, 2, ()),
    ],
)
def test_threads_and_cores(
    mpi: FoundMPI,
    ranks: int,
    cores: int | tuple[int, ...],
    settings: dict[str, Any],
    threads: int,
    slices: tuple[tuple[int, ...], ...],
) -> None:
    made = plan(job(ranks, **settings), mpi, cores)
    assert made.threads == threads
    assert {made.environment[name] for name in THREADS} == {str(threads)}
    assert pinned_cores(made) == (slices or ((),) * ranks)
    assert made.environment["FASTSERVE_BIND"] == ("core" if slices else "none")
    none_bound = ("--bind-to none", "-bind-to none")
    assert any(option in " ".join(made.command) for option in none_bound)


@BOTH
def test_variables_of_the_user_stay(mpi: FoundMPI) -> None:
    given = {"OMP_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "Zen"}
    made = plan(job(threads=2), mpi, environ=given, kernel="SkylakeX")
    assert made.threads == 1
    assert not given.keys() & made.environment.keys()
    others = THREADS - given.keys()
    assert {made.environment[name] for name in others} == {"1"}
    assert made.notes == ("threads: OMP_NUM_THREADS is set",)
    if mpi is OPENMPI:
        exported = made.command
        assert "OMP_NUM_THREADS" in exported
        assert "OPENBLAS_CORETYPE" in exported


def test_variables_of_the_job() -> None:
    env = {"OMP_NUM_THREADS": "3", "MY_DATA": "a b", "FASTSERVE_RANKS": "9"}
    made = plan(job(env=env), environ={"OMP_NUM_THREADS": "1"})
    assert made.threads == 3
    assert made.environment["OMP_NUM_THREADS"] == "3"
    assert made.environment["MY_DATA"] == "a b"
    assert made.environment["FASTSERVE_RANKS"] == "2"
    assert "MY_DATA" in made.command


@pytest.mark.parametrize("name", ["A=B", "", "1A", "A B"])
def test_names_that_no_environment_can_hold(name: str) -> None:
    with pytest.raises(LaunchError, match=r"launch\.env"):
        plan(job(env={name: "x"}))


def test_open_mpi_exports_what_ranks_on_other_hosts_miss() -> None:
    environ = {"PYTHONPATH": "/src", "FASTSERVE_LOG_RANKS": "all", "HOME": "/root"}
    command = plan(job(), environ=environ).command
    exported = {b for a, b in itertools.pairwise(command) if a == "-x"}
    assert {"PYTHONPATH", "FASTSERVE_LOG_RANKS"} <= exported
    assert "HOME" not in exported


def test_root_is_allowed_and_said_with_open_mpi_only() -> None:
    names = {"OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"}
    made = plan(job(), root=True)
    assert {made.environment[name] for name in names} == {"1"}
    assert "running as root" in plan_text.full(made)
    for other in (plan(job()), plan(job(), MPICH, root=True)):
        assert not names & other.environment.keys()
        assert "running as root" not in plan_text.full(other)


@BOTH
def test_more_ranks_than_cores_are_said_in_one_line(mpi: FoundMPI) -> None:
    made = plan(job(ranks=3), mpi, cores=2)
    assert len(made.notes) == 1
    assert made.notes[0].startswith("3 ranks share 2 cores of this host")
    assert plan(job(ranks=2), mpi, cores=2).notes == ()
    crowded = plan(job(ranks=2, threads=2), mpi, cores=2)
    assert "ranks aren't pinned" in crowded.notes[0]


def test_the_run_folder() -> None:
    chosen = job()
    assert plan(chosen).run_dir == Path("/work/runs/quick")
    chosen.run_dir = "out/here"
    assert plan(chosen).run_dir == Path("/work/out/here")
    chosen.run_dir = "/abs"
    assert plan(chosen).run_dir == Path("/abs")


@pytest.mark.parametrize(
    ("batch", "micro", "ranks", "rows", "text"),
    [
        (32, 16, 2, (16, 16), "global 32 = 2 ranks x 16 x 1 accumulation"),
        (512, 16, 8, (64,) * 8, "global 512 = 8 ranks x 16 x 4 accumulation"),
        (32, None, 1, (32,), "global 32 = 1 rank x 32 x 1 accumulation"),
        (
            32,
            None,
            3,
            (11, 11, 10),
            "global 32 = 3 ranks x 10 to 11 rows in 1 micro-batch of up to 11",
        ),
        (
            32,
            10,
            2,
            (16, 16),
            "global 32 = 2 ranks x 16 rows in 2 micro-batches of up to 10",
        ),
        (
            1,
            None,
            2,
            (1, 0),
            "global 1 = 2 ranks x 0 to 1 rows in 1 micro-batch of up to 1",
        ),
    ],
)
def test_the_split(
    batch: int, micro: int | None, ranks: int, rows: tuple[int, ...], text: str
) -> None:
    split = split_batch(batch, micro, ranks)
    assert split.rows == rows
    assert str(split) == text


def test_the_dry_run_shows_command_environment_and_ranks() -> None:
    text = plan_text.full(plan(job()))
    assert "rank 1      16 rows a step, 2 threads, cores 2 3" in text
    assert "  FASTSERVE_RANKS=2\n" in text
    assert text.endswith("/env/bin/python -m fastserve /work/job.yaml --set seed=2")
    assert plan_text.summary(plan(job())) == (
        "2 ranks (Open MPI 5.0.11), 2 threads each, pinned to cores"
    )


# --- several hosts


def several(mpi: FoundMPI = OPENMPI, **more: Any) -> LaunchPlan:
    """Return a plan of three ranks on node1, which is this host, and node2."""
    settings = {"hosts": "node1:2,node2:1", "names": "node1", "others": {"node2": 8}}
    launch = more.pop("launch", {})
    return plan(job(None, **launch), mpi, **{**settings, **more})


def test_open_mpi_on_hosts_golden() -> None:
    made = several(launch={"ssh": ["-i", "key"], "interface": "eth0", "threads": 2})
    assert " ".join(made.command) == (
        "/env/bin/mpirun --host node1:2,node2:1 "
        "--prtemca plm_ssh_args -i key -o BatchMode=yes -o ConnectTimeout=10 "
        "--prtemca plm_ssh_no_tree_spawn 1 --prtemca oob_tcp_keepalive_time 5 "
        "--prtemca oob_tcp_keepalive_intvl 1 --prtemca oob_tcp_keepalive_probes 5 "
        "--prtemca prte_if_include eth0 --mca btl_tcp_if_include eth0 "
        "--mca btl_tcp_links 2 --mca btl_tcp_max_send_size 1048576 "
        "-n 3 --map-by slot:OVERSUBSCRIBE --bind-to none "
        "--mca mpi_yield_when_idle 1 "
        "-x BLIS_NUM_THREADS -x FASTSERVE_BIND -x FASTSERVE_JOB -x FASTSERVE_RANKS "
        "-x FASTSERVE_RUN_DIR -x MKL_NUM_THREADS -x NUMEXPR_NUM_THREADS "
        "-x OMP_NUM_THREADS -x OPENBLAS_NUM_THREADS -x PYTHONUNBUFFERED "
        "/env/bin/python -m fastserve /work/job.yaml --set seed=2"
    )
    # one argument, although it has blanks
    assert "-i key -o BatchMode=yes -o ConnectTimeout=10" in made.command
    assert made.remote


def test_open_mpi_4_on_hosts_has_other_names() -> None:
    mpi = FoundMPI("openmpi", Path("/env/bin/mpirun"), "Open MPI 4.1.4")
    words = " ".join(several(mpi, launch={"interface": "10.0.0.0/8"}).command)
    assert "--prtemca" not in words
    assert "--mca plm_rsh_args -o BatchMode=yes" in words
    assert "--mca oob_tcp_if_include 10.0.0.0/8" in words


def test_mpich_on_hosts_golden() -> None:
    made = several(MPICH, launch={"interface": "eth0", "threads": 2})
    assert " ".join(made.command) == (
        "/env/bin/mpiexec -hosts node1:2,node2:1 -iface eth0 -bind-to none -n 3 "
        "/env/bin/python -m fastserve /work/job.yaml --set seed=2"
    )
    assert made.environment == {
        **dict.fromkeys(THREADS, "2"),
        "FASTSERVE_BIND": "core",
        "FASTSERVE_JOB": "abc",
        "FASTSERVE_RANKS": "3",
        "FASTSERVE_RUN_DIR": "/work/runs/quick",
        "FI_TCP_IFACE": "eth0",
        "HYDRA_LAUNCHER_EXTRA_ARGS": "-o BatchMode=yes -o ConnectTimeout=10",
        "PYTHONUNBUFFERED": "",
        "UCX_NET_DEVICES": "eth0",
    }


def test_an_interface_that_was_found_for_a_subnet() -> None:
    made = several(MPICH, launch={"interface": "10.0.0.0/8"}, interface="eth7")
    assert "-iface eth7" in " ".join(made.command)
    assert made.interface == "10.0.0.0/8"


@BOTH
@pytest.mark.parametrize("path", sorted(HOSTFILES.glob("*.txt")), ids=lambda p: p.stem)
def test_each_example_of_a_host_file_has_a_plan(path: Path, mpi: FoundMPI) -> None:
    hosts = read_hostfile(path)
    total = sum(host.slots for host in hosts)
    listed = ",".join(f"{host.name}:{host.slots}" for host in hosts)
    made = plan(job(ranks=None, oversubscribe=True), mpi, hosts=listed)
    assert made.ranks == total
    assert all(host.name in " ".join(made.command) for host in hosts)


@BOTH
def test_the_login_of_other_hosts(mpi: FoundMPI) -> None:
    def login(hosts: str) -> str:
        made = several(mpi, hosts=hosts)
        return " ".join([*made.command, *map("=".join, made.environment.items())])

    assert "-l me -o BatchMode" in login("node1:2,me@node2")  # node1 is this host
    with pytest.raises(LaunchError, match=r"me@node2, node3.*\n.*~/\.ssh/config"):
        login("me@node2,node3")
    with pytest.raises(LaunchError, match=r"fe80::1"):
        login("node1,[fe80::1]")


@BOTH
def test_hosts_without_ranks_are_left_out(mpi: FoundMPI) -> None:
    made = plan(job(2), mpi, hosts="node2:2,node3:2")
    assert "node2:2" in made.command
    assert "node3" not in " ".join(made.command)
    assert [part.host.name for part in made.places] == ["node2"]
    assert "btl_tcp_links" not in made.command


@BOTH
def test_a_list_of_this_host_alone_needs_no_ssh(mpi: FoundMPI) -> None:
    made = plan(job(None), mpi, hosts="node1:3", names="node1")
    assert made.ranks == 3
    assert not made.remote
    assert "node1" not in " ".join(made.command)


@BOTH
def test_threads_are_counted_on_each_host(mpi: FoundMPI) -> None:
    same = several(mpi, others={"node2": 2})  # 2 ranks on 4 cores, 1 on 2
    assert {same.environment[name] for name in THREADS} == {"2"}
    other = several(mpi, others={"node2": 8})
    assert [part.threads for part in other.places] == [2, 8]
    assert other.threads is None
    assert not THREADS & other.environment.keys()  # each rank counts for itself
    assert other.environment["FASTSERVE_BIND"] == "core"
    assert "2 to 8 threads each" in plan_text.summary(other)
    unknown = several(mpi, others={})
    assert unknown.places[1].threads is None
    assert not THREADS & unknown.environment.keys()
    given = several(mpi, environ={"OMP_NUM_THREADS": "3"})
    assert given.threads == 3
    fixed = several(mpi, launch={"threads": 5})
    assert [part.pinned for part in fixed.places] == [False, True]


@BOTH
def test_slots_are_kept_unless_told_otherwise(mpi: FoundMPI) -> None:
    with pytest.raises(LaunchError, match=r"(?s)at most 3 ranks.*--oversubscribe"):
        plan(job(4), mpi, hosts="node1:2,node2:1", names="node1")
    made = plan(
        job(5, oversubscribe=True),
        mpi,
        hosts="node1:2,node2:1",
        names="node1",
        others={"node2": 1},
        cores=2,
    )
    assert "node1:4,node2:1" in made.command
    assert made.notes[0].startswith("4 ranks share 2 cores of node1")


@BOTH
def test_hosts_without_a_rank_are_told(mpi: FoundMPI) -> None:
    made = plan(job(2), mpi, hosts="node1:2,node2:2", names="node1", cores=2)
    assert made.notes == ("no rank on node2: the job has 2 ranks; -n 4 fills all",)
    assert [part.host.name for part in made.places] == ["node1"]
    full = plan(job(3), mpi, hosts="node1:2,node2:2", names="node1", cores=2)
    assert full.notes == ()


def test_hosts_need_an_mpi() -> None:
    with pytest.raises(LaunchError, match=r"1 rank on a list of hosts"):
        plan(job(1), None, hosts="node2")


def test_what_is_said_of_hosts() -> None:
    made = several(others={"node2": 2})
    assert plan_text.summary(made) == (
        "3 ranks on 2 hosts (node1:2 node2:1), Open MPI 5.0.11, 2 threads each, "
        "pinned to cores"
    )
    text = plan_text.full(made)
    assert "hosts       2 hosts (node1:2 node2:1)\n" in text
    assert "rank 1      node1, 11 rows a step, 2 threads, cores 2 3\n" in text
    assert "rank 2      node2, 10 rows a step, 2 threads, pinned to cores\n" in text
    many = plan(job(None), hosts="node[1-20]")
    assert "on 20 hosts (node1:1 node2:1" in plan_text.summary(many)
    assert "node8:1 and 12 more)" in plan_text.summary(many)


def test_a_program_without_a_job() -> None:
    machine = Machine((0, 1), {}, Path("/work"))
    words = ["/env/bin/python", "-m", "fastserve.bench"]
    hosts = [Host("node1"), Host("node2")]
    folder = Path("/work/x")
    launch = Launch(python="/other/python")
    made = plan_program(launch, words, hosts, OPENMPI, machine, "abc", folder)
    assert made.command[-3:] == ("/other/python", "-m", "fastserve.bench")
    assert (made.ranks, made.split, made.run_dir) == (2, None, folder)
    assert "global" not in plan_text.full(made)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mpirun (Open MPI) 5.0.11\n\nReport bugs", ("openmpi", "Open MPI 5.0.11")),
        ("mpirun (Open MPI) 4.1.4", ("openmpi", "Open MPI 4.1.4")),
        (
            "HYDRA build details:\n    Version:       5.0.2\n    CC: cc",
            ("mpich", "MPICH 5.0.2"),
        ),
        (
            "Intel(R) MPI Library for Linux* OS, Version 2021.11 Build",
            ("mpich", "Intel MPI"),
        ),
        ("slurm 22.05", None),
        ("", None),
    ],
)
def test_versions(text: str, expected: tuple[str, str] | None) -> None:
    assert parse_version(text) == expected


def fake_mpi(folder: Path, name: str, says: str) -> Path:
    folder.mkdir(exist_ok=True)
    command = folder / name
    command.write_text(f"#!/bin/sh\necho '{says}'\n")
    command.chmod(0o755)
    return command


ONE, TWO = "mpirun (Open MPI) 5.0.1", "HYDRA build details: Version: 4.2"


def test_the_mpi_of_the_environment_comes_before_path(tmp_path: Path) -> None:
    home, site = tmp_path / "home", tmp_path / "site"
    own = fake_mpi(home, "mpiexec", ONE)
    fake_mpi(site, "mpirun", TWO)
    found = find_mpi("auto", home, {"PATH": str(site)})
    assert found == FoundMPI("openmpi", own, "Open MPI 5.0.1")
    with pytest.raises(LaunchError, match=r"expected MPICH in the environment"):
        find_mpi("mpich", home, {"PATH": str(site)})


def test_the_site_s_mpi_is_taken_with_a_word(tmp_path: Path) -> None:
    home, site = tmp_path / "home", tmp_path / "site"
    other = fake_mpi(site, "mpirun", TWO)
    fake_mpi(site, "mpiexec", "something else")
    found = find_mpi("auto", home, {"PATH": f"{tmp_path}/none:{site}"})
    assert (found.flavour, found.command) == ("mpich", other)
    assert "taking the site's MPICH 4.2" in found.note
    assert found.note in plan(job(), found).notes


def test_two_mpis_of_the_site_are_not_chosen_by_order(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    fake_mpi(first, "mpirun", ONE)
    chosen = fake_mpi(second, "mpiexec", TWO)
    env = {"PATH": f"{first}:{second}"}
    with pytest.raises(LaunchError, match=r"expected one MPI"):
        find_mpi("auto", tmp_path / "home", env)
    assert find_mpi("mpich", tmp_path / "home", env).command == chosen


def test_no_mpi_at_all(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"(?s)pip install.*-n 1"):
        find_mpi("auto", tmp_path, {"PATH": str(tmp_path)})
    assert find_mpi().command.parent == Path(sys.executable).parent


RULE = "-" * 74
ABORTED = f"{RULE}\nMPI_ABORT was invoked on rank 1\n  Errorcode: 7\n\n{RULE}\n"
WARNED = f"{RULE}\nA network of this host is slow\n{RULE}\n"
BAD = (
    f"{'=' * 83}\n=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES\n"
    f"=   EXIT CODE: 9\n{'=' * 83}\n"
    "YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)\n"
)
ABORT = "Abort(7) on node 1 (rank 1): application called MPI_Abort(COMM, 7)\n"
SUMMARY = f"{'=' * 65}\nlayer  parameters\n{'=' * 65}\n"


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("plain\nlines", ""),
        (f"before\n{ABORTED}after\n", ABORTED),
        (f"{ABORTED}\0{ABORTED}", ABORTED + ABORTED),
        (WARNED, ""),
        (f"x\n{BAD}y\n", BAD),
        (f"{ABORT}Abort(not really)\n", ABORT),
        (SUMMARY, ""),
        (f"{RULE}\nMPI_ABORT was invoked, and cut short", ""),
        ("\r 10%\r 20%\n", ""),
        (f"a bar ends {RULE}\n{WARNED}", ""),
    ],
)
def test_the_mpis_noise_is_held_back(text: str, held: str, size: int) -> None:
    noise, shown = NoiseFilter(), b""
    data = text.encode()
    for start in range(0, len(data), size):
        shown += noise.feed(data[start : start + size])
    shown += noise.finish()
    assert noise.held.decode() == held
    expected = text.replace("\0", "")
    for piece in (ABORTED, BAD, ABORT) if held else ():
        expected = expected.replace(piece, "")
    assert shown.decode() == expected


def test_what_follows_from_a_death_is_kept_apart() -> None:
    follows = (
        b"[node1:00000] *** An error occurred in Socket closed\n"
        b"[node1:00109] plm:ssh: Warning: setpgid(113,113) failed in parent\n"
        b"[proxy:0@node1] main (/src/pmip.c:123): demux engine error\n"
        b"[mpiexec@node1] HYDU_sock_write (/src/sock.c:250): write error\n"
    )
    noise = NoiseFilter()
    assert noise.feed(b"[rank 1 node1] loss\n" + follows) == b"[rank 1 node1] loss\n"
    assert (noise.follows, noise.held) == (follows, b"")


def test_a_progress_bar_is_shown_before_its_line_ends() -> None:
    noise = NoiseFilter()
    assert noise.feed(b"\r 10% ====") == b"\r 10% ===="
    assert noise.feed(b"\r 20% ") == b"\r 20% "
    assert noise.feed(b"=====\nAbort") == b"=====\n"
    assert noise.feed(b"ed by hand\n") == b"Aborted by hand\n"


def test_whole_shards_for_each_rank() -> None:
    split = split_shards(30, 4, 3)
    assert split.rows == (12, 12, 6)
    assert split_shards(5, 2, 4).rows == (2, 2, 1, 0)
    assert split_batch(30, 4, 3).rows == (10, 10, 10)
