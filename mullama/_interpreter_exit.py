"""Closes engines that are still open when the interpreter exits."""

from __future__ import annotations

import atexit
import threading
import weakref
from typing import Protocol


class Closable(Protocol):
    def close(self) -> None: ...


closing: weakref.WeakSet[Closable] = weakref.WeakSet()
_exiting = threading.Event()

# weakref registers an exit function of its own, which disables all finalizers, when the first finalizer is made. Making one
# here ensures that it runs after the function below: an engine is closed through its finalizer.
weakref.finalize(_exiting, bool).atexit = False


@atexit.register
def _close_all() -> None:
    """Engines must be closed before the process exits: llama.cpp's globals are destroyed while they run."""
    _exiting.set()
    for one in list(closing):
        one.close()


def park() -> None:
    """Called before raising an error for a use after close. At exit, it blocks daemon threads forever.

    Python is about to freeze them anyway; the error would only print a traceback at the end of a correct program.
    """
    if _exiting.is_set() and threading.current_thread().daemon:
        threading.Event().wait()
