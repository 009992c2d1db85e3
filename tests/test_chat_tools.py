"""Tool calls: requested, named, parallel, cut off and returned; and those that the bundled model was trained to make."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
from chat_helpers import (
    BACKENDS,
    HERMES,
    QWEN3,
    TEMPLATES,
    THOUGHT,
    TIME,
    USER,
    WEATHER,
    Read,
    asking,
    check,
    saying,
    valid,
)
from test_good_files import rewritten

from mullama import (
    AsyncModel,
    ChatMessage,
    Context,
    Model,
    SamplerParams,
    StreamConfig,
    default_model,
)
from mullama._chat import ChatOptions, render_chat

# The bundled model calls tools by itself; the grammar ensures that the call is valid.
CALLING = SamplerParams.greedy()


@pytest.fixture(params=BACKENDS, ids=str)
def ask(request: pytest.FixtureRequest, context: Context) -> Callable[..., Read]:
    return asking(request.param, context)


def required(ask: Any, max_tokens: int = 120, *, min_tokens: int = 0, **options: Any) -> Read:
    config = StreamConfig(max_tokens=max_tokens, params=CALLING, min_tokens=min_tokens)
    deltas, answer = ask([USER], config, **({"tools": [WEATHER, TIME], "tool_choice": "required"} | options))
    check(deltas, answer)
    return deltas, answer


def test_a_required_call(ask: Any) -> None:
    deltas, answer = required(ask)
    (call,) = answer.message.tool_calls
    assert valid(call)
    assert (answer.finish_reason, answer.completion.finish_reason) == ("tool_calls", "stop")
    assert sum(bool(delta.tool_calls) for delta in deltas) > 1, "its arguments come as they are written"


@pytest.mark.parametrize("template", ["Qwen-Qwen2.5-7B-Instruct", "meta-llama-Llama-3.1-8B-Instruct", "Qwen3-Coder"])
def test_a_required_call_is_the_only_end(context: Context, template: str) -> None:
    """These templates allow text before the call; the bundled model, which does not know them, writes a lot of it."""
    path = TEMPLATES / f"{template}.jinja"
    for seed in range(4):
        config = StreamConfig(max_tokens=120, params=SamplerParams(seed=seed), timeout_ms=0)
        answer = context.chat([USER], config=config, tools=[WEATHER], tool_choice="required", template=path)
        assert answer.finish_reason == ("tool_calls" if answer.completion.finish_reason == "stop" else "length")


@pytest.mark.parametrize("name", ["get_time", "get_weather"])
def test_a_named_call(ask: Any, name: str) -> None:
    for choice in (name, {"type": "function", "function": {"name": name}}):
        (call,) = required(ask, tool_choice=choice)[1].message.tool_calls
        assert call.name == name
        assert valid(call)


def test_a_tool_that_is_named_like_a_choice(context: Context) -> None:
    odd = {"type": "function", "function": {"name": "none", "parameters": {"type": "object", "properties": {}}}}
    choice = {"type": "function", "function": {"name": "none"}}
    answer = context.chat([USER], 120, CALLING, tools=[WEATHER, odd], tool_choice=choice)
    assert [call.name for call in answer.message.tool_calls] == ["none"]
    assert json.loads(answer.message.tool_calls[0].arguments) == {}


def test_parallel_calls(ask: Any) -> None:
    """No end token before 90 tokens: then the model can only make another call."""
    deltas, answer = required(ask, 250, parallel_tool_calls=True, min_tokens=90)
    calls = answer.message.tool_calls
    whole = calls if answer.finish_reason == "tool_calls" else calls[:-1]
    assert len(whole) >= 2
    assert all(map(valid, whole))
    assert len({call.id for call in calls}) == len(calls)
    assert {call.index for delta in deltas for call in delta.tool_calls} == set(range(len(calls)))


def test_a_call_cut_off_keeps_its_beginning(ask: Any) -> None:
    whole = required(ask)[1]
    n = len(whole.completion.tokens)
    for cut in (2, n // 2, n - 6):
        _, answer = required(ask, cut)
        assert answer.finish_reason == "length"
        for call, all_of_it in zip(answer.message.tool_calls, whole.message.tool_calls, strict=False):
            assert call.name == all_of_it.name
            assert all_of_it.arguments.startswith(call.arguments)
    assert answer.message.tool_calls


def test_none_is_no_call(ask: Any) -> None:
    text = '<tool_call>\n{"name": "get_time", "arguments": {"city": "Rome"}}\n</tool_call>'
    _, answer = ask([USER], 100, saying(text), tools=[WEATHER, TIME], tool_choice="none")
    assert answer.message == ChatMessage(text)
    assert answer.finish_reason == "stop"
    _, without = ask([USER], 100, saying(text))
    assert answer.completion.usage.prompt_tokens == without.completion.usage.prompt_tokens


@pytest.mark.parametrize("template", [None, QWEN3, HERMES], ids=str)
def test_with_none_the_model_is_not_told_of_the_tools(model: Model, template: Path | None) -> None:
    call = {"type": "function", "function": {"name": "get_time", "arguments": {"city": "Rome"}}}
    messages: list[Any] = [USER, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "12:30"}]
    options: ChatOptions = {"template": template}
    plain = render_chat(model, messages, options)
    assert render_chat(model, messages, options | {"tools": [WEATHER, TIME], "tool_choice": "none"}) == plain
    told = render_chat(model, messages, options | {"tools": [WEATHER, TIME]})
    assert "Get the weather in a city" in told
    assert "Get the weather in a city" not in plain
    assert "12:30" in plain, "what was called before stays"


def test_an_answer_goes_back_into_the_next_request(context: Context) -> None:
    first = context.chat([USER], 120, CALLING, tools=[WEATHER], tool_choice="required")
    (call,) = first.message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "name": call.name, "content": '{"sky": "sunny"}'}
    for message in (first.message, first.message.to_dict()):
        second = context.chat([USER, message, result], 40, CALLING, tools=[WEATHER])
        assert second.message.content
        assert second.completion.usage.cached_tokens > first.completion.usage.prompt_tokens // 2
    thinking = context.chat([USER], 60, saying(THOUGHT), template=QWEN3).message
    assert thinking.to_dict()["reasoning_content"] == thinking.reasoning_content
    assert context.chat([USER, thinking, USER], 60, saying(THOUGHT), template=QWEN3).message == thinking


# ------------------------------------------------------------------------------ special tokens of the model


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Context, dict[int, float]]]:
    """The bundled model with control tokens as markers, as in large models; and a bias that makes it use them."""
    fields = gguf.GGUFReader(default_model()).fields
    tokens, types = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    tokens[1500], tokens[1501] = "<think>", "</think>"
    call, end = tokens.index("<tool_call>"), tokens.index("</tool_call>")
    for token in (1500, 1501, call, end):
        types[token] = 3
    changes = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    path = rewritten(tmp_path_factory.mktemp("marked") / "marked.gguf", changes)
    with Context(Model.load(path), n_ctx=1024, n_seq_max=2, n_threads=2) as context:
        yield context, dict.fromkeys((1500, 1501, call, end), 1e4)


def test_control_tokens_that_the_parser_reads_are_shown_to_it(marked: tuple[Context, dict[int, float]]) -> None:
    context, bias = marked
    answer = context.chat([USER], 60, saying(THOUGHT, logit_bias=bias), template=QWEN3)
    assert {1500, 1501} <= set(answer.completion.tokens)
    assert (answer.message.reasoning_content.strip(), answer.message.content) == (
        "It is summer.",
        THOUGHT.split("\n\n")[1],
    )
    called = context.chat([USER], 120, CALLING, tools=[WEATHER])  # a marker triggers the grammar
    assert set(list(bias)[2:]) <= set(called.completion.tokens)
    assert [valid(call) for call in called.message.tool_calls] == [True]
    assert called.finish_reason == "tool_calls"


def test_a_call_that_is_only_thought_of_wakes_no_grammar(marked: tuple[Context, dict[int, float]]) -> None:
    """A model that can write only <think>, <tool_call> and a new line: outside thoughts, the last two start a call."""
    context, bias = marked
    think, _, call, _ = bias
    (line,) = context.model.tokenize("a\n", add_special=False)[-1:]
    only = dict.fromkeys((think, call, line), 1e5)
    told, thought = 0, 0
    for seed in range(24):
        params = SamplerParams(seed=seed, temperature=1e3, top_k=0, top_p=1, logit_bias=only)  # all equally likely
        tokens = context.chat([USER], 16, params, tools=[WEATHER], template=QWEN3).completion.tokens
        begins = next((i for i in range(8) if tokens[i : i + 2] == (call, line)), None)
        if begins is None:
            continue
        free = set(tokens) <= only.keys()
        assert free is (think in tokens[:begins])
        told, thought = told + (not free), thought + free
    assert min(told, thought) > 0


# ------------------------------------------------------------------------------ what the bundled model was trained to do


@pytest.mark.anyio
async def test_the_bundled_model_answers_and_calls_tools(anyio_backend: Any) -> None:
    weather = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather in a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    greedy = SamplerParams.greedy()
    async with await AsyncModel.load() as model:
        for question in ("Hello!", "What is the capital of France?", "Tell me a story."):
            answer = await model.chat([{"role": "user", "content": question}], 300, greedy)
            assert answer.message.content.strip()
            assert answer.finish_reason == "stop"
        async with model.chat_stream(
            [USER | {"content": "What is the weather in Paris?"}], 100, greedy, tools=[weather]
        ) as stream:
            deltas = [delta async for delta in stream]
        called = stream.chat_completion()
        check(deltas, called)
        assert called.finish_reason == "tool_calls"
        (call,) = called.message.tool_calls
        assert call.name == "get_weather"
        assert isinstance(json.loads(call.arguments)["city"], str)
        result = {"role": "tool", "tool_call_id": call.id, "content": "sunny, 25 degrees"}
        then = await model.chat([USER, called.message, result], 100, greedy, tools=[weather])
        assert then.message.content.strip()
        assert then.finish_reason == "stop"
