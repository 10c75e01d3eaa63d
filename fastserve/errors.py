"""The exceptions that fastserve raises.

Every message has three parts: what was expected, what was received, what to do.
Each class is also the built-in exception that it resembles, so that code which knows
nothing of fastserve can catch it::

    FastserveError
    ├── ConfigError        (ValueError)    the job's YAML, all of its faults at once
    ├── UnknownNameError   (ValueError)    a layer, loss ... that doesn't exist
    ├── ArgumentError      (ValueError)    an argument outside of its range
    ├── ShapeError         (ValueError)    an array or layer of the wrong shape or type
    ├── DataError          (ValueError)    a data set that can't be read or used
    ├── StateError         (RuntimeError)  a model that isn't built or compiled yet
    ├── NonFiniteError     (FloatingPointError)  a loss that is NaN or infinite
    ├── LossSpikeError     (ArithmeticError)     a loss that stays far too high
    ├── CheckpointError    (RuntimeError)  a run that can't be written or read
    ├── CommError          (RuntimeError)  ranks that can't talk or don't agree
    │   └── ReplicaError                   ranks whose weights differ
    └── LaunchError        (RuntimeError)  a job that can't be started
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FastserveError(Exception):
    """Base of all errors that fastserve raises on purpose."""

    def __init__(self, expected: str, received: str = "", todo: str = "") -> None:
        self.expected, self.received, self.todo = expected, received, todo
        lines = [expected]
        if received:
            lines.append(f"  received: {received}")
        if todo:
            lines.append(f"  to do: {todo}")
        super().__init__("\n".join(lines))


class ArgumentError(FastserveError, ValueError):
    """An argument is outside of what a function accepts."""


class ShapeError(FastserveError, ValueError):
    """An array, or a layer's input, has another shape or type than expected."""


class DataError(FastserveError, ValueError):
    """A data set can't be read, or holds values that can't be trained on."""


class StateError(FastserveError, RuntimeError):
    """A call came too early, for example ``fit`` before ``compile``."""


class NonFiniteError(FastserveError, FloatingPointError):
    """A loss, gradient or layer output became NaN or infinite."""


class LossSpikeError(FastserveError, ArithmeticError):
    """The loss of several steps in a row is far above that of those before."""


class CheckpointError(FastserveError, RuntimeError):
    """A run folder or checkpoint can't be written, read or trusted."""


class CommError(FastserveError, RuntimeError):
    """Ranks can't communicate, or hold different state."""


class ReplicaError(CommError):
    """The ranks' weights aren't the same any more; raised on all ranks."""


class LaunchError(FastserveError, RuntimeError):
    """A job can't be started as it was asked for."""


class ConfigError(FastserveError, ValueError):
    """A job's configuration has faults; ``faults`` lists each as one line."""

    def __init__(self, source: str, faults: list[str]) -> None:
        self.source, self.faults = source, faults
        count = f"{len(faults)} fault" + ("s" if len(faults) != 1 else "")
        Exception.__init__(self, f"{source}: {count}\n" + "\n".join(faults))


_LISTED = 40  # names that are all shown, even beside the nearest one


class UnknownNameError(FastserveError, ValueError):
    """A name isn't among the known ones; the message names the nearest."""

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        names = sorted(set(known))
        near = nearest(str(name), names)
        todo = f"did you mean {near!r}? " if near else ""
        if near and len(names) > _LISTED:
            super().__init__(
                f"expected the name of a known {kind}", repr(name), todo.strip()
            )
            return
        super().__init__(
            f"expected the name of a known {kind}",
            repr(name),
            f"{todo}known: {', '.join(names)}",
        )


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is closest to ``name``, whatever letters are large, or
    None if none is close."""
    names = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    return names[close[0]] if close else None
