"""Files of a context's cached prefixes: written atomically, and checked before any of it is used.

A file is a line of JSON, with what it belongs to and a checksum of the rest, followed by the engine's bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from . import _checks, _core
from ._engine import Engine
from ._model import StrPath, checked_path
from .errors import StateError

__all__ = ["checked_state_path", "read_state", "write_state"]

_MAGIC = "mullama state 1"
_CHUNK = 2**20  # bytes


def checked_state_path(path: StrPath) -> Path:
    if path is None:  # for a model, None is the default one
        raise _checks.refuse_type("path", path, "a str or os.PathLike")
    return checked_path(path)


def _identity(engine: Engine) -> dict[str, object]:
    """What a state belongs to: the model, and everything that the layout of the bytes depends on."""
    model, params = engine.model, engine.params
    facts = json.dumps([model.metadata(), model._weights], sort_keys=True).encode()
    return {
        "model": hashlib.sha256(facts).hexdigest(),
        "llama.cpp": _core.llama_cpp_build()[0],
        "n_seq_max": params.n_seq_max,
        "shares its cells": params.n_cells is not None and params.n_cells < (params.n_ctx or 0) * params.n_seq_max,
    }


def write_state(path: StrPath, engine: Engine, state: bytes, stop: threading.Event | _core.Stop | None = None) -> None:
    """Write a new file beside the old one and move it into place, so that a crash or a full disk leaves the old one.

    So does `stop`, which is checked once per megabyte.

    Raises:
        OSError: The file cannot be written.
    """
    file = checked_state_path(path)
    digest = hashlib.sha256()
    for piece in _pieces(file, state, stop):
        digest.update(piece)
    head = {"magic": _MAGIC, "sha256": digest.hexdigest(), "size": len(state), **_identity(engine)}
    try:
        with _replacing(file) as out:
            out.write(json.dumps(head).encode() + b"\n")
            for piece in _pieces(file, state, stop):
                out.write(piece)
    except OSError as e:
        if e.errno is None:  # it was stopped
            raise
        raise OSError(e.errno, e.strerror, str(file)) from None  # with the name of the file, not of the new one


def _pieces(file: Path, state: bytes, stop: threading.Event | _core.Stop | None) -> Iterator[memoryview]:
    view = memoryview(state)
    for start in range(0, len(state), _CHUNK):
        if stop is not None and stop.is_set():
            raise InterruptedError(f"writing {str(file)!r} was stopped")
        yield view[start : start + _CHUNK]


@contextmanager
def _replacing(file: Path) -> Iterator[BinaryIO]:
    """A new file that replaces another at the end of the block, if that succeeds.

    On Linux it has no name until then, so that even a killed process leaves nothing behind.
    """
    handle, beside = _nameless(file.parent), str(file.parent / f".mullama-{os.urandom(8).hex()}")
    named = handle is None
    if handle is None:
        handle = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    try:
        with os.fdopen(handle, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
            if not named:
                os.link(_by_number(handle), beside, src_dir_fd=handle)  # with a src_dir_fd it follows the link
                named = True
        Path(beside).replace(file)
    except BaseException:
        if named:
            with suppress(FileNotFoundError):
                Path(beside).unlink()
        raise


def _nameless(folder: Path) -> int | None:
    flag = getattr(os, "O_TMPFILE", None)
    if flag is None:
        return None
    try:
        handle = os.open(folder, flag | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError:  # not every file system supports it; any other error will come from the named file
        return None
    if Path(_by_number(handle)).exists():
        return handle
    os.close(handle)
    return None


def _by_number(handle: int) -> str:
    return f"/proc/self/fd/{handle}"


def read_state(path: StrPath, engine: Engine) -> bytes:
    """The engine's bytes from a file that was written for this model and a compatible context.

    Raises:
        StateError: The file is truncated, damaged, not written by mullama, or of another model, context or llama.cpp.
        OSError: The file cannot be read.
    """
    file = checked_state_path(path)
    with os.fdopen(
        os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb"
    ) as source:  # does not wait for a pipe
        kind = os.fstat(source.fileno())
        if stat.S_ISDIR(kind.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
        head = _head(source.readline(4096)) if stat.S_ISREG(kind.st_mode) else None
        if head is None:
            raise StateError(f"{str(file)!r} is not a state saved by mullama", hint="Save one with save_state().")
        for name, value in _identity(engine).items():
            if head.get(name) != value:
                raise StateError(
                    f"{str(file)!r} was saved for another model, context or build: "
                    f"its {name} is {head.get(name)!r}, not {value!r}",
                    hint="Compute the prompt again and save it.",
                )
        state = source.read() if kind.st_size - source.tell() == head.get("size") else None
    if state is None or hashlib.sha256(state).hexdigest() != head.get("sha256"):
        raise StateError(f"{str(file)!r} is truncated or damaged", hint="Compute the prompt again and save it.")
    return state


def _head(line: bytes) -> dict[str, object] | None:
    try:
        head = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return head if isinstance(head, dict) and head.get("magic") == _MAGIC else None
