"""The schemas of tools' parameters: which are refused, which are adapted for llama.cpp, and that calls match them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import assert_idle
from test_schema import nested

from mullama import ChatError, Context, InvalidParameter, Model, SamplerParams
from mullama._schema import tool_schema


@pytest.fixture(scope="module")
def ctx(model: Model) -> Iterator[Context]:
    with Context(model, n_ctx=1024, n_seq_max=1, n_threads=2) as context:
        yield context
        assert_idle(context)


NODE = {"type": "object", "properties": {"n": {"allOf": [{"$ref": "#/$defs/N"}]}}}
BAD_TOOLS: dict[str, dict[str, Any]] = {
    "fewer than at least": {"properties": {"a": {"type": "string", "minLength": 5, "maxLength": 2}}},
    "a ring within allOf": {"allOf": [{"$ref": "#/$defs/N"}], "$defs": {"N": NODE}},
    "a reference to itself": {"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"$ref": "#/$defs/a"}}},
    "a long name": {"properties": {"é" * 100_000: {}}},
    "too deep": nested(200),
}


@pytest.mark.parametrize("name", BAD_TOOLS)
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_tool_that_the_converter_would_not_survive(ctx: Context, name: str, choice: str) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "A tool", "parameters": BAD_TOOLS[name]}}
    with pytest.raises((InvalidParameter, ChatError)):
        ctx.chat([{"role": "user", "content": "Hello"}], 5, tools=[tool], tool_choice=choice)


def test_the_patterns_of_a_tool_are_put_into_known_words() -> None:
    kept = {
        "type": "object",
        "title": "T",
        "properties": {
            "pattern": {"type": "string"},
            "kind": {"enum": [{"pattern": "(?=a)"}], "default": {"pattern": r"\d"}},
        },
        "x-pattern": r"\d",
    }
    assert tool_schema("x", kept) == kept
    word = {"type": "string", "description": "A word", "pattern": "(?=a)"}
    schema = {"properties": {"code": {"pattern": r"^\d{3}$"}, "word": word, "other": {"pattern": r"\bx"}}}
    assert tool_schema("x", schema)["properties"] == {
        "code": {"pattern": "^[0-9]{3}$"},
        "word": {"type": "string", "description": "A word (pattern: (?=a))"},
        "other": {"description": r"pattern: \bx"},
    }
    assert word["pattern"] == "(?=a)", "what was given is left as it was"


def test_arguments_match_the_pattern_of_their_schema(ctx: Context) -> None:
    schema = {"type": "object", "properties": {"code": {"type": "string", "pattern": r"^\d{3}$"}}, "required": ["code"]}
    tool = {"type": "function", "function": {"name": "search", "description": "Get the code", "parameters": schema}}
    for seed in range(5):
        answer = ctx.chat(
            [{"role": "user", "content": "Search for 123."}],
            120,
            SamplerParams(seed=seed),
            tools=[tool],
            tool_choice="search",
        )
        assert answer.finish_reason == "tool_calls"
        (call,) = answer.message.tool_calls
        assert re.fullmatch("[0-9]{3}", json.loads(call.arguments)["code"])
