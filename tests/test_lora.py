"""LoRA adapters: what they change and what not, how streams with different adapters share the engine, and bad files."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from anyio import create_task_group
from conftest import ENDLESS, assert_idle, serving, until
from model_files import adapter

from mullama import (
    AsyncContext,
    AsyncModel,
    Context,
    InvalidParameter,
    InvalidParameterType,
    Lora,
    Model,
    ModelLoadError,
    ModelNotFoundError,
    SamplerParams,
    StreamConfig,
)

PROMPT = "Once upon a time there was a little dog who lived in a house by the sea"
GREEDY = SamplerParams.greedy(ignore_eos=True)
LARGE = 5.0


def config(lora: Any = (), max_tokens: int | None = 16, params: SamplerParams = GREEDY, **changes: Any) -> StreamConfig:
    return StreamConfig(**{"max_tokens": max_tokens, "params": params, "timeout_ms": 0, "lora": lora} | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def large(model: Model, folder: Path) -> Lora:
    return model.load_lora(adapter(folder / "large.gguf", size=LARGE))


@pytest.fixture(scope="module")
def other(model: Model, folder: Path) -> Lora:
    return model.load_lora(os.fspath(adapter(folder / "other.gguf", size=LARGE, seed=1, dtype=np.float16)))


@pytest.fixture(scope="module")
def zeros(model: Model, folder: Path) -> Lora:
    return model.load_lora(adapter(folder / "zeros.gguf", size=0.0))


# ---------------------------------------------------------------------------------------------------------- what it changes


def test_what_adapters_change(context: Context, large: Lora, other: Lora, zeros: Lora) -> None:
    def tokens(*lora: Any) -> tuple[int, ...]:
        return context.generate(PROMPT, config(lora)).tokens

    plain = tokens()
    assert tokens(zeros) == tokens((zeros, 2.0)) == tokens((large, 0.0)) == tokens((large, 0), (other, -0.0)) == plain
    different = {
        plain,
        tokens(large),
        tokens((large, -1.0)),
        tokens((large, 2)),
        tokens(other),
        tokens(large, other),
        tokens(large, (other, 0.5)),
    }
    assert len(different) == 7
    assert tokens(other, large) == tokens(large, other)  # the order does not matter
    assert tokens(large, zeros) == tokens((large, 1.0)) == tokens(large)
    assert tokens() == plain


def test_how_they_may_be_written(large: Lora, other: Lora) -> None:
    pair = (large, 1.0)
    for written in (large, [large], (large,), pair, [pair], iter([pair])):
        assert config(written).lora == (pair,)
    assert config([large, (other, 2)]).lora == config((large, (other, 2.0))).lora == (pair, (other, 2.0))
    for wrong in ("large.gguf", 3, [None], (large, "1"), (large, None), [(large, 1.0, 2.0)], [(large, True)]):
        with pytest.raises(InvalidParameterType):
            config(wrong)
    for out in ((large, float("nan")), (large, float("inf")), (large, large), [large, (large, 2.0)]):
        with pytest.raises(InvalidParameter):
            config(out)


def test_scales_are_what_the_logits_say(model: Model, folder: Path) -> None:
    """Half an adapter at twice the scale is the adapter; alpha over rank is a factor too."""
    half = model.load_lora(adapter(folder / "half.gguf", size=LARGE / 2))
    fewer = model.load_lora(adapter(folder / "alpha.gguf", size=LARGE, adapter__lora__alpha=2.0))
    whole = model.load_lora(folder / "large.gguf")
    with Context(model, n_ctx=256, n_threads=1) as context:
        tops = [
            context.generate(PROMPT, config(lora, 1, top_logprobs=10)).top_logprobs[0]
            for lora in (whole, (half, 2.0), (fewer, 2.0))
        ]
    for top in tops[1:]:
        assert [t.token_id for t in top] == [t.token_id for t in tops[0]]
        assert [t.logprob for t in top] == pytest.approx([t.logprob for t in tops[0]], abs=1e-2)


def test_prefixes_are_not_shared_between_sets(context: Context, large: Lora, other: Lora) -> None:
    def cached(*lora: Any) -> int:
        return context.generate(PROMPT, config(lora)).usage.cached_tokens

    n = len(context.model.tokenize(PROMPT)) - 1
    assert [cached(), cached(large), cached(other), cached((large, 0.5)), cached(large, other)] == [0] * 5
    assert [cached(), cached(large), cached(other), cached((large, 0.5)), cached(other, large)] == [n] * 5
    assert cached((large, 0.0)) == n  # it has no effect


@pytest.mark.anyio
async def test_a_prefix_is_not_taken_from_another_set_that_runs(actx: AsyncContext, large: Lora) -> None:
    expected = (await actx.generate(PROMPT, config(large))).tokens
    actx.clear_cache()
    async with actx.generate_stream(PROMPT, config(max_tokens=100, buffer_size=1)) as running:
        await running.receive()
        completion = await actx.generate(PROMPT, config(large))
        assert completion.usage.cached_tokens == 0
        assert completion.tokens == expected


def test_a_saved_state_leaves_them_out(model: Model, large: Lora, tmp_path: Path) -> None:
    with Context(model, n_ctx=256, n_threads=1) as context:
        context.generate(PROMPT, config(large))
        context.save_state(tmp_path / "state")
        assert context.load_state(tmp_path / "state") == 0


# ---------------------------------------------------------------------------------------------------------- side by side


def decisive(context: Context, prompt: str, lora: Any, n: int) -> tuple[int, ...]:
    """The tokens of a greedy generation, up to the first that other streams in the batch could change through rounding."""
    completion = context.generate(prompt, config(lora, n, top_logprobs=2))
    close = [i for i, (first, second) in enumerate(completion.top_logprobs) if first.logprob - second.logprob < 0.15]
    return completion.tokens[: close[0]] if close else completion.tokens


@pytest.mark.anyio
async def test_streams_of_different_sets_side_by_side(actx: AsyncContext, large: Lora, other: Lora) -> None:
    """Each yields what it yields alone."""
    sets: list[Any] = [(), large, other, (large, 0.5), [large, other], (), large, other, ()]
    prompts = ["Once upon a time", "The cat", PROMPT]
    jobs = [(prompt, lora) for lora in sets for prompt in prompts]
    alone = [decisive(actx.context, prompt, lora, 12) for prompt, lora in jobs]
    assert sum(map(len, alone)) > 50
    actx.clear_cache()
    together: dict[int, tuple[int, ...]] = {}

    async def work(i: int) -> None:
        prompt, lora = jobs[i]
        together[i] = (await actx.generate(prompt, config(lora, 12))).tokens

    async with create_task_group() as tasks:
        for i in range(len(jobs)):
            tasks.start_soon(work, i)
    assert [together[i][: len(tokens)] for i, tokens in enumerate(alone)] == alone


def test_no_set_starves(model: Model, large: Lora, other: Lora) -> None:
    """While many streams of one set generate without end, those of others finish; and none gets ahead of the rest."""
    with Context(model, n_ctx=2048, n_seq_max=8, n_threads=1) as context:
        endless = [context.generate_stream("One", config((), None, ENDLESS, buffer_size=4096)) for _ in range(5)]
        for stream in endless:
            next(stream)
        few = [context.generate_stream("Two", config(lora, 40, buffer_size=64)) for lora in (large, other)]
        for stream in few:
            assert sum(1 for _ in stream) == 40
        counts = [stream.tokens_generated() for stream in endless]
        assert min(counts) >= 10, counts
        for stream in endless:
            stream.close()
        assert_idle(context)


def test_prompts_of_one_set_while_another_decodes(model: Model, large: Lora) -> None:
    """Long prompts are processed in small chunks: the other set's tokens are generated in between."""
    with Context(model, n_ctx=2048, n_seq_max=4, n_threads=1) as context:
        context.generate("One", config((), 20))  # so that it has measured the cost of a step
        context.generate(list(range(300, 500)), config((), 1))
        with context.generate_stream("One", config((), None, ENDLESS, buffer_size=4096)) as endless:
            next(endless)
            began = context.statistics().steps
            prompts = [[i, *range(300, 1200)] for i in (300, 301, 302)]
            long = [context.generate_stream(prompt, config(large, 1)) for prompt in prompts]
            before = endless.tokens_generated()
            for stream in long:
                assert len(list(stream)) == 1
            during = endless.tokens_generated() - before
            steps = context.statistics().steps - began
        assert steps > 10
        assert during > 5
        for stream in long:
            stream.close()
        assert_idle(context)


@pytest.mark.anyio
async def test_a_slow_reader_of_one_set_blocks_no_other(actx: AsyncContext, large: Lora, other: Lora) -> None:
    async with (
        actx.generate_stream(PROMPT, config(large, None, ENDLESS, buffer_size=1)) as slow,
        actx.generate_stream(PROMPT, config(other, None, ENDLESS, stream_delay_ms=24 * 60 * 60 * 1000)) as rare,
    ):
        await slow.receive()
        await rare.receive()
        for lora in ((), other, large, (large, -1.0)):
            assert len((await actx.generate("The cat", config(lora, 30))).tokens) == 30
        assert slow.tokens_generated() <= 3
        for _ in range(10):
            await slow.receive()


@pytest.mark.anyio
async def test_cancelling_streams_of_different_sets(actx: AsyncContext, large: Lora, other: Lora) -> None:
    expected = decisive(actx.context, PROMPT, large, 60)
    for _ in range(5):
        async with create_task_group() as tasks:
            for lora in ((), other, [large, other]):
                tasks.start_soon(actx.generate, PROMPT, config(lora, None, ENDLESS))
                tasks.start_soon(actx.generate, list(range(300, 1200)), config(lora, None, ENDLESS))
            assert (await actx.generate(PROMPT, config(large, 60))).tokens[: len(expected)] == expected
            tasks.cancel_scope.cancel()


# ---------------------------------------------------------------------------------------------------------- lives


def test_an_adapter_that_is_dropped_while_it_is_worn(
    model: Model, context: Context, large: Lora, tmp_path: Path
) -> None:
    expected = context.generate(PROMPT, config(large, 40)).tokens
    mine = model.load_lora(adapter(tmp_path / "mine.gguf", size=LARGE))
    gone = weakref.ref(mine)
    stream = context.generate_stream(PROMPT, config(mine, 40, buffer_size=2))
    first = next(stream)
    del mine
    (tmp_path / "mine.gguf").unlink()
    gc.collect()
    assert (first.token_id, *(token.token_id for token in stream)) == expected
    del stream, first
    gc.collect()
    assert gone() is None
    assert context.generate(PROMPT, config(large, 40)).tokens == expected


def test_model_and_context_that_are_dropped_first(tmp_path: Path) -> None:
    own = Model.load()
    lora = own.load_lora(adapter(tmp_path / "a.gguf", size=LARGE))
    context = Context(own, n_ctx=256, n_threads=1)
    tokens = context.generate(PROMPT, config(lora)).tokens
    context.close()
    with Context(own, n_ctx=256, n_threads=1) as again:
        del context
        assert again.generate(PROMPT, config(lora)).tokens == tokens
    del own, again
    gc.collect()
    assert repr(lora) == f"<mullama.Lora {os.fspath(tmp_path / 'a.gguf')!r}>"
    with Context(lora.model, n_ctx=256, n_threads=1) as another:  # it keeps its model alive
        assert another.generate(PROMPT, config(lora)).tokens == tokens
    del another, lora
    gc.collect()


def test_of_another_model_object(context: Context, large: Lora, tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="loaded for this model") as caught:
        context.generate(PROMPT, config(Model.load().load_lora(adapter(tmp_path / "a.gguf"))))
    assert caught.value.parameter == "lora"


def test_loading_and_dropping_while_streams_change_sets(
    model: Model, context: Context, large: Lora, other: Lora, tmp_path: Path
) -> None:
    """llama.cpp keeps a list of a model's adapters without a lock."""
    path = adapter(tmp_path / "a.gguf", size=LARGE)
    expected = decisive(context, PROMPT, large, 50)
    stop = threading.Event()
    errors: list[BaseException] = []

    def load() -> None:
        try:
            while not stop.is_set():
                assert model.load_lora(path).model is model
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        streams = [context.generate_stream(PROMPT, config(lora, 50, buffer_size=64)) for lora in (large, other, ())]
        tokens = [tuple(token.token_id for token in stream) for stream in streams]
        assert tokens[0][: len(expected)] == expected
        assert [len(one) for one in tokens] == [50] * 3
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []


@pytest.mark.anyio
async def test_loading_off_the_loop(model: Model, tmp_path: Path) -> None:
    path = adapter(tmp_path / "a.gguf", size=LARGE)
    async with (
        serving(model, n_ctx=256) as context,
        context.generate_stream(PROMPT, config(max_tokens=30, buffer_size=1)) as stream,
    ):
        lora = await context.load_lora(path)
        assert lora.model is model
        async with context.generate_stream(PROMPT, config(lora, 30)) as second:
            assert len(await second.collect()) == 30
        assert len(await stream.collect()) == 30


@pytest.mark.anyio
async def test_loading_is_cancelled(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finishes loading and frees everything; the same call works again."""
    path = adapter(tmp_path / "a.gguf", size=LARGE)
    loaded: list[weakref.ref[Lora]] = []
    began, go_on = threading.Event(), threading.Event()
    load = Model.load_lora

    def held(self: Model, path: Any) -> Lora:
        began.set()
        assert go_on.wait(60)
        lora = load(self, path)
        loaded.append(weakref.ref(lora))
        return lora

    async with serving(model, n_ctx=256) as context:
        monkeypatch.setattr(Model, "load_lora", held)
        with anyio.CancelScope() as scope:
            async with create_task_group() as tasks:
                tasks.start_soon(context.load_lora, path)
                await until(began.is_set)
                scope.cancel()
                go_on.set()
        assert scope.cancelled_caught
        gc.collect()
        assert [one() for one in loaded] == [None]
        monkeypatch.undo()
        lora = await context.load_lora(path)
        assert len((await context.generate(PROMPT, config(lora, 5))).tokens) == 5


@pytest.mark.anyio
async def test_errors_of_loading_come_unwrapped(actx: AsyncContext, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        await actx.load_lora(tmp_path / "none.gguf")
    with pytest.raises(ModelLoadError, match="no LoRA adapter"):
        await actx.load_lora(actx.model.path)
    with pytest.raises(InvalidParameterType):
        await actx.load_lora(None)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_loading_by_a_model_without_weights_is_refused(tmp_path: Path) -> None:
    async with await AsyncModel.load(vocab_only=True) as model:
        with pytest.raises(ModelLoadError):
            await model.load_lora(adapter(tmp_path / "a.gguf"))
