"""The async shell of a stream: anyio object streams of tokens, and of the deltas of a chat's answer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast, overload

from anyio import (
    BusyResourceError,
    CancelScope,
    CapacityLimiter,
    ClosedResourceError,
    EndOfStream,
    WouldBlock,
    to_thread,
)
from anyio.abc import ObjectReceiveStream
from anyio.lowlevel import checkpoint

from . import _checks
from ._chat import ChatGeneration
from ._chat_records import ChatCompletion, ChatDelta
from ._generation import BaseStream, EndOfGeneration, Source
from ._records import TokenData
from ._wakeup import wait_until_ready
from .errors import ClosedError

__all__ = ["ChatStream", "ItemStream", "StreamClosedError", "StreamTools", "TokenStream"]

T = TypeVar("T")
U = TypeVar("U")


class StreamClosedError(ClosedError, ClosedResourceError):
    """The stream, or the context that it comes from, was closed."""


class StreamTools(ObjectReceiveStream[T], Generic[T]):
    """What the streams of this package add to an object stream."""

    async def next(self) -> T | None:
        """Like `receive`, but None at the end. Cancelled, it has taken no item."""
        try:
            return await self.receive()
        except EndOfStream:
            return None

    async def collect(self) -> list[T]:
        """A list of all remaining items. Cancelled, the items that it had read are lost; `completion` still has their text."""
        return [item async for item in self]

    async def text(self) -> str:
        """The text of all remaining items, as one string. Cancelled, as `collect`."""
        return "".join([str(item) async for item in self])

    @overload
    def map(self, function: Callable[[T], Awaitable[U]]) -> StreamTools[U]: ...
    @overload
    def map(self, function: Callable[[T], U]) -> StreamTools[U]: ...
    def map(self, function: Callable[[T], U | Awaitable[U]]) -> StreamTools[U]:
        """A stream of the function's result for each item; the function may be a coroutine function.

        If the function is cancelled, its item is not lost: the next `receive` calls the function with it again. Closing the
        new stream closes this one.
        """
        return _Mapped(self, function)

    def take(self, n: int) -> StreamTools[T]:
        """A stream of the next ``n`` items; after them, this one is cancelled."""
        return _Taken(self, _checks.integer(0)("n", n))

    @abstractmethod
    def cancel(self) -> None:
        """Stop generating, without waiting; items that are ready can still be read."""


class ItemStream(BaseStream[T], StreamTools[T]):
    """What a generation yields, as an anyio object stream with the contract of `MemoryObjectReceiveStream`.

    Its buffer is the ring that the engine fills.
    """

    def __init__(self, source: Source[T]) -> None:
        super().__init__(source)
        self._core = source.generation.core
        self._reading = False

    if not TYPE_CHECKING:  # it would be taken for an iterable

        def __iter__(self) -> NoReturn:
            raise TypeError(f"{type(self).__name__} must be read with `async for`, not `for`")

    async def receive(self) -> T:
        """Wait for the next item. Always a checkpoint.

        Cancelled, it has taken no item: the next call returns it. A failure is raised after all items that came before it,
        and again by each further call.

        Raises:
            anyio.EndOfStream: There are no more items.
            StreamTimeoutError: `timeout_ms` elapsed.
            GenerationError: The generation failed.
            SamplingError: No token could be chosen.
            StreamClosedError: The stream or its context was closed; also an `anyio.ClosedResourceError`.
            anyio.BusyResourceError: Another task is receiving.
        """
        try:
            return await self.__anext__()
        except StopAsyncIteration:
            raise EndOfStream from None

    async def __anext__(self) -> T:  # not in terms of receive(): it saves a frame for each token
        if self._reading:
            raise BusyResourceError("receiving from")
        self._reading = True
        try:
            while True:
                await (checkpoint() if self._core.ready else wait_until_ready(self._core))
                if (item := self._take()) is not None:
                    return item
        except EndOfGeneration:
            raise StopAsyncIteration from None
        except ClosedError as e:
            raise _as_closed(e) from None
        finally:
            self._reading = False

    def receive_nowait(self) -> T:
        """The next item, if one is ready. Raises what `receive` raises, and:

        Raises:
            anyio.WouldBlock: No item is ready.
        """
        if self._reading:
            raise BusyResourceError("receiving from")
        try:
            item = self._take()
        except EndOfGeneration:
            raise EndOfStream from None
        except ClosedError as e:
            raise _as_closed(e) from None
        if item is None:
            raise WouldBlock
        return item

    def try_next(self) -> T | None:
        """Like `receive_nowait`, but None if no item is ready, or at the end; `is_finished` tells which."""
        try:
            return self.receive_nowait()
        except (WouldBlock, EndOfStream):
            return None

    def close(self) -> None:
        """Stop generating and discard unread items, without waiting for the slot to be free. Idempotent."""
        self._close()
        self._generation.discard()

    async def aclose(self) -> None:
        """Stop generating, discard unread items, and wait until the slot is free. A checkpoint. Idempotent.

        It waits for at most one step of the engine, shielded from cancellation. The end of an ``async with`` block calls it.
        """
        self._close()
        with CancelScope(shield=True):
            while not self._core.ended:
                self._generation.discard()
                await wait_until_ready(self._core)
            if (preparation := self._generation.preparation) is not None:  # which ends early
                await to_thread.run_sync(preparation.wait, limiter=CapacityLimiter(1))
        self._generation.discard()
        await checkpoint()


def _as_closed(error: ClosedError) -> StreamClosedError:
    """The error as anyio's streams raise it."""
    closed = StreamClosedError(error.message, hint=error.hint)
    closed.completion = error.completion
    return closed


class TokenStream(ItemStream[TokenData]):
    """The tokens of one generation, for ``async for`` and ``async with``.

    It is an ``anyio.abc.ObjectReceiveStream[TokenData]`` with the contract of anyio's `MemoryObjectReceiveStream`. Its
    buffer holds `StreamConfig.buffer_size` tokens; when it is full, this generation pauses, and no other. One task reads at
    a time. A stream that is garbage-collected, as after a ``break`` in a loop over the call itself, cancels its generation.
    """


class ChatStream(ItemStream[ChatDelta]):
    """What each token of an answer adds to the message, a `ChatDelta` each, as an anyio object stream.

    Everything else is as for `TokenStream`, cancellation included; `text` is of the content. Reading also raises
    `ChatError`, and cancels the generation, if the answer cannot be parsed.
    """

    def __init__(self, source: ChatGeneration) -> None:
        super().__init__(source)
        self._chat = source

    def chat_completion(self) -> ChatCompletion:
        """The answer as far as it was read.

        Raises:
            StreamingError: It is still being generated (code ``STREAM_RUNNING``).
        """
        return self._chat.completion()


class _Mapped(StreamTools[U], Generic[T, U]):
    def __init__(self, source: StreamTools[T], function: Callable[[T], U | Awaitable[U]]) -> None:
        self._source = source
        self._function = function
        self._taken: list[T] = []  # the item whose function was cancelled

    async def receive(self) -> U:
        if not self._taken:
            self._taken.append(await self._source.receive())
        try:
            result: Any = self._function(self._taken[0])
            if isinstance(result, Awaitable):
                result = await result
        except Exception:
            self._taken.clear()
            raise
        self._taken.clear()
        return cast("U", result)

    def cancel(self) -> None:
        self._source.cancel()

    async def aclose(self) -> None:
        await self._source.aclose()


class _Taken(StreamTools[T]):
    def __init__(self, source: StreamTools[T], n: int) -> None:
        self._source = source
        self._left = n

    async def receive(self) -> T:
        if self._left == 0:
            self.cancel()
            await checkpoint()
            raise EndOfStream
        item = await self._source.receive()
        self._left -= 1
        if self._left == 0:
            self.cancel()
        return item

    def cancel(self) -> None:
        self._source.cancel()

    async def aclose(self) -> None:
        await self._source.aclose()
