"""What all tests need of the process that runs them."""

from __future__ import annotations

import signal

# a shell that starts the tests in its background has Ctrl-C ignored, and what they
# start would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
