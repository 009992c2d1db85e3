"""Measures what a token costs in Python: one that is ready, and one that must be waited for.

Ready: a stream has generated all of its tokens into its buffer; then it is read with ``async for``, and the time per token
is measured. The reference is the same number of anyio's ``await checkpoint()`` in a loop, which any ``receive`` must do.
Wake: a stream that produces a token every millisecond is read, so each ``receive`` waits. The reference is a loop over
``await wait_readable()`` and the read that empties the descriptor (in C), which the engine makes readable for each token of
such a stream. Here the processor time of the event loop's thread is measured, since the rest is waiting. Both use the 4 M
model with one thread, so that one core is free for the loop; computing on the other core slows Python down on both sides.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from turns import Case, Figures, Question, Row, Settings, Side, endless, main, prompt

if TYPE_CHECKING:
    from mullama import TokenStream

READY, WAKES = 4000, 1000
TIMES = 5


def backend(settings: Settings) -> dict[str, Any]:
    """The arguments for `anyio.run`."""
    if settings["loop"] == "uvloop":
        return {"backend": "asyncio", "backend_options": {"use_uvloop": True}}
    return {"backend": settings["loop"]}


def best(times: list[float], count: int) -> Figures:
    """Of several runs the fastest is the one that was disturbed least."""
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


def waiting(settings: Settings, read: Callable[[TokenStream], Awaitable[int]]) -> Figures:
    """The processor time of this thread per wake, while a stream produces a token every millisecond."""
    import anyio

    from mullama import AsyncModel, ContextParams

    config = endless(max_tokens=WAKES, stream_delay_ms=1, buffer_size=WAKES)
    context = ContextParams(n_ctx=WAKES + 32, n_seq_max=1, n_threads=1)

    async def run() -> list[float]:
        times = []
        async with await AsyncModel.load(settings["model"], context=context) as model:
            for _ in range(3):
                async with model.generate_stream(prompt(4), config) as stream:
                    await stream.receive()
                    began = time.thread_time()
                    woken = await read(stream)
                    times.append((time.thread_time() - began) / woken)
        return times

    return best(anyio.run(run, **backend(settings)), 1)


def woken_tokens(settings: Settings) -> Figures:
    async def read(stream: TokenStream) -> int:
        return len([token async for token in stream])

    return waiting(settings, read)


def wakes(settings: Settings) -> Figures:
    import anyio

    from mullama import _core

    async def read(stream: TokenStream) -> int:
        core, notifier = stream._generation.core, _core.Notifier()
        descriptor, woken = notifier.fileno(), 0
        while not stream.is_finished():
            if not core.arm(notifier, 0):
                await anyio.wait_readable(descriptor)
                notifier.drain()
                woken += 1
            core.pop()
        return woken

    return waiting(settings, read)


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
            ("a ready token", "ready", "checkpoint"),
            ("a wake", "woken", "wait_readable"),
        )
        for loop in ("asyncio", "uvloop", "trio")
    ],
)

if __name__ == "__main__":
    main(QUESTION)
