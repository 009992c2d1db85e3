"""A stream that is opened, prepared and then submitted: what becomes of it, whoever gives up first, and when."""

from __future__ import annotations

import dataclasses
import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ENDLESS, serving, until, wait_until

from mullama import ClosedError, Context, Model, QueueFullError, SamplerParams, StreamConfig
from mullama._core import Chat, Engine, GrammarError, Notifier, Pending, Request, Stopped, Stream, Templates, clock_us

CANCELLED, TIMEOUT, ERROR = 3, 4, 5
CLOSED, PREPARATION = 3, 4
LONG = "root ::= " + " ".join(["[a-z]?"] * 1000)
FOREVER = "{% for i in range(100000000000) %}{% set x = i %}{% endfor %}"


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    with Context(model, n_ctx=256, n_seq_max=2, max_queue=3, n_threads=1) as context:
        yield context._shared.engine.native()
        gc.collect()
        wait_until(lambda: context.statistics().busy == context.statistics().queued == 0)
        assert len(context.generate("Once", 3, ENDLESS).tokens) == 3


def opened(engine: Engine, timeout_us: int = 0) -> tuple[Stream, Pending]:
    stream = engine.open(called_us=clock_us(), timeout_us=timeout_us)
    return stream, stream.pending()


def request(model: Model, pending: Pending | None = None, n: int = 4, **sampling: Any) -> Request:
    params = dataclasses.replace(ENDLESS, **sampling)
    values = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    del values["json_schema"]
    values |= {"logit_bias": [], "samplers": (), "grammar": params.grammar or ""}
    return Request(
        model._core,
        [5, 6, 7],
        max_tokens=n,
        delay_us=0,
        buffer_size=32,
        n_top=0,
        min_tokens=0,
        stops=[],
        sampling=values,
        chat=None,
        loras=[],
        n_logits=0,
        pending=pending,
    )


def wait_for(stream: Stream) -> None:
    notifier = Notifier()
    while not stream.arm(notifier, 0):
        stream.wait(notifier)


def read(stream: Stream) -> list[int]:
    """All tokens, waiting for them."""
    tokens: list[int] = []
    while True:
        wait_for(stream)
        ended = stream.ended
        while (token := stream.pop()) is not None:
            tokens.append(token.token_id)
        if ended:
            return tokens


# ------------------------------------------------------------------------------------------ how it ends


def test_it_is_prepared_in_another_thread(engine: Engine, model: Model) -> None:
    stream, pending = opened(engine)
    assert not stream.ready
    assert not stream.ended
    assert stream.pop() is None
    assert (stream.buffered, stream.generated, stream.outcome().finish) == (0, 0, 0)
    worker = threading.Thread(target=lambda: pending.submit(request(model, pending)))
    worker.start()
    assert len(read(stream)) == 4
    worker.join()
    assert not pending.stopped or stream.ended


def test_it_is_submitted_once(engine: Engine, model: Model) -> None:
    stream, pending = opened(engine)
    made = request(model, n=100)  # more than its buffer holds, so that it goes on
    pending.submit(made)
    with pytest.raises(ValueError, match="submitted already"):
        pending.submit(made)
    with pytest.raises(RuntimeError, match="submitted already"):
        pending.submit(request(model))
    pending.fail("too late")
    del pending
    assert len(read(stream)) == 100
    assert stream.outcome().fault == 0


def test_cancelled_before(engine: Engine, model: Model) -> None:
    stream, pending = opened(engine)
    assert stream.cancel()
    assert stream.ended
    assert pending.stopped
    assert not stream.cancel()
    pending.submit(request(model))  # does nothing
    pending.fail("nor does this")
    outcome = stream.outcome()
    assert (outcome.finish, outcome.fault, outcome.message) == (CANCELLED, 0, "")
    assert outcome.ended_us >= outcome.called_us


@pytest.mark.parametrize("how", ["fail", "fail_timeout", "drop", "deadline", "cancel"])
def test_a_reader_that_waits_is_woken(engine: Engine, how: str) -> None:
    stream, pending = opened(engine, 30_000 if how == "deadline" else 0)
    reader = threading.Thread(target=wait_for, args=[stream])
    reader.start()
    holder: list[Pending] = [pending]
    del pending
    if how == "fail":
        holder[0].fail("no good")
    elif how == "fail_timeout":
        holder[0].fail_timeout()
    elif how == "drop":
        holder.clear()
    elif how == "cancel":
        stream.cancel()
    reader.join(60)
    assert not reader.is_alive()
    outcome = stream.outcome()
    expected = {"fail": (ERROR, PREPARATION), "drop": (ERROR, PREPARATION), "cancel": (CANCELLED, 0)}
    assert (outcome.finish, outcome.fault) == expected.get(how, (TIMEOUT, 0))
    assert outcome.message == {"fail": "no good", "drop": "the request was dropped before it was ready"}.get(how, "")


def test_the_reader_is_dropped(engine: Engine, model: Model) -> None:
    stream, pending = opened(engine)
    made = request(model)
    del stream
    assert pending.stopped
    pending.submit(made)  # does nothing


def test_late_while_others_are_served(engine: Engine, model: Model) -> None:
    """The engine is busy, and sees to the deadline all the same."""
    other, busy = opened(engine)
    busy.submit(request(model, n=200))
    late, pending = opened(engine, 1000)
    wait_for(late)
    assert late.outcome().finish == TIMEOUT
    pending.submit(request(model))  # does nothing
    other.cancel()
    read(other)


def test_closed_while_it_is_prepared(model: Model) -> None:
    with Context(model, n_ctx=256, n_seq_max=1, n_threads=1) as context:
        engine = context._shared.engine.native()
        stream, pending = opened(engine)
        reader = threading.Thread(target=wait_for, args=[stream])
        reader.start()
    reader.join(60)
    assert stream.ended
    assert pending.stopped
    assert (stream.outcome().finish, stream.outcome().fault) == (ERROR, CLOSED)
    pending.submit(request(model))  # does nothing: it has ended
    with pytest.raises(ClosedError):
        opened(engine)


# ------------------------------------------------------------------------------------------ what prepares is stopped


def later(stream: Stream) -> threading.Timer:
    timer = threading.Timer(0.2, stream.cancel)
    timer.start()
    return timer


@pytest.mark.parametrize("work", ["grammar", "template", "chat", "words"])
def test_long_work_ends_when_the_stream_is_cancelled(engine: Engine, model: Model, work: str) -> None:
    words = Path(__file__).resolve().parents[1] / "vendor/llama.cpp/models/ggml-vocab-gpt-2.gguf"
    if work == "words" and not words.is_file():
        pytest.skip("llama.cpp's source is not placed here (make build)")
    native = Model.load(words, vocab_only=True)._core if work == "words" else model._core
    stream, pending = opened(engine)
    began = time.thread_time()
    timer = later(stream)
    words = b"A fox and a hare. " * 20_000
    endless = b"{% if messages[0].content == 'go' %}" + FOREVER.encode() + b"{% endif %}"
    works: dict[str, Callable[[], object]] = {
        "grammar": lambda: request(model, pending, grammar=LONG),
        "template": lambda: Templates(native, FOREVER.encode(), pending),
        "chat": lambda: render(Templates(native, endless), pending),
        "words": lambda: native.tokenize(words, True, True, pending),
    }
    with pytest.raises(Stopped):
        again_and_again(works[work])
    timer.join()
    assert time.thread_time() - began < 2, "it was stopped, not over"


def again_and_again(work: Callable[[], object]) -> None:
    while True:
        work()


def render(templates: Templates, pending: Pending | None) -> Chat:
    return Chat(
        templates,
        messages=b'[{"role": "user", "content": "go"}]',
        tools=b"",
        tool_choice=b"auto",
        parallel_tool_calls=False,
        grammar=b"",
        json_schema=b"",
        thinking=True,
        reasoning_format=b"auto",
        arguments={},
        pending=pending,
    )


def test_a_deadline_stops_it_too(engine: Engine, model: Model) -> None:
    stream, pending = opened(engine, 100_000)
    with pytest.raises(Stopped):
        again_and_again(lambda: request(model, pending, grammar=LONG))
    wait_for(stream)
    assert stream.outcome().finish == TIMEOUT


def test_a_grammar_that_cannot_be_followed(engine: Engine, model: Model) -> None:
    """Whoever prepares is told, and says so to the reader."""
    stream, pending = opened(engine)
    with pytest.raises(GrammarError, match="nowhere"):
        request(model, pending, grammar="root ::= nowhere")
    assert not pending.stopped
    pending.fail("its grammar")
    wait_for(stream)
    assert stream.outcome().message == "its grammar"


def test_a_template_that_never_ends(model: Model) -> None:
    began = time.thread_time()
    with pytest.raises(RuntimeError, match="longer than 5 seconds"):
        Templates(model._core, FOREVER.encode())
    assert 4 < time.thread_time() - began < 15, "to throw away what it made takes a while, too"


# ------------------------------------------------------------------------------------------ the queue


def test_the_queue_is_full(engine: Engine, model: Model) -> None:
    streams = [opened(engine) for _ in range(5)]  # two slots, and three that wait
    for _ in range(2):
        with pytest.raises(QueueFullError) as caught:
            opened(engine)
        assert (caught.value.code, caught.value.length) == ("QUEUE_FULL", 3)
        assert "max_queue" in str(caught.value)
    streams.pop()  # dropped: there is a place at once
    streams.append(opened(engine))
    with pytest.raises(QueueFullError):
        opened(engine)
    for _, pending in streams:
        pending.submit(request(model))
    for stream, _ in streams:
        assert len(read(stream)) == 4
    streams.append(opened(engine))


def test_never_more_than_there_are_places(engine: Engine, model: Model) -> None:
    """Threads that open, submit, cancel and drop as fast as they can. What is open is counted from outside."""
    lock, most = threading.Lock(), 0
    living: set[Stream] = set()
    refused = [0] * 4

    def work(number: int) -> None:
        nonlocal most
        for i in range(150):
            with lock:  # counting and opening are one step; endings come when they like
                before = {stream for stream in living if not stream.ended}
                try:
                    stream, pending = opened(engine)
                except QueueFullError:
                    refused[number] += 1
                    continue
                living.clear()
                living.update(before, [stream])
                most = max(most, sum(not one.ended for one in living))
            if i % 3 == number % 3:
                stream.cancel()
                continue
            pending.submit(request(model, n=1 + i % 5))
            if i % 5 == 0:
                read(stream)

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 5
    assert sum(refused) > 0
    for stream in living:
        stream.cancel()
        read(stream)


def test_it_is_shown(model: Model) -> None:
    with Context(model, n_ctx=256, n_seq_max=1, n_threads=1, max_queue=7) as context:
        assert context.statistics().max_queue == 7
        assert context.params.max_queue == 7
    with Context(model, n_ctx=256, n_threads=1) as context:
        assert context.statistics().max_queue == 1024


def test_no_queue_at_all(model: Model) -> None:
    params = SamplerParams(seed=1, ignore_eos=True)
    with Context(model, n_ctx=256, n_seq_max=1, n_threads=1, max_queue=0) as context:
        with context.generate_stream("Once", 100, params) as stream:
            next(stream)
            with pytest.raises(QueueFullError, match="0 requests wait") as caught:
                context.generate("Once", 3, params)
            assert caught.value.length == 0
            with pytest.raises(QueueFullError):
                context.chat([{"role": "user", "content": "Hello"}])
            with pytest.raises(QueueFullError):
                context.generate_many("Once", 2, 3, params)
        assert len(context.generate_many("Once", 5, 3, params)) == 5


@pytest.mark.anyio
async def test_awaited_no_queue_at_all(model: Model) -> None:
    """The error comes with the call, not when the stream is read; and what was refused has taken no place."""
    config = StreamConfig(max_tokens=100, params=ENDLESS, timeout_ms=0)
    async with serving(model, n_ctx=256, n_seq_max=2, max_queue=0) as context:
        async with context.generate_stream("Once", config=config) as first:
            second = context.generate_stream("Once", config=config)
            for _ in range(3):
                with pytest.raises(QueueFullError):
                    context.generate_stream("Once", config=config)
                with pytest.raises(QueueFullError):
                    await context.chat([{"role": "user", "content": "Hello"}])
            await until(lambda: context.statistics().queued == 0)
            await second.aclose()
            completions = await context.generate_many("Once", 5, 3, ENDLESS)  # one after the other
            assert [len(completion.tokens) for completion in completions] == [3] * 5
            assert len(await first.collect()) == 100
        assert len(await context.generate_many("Once", 5, 3, ENDLESS)) == 5
