"""Measures how long it takes until the slot is free after a cancel.

A stream is cancelled at a random moment within a step; the time is measured from `cancel()` until `aclose()` returns, which
waits for the slot. While decoding, it is given in steps (the median time between two tokens), for a single stream and for
one of eight. While a prompt of 4,000 tokens is being computed, it is given in milliseconds, for a single stream and beside
four streams that decode. Each process reports the worst of twenty cancels while decoding, and of eight in the prompt.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

from turns import Case, Figures, Question, Row, Settings, Side, endless, main, prompt

if TYPE_CHECKING:
    from mullama import AsyncModel, TokenStream

IN_DECODING, IN_PROMPT = 20, 8


@asynccontextmanager
async def beside(model: AsyncModel, count: int) -> AsyncIterator[None]:
    """Run `count` endless streams in the background; ready when each has produced ten tokens."""
    import anyio

    ready = anyio.Event()
    seen = [0] * count

    async def read(i: int) -> None:
        async with stream_of(model, prompt(16, seed=i)) as stream:
            async for _ in stream:
                seen[i] += 1
                if min(seen) == 10:
                    ready.set()

    async with anyio.create_task_group() as tasks:
        for i in range(count):
            tasks.start_soon(read, i)
        if count:
            await ready.wait()
        yield
        tasks.cancel_scope.cancel()


def stream_of(model: AsyncModel, tokens: list[int]) -> TokenStream:

    return model.generate_stream(tokens, endless(max_tokens=None))


def measure(settings: Settings) -> Figures:
    import anyio

    from mullama import AsyncModel, ContextParams

    numbers = random.Random(1)
    others = settings["others"]
    context = ContextParams(n_ctx=4352, n_seq_max=others + 1, n_threads=settings["threads"], reuse_prefix=False)

    async def decoding(model: AsyncModel) -> tuple[float, float]:
        """The duration of one cancel, and of a step."""
        times = []
        async with stream_of(model, prompt(16, seed=100)) as stream:
            async for _ in stream:
                times.append(time.perf_counter())
                if len(times) == 12:
                    break
            step = statistics.median(b - a for a, b in pairwise(times[1:]))
            await anyio.sleep(step * numbers.uniform(1, 2))
            return await cancel(stream), step

    async def reading(model: AsyncModel) -> tuple[float, float]:
        async with stream_of(model, prompt(4000, seed=numbers.randrange(1000))) as stream:
            await anyio.sleep(numbers.uniform(0.05, 0.4))
            assert stream.tokens_generated() == 0
            return await cancel(stream), 1e-3

    async def cancel(stream: TokenStream) -> float:
        began = time.perf_counter()
        stream.cancel()
        await stream.aclose()
        return time.perf_counter() - began

    async def run() -> Figures:
        one, times = (reading, IN_PROMPT) if settings["prompt"] else (decoding, IN_DECODING)
        async with await AsyncModel.load(settings["model"], context=context) as model, beside(model, others):
            found = [took / unit for took, unit in [await one(model) for _ in range(times)]]
        return {"worst": max(found), "median": statistics.median(found)}

    return anyio.run(run)


def case(label: str, others: int, reach: float, *, in_prompt: bool) -> Case:
    unit = "ms" if in_prompt else "steps"
    row = Row(label=label, side="mullama", figure="worst", unit=unit, reach=reach, less=True)
    usual = Row(label=f"{label}, median", side="mullama", figure="median", unit=unit, less=True)
    return Case({"model": "mid", "others": others, "prompt": in_prompt}, [row, usual])


QUESTION = Question(
    file=__file__,
    title="Cancel",
    about=__doc__,
    sides={"mullama": Side(measure)},
    cases=[
        case("decoding alone", 0, 1.0, in_prompt=False),
        case("decoding, one of eight", 7, 1.0, in_prompt=False),
        case("in a prompt of 4,000 tokens", 0, 20, in_prompt=True),
        case("in a prompt of 4,000 tokens beside four streams", 4, 20, in_prompt=True),
    ],
)

if __name__ == "__main__":
    main(QUESTION)
