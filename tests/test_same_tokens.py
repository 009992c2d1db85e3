"""The same tokens as from a plain loop over llama.cpp's C API, whatever is reused, chunked, aborted or shared."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import serving

from build_programs import ROOT, program, run
from mullama import Context, Model, SamplerParams, StreamConfig, TokenIterator

N_CTX = 512
TEXTS = ("Once upon a time", "What is the capital of France?", "<|im_start|>user\nTell me a story.<|im_end|>\n")
GREEDY = SamplerParams.greedy(ignore_eos=True)


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the plain loop generated, and the logits that each token was chosen from."""

    tokens: tuple[int, ...]
    logits: np.ndarray

    def decisive(self) -> int:
        """How many tokens greedy sampling chooses by a margin larger than rounding."""
        two = np.partition(self.logits, -2, axis=1)[:, -2:]
        close = np.flatnonzero(two[:, 1] - two[:, 0] < 0.05)
        return int(close[0]) if len(close) else len(self.tokens)


Plain = Callable[..., Reference]


@pytest.fixture(scope="session")
def plain(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Plain:
    """The plain loop, bench/c_loop.cpp: its tokens for a prompt and sampling."""
    if not (ROOT / "bench" / "c_loop.cpp").is_file():
        pytest.skip("tests are run without a checkout")
    loop = program(ROOT / "bench" / "c_loop.cpp", link_llama=True)
    file = tmp_path_factory.mktemp("logits") / "logits.f32"

    def generate(prompt: Sequence[int], params: SamplerParams, n: int, **options: int) -> Reference:
        output = run([str(loop), *arguments(model.path, prompt, params, n, **options), "--logits", str(file)])
        tokens = json.loads(output)["tokens"]
        return Reference(tuple(tokens), np.fromfile(file, np.float32).reshape(len(tokens), model.n_vocab))

    return generate


def arguments(path: Path, prompt: Sequence[int], params: SamplerParams, n: int, **options: int) -> list[str]:
    values: dict[str, Any] = {"model": path, "tokens": ",".join(map(str, prompt)), "n": n}
    values |= {"ctx": N_CTX, "threads": 1, "warm-up": 0, "repeat": 1} | options
    for field in dataclasses.fields(params):
        value = getattr(params, field.name)
        if field.name == "logit_bias" and value is not None:
            value = ",".join(f"{token}:{bias}" for token, bias in value.items())
        if field.name == "samplers" and value is not None:
            value = ",".join(value)
        if value is not None and field.name not in ("dry_sequence_breakers", "json_schema"):
            values[field.name.replace("_", "-")] = int(value) if isinstance(value, bool) else value
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def config(params: SamplerParams, n: int, **changes: Any) -> StreamConfig:
    return StreamConfig(**{"max_tokens": n, "params": params, "timeout_ms": 0} | changes)


def prompts(model: Model) -> list[list[int]]:
    return [model.tokenize(text, parse_special=True) for text in TEXTS]


def long_prompt(model: Model, n: int) -> list[int]:
    """n tokens of text without any repetition in it."""
    text = " ".join(f"Then {name} went home and counted to {i}." for i, name in enumerate(["Anna", "Ben", "Mia"] * n))
    return model.tokenize(text)[:n]


@pytest.fixture(scope="module")
def alone(model: Model) -> Iterator[Context]:
    """A batch of one, and nothing reused: what the plain loop does."""
    with Context(model, n_ctx=N_CTX, n_seq_max=1, n_threads=1, reuse_prefix=False) as context:
        yield context


# ------------------------------------------------------------------------------------------ a batch of one

SETTINGS = {
    "greedy": GREEDY,
    "default": SamplerParams(seed=1),
    "another seed": SamplerParams(seed=4294967294),
    "ends by itself": SamplerParams(seed=5, temperature=0.7),
    "all": SamplerParams(seed=2, top_k=0, top_p=1.0, temperature=1.0, ignore_eos=True),
    "hot": SamplerParams(seed=3, top_k=0, top_p=1.0, temperature=3.0, ignore_eos=True),
    "min-p": SamplerParams(seed=4, top_k=0, top_p=1.0, min_p=0.1, temperature=1.5, ignore_eos=True),
    "typical": SamplerParams(seed=5, typical_p=0.8, temperature=1.2, ignore_eos=True),
    "top-n-sigma": SamplerParams(seed=6, top_k=0, top_p=1.0, top_n_sigma=1.5, temperature=1.4, ignore_eos=True),
    "xtc": SamplerParams(seed=7, xtc_probability=0.5, xtc_threshold=0.1, ignore_eos=True),
    "dynatemp": SamplerParams(seed=8, dynatemp_range=0.7, dynatemp_exponent=1.3, ignore_eos=True),
    "penalties": SamplerParams(
        seed=9, repeat_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.5, penalty_last_n=40, ignore_eos=True
    ),
    "greedy with penalties": GREEDY.replace(repeat_penalty=1.2, penalty_last_n=N_CTX),
    "dry": SamplerParams(
        seed=10, dry_multiplier=2.0, dry_allowed_length=1, dry_penalty_last_n=256, temperature=0.3, ignore_eos=True
    ),
    "mirostat 1": SamplerParams(seed=11, mirostat=1, mirostat_tau=3.0, mirostat_eta=0.2, ignore_eos=True),
    "mirostat 2": SamplerParams(seed=12, mirostat=2, mirostat_tau=4.0, ignore_eos=True),
    "min-keep": SamplerParams(seed=13, top_p=0.1, min_keep=5, temperature=1.5, ignore_eos=True),
    "another order": SamplerParams(seed=15, samplers=["temperature", "min_p", "top_k"], min_p=0.02, temperature=2.5),
    "adaptive-p": SamplerParams(seed=16, samplers=["top_k", "adaptive_p"], adaptive_target=0.3, adaptive_decay=0.8),
    "a grammar": SamplerParams(seed=17, grammar='root ::= ([a-m]{2,4} " "?)+', temperature=1.5),
    "biases": SamplerParams(seed=14, logit_bias={300: 8.0, 301: 7.5, 302: float("-inf")}, ignore_eos=True),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_stream_gives_the_tokens_of_a_plain_loop(alone: Context, plain: Plain, name: str) -> None:
    for prompt in prompts(alone.model):
        reference = plain(prompt, SETTINGS[name], 64)
        with alone.generate_stream(prompt, config=config(SETTINGS[name], 64)) as stream:
            records = list(stream)
        assert tuple(record.token_id for record in records) == reference.tokens
        assert stream.completion().tokens == reference.tokens
        # the logarithm of the model's own distribution, before any sampler, computed differently
        logits = reference.logits.astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        logprobs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        expected = logprobs[np.arange(len(records)), reference.tokens]
        np.testing.assert_allclose([record.logprob for record in records], expected, rtol=1e-5, atol=1e-5)


def test_settings_tell(alone: Context, plain: Plain) -> None:
    """Each of the settings above gives a different text: none of them is ignored on both sides."""
    prompt = prompts(alone.model)[0]
    seeded = {name: params.replace(seed=1) for name, params in SETTINGS.items() if name != "another seed"}
    outcomes = {name: plain(prompt, params, 64).tokens for name, params in seeded.items()}
    assert len(set(outcomes.values())) >= len(outcomes) - 2, outcomes


def test_until_the_context_is_full(alone: Context, plain: Plain) -> None:
    prompt = long_prompt(alone.model, N_CTX - 20)
    completion = alone.generate(prompt, config=config(GREEDY, -1))
    assert completion.finish_reason == "length"
    assert completion.tokens == plain(prompt, GREEDY, 10**6).tokens
    assert len(completion.tokens) == 21, "the last token needs no cell"


@pytest.mark.anyio
async def test_streams_give_the_tokens_of_a_plain_loop(model: Model, plain: Plain) -> None:
    """On each backend, and with the smallest buffer."""
    async with serving(model, n_ctx=N_CTX, n_seq_max=1, n_threads=1, reuse_prefix=False) as context:
        for name, size in (("greedy", 32), ("default", 1), ("penalties", 2)):
            reference = plain(prompts(model)[0], SETTINGS[name], 48)
            wanted = config(SETTINGS[name], 48, buffer_size=size)
            async with context.generate_stream(prompts(model)[0], config=wanted) as stream:
                assert tuple([token.token_id async for token in stream]) == reference.tokens


# ------------------------------------------------------------------------------------------ prefix reuse


@pytest.fixture
def check(plain: Plain) -> Callable[..., tuple[int, ...]]:
    """Generate greedily and compare, up to where two tokens are equally likely; `cached` is how many are cached."""

    def check(context: Context, prompt: Sequence[int], n: int = 40, *, cached: int | None = None) -> tuple[int, ...]:
        completion = context.generate(prompt, config=config(GREEDY, n))
        agree(plain, prompt, completion.tokens)
        assert cached is None or completion.usage.cached_tokens == cached
        return completion.tokens

    return check


def agree(plain: Plain, prompt: Sequence[int], tokens: Sequence[int]) -> None:
    """The tokens are those of the plain loop, as far as rounding cannot have decided them."""
    reference = plain(prompt, GREEDY, len(tokens), ctx=1024)
    assert len(tokens) == len(reference.tokens)
    sure = reference.decisive()
    assert tuple(tokens[:sure]) == reference.tokens[:sure]


Check = Callable[..., tuple[int, ...]]


def test_most_choices_are_decisive(model: Model, plain: Plain) -> None:
    """Otherwise the tests below would compare nothing."""
    lengths = [plain(prompt, GREEDY, 40).decisive() for prompt in [*prompts(model), long_prompt(model, 100)]]
    assert sum(lengths) >= 40, lengths


def test_reuse_in_the_same_slot(model: Model, check: Check) -> None:
    with Context(model, n_ctx=N_CTX, n_seq_max=1, n_threads=1) as context:
        prompt = long_prompt(model, 120)
        first = check(context, prompt, cached=0)
        check(context, prompt, cached=119)  # one token is always left to compute
        check(context, prompt[:60], cached=59)
        check(context, [*prompt[:40], *prompts(model)[1]], cached=40)
        check(context, [*prompt, *first], cached=40)
        told = check(context, prompts(model)[0])
        check(context, [*prompts(model)[0], *told, *prompts(model)[2]], cached=len(prompts(model)[0]) + 39)
        context.clear_cache()
        check(context, prompt, cached=0)


def test_reuse_out_of_another_slot(model: Model, plain: Plain, check: Check) -> None:
    """A busy slot's prefix is copied, which affects neither stream."""
    with Context(model, n_ctx=N_CTX, n_seq_max=3, n_threads=1) as context:
        prompt = long_prompt(model, 150)
        with context.generate_stream(prompt, config=config(GREEDY, 60, buffer_size=4)) as lender:
            got = [next(lender).token_id for _ in range(10)]
            check(context, prompt, cached=149)
            check(context, [*prompt[:70], *prompts(model)[0]], cached=70)
            got += [next(lender).token_id for _ in range(20)]
            check(context, [*prompt, *got[:12], *prompts(model)[1]], cached=162)
            context.clear_cache()  # not what is running
            got += [token.token_id for token in lender]
        assert len(got) == 60
        agree(plain, prompt, got)
        check(context, prompt, cached=0)  # but it is forgotten when it ends


def test_without_reuse_nothing_is_cached(alone: Context, check: Check) -> None:
    prompt = long_prompt(alone.model, 100)
    first = check(alone, prompt, cached=0)
    assert check(alone, prompt, cached=0) == first
    assert alone.statistics().cached_cells == 0


# ------------------------------------------------------------------------------------------ chunks, aborts, neighbours


@pytest.mark.parametrize(("n_batch", "n_ubatch"), [(1, 1), (7, 3), (32, 32), (64, 16), (2048, 8)])
def test_a_prompt_in_chunks(model: Model, check: Check, n_batch: int, n_ubatch: int) -> None:
    sizes = {"n_ctx": N_CTX, "n_batch": n_batch, "n_ubatch": n_ubatch, "n_threads": 1}
    with Context(model, n_seq_max=1, **sizes) as context:
        check(context, long_prompt(model, 200), 24, cached=0)
        check(context, prompts(model)[1], 24)


def until(condition: Callable[[], object]) -> None:
    """Poll the engine until the condition holds; the test's time limit ends the wait."""
    while not condition():
        time.sleep(0)


@pytest.mark.parametrize("steps", [1, 2, 5, 9])
def test_after_a_cancelled_prompt(model: Model, check: Check, steps: int) -> None:
    """The computed part of it is reused, and nothing else is left of it."""
    with Context(model, n_ctx=1024, n_seq_max=1, n_threads=1, n_batch=64, n_ubatch=16) as context:
        prompt = long_prompt(model, 900)
        began = context.statistics().tokens_in
        with context.generate_stream(prompt, config=config(GREEDY, 8)) as stream:
            until(lambda: context.statistics().tokens_in >= began + 64 * steps)
            stream.cancel()
        assert stream.completion().finish_reason == "cancelled"
        cached = context.statistics().cached_cells
        assert 64 * steps <= cached <= 900 + len(stream.completion().tokens)
        if cached < 900:
            check(context, prompt, 16, cached=cached)
        check(context, prompt, 16, cached=899)
        check(context, [*prompt[:50], *prompts(model)[0]], 16)


def test_an_aborted_prompt_harms_no_neighbour(model: Model, plain: Plain, check: Check) -> None:
    """A neighbour decodes in the same batches as prompts that are cancelled while they are computed."""
    with Context(model, n_ctx=1024, n_seq_max=2, n_threads=1, n_ubatch=16) as context:
        beside = prompts(model)[0]
        prompt = long_prompt(model, 900)
        with context.generate_stream(beside, config=config(GREEDY, 200, buffer_size=1)) as neighbour:
            got = [next(neighbour).token_id]
            for i in range(12):
                context.clear_cache()
                with context.generate_stream(prompt, config=config(GREEDY, -1)) as stream:
                    got += [next(neighbour).token_id for _ in range(1 + i % 4)]
                    stream.cancel()
                assert stream.completion().finish_reason == "cancelled"
            check(context, prompt, 16)
            got += [token.token_id for token in neighbour]
        agree(plain, beside, got)
        check(context, beside, 16)


def test_neighbours_do_not_change_each_other(model: Model, plain: Plain) -> None:
    with Context(model, n_ctx=N_CTX, n_seq_max=4, n_threads=1) as context:
        asked = [*prompts(model), long_prompt(model, 90)]
        streams: list[TokenIterator] = [context.generate_stream(p, config=config(GREEDY, 40)) for p in asked]
        for prompt, stream in zip(asked, streams, strict=True):
            agree(plain, prompt, [token.token_id for token in stream])
