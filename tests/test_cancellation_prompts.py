"""Cancellation while a long prompt is processed: llama.cpp is interrupted within a batch, and its state remains right."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from anyio import create_task_group, fail_after
from conftest import serving, until
from endless import LIMIT, PROMPT, config, long_prompt, tokens_alone

from mullama import AsyncContext, Model, SamplerParams, TokenStream

pytestmark = pytest.mark.anyio


async def prefilling(context: AsyncContext, prompt: list[int]) -> TokenStream | None:
    """A stream whose prompt is being processed; None if it finished too soon."""
    stream = context.generate_stream(prompt, config())
    await until(lambda: context.statistics().queued == 0)
    if not stream.tokens_generated():
        return stream
    await stream.aclose()
    return None


@contextmanager
def listening(records: list[str], levels: list[int] | None = None) -> Iterator[None]:
    """Collect the lines of llama.cpp's log."""

    def emit(record: logging.LogRecord) -> None:
        records.append(record.getMessage())
        if levels is not None:
            levels.append(record.levelno)

    handler = logging.Handler()
    handler.emit = emit  # type: ignore[method-assign]
    logger = logging.getLogger("mullama.llama_cpp")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


async def test_a_prompt_is_given_up_in_the_middle_of_a_batch(model: Model) -> None:
    """Not only between two steps: llama.cpp is interrupted within one, and logs it."""
    lines: list[str] = []
    levels: list[int] = []
    async with serving(model, n_ctx=2304, n_seq_max=1, n_batch=800, n_ubatch=32) as context:
        with listening(lines, levels):
            for _ in range(10):
                before = context.statistics().tokens_in
                stream = await prefilling(context, long_prompt(model))
                if stream is None:
                    continue
                await stream.aclose()
                assert stream.completion().finish_reason == "cancelled"
                computed = context.statistics().tokens_in - before
                assert computed < 1999
                if any("removing memory module entries" in line for line in lines):
                    break
            else:
                pytest.fail("no batch was ever cut short")
    about_it = [level for line, level in zip(lines, levels, strict=True) if "compute" in line or "removing" in line]
    assert len(about_it) >= 3
    assert set(about_it) == {logging.DEBUG}, "it was asked for, and is no error"


@pytest.mark.parametrize("n_cells", [None, 3000], ids=["own cells", "shared cells"])
async def test_a_batch_that_is_cut_short_is_computed_again_for_the_others(model: Model, n_cells: int | None) -> None:
    """Neighbours share the batch with a prompt that is cancelled: their part of it is computed again.

    If sequences have separate cells, that part is in memory but has no logits; otherwise it is not in memory.
    """
    lines: list[str] = []
    expected = tokens_alone(model, PROMPT, 120)
    async with serving(
        model, n_ctx=2304, n_seq_max=2, n_batch=64, n_ubatch=32, n_cells=n_cells, reuse_prefix=False
    ) as context:
        with listening(lines):
            for _ in range(10):
                neighbour = context.generate_stream(PROMPT, config(120))

                async def give_up_prompts(neighbour: TokenStream = neighbour) -> None:
                    while not neighbour.is_finished():
                        async with context.generate_stream(long_prompt(model), config()) as prompt:
                            steps = context.statistics().steps
                            await until(lambda steps=steps: context.statistics().steps > steps + 1)
                        prompt.completion()  # this fetches the log

                with fail_after(LIMIT):
                    async with create_task_group() as tasks:
                        tasks.start_soon(give_up_prompts)
                        tokens = await neighbour.collect()
                same = [a.token_id == b.token_id for a, b in zip(tokens, expected, strict=True)]
                if n_cells is None:
                    assert all(same)
                # With shared cells, other streams change the order of additions, cancelled or not. If that changes the
                # choice between two tokens, the texts differ from there on; until then they agree within rounding.
                for a, b in zip(tokens[: [*same, False].index(False)], expected, strict=False):
                    assert a.logprob == pytest.approx(b.logprob, abs=0.2)
                if any("removing memory module entries" in line for line in lines):
                    break
            else:
                pytest.fail("no batch that they shared was ever cut short")


async def test_what_a_cancelled_prompt_leaves_in_the_cache_is_right(model: Model) -> None:
    """The next stream reuses the part that was computed, and continues from there."""
    greedy = config(1, params=SamplerParams.greedy())
    async with serving(model, n_ctx=2304, n_seq_max=1, n_batch=256, n_ubatch=64) as context:
        for _ in range(10):
            prompt = long_prompt(model)
            stream = await prefilling(context, prompt)
            if stream is not None:
                await stream.aclose()
                break
        async with context.generate_stream(prompt, greedy) as again:
            token = await again.receive()
        assert 64 <= again.completion().usage.cached_tokens < 1999
        context.clear_cache()
        async with context.generate_stream(prompt, greedy) as fresh:
            # of the most likely token, which may be another equally likely one because of rounding
            assert (await fresh.receive()).logprob == pytest.approx(token.logprob, abs=0.2)
        assert fresh.completion().usage.cached_tokens == 0
