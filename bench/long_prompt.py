"""Measures how a prompt of 2,000 tokens delays streams that decode, and how soon it gets its own first token.

The reference is upstream's `llama-server`, built from the same source, over HTTP on this machine: nine slots, the same
n_ctx per slot, the same n_batch and n_ubatch, no cache. Its client does as little as possible: asyncio sockets, and JSON
only in requests. Eight streams decode; when each has had 20 tokens, the long prompt arrives. The readers measure the longest
time that any of the eight waited for a token from then until the prompt's first token, and the time to that token. A shorter
prompt goes first, unmeasured. The gap of `llama-server` depends on its batch size; a row shows it with 256 instead of 2,048,
which a user could choose.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise

from turns import SAMPLING, CannotRun, Case, Figures, Question, Row, Settings, Side, endless, main, prompt

STREAMS, N_CTX, N_BATCH, N_UBATCH = 8, 2560, 2048, 512
BEFORE = 20  # tokens that each stream has produced when the prompt arrives
SHORT, LONG = prompt(400, seed=98), prompt(2000, seed=99)
READY_SECONDS = 60

# Generates the given number of tokens after a prompt, and calls the function for each of them.
Generate = Callable[[Sequence[int], int, Callable[[], object]], Awaitable[None]]


async def scene(generate: Generate, long: Sequence[int]) -> Figures:
    """Eight streams, and one prompt that arrives among them."""
    import anyio

    times: list[list[float]] = [[] for _ in range(STREAMS)]
    ready = anyio.Event()
    firsts: list[float] = []

    async def stream(i: int) -> None:
        def token() -> None:
            times[i].append(time.perf_counter())
            if not ready.is_set() and min(map(len, times)) >= BEFORE:
                ready.set()

        await generate(prompt(32, seed=i), N_CTX - 64, token)

    async with anyio.create_task_group() as tasks:
        for i in range(STREAMS):
            tasks.start_soon(stream, i)
        await ready.wait()
        asked = time.perf_counter()
        await generate(long, 1, lambda: firsts.append(time.perf_counter()))
        await anyio.sleep(0.5)  # the tokens after the gap
        tasks.cancel_scope.cancel()
    first = firsts[0]
    gaps = [b - a for seen in times for a, b in pairwise(seen) if b > asked and a < first]
    usual = [b - a for seen in times for a, b in pairwise(seen) if b <= asked]
    return {
        "first_ms": 1e3 * (first - asked),
        "gap_ms": 1e3 * max(gaps),
        "usual_ms": 1e3 * sorted(usual)[len(usual) // 2],
    }


async def twice(generate: Generate) -> Figures:
    await scene(generate, SHORT)
    return await scene(generate, LONG)


def mullama(settings: Settings) -> Figures:
    import anyio

    from mullama import AsyncModel, ContextParams

    limits = {"n_ctx": N_CTX, "n_batch": N_BATCH, "n_ubatch": N_UBATCH, "n_threads": settings["threads"]}
    context = ContextParams(n_seq_max=STREAMS + 1, reuse_prefix=False, **limits)

    async def run() -> Figures:
        async with await AsyncModel.load(settings["model"], context=context) as model:

            async def generate(tokens: Sequence[int], most: int, token: Callable[[], object]) -> None:
                config = endless(max_tokens=most)
                async with model.generate_stream(tokens, config) as stream:
                    async for _ in stream:
                        token()

            return await twice(generate)

    return anyio.run(run)


def llama_server(settings: Settings) -> Figures:
    import anyio
    from upstream_programs import upstream_program

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {
        "--model": settings["model"],
        "--host": "127.0.0.1",
        "--port": port,
        "--parallel": STREAMS + 1,
        "--ctx-size": N_CTX * (STREAMS + 1),
        "--threads": settings["threads"],
        "--threads-batch": settings["threads"],
        "--batch-size": settings["n_batch"],
        "--ubatch-size": min(N_UBATCH, settings["n_batch"]),
        "--cache-ram": 0,
        "--ctx-checkpoints": 0,
    }
    command = [str(upstream_program("llama-server")), *(str(word) for option in options.items() for word in option)]
    command += ["--no-kv-unified", "--no-ui", "--log-disable"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_until_ready(server, port)

        async def generate(tokens: Sequence[int], most: int, token: Callable[[], object]) -> None:
            request = {"prompt": tokens, "n_predict": most, "stream": True, "ignore_eos": True, "cache_prompt": False}
            await post(port, request | SAMPLING, token)

        return anyio.run(twice, generate)
    finally:
        server.kill()
        server.wait()


async def post(port: int, request: dict[str, object], token: Callable[[], object]) -> None:
    """Request a completion; the function is called for each event with a token."""
    import asyncio

    body = json.dumps(request).encode()
    head = f"POST /completion HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        async for line in reader:
            if line.startswith(b"data: ") and b'"stop":false' in line:
                token()
    finally:
        writer.close()


def wait_until_ready(server: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            said = server.stderr.read().decode(errors="replace").strip().splitlines() if server.stderr else []
            raise CannotRun(f"llama-server exited at once: {said[-1] if said else server.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise CannotRun("llama-server did not become ready")


def case(reference: str, n_batch: int, gap: float | None, first: float | None) -> Case:
    with_batch = "" if n_batch == N_BATCH else f", its batch size {n_batch}"
    rows = [
        Row(
            label=f"longest gap{with_batch}",
            side="mullama",
            figure="gap_ms",
            unit="ms",
            reference=reference,
            reach=gap,
            less=True,
        ),
        Row(
            label=f"time to first token{with_batch}",
            side="mullama",
            figure="first_ms",
            unit="ms",
            reference=reference,
            reach=first,
            less=True,
        ),
    ]
    return Case({"model": "mid", "n_batch": n_batch}, rows)


QUESTION = Question(
    file=__file__,
    title="A long prompt among streams",
    about=__doc__,
    sides={"llama-server": Side(llama_server), "mullama": Side(mullama)},
    cases=[case("llama-server", N_BATCH, 0.5, 1.2), case("llama-server", 256, None, None)],
)

if __name__ == "__main__":
    main(QUESTION)
