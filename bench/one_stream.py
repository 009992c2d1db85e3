"""Measures one stream beside a plain C++ loop that decodes and samples with the same chain and does nothing else.

    python bench/one_stream.py [tiny|mid|half] [--rounds 5] [--tokens 128] [--threads N]

The loop (`c_loop.cpp`) and the three ways to read a stream (``async for`` on asyncio and on trio, and the synchronous
iterator) take turns, each in a process of its own; a rate is that of the tokens after the first, as the reader sees them;
a process gives the median of three runs after a warm-up. What is printed is the median ratio over the rounds, and its range.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROMPT = [1, 15043, 3186, 29892]  # ids of Llama 2's vocabulary; with random weights any will do
READERS = ("asyncio", "trio", "sync")


def read(reader: str, model: Path, n: int, threads: int) -> float:
    """Tokens per second of one reader: the median of three runs after a warm-up."""
    import anyio

    from mullama import AsyncContext, Context, Model, SamplerParams, StreamConfig

    params = SamplerParams(ignore_eos=True, seed=1)
    config = StreamConfig(max_tokens=n, timeout_ms=0, params=params)
    context = Context(Model.load(model), n_ctx=512, n_seq_max=1, n_threads=threads, reuse_prefix=False)

    def rate(times: list[float]) -> float:
        return (len(times) - 1) / (times[-1] - times[0])

    def sync_run() -> float:
        return rate([time.perf_counter() for _ in context.generate_stream(PROMPT, config)])

    async def async_run() -> list[float]:
        async def once() -> float:
            async with AsyncContext(context).generate_stream(PROMPT, config) as stream:
                return rate([time.perf_counter() async for _ in stream])

        return [await once() for _ in range(4)]

    with context:
        rates = [sync_run() for _ in range(4)] if reader == "sync" else anyio.run(async_run, backend=reader)
    return statistics.median(rates[1:])


def reference(model: Path, n: int, threads: int) -> float:
    sys.path.insert(0, str(HERE.parent / "tools"))
    from build_programs import program

    loop = program(HERE / "c_loop.cpp", link_llama=True)
    tokens = ",".join(map(str, PROMPT))
    options = f"--n {n} --threads {threads} --ctx 512 --warm-up 1 --repeat 3 --seed 1 --ignore-eos 1".split()
    done = subprocess.run(
        [loop, "--model", model, "--tokens", tokens, *options], capture_output=True, text=True, check=True
    )
    return float(json.loads(done.stdout)["tokens_per_second"])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("size", nargs="?", default="mid")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--tokens", type=int, default=128)
    arguments.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments.add_argument("--reader", choices=READERS, help=argparse.SUPPRESS)
    given = arguments.parse_args()

    from models import bench_model

    model = bench_model(given.size)
    if given.reader:
        print(read(given.reader, model, given.tokens, given.threads))
        return
    ratios: dict[str, list[float]] = {reader: [] for reader in READERS}
    limits = []
    for _ in range(given.rounds):
        limits.append(reference(model, given.tokens, given.threads))
        for reader in READERS:
            command = [sys.executable, __file__, given.size, "--reader", reader]
            command += ["--tokens", str(given.tokens), "--threads", str(given.threads)]
            rate = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            ratios[reader].append(rate / limits[-1])
    print(f"{given.size}: C loop {statistics.median(limits):.0f} tokens/s ({min(limits):.0f} to {max(limits):.0f})")
    for reader, found in ratios.items():
        print(f"  {reader:8} {statistics.median(found):.3f} of it ({min(found):.3f} to {max(found):.3f})")


if __name__ == "__main__":
    main()
