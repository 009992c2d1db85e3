"""How tokens are chosen: each step of the chain compared with numpy over the model's logits, and forbidden or forced tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import ENDLESS, serving

from mullama import AsyncContext, Context, InvalidParameter, Model, SamplerParams, SamplingError, StreamConfig
from mullama.config import SAMPLERS

PROMPT = "Once upon a time there was a little"
N = 48
OFF: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "temperature": 1.0, "ignore_eos": True}  # all defaults off
CLOSE = 0.05  # logits this close may change order when computed in another batch


@pytest.fixture(scope="module")
def ctx(model: Model) -> Iterator[Context]:
    with Context(model, n_ctx=512, n_seq_max=4, n_threads=2) as context:
        yield context


def generated(
    context: Context, params: SamplerParams, n: int = N, prompt: Any = PROMPT, **more: Any
) -> tuple[int, ...]:
    return context.generate(prompt, config=StreamConfig(max_tokens=n, params=params, timeout_ms=0, **more)).tokens


def told(context: Context, params: SamplerParams, n: int = N) -> tuple[list[int], tuple[int, ...], np.ndarray]:
    """A prompt, what was generated from it, and the logits (float64) that each token was chosen from."""
    prompt = context.model.tokenize(PROMPT)
    tokens = generated(context, params, n, prompt)
    context.reset()
    rows = context.decode([*prompt, *tokens], all_logits=True)[len(prompt) - 1 : -1].astype(np.float64)
    rows[:, [t for t in range(context.model.n_vocab) if context.model.token_is_eog(t)]] = -np.inf
    return prompt, tokens, rows


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


# ------------------------------------------------------------------------------------------ which tokens a step leaves

Allowed = Callable[[np.ndarray, float], np.ndarray]  # from logits, with a tolerance for rounding


def of_top_k(k: int) -> Allowed:
    return lambda logits, room: logits >= np.sort(logits)[-k] - room


def of_top_p(p: float, temperature: float = 1.0) -> Allowed:
    def allowed(logits: np.ndarray, room: float) -> np.ndarray:
        order = np.argsort(-logits)
        before = np.cumsum(softmax(logits / temperature)[order]) - softmax(logits / temperature)[order]
        least = logits[order][np.flatnonzero(before < p + room)[-1]]
        return logits >= least - room

    return allowed


def of_min_p(share: float) -> Allowed:
    return lambda logits, room: logits >= logits.max() + np.log(share) - room


def of_top_n_sigma(n: float) -> Allowed:
    return lambda logits, room: logits >= logits.max() - n * logits[np.isfinite(logits)].std() - room


def of_typical(p: float) -> Allowed:
    def allowed(logits: np.ndarray, room: float) -> np.ndarray:
        top = of_top_k(40)(logits, 0)  # as the test truncates it; impossible tokens add nothing
        probable = softmax(np.where(top, logits, -np.inf))
        surprise = -np.log(np.where(probable > 0, probable, 1e-300))
        distance = np.where(top, np.abs(surprise - (probable * surprise).sum()), np.inf)
        order = np.argsort(distance)
        before = np.cumsum(probable[order]) - probable[order]
        return np.asarray(distance <= distance[order][np.flatnonzero(before <= p + room)[-1]] + room)

    return allowed


STEPS: dict[str, tuple[dict[str, Any], Allowed]] = {
    "top_k": ({"top_k": 5}, of_top_k(5)),
    "top_p": ({"top_p": 0.6}, of_top_p(0.6)),
    "min_p": ({"min_p": 0.1}, of_min_p(0.1)),
    "top_n_sigma": ({"top_n_sigma": 1.0}, of_top_n_sigma(1.0)),
    "typical": ({"top_k": 40, "typical_p": 0.7}, of_typical(0.7)),
    "min_keep": ({"top_p": 1e-6, "min_keep": 3}, of_top_k(3)),
    "top_p of what is cold": (
        {"top_p": 0.6, "temperature": 0.5, "samplers": ["temperature", "top_p"]},
        of_top_p(0.6, temperature=0.5),
    ),
    "top_p of what is hot": (
        {"top_p": 0.6, "temperature": 3.0, "samplers": ["temperature", "top_p"]},
        of_top_p(0.6, temperature=3.0),
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_leaves_the_tokens_that_it_should(ctx: Context, name: str) -> None:
    """No other tokens are chosen; and at a high temperature, even the unlikely ones of its own are."""
    changes, allowed = STEPS[name]
    hot = {} if "samplers" in changes else {"temperature": 50.0}
    some = {"less": 0, "more": 0}
    for seed in range(3):
        _, tokens, rows = told(ctx, SamplerParams(**OFF | hot | changes, seed=seed))
        for token, logits in zip(tokens, rows, strict=True):
            assert allowed(logits, CLOSE)[token], f"{token}: rank {(logits > logits[token]).sum()}"
            some["more"] += token != logits.argmax()
            some["less"] += bool(allowed(logits, 0).sum() < len(logits) // 2)
    assert some["more"] >= N // 4, "it leaves more than the likeliest one"
    assert some["less"] > N, "it does cut"


def test_the_order_of_the_steps_counts(ctx: Context) -> None:
    changes = {**OFF, "top_p": 0.6, "temperature": 3.0, "seed": 1}
    before = generated(ctx, SamplerParams(**changes, samplers=["temperature", "top_p"]))
    after = generated(ctx, SamplerParams(**changes, samplers=["top_p", "temperature"]))
    assert after == generated(ctx, SamplerParams(**changes)), "the order that llama.cpp has by itself"
    assert before != after
    assert generated(ctx, SamplerParams(**changes, samplers=["temperature"])) not in (before, after), (
        "what is left out is off"
    )


@pytest.mark.parametrize(
    "params",
    [
        SamplerParams.greedy(ignore_eos=True),
        SamplerParams(top_k=1, ignore_eos=True, temperature=5.0),
        SamplerParams(samplers=["top_k"], top_k=1, ignore_eos=True),
        SamplerParams(samplers=["temperature"], temperature=0.0, ignore_eos=True),
        SamplerParams(top_p=1e-9, ignore_eos=True, temperature=5.0),
    ],
    ids=["temperature 0", "top_k 1", "top_k 1 alone", "temperature 0 alone", "top_p 0"],
)
def test_the_likeliest(ctx: Context, params: SamplerParams) -> None:
    _, tokens, rows = told(ctx, params)
    for token, logits in zip(tokens, rows, strict=True):
        assert logits[token] >= logits.max() - CLOSE


def test_xtc_leaves_the_least_of_the_likely_ones(ctx: Context) -> None:
    threshold = 0.05
    steps = ("xtc", "temperature")
    params = SamplerParams.greedy(xtc_probability=1.0, xtc_threshold=threshold, samplers=steps, ignore_eos=True)
    _, tokens, rows = told(ctx, params)
    cut = 0
    for token, logits in zip(tokens, rows, strict=True):
        probable = softmax(logits)
        above = probable[probable >= threshold]
        least = above.min() if len(above) > 1 else probable.max()
        near = [p for p in probable if abs(p - threshold) < 0.005]  # rounding may put these on the other side
        assert any(abs(probable[token] - p) < 0.01 for p in (least, *near)), (probable[token], least)
        cut += len(above) > 1
    assert cut >= 4


def test_adaptive_p_aims_at_a_probability(ctx: Context) -> None:
    def mean(target: float) -> float:
        params = SamplerParams(seed=1, ignore_eos=True, samplers=["top_k", "adaptive_p"], adaptive_target=target)
        completion = ctx.generate(PROMPT, 150, params)
        return float(np.exp(completion.logprobs).mean())

    assert mean(0.05) + 0.1 < mean(0.9)


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_aims_at_a_surprise(ctx: Context, version: int) -> None:
    def surprise(tau: float) -> float:
        params = SamplerParams(seed=1, temperature=3.0, mirostat=version, mirostat_tau=tau, ignore_eos=True)
        return float(-np.mean(ctx.generate(PROMPT, 150, params).logprobs) / np.log(2))

    assert surprise(0.1) + 1 < surprise(6.0)


def test_a_dynamic_temperature_follows_the_entropy(ctx: Context) -> None:
    """Twice the temperature where the model is uncertain, almost none where it is certain; so it differs from either."""
    base = SamplerParams(**OFF | {"temperature": 1.0, "seed": 3})
    outcomes = {
        generated(ctx, base.replace(dynatemp_range=r, dynatemp_exponent=e)) for r, e in [(0, 1), (1, 1), (1, 0.1)]
    }
    assert len(outcomes) == 3
    sure = generated(ctx, base.replace(dynatemp_range=1.0, dynatemp_exponent=1e3))  # the entropy's fraction vanishes
    assert sure == generated(ctx, SamplerParams.greedy(ignore_eos=True))


# ------------------------------------------------------------------------------------------ penalties


@pytest.mark.parametrize(
    ("repeat", "frequency", "presence", "last_n"),
    [(2.0, 0.0, 0.0, 64), (1.0, 5.0, 0.0, 64), (1.0, 0.0, 5.0, 64), (1.5, 2.0, 2.0, 32), (1.0, 0.0, 1e3, 40)],
)
def test_penalties(ctx: Context, repeat: float, frequency: float, presence: float, last_n: int) -> None:
    params = SamplerParams.greedy(
        repeat_penalty=repeat,
        frequency_penalty=frequency,
        presence_penalty=presence,
        penalty_last_n=last_n,
        ignore_eos=True,
    )
    prompt, tokens, rows = told(ctx, params, 2 * N)
    for i, (token, logits) in enumerate(zip(tokens, rows, strict=True)):
        recent, counts = np.unique(np.array([*prompt, *tokens[:i]][-last_n:]), return_counts=True)
        logits[recent] = np.where(logits[recent] > 0, logits[recent] / repeat, logits[recent] * repeat)
        logits[recent] -= counts * frequency + presence
        assert logits[token] >= logits.max() - CLOSE, i
    assert tokens != generated(ctx, SamplerParams.greedy(ignore_eos=True), 2 * N)


def test_dry_breaks_a_repetition(ctx: Context) -> None:
    """The token that would extend a repetition is penalised, unless a sequence breaker comes in between."""
    model = ctx.model
    a, b, c = (model.tokenize(word, add_special=False)[-1] for word in ("dog", "house", "rain"))
    line = model.tokenize("\n", add_special=False)[-1]
    loud = {"logit_bias": {c: 40.0}, "samplers": ["dry", "temperature"]}
    plain = SamplerParams.greedy(**loud)
    dry = plain.replace(dry_multiplier=1e4, dry_allowed_length=2, dry_penalty_last_n=64)
    repeating, broken, short = [a, b, c, a, b], [a, line, c, a, line], [a, b, c, b]
    assert len({a, b, c, line}) == 4
    for prompt in (repeating, broken, short):
        assert generated(ctx, plain, 1, prompt) == (c,)
    assert generated(ctx, dry, 1, repeating) != (c,)
    assert generated(ctx, dry, 1, broken) == (c,)
    assert generated(ctx, dry.replace(dry_sequence_breakers=[]), 1, broken) != (c,)
    assert generated(ctx, dry, 1, short) == (c,), "two are free"
    assert generated(ctx, dry.replace(dry_penalty_last_n=3), 1, repeating) == (c,), "it does not look so far back"


# ------------------------------------------------------------------------------------------ chance


def test_a_seed_repeats_and_others_differ(ctx: Context) -> None:
    hot = SamplerParams(temperature=2.0, top_k=0, ignore_eos=True)
    seeded = [generated(ctx, hot.replace(seed=seed)) for seed in (0, 1, 2, 2**32 - 2)]
    assert seeded == [generated(ctx, hot.replace(seed=seed)) for seed in (0, 1, 2, 2**32 - 2)]
    assert len({*seeded, generated(ctx, hot), generated(ctx, hot)}) == 6, "and none twice without one"


@pytest.mark.anyio
async def test_a_seed_means_the_same_everywhere(actx: AsyncContext, model: Model) -> None:
    params = SamplerParams(seed=7, temperature=1.5, ignore_eos=True)
    with Context(model, n_ctx=1024, n_seq_max=8, n_threads=2) as context:
        expected = generated(context, params)
    completion = await actx.generate(PROMPT, N, params)
    assert completion.tokens == expected


# ------------------------------------------------------------------------------------------ forbidden and forced


def end_tokens(model: Model) -> list[int]:
    return [token for token in range(model.n_vocab) if model.token_is_eog(token)]


def test_minus_infinity_is_never(ctx: Context) -> None:
    usual = generated(ctx, SamplerParams.greedy(ignore_eos=True))
    never = SamplerParams.greedy(ignore_eos=True, logit_bias=dict.fromkeys(usual, float("-inf")))
    other = generated(ctx, never)
    assert not set(usual) & set(other)
    hot = never.replace(temperature=1e3, top_k=0, top_p=1.0, seed=1)
    assert not set(usual) & set(generated(ctx, hot, 200))


def test_a_large_bias_is_always(ctx: Context) -> None:
    token = ctx.model.tokenize("house", add_special=False)[-1]
    completion = ctx.generate(PROMPT, N, SamplerParams(logit_bias={token: 1e6}, seed=1))
    assert set(completion.tokens) == {token}
    assert completion.logprobs[0] < -1, "it is the model's own, which thought otherwise"


def test_a_bias_for_no_token_of_the_model(ctx: Context) -> None:
    with pytest.raises(InvalidParameter, match="logit_bias"):
        ctx.generate(PROMPT, 1, SamplerParams(logit_bias={ctx.model.n_vocab: 1.0}))


def test_end_tokens_are_ignored(ctx: Context) -> None:
    ending = SamplerParams(logit_bias=dict.fromkeys(end_tokens(ctx.model), 1e3), seed=1)
    completion = ctx.generate(PROMPT, N, ending)
    assert (completion.finish_reason, len(completion.tokens), completion.text) == ("stop", 1, "")
    for changes in ({}, {"temperature": 0.0}, {"mirostat": 1}, {"mirostat": 2}, {"samplers": ["top_k"]}):
        completion = ctx.generate(PROMPT, N, ending.replace(ignore_eos=True, **changes))
        assert (completion.finish_reason, len(completion.tokens)) == ("length", N)
        assert not set(end_tokens(ctx.model)) & set(completion.tokens)


@pytest.mark.parametrize(
    "changes", [{}, {"temperature": 0.0}, {"mirostat": 1}, {"mirostat": 2}, {"samplers": ["top_p"]}], ids=repr
)
def test_no_end_token_before_min_tokens(ctx: Context, changes: dict[str, Any]) -> None:
    ends = end_tokens(ctx.model)
    ending = SamplerParams(logit_bias=dict.fromkeys(ends, 1e3), seed=1).replace(**changes)
    for least in (0, 1, 7):
        completion = ctx.generate(PROMPT, config=StreamConfig(max_tokens=N, min_tokens=least, params=ending))
        assert completion.finish_reason == "stop"
        assert len(completion.tokens) == least + 1
        assert completion.tokens[-1] in ends
        assert not set(ends) & set(completion.tokens[:-1])
    full = ctx.generate(PROMPT, config=StreamConfig(max_tokens=7, min_tokens=7, params=ending))
    assert (full.finish_reason, len(full.tokens)) == ("length", 7)


def test_min_tokens_and_a_chain_that_wants_to_end(ctx: Context) -> None:
    """The infilling step chooses an end token even if it is forbidden: then there is no token left to choose."""
    ending = SamplerParams(logit_bias=dict.fromkeys(end_tokens(ctx.model), 1e3), samplers=["infill"], seed=1)
    with ctx.generate_stream(PROMPT, config=StreamConfig(min_tokens=3, params=ending)) as stream:
        try:
            tokens = [token.token_id for token in stream][:3]
        except SamplingError:
            tokens = list(stream.completion().tokens)
    assert not set(end_tokens(ctx.model)) & set(tokens)


def test_stop_strings_count_before_min_tokens(ctx: Context) -> None:
    usual = ctx.generate(PROMPT, N, SamplerParams.greedy(ignore_eos=True))
    stop = usual.text[5:9]
    config = StreamConfig(max_tokens=N, min_tokens=N, stop_sequences=[stop], params=SamplerParams.greedy())
    completion = ctx.generate(PROMPT, config=config)
    assert (completion.finish_reason, completion.stop_sequence) == ("stop", stop)
    assert completion.text == usual.text[: usual.text.index(stop)]


CHAINS: dict[str, dict[str, Any]] = {
    "default": {},
    "greedy": {"temperature": 0.0},
    "mirostat 1": {"mirostat": 1},
    "mirostat 2": {"mirostat": 2},
    "typical": {"typical_p": 0.5, "top_k": 0},
    "xtc": {"xtc_probability": 1.0, "xtc_threshold": 0.01},
    "sigma": {"top_n_sigma": 1.0, "top_k": 0},
    "dynatemp": {"dynatemp_range": 0.5},
    "penalties": {"repeat_penalty": 1.5, "presence_penalty": 1.0},
    "adaptive": {"samplers": ["adaptive_p"], "adaptive_target": 0.5},
    "min_p": {"min_p": 0.1, "min_keep": 3},
    "nothing": {"samplers": ["top_k"], "top_k": 0},
}


@pytest.mark.parametrize("name", CHAINS)
def test_where_everything_is_forbidden_only_that_stream_fails(ctx: Context, name: str) -> None:
    nothing = SamplerParams(logit_bias=dict.fromkeys(range(ctx.model.n_vocab), float("-inf"))).replace(**CHAINS[name])
    with ctx.generate_stream(PROMPT, 200, ENDLESS) as neighbour:
        next(neighbour)
        with ctx.generate_stream(PROMPT, 5, nothing) as stream, pytest.raises(SamplingError, match="no token"):
            list(stream)
        assert stream.completion().finish_reason == "error"
        assert stream.completion().tokens == ()
        assert len(list(neighbour)) == 199
    assert len(generated(ctx, SamplerParams(**CHAINS[name] | {"seed": 1}), 3)) <= 3, "the slot serves again"


# ------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "steps", [["temp"], ["top_k", "top_k"], [], "top_k", ["top_k", 3], ["Top_K"], ["dist"]], ids=repr
)
def test_steps_that_there_are_not(steps: Any) -> None:
    with pytest.raises(InvalidParameter, match="samplers"):
        SamplerParams(samplers=steps)


@pytest.mark.parametrize(
    "changes",
    [
        {"samplers": ["top_k"], "mirostat": 1},
        {"samplers": ["top_k"], "temperature": 0},
        {"adaptive_target": 1.5, "samplers": ["adaptive_p"]},
        {"adaptive_decay": 1.0},
    ],
    ids=repr,
)
def test_what_does_not_go_together(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter):
        SamplerParams(**changes)


@pytest.mark.anyio
async def test_each_step_alone_and_all_together(model: Model) -> None:
    async with serving(model, n_ctx=512, n_seq_max=2) as context:
        for steps in [*([step] for step in SAMPLERS), SAMPLERS, SAMPLERS[::-1]]:
            params = SamplerParams(samplers=steps, seed=1, dry_multiplier=0.8, xtc_probability=0.5, typical_p=0.9)
            completion = await context.generate(PROMPT, 8, params)
            assert 1 <= len(completion.tokens) <= 8
