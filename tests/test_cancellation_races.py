"""Cancellation at any moment: sweeps over steps and tokens, random interleavings, and handing over the watch."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio import CancelScope, EndOfStream, WouldBlock, create_task_group, fail_after
from anyio.lowlevel import checkpoint
from conftest import assert_idle, serving
from endless import LIMIT, PROMPTS, alone, config
from hypothesis import given, settings
from hypothesis import strategies as st

from mullama import AsyncContext, Context, Model, TokenStream

BACKENDS = ["asyncio", "trio"]


@pytest.fixture(scope="module")
def expected(model: Model) -> dict[str, list[int]]:
    """What each prompt yields if nothing is cancelled."""
    return {prompt: alone(model, prompt, 200) for prompt in PROMPTS}


@pytest.fixture(scope="module")
def shared(model: Model) -> Iterator[AsyncContext]:
    """One context for many examples, so that leftovers of one would fail the next."""
    with Context(model, n_ctx=512, n_seq_max=3, n_threads=2, reuse_prefix=False) as context:
        yield AsyncContext(context)


@pytest.fixture
async def actx(model: Model) -> AsyncIterator[AsyncContext]:
    """Like the one in conftest.py, but without reuse, because a cached prefix changes the last bits of a probability."""
    async with serving(model, n_ctx=512, n_seq_max=8, reuse_prefix=False) as context:
        yield context


async def steps(n: int) -> None:
    for _ in range(n):
        await checkpoint()


# ------------------------------------------------------------------------------------------------------ sweeps


@pytest.mark.anyio
@pytest.mark.parametrize("buffer_size", [1, 32])
async def test_receives_that_are_cancelled_after_k_steps_lose_no_token(
    actx: AsyncContext, expected: dict[str, list[int]], buffer_size: int
) -> None:
    tokens: list[int] = []
    n_cancelled = k = 0
    at_end = False
    stream = actx.generate_stream(PROMPTS[0], config(120, buffer_size=buffer_size))
    with fail_after(LIMIT):
        while not at_end:
            with CancelScope() as scope:
                async with create_task_group() as tasks:

                    async def cancel(scope: CancelScope = scope, k: int = k) -> None:
                        await steps(k)
                        scope.cancel()

                    tasks.start_soon(cancel)
                    before = len(tokens)
                    try:
                        tokens.append((await stream.receive()).token_id)
                    except EndOfStream:
                        at_end = True
            n_cancelled += len(tokens) == before
            k = (k + 1) % 12
    assert tokens == expected[PROMPTS[0]][:120] == list(stream.completion().tokens)
    assert n_cancelled > 10


@pytest.mark.anyio
async def test_cancel_after_k_tokens(actx: AsyncContext, expected: dict[str, list[int]]) -> None:
    """What was generated can be read, whether before or after the cancel, and nothing is added."""
    for k in range(24):
        prompt = PROMPTS[k % len(PROMPTS)]
        async with actx.generate_stream(prompt, config(150, buffer_size=1 + k % 7)) as stream:
            with fail_after(LIMIT):
                tokens = [await stream.receive() for _ in range(k)]
                stream.cancel()
                n = stream.tokens_generated()
                tokens += await stream.collect()
            assert stream.tokens_generated() == n
            completion = stream.completion()
            assert completion.finish_reason == "cancelled"
            assert [token.token_id for token in tokens] == list(completion.tokens) == expected[prompt][: len(tokens)]
            assert k <= len(tokens) <= k + 1 + k % 7
            text = "".join(token.text for token in tokens)
            assert completion.text.startswith(text)  # and may also have what was held back: half a character
    assert_idle(actx.context)


@pytest.mark.anyio
async def test_streams_that_are_cancelled_after_k_steps(actx: AsyncContext, expected: dict[str, list[int]]) -> None:
    """Eight of sixteen, so that some wait in the queue."""

    async def reader(prompt: str, k: int) -> None:
        async with actx.generate_stream(prompt, config(60, buffer_size=1 + k % 5)) as stream:
            with CancelScope() as scope:
                async with create_task_group() as tasks:

                    async def cancel() -> None:
                        await steps(3 * k)
                        scope.cancel()

                    if k % 2:
                        tasks.start_soon(cancel)
                    tokens = [token.token_id for token in await stream.collect()]
                    assert tokens == expected[prompt][:60]
                    scope.cancel()

    for _ in range(3):
        with fail_after(LIMIT):
            async with create_task_group() as tasks:
                for k in range(16):
                    tasks.start_soon(reader, PROMPTS[k % len(PROMPTS)], k)
        assert_idle(actx.context)


# ------------------------------------------------------------------------------------------------------ interleavings

DO = st.one_of(
    st.tuples(st.sampled_from(["receive", "receive", "steps"]), st.integers(0, 60)),
    st.tuples(st.sampled_from(["nowait", "cancel", "close", "aclose"]), st.just(0)),
)
STREAMS = st.tuples(st.integers(0, 3), st.sampled_from([1, 2, 40]), st.sampled_from([1, 30]), st.lists(DO, max_size=8))


async def play(context: AsyncContext, expected: list[int], stream: TokenStream, deeds: list[tuple[str, int]]) -> None:
    """One task's random operations on its stream. It must receive what was generated, in order, without gaps."""
    tokens: list[int] = []
    closed = False
    for what, n in deeds:
        with CancelScope() as scope:
            try:
                if what == "receive":
                    async with create_task_group() as tasks:

                        async def cancel(scope: CancelScope = scope, n: int = n) -> None:
                            await steps(n)
                            scope.cancel()

                        tasks.start_soon(cancel)
                        with suppress(EndOfStream):
                            tokens.append((await stream.receive()).token_id)
                elif what == "nowait":
                    tokens.append(stream.receive_nowait().token_id)
                elif what == "steps":
                    await steps(n)
                elif what == "cancel":
                    stream.cancel()
                elif what == "close":
                    closed = True
                    stream.close()
                else:
                    closed = True
                    await stream.aclose()
            except (WouldBlock, EndOfStream):
                pass
            except BaseException as e:  # in a group, if it was raised by receive()
                if not closed or "was closed" not in repr(e):
                    raise
    stream.cancel()
    if not closed:
        tokens += [token.token_id for token in await stream.collect()]
    await stream.aclose()
    completion = stream.completion()
    assert tokens == list(completion.tokens)[: len(tokens)]
    assert closed or len(tokens) == len(completion.tokens)
    assert list(completion.tokens) == expected[: len(completion.tokens)]
    assert stream.statistics().current_buffer_used == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_random_interleavings(shared: AsyncContext, expected: dict[str, list[int]], backend: str) -> None:
    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(st.lists(STREAMS, min_size=1, max_size=6))
    def check(plan: list[tuple[int, int, int, list[tuple[str, int]]]]) -> None:
        async def main() -> None:
            neighbour = shared.generate_stream(PROMPTS[3], config(20, buffer_size=40))
            with fail_after(LIMIT):
                async with create_task_group() as tasks:
                    for i, buffer_size, n, deeds in plan:
                        stream = shared.generate_stream(PROMPTS[i], config(n, buffer_size=buffer_size))
                        tasks.start_soon(play, shared, expected[PROMPTS[i]], stream, deeds)
                tokens = [token.token_id for token in await neighbour.collect()]
            assert tokens == expected[PROMPTS[3]][:20]
            assert_idle(shared.context)

        anyio.run(main, backend=backend)

    check()


# ------------------------------------------------------------------------------------------------------ the watch


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(3))
async def test_readers_that_are_cancelled_at_random(model: Model, expected: dict[str, list[int]], seed: int) -> None:
    """Many tasks wait on one descriptor, all but one of them through another task that may end at any moment."""
    dice = random.Random(seed)
    scopes: dict[int, CancelScope] = {}
    n_running = n = 12

    async def reader(i: int) -> None:
        nonlocal n_running
        prompt = PROMPTS[i % len(PROMPTS)]
        tokens: list[int] = []
        async with context.generate_stream(prompt, config(60, buffer_size=dice.choice((1, 4, 32)))) as stream:
            while len(tokens) < 60:
                with CancelScope() as scopes[i]:
                    tokens.append((await stream.receive()).token_id)
        assert tokens == expected[prompt][:60]
        n_running -= 1

    async def chaos() -> None:
        while n_running:
            for scope in dice.sample(list(scopes.values()), dice.randrange(len(scopes) + 1)):
                scope.cancel()
            await steps(dice.randrange(40))

    async with serving(model, n_ctx=512, n_seq_max=5, reuse_prefix=False) as context:
        with fail_after(LIMIT):
            async with create_task_group() as tasks:
                for i in range(n):
                    tasks.start_soon(reader, i)
                tasks.start_soon(chaos)


@pytest.mark.anyio
@pytest.mark.parametrize("native", [False, True])
async def test_each_watcher_is_cancelled_when_the_watch_comes_to_it(
    model: Model, anyio_backend: tuple[str, Any], native: bool
) -> None:
    """The first of eight is cancelled; as soon as it has ended, so is the next, which has just taken over the watch."""
    if native and anyio_backend[0] != "asyncio":
        pytest.skip("asyncio's own way of cancelling")
    cancels: dict[int, Callable[[], object]] = {}
    done: list[int] = []

    async def reader(i: int, stream: TokenStream) -> None:
        try:
            with CancelScope() as scope:
                cancels[i] = asyncio.current_task().cancel if native else scope.cancel  # type: ignore[union-attr]
                await stream.receive()
                done.append(i)
        except asyncio.CancelledError:
            assert native
        finally:
            if len(done) == 0 and i + 2 < n:
                cancels[i + 1]()

    n = 8
    async with serving(model, n_ctx=512, n_seq_max=1) as context:
        blocker = context.generate_stream(PROMPTS[0], config(200, buffer_size=1))
        streams = [context.generate_stream(PROMPTS[1], config(1)) for _ in range(n)]
        with fail_after(LIMIT):
            async with create_task_group() as tasks:
                for i, stream in enumerate(streams):
                    tasks.start_soon(reader, i, stream)
                while len(cancels) < n:
                    await checkpoint()
                await steps(5)  # now all of them wait
                cancels[0]()
                await steps(5 * n)
                blocker.close()  # without waiting, which would be another watcher
        assert done == [n - 1]
        assert [len(await stream.collect()) for stream in streams] == [1] * (n - 1) + [0]


@pytest.mark.anyio
async def test_fast_readers_beside_a_watcher_that_waits_long(model: Model) -> None:
    """The same with an engine: the queued stream watches, and those before it must be notified of each token."""
    async with serving(model, n_ctx=1024, n_seq_max=2, n_threads=1) as context:
        for _ in range(2):
            running = [context.generate_stream(PROMPTS[0], config(300)) for _ in range(2)]
            waiting = context.generate_stream(PROMPTS[1], config(1))
            with fail_after(LIMIT):
                async with create_task_group() as tasks:
                    tasks.start_soon(waiting.collect)
                    await steps(3)
                    for stream in running:
                        tasks.start_soon(stream.collect)
            assert [stream.tokens_generated() for stream in (*running, waiting)] == [300, 300, 1]
