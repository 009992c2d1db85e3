"""`open_stream` and `stream_into`: generations that feed real memory object streams, and how they end."""

from __future__ import annotations

import sys
from typing import Any

import anyio
import pytest
from anyio import CancelScope, ClosedResourceError, EndOfStream, create_task_group
from conftest import ENDLESS, serving, until

from mullama import (
    AsyncContext,
    Completion,
    InvalidParameter,
    Model,
    SamplerParams,
    StreamClosedError,
    StreamConfig,
    StreamingError,
    TokenData,
)

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

pytestmark = pytest.mark.anyio

PROMPT = "Once upon a time"
GREEDY = SamplerParams.greedy(ignore_eos=True)


def config(max_tokens: int | None = 12, params: SamplerParams = GREEDY, **changes: Any) -> StreamConfig:
    return StreamConfig(**{"max_tokens": max_tokens, "params": params, "timeout_ms": 0} | changes)


async def idle(context: AsyncContext) -> None:
    await until(lambda: context.statistics().busy == 0)


# ---------------------------------------------------------------------------------------------------------- stream_into


async def test_stream_into_closes_its_end_and_returns_the_completion(actx: AsyncContext) -> None:
    send, receive = anyio.create_memory_object_stream[TokenData](100)
    with receive:
        completion = await actx.stream_into(send, PROMPT, config())
        assert isinstance(completion, Completion)
        tokens = [token async for token in receive]
    assert [token.token_id for token in tokens] == list(completion.tokens)
    assert completion.finish_reason == "length"
    with pytest.raises(ClosedResourceError):
        send.send_nowait(tokens[0])


async def test_many_streams_into_one_channel(actx: AsyncContext) -> None:
    prompts = [f"{i} dogs" for i in range(12)]  # more than the slots
    alone = {prompt: (await actx.generate(prompt, config(20))).tokens for prompt in prompts}
    completions: dict[str, Completion] = {}

    async def work(send: Any, prompt: str) -> None:
        completions[prompt] = await actx.stream_into(send, prompt, config(20))

    send, receive = anyio.create_memory_object_stream[TokenData]()
    tokens: list[int] = []
    with receive:
        async with create_task_group() as tasks:
            with send:
                for prompt in prompts:
                    tasks.start_soon(work, send.clone(), prompt)
            tokens = [token.token_id async for token in receive]
    assert {prompt: completion.tokens for prompt, completion in completions.items()} == alone
    assert sorted(tokens) == sorted(token for one in alone.values() for token in one)


async def test_closing_the_receiving_end_cancels_all_who_send(actx: AsyncContext) -> None:
    reasons: list[str] = []

    async def work(send: Any, prompt: str) -> None:
        reasons.append((await actx.stream_into(send, prompt, config(None, ENDLESS))).finish_reason)

    send, receive = anyio.create_memory_object_stream[TokenData]()
    async with create_task_group() as tasks:
        with send:
            for i in range(4):
                tasks.start_soon(work, send.clone(), f"{i} dogs")
        for _ in range(10):
            await receive.receive()
        await receive.aclose()
    assert reasons == ["cancelled"] * 4
    assert actx.statistics().busy == 0


async def test_stream_into_raises_what_went_wrong_and_closes_its_end(actx: AsyncContext) -> None:
    send, receive = anyio.create_memory_object_stream[TokenData](100)
    with receive:
        with pytest.raises(StreamingError) as caught:
            await actx.stream_into(send, PROMPT, config(None, ENDLESS, timeout_ms=200, stream_delay_ms=1000))
        assert caught.value.code == "STREAM_TIMEOUT"
        assert len([token async for token in receive]) <= 1


async def test_stream_into_closes_its_end_also_when_it_cannot_start(actx: AsyncContext) -> None:
    send, receive = anyio.create_memory_object_stream[TokenData]()
    with receive:
        with pytest.raises(InvalidParameter):
            await actx.stream_into(send, "")
        with pytest.raises(EndOfStream):
            await receive.receive()


async def test_a_cancelled_stream_into_stops_generating_and_closes_its_end(actx: AsyncContext) -> None:
    send, receive = anyio.create_memory_object_stream[TokenData]()
    with receive:
        async with create_task_group() as tasks:
            tasks.start_soon(actx.stream_into, send, PROMPT, config(None, ENDLESS))
            await receive.receive()
            tasks.cancel_scope.cancel()
        assert actx.statistics().busy == 0
        with pytest.raises(EndOfStream):
            await receive.receive()


# ---------------------------------------------------------------------------------------------------------- open_stream


async def test_open_stream_gives_all_and_the_end(actx: AsyncContext) -> None:
    expected = (await actx.generate(PROMPT, config())).tokens
    async with actx.open_stream(PROMPT, config()) as receive:
        tokens = [token async for token in receive]
        assert [token.token_id for token in tokens] == list(expected)
        assert tokens[-1].is_final
        with pytest.raises(EndOfStream):
            await receive.receive()


async def test_several_readers_share_one_generation(actx: AsyncContext) -> None:
    expected = (await actx.generate(PROMPT, config(40))).tokens
    got: list[list[int]] = [[], [], []]

    async def read(clone: Any, mine: list[int]) -> None:
        async with clone:
            mine.extend([token.token_id async for token in clone])

    async with actx.open_stream(PROMPT, config(40)) as receive, create_task_group() as tasks:
        for mine in got:
            tasks.start_soon(read, receive.clone(), mine)
        await receive.aclose()  # the clones keep it open
    assert all(got)
    assert sorted(token for mine in got for token in mine) == sorted(expected)


async def test_a_second_reader_of_the_same_end_is_welcome(actx: AsyncContext) -> None:
    """Unlike a `TokenStream`, a memory object stream has no rule of one reader."""
    got: list[TokenData] = []

    async def read(receive: Any) -> None:
        got.extend([token async for token in receive])

    async with actx.open_stream(PROMPT, config(40)) as receive, create_task_group() as tasks:
        tasks.start_soon(read, receive)
        tasks.start_soon(read, receive)
    assert len(got) == 40


async def test_leaving_the_block_early_frees_the_slot(actx: AsyncContext) -> None:
    async with actx.open_stream(PROMPT, config(None, ENDLESS)) as receive:
        await receive.receive()
    assert actx.statistics().busy == 0
    with pytest.raises(ClosedResourceError):
        await receive.receive()


async def test_closing_the_receiving_end_frees_the_slot(actx: AsyncContext) -> None:
    async with actx.open_stream(PROMPT, config(None, ENDLESS)) as receive:
        await receive.receive()
        await receive.aclose()
        await idle(actx)


async def test_what_the_body_raises_comes_out_as_it_is(actx: AsyncContext) -> None:
    cause = KeyError("cause")
    with pytest.raises(ValueError, match="mine") as caught:  # noqa: PT012
        async with actx.open_stream(PROMPT, config(None, ENDLESS)) as receive:
            await receive.receive()
            raise ValueError("mine") from cause
    assert caught.value.__cause__ is cause
    assert actx.statistics().busy == 0


@pytest.mark.parametrize("n", [1, 2])
async def test_a_group_that_the_body_raises_comes_out_as_it_is(n: int, actx: AsyncContext) -> None:
    mine = ExceptionGroup("mine", [ValueError(str(i)) for i in range(n)])
    with pytest.raises(ExceptionGroup) as caught:
        async with actx.open_stream(PROMPT, config(None, ENDLESS)):
            raise mine
    # trio takes the group apart and rebuilds it.
    assert (caught.value.message, caught.value.exceptions) == (mine.message, mine.exceptions)


async def test_an_interrupt_in_the_body_comes_out_as_it_is(actx: AsyncContext) -> None:
    class Interrupt(BaseException):
        pass

    with pytest.raises(Interrupt):  # noqa: PT012
        async with actx.open_stream(PROMPT, config(None, ENDLESS)) as receive:
            await receive.receive()
            raise Interrupt
    assert actx.statistics().busy == 0


async def test_cancelling_the_block_from_outside(actx: AsyncContext) -> None:
    with CancelScope() as scope:
        async with actx.open_stream(PROMPT, config(None, ENDLESS)) as receive:
            async for _ in receive:
                scope.cancel()
    assert scope.cancelled_caught
    assert actx.statistics().busy == 0


async def test_a_failure_ends_the_stream_and_is_raised_at_the_end_of_the_block(model: Model) -> None:
    async with await AsyncContext.create(model, n_ctx=512, n_seq_max=1) as context:
        ended = False
        with pytest.raises(StreamClosedError):  # noqa: PT012
            async with context.open_stream(PROMPT, config(None, ENDLESS, buffer_size=4)) as receive:
                await until(lambda: context.statistics().paused == 1 and context.statistics().tokens_out == 5)
                await context.aclose()
                assert len([token async for token in receive]) == 5  # those before it, in the ring and in transit
                ended = True
        assert ended


async def test_a_time_out_is_raised_at_the_end_of_the_block(actx: AsyncContext) -> None:
    with pytest.raises(StreamingError) as caught:  # noqa: PT012
        async with actx.open_stream(PROMPT, config(None, ENDLESS, timeout_ms=50)) as receive:
            async for _ in receive:
                pass
    assert caught.value.code == "STREAM_TIMEOUT"


async def test_what_the_body_raises_goes_before_a_failure(actx: AsyncContext) -> None:
    with pytest.raises(LookupError):  # noqa: PT012
        async with actx.open_stream(PROMPT, config(None, ENDLESS, timeout_ms=50)) as receive:
            async for _ in receive:
                pass
            raise LookupError


async def test_bad_arguments_are_refused_at_the_beginning_of_the_block(actx: AsyncContext) -> None:
    for prompt, size in (("", 0), (PROMPT, -1), (PROMPT, "3")):
        with pytest.raises(ValueError):
            async with actx.open_stream(prompt, config(), max_buffer_size=size):  # type: ignore[arg-type]
                pytest.fail("the block was entered")
    assert actx.statistics().busy == 0


async def test_blocks_within_blocks(model: Model) -> None:
    async with serving(model, n_ctx=512, n_seq_max=2) as context:
        async with context.open_stream("A dog", config(30)) as outer, context.open_stream("A cat", config(30)) as inner:
            pairs = [(await outer.receive(), await inner.receive()) for _ in range(30)]
        assert [dog.token_id for dog, _ in pairs] == list((await context.generate("A dog", config(30))).tokens)
        assert [cat.token_id for _, cat in pairs] == list((await context.generate("A cat", config(30))).tokens)
