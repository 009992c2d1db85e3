"""What users of other libraries may try: it works, or the error names the right way."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import anyio
import pytest
from conftest import until, wait_until

from mullama import (
    AsyncContext,
    AsyncModel,
    Context,
    InvalidParameterType,
    Model,
    SamplerParams,
    StreamConfig,
    TokenData,
    default_model,
)

PROMPT = "Once upon a time"
ENDLESS = StreamConfig(max_tokens=None, timeout_ms=0, params=SamplerParams(ignore_eos=True, seed=1))

pytestmark = pytest.mark.anyio

# -- creating objects


@pytest.mark.parametrize(
    ("cls", "way"), [(Model, r"Model\.load\(path\)"), (AsyncModel, r"await AsyncModel\.load\(path\)")]
)
def test_a_model_is_loaded(cls: Any, way: str) -> None:
    for arguments in ((), ("x.gguf",), (Path("x.gguf"), 5)):
        with pytest.raises(InvalidParameterType, match=way):
            cls(*arguments)


def test_a_context_of_a_model_is_created(model: Model) -> None:
    with pytest.raises(InvalidParameterType, match=r"await AsyncContext\.create\(model\)"):
        AsyncContext(model)  # type: ignore[arg-type]


async def test_fields_of_the_context_beside_those_of_the_model() -> None:
    async with await AsyncModel.load(n_ctx=300, n_threads=1, n_seq_max=2) as model:
        assert (model.params.n_ctx, model.params.n_threads, model.statistics().slots) == (300, 1, 2)
    with pytest.raises(InvalidParameterType, match=r"unknown keyword 'n_contxt'.*Did you mean n_ctx"):
        await AsyncModel.load(n_contxt=300)  # type: ignore[call-arg]


def test_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(default_model(), tmp_path / "x.gguf")
    assert Model.load("~/x.gguf", vocab_only=True).path == tmp_path / "x.gguf"
    assert Model.load(Path("~/x.gguf"), vocab_only=True).path == tmp_path / "x.gguf"
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        Model.load("~/y.gguf")
    monkeypatch.chdir(tmp_path)
    os.rename("x.gguf", "~x.gguf")  # noqa: PTH104
    assert Model.load("~x.gguf", vocab_only=True).path == Path("~x.gguf")


# -- reading


async def test_a_stream_is_no_iterator(actx: AsyncContext) -> None:
    async with actx.generate_stream(PROMPT, 1) as stream:
        with pytest.raises(TypeError, match="TokenStream must be read with `async for`"):
            list(stream)  # type: ignore[call-overload]


async def test_an_iterator_is_no_stream(context: Context) -> None:
    with (
        context.generate_stream(PROMPT, 1) as stream,
        pytest.raises(TypeError, match="TokenIterator must be read with `for`"),
    ):
        [token async for token in stream]  # type: ignore[attr-defined]


async def test_map_with_a_coroutine_function(actx: AsyncContext) -> None:
    async def loud(token: TokenData) -> str:
        await anyio.lowlevel.checkpoint()
        return token.upper()

    expected = await actx.generate(PROMPT, 5, temperature=0)
    assert await actx.generate_stream(PROMPT, 5, temperature=0).map(loud).text() == expected.text.upper()
    assert await actx.generate_stream(PROMPT, 5, temperature=0).map(str.upper).text() == expected.text.upper()


async def test_map_loses_nothing_to_cancellation(actx: AsyncContext) -> None:
    expected = await actx.generate(PROMPT, 3, temperature=0)
    entered, go_on = anyio.Event(), anyio.Event()
    calls: list[str] = []

    async def slow(token: TokenData) -> str:
        calls.append(str(token))
        entered.set()
        await go_on.wait()
        return str(token)

    async with actx.generate_stream(PROMPT, 3, temperature=0).map(slow) as stream:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.receive)
            await entered.wait()
            tasks.cancel_scope.cancel()
        go_on.set()
        assert await stream.text() == expected.text
    assert calls[0] == calls[1]


async def test_an_item_whose_function_fails_is_gone(actx: AsyncContext) -> None:
    failed: list[str] = []

    async def once(token: TokenData) -> str:
        await anyio.lowlevel.checkpoint()
        if not failed:
            failed.append(str(token))
            raise LookupError(token)
        return str(token)

    async with actx.generate_stream(PROMPT, 3, temperature=0).map(once) as stream:
        with pytest.raises(LookupError):
            await stream.receive()
        rest = await stream.text()
    assert failed[0] + rest == (await actx.generate(PROMPT, 3, temperature=0)).text


# -- options


async def test_contexts_tokenize(context: Context, actx: AsyncContext) -> None:
    for one in (context, actx):
        tokens = one.tokenize(PROMPT, add_special=False)
        assert tokens == one.model.tokenize(PROMPT, add_special=False)
        assert one.detokenize(tokens) == one.model.detokenize(tokens)
        assert one.token_bytes(tokens[0]) == one.model.token_bytes(tokens[0])
        assert one.token_is_eog(one.model.token_eos)


# -- repr


def test_what_a_context_shows(model: Model) -> None:
    context = Context(model, n_ctx=300, n_seq_max=1, n_threads=1)
    assert repr(context) == f"<mullama.Context of {model.name!r}: open, 0 of 1 slots busy, 0 queued>"
    with context.generate_stream(PROMPT, ENDLESS) as stream, context.generate_stream(PROMPT, ENDLESS):
        next(stream)
        wait_until(lambda: "1 of 1 slots busy, 1 queued" in repr(context))
    context.close()
    assert repr(context) == f"<mullama.Context of {model.name!r}: closed>"


async def test_what_an_awaiting_context_shows(actx: AsyncContext) -> None:
    assert repr(actx).startswith(f"<mullama.AsyncContext of {actx.model.name!r}: open, 0 of 8")
    async with await AsyncModel.load(vocab_only=True) as model:
        assert repr(model) == f"<mullama.AsyncModel of {actx.model.name!r}: vocabulary only>"


def test_what_an_iterator_shows(context: Context) -> None:
    with context.generate_stream(PROMPT, ENDLESS, buffer_size=2) as stream:
        wait_until(lambda: stream.statistics().paused)
        assert repr(stream) == "<mullama.TokenIterator generating, 2 tokens>"
        stream.cancel()
        wait_until(stream.is_finished)
        assert repr(stream) == "<mullama.TokenIterator finished (cancelled), 2 tokens>"
    assert repr(stream) == "<mullama.TokenIterator closed, 2 tokens>"


async def test_what_a_stream_shows(actx: AsyncContext) -> None:
    async with actx.generate_stream(PROMPT, 3, ignore_eos=True) as stream:
        await until(stream.is_finished)
        assert repr(stream) == "<mullama.TokenStream finished (length), 3 tokens>"
    assert repr(stream) == "<mullama.TokenStream closed, 3 tokens>"
