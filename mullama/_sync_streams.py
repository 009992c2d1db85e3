"""The blocking shell of a stream: iterators over tokens, and over the deltas of a chat's answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, TypeVar

from . import _core
from ._chat import ChatGeneration
from ._chat_records import ChatCompletion, ChatDelta
from ._generation import BaseStream, EndOfGeneration, Source
from ._records import TokenData
from .errors import StreamingError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ChatIterator", "ItemIterator", "TokenIterator"]

T = TypeVar("T")


class ItemIterator(BaseStream[T], Iterator[T]):
    """Iterates over what a generation yields. One thread reads at a time."""

    def __init__(self, source: Source[T]) -> None:
        super().__init__(source)
        self._notifier: _core.Notifier | None = None
        self._reading = threading.Lock()

    if not TYPE_CHECKING:  # it would be taken for an async iterable

        def __aiter__(self) -> NoReturn:
            raise TypeError(f"{type(self).__name__} must be read with `for`, not `async for`")

    def __next__(self) -> T:
        if not self._reading.acquire(blocking=False):
            raise StreamingError(
                "another thread is reading this stream", hint="Give each stream one reader.", code="STREAM_BUSY"
            )
        try:
            while (token := self._take()) is None:
                self._wait()
            return token
        except EndOfGeneration:
            raise StopIteration from None
        finally:
            self._reading.release()

    def next(self) -> T | None:
        """Wait for the next item; None at the end. Raises as iteration does."""
        return next(self, None)

    def try_next(self) -> T | None:
        """The next item if one is ready; None if not, or at the end. Does not wait."""
        try:
            return self._take()
        except EndOfGeneration:
            return None

    def close(self) -> None:
        """Stop generating, discard unread items, and wait until the slot is free. Idempotent."""
        self._close()
        core = self._generation.core
        while not core.ended:
            self._generation.discard()
            self._wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self) -> None:
        core = self._generation.core
        if self._notifier is None:
            self._notifier = _core.Notifier()
        core.arm(self._notifier, 0)
        if core.ready:
            core.disarm()
        else:
            core.wait(self._notifier)


class TokenIterator(ItemIterator[TokenData]):
    """The tokens of one generation, for a ``for`` loop.

    One thread reads at a time. Other threads run while it waits, and a signal handler that raises (Ctrl-C) interrupts the
    wait. As a context manager it calls `TokenIterator.close`. An iterator that is garbage-collected cancels its generation.

    Errors are raised after the tokens that came before them.

    Raises:
        StreamTimeoutError: `timeout_ms` elapsed.
        GenerationError: The generation failed.
        SamplingError: No token could be chosen.
        ClosedError: The stream or its context was closed.
        StreamingError: Another thread is reading (code ``STREAM_BUSY``).
    """


class ChatIterator(ItemIterator[ChatDelta]):
    """What each token of an answer adds to the message, a `ChatDelta` each, for a ``for`` loop.

    Everything else is as for `TokenIterator`. Reading also raises `ChatError`, and cancels the generation, if the answer
    cannot be parsed.
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
