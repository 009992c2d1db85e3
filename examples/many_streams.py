"""Eight stories at once in one nursery of trio, told by one model; two readers are slow, and one leaves early.

It shows continuous batching (they share each batch), backpressure (a slow reader pauses its own story) and cancellation.
"""

from __future__ import annotations

import sys

import trio

from mullama import AsyncModel, Completion, ContextParams, SamplerParams, StreamConfig


async def listen(model: AsyncModel, number: int, heard: dict[int, Completion]) -> None:
    config = StreamConfig(max_tokens=150, buffer_size=8, params=SamplerParams(seed=number))
    pause = 0.01 if number in (2, 5) else 0
    with trio.move_on_after(0.3 if number == 7 else 60):
        async with model.generate_stream("Once upon a time", config) as stream:
            async for _ in stream:
                await trio.sleep(pause)
    heard[number] = stream.completion()


async def main(path: str | None) -> None:
    heard: dict[int, Completion] = {}
    async with await AsyncModel.load(path, context=ContextParams(n_ctx=512, n_seq_max=8)) as model:
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(listen, model, number, heard)
        statistics = model.statistics()
    for number, story in heard.items():  # in the order in which they ended
        sentence = story.text.partition(".")[0].strip(" ,")
        print(f"{number}: {story.usage.completion_tokens:3} tokens, {story.finish_reason:9}  … {sentence}.")
    print(f"{statistics.tokens_out} tokens in {statistics.steps} batches")


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else None)
