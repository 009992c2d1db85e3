"""Logits for programs that do their own sampling: `decode`, `logits` and `reset`, the same however the work is split."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from anyio import CancelScope, create_task_group
from conftest import ENDLESS, assert_idle, serving, until

from mullama import (
    AsyncContext,
    ClosedError,
    Context,
    ContextError,
    InvalidParameter,
    InvalidParameterType,
    Model,
    SamplerParams,
    StreamConfig,
)

TEXT = "Once upon a time there was a little dog who lived in a house by the sea"
GREEDY = SamplerParams.greedy(ignore_eos=True)
CLOSE = {"atol": 0.15, "rtol": 0.02}  # another order of additions, and 16-bit cells


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    result: np.ndarray = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return result


@pytest.fixture(scope="module")
def tokens(model: Model) -> list[int]:
    return model.tokenize(TEXT)


@pytest.fixture(scope="module")
def expected(model: Model, tokens: list[int]) -> np.ndarray:
    """The logits after each of `tokens`, computed token by token."""
    with Context(model, n_ctx=256, n_threads=1) as context:
        return np.stack([context.decode([token]) for token in tokens])


# ---------------------------------------------------------------------------------------------------------- what they are


def test_they_are_what_tokens_are_chosen_by(context: Context, tokens: list[int]) -> None:
    logits = context.decode(tokens)
    assert (logits.shape, logits.dtype) == ((context.model.n_vocab,), np.float32)
    completion = context.generate(tokens, 1, config=None, params=SamplerParams(seed=1))
    config = StreamConfig(max_tokens=1, top_logprobs=20, params=SamplerParams(seed=1))
    (top,) = context.generate(tokens, config=config).top_logprobs
    values = log_softmax(logits)
    assert [values[t.token_id] for t in top] == pytest.approx([t.logprob for t in top], abs=0.02)
    assert completion.logprobs[0] == pytest.approx(values[completion.tokens[0]], abs=0.02)


def test_sampling_by_oneself(context: Context, tokens: list[int]) -> None:
    """A loop around decode() chooses the same tokens as the engine, unless two are close."""
    config = StreamConfig(max_tokens=30, params=SamplerParams.greedy(), top_logprobs=2)
    completion = context.generate(tokens, config=config)
    logits = context.decode(tokens)
    for token, (first, second) in zip(completion.tokens, completion.top_logprobs, strict=True):
        if first.logprob - second.logprob < 0.1:
            break
        assert int(logits.argmax()) == token
        logits = context.decode([int(logits.argmax())])


def test_text_is_appended(context: Context, tokens: list[int], expected: np.ndarray) -> None:
    for given in (tokens, tuple(tokens), np.array(tokens), iter(tokens)):
        context.reset()
        np.testing.assert_allclose(context.decode(given), expected[-1], **CLOSE)  # type: ignore[arg-type]
    context.reset()
    context.decode(tokens[:3])
    rows = context.decode(tokens[3:], all_logits=True)
    assert rows.shape == (len(tokens) - 3, context.model.n_vocab)
    np.testing.assert_allclose(rows, expected[3:], **CLOSE)
    assert (context.logits() == rows[-1]).all()


def test_they_are_the_callers_own(context: Context, tokens: list[int]) -> None:
    """They can be changed, as a sampler does."""
    for array in (context.decode(tokens), context.logits(), context.decode(tokens, all_logits=True)):
        kept = context.logits()
        array -= 1000
        assert (context.logits() == kept).all()


def test_nothing_is_computed_twice(context: Context, tokens: list[int]) -> None:
    """Neither the tokens of earlier calls nor, with all_logits, those before the new ones are computed again."""
    more = [*range(300, 340)]
    context.decode(more)
    for all_logits in (False, True):
        for n in (1, 7):
            before = context.statistics().tokens_in
            context.decode(more[:n], all_logits=all_logits)
            assert context.statistics().tokens_in - before == n
    context.clear_cache()
    before = context.statistics().tokens_in
    context.decode([300], all_logits=True)  # and if it was evicted, it is computed again
    assert context.statistics().tokens_in - before == 40 + 2 * 8 + 1


@pytest.mark.parametrize("n_batch", [1, 2, 7, 8, 64])
@pytest.mark.parametrize("all_logits", [False, True])
def test_in_batches_of_any_size(
    n_batch: int, all_logits: bool, model: Model, tokens: list[int], expected: np.ndarray
) -> None:
    with Context(model, n_ctx=256, n_seq_max=2, n_batch=n_batch, n_ubatch=max(1, n_batch // 2), n_threads=1) as context:
        result = context.decode(tokens, all_logits=all_logits)
        np.testing.assert_allclose(result, expected if all_logits else expected[-1], **CLOSE)
        context.decode(tokens[:2])
        part = context.decode(tokens[2:5], all_logits=all_logits)
    assert part.shape == ((3, model.n_vocab) if all_logits else (model.n_vocab,))


# ---------------------------------------------------------------------------------------------------------- company


@pytest.mark.parametrize("all_logits", [False, True])
def test_beside_others(all_logits: bool, model: Model, tokens: list[int], expected: np.ndarray) -> None:
    """Streams that decode, and prompts that are cancelled within a batch, which cancels the whole batch."""
    with Context(model, n_ctx=1024, n_seq_max=4, n_batch=256, n_ubatch=16, n_threads=1) as context:
        stop = threading.Event()
        errors: list[BaseException] = []

        def disturb(k: int) -> None:
            try:
                i = 0
                while not stop.is_set():
                    i += 1
                    with context.generate_stream([300 + k, 300 + i % 1000, *range(300, 900)], 5, GREEDY) as stream:
                        if i % 3 == 0:
                            next(stream)
            except BaseException as e:
                errors.append(e)

        others = [threading.Thread(target=disturb, args=(k,)) for k in range(2)]
        with context.generate_stream(
            TEXT, StreamConfig(max_tokens=None, params=ENDLESS, buffer_size=4, timeout_ms=0)
        ) as slow:
            next(slow)
            for thread in others:
                thread.start()
            for _ in range(6):
                context.reset()
                context.clear_cache()
                next(slow)
                context.decode(tokens[:2])
                result = context.decode(tokens[2:], all_logits=all_logits)
                np.testing.assert_allclose(result, expected[2:] if all_logits else expected[-1], **CLOSE)
            stop.set()
            for thread in others:
                thread.join()
        assert errors == []
        assert_idle(context)


@pytest.mark.anyio
async def test_awaiting_them(model: Model, tokens: list[int], expected: np.ndarray) -> None:
    async with serving(model, n_ctx=256, n_seq_max=2) as context:
        np.testing.assert_allclose(await context.decode(tokens[:4]), expected[3], **CLOSE)
        async with create_task_group() as tasks:
            tasks.start_soon(context.generate, TEXT, 50, GREEDY)
            rows = await context.decode(tokens[4:], all_logits=True)
        np.testing.assert_allclose(rows, expected[4:], **CLOSE)
        assert (context.logits() == rows[-1]).all()
        context.reset()
        with pytest.raises(ContextError):
            context.logits()
        np.testing.assert_allclose(await context.decode(tokens), expected[-1], **CLOSE)


@pytest.mark.anyio
@pytest.mark.parametrize("all_logits", [False, True])
async def test_cancelled_nothing_was_appended(
    all_logits: bool, model: Model, tokens: list[int], expected: np.ndarray
) -> None:
    async with serving(model, n_ctx=4096, n_seq_max=2, n_batch=16, n_ubatch=16, n_threads=1) as context:
        await context.decode(tokens[:-1])
        before = context.logits()
        steps = context.statistics().steps

        async def cancel() -> None:
            await until(lambda: context.statistics().steps > steps + 1)
            scope.cancel()

        async with create_task_group() as tasks:
            tasks.start_soon(cancel)
            with CancelScope() as scope:
                await context.decode([i % 1000 + 300 for i in range(4000)], all_logits=all_logits)
        assert scope.cancelled_caught
        assert (context.logits() == before).all()
        with CancelScope() as scope:
            scope.cancel()
            await context.decode([1])
        assert scope.cancelled_caught
        np.testing.assert_allclose(await context.decode(tokens[-1:]), expected[-1], **CLOSE)


# ---------------------------------------------------------------------------------------------------------- errors


def test_wrong_arguments_append_nothing(context: Context, tokens: list[int], expected: np.ndarray) -> None:
    context.decode(tokens[:-1])
    n = context.model.n_vocab
    for wrong in ("text", b"text", 3, None, ["a"], [1.5], [True], [None]):
        with pytest.raises(InvalidParameterType) as caught:
            context.decode(wrong)  # type: ignore[arg-type]
        assert caught.value.parameter == "tokens"
    for out in ([], (), [-1], [n], [10**30]):
        with pytest.raises(InvalidParameter) as refused:
            context.decode(out)
        assert refused.value.parameter == "tokens"
    with pytest.raises(InvalidParameterType):
        context.decode([1], all_logits=1)  # type: ignore[arg-type]
    with pytest.raises(ContextError) as long:
        context.decode([1] * context.n_ctx)
    assert long.value.code == "PROMPT_TOO_LONG"
    np.testing.assert_allclose(context.decode(tokens[-1:]), expected[-1], **CLOSE)


def test_before_and_after(model: Model, tokens: list[int]) -> None:
    context = Context(model, n_ctx=256, n_threads=1)
    with pytest.raises(ContextError, match="no logits yet"):
        context.logits()
    context.decode(tokens)
    context.close()
    with pytest.raises(ClosedError):
        context.decode(tokens)
    with pytest.raises(ClosedError):
        context.decode([])
    context.logits()


@pytest.mark.anyio
async def test_a_context_that_is_closed_meanwhile(model: Model) -> None:
    async with await AsyncContext.create(
        model, n_ctx=4096, n_seq_max=2, n_batch=16, n_ubatch=16, n_threads=1
    ) as context:

        async def close() -> None:
            await until(lambda: context.statistics().busy == 1)
            await context.aclose()

        async def decode() -> None:
            while True:
                await context.decode([i % 1000 + 300 for i in range(4000)])
                context.reset()
                context.clear_cache()

        async with create_task_group() as tasks:
            tasks.start_soon(close)
            with pytest.raises(ClosedError):
                await decode()
