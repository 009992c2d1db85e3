"""Ctrl-C in a program that runs trio: it is raised from `trio.run`, and the context works in the next run."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import trio
import trio.testing
from conftest import ENDLESS, assert_idle, until, wait_until

from mullama import AsyncContext, Context, StreamConfig

ENDLESS_STREAM = StreamConfig(max_tokens=None, params=ENDLESS, timeout_ms=0)


def still_serves(context: Context) -> None:
    wait_until(lambda: context.statistics().busy == 0)
    assert_idle(context)

    async def main() -> None:
        assert len((await AsyncContext(context).generate("Once upon a time", 5, ENDLESS)).tokens) == 5

    trio.run(main)


def test_while_tokens_come(context: Context) -> None:
    async def main() -> None:
        async with AsyncContext(context).generate_stream("Once upon a time", ENDLESS_STREAM) as stream:
            async for _ in stream:
                if stream.tokens_generated() > 5:
                    signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    still_serves(context)


def test_while_it_waits_for_a_token(context: Context) -> None:
    waiting = threading.Event()

    async def main() -> None:
        config = ENDLESS_STREAM.replace(stream_delay_ms=24 * 60 * 60 * 1000)
        async with AsyncContext(context).generate_stream("Once upon a time", config) as stream:
            await stream.receive()
            waiting.set()
            await stream.receive()

    def interrupt() -> None:
        waiting.wait()
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    thread.join()
    still_serves(context)


def test_with_eight_streams_in_a_nursery(context: Context) -> None:
    async def read(i: int) -> None:
        async with AsyncContext(context).generate_stream(f"{i} dogs", ENDLESS_STREAM) as stream:
            async for _ in stream:
                pass

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for i in range(8):
                nursery.start_soon(read, i)
            await until(lambda: context.statistics().tokens_out >= 50)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(BaseException) as caught:
        trio.run(main)
    error: BaseException = caught.value
    while not isinstance(error, KeyboardInterrupt):
        (error,) = error.exceptions  # type: ignore[attr-defined]
    still_serves(context)
