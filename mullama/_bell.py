"""How tasks of one event loop wait for tokens: one notifier, one descriptor, however many streams are read.

When the descriptor becomes readable, the tasks are woken whose stream has something. So a step of the engine costs an event
loop one wake-up, and a thousand streams need one file descriptor.

A wake-up is never lost: a stream is armed first and looked at again afterwards, and the engine looks at `armed` after it
has pushed (see ``_native/engine/stream.hpp``). And somebody watches the descriptor while anybody waits: under asyncio the loop
itself, which calls back; where a descriptor can only be awaited, one of the tasks that wait.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from anyio import Event, wait_readable
from anyio.lowlevel import checkpoint

from . import _core

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future

__all__ = ["wait_until_ready"]


class _Bell:
    def __init__(self) -> None:
        self._notifier = _core.Notifier()
        self._fd = self._notifier.fileno()

    @abstractmethod
    async def wait(self, stream: _core.Stream) -> None: ...


class _CalledBack(_Bell):
    """Of an asyncio loop. It keeps the descriptor, where anyio would take it away after each wake-up and bring it back."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        super().__init__()
        self._waiting: dict[Future[None], _core.Stream] = {}
        loop.add_reader(self._fd, self._rung)  # until the loop is closed

    async def wait(self, stream: _core.Stream) -> None:
        if stream.arm(self._notifier):
            await checkpoint()
            return
        loop = _running_loop()
        while True:
            woken: Future[None] = loop.create_future()
            self._waiting[woken] = stream
            try:
                await woken
            finally:
                del self._waiting[woken]
            if stream.arm(self._notifier):
                return

    def _rung(self) -> None:
        self._notifier.drain()
        for woken, stream in self._waiting.items():
            # It may have rung for a record that its reader had taken already, so it is armed anew.
            if stream.arm(self._notifier) and not woken.done():
                woken.set_result(None)


class _Watched(_Bell):
    """Of any other loop. Of the tasks that wait, one watches; when it is done, or cancelled, the next one does."""

    def __init__(self) -> None:
        super().__init__()
        self._watched = False
        self._followers: dict[Event, _core.Stream] = {}

    async def wait(self, stream: _core.Stream) -> None:
        if stream.arm(self._notifier):
            await checkpoint()
            return
        while True:
            await (self._follow(stream) if self._watched else self._watch(stream))
            if stream.arm(self._notifier):
                return

    async def _watch(self, stream: _core.Stream) -> None:
        self._watched = True
        try:
            while True:
                await wait_readable(self._fd)  # also where it is ready by now: then it has rung
                self._notifier.drain()
                for event, other in self._followers.items():
                    if other.arm(self._notifier):
                        event.set()
                if stream.arm(self._notifier):
                    return
        finally:
            self._watched = False
            if self._followers:
                self._pass_on()

    async def _follow(self, stream: _core.Stream) -> None:
        event = Event()
        self._followers[event] = stream
        try:
            await event.wait()
        finally:
            del self._followers[event]
            if not self._watched:  # this one may have been woken to watch, and cancelled before it could
                self._pass_on()

    def _pass_on(self) -> None:
        for event in self._followers:
            if not event.is_set():
                event.set()
                return


_bells: WeakKeyDictionary[object, _Bell] = WeakKeyDictionary()  # by what a loop is known by


def _bell() -> _Bell:
    trio = sys.modules.get("trio")
    run = trio.lowlevel.current_trio_token() if trio is not None and trio.lowlevel.in_trio_task() else None
    loop = run or _running_loop()
    bell = _bells.get(loop)
    if bell is None:
        try:
            bell = _Watched() if loop is run else _CalledBack(loop)
        except NotImplementedError:  # Windows' Proactor, for which anyio has a thread that watches
            bell = _Watched()
        _bells[loop] = bell
    return bell


def _running_loop() -> AbstractEventLoop:
    import asyncio  # not before it is there: who uses trio need not wait for it

    return asyncio.get_running_loop()


def wait_until_ready(stream: _core.Stream) -> Coroutine[Any, Any, None]:
    """Wait until a record lies ready or the stream has ended. Always a checkpoint.

    Cancellation changes nothing: what comes meanwhile stays in the ring.
    """
    return _bell().wait(stream)
