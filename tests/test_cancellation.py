"""Cancellation at every point of a stream's life: the slot is free, neighbours notice nothing, no token is lost."""

from __future__ import annotations

import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from itertools import count
from typing import Any

import anyio
import pytest
from anyio import ClosedResourceError, EndOfStream, create_task_group, fail_after, move_on_after
from anyio.lowlevel import checkpoint
from conftest import ENDLESS, assert_idle, serving

from mullama import AsyncContext, Context, Model, StreamConfig, TokenStream

pytestmark = pytest.mark.anyio

PROMPT = "Once upon a time"
NEIGHBOURS = {"The little dog": 512, "One morning, Anna": 3}  # one that runs on, one that soon waits for its reader
N_NEIGHBOUR = 80
FOREVER_MS = 3_600_000  # a delay after which no test is still there
_serial = count()


def config(max_tokens: int | None = 500, **fields: Any) -> StreamConfig:
    return StreamConfig(**({"max_tokens": max_tokens, "params": ENDLESS, "timeout_ms": 0} | fields))


def long_prompt(model: Model, n: int = 2000) -> list[int]:
    """Tokens that no prompt before began with, so that none of them are in the cache."""
    words = model.tokenize(f"{next(_serial)} and then the story of the fox went on.")
    return (words * n)[:n]


@cache
def alone(model: Model, prompt: str, n: int) -> list[int]:
    """The tokens of a stream that is by itself in its context."""
    with Context(model, n_ctx=1024, n_seq_max=1, n_threads=2) as context:
        return [token.token_id for token in context.generate_stream(prompt, config(n))]


async def until(condition: Callable[[], bool]) -> None:
    with fail_after(90):
        while not condition():  # noqa: ASYNC110  the engine sets no event
            await anyio.sleep(0.001)


@asynccontextmanager
async def neighbours(context: AsyncContext) -> AsyncIterator[None]:
    """A block beside which other streams run, whose tokens are none the worse for it."""
    streams = {p: context.generate_stream(p, config(N_NEIGHBOUR, buffer_size=n)) for p, n in NEIGHBOURS.items()}
    yield
    for prompt, stream in streams.items():
        with fail_after(90):
            tokens = [token.token_id for token in await stream.collect()]
        assert tokens == alone(context.model, prompt, N_NEIGHBOUR)
        await stream.aclose()


async def queued(context: AsyncContext) -> TokenStream:
    stream = context.generate_stream(PROMPT, config())
    assert context.statistics().queued == 1
    return stream


async def prefilling(context: AsyncContext) -> TokenStream:
    for _ in range(10):
        before = context.statistics().busy
        stream = context.generate_stream(long_prompt(context.model), config())
        await until(lambda before=before: context.statistics().busy > before)
        if not stream.tokens_generated():
            return stream
        await stream.aclose()
    pytest.fail("a prompt is never caught while it is read")


async def decoding(context: AsyncContext) -> TokenStream:
    stream = context.generate_stream(PROMPT, config(buffer_size=512))
    for _ in range(5):
        await stream.receive()
    return stream


async def delayed(context: AsyncContext) -> TokenStream:
    stream = context.generate_stream(PROMPT, config(stream_delay_ms=FOREVER_MS))
    await stream.receive()
    assert stream.statistics().current_buffer_used == 0
    return stream


async def paused(context: AsyncContext) -> TokenStream:
    stream = context.generate_stream(PROMPT, config(buffer_size=4))
    await until(lambda: stream.statistics().paused)
    return stream


async def in_a_scope(stream: TokenStream) -> None:
    """Cancelled while it is read, in a task that waits for a token or, where tokens lie ready, takes them."""
    async with create_task_group() as tasks:

        async def read() -> None:
            async with stream:
                async for _ in stream:
                    pass

        tasks.start_soon(read)
        await checkpoint()
        await checkpoint()
        tasks.cancel_scope.cancel()


async def by_cancel(stream: TokenStream) -> None:
    stream.cancel()
    rest = [token.token_id for token in await stream.collect()]
    completion = stream.completion()
    assert completion.finish_reason == "cancelled"
    assert list(completion.tokens[len(completion.tokens) - len(rest) :]) == rest
    with pytest.raises(EndOfStream):
        await stream.receive()


async def by_close(stream: TokenStream) -> None:
    stream.close()
    stream.close()
    with pytest.raises(ClosedResourceError):
        await stream.receive()
    await until(stream.is_finished)


async def by_aclose(stream: TokenStream) -> None:
    await stream.aclose()
    await stream.aclose()
    with pytest.raises(ClosedResourceError):
        stream.receive_nowait()


async def in_aclose(stream: TokenStream) -> None:
    """The end of the block waits for the slot also where the task that is in it is cancelled once more."""
    async with create_task_group() as tasks:
        tasks.start_soon(stream.aclose)
        await checkpoint()
        tasks.cancel_scope.cancel()
    assert stream.is_finished()
    with move_on_after(-1):
        await stream.aclose()


STATES = [queued, prefilling, decoding, delayed, paused]
WAYS = [in_a_scope, by_cancel, by_close, by_aclose, in_aclose]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("state", STATES)
async def test_at_every_point_in_every_way(
    model: Model,
    state: Callable[[AsyncContext], Awaitable[TokenStream]],
    way: Callable[[TokenStream], Awaitable[None]],
) -> None:
    slots = len(NEIGHBOURS) + (state is not queued)
    async with serving(model, n_ctx=2304, n_seq_max=slots, n_batch=512, n_ubatch=64) as context:
        async with neighbours(context):
            if state is queued:
                await until(lambda: context.statistics().busy == slots)
            stream = await state(context)
            with fail_after(90):
                await way(stream)
            assert stream.is_finished()
            statistics = context.statistics()
            assert statistics.busy <= len(NEIGHBOURS)
            assert statistics.queued == 0
            completion = stream.completion()
            assert completion.finish_reason == "cancelled"
            if state in (queued, prefilling):
                assert (completion.tokens, completion.text) == ((), "")
            else:
                n = len(completion.tokens)
                assert n >= {decoding: 5, delayed: 1, paused: 4}[state]
                assert list(completion.tokens) == alone(model, PROMPT, 500)[:n]
        assert_idle(context.context)
        assert list((await context.generate(PROMPT, config(9))).tokens) == alone(model, PROMPT, 500)[:9]


@pytest.mark.parametrize("state", STATES)
async def test_a_dropped_reference_frees_the_slot(
    model: Model, state: Callable[[AsyncContext], Awaitable[TokenStream]]
) -> None:
    slots = len(NEIGHBOURS) + (state is not queued)
    async with (
        serving(model, n_ctx=2304, n_seq_max=slots, n_batch=512, n_ubatch=64) as context,
        neighbours(context),
    ):
        await until(lambda: context.statistics().busy == len(NEIGHBOURS))
        stream = await state(context)
        before = context.statistics()
        assert before.busy + before.queued == len(NEIGHBOURS) + 1
        del stream
        gc.collect()
        await until(lambda: context.statistics().busy <= len(NEIGHBOURS) and context.statistics().queued == 0)


async def test_break_frees_the_slot(model: Model) -> None:
    async with serving(model, n_ctx=1024, n_seq_max=3) as context, neighbours(context):

        async def read_some() -> None:
            n = 0
            async for _ in context.generate_stream(PROMPT, config(buffer_size=2)):
                n += 1
                if n == 5:
                    break
            assert context.statistics().busy >= 1

        for _ in range(5):  # more than there are slots
            with fail_after(90):
                await read_some()
        await until(lambda: context.statistics().queued == 0)


@contextmanager
def listening(records: list[str]) -> Iterator[None]:
    """Collect the lines of llama.cpp's log."""
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("mullama.llama_cpp")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


async def test_a_prompt_is_given_up_in_the_middle_of_a_batch(model: Model) -> None:
    """Not only between two steps: llama.cpp is stopped within one, and says so."""
    lines: list[str] = []
    async with serving(model, n_ctx=2304, n_seq_max=1, n_batch=800, n_ubatch=32) as context:
        with listening(lines):
            for _ in range(10):
                before = context.statistics().tokens_in
                stream = await prefilling(context)
                await stream.aclose()
                assert stream.completion().finish_reason == "cancelled"
                computed = context.statistics().tokens_in - before
                assert computed < 1999
                if any("removing memory module entries" in line for line in lines):
                    break
            else:
                pytest.fail("no batch was ever cut short")


@pytest.mark.parametrize("n_cells", [None, 3000], ids=["own cells", "shared cells"])
async def test_a_batch_that_is_cut_short_is_computed_again_for_the_others(model: Model, n_cells: int | None) -> None:
    """Neighbours share the batch with a prompt that is given up: their part of it is computed again.

    Where sequences have cells of their own, it was computed already and has no logits; else it is not in the memory.
    """
    lines: list[str] = []
    async with serving(model, n_ctx=2304, n_seq_max=2, n_ubatch=128, n_cells=n_cells) as context:
        with listening(lines):
            for _ in range(10):
                neighbour = context.generate_stream(PROMPT, config(120))

                async def give_up_prompts(neighbour: TokenStream = neighbour) -> None:
                    while not neighbour.is_finished():
                        async with context.generate_stream(long_prompt(model), config()):
                            steps = context.statistics().steps
                            await until(lambda steps=steps: context.statistics().steps > steps + 1)

                with fail_after(90):
                    await neighbour.receive()
                    async with create_task_group() as tasks:
                        tasks.start_soon(give_up_prompts)
                        tokens = [token.token_id for token in await neighbour.collect()]
                assert tokens == alone(model, PROMPT, 120)[1:]
                if any("removing memory module entries" in line for line in lines):
                    break
            else:
                pytest.fail("no batch that they shared was ever cut short")


async def test_a_receive_that_is_cancelled_at_once_takes_nothing(actx: AsyncContext) -> None:
    async with actx.generate_stream(PROMPT, config(20)) as stream:
        await until(stream.is_finished)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await stream.receive()
        assert scope.cancelled_caught
        assert stream.statistics().current_buffer_used == 20
        assert [token.token_id for token in await stream.collect()] == alone(actx.model, PROMPT, 20)


@pytest.mark.parametrize("fails", [False, True])
async def test_time_limits_around_a_receive(model: Model, fails: bool) -> None:
    """The stream is as it was afterwards, and goes on."""
    async with (
        serving(model, n_ctx=1024, n_seq_max=1) as context,
        context.generate_stream(PROMPT, config(buffer_size=1)) as blocker,
        context.generate_stream(PROMPT, config(30)) as stream,
    ):
        for _ in range(3):
            if fails:
                with pytest.raises(TimeoutError), fail_after(0.01):
                    await stream.receive()
            else:
                with move_on_after(0.01) as scope:
                    await stream.receive()
                assert scope.cancelled_caught
        await blocker.aclose()
        with fail_after(90):
            assert [token.token_id for token in await stream.collect()] == alone(model, PROMPT, 30)
        assert stream.completion().finish_reason == "length"


async def test_generate_has_stopped_when_it_is_cancelled(model: Model) -> None:
    async with serving(model, n_ctx=2304, n_seq_max=1, n_ubatch=64) as context:
        for make in (lambda: PROMPT, lambda: long_prompt(model)):
            with move_on_after(0.02) as scope:
                await context.generate(make(), config(None, stream_delay_ms=FOREVER_MS))
            assert scope.cancelled_caught
            assert_idle(context.context)


async def test_one_of_eight_fails(actx: AsyncContext) -> None:
    """The task group ends with its error alone, all slots are free then, and what each task has read is right."""
    expected = alone(actx.model, PROMPT, 500)
    streams: list[TokenStream] = []
    read: list[list[int]] = []

    async def reader(i: int) -> None:
        async with actx.generate_stream(PROMPT, config(buffer_size=(1, 8, 512)[i % 3])) as stream:
            streams.append(stream)
            read.append(mine := [])
            async for token in stream:
                mine.append(token.token_id)
                if i == 5 and len(mine) == 20:
                    raise ZeroDivisionError

    with fail_after(90), pytest.raises(BaseException) as caught:  # noqa: PT012
        async with create_task_group() as tasks:
            for i in range(8):
                tasks.start_soon(reader, i)
    assert [type(e) for e in caught.value.exceptions] == [ZeroDivisionError]  # type: ignore[attr-defined]
    assert_idle(actx.context)
    assert len(streams) == 8
    for stream, tokens in zip(streams, read, strict=True):
        completion = stream.completion()
        assert completion.finish_reason == "cancelled"
        assert tokens == expected[: len(tokens)]
        assert list(completion.tokens) == expected[: len(completion.tokens)]
        assert len(tokens) <= len(completion.tokens)


async def test_open_stream_and_stream_into(model: Model) -> None:
    """Both stop generating when the block or the task around them is cancelled, or when nobody reads any more."""
    async with serving(model, n_ctx=1024, n_seq_max=3) as context, neighbours(context):
        with move_on_after(90) as scope:
            async with context.open_stream(PROMPT, config()) as receive:
                for _ in range(3):
                    await receive.receive()
                scope.cancel()
                await receive.receive()
        assert scope.cancelled_caught
        assert context.statistics().busy <= 2

        send, receive = anyio.create_memory_object_stream[Any](0)
        async with create_task_group() as tasks:
            tasks.start_soon(context.stream_into, send, PROMPT, config())
            for _ in range(3):
                await receive.receive()
            tasks.cancel_scope.cancel()
        with pytest.raises(EndOfStream):
            receive.receive_nowait()
        receive.close()
        assert context.statistics().busy <= 2

        send, receive = anyio.create_memory_object_stream[Any](0)
        receive.close()
        with fail_after(90):
            assert (await context.stream_into(send, PROMPT, config())).finish_reason == "cancelled"
        assert context.statistics().busy <= 2
