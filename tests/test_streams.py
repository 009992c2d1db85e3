"""`TokenStream`: what it offers beyond the contract of a memory object stream, and its completion."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import anyio
import pytest
from anyio import (
    BusyResourceError,
    ClosedResourceError,
    EndOfStream,
    WouldBlock,
    create_task_group,
    wait_all_tasks_blocked,
)
from conftest import ENDLESS, serving, until

from mullama import AsyncContext, Model, SamplerParams, StreamConfig, StreamingError, TokenData, TokenStream

pytestmark = pytest.mark.anyio

PROMPT = "Once upon a time"
GREEDY = SamplerParams.greedy(ignore_eos=True)
A_DAY_MS = 24 * 60 * 60 * 1000


def config(max_tokens: int | None = 12, params: SamplerParams = GREEDY, **changes: Any) -> StreamConfig:
    return StreamConfig(**{"max_tokens": max_tokens, "params": params, "timeout_ms": 0} | changes)


ONE_TOKEN_A_DAY = config(None, ENDLESS, stream_delay_ms=A_DAY_MS)


async def full(stream: TokenStream) -> None:
    await until(lambda: stream.statistics().current_buffer_used == stream.statistics().max_buffer_size)


# ---------------------------------------------------------------------------------------------------------- tokens


async def test_tokens_are_text_with_facts(actx: AsyncContext, model: Model) -> None:
    async with actx.generate_stream(PROMPT, config()) as stream:
        tokens = await stream.collect()
    assert len(tokens) == 12
    assert [token.is_final for token in tokens] == [False] * 11 + [True]
    assert all(type(token) is TokenData and type(token.text) is str and token.text == token for token in tokens)
    assert all(0 <= token.token_id < model.n_vocab and token.logprob <= 0 for token in tokens)
    assert "".join(tokens) == stream.completion().text


async def test_next_is_none_at_the_end_again_and_again(actx: AsyncContext) -> None:
    async with actx.generate_stream(PROMPT, config(3)) as stream:
        tokens = [await stream.next() for _ in range(5)]
        assert [type(token) for token in tokens] == [TokenData] * 3 + [type(None)] * 2


async def test_try_next_never_waits_and_is_finished_tells_the_nones_apart(actx: AsyncContext) -> None:
    async with actx.generate_stream(PROMPT, ONE_TOKEN_A_DAY) as stream:
        assert await stream.next() is not None
        assert stream.try_next() is None
        assert not stream.is_finished()
    async with actx.generate_stream(PROMPT, config(3)) as stream:
        await until(stream.is_finished)
        assert [type(stream.try_next()) for _ in range(5)] == [TokenData] * 3 + [type(None)] * 2


async def test_try_next_raises_what_went_wrong(actx: AsyncContext) -> None:
    async with actx.generate_stream(PROMPT, ONE_TOKEN_A_DAY.replace(timeout_ms=1)) as stream:
        await until(stream.is_finished)
        for _ in range(2):
            with pytest.raises(StreamingError) as caught:
                list(iter(stream.try_next, None))
            assert caught.value.code == "STREAM_TIMEOUT"


async def test_collect_gives_what_is_still_to_come(actx: AsyncContext) -> None:
    async with actx.generate_stream(PROMPT, config()) as stream:
        first = [await stream.receive(), await stream.receive()]
        rest = await stream.collect()
        assert [token.token_id for token in first + rest] == list(stream.completion().tokens)
        assert await stream.collect() == []


async def test_map(actx: AsyncContext) -> None:
    async with actx.generate_stream(PROMPT, config()) as stream:
        async with stream.map(lambda token: token.token_id) as ids:
            assert isinstance(ids, anyio.abc.ObjectReceiveStream)
            assert [n async for n in ids] == list(stream.completion().tokens)
        with pytest.raises(ClosedResourceError):
            await stream.receive()


async def test_what_a_mapped_function_raises_comes_out_and_the_stream_goes_on(actx: AsyncContext) -> None:
    async with actx.generate_stream(PROMPT, config()) as stream:
        with pytest.raises(AttributeError):
            await stream.map(lambda token: token.no_such_thing).receive()  # type: ignore[attr-defined]
        assert len(await stream.collect()) == 11


async def test_take_cancels_the_rest(actx: AsyncContext) -> None:
    async with actx.generate_stream(PROMPT, config(None, ENDLESS)) as stream:
        tokens = [token async for token in stream.take(5)]
        completion = stream.completion()
        assert completion.finish_reason == "cancelled"
        assert [token.token_id for token in tokens] == list(completion.tokens[:5])


@pytest.mark.parametrize(("n", "taken"), [(0, 0), (3, 3), (100, 3)])
async def test_take_ends_where_the_stream_does(n: int, taken: int, actx: AsyncContext) -> None:
    async with actx.generate_stream(PROMPT, config(3)) as stream, stream.take(n) as some:
        assert len([token async for token in some]) == taken
        for _ in range(2):
            with pytest.raises(EndOfStream):
                await some.receive()


# ---------------------------------------------------------------------------------------------------------- cancel, close


async def test_cancel_leaves_what_was_generated(actx: AsyncContext) -> None:
    async with actx.generate_stream(PROMPT, config(None, ENDLESS, buffer_size=4)) as stream:
        first = await stream.receive()
        await full(stream)
        stream.cancel()
        completion = stream.completion()  # available at once, without waiting for the engine
        assert completion.finish_reason == "cancelled"
        stream.cancel()
        tokens = [first, *await stream.collect()]
        assert len(tokens) == 5
        assert [token.token_id for token in tokens] == list(completion.tokens)
        await until(lambda: actx.statistics().busy == 0)
        assert stream.completion().tokens == completion.tokens
        assert stream.tokens_generated() == 5


async def test_cancel_after_the_end_changes_nothing(actx: AsyncContext) -> None:
    async with actx.generate_stream(PROMPT, config(3)) as stream:
        await until(stream.is_finished)
        stream.cancel()
        assert len(await stream.collect()) == 3
    assert stream.completion().finish_reason == "length"


async def test_a_second_reader_at_once_is_refused(actx: AsyncContext) -> None:
    got: list[TokenData] = []

    async def read() -> None:
        got.append(await stream.receive())

    hogs = [actx.generate_stream(f"{i} dogs", ONE_TOKEN_A_DAY) for i in range(8)]
    async with actx.generate_stream(PROMPT, config(5)) as stream, create_task_group() as tasks:
        tasks.start_soon(read)  # waits, because all slots are taken
        await wait_all_tasks_blocked()
        for refused in (stream.receive, stream.next, stream.collect):
            with anyio.fail_after(60), pytest.raises(BusyResourceError):
                await refused()
        for refused_too in (stream.receive_nowait, stream.try_next):
            with pytest.raises(BusyResourceError):
                refused_too()
        for hog in hogs:
            await hog.aclose()
        await until(lambda: got)
        got += await stream.collect()
        assert [token.token_id for token in got] == list(stream.completion().tokens)


async def test_a_cancelled_reader_makes_room_for_another(actx: AsyncContext) -> None:
    async with actx.generate_stream(PROMPT, ONE_TOKEN_A_DAY) as stream:
        await stream.receive()
        with anyio.move_on_after(0.01) as scope:
            await stream.receive()
        assert scope.cancelled_caught
        with pytest.raises(WouldBlock):
            stream.receive_nowait()


@pytest.mark.parametrize("victims", [(0,), (1,), (0, 1), (0, 1, 2), (0, 3), (1, 2)])
async def test_readers_that_are_cancelled_leave_the_others_waiting_well(victims: tuple[int, ...], model: Model) -> None:
    """One of them watches the notifier for all; whichever ends, even with its successor, another takes over."""
    async with serving(model, n_ctx=256, n_seq_max=1) as context:
        for _ in range(5):
            hog = context.generate_stream("A cat", ONE_TOKEN_A_DAY)
            streams = [context.generate_stream(f"{i} dogs", config(5)) for i in range(4)]  # they wait in the queue
            scopes = [anyio.CancelScope() for _ in streams]
            got: list[list[TokenData]] = [[] for _ in streams]

            async def read(i: int, streams: Any = streams, scopes: Any = scopes, got: Any = got) -> None:
                with scopes[i]:
                    got[i] = await streams[i].collect()

            async with create_task_group() as tasks:
                for i in range(4):
                    tasks.start_soon(read, i)
                    await wait_all_tasks_blocked()
                for i in victims:
                    scopes[i].cancel()
                await wait_all_tasks_blocked()
                await hog.aclose()
            assert [len(tokens) for tokens in got] == [0 if i in victims else 5 for i in range(4)]
            assert [len(await streams[i].collect()) for i in victims] == [5] * len(victims)


async def test_closing_under_a_reader_that_was_just_rung_for(model: Model) -> None:
    """Its token is discarded before it looks, and the engine is busy elsewhere: the end must notify again."""
    async with serving(model, n_ctx=1024, n_seq_max=6, n_batch=4096, reuse_prefix=False) as context:
        watching = context.generate_stream("A dog", ONE_TOKEN_A_DAY)
        stream = context.generate_stream("A cat", ONE_TOKEN_A_DAY.replace(stream_delay_ms=500))
        closed: list[TokenStream] = []

        async def read(stream: TokenStream) -> None:
            with pytest.raises(ClosedResourceError):
                await stream.receive()
            closed.append(stream)

        async with create_task_group() as tasks:
            for one in (watching, stream):  # the first reader watches the descriptor for both
                await one.receive()
            tasks.start_soon(read, watching)
            await wait_all_tasks_blocked()
            tasks.start_soon(read, stream)
            await wait_all_tasks_blocked()
            while not stream.statistics().current_buffer_used:
                pass  # without the loop
            others = [context.generate_stream([300 + i] * 900, ONE_TOKEN_A_DAY) for i in range(4)]
            time.sleep(0.02)  # noqa: ASYNC251  the engine is with them now
            stream.close()
            await until(lambda: closed)
            assert closed == [stream]
            watching.close()
        for one in (stream, watching, *others):
            await one.aclose()


# ---------------------------------------------------------------------------------------------------------- figures


async def test_config_is_what_it_was_started_with(actx: AsyncContext) -> None:
    asked = config(3, buffer_size=7)
    async with actx.generate_stream(PROMPT, config=asked) as stream:
        assert stream.config() == asked
    async with actx.generate_stream(PROMPT, 3, GREEDY) as stream:
        assert stream.config() == StreamConfig(max_tokens=3, params=GREEDY, timeout_ms=30_000)


async def test_figures_grow_with_the_tokens_and_stay_at_the_end(actx: AsyncContext) -> None:
    async with actx.generate_stream(PROMPT, config(20, buffer_size=5)) as stream:
        await full(stream)
        assert stream.tokens_generated() == 5
        rate = stream.tokens_per_second()
        assert rate > 0
        await stream.collect()
        assert stream.is_finished()
        assert stream.tokens_generated() == 20
        assert stream.tokens_per_second() == pytest.approx(stream.completion().timings.tokens_per_second)
    assert stream.tokens_generated() == 20  # even when it is closed


async def test_a_rate_needs_two_tokens(actx: AsyncContext) -> None:
    async with actx.generate_stream(PROMPT, config(1)) as stream:
        await stream.collect()
        assert stream.tokens_per_second() == 0.0
        assert stream.completion().timings.tokens_per_second == 0.0


async def test_statistics_are_a_record_of_one_moment(actx: AsyncContext) -> None:
    async with actx.generate_stream(PROMPT, config(3)) as stream:
        before = stream.statistics()
        await stream.collect()
        after = stream.statistics()
        assert (after.tokens_generated, after.current_buffer_used, after.finished) == (3, 0, True)
        assert before != after
        with pytest.raises(dataclasses.FrozenInstanceError):
            before.paused = True  # type: ignore[misc]


# ---------------------------------------------------------------------------------------------------------- completion


async def test_the_completion_of_a_running_stream_is_an_error(actx: AsyncContext) -> None:
    async with actx.generate_stream(PROMPT, config(None, ENDLESS)) as stream:
        with pytest.raises(StreamingError) as caught:
            stream.completion()
        assert caught.value.code == "STREAM_RUNNING"
        await stream.receive()
    assert stream.completion().finish_reason == "cancelled"


async def test_usage_and_timings(actx: AsyncContext, model: Model) -> None:
    began = time.monotonic()
    async with actx.generate_stream(PROMPT, config()) as stream:
        tokens = await stream.collect()
    took_ms = 1000 * (time.monotonic() - began)
    completion = stream.completion()
    usage, timings = completion.usage, completion.timings
    assert usage.prompt_tokens == len(model.tokenize(PROMPT))
    assert (usage.completion_tokens, usage.cached_tokens) == (12, 0)
    assert usage.total_tokens == usage.prompt_tokens + 12
    assert min(timings.queue_ms, timings.prefill_ms, timings.decode_ms) >= 0
    assert timings.prefill_ms > 0
    assert timings.decode_ms > 0
    assert timings.queue_ms + timings.prefill_ms + timings.decode_ms <= took_ms
    assert timings.tokens_per_second == pytest.approx(1000 * 11 / timings.decode_ms)
    assert completion.tokens == tuple(token.token_id for token in tokens)
    assert str(completion) == completion.text
    assert completion == stream.completion()


async def test_time_in_the_queue_is_counted_as_such(model: Model) -> None:
    async with serving(model, n_ctx=256, n_seq_max=1) as context:
        async with context.generate_stream("A dog", ONE_TOKEN_A_DAY) as first:
            await first.receive()
            stream = context.generate_stream(PROMPT, config(3))
            await until(lambda: context.statistics().queued == 1)
            queued = time.monotonic()
            await anyio.sleep(0.05)
            waited_ms = 1000 * (time.monotonic() - queued)
        await stream.collect()
        assert stream.completion().timings.queue_ms >= waited_ms


async def test_max_tokens_ends_with_length(actx: AsyncContext) -> None:
    completion = await actx.generate(PROMPT, 3, GREEDY)
    assert (completion.finish_reason, completion.stop_sequence, len(completion.tokens)) == ("length", None, 3)


@pytest.mark.parametrize("max_tokens", [None, -1])
async def test_without_max_tokens_it_ends_with_the_context(max_tokens: int | None, model: Model) -> None:
    async with serving(model, n_ctx=256, n_seq_max=1) as context:
        completion = await context.generate(PROMPT, config(max_tokens))
        assert completion.finish_reason == "length"
        # All cells are used; the last token is sampled and delivered, and needs no cell.
        assert completion.usage.total_tokens == context.n_ctx + 1


async def test_an_end_token_stops_and_shows_nothing(actx: AsyncContext, model: Model) -> None:
    end = SamplerParams.greedy(logit_bias={model.token_eos: 1000.0})
    async with actx.generate_stream(PROMPT, config(5, end)) as stream:
        tokens = await stream.collect()
    assert [(token.text, token.token_id, token.is_final) for token in tokens] == [("", model.token_eos, True)]
    completion = stream.completion()
    assert (completion.finish_reason, completion.stop_sequence, completion.text) == ("stop", None, "")
    assert completion.tokens == (model.token_eos,)


async def test_a_stop_sequence_stops_before_it_is_shown(actx: AsyncContext) -> None:
    whole = (await actx.generate(PROMPT, config(60))).text
    stop = whole[30:36]
    async with actx.generate_stream(PROMPT, config(60, stop_sequences=["never said", stop])) as stream:
        tokens = await stream.collect()
    completion = stream.completion()
    assert (completion.finish_reason, completion.stop_sequence) == ("stop", stop)
    assert "".join(tokens) == completion.text == whole[: whole.index(stop)]
    assert tokens[-1].is_final
