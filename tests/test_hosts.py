"""Lists of hosts, host files, the choice among hosts, and ranks on each of them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastserve.errors import LaunchError
from launch.hosts import Host, is_here, parse_hosts, place, read_hostfile, select


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("node1", [Host("node1")]),
        ("node1:2,node2:3", [Host("node1", 2), Host("node2", 3)]),
        (" node1:2 , node2 ,", [Host("node1", 2), Host("node2")]),
        ("a.b-c.example:16", [Host("a.b-c.example", 16)]),
        ("me@node1:2", [Host("node1", 2, "me")]),
        ("[fe80::1]:3,[::1]", [Host("fe80::1", 3), Host("::1")]),
        ("[fe80::1%eth0]", [Host("fe80::1%eth0")]),
        ("me@[fe80::1]:3", [Host("fe80::1", 3, "me")]),
        ("10.0.0.7:2", [Host("10.0.0.7", 2)]),
        ("n[01-03]:2", [Host("n01", 2), Host("n02", 2), Host("n03", 2)]),
        ("n[9-10],m", [Host("n9"), Host("n10"), Host("m")]),
        ("n[1,3-4]x", [Host("n1x"), Host("n3x"), Host("n4x")]),
        ("r[1-2]n[1-2]", [Host("r1n1"), Host("r1n2"), Host("r2n1"), Host("r2n2")]),
        ("u@n[1-2]:4", [Host("n1", 4, "u"), Host("n2", 4, "u")]),
        ("n1,n2:2,n1:3", [Host("n1", 4), Host("n2", 2)]),  # as PBS lists them
    ],
)
def test_lists(text: str, hosts: list[Host]) -> None:
    assert parse_hosts(text) == hosts


@pytest.mark.parametrize(
    "text",
    [
        "",
        " , ",
        "-oProxyCommand=x",
        "x@-n1",
        "-x@n1",
        "@n1",
        "n1;rm",
        "n1 n2",
        "$(x)",
        "n1/2",
        "n1:0",
        "n1:-1",
        "n1:two",
        "n1:",
        "n1:2:3",
        "fe80::1",  # without brackets: the last number could be the slots
        "[fe80::zz]",
        "[fe80::1%e;x]",
        "[::1",
        "n[]",
        "n[3-1]",
        "n[1-",
        "n[a-b]",
        "n[0-99999]",
        "n[0-999]m[0-999]",
        "[1-3]-x[",
        "n\x00",
        "n1\n",
        "nöde",
        "n1:99999999",
        "a@n1,b@n1",
    ],
)
def test_what_is_no_list_of_hosts(text: str) -> None:
    if text == "n1\n":  # blanks around an entry don't matter
        assert parse_hosts(text) == [Host("n1")]
        return
    with pytest.raises(LaunchError) as caught:
        parse_hosts(text)
    assert caught.value.expected
    assert caught.value.received


@given(st.text(alphabet="n1-@:[],. \t%$;é", max_size=12))
def test_no_text_makes_a_name_that_ssh_takes_for_an_option(text: str) -> None:
    try:
        hosts = parse_hosts(text)
    except LaunchError:
        return
    for host in hosts:
        assert host.slots >= 1
        assert host.name[0] not in "-@ "
        assert not set(host.name) & set("@[], \t$;é")


def hostfile(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "hosts.txt"
    path.write_text(text, "utf-8")
    return path


def test_a_hostfile_in_all_formats(tmp_path: Path) -> None:
    text = """
        # the lab
        node01 slots=4 max_slots=8   # Open MPI
        node02:3\t# MPICH
        me@node03 slots=2 port=2222
        node[04-05]  slots=2 max-slots=2

        node06
        [fe80::1] slots=2
        node06
    """
    assert read_hostfile(hostfile(tmp_path, text)) == [
        Host("node01", 4),
        Host("node02", 3),
        Host("node03", 2, "me", 2222),
        Host("node04", 2),
        Host("node05", 2),
        Host("node06", 2),
        Host("fe80::1", 2),
    ]


def test_every_line_at_fault_is_named(tmp_path: Path) -> None:
    path = hostfile(
        tmp_path,
        "good\n-bad\nnode1 slots=x\nnode2 slot=3\nnode3:2 slots=2\nn4 port=70000\n",
    )
    with pytest.raises(LaunchError) as caught:
        read_hostfile(path)
    text = str(caught.value)
    for line in (2, 3, 4, 5, 6):
        assert f"{path}:{line}: " in text
    assert f"{path}:1:" not in text
    assert "'slot=3': expected slots=N" in text


@pytest.mark.parametrize("text", ["", "# nothing\n\n"])
def test_a_hostfile_without_hosts(tmp_path: Path, text: str) -> None:
    with pytest.raises(LaunchError, match=r"hosts\.txt: none"):
        read_hostfile(hostfile(tmp_path, text))


def test_hostfiles_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="No such file"):
        read_hostfile(tmp_path / "nowhere")
    with pytest.raises(LaunchError, match="directory"):
        read_hostfile(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LaunchError, match="not a text file"):
        read_hostfile(tmp_path / "binary")


HOSTS = [Host("n1", 2), Host("n2", 1), Host("n3", 3)]


@pytest.mark.parametrize(
    ("include", "exclude", "names"),
    [
        ([], [], "n1 n2 n3"),
        (["n3", "n1"], [], "n1 n3"),  # in the order of the list
        ([], ["n2"], "n1 n3"),
        (["n[1-2]"], ["n1"], "n2"),
        (["n1,n2"], [], "n1 n2"),
    ],
)
def test_the_choice(include: list[str], exclude: list[str], names: str) -> None:
    chosen = select(HOSTS, include, exclude)
    assert [host.name for host in chosen] == names.split()
    assert all(host in HOSTS for host in chosen)


def test_choices_that_fit_no_host() -> None:
    with pytest.raises(LaunchError, match=r"(?s)received: n4, n5.*n1, n2, n3"):
        select(HOSTS, ["n1", "n4"], ["n5"])
    with pytest.raises(LaunchError, match="left to run on"):
        select(HOSTS, ["n1"], ["n1"])


@pytest.mark.parametrize(
    ("ranks", "placed"),
    [(1, (1, 0, 0)), (2, (2, 0, 0)), (3, (2, 1, 0)), (6, (2, 1, 3))],
)
def test_hosts_are_filled_in_order(ranks: int, placed: tuple[int, ...]) -> None:
    assert place(HOSTS, ranks) == placed


@pytest.mark.parametrize(
    ("ranks", "placed"), [(7, (3, 1, 3)), (9, (4, 2, 3)), (12, (4, 2, 6))]
)
def test_more_ranks_than_slots(ranks: int, placed: tuple[int, ...]) -> None:
    message = r"(?s)at most 6 ranks.*n1:2, n2:1, n3:3.*--oversubscribe"
    with pytest.raises(LaunchError, match=message):
        place(HOSTS, ranks)
    assert place(HOSTS, ranks, oversubscribe=True) == placed


def test_a_long_list_is_cut_in_messages() -> None:
    with pytest.raises(LaunchError, match=r"n08:1, and 92 more"):
        place(parse_hosts("n[01-99],m"), 200)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", "127.3.4.5"])
def test_this_machine_is_here(name: str) -> None:
    if ":" in name and not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6")
    assert is_here(name)
    assert is_here(socket.gethostname())
    assert is_here(socket.gethostname().upper())


@pytest.mark.parametrize("name", ["192.0.2.1", "no-such-host.invalid", "." * 70])
def test_other_machines_are_not(name: str) -> None:
    assert not is_here(name)


# what the comments of the examples say: hosts and slots
EXAMPLES = {
    "lab": (4, 12),
    "mpich": (3, 10),
    "openmpi": (3, 10),
    "plain": (4, 4),
    "ranges": (21, 78),
}
HOSTFILES = Path(__file__).parents[1] / "hostfiles"


def test_every_example_is_here_and_explained() -> None:
    assert {path.stem for path in HOSTFILES.glob("*.txt")} == set(EXAMPLES)
    readme = (HOSTFILES / "README.md").read_text("utf-8")
    for name in EXAMPLES:
        assert f"({name}.txt)" in readme
        assert (HOSTFILES / f"{name}.txt").read_text("utf-8").startswith("# ")


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example(name: str) -> None:
    hosts = read_hostfile(HOSTFILES / f"{name}.txt")
    assert (len(hosts), sum(host.slots for host in hosts)) == EXAMPLES[name]
    assert len({host.name for host in hosts}) == len(hosts)
