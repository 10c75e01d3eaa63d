"""What all tests need of the process that runs them."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterator

import pytest

# a shell that starts the tests in its background has Ctrl-C ignored, and what they
# start would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)

with contextlib.suppress(ImportError):  # not all that use this folder have it
    from hypothesis import settings

    # the same examples each time, and however long one takes: a machine that stands
    # still for 0.2 s is no fault of what is tested
    settings.register_profile("tests", deadline=None, derandomize=True)
    settings.load_profile("tests")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Undo what a job leaves that ran in this process: where its messages go, and what
    it does on signals. Otherwise other tests would depend on what came before."""
    log = logging.getLogger("fastserve")
    handlers, level, propagate = log.handlers[:], log.level, log.propagate
    signals = {number: signal.getsignal(number) for number in _SIGNALS}
    yield
    for handler in log.handlers:
        if isinstance(handler, logging.FileHandler) and handler not in handlers:
            handler.close()
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)  # which forgets what it has found out
    for number, action in signals.items():
        signal.signal(number, action)


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
