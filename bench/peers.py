"""Compares one stream and eight streams with the other packages that run llama.cpp inside Python.

Every package is installed as its users install it, in its own environment, and used through the interface that its
documentation shows for streaming: `Llama.create_completion(stream=True)` of llama-cpp-python, `Server.handle_completions`
of xllamacpp with a callback, `LLM(prompt, stream=True)` of cyllama, and ``async for`` on asyncio for mullama. Prompts,
length, sampling, context and threads are the same. One stream: tokens after the first, per second. Eight: all tokens divided
by the time from the start to the last one, using what each package offers for concurrent requests in one process:

- llama-cpp-python serves one request at a time per `Llama`. Eight of these in eight threads, with one compute thread each,
  are faster than one that serves all in turn (370 tokens/s compared with 300 on two cores).
- xllamacpp computes them in one batch; eight threads call it, each with its callback.
- cyllama computes them in one batch (`BatchGenerator`), and returns the answers when all are done. It has no option for
  threads and uses four; the benchmark sets its contexts to the number that the others use.

Each process reports the median of three runs, after a warm-up.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from environments import interpreter
from turns import SAMPLING, CannotRun, Case, Figures, Question, Row, Settings, Side, endless, main

if TYPE_CHECKING:
    from llama_cpp import Llama

TOKENS, N_CTX, N_BATCH, N_UBATCH = 128, 512, 2048, 512
WARM_UP, TIMES = 16, 3


def prompts(count: int) -> list[str]:
    return [
        f"Story number {i}: once upon a time there was a small fox who lived at the edge of a wood"
        for i in range(count)
    ]


def one_or_all(settings: Settings, run: Callable[[list[str], int], list[list[float]]]) -> Figures:
    """The rate; `run` generates the given number of tokens for each prompt, and returns when each token arrived."""
    count = settings["streams"]

    def rate() -> float:
        began = time.perf_counter()
        seen = run(prompts(count), TOKENS)
        took = time.perf_counter() - began
        if count > 1:
            return count * TOKENS / took
        (times,) = seen
        if len(times) < TOKENS // 2:
            raise CannotRun(f"it produced {len(times)} pieces of text for {TOKENS} tokens")
        return (TOKENS - 1) / (times[-1] - times[0])

    run(prompts(count), WARM_UP)
    return {"rate": statistics.median(rate() for _ in range(TIMES))}


def in_threads(read: Callable[[str, int, list[float]], None]) -> Callable[[list[str], int], list[list[float]]]:
    """Read each prompt in its own thread."""

    def read_all(texts: list[str], tokens: int) -> list[list[float]]:
        seen: list[list[float]] = [[] for _ in texts]
        threads = [
            threading.Thread(target=read, args=(text, tokens, times)) for text, times in zip(texts, seen, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return seen

    return read_all


def mullama(settings: Settings) -> Figures:
    import anyio

    from mullama import AsyncContext, Context, Model

    async def read(prompt: str, tokens: int, times: list[float]) -> None:
        config = endless(max_tokens=tokens)
        async with AsyncContext(context).generate_stream(prompt, config) as stream:
            times.extend([time.perf_counter() async for _ in stream])

    async def read_all(texts: list[str], tokens: int) -> list[list[float]]:
        seen: list[list[float]] = [[] for _ in texts]
        async with anyio.create_task_group() as tasks:
            for text, times in zip(texts, seen, strict=True):
                tasks.start_soon(read, text, tokens, times)
        return seen

    limits = {"n_ctx": N_CTX, "n_batch": N_BATCH, "n_ubatch": N_UBATCH, "n_threads": settings["threads"]}
    with Context(Model.load(settings["model"]), n_seq_max=settings["streams"], reuse_prefix=False, **limits) as context:
        return one_or_all(settings, lambda texts, tokens: anyio.run(read_all, texts, tokens))


def new_llama(model: str, n_ctx: int, threads: int) -> Llama:
    """A `Llama` of llama-cpp-python with the same settings as the others."""
    from llama_cpp import Llama

    return Llama(
        model_path=model,
        n_ctx=n_ctx,
        n_batch=N_BATCH,
        n_ubatch=N_UBATCH,
        n_threads=threads,
        n_threads_batch=threads,
        flash_attn=True,  # what llama.cpp chooses by default here, as for the others
        verbose=False,
    )


def llama_cpp_python(settings: Settings) -> Figures:
    count = settings["streams"]
    threads = max(1, settings["threads"] // count)
    free = [new_llama(settings["model"], N_CTX, threads) for _ in range(count)]

    def read(text: str, tokens: int, times: list[float]) -> None:
        llama = free.pop()
        llama.reset()  # forget the previous prompt
        stream = llama.create_completion(text, max_tokens=tokens, stream=True, repeat_penalty=1.0, **SAMPLING)
        times.extend([time.perf_counter() for chunk in stream if chunk["choices"][0]["text"]])
        free.append(llama)

    return one_or_all(settings, in_threads(read))


def xllamacpp(settings: Settings) -> Figures:
    from xllamacpp import CommonParams, Server

    params = CommonParams()
    params.model.path = settings["model"]
    params.n_parallel = settings["streams"]
    params.n_ctx = N_CTX * settings["streams"]
    params.n_batch, params.n_ubatch = N_BATCH, N_UBATCH
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    params.cache_ram_mib = 0
    params.verbosity = -1
    server = Server(params)

    def read(text: str, tokens: int, times: list[float]) -> None:
        def callback(chunk: dict) -> None:
            if chunk.get("choices") and chunk["choices"][0]["text"]:
                times.append(time.perf_counter())

        request = {"prompt": text, "max_tokens": tokens, "stream": True, "ignore_eos": True, "cache_prompt": False}
        server.handle_completions(request | SAMPLING, callback)

    return one_or_all(settings, in_threads(read))


def cyllama(settings: Settings) -> Figures:
    from cyllama import LLM, GenerationConfig
    from cyllama.batching import BatchGenerator

    count, path = settings["streams"], settings["model"]

    def config(tokens: int) -> GenerationConfig:
        return GenerationConfig(
            max_tokens=tokens, n_ctx=N_CTX, n_batch=N_BATCH, n_gpu_layers=0, repeat_penalty=1.0, **SAMPLING
        )

    if count > 1:
        batch = BatchGenerator(path, batch_size=N_BATCH, n_ctx=N_CTX * count, n_gpu_layers=0, n_seq_max=count)
        batch.ctx.set_n_threads(settings["threads"], settings["threads"])

        def at_once(texts: list[str], tokens: int) -> list[list[float]]:
            batch.ctx.kv_cache_clear()  # it does not do so itself, and rejects a second batch
            batch.generate_batch(texts, config(tokens))
            return []

        return one_or_all(settings, at_once)
    llm = LLM(path, config=config(TOKENS))
    llm(prompts(1)[0], config=config(1))  # creates the context, which is kept
    llm._ctx.set_n_threads(settings["threads"], settings["threads"])

    def read(texts: list[str], tokens: int) -> list[list[float]]:
        return [[time.perf_counter() for _ in llm(text, config=config(tokens), stream=True)] for text in texts]

    return one_or_all(settings, read)


PEERS = {"llama-cpp-python": llama_cpp_python, "xllamacpp": xllamacpp, "cyllama": cyllama}


def case(count: int) -> Case:
    label = f"{count} stream{'s' if count > 1 else ''}"
    rows = [
        Row(label=f"{label}, {peer}", side="mullama", figure="rate", unit="tokens/s", reference=peer, reach=1.0)
        for peer in PEERS
    ]
    return Case({"model": "mid", "streams": count}, rows)


QUESTION = Question(
    file=__file__,
    title="Peers, in process",
    about=__doc__,
    sides={"mullama": Side(mullama)}
    | {peer: Side(function, lambda peer=peer: interpreter(peer)) for peer, function in PEERS.items()},
    cases=[case(1), case(8)],
)

if __name__ == "__main__":
    main(QUESTION)
