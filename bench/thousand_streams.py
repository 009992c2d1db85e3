"""Measures whether 1,000 streams with slow readers all finish on 32 slots, fairly and in constant memory.

All are opened at once in one task group; 32 generate, the others wait in order of arrival. Each generates 20 tokens and has
a buffer of four, so the engine pauses each for its reader, and a slot is held for about 1.6 s. Fairness: the longest time
from opening a stream to its end, divided by the mean of these times (just below two if all take equally long and are served
in order), and the longest time from a stream's first token to its last, divided by the mean of these. Memory: how far the
resident memory rises above its value when all are open and the first hundred have ended.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

from turns import Case, Figures, Question, Row, Settings, Side, endless, main, prompt

STREAMS, SLOTS, TOKENS, BUFFER, PER_SECOND = 1000, 32, 20, 4, 10


def resident() -> float:
    """This process's memory, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(settings: Settings) -> Figures:
    import anyio

    from mullama import AsyncModel, ContextParams

    config = endless(max_tokens=TOKENS, buffer_size=BUFFER)
    context = ContextParams(n_ctx=256, n_seq_max=SLOTS, n_threads=settings["threads"])
    whole: list[float] = []
    running: list[float] = []
    memory: list[float] = []

    async def run() -> None:
        async with await AsyncModel.load(settings["model"], context=context) as model:
            opened = time.perf_counter()

            async def read(i: int) -> None:
                async with model.generate_stream(prompt(16, seed=i), config) as stream:
                    first = last = 0.0
                    async for _ in stream:
                        last = time.perf_counter()
                        first = first or last
                        await anyio.sleep(1 / PER_SECOND)
                if len(stream.completion().tokens) == TOKENS:
                    whole.append(last - opened)
                    running.append(last - first)
                if len(whole) >= STREAMS / 10:
                    memory.append(resident())

            async with anyio.create_task_group() as tasks:
                for i in range(STREAMS):
                    tasks.start_soon(read, i)

    anyio.run(run)
    return {
        "finished": len(whole),
        "whole": max(whole) / statistics.mean(whole),
        "running": max(running) / statistics.mean(running),
        "growth_mb": max(memory) - memory[0],
        "seconds": max(whole),
    }


QUESTION = Question(
    file=__file__,
    title="A thousand streams",
    about=__doc__,
    sides={"mullama": Side(measure)},
    cases=[
        Case(
            {"model": "mid"},
            [
                Row(label="finished", side="mullama", figure="finished", unit="streams", reach=STREAMS),
                Row(label="to the end, longest over mean", side="mullama", figure="whole", unit="", reach=2, less=True),
                Row(label="running, longest over mean", side="mullama", figure="running", unit="", reach=2, less=True),
                Row(label="memory", side="mullama", figure="growth_mb", unit="MB more", reach=5, less=True),
                Row(label="total time", side="mullama", figure="seconds", unit="s", less=True),
            ],
            most_rounds=1,
        )
    ],
)

if __name__ == "__main__":
    main(QUESTION)
