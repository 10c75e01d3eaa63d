"""Counts the matrix products whose bits depend on BLAS' threads or kernel family.

    python benchmarks/blas_bits.py [--families SkylakeX Haswell] [--threads 1 2]

The products are those of layers: forward, the gradient of the inputs, the gradient of
the weights. Each combination of kernel family and threads has a process of its own, as
OpenBLAS takes both from its environment; all multiply the same numbers. A family that
this CPU can't run is replaced by OpenBLAS, which the first column shows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import zlib

from fastserve import environment

# rows, inputs and units of layers: MLPs, a recurrent step, patches of convolutions,
# transformers of width 64, 128 and 384, an attention head, heads of vocabularies
LAYERS = (
    (4, 16, 3),
    (16, 64, 10),
    (32, 784, 128),
    (128, 128, 10),
    (32, 128, 512),
    (1024, 27, 16),
    (1024, 144, 32),
    (256, 64, 192),
    (256, 64, 256),
    (512, 128, 384),
    (512, 384, 1536),
    (1024, 1536, 384),
    (64, 32, 64),
    (256, 64, 103),
    (256, 384, 1000),
)


def checksums() -> tuple[str, list[int]]:
    """Return the kernel family in use, and a checksum of each product."""
    import numpy as np

    from fastserve.training.numerics import numerics

    rng = np.random.default_rng(0)
    found = []
    for rows, inputs, units in LAYERS:
        x, w, dy = (
            rng.standard_normal(shape, np.float32)
            for shape in ((rows, inputs), (inputs, units), (rows, units))
        )
        found += [zlib.crc32(y.tobytes()) for y in (x @ w, dy @ w.T, x.T @ dy)]
    return numerics().get("kernels", "unknown"), found


def measure(family: str, threads: int) -> tuple[str, list[int]]:
    """Return what ``checksums`` does in a process with this family and threads."""
    done = subprocess.run(
        [sys.executable, __file__, "--child"],
        env={
            **os.environ,
            **environment.thread_variables(threads),
            **environment.kernel_variable(family),
        },
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    kernels, found = json.loads(done.stdout)
    return kernels, found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--families", nargs="+", default=["SkylakeX", "Haswell"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(checksums()))
        return
    made = {
        (family, threads): measure(family, threads)
        for family in options.families
        for threads in options.threads
    }
    for one, other in itertools.combinations(made, 2):
        if one[0] != other[0] and one[1] != other[1]:
            continue  # one thing at a time
        names = [f"{made[kind][0]} kernels, threads {kind[1]}" for kind in (other, one)]
        pairs = list(zip(made[one][1], made[other][1], strict=True))
        odd = sum(a != b for a, b in pairs)
        print(f"{' instead of '.join(names)}: {odd} of {len(pairs)} differ")


if __name__ == "__main__":
    main()
