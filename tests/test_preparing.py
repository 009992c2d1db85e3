"""What may be long is prepared in a worker: the loop goes on, errors come where tokens would, and cancelling stops it."""

from __future__ import annotations

import functools
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from conftest import assert_idle, until

from mullama import (
    AsyncContext,
    ChatError,
    ClosedError,
    Context,
    ContextError,
    InvalidParameter,
    Model,
    QueueFullError,
    SamplerParams,
    StreamTimeoutError,
    _chat,
    _preparation,
    _request,
)

pytestmark = pytest.mark.anyio

PROMPT = "Once upon a time"
USER = {"role": "user", "content": "Hi"}
GREEDY = SamplerParams.greedy(ignore_eos=True)
OPTIONAL = {"type": "object", "properties": {f"a{i}": {"type": "string"} for i in range(190)}}
# Takes seconds to turn into a grammar, of which the limit of processor time allows three.
SLOW = SamplerParams(json_schema={"type": "object", "properties": {f"k{i}": OPTIONAL for i in range(20)}})


class Gate:
    """Holds what is prepared until it is opened, and knows how far it came."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.threads: list[str] = []
        self.pending: list[Any] = []
        finish = _request.finish
        monkeypatch.setattr(_request, "LONG_TEXT", 10)

        def held(engine: Any, tokens: Any, config: Any, pending: Any, **more: Any) -> Any:
            if threading.current_thread().name != "mullama-worker":
                return finish(engine, tokens, config, pending, **more)
            self.threads.append(threading.current_thread().name)
            self.pending.append(pending)
            while not self.open.wait(0.001):
                if pending.stopped:
                    raise _preparation._core.Stopped("it was stopped")
            return finish(engine, tokens, config, pending, **more)

        monkeypatch.setattr(_request, "finish", held)
        monkeypatch.setattr(_chat, "finish", held)

    async def entered(self, n: int = 1) -> None:
        await until(lambda: len(self.threads) >= n)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Any:
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mullama-worker"]


# -- where


@pytest.mark.parametrize(
    ("start", "long"),
    [
        (lambda c: c.generate_stream(PROMPT, 1), False),
        (lambda c: c.generate_stream("a " * 3000, 1), True),
        (lambda c: c.generate_stream([5] * 10, 1), False),
        (lambda c: c.generate_stream(PROMPT, 1, grammar='root ::= "a"'), True),
        (lambda c: c.generate_stream(PROMPT, 1, json_schema={"type": "string"}), True),
        (lambda c: c.generate_stream(PROMPT, 1, logit_bias=dict.fromkeys(range(400), 1.0)), False),
        (lambda c: c.chat_stream([USER], 1), False),
        (lambda c: c.chat_stream([USER] * 40, 1), True),
        (lambda c: c.chat_stream([USER | {"content": [{"type": "text", "text": "a " * 3000}]}], 1), True),
        (lambda c: c.chat_stream([USER], 1, template="chatml"), True),
        (lambda c: c.chat_stream([USER], 1, tools=[{"type": "function", "function": {"name": "f"}}]), True),
    ],
)
async def test_what_may_be_long_is_prepared_in_a_worker(
    model: Model, start: Callable[[AsyncContext], Any], long: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await AsyncContext.create(model, n_ctx=8192, n_seq_max=1, n_threads=2) as context:
        await context.chat([USER], 1)  # its template is parsed now
        seen: list[str] = []
        run = _preparation.Preparation._hand_over

        def noted(self: Any, *arguments: Any) -> None:
            seen.append(threading.current_thread().name)
            run(self, *arguments)

        monkeypatch.setattr(_preparation.Preparation, "_hand_over", noted)
        async with start(context) as stream:
            await stream.receive()
        assert seen == ["mullama-worker" if long else threading.current_thread().name]
        with Context(model, n_ctx=8192, n_seq_max=1, n_threads=2) as plain, start(plain) as iterator:  # type: ignore[arg-type]
            next(iterator)
        assert seen[1:] == [threading.current_thread().name]


async def test_the_same_tokens(actx: AsyncContext, monkeypatch: pytest.MonkeyPatch) -> None:
    text = await actx.generate(PROMPT, 10, GREEDY)
    chat = await actx.chat([USER], 10, GREEDY)
    many = await actx.generate_many(PROMPT, 3, 10, seed=3)
    monkeypatch.setattr(_request, "LONG_TEXT", 0)
    assert (await actx.generate(PROMPT, 10, GREEDY)).tokens == text.tokens
    assert (await actx.chat([USER], 10, GREEDY)).completion.tokens == chat.completion.tokens
    assert [c.tokens for c in await actx.generate_many(PROMPT, 3, 10, seed=3)] == [c.tokens for c in many]
    assert (await actx.generate(PROMPT, 10, GREEDY)).usage.prompt_tokens == text.usage.prompt_tokens


async def test_it_begins_with_the_call(actx: AsyncContext, gate: Gate) -> None:
    """And not with the first await; a cancelled `receive` neither loses nor repeats it."""
    stream = actx.generate_stream(PROMPT, 3, GREEDY)
    await gate.entered()
    with anyio.move_on_after(0.01) as scope:
        await stream.receive()
    assert scope.cancelled_caught
    assert stream.try_next() is None
    assert not stream.is_finished()
    gate.open.set()
    assert len(await stream.collect()) == 3
    assert gate.threads == ["mullama-worker"]
    await stream.aclose()


async def test_the_loop_goes_on(actx: AsyncContext, gate: Gate) -> None:
    async with actx.generate_stream(PROMPT, 3, GREEDY) as stream:
        await gate.entered()
        assert len((await actx.generate([5, 6], 3, GREEDY)).tokens) == 3
        gate.open.set()
        assert len(await stream.collect()) == 3


# -- errors


@pytest.mark.parametrize(
    ("start", "error"),
    [
        (lambda c: c.generate_stream(PROMPT, 1, grammar="root ::= x"), InvalidParameter),
        (lambda c: c.generate_stream("a " * 5000, 1), ContextError),
        (lambda c: c.generate_stream("\ud800" * 5000, 1), ValueError),
        (lambda c: c.chat_stream([USER], 1, template="{{ raise_exception('no') }}"), ChatError),
        (lambda c: c.chat_stream([USER, {"role": "x"}], 1, template="chatml"), InvalidParameter),
    ],
)
async def test_errors_come_where_tokens_would(
    actx: AsyncContext, start: Callable[[AsyncContext], Any], error: type[Exception]
) -> None:
    error = Exception if error is ValueError else error
    stream = start(actx)
    for _ in range(2):
        with pytest.raises(error) as caught:
            await stream.receive()
        assert caught.value.completion.finish_reason == "error"  # type: ignore[attr-defined]
    assert stream.completion().tokens == ()
    assert stream.is_finished()
    await stream.aclose()
    assert_idle(actx.context)


async def test_whole_calls_raise_them(actx: AsyncContext) -> None:
    with pytest.raises(InvalidParameter, match="grammar"):
        await actx.generate(PROMPT, 1, grammar="root ::= x")
    with pytest.raises(InvalidParameter, match="grammar"):
        await actx.generate_many(PROMPT, 3, 1, grammar="root ::= x")
    with pytest.raises(ChatError, match="no thanks"):
        await actx.chat([USER], 1, template="{{ raise_exception('no thanks') }}")


async def test_what_cannot_be_asked_at_all_is_refused_at_once(actx: AsyncContext) -> None:
    prompt: Any
    for prompt in ("", [], 5, b"x", [10**9]):
        with pytest.raises(InvalidParameter):
            actx.generate_stream(prompt)


async def test_time_is_counted(actx: AsyncContext, gate: Gate) -> None:
    async with actx.generate_stream(PROMPT, 3, timeout_ms=20) as stream:
        with pytest.raises(StreamTimeoutError):
            await stream.receive()
    assert stream.completion().finish_reason == "timeout"
    await until(lambda: not workers())


# -- ending it early


@pytest.mark.parametrize("how", ["cancel", "close", "aclose", "drop"])
async def test_it_ends_with_its_stream(actx: AsyncContext, gate: Gate, how: str) -> None:
    stream: Any = actx.generate_stream(PROMPT, 3)
    await gate.entered()
    if how == "cancel":
        stream.cancel()
        assert await stream.next() is None
        assert stream.completion().finish_reason == "cancelled"
    elif how == "close":
        stream.close()
    elif how == "aclose":
        await stream.aclose()
        assert stream._generation.preparation is None  # it waited for it
    del stream
    gc.collect()
    await until(lambda: gate.pending[0].stopped)
    await until(lambda: not workers())
    assert_idle(actx.context)


async def test_whole_calls_end_with_their_scope(actx: AsyncContext, gate: Gate) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(actx.generate, PROMPT)
        tasks.start_soon(actx.generate_many, PROMPT, 2)
        tasks.start_soon(functools.partial(actx.chat, [USER], template="chatml"))
        await gate.entered(4)
        tasks.cancel_scope.cancel()
    assert all(pending.stopped for pending in gate.pending)
    gate.open.set()
    assert len((await actx.generate(PROMPT, 3, GREEDY)).tokens) == 3


async def test_native_work_ends_early(actx: AsyncContext) -> None:
    async with actx.generate_stream(PROMPT, 1, SLOW) as stream:
        await until(workers)
        assert stream._generation.preparation is not None
        await anyio.sleep(0.2)  # until it is in the native part, most likely; it must end early from wherever it is
    assert stream._generation.preparation is None
    assert stream.completion().finish_reason == "cancelled"


async def test_what_has_not_begun_is_withdrawn(actx: AsyncContext, gate: Gate) -> None:
    first = [actx.generate_stream(PROMPT, 3) for _ in range(4)]
    await gate.entered(4)
    later = [actx.generate_stream(PROMPT, 3) for _ in range(100)]
    assert len(workers()) == 4
    for stream in later:
        await stream.aclose()  # without waiting for the others
    assert not actx.context._shared.engine.workers._waiting
    gate.open.set()
    for stream in first:
        assert await stream.next() is not None
        await stream.aclose()
    assert len(gate.threads) == 4


async def test_a_context_that_is_closed_meanwhile(model: Model, gate: Gate) -> None:
    context = await AsyncContext.create(model, n_ctx=512, n_seq_max=1, n_threads=1)
    stream = context.generate_stream(PROMPT, 3)
    await gate.entered()
    await context.aclose()
    assert not workers()
    with pytest.raises(ClosedError):
        await stream.receive()


async def test_a_full_queue_is_told_at_the_call(model: Model, gate: Gate) -> None:
    """What is being prepared has a place too."""
    async with await AsyncContext.create(model, n_ctx=512, n_seq_max=1, n_threads=1, max_queue=1) as context:
        streams = [context.generate_stream(PROMPT, 1), context.generate_stream(PROMPT, 1)]
        with pytest.raises(QueueFullError) as caught:
            context.generate_stream(PROMPT, 1)
        assert (caught.value.code, caught.value.length) == ("QUEUE_FULL", 1)
        gate.open.set()
        for stream in streams:
            assert len(await stream.collect()) == 1
            await stream.aclose()
        assert len((await context.generate(PROMPT, 1)).tokens) == 1


# -- the process


EXITS = """
import asyncio, sys
from mullama import AsyncModel, SamplerParams

async def main():
    model = await AsyncModel.load(n_ctx=512, n_threads=1)
    streams = [model.generate_stream("Once", 5, SamplerParams(json_schema={schema!r})) for _ in range(6)]
    if sys.argv[1] == "raise":
        raise SystemExit(3)
    kept.append((model, streams))

kept = []
asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["end", "raise"])
def test_the_program_ends_meanwhile(how: str) -> None:
    program = EXITS.format(schema=SLOW.json_schema)
    run = subprocess.run([sys.executable, "-c", program, how], capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (3 if how == "raise" else 0, "", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_has_workers_of_its_own() -> None:
    program = """
import asyncio, os, sys
from mullama import AsyncModel

async def main():
    async with await AsyncModel.load(n_ctx=512, n_threads=1) as model:
        return (await model.generate("Once", 5, grammar='root ::= "a"')).text

child = os.fork()
text = asyncio.run(main())
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert text == "a", text
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
