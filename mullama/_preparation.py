"""From what a call asks for to a request that the engine has: in the thread of the call, or in a worker."""

from __future__ import annotations

import threading
from typing import Protocol

from . import _core
from ._engine import Engine, closed
from ._request import Prepared
from ._workers import Workers, working_for
from .config import StreamConfig

__all__ = ["Asked", "Preparation"]


class Asked(Protocol):
    """What a call asks for."""

    @property
    def config(self) -> StreamConfig: ...

    def is_long(self, engine: Engine) -> bool:
        """Whether to prepare it may hold an event loop up."""
        ...

    def prepare(self, engine: Engine, pending: _core.Pending) -> Prepared:
        """Check, tokenise, render and compile what was asked. Ends early with `_core.Stopped`."""
        ...


class Preparation:
    """Makes the request of one stream ready and hands it over, once. It does not know who reads the stream."""

    def __init__(self, engine: Engine, asked: Asked, pending: _core.Pending) -> None:
        self.prepared: Prepared | None = None
        self.failure: Exception | None = None  # of a worker
        self._engine = engine
        self._given: tuple[Asked, _core.Pending] | None = (asked, pending)
        self._workers: Workers | None = None
        self._done = threading.Event()

    def start(self, workers: Workers) -> None:
        """In a worker. What is wrong with what was asked is in `failure`, and the stream ends with a fault."""
        self._workers = workers
        workers.start(self)

    def run(self) -> None:
        """Here and now. Raises what is wrong with what was asked; a stream that has ended meanwhile says so itself."""
        assert self._given is not None
        (asked, pending), self._given = self._given, None
        self._hand_over(asked, pending)

    def do(self) -> None:
        assert self._given is not None
        (asked, pending), self._given = self._given, None
        working_for(pending)
        try:
            self._hand_over(asked, pending)
        except Exception as e:  # noqa: BLE001  raised to whoever reads the stream
            self._fail(pending, e)
        finally:
            working_for(None)
            self._done.set()

    def withdraw(self) -> None:
        """Drop what was asked, if nobody has begun with it. Takes no lock, so that a finalizer may call it."""
        if self._workers is not None and self._workers.withdraw(self):
            self._given = None
            self._done.set()

    @property
    def running(self) -> bool:
        """Whether a worker has it, or will."""
        return self._workers is not None and not self._done.is_set()

    def wait(self) -> None:
        """Wait for the worker."""
        self._done.wait()

    def _hand_over(self, asked: Asked, pending: _core.Pending) -> None:
        try:
            prepared = asked.prepare(self._engine, pending)
            self.prepared = prepared  # before the first token is there to be read
            pending.submit(prepared.native)
        except _core.Stopped:  # cancelled, closed or late; what ended it first counts
            if self._engine.closed:
                self._fail(pending, closed())
            else:
                pending.fail_timeout()

    def _fail(self, pending: _core.Pending, error: Exception) -> None:
        self.failure = error  # before the reader is woken
        pending.fail(str(error))
