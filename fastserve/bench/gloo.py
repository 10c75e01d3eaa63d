"""PyTorch's gloo over the same ranks, to compare with."""

from __future__ import annotations

import socket
from datetime import timedelta

from fastserve.comm import Communicator


def init_gloo(comm: Communicator) -> bool:
    """Connect the ranks once more, by gloo; false if a rank has no PyTorch."""
    try:
        import torch
        import torch.distributed as distributed
    except ImportError:
        torch = None
    found = comm.gather_obj(torch is not None)
    if not comm.broadcast_obj(found and all(found)):
        return False
    torch.set_num_threads(1)
    address, port = comm.broadcast_obj(_meeting_place())
    distributed.init_process_group(
        "gloo",
        init_method=f"tcp://{address}:{port}",
        rank=comm.rank,
        world_size=comm.size,
        timeout=timedelta(seconds=60),
    )
    return True


def _meeting_place() -> tuple[str, int]:
    """Return this host's address and a port of it that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return socket.gethostbyname(socket.gethostname()), probe.getsockname()[1]
