"""JSON schemas: the forms in which they are given, how bad ones are refused, and that complete texts satisfy them."""

from __future__ import annotations

import json
import pickle
import re
import types
from collections.abc import Iterator
from enum import Enum
from typing import Any, Literal

import jsonschema
import pytest
from conftest import assert_idle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from mullama import AsyncContext, Completion, Context, InvalidParameter, Model, SamplerParams, StreamConfig
from mullama._json_patterns import pattern_for_json

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def ctx(model: Model) -> Iterator[Context]:
    with Context(model, n_ctx=1024, n_seq_max=4, n_threads=2) as context:
        yield context
        assert_idle(context)


@pytest.fixture(scope="module")
def wild(model: Model) -> SamplerParams:
    """Choose almost anything that the grammar allows, and JSON's structural tokens more often than they would occur."""
    telling = [t for t in range(model.n_vocab) if set(model.token_bytes(t)) & set(b'"\\}]')]
    return SamplerParams(temperature=3.0, top_k=0, top_p=1.0, logit_bias=dict.fromkeys(telling, 12.0))


def say(context: Context, schema: Any, params: SamplerParams, seed: int = 1, n: int = 700) -> Completion:
    config = StreamConfig(max_tokens=n, timeout_ms=0, params=params.replace(json_schema=schema, seed=seed))
    return context.generate(PROMPT, config=config)


def satisfies(completion: Completion, schema: Any) -> bool:
    """Whether it ended by itself; then it must be JSON that matches the schema."""
    if completion.finish_reason != "stop":
        return False
    value = json.loads(completion.text)
    json.dumps(value, ensure_ascii=False).encode()  # no lone surrogates
    if "\ufffd" not in completion.text:  # bytes that are not text count differently
        jsonschema.Draft202012Validator(schema).validate(value)
    return True


# ------------------------------------------------------------------------------------------ a family of schemas

NAMES = st.sampled_from([*"a ab abc first-name é 日本 root value string x_1 $id (0) a.b".split(), "b c"])
PATTERNS = [
    "^[a-f]{2,4}$",
    r"^\d{3}-\d\d$",
    r"^[\w.]+@[a-z]+\.(com|org)$",
    "^.{0,6}$",
    "^[^a-z]{1,5}$",
    r'^a["\\]b$',
    r"^(?:x|\\|\")+z$",
    "cat",
    "^ab?",
    "[0-9]",
    r"^\.*[]x-]{2}[^\s]$",
    "^(é|ü){1,3}é*$",
    r"^[!-~]{1,8}$",
    "^a+?b??$",
    "^(?P<name>a|b){2}$",
    r"^\u00e9\x41\/\-$",
    "",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.sampled_from([0.5, -1e3]) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


def bounds(low: str, high: str, most: int) -> st.SearchStrategy[dict[str, Any]]:
    pair = st.tuples(st.integers(0, most), st.integers(0, most)).map(sorted)
    return st.one_of(pair.map(lambda p: {low: p[0], high: p[1]}), pair.map(lambda p: {high: p[1]}))


@st.composite
def integers(draw: st.DrawFn) -> dict[str, Any]:
    a, b = sorted(draw(st.tuples(*[st.integers(-1200, 1200) | st.integers(-(10**15), 10**15)] * 2)))
    low = draw(st.sampled_from([{}, {"minimum": a}, {"exclusiveMinimum": a - 1}, {"minimum": a - 0.5}]))
    high = draw(st.sampled_from([{}, {"maximum": b}, {"exclusiveMaximum": b + 1}, {"maximum": b + 0.5}]))
    return {"type": "integer", **low, **high}


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    properties = draw(st.dictionaries(NAMES, inner, min_size=1, max_size=4))
    required = draw(st.lists(st.sampled_from(sorted(properties)), unique=True))
    more = draw(st.sampled_from([{}, {"additionalProperties": False}, {"additionalProperties": {"type": "boolean"}}]))
    return {"type": "object", "properties": properties, "required": required, **more}


def apart(two: tuple[dict[str, Any], dict[str, Any]]) -> bool:
    return not two[0]["properties"].keys() & two[1]["properties"].keys()


def joined(two: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    return {"allOf": [{key: value for key, value in one.items() if key != "additionalProperties"} for one in two]}


LEAVES = st.one_of(
    bounds("minLength", "maxLength", 6).map(lambda b: {"type": "string", **b}),
    st.sampled_from(PATTERNS[:-1]).map(lambda p: {"type": "string", "pattern": p}),
    st.lists(JSON, min_size=1, max_size=5).map(lambda values: {"enum": values}),
    st.lists(JSON, min_size=1, max_size=5).map(lambda values: {"type": ["string", "integer"], "enum": [*values, "z"]}),
    JSON.map(lambda value: {"const": value}),
    integers(),
    st.sampled_from([{"type": kind} for kind in ("boolean", "null", "number")]),
    st.just({"type": ["integer", "null", "string"], "maxLength": 3, "minimum": 5, "maximum": 9}),
    st.sampled_from([{"type": "string", "format": f} for f in ("date", "time", "date-time", "uuid")]),
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        objects(inner),
        st.tuples(inner, bounds("minItems", "maxItems", 3)).map(lambda p: {"type": "array", "items": p[0], **p[1]}),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda items: {"type": "array", "prefixItems": items, "minItems": len(items), "items": False}
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda all_: {"anyOf": all_}),
        st.tuples(objects(inner), objects(inner)).filter(apart).map(joined),
        inner.map(lambda one: {"allOf": [one], "title": "A title"}),
    ),
    max_leaves=6,
)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, seed=st.integers(0, 2**31))
def test_what_ends_by_itself_satisfies_its_schema(
    ctx: Context, wild: SamplerParams, schema: dict[str, Any], seed: int
) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    satisfies(say(ctx, schema, wild, seed), schema)


TREE: dict[str, Any] = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer", "minimum": 0, "maximum": 99},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
                "next": {"allOf": [{"$ref": "#/$defs/node"}]},
            },
            "required": ["value"],
            "additionalProperties": False,
        }
    },
}
SOME: dict[str, Any] = {
    "a tree": TREE,
    "itself": {"type": "array", "items": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}, "maxItems": 2},
    "a reference into properties": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"$ref": "#/properties/a"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
    "escaped references": {"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"const": 1}}},
    "required alone": {"type": "object", "required": ["x"], "additionalProperties": {"type": "boolean"}},
    "true": {"type": "object", "properties": {"a": True}, "required": ["a"], "additionalProperties": False},
    "anything": {},
    "other keys, not these": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "ab": {"type": "integer"}},
        "additionalProperties": {"type": "boolean"},
        "required": ["a"],
    },
    "any object": {"type": "object"},
    "any array": {"type": "array"},
    "an empty array": {"type": "array", "items": {"type": "integer"}, "maxItems": 0},
    "large bounds": {"type": "integer", "minimum": -(2**70), "maximum": 2**64},
    **{pattern or "no pattern": {"type": "string", "pattern": pattern} for pattern in PATTERNS},
}


@pytest.mark.parametrize("name", SOME)
def test_some_in_particular(ctx: Context, wild: SamplerParams, name: str) -> None:
    ended = [satisfies(say(ctx, SOME[name], wild, seed), SOME[name]) for seed in range(8)]
    assert any(ended), "else it would show nothing"


def test_the_usual_sampling_too(ctx: Context) -> None:
    for params in (SamplerParams(), SamplerParams.greedy(), SamplerParams.creative()):
        completion = say(ctx, SOME["a reference into properties"], params)
        assert satisfies(completion, SOME["a reference into properties"])
        assert ctx.model.token_is_eog(completion.tokens[-1])


@pytest.mark.anyio
async def test_awaited(actx: AsyncContext) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    completion = await actx.generate(PROMPT, 100, SamplerParams(json_schema=schema, seed=1))
    assert satisfies(completion, schema)
    completions = await actx.generate_many(PROMPT, 3, 100, SamplerParams(json_schema=schema, seed=1))
    assert all(satisfies(one, schema) for one in completions)


# ------------------------------------------------------------------------------------------ models and other forms


class Mood(Enum):
    GOOD = "good"
    BAD = "bad"


class Pet(BaseModel):
    """A pet, as a pydantic model."""

    name: str = Field(min_length=1, max_length=10)
    kind: Literal["cat", "dog"]
    age: int = Field(ge=0, lt=40)
    mood: Mood = Field(default=Mood.GOOD, description="How it is")
    code: str | None = Field(default=None, pattern=r"^[A-Z]{2}\d+$", max_length=6)
    size: tuple[int, int] = (1, 2)
    friends: list[Pet] = Field(default=[], max_length=1)


def test_a_pydantic_model(ctx: Context, wild: SamplerParams) -> None:
    ended = 0
    for seed in range(12):
        completion = say(ctx, Pet, wild, seed)
        if completion.finish_reason == "stop":
            ended += 1
            assert 0 <= Pet.model_validate_json(completion.text).age < 40
    assert ended >= 3


def test_the_forms_are_one(ctx: Context) -> None:
    schema = Pet.model_json_schema()
    like = types.SimpleNamespace(model_json_schema=lambda: schema)
    forms = [Pet, schema, json.dumps(schema), types.MappingProxyType(schema), like]
    params = [SamplerParams(json_schema=form, seed=1) for form in forms]
    assert len(set(params)) == 1
    assert isinstance(params[0].json_schema, str)
    assert json.loads(params[0].json_schema) == schema
    for other in (params[0].replace(seed=1), pickle.loads(pickle.dumps(params[0])), eval(repr(params[0]))):
        assert other == params[0]
    assert SamplerParams(json_schema=True) == SamplerParams(json_schema={})
    assert SamplerParams(json_schema=None).json_schema is None


def test_not_beside_a_grammar() -> None:
    with pytest.raises(InvalidParameter, match="grammar"):
        SamplerParams(json_schema={}, grammar='root ::= "a"')


def test_what_a_pattern_becomes() -> None:
    """Each string that matches the translated pattern, parsed as JSON, matches the original one."""
    for pattern in PATTERNS:
        plain = pattern_for_json(pattern)
        assert plain == "" or (plain[0], plain[-1]) == ("^", "$")
    assert pattern_for_json("^a$") == "^a$"
    assert pattern_for_json("b") == "^.*(?:b).*$"
    assert re.fullmatch(pattern_for_json(r'^"\\$'), r"\"\\")


# ------------------------------------------------------------------------------------------ bad ones


def nested(n: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(n):
        schema = {"type": "array", "items": schema}
    return schema


BAD: dict[str, Any] = {
    "no schema": 3,
    "a list": [1],
    "false": False,
    "null as text": "null",
    "no JSON": "{",
    "text that is nested without end": "[" * 100_000,
    "an unknown type": {"type": "text"},
    "a type of a wrong type": {"type": {}},
    "no types": {"type": []},
    "what JSON cannot say": {"const": {1, 2}},
    "not a number": {"const": float("nan")},
    "too deep": nested(200),
    "without end": None,  # made below
    "a reference to nowhere": {"$ref": "#/$defs/x"},
    "a reference to another file": {"$ref": "other.json"},
    "a reference of a wrong type": {"$ref": 3},
    "a reference to itself": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    "references in a ring": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "a ring within allOf": {
        "allOf": [{"$ref": "#/$defs/a"}, {"properties": {}}],
        "$defs": {"a": {"properties": {"n": {"allOf": [{"$ref": "#/$defs/a"}, {"properties": {}}]}}}},
    },
    "only itself": {"anyOf": [{"$ref": "#"}]},
    "many references in a row": {
        "$ref": "#/$defs/d0",
        "$defs": {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(2000)} | {"d2000": {}},
    },
    "allOf of what cannot be joined": {"allOf": [{"type": "string"}, {"maxLength": 3}]},
    "nothing to choose from": {"anyOf": []},
    "an empty enum": {"enum": []},
    "an enum of another type": {"type": "string", "enum": [1, 2]},
    "more than the greatest": {"type": "integer", "minimum": 5, "maximum": 4},
    "between two integers": {"type": "integer", "exclusiveMinimum": 4, "exclusiveMaximum": 5},
    "integers that are too large": {"type": "integer", "minimum": 10**18},
    "a bound that is no number": {"type": "integer", "minimum": "3"},
    "longer than the longest": {"type": "string", "minLength": 5, "maxLength": 2},
    "more items than the most": {"type": "array", "items": {}, "minItems": 5, "maxItems": 3},
    "more items than listed": {"prefixItems": [{}], "minItems": 2},
    "a length that is too long": {"type": "string", "minLength": 10**6},
    "a length below zero": {"type": "string", "maxLength": -1},
    "a long name": {"properties": {"é" * 100_000: {}}},
    "many properties": {"properties": {f"p{i}": {} for i in range(300)}},
    "a huge enum": {"enum": list(range(100_000))},
    "required and not allowed": {"type": "object", "required": ["a"], "additionalProperties": False},
    "no value for a property": {"properties": {"a": False}},
    "a property without a name": {"properties": {"": {}}},
    "a property that means all others": {"properties": {"*": {}}},
    "a property like others": {"properties": {"]": {}}, "additionalProperties": True},
    "a broken pattern": {"type": "string", "pattern": "^("},
    "a repetition the wrong way round": {"type": "string", "pattern": "^a{3,1}$"},
    "a pattern that looks around": {"type": "string", "pattern": "^(?=a)b$"},
    "a pattern that refers back": {"type": "string", "pattern": r"^(a)\1$"},
    "a pattern of what JSON escapes": {"type": "string", "pattern": "^\n$"},
    "a pattern of endless groups": {"type": "string", "pattern": "^" + "(" * 90 + ")" * 90 + "$"},
    "a pattern of no type": {"type": "string", "pattern": 3},
}
BAD["without end"] = {"type": "array"}
BAD["without end"]["items"] = BAD["without end"]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_one_is_refused_before_anything_runs(ctx: Context, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    before = ctx.statistics()
    with pytest.raises(InvalidParameter) as caught:
        ctx.generate(PROMPT, 5, SamplerParams(json_schema=BAD[name]))
    assert caught.value.parameter == "json_schema"
    assert len(str(caught.value)) < 1000
    assert ctx.statistics() == before
    assert capfd.readouterr() == ("", "")


def test_a_model_whose_schema_fails() -> None:
    def fail() -> None:
        raise OSError("no schema today")

    with pytest.raises(InvalidParameter, match="no schema today"):
        SamplerParams(json_schema=types.SimpleNamespace(model_json_schema=fail))


def test_a_chat_answers_as_a_schema_asks(ctx: Context) -> None:
    schema = {"type": "object", "properties": {"code": {"type": "string", "pattern": r"^\d{3}$"}}, "required": ["code"]}
    answer = ctx.chat([{"role": "user", "content": "Hello"}], 100, SamplerParams(json_schema=schema, seed=1))
    assert satisfies(answer.completion, schema)
    assert answer.message.content == answer.completion.text.strip()
