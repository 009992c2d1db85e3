"""Callbacks: what they receive, what their return values mean, and that their exceptions propagate unchanged."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from conftest import ENDLESS, assert_idle, until, wait_until

from mullama import (
    AsyncContext,
    AsyncModel,
    Context,
    InvalidParameter,
    Model,
    SamplerParams,
    StreamConfig,
    StreamControl,
    StreamingError,
    TokenData,
)

PROMPT = "Once upon a time"
GREEDY = SamplerParams.greedy(ignore_eos=True)
GO_ON = pytest.mark.parametrize("answer", [True, None, StreamControl.CONTINUE], ids=repr)
STOP = pytest.mark.parametrize("answer", [False, StreamControl.STOP], ids=repr)
NEITHER = pytest.mark.parametrize("answer", [0, 1, "", "stop", [], 0.0, StreamControl], ids=repr)


class Stumble(Exception):
    """What a callback of these tests raises."""


def after(n: int, answer: Any, seen: list[TokenData]) -> Callable[[TokenData], Any]:
    """A callback that returns this answer, or raises it, from its n-th token on."""

    def callback(token: TokenData) -> Any:
        seen.append(token)
        if len(seen) < n:
            return None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    return callback


# ------------------------------------------------------------------------------ blocking


@GO_ON
def test_every_token_is_called_with(context: Context, answer: Any) -> None:
    seen: list[TokenData] = []
    completion = context.generate_streaming(PROMPT, 12, after(1, answer, seen), GREEDY)
    assert all(type(token) is TokenData for token in seen)
    assert tuple(token.token_id for token in seen) == completion.tokens
    assert tuple(token.logprob for token in seen) == completion.logprobs
    assert "".join(seen) == completion.text
    assert [token.is_final for token in seen] == [False] * 11 + [True]
    assert (completion.finish_reason, completion.usage.completion_tokens) == ("length", 12)
    assert completion.tokens == context.generate(PROMPT, 12, GREEDY).tokens


@STOP
def test_stop(context: Context, answer: Any) -> None:
    seen: list[TokenData] = []
    completion = context.generate_streaming(PROMPT, None, after(3, answer, seen), GREEDY)
    assert len(seen) == 3
    assert completion.finish_reason == "cancelled"
    assert completion.tokens[:3] == tuple(token.token_id for token in seen)
    assert completion.text.startswith("".join(seen))
    assert len(completion.tokens) <= 3 + 32 + 1, "no more than lay ready"
    assert_idle(context)


@NEITHER
def test_any_other_answer_is_refused(context: Context, answer: Any) -> None:
    seen: list[TokenData] = []
    with pytest.raises(InvalidParameter, match="the callback's answer must be") as caught:
        context.generate_streaming(PROMPT, None, after(2, answer, seen), ENDLESS)
    assert isinstance(caught.value, TypeError)
    assert len(seen) == 2
    assert_idle(context)


def test_a_coroutine_function_is_refused_where_nobody_awaits(context: Context) -> None:
    async def callback(token: TokenData) -> None:
        raise AssertionError("never runs")

    with pytest.raises(InvalidParameter, match="coroutine"):
        context.generate_streaming(PROMPT, None, callback, ENDLESS)  # type: ignore[arg-type]
    assert_idle(context)


@pytest.mark.parametrize("error", [Stumble("here"), StopIteration(3), KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_an_exception_comes_out_unchanged(context: Context, error: BaseException) -> None:
    seen: list[TokenData] = []
    with pytest.raises(type(error)) as caught:
        context.generate_streaming(PROMPT, None, after(2, error, seen), ENDLESS)
    assert caught.value is error
    assert (error.__cause__, error.__context__) == (None, None)
    assert len(seen) == 2
    assert_idle(context)
    assert len(context.generate(PROMPT, 3, GREEDY).tokens) == 3


@pytest.mark.parametrize("callback", [None, 3, "print"], ids=repr)
def test_what_cannot_be_called_is_refused_before_anything_runs(context: Context, callback: Any) -> None:
    before = context.statistics().tokens_in
    with pytest.raises(InvalidParameter, match="callback must be a function"):
        context.generate_streaming(PROMPT, 5, callback)
    assert context.statistics().tokens_in == before


def test_a_whole_configuration_in_place_of_max_tokens(context: Context) -> None:
    seen: list[TokenData] = []
    config = StreamConfig(max_tokens=5, params=GREEDY, top_logprobs=2)
    completion = context.generate_streaming(PROMPT, config, seen.append)  # type: ignore[arg-type]
    assert len(seen) == len(completion.tokens) == 5
    assert all(len(token.top_logprobs) == 2 for token in seen)


def test_stop_strings_and_the_last_token(context: Context) -> None:
    text = context.generate(PROMPT, 20, GREEDY).text
    stop = text[8:12]
    seen: list[TokenData] = []
    config = StreamConfig(max_tokens=20, params=GREEDY, stop_sequences=[stop])
    completion = context.generate_streaming(PROMPT, config, after(1, None, seen))
    assert "".join(seen) == completion.text == text[: text.index(stop)]
    assert (completion.finish_reason, completion.stop_sequence) == ("stop", stop)
    assert seen[-1].is_final


def test_the_time_limit_holds_for_a_slow_callback_too(context: Context) -> None:
    seen: list[TokenData] = []

    def callback(token: TokenData) -> None:
        seen.append(token)
        wait_until(lambda: context.statistics().busy == 0)  # until the engine has reaped it

    config = StreamConfig(max_tokens=None, params=ENDLESS, timeout_ms=1000)
    with pytest.raises(StreamingError) as caught:
        context.generate_streaming(PROMPT, config, callback)
    assert caught.value.code == "STREAM_TIMEOUT"
    assert seen


def test_a_callback_may_use_the_context(context: Context) -> None:
    inner: list[str] = []

    def callback(token: TokenData) -> bool:
        inner.append(context.generate(PROMPT, 2, GREEDY).text)
        return len(inner) < 3

    completion = context.generate_streaming(PROMPT, None, callback, ENDLESS)
    assert completion.finish_reason == "cancelled"
    assert len(set(inner)) == 1
    assert len(inner) == 3


def test_neighbours_go_on(context: Context) -> None:
    alone = context.generate(PROMPT, 40, GREEDY).tokens
    with context.generate_stream(PROMPT, 40, GREEDY) as neighbour:
        with pytest.raises(Stumble):
            context.generate_streaming("A dog", None, after(4, Stumble(), []), ENDLESS)
        assert tuple(token.token_id for token in neighbour) == alone


# ------------------------------------------------------------------------------ awaiting


@pytest.fixture(params=["function", "coroutine function", "partial of one", "object"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def of_kind(kind: str, callback: Callable[[TokenData], Any]) -> Callable[[TokenData], Any]:
    """The same callback in one of the forms that the asynchronous API accepts."""

    async def coroutine(token: TokenData) -> Any:
        await anyio.lowlevel.checkpoint()
        return callback(token)

    class Callback:
        async def __call__(self, token: TokenData) -> Any:
            return callback(token)

    forms = {"function": callback, "coroutine function": coroutine, "partial of one": functools.partial(coroutine)}
    return forms.get(kind) or Callback()


@GO_ON
@pytest.mark.anyio
async def test_async_every_token_is_called_with(actx: AsyncContext, kind: str, answer: Any) -> None:
    seen: list[TokenData] = []
    completion = await actx.generate_streaming(PROMPT, 12, of_kind(kind, after(1, answer, seen)), GREEDY)
    assert tuple(token.token_id for token in seen) == completion.tokens
    assert "".join(seen) == completion.text
    assert completion.finish_reason == "length"


@STOP
@pytest.mark.anyio
async def test_async_stop(actx: AsyncContext, kind: str, answer: Any) -> None:
    seen: list[TokenData] = []
    completion = await actx.generate_streaming(PROMPT, None, of_kind(kind, after(3, answer, seen)), ENDLESS)
    assert len(seen) == 3
    assert completion.finish_reason == "cancelled"
    assert completion.tokens[:3] == tuple(token.token_id for token in seen)
    assert_idle(actx.context)


@NEITHER
@pytest.mark.anyio
async def test_async_any_other_answer_is_refused(actx: AsyncContext, answer: Any) -> None:
    for kind in ("function", "coroutine function"):
        with pytest.raises(InvalidParameter, match="the callback's answer must be"):
            await actx.generate_streaming(PROMPT, None, of_kind(kind, after(2, answer, [])), ENDLESS)
        assert_idle(actx.context)


@pytest.mark.anyio
async def test_async_an_exception_comes_out_unchanged(actx: AsyncContext, kind: str) -> None:
    error = Stumble("here")
    with pytest.raises(Stumble) as caught:
        await actx.generate_streaming(PROMPT, None, of_kind(kind, after(2, error, [])), ENDLESS)
    assert caught.value is error
    assert (error.__cause__, error.__context__) == (None, None)
    assert_idle(actx.context)


@pytest.mark.anyio
async def test_async_cancelled_in_its_callback(actx: AsyncContext) -> None:
    entered = anyio.Event()

    async def callback(token: TokenData) -> None:
        entered.set()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(actx.generate_streaming, PROMPT, None, callback, ENDLESS)
        await entered.wait()
        tasks.cancel_scope.cancel()
    assert_idle(actx.context)


@pytest.mark.anyio
async def test_async_a_callback_that_waits_pauses_its_own_stream_only(actx: AsyncContext) -> None:
    go_on = anyio.Event()
    seen: list[TokenData] = []

    async def callback(token: TokenData) -> None:
        seen.append(token)
        await go_on.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(actx.generate_streaming, PROMPT, 60, callback, ENDLESS)
        await until(lambda: actx.statistics().paused == 1)
        assert len((await actx.generate("A dog", 40, ENDLESS)).tokens) == 40
        assert len(seen) == 1
        go_on.set()
    assert len(seen) == 60


@pytest.mark.anyio
async def test_async_what_cannot_be_called_is_refused(actx: AsyncContext) -> None:
    with pytest.raises(InvalidParameter, match="callback must be a function"):
        await actx.generate_streaming(PROMPT, 5)


@pytest.mark.anyio
async def test_async_model_has_it_too(model: Model) -> None:
    seen: list[TokenData] = []
    async with await AsyncModel.load() as amodel:
        completion = await amodel.generate_streaming(PROMPT, 4, after(1, True, seen), GREEDY)
    assert completion.text == "".join(seen)
