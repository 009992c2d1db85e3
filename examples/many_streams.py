"""Eight stories at once in one nursery of trio, told by one model: who got a token when, who waited, and who left early.

    python examples/many_streams.py [MODEL]

It shows continuous batching (the readers' numbers alternate, and there are far fewer batches than tokens), backpressure (a
slow reader pauses its own story, and no other) and cancellation (a reader that leaves keeps what it has).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import trio

from mullama import AsyncModel, Completion, ContextParams, SamplerParams, StreamConfig

SLOW, LEAVES = (2, 5), 7  # two readers that take their time, and one that has heard enough after 30 tokens


@dataclass
class Evening:
    """What the readers saw."""

    order: list[int] = field(default_factory=list)  # whose token it was, one after the other
    heard: dict[int, Completion] = field(default_factory=dict)
    paused: set[int] = field(default_factory=set)


async def listen(model: AsyncModel, number: int, evening: Evening) -> None:
    config = StreamConfig(max_tokens=100, buffer_size=8, params=SamplerParams(seed=number))
    count = 0
    with trio.CancelScope() as scope:
        async with model.generate_stream("Once upon a time", config) as stream:
            async for _ in stream:
                evening.order.append(number)
                count += 1
                if number == LEAVES and count == 30:
                    scope.cancel()
                while number in SLOW and count == 1 and not stream.statistics().paused:  # noqa: ASYNC110
                    await trio.sleep(0.001)  # busy until the buffer is full
                if stream.statistics().paused:
                    evening.paused.add(number)
    evening.heard[number] = stream.completion()


async def main(path: str | None) -> None:
    evening = Evening()
    async with await AsyncModel.load(path, context=ContextParams(n_ctx=512, n_seq_max=8)) as model:
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(listen, model, number, evening)
        statistics = model.statistics()
    print("the order in which tokens arrived:", "".join(map(str, evening.order[:160])), "…")
    for number, story in sorted(evening.heard.items()):
        sentence = story.text.partition(".")[0].strip(" ,")
        paused = "paused" if number in evening.paused else ""
        print(f"{number}: {story.usage.completion_tokens:3} tokens, {story.finish_reason:9} {paused:6}  … {sentence}.")
    print(f"{statistics.tokens_out} tokens in {statistics.steps} batches")


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else None)
