"""Asynchronous models and contexts: loading, creating, sharing and closing them, and what they keep for reuse."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import CancelScope, create_task_group
from anyio.lowlevel import checkpoint
from conftest import ENDLESS, assert_idle, serving, until

from mullama import (
    AsyncContext,
    AsyncModel,
    ClosedError,
    Context,
    ContextParams,
    InvalidParameter,
    Model,
    ModelLoadError,
    ModelNotFoundError,
    SamplerParams,
    StreamConfig,
)

PROMPT = "Once upon a time there was a little dog who lived in a house by the sea"
GREEDY = SamplerParams.greedy(ignore_eos=True)
SMALL = ContextParams(n_ctx=256, n_seq_max=2, n_threads=2)


def config(max_tokens: int | None = 12, params: SamplerParams = GREEDY, **changes: Any) -> StreamConfig:
    return StreamConfig(**{"max_tokens": max_tokens, "params": params, "timeout_ms": 0} | changes)


def engines() -> int:
    return sum(thread.name == "mullama-engine" for thread in threading.enumerate())


# ---------------------------------------------------------------------------------------------------------- loading


@pytest.mark.anyio
async def test_load_makes_a_model_that_generates_and_tells_progress_on_this_thread() -> None:
    told: list[tuple[float, threading.Thread]] = []
    async with await AsyncModel.load(
        context=SMALL, on_progress=lambda share: told.append((share, threading.current_thread()))
    ) as model:
        assert len((await model.generate(PROMPT, 5, GREEDY)).tokens) == 5
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[0] >= 0.0
    assert shares[-1] == 1.0
    assert {thread for _, thread in told} == {threading.current_thread()}


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["raises", "returns False"])
async def test_on_progress_can_stop_a_load(how: str) -> None:
    class Mine(Exception):
        pass

    calls: list[float] = []

    def on_progress(share: float) -> bool:
        calls.append(share)
        if len(calls) == 3:
            if how == "raises":
                raise Mine
            return False
        return True

    before = engines()
    with pytest.raises(Mine if how == "raises" else ModelLoadError):
        await AsyncModel.load(context=SMALL, on_progress=on_progress)
    assert len(calls) == 3
    assert engines() == before
    await still_loads()


async def still_loads() -> None:
    async with await AsyncModel.load(context=SMALL) as model:
        await model.generate(PROMPT, 3, GREEDY)


@pytest.mark.anyio
async def test_a_load_is_cancelled_half_way() -> None:
    calls: list[float] = []

    def on_progress(share: float) -> None:
        calls.append(share)
        if len(calls) == 3:
            scope.cancel()

    before = engines()
    with CancelScope() as scope:
        await AsyncModel.load(context=SMALL, on_progress=on_progress)
    assert scope.cancelled_caught
    assert calls[-1] < 1.0
    assert engines() == before
    await still_loads()


@pytest.mark.anyio
async def test_a_load_that_is_cancelled_before_it_begins() -> None:
    before = engines()
    with CancelScope() as scope:
        scope.cancel()
        await AsyncModel.load(context=SMALL)
    assert scope.cancelled_caught
    await until(lambda: engines() == before)
    await still_loads()


def test_a_load_in_plain_asyncio_is_cancelled_half_way() -> None:
    """Task cancellation cannot be shielded: the task ends at once, and the worker thread undoes the rest by itself."""
    calls: list[float] = []

    async def main() -> None:
        def on_progress(share: float) -> None:
            calls.append(share)
            if len(calls) == 3:
                task.cancel()

        task = asyncio.create_task(AsyncModel.load(context=SMALL, on_progress=on_progress))
        with pytest.raises(asyncio.CancelledError):
            await task
        await still_loads()

    before = engines()
    asyncio.run(main())
    assert len(calls) < 10
    assert engines() == before


@pytest.mark.anyio
async def test_the_loop_runs_while_a_model_is_loaded() -> None:
    turns = 0

    async def sibling() -> None:
        nonlocal turns
        while True:
            turns += 1
            await checkpoint()

    seen: list[int] = []
    async with create_task_group() as tasks:
        tasks.start_soon(sibling)
        async with await AsyncModel.load(context=SMALL, on_progress=lambda _: seen.append(turns)):
            tasks.cancel_scope.cancel()
    assert len(set(seen)) > 10


@pytest.mark.anyio
async def test_errors_of_a_load_come_unwrapped(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        await AsyncModel.load(tmp_path / "none.gguf")
    with pytest.raises(InvalidParameter):
        await AsyncModel.load(n_gpu_layers=-2)
    with pytest.raises(InvalidParameter):
        await AsyncModel.load(on_progress=3)  # type: ignore[arg-type]
    (tmp_path / "bad.gguf").write_bytes(b"GGUF and nothing else")
    with pytest.raises(ModelLoadError):
        await AsyncModel.load(tmp_path / "bad.gguf")


# ---------------------------------------------------------------------------------------------------------- contexts


@pytest.mark.anyio
async def test_create_takes_a_model_of_either_kind(model: Model) -> None:
    async with await AsyncModel.load(context=SMALL) as loaded:
        for source in (model, loaded):
            async with await AsyncContext.create(source, SMALL) as context:
                assert context.n_ctx == 256
                assert len((await context.generate(PROMPT, 5, GREEDY)).tokens) == 5


@pytest.mark.anyio
async def test_create_raises_errors_unwrapped_and_can_be_cancelled(model: Model) -> None:
    before = engines()
    with pytest.raises(InvalidParameter):
        await AsyncContext.create(model, n_ctx=0)
    with CancelScope() as scope:
        scope.cancel()
        await AsyncContext.create(model, SMALL)
    assert scope.cancelled_caught
    for _ in range(5):  # wherever it is when the time limit expires
        with anyio.move_on_after(0.002) as scope:
            async with await AsyncContext.create(model, SMALL):
                pass
    await until(lambda: engines() == before)


@pytest.mark.anyio
async def test_several_contexts_of_one_model_generate_at_once(model: Model) -> None:
    texts: list[str] = []

    async def work(context: AsyncContext) -> None:
        texts.append((await context.generate(PROMPT, config(40))).text)

    one = await AsyncContext.create(model, n_ctx=256, n_seq_max=1, n_threads=2)
    async with serving(model, n_ctx=256, n_seq_max=1) as two:
        async with create_task_group() as tasks:
            tasks.start_soon(work, one)
            tasks.start_soon(work, two)
        assert texts[0] == texts[1]
        await one.aclose()
        assert (await two.generate(PROMPT, config(40))).text == texts[0]
        with pytest.raises(ClosedError):
            await one.generate(PROMPT)


@pytest.mark.anyio
async def test_closing_is_idempotent_and_a_checkpoint(model: Model) -> None:
    context = await AsyncContext.create(model, SMALL)
    with CancelScope() as scope:
        scope.cancel()
        await context.aclose()
    assert scope.cancelled_caught
    with pytest.raises(ClosedError):  # it was closed anyway
        context.generate_stream(PROMPT)
    await context.aclose()


# ---------------------------------------------------------------------------------------------------------- reuse


@pytest.mark.anyio
async def test_a_prompt_is_not_computed_again_in_the_same_slot(model: Model) -> None:
    async with serving(model, n_ctx=256, n_seq_max=1) as context:
        first = await context.generate(PROMPT, config())
        again = await context.generate(PROMPT, config())
        n = first.usage.prompt_tokens
        assert (first.usage.cached_tokens, again.usage.cached_tokens) == (0, n - 1)  # one is computed, for its logits
        assert again.tokens == first.tokens
        # A conversation continues: the prompt and all but the last token of the answer are cached.
        longer = await context.generate([*model.tokenize(PROMPT), *first.tokens, 300], config())
        assert longer.usage.cached_tokens >= n + len(first.tokens) - 1
        assert context.statistics().cached_cells > 0


@pytest.mark.anyio
async def test_a_prompt_is_copied_from_a_slot_that_is_busy(model: Model) -> None:
    async with serving(model, n_ctx=256, n_seq_max=2) as context:
        async with context.generate_stream(PROMPT, config(40, buffer_size=1)) as first:
            await first.receive()
            second = await context.generate(PROMPT, config(40))
            assert second.usage.cached_tokens == second.usage.prompt_tokens - 1
            await first.collect()
        assert first.completion().tokens == second.tokens


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["clear_cache", "clear_cache while it runs", "reuse_prefix=False"])
async def test_a_prompt_can_be_forgotten(how: str, model: Model) -> None:
    async with serving(model, n_ctx=256, n_seq_max=1, reuse_prefix=how != "reuse_prefix=False") as context:
        async with context.generate_stream(PROMPT, config()) as stream:
            if how == "clear_cache while it runs":
                await stream.receive()
                context.clear_cache()
            await stream.collect()
        if how == "clear_cache":
            context.clear_cache()
        again = await context.generate(PROMPT, config())
        assert again.usage.cached_tokens == 0
        assert again.tokens == stream.completion().tokens


# ---------------------------------------------------------------------------------------------------------- loops


def in_thread(errors: list[BaseException], function: Callable[[], None]) -> threading.Thread:
    def run() -> None:
        try:
            function()
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_two_event_loops_in_two_threads_share_one_context(context: Context) -> None:
    """Each has its own notifier; neither takes the other's tokens or wake-ups."""
    expected = {prompt: context.generate(prompt, config(60)).tokens for prompt in ("A dog", "A cat", "Rain", "Snow")}
    barrier = threading.Barrier(2)
    errors: list[BaseException] = []

    async def main(prompts: list[str]) -> None:
        shared = AsyncContext(context)
        barrier.wait()

        async def work(prompt: str) -> None:
            async with shared.generate_stream(prompt, config(60)) as stream:
                assert tuple(token.token_id for token in await stream.collect()) == expected[prompt]

        for _ in range(3):
            async with create_task_group() as tasks:
                for prompt in prompts:
                    tasks.start_soon(work, prompt)

    threads = [
        in_thread(errors, lambda: anyio.run(main, ["A dog", "A cat"], backend="asyncio")),
        in_thread(errors, lambda: anyio.run(main, ["Rain", "Snow"], backend="trio")),
    ]
    for thread in threads:
        thread.join()
    assert errors == []


def test_one_context_serves_one_loop_after_the_other(context: Context) -> None:
    """A stream can even move: started under asyncio, continued under trio, and finished without a loop."""
    shared = AsyncContext(context)
    expected = context.generate(PROMPT, config(30)).tokens
    stream = shared.generate_stream(PROMPT, config(30, buffer_size=2))
    got: list[int] = []

    async def main() -> None:
        assert (await shared.generate(PROMPT, config(30))).tokens == expected
        got.extend([(await stream.receive()).token_id for _ in range(10)])

    anyio.run(main, backend="asyncio")
    anyio.run(main, backend="trio")
    assert len(got) == 20
    assert context.generate(PROMPT, config(30)).tokens == expected
    anyio.run(main, backend="asyncio")
    assert tuple(got) == expected
    stream.close()
    assert_idle(context)


@pytest.mark.anyio
async def test_threads_and_tasks_share_one_context(actx: AsyncContext) -> None:
    expected = (await actx.generate(PROMPT, config(60))).tokens

    def in_a_thread() -> None:
        assert actx.context.generate(PROMPT, config(60)).tokens == expected

    async def in_a_task() -> None:
        assert (await actx.generate(PROMPT, config(60))).tokens == expected

    async with create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(anyio.to_thread.run_sync, in_a_thread)
            tasks.start_soon(in_a_task)


@pytest.mark.anyio
async def test_a_context_that_is_closed_under_its_streams(model: Model) -> None:
    context = await AsyncContext.create(model, SMALL)
    streams = [context.generate_stream(PROMPT, config(None, ENDLESS, buffer_size=2)) for _ in range(3)]
    await until(lambda: context.statistics().paused == 2)
    await context.aclose()
    for stream, n in zip(streams, (2, 2, 0), strict=True):
        with pytest.raises(anyio.ClosedResourceError):  # noqa: PT012
            for _ in range(3):
                await stream.receive()
        assert stream.tokens_generated() == n
        assert stream.completion().finish_reason == "error"
        await stream.aclose()
