"""Measures what a token costs the event loop where 500 streams are read at once, against eight.

The cost is the processor time of the loop's thread for each token that its tasks receive, from when every stream that
generates has given a token (the others pause until then) until the first of them ends. Generating: two contexts on
one loop share the streams, and all of them generate. Waiting: one context with eight slots, so that 492 streams are
in its queue and their readers wait, while the other eight generate as those of the reference do. On the 4 M model,
one thread for each context.
"""

from __future__ import annotations

import time
from typing import Any

from python_cost import backend
from turns import Case, Figures, Question, Row, Settings, Side, endless, main, prompt

MANY, FEW = 500, 8
TOKENS, BUFFER = 16_000, 8  # of all streams together; of each


def cost(settings: Settings, n_streams: int) -> Figures:
    import anyio

    from mullama import AsyncContext, ContextParams, Model

    n_contexts = 1 if settings["wait"] else 2
    n_generating = FEW if settings["wait"] else n_streams
    each = TOKENS // n_generating
    params = ContextParams(n_ctx=each + 32, n_seq_max=n_generating // n_contexts, n_threads=1)

    async def run() -> Figures:
        model = Model.load(settings["model"])
        contexts = [await AsyncContext.create(model, params) for _ in range(n_contexts)]
        all_begun = anyio.Event()  # until then each has a full buffer, and is paused
        begun = received = 0
        began = 0.0

        async def read(i: int) -> None:
            nonlocal begun, began, received
            config = endless(max_tokens=each, buffer_size=BUFFER)
            async with contexts[i % n_contexts].generate_stream(prompt(4, seed=i), config) as stream:
                await stream.receive()
                begun += 1
                if begun == n_generating:
                    began = time.thread_time()
                    all_begun.set()
                await all_begun.wait()
                async for _token in stream:
                    received += 1
                figures.append({"cost_us": 1e6 * (time.thread_time() - began) / received})
                tasks.cancel_scope.cancel()

        figures: list[Figures] = []
        async with anyio.create_task_group() as tasks:
            for i in range(n_streams):
                tasks.start_soon(read, i)
        for context in contexts:
            await context.aclose()
        return figures[0]

    return anyio.run(run, **backend(settings))


def few(settings: Settings) -> Figures:
    return cost(settings, FEW)


def many(settings: Settings) -> Figures:
    return cost(settings, MANY)


def case(loop: str, wait: bool) -> Case:
    label = f"{FEW} generate and {MANY - FEW} wait" if wait else f"{MANY} generate"
    row: dict[str, Any] = {"figure": "cost_us", "unit": "µs", "reference": "8 streams", "reach": 1.5, "less": True}
    return Case(
        {"model": "tiny", "loop": loop, "wait": wait}, [Row(label=f"{label}, {loop}", side="500 streams", **row)]
    )


QUESTION = Question(
    file=__file__,
    title="Many readers",
    about=__doc__,
    sides={"8 streams": Side(few), "500 streams": Side(many)},
    cases=[case(loop, wait) for wait in (False, True) for loop in ("asyncio", "uvloop", "trio")],
)

if __name__ == "__main__":
    main(QUESTION)
