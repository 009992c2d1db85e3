"""How calls take options: by position, as a configuration, and by name; and the error for a misspelt name."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from typing import Any, get_type_hints

import anyio
import pytest

from mullama import (
    AsyncContext,
    Context,
    ContextParams,
    InvalidParameter,
    InvalidParameterType,
    Model,
    SamplerParams,
    StreamConfig,
    TokenData,
    _request,
)
from mullama._options import UNSET, ContextOptions, SamplerOptions, StreamOptions, stream_config

PROMPT = "Once upon a time"
MESSAGES = [{"role": "user", "content": "Hi"}]
GREEDY = StreamConfig(max_tokens=5, params=SamplerParams.greedy(ignore_eos=True))

pytestmark = pytest.mark.anyio

# -- one configuration from all arguments


def test_of_nothing() -> None:
    assert stream_config() == StreamConfig()


def test_of_a_whole_one() -> None:
    config = StreamConfig(max_tokens=3)
    assert stream_config(config) is config
    assert stream_config(config=config) is config


def test_of_parts() -> None:
    params = SamplerParams(seed=1)
    assert stream_config(9) == StreamConfig(max_tokens=9)
    assert stream_config(None).max_tokens is None
    assert stream_config(-1).max_tokens is None
    assert stream_config(9, params) == StreamConfig(max_tokens=9, params=params)
    assert stream_config(params=params) == StreamConfig(params=params)


def test_parts_change_a_whole_one() -> None:
    base = StreamConfig(temperature=0.1, buffer_size=7, max_tokens=5)
    assert stream_config(9, config=base) == base.replace(max_tokens=9)
    assert stream_config(None, config=base).max_tokens is None
    params = SamplerParams(seed=1)
    assert stream_config(params=params, config=base) == StreamConfig(buffer_size=7, max_tokens=5, params=params)
    assert stream_config(base, params) == stream_config(params=params, config=base)


@pytest.mark.parametrize(
    ("given", "options", "expected"),
    [
        ({}, {"temperature": 0.3, "top_k": 5}, StreamConfig(temperature=0.3, top_k=5)),
        ({}, {"seed": 1}, StreamConfig(params=SamplerParams(seed=1))),
        ({}, {"seed": 1, "top_p": 0.5}, StreamConfig(params=SamplerParams(seed=1, top_p=0.5))),
        (
            {"config": StreamConfig(temperature=0.1)},
            {"seed": 1},
            StreamConfig(params=SamplerParams(temperature=0.1, seed=1)),
        ),
        (
            {"params": SamplerParams(seed=1)},
            {"temperature": 0.3},
            StreamConfig(params=SamplerParams(seed=1, temperature=0.3)),
        ),
        (
            {"config": StreamConfig(params=SamplerParams(seed=1, min_p=0.1))},
            {"seed": 2},
            StreamConfig(params=SamplerParams(seed=2, min_p=0.1)),
        ),
        ({"config": StreamConfig(buffer_size=7)}, {"min_tokens": 3}, StreamConfig(buffer_size=7, min_tokens=3)),
        ({}, {"stop": "a"}, StreamConfig(stop_sequences=["a"])),
        ({}, {"stop": ["a", "b"]}, StreamConfig(stop_sequences=["a", "b"])),
        ({"max_tokens": StreamConfig(max_tokens=3)}, {"stop": ()}, StreamConfig(max_tokens=3)),
    ],
)
def test_options_change_the_rest(given: dict[str, Any], options: dict[str, Any], expected: StreamConfig) -> None:
    assert stream_config(**given, options=options) == expected


@pytest.mark.parametrize(
    ("arguments", "parameter"),
    [
        ({"max_tokens": StreamConfig(), "config": StreamConfig()}, "config"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"options": {"stop": "a", "stop_sequences": "b"}}, "stop"),
        ({"options": {"temperature": -1}}, "temperature"),
        ({"options": {"seed": -1}}, "seed"),
        ({"options": {"buffer_size": 0}}, "buffer_size"),
    ],
)
def test_bad_values(arguments: dict[str, Any], parameter: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        stream_config(**arguments)
    assert caught.value.parameter == parameter
    assert caught.value.hint


@pytest.mark.parametrize(
    ("arguments", "parameter"),
    [
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": SamplerParams()}, "max_tokens"),
        ({"max_tokens": {"max_tokens": 5}}, "max_tokens"),
        ({"config": {"max_tokens": 5}}, "config"),
        ({"config": SamplerParams()}, "config"),
        ({"params": StreamConfig()}, "params"),
        ({"options": {"stop": 5}}, "stop_sequences"),
        ({"options": {"temprature": 5}}, "temprature"),
    ],
)
def test_wrong_types(arguments: dict[str, Any], parameter: str) -> None:
    with pytest.raises(InvalidParameterType) as caught:
        stream_config(**arguments)
    assert caught.value.parameter == parameter


def test_unset_says_so() -> None:
    assert repr(UNSET) == "UNSET"
    assert pickle.loads(pickle.dumps(UNSET)) is UNSET


# -- names


@pytest.mark.parametrize(
    ("options", "record", "others"),
    [
        (SamplerOptions, SamplerParams, set()),
        (StreamOptions, StreamConfig, {"max_tokens", "params"}),
        (ContextOptions, ContextParams, set()),
    ],
)
def test_the_keywords_are_those_of_the_record(options: type, record: type, others: set[str]) -> None:
    """With the same types and the same order."""
    fields = {field.name: hint for field in dataclasses.fields(record) for hint in [get_type_hints(record)[field.name]]}
    keywords = get_type_hints(options)
    own = {name: keywords[name] for name in fields if name in keywords}
    assert own == {name: hint for name, hint in fields.items() if name not in others}
    more = keywords.keys() - own.keys() - get_type_hints(SamplerOptions).keys()
    assert more == ({"stop"} if options is StreamOptions else set())


@pytest.mark.parametrize(
    "name", ["generate_stream", "generate", "generate_many", "generate_streaming", "chat_stream", "chat"]
)
def test_both_shells_take_the_same(name: str) -> None:
    sync, awaiting = (inspect.signature(getattr(cls, name)) for cls in (Context, AsyncContext))
    assert list(sync.parameters.values()) == list(awaiting.parameters.values())
    assert next(iter(sync.parameters)) == "self"
    assert list(sync.parameters)[-1] == "options"
    assert inspect.iscoroutinefunction(getattr(AsyncContext, name)) == ("Completion" in str(awaiting.return_annotation))


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("temprature", "temperature"),
        ("max_token", "max_tokens"),
        ("stops", "stop"),
        ("topk", "top_k"),
        ("tols", "tools"),
    ],
)
def test_a_misspelt_keyword_names_the_nearest(context: Context, misspelt: str, meant: str) -> None:
    with pytest.raises(
        InvalidParameterType, match=rf"unknown keyword '{misspelt}'.*Did you mean .*\b{meant}\b"
    ) as caught:
        context.chat(MESSAGES, 1, **{misspelt: 1})
    assert caught.value.parameter == misspelt
    if meant != "tools":
        with pytest.raises(InvalidParameterType, match=rf"\b{meant}\b"):
            context.generate(PROMPT, **{misspelt: 1})


async def test_so_does_the_awaiting_shell(actx: AsyncContext) -> None:
    with pytest.raises(InvalidParameterType, match=r"temperature"):
        await actx.generate(PROMPT, 1, temprature=1)  # type: ignore[call-arg]
    with pytest.raises(InvalidParameterType, match=r"temperature"):
        actx.generate_stream(PROMPT, 1, temprature=1)  # type: ignore[call-arg]


def test_a_misspelt_keyword_of_a_context(model: Model) -> None:
    with pytest.raises(InvalidParameterType, match=r"unknown keyword 'n_contxt'.*Did you mean n_ctx"):
        Context(model, n_contxt=3)  # type: ignore[call-arg]


# -- the calls


def test_keywords_are_taken(context: Context) -> None:
    expected = context.generate(PROMPT, 8, SamplerParams(temperature=0.7, seed=3))
    assert context.generate(PROMPT, 8, temperature=0.7, seed=3).tokens == expected.tokens
    assert "".join(context.generate_stream(PROMPT, 8, temperature=0.7, seed=3)) == expected.text
    word = expected.text.split()[1]
    assert context.generate(PROMPT, 8, temperature=0.7, seed=3, stop=word).stop_sequence == word
    assert [c.tokens for c in context.generate_many(PROMPT, 1, 8, temperature=0.7, seed=3)] == [expected.tokens]


async def test_keywords_are_taken_when_awaited(actx: AsyncContext) -> None:
    expected = await actx.generate(PROMPT, 8, SamplerParams(temperature=0.7, seed=3))
    assert (await actx.generate(PROMPT, 8, temperature=0.7, seed=3)).tokens == expected.tokens
    async with actx.open_stream(PROMPT, 8, temperature=0.7, seed=3) as stream:
        assert "".join([token async for token in stream]) == expected.text
    greedy = await actx.chat(MESSAGES, 3, SamplerParams.greedy(), template="chatml")
    assert (
        await actx.chat(MESSAGES, 3, temperature=0, template="chatml")
    ).completion.tokens == greedy.completion.tokens


def test_a_callback_may_stand_second(context: Context) -> None:
    seen: list[str] = []
    completion = context.generate_streaming(PROMPT, seen.append, config=GREEDY)
    assert "".join(seen) == completion.text == context.generate(PROMPT, GREEDY).text
    with pytest.raises(InvalidParameter, match="two callbacks"):
        context.generate_streaming(PROMPT, seen.append, seen.append)
    for callback in (None, 5):
        with pytest.raises(InvalidParameterType, match="callback must be a function"):
            context.generate_streaming(PROMPT, 5, callback)  # type: ignore[arg-type]


async def test_a_coroutine_function_may_stand_second(actx: AsyncContext) -> None:
    seen: list[str] = []

    async def callback(token: TokenData) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(token)

    completion = await actx.generate_streaming(PROMPT, callback, config=GREEDY)
    assert "".join(seen) == completion.text != ""


# -- time limits: streams have one, calls that return a whole text have none


def test_only_streams_have_a_time_limit_by_default(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    with context.generate_stream(PROMPT, 1) as stream:
        assert stream.config().timeout_ms == 30_000
    with context.generate_stream(PROMPT, 1, timeout_ms=0) as stream:
        assert stream.config().timeout_ms == 0
    monkeypatch.setattr(_request, "STREAM_TIMEOUT_MS", 1)
    slow: Any = {"stream_delay_ms": 2, "config": GREEDY}
    for n in (1, 2):
        assert [c.finish_reason for c in context.generate_many(PROMPT, n, **slow)] == ["length"] * n
    assert context.generate(PROMPT, **slow).finish_reason == "length"
    assert context.generate_streaming(PROMPT, lambda _: None, **slow).finish_reason == "length"
    assert context.chat(MESSAGES, template="chatml", **slow).finish_reason == "length"
    for stream in (context.generate_stream(PROMPT, **slow), context.chat_stream(MESSAGES, template="chatml", **slow)):
        with pytest.raises(TimeoutError):
            list(stream)
    with pytest.raises(TimeoutError) as caught:
        context.generate(PROMPT, timeout_ms=1, **slow)
    assert caught.value.completion.finish_reason == "timeout"  # type: ignore[attr-defined]


async def test_so_it_is_when_awaited(actx: AsyncContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_request, "STREAM_TIMEOUT_MS", 1)
    slow: Any = {"stream_delay_ms": 2, "config": GREEDY}
    assert [c.finish_reason for c in await actx.generate_many(PROMPT, 2, **slow)] == ["length"] * 2
    assert (await actx.generate(PROMPT, **slow)).finish_reason == "length"
    assert (await actx.generate_streaming(PROMPT, lambda _: None, **slow)).finish_reason == "length"
    assert (await actx.chat(MESSAGES, template="chatml", **slow)).finish_reason == "length"
    for stream in (actx.generate_stream(PROMPT, **slow), actx.chat_stream(MESSAGES, template="chatml", **slow)):
        with pytest.raises(TimeoutError):
            await stream.collect()
    with pytest.raises(TimeoutError):
        await _read(actx.open_stream(PROMPT, **slow))


async def _read(opened: Any) -> None:
    async with opened as stream:
        async for _ in stream:
            pass
