"""Several streams as one, in order of arrival, with the cancellation of a task group."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
from anyio.abc import ObjectReceiveStream
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from . import _checks
from ._async import unwrapped

__all__ = ["merge"]

T = TypeVar("T")


@asynccontextmanager
async def merge(*streams: ObjectReceiveStream[T]) -> AsyncIterator[MemoryObjectReceiveStream[tuple[int, T]]]:
    """A block with one stream of ``(index, item)`` from all of the streams, in order of arrival.

    It ends when all of them have. Where one fails, the others are cancelled and closed, and the failure comes out of the
    block; so it is for an exception of the body. The end of the block closes all streams and waits until their slots are
    free. Nothing is buffered besides the streams' own rings: who reads slowly slows all of them.
    """
    for stream in streams:
        if not isinstance(stream, ObjectReceiveStream):
            raise _checks.refuse_type(
                "streams", stream, "object streams", "Several are several arguments: merge(*them)."
            )
    send, receive = anyio.create_memory_object_stream[tuple[int, T]](0)
    failures: list[Exception] = []
    own: Exception | None = None  # the body's; kept out of the task group, which would take a group of exceptions apart

    async def feed(index: int, stream: ObjectReceiveStream[T], out: MemoryObjectSendStream[tuple[int, T]]) -> None:
        async with stream, out:
            try:
                async for item in stream:
                    try:
                        await out.send((index, item))
                    except anyio.BrokenResourceError:
                        return  # nobody reads any more
            except Exception as e:  # noqa: BLE001  raised below, outside of the task group
                failures.append(
                    e
                )  # before anything is closed: the last end closed lets the body go on, and cancel this
                tasks.cancel_scope.cancel()

    async with receive:
        with unwrapped():
            async with anyio.create_task_group() as tasks:
                async with send:
                    for index, stream in enumerate(streams):
                        tasks.start_soon(feed, index, stream, send.clone())
                try:
                    yield receive
                except Exception as e:  # noqa: BLE001  likewise
                    own = e
                tasks.cancel_scope.cancel()
    if own is not None:
        raise own
    if failures:
        raise failures[0]
