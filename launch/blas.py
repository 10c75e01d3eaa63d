"""Measures which kernel family of OpenBLAS is the fastest on this CPU, once.

OpenBLAS chooses by the CPU's name, and on some CPUs it takes kernels of half the speed.
NumPy is loaded in child processes only, one for each family.

Which one is the fastest depends on the products: the families that multiply large
matrices best aren't those for the few rows of a recurrent layer's step, or the few
filters of a convolution. So each kind of job has its own measurement, which the first
job of that kind makes.
"""

from __future__ import annotations

import contextlib
import os
import platform
import select
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fastserve import environment

from . import remembered

FAMILIES = ("Haswell", "Zen", "SkylakeX", "Cooperlake", "SapphireRapids")
OWN_CHOICE = ""
MARGIN = 1.03
_ROUNDS = 4
_SECONDS = 30.0  # for one answer

RECURRENT, CONVOLUTION, LARGE = "recurrent", "convolution", ""
_LAYERS = {  # what is in the names of layers, by kind; the first that is found counts
    RECURRENT: ("LSTM", "GRU", "RNN"),
    CONVOLUTION: ("Conv",),
}

# ``run`` is timed for each line, by the processor's time: what others do doesn't count.
# A family that computes nonsense ends here like one that crashes.
_CHILD = """
import sys, time
import numpy as np
rng = np.random.default_rng(0)
def random(*shape):
    return rng.standard_normal(shape, np.float32)
{setup}
run()
x, w = random(1024, 384), random(384, 1536)
exact = x[:8].astype(float) @ w.astype(float)
if not np.allclose((x @ w)[:8], exact, rtol=1e-3, atol=1e-3):
    sys.exit('wrong product')
print('ready', flush=True)
for line in sys.stdin:
    best = 1e9
    for _ in range(2):
        start = time.process_time()
        run()
        best = min(best, time.process_time() - start)
    print(best, flush=True)
"""
_LAYER = """
from fastserve import layers
from fastserve.core import Memory, ParameterStore, StepKey
def forward_and_backward(layer, x):
    shape = layer.build_once(x.shape[1:])
    layer.bind(Memory(), np.dtype(np.float32))
    store = ParameterStore(layer, seed=1)
    dy = random(len(x), *shape)
    def run():
        layer.forward(x, StepKey())
        layer.backward(dy)
    return run
"""
_SETUPS = {
    # the three products of a dense layer, forward and backward
    LARGE: """
x, w, dy = random(1024, 384), random(384, 1536), random(1024, 1536)
y, dx, dw = random(1024, 1536), random(1024, 384), random(384, 1536)
def run():
    np.matmul(x, w, out=y)
    np.matmul(dy, w.T, out=dx)
    np.matmul(x.T, dy, out=dw)
""",
    RECURRENT: f"""{_LAYER}
layer = layers.LSTM(128, return_sequences=True)
run = forward_and_backward(layer, random(32, 40, 128))
""",
    # of the sizes of small residual networks
    CONVOLUTION: f"""{_LAYER}
sizes = ((32, 16), (16, 32), (8, 64))
runs = [
    forward_and_backward(
        layers.Conv2D(filters, 3, padding='same', use_bias=False),
        random(16, size, size, filters),
    )
    for size, filters in sizes
]
def run():
    for each in runs:
        each()
""",
}


def kind_of(model: Any) -> str:
    """Return the kind of a job with this model, a section of its config.

    What a Python file makes, or a file of JSON describes, counts as LARGE.
    """
    names = list(_names(getattr(model, "layers", [])))
    for kind, parts in _LAYERS.items():
        if any(part in name for part in parts for name in names):
            return kind
    return LARGE


def _names(layers: Any) -> Iterator[str]:
    """Yield the names of layers, and of those around which they are."""
    if isinstance(layers, str):
        yield layers
    elif isinstance(layers, Mapping):
        yield from map(str, layers)
        yield from _names(list(layers.values()))
    elif isinstance(layers, Sequence):
        for part in layers:
            yield from _names(part)


def choose_kernel(
    say: Callable[[str], None],
    env: Mapping[str, str] = os.environ,
    kind: str = LARGE,
) -> str:
    """Return the kernel family to use; '' for OpenBLAS' own choice.

    What the user set is never overruled, but ``say`` gets a line where it costs time.
    The first call for a kind of job on a CPU measures for some seconds and remembers;
    ``say`` gets a line about that too.
    """
    kernel = environment.remembered_kernel(kind)
    if kernel is None:
        times = measure(candidates(), kind)
        kernel = fastest(times)
        problem = remember(kernel, times, kind) if OWN_CHOICE in times else ""
        say(_report(kernel, times, kind) + problem)
    chosen = environment.chosen_kernel(env)
    if chosen is None:
        return kernel
    gain = _gain_over(chosen, kind)
    if gain > MARGIN:
        say(
            f"OPENBLAS_CORETYPE={chosen} is set and stays; without it {_what(kind)} "
            f"would be {gain:.2f} times as fast here"
        )
    return chosen


def _what(kind: str) -> str:
    return f"{kind} layers" if kind else "matrix products"


def _gain_over(family: str, kind: str) -> float:
    """Return how much faster the best measured family is; 1 if ``family`` wasn't."""
    key = environment.kernel_key(kind)
    entry = remembered.read(environment.KERNEL_FILE).get(key)
    times = entry.get("milliseconds") if isinstance(entry, dict) else None
    times = {name.lower(): t for name, t in times.items()} if times else {}
    own = times.get(family.lower())
    return own / min(times.values()) if own else 1.0


def candidates(machine: str | None = None) -> tuple[str, ...]:
    """Return the families worth trying on this kind of machine; own choice first."""
    x86 = (machine or platform.machine()).lower() in ("x86_64", "amd64")
    return (OWN_CHOICE, *FAMILIES) if x86 else (OWN_CHOICE,)


def fastest(times: Mapping[str, float]) -> str:
    """Return the family to take: the own choice unless another is over 3 % faster."""
    own = times.get(OWN_CHOICE)
    if own is None:
        return OWN_CHOICE
    best = min(times, key=lambda family: times[family])
    return best if own > MARGIN * times[best] else OWN_CHOICE


def measure(
    families: Sequence[str],
    kind: str = LARGE,
    python: str = sys.executable,
    code: str | None = None,
) -> dict[str, float]:
    """Return the seconds that each family needs; one that crashes is left out.

    The families take turns, so that a busy moment of the machine hits all of them.
    """
    code = code or _CHILD.format(setup=_SETUPS[kind])
    children = {family: _start(family, python, code) for family in families}
    try:
        alive = {f: child for f, child in children.items() if _answer(child)}
        times = dict.fromkeys(alive, float("inf"))
        for _ in range(_ROUNDS):
            for family in list(alive):
                answer = _ask(alive[family])
                if answer:
                    times[family] = min(times[family], float(answer))
                else:
                    del alive[family], times[family]
        return times
    finally:
        _end(list(children.values()))


def remember(kernel: str, times: Mapping[str, float], kind: str = LARGE) -> str:
    """Write the choice to the cache; return what went wrong, or ''."""
    milliseconds = {family or "own": round(t * 1e3, 3) for family, t in times.items()}
    entry = {"kernel": kernel, "milliseconds": milliseconds}
    try:
        remembered.add(environment.KERNEL_FILE, {environment.kernel_key(kind): entry})
    except OSError as error:
        return f" (not remembered: {error})"
    return ""


def _report(kernel: str, times: Mapping[str, float], kind: str) -> str:
    own = times.get(OWN_CHOICE)
    if own is None:
        return "BLAS kernels could not be measured: OpenBLAS' own choice is used"
    measured = f"BLAS kernels measured{f' for {_what(kind)}' if kind else ''}"
    if kernel == OWN_CHOICE:
        return f"{measured}: OpenBLAS' own choice is the best"
    return f"{measured}: {kernel} is {own / times[kernel]:.2f}x OpenBLAS' own choice"


def _start(family: str, python: str, code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [python, "-c", code],
        env={
            **environment.without_kernel(os.environ),
            **environment.thread_variables(1),
            **environment.kernel_variable(family),
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _answer(child: subprocess.Popen[str]) -> str:
    """Return the child's next line; '' if it has ended, or is silent for too long."""
    assert child.stdout is not None
    if not select.select([child.stdout], [], [], _SECONDS)[0]:
        return ""
    return child.stdout.readline().strip()


def _ask(child: subprocess.Popen[str]) -> str:
    """Return the seconds of one more measurement; '' if there is no answer."""
    assert child.stdin is not None
    try:
        child.stdin.write("go\n")
        child.stdin.flush()
    except BrokenPipeError:
        return ""
    return _answer(child)


def _end(children: Sequence[subprocess.Popen[str]]) -> None:
    for child in children:
        assert child.stdin is not None and child.stdout is not None
        child.kill()
        # A crashed child never read its last line, which closing would flush.
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        child.stdout.close()
        child.wait()
