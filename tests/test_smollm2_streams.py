"""Streams of real weights: eight at once, stopped, cancelled while decoding and in a long prompt, saved and resumed.

Their text is known: the model counts with certainty, by at least a factor of two between any two tokens, so that no
order of additions can change a choice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import pytest
from conftest import assert_idle, serving, until

from mullama import AsyncContext, Completion, Context, Model, SamplerParams, StreamConfig

pytestmark = pytest.mark.weights

COUNTING = {
    "1, 2, 3, 4, 5,": " 6, 7, 8, 9,",
    "10, 9, 8, 7,": " 6, 5, 4, 3,",
    "2, 4, 6, 8, 10,": " 12, 14, 16,",
    "11, 12, 13, 14,": " 15, 16, 17,",
    "100, 200, 300, 400,": " 500, 600, 7",
    "1000, 2000, 3000,": " 4000, 5000,",
    "31, 32, 33, 34,": " 35, 36, 37,",
    "a, b, c, d, e,": " f, g, h, i, j, k,",
}
PROMPT, TEXT = next(iter(COUNTING.items()))
TWELVE = StreamConfig(max_tokens=12, params=SamplerParams.greedy(ignore_eos=True), timeout_ms=0)
ENDLESS = TWELVE.replace(max_tokens=None)
LONG = "The quick brown fox jumps over the lazy dog. " * 140  # 1,401 tokens, which take some seconds


@pytest.fixture
async def actx(smollm2: Model) -> AsyncIterator[AsyncContext]:
    async with serving(smollm2, n_threads=1, n_ctx=512, n_seq_max=8) as context:
        yield context


# ------------------------------------------------------------------------------ eight at once


@pytest.mark.anyio
async def test_eight_at_once(actx: AsyncContext) -> None:
    """Each writes what it writes alone."""
    found: dict[str, Completion] = {}

    async def read(prompt: str) -> None:
        async with actx.generate_stream(prompt, TWELVE) as stream:
            assert "".join([token async for token in stream]) == stream.completion().text
        found[prompt] = stream.completion()

    async with anyio.create_task_group() as tasks:
        for prompt in COUNTING:
            tasks.start_soon(read, prompt)
    assert {prompt: completion.text for prompt, completion in found.items()} == COUNTING
    assert {completion.finish_reason for completion in found.values()} == {"length"}
    assert actx.statistics().steps < 8 * 12, "they share batches"


def test_one_after_the_other(smollm2_context: Context) -> None:
    assert {prompt: smollm2_context.generate(prompt, TWELVE).text for prompt in COUNTING} == COUNTING


def test_threads_of_their_own(smollm2_context: Context) -> None:
    """More of them than slots, and half of them with a prompt that another has computed."""
    with ThreadPoolExecutor(16) as threads:
        found = threads.map(lambda prompt: smollm2_context.generate(prompt, TWELVE).text, [*COUNTING] * 2)
        assert [*found] == [*COUNTING.values()] * 2


def test_stop_strings(smollm2_context: Context) -> None:
    """Even one that starts and ends within tokens; no part of it is delivered."""
    for stop, text in ((" 8", " 6, 7,"), (", 8, 9", " 6, 7"), ("7", " 6, ")):
        completion = smollm2_context.generate(PROMPT, TWELVE.replace(stop_sequences=["never", stop]))
        assert (completion.finish_reason, completion.stop_sequence, completion.text) == ("stop", stop, text)


# ------------------------------------------------------------------------------ saved state


def test_saved_state(smollm2_context: Context, tmp_path: Path) -> None:
    streams = [smollm2_context.generate_stream(prompt, TWELVE) for prompt in COUNTING]
    for stream in streams:
        list(stream)
    smollm2_context.save_state(tmp_path / "state")
    cells = smollm2_context.statistics().cached_cells
    smollm2_context.clear_cache()
    assert smollm2_context.load_state(tmp_path / "state") == cells
    for prompt, text in COUNTING.items():
        completion = smollm2_context.generate(prompt, TWELVE)
        assert completion.text == text
        assert completion.usage.cached_tokens == completion.usage.prompt_tokens - 1
    smollm2_context.clear_cache()
    assert smollm2_context.generate(PROMPT, TWELVE).usage.cached_tokens == 0


@pytest.mark.anyio
async def test_awaiting_it(smollm2: Model, tmp_path: Path) -> None:
    """In another context than the one that saved it."""
    async with serving(smollm2, n_threads=1, n_ctx=256, n_seq_max=1) as old:
        first = await old.generate(PROMPT, TWELVE)
        await old.save_state(tmp_path / "state")
    async with serving(smollm2, n_threads=1, n_ctx=256, n_seq_max=1) as new:
        assert await new.load_state(tmp_path / "state") >= first.usage.prompt_tokens
        again = await new.generate(PROMPT, TWELVE)
        assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
        assert again.text == first.text == TEXT


# ------------------------------------------------------------------------------ cancellation


@pytest.mark.anyio
async def test_cancelled_in_mid_stream(actx: AsyncContext) -> None:
    """What was read is right, the neighbour continues, and the slot serves the next stream."""
    neighbour = actx.generate_stream("a, b, c, d, e,", TWELVE)
    pieces = []
    with anyio.CancelScope() as scope:
        async with actx.generate_stream(PROMPT, ENDLESS) as stream:
            async for token in stream:
                pieces.append(token)
                if len(pieces) == 6:
                    scope.cancel()
    assert scope.cancelled_caught
    assert stream.completion().finish_reason == "cancelled"
    assert stream.completion().text.startswith("".join(pieces))
    assert TEXT.startswith("".join(pieces))
    assert await neighbour.text() == COUNTING["a, b, c, d, e,"]
    await neighbour.aclose()
    assert_idle(actx.context)
    assert (await actx.generate(PROMPT, TWELVE)).text == TEXT


@pytest.mark.anyio
async def test_cancelled_in_a_long_prompt(smollm2: Model) -> None:
    """It is cancelled before it was computed, and the same slot computes the next one."""
    async with serving(smollm2, n_threads=1, n_ctx=1536, n_seq_max=1, n_batch=128, n_ubatch=128) as context:
        with anyio.CancelScope() as scope:
            async with context.generate_stream(LONG, TWELVE) as stream:
                await until(lambda: context.statistics().tokens_in)
                scope.cancel()
                await stream.receive()
        assert scope.cancelled_caught
        assert_idle(context.context)
        assert 0 < context.statistics().tokens_in < stream.completion().usage.prompt_tokens
        assert stream.completion().tokens == ()
        assert (await context.generate(PROMPT, TWELVE)).text == TEXT


@pytest.mark.anyio
async def test_cancelled_chats(actx: AsyncContext) -> None:
    """Twelve chats, some of which still wait for a slot, end with their scope."""
    question = [{"role": "user", "content": "Tell me a very long story."}]
    async with anyio.create_task_group() as tasks:
        for _ in range(12):
            tasks.start_soon(actx.chat, question, ENDLESS)
        await until(lambda: actx.statistics().busy == 8 and actx.statistics().tokens_out > 8)
        tasks.cancel_scope.cancel()
    assert_idle(actx.context)
    assert (await actx.generate(PROMPT, TWELVE)).text == TEXT


def test_left_in_the_middle(smollm2_context: Context) -> None:
    for token in smollm2_context.generate_stream(PROMPT, ENDLESS):
        assert token == " "
        break
    with smollm2_context.generate_stream(PROMPT, ENDLESS) as stream:
        next(stream)
    assert stream.completion().finish_reason == "cancelled"
    assert smollm2_context.generate(PROMPT, TWELVE).text == TEXT
