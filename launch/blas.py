"""Measures which kernel family of OpenBLAS is the fastest on this CPU, once.

OpenBLAS chooses by the CPU's name, and on some CPUs it takes kernels of half the speed.
NumPy is loaded in child processes only, one for each family.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fastserve import environment

FAMILIES = ("Haswell", "Zen", "SkylakeX", "Cooperlake", "SapphireRapids")
OWN_CHOICE = ""
MARGIN = 1.05
_ROUNDS = 4
_SECONDS = 10.0  # for one answer

# The three products of a dense layer, forward and backward; (rows, inputs, outputs).
# A family that computes nonsense ends here like one that crashes.
_CHILD = """
import sys, time
import numpy as np
R, I, O = 1024, 384, 1536
rng = np.random.default_rng(0)
x, w, dy = (
    rng.standard_normal(shape, np.float32) for shape in ((R, I), (I, O), (R, O))
)
y, dx, dw = (np.empty(shape, np.float32) for shape in ((R, O), (R, I), (I, O)))
def products():
    np.matmul(x, w, out=y)
    np.matmul(dy, w.T, out=dx)
    np.matmul(x.T, dy, out=dw)
products()
exact = x[:8].astype(float) @ w.astype(float)
if not np.allclose(y[:8], exact, rtol=1e-3, atol=1e-3):
    sys.exit('wrong product')
print('ready', flush=True)
for line in sys.stdin:
    best = 1e9
    for _ in range(2):
        start = time.perf_counter()
        products()
        best = min(best, time.perf_counter() - start)
    print(best, flush=True)
"""


def choose_kernel(
    say: Callable[[str], None], env: Mapping[str, str] = os.environ
) -> str:
    """Return the kernel family to use; '' for OpenBLAS' own choice.

    What the user set is never overruled, but ``say`` gets a line where it costs time.
    The first call on a CPU measures for one or two seconds and remembers; ``say`` gets
    a line about that too.
    """
    kernel = environment.remembered_kernel()
    if kernel is None:
        times = measure(candidates())
        kernel = fastest(times)
        problem = "" if not times else remember(kernel, times)
        say(_report(kernel, times) + problem)
    chosen = environment.chosen_kernel(env)
    if chosen is None:
        return kernel
    gain = _gain_over(chosen)
    if gain > MARGIN:
        say(
            f"OPENBLAS_CORETYPE={chosen} is set and stays; without it matrix products "
            f"would be {gain:.2f} times as fast here"
        )
    return chosen


def _gain_over(family: str) -> float:
    """Return how much faster the best measured family is; 1 if ``family`` wasn't."""
    entry = _read(environment.cache_dir() / "blas.json").get(environment.kernel_key())
    times = entry.get("milliseconds") if isinstance(entry, dict) else None
    times = {name.lower(): t for name, t in times.items()} if times else {}
    own = times.get(family.lower())
    return own / min(times.values()) if own else 1.0


def candidates(machine: str | None = None) -> tuple[str, ...]:
    """Return the families worth trying on this kind of machine; own choice first."""
    x86 = (machine or platform.machine()).lower() in ("x86_64", "amd64")
    return (OWN_CHOICE, *FAMILIES) if x86 else (OWN_CHOICE,)


def fastest(times: Mapping[str, float]) -> str:
    """Return the family to take: the own choice unless another is over 5 % faster."""
    own = times.get(OWN_CHOICE)
    if own is None:
        return OWN_CHOICE
    best = min(times, key=lambda family: times[family])
    return best if own > MARGIN * times[best] else OWN_CHOICE


def measure(
    families: Sequence[str], python: str = sys.executable, code: str = _CHILD
) -> dict[str, float]:
    """Return the seconds that each family needs; one that crashes is left out.

    The families take turns, so that a busy moment of the machine hits all of them.
    """
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


def remember(kernel: str, times: Mapping[str, float]) -> str:
    """Write the choice to the cache; return what went wrong, or ''.

    The file is replaced as a whole, so a reader never sees half of it. Of two writers
    at the same time the last one wins; what the other wrote is measured again.
    """
    path = environment.cache_dir() / "blas.json"
    milliseconds = {family or "own": round(t * 1e3, 3) for family, t in times.items()}
    entry = {"kernel": kernel, "milliseconds": milliseconds}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**_read(path), environment.kernel_key(): entry}, indent=1)
        _replace(path, text)
    except OSError as error:
        return f" (not remembered: {error})"
    return ""


def _report(kernel: str, times: Mapping[str, float]) -> str:
    own = times.get(OWN_CHOICE)
    if own is None:
        return "BLAS kernels could not be measured: OpenBLAS' own choice is used"
    if kernel == OWN_CHOICE:
        return "BLAS kernels measured: OpenBLAS' own choice is the best"
    gain = own / times[kernel]
    return f"BLAS kernels measured: {kernel} is {gain:.2f}x OpenBLAS' own choice"


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


def _read(path: Path) -> dict[str, object]:
    """Return what is remembered so far; nothing if the file is missing or damaged."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _replace(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=".blas-", delete=False
    ) as file:
        file.write(text)
    os.replace(file.name, path)
