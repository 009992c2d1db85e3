"""Each token of a long answer costs the same at its end as at its start: allocations are counted, nothing is timed.

What Python allocates while a token is received must not grow with the text before it: no copy of the text, of the
tokens or of the log-probabilities. `tracemalloc` traces every allocation of Python, and the peak.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from chat_helpers import WEATHER
from conftest import ENDLESS, serving, until

from mullama import AsyncContext, Completion, Context, Model, StreamConfig, TokenData

N = 4000  # the default model was trained with 4096
PART = 500
# A token with its bookkeeping takes at most about 4,000 bytes, under asyncio. At the end the text has more than 10,000
# characters, and the ids and log-probabilities take more: a copy of any of them would show, as growth or at once.
MOST = 6_000
GROWTH = 1_500

pytestmark = pytest.mark.skipif(hasattr(sys, "pypy_version_info"), reason="it counts what CPython allocates")


def config(**changes: Any) -> StreamConfig:
    return StreamConfig(**{"max_tokens": N, "params": ENDLESS, "timeout_ms": 0} | changes)


class Meter:
    """What receiving one token allocates: the maximum over the last tokens."""

    def __init__(self) -> None:
        self.peaks: list[int] = []
        self.left: list[int] = []

    def __enter__(self) -> None:
        self.before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()

    def __exit__(self, *exc_info: object) -> None:
        now, peak = tracemalloc.get_traced_memory()
        self.peaks.append(peak - self.before)
        self.left.append(now - self.before)

    def judge(self, tokens: int) -> None:
        """The last tokens cost the same as the first ones, and none as much as a copy of the text."""
        assert len(self.peaks) >= tokens
        first, last = sorted(self.peaks[10:PART]), sorted(self.peaks[-PART:])
        for share in (0.5, 0.9, 0.98):  # a few cost more, such as those that grow an event loop's table
            assert last[int(share * len(last))] <= first[int(share * len(first))] + GROWTH, share
            assert last[int(share * len(last))] <= MOST, share
        assert sum(self.left[-PART:]) < 200 * PART, "what is read is not kept"


@pytest.fixture(autouse=True)
def _traced() -> Any:
    gc.collect()
    gc.disable()  # its own lists would be counted
    tracemalloc.start()
    yield
    tracemalloc.stop()
    gc.enable()


@pytest.fixture
def long(model: Model) -> Any:
    with Context(model, n_ctx=4096, n_seq_max=1, n_threads=2) as context:
        yield context


def check(parts: list[str], completion: Completion) -> None:
    assert len(parts) == N
    assert completion.text == "".join(parts)
    assert len(completion.text) > MOST + GROWTH, "a copy of it would show"


def test_an_iterator_and_what_it_tells(long: Context) -> None:
    """Statistics of the stream may be requested with each token."""
    meter, parts = Meter(), []
    with long.generate_stream("Once", config=config(top_logprobs=5)) as stream:
        while True:
            with meter:
                token = next(stream, None)
                stream.statistics()
                stream.tokens_generated()
                stream.tokens_per_second()
                stream.is_finished()
            if token is None:
                break
            parts.append(str(token))
    meter.judge(N)
    check(parts, stream.completion())


def test_a_callback(long: Context) -> None:
    meter = Meter()
    meter.__enter__()

    def callback(_: TokenData) -> None:
        meter.__exit__()
        meter.__enter__()

    assert len(long.generate_streaming("Once", config=config(), callback=callback).tokens) == N
    meter.judge(N)


@pytest.mark.parametrize("tools", [[], [WEATHER]], ids=["plain", "tools"])
def test_a_chat(long: Context, tools: list[Any]) -> None:
    """Nor does the parser read the whole answer for each token: what it reads is counted."""
    meter, parts, parsed = Meter(), [], []
    messages = [{"role": "user", "content": "Tell me a story."}]
    with long.chat_stream(messages, config=config(max_tokens=N - 200), tools=tools, tool_choice="auto") as stream:
        chat = stream._chat._parser()  # type: ignore[attr-defined]
        while True:
            with meter:
                delta = stream.next()
            if delta is None:
                break
            parts.append(delta.content)
            parsed.append(chat.n_parsed)
    meter.judge(N - 200)
    assert "".join(parts) == stream.chat_completion().message.content == stream.completion().text
    assert parsed[-2] - parsed[-PART] <= parsed[2 * PART] - parsed[PART]
    assert parsed[-1] - parsed[PART] < 5 * len(stream.completion().text)


async def read(receive: Callable[[], Awaitable[TokenData]], n: int) -> tuple[Meter, list[str]]:
    meter, parts = Meter(), []
    for _ in range(n):
        with meter:
            token = await receive()
        parts.append(str(token))
    return meter, parts


@pytest.mark.anyio
async def test_a_stream(model: Model) -> None:
    async with serving(model, n_ctx=4096, n_seq_max=1) as context:
        async with context.generate_stream("Once", config=config()) as stream:
            meter, parts = await read(stream.receive, N)
        check(parts, stream.completion())
    meter.judge(N)


@pytest.mark.anyio
async def test_a_memory_object_stream(model: Model) -> None:
    async with (
        serving(model, n_ctx=4096, n_seq_max=1) as context,
        context.open_stream("Once", config=config()) as receive,
    ):
        meter, parts = await read(receive.receive, N)
    assert len(parts) == N
    meter.judge(N)


@pytest.mark.anyio
async def test_without_waiting(actx: AsyncContext) -> None:
    """The part that never waits takes one record, whatever came before, with the same number of blocks each time."""
    async with actx.generate_stream(
        "Once", config=StreamConfig(max_tokens=900, params=ENDLESS, buffer_size=900)
    ) as stream:
        await until(stream.is_finished)
        sizes = []
        while stream.statistics().current_buffer_used > 1:
            before = sys.getallocatedblocks()
            token = stream.receive_nowait()
            sizes.append(sys.getallocatedblocks() - before)
            del token
    assert len(sizes) > 500
    assert sorted(sizes[:100])[50] == sorted(sizes[-100:])[50]
    assert max(sizes[-100:]) <= max(sizes[:100]) + 2
