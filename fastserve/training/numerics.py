"""What the bits of a result depend on besides the job, and who differs in it.

OpenBLAS 0.3.31 was measured: products of a few shapes give other bits with another
number of threads (3 of 38 with SkylakeX kernels, 21 of 38 with Haswell's), and most
give others with another family of kernels (31 of 38). NumPy's own functions use the
CPU's vector instructions: without AVX-512 expm1, log1p and power give other bits, and
without AVX2 exp, log and tanh too (NumPy 2.4).
"""

from __future__ import annotations

import numpy as np

from fastserve.comm import Communicator

Numerics = dict[str, str]


def numerics() -> Numerics:
    """Return this process's NumPy, the vector instructions that it uses beyond those
    of every CPU, BLAS, kernel family and number of BLAS threads."""
    from threadpoolctl import threadpool_info

    simd = np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", ())
    found = {"NumPy": np.__version__, "SIMD": " ".join(simd) or "baseline"}
    for pool in threadpool_info():
        if pool["user_api"] == "blas":
            found["BLAS"] = f"{pool['internal_api']} {pool['version']}"
            found["kernels"] = str(pool.get("architecture", "unknown"))
            found["threads"] = str(pool["num_threads"])
    return found


def fix_threads(count: int) -> None:
    """Let BLAS use so many threads from now on."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(count, user_api="blas")


def differences(one: Numerics, other: Numerics) -> str:
    """Return what differs, like ``threads: 2 instead of 1``; '' if nothing does."""
    return ", ".join(
        f"{name}: {other.get(name, 'none')} instead of {one.get(name, 'none')}"
        for name in sorted(one | other)
        if one.get(name) != other.get(name)
    )


def odd_rank(comm: Communicator) -> str | None:
    """Return which rank differs from rank 0 and in what, the same on all ranks."""
    everyone = comm.gather_obj(numerics())
    message = None
    for rank, other in enumerate(everyone or []):
        found = differences(everyone[0], other) if everyone else ""
        if found and message is None:
            message = f"rank {rank} on {comm.hosts[rank]} has {found}"
    result: str | None = comm.broadcast_obj(message)
    return result
