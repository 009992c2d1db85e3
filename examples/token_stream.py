"""The async stream of tokens, with all that it can do: configured, read, mapped, cut short, cancelled, timed out, slowed down.

    python examples/token_stream.py [MODEL]

Runs once under asyncio and once under trio.
"""

from __future__ import annotations

import functools
import sys

import anyio

from mullama import AsyncModel, GenerationError, MullamaError, SamplerParams, StreamConfig, StreamingError

STORY = "Once upon a time"
EXACT = SamplerParams.greedy()  # always the likeliest token: the same text in every run


async def one_at_a_time(model: AsyncModel) -> None:
    stream = model.generate_stream("Tell me about AI", StreamConfig(max_tokens=200, temperature=0))
    print("AI: I", end="")
    while (token := await stream.next()) is not None:
        print(token.text, end="", flush=True)
    print(f"\nGenerated {stream.tokens_generated()} tokens")


async def in_a_loop(model: AsyncModel) -> None:
    stream = model.generate_stream("Tell me about Rust:", StreamConfig(max_tokens=200, temperature=0))
    async for token in stream:
        print(token, end="", flush=True)
    print(f"\nTokens generated: {stream.tokens_generated()}, tokens/s: {stream.tokens_per_second():.1f}")


async def until_the_last(model: AsyncModel) -> None:
    async for token in model.generate_stream("Hello world", StreamConfig(max_tokens=100, temperature=0)):
        print(token, end="", flush=True)
        if token.is_final:
            break
    print()


async def mapped_and_collected(model: AsyncModel) -> None:
    async with model.generate_stream("Hello", 60, EXACT).map(lambda token: token.text.upper()) as texts:
        pieces = [text async for text in texts]
    print("Mapped:", "".join(pieces).strip())
    async with model.generate_stream("Hello", 60, EXACT) as stream:
        print("The short way:", (await stream.text()).strip())


async def first_ten(model: AsyncModel) -> None:
    async with model.generate_stream(STORY, 100, EXACT).take(10) as ten:
        tokens = [token async for token in ten]
    print(len(tokens), "tokens:", "|".join(tokens))


async def with_errors(model: AsyncModel, config: StreamConfig) -> None:
    stream = model.generate_stream(STORY, config)
    print(STORY, end="")
    try:
        async for token in stream:
            print(token, end="", flush=True)
    except StreamingError as error:
        print(f"\nStream error: {error.code}, after {stream.tokens_generated()} tokens")
    except GenerationError as error:
        print("\nGeneration failed:", error)
    except MullamaError as error:
        print("\nUnexpected error:", error)


async def slow_reader(model: AsyncModel) -> None:
    """Generation pauses when 16 tokens wait to be read, and goes on as they are."""
    config = StreamConfig(max_tokens=60, buffer_size=16, params=EXACT)
    async with model.generate_stream(STORY, config) as stream:
        while not stream.statistics().paused:  # noqa: ASYNC110
            await anyio.sleep(0.001)  # work that takes its time
        now = stream.statistics()
        print(f"Paused with {now.current_buffer_used} of {now.max_buffer_size} places of the buffer used")
        async for _ in stream:
            pass
    print(f"Read on to the end: {stream.tokens_generated()} tokens")


async def cancelled(model: AsyncModel) -> None:
    count = 0
    stream = model.generate_stream(STORY, StreamConfig(max_tokens=None, buffer_size=8, params=EXACT))
    async for _ in stream:
        count += 1
        if count >= 20:
            stream.cancel()  # stops generation at once
            break
    await stream.aclose()
    kept = stream.completion()
    print(f"Stopped after {count} tokens: {kept.finish_reason}")
    print(f"Kept: {kept.text!r}")
    assert model.statistics().busy == 0


async def stopped_by_text(model: AsyncModel) -> None:
    config = StreamConfig(max_tokens=500, stop_sequences=["\n\n", "```", "END", "."], params=EXACT)
    stream = model.generate_stream("What is Rust?", config)
    text = await stream.text()
    print(f"{text.strip()!r}, then {stream.completion().stop_sequence!r}")


async def timed_out(model: AsyncModel) -> None:
    await with_errors(model, StreamConfig(max_tokens=None, timeout_ms=300, stream_delay_ms=20, params=EXACT))


async def three_prompts(model: AsyncModel) -> None:
    """The complete example."""
    config = StreamConfig(max_tokens=150, temperature=0, stop_sequences=["\n\n"])
    prompts = ("What is Rust?", "Explain gravity in one paragraph:", "Write a haiku about programming:")
    for prompt in prompts:
        print(f"\n> {prompt}\n  ", end="")
        stream = model.generate_stream(prompt, config)
        try:
            async for token in stream:
                print(token, end="", flush=True)
        except MullamaError as error:
            print("\nStream error:", error)
        print(f"\n  [{stream.tokens_generated()} tokens generated]")


EXAMPLES = (
    one_at_a_time,
    in_a_loop,
    until_the_last,
    mapped_and_collected,
    first_ten,
    slow_reader,
    cancelled,
    stopped_by_text,
    timed_out,
    three_prompts,
)


async def main(path: str | None = None) -> None:
    async with await AsyncModel.load(path) as model:
        for example in EXAMPLES:
            print(f"\n--- {example.__name__.replace('_', ' ')}")
            await example(model)


if __name__ == "__main__":
    for backend in ("asyncio", "trio"):
        print(f"\n=== {backend}")
        anyio.run(functools.partial(main, *sys.argv[1:2]), backend=backend)
