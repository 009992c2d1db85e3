"""What `mullama bench` measures: the speed of 1 to N streams, compared with upstream's own benchmark if it is installed.

Strategy: all streams of a run start together in one task group, and none ends early. Generation is measured while all of them
generate: from the first token of the last stream to the last token of the first stream, as seen by the reader. Upstream's
`llama-batched-bench` measures the same without choosing or reading tokens, so it is the upper limit; the two alternate, so
that other load on the machine affects both.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anyio

from ._async import AsyncContext, AsyncModel
from ._model import Model
from .config import ContextParams, SamplerParams, StreamConfig

__all__ = ["Load", "Speed", "measure", "run_streams", "table", "upstream_speeds"]

UPSTREAM = "llama-batched-bench"
_SEED = 1


@dataclass(frozen=True, kw_only=True)
class Load:
    """The load of a benchmark: the number of streams, and of prompt and answer tokens of each."""

    streams: int = 8
    counts: Sequence[int] = ()  # numbers of parallel streams, in order; by default 1, 2, 4 … and `streams`
    prompt: int = 128
    tokens: int = 128
    repeat: int = 3
    threads: int | None = None
    gpu_layers: int = -1

    def __post_init__(self) -> None:
        powers = {2**k for k in range(self.streams.bit_length())}
        object.__setattr__(self, "counts", tuple(self.counts) or tuple(sorted({*powers, self.streams})))

    def context(self) -> ContextParams:
        n_ctx = self.prompt + self.tokens
        return ContextParams(n_ctx=n_ctx, n_seq_max=self.streams, n_threads=self.threads, reuse_prefix=False)


@dataclass(frozen=True)
class Speed:
    """Tokens per second, of all streams together."""

    streams: int
    prompt: float
    generation: float


async def measure(
    path: str | None, load: Load, upstream: str | None, report: Callable[[str], object] = lambda _: None
) -> dict[str, Any]:
    """The medians of `load.repeat` runs, ready for JSON; `upstream` is the program to alternate with, or None."""
    ours: list[list[Speed]] = []
    theirs: list[list[Speed]] = []
    async with await AsyncModel.load(path, n_gpu_layers=load.gpu_layers, context=load.context()) as model:
        description = {**_facts(model.model), **asdict(load), "threads": model.context.n_threads}
        await run_streams(model, 1, load)  # warms up
        for turn in range(load.repeat):
            report(f"turn {turn + 1} of {load.repeat}")
            ours.append([await run_streams(model, n, load) for n in load.counts])
            if upstream is not None:
                threads = model.context.n_threads
                theirs.append(await upstream_speeds(upstream, str(model.model.path), load, threads))
    rows = []
    for i, n in enumerate(load.counts):
        row: dict[str, Any] = {"streams": n, **_median([turn[i] for turn in ours])}
        row["upstream"] = _median([turn[i] for turn in theirs]) if theirs else None
        rows.append(row)
    return {**description, "upstream": upstream, "rows": rows}


def _facts(model: Model) -> dict[str, Any]:
    """Facts of the model. Only the quantisation comes from llama.cpp's description, whose size may be "?B"."""
    quantization = re.sub(r"^\S+ \S+ (\((?!guessed)\w+\) )?", "", model.description)  # architecture, size and its kind
    return {
        "model": model.name,
        "file": str(model.path),
        "parameters": model.n_params,
        "quantization": quantization,
    }


async def run_streams(context: AsyncContext, n: int, load: Load) -> Speed:
    """One run of n parallel streams. Cancelled, it cancels all of them."""
    numbers = random.Random(_SEED)
    n_vocab = context.model.n_vocab
    params = SamplerParams(ignore_eos=True, seed=_SEED)
    config = StreamConfig(max_tokens=load.tokens, timeout_ms=0, params=params)
    prompts = [[numbers.randrange(n_vocab) for _ in range(load.prompt)] for _ in range(n)]
    times: list[list[float]] = [[] for _ in prompts]

    async def read(prompt: Sequence[int], seen: list[float]) -> None:
        async with context.generate_stream(prompt, config) as stream:
            seen.extend([time.perf_counter() async for _ in stream])

    began = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for prompt, seen in zip(prompts, times, strict=True):
            tasks.start_soon(read, prompt, seen)
    all_run, one_ends = max(seen[0] for seen in times), min(seen[-1] for seen in times)
    generated = sum(all_run < moment <= one_ends for seen in times for moment in seen)
    generation = generated / (one_ends - all_run) if one_ends > all_run else 0.0
    return Speed(n, n * load.prompt / (all_run - began), generation)


async def upstream_speeds(program: str, path: str, load: Load, threads: int) -> list[Speed]:
    """The results of `llama-batched-bench` for the same load, one for each count. Cancelled, the program is killed.

    Raises:
        OSError: The program cannot be run, or failed.
    """
    room = -(-(load.prompt + load.tokens) // 256) * 256  # as llama.cpp rounds the context of each sequence
    options = {
        "-m": path,
        "-c": room * load.streams,
        "-npp": load.prompt,
        "-ntg": load.tokens,
        "-npl": ",".join(map(str, load.counts)),
        "-t": threads,
        "-tb": threads,
        "-ngl": "all" if load.gpu_layers < 0 else load.gpu_layers,
        "--output-format": "jsonl",
    }
    command = [program, *(str(word) for option in options.items() for word in option)]
    done = await anyio.run_process(command, stderr=subprocess.PIPE, check=False)
    lines = [json.loads(line) for line in done.stdout.decode().splitlines() if line.startswith("{")]
    if done.returncode or len(lines) != len(load.counts):
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise OSError(done.returncode, f"it exited with status {done.returncode} {' '.join(said)}".strip(), program)
    return [Speed(line["pl"], line["speed_pp"], line["speed_tg"]) for line in lines]


def find_upstream(given: str | None) -> str | None:
    """The given program, or else the one on the PATH, or else None."""
    return given if given is not None else shutil.which(UPSTREAM)


def _median(speeds: list[Speed]) -> dict[str, float]:
    return {
        "prompt_tokens_per_second": statistics.median(speed.prompt for speed in speeds),
        "tokens_per_second": statistics.median(speed.generation for speed in speeds),
    }


def describe(result: dict[str, Any]) -> str:
    """The result as text."""
    file, parameters = Path(result["file"]).name, _count(result["parameters"])
    model = f"{result['model']} ({file}), {parameters} parameters, {result['quantization']}"
    threads = f"{result['threads']} {'thread' if result['threads'] == 1 else 'threads'}"
    load = f"{threads}, {result['prompt']} tokens of prompt, {result['tokens']} of answer"
    rows = [["streams", "prompt tokens/s", "tokens/s", "upstream's prompt", "upstream's", "ratio"]]
    for row in result["rows"]:
        ours, theirs = row["tokens_per_second"], row["upstream"]
        cells = [str(row["streams"]), _figure(row["prompt_tokens_per_second"]), _figure(ours)]
        if theirs is not None:
            limit = theirs["tokens_per_second"]
            cells += [_figure(theirs["prompt_tokens_per_second"]), _figure(limit), f"{ours / limit:.2f}"]
        rows.append(cells)
    if result["upstream"] is None:
        rows[0] = rows[0][:3]
        note = f"Upstream's figures are missing: {UPSTREAM} is not on the PATH; give its path with --upstream."
    else:
        note = f"Upstream's figures are those of {UPSTREAM}, which does not sample tokens."
    return f"{model}\n{load}\n\n{table(rows)}\n\n{note}"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _count(n: int) -> str:
    """A number of parameters as in the names of models, such as 135M."""
    unit, size = next(((u, s) for u, s in (("B", 10**9), ("M", 10**6)) if n >= s), ("", 1))
    return f"{n / size:.3g}{unit}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table of rows, with numbers right-aligned; the first row is the head."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    left = [not any(row[i][:1].isdigit() for row in rows[1:] if i < len(row)) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = (c.ljust(w) if side else c.rjust(w) for c, w, side in zip(row, widths, left, strict=False))
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
