"""Streams in plain loops: configured, timed, failing, and stopped early for what the text says.

python examples/reading_streams.py [MODEL]
"""

from __future__ import annotations

import sys

from mullama import Context, Model, MullamaError, SamplerParams, StreamConfig


def simplest(context: Context) -> None:
    def show(token: str) -> bool:
        print(token, end="", flush=True)
        return True  # False would stop

    context.generate_streaming("Write a poem:", 200, show)
    print()


def configured(context: Context) -> None:
    config = StreamConfig(
        max_tokens=500,
        temperature=0.7,
        top_k=40,
        top_p=0.9,
        stop_sequences=["END"],
        buffer_size=64,
        timeout_ms=30_000,
    )
    for token in context.generate_stream("Hello:", config):
        print(token, end="", flush=True)
    print()


def recovering(context: Context, config: StreamConfig) -> None:
    """Errors are told apart by code; tokens that came before have been read by then."""
    try:
        for token in context.generate_stream("Hello:", config):
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
    with context.generate_stream("Generate a list:", 1000) as stream:
        for token in stream:
            text += token
            print(token, end="", flush=True)
            if text.count("\n-") >= 5:
                break
    print(f"\n[{stream.tokens_generated()} tokens, {stream.tokens_per_second():.0f} tokens/s]")


def main(path: str | None = None) -> None:
    with Context(Model.load(path)) as context:
        print("--- the simplest")
        simplest(context)
        print("\n--- configured")
        configured(context)
        print("\n--- too slow")
        recovering(context, StreamConfig(max_tokens=None, timeout_ms=20, params=SamplerParams(ignore_eos=True)))
        print("\n--- five items")
        five_items(context)


if __name__ == "__main__":
    main(*sys.argv[1:2])
