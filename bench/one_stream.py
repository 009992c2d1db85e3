"""Measures the rate of one stream, relative to a plain C++ loop.

The loop (`c_loop.cpp`) decodes and samples with the same chain and does nothing else: no text, no buffer, no threads except
llama.cpp's own. It is compared with the three ways to read a stream: ``async for`` on asyncio and on trio, and the
synchronous iterator. The rate is that of the tokens after the first, measured by the reader; each process reports the median
of three runs after a warm-up.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time

from turns import BENCH, SAMPLING, Case, Figures, Question, Row, Settings, Side, endless, main, prompt

PROMPT = prompt(4)
N_CTX = 512
# Tokens, enough to measure but not to take long; and the target for the ratio.
SIZES = {"tiny": (448, 0.90), "mid": (128, 0.95), "half": (64, 0.97)}


def loop_command(model: str, tokens: int, threads: int, *, repeat: int) -> list[str]:
    """The command line of the plain loop."""
    from build_programs import program

    options = {"tokens": ",".join(map(str, PROMPT)), "n": tokens, "ctx": N_CTX, "ignore-eos": 1}
    options |= {"model": model, "threads": threads, "warm-up": 1, "repeat": repeat}
    options |= {name.replace("_", "-"): value for name, value in SAMPLING.items()}
    loop = program(BENCH / "c_loop.cpp", link_llama=True)
    return [str(loop), *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def reference(settings: Settings) -> Figures:
    command = loop_command(settings["model"], settings["tokens"], settings["threads"], repeat=3)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {"rate": float(json.loads(done.stdout)["tokens_per_second"])}


def read(reader: str, settings: Settings) -> Figures:
    import anyio

    from mullama import AsyncContext, Context, Model

    config = endless(max_tokens=settings["tokens"])
    model = Model.load(settings["model"])

    def rate(times: list[float]) -> float:
        return (len(times) - 1) / (times[-1] - times[0])

    def sync_run() -> float:
        return rate([time.perf_counter() for _ in context.generate_stream(PROMPT, config)])

    async def async_run() -> list[float]:
        async def once() -> float:
            async with AsyncContext(context).generate_stream(PROMPT, config) as stream:
                return rate([time.perf_counter() async for _ in stream])

        return [await once() for _ in range(4)]

    with Context(model, n_ctx=N_CTX, n_seq_max=1, n_threads=settings["threads"], reuse_prefix=False) as context:
        rates = [sync_run() for _ in range(4)] if reader == "sync" else anyio.run(async_run, backend=reader)
    return {"rate": statistics.median(rates[1:])}


READERS = {
    "asyncio": lambda settings: read("asyncio", settings),
    "trio": lambda settings: read("trio", settings),
    "sync": lambda settings: read("sync", settings),
}


def case(size: str, tokens: int, reach: float) -> Case:
    rows = [
        Row(label=f"{size}, {name}", side=name, figure="rate", unit="tokens/s", reference="C loop", reach=reach)
        for name in READERS
    ]
    return Case({"model": size, "tokens": tokens}, rows)


QUESTION = Question(
    file=__file__,
    title="One stream",
    about=__doc__,
    sides={"C loop": Side(reference)} | {name: Side(function) for name, function in READERS.items()},
    cases=[case(size, *what) for size, what in SIZES.items()],
)

if __name__ == "__main__":
    main(QUESTION)
