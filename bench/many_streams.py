"""Measures how close 1 to 32 streams in one task group come to upstream's own batching.

The reference is upstream's `llama-batched-bench`, built from the same source: it decodes the same number of sequences at
once, with arbitrary tokens, without sampling or keeping any. So it is an upper limit, which no program that samples can
quite reach. Both use a new context for each count, separate cells for each sequence, different prompts, and the same n_batch
and n_ubatch. mullama's rate is that of all streams together while all of them generate, measured by the readers, on asyncio.
"""

from __future__ import annotations

import statistics

from turns import Case, Figures, Question, Row, Settings, Side, main

PROMPT, TOKENS = 32, 96
COUNTS = {1: None, 4: None, 8: 0.95, 16: 0.95, 32: 0.95}
TIMES = 2  # runs in a process, after a warm-up


def batched_bench(settings: Settings) -> Figures:
    import anyio
    from upstream_programs import upstream_program

    from mullama._bench import Load, upstream_speeds

    program = str(upstream_program("llama-batched-bench"))
    count = settings["streams"]
    load = Load(streams=count, counts=(count,) * (TIMES + 1), prompt=PROMPT, tokens=TOKENS)
    speeds = anyio.run(upstream_speeds, program, settings["model"], load, settings["threads"])
    return {"rate": statistics.median(speed.generation for speed in speeds[1:])}


def streams(settings: Settings) -> Figures:
    import anyio

    from mullama import AsyncModel
    from mullama._bench import Load, run_streams

    count = settings["streams"]
    load = Load(streams=count, prompt=PROMPT, tokens=TOKENS, threads=settings["threads"])

    async def run() -> list[float]:
        async with await AsyncModel.load(settings["model"], context=load.context()) as model:
            return [(await run_streams(model, count, load)).generation for _ in range(TIMES + 1)]

    return {"rate": statistics.median(anyio.run(run)[1:])}


def case(count: int, reach: float | None) -> Case:
    label = f"{count} stream{'s' if count > 1 else ''}"
    row = Row(label=label, side="mullama", figure="rate", unit="tokens/s", reference="llama-batched-bench", reach=reach)
    return Case({"model": "mid", "streams": count}, [row])


QUESTION = Question(
    file=__file__,
    title="Many streams",
    about=__doc__,
    sides={"llama-batched-bench": Side(batched_bench), "mullama": Side(streams)},
    cases=[case(count, reach) for count, reach in COUNTS.items()],
)

if __name__ == "__main__":
    main(QUESTION)
