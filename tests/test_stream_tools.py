"""Stream tools: `map`, `take`, `collect`, `text` and chains of them, and `merge`, which joins several streams into one."""

from __future__ import annotations

import gc
import sys
from typing import Any

import anyio
import pytest
from anyio import CancelScope, EndOfStream, create_memory_object_stream, create_task_group
from anyio.abc import ObjectReceiveStream
from conftest import ENDLESS, assert_idle, until

from mullama import (
    AsyncContext,
    ChatStream,
    InvalidParameter,
    InvalidParameterType,
    SamplerParams,
    StreamConfig,
    StreamingError,
    TokenStream,
    merge,
)

PROMPT = "Once upon a time"
GREEDY = SamplerParams.greedy(ignore_eos=True)
A_DAY_MS = 24 * 60 * 60 * 1000

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

pytestmark = pytest.mark.anyio


class Mine(Exception):
    pass


def config(max_tokens: int | None = 12, params: SamplerParams = GREEDY, **changes: Any) -> StreamConfig:
    return StreamConfig(**{"max_tokens": max_tokens, "params": params, "timeout_ms": 0} | changes)


def endless(actx: AsyncContext, **changes: Any) -> TokenStream:
    return actx.generate_stream(PROMPT, config(None, ENDLESS, **changes))


async def free(actx: AsyncContext) -> None:
    """All slots are free, without another wait: ending the streams has waited for it."""
    await anyio.lowlevel.checkpoint()
    assert_idle(actx.context)


# ---------------------------------------------------------------------------------------------------------- chains


async def test_collect_and_text(actx: AsyncContext) -> None:
    async with actx.generate_stream(PROMPT, config()) as stream:
        first = await stream.receive()
        rest = await stream.collect()
        assert await stream.collect() == []
        assert await stream.text() == ""
    assert "".join([first, *rest]) == stream.completion().text
    async with actx.generate_stream(PROMPT, config()) as again:
        assert await again.text() == stream.completion().text


async def test_chains(actx: AsyncContext) -> None:
    expected = (await actx.generate(PROMPT, config())).tokens
    async with actx.generate_stream(PROMPT, config(buffer_size=4)) as stream:  # so it cannot have ended yet
        doubled = stream.map(lambda token: token.token_id).map(lambda i: 2 * i)
        assert isinstance(doubled, ObjectReceiveStream)
        assert await doubled.take(4).take(3).collect() == [2 * i for i in expected[:3]]
        assert stream.completion().finish_reason == "cancelled"
    async with actx.generate_stream(PROMPT, config()) as stream:
        assert await stream.take(5).map(len).next() is not None
    async with actx.generate_stream(PROMPT, config()) as stream:
        assert await stream.map(str.upper).text() == (await actx.generate(PROMPT, config())).text.upper()
    async with actx.generate_stream(PROMPT, config(3)) as stream, stream.take(10).map(repr) as some:
        assert len(await some.collect()) == 3
        assert await some.next() is None
        with pytest.raises(EndOfStream):
            await some.receive()
    await free(actx)


async def test_closing_a_chain_closes_its_source(actx: AsyncContext) -> None:
    for make in (lambda s: s.map(str), lambda s: s.take(9), lambda s: s.map(str).take(9).map(len)):
        stream = endless(actx)
        async with make(stream) as chain:  # type: ignore[no-untyped-call]
            await chain.receive()
        await free(actx)
        with pytest.raises(anyio.ClosedResourceError):
            await chain.receive()


async def test_dropping_a_chain_cancels(actx: AsyncContext) -> None:
    async for text in endless(actx).map(str).take(100):
        assert isinstance(text, str)
        break
    gc.collect()
    await until(lambda: actx.statistics().busy == 0)


async def test_a_function_that_fails_leaves_the_stream_as_it_is(actx: AsyncContext) -> None:
    def fail(_: object) -> None:
        raise Mine

    async with actx.generate_stream(PROMPT, config(4)) as stream:
        with pytest.raises(Mine):
            await stream.map(fail).receive()
        assert len(await stream.collect()) == 3


async def test_take_wants_a_number(actx: AsyncContext) -> None:
    async with endless(actx) as stream:
        with pytest.raises(InvalidParameter):
            stream.take(-1)
        for wrong in ("3", 1.5, None, True):
            with pytest.raises(InvalidParameterType):
                stream.take(wrong)  # type: ignore[arg-type]
        assert await stream.take(2).collect()


async def test_cancelled_while_it_waits_it_has_taken_nothing(actx: AsyncContext) -> None:
    expected = (await actx.generate(PROMPT, config(3))).tokens
    async with actx.generate_stream(PROMPT, config(3, stream_delay_ms=20)) as stream:
        taken = stream.map(lambda token: token.token_id).take(3)
        got: list[int] = []
        while len(got) < 3:
            with anyio.move_on_after(0.005):
                got.append(await taken.receive())
    assert tuple(got) == expected


# ---------------------------------------------------------------------------------------------------------- merge


async def test_all_of_all_streams(actx: AsyncContext) -> None:
    """Each in its own order, with its index, until all have ended."""
    lengths = [5, 40, 1, 20, 3]
    streams = [actx.generate_stream(f"{i} dogs", config(n, buffer_size=2)) for i, n in enumerate(lengths)]
    got: list[list[int]] = [[] for _ in lengths]
    async with merge(*streams) as merged:
        async for index, token in merged:
            got[index].append(token.token_id)
        with pytest.raises(EndOfStream):
            await merged.receive()
        await free(actx)
    assert [tuple(tokens) for tokens in got] == [stream.completion().tokens for stream in streams]
    assert [len(tokens) for tokens in got] == lengths


async def test_no_streams_at_all() -> None:
    async with merge() as merged:
        assert [item async for item in merged] == []


async def test_in_order_of_arrival() -> None:
    ends = [create_memory_object_stream[str](10) for _ in range(3)]
    async with merge(*(receive for _, receive in ends)) as merged:
        for index, text in ((2, "a"), (0, "b"), (2, "c"), (1, "d"), (1, "e")):
            await ends[index][0].send(text)
            assert await merged.receive() == (index, text)
        for send, _ in ends:
            await send.aclose()
        assert [item async for item in merged] == []


async def test_streams_of_all_kinds(actx: AsyncContext) -> None:
    send, receive = create_memory_object_stream[int](3)
    for i in range(3):
        await send.send(i)
    await send.aclose()
    tokens = actx.generate_stream(PROMPT, config(5))
    chat = actx.chat_stream([{"role": "user", "content": "Hello"}], config(5))
    mapped = actx.generate_stream(PROMPT, config(4)).map(len)
    assert isinstance(chat, ChatStream)
    counts = [0] * 4
    kinds: list[set[str]] = [set() for _ in counts]
    async with merge(tokens, chat, receive, mapped) as merged:
        async for index, item in merged:
            counts[index] += 1
            kinds[index].add(type(item).__name__)
    assert counts == [5, 5, 3, 4]
    assert kinds == [{"TokenData"}, {"ChatDelta"}, {"int"}, {"int"}]
    assert chat.chat_completion().completion.finish_reason == "length"


async def test_who_reads_slowly_slows_all_and_loses_nothing(actx: AsyncContext) -> None:
    streams = [actx.generate_stream(f"{i} dogs", config(30, buffer_size=2)) for i in range(3)]
    got: list[list[int]] = [[], [], []]
    async with merge(*streams) as merged:
        # two in the ring, one in transit
        await until(lambda: [stream.tokens_generated() for stream in streams] == [3, 3, 3])
        await until(lambda: actx.statistics().paused == 3)
        assert [stream.tokens_generated() for stream in streams] == [3, 3, 3]
        async for index, token in merged:
            got[index].append(token.token_id)
            if sum(map(len, got)) % 10 == 0:
                await until(lambda: actx.statistics().paused == 3 - sum(stream.is_finished() for stream in streams))
    assert [tuple(tokens) for tokens in got] == [stream.completion().tokens for stream in streams]


async def test_a_stream_that_says_nothing_holds_up_no_other(actx: AsyncContext) -> None:
    send, silent = create_memory_object_stream[str]()
    queued = [endless(actx, stream_delay_ms=A_DAY_MS) for _ in range(7)]  # these take all slots but one
    for stream in queued:
        await stream.receive()
    talking, waiting = actx.generate_stream(PROMPT, config(20)), actx.generate_stream(PROMPT, config(5))
    async with merge(silent, queued[0], talking, waiting) as merged:
        items = [await merged.receive() for _ in range(25)]
        assert [index for index, _ in items].count(2) == 20
        assert [index for index, _ in items].count(3) == 5
        await send.aclose()
    for stream in queued:
        await stream.aclose()
    await free(actx)


async def test_leaving_early_frees_all_slots(actx: AsyncContext) -> None:
    async with merge(*(endless(actx) for _ in range(12))) as merged:  # more than the slots
        async for index, _ in merged:
            if index == 5:
                break
    await free(actx)
    async with merge(endless(actx), endless(actx)):
        pass
    await free(actx)
    streams = [endless(actx), endless(actx)]
    async with merge(*streams) as merged:
        await merged.receive()
        await merged.aclose()
        await until(lambda: actx.statistics().busy == 0)
    assert {stream.completion().finish_reason for stream in streams} == {"cancelled"}


class Failing(ObjectReceiveStream[int]):
    """Yields two items and fails with an error that a sender also handles."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.left = 2
        self.closed = False

    async def receive(self) -> int:
        await anyio.lowlevel.checkpoint()
        if self.left == 0:
            raise self.error
        self.left -= 1
        return self.left

    async def aclose(self) -> None:
        self.closed = True


@pytest.mark.parametrize("error", [Mine(), anyio.BrokenResourceError(), anyio.ClosedResourceError(), OSError(5, "no")])
async def test_a_failure_comes_out_as_itself(error: Exception, actx: AsyncContext) -> None:
    failing, other = Failing(error), endless(actx)
    got: list[Any] = []
    with pytest.raises(type(error)) as caught:  # noqa: PT012
        async with merge(failing, other) as merged:
            async for index, item in merged:
                if index == 0:
                    got.append(item)
    assert caught.value is error
    assert got == [1, 0]  # items before it were delivered
    assert failing.closed
    assert other.completion().finish_reason == "cancelled"
    await free(actx)


async def test_streams_that_fail_together(actx: AsyncContext) -> None:
    """One of the failures is raised, not a group of them."""
    streams = [endless(actx, timeout_ms=1, stream_delay_ms=A_DAY_MS) for _ in range(6)]
    await until(lambda: all(stream.is_finished() for stream in streams))
    with pytest.raises(StreamingError) as caught:  # noqa: PT012
        async with merge(*streams) as merged:
            async for _ in merged:
                pass
    assert caught.value.code == "STREAM_TIMEOUT"
    await free(actx)


async def test_a_failure_while_the_body_does_something_else(actx: AsyncContext) -> None:
    error = Mine()
    with pytest.raises(Mine) as caught:  # noqa: PT012
        async with merge(Failing(error)) as merged:
            await merged.receive()
            await merged.receive()
            await anyio.sleep_forever()
    assert caught.value is error


async def test_an_exception_of_the_body_comes_out_as_itself(actx: AsyncContext) -> None:
    groups = [ExceptionGroup("mine", [ValueError()]), ExceptionGroup("mine", [ValueError(), OSError()])]
    for error in (Mine(), *groups, KeyError("a"), anyio.EndOfStream()):
        streams = [endless(actx), endless(actx)]
        with pytest.raises(type(error)) as caught:  # noqa: PT012
            async with merge(*streams) as merged:
                await merged.receive()
                raise error
        assert caught.value is error
        assert {stream.completion().finish_reason for stream in streams} == {"cancelled"}
        await free(actx)


async def test_cancelled_from_outside(actx: AsyncContext) -> None:
    for where in ("before", "reading", "elsewhere"):
        streams = [endless(actx), endless(actx, stream_delay_ms=A_DAY_MS)]
        with CancelScope() as scope:
            if where == "before":
                scope.cancel()
            async with merge(*streams) as merged, create_task_group() as tasks:
                for _ in range(20):
                    await merged.receive()
                tasks.start_soon(anyio.sleep_forever)
                scope.cancel()
                if where == "reading":
                    while True:
                        await merged.receive()
        assert scope.cancelled_caught
        assert {stream.completion().finish_reason for stream in streams} == {"cancelled"}
        await free(actx)


async def test_several_readers_and_merges_of_merges(actx: AsyncContext) -> None:
    streams = [actx.generate_stream(f"{i} dogs", config(20, buffer_size=2)) for i in range(4)]
    got: list[tuple[int, int]] = []

    async def read(clone: ObjectReceiveStream[Any]) -> None:
        async with clone:
            async for outer, (inner, token) in clone:
                got.append((2 * outer + inner, token.token_id))

    async with (
        merge(*streams[:2]) as left,
        merge(*streams[2:]) as right,
        merge(left, right) as merged,
        create_task_group() as tasks,
    ):
        tasks.start_soon(read, merged.clone())
        tasks.start_soon(read, merged.clone())
    for i, stream in enumerate(streams):
        assert sorted(token for index, token in got if index == i) == sorted(stream.completion().tokens)


async def test_what_is_no_stream(actx: AsyncContext) -> None:
    stream = endless(actx)
    for wrong in ([stream], None, "text"):
        with pytest.raises(InvalidParameterType):
            async with merge(stream, wrong):  # type: ignore[arg-type]
                pass
    await stream.receive()
    await stream.aclose()
