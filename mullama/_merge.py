"""Merges several streams into one, in order of arrival, with the cancellation of a task group."""

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
    """Merge streams, in an ``async with`` block, into one stream of pairs ``(index, item)`` in order of arrival.

    ``index`` is the stream's position among the arguments. Token streams, chat streams and any other anyio object stream can
    be merged. The merged stream ends when all of them have ended. If one fails, or the body raises or is cancelled, all
    streams are cancelled and closed, and the exception propagates as itself, not in a group. The end of the block closes
    all streams and waits until their slots are free. Only the streams' own buffers are used: a slow reader slows all of
    them. The block holds a task group, so it must not be open across a ``yield`` of an async generator.

    Raises:
        InvalidParameter: An argument is not an object stream.
    """
    for stream in streams:
        if not isinstance(stream, ObjectReceiveStream):
            raise _checks.refuse_type(
                "streams", stream, "object streams", "Pass each stream as its own argument: merge(*streams)."
            )
    send, receive = anyio.create_memory_object_stream[tuple[int, T]](0)
    failures: list[Exception] = []
    own: Exception | None = (
        None  # of the body; kept out of the task group, which would take a group of exceptions apart
    )

    async def feed(index: int, stream: ObjectReceiveStream[T], out: MemoryObjectSendStream[tuple[int, T]]) -> None:
        async with stream, out:
            try:
                async for item in stream:
                    try:
                        await out.send((index, item))
                    except anyio.BrokenResourceError:
                        return  # no reader is left
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
