"""`Context` and `TokenIterator` in plain synchronous code: iterating, closing, callbacks."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from conftest import ENDLESS, assert_idle, wait_until

from mullama import (
    ClosedError,
    Completion,
    Context,
    InvalidParameterType,
    Model,
    SamplerParams,
    StreamConfig,
    StreamControl,
    StreamingError,
    TokenData,
)

PROMPT = "Once upon a time"
GREEDY = SamplerParams.greedy(ignore_eos=True)
A_DAY_MS = 24 * 60 * 60 * 1000


def config(max_tokens: int | None = 12, params: SamplerParams = GREEDY, **changes: Any) -> StreamConfig:
    return StreamConfig(**{"max_tokens": max_tokens, "params": params, "timeout_ms": 0} | changes)


ONE_TOKEN_A_DAY = config(None, ENDLESS, stream_delay_ms=A_DAY_MS)


def idle(context: Context) -> None:
    wait_until(lambda: context.statistics().busy == 0)


# ---------------------------------------------------------------------------------------------------------- iterating


def test_tokens_come_while_it_still_generates(context: Context) -> None:
    stream = context.generate_stream(PROMPT, config(None, ENDLESS, buffer_size=2))
    for n, token in enumerate(stream, 1):
        assert isinstance(token, TokenData)
        assert not stream.is_finished()
        assert stream.tokens_generated() <= n + 2
        if n == 20:
            break
    stream.close()


def test_it_iterates_to_the_end_and_stays_there(context: Context) -> None:
    stream = context.generate_stream(PROMPT, config())
    tokens = list(stream)
    assert [token.is_final for token in tokens] == [False] * 11 + [True]
    assert list(stream) == []
    assert stream.next() is None
    assert stream.try_next() is None
    completion = stream.completion()
    assert completion.tokens == tuple(token.token_id for token in tokens)
    assert completion.text == "".join(tokens)
    assert completion.finish_reason == "length"


def test_next_and_try_next(context: Context) -> None:
    with context.generate_stream(PROMPT, ONE_TOKEN_A_DAY) as stream:
        assert isinstance(stream.next(), TokenData)
        assert stream.try_next() is None
        assert not stream.is_finished()
    with context.generate_stream(PROMPT, config(2)) as stream:
        wait_until(stream.is_finished)
        assert [type(stream.try_next()) for _ in range(3)] == [TokenData, TokenData, type(None)]


def test_leaving_the_loop_drops_the_stream_and_that_cancels_it(context: Context) -> None:
    for token in context.generate_stream(PROMPT, config(None, ENDLESS)):
        assert token is not None
        break
    idle(context)


def test_close_throws_away_what_was_not_read(context: Context) -> None:
    stream = context.generate_stream(PROMPT, config(None, ENDLESS))
    next(stream)
    stream.close()
    assert_idle(context)
    stream.close()
    for read in (stream.next, stream.try_next, lambda: next(stream), lambda: list(stream)):
        with pytest.raises(ClosedError):
            read()
    assert stream.completion().finish_reason == "cancelled"
    assert stream.statistics().current_buffer_used == 0


def test_with_waits_until_the_slot_is_free(context: Context) -> None:
    for _ in range(20):
        with context.generate_stream(PROMPT, config(None, ENDLESS)) as stream:
            next(stream)
        assert stream.is_finished()
        assert_idle(context)


def test_what_the_block_raises_comes_out(context: Context) -> None:
    with pytest.raises(ZeroDivisionError), context.generate_stream(PROMPT, config(None, ENDLESS)) as stream:  # noqa: PT012
        next(stream)
        1 / 0  # noqa: B018
    assert_idle(context)


def test_cancel_leaves_what_was_generated(context: Context) -> None:
    with context.generate_stream(PROMPT, config(None, ENDLESS, buffer_size=4)) as stream:
        wait_until(lambda: stream.statistics().paused)
        stream.cancel()
        assert len(list(stream)) == 4
        assert stream.completion().finish_reason == "cancelled"


def test_a_time_out_is_raised_after_the_tokens(context: Context) -> None:
    stream = context.generate_stream(PROMPT, config(None, ENDLESS, timeout_ms=300, buffer_size=1))
    wait_until(stream.is_finished)
    for _ in range(2):
        with pytest.raises(StreamingError) as caught:
            list(stream)
        assert caught.value.code == "STREAM_TIMEOUT"
    assert stream.completion().finish_reason == "timeout"
    assert len(stream.completion().tokens) <= 1


def test_generate(context: Context) -> None:
    completion = context.generate(PROMPT, 5, GREEDY)
    assert (len(completion.tokens), completion.finish_reason) == (5, "length")
    assert context.generate(PROMPT, config(5)).tokens == completion.tokens
    assert context.generate(PROMPT, config=config(5)).text == completion.text == str(completion)


def test_a_closed_context_ends_its_streams_and_starts_no_more(model: Model) -> None:
    with Context(model, n_ctx=256, n_seq_max=1, n_threads=2) as context:
        running = context.generate_stream(PROMPT, config(None, ENDLESS, buffer_size=3))
        queued = context.generate_stream(PROMPT, config(None, ENDLESS))
        wait_until(lambda: running.statistics().paused)
    context.close()
    assert [next(running).is_final for _ in range(3)] == [False] * 3
    for stream in (running, queued):
        with pytest.raises(ClosedError):
            next(stream)
        assert stream.completion().finish_reason == "error"
        stream.close()
    for call in (context.generate, context.generate_stream):
        with pytest.raises(ClosedError):
            call(PROMPT)
    with pytest.raises(ClosedError):
        context.clear_cache()


# ---------------------------------------------------------------------------------------------------------- callbacks


@pytest.mark.parametrize("answer", [True, None, StreamControl.CONTINUE])
def test_a_callback_that_says_go_on_gets_all(answer: bool | StreamControl | None, context: Context) -> None:
    got: list[TokenData] = []
    here = threading.current_thread()

    def callback(token: TokenData) -> bool | StreamControl | None:
        assert threading.current_thread() is here
        got.append(token)
        return answer

    completion = context.generate_streaming(PROMPT, 12, callback, GREEDY)
    assert isinstance(completion, Completion)
    assert completion.finish_reason == "length"
    assert completion.tokens == tuple(token.token_id for token in got)
    assert len(got) == 12


@pytest.mark.parametrize("answer", [False, StreamControl.STOP])
def test_a_callback_that_says_stop_gets_no_more(answer: bool | StreamControl, context: Context) -> None:
    got: list[TokenData] = []

    def callback(token: TokenData) -> bool | StreamControl:
        got.append(token)
        return answer if len(got) == 5 else True

    completion = context.generate_streaming(PROMPT, callback=callback, config=config(None, ENDLESS))
    assert len(got) == 5
    assert completion.finish_reason == "cancelled"
    assert completion.tokens[:5] == tuple(token.token_id for token in got)
    assert_idle(context)


def test_what_a_callback_raises_comes_out_unchanged(context: Context) -> None:
    mine = LookupError("mine")

    def callback(token: TokenData) -> None:
        raise mine

    with pytest.raises(LookupError) as caught:
        context.generate_streaming(PROMPT, None, callback)
    assert caught.value is mine
    assert_idle(context)


def test_what_a_callback_returns_is_checked(context: Context) -> None:
    with pytest.raises(InvalidParameterType, match="answer"):
        context.generate_streaming(PROMPT, None, lambda token: "yes")  # type: ignore[arg-type, return-value]
    with pytest.raises(InvalidParameterType, match="callback"):
        context.generate_streaming(PROMPT, None)
    assert_idle(context)


def test_a_callback_may_generate_too(context: Context) -> None:
    texts: list[str] = []
    context.generate_streaming(PROMPT, 3, lambda token: texts.append(context.generate(PROMPT, 3, GREEDY).text), GREEDY)
    assert len(texts) == 3
    assert len(set(texts)) == 1
