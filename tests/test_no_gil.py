"""No GIL in the loop: Python cannot stop the engine, and the engine cannot freeze Python."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
import pytest
from anyio import create_task_group
from anyio.lowlevel import checkpoint
from conftest import ENDLESS, serving

from mullama import Context, Model, StreamConfig

# Unlike CDLL, PyDLL calls a C function without releasing the GIL: the interpreter is blocked meanwhile.
hold_for_us = ctypes.PyDLL(None).usleep
HALF_A_SECOND = 500_000
# Token ids, because tokenising a text releases the GIL; so does building a request, before it is submitted.
PROMPT = [300, 301, 302, 303]


@contextmanager
def only_this_thread_runs() -> Iterator[None]:
    """Code in this block that does not block keeps the GIL: no other thread can request it any more."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1_000_000)
    try:
        hold_for_us(20_000)  # threads that waited with the old interval request it once more, and get it here
        for _ in range(1000):
            pass
        yield
    finally:
        sys.setswitchinterval(interval)


def hold_until(condition: Callable[[], bool]) -> None:
    """Hold the GIL for half a second, and on a slow machine until the condition holds, but at most for a minute."""
    until = time.monotonic() + 60
    hold_for_us(HALF_A_SECOND)
    while not condition() and time.monotonic() < until:
        hold_for_us(HALF_A_SECOND)


@contextmanager
def a_thread_that_counts() -> Iterator[Callable[[], int]]:
    """How often another Python thread has had the GIL so far."""
    count = 0
    stop = threading.Event()
    counting = threading.Event()

    def work() -> None:
        nonlocal count
        while not stop.is_set():
            count += 1
            counting.set()
            time.sleep(0)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        counting.wait()
        yield lambda: count
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("buffer_size", [1, 32, 100])
def test_the_ring_fills_while_python_holds_the_gil(buffer_size: int, context: Context) -> None:
    config = StreamConfig(max_tokens=None, params=ENDLESS, buffer_size=buffer_size, timeout_ms=0)
    with a_thread_that_counts() as count:
        with only_this_thread_runs():
            stream = context.generate_stream(PROMPT, config)
            before = count()
            hold_until(lambda: stream.statistics().current_buffer_used == buffer_size)
            used = stream.statistics().current_buffer_used
            assert count() == before  # so it was held the whole time
        assert used == buffer_size
        hold_for_us(HALF_A_SECOND)
        assert stream.tokens_generated() == buffer_size  # and no more
    stream.close()


def test_streams_run_to_their_end_while_python_holds_the_gil(context: Context) -> None:
    """Eight at once, from prompt to end: nothing in between needs Python."""
    config = StreamConfig(max_tokens=40, params=ENDLESS, buffer_size=64, timeout_ms=0)
    with a_thread_that_counts() as count:
        with only_this_thread_runs():
            streams = [context.generate_stream([i, *PROMPT], config) for i in range(8)]
            before = count()
            hold_until(lambda: all(stream.is_finished() for stream in streams))
            finished = [stream.is_finished() for stream in streams]
            busy = context.statistics().busy
            assert count() == before
        assert finished == [True] * 8
        assert busy == 0
    assert [len(list(stream)) for stream in streams] == [40] * 8


def test_a_deadline_needs_no_gil(context: Context) -> None:
    config = StreamConfig(max_tokens=None, params=ENDLESS, buffer_size=4, timeout_ms=100)
    with only_this_thread_runs():
        stream = context.generate_stream(PROMPT, config)
        hold_until(stream.is_finished)
        assert stream.is_finished()
    assert stream.completion().finish_reason == "timeout"


class Ticks:
    """A task that should run every 5 ms, and how often it did."""

    def __init__(self) -> None:
        self.count = 0
        self.began = time.monotonic()

    async def run(self) -> None:
        while True:
            await anyio.sleep(0.005)
            self.count += 1

    def reset(self) -> None:
        self.count = 0
        self.began = time.monotonic()

    def assert_kept_on(self) -> None:
        """200 per second are expected. A tenth of that separates a loop that is late on a busy machine from a blocked one."""
        took = time.monotonic() - self.began
        assert self.count >= 20 * took - 2, (self.count, took)


@pytest.mark.anyio
async def test_the_event_loop_ticks_while_eight_streams_run(model: Model) -> None:
    """While their long prompts are computed, in one step of the engine, and while they decode."""
    n_ctx = 1024
    async with serving(
        # One thread: two that wait for each other at every step take minutes on a busy machine.
        model,
        n_ctx=n_ctx,
        n_seq_max=8,
        n_batch=8 * n_ctx,
        n_ubatch=2048,
        n_threads=1,
    ) as context:
        started = [anyio.Event() for _ in range(8)]
        ticks = Ticks()

        async def read(i: int) -> None:
            config = StreamConfig(max_tokens=100, params=ENDLESS, timeout_ms=0)
            async with context.generate_stream([300 + i] * (n_ctx - 124), config) as stream:
                await stream.receive()
                started[i].set()
                assert len(await stream.collect()) == 99

        async with create_task_group() as ticking:
            ticking.start_soon(ticks.run)
            async with create_task_group() as reading:
                for i in range(8):
                    reading.start_soon(read, i)
                await checkpoint()
                ticks.reset()
                for event in started:
                    await event.wait()
                steps = context.statistics().steps
                ticks.assert_kept_on()
                assert ticks.count > 10  # otherwise the prompts were too short for this test
                ticks.reset()
            ticks.assert_kept_on()
            assert context.statistics().steps > steps
            ticking.cancel_scope.cancel()
