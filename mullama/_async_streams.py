"""The awaiting shell of a stream: anyio object streams of tokens, and of what an answer's message gains."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast, overload

from anyio import BusyResourceError, CancelScope, ClosedResourceError, EndOfStream, WouldBlock
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
    """What every stream of this package offers its reader on top of an object stream."""

    async def next(self) -> T | None:
        """The next item; None at the end. Cancellation as `receive`."""
        try:
            return await self.receive()
        except EndOfStream:
            return None

    async def collect(self) -> list[T]:
        """All items that are still to come."""
        return [item async for item in self]

    async def text(self) -> str:
        """All text that is still to come."""
        return "".join([str(item) async for item in self])

    @overload
    def map(self, function: Callable[[T], Awaitable[U]]) -> StreamTools[U]: ...
    @overload
    def map(self, function: Callable[[T], U]) -> StreamTools[U]: ...
    def map(self, function: Callable[[T], Any]) -> StreamTools[Any]:
        """A stream of what the function makes of each item; it may be a coroutine function.

        Where that is cancelled, its item is not lost: the next `receive` calls it again with the same one.
        """
        return _Mapped(self, function)

    def take(self, n: int) -> StreamTools[T]:
        """A stream of the next n items; after these, this one is cancelled."""
        return _Taken(self, _checks.integer(0)("n", n))

    @abstractmethod
    def cancel(self) -> None:
        """Stop generating, at once and without waiting; what lies ready can still be read."""


class ItemStream(BaseStream[T], StreamTools[T]):
    """What a generation yields, as an anyio object stream with the contract of `MemoryObjectReceiveStream`.

    Its buffer is the ring that the engine fills: `StreamConfig.buffer_size` tokens. When that is full, this generation
    pauses and no other. One task reads at a time. Leaving an ``async for`` drops the stream, and that cancels the
    generation; the end of an ``async with`` block waits until the slot is free.
    """

    def __init__(self, source: Source[T]) -> None:
        super().__init__(source)
        self._core = source.generation.core
        self._reading = False

    if not TYPE_CHECKING:  # who would have it that there is one

        def __iter__(self) -> NoReturn:
            raise TypeError(f"{type(self).__name__} is read with `async for`, not with `for`")

    async def receive(self) -> T:
        """The next item. Always a checkpoint.

        Cancelled, it has taken no token: the next call gets it.

        Raises:
            EndOfStream: There are no more.
            StreamingError: ``STREAM_TIMEOUT``: the time was up. Raised after all tokens that came before, as are
                GenerationError and SamplingError.
            ClosedResourceError: The stream or its context was closed.
            BusyResourceError: Another task is receiving.
        """
        try:
            return await self.__anext__()
        except StopAsyncIteration:
            raise EndOfStream from None

    async def __anext__(self) -> T:  # by itself, as a frame for each token is worth saving
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
        """The next item, if one lies ready.

        Raises:
            WouldBlock: None does.
            EndOfStream, StreamingError, …: As `receive`.
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
        """The next item if one lies ready; None if not, and at the end (`is_finished` tells which)."""
        try:
            return self.receive_nowait()
        except (WouldBlock, EndOfStream):
            return None

    def close(self) -> None:
        """Stop generating and throw away what was not read, without waiting for the slot to be free. Idempotent."""
        self._close()
        self._generation.discard()

    async def aclose(self) -> None:
        """Stop generating, throw away what was not read, and wait until the slot is free. Idempotent.

        The wait is for one step of the engine at most, and shielded from cancellation.
        """
        self._close()
        with CancelScope(shield=True):
            while not self._core.ended:
                self._generation.discard()
                await wait_until_ready(self._core)
        self._generation.discard()
        await checkpoint()


def _as_closed(error: ClosedError) -> StreamClosedError:
    """The same as anyio's streams raise it."""
    closed = StreamClosedError(error.message, hint=error.hint)
    closed.completion = error.completion
    return closed


class TokenStream(ItemStream[TokenData]):
    """The tokens of one generation; an anyio object stream."""


class ChatStream(ItemStream[ChatDelta]):
    """What each token of an answer adds to the message (see `ChatDelta`); an anyio object stream."""

    def __init__(self, source: ChatGeneration) -> None:
        super().__init__(source)
        self._chat = source

    def chat_completion(self) -> ChatCompletion:
        """The answer as a whole, as far as it was read. Raises as `completion`."""
        return self._chat.completion()


class _Mapped(StreamTools[U], Generic[T, U]):
    def __init__(self, source: StreamTools[T], function: Callable[[T], U | Awaitable[U]]) -> None:
        self._source = source
        self._function = function
        self._taken: list[T] = []  # whose function was cancelled

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
