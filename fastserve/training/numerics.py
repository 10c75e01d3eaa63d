"""What the bits of a result depend on besides the job, and who differs in it.

OpenBLAS 0.3.31 was measured (``benchmarks/blas_bits.py``): some products give other
bits with another number of threads (2 of 45 with SkylakeX kernels, 28 of 45 with
Haswell's), and most with another family of kernels (42 of 45). NumPy's own functions
use the CPU's vector instructions: without AVX-512 expm1, log1p and power give other
bits, and without AVX2 exp, log and tanh too (NumPy 2.4).
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fastserve.comm import Communicator
from fastserve.environment import Numerics, differences

_COUNT, _CONFIG = "openblas_get_num_threads", "openblas_get_config"


def numerics() -> Numerics:
    """Return this process's NumPy, the vector instructions that it uses beyond those
    of every CPU, and the BLAS that it calls: version, library, build, threading layer,
    kernel family and number of threads."""
    simd = np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", ())
    found = {"NumPy": np.__version__, "SIMD": " ".join(simd) or "baseline"}
    blas, symbol = _numpy_blas()
    if blas is not None:
        pool = blas.info()
        found["BLAS"] = f"{pool['internal_api']} {pool['version']}"
        found["library"] = Path(pool["filepath"]).name  # a wheel's has a hash in it
        found["threading layer"] = str(pool.get("threading_layer", "unknown"))
        found["kernels"] = str(pool.get("architecture", "unknown"))
        found["threads"] = str(pool["num_threads"])
        found["build"] = _build(blas.dynlib, symbol, found["kernels"])
    return found


def _numpy_blas() -> tuple[Any, str]:
    """Return threadpoolctl's controller of the BLAS that NumPy calls, and the name of
    a function in it; (None, '') if it isn't a library that threadpoolctl knows.

    Other packages bring a BLAS of their own into the process. NumPy's is the one
    where NumPy's extension, with the libraries that it was linked to, has a function.
    """
    from threadpoolctl import ThreadpoolController

    core = "core" if np.__version__.startswith("1.") else "_core"
    extension = sys.modules[f"numpy.{core}._multiarray_umath"].__file__
    linked = ctypes.CDLL(extension)
    for blas in ThreadpoolController().select(user_api="blas").lib_controllers:
        for name in blas.check_symbols:
            found = _address(linked, name)
            if found is not None and found == _address(blas.dynlib, name):
                return blas, name
    return None, ""


def _address(library: ctypes.CDLL, name: str) -> int | None:
    function = getattr(library, name, None)
    return function and ctypes.cast(function, ctypes.c_void_p).value


def _build(library: ctypes.CDLL, symbol: str, kernels: str) -> str:
    """Return what OpenBLAS says of its build, without version and kernel family."""
    function = getattr(library, symbol.replace(_COUNT, _CONFIG), None)
    if _COUNT not in symbol or function is None:
        return "unknown"
    function.restype = ctypes.c_char_p
    words = function().decode().split()[2:]  # after OpenBLAS and its version
    return " ".join(word for word in words if word != kernels)


def fix_threads(count: int) -> None:
    """Let BLAS use so many threads from now on."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(count, user_api="blas")


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
