"""Helpers for the chat tests: forcing the model's output, asking under each backend, and reading deltas."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio

from mullama import AsyncContext, ChatCompletion, ChatDelta, ChatMessage, Context, SamplerParams, ToolCall

TEMPLATES = Path(__file__).parents[1] / "vendor" / "llama.cpp" / "models" / "templates"
QWEN3 = TEMPLATES / "Qwen-Qwen3-0.6B.jinja"  # thinks
HERMES = TEMPLATES / "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja"
GPT_OSS = TEMPLATES / "openai-gpt-oss-120b.jinja"  # cannot parse an answer without its markers
USER = {"role": "user", "content": "What is the weather in Paris?"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "Rome"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
TIME = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Get the time in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
        },
    },
}
THOUGHT = "<think>\nIt is summer.\n</think>\n\nIt is sunny, with 25 degrees."
BACKENDS: list[Any] = ["blocking", ("asyncio", {}), ("asyncio", {"use_uvloop": True}), ("trio", {})]

Read = tuple[list[ChatDelta], ChatCompletion]


def saying(text: str, **params: Any) -> SamplerParams:
    """Force the model to write exactly this, and then end."""
    return SamplerParams.greedy(grammar=f"root ::= {json.dumps(text)}", **params)


def joined(deltas: list[ChatDelta]) -> ChatMessage:
    """Deltas assembled as a client does it; each must come in the order of the protocol."""
    calls: list[ToolCall] = []
    stage = 0
    for delta in deltas:
        for now, said in enumerate((delta.reasoning_content, delta.content, delta.tool_calls)):
            if said:
                assert now >= stage, "reasoning, then content, then tool calls"
                stage = now
        for call in delta.tool_calls:
            if call.index == len(calls):
                assert call.id is not None
                assert call.name is not None
                calls.append(ToolCall(call.id, call.name, call.arguments))
            else:
                assert (call.id, call.name) == (None, None)
                last = calls[call.index]
                calls[call.index] = ToolCall(last.id, last.name, last.arguments + call.arguments)
        assert bool(delta) == bool(delta.content or delta.reasoning_content or delta.tool_calls)
        assert str(delta) == delta.content
    content, reasoning = ("".join(getattr(d, name) for d in deltas) for name in ("content", "reasoning_content"))
    return ChatMessage(content, reasoning, tuple(calls))


def check(deltas: list[ChatDelta], answer: ChatCompletion) -> None:
    """Check what holds for every answer that was read to its end."""
    assert joined(deltas) == answer.message
    assert tuple(delta.token.token_id for delta in deltas) == answer.completion.tokens
    assert str(answer) == answer.message.content
    for call in answer.message.tool_calls:
        assert call.id.isalnum()
        assert len(call.id) == 9


def valid(call: ToolCall) -> bool:
    arguments = json.loads(call.arguments)
    if call.name == "get_time":
        return set(arguments) == {"city"} and isinstance(arguments["city"], str)
    assert call.name == "get_weather"
    return set(arguments) == {"city", "days"} and arguments["city"] in ("Paris", "Rome") and 1 <= arguments["days"] <= 9


def asking(backend: Any, context: Context) -> Callable[..., Read]:
    """Ask the context and read the answer delta by delta, with threads or under a backend, with the same result."""

    def blocking(*args: Any, **options: Any) -> Read:
        with context.chat_stream(*args, **options) as stream:
            return list(stream), stream.chat_completion()

    def awaiting(*args: Any, **options: Any) -> Read:
        async def run() -> Read:
            async with AsyncContext(context).chat_stream(*args, **options) as stream:
                return [delta async for delta in stream], stream.chat_completion()

        return anyio.run(run, backend=backend[0], backend_options=backend[1])

    return blocking if backend == "blocking" else awaiting
