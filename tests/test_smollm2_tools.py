"""Tools with real weights whose template has no tools: a call that matches its schema, or a `ChatError` that says why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from chat_helpers import BACKENDS, TIME, USER, WEATHER, Read, asking, check, valid

from mullama import ChatError, Context, SamplerParams

pytestmark = pytest.mark.weights

TOOLS = [WEATHER, TIME]
GREEDY = SamplerParams.greedy()


@pytest.fixture(params=BACKENDS, ids=str)
def ask(request: pytest.FixtureRequest, smollm2_context: Context) -> Callable[..., Read]:
    return asking(request.param, smollm2_context)


def read(ask: Any, *args: Any, **options: Any) -> Read | None:
    """An answer to a request with tools; None if it was refused, with an error that must name the tools as the reason."""
    try:
        deltas, answer = ask(*args, **options)
    except ChatError as error:
        assert "tools" in str(error)  # noqa: PT017
        return None
    check(deltas, answer)
    return deltas, answer


@pytest.mark.parametrize("choice", ["required", "get_weather", "get_time"])
def test_a_call_is_the_only_end(ask: Any, choice: str) -> None:
    found = read(ask, [USER], 120, GREEDY, tools=TOOLS, tool_choice=choice)
    if found is None:
        return
    _, answer = found
    (call,) = answer.message.tool_calls
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content == ""
    assert valid(call)
    assert choice in ("required", call.name)


@pytest.mark.parametrize("seed", range(3))
def test_a_call_is_the_only_end_however_it_is_sampled(smollm2_context: Context, seed: int) -> None:
    hot = SamplerParams(temperature=1.5, seed=seed)
    found = read(asking("blocking", smollm2_context), [USER], 120, hot, tools=TOOLS, tool_choice="required")
    if found is not None:
        (call,) = found[1].message.tool_calls
        assert valid(call)


def test_what_the_model_decides(smollm2_context: Context) -> None:
    found = read(asking("blocking", smollm2_context), [USER], 120, GREEDY, tools=TOOLS)
    if found is not None and found[1].finish_reason != "length":
        calls = found[1].message.tool_calls
        assert found[1].finish_reason == ("tool_calls" if calls else "stop")
        assert all(map(valid, calls))


def test_none_of_them(ask: Any) -> None:
    """Then the prompt is that of a chat without tools, whatever the template supports."""
    deltas, answer = ask([USER], 12, GREEDY, tools=TOOLS, tool_choice="none")
    check(deltas, answer)
    assert answer.message.tool_calls == ()
    assert answer.completion.text == ask([USER], 12, GREEDY)[1].completion.text


def test_a_result_is_handed_back(smollm2_context: Context) -> None:
    """The call and its result are part of the next prompt, or are refused; they are never dropped silently."""
    ask = asking("blocking", smollm2_context)
    found = read(ask, [USER], 120, GREEDY, tools=TOOLS, tool_choice="get_weather")
    if found is None:
        return
    (call,) = found[1].message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"condition": "sunny", "temperature": 25}'}
    asked = found[1].completion.usage
    again = read(ask, [USER, found[1].message, result], 12, GREEDY, tools=TOOLS)
    assert again is not None
    added = again[1].completion.usage.prompt_tokens - asked.prompt_tokens
    assert added >= len(smollm2_context.model.tokenize(call.arguments + result["content"], add_special=False))
