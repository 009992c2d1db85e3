"""Log-probabilities: those of the model, for every token, whatever the sampling; compared with numpy over its logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from conftest import serving

from mullama import Completion, Context, InvalidParameter, Model, SamplerParams, StreamConfig, TokenData, TokenLogprob

PROMPT = "Once upon a time there was a little"
TIGHT = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(scope="module")
def ctx(model: Model) -> Iterator[Context]:
    """One sequence is computed at a time, from an empty cache: exactly the same logits for the same tokens."""
    with Context(model, n_ctx=1024, n_seq_max=1, n_threads=1) as context:
        yield context


def told(
    context: Context, params: SamplerParams, n: int = 40, prompt: Sequence[int] | None = None, **changes: Any
) -> tuple[list[TokenData], Completion]:
    context.clear_cache()
    config = StreamConfig(**{"max_tokens": n, "params": params, "timeout_ms": 0} | changes)
    with context.generate_stream(prompt or context.model.tokenize(PROMPT), config=config) as stream:
        records = list(stream)
    completion = stream.completion()
    assert completion.logprobs == tuple(record.logprob for record in records), "the two accounts agree"
    assert completion.tokens == tuple(record.token_id for record in records)
    assert len(completion.top_logprobs) == (len(records) if config.top_logprobs else 0)
    if config.top_logprobs:
        assert completion.top_logprobs == tuple(record.top_logprobs for record in records)
    return records, completion


def log_softmax(context: Context, tokens: Sequence[int], prompt: Sequence[int] | None = None) -> np.ndarray:
    """A row of log-probabilities for each of the tokens, in float64, computed token by token as the stream did."""
    context.reset()
    context.clear_cache()
    rows = [context.decode(prompt or context.model.tokenize(PROMPT))]
    rows += [context.decode([token]) for token in tokens[:-1]]
    logits = np.stack(rows).astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def ends(model: Model) -> list[int]:
    return [token for token in range(model.n_vocab) if model.token_is_eog(token)]


BIAS = {5: 3.0, 300: -2.0, 700: float("-inf")}
SAMPLING: dict[str, SamplerParams] = {
    "greedy": SamplerParams.greedy(ignore_eos=True),
    "default": SamplerParams(seed=1, ignore_eos=True),
    "hot": SamplerParams(seed=2, temperature=20.0, top_k=0, top_p=1.0, ignore_eos=True),
    "bias": SamplerParams(seed=3, logit_bias=BIAS, temperature=2.0, ignore_eos=True),
    "penalties": SamplerParams(
        seed=4, repeat_penalty=2.0, presence_penalty=3.0, frequency_penalty=1.0, ignore_eos=True
    ),
    "mirostat 1": SamplerParams(seed=5, mirostat=1, temperature=3.0, ignore_eos=True),
    "mirostat 2": SamplerParams(seed=5, mirostat=2, temperature=3.0, ignore_eos=True),
    "xtc": SamplerParams(seed=6, xtc_probability=1.0, xtc_threshold=0.05, ignore_eos=True),
    "typical": SamplerParams(seed=7, typical_p=0.5, ignore_eos=True),
    "adaptive": SamplerParams(seed=8, samplers=["adaptive_p"], adaptive_target=0.2, ignore_eos=True),
    "sigma": SamplerParams(seed=9, samplers=["top_n_sigma", "temperature"], top_n_sigma=1.0, ignore_eos=True),
    "grammar": SamplerParams(seed=10, grammar='root ::= ([a-f] [0-9] " "){8,}', ignore_eos=True),
}


@pytest.mark.parametrize("name", SAMPLING)
def test_they_are_the_models_own(ctx: Context, name: str) -> None:
    """Neither temperature, bias, penalties, grammar nor forbidden tokens change them."""
    records, completion = told(ctx, SAMPLING[name], top_logprobs=20)
    assert len(records) == 40
    expected = log_softmax(ctx, completion.tokens)
    np.testing.assert_allclose(completion.logprobs, expected[np.arange(40), completion.tokens], **TIGHT)
    for record, row in zip(records, expected, strict=True):
        top = record.top_logprobs
        assert len({one.token_id for one in top}) == 20
        np.testing.assert_allclose([one.logprob for one in top], np.sort(row)[::-1][:20], **TIGHT)
        np.testing.assert_allclose([one.logprob for one in top], row[[one.token_id for one in top]], **TIGHT)
        assert [one.logprob for one in top] == sorted((one.logprob for one in top), reverse=True)
        assert sum(np.exp(one.logprob) for one in top) <= 1 + 1e-5
        same = [one.logprob for one in top if one.token_id == record.token_id]
        assert same in ([], [record.logprob])


def test_far_from_certain_and_far_from_likely(ctx: Context) -> None:
    """The tolerance holds at both ends: near 0, and many orders of magnitude below."""
    records, completion = told(ctx, SAMPLING["hot"], 100)
    expected = log_softmax(ctx, completion.tokens)[np.arange(100), completion.tokens]
    assert expected.min() < -10
    np.testing.assert_allclose(completion.logprobs, expected, **TIGHT)
    records, completion = told(ctx, SAMPLING["greedy"], 100)
    expected = log_softmax(ctx, completion.tokens)[np.arange(100), completion.tokens]
    assert expected.max() > -0.01
    np.testing.assert_allclose(completion.logprobs, expected, **TIGHT)
    assert max(record.logprob for record in records) <= 1e-5


@pytest.mark.parametrize("n", [0, 1, 2, 19, 20])
def test_as_many_as_asked_for(ctx: Context, n: int) -> None:
    records, completion = told(ctx, SAMPLING["default"], 12, top_logprobs=n)
    assert [len(record.top_logprobs) for record in records] == [n] * 12
    most, _ = told(ctx, SAMPLING["default"], 12, top_logprobs=20)
    assert [record.top_logprobs for record in records] == [record.top_logprobs[:n] for record in most]
    assert [record.token_id for record in records] == [record.token_id for record in most], "asking changes nothing"
    plain, _ = told(ctx, SAMPLING["default"], 12)
    assert [str(record) for record in records] == [str(record) for record in plain]
    assert completion.logprobs == tuple(record.logprob for record in plain)


@pytest.mark.parametrize("n", [-1, 21, 1.5, "3", None, True])
def test_how_many_may_be_asked_for(n: Any) -> None:
    with pytest.raises(InvalidParameter, match="top_logprobs"):
        StreamConfig(top_logprobs=n)


def test_a_candidate_says_what_it_is(ctx: Context) -> None:
    records, _ = told(ctx, SAMPLING["hot"], 60, top_logprobs=20)
    for record in records:
        for one in record.top_logprobs:
            assert isinstance(one, TokenLogprob)
            assert one == (one.token_id, one.bytes, one.logprob)
            assert one.bytes == ctx.model.token_bytes(one.token_id)
            assert one.text == one.bytes.decode(errors="replace")


# ------------------------------------------------------------------------------------------ tokens that show nothing


def test_the_end_token_has_one(ctx: Context) -> None:
    end = ends(ctx.model)[0]
    records, completion = told(ctx, SamplerParams.greedy(logit_bias={end: 1e3}), top_logprobs=3, min_tokens=4)
    assert [str(records[-1]), records[-1].token_id, records[-1].is_final] == ["", end, True]
    assert len(records) == 5
    expected = log_softmax(ctx, completion.tokens)
    np.testing.assert_allclose(completion.logprobs, expected[np.arange(5), completion.tokens], **TIGHT)
    for record, row in zip(records, expected, strict=True):  # even if it was forbidden
        np.testing.assert_allclose([one.logprob for one in record.top_logprobs], np.sort(row)[::-1][:3], **TIGHT)


def test_an_end_token_that_is_forbidden_keeps_its_own(ctx: Context) -> None:
    """At the position where the model would end the text: its candidates are not the tokens that may be chosen."""
    ended, completion = told(ctx, SamplerParams.greedy(), 1000, top_logprobs=1)
    if completion.finish_reason != "stop":
        pytest.skip("this model does not end this text")
    n = len(ended)
    forbidden, _ = told(ctx, SamplerParams.greedy(), n, top_logprobs=1, min_tokens=n)
    ignored, _ = told(ctx, SamplerParams.greedy(ignore_eos=True), n, top_logprobs=1)
    for records in (forbidden, ignored):
        assert records[-1].top_logprobs == ended[-1].top_logprobs
        assert records[-1].top_logprobs[0].token_id == ended[-1].token_id != records[-1].token_id
        assert records[-1].logprob < ended[-1].logprob


@pytest.mark.parametrize("text", ["日本", "😀😀", "a😀b"])
def test_bytes_that_are_held_back_have_one_each(ctx: Context, text: str) -> None:
    """The text comes with the byte that completes a character, a log-probability with each byte."""
    n = len(text.encode())
    records, completion = told(ctx, SamplerParams(grammar=f'root ::= "{text}"', seed=1), n + 1, top_logprobs=5)
    assert completion.text == text
    assert [len(ctx.model.token_bytes(record.token_id)) for record in records[:-1]] == [1] * n, (
        "they are not in the vocabulary"
    )
    assert [str(record) for record in records if record] == list(text)
    expected = log_softmax(ctx, completion.tokens)
    np.testing.assert_allclose(completion.logprobs, expected[np.arange(n + 1), completion.tokens], **TIGHT)


def test_bytes_that_become_no_character_have_one_each(ctx: Context) -> None:
    first = next(token for token in range(ctx.model.n_vocab) if ctx.model.token_bytes(token) == b"\xe9")
    records, completion = told(ctx, SamplerParams(logit_bias={first: 1e6}, seed=1), 5, top_logprobs=2)
    assert completion.tokens == (first,) * 5
    assert [str(record) for record in records] == ["", "\ufffd", "\ufffd", "\ufffd", "\ufffd\ufffd"]
    expected = log_softmax(ctx, completion.tokens)
    np.testing.assert_allclose(completion.logprobs, expected[np.arange(5), completion.tokens], **TIGHT)


def test_a_stop_string_takes_text_away_but_no_log_probability(ctx: Context) -> None:
    usual, _ = told(ctx, SAMPLING["greedy"], 40, top_logprobs=4)
    text = "".join(map(str, usual))
    for stop in (text[20:21], text[20:24], text[18:30], text[60:75]):
        records, completion = told(
            ctx, SAMPLING["greedy"], 40, top_logprobs=4, stop_sequences=[stop, "never \ufffd found"]
        )
        assert completion.stop_sequence == stop
        assert completion.text == text[: text.index(stop)]
        for ours, theirs in zip(records, usual[: len(records)], strict=True):
            assert (ours.token_id, ours.logprob, ours.top_logprobs) == (
                theirs.token_id,
                theirs.logprob,
                theirs.top_logprobs,
            )


def test_a_stream_that_is_cut_short_keeps_its_own(ctx: Context) -> None:
    with ctx.generate_stream(
        PROMPT, config=StreamConfig(params=SAMPLING["default"], top_logprobs=3, buffer_size=4)
    ) as stream:
        seen = [next(stream) for _ in range(5)]
        stream.cancel()
        seen += list(stream)
    completion = stream.completion()
    assert completion.logprobs[: len(seen)] == tuple(record.logprob for record in seen)
    assert len(completion.logprobs) == len(completion.tokens) == len(completion.top_logprobs)


# ------------------------------------------------------------------------------------------ everywhere the same


@pytest.mark.anyio
async def test_awaited(model: Model, ctx: Context) -> None:
    config = StreamConfig(max_tokens=20, params=SAMPLING["default"], top_logprobs=7, buffer_size=2)
    expected, plain = told(ctx, SAMPLING["default"], 20, top_logprobs=7)
    async with serving(model, n_ctx=1024, n_seq_max=1, n_threads=1, reuse_prefix=False) as context:
        async with context.generate_stream(model.tokenize(PROMPT), config=config) as stream:
            records = [record async for record in stream]
        completion = stream.completion()
    assert [(r.token_id, r.logprob, r.top_logprobs) for r in records] == [
        (r.token_id, r.logprob, r.top_logprobs) for r in expected
    ]
    assert (completion.logprobs, completion.top_logprobs) == (plain.logprobs, plain.top_logprobs)
    assert dataclasses.replace(completion, timings=plain.timings) == plain


def test_many_at_once(model: Model) -> None:
    """In a batch with others, each has its own, and a different number of them."""
    with Context(model, n_ctx=512, n_seq_max=5, n_threads=2) as context:
        prompts = ["Once upon a time", "What is the capital of France?", "The dog", "2 + 2 =", "Hello"]
        streams = [
            context.generate_stream(
                prompt, config=StreamConfig(max_tokens=16, params=SAMPLING["default"], top_logprobs=n)
            )
            for n, prompt in enumerate(prompts)
        ]
        for stream in streams:
            for _ in stream:
                pass
        for n, (prompt, stream) in enumerate(zip(prompts, streams, strict=True)):
            completion = stream.completion()
            expected = log_softmax(context, completion.tokens, model.tokenize(prompt, parse_special=True))
            found = expected[np.arange(16), completion.tokens]
            np.testing.assert_allclose(
                completion.logprobs, found, rtol=0, atol=0.03
            )  # rounding differs in a batch of another size
            assert {len(top) for top in completion.top_logprobs} == ({n} if n else set())
