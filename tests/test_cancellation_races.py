"""Cancellation at any moment: sweeps over steps and tokens, random interleavings, and the hand-over of the watch."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import anyio
import pytest
from anyio import CancelScope, ClosedResourceError, EndOfStream, WouldBlock, create_task_group, fail_after
from anyio.lowlevel import checkpoint
from conftest import ENDLESS, assert_idle, serving
from hypothesis import given, settings
from hypothesis import strategies as st

from mullama import AsyncContext, AsyncModel, Context, Model, StreamConfig, TokenStream

PROMPTS = ["Once upon a time", "The little dog", "One morning, Anna", "There was a boat"]
LIMIT = 90
BACKENDS = ["asyncio", "trio"]


def config(max_tokens: int, **fields: Any) -> StreamConfig:
    return StreamConfig(**({"max_tokens": max_tokens, "params": ENDLESS, "timeout_ms": 0} | fields))


@pytest.fixture(scope="module")
def expected(model: Model) -> dict[str, list[int]]:
    """What each prompt yields where nobody cancels anything."""
    with Context(model, n_ctx=512, n_seq_max=1, n_threads=2) as context:
        return {p: [token.token_id for token in context.generate_stream(p, config(200))] for p in PROMPTS}


@pytest.fixture(scope="module")
def shared(model: Model) -> Iterator[AsyncContext]:
    """One context for many examples: what one leaves behind, the next stumbles over."""
    with Context(model, n_ctx=512, n_seq_max=3, n_threads=2) as context:
        yield AsyncContext(context)


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
    n_cancelled = 0
    stream = actx.generate_stream(PROMPTS[0], config(120, buffer_size=buffer_size))
    k = 0
    with fail_after(LIMIT):
        while True:
            with CancelScope() as scope:
                async with create_task_group() as tasks:

                    async def cancel(scope: CancelScope = scope, k: int = k) -> None:
                        await steps(k)
                        scope.cancel()

                    tasks.start_soon(cancel)
                    try:
                        tokens.append((await stream.receive()).token_id)
                    except EndOfStream:
                        break
            n_cancelled += scope.cancelled_caught
            k = (k + 1) % 12
    assert tokens == expected[PROMPTS[0]][:120] == list(stream.completion().tokens)
    assert n_cancelled > 10


@pytest.mark.anyio
async def test_cancel_after_k_tokens(actx: AsyncContext, expected: dict[str, list[int]]) -> None:
    """What was generated can be read, before the cancel or after it, and nothing comes later."""
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
            assert "".join(token.text for token in tokens) == completion.text
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
    """One task's deeds with its stream. What it receives is always what was generated, in order, without a gap."""
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
                        try:
                            tokens.append((await stream.receive()).token_id)
                        except (EndOfStream, ClosedResourceError) as e:
                            assert closed or isinstance(e, EndOfStream)
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
            except (WouldBlock, EndOfStream, ClosedResourceError) as e:
                assert closed or not isinstance(e, ClosedResourceError)
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
    """Many wait on one descriptor, all but one of them through another task that may be gone at any moment."""
    dice = random.Random(seed)
    scopes: dict[int, CancelScope] = {}
    n_running = n = 12

    async def reader(i: int) -> None:
        nonlocal n_running
        prompt = PROMPTS[i % len(PROMPTS)]
        tokens: list[int] = []
        async with context.generate_stream(prompt, config(60, buffer_size=dice.choice((1, 4, 32)))) as stream:
            while not (stream.is_finished() and stream.statistics().current_buffer_used == 0):
                with CancelScope() as scopes[i]:
                    tokens.append((await stream.receive()).token_id)
        assert tokens == expected[prompt][:60]
        n_running -= 1

    async def chaos() -> None:
        while n_running:
            for scope in dice.sample(list(scopes.values()), dice.randrange(len(scopes) + 1)):
                scope.cancel()
            await steps(dice.randrange(40))

    async with serving(model, n_ctx=512, n_seq_max=5) as context:
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
    """The first of eight is cancelled; as soon as it has let go, so is the next, which has just been told to watch."""
    if native and anyio_backend[0] != "asyncio":
        pytest.skip("asyncio's own way of cancelling")
    cancels: list[Callable[[], object]] = []
    done: list[int] = []

    async def reader(i: int, stream: TokenStream) -> None:
        try:
            with CancelScope() as scope:
                cancels.append(asyncio.current_task().cancel if native else scope.cancel)  # type: ignore[union-attr]
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
                await blocker.aclose()
        assert done == [n - 1]
        assert [len(await stream.collect()) for stream in streams] == [1] * (n - 1) + [0]


@pytest.mark.anyio
async def test_a_ring_for_a_token_that_was_taken_already(model: Model) -> None:
    """It uses up the wish to be told of the next one, which has to be renewed while another task has the watch."""
    async with serving(model, n_ctx=1024, n_seq_max=2) as context:
        for _ in range(6):
            running = [context.generate_stream(PROMPTS[0], config(400)) for _ in range(2)]
            waiting = context.generate_stream(PROMPTS[1], config(1))
            with fail_after(LIMIT):
                async with create_task_group() as tasks:
                    tasks.start_soon(waiting.collect)  # it comes first and watches, with nothing to see for long
                    await steps(3)
                    for stream in running:
                        tasks.start_soon(stream.collect)
            assert [stream.tokens_generated() for stream in (*running, waiting)] == [400, 400, 1]


# ------------------------------------------------------------------------------------------------------ plain asyncio


def run(main: Coroutine[Any, Any, None]) -> None:
    """As a program without anyio does it."""
    asyncio.run(asyncio.wait_for(main, LIMIT))


def test_asyncio_task_cancel(shared: AsyncContext, expected: dict[str, list[int]]) -> None:
    """A receive whose task is cancelled has taken no token, or has returned it."""

    async def main() -> None:
        tokens: list[int] = []
        cancelled = 0
        async with shared.generate_stream(PROMPTS[0], config(100, buffer_size=3)) as stream:
            while len(tokens) < 100:
                task = asyncio.create_task(stream.receive())
                for _ in range(cancelled % 8):
                    await asyncio.sleep(0)
                task.cancel()
                try:
                    tokens.append((await task).token_id)
                except asyncio.CancelledError:
                    cancelled += 1
                    continue
                cancelled += 1
            assert stream.completion().finish_reason == "length"
        assert tokens == expected[PROMPTS[0]][:100]

        async def read() -> None:
            async with shared.generate_stream(PROMPTS[1], config(400)) as stream:
                started.set()
                async for _ in stream:
                    pass

        for k in range(10):
            started = asyncio.Event()
            task = asyncio.create_task(read())
            await started.wait()
            for _ in range(3 * k):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while shared.statistics().busy:  # nobody shields a task from its own cancel(): the slot follows
                await asyncio.sleep(0.001)

    run(main())
    assert_idle(shared.context)


def test_asyncio_time_limits(shared: AsyncContext, expected: dict[str, list[int]]) -> None:
    async def main() -> None:
        tokens = []
        async with shared.generate_stream(PROMPTS[0], config(60, buffer_size=2)) as stream:
            limit = 0.0
            while len(tokens) < 60:
                limit = (limit + 0.0003) % 0.003
                try:
                    tokens.append((await asyncio.wait_for(stream.receive(), limit)).token_id)
                except asyncio.TimeoutError:  # noqa: UP041  Python 3.10 has two of them
                    continue
        assert tokens == expected[PROMPTS[0]][:60]
        if sys.version_info >= (3, 11):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05), shared.generate_stream(PROMPTS[0], config(400)) as stream:
                    async for _ in stream:
                        await asyncio.sleep(0.001)
            assert stream.completion().finish_reason == "cancelled"

    run(main())
    while shared.statistics().busy:
        pass


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.TaskGroup came with Python 3.11")
def test_asyncio_task_group(shared: AsyncContext) -> None:
    async def read(fails: bool) -> None:
        async with shared.generate_stream(PROMPTS[0], config(400)) as stream:
            async for _ in stream:
                if fails and stream.tokens_generated() > 20:
                    raise ZeroDivisionError

    async def main() -> None:
        with pytest.raises(BaseException) as caught:  # noqa: PT012
            async with asyncio.TaskGroup() as tasks:  # type: ignore[attr-defined]
                for i in range(8):
                    tasks.create_task(read(i == 2))
        assert [type(e) for e in caught.value.exceptions] == [ZeroDivisionError]  # type: ignore[attr-defined]
        assert len((await shared.generate(PROMPTS[1], config(5))).tokens) == 5

    run(main())
    while shared.statistics().busy:
        pass


# ------------------------------------------------------------------------------------------------------ loading, loops


def engines() -> int:
    return sum(thread.name == "mullama-engine" for thread in threading.enumerate())


@pytest.mark.anyio
async def test_a_load_that_is_cancelled() -> None:
    """At any of its steps, by its own report of progress or from outside; nothing is left of it."""
    before = engines()
    for k in (0, 1, 3, 7):
        shares: list[float] = []
        with CancelScope() as scope:

            def progress(share: float, scope: CancelScope = scope, k: int = k, shares: list[float] = shares) -> None:
                shares.append(share)
                if len(shares) > k:
                    scope.cancel()

            async with await AsyncModel.load(on_progress=progress):
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert len(shares) == k + 1
        assert engines() == before
    for k in range(12):
        with CancelScope() as scope:
            async with create_task_group() as tasks:

                async def cancel(scope: CancelScope = scope, k: int = k) -> None:
                    await steps(2**k)
                    scope.cancel()

                tasks.start_soon(cancel)
                async with await AsyncModel.load(n_gpu_layers=0):
                    await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert engines() == before


def test_asyncio_cancels_a_load() -> None:
    before = engines()

    async def main() -> None:
        task = asyncio.create_task(AsyncModel.load(on_progress=lambda _: task.cancel() and None))
        with pytest.raises(asyncio.CancelledError):
            await task
        for k in range(12):
            task = asyncio.create_task(AsyncModel.load())
            for _ in range(2**k):
                await asyncio.sleep(0)
            task.cancel()
            try:
                await (await task).aclose()  # it was there before
            except asyncio.CancelledError:
                pass
        while engines() > before:
            await asyncio.sleep(0.001)

    run(main())


@pytest.mark.parametrize("backends", [("asyncio", "trio"), ("asyncio", "asyncio"), ("trio", "trio")])
def test_two_event_loops(shared: AsyncContext, expected: dict[str, list[int]], backends: tuple[str, str]) -> None:
    """One context serves both; what one cancels does not disturb the other, and a stream may move between them."""
    failures: list[BaseException] = []
    begun = threading.Barrier(2, timeout=LIMIT)

    async def cancel_many() -> None:
        begun.wait()
        for k in range(20):
            async with shared.generate_stream(PROMPTS[1], config(100)) as stream:
                for _ in range(k % 4):
                    await stream.receive()

    async def read_on() -> None:
        begun.wait()
        for prompt in PROMPTS:
            async with shared.generate_stream(prompt, config(100, buffer_size=2)) as stream:
                assert [token.token_id for token in await stream.collect()] == expected[prompt][:100]

    def thread(main: Any, backend: str) -> None:
        async def limited() -> None:
            with fail_after(LIMIT):
                await main()

        try:
            anyio.run(limited, backend=backend)
        except BaseException as e:
            failures.append(e)

    threads = [
        threading.Thread(target=thread, args=pair) for pair in zip((cancel_many, read_on), backends, strict=True)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert failures == []

    tokens: list[int] = []

    async def read_part(stream: TokenStream, n: int) -> None:
        with fail_after(LIMIT):
            with CancelScope() as scope:
                scope.cancel()
                await stream.receive()
            tokens.extend([(await stream.receive()).token_id for _ in range(n)])

    stream = shared.generate_stream(PROMPTS[0], config(40, buffer_size=4))
    for backend in backends:
        anyio.run(read_part, stream, 20, backend=backend)
    assert tokens == expected[PROMPTS[0]][:40]
    assert_idle(shared.context)
