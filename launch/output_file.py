"""Files that people ask for, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastserve.errors import CheckpointError


@contextmanager
def replacing(path: Path, what: str) -> Iterator[Path]:
    """Give the path of a file beside ``path`` to write; then put it there.

    Raises CheckpointError, which calls the file ``what``, if it can't be written.
    """
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        raise CheckpointError(
            f"expected to be able to write the {what}",
            f"{path}: {error.strerror or error}",
            "choose another file with --output",
        ) from None
    finally:
        with suppress(OSError):
            part.unlink()
