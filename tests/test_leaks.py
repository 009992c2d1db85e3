"""Nothing leaks: no threads, descriptors, slots or memory of streams; no streams of a context, and no contexts."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import ClosedResourceError, create_task_group, fail_after
from conftest import SANITIZED, assert_idle, wait_until
from endless import FOREVER_MS, LIMIT, PROMPT, config

from mullama import AsyncContext, ClosedError, Context, Model
from mullama._generation import BaseStream

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc")


def engines() -> int:
    return sum(thread.name == "mullama-engine" for thread in threading.enumerate())


def descriptors() -> list[str]:
    return sorted(str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink())


# ------------------------------------------------------------------------------------------------------ a thousand

THOUSAND = """
import ctypes, gc, json, os, sys, threading
from pathlib import Path
import anyio
from mullama import AsyncContext, Context, Model, SamplerParams, StreamConfig

ENDLESS = SamplerParams(ignore_eos=True, seed=1)
model = Model.load()
long = (model.tokenize("And then the story went on.") * 60)[:300]


def config(i):
    return StreamConfig(max_tokens=6, params=ENDLESS, timeout_ms=0, buffer_size=1 + i % 7)


async def one(context, i):
    stream = context.generate_stream(long if i % 16 == 1 else "Once upon a time", config(i))
    if i % 2 == 0:
        await stream.collect()
    elif i % 4 == 1:  # queued, or in the prompt
        await stream.aclose() if i % 8 == 1 else stream.close()
    else:
        async for _ in stream:
            if i % 12 == 3:
                stream.cancel()
            elif i % 12 == 7:
                break  # and the reference is dropped


async def many(context, n):
    for begin in range(0, n, 20):
        async with anyio.create_task_group() as tasks:
            for i in range(begin, begin + 20):
                tasks.start_soon(one, context, i)


def one_blocking(context, i):
    stream = context.generate_stream("Once upon a time", config(i))
    if i % 2 == 0:
        list(stream)
    elif i % 4 == 1:
        stream.close()
    else:
        for _ in stream:
            break


def many_blocking(context, n):
    def work(first):
        for i in range(first, n, 4):
            one_blocking(context, i)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def figures():
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:
        pass
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    tasks = len(os.listdir("/proc/self/task"))
    return {"rss": pages * os.sysconf("SC_PAGE_SIZE"), "fds": len(os.listdir("/proc/self/fd")), "threads": tasks}


def wait_for_idle(context):
    while context.statistics().busy or context.statistics().queued:
        threading.Event().wait(0.001)


async def main(context):
    context = AsyncContext(context)
    await many(context, 300)
    wait_for_idle(context)
    before = figures()
    await many(context, 1000)
    wait_for_idle(context)
    return before, figures()


with Context(model, n_ctx=512, n_seq_max=8, n_threads=2) as context:
    if sys.argv[1] == "threads":
        many_blocking(context, 300)
        wait_for_idle(context)
        before = figures()
        many_blocking(context, 1000)
        wait_for_idle(context)
        after = figures()
    else:
        before, after = anyio.run(main, context, backend=sys.argv[1])
print(json.dumps([before, after]))
"""


@linux
@pytest.mark.parametrize("backend", ["asyncio", "trio", "threads"])
def test_a_thousand_streams(backend: str) -> None:
    """Half of them cancelled: queued, in the prompt, between tokens, closed, dropped. Measured in a separate process."""
    done = subprocess.run([sys.executable, "-c", THOUSAND, backend], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    before, after = json.loads(done.stdout)
    assert after["threads"] == before["threads"]
    assert after["fds"] == before["fds"]
    assert SANITIZED or after["rss"] - before["rss"] < 5_000_000


@linux
def test_contexts_and_event_loops(model: Model) -> None:
    """Created and closed, created and dropped; and a loop's notifier lives no longer than the loop."""

    async def read() -> None:
        async with (
            await AsyncContext.create(model, n_ctx=256, n_seq_max=2, n_threads=1) as context,
            create_task_group() as tasks,
        ):
            for _ in range(3):
                tasks.start_soon(context.generate_stream(PROMPT, config(3)).collect)

    def once(i: int) -> None:
        with Context(model, n_ctx=256, n_seq_max=1, n_threads=1) as context:
            assert len(list(context.generate_stream(PROMPT, config(3)))) == 3
        Context(model, n_ctx=256, n_seq_max=1, n_threads=1)
        anyio.run(read, backend=("asyncio", "trio")[i % 2], backend_options={})

    def state() -> tuple[int, list[str]]:
        gc.collect()
        return engines(), descriptors()

    once(0)
    once(1)
    before = state()
    for i in range(10):
        once(i)
    assert state() == before


# ------------------------------------------------------------------------------------------------------ closing


def open_streams(context: Context, start: Callable[..., Any]) -> dict[str, BaseStream]:
    """Streams in every state, in a context with four slots."""
    ended = start(PROMPT, config(3))
    wait_until(ended.is_finished)
    streams = {
        "ended": ended,
        "paused": start(PROMPT, config(buffer_size=2)),
        "delayed": start(PROMPT, config(stream_delay_ms=FOREVER_MS)),
        "decoding": start(PROMPT, config(1900, buffer_size=2000)),
    }
    wait_until(lambda: streams["paused"].statistics().paused)
    wait_until(lambda: streams["decoding"].tokens_generated() and streams["delayed"].tokens_generated())
    text = context.model.tokenize("It was a long story, and it went on and on.")
    streams["in its prompt"] = start((text * 2000)[:2000], config(buffer_size=2))
    streams["queued"] = start(PROMPT, config())
    streams["queued with a deadline"] = start(PROMPT, config(timeout_ms=FOREVER_MS))
    return streams


@pytest.fixture
def unlucky(model: Model) -> Context:
    """A context that the test closes, drops or leaves open."""
    return Context(model, n_ctx=2304, n_seq_max=4, n_threads=2, n_ubatch=16)


def test_closing_a_context_ends_its_streams(unlucky: Context) -> None:
    streams = open_streams(unlucky, unlucky.generate_stream)
    unlucky.close()
    unlucky.close()
    for state, stream in streams.items():
        assert stream.is_finished()
        tokens = []
        if state == "ended":
            assert len(list(stream)) == 3  # type: ignore[call-overload]
            assert stream.completion().finish_reason == "length"
            continue
        with pytest.raises(ClosedError, match="the context was closed"):  # noqa: PT012
            while True:
                tokens.append(next(stream).token_id)  # type: ignore[call-overload]
        completion = stream.completion()
        assert completion.finish_reason == "error"
        assert tokens == list(completion.tokens)
        assert len(tokens) >= {"paused": 2, "delayed": 1, "decoding": 1}.get(state, 0)
        stream.cancel()
        stream.close()  # type: ignore[attr-defined]
    for call in (unlucky.clear_cache, lambda: unlucky.generate(PROMPT), lambda: unlucky.generate_stream(PROMPT)):
        with pytest.raises(ClosedError, match="the context was closed"):
            call()
    assert_idle(unlucky)


@pytest.mark.anyio
async def test_closing_an_asynchronous_context_ends_its_streams(unlucky: Context) -> None:
    """Both those that are being read and those that are not."""
    context = AsyncContext(unlucky)
    streams = open_streams(unlucky, context.generate_stream)
    ends: dict[str, BaseException] = {}

    async def read(state: str, stream: Any) -> None:
        try:
            async for _ in stream:
                pass
        except ClosedResourceError as e:
            ends[state] = e

    with fail_after(LIMIT):
        async with create_task_group() as tasks:
            for state in ("delayed", "decoding", "queued", "in its prompt"):
                tasks.start_soon(read, state, streams[state])
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            await context.aclose()
        await context.aclose()
        for state in ("paused", "queued with a deadline", "ended"):
            await read(state, streams[state])
        assert streams.keys() - ends.keys() == {"ended"}
        for error in ends.values():
            assert isinstance(error, ClosedError)
            assert error.code == "CLOSED"
        with pytest.raises(ClosedError):
            context.generate_stream(PROMPT)
        with pytest.raises(ClosedError):
            await context.generate(PROMPT)
        for stream in streams.values():
            await stream.aclose()  # type: ignore[attr-defined]


def test_closing_while_threads_read(unlucky: Context) -> None:
    errors: list[BaseException] = []
    begun = threading.Barrier(5, timeout=LIMIT)

    def read(fields: dict[str, Any]) -> None:
        stream = unlucky.generate_stream(PROMPT, config(1900, **fields))
        begun.wait()
        try:
            for _ in stream:
                pass
        except ClosedError as e:
            errors.append(e)

    kinds: list[dict[str, Any]] = [
        {"stream_delay_ms": FOREVER_MS},
        {"stream_delay_ms": FOREVER_MS},
        {"stream_delay_ms": 50},
    ]
    kinds.append({"stream_delay_ms": 50, "buffer_size": 1})
    threads = [threading.Thread(target=read, args=(fields,)) for fields in kinds]
    for thread in threads:
        thread.start()
    begun.wait()
    unlucky.close()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()
    assert len(errors) == 4


# ------------------------------------------------------------------------------------------------------ dropping


def test_a_context_that_is_dropped(model: Model) -> None:
    """Its streams keep it alive; when they are gone too, so is its thread."""
    before = engines()
    context = Context(model, n_ctx=512, n_seq_max=1, n_threads=1)
    gone = weakref.ref(context._shared.engine)
    stream = context.generate_stream(PROMPT, config(100, buffer_size=2))
    queued = context.generate_stream(PROMPT, config(5))
    del context
    gc.collect()
    assert gone() is not None
    assert len(list(stream)) == 100
    assert len(list(queued)) == 5
    assert engines() == before + 1
    del stream
    del queued
    gc.collect()
    assert gone() is None
    assert engines() == before


def test_a_model_that_is_dropped() -> None:
    """A context keeps its model alive, and both are gone with the last stream."""
    model = Model.load()
    gone = weakref.ref(model)
    context = Context(model, n_ctx=512, n_seq_max=1, n_threads=1)
    del model
    gc.collect()
    assert len(context.generate(PROMPT, config(5)).tokens) == 5
    stream = context.generate_stream(PROMPT, config(50))
    context.close()
    del context
    with pytest.raises(ClosedError):
        list(stream)
    assert gone() is not None
    del stream
    gc.collect()
    assert gone() is None
