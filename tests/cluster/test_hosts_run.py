"""Jobs over three hosts: how they run, and what is refused before they start."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest
from hosts_lab import ALL_NODES, NODES, Lab, in_time, seen, where, within
from mpi_environments import FLAVOURS, require

pytestmark = [pytest.mark.mpi, pytest.mark.slow]
both = pytest.mark.parametrize("mpi", FLAVOURS)


@both
def test_a_hostfile(mpi: str, lab: Lab) -> None:
    done = lab.run(mpi, "--hostfile", "hosts.txt")
    assert done.status == 0, done.err
    assert where(lab) == ["node1", "node1", "node2", "node3"]
    assert {found["mark"] for found in seen(lab).values()} == {"a b"}
    assert {found["cwd"] for found in seen(lab).values()} == {str(lab.folder / "work")}
    assert "4 ranks on 3 hosts (node1:2 node2:1 node3:1), " in done.err


@both
def test_a_list_of_hosts_and_the_choice_among_them(mpi: str, lab: Lab) -> None:
    done = lab.run(mpi, "-H", "node1:2,node2:1")
    assert done.status == 0, done.err
    assert where(lab) == ["node1", "node1", "node2"]
    hosts = ["--hostfile", "hosts.txt", "--overwrite"]
    done = lab.run(mpi, *hosts, "--exclude", "node1")  # none on the launcher's host
    assert done.status == 0, done.err
    assert where(lab)[:2] == ["node2", "node3"]
    assert "2 ranks on 2 hosts (node2:1 node3:1)" in done.err
    done = lab.run(mpi, *hosts, "--include", "node[2-3]", "-n", "1")
    assert done.status == 0, done.err
    assert "1 rank on 1 host (node2:1)" in done.err


@both
def test_the_dry_run_shows_the_place_of_each_rank(mpi: str, lab: Lab) -> None:
    done = lab.run(mpi, "--hostfile", "hosts.txt", "--dry-run")
    assert done.status == 0, done.err
    assert "rank 2      node2, 3 rows a step, 1 thread" in done.out
    assert "node1:2,node2:1,node3:1" in done.out.splitlines()[-1]
    assert not seen(lab)


@both
@pytest.mark.parametrize("interface", ["eth0", "10.77.0.0/16", "null"])
def test_an_interface_beside_one_that_leads_nowhere(
    mpi: str, interface: str, lab: Lab
) -> None:
    for node in NODES:
        for words in (
            "link add docker0 type bridge",
            "addr add 172.17.0.1/16 dev docker0",
            "link set docker0 up",
        ):
            lab.on(node, "ip", *words.split())
    try:
        words = ("--hostfile", "hosts.txt", "--set", f"launch.interface={interface}")
        done = lab.run(mpi, *words)
        assert done.status == 0, done.err
        missing = lab.run(mpi, *words[:3], "launch.interface=ib0", "--overwrite")
        assert missing.status == 2
        assert "no interface ib0 on node1, node2, node3" in missing.err
        assert "docker0, eth0, lo" in missing.err
    finally:
        for node in NODES:
            lab.on(node, "ip", "link", "del", "docker0")


@both
@pytest.mark.parametrize("trouble", [Lab.ssh_off, Lab.cut_off])
@in_time
def test_a_host_that_is_not_reachable(
    mpi: str, trouble: Callable[[Lab, str], None], lab: Lab
) -> None:
    trouble(lab, "node2")
    done = lab.run(mpi, "--hostfile", "hosts.txt")
    assert done.status == 2, done.err
    assert "node2" in done.err
    assert "to do:" in done.err
    assert not seen(lab)
    within(done.seconds, 15, done.err)


@both
def test_a_name_that_nobody_knows(mpi: str, lab: Lab) -> None:
    done = lab.run(mpi, "-H", "node1,nowhere.invalid")
    assert done.status == 2, done.err
    assert "nowhere.invalid" in done.err
    assert not seen(lab)


@both
def test_another_version_on_one_host(mpi: str, lab: Lab) -> None:
    folder = next(require(mpi).glob("lib/python3*/site-packages/numpy-*.dist-info"))
    version = folder.name.removeprefix("numpy-").removesuffix(".dist-info")
    text = (folder / "METADATA").read_text("utf-8")
    other = lab.folder / "work" / "METADATA"
    other.write_text(text.replace(f"Version: {version}", "Version: 1.0.7"), "utf-8")
    lab.on("node2", "mount", "--bind", str(other), str(folder / "METADATA"))
    try:
        done = lab.run(mpi, "--hostfile", "hosts.txt")
    finally:
        lab.on("node2", "umount", str(folder / "METADATA"))
    assert done.status == 2, done.err
    assert f"NumPy: {version} on node1, node3; 1.0.7 on node2" in done.err
    assert not seen(lab)


@both
def test_more_ranks_than_slots(mpi: str, lab: Lab) -> None:
    done = lab.run(mpi, "--hostfile", "hosts.txt", "-n", "5")
    assert done.status == 2
    assert "at most 4 ranks" in done.err
    done = lab.run(mpi, "--hostfile", "hosts.txt", "-n", "5", "--oversubscribe")
    assert done.status == 0, done.err
    assert where(lab) == ["node1", "node1", "node1", "node2", "node3"]


@both
def test_another_mpirun_first_on_path(mpi: str, lab: Lab) -> None:
    wrong = lab.folder / "work" / "bin"
    wrong.mkdir()
    for name in ("mpirun", "mpiexec", "prted", "hydra_pmi_proxy"):
        (wrong / name).write_text("#!/bin/sh\necho wrong one >&2\nexit 9\n")
        (wrong / name).chmod(0o755)
    path = f"{wrong}:{os.environ['PATH']}"
    done = lab.run(mpi, "--hostfile", "hosts.txt", PATH=path)
    assert done.status == 0, done.err
    assert "wrong one" not in done.err


@both
@in_time
def test_a_firewall_that_lets_only_ssh_through(mpi: str, lab: Lab) -> None:
    lab.do("firewall", "node2")
    done = lab.run(mpi, "--hostfile", "hosts.txt")
    assert done.status == 2, done.err
    assert "node2 can't be reached over TCP" in done.err
    assert "firewall" in done.err
    assert not seen(lab)
    within(done.seconds, 15, done.err)


@both
def test_the_ring_uses_what_the_link_allows(mpi: str, lab: Lab) -> None:
    """On slow links, where the machine's two cores don't count: 97 % from 4 MB on.

    What else the machine does can only make a sum slower, by up to 5 % with both cores
    taken: the best of several measurements counts.
    """
    for node in ALL_NODES:
        lab.do("rate", node, "200mbit")
    words = ("bench", "allreduce", "-H", ",".join(ALL_NODES), "--bind", "none")
    words += ("--algorithms", "ring", "--sizes", "4M,8M", "--json")
    # 1448 bytes of an Ethernet frame of 1514 are the message's
    wire = 200e6 / 8 * 1448 / 1514
    shares: dict[int, list[float]] = {4 << 20: [], 8 << 20: []}
    try:
        for _ in range(5):
            done = lab.finish(lab.start(mpi, *words))
            assert done.status == 0, done.err
            result = json.loads(done.out)
            assert (result["ranks"], result["hosts"]) == (4, 4)
            for row in result["sizes"]:
                needed = 2 * 3 / 4 * row["bytes"] / wire
                shares[row["bytes"]].append(needed / (row["ms"]["ring"] * 1e-3))
            if all(max(found) >= 0.97 for found in shares.values()):
                break
    finally:
        for node in ALL_NODES:
            lab.do("rate", node, "off")
    assert all(max(found) >= 0.97 for found in shares.values()), shares


@both
def test_ranks_of_a_host_send_once(mpi: str, lab: Lab) -> None:
    """Two ranks on each of two hosts: the traffic is that of a ring of two."""

    def sent() -> int:
        return int(lab.on("node1", "cat", "/sys/class/net/eth0/statistics/tx_bytes"))

    size, words = 8 << 20, ("bench", "allreduce", "--algorithms", "ring", "--json")
    traffic: list[tuple[int, int]] = []
    # 5 samples, and so many more that these can be subtracted; how long a sum takes is
    # guessed from a single one
    for seconds in ("0.01", "2", "8", "30"):
        before = sent()
        options = ("-H", "node1:2,node2:2", "--bind", "none", "--seconds", seconds)
        done = lab.finish(lab.start(mpi, *words, *options, "--sizes", str(size)))
        assert done.status == 0, done.err
        calls = json.loads(done.out)["sizes"][0]["calls"]
        traffic.append((sent() - before, calls))
        if calls >= traffic[0][1] + 5:
            break
    (few, less), (many, more) = traffic[0], traffic[-1]
    assert more >= less + 5
    each = (many - few) / (more - less)
    assert each == pytest.approx(2 * (2 - 1) / 2 * size, rel=0.1)


MODELS = """
import numpy as np
import fastserve as fs

def make_data(kind):
    draw = np.random.default_rng(0)
    x = draw.standard_normal((45, 8, 8, 1) if kind == "cnn" else (45, 7, 4))
    return (x, draw.integers(0, 3, 45)), (x[:20], draw.integers(0, 3, 20))

def make_model(kind):
    k = fs.layers
    first = {
        "cnn": [
            k.Conv2D(4, 3, input_shape=(8, 8, 1)), k.BatchNormalization(),
            k.Activation("relu"), k.MaxPooling2D(), k.Flatten(), k.Dropout(0.2),
        ],
        "lstm": [k.LSTM(6, input_shape=(7, 4), dropout=0.1)],
    }[kind]
    model = fs.models.Sequential([*first, k.Dense(3, "softmax")], seed=1)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
"""
PYTHON = "{{type: python, file: models.py, arguments: {{kind: {0}}}}}"
EXACT = """
name: exact
model: {model}
data: {data}
train: {{global_batch: 16, steps: 12, eval_every: 5, baseline: false}}
comm: {{algorithm: exact, bucket_mb: 0.005, timeout: 20}}
launch: {{threads: 1, bind: none}}
"""
GPT = "{type: gpt, n_layer: 2, n_head: 2, n_embd: 32, block_size: 32, dropout: 0.1}"


@pytest.mark.parametrize("kind", ["gpt", "cnn", "lstm"])
def test_exact_bits_over_hosts_and_mpis(kind: str, lab: Lab) -> None:
    """4 ranks on three hosts with each MPI, and one process: the same weights."""
    work = lab.folder / "work"
    (work / "models.py").write_text(MODELS)
    own = PYTHON.format(kind)
    parts = (GPT, "{type: text, source: pydoc-topics}") if kind == "gpt" else (own, own)
    (work / "exact.yaml").write_text(
        EXACT.format(**dict(zip(("model", "data"), parts, strict=True)))
    )
    files = {}
    for mpi in FLAVOURS:
        for where_to in (("--hostfile", "hosts.txt"), ("-n", "1")):
            name = f"{kind}-{mpi}-{where_to[0].strip('-')}"
            words = (*where_to, "--set", f"run_dir=runs/{name}")
            done = lab.start(mpi, "run", "exact.yaml", *words).finish()
            assert done.status == 0, done.err
            state = work / "runs" / name / "checkpoints/step-00000012/state.json"
            files[name] = json.loads(state.read_text())["files"]
    lab.nothing_left()
    first = files.popitem()[1]
    assert first and all(other == first for other in files.values()), files
