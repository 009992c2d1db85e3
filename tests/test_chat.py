"""Chats: answers, thoughts and tool calls, streamed, complete, cut off and cancelled, blocking and under every backend.

Where the exact words matter, a grammar forces the bundled model's output.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from chat_helpers import BACKENDS, GPT_OSS, HERMES, QWEN3, TEMPLATES, THOUGHT, USER, Read, asking, check, saying
from conftest import ENDLESS, assert_idle, until

from mullama import (
    AsyncContext,
    ChatCompletion,
    ChatError,
    ChatMessage,
    Context,
    SamplerParams,
    StreamConfig,
    StreamingError,
)


@pytest.fixture(params=BACKENDS, ids=str)
def ask(request: pytest.FixtureRequest, context: Context) -> Callable[..., Read]:
    return asking(request.param, context)


# ------------------------------------------------------------------------------ answers and thoughts


def test_an_answer(ask: Any) -> None:
    deltas, answer = ask([USER], 40, saying("It is sunny."))
    check(deltas, answer)
    assert answer.message == ChatMessage("It is sunny.")
    assert (answer.finish_reason, answer.completion.finish_reason) == ("stop", "stop")
    assert answer.completion.text == "It is sunny."


def test_a_thought_comes_apart_from_the_answer(ask: Any) -> None:
    deltas, answer = ask([USER], 60, saying(THOUGHT), template=QWEN3)
    check(deltas, answer)
    assert answer.message.reasoning_content.strip() == "It is summer."
    assert answer.message.content == "It is sunny, with 25 degrees."
    assert answer.completion.text == THOUGHT
    assert sum(bool(delta.reasoning_content) for delta in deltas) > 1, "as it comes, not in one piece"
    assert sum(bool(delta.content) for delta in deltas) > 1


@pytest.mark.parametrize("n", [1, 6, 20, 30])
def test_cut_off_it_keeps_what_was_parsed(ask: Any, n: int) -> None:
    _, whole = ask([USER], 100, saying(THOUGHT), template=QWEN3)
    deltas, answer = ask([USER], n, saying(THOUGHT), template=QWEN3)
    check(deltas, answer)
    assert (answer.finish_reason, len(deltas)) == ("length", n)
    assert whole.message.reasoning_content.startswith(answer.message.reasoning_content)
    assert whole.message.content.startswith(answer.message.content)
    assert n < 20 or answer.message.reasoning_content


@pytest.mark.parametrize(
    ("stop", "content"), [("summer", ""), (", with", "It is sunny"), ("degrees.", "It is sunny, with 25 ")]
)
def test_stop_strings(ask: Any, stop: str, content: str) -> None:
    config = StreamConfig(max_tokens=60, params=saying(THOUGHT), stop_sequences=[stop, "never"])
    deltas, answer = ask([USER], config, template=QWEN3)
    check(deltas, answer)
    assert (answer.finish_reason, answer.completion.stop_sequence) == ("stop", stop)
    assert answer.message.content == content
    assert answer.message.reasoning_content.strip() == ("It is" if stop == "summer" else "It is summer.")


def test_as_many_stop_strings_as_are_allowed(context: Context) -> None:
    laguna = TEMPLATES / "poolside-Laguna-XS.2.jinja"  # has its own
    own = [f"@{i}" for i in range(64)]
    config = StreamConfig(max_tokens=60, params=saying("Sunny.</assistant> and more"), stop_sequences=own)
    answer = context.chat([USER], config, template=laguna, thinking=False)
    assert answer.completion.stop_sequence == "</assistant>"
    assert "</assistant>" not in answer.completion.text


def test_log_probabilities(ask: Any) -> None:
    deltas, answer = ask([USER], StreamConfig(max_tokens=40, params=saying("It is sunny."), top_logprobs=3))
    assert [len(delta.token.top_logprobs) for delta in deltas] == [3] * len(deltas)
    assert [delta.token.logprob for delta in deltas] == list(answer.completion.logprobs)
    assert len(answer.completion.top_logprobs) == len(deltas)


@pytest.mark.parametrize("template", [None, "moonshotai-Kimi-K2", "Qwen-Qwen2.5-7B-Instruct", "Qwen3-Coder"])
def test_a_schema_binds_the_answer(context: Context, template: str | None) -> None:
    """Even if llama.cpp's handler of a template ignores schemas."""
    schema = {
        "type": "object",
        "properties": {"sky": {"enum": ["sunny", "rainy"]}},
        "required": ["sky"],
        "additionalProperties": False,
    }
    path = template and TEMPLATES / f"{template}.jinja"
    answer = context.chat([USER], 60, SamplerParams(json_schema=schema, seed=1), template=path)
    assert answer.finish_reason == "stop"
    assert json.loads(answer.message.content)["sky"] in ("sunny", "rainy")


# ------------------------------------------------------------------------------ failures and cancellation


def test_an_answer_that_cannot_be_parsed(context: Context) -> None:
    with context.chat_stream([USER], 60, ENDLESS) as neighbour:
        with context.chat_stream([USER], 60, saying("Plain text."), template=GPT_OSS) as stream:
            with pytest.raises(ChatError, match="cannot be parsed"):
                list(stream)
            with pytest.raises(ChatError, match="cannot be parsed"):
                stream.next()
        answer = stream.chat_completion()
        assert answer.finish_reason == "error"
        assert answer.completion.text == "Plain text."
        assert len(list(neighbour)) == 60


def test_the_tokens_come_before_the_failure(context: Context) -> None:
    with context.chat_stream([USER], 60, saying("Plain text."), template=GPT_OSS) as stream:
        deltas = [stream.next()]
        with pytest.raises(ChatError):  # noqa: PT012
            while True:
                deltas.append(next(stream))
    assert "".join(delta.token for delta in deltas) == "Plain text."
    assert tuple(delta.token.token_id for delta in deltas) == stream.completion().tokens


def test_broken_off(context: Context) -> None:
    for delta in context.chat_stream([USER], None, ENDLESS):
        assert delta.token.token_id >= 0
        break
    with context.chat_stream([USER], None, ENDLESS) as stream:
        next(stream)
        stream.cancel()
        rest = list(stream)
    answer = stream.chat_completion()
    assert answer.finish_reason == "cancelled"
    assert len(rest) <= 33
    assert_idle(context)
    with pytest.raises(StreamingError, match="timeout_ms"):
        context.chat([USER], StreamConfig(max_tokens=None, params=ENDLESS, timeout_ms=50))


@pytest.mark.anyio
async def test_cancelled_by_a_scope(actx: AsyncContext) -> None:
    with anyio.CancelScope() as scope:
        async with actx.chat_stream([USER], None, ENDLESS) as stream:
            async for _ in stream:
                scope.cancel()
    assert scope.cancelled_caught
    assert stream.chat_completion().finish_reason == "cancelled"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(actx.chat, [USER], StreamConfig(max_tokens=None, params=ENDLESS, timeout_ms=0))
        await until(lambda: actx.statistics().busy == 1)
        tasks.cancel_scope.cancel()
    assert_idle(actx.context)


@pytest.mark.anyio
async def test_many_at_once(actx: AsyncContext) -> None:
    answers: dict[int, ChatCompletion] = {}

    async def chat(i: int) -> None:
        template = (None, QWEN3, HERMES)[i % 3]
        answers[i] = await actx.chat([USER], 60, saying(f"Answer {i}."), template=template)

    async with anyio.create_task_group() as tasks:
        for i in range(12):
            tasks.start_soon(chat, i)
    assert [answers[i].message.content for i in range(12)] == [f"Answer {i}." for i in range(12)]
