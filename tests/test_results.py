"""The result of every generation: why it ended, and an error that carries the text generated so far."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from chat_helpers import GPT_OSS, USER, WEATHER, saying
from conftest import ENDLESS, assert_idle, serving, until, wait_until

from mullama import (
    AsyncContext,
    ChatCompletion,
    ChatError,
    ChatMessage,
    ClosedError,
    Completion,
    Context,
    ContextError,
    Model,
    SamplerParams,
    StreamClosedError,
    StreamConfig,
    StreamingError,
    StreamTimeoutError,
    TokenData,
)

PROMPT = "Once upon a time"
GREEDY = SamplerParams.greedy(ignore_eos=True)


def slow(timeout_ms: int) -> StreamConfig:
    """Reaches its time limit before its context is full."""
    return StreamConfig(max_tokens=None, params=ENDLESS, stream_delay_ms=5, timeout_ms=timeout_ms)


def after_tokens(call: Callable[[StreamConfig], object]) -> StreamTimeoutError:
    """The timeout error of a call, with a limit that allows some tokens on this machine."""
    for timeout_ms in (100, 400, 1600, 6400, 25600):
        with pytest.raises(StreamTimeoutError) as caught:
            call(slow(timeout_ms))
        completion = caught.value.completion
        assert completion is not None
        assert completion.finish_reason == "timeout"
        if completion.usage.completion_tokens > 1:
            return caught.value
    pytest.fail("it never came to a token")


async def after_tokens_async(call: Callable[[StreamConfig], Awaitable[object]]) -> StreamTimeoutError:
    for timeout_ms in (100, 400, 1600, 6400, 25600):
        with pytest.raises(StreamTimeoutError) as caught:
            await call(slow(timeout_ms))
        if caught.value.completion is not None and caught.value.completion.usage.completion_tokens > 1:
            return caught.value
    pytest.fail("it never came to a token")


def check(error: StreamTimeoutError, kind: type[Completion] | type[ChatCompletion] = Completion) -> None:
    assert isinstance(error, TimeoutError)
    assert isinstance(error, StreamingError)
    assert error.code == "STREAM_TIMEOUT"
    assert "timeout_ms" in str(error)
    completion: Any = error.completion
    assert type(completion) is kind
    assert len(completion.text) > 1
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(other) is StreamTimeoutError
        assert other.completion == completion
        assert str(other) == str(error)


# ------------------------------------------------------------------------------ a timeout


def test_a_timeout_loses_no_text(context: Context) -> None:
    read: list[TokenData] = []

    def callback(token: TokenData) -> None:
        read.append(token)

    def streaming(config: StreamConfig) -> None:
        read.clear()
        context.generate_streaming(PROMPT, config, callback)

    check(after_tokens(lambda config: context.generate(PROMPT, config)))
    check(after_tokens(lambda config: context.chat([USER], config)), ChatCompletion)
    check(after_tokens(lambda config: context.generate_many(PROMPT, 2, config)))
    error = after_tokens(streaming)
    check(error)
    assert isinstance(error.completion, Completion)
    assert error.completion.tokens == tuple(token.token_id for token in read)
    assert error.completion.text.startswith("".join(read))


@pytest.mark.anyio
async def test_a_timeout_loses_no_text_async(actx: AsyncContext) -> None:
    async def callback(token: TokenData) -> None:
        pass

    check(await after_tokens_async(lambda config: actx.generate(PROMPT, config)))
    check(await after_tokens_async(lambda config: actx.generate_streaming(PROMPT, config, callback)))
    check(await after_tokens_async(lambda config: actx.generate_stream(PROMPT, config).collect()))
    check(await after_tokens_async(lambda config: actx.generate_stream(PROMPT, config).text()))
    check(await after_tokens_async(lambda config: actx.chat([USER], config)), ChatCompletion)
    check(await after_tokens_async(lambda config: actx.chat_stream([USER], config).text()), ChatCompletion)


def test_it_is_caught_as_pythons_own(context: Context) -> None:
    with pytest.raises(TimeoutError):
        context.generate(PROMPT, slow(50))
    assert_idle(context)


# ------------------------------------------------------------------------------ other failures


def test_a_context_that_is_closed_meanwhile(model: Model) -> None:
    context = Context(model, n_ctx=512, n_threads=2)
    stream = context.generate_stream(PROMPT, 8, GREEDY)
    wait_until(stream.is_finished)
    endless = context.generate_stream(PROMPT, StreamConfig(max_tokens=None, params=ENDLESS, timeout_ms=0))
    wait_until(lambda: endless.statistics().paused)
    context.close()
    read: list[TokenData] = []
    with pytest.raises(ClosedError) as caught:  # noqa: PT012
        for token in endless:
            read.append(token)  # noqa: PERF402
    assert isinstance(caught.value.completion, Completion)
    assert caught.value.completion.tokens == tuple(token.token_id for token in read)
    assert caught.value.completion.finish_reason == "error"
    assert len(read) == 32
    assert len(list(stream)) == 8, "it had ended before"


@pytest.mark.anyio
async def test_a_context_that_is_closed_meanwhile_async(model: Model) -> None:
    async with await AsyncContext.create(model, n_ctx=512, n_threads=2) as context:
        stream = context.generate_stream(PROMPT, StreamConfig(max_tokens=None, params=ENDLESS, timeout_ms=0))
        await until(lambda: stream.statistics().paused)
    with pytest.raises(StreamClosedError) as caught:
        await stream.collect()
    assert isinstance(caught.value.completion, Completion)
    assert len(caught.value.completion.tokens) == 32


def test_an_answer_that_cannot_be_parsed(context: Context) -> None:
    with pytest.raises(ChatError, match="cannot be parsed") as caught:
        context.chat([USER], 60, saying("Plain text."), template=GPT_OSS)
    answer = caught.value.completion
    assert isinstance(answer, ChatCompletion)
    assert (answer.finish_reason, answer.completion.text) == ("error", "Plain text.")


def test_what_is_refused_has_no_completion(context: Context) -> None:
    with pytest.raises(ContextError) as caught:
        context.generate([1] * 2000)
    assert caught.value.completion is None


# ------------------------------------------------------------------------------ why it ended


def test_an_end_says_what_it_was(model: Model) -> None:
    end = next(token for token in range(model.n_vocab) if model.token_is_eog(token))
    with Context(model, n_ctx=256, n_seq_max=1, n_threads=2) as context:
        text = context.generate(PROMPT, 12, GREEDY).text
        for given, reason, detail in (
            (StreamConfig(max_tokens=5, params=GREEDY), "length", "max_tokens"),
            (StreamConfig(max_tokens=None, params=GREEDY), "length", "context_full"),
            (StreamConfig(max_tokens=5000, params=GREEDY), "length", "context_full"),
            (StreamConfig(params=SamplerParams.greedy(logit_bias={end: 1000.0})), "stop", "end_token"),
            (StreamConfig(params=GREEDY, stop_sequences=[text[8:11]]), "stop", "stop_sequence"),
        ):
            completion = context.generate(PROMPT, given)
            assert (completion.finish_reason, completion.finish_detail) == (reason, detail)


def test_where_both_limits_are_reached_at_once(model: Model) -> None:
    """The error names the requested limit."""
    with Context(model, n_ctx=256, n_seq_max=1, n_threads=2) as context:
        assert context.generate([1] * 250, None, GREEDY).finish_detail == "context_full"
        room = len(context.generate([1] * 250, None, GREEDY).tokens)
        for n, detail in ((room - 1, "max_tokens"), (room, "max_tokens"), (room + 1, "context_full")):
            completion = context.generate([1] * 250, n, GREEDY)
            assert (len(completion.tokens), completion.finish_detail) == (min(n, room), detail)


@pytest.mark.anyio
async def test_other_ends_need_no_detail(model: Model) -> None:
    async with serving(model, n_ctx=512) as context:
        async with context.generate_stream(PROMPT, None, ENDLESS) as stream:
            await stream.receive()
            stream.cancel()
        completion = stream.completion()
    assert (completion.finish_reason, completion.finish_detail) == ("cancelled", None)


# ------------------------------------------------------------------------------ repr


def test_a_repr_is_a_short_line(context: Context) -> None:
    config = StreamConfig(max_tokens=200, params=GREEDY, top_logprobs=5)
    completion = context.generate(PROMPT, config)
    shown = repr(completion)
    assert shown.startswith(f"<mullama.Completion {completion.text[:8]!r}"[:-1])
    assert "tokens=200, finish_reason='length', finish_detail='max_tokens'" in shown
    answer = context.chat([USER], config)
    assert repr(answer).startswith(f"<mullama.ChatCompletion <mullama.ChatMessage {answer.text[:8]!r}"[:-1])
    assert f"finish_reason={answer.finish_reason!r}" in repr(answer)
    called = context.chat([USER], 120, SamplerParams.greedy(), tools=[WEATHER], tool_choice="required")
    assert repr(called.message) == "<mullama.ChatMessage '', tool_calls=['get_weather']>"
    thought = ChatMessage("It is sunny.", "Long " * 100)
    assert "reasoning_content='Long Long" in repr(thought)
    everything = (completion, answer, called, thought, completion.usage, completion.timings)
    for one in (*everything, *called.message.tool_calls, context.statistics()):
        assert "\n" not in repr(one)
        assert len(repr(one)) < 220


def test_an_answer_has_what_its_completion_has(context: Context) -> None:
    answer = context.chat([USER], 12, GREEDY)
    assert (answer.text, answer.usage, answer.timings) == (
        str(answer),
        answer.completion.usage,
        answer.completion.timings,
    )
