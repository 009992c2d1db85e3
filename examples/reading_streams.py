"""Streams in plain loops: configured, timed, failing, and stopped early for what the text says.

python examples/reading_streams.py [MODEL]
"""

from __future__ import annotations

import sys

from mullama import Context, Model, MullamaError, SamplerParams, StreamConfig

EXACT = SamplerParams.greedy()  # always the likeliest token: the same text in every run


def simplest(context: Context) -> None:
    def show(token: str) -> bool:
        print(token, end="", flush=True)
        return True  # False would stop

    context.generate_streaming("Write a poem:", 200, show, EXACT)
    print()


def configured(context: Context) -> None:
    config = StreamConfig(
        max_tokens=500,
        params=SamplerParams(temperature=0.7, top_k=40, top_p=0.9, seed=1),
        stop_sequences=["END", "."],
        buffer_size=64,
        timeout_ms=30_000,
    )
    stream = context.generate_stream("What is Rust?", config)
    for token in stream:
        print(token, end="", flush=True)
    print(f" [stopped before {stream.completion().stop_sequence!r}]")


def recovering(context: Context, config: StreamConfig) -> None:
    """Errors are told apart by code; tokens that came before have been read by then."""
    prompt = "Once upon a time"
    print(prompt, end="")
    try:
        for token in context.generate_stream(prompt, config):
            print(token, end="", flush=True)
    except MullamaError as error:
        if error.code == "STREAM_TIMEOUT":
            print("\nGeneration timed out")
        elif error.code == "GENERATION_ERROR":
            print(f"\nGeneration failed: {error}")
        else:
            raise


def five_items(context: Context) -> None:
    """Leaving the loop stops the generation; `with` also waits until the slot is free."""
    text = ""
    with context.generate_stream("Count to 100.", 1000, EXACT) as stream:
        for token in stream:
            text += token
            print(token, end="", flush=True)
            if text.count(",") >= 5:
                break
    print(f"\n[{stream.completion().finish_reason}, {stream.tokens_per_second():.0f} tokens/s]")


def main(path: str | None = None) -> None:
    with Context(Model.load(path)) as context:
        print("--- the simplest")
        simplest(context)
        print("\n--- configured")
        configured(context)
        print("\n--- too slow")
        recovering(context, StreamConfig(max_tokens=None, timeout_ms=300, stream_delay_ms=20, params=EXACT))
        print("\n--- five items")
        five_items(context)


if __name__ == "__main__":
    main(*sys.argv[1:2])
