"""How tasks of one event loop wait for tokens: one notifier, one descriptor, however many streams are read.

When the descriptor becomes readable, the notifier is drained: it returns the keys of the streams that were notified, and
only the tasks that wait for one of these are woken. They look at their streams again, and arm them anew where there was
nothing after all. So a step of the engine costs an event loop one wake-up, plus one for each task that has something to read;
the tasks that go on waiting cost nothing.

A wake-up is never lost: a stream is armed first and looked at again afterwards, and the engine looks at `armed` after it
has pushed (see ``_native/engine/stream.hpp``). And somebody watches the descriptor while anybody waits: under asyncio the loop
itself, which calls back; where a descriptor can only be awaited, one of the tasks that wait.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from anyio import Event, wait_readable
from anyio.lowlevel import checkpoint

from . import _core

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future

__all__ = ["wait_until_ready"]

W = TypeVar("W")


class _Wakeup(Generic[W]):
    """The notifier of a loop, and who waits for it.

    The key of a stream is its `id`. Several tasks may wait for one, as one that receives and one that closes; a key that
    comes late, when its stream is gone and another has its `id`, wakes a task that looks and waits again.
    """

    def __init__(self) -> None:
        self._notifier = _core.Notifier()
        self._fd = self._notifier.fileno()
        self._waiting: dict[int, list[W]] = {}

    @abstractmethod
    async def wait(self, stream: _core.Stream) -> None: ...

    def _notified(self) -> list[W]:
        """Those to be woken now. They wait no longer: who has nothing to read adds itself again."""
        pop = self._waiting.pop
        return [waiter for key in self._notifier.drain() for waiter in pop(key, ())]

    def _remove(self, key: int, waiter: object) -> None:
        """Of a task that was cancelled, perhaps after its key was drained."""
        others = [one for one in self._waiting.pop(key, ()) if one is not waiter]
        if others:
            self._waiting[key] = others


class _CalledBack(_Wakeup["Future[None]"]):
    """Of an asyncio loop. It keeps the descriptor, where anyio would take it away after each wake-up and bring it back."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        super().__init__()
        loop.add_reader(self._fd, self._wake)  # until the loop is closed

    async def wait(self, stream: _core.Stream) -> None:
        key = id(stream)
        if stream.arm(self._notifier, key):
            await checkpoint()
            return
        loop = _running_loop()
        while True:
            woken: Future[None] = loop.create_future()
            self._waiting.setdefault(key, []).append(woken)
            try:
                await woken
            except BaseException:
                self._remove(key, woken)
                raise
            if stream.arm(self._notifier, key):
                return

    def _wake(self) -> None:
        for woken in self._notified():
            if not woken.done():  # cancelled, and its task has not run yet
                woken.set_result(None)


class _Watched(_Wakeup[Event]):
    """Of any other loop. Of the tasks that wait, one watches; when it is done, or cancelled, it appoints the next one."""

    def __init__(self) -> None:
        super().__init__()
        self._watcher: object = (
            None  # who watches, or was appointed and is about to: its event, if it ever had to wait for one
        )

    async def wait(self, stream: _core.Stream) -> None:
        key = id(stream)
        if stream.arm(self._notifier, key):
            await checkpoint()
            return
        me: object = object()
        try:
            while True:
                if self._watcher is None:
                    self._watcher = me
                if self._watcher is me:
                    await wait_readable(self._fd)  # returns at once where it was notified meanwhile
                    for other in self._notified():
                        other.set()
                else:
                    me = woken = Event()
                    self._waiting.setdefault(key, []).append(woken)
                    await woken.wait()
                if stream.arm(self._notifier, key):
                    return
        finally:
            self._remove(key, me)
            if self._watcher is me:
                self._appoint()

    def _appoint(self) -> None:
        """Who waits longest watches next. Where nobody waits, it is the next that does, of those too that were just woken."""
        key = next(iter(self._waiting), None)
        if key is None:
            self._watcher = None
        else:
            self._watcher = woken = self._waiting[key][0]
            self._remove(key, woken)
            woken.set()


_wakeups: WeakKeyDictionary[object, _CalledBack | _Watched] = WeakKeyDictionary()  # by what a loop is known by


def _wakeup() -> _CalledBack | _Watched:
    trio = sys.modules.get("trio")
    run = trio.lowlevel.current_trio_token() if trio is not None and trio.lowlevel.in_trio_task() else None
    loop = run or _running_loop()
    wakeup = _wakeups.get(loop)
    if wakeup is None:
        try:
            wakeup = _Watched() if loop is run else _CalledBack(loop)
        except NotImplementedError:  # Windows' Proactor, for which anyio has a thread that watches
            wakeup = _Watched()
        _wakeups[loop] = wakeup
    return wakeup


def _running_loop() -> AbstractEventLoop:
    import asyncio  # not before it is there: who uses trio need not wait for it

    return asyncio.get_running_loop()


def wait_until_ready(stream: _core.Stream) -> Coroutine[Any, Any, None]:
    """Wait until a record lies ready or the stream has ended. Always a checkpoint.

    Cancellation changes nothing: what comes meanwhile stays in the ring.
    """
    return _wakeup().wait(stream)
