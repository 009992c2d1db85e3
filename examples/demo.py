"""Three stories as they are being written: under asyncio, under trio, and one cut short by a cancel scope."""

from __future__ import annotations

import argparse
import functools
import sys

import anyio

from mullama import AsyncModel, Completion, SamplerParams, StreamConfig

# Backend, headline, and after how many tokens the reader has had enough.
PARTS = (
    ("asyncio", "under asyncio", None),
    ("trio", "under trio", None),
    ("trio", "cut short: after 30 tokens the reader cancels its scope", 30),
)
ENDINGS = {
    "stop": "it ended by itself",
    "length": "cut at --max-tokens",
    "cancelled": "cancelled by its reader",
}


async def tell(model: AsyncModel, prompt: str, config: StreamConfig, cut_after: int | None) -> Completion:
    """Prints a story as it comes; after `cut_after` tokens it cancels the scope in which it reads."""
    print(prompt, end="", flush=True)
    read = 0
    with anyio.CancelScope() as scope:
        async with model.generate_stream(prompt, config) as stream:
            async for token in stream:
                print(token, end="", flush=True)
                read += 1
                if read == cut_after:
                    scope.cancel()
    print()
    return stream.completion()


async def full_speed(model: AsyncModel, prompt: str, config: StreamConfig) -> float:
    """Tokens per second of the same request, read as fast as it comes and not printed."""
    async with model.generate_stream(prompt, config.replace(stream_delay_ms=0)) as stream:
        async for _ in stream:
            pass
    return stream.completion().timings.tokens_per_second


async def part(title: str, options: argparse.Namespace, seed: int, cut_after: int | None) -> None:
    print(f"\n--- {title}\n")
    params = SamplerParams(seed=seed)
    config = StreamConfig(max_tokens=options.max_tokens, params=params, stream_delay_ms=options.delay_ms, timeout_ms=0)
    async with await AsyncModel.load(options.model) as model:
        story = await tell(model, options.prompt, config, cut_after)
        speed = await full_speed(model, options.prompt, config)  # after a cancellation too: the model is free
    count, ending = story.usage.completion_tokens, ENDINGS[story.finish_reason]
    print(f"\n    {count} tokens, {ending}, shown at {story.timings.tokens_per_second:,.0f} tokens/s")
    pace = f"one every {options.delay_ms} ms at most" if options.delay_ms else "as fast as they came"
    print(f"    ({pace}; unslowed and unprinted: {speed:,.0f} tokens/s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", metavar="FILE", help="a GGUF file (default: the model that comes with mullama)")
    parser.add_argument("--prompt", default="Once upon a time", help="how the stories begin (default: %(default)r)")
    parser.add_argument("--seed", type=int, default=1, help="of the first story (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=200, help="for each story (default: %(default)s)")
    parser.add_argument("--delay-ms", type=int, default=10, help="between two tokens (default: %(default)s)")
    options = parser.parse_args()

    for number, (backend, title, cut_after) in enumerate(PARTS):
        anyio.run(functools.partial(part, title, options, options.seed + number, cut_after), backend=backend)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
