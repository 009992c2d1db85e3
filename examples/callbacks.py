"""Callbacks: a function that is called with each token, to show, stop, collect, measure, group, and hand on to other threads.

python examples/callbacks.py [MODEL]
"""

from __future__ import annotations

import queue
import sys
import threading
from collections import deque

import anyio
from anyio import from_thread, to_thread

from mullama import Completion, Context, GenerationError, Model, MullamaError, SamplerParams, StreamConfig, TokenData

STORY = "Once upon a time"
EXACT = SamplerParams.greedy()  # always the likeliest token: the same text in every run


def show(token: TokenData) -> None:
    print(token, end="", flush=True)


def basic(context: Context) -> None:
    context.generate_streaming("Write a poem:", 200, show, EXACT)


def stopping(context: Context) -> None:
    """After forty tokens, or at certain words."""
    total, text = 0, ""

    def watch(token: TokenData) -> bool:
        nonlocal total, text
        show(token)
        total += 1
        text += token
        return total < 40 and "THE END" not in text

    completion = context.generate_streaming(STORY, 1000, watch, EXACT)
    print(f"\n{total} tokens, {completion.finish_reason}")


def collecting(context: Context) -> None:
    response: list[str] = []

    def collect(token: TokenData) -> None:
        show(token)
        response.append(token)

    completion = context.generate_streaming("Hello:", 200, collect, EXACT)
    print("\n\nFull response:", "".join(response).strip())
    assert completion.text == "".join(response)


def progress(context: Context) -> None:
    """The stream measures itself, so a loop is simpler here than a callback with a clock."""
    with context.generate_stream(STORY, 500, EXACT) as stream:
        for token in stream:
            if stream.tokens_generated() % 50 == 0:
                print(
                    f" [{stream.tokens_generated()} tokens, {stream.tokens_per_second():.1f} t/s]", end="", flush=True
                )
            show(token)
    timings = stream.completion().timings
    seconds = (timings.prefill_ms + timings.decode_ms) / 1000
    print(f"\n\nGenerated {stream.tokens_generated()} tokens in {seconds:.2f} s")


def another_thread(context: Context) -> None:
    """A queue with a bound: a slow consumer pauses the generation instead of filling the memory."""
    tokens: queue.Queue[TokenData | None] = queue.Queue(maxsize=4)
    received: list[TokenData] = []

    def consume() -> None:
        while (token := tokens.get()) is not None:
            received.append(token)  # for example: send it to a websocket

    consumer = threading.Thread(target=consume)
    consumer.start()
    completion = context.generate_streaming("Hello:", 200, tokens.put, EXACT)
    tokens.put(None)  # the end
    consumer.join()
    assert "".join(received) == completion.text
    print(f"{len(received)} tokens arrived: {completion.text.strip()}")


def buffered(context: Context) -> None:
    """Five tokens at a time."""
    buffer: deque[str] = deque()

    def flush() -> None:
        print("".join(buffer), end="|", flush=True)
        buffer.clear()

    def add(token: TokenData) -> None:
        buffer.append(token)
        if len(buffer) >= 5:
            flush()

    context.generate_streaming("What is Rust?", 200, add, EXACT)
    flush()  # what is left


def failing(context: Context) -> None:
    """With so little time that it must."""
    config = StreamConfig(max_tokens=200, timeout_ms=300, stream_delay_ms=20, params=EXACT)
    try:
        context.generate_streaming(STORY, config, show)
        print("\nGeneration complete")
    except GenerationError as error:
        print("\nGeneration failed:", error)
    except MullamaError as error:
        print("\nError:", error)


async def from_a_worker_thread(context: Context) -> None:
    """A blocking context in an asynchronous program. `AsyncModel` needs none of this."""
    send, receive = anyio.create_memory_object_stream[TokenData](32)

    def generate() -> Completion:
        try:
            return context.generate_streaming("Hello:", 200, lambda token: from_thread.run(send.send, token), EXACT)
        finally:
            from_thread.run_sync(send.close)

    async with anyio.create_task_group() as tasks, receive:
        tasks.start_soon(to_thread.run_sync, generate)
        async for token in receive:
            show(token)


def main(path: str | None = None) -> None:
    with Context(Model.load(path), n_ctx=2048) as context:
        for example in (basic, stopping, collecting, progress, another_thread, buffered, failing):
            print(f"\n--- {example.__name__.replace('_', ' ')}")
            example(context)
        for backend in ("asyncio", "trio"):
            print(f"\n--- from a worker thread, into {backend}")
            anyio.run(from_a_worker_thread, context, backend=backend)
        print()


if __name__ == "__main__":
    main(*sys.argv[1:2])
