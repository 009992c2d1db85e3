"""The async shell: models and contexts for asyncio and trio, through anyio."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import anyio
from anyio import (
    CancelScope,
    from_thread,
    to_thread,
)
from anyio.abc import ObjectSendStream
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled
from anyio.streams.memory import MemoryObjectReceiveStream

from . import _checks, _core
from ._arguments import Callback, arguments, callback_request, chat_request, several_requests, text_request
from ._async_streams import ChatStream, TokenStream
from ._chat import ChatRequest
from ._chat_records import ChatCompletion
from ._context import BaseContext, SharedContext
from ._embeddings import Array
from ._generation import Generation, goes_on
from ._model import Lora, Model, StrPath
from ._options import UNSET, ContextOptions, MaxTokens, StreamOptions
from ._records import Completion, TokenData
from ._request import Prompt, TextRequest
from ._sync import Context
from .config import ContextParams, SamplerParams, StreamConfig
from .errors import InvalidParameterType

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

__all__ = ["AsyncContext", "AsyncModel"]

T = TypeVar("T")
U = TypeVar("U")


class AsyncContext(BaseContext):
    """A `Context` for asynchronous code; make one with ``await AsyncContext.create(model)``.

    An async context manager that closes it.

    Args:
        context: A `Context` to share: the new object uses the same engine.

    Attributes:
        model: The model.
    """

    def __init__(self, context: Context) -> None:
        given: object = context
        if not isinstance(given, Context):
            hint = "Use `await AsyncContext.create(model)` for a model."
            raise _checks.refuse_type("context", context, "a mullama.Context", hint)
        super().__init__(context.model, context._shared)

    @classmethod
    async def create(
        cls, model: Model | AsyncModel, params: ContextParams | None = None, **options: Unpack[ContextOptions]
    ) -> AsyncContext:
        """Make a context in a worker thread, since it may allocate much memory. Arguments and errors as `Context`.

        Cancelled, it finishes making the context and closes it. Use `AsyncModel.load` to make an `AsyncModel`.
        """
        plain = model.model if isinstance(model, AsyncModel) else model
        shared = await _in_thread(lambda _: SharedContext(plain, params, options), undo=SharedContext.close)
        return AsyncContext._over(plain, shared)

    @property
    def context(self) -> Context:
        """The same context as a `Context`, for synchronous code in other threads."""
        return Context._over(self.model, self._shared)

    @arguments(text_request)
    def generate_stream(self, request: TextRequest) -> TokenStream:
        """As `Context.generate_stream`, but the result is a `TokenStream`. Does not wait, and is not a checkpoint.

        What takes about a millisecond at most is prepared at once, and its errors are raised here. A text of more than 4096
        characters, and any grammar or JSON schema, is prepared in a worker thread, which starts with the call: its errors are
        raised where tokens would be received. `timeout_ms` includes that time. Cancelling, closing or dropping the stream
        stops it.
        """
        return TokenStream(self._shared.generation(request, apart=True))

    @arguments(text_request)
    async def generate(self, request: TextRequest) -> Completion:
        """As `Context.generate`. Cancelled, it has stopped generating when it returns."""
        async with TokenStream(self._shared.generation(request, whole=True, apart=True)) as stream:
            async for _ in stream:
                pass
        return stream.completion()

    @arguments(several_requests)
    async def generate_many(self, several: tuple[TextRequest, int]) -> list[Completion]:
        """As `Context.generate_many`. Cancelled, all of them have stopped generating when it returns."""
        engine, requests = self._shared.engine, self._shared.several(*several)

        def start(request: TextRequest) -> TokenStream:
            return TokenStream(Generation(engine, request, apart=True))

        streams: deque[TokenStream] = deque()
        completions = []
        try:
            while requests.begin(streams, start):
                async for _ in streams[0]:
                    pass
                completions.append(streams.popleft().completion())
        finally:
            for stream in streams:  # cancel all of them before waiting for each
                stream.cancel()
            with CancelScope(shield=True):
                for stream in streams:
                    await stream.aclose()
        return completions

    @arguments(callback_request)
    async def generate_streaming(self, asked: tuple[TextRequest, Callback]) -> Completion:
        """As `Context.generate_streaming`, on the event loop's thread; the callback may be a coroutine function.

        While the callback awaits, generation continues until the buffer is full. Cancelled, it stops generating.
        """
        request, callback = asked
        async with TokenStream(self._shared.generation(request, whole=True, apart=True)) as stream:
            async for token in stream:
                answer = callback(token)
                if isinstance(answer, Awaitable):
                    answer = await answer
                if not goes_on(answer):
                    break
        return stream.completion()

    async def stream_into(
        self,
        send: ObjectSendStream[TokenData],
        prompt: Prompt,
        max_tokens: MaxTokens = UNSET,
        params: SamplerParams | None = None,
        *,
        config: StreamConfig | None = None,
        **options: Unpack[StreamOptions],
    ) -> Completion:
        """Generate into an object stream and close that at the end; meant to be started in a task group or nursery.

        Several calls may share a channel, each with a clone of its sending end. A token waits in the stream's buffer until
        `send` accepts it. If the receiving end is closed, the generation is cancelled and its completion returned. Cancelled,
        it stops generating; a token that was being sent is lost.

        Args:
            send: The object stream to send the tokens to.
            prompt: As in `Context.generate_stream`, as are the other arguments and the errors.
        """
        async with send, self.generate_stream(prompt, max_tokens, params, config=config, **options) as stream:
            try:
                async for token in stream:
                    await send.send(token)
            except anyio.BrokenResourceError:
                stream.cancel()
        return stream.completion()

    @asynccontextmanager
    async def open_stream(
        self,
        prompt: Prompt,
        max_tokens: MaxTokens = UNSET,
        params: SamplerParams | None = None,
        *,
        config: StreamConfig | None = None,
        max_buffer_size: float = 0,
        **options: Unpack[StreamOptions],
    ) -> AsyncIterator[MemoryObjectReceiveStream[TokenData]]:
        """Generate into an anyio `MemoryObjectReceiveStream`, in an ``async with`` block: to clone, and to share among tasks.

        A task in the block feeds the stream. A failure ends the stream after the tokens that came before it, and is raised
        at the end of the block. Leaving the block, also by cancellation, stops the generation and waits until the slot is
        free. The block holds a task group, so it must not be open across a ``yield`` of an async generator.

        Args:
            prompt: As in `Context.generate_stream`, as are the other arguments and the errors.
            max_buffer_size: How many tokens the memory object stream may hold, in addition to the engine's buffer.
        """
        send, receive = anyio.create_memory_object_stream[TokenData](max_buffer_size)
        failures: list[Exception] = []

        async def feed(stream: TokenStream) -> None:
            async with send, stream:
                try:
                    async for token in stream:
                        await send.send(token)
                except anyio.BrokenResourceError:
                    pass  # no reader is left
                except Exception as e:  # noqa: BLE001  raised below, outside of the task group
                    failures.append(e)

        async with receive, send:
            stream = self.generate_stream(prompt, max_tokens, params, config=config, **options)
            with unwrapped():
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(feed, stream)
                    yield receive
                    tasks.cancel_scope.cancel()
        if failures:
            raise failures[0]

    @arguments(chat_request)
    def chat_stream(self, request: ChatRequest) -> ChatStream:
        """As `Context.chat_stream`. Does not wait; long chats are prepared as long prompts are in `generate_stream`.

        Those are chats with more than about ten messages or 4096 characters, or with tools, a template or a schema.
        """
        return ChatStream(self._shared.chat_generation(request, apart=True))

    @arguments(chat_request)
    async def chat(self, request: ChatRequest) -> ChatCompletion:
        """As `Context.chat`. Cancelled, it has stopped generating when it returns."""
        async with ChatStream(self._shared.chat_generation(request, whole=True, apart=True)) as stream:
            async for _ in stream:
                pass
        return stream.chat_completion()

    async def decode(self, tokens: Sequence[int], *, all_logits: bool = False) -> Array:
        """As `Context.decode`, for one task at a time. Cancelled, nothing was appended."""
        generation, finish = self._shared.decoding(tokens, all_logits, apart=True)
        async with TokenStream(generation) as stream:
            async for _ in stream:
                pass
        return finish()

    async def embed(self, text: str, *, normalize: bool = True, pooling: str | None = None) -> Array:
        """As `Context.embed`, in a worker thread. Cancelled, it stops computing."""
        row: Array = (await self.embed_batch([text], normalize=normalize, pooling=pooling))[0]
        return row

    async def embed_batch(self, texts: Sequence[str], *, normalize: bool = True, pooling: str | None = None) -> Array:
        """As `Context.embed_batch`, in a worker thread. Cancelled, it stops computing."""
        shared = self._shared
        return await _in_thread(
            lambda stop: shared.embed_batch(texts, normalize=normalize, pooling=pooling, stop=stop),
            undo=lambda _: None,
        )

    async def load_lora(self, path: StrPath) -> Lora:
        """As `Model.load_lora`, in a worker thread. Cancelled, it finishes loading the adapter and frees it."""
        model = self.model
        return await _in_thread(lambda _: model.load_lora(path), undo=lambda _: None)

    async def save_state(self, path: StrPath) -> None:
        """As `Context.save_state`, in a worker thread. Cancelled, it stops writing; an existing file is unchanged."""
        shared = self._shared
        await _in_thread(lambda stop: shared.save_state(path, stop=stop), undo=lambda _: None)

    async def load_state(self, path: StrPath) -> int:
        """As `Context.load_state`, in a worker thread. Cancelled, it first waits until that has finished."""
        return await to_thread.run_sync(self._shared.load_state, path)

    async def aclose(self) -> None:
        """Stop the engine and free its memory. Open streams end with a `StreamClosedError`. Idempotent.

        It waits for at most one step of the engine, shielded from cancellation.
        """
        with CancelScope(shield=True):
            if self._held is not None:
                await to_thread.run_sync(self._held.close)
        await checkpoint()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()


class AsyncModel(AsyncContext):
    """A model and a context for it in one object, which is what most programs need.

    Make one with ``await AsyncModel.load(path)``. It is an `AsyncContext`, with all its methods, and an async context
    manager that closes it.
    """

    if not TYPE_CHECKING:  # type checkers would accept the call

        def __init__(self, *_: object, **__: object) -> None:
            hint = "Use `await AsyncModel.load(path)`."
            raise InvalidParameterType("AsyncModel cannot be called", hint=hint)

    @classmethod
    async def load(
        cls,
        path: StrPath | None = None,
        *,
        context: ContextParams | None = None,
        n_gpu_layers: int = -1,
        use_mmap: bool = True,
        use_mlock: bool = False,
        vocab_only: bool = False,
        on_progress: Callable[[float], object] | None = None,
        **options: Unpack[ContextOptions],
    ) -> AsyncModel:
        """Load a model and make a context for it, in a worker thread; the event loop keeps running.

        Other arguments are those of `Model.load`; errors are those of `Model.load` and `Context`. Cancelled, it stops
        loading and frees everything. With `vocab_only` there is no context: `model` can tokenise, and methods that generate
        raise `ContextError`.

        Args:
            context: The context's settings; `ContextParams()` by default.
            on_progress: Called on the event loop's thread with the fraction loaded, from 0.0 to 1.0. Returning False
                stops the load with a `ModelLoadError`; an exception stops it too, and propagates.
            **options: Single fields of `ContextParams`, as in ``AsyncModel.load(path, n_ctx=512)``.
        """

        def work(stop: _core.Stop) -> AsyncModel:
            def report(fraction: float) -> bool:
                if stop.is_set():
                    return False
                return on_progress is None or from_thread.run_sync(on_progress, fraction) is not False

            model = Model.load(
                path,
                n_gpu_layers=n_gpu_layers,
                use_mmap=use_mmap,
                use_mlock=use_mlock,
                vocab_only=vocab_only,
                on_progress=report,
            )
            return cls._over(model, None if vocab_only else SharedContext(model, context, options))

        if on_progress is not None and not callable(on_progress):
            raise _checks.refuse_type("on_progress", on_progress, "a function of one float")

        def undo(made: AsyncModel) -> None:
            if made._held is not None:
                made._held.close()

        return await _in_thread(work, undo=undo)


async def _in_thread(work: Callable[[_core.Stop], T], *, undo: Callable[[T], object]) -> T:
    """Run `work` in a worker thread. Cancellation sets its `stop`, and `undo` gets what it had made."""
    stop = _core.Stop()
    made: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            made.append(work(stop))
        except BaseException as e:  # noqa: BLE001  raised below, outside of the task group
            failed.append(e)
        if stop.is_set():
            clean_up()

    def clean_up() -> None:
        with suppress(IndexError):  # either thread, or both at once
            undo(made.pop())

    async def watch() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            stop.set()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            await to_thread.run_sync(run)
            tasks.cancel_scope.cancel()
        await checkpoint_if_cancelled()  # rather than raise the error of the load that it stopped
        if failed:
            raise failed[0]
        return made.pop()
    except BaseException:
        clean_up()
        raise


@contextmanager
def unwrapped() -> Iterator[None]:
    """Lets a single exception out of a task group as itself: the task group is an implementation detail."""
    try:
        yield
    except BaseExceptionGroup as group:
        first, *others = group.exceptions
        if others:
            raise
        raise first from first.__cause__
