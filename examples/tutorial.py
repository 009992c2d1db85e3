"""A tour without an event loop: streaming, statistics, temperatures, stopping early, Ctrl-C.

python examples/tutorial.py [MODEL]
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

from mullama import Completion, Context, Model, SamplerParams

WARM = SamplerParams(temperature=0.7, seed=2)


def console(context: Context) -> None:
    prompt = "The future of artificial intelligence is"
    print(prompt, end="", flush=True)
    for piece in context.generate_stream(prompt, max_tokens=100, params=SamplerParams(temperature=0.8, seed=1)):
        print(piece, end="", flush=True)
    print("\n")


def stream_with_stats(context: Context, prompt: str, max_tokens: int = 200) -> Completion:
    """The stream counts and measures by itself."""
    print("> ", end="", flush=True)
    pieces = context.generate_stream(prompt, max_tokens, WARM)
    for piece in pieces:
        print(piece, end="", flush=True)
    completion = pieces.completion()
    timings = completion.timings
    print("\n--- Stats ---")
    print(f"Tokens: {completion.usage.completion_tokens}")
    print(
        f"Time: {(timings.prefill_ms + timings.decode_ms) / 1000:.2f} s, the prompt {timings.prefill_ms:.1f} ms of it"
    )
    print(f"Speed: {timings.tokens_per_second:.1f} tok/s")
    print(f"Characters: {len(completion.text)}\n")
    return completion


def temperatures(context: Context) -> None:
    for temperature in (0.1, 0.7, 1.2):
        print(f"{temperature}: ", end="", flush=True)
        for piece in context.generate_stream("Once upon a time", 30, SamplerParams(temperature=temperature, seed=1)):
            print(piece, end="", flush=True)
        print()
        context.clear_cache()
    print()


def until_a_full_stop(context: Context) -> None:
    text = ""
    prompt = "Once upon a time"
    print(prompt, end="", flush=True)
    with context.generate_stream(prompt, max_tokens=200, params=WARM) as pieces:
        for piece in pieces:
            print(piece, end="", flush=True)
            text += piece
            if "." in text and len(text) > 50:
                print(" [stopped]", end="")
                break
    print("\n")


def stream_with_cancellation(
    context: Context, prompt: str, max_tokens: int | None = 500, interrupt_after: int | None = None
) -> str:
    """Ctrl-C cancels this stream and not the program. `cancel()` may be called from a signal handler or another thread.

    After `interrupt_after` tokens it is pressed in any case.
    """
    stream = context.generate_stream(prompt, max_tokens, WARM)

    def cancel(number: int, frame: FrameType | None) -> None:
        stream.cancel()

    before = signal.signal(signal.SIGINT, cancel)
    try:
        print(prompt, end="", flush=True)
        for count, piece in enumerate(stream, 1):
            print(piece, end="", flush=True)
            if count == interrupt_after:
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    completion = stream.completion()
    print("\n[Generation cancelled]" if completion.finish_reason == "cancelled" else "")
    return completion.text


def main(path: str | None = None) -> None:
    with Context(Model.load(path, n_gpu_layers=-1), n_ctx=2048) as context:
        print("--- Streaming")
        console(context)
        print("--- Measuring")
        stream_with_stats(context, "What is Rust?", 150)
        print("--- Temperatures")
        temperatures(context)
        print("--- Stopping at a full stop")
        until_a_full_stop(context)
        print("--- Ctrl-C")
        kept = stream_with_cancellation(context, "Once upon a time", interrupt_after=30)
        print(f"Kept: {kept!r}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
