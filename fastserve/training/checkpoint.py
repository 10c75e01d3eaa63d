"""Checkpoints: complete or not there at all, and the same for any number of ranks.

::

    checkpoints/step-00000200/model.safetensors      a tensor {path} per parameter
                              optimizer.safetensors  a tensor {slot}/{path} per slot
                              state.json             step, state, sizes and checksums
    checkpoints/best/                                the same, of the best validation
    checkpoints/latest                               name of the newest, for scripts
    checkpoints/base.safetensors                     parameters that never change

A checkpoint is written to ``.step-00000200.tmp-<pid>``, synced to the disk, read back
and renamed, so a process that is killed at any moment leaves the earlier ones as they
were, and a disk that keeps other bytes than it was given doesn't replace them. Nothing
is pickled. What never changes, such as the model below LoRA's adapters, is written
once, with the first checkpoint; each has its checksum. Only one process may write to a
folder; in a job that is rank 0.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from fastserve import __version__
from fastserve.core import Array, ParameterStore
from fastserve.errors import ArgumentError, CheckpointError
from fastserve.training.files import (
    clean,
    discard,
    forget,
    put_folder,
    replace,
    sync,
    temporary,
    write,
    write_atomically,
    writing,
)

__all__ = [
    "candidates",
    "find",
    "load",
    "load_newest",
    "load_weights",
    "newest",
    "read_metadata",
    "read_state",
    "save",
    "save_weights",
    "write_atomically",
]

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
LATEST, BEST = "latest", "best"
BASE = "../base.safetensors"  # seen from a checkpoint
FORMAT = 1  # of state.json and of the tensors' names

_NAME = re.compile(r"step-(\d{8,})(\.old)?")
_LISTED = 5  # tensors that an error names
_CHUNK = 1 << 20

log = logging.getLogger("fastserve")

Views = dict[str, Array]  # tensor name -> view into a flat vector
Fingerprint = dict[str, Any]  # of a file: its size in bytes and its SHA-256


class OptimizerState(Protocol):
    """What a checkpoint needs of an optimizer; the vectors have the store's layout."""

    state: dict[str, Array]
    own: list[slice] | None  # the state is of these slices alone
    step: int


class NoOptimizer:
    """The optimizer of a checkpoint of weights alone."""

    def __init__(self) -> None:
        self.state: dict[str, Array] = {}
        self.own: list[slice] | None = None
        self.step = 0


def save(
    folder: Path,
    step: int,
    store: ParameterStore,
    optimizer: OptimizerState,
    state: dict[str, Any],
    keep: int | None,
    vectors: Iterable[Array] | None = None,
    keep_every: int | None = None,
) -> Path:
    """Write the checkpoint of ``step`` and return its folder.

    Once it is complete and in place, earlier ones are removed until ``keep`` are left.
    One of the same step is replaced; later ones are left alone.

    Args:
        state: what ``load`` shall return; it must be the same after a way through JSON
            (no tuples, no NaN, no keys that aren't strings).
        keep: None writes ``best`` instead, which nothing removes but the next one.
        vectors: the optimizer's state vectors, whole, one after the other if they
            don't all fit into memory; None: those that it has.
        keep_every: those of each multiple of so many steps are never removed.

    Raises:
        CheckpointError: it can't be written (no space, no permission, a state that
            isn't JSON), or the disk gives other bytes back than were written. Earlier
            checkpoints are as they were.
    """
    if step < 0 or (keep is not None and keep < 1):
        raise ArgumentError(
            "expected a step of 0 or more and keep of 1 or more",
            f"step {step}, keep {keep}",
        )
    body = _body(step, optimizer, state)
    target = Path(folder) / (BEST if keep is None else f"step-{step:08d}")
    with writing(target):
        clean(target.parent, rf"{_NAME.pattern}|{LATEST}|{BEST}(?:\.old)?")
        with temporary(target) as made:
            kept = body["files"]
            kept[MODEL] = _write_tensors(made / MODEL, _parameters(store))
            if vectors is None:
                slots = _slots(store, optimizer)
                kept[OPTIMIZER] = _write_tensors(made / OPTIMIZER, slots)
            else:
                parts = store, optimizer, vectors
                kept[OPTIMIZER] = _write_slots(made / OPTIMIZER, *parts)
            if _base(store):
                kept[BASE] = _save_base(target.parent, store)
            write(made / STATE, _encode(body))
            sync(made)
            _read_back(made, kept)
            put_folder(made, target)
        _read_back(target, kept)
        if keep is None:
            discard(target.with_name(f"{BEST}.old"))
        else:
            replace(target.parent / LATEST, lambda p: write(p, f"{target.name}\n"))
            _prune(target, keep, keep_every)
    return target


def load(
    path: Path,
    store: ParameterStore,
    optimizer: OptimizerState | None,
    loaded: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Fill the store, and the optimizer if there is one; return the saved state.

    The state holds ``step`` besides what was given to ``save``. All of the checkpoint
    is checked before anything is changed. The vectors of a sharded optimizer are left
    to ``read_slots``; ``loaded`` is called with the path that it needs.

    Raises:
        CheckpointError: names the file and what is wrong with it.
    """
    path = Path(path)
    body = _read_state(path)
    for name, expected in body["files"].items():
        _check_fingerprint(path / name, expected)
    views = {MODEL: _parameters(store)}
    if _base(store):
        views[BASE] = _base(store)
    if optimizer is not None:
        views[OPTIMIZER] = _slots(store, optimizer)
    with ExitStack() as stack:
        opened = {n: stack.enter_context(_tensors(path / n)) for n in views}
        if views.get(OPTIMIZER) and not opened[OPTIMIZER].keys():
            raise CheckpointError(
                f"{path}: expected the optimizer's state, to go on from it",
                "a checkpoint of weights alone, as import and merge-lora write it",
                "start a new run with model.init_from: FOLDER and without --resume; "
                "the folder is the one that was imported, or what fastserve export "
                "makes of the run",
            )
        for name, file in opened.items():
            _compare(path / name, file, views[name])
        for name, file in opened.items():
            if name != OPTIMIZER or (optimizer is not None and optimizer.own is None):
                _copy(file, views[name])
    if optimizer is not None:
        optimizer.step = body["optimizer_step"]
    if loaded is not None:
        loaded(path)
    return {**body["state"], "step": body["step"]}


def read_slots(
    path: Path, store: ParameterStore, optimizer: OptimizerState, vector: Array
) -> Iterator[Array]:
    """Yield the optimizer's vectors of a loaded checkpoint, whole, all in ``vector``,
    which has the store's layout."""
    with _tensors(Path(path) / OPTIMIZER) as file:
        for slot in optimizer.state:
            for p in store.parameters:
                store.view(vector, p)[...] = file.get_tensor(f"{slot}/{p.path}")
            yield vector


def newest(folder: Path) -> Path | None:
    """Return the complete checkpoint of the latest step; None if there is none.

    Complete means that its state.json is sound and all files have the right size.
    Their contents are checked by ``load``.
    """
    return next(filter(_complete, candidates(Path(folder))), None)


def read_state(path: Path) -> dict[str, Any] | None:
    """Return what ``load`` would return; None if there is no complete checkpoint."""
    try:
        body = _read_state(Path(path))
    except CheckpointError:
        return None
    return {**body["state"], "step": body["step"]}


def preferred(folder: Path) -> str:
    """Return which checkpoint is used where nobody asks for one: ``best`` if a run has
    kept one, else ``latest``."""
    kept = any(path.exists() for path in _places(Path(folder), BEST))
    return BEST if kept else LATEST


def find(folder: Path, which: str) -> Path:
    """Return the checkpoint ``best``, ``latest``, or of a step's number.

    Raises CheckpointError, which lists what there is, if it isn't there or isn't
    complete.
    """
    folder, paths = Path(folder), []
    if which == LATEST:
        paths = candidates(folder)
    elif which == BEST or which.isdecimal():
        name = BEST if which == BEST else f"step-{int(which):08d}"
        paths = _places(folder, name)
    found = next(filter(_complete, paths), None)
    if found is None:
        there = sorted({p.name.split(".")[0] for p in candidates(folder)})
        there += [BEST] if (folder / BEST).exists() else []
        raise CheckpointError(
            f"expected a checkpoint {which!r} in {folder}",
            f"not there, or damaged; there are {', '.join(there) or 'none'}",
            "give best, latest, or the number of a step; best needs a run with "
            "checkpoint.best",
        )
    return found


def load_newest(
    folder: Path,
    store: ParameterStore,
    optimizer: OptimizerState | None,
    loaded: Callable[[Path], None] | None = None,
) -> dict[str, Any] | None:
    """Load the newest checkpoint that is sound; None if there are no checkpoints.

    A damaged one is logged as a warning, and the one before is tried, ``best`` at last.

    Raises:
        CheckpointError: there are checkpoints, but none can be loaded.
    """
    errors: list[CheckpointError] = []
    best = [path for path in _places(Path(folder), BEST) if path.exists()]
    paths = [*candidates(Path(folder)), *best]
    for path in paths:
        try:
            return load(path, store, optimizer, loaded)
        except CheckpointError as error:
            if path != paths[-1]:
                log.warning("%s: trying the one before. %s", path, error)
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise CheckpointError(
            f"expected a checkpoint that can be loaded in {folder}",
            f"{len(errors)} that can't; the newest: {errors[0].expected}: "
            f"{errors[0].received}",
            f"{errors[0].todo}; or start anew in another run folder, or with "
            "--overwrite",
        ) from errors[0]
    return None


def save_weights(
    path: Path,
    store: ParameterStore,
    metadata: Mapping[str, str],
    trained_only: bool = False,
) -> None:
    """Write the parameters to a .safetensors file; it replaces one that is there.

    With ``trained_only`` those that never change are left out.

    Raises:
        CheckpointError: it can't be written; a file that was there is as it was.
    """
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ArgumentError(
                "expected metadata of strings", f"{key!r}: {value!r}", "use str()"
            )
    views = _parameters(store) | ({} if trained_only else _base(store))
    path = Path(path)
    with writing(path):
        clean(path.parent, re.escape(path.name))
        replace(path, lambda p: _write_tensors(p, views, dict(metadata)))


def load_weights(
    path: Path, store: ParameterStore, trained_only: bool = False
) -> dict[str, str]:
    """Fill the store from a .safetensors file, all or nothing; return its metadata.

    With ``trained_only`` the file holds no parameters that never change.

    Raises:
        CheckpointError: the file is damaged, or was saved from another model.
    """
    views = _parameters(store) | ({} if trained_only else _base(store))
    path = Path(path)
    with _tensors(path) as file:
        _compare(path, file, views)
        _copy(file, views)
        return dict(file.metadata() or {})


def write_arrays(path: Path, arrays: Views) -> None:
    """Write arrays to a .safetensors file; it replaces one that is there."""
    with writing(path):
        clean(path.parent, re.escape(path.name))
        replace(path, lambda p: _write_tensors(p, arrays))


def read_arrays(path: Path) -> Views:
    """Return what ``write_arrays`` wrote; raises CheckpointError for a damaged file."""
    with _tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a .safetensors file.

    Raises:
        CheckpointError: there is no such file, or it is damaged.
    """
    with _tensors(Path(path)) as file:
        return dict(file.metadata() or {})


def read_sizes(path: Path) -> list[int]:
    """Return how many numbers each tensor of a .safetensors file has.

    Raises:
        CheckpointError: there is no such file, or it is damaged.
    """
    with _tensors(path) as file:
        return [math.prod(file.get_slice(n).get_shape()) for n in file.keys()]  # noqa: SIM118


# -- tensors ---------------------------------------------------------------------------


def _parameters(store: ParameterStore) -> Views:
    everything = store.parameters + store.frozen_parameters
    return {p.path: p.value for p in everything if not p.base}


def _base(store: ParameterStore) -> Views:
    return {p.path: p.value for p in store.frozen_parameters if p.base}


def _save_base(folder: Path, store: ParameterStore) -> Fingerprint:
    """Write what never changes, unless that is done; return its fingerprint.

    Raises CheckpointError if it isn't what an earlier checkpoint was saved with.
    """
    path = folder / Path(BASE).name
    for earlier in [*candidates(folder), *_places(folder, BEST)]:
        if _complete(earlier):
            expected: Fingerprint = _read_state(earlier)["files"].get(BASE, {})
            if expected and expected != _fingerprint(path):
                raise CheckpointError(
                    f"expected {path} as it was written, for it never changes",
                    "its SHA-256 differs",
                    "restore it from a copy: the checkpoints beside it need it",
                )
            if expected:
                return expected
    clean(folder, re.escape(path.name))
    made: list[Fingerprint] = []
    replace(path, lambda p: made.append(_write_tensors(p, _base(store))))
    return made[0]


def _slots(store: ParameterStore, optimizer: OptimizerState) -> Views:
    """Return the state's tensors; of a sharded one their shapes and types alone."""
    return {
        f"{slot}/{p.path}": store.view(vector, p) if optimizer.own is None else p.value
        for slot, vector in optimizer.state.items()
        for p in store.parameters
    }


def _write_tensors(
    path: Path, views: Views, metadata: dict[str, str] | None = None
) -> Fingerprint:
    def place(name: str) -> tuple[int, str]:
        return -views[name].dtype.itemsize, name

    # as safetensors does, so every tensor is aligned to its numbers
    views = {name: views[name] for name in sorted(views, key=place)}
    return _write_file(path, views, views.values(), metadata)


def _write_slots(
    path: Path,
    store: ParameterStore,
    optimizer: OptimizerState,
    vectors: Iterable[Array],
) -> Fingerprint:
    """Write the optimizer's state without holding more than one vector."""
    arrays = (store.view(vector, p) for vector in vectors for p in store.parameters)
    return _write_file(path, _slots(store, optimizer), arrays)


def _write_file(
    path: Path,
    views: Views,
    arrays: Iterable[Array],
    metadata: dict[str, str] | None = None,
) -> Fingerprint:
    """Write a safetensors file, and see that the disk has it.

    The format: the header's length in 8 bytes, the header as JSON, the tensors' bytes.

    Args:
        views: names, shapes and types. arrays: the contents, in the same order.

    Raises:
        CheckpointError: what is read back isn't what was written.
    """
    text = _header(views, metadata)
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        head = len(text).to_bytes(8, "little") + text
        for data in itertools.chain([memoryview(head)], map(_bytes, arrays)):
            for start in range(0, len(data), _CHUNK):
                part = data[start : start + _CHUNK]
                digest.update(part)
                size += file.write(part)
    sync(path)
    written = {"bytes": size, "sha256": digest.hexdigest()}
    forget(path)
    if _fingerprint(path) != written:
        raise CheckpointError(
            f"expected {path} to be on the disk as it was written",
            "other bytes when it was read back",
            "save to another disk and look at this one and the memory; what was saved "
            "before is intact",
        )
    return written


def _header(views: Views, metadata: dict[str, str] | None) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, view in views.items():
        start, end = end, end + view.nbytes
        header[name] = {
            "dtype": _type(view),
            "shape": list(view.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def _bytes(array: Array) -> memoryview:
    """Return what a safetensors file has of an array: C order, little endian."""
    plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return plain.reshape(-1).view(np.uint8).data


@contextmanager
def _tensors(path: Path) -> Iterator[Any]:
    _size(path)
    try:
        file = safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error)) from error
    with file:
        yield file


def _compare(path: Path, file: Any, views: Views) -> None:
    """Raise CheckpointError unless ``file`` holds exactly the tensors of ``views``."""
    found = set(file.keys())
    faults = [f"{name} is missing" for name in views if name not in found]
    faults += [f"{name} isn't in the model" for name in sorted(found - set(views))]
    for name in (name for name in views if name in found):
        part = file.get_slice(name)
        given = f"{part.get_dtype()} {tuple(part.get_shape())}"
        wanted = f"{_type(views[name])} {views[name].shape}"
        if given != wanted:
            faults.append(f"{name} is {given} instead of {wanted}")
    if faults:
        more = len(faults) - _LISTED
        faults[_LISTED:] = [f"and {more} more"] if more > 0 else []
        raise CheckpointError(
            f"{path}: expected the tensors of the model and its optimizer",
            "; ".join(faults),
            "load it into what it was saved from: same layers, sizes and optimizer",
        )


def _copy(file: Any, views: Views) -> None:
    for name, view in views.items():
        view[...] = file.get_tensor(name)


def _type(array: Array) -> str:
    """Return what safetensors calls the type of an array: F32, I64, BOOL."""
    kind = array.dtype.kind
    return "BOOL" if kind == "b" else f"{kind.upper()}{8 * array.dtype.itemsize}"


# -- state.json ------------------------------------------------------------------------


def _body(
    step: int, optimizer: OptimizerState, state: dict[str, Any]
) -> dict[str, Any]:
    """Return what goes into state.json, but for the other files' fingerprints."""
    try:
        same = json.loads(json.dumps(state, allow_nan=False)) == state
        reason = "a value that is another one after a way through JSON"
    except (TypeError, ValueError) as error:
        same, reason = False, str(error)
    if not same or state.get("step", step) != step:
        raise CheckpointError(
            "expected a state that JSON can hold, with no other 'step'",
            reason if not same else f"step {state['step']} in the checkpoint of {step}",
            "use dicts with keys of str, lists, str, int, finite float, bool and None",
        )
    return {
        "format": FORMAT,
        "step": int(step),
        "optimizer_step": int(optimizer.step),
        "state": state,
        "versions": {
            "fastserve": __version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "files": {},
    }


def _encode(body: dict[str, Any]) -> str:
    """Return the text of state.json, which ends with a checksum of all before."""

    def text(value: object) -> str:
        return json.dumps(value, indent=1, allow_nan=False)

    checksum = hashlib.sha256(text(body).encode()).hexdigest()
    return text({**body, "checksum": checksum}) + "\n"


def _read_state(path: Path) -> dict[str, Any]:
    """Return the content of state.json; raise CheckpointError unless all is complete.

    The text must be what ``_encode`` gives, so a change of any byte is found.
    """
    file = path / STATE
    _size(file)
    try:
        text = file.read_bytes().decode()
        body = json.loads(text)
        body.pop("checksum")
        sound = _encode(body) == text
    except OSError as error:
        raise _damaged(file, str(error)) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(file, f"no JSON of this kind: {error}") from error
    if not sound:
        raise _damaged(file, "its checksum is another one")
    if body.get("format") != FORMAT:
        raise CheckpointError(
            f"{file}: expected format {FORMAT}",
            f"format {body.get('format')!r}",
            "load it with the version of fastserve that wrote it",
        )
    _check_fields(file, body)
    for name, expected in body["files"].items():
        size = _size(path / name)
        if size != expected["bytes"]:
            raise _damaged(path / name, f"{size} bytes instead of {expected['bytes']}")
    return body


def _read_back(path: Path, files: Iterable[str]) -> None:
    """See that a checkpoint is complete, and raise FileNotFoundError if it isn't as
    somebody has removed or renamed its folder meanwhile."""
    try:
        _read_state(path)
    except CheckpointError:
        if all((path / name).exists() for name in (STATE, *files)):
            raise
        gone = f"{path} is gone as soon as it was written"
        raise FileNotFoundError(gone) from None


def _complete(path: Path) -> bool:
    try:
        _read_state(path)
    except CheckpointError:
        return False
    return True


def _check_fields(file: Path, body: dict[str, Any]) -> None:
    kinds = {"step": int, "optimizer_step": int, "state": dict, "files": dict}
    for key, kind in kinds.items():
        if type(body.get(key)) is not kind:
            raise _damaged(file, f"{key} is {body.get(key)!r}")
    files = body["files"]
    if set(files) - {BASE} != {MODEL, OPTIMIZER} or not all(
        isinstance(entry, dict) and set(entry) == {"bytes", "sha256"}
        for entry in files.values()
    ):
        raise _damaged(file, f"files are {files!r}")


def _fingerprint(path: Path) -> Fingerprint:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _size(path: Path) -> int:
    """Return the size of a file; raise CheckpointError if it isn't one.

    A pipe isn't one: to open it would block.
    """
    try:
        if path.is_file():
            return path.stat().st_size
    except OSError as error:
        raise _damaged(path, str(error)) from error
    raise CheckpointError(
        f"expected a file as fastserve saved it: {path}",
        "there is no such file",
        "give the path of one that is there, or use an earlier checkpoint",
    )


def _check_fingerprint(path: Path, expected: Fingerprint) -> None:
    try:
        found = _fingerprint(path)
    except OSError as error:
        raise _damaged(path, str(error)) from error
    if found != expected:
        raise _damaged(path, "its content isn't what was saved: the SHA-256 differs")


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"expected a file as fastserve saved it: {path}",
        reason,
        "use an earlier checkpoint, or a copy of this one",
    )


# -- files and folders -----------------------------------------------------------------


def candidates(folder: Path, after: int = -1) -> list[Path]:
    """Return the folders of checkpoints of steps after ``after``, the latest first.

    Other names, as of a copy that the user has made, aren't of checkpoints.
    """
    found = []
    try:
        for path in folder.iterdir():
            match = _NAME.fullmatch(path.name)
            if match and int(match[1]) > after:
                # .old was replaced by one of the same step, so it comes after that
                found.append((int(match[1]), match[2] is None, path))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(
            f"expected a folder that can be read: {folder}", str(error)
        ) from error
    return [path for *_, path in sorted(found, reverse=True)]


def _places(folder: Path, name: str) -> list[Path]:
    """Return where a checkpoint is, and where it is while it is replaced."""
    return [folder / name, folder / f"{name}.old"]


def _prune(target: Path, keep: int, keep_every: int | None) -> None:
    """Remove what is older than the newest ``keep`` complete checkpoints, but not those
    of the multiples of ``keep_every`` steps.

    A damaged one doesn't count, and stays until it is that old: perhaps it just can't
    be read at the moment.
    """
    room = keep - 1
    found = candidates(target.parent)
    if target not in found:
        raise FileNotFoundError(f"{target} is gone as soon as it was written")
    for path in found[found.index(target) + 1 :]:
        replaced = path.name == f"{target.name}.old"
        if replaced or (room == 0 and not _for_good(path, keep_every)):
            discard(path)
        elif room and _complete(path):
            room -= 1


def _for_good(path: Path, keep_every: int | None) -> bool:
    match = _NAME.fullmatch(path.name)
    assert match is not None  # it is a candidate
    if keep_every is None or int(match[1]) % keep_every:
        return False
    # .old was left by a kill while it was replaced, unless it is the only one
    return match[2] is None or not path.with_suffix("").exists()
