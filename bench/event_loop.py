"""Measures how late a task that should run every 5 ms wakes up, while streams run in the same process.

The task sleeps until 5 ms after its last scheduled time, and records how late it woke. Meanwhile eight streams are read on
the same event loop (asyncio). The reference is the same task beside one stream of llama-cpp-python, read in a worker
thread, as its documentation recommends for event loops; it cannot run eight. A third row shows the task beside nothing but
two processes that compute: the lateness due to this machine and its kernel. Lateness is the 99th percentile.

The last rows are beside the eight streams and two hostile clients, each of which sends one request after the other: one of them
ambiguous grammars, and schemas that take seconds to turn into a grammar; the other chats of 1 MB. The longest stall is the
latest that the task woke at all.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable

from environments import interpreter
from turns import SAMPLING, Case, Figures, Question, Row, Settings, Side, endless, main, prompt

EVERY = 0.005
STREAMS, SECONDS, N_CTX = 8, 6.0, 2048
MEGABYTE = 1_000_000
AMBIGUOUS = "root ::= c\nc ::= [a-z] (c (c) | c c)"  # the ways to read a text double with each character
OPTIONAL = {  # seconds of work to turn into a grammar
    "type": "object",
    "properties": {
        f"o{i}": {"type": "object", "properties": {f"p{k}": {"type": "string"} for k in range(190)}} for i in range(20)
    },
}


async def ticks() -> Figures:
    import asyncio

    late = []
    end = due = time.perf_counter()
    end += SECONDS
    while due < end:
        due = max(due, time.perf_counter() - EVERY) + EVERY  # a missed tick is late once only
        await asyncio.sleep(due - time.perf_counter())
        late.append(time.perf_counter() - due)
    late.sort()
    return {
        "p99_ms": 1e3 * late[int(0.99 * len(late))],
        "median_ms": 1e3 * late[len(late) // 2],
        "longest_ms": 1e3 * late[-1],
        "ticks": len(late),
    }


async def beside(*works: Callable[[], Awaitable[object]]) -> Figures:
    """The ticks, while a task does each of the works; they start a second before."""
    import asyncio

    tasks = [asyncio.ensure_future(work()) for work in works]
    await asyncio.sleep(1)
    figures = await ticks()
    assert not any(task.done() for task in tasks), "the work must last for the whole measurement"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return figures


def mullama(settings: Settings, *, hostile: bool = False) -> Figures:
    import asyncio

    from mullama import AsyncModel, ContextParams, MullamaError

    config = endless(max_tokens=None)
    context = ContextParams(n_ctx=N_CTX, n_seq_max=STREAMS + hostile, n_threads=settings["threads"])

    async def run() -> Figures:
        async with await AsyncModel.load(settings["model"], context=context) as model:

            async def work() -> None:
                async with model.generate_stream(prompt(16), config) as stream:
                    async for _ in stream:
                        pass

            async def grammars() -> None:
                while True:
                    for constraint in ({"grammar": AMBIGUOUS}, {"json_schema": OPTIONAL}):
                        with contextlib.suppress(MullamaError):
                            await model.generate(prompt(16), 200, timeout_ms=2000, **constraint)

            async def chats() -> None:
                message = {"role": "user", "content": "Once upon a time. " * (MEGABYTE // 18)}
                while True:
                    with contextlib.suppress(MullamaError):
                        await model.chat([message], 10, template="chatml")

            return await beside(*[work] * STREAMS, *([grammars, chats] if hostile else []))

    return asyncio.run(run())


def beside_hostile_clients(settings: Settings) -> Figures:
    return mullama(settings, hostile=True)


def llama_cpp_python(settings: Settings) -> Figures:
    import asyncio
    import threading

    from llama_cpp import StoppingCriteriaList
    from peers import new_llama

    llama = new_llama(settings["model"], N_CTX, settings["threads"])
    stop = threading.Event()
    # Random weights produce bytes that are not text, and it yields nothing until they are, so a `break` is not enough.
    stopping = StoppingCriteriaList([lambda *_: stop.is_set()])

    def read() -> None:
        while not stop.is_set():  # a stream may end by itself
            stream = llama.create_completion(
                prompt(16), max_tokens=1900, stream=True, repeat_penalty=1.0, stopping_criteria=stopping, **SAMPLING
            )
            for _ in stream:
                if stop.is_set():
                    break

    async def run() -> Figures:
        try:
            return await beside(lambda: asyncio.to_thread(read))
        finally:
            stop.set()

    return asyncio.run(run())


def nothing(settings: Settings) -> Figures:
    """The ticks beside as many computing processes as the others have threads."""
    import asyncio
    import subprocess
    import sys

    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(settings["threads"])]
    try:
        return asyncio.run(ticks())
    finally:
        for process in busy:
            process.kill()
            process.wait()


QUESTION = Question(
    file=__file__,
    title="The event loop",
    about=__doc__,
    sides={
        "llama-cpp-python": Side(llama_cpp_python, lambda: interpreter("llama-cpp-python")),
        "mullama": Side(mullama),
        "mullama, hostile clients": Side(beside_hostile_clients),
        "busy processes": Side(nothing),
    },
    cases=[
        Case(
            {"model": "mid"},
            [
                Row(label="p99, eight streams", side="mullama", figure="p99_ms", unit="ms late", reach=5, less=True),
                Row(
                    label="p99, beside one of llama-cpp-python",
                    side="mullama",
                    figure="p99_ms",
                    unit="ms late",
                    reference="llama-cpp-python",
                    less=True,
                ),
                Row(
                    label="p99, beside processes that compute",
                    side="mullama",
                    figure="p99_ms",
                    unit="ms late",
                    reference="busy processes",
                    less=True,
                ),
                Row(
                    label="p99, eight streams and hostile clients",
                    side="mullama, hostile clients",
                    figure="p99_ms",
                    unit="ms late",
                    reach=8,
                    less=True,
                ),
                Row(
                    label="longest stall, eight streams and hostile clients",
                    side="mullama, hostile clients",
                    figure="longest_ms",
                    unit="ms late",
                    reach=25,
                    less=True,
                ),
            ],
        )
    ],
)

if __name__ == "__main__":
    main(QUESTION)
