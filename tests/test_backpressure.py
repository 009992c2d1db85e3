"""Backpressure: a reader that stops pauses its own generation, after exactly `buffer_size` tokens, and no other."""

from __future__ import annotations

import math
from contextlib import AsyncExitStack

import anyio
import pytest
from anyio import create_task_group
from conftest import ENDLESS, serving, until

from mullama import AsyncContext, Model, SamplerParams, StreamConfig, TokenData, TokenStream

pytestmark = pytest.mark.anyio

PROMPT = "Once upon a time"
N_TOKENS = 72  # more than any buffer
# So long that none of the tests below reaches the second token.
A_DAY_MS = 24 * 60 * 60 * 1000
every_size = pytest.mark.parametrize("buffer_size", [1, 2, 32])

# With neighbours in the batch, sampling must be greedy: the composition of the batch may change the rounding of the
# logits, and a random draw close to the border of two tokens could then change. Alone in its context, a stream is computed
# in the same batches whenever it pauses, so the same seed gives exactly the same tokens.
GREEDY = SamplerParams.greedy(ignore_eos=True)
SEEDED = SamplerParams(ignore_eos=True, seed=7, temperature=1.0)


def stream_of(
    context: AsyncContext, buffer_size: int, params: SamplerParams = GREEDY, prompt: str = PROMPT
) -> TokenStream:
    return context.generate_stream(prompt, config_of(buffer_size, params))


def config_of(buffer_size: int, params: SamplerParams = GREEDY) -> StreamConfig:
    return StreamConfig(max_tokens=N_TOKENS, params=params, buffer_size=buffer_size, timeout_ms=0)


async def of_a_fast_reader(model: Model, n_seq_max: int, params: SamplerParams) -> list[tuple[str, int]]:
    async with (
        serving(model, n_ctx=512, n_seq_max=n_seq_max) as context,
        stream_of(context, N_TOKENS, params) as stream,
    ):
        return plain(await stream.collect())


def plain(tokens: list[TokenData]) -> list[tuple[str, int]]:
    return [(token.text, token.token_id) for token in tokens]


async def paused(stream: TokenStream, context: AsyncContext, buffer_size: int, n_read: int = 0) -> None:
    """Wait until the stream has paused, and check that it did so after exactly `buffer_size` unread tokens."""
    await until(lambda: stream.statistics().paused and context.statistics().paused == 1)
    statistics = stream.statistics()
    assert statistics.current_buffer_used == statistics.max_buffer_size == buffer_size
    assert statistics.tokens_generated == stream.tokens_generated() == n_read + buffer_size
    assert statistics.paused
    assert not statistics.finished
    assert not stream.is_finished()


@every_size
async def test_a_stopped_reader_pauses_its_own_stream_only(buffer_size: int, model: Model) -> None:
    expected = await of_a_fast_reader(model, 8, GREEDY)

    async def read(stream: TokenStream) -> None:
        async with stream:
            assert len(await stream.collect()) == N_TOKENS

    async with serving(model, n_ctx=512, n_seq_max=8) as context, stream_of(context, buffer_size) as stopped:
        for _ in range(2):  # some that start with it, then some that arrive when it has paused
            async with create_task_group() as tasks:
                for i in range(7):
                    tasks.start_soon(read, stream_of(context, 4, ENDLESS, f"{i} dogs"))
            await until(lambda: context.statistics().busy == 1)
            await paused(stopped, context, buffer_size)

        got = [await stopped.receive() for _ in range(3)]
        await paused(stopped, context, buffer_size, n_read=3)

        got += await stopped.collect()
        assert plain(got) == expected
        completion = stopped.completion()
        assert completion.finish_reason == "length"
        assert completion.text == "".join(text for text, _ in expected)
        assert completion.tokens == tuple(token for _, token in expected)


@every_size
@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
async def test_a_reader_that_stops_often_gets_what_a_fast_one_gets(
    buffer_size: int, params: SamplerParams, model: Model
) -> None:
    expected = await of_a_fast_reader(model, 1, params)
    async with serving(model, n_ctx=512, n_seq_max=1) as context, stream_of(context, buffer_size, params) as stream:
        got: list[TokenData] = []
        while len(got) + max(buffer_size, 7) < N_TOKENS:
            await paused(stream, context, buffer_size, len(got))
            got += [await stream.receive() for _ in range(7)]
        assert plain(got + await stream.collect()) == expected


async def test_the_end_needs_no_room(model: Model) -> None:
    async with serving(model, n_ctx=512, n_seq_max=1) as context:
        stream = stream_of(context, N_TOKENS)
        await until(stream.is_finished)
        statistics = stream.statistics()
        assert (statistics.current_buffer_used, statistics.paused, statistics.finished) == (N_TOKENS, False, True)
        assert context.statistics().busy == 0
        # The slot serves others while the tokens wait for their reader.
        assert len((await context.generate("A dog", 5, ENDLESS)).tokens) == 5
        tokens = await stream.collect()
        assert len(tokens) == N_TOKENS
        assert [token.is_final for token in tokens] == [False] * (N_TOKENS - 1) + [True]


async def test_only_free_slots_serve_while_others_are_paused(model: Model) -> None:
    """All slots but one are paused: the remaining one serves request after request, and then all resume."""
    async with AsyncExitStack() as stack:
        context = await stack.enter_async_context(serving(model, n_ctx=512, n_seq_max=4))
        streams = [await stack.enter_async_context(stream_of(context, 2, prompt=f"{i} cats")) for i in range(3)]
        await until(lambda: context.statistics().paused == 3)
        for i in range(5):
            assert len((await context.generate(f"{i} dogs", 40, ENDLESS)).tokens) == 40
        assert [stream.tokens_generated() for stream in streams] == [2, 2, 2]
        for stream in streams:
            assert len(await stream.collect()) == N_TOKENS


@every_size
@pytest.mark.parametrize("max_buffer_size", [0, 3])
async def test_open_stream_adds_no_buffer_of_its_own(buffer_size: int, max_buffer_size: int, model: Model) -> None:
    """The ring's tokens, those of the channel, and the one token in transit between them."""

    def tokens_out() -> int:
        return context.statistics().tokens_out

    async with serving(model, n_ctx=512, n_seq_max=2) as context:
        expected = await of_a_fast_reader(model, 2, GREEDY)
        held = buffer_size + 1 + max_buffer_size
        opened = context.open_stream(PROMPT, config_of(buffer_size), max_buffer_size=max_buffer_size)
        async with opened as receive:
            await until(lambda: context.statistics().paused == 1 and tokens_out() == held)
            await context.generate("A dog", 50, ENDLESS)
            assert tokens_out() == held + 50
            assert plain([token async for token in receive]) == expected


@every_size
async def test_stream_into_waits_for_the_channel(buffer_size: int, model: Model) -> None:
    """Three streams into one channel that nobody reads: each fills its ring, and has one token in transit."""
    send, receive = anyio.create_memory_object_stream[TokenData]()
    async with serving(model, n_ctx=512, n_seq_max=4) as context, create_task_group() as tasks, receive:
        async with send:
            for i in range(3):
                tasks.start_soon(context.stream_into, send.clone(), f"{i} dogs", config_of(buffer_size))
        await until(
            lambda: context.statistics().paused == 3 and context.statistics().tokens_out == 3 * (buffer_size + 1)
        )
        await context.generate("A cat", 50, ENDLESS)
        assert context.statistics().tokens_out == 3 * (buffer_size + 1) + 50
        assert len([token async for token in receive]) == 3 * N_TOKENS


async def test_an_unbounded_channel_takes_all(model: Model) -> None:
    send, receive = anyio.create_memory_object_stream[TokenData](math.inf)
    async with serving(model, n_ctx=512, n_seq_max=1) as context, receive:
        completion = await context.stream_into(send, PROMPT, config_of(1))
        assert receive.statistics().current_buffer_used == len(completion.tokens) == N_TOKENS


# ---------------------------------------------------------------------------------------------------------- stream_delay_ms


async def test_a_delay_spaces_the_tokens_of_one_stream(model: Model) -> None:
    async with serving(model, n_ctx=512, n_seq_max=1) as context:
        config = StreamConfig(max_tokens=6, params=ENDLESS, timeout_ms=0, stream_delay_ms=30)
        completion = await context.generate(PROMPT, config)
        assert len(completion.tokens) == 6
        assert completion.timings.decode_ms >= 5 * 30


async def test_a_delay_does_not_hold_up_the_neighbours(model: Model) -> None:
    async with serving(model, n_ctx=512, n_seq_max=2) as context:
        config = config_of(32).replace(stream_delay_ms=A_DAY_MS)
        async with context.generate_stream(PROMPT, config) as delayed:
            first = await delayed.receive()
            assert len((await context.generate("A dog", 100, ENDLESS)).tokens) == 100
            statistics = delayed.statistics()
            assert (statistics.tokens_generated, statistics.current_buffer_used, statistics.paused) == (1, 0, False)
            assert context.statistics().busy == 1
        assert delayed.completion().finish_reason == "cancelled"
        assert delayed.completion().tokens == (first.token_id,)
