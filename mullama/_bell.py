"""How tasks of one event loop wait for tokens: one doorbell, one descriptor, however many streams are read.

Of the tasks that wait, one watches the descriptor; when it becomes readable, it wakes those whose stream has something.
When the watching task has what it wanted, or is cancelled, the next one takes the watch over. So a step of the engine
costs an event loop one wake-up, and a thousand streams need one file descriptor.

A wake-up is never lost: a stream is armed first and looked at again afterwards, and the engine looks at `armed` after it
has pushed (see ``_native/stream.hpp``). That somebody watches while anybody waits is this module's invariant.
"""

from __future__ import annotations

from anyio import Event, wait_readable
from anyio.lowlevel import RunVar, checkpoint

from . import _core

__all__ = ["wait_until_ready"]


class _Bell:
    def __init__(self) -> None:
        self._doorbell = _core.Doorbell()
        self._watched = False
        self._followers: dict[Event, _core.Stream] = {}

    async def wait(self, stream: _core.Stream) -> None:
        if not stream.ready:
            stream.arm(self._doorbell)
        if stream.ready:
            await checkpoint()
        while not stream.ready:
            await (self._follow(stream) if self._watched else self._watch(stream))
            stream.arm(self._doorbell)

    async def _watch(self, stream: _core.Stream) -> None:
        self._watched = True
        try:
            while True:
                await wait_readable(self._doorbell)  # also where it is ready by now: then it has rung
                self._doorbell.answer()
                for event, other in self._followers.items():
                    if not other.ready:
                        other.arm(self._doorbell)  # it may have rung for a record that its reader had taken already
                    if other.ready:
                        event.set()
                stream.arm(self._doorbell)
                if stream.ready:
                    return
        finally:
            self._watched = False
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


_bells: RunVar[_Bell] = RunVar("mullama bell")


async def wait_until_ready(stream: _core.Stream) -> None:
    """Wait until a record lies ready or the stream has ended. Always a checkpoint.

    Cancellation changes nothing: what comes meanwhile stays in the ring.
    """
    try:
        bell = _bells.get()
    except LookupError:
        bell = _Bell()
        _bells.set(bell)
    await bell.wait(stream)
