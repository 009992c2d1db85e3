"""What happens to contexts that are still open when the interpreter exits."""

from __future__ import annotations

import atexit
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._sync import Context

contexts: weakref.WeakSet[Context] = weakref.WeakSet()
_exiting = threading.Event()

# weakref has an exit function too, which disables all finalizers, and registers it with the first of them. This makes sure
# that it is registered by now, and so comes after the one below: a context is closed through its finalizer.
weakref.finalize(_exiting, bool).atexit = False


@atexit.register
def _close_all() -> None:
    """The engines must be gone before the process is: what llama.cpp keeps in globals is destroyed under them."""
    _exiting.set()
    for context in list(contexts):
        context.close()


def park() -> None:
    """Called where a use after close is to be an error. At exit, a daemon thread stays here.

    Python is about to freeze it anyway; the error would only print a traceback at the end of a program that is in order.
    """
    if _exiting.is_set() and threading.current_thread().daemon:
        threading.Event().wait()
