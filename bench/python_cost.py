"""Measures what a token costs in Python: one that lies ready, and one that has to be waited for.

Ready: a stream has generated all of its tokens into its buffer; then it is read with ``async for``, and the time is
that for each token. The reference is as many ``await checkpoint()`` of anyio in a loop: what any ``receive`` must do.
Wake: a stream that gives a token every millisecond is read, so each ``receive`` waits. The reference is a loop over
``await wait_readable()`` and the read that empties the descriptor, which another process makes readable every
millisecond. Here the time is the processor time of the event loop's thread, since the rest is waiting. Both on the 4 M
model with one thread, so that a core is left for the loop.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

from turns import CannotRun, Case, Figures, Question, Row, Settings, Side, endless, main, prompt

READY, WAKES = 4000, 1500
TIMES = 5
RINGER = "import os, sys, time\nfor _ in range(int(sys.argv[2])): time.sleep(0.001); os.write(int(sys.argv[1]), b'x')"


def backend(settings: Settings) -> dict[str, Any]:
    """The arguments for `anyio.run`."""
    if settings["loop"] == "uvloop":
        return {"backend": "asyncio", "backend_options": {"use_uvloop": True}}
    return {"backend": settings["loop"]}


def best(times: list[float], count: int) -> Figures:
    """Of several runs the quickest is the one that was disturbed least."""
    return {"cost_us": 1e6 * min(times) / count}


def ready_tokens(settings: Settings) -> Figures:
    import anyio

    from mullama import AsyncModel, ContextParams

    config = endless(max_tokens=READY, buffer_size=READY)
    context = ContextParams(n_ctx=READY + 32, n_seq_max=1, n_threads=1)

    async def run() -> list[float]:
        times = []
        async with await AsyncModel.load(settings["model"], context=context) as model:
            for _ in range(TIMES):
                async with model.generate_stream(prompt(4), config) as stream:
                    while not stream.is_finished():  # noqa: ASYNC110  the engine cannot set an event
                        await anyio.sleep(0.01)
                    began = time.perf_counter()
                    async for _token in stream:
                        pass
                    times.append(time.perf_counter() - began)
        return times

    return best(anyio.run(run, **backend(settings)), READY)


def checkpoints(settings: Settings) -> Figures:
    import anyio
    from anyio.lowlevel import checkpoint

    async def run() -> list[float]:
        times = []
        for _ in range(TIMES):
            began = time.perf_counter()
            for _ in range(READY):
                await checkpoint()
            times.append(time.perf_counter() - began)
        return times

    return best(anyio.run(run, **backend(settings)), READY)


def woken_tokens(settings: Settings) -> Figures:
    import anyio

    from mullama import AsyncModel, ContextParams

    config = endless(max_tokens=WAKES, stream_delay_ms=1)
    context = ContextParams(n_ctx=WAKES + 32, n_seq_max=1, n_threads=1)

    async def run() -> list[float]:
        times = []
        async with await AsyncModel.load(settings["model"], context=context) as model:
            for _ in range(2):
                async with model.generate_stream(prompt(4), config) as stream:
                    await stream.receive()
                    began = time.thread_time()
                    async for _token in stream:
                        pass
                    times.append(time.thread_time() - began)
        return times

    return best(anyio.run(run, **backend(settings)), WAKES)


def wakes(settings: Settings) -> Figures:
    import os

    import anyio

    async def run() -> list[float]:
        times = []
        for _ in range(2):
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            command = [sys.executable, "-c", RINGER, str(writer), str(WAKES + 1)]
            ringer = subprocess.Popen(command, pass_fds=[writer])  # noqa: ASYNC220  before the clock runs
            os.close(writer)
            await anyio.wait_readable(reader)
            came = len(os.read(reader, 64))
            began, woken = time.thread_time(), 0
            while came <= WAKES:
                await anyio.wait_readable(reader)
                came += len(os.read(reader, 64))
                woken += 1
            times.append((time.thread_time() - began) * WAKES / woken)
            os.close(reader)
            if ringer.wait():
                raise CannotRun("the process that rings failed")
        return times

    return best(anyio.run(run, **backend(settings)), WAKES)


def case(label: str, loop: str, side: str, reference: str, reach: float | None) -> Case:
    row = Row(
        label=f"{label}, {loop}", side=side, figure="cost_us", unit="µs", reference=reference, reach=reach, less=True
    )
    return Case({"model": "tiny", "loop": loop}, [row])


QUESTION = Question(
    file=__file__,
    title="Python's cost",
    about=__doc__,
    sides={
        "checkpoint": Side(checkpoints),
        "ready": Side(ready_tokens),
        "wait_readable": Side(wakes),
        "woken": Side(woken_tokens),
    },
    cases=[
        case(label, loop, side, reference, 1.5)
        for label, side, reference in (
            ("a token that lies ready", "ready", "checkpoint"),
            ("a wake", "woken", "wait_readable"),
        )
        for loop in ("asyncio", "uvloop", "trio")
    ],
)

if __name__ == "__main__":
    main(QUESTION)
