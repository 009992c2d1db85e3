"""Cancellation in plain asyncio, without anyio; of loading a model; and with two event loops."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

import anyio
import pytest
from anyio import CancelScope, create_task_group, fail_after
from anyio.lowlevel import checkpoint
from conftest import assert_idle
from endless import LIMIT, PROMPTS, alone, config

from mullama import AsyncContext, AsyncModel, Context, Model, TokenStream


@pytest.fixture(scope="module")
def expected(model: Model) -> dict[str, list[int]]:
    """What each prompt yields if nothing is cancelled."""
    return {prompt: alone(model, prompt, 100) for prompt in PROMPTS}


@pytest.fixture(scope="module")
def shared(model: Model) -> Iterator[AsyncContext]:
    """One context for many tests, so that leftovers of one would fail the next."""
    with Context(model, n_ctx=512, n_seq_max=3, n_threads=2, reuse_prefix=False) as context:
        yield AsyncContext(context)


async def steps(n: int) -> None:
    for _ in range(n):
        await checkpoint()


async def idle(context: AsyncContext) -> None:
    """An asyncio task cannot be shielded from its own `cancel()`, so the slot may be freed a step after the task ends."""
    while context.statistics().busy or context.statistics().queued:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def run(main: Coroutine[Any, Any, None]) -> None:
    """As in a program without anyio."""
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
            await idle(shared)

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
                except asyncio.TimeoutError:  # Python 3.10 has two of them
                    continue
        assert tokens == expected[PROMPTS[0]][:60]
        if sys.version_info >= (3, 11):
            with pytest.raises(TimeoutError):  # noqa: PT012
                async with asyncio.timeout(0.05), shared.generate_stream(PROMPTS[0], config(400)) as stream:
                    async for _ in stream:
                        await asyncio.sleep(0.001)
            assert stream.completion().finish_reason == "cancelled"

        await idle(shared)

    run(main())


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

        await idle(shared)

    run(main())


# ------------------------------------------------------------------------------------------------------ loading, loops


def engines() -> int:
    return sum(thread.name == "mullama-engine" for thread in threading.enumerate())


@pytest.mark.anyio
async def test_a_load_that_is_cancelled() -> None:
    """At any step, from its progress callback or from outside; nothing is left of it."""
    before = engines()
    for k in (0, 1, 3):
        shares: list[float] = []
        with CancelScope() as scope:

            def progress(share: float, scope: CancelScope = scope, k: int = k, shares: list[float] = shares) -> None:
                shares.append(share)
                if len(shares) > k:
                    scope.cancel()

            async with await AsyncModel.load(on_progress=progress):
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert len(shares) > k
        assert shares[-1] < 1
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
            with contextlib.suppress(asyncio.CancelledError):
                await (await task).aclose()  # it was there before
        while engines() > before:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    run(main())


@pytest.mark.parametrize("backends", [("asyncio", "trio"), ("asyncio", "asyncio"), ("trio", "trio")])
def test_two_event_loops(shared: AsyncContext, expected: dict[str, list[int]], backends: tuple[str, str]) -> None:
    """Two loops share one context; cancelling in one does not disturb the other, and a stream may move between them."""
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
