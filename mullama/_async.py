"""The awaiting shell: models, contexts and streams for asyncio and trio, through anyio."""

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
    """A `Context` for asynchronous code; made with `await AsyncContext.create(model, …)`."""

    def __init__(self, context: Context) -> None:
        given: object = context
        if not isinstance(given, Context):
            hint = "Make one of a model with `await AsyncContext.create(model)`."
            raise _checks.refuse_type("context", context, "a mullama.Context", hint)
        super().__init__(context.model, context._shared)

    @classmethod
    async def create(
        cls, model: Model | AsyncModel, params: ContextParams | None = None, **options: Unpack[ContextOptions]
    ) -> AsyncContext:
        """Make a context, in a worker thread: it may have much memory to claim. Arguments and errors as `Context`.

        Cancelled, it finishes what it began and undoes it.
        """
        plain = model.model if isinstance(model, AsyncModel) else model
        shared = await _in_thread(lambda _: SharedContext(plain, params, options), undo=SharedContext.close)
        return AsyncContext._over(plain, shared)

    @property
    def context(self) -> Context:
        """The same context for synchronous code in other threads."""
        return Context._over(self.model, self._shared)

    @arguments(text_request)
    def generate_stream(self, request: TextRequest) -> TokenStream:
        """Start generating, and return the stream of tokens. Does not wait; arguments and errors as `Context.generate_stream`.

        A text is tokenised here, on the event loop's thread, at about 10 MB/s; for more than a few hundred kilobytes call
        `Model.tokenize` in a worker thread, and pass the ids.
        """
        return TokenStream(self._shared.generation(request))

    @arguments(text_request)
    async def generate(self, request: TextRequest) -> Completion:
        """Generate, and return all of it at the end. Cancelled, it has stopped generating when it returns."""
        async with TokenStream(self._shared.generation(request, whole=True)) as stream:
            async for _ in stream:
                pass
        return stream.completion()

    @arguments(several_requests)
    async def generate_many(self, several: tuple[TextRequest, int]) -> list[Completion]:
        """As `Context.generate_many`. Cancelled, all of them have stopped generating when it returns."""
        requests = self._shared.several(*several)
        streams: deque[TokenStream] = deque()
        completions = []
        try:
            while requests.begin(streams, lambda request: TokenStream(Generation(request))):
                async for _ in streams[0]:
                    pass
                completions.append(streams.popleft().completion())
        finally:
            for stream in streams:  # all of them at once, before it waits for one by one
                stream.cancel()
            with CancelScope(shield=True):
                for stream in streams:
                    await stream.aclose()
        return completions

    @arguments(callback_request)
    async def generate_streaming(self, asked: tuple[TextRequest, Callback]) -> Completion:
        """As `Context.generate_streaming`; the callback may be a coroutine function. Cancelled, it stops generating."""
        request, callback = asked
        async with TokenStream(self._shared.generation(request, whole=True)) as stream:
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
        """Generate into an object stream, and close it at the end: what a task group or a nursery starts.

        Several may share a channel, each with a clone of its sending end. A token waits in the ring until `send` takes it.
        Where the receiving end is closed, the generation is cancelled and its completion returned. Cancelled, it stops
        generating; one token that was on its way into the channel is lost then.
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
        """A block with an anyio `MemoryObjectReceiveStream` of the tokens: to clone, and to hand to several tasks.

        A task that lives in the block feeds it. The engine's ring stays the buffer; `max_buffer_size` tokens more may lie in
        the memory object stream. A failure ends the stream after the tokens that came before it, and is raised at the end
        of the block. The end of the block stops the generation and waits until the slot is free.
        """
        send, receive = anyio.create_memory_object_stream[TokenData](max_buffer_size)
        failures: list[Exception] = []

        async def feed(stream: TokenStream) -> None:
            async with send, stream:
                try:
                    async for token in stream:
                        await send.send(token)
                except anyio.BrokenResourceError:
                    pass  # nobody reads any more
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
        """Start answering a chat. Does not wait; arguments and errors as `Context.chat_stream`."""
        return ChatStream(self._shared.chat_generation(request))

    @arguments(chat_request)
    async def chat(self, request: ChatRequest) -> ChatCompletion:
        """Answer a chat, and return the whole answer. Cancelled, it has stopped generating when it returns."""
        async with ChatStream(self._shared.chat_generation(request, whole=True)) as stream:
            async for _ in stream:
                pass
        return stream.chat_completion()

    async def decode(self, tokens: Sequence[int], *, all_logits: bool = False) -> Array:
        """As `Context.decode`; one task at a time. Cancelled, nothing was appended."""
        generation, finish = self._shared.decoding(tokens, all_logits)
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
        """As `Model.load_lora`, in a worker thread. Cancelled, it finishes what it began and drops it."""
        model = self.model
        return await _in_thread(lambda _: model.load_lora(path), undo=lambda _: None)

    async def save_state(self, path: StrPath) -> None:
        """As `Context.save_state`, in a worker thread. Cancelled, it stops writing and leaves what was there before."""
        shared = self._shared
        await _in_thread(lambda stop: shared.save_state(path, stop=stop), undo=lambda _: None)

    async def load_state(self, path: StrPath) -> int:
        """As `Context.load_state`, in a worker thread. Cancelled, it returns when that has finished."""
        return await to_thread.run_sync(self._shared.load_state, path)

    async def aclose(self) -> None:
        """Stop the engine and give its memory back. Streams that are open end with a `StreamClosedError`. Idempotent.

        Shielded from cancellation; it takes a step of the engine at most.
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
    """A model and a context for it, in one: what most programs need. Made with `await AsyncModel.load(…)`."""

    if not TYPE_CHECKING:  # who would allow what is refused

        def __init__(self, *_: object, **__: object) -> None:
            hint = "Use `await AsyncModel.load(path)`."
            raise InvalidParameterType("an AsyncModel is not made by a call", hint=hint)

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
        """Load a model and make a context for it, in a worker thread: the event loop goes on meanwhile.

        Cancelled, it stops the load where it is, and nothing is left of it.

        Args:
            context: What the context is like; `ContextParams()` where it is left out.
            on_progress: Called on the event loop's thread with a share from 0.0 to 1.0. Returning False stops the load
                with a `ModelLoadError`; what it raises stops it too and comes out of here.
            **options: Fields of `ContextParams` by themselves, as in ``AsyncModel.load(path, n_ctx=512)``.

        The other arguments, and the errors, are those of `Model.load` and `Context`.
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
    """What `work` returns or raises, done in a worker thread. It is told to stop on cancellation; what it made is undone."""
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
        with suppress(IndexError):  # in either thread, or in both at once
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
        await checkpoint_if_cancelled()  # rather than the error of a load that was stopped for it
        if failed:
            raise failed[0]
        return made.pop()
    except BaseException:
        clean_up()
        raise


@contextmanager
def unwrapped() -> Iterator[None]:
    """Lets one exception out of a task group as itself: the group is no business of whoever calls."""
    try:
        yield
    except BaseExceptionGroup as group:
        first, *others = group.exceptions
        if others:
            raise
        raise first from first.__cause__
