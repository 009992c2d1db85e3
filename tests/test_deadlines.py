"""`timeout_ms` in every state of a stream: queued, reading its prompt, generating, paused by its reader or by a delay."""

from __future__ import annotations

import time
from typing import Any

import anyio
import pytest
from anyio import EndOfStream, create_task_group, fail_after
from conftest import assert_idle, serving, until
from endless import FOREVER_MS, LIMIT, PROMPT, alone, config, long_prompt

from mullama import AsyncContext, Context, Model, StreamingError, TokenStream

pytestmark = pytest.mark.anyio


async def expires(stream: TokenStream) -> list[int]:
    """Read to the deadline: the tokens come first, then the error, then the same error again."""
    tokens = []
    with fail_after(LIMIT):
        with pytest.raises(StreamingError, match="timeout_ms=") as caught:  # noqa: PT012
            while True:
                tokens.append((await stream.receive()).token_id)
        assert caught.value.code == "STREAM_TIMEOUT"
        for read in (stream.receive, stream.next):
            with pytest.raises(StreamingError) as again:
                await read()
            assert again.value.code == "STREAM_TIMEOUT"
        with pytest.raises(StreamingError):
            stream.receive_nowait()
    completion = stream.completion()
    assert completion.finish_reason == "timeout"
    assert list(completion.tokens) == tokens
    assert completion.stop_sequence is None
    return tokens


async def test_while_queued(model: Model) -> None:
    async with (
        serving(model, n_ctx=1024, n_seq_max=1) as context,
        context.generate_stream(PROMPT, config(buffer_size=1)) as blocker,
    ):
        await until(lambda: blocker.statistics().paused)
        began = time.monotonic()
        streams = [context.generate_stream(PROMPT, config(timeout_ms=ms)) for ms in (60, 30, FOREVER_MS)]
        for stream in streams[:2]:
            assert await expires(stream) == []
        assert time.monotonic() - began >= 0.06
        timings = streams[0].completion().timings
        assert timings.queue_ms >= 60
        assert (timings.prefill_ms, timings.decode_ms) == (0, 0)
        assert context.statistics().queued == 1
        streams[2].close()
        assert not blocker.is_finished()


async def test_in_a_prompt(model: Model) -> None:
    """The engine itself interrupts the prompt; nobody calls it at that moment."""
    async with serving(model, n_ctx=2304, n_seq_max=1, n_ubatch=16) as context:
        for ms in (10, 20, 40, 80, 160, 320, 640):
            before = context.statistics().tokens_in
            stream = context.generate_stream(long_prompt(model), config(1, timeout_ms=ms))
            try:
                assert await expires(stream) == []
            except BaseException:
                if stream.is_finished() and stream.completion().finish_reason == "length":
                    continue  # too late
                raise
            assert_idle(context.context)
            if 0 < context.statistics().tokens_in - before < 2000:
                break
        else:
            pytest.fail("the deadline never came while the prompt was read")
        assert stream.completion().timings.prefill_ms > 0


async def test_while_decoding(model: Model) -> None:
    async with serving(model, n_ctx=4096, n_seq_max=2) as context:
        for ms in (100, 200, 400, 800, 1600):
            began = time.monotonic()
            async with context.generate_stream(PROMPT, config(4000, timeout_ms=ms, buffer_size=4096)) as stream:
                tokens = await expires(stream)
                assert time.monotonic() - began >= ms / 1000
                if tokens:
                    break
        assert len(tokens) >= 1
        assert stream.tokens_generated() == len(tokens)


async def test_while_paused(model: Model) -> None:
    """Ready tokens are delivered first, however late."""
    async with serving(model, n_ctx=1024, n_seq_max=1) as context:
        for ms in (250, 1000, 4000, 16000):
            stream = context.generate_stream(PROMPT, config(timeout_ms=ms, buffer_size=4))
            await until(lambda stream=stream: stream.statistics().paused or stream.is_finished())
            was_paused = stream.statistics().paused
            await until(stream.is_finished)
            assert_idle(context.context)  # this does not need the reader
            if was_paused:
                break
        assert stream.statistics().current_buffer_used == 4
        assert len(await expires(stream)) == 4


async def test_while_delayed(model: Model) -> None:
    """The deadline does not wait until the next token is due."""
    async with serving(model, n_ctx=1024, n_seq_max=1) as context:
        for ms in (100, 400, 1600, 6400):
            began = time.monotonic()
            stream = context.generate_stream(PROMPT, config(timeout_ms=ms, stream_delay_ms=FOREVER_MS))
            tokens = await expires(stream)
            assert time.monotonic() - began >= ms / 1000
            if tokens:
                break
        assert len(tokens) == 1


async def test_a_delay_within_the_deadline(model: Model) -> None:
    """Tokens are at least the delay apart, and the engine does not forget a stream that is due."""
    async with serving(model, n_ctx=1024, n_seq_max=8) as context:
        began = time.monotonic()
        streams = [
            context.generate_stream(PROMPT, config(40, timeout_ms=FOREVER_MS, stream_delay_ms=i % 4)) for i in range(8)
        ]
        with fail_after(LIMIT):
            async with create_task_group() as tasks:
                for stream in streams:
                    tasks.start_soon(stream.collect)
        assert time.monotonic() - began >= 39 * 0.003
        for i, stream in enumerate(streams):
            completion = stream.completion()
            assert (completion.finish_reason, len(completion.tokens)) == ("length", 40)
            assert completion.timings.decode_ms >= 39 * (i % 4)


async def test_zero_is_none(model: Model) -> None:
    async with (
        serving(model, n_ctx=1024, n_seq_max=1) as context,
        context.generate_stream(PROMPT, config(timeout_ms=400, buffer_size=1)) as blocker,
        context.generate_stream(PROMPT, config(10, timeout_ms=0)) as stream,
    ):
        await until(blocker.is_finished)
        with fail_after(LIMIT):
            assert len(await stream.collect()) == 10
        completion = stream.completion()
        assert completion.finish_reason == "length"
        assert completion.timings.queue_ms + completion.timings.prefill_ms + completion.timings.decode_ms >= 1


async def test_a_stream_that_has_ended_does_not_expire(model: Model) -> None:
    async with serving(model, n_ctx=1024, n_seq_max=1) as context:
        for ms in (300, 1200, 4800, 19200):
            stream = context.generate_stream(PROMPT, config(5, timeout_ms=ms))
            await until(stream.is_finished)
            if stream.completion().finish_reason == "length":
                break
        await anyio.sleep(ms / 1000)  # the deadline must pass
        assert len(await stream.collect()) == 5
        with pytest.raises(EndOfStream):
            await stream.receive()
        assert stream.completion().finish_reason == "length"


async def test_neighbours_do_not_notice(model: Model) -> None:
    """Deadlines of other streams pass in prompts, between tokens, in pauses and in the queue."""
    # without reuse, because a cached prefix changes the last bits of a probability
    async with serving(model, n_ctx=2304, n_seq_max=4, n_ubatch=64, reuse_prefix=False) as context:
        neighbour = context.generate_stream(PROMPT, config(200, buffer_size=2))

        async def expire(kind: int) -> None:
            fields = [
                {"prompt": long_prompt(model)},
                {"prompt": PROMPT, "buffer_size": 512},
                {"prompt": PROMPT, "buffer_size": 1},
                {"prompt": PROMPT, "stream_delay_ms": FOREVER_MS},
            ][kind]
            prompt: Any = fields.pop("prompt")
            for ms in (20, 50, 80):
                async with context.generate_stream(prompt, config(None, timeout_ms=ms, **fields)) as stream:  # type: ignore[arg-type]
                    await until(stream.is_finished)
                    assert stream.completion().finish_reason in ("timeout", "length")

        with fail_after(LIMIT):
            async with create_task_group() as tasks:
                for i in range(8):
                    tasks.start_soon(expire, i % 4)
                tokens = [token.token_id for token in await neighbour.collect()]
        assert tokens == alone(model, PROMPT, 200)


async def test_through_generate_and_the_two_memory_object_streams(model: Model) -> None:
    async with (
        serving(model, n_ctx=1024, n_seq_max=1) as context,
        context.generate_stream(PROMPT, config(buffer_size=1)) as blocker,
    ):
        await until(lambda: blocker.statistics().paused)
        soon = config(timeout_ms=20)
        with fail_after(LIMIT):
            with pytest.raises(StreamingError) as caught:
                await context.generate(PROMPT, soon)
            assert caught.value.code == "STREAM_TIMEOUT"
            with pytest.raises(StreamingError) as caught:  # noqa: PT012
                async with context.open_stream(PROMPT, soon) as receive:
                    with pytest.raises(EndOfStream):
                        await receive.receive()
            assert caught.value.code == "STREAM_TIMEOUT"
            send, receive = anyio.create_memory_object_stream[Any](0)
            with receive, pytest.raises(StreamingError) as caught:
                await context.stream_into(send, PROMPT, soon)
            assert caught.value.code == "STREAM_TIMEOUT"
        assert context.statistics().queued == 0


def test_in_threads(model: Model, context: Context) -> None:
    """The same without an event loop: tokens first, then the error, and again."""
    for ms in (250, 1000, 4000, 16000):
        stream = context.generate_stream(PROMPT, config(timeout_ms=ms, buffer_size=4))
        tokens = []
        with pytest.raises(StreamingError) as caught:  # noqa: PT012
            while True:
                while not stream.is_finished() and not tokens:
                    time.sleep(0.001)
                tokens.append(next(stream))
        assert caught.value.code == "STREAM_TIMEOUT"
        with pytest.raises(StreamingError):
            stream.try_next()
        completion = stream.completion()
        assert (completion.finish_reason, list(completion.tokens)) == ("timeout", [t.token_id for t in tokens])
        if len(tokens) == 4:
            break
    assert len(tokens) == 4
    began = time.monotonic()
    with pytest.raises(StreamingError):
        context.generate(PROMPT, config(timeout_ms=100, stream_delay_ms=FOREVER_MS))
    assert time.monotonic() - began >= 0.1


async def test_an_asynchronous_context_and_a_deadline_that_is_never_reached(actx: AsyncContext) -> None:
    completion = await actx.generate(PROMPT, config(10, timeout_ms=FOREVER_MS))
    assert (completion.finish_reason, len(completion.tokens)) == ("length", 10)
