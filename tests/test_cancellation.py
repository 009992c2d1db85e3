"""Cancellation at every point of a stream's life: the slot is freed, neighbours are not affected, no token is lost."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio import ClosedResourceError, EndOfStream, create_task_group, fail_after, move_on_after
from anyio.lowlevel import checkpoint
from conftest import assert_idle, serving, until
from endless import FOREVER_MS, LIMIT, PROMPT, alone, config, long_prompt

from mullama import AsyncContext, Model, TokenStream

pytestmark = pytest.mark.anyio

# One that soon waits for its reader, one that keeps running.
NEIGHBOURS = {"One morning, Anna": 3, "The little dog": 512}
N_NEIGHBOUR = 80


@asynccontextmanager
async def neighbours(context: AsyncContext) -> AsyncIterator[Callable[[], int]]:
    """A block beside which other streams run, whose tokens must not change. It gets the number of running streams."""
    streams = {p: context.generate_stream(p, config(N_NEIGHBOUR, buffer_size=n)) for p, n in NEIGHBOURS.items()}
    yield lambda: sum(not stream.is_finished() for stream in streams.values())
    for prompt, stream in streams.items():
        with fail_after(LIMIT):
            tokens = [token.token_id for token in await stream.collect()]
        assert tokens == alone(context.model, prompt, N_NEIGHBOUR)
        await stream.aclose()


async def queued(context: AsyncContext) -> TokenStream:
    stream = context.generate_stream(PROMPT, config())
    assert context.statistics().queued == 2  # behind one neighbour that waits for its reader, and another
    return stream


async def prefilling(context: AsyncContext) -> TokenStream:
    for _ in range(10):
        stream = context.generate_stream(long_prompt(context.model), config())
        await until(lambda: context.statistics().queued == 0)
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
    """Cancelled while it is read, in a task that waits for a token, or takes ready ones."""
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
    """The end of the block waits for the slot even if its task is cancelled again."""
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
    slots = 1 if state is queued else len(NEIGHBOURS) + 1
    async with serving(model, n_ctx=2304, n_seq_max=slots, n_batch=512, n_ubatch=64, reuse_prefix=False) as context:
        async with neighbours(context):
            await until(lambda: context.statistics().paused == 1)
            stream = await state(context)
            with fail_after(LIMIT):
                await way(stream)
            assert stream.is_finished()
            statistics = context.statistics()
            assert 1 <= statistics.busy <= len(NEIGHBOURS)
            assert statistics.queued == (state is queued)
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
    slots = 1 if state is queued else len(NEIGHBOURS) + 1
    async with (
        serving(model, n_ctx=2304, n_seq_max=slots, n_batch=512, n_ubatch=64, reuse_prefix=False) as context,
        neighbours(context) as running,
    ):
        await until(lambda: context.statistics().paused == 1)
        stream = await state(context)
        assert not stream.is_finished()
        del stream
        gc.collect()
        await until(lambda: context.statistics().busy + context.statistics().queued == running())


async def test_break_frees_the_slot(model: Model) -> None:
    async with serving(model, n_ctx=1024, n_seq_max=3, reuse_prefix=False) as context, neighbours(context):

        async def read_some() -> None:
            n = 0
            async for _ in context.generate_stream(PROMPT, config(buffer_size=2)):
                n += 1
                if n == 5:
                    break
            assert context.statistics().busy >= 1

        for _ in range(5):  # more than the slots
            with fail_after(LIMIT):
                await read_some()
        await until(lambda: context.statistics().queued == 0)


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
    """Afterwards the stream is unchanged, and continues."""
    async with (
        serving(model, n_ctx=1024, n_seq_max=1, reuse_prefix=False) as context,
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
        with fail_after(LIMIT):
            assert [token.token_id for token in await stream.collect()] == alone(model, PROMPT, 30)
        assert stream.completion().finish_reason == "length"


async def test_generate_has_stopped_when_it_is_cancelled(model: Model) -> None:
    async with serving(model, n_ctx=2304, n_seq_max=1, n_ubatch=64) as context:
        for make in (lambda: PROMPT, lambda: long_prompt(model)):
            with move_on_after(0.02) as scope:
                await context.generate(make(), config(None, stream_delay_ms=FOREVER_MS))
            assert scope.cancelled_caught
            assert_idle(context.context)


@pytest.fixture
async def actx(model: Model) -> AsyncIterator[AsyncContext]:
    """Like the one in conftest.py, but without reuse, because a cached prefix changes the last bits of a probability."""
    async with serving(model, n_ctx=1024, n_seq_max=8, reuse_prefix=False) as context:
        yield context


async def test_one_of_eight_fails(actx: AsyncContext) -> None:
    """The task group raises only its own error, all slots are free then, and what each task has read is right."""
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

    with fail_after(LIMIT), pytest.raises(BaseException) as caught:  # noqa: PT012
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
    """Both stop generating when the block or its task is cancelled, or when nobody reads any more."""
    async with serving(model, n_ctx=1024, n_seq_max=3, reuse_prefix=False) as context, neighbours(context):
        with move_on_after(LIMIT) as scope:
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
        with fail_after(LIMIT):
            assert (await context.stream_into(send, PROMPT, config())).finish_reason == "cancelled"
        assert context.statistics().busy <= 2


async def test_a_cancelled_stream_need_not_wait_for_the_end_of_a_step(model: Model) -> None:
    """Others continue in it; some are notified before it is over (on an idle machine, all)."""
    told_within = 0
    async with serving(model, n_ctx=1024, n_seq_max=8, n_threads=1) as context:
        others = [context.generate_stream(PROMPT, config(1000, buffer_size=1000)) for _ in range(7)]
        for _ in range(500):
            stream = await decoding(context)
            with fail_after(LIMIT):
                before = context.statistics().steps
                stream.cancel()
                await stream.aclose()
                told_within += context.statistics().steps == before
                assert context.statistics().busy <= len(others)
            if told_within == 3:
                break
        for other in others:
            await other.aclose()
    assert told_within == 3
