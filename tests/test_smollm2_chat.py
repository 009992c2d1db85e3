"""Chats with real weights: answers over one or more turns, their end, and schemas."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

import jsonschema
import pytest
from chat_helpers import BACKENDS, Read, asking, check
from pydantic import BaseModel, Field

from mullama import Context, SamplerParams, StreamConfig

pytestmark = pytest.mark.weights

GREEDY = SamplerParams.greedy()
GERMANY = {"role": "user", "content": "What is the capital of Germany?"}
ITALY = {"role": "user", "content": "And of Italy?"}


@pytest.fixture(params=BACKENDS, ids=str)
def ask(request: pytest.FixtureRequest, smollm2_context: Context) -> Callable[..., Read]:
    return asking(request.param, smollm2_context)


def test_a_conversation(ask: Any) -> None:
    """The first turn is part of the second prompt, and is not computed again."""
    messages: list[Any] = [{"role": "system", "content": "You are a helpful assistant."}, GERMANY]
    deltas, first = ask(messages, 24, GREEDY)
    check(deltas, first)
    assert first.finish_reason == "stop"
    assert "Berlin" in str(first)
    assert "<|im" not in str(first)
    assert sum(bool(delta) for delta in deltas) > 3, "as it comes, not in one piece"

    deltas, second = ask([*messages, first.message, ITALY], 24, GREEDY)
    check(deltas, second)
    assert "Rome" in str(second)
    usage = second.completion.usage
    assert first.completion.usage.prompt_tokens < usage.cached_tokens < usage.prompt_tokens


def test_the_template_writes_a_system_message_where_there_is_none(smollm2_context: Context) -> None:
    empty = smollm2_context.chat([{"role": "system", "content": ""}, GERMANY], 1, GREEDY)
    own = smollm2_context.chat([GERMANY], 1, GREEDY)
    assert own.completion.usage.prompt_tokens > empty.completion.usage.prompt_tokens + 10


def test_cut_off(ask: Any) -> None:
    deltas, answer = ask([GERMANY], 3, GREEDY)
    check(deltas, answer)
    assert (answer.finish_reason, len(deltas)) == ("length", 3)


def test_stop_strings(ask: Any) -> None:
    deltas, answer = ask([GERMANY], StreamConfig(max_tokens=24, params=GREEDY, stop_sequences=["never", " Berlin"]))
    check(deltas, answer)
    assert (answer.finish_reason, answer.completion.stop_sequence) == ("stop", " Berlin")
    assert str(answer) == "The capital of Germany is"


# ------------------------------------------------------------------------------ schemas

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "likes": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
TOM = {"role": "user", "content": "Tom is 30 years old and likes red. Write that as JSON."}


def test_a_schema_binds_the_answer(ask: Any) -> None:
    deltas, answer = ask([TOM], 120, SamplerParams(json_schema=PERSON, seed=1))
    check(deltas, answer)
    assert answer.finish_reason == "stop"
    jsonschema.validate(json.loads(str(answer)), PERSON)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_schema_binds_plain_text(smollm2_context: Context, temperature: float) -> None:
    params = SamplerParams(json_schema=PERSON, temperature=temperature, seed=2)
    completion = smollm2_context.generate("Tom is 30 years old and likes red. As JSON: ", 120, params)
    assert completion.finish_reason == "stop"
    jsonschema.validate(json.loads(completion.text), PERSON)


class Address(BaseModel):
    city: str = Field(max_length=12)
    country: Literal["France", "Germany", "Italy"]


class Company(BaseModel):
    name: str = Field(max_length=12)
    staff: int = Field(ge=1, le=999)
    offices: list[Address] = Field(min_length=1, max_length=2)
    motto: str | None = Field(max_length=12)


def test_a_pydantic_model_binds_the_answer(smollm2_context: Context) -> None:
    question = [{"role": "user", "content": "Make up a company with an office in Paris, as JSON."}]
    answer = smollm2_context.chat(question, 200, SamplerParams(json_schema=Company, seed=1))
    assert answer.finish_reason == "stop"
    company = Company.model_validate_json(str(answer))
    assert company.offices[0].country in ("France", "Germany", "Italy")
