"""How waiting readers are woken: the notifier's ready list, who watches it, and that no wake-up is lost or for nothing."""

from __future__ import annotations

import select
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from anyio import CancelScope, create_task_group, fail_after
from anyio.lowlevel import checkpoint
from conftest import serving, until, wait_until
from endless import FOREVER_MS, LIMIT, PROMPT, PROMPTS, alone, config

from mullama import AsyncContext, Context, Model
from mullama._core import Notifier
from mullama._wakeup import wait_until_ready

ONE_TOKEN = config(None, stream_delay_ms=FOREVER_MS)


def readable(notifier: Notifier) -> bool:
    return bool(select.select([notifier], [], [], 0)[0])


async def steps(n: int) -> None:
    for _ in range(n):
        await checkpoint()


# ---------------------------------------------------------------------------------------------------------- the ready list


@pytest.fixture
def full(model: Model) -> Iterator[Context]:
    """A context whose one slot is taken: streams wait in its queue until they are cancelled."""
    with (
        Context(model, n_ctx=256, n_seq_max=1, n_threads=1) as context,
        context.generate_stream(PROMPT, config=ONE_TOKEN) as blocker,
    ):
        assert blocker.next() is not None
        yield context


def test_the_keys_of_those_that_were_notified_are_drained_once(full: Context) -> None:
    notifier = Notifier()
    streams = [full.generate_stream(PROMPT)._generation.core for _ in range(5)]
    for key, stream in enumerate(streams):
        assert not stream.arm(notifier, 10 + key)
    assert not readable(notifier)
    assert notifier.drain() == []
    for key in (3, 1, 4):
        streams[key].cancel()
        wait_until(lambda key=key: streams[key].ended)  # type: ignore[misc]
    wait_until(lambda: readable(notifier))
    drained: list[int] = []
    while len(drained) < 3:  # the last one may have ended, and not be listed yet
        drained += notifier.drain()
    assert drained == [13, 11, 14]
    assert notifier.drain() == []
    assert streams[3].arm(notifier, 13)
    assert not readable(notifier)


def test_a_stream_that_is_dropped_is_not_listed_any_more(full: Context) -> None:
    notifier = Notifier()
    stream = full.generate_stream(PROMPT)._generation.core
    assert not stream.arm(notifier, 1)
    stream.cancel()
    wait_until(lambda: readable(notifier))
    wait_until(lambda: full.statistics().queued == 0)
    del stream
    wait_until(lambda: notifier.drain() == [])  # the engine may hold it for a moment
    assert not readable(notifier)


def test_a_stream_notifies_the_notifier_that_it_was_armed_with_last(full: Context) -> None:
    first, second = Notifier(), Notifier()
    stream = full.generate_stream(PROMPT)._generation.core
    assert not stream.arm(first, 1)
    assert not stream.arm(second, 2)
    stream.cancel()
    wait_until(lambda: readable(second))
    assert (first.drain(), second.drain()) == ([], [2])


# ---------------------------------------------------------------------------------------------------------- waiting tasks


class Told:
    """A stream as those who wait see it, which is notified when the test says so: by the end of one that was in the queue."""

    def __init__(self, context: AsyncContext) -> None:
        self.context = context
        self.notifier: Notifier | None = None
        self.ready = self.armed = False
        self.n_armed = 0
        self.ended: list[Any] = []  # kept: one that is dropped is listed no more

    def arm(self, notifier: Notifier, key: int) -> bool:
        self.notifier, self.armed = notifier, not self.ready
        self.n_armed += 1
        return self.ready

    async def notify(self) -> None:
        if self.armed:
            assert self.notifier is not None
            self.armed = False
            queued = self.context.generate_stream(PROMPT)._generation.core
            assert not queued.arm(self.notifier, id(self))
            queued.cancel()
            self.ended.append(queued)


@pytest.fixture
async def busy(model: Model) -> AsyncIterator[AsyncContext]:
    """As `full`, for tasks."""
    async with (
        serving(model, n_ctx=256, n_seq_max=1, n_threads=1) as context,
        context.generate_stream(PROMPT, ONE_TOKEN) as blocker,
    ):
        await blocker.receive()
        yield context


async def wait(told: Any) -> None:
    await wait_until_ready(told)


@pytest.mark.anyio
async def test_a_notification_of_a_token_that_was_taken_already(busy: AsyncContext) -> None:
    """It uses up the wish to be notified of the next one, which is renewed, whoever watches."""
    watched, followed = Told(busy), Told(busy)
    with fail_after(LIMIT):
        async with create_task_group() as tasks:
            tasks.start_soon(wait, watched)
            await steps(5)
            tasks.start_soon(wait, followed)
            await steps(5)
            for told in (followed, watched):
                n = told.n_armed
                await told.notify()  # its reader has taken the token, and armed again, between the push and this
                await until(lambda told=told, n=n: told.n_armed > n and told.armed)  # type: ignore[misc]
            for told in (followed, watched):
                told.ready = True
                await told.notify()


@pytest.mark.anyio
async def test_who_has_nothing_to_read_is_left_alone(busy: AsyncContext) -> None:
    """A wake-up costs in proportion to those that are woken, however many wait."""
    idle = [Told(busy) for _ in range(50)]
    read = Told(busy)
    with fail_after(LIMIT):
        async with create_task_group() as tasks:
            for told in idle:
                tasks.start_soon(wait, told)
            await until(lambda: all(told.armed for told in idle))
            for _ in range(10):
                async with create_task_group() as reading:
                    read.ready = False
                    reading.start_soon(wait, read)
                    await until(lambda: read.armed)
                    read.ready = True
                    await read.notify()
            # one of them may watch, and look at its own stream each time
            assert sorted(told.n_armed for told in idle)[:-1] == [1] * 49
            for told in idle:
                told.ready = True
                await told.notify()


@pytest.mark.anyio
@pytest.mark.parametrize("k", range(6))
async def test_a_wait_that_is_cancelled_when_it_was_just_notified(k: int, busy: AsyncContext) -> None:
    """Its key may be drained by then: neither another that waits for the same stream nor the next wait misses anything."""
    told, bystander = Told(busy), Told(busy)
    scope = CancelScope()

    async def cancelled() -> None:
        with scope:
            await wait(told)

    with fail_after(LIMIT):
        async with create_task_group() as tasks:
            tasks.start_soon(cancelled)
            tasks.start_soon(wait, bystander)
            tasks.start_soon(wait, told)
            await until(lambda: told.n_armed >= 2 and bystander.armed)
            told.ready = True
            await told.notify()
            await steps(k)
            scope.cancel()
            await steps(5)
            bystander.ready = True
            await bystander.notify()
        told.ready = False
        async with create_task_group() as tasks:
            tasks.start_soon(wait, told)
            await until(lambda: told.armed)
            told.ready = True
            await told.notify()


@pytest.mark.anyio
async def test_each_that_waits_for_one_stream_is_woken_at_its_end(model: Model) -> None:
    """One reads and another closes."""
    async with serving(model, n_ctx=256, n_seq_max=1) as context:
        blocker = context.generate_stream(PROMPT, ONE_TOKEN)
        await blocker.receive()
        ended: list[bool] = []

        async def until_the_end(core: Any) -> None:
            while not core.ended:
                await wait(core)
            ended.append(True)

        stream = context.generate_stream(PROMPT, config(3))
        with fail_after(LIMIT):
            async with create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(until_the_end, stream._generation.core)
                await steps(5)
                await stream.aclose()
            await blocker.aclose()
        assert ended == [True] * 3


@pytest.mark.anyio
async def test_five_hundred_readers_of_eight_slots(model: Model) -> None:
    """Most of them wait in the queue, while each token wakes its own reader only; and all get theirs."""
    expected = {prompt: alone(model, prompt, 4) for prompt in PROMPTS}
    got: dict[int, list[int]] = {}
    async with serving(model, n_ctx=64, n_seq_max=8) as context:

        async def read(i: int) -> None:
            async with context.generate_stream(PROMPTS[i % 4], config(4, buffer_size=1 + i % 3)) as stream:
                got[i] = [token.token_id async for token in stream]

        with fail_after(LIMIT):
            async with create_task_group() as tasks:
                for i in range(500):
                    tasks.start_soon(read, i)
    assert [got[i] for i in range(500)] == [expected[PROMPTS[i % 4]] for i in range(500)]


@pytest.mark.parametrize("order", [("asyncio", "trio"), ("trio", "asyncio"), ("asyncio", "asyncio")])
def test_one_stream_is_read_on_one_loop_after_the_other(order: tuple[str, str], model: Model) -> None:
    """Where the first loop's wait was cancelled, the stream is still armed with its notifier."""
    with Context(model, n_ctx=256, n_seq_max=1, n_threads=1) as context:
        expected = alone(model, PROMPT, 20)
        shared = AsyncContext(context)
        stream = shared.generate_stream(PROMPT, config(20, buffer_size=1))
        got: list[int] = []

        async def begin() -> None:
            got.extend([(await stream.receive()).token_id for _ in range(5)])
            for _ in range(3):
                with anyio.move_on_after(0):
                    got.append((await stream.receive()).token_id)

        async def go_on() -> None:
            with fail_after(LIMIT):
                got.extend([token.token_id async for token in stream])

        anyio.run(begin, backend=order[0])
        anyio.run(go_on, backend=order[1])
        assert got == expected
        stream.close()
        wait_until(stream.is_finished)
