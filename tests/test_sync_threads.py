"""Synchronous streams under threads and signals: several readers, closing from elsewhere, Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import ENDLESS, assert_idle, wait_until

from mullama import ClosedError, Context, Model, SamplerParams, StreamConfig, StreamingError, TokenIterator

PROMPT = "Once upon a time"
GREEDY = SamplerParams.greedy(ignore_eos=True)
A_DAY_MS = 24 * 60 * 60 * 1000


def config(max_tokens: int | None = 12, params: SamplerParams = GREEDY, **changes: Any) -> StreamConfig:
    return StreamConfig(**{"max_tokens": max_tokens, "params": params, "timeout_ms": 0} | changes)


ONE_TOKEN_A_DAY = config(None, ENDLESS, stream_delay_ms=A_DAY_MS)


@contextmanager
def thread_of(function: Callable[[], object]) -> Iterator[list[object]]:
    """Run it in a thread during the block, and join it; the list's only item is what it returned or raised."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as e:
            results.append(e)

    thread = threading.Thread(target=run, daemon=True)  # so that a hanging one fails only this test
    thread.start()
    yield results
    thread.join(60)
    assert not thread.is_alive(), "the thread hangs"


def is_reading(stream: TokenIterator) -> bool:
    """Whether a thread is inside `next()`; a second public call would be refused, but might wait instead."""
    return stream._reading.locked()


# ---------------------------------------------------------------------------------------------------------- threads


def test_many_threads_stream_from_one_context(context: Context) -> None:
    prompts = [f"{i} dogs" for i in range(12)]  # more than the slots
    alone = [context.generate(prompt, config(40)).tokens for prompt in prompts]
    barrier = threading.Barrier(len(prompts))

    def work(prompt: str) -> tuple[int, ...]:
        barrier.wait()
        return tuple(token.token_id for token in context.generate_stream(prompt, config(40, buffer_size=3)))

    with ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(work, prompts)) == alone


def test_a_second_reader_at_once_is_refused(context: Context) -> None:
    with context.generate_stream(PROMPT, ONE_TOKEN_A_DAY) as stream:
        next(stream)
        with thread_of(stream.next) as result:
            wait_until(lambda: is_reading(stream))
            for read in (stream.next, lambda: next(stream), lambda: list(stream)):
                with pytest.raises(StreamingError) as caught:
                    read()
                assert caught.value.code == "STREAM_BUSY"
            assert result == []
            stream.cancel()
        assert result == [None]  # the first reader reached the end undisturbed


def test_a_stream_is_given_away_to_another_thread(context: Context) -> None:
    expected = context.generate(PROMPT, config(30)).tokens
    stream = context.generate_stream(PROMPT, config(30, buffer_size=2))
    got = [next(stream) for _ in range(5)]
    with thread_of(lambda: [next(stream) for _ in range(10)]) as result:
        pass
    got += result[0] + list(stream)  # type: ignore[operator]
    assert tuple(token.token_id for token in got) == expected


def test_a_generator_over_a_stream_is_given_away_to_another_thread(context: Context) -> None:
    def words() -> Iterator[str]:
        with context.generate_stream(PROMPT, config(None, ENDLESS)) as stream:
            yield from stream

    generator = words()
    next(generator)
    with thread_of(lambda: (next(generator), generator.close())) as result:
        pass
    assert isinstance(result[0], tuple)
    assert_idle(context)


@pytest.mark.parametrize("repeat", range(10))
def test_closing_wakes_a_reader_in_another_thread(repeat: int, context: Context) -> None:
    """Both wait on one descriptor for the same end, and neither may take it from the other."""
    stream = context.generate_stream(PROMPT, ONE_TOKEN_A_DAY)
    next(stream)
    with thread_of(lambda: next(stream)) as reader:
        wait_until(lambda: is_reading(stream))
        with thread_of(stream.close) as closer:
            pass
    assert closer == [None]
    assert isinstance(reader[0], ClosedError)
    assert_idle(context)


def test_cancelling_wakes_a_reader_in_another_thread(context: Context) -> None:
    with context.generate_stream(PROMPT, ONE_TOKEN_A_DAY) as stream:
        next(stream)
        with thread_of(lambda: list(stream)) as reader:
            wait_until(lambda: is_reading(stream))
            stream.cancel()
        assert reader == [[]]


def test_closing_the_context_wakes_readers_in_other_threads(model: Model) -> None:
    context = Context(model, n_ctx=256, n_seq_max=1, n_threads=2)
    streams = [context.generate_stream(PROMPT, ONE_TOKEN_A_DAY) for _ in range(2)]  # one is running, the other queued
    with thread_of(lambda: list(streams[0])) as running, thread_of(lambda: list(streams[1])) as queued:
        wait_until(lambda: all(is_reading(stream) for stream in streams))
        context.close()
    assert [type(result[0]) for result in (running, queued)] == [ClosedError, ClosedError]


# ---------------------------------------------------------------------------------------------------------- signals


class Interrupt(Exception):
    """What the signal handlers of these tests raise."""


@contextmanager
def interrupted_once(is_time: Callable[[], bool], how: str) -> Iterator[None]:
    """While the block waits, send this process a signal, whose handler raises."""

    def handler(number: int, frame: object) -> None:
        raise Interrupt

    def send() -> None:
        wait_until(is_time)
        if how == "to the process":
            os.kill(os.getpid(), signal.SIGUSR1)
        elif how == "to this other thread":  # this does not interrupt the main thread's wait, but it notices anyway
            signal.raise_signal(signal.SIGUSR1)
        else:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with thread_of(send):
            yield
    finally:
        signal.signal(signal.SIGUSR1, before)


hows = pytest.mark.parametrize("how", ["to the process", "to this other thread", "to the main thread"])


@hows
def test_a_signal_handler_that_raises_breaks_the_wait(how: str, context: Context) -> None:
    with context.generate_stream(PROMPT, ONE_TOKEN_A_DAY.replace(stream_delay_ms=3000, max_tokens=2)) as stream:
        first = next(stream)
        with interrupted_once(lambda: is_reading(stream), how), pytest.raises(Interrupt):
            next(stream)
        tokens = [first, *stream]  # nothing was lost, and it continues
        assert [token.token_id for token in tokens] == list(stream.completion().tokens)
        assert len(tokens) == 2


@hows
def test_an_interrupt_in_generate_frees_the_slot(how: str, context: Context) -> None:
    with (
        interrupted_once(lambda: context.statistics().tokens_out > 3, how),
        pytest.raises(Interrupt),
    ):
        context.generate(PROMPT, config(None, ENDLESS, stream_delay_ms=20))
    assert_idle(context)
    assert len(context.generate(PROMPT, 3, GREEDY).tokens) == 3


def test_ctrl_c_is_a_keyboard_interrupt(context: Context) -> None:
    def send() -> None:
        wait_until(lambda: context.statistics().tokens_out > 3)
        os.kill(os.getpid(), signal.SIGINT)

    with thread_of(send), pytest.raises(KeyboardInterrupt):
        context.generate(PROMPT, config(None, ENDLESS, stream_delay_ms=20))
    assert_idle(context)


def test_a_signal_handler_that_returns_disturbs_nothing(context: Context) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        with context.generate_stream(PROMPT, config(20, stream_delay_ms=20)) as stream:

            def send() -> None:
                for n in range(2, 8):
                    wait_until(lambda n=n: stream.tokens_generated() >= n)
                    os.kill(os.getpid(), signal.SIGUSR1)

            with thread_of(send):
                assert len(list(stream)) == 20
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard
    assert stream.completion().tokens == context.generate(PROMPT, config(20)).tokens


def test_a_signal_handler_may_close_the_stream_that_is_read(context: Context) -> None:
    stream = context.generate_stream(PROMPT, ONE_TOKEN_A_DAY)
    before = signal.signal(signal.SIGUSR1, lambda number, frame: stream.close())
    try:
        next(stream)

        def send() -> None:
            wait_until(lambda: is_reading(stream))
            os.kill(os.getpid(), signal.SIGUSR1)

        with thread_of(send), pytest.raises(ClosedError):
            next(stream)
    finally:
        signal.signal(signal.SIGUSR1, before)
