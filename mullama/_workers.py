"""Threads for what may take long on an event loop's thread: few, and alive only while there is work."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Protocol

from . import _core

__all__ = ["Work", "Workers", "breathe", "working_for"]

_TURN = 0.001  # seconds of Python's work after which a worker lets the event loop's thread run


class Work(Protocol):
    def do(self) -> None:
        """Called by a worker; raises nothing."""


class Workers:
    """Up to so many daemon threads for one engine. They do the work in the order in which it came."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: OrderedDict[Work, None] = OrderedDict()  # whoever pops an item owns it; that is atomic
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()  # for the number of threads

    def start(self, work: Work) -> None:
        """Does not wait for it."""
        self._waiting[work] = None
        with self._lock:
            if len(self._threads) >= self._limit:
                return
            thread = threading.Thread(target=self._run, name="mullama-worker", daemon=True)
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # the system has no more threads to give
            self._threads.discard(thread)
            self.withdraw(work)
            raise

    def withdraw(self, work: Work) -> bool:
        """Take work back, if no thread has begun it."""
        try:
            del self._waiting[work]
        except KeyError:
            return False
        return True

    def join(self) -> None:
        """Wait until all that was begun is done. Takes no lock, so that a finalizer may call it."""
        for thread in list(self._threads):
            if thread is not threading.current_thread() and thread.is_alive():
                thread.join()

    def _run(self) -> None:
        while True:
            try:
                work, _ = self._waiting.popitem(last=False)
            except KeyError:
                with self._lock:
                    if not self._waiting:  # else it came just now, and nobody started a thread for it
                        self._threads.discard(threading.current_thread())
                        return
                continue
            work.do()
            del work


class _Working(threading.local):
    pending: _core.Pending | None = None
    since = 0.0


_working = _Working()


def working_for(pending: _core.Pending | None) -> None:
    """Says whom this thread works for, and with None that it is done; see `breathe`."""
    _working.pending = pending
    _working.since = time.monotonic()


def breathe() -> None:
    """Called often by long work in Python. In a worker it lets other threads run, which else wait for the GIL's next turn.

    Raises:
        Stopped: Nobody wants the work any more.
    """
    pending = _working.pending
    if pending is None:
        return
    now = time.monotonic()
    if now - _working.since < _TURN:
        return
    if pending.stopped:
        raise _core.Stopped("it was stopped")
    time.sleep(_TURN / 10)
    _working.since = time.monotonic()
