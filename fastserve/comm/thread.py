"""``run_threads``: several ranks in one process, for tests."""

from __future__ import annotations

import itertools
import pickle
import socket
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn, TypeVar

import numpy as np

from fastserve.comm.base import (
    Array,
    Communicator,
    Pending,
    check_object,
    check_rank,
    check_received,
    octets,
    summable,
)
from fastserve.comm.shared import HostMemory, block_bytes
from fastserve.comm.world import in_thread
from fastserve.errors import ArgumentError, CommError

T = TypeVar("T")


def run_threads(
    size: int,
    function: Callable[[Communicator], T],
    per_host: Sequence[int] | None = None,
) -> list[T]:
    """Call ``function(comm)`` on ``size`` threads; return the results by rank.

    ``per_host`` makes them look like ranks on several hosts: how many are on each.

    Inside of it ``world()`` is the thread's communicator. An exception in one rank
    ends the ranks that wait for it with CommError at once, and is raised again here.
    """
    if size < 1:
        raise ArgumentError("expected 1 or more ranks", str(size))
    if per_host is not None and (sum(per_host) != size or min(per_host) < 1):
        raise ArgumentError(
            f"run_threads: expected {size} ranks in per_host, 1 or more on each host",
            f"{list(per_host)}",
        )
    meeting = _Meeting(size, per_host or [size])

    def rank_program(comm: ThreadCommunicator) -> T:
        try:
            with in_thread(comm):
                return function(comm)
        except BaseException as error:
            meeting.fail(comm.rank, error)
            raise
        finally:
            comm.close()

    with ThreadPoolExecutor(size, thread_name_prefix="rank") as pool:
        ranks = [ThreadCommunicator(rank, meeting) for rank in range(size)]
        futures = [pool.submit(rank_program, comm) for comm in ranks]
    if meeting.failure is not None:
        raise meeting.failure[1]
    return [future.result() for future in futures]


class ThreadCommunicator(Communicator):
    """One of several ranks that are threads of one process.

    Sums are taken in the order of the ranks, so a run can be repeated to the bit.
    """

    def __init__(self, rank: int, meeting: _Meeting) -> None:
        self.rank, self.size = rank, meeting.size
        self.groups, self.hosts = meeting.groups, meeting.hosts
        self.host = self.hosts[rank]
        self._group = next(group for group in self.groups if rank in group)
        self.local_rank, self.local_size = self._group.index(rank), len(self._group)
        self._meeting = meeting

    def allreduce(self, array: Array) -> None:
        flat = summable(array, "allreduce")
        parts = self._meeting.share(self.rank, "allreduce", flat.copy())
        flat[...] = parts[0]
        for part in parts[1:]:
            np.add(flat, part, out=flat)

    def broadcast(self, array: Array, root: int = 0) -> None:
        check_rank(root, self.size, "broadcast")
        flat = octets(array, "broadcast", writes=True)
        parts = self._meeting.share(self.rank, "broadcast", flat.copy())
        flat[...] = parts[root]

    def sendrecv(self, send: Array, dest: int, recv: Array, source: int) -> None:
        check_rank(dest, self.size, "sendrecv")
        check_rank(source, self.size, "sendrecv")
        out = octets(send, "sendrecv", writes=False)
        into = octets(recv, "sendrecv", writes=True)
        self._meeting.post(self.rank, dest, out.copy())
        message = self._meeting.take(self.rank, source)
        check_received(into.size, message.size, source)
        into[...] = message

    def start(
        self, send: Array, dest: int, recv: Array, source: int, tag: int
    ) -> Pending:
        out = octets(send, "start", writes=False)
        self._meeting.post(self.rank, dest, out.copy(), tag)
        into = octets(recv, "start", writes=True)
        return _Arriving(self._meeting, source, self.rank, into, tag)

    def share(self, size: int, dtype: Any, pieces: int) -> HostMemory | None:
        made = None
        if self.local_rank == 0:
            nbytes = block_bytes(size, dtype, pieces, self.local_size)
            made = np.zeros(nbytes, np.uint8)
        blocks = self._meeting.share(self.rank, "share", made)
        block = blocks[self._group[0]]
        return HostMemory(block, size, dtype, pieces, self.local_size, self.local_rank)

    def barrier(self) -> None:
        self._meeting.share(self.rank, "barrier", None)

    def gather_obj(self, obj: Any, root: int = 0) -> list[Any] | None:
        check_rank(root, self.size, "gather_obj")
        check_object(obj, "gather_obj")
        parts = self._meeting.share(self.rank, "gather_obj", pickle.dumps(obj))
        return [pickle.loads(p) for p in parts] if self.rank == root else None

    def broadcast_obj(self, obj: Any, root: int = 0) -> Any:
        check_rank(root, self.size, "broadcast_obj")
        check_object(obj, "broadcast_obj")
        mine = pickle.dumps(obj) if self.rank == root else b""
        parts = self._meeting.share(self.rank, "broadcast_obj", mine)
        return pickle.loads(parts[root])

    def abort(self, status: int) -> NoReturn:
        raise CommError(
            "expected every rank to finish",
            f"rank {self.rank} aborted the job with status {status}",
        )

    def close(self) -> None:
        self._meeting.leave(self.rank)


class _Arriving:
    """A message that is waited for."""

    def __init__(
        self, meeting: _Meeting, source: int, dest: int, into: Array, tag: int
    ) -> None:
        self._meeting, self._into = meeting, into
        self._from = (source, dest, tag)

    def done(self) -> bool:
        message = self._meeting.look(*self._from)
        if message is None:
            return False
        check_received(self._into.size, message.size, self._from[0])
        self._into[...] = message
        return True


class _Meeting:
    """What the threads share: messages, collectives under way, and who is gone."""

    def __init__(self, size: int, per_host: Sequence[int]) -> None:
        self.size = size
        ends = list(itertools.accumulate(per_host))
        self.groups = [
            list(range(end - count, end))
            for count, end in zip(per_host, ends, strict=True)
        ]
        one, name = len(self.groups) == 1, socket.gethostname()
        self.hosts = [
            name if one else f"{name}-{number}"
            for number, group in enumerate(self.groups)
            for _ in group
        ]
        self.failure: tuple[int, BaseException] | None = None
        self._changed = threading.Condition()
        self._gone: set[int] = set()
        self._messages: dict[tuple[int, int, int], deque[Array]] = defaultdict(deque)
        self._calls = [0] * size  # collectives that each rank has joined
        self._parts: dict[int, dict[int, tuple[str, Any]]] = defaultdict(dict)
        self._readers: dict[int, int] = defaultdict(int)

    def share(self, rank: int, verb: str, value: Any) -> list[Any]:
        """Return every rank's value, in order, once all have called."""
        with self._changed:
            call = self._calls[rank]
            self._calls[rank] += 1
            parts = self._parts[call]
            parts[rank] = (verb, value)
            self._changed.notify_all()
            everyone = set(range(self.size))
            while len(parts) < self.size:
                self._wait(verb, everyone - parts.keys())
            verbs = {other: name for other, (name, _) in sorted(parts.items())}
            self._readers[call] += 1
            if self._readers[call] == self.size:
                del self._parts[call], self._readers[call]
        if len(set(verbs.values())) > 1:
            raise CommError(
                f"expected every rank to call {verb}",
                ", ".join(f"rank {r}: {v}" for r, v in verbs.items()),
                "call the same verbs in the same order on every rank",
            )
        return [parts[other][1] for other in range(self.size)]

    def post(self, source: int, dest: int, message: Array, tag: int = -1) -> None:
        with self._changed:
            self._messages[source, dest, tag].append(message)
            self._changed.notify_all()

    def take(self, dest: int, source: int) -> Array:
        with self._changed:
            while not self._messages[source, dest, -1]:
                self._wait("sendrecv", {source})
            return self._messages[source, dest, -1].popleft()

    def look(self, source: int, dest: int, tag: int) -> Array | None:
        """Return a message if it is there; raise CommError if it can't come."""
        with self._changed:
            if self._messages[source, dest, tag]:
                return self._messages[source, dest, tag].popleft()
            self._check_possible("start", {source})
            return None

    def fail(self, rank: int, error: BaseException) -> None:
        with self._changed:
            self.failure = self.failure or (rank, error)
            self._changed.notify_all()

    def leave(self, rank: int) -> None:
        with self._changed:
            self._gone.add(rank)
            self._changed.notify_all()

    def _wait(self, verb: str, missing: set[int]) -> None:
        """Wait for a change; raise CommError if the missing ranks can't come."""
        self._check_possible(verb, missing)
        self._changed.wait()

    def _check_possible(self, verb: str, missing: set[int]) -> None:
        if self.failure is not None:
            rank, error = self.failure
            raise CommError(
                f"expected every rank to join {verb}",
                f"rank {rank} failed with {type(error).__name__}",
                "see the error of that rank",
            )
        gone = sorted(missing & self._gone)
        if gone:
            raise CommError(
                f"expected every rank to join {verb}",
                f"rank {gone[0]} has ended",
                "call the same verbs on every rank",
            )
