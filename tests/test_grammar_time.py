"""Grammars that take long to follow: neighbours go on meanwhile, a cancel is prompt, and their time is limited."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from conftest import ENDLESS, assert_idle, serving, until, wait_until

from mullama import ClosedError, Context, Model, SamplerParams, SamplingError, StreamConfig, StreamTimeoutError

PROMPT = "Once upon a time"
EXPLODING = "root ::= c\nc ::= [a-z] (c (c) | c c)"  # the ways to read it double with each letter
# Always a hundred ways to read it, and never more: some ten milliseconds for a token.
HEAVY = "root ::= " + " | ".join(f'[a-z ]* "{n}"' for n in range(100))


def config(grammar: str | None = None, n: int | None = None, **changes: Any) -> StreamConfig:
    hot = {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "seed": 1}
    params = ENDLESS if grammar is None else SamplerParams(**hot, grammar=grammar)
    return StreamConfig(**{"max_tokens": n, "params": params, "timeout_ms": 0, "buffer_size": 1000} | changes)


@pytest.mark.anyio
async def test_neighbours_go_on(model: Model) -> None:
    """While one choice takes seconds, a neighbour gets hundreds of tokens, constrained ones among them."""
    async with serving(model, n_ctx=1024, n_seq_max=4) as context:
        async with context.generate_stream(PROMPT, config=config(EXPLODING)) as slow:
            await until(lambda: slow.tokens_generated() > 0)
            for easy in (None, "root ::= [a-z ]*"):
                before = context.statistics().steps
                async with context.generate_stream(PROMPT, config=config(easy, 200)) as neighbour:
                    tokens = await neighbour.collect()
                assert len(tokens) > 100
                assert context.statistics().steps - before >= len(tokens)
                assert not slow.is_finished(), "they did not wait for it"
        assert context.statistics().busy == 0


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["cancel", "close", "drop", "deadline", "scope"])
async def test_it_ends_in_the_midst_of_a_choice(model: Model, how: str) -> None:
    """There is one slot, and the next one has it at once: nobody waits for the grammar's work to end."""
    async with serving(model, n_ctx=512, n_seq_max=1) as context:
        timeout_ms = 1500 if how == "deadline" else 0
        slow = context.generate_stream(PROMPT, config=config(EXPLODING, timeout_ms=timeout_ms))
        if how == "scope":
            with anyio.move_on_after(0.3):
                async with slow:
                    await anyio.sleep_forever()
        elif how == "deadline":
            with pytest.raises(StreamTimeoutError):
                await slow.collect()
        else:
            await anyio.sleep(0.3)  # deep within
        assert how in ("scope", "deadline") or not slow.is_finished()
        if how == "cancel":
            slow.cancel()
        elif how == "close":
            await slow.aclose()
        elif how == "drop":
            del slow
        completion = await context.generate(PROMPT, 5, ENDLESS)
        assert len(completion.tokens) == 5
        assert completion.timings.queue_ms < 1500, "it did not wait for the other's grammar"


def test_closed_in_the_midst_of_a_choice(model: Model) -> None:
    context = Context(model, n_ctx=512, n_seq_max=2, n_threads=2)
    streams = [context.generate_stream(PROMPT, config=config(EXPLODING)) for _ in range(2)]
    wait_until(lambda: all(stream.tokens_generated() > 0 for stream in streams))
    context.close()
    for stream in streams:
        with pytest.raises((ClosedError, SamplingError)):  # the latter if it came to that just before
            list(stream)


def test_it_takes_part_in_all_else_meanwhile(model: Model) -> None:
    """The cache is cleared and saved, and other prompts come and go, while a choice is being made."""
    with Context(model, n_ctx=512, n_seq_max=3, n_threads=2) as context:
        context.generate("Something else", 5, ENDLESS)
        with context.generate_stream(PROMPT, config=config(EXPLODING)) as slow:
            wait_until(lambda: slow.tokens_generated() > 0)
            assert context._shared.engine.native().save_state()
            context.clear_cache()
            assert context._shared.engine.native().save_state() == b""
            for _ in range(3):
                assert len(context.generate(PROMPT, 5, ENDLESS).tokens) == 5
        assert_idle(context)


def test_the_same_tokens_as_alone(model: Model) -> None:
    """Six at once, whose grammars take long enough for the choosers now and then, and not."""
    grammars = [HEAVY, "root ::= [a-z ]*"]
    with Context(model, n_ctx=512, n_seq_max=1, n_threads=2, reuse_prefix=False) as context:
        alone = [context.generate(PROMPT, config=config(grammar, 40)).tokens for grammar in grammars]
    with Context(model, n_ctx=512, n_seq_max=6, n_threads=2, reuse_prefix=False) as context:
        for _ in range(2):
            streams = [context.generate_stream(PROMPT, config=config(grammars[k % 2], 40)) for k in range(6)]
            together = [tuple(token.token_id for token in stream) for stream in streams]
            assert [len(tokens) for tokens in together] == [len(alone[k % 2]) for k in range(6)]
            # in other batches logits differ in the last bits, and seldom a token by it
            same = sum(a == b for k, tokens in enumerate(together) for a, b in zip(tokens, alone[k % 2], strict=True))
            assert same >= 0.5 * sum(map(len, together))
        assert_idle(context)


def test_many_slow_ones_come_and_go(model: Model) -> None:
    """More than there are choosers, cancelled at any point, with neighbours beside them."""
    with Context(model, n_ctx=256, n_seq_max=6, n_threads=2) as context:
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for i in range(12):
                    with context.generate_stream(PROMPT, config=config((EXPLODING, HEAVY)[i % 2], 30)) as stream:
                        for _ in zip(range((number + i) % 4), stream, strict=False):
                            pass
            except BaseException as e:
                failures.append(e)

        threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            assert len(context.generate(PROMPT, 20, ENDLESS).tokens) == 20
        for thread in threads:
            thread.join()
        assert not [e for e in failures if not isinstance(e, SamplingError)]
        assert_idle(context)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at the kernel's list of threads")
def test_choosers_end_with_their_context(model: Model) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    before = count()
    with Context(model, n_ctx=256, n_seq_max=4, n_threads=2) as context:
        streams = [context.generate_stream(PROMPT, config=config(EXPLODING)) for _ in range(4)]
        wait_until(lambda: count() > before + 2)  # the engine's, its helper, and a chooser at least
        assert not all(stream.is_finished() for stream in streams)
    wait_until(lambda: count() <= before)
