"""What only trio can test: asserted checkpoints, nurseries, cancel scopes, and trio's own channels."""

from __future__ import annotations

import math
import sys
from typing import Any

import anyio
import pytest
import trio
import trio.testing
from conftest import ENDLESS, serving, until
from trio.testing import assert_checkpoints, assert_no_checkpoints

from mullama import AsyncContext, AsyncModel, Completion, Model, SamplerParams, StreamConfig, StreamingError, TokenData

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

pytestmark = pytest.mark.trio

PROMPT = "Once upon a time"
GREEDY = SamplerParams.greedy(ignore_eos=True)
A_DAY_MS = 24 * 60 * 60 * 1000
SHAPE = {"n_ctx": 512, "n_seq_max": 8}


def config(max_tokens: int | None = 12, params: SamplerParams = GREEDY, **changes: Any) -> StreamConfig:
    return StreamConfig(**{"max_tokens": max_tokens, "params": params, "timeout_ms": 0} | changes)


ONE_TOKEN_A_DAY = config(None, ENDLESS, stream_delay_ms=A_DAY_MS)


def assert_free(context: AsyncContext) -> None:
    assert context.statistics().busy == context.statistics().queued == 0


# ---------------------------------------------------------------------------------------------------------- checkpoints


async def test_every_receive_is_a_checkpoint(model: Model) -> None:
    """Whether tokens are ready or not, at the end, and when it is closed."""
    async with serving(model, **SHAPE) as context:
        stream = context.generate_stream(PROMPT, config(6))
        await until(stream.is_finished)
        for read in (
            stream.receive,
            stream.next,
            stream.__anext__,
            stream.map(str.upper).receive,
            stream.take(2).receive,
        ):
            with assert_checkpoints():
                await read()
        with assert_checkpoints():
            assert len(await stream.collect()) == 1
        for error, read in ((anyio.EndOfStream, stream.receive), (StopAsyncIteration, stream.__anext__)):
            with assert_checkpoints(), pytest.raises(error):
                await read()
        with assert_checkpoints():
            assert await stream.next() is None
        with assert_checkpoints(), pytest.raises(anyio.EndOfStream):
            await stream.take(0).receive()
        for _ in range(2):
            with assert_checkpoints():
                await stream.aclose()
            with assert_checkpoints(), pytest.raises(anyio.ClosedResourceError):
                await stream.receive()


async def test_what_does_not_wait_is_no_checkpoint(model: Model) -> None:
    async with serving(model, **SHAPE) as context:
        with assert_no_checkpoints():
            stream = context.generate_stream(PROMPT, config(6))
        await until(stream.is_finished)
        with assert_no_checkpoints():
            stream.receive_nowait()
            stream.try_next()
            stream.statistics()
            stream.completion()
            stream.tokens_per_second()
            stream.cancel()
            stream.close()
            context.statistics()
            context.clear_cache()


async def test_contexts_checkpoint_too(model: Model) -> None:
    with assert_checkpoints():
        context = await AsyncContext.create(model, n_ctx=256, n_seq_max=1, n_threads=2)
    with assert_checkpoints():
        await context.generate(PROMPT, config(1))
    for _ in range(2):
        with assert_checkpoints():
            await context.aclose()


# ---------------------------------------------------------------------------------------------------------- waiting


async def test_readers_that_wait_are_blocked_and_do_not_spin(model: Model) -> None:
    async with serving(model, **SHAPE) as context, trio.open_nursery() as nursery:
        streams = [context.generate_stream(f"{i} dogs", ONE_TOKEN_A_DAY) for i in range(8)]
        for stream in streams:
            await stream.receive()
            nursery.start_soon(stream.receive)
        with trio.fail_after(60):
            await trio.testing.wait_all_tasks_blocked(cushion=0.05)
        nursery.cancel_scope.cancel()
        for stream in streams:
            with trio.CancelScope(shield=True):
                await stream.aclose()


# ---------------------------------------------------------------------------------------------------------- cancelling


async def test_a_cancel_scope_around_a_stream_frees_the_slot(model: Model) -> None:
    async with serving(model, **SHAPE) as context:
        with trio.CancelScope() as scope:
            async with context.generate_stream(PROMPT, config(None, ENDLESS)) as stream:
                async for _ in stream:
                    if stream.tokens_generated() > 5:
                        scope.cancel()
        assert scope.cancelled_caught
        assert_free(context)
        assert stream.completion().finish_reason == "cancelled"


async def test_move_on_after_keeps_what_came(model: Model) -> None:
    got: list[TokenData] = []
    async with serving(model, **SHAPE) as context, context.generate_stream(PROMPT, config(None, ENDLESS)) as stream:
        await until(lambda: stream.tokens_generated() > 0)
        with trio.move_on_after(0.1) as scope:
            while True:
                got.append(await stream.receive())
        assert scope.cancelled_caught
        got += [await stream.receive() for _ in range(5)]
        stream.cancel()
        got += await stream.collect()
        assert [token.token_id for token in got] == list(stream.completion().tokens)


async def test_fail_after_raises_trios_own(model: Model) -> None:
    async with serving(model, **SHAPE) as context:
        with pytest.raises(trio.TooSlowError):
            with trio.fail_after(0.1):
                await context.generate(PROMPT, config(None, ENDLESS, stream_delay_ms=10))
        assert_free(context)


async def test_a_stream_is_closed_in_a_scope_that_is_cancelled_already(model: Model) -> None:
    async with serving(model, **SHAPE) as context:
        stream = context.generate_stream(PROMPT, config(None, ENDLESS))
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.aclose()
        assert scope.cancelled_caught  # it is a checkpoint anyway, after its work
        assert stream.is_finished()
        assert_free(context)


async def test_a_shielded_reader_reads_on(model: Model) -> None:
    async with serving(model, **SHAPE) as context, context.generate_stream(PROMPT, config()) as stream:
        with trio.CancelScope() as scope:
            scope.cancel()
            with trio.CancelScope(shield=True):
                assert len(await stream.collect()) == 12
        assert not scope.cancelled_caught


# ---------------------------------------------------------------------------------------------------------- nurseries


@pytest.mark.parametrize("who", ["a task", "a stream"])
async def test_eight_streams_in_a_nursery_of_which_one_fails(who: str, model: Model) -> None:
    counts = [0] * 8

    async def read(context: AsyncContext, i: int) -> None:
        # The first stream reaches its deadline; the others have none.
        timeout_ms = 300 if who == "a stream" and i == 0 else 0
        async with context.generate_stream(f"{i} dogs", config(None, ENDLESS, timeout_ms=timeout_ms)) as stream:
            async for _ in stream:
                counts[i] += 1
                if who == "a task" and i == 0 and min(counts) >= 3:
                    raise LookupError("mine")

    async with serving(model, **SHAPE) as context:
        with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
            async with trio.open_nursery() as nursery:
                for i in range(8):
                    nursery.start_soon(read, context, i)
        (error,) = caught.value.exceptions
        assert isinstance(error, LookupError if who == "a task" else StreamingError)
        assert_free(context)
        assert len((await context.generate(PROMPT, config())).tokens) == 12


async def test_a_nursery_starts_streams_into_one_channel(model: Model) -> None:
    async with serving(model, **SHAPE) as context:
        send, receive = anyio.create_memory_object_stream[TokenData]()
        async with receive, trio.open_nursery() as nursery:
            async with send:
                for i in range(10):
                    nursery.start_soon(context.stream_into, send.clone(), f"{i} dogs", config(20))
            assert len([token async for token in receive]) == 200


async def test_cancelling_a_nursery_ends_every_stream_in_it(model: Model) -> None:
    async with serving(model, **SHAPE) as context:
        send, receive = anyio.create_memory_object_stream[TokenData]()
        async with receive:
            async with trio.open_nursery() as nursery, send:
                for i in range(10):
                    nursery.start_soon(context.stream_into, send.clone(), f"{i} dogs", config(None, ENDLESS))
                for _ in range(20):
                    await receive.receive()
                nursery.cancel_scope.cancel()
            assert_free(context)
            with pytest.raises(anyio.EndOfStream):
                await receive.receive()


async def test_open_stream_inside_of_a_nursery(model: Model) -> None:
    counts: list[int] = []

    async def read(clone: Any) -> None:
        async with clone:
            counts.append(len([token async for token in clone]))

    async with serving(model, **SHAPE) as context:
        async with trio.open_nursery() as nursery, context.open_stream(PROMPT, config(40)) as receive:
            async with trio.open_nursery() as readers:
                for _ in range(3):
                    readers.start_soon(read, receive.clone())
            nursery.cancel_scope.cancel()
        assert sum(counts) == 40


# ---------------------------------------------------------------------------------------------------------- trio's channels


@pytest.mark.parametrize("size", [0, 3, math.inf])
async def test_tokens_go_into_a_channel_of_trios_own(size: float, model: Model) -> None:
    async def forward(context: AsyncContext, send: trio.MemorySendChannel[TokenData]) -> None:
        async with send, context.generate_stream(PROMPT, config(30, buffer_size=4)) as stream:
            async for token in stream:
                await send.send(token)

    async with serving(model, **SHAPE) as context:
        expected = (await context.generate(PROMPT, config(30))).tokens
        send, receive = trio.open_memory_channel[TokenData](size)
        async with trio.open_nursery() as nursery, receive:
            nursery.start_soon(forward, context, send)
            if size < 30:  # it waits for a reader that does not read
                held = 4 + size + 1  # in the ring, in the channel, and in transit
                await until(lambda: context.statistics().tokens_out == 30 + held)
                await until(lambda: context.statistics().paused == 1)
                assert context.statistics().tokens_out == 30 + held
            assert tuple([token.token_id async for token in receive]) == expected


async def test_two_streams_race_and_the_loser_is_cancelled(model: Model) -> None:
    async def race(context: AsyncContext, send: trio.MemorySendChannel[Completion], delay_ms: int) -> None:
        await send.send(await context.generate(PROMPT, config(10, stream_delay_ms=delay_ms)))

    async with serving(model, **SHAPE) as context:
        send, receive = trio.open_memory_channel[Completion](0)
        async with trio.open_nursery() as nursery:
            for delay_ms in (A_DAY_MS, 0):
                nursery.start_soon(race, context, send, delay_ms)
            winner = await receive.receive()
            nursery.cancel_scope.cancel()
        assert winner.finish_reason == "length"
        assert_free(context)


# ---------------------------------------------------------------------------------------------------------- loading


async def test_a_load_is_cancelled_by_a_cancel_scope() -> None:
    calls: list[float] = []

    def on_progress(share: float) -> None:
        calls.append(share)
        if len(calls) == 3:
            scope.cancel()

    with trio.CancelScope() as scope:
        await AsyncModel.load(on_progress=on_progress)
    assert scope.cancelled_caught
    assert calls[-1] < 1.0
