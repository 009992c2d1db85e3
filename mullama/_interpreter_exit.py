"""What happens at the interpreter's exit to engines that are still open."""

from __future__ import annotations

import atexit
import threading
import weakref
from typing import Protocol


class Closable(Protocol):
    def close(self) -> None: ...


closing: weakref.WeakSet[Closable] = weakref.WeakSet()
_exiting = threading.Event()

# weakref has an exit function too, which disables all finalizers, and registers it with the first of them. This makes sure
# that it is registered by now, and so comes after the one below: an engine is closed through its finalizer.
weakref.finalize(_exiting, bool).atexit = False


@atexit.register
def _close_all() -> None:
    """The engines must be gone before the process is: what llama.cpp keeps in globals is destroyed under them."""
    _exiting.set()
    for one in list(closing):
        one.close()


def park() -> None:
    """Called where a use after close is to be an error. At exit, a daemon thread stays here.

    Python is about to freeze it anyway; the error would only print a traceback at the end of a program that is in order.
    """
    if _exiting.is_set() and threading.current_thread().daemon:
        threading.Event().wait()
