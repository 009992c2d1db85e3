"""The blocking shell of a stream: iterators over tokens, and over what an answer's message gains."""

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
    """What a generation yields, for a ``for`` loop. One thread reads at a time.

    As a context manager it waits at the end of the block until its slot is free.
    """

    def __init__(self, source: Source[T]) -> None:
        super().__init__(source)
        self._notifier: _core.Notifier | None = None
        self._reading = threading.Lock()

    if not TYPE_CHECKING:  # who would have it that there is one

        def __aiter__(self) -> NoReturn:
            raise TypeError(f"{type(self).__name__} is read with `for`, not with `async for`")

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
        """The next item, waiting for it; None at the end."""
        return next(self, None)

    def try_next(self) -> T | None:
        """The next item if one lies ready; None if not, and at the end (`is_finished` tells which)."""
        try:
            return self._take()
        except EndOfGeneration:
            return None

    def close(self) -> None:
        """Stop generating, throw away what was not read, and wait until the slot is free. Again does nothing."""
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
    """The tokens of one generation."""


class ChatIterator(ItemIterator[ChatDelta]):
    """What each token of an answer adds to the message; see `ChatDelta`."""

    def __init__(self, source: ChatGeneration) -> None:
        super().__init__(source)
        self._chat = source

    def chat_completion(self) -> ChatCompletion:
        """The answer as a whole, as far as it was read. Raises as `completion`."""
        return self._chat.completion()
