"""Several completions of one prompt, and other requests that wait for a prefix that another one is computing: none hangs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from conftest import ENDLESS, assert_idle, serving, wait_until

from mullama import (
    AsyncContext,
    Context,
    InvalidParameter,
    Model,
    SamplerParams,
    SamplingError,
    StreamConfig,
    StreamingError,
    TokenIterator,
)

HOT = SamplerParams(temperature=2.0, top_k=0, ignore_eos=True)
LONG = 1500  # tokens of a prompt that takes a while, in small steps


def prompt_of(model: Model, n: int, first: str = "Anna") -> list[int]:
    """n tokens without repetition."""
    text = " ".join(f"Then {first} went home and counted to {i}." for i in range(n))
    return model.tokenize(text)[:n]


def wanted(n: int, params: SamplerParams = ENDLESS, **changes: Any) -> StreamConfig:
    return StreamConfig(**{"max_tokens": n, "params": params, "timeout_ms": 0} | changes)


@pytest.fixture
def slow(model: Model) -> Iterator[Context]:
    """A context whose steps are small, so that a long prompt takes a hundred of them."""
    with Context(model, n_ctx=2048, n_seq_max=4, n_threads=1, n_batch=16, n_ubatch=16) as context:
        yield context
        assert_idle(context)


# ------------------------------------------------------------------------------------------ generate_many


@pytest.mark.parametrize("size", [32, 33, 64, 300])
@pytest.mark.parametrize(("n", "slots"), [(1, 4), (4, 4), (11, 4), (3, 1)])
def test_the_prompt_is_computed_once(model: Model, n: int, slots: int, size: int) -> None:
    with Context(model, n_ctx=512, n_seq_max=slots, n_threads=2) as context:
        before = context.statistics().tokens_in
        completions = context.generate_many(prompt_of(model, size), n, 6, HOT)
        assert [len(c.tokens) for c in completions] == [6] * n
        assert [c.usage.prompt_tokens for c in completions] == [size] * n
        cached = sorted(c.usage.cached_tokens for c in completions)
        assert cached == [0] + [size - 1] * (n - 1), "the last one is computed by each, for its logits"
        # of what is generated, the last token is not computed
        assert context.statistics().tokens_in - before == size + (n - 1) + n * 5
        assert_idle(context)


def test_in_chunks_too(slow: Context) -> None:
    before = slow.statistics().tokens_in
    completions = slow.generate_many(prompt_of(slow.model, 500), 4, 6, HOT)
    cached = sorted(c.usage.cached_tokens for c in completions)
    assert cached[0] == 0
    assert cached[1] >= 500 - 32
    assert slow.statistics().tokens_in - before <= 500 + 3 * 32 + 4 * 5


def test_a_short_prompt_and_no_reuse(model: Model) -> None:
    with Context(model, n_ctx=512, n_seq_max=4, n_threads=2, reuse_prefix=False) as context:
        for prompt in (prompt_of(model, 100), [5]):
            completions = context.generate_many(prompt, 6, 4, HOT)
            assert [(len(c.tokens), c.usage.cached_tokens) for c in completions] == [(4, 0)] * 6


def test_each_has_a_seed_of_its_own(model: Model) -> None:
    with Context(model, n_ctx=512, n_seq_max=1, n_threads=1, reuse_prefix=False) as context:
        many = [c.tokens for c in context.generate_many("Once upon a time", 5, 12, HOT.replace(seed=2**32 - 4))]
        alone = [
            context.generate("Once upon a time", 12, HOT.replace(seed=s)).tokens
            for s in (2**32 - 4, 2**32 - 3, 2**32 - 2, 0, 1)
        ]
        assert many == alone
        assert len(set(many)) == 5
        unseeded = [c.tokens for _ in range(2) for c in context.generate_many("Once upon a time", 3, 12, HOT)]
        assert len(set(unseeded)) == 6


def test_other_sampling_of_the_config_is_kept(context: Context) -> None:
    config = StreamConfig(
        max_tokens=8, temperature=0.0, top_k=3, stop_sequences=["\n\n\n"], top_logprobs=2, min_tokens=8
    )
    completions = context.generate_many("Once upon a time", 3, config=config)
    alone = context.generate("Once upon a time", config=config)
    assert [c.tokens for c in completions] == [alone.tokens] * 3
    assert {len(c.top_logprobs) for c in completions} == {8}
    unbounded = context.generate_many("Once upon a time", 2, None, SamplerParams(seed=3))
    assert {c.finish_reason for c in unbounded} <= {"stop", "length"}


@pytest.mark.parametrize("n", [0, -1, 65537, 1.5, "2", None, True])
def test_how_many(context: Context, n: Any) -> None:
    with pytest.raises(InvalidParameter, match="n must be"):
        context.generate_many("Once", n)


def test_a_failure_stops_the_others(context: Context) -> None:
    nothing = ENDLESS.replace(logit_bias=dict.fromkeys(range(context.model.n_vocab), float("-inf")))
    with pytest.raises(SamplingError):
        context.generate_many(prompt_of(context.model, 64), 12, 500, nothing)
    assert_idle(context)


@pytest.mark.anyio
async def test_awaited(model: Model) -> None:
    async with serving(model, n_ctx=512, n_seq_max=3) as context:
        before = context.statistics().tokens_in
        completions = await context.generate_many(prompt_of(model, 64), 7, 5, HOT)
        assert [len(c.tokens) for c in completions] == [5] * 7
        assert context.statistics().tokens_in - before == 64 + 6 + 7 * 4
        assert len({c.tokens for c in completions}) >= 3  # with different seeds


@pytest.mark.anyio
@pytest.mark.parametrize("after", [1, 40])
async def test_cancelled_all_of_them_have_stopped(actx: AsyncContext, after: int) -> None:
    """`actx` checks that no slot is taken afterwards."""

    async def generate() -> None:
        await actx.generate_many(prompt_of(actx.model, 100), 20, 800, ENDLESS)
        pytest.fail("it was cancelled")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(generate)
        begun = actx.statistics().tokens_out
        with anyio.fail_after(60):
            while actx.statistics().tokens_out < begun + after:  # noqa: ASYNC110
                await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()
    assert_idle(actx.context)
    stopped = actx.statistics().tokens_out
    assert stopped < begun + 20 * 800
    assert (await actx.generate("Once", 3, ENDLESS)).tokens
    assert actx.statistics().tokens_out == stopped + 3, "nothing goes on generating"


# ------------------------------------------------------------------------------------------ waiting for another


def begin(context: Context, n: int = 8, **changes: Any) -> TokenIterator:
    """A stream that has started to compute a long prompt."""
    before = context.statistics().tokens_in
    stream = context.generate_stream(prompt_of(context.model, LONG), config=wanted(n, **changes))
    wait_until(lambda: context.statistics().tokens_in > before)
    return stream


def test_the_one_that_is_waited_for_is_cancelled(slow: Context) -> None:
    with begin(slow) as holder, slow.generate_stream(prompt_of(slow.model, LONG), config=wanted(8)) as waiting:
        holder.cancel()
        assert len(list(waiting)) == 8
    assert 0 < waiting.completion().usage.cached_tokens < LONG, "what had been computed is not computed again"


def test_they_are_cancelled_one_after_the_other(slow: Context) -> None:
    """Ten wait for the first, and each is cancelled as soon as it is the one that computes."""
    streams = [begin(slow)]
    streams += [slow.generate_stream(prompt_of(slow.model, LONG), config=wanted(8)) for _ in range(10)]
    for stream in streams[:-1]:
        before = slow.statistics().tokens_in
        stream.close()
        wait_until(lambda before=before: slow.statistics().tokens_in > before)
    assert len(list(streams[-1])) == 8


def test_the_one_that_is_waited_for_is_dropped(slow: Context) -> None:
    holder = begin(slow)
    with slow.generate_stream(prompt_of(slow.model, LONG), config=wanted(8)) as waiting:
        del holder
        assert len(list(waiting)) == 8


def test_the_one_that_is_waited_for_runs_out_of_time(slow: Context) -> None:
    prompt = prompt_of(slow.model, LONG)
    with slow.generate_stream(prompt, config=wanted(8, timeout_ms=5)) as holder:
        with slow.generate_stream(prompt, config=wanted(8)) as waiting:
            assert len(list(waiting)) == 8
        with pytest.raises(StreamingError, match="timeout_ms"):
            list(holder)


def test_the_one_that_is_waited_for_fails(slow: Context) -> None:
    nothing = ENDLESS.replace(logit_bias=dict.fromkeys(range(slow.model.n_vocab), float("-inf")))
    with begin(slow, params=nothing) as holder:
        with slow.generate_stream(prompt_of(slow.model, LONG), config=wanted(8)) as waiting:
            assert len(list(waiting)) == 8
        with pytest.raises(SamplingError):
            list(holder)
    assert waiting.completion().usage.cached_tokens >= LONG - 32


def test_the_one_that_is_waited_for_is_not_read(slow: Context) -> None:
    with begin(slow, buffer_size=1) as holder:
        with slow.generate_stream(prompt_of(slow.model, LONG), config=wanted(8)) as waiting:
            assert len(list(waiting)) == 8
        assert len(list(holder)) == 8


def test_the_cache_is_cleared_meanwhile(slow: Context) -> None:
    with begin(slow) as holder, slow.generate_stream(prompt_of(slow.model, LONG), config=wanted(8)) as waiting:
        slow.clear_cache()
        assert len(list(waiting)) == 8
        assert len(list(holder)) == 8


def test_who_waits_can_be_cancelled(slow: Context) -> None:
    with begin(slow) as holder:
        before = slow.statistics()
        with slow.generate_stream(prompt_of(slow.model, LONG), config=wanted(8)) as waiting:
            waiting.cancel()
        assert waiting.completion().finish_reason == "cancelled"
        assert slow.statistics().tokens_in - before.tokens_in < LONG, "it did not take the holder's whole prompt"
        assert len(list(holder)) == 8


def test_who_waits_runs_out_of_time(slow: Context) -> None:
    with begin(slow) as holder:
        with (
            slow.generate_stream(prompt_of(slow.model, LONG), config=wanted(8, timeout_ms=1)) as waiting,
            pytest.raises(StreamingError, match="timeout_ms"),
        ):
            list(waiting)
        assert len(list(holder)) == 8


def test_others_pass_whoever_waits(slow: Context) -> None:
    """There are free slots: one is reserved for the waiting stream, and another prompt does not wait behind it."""
    with (
        begin(slow, 400) as holder,
        slow.generate_stream(prompt_of(slow.model, LONG), config=wanted(400)) as waiting,
        slow.generate_stream("Something else", config=wanted(4)) as other,
    ):
        assert len(list(other)) == 4
        assert other.completion().usage.cached_tokens == 0
        assert not waiting.is_finished()
        assert len(list(holder)) == len(list(waiting)) == 400
    queued = waiting.completion().timings.queue_ms
    assert other.completion().timings.queue_ms < max(20, queued / 2), "it came later and began earlier"


def test_two_families_at_once(slow: Context) -> None:
    """Groups of prompts that share a prefix only within the group; more than the slots, read in any order."""
    families = [prompt_of(slow.model, 200, name) for name in ("Anna", "Ben", "Mia")]
    streams = [slow.generate_stream(families[i % 3], config=wanted(5, buffer_size=1)) for i in range(12)]
    before = slow.statistics().tokens_in
    for stream in reversed(streams[:3]):  # the first of each group; the others wait for slots, or for them
        assert len(list(stream)) == 5
    for stream in streams[3:]:
        assert len(list(stream)) == 5
        stream.close()
    assert slow.statistics().tokens_in - before < 12 * 200 // 2


def test_a_pool_without_room_for_all(model: Model) -> None:
    """There are cells for two at once: the others wait for cells too, and all of them get them."""
    with Context(model, n_ctx=512, n_cells=1024, n_seq_max=6, n_threads=2, n_batch=32, n_ubatch=32) as context:
        completions = context.generate_many(prompt_of(model, 300), 9, 100, HOT)
        assert [len(c.tokens) for c in completions] == [100] * 9
        assert_idle(context)


def test_a_long_prompt_and_streams_take_turns(model: Model) -> None:
    """Those that decode get a token for each chunk of the prompt."""
    with Context(model, n_ctx=2048, n_seq_max=4, n_batch=64, n_ubatch=64, n_threads=1) as context:
        running = [context.generate_stream("Once", config=wanted(1000, buffer_size=1000)) for _ in range(3)]
        for stream in running:
            next(stream)
        before = [stream.tokens_generated() for stream in running]
        long = context.generate_stream(prompt_of(model, LONG), config=wanted(1))
        next(long)
        during = [stream.tokens_generated() - n for stream, n in zip(running, before, strict=True)]
        assert min(during) >= LONG // 64 - 1
        for stream in (*running, long):
            stream.close()
