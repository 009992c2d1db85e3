"""Invalid arguments: each raises a typed error with the value and the fix, and the engine keeps working."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mullama import (
    Context,
    ContextError,
    ContextParams,
    InvalidParameter,
    Model,
    MullamaError,
    SamplerParams,
    SamplingError,
    StreamConfig,
    StreamingError,
    TokenizationError,
)

GREEDY = SamplerParams.greedy(ignore_eos=True)


@pytest.fixture(scope="module")
def context(model: Model) -> Iterator[Context]:
    with Context(model, n_ctx=256, n_seq_max=2, n_threads=1) as context:
        yield context


@pytest.fixture(autouse=True)
def still_serving(context: Context) -> Iterator[None]:
    """After each test the same engine must work as before."""
    before = context.generate("Once upon a time", 4, GREEDY).tokens
    yield
    assert context.generate("Once upon a time", 4, GREEDY).tokens == before
    assert (context.statistics().busy, context.statistics().queued) == (0, 0)


@contextmanager
def refused(type_: type[BaseException], *says: str) -> Iterator[pytest.ExceptionInfo[BaseException]]:
    """Check for an error of ours of this type that has all of these words, and says what to do."""
    with pytest.raises(type_) as caught:
        yield caught
    error = caught.value
    assert isinstance(error, MullamaError)
    assert error.hint or " must be " in str(error)
    assert [word for word in says if word not in str(error)] == [], str(error)


# ------------------------------------------------------------------------------ prompts


@pytest.mark.parametrize(
    ("prompt", "type_", "says"),
    [
        ("", InvalidParameter, "prompt must be a text or token ids, at least one"),
        ([], InvalidParameter, "at least one"),
        (None, TypeError, "prompt must be a str or a sequence of token ids"),
        (7, TypeError, "7"),
        (1.5, TypeError, "1.5"),
        (b"bytes", TypeError, "b'bytes'"),
        (["Once"], TypeError, "'Once'"),
        ([1.0], TypeError, "1.0"),
        ([True], TypeError, "True"),
        ([None], TypeError, "None"),
        ([-1], InvalidParameter, "-1"),
        ([1, 10**6], InvalidParameter, "1000000"),
        ([10**30], InvalidParameter, "10000"),
        (np.array([1.0, 2.0]), TypeError, "1.0"),
        (np.array([[1, 2]]), TypeError, "prompt"),
        (np.array(5), TypeError, "prompt"),
        ({"role": "user"}, TypeError, "'role'"),
        ("a\ud800b", TokenizationError, "lone surrogate, '\\ud800', at index 1"),
        ("a\0b", TokenizationError, "NUL character at index 1"),
        ("word " * 1000, ContextError, "and a sequence of this context holds 256"),
        ([1] * 256, ContextError, "the prompt has 256 tokens, and a sequence of this context holds 256"),
        ([1] * 10**6, ContextError, "the prompt has 1000000 tokens"),
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_prompts(context: Context, prompt: Any, type_: type[Exception], says: str) -> None:
    with refused(type_, says):
        context.generate(prompt, 4)


def test_a_huge_prompt(context: Context) -> None:
    with refused(ContextError, "the prompt has at least", "and a sequence of this context holds 256") as caught:
        context.generate("Once upon a time " * 600_000, 4)  # 10 MB
    assert getattr(caught.value, "code", "") == "PROMPT_TOO_LONG"


@pytest.mark.parametrize("tokens", [np.array([1, 300, 301]), [np.int64(1), np.uint8(30)], (1, 2), range(1, 5), {1: 0}])
def test_whatever_yields_integers_is_a_prompt(context: Context, tokens: Any) -> None:
    assert len(context.generate(tokens, 3, GREEDY).tokens) == 3


def test_a_prompt_that_just_fits(context: Context) -> None:
    completion = context.generate([1] * 255, None, GREEDY)
    assert (completion.finish_reason, len(completion.tokens)) == ("length", 2)  # the last one needs no cell


# ------------------------------------------------------------------------------ tokens and texts of the model


@pytest.mark.parametrize("token", [-1, 10**6, 2**40, 1.0, True, "1", None, np.float32(1)], ids=repr)
def test_token_ids(model: Model, token: Any) -> None:
    for call in (lambda: model.detokenize([token]), lambda: model.token_is_eog(token)):
        with refused(InvalidParameter, repr(token) if not isinstance(token, np.generic) else "1.0"):
            call()


def test_integers_of_numpy_are_token_ids(model: Model) -> None:
    assert model.detokenize(np.arange(300, 304)) == model.detokenize([300, 301, 302, 303])
    assert model.token_is_eog(np.int32(model.token_eos))


@pytest.mark.parametrize("text", [None, 7, b"x", ["x"]], ids=repr)
def test_text_of_a_wrong_type(model: Model, text: Any) -> None:
    with refused(TypeError, "text must be a str", repr(text)):
        model.tokenize(text)


# ------------------------------------------------------------------------------ what is passed in a wrong place


@pytest.mark.parametrize(
    ("path", "says"),
    [(123, "path must be a str or os.PathLike"), (b"x", "path"), ("", "''"), ("a\0b", "NUL"), (3.5, "path")],
    ids=repr,
)
def test_paths(path: Any, says: str) -> None:
    with refused(InvalidParameter, says):
        Model.load(path)


@pytest.mark.parametrize(
    "keywords",
    [
        {"n_gpu_layers": -2},
        {"n_gpu_layers": 1.5},
        {"n_gpu_layers": 2**31},
        {"use_mmap": 1},
        {"use_mlock": None},
        {"vocab_only": "yes"},
        {"on_progress": 5},
    ],
    ids=repr,
)
def test_loading(keywords: dict[str, Any]) -> None:
    ((name, value),) = keywords.items()
    with refused(InvalidParameter, name, repr(value)):
        Model.load(**keywords)


@pytest.mark.parametrize("wrong", ["x", None, 5, ContextParams()], ids=lambda wrong: type(wrong).__name__)
def test_a_context_of_what_is_no_model(wrong: Any) -> None:
    with refused(TypeError, "model must be a mullama.Model"):
        Context(wrong)


def test_a_context_of_wrong_parameters(model: Model) -> None:
    wrong: Any
    for wrong in ("x", 5, {"n_ctx": 5}, StreamConfig()):
        with refused(TypeError, "params must be a ContextParams"):
            Context(model, wrong)
    with refused(TypeError, "unknown keyword 'n_context' for a context (its value is 5)", "Did you mean n_ctx"):
        Context(model, n_context=5)
    with refused(InvalidParameter, "n_seq_max", "257", "256"):
        Context(model, n_seq_max=257)


def test_a_model_of_vocabulary_only() -> None:
    model = Model.load(vocab_only=True)
    assert model.detokenize(model.tokenize("some words")) == "some words"
    assert (model.n_layer, model.n_head, model.n_ctx_train) == (0, 0, 0)
    with refused(ContextError, "only its vocabulary was loaded", "with its weights"):
        Context(model)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("Once", "4"), "max_tokens"),
        (("Once", 0), "max_tokens"),
        (("Once", -2), "-2"),
        (("Once", 1.5), "1.5"),
        (("Once", 2**31), "max_tokens"),
        (("Once", GREEDY), "params="),
        (("Once", 4, StreamConfig()), "params"),
        (("Once", 4, {"temperature": 1}), "params"),
    ],
)
def test_what_a_stream_is_given(context: Context, arguments: tuple[Any, ...], says: str) -> None:
    for call in (context.generate, context.generate_stream):
        with refused(InvalidParameter, says):
            call(*arguments)


def test_limits_of_a_stream(context: Context) -> None:
    for wrong in ({"buffer_size": 0}, {"timeout_ms": -1}, {"stream_delay_ms": -1}, {"max_tokens": 0}):
        ((name, value),) = wrong.items()
        with refused(InvalidParameter, name, str(value)):
            StreamConfig(**wrong)  # type: ignore[arg-type]
        with refused(InvalidParameter, name, str(value)):
            StreamConfig().replace(**wrong)
    wrong_config: Any = {"max_tokens": 3}
    with refused(TypeError, "config must be a StreamConfig"):
        context.generate("Once", config=wrong_config)
    with refused(InvalidParameter, "two stream configurations"):
        context.generate("Once", StreamConfig(), config=StreamConfig())


@pytest.mark.parametrize("callback", [None, 5, "x"], ids=repr)
def test_a_callback_that_cannot_be_called(context: Context, callback: Any) -> None:
    with refused(TypeError, "callback", repr(callback)):
        context.generate_streaming("Once", 4, callback)


def test_a_callback_that_answers_nonsense(context: Context) -> None:
    answer: Any = "maybe"
    with refused(TypeError, "callback's answer", "'maybe'"):
        context.generate_streaming("Once", 4, lambda token: answer)


def test_a_second_reader(context: Context) -> None:
    stream = context.generate_stream("Once", 4, GREEDY)
    with stream._reading, refused(StreamingError, "another thread is reading") as caught:
        next(stream)
    assert getattr(caught.value, "code", "") == "STREAM_BUSY"
    assert len(list(stream)) == 4


def test_biases_of_tokens_that_are_not_there(context: Context) -> None:
    with refused(InvalidParameter, "logit_bias", "1000000", str(context.model.n_vocab)):
        context.generate("Once", 4, SamplerParams(logit_bias={10**6: 1.0}))


@pytest.mark.parametrize(
    "kind", [{}, {"temperature": 0.0}, {"mirostat": 1}, {"mirostat": 2}, {"top_k": 0, "top_p": 0.5}]
)
def test_all_tokens_forbidden(context: Context, kind: dict[str, Any]) -> None:
    every = dict.fromkeys(range(context.model.n_vocab), -math.inf)
    with pytest.raises(SamplingError, match="no token is left to choose from"):
        context.generate("Once", 4, SamplerParams(logit_bias=every, **kind))


# ------------------------------------------------------------------------------ sizes of a context


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_ctx": 1},
        {"n_ctx": 2, "n_seq_max": 1},
        {"n_batch": 1, "n_ubatch": 1, "n_ctx": 64},
        {"n_batch": 1, "n_ubatch": 1, "n_ctx": 64, "n_seq_max": 5},
        {"n_seq_max": 256, "n_ctx": 16},
        {"n_seq_max": 256, "n_ctx": 64, "n_cells": 256},
        {"n_batch": 2**20, "n_ubatch": 1, "n_ctx": 64},
        {"n_batch": 2**20, "n_ubatch": 2**20, "n_ctx": 64},
        {"n_threads": 512, "n_ctx": 64},
        {"n_ctx": 100_000, "n_seq_max": 1},
    ],
    ids=str,
)
def test_extreme_sizes(model: Model, sizes: dict[str, int]) -> None:
    with Context(model, **({"n_threads": 1} | sizes)) as context:
        if context.n_ctx < 3:
            with refused(ContextError, f"holds {context.n_ctx}"):
                context.generate([1] * context.n_ctx, 2)
        if context.n_ctx > 1:
            streams = [context.generate_stream([1], 2, GREEDY) for _ in range(3)]
            assert [len(list(stream)) for stream in streams] == [2, 2, 2]


@pytest.mark.parametrize(
    "sizes", [{"n_ctx": 2**31 - 1, "n_seq_max": 1}, {"n_ctx": 2**23, "n_seq_max": 255}, {"n_cells": 2**31 - 1}], ids=str
)
def test_a_context_that_the_memory_cannot_hold(model: Model, sizes: dict[str, int]) -> None:
    with refused(ContextError, "cells needs", "GiB of memory, and there is", "smaller n_ctx"):
        Context(model, **sizes)


def test_fewer_cells_than_sequences(model: Model) -> None:
    with refused(ContextError, "n_cells is 64, less than one for each of n_seq_max, 256, sequences"):
        Context(model, n_ctx=64, n_cells=64, n_seq_max=256)


# ------------------------------------------------------------------------------ all that SamplerParams lets through

HARD = st.sampled_from
SAMPLING = {
    "temperature": HARD([0.0, 1e-6, 0.5, 1.0, 1e6]),
    "top_k": HARD([0, 1, 2, 40, 2**31 - 1]),
    "top_p": HARD([1e-30, 0.5, 1.0]),
    "min_p": HARD([0.0, 0.05, 1.0]),
    "typical_p": HARD([1e-30, 0.5, 1.0]),
    "top_n_sigma": HARD([-1.0, 1e-30, 1.0, 1e6]),
    "xtc_probability": HARD([0.0, 0.5, 1.0]),
    "xtc_threshold": HARD([0.0, 1e-30, 0.3, 1.0]),
    "dynatemp_range": HARD([0.0, 0.5, 1e6]),
    "dynatemp_exponent": HARD([0.0, 1.0, 1e3]),
    "repeat_penalty": HARD([1e-3, 1.0, 1.3, 1e3]),
    "frequency_penalty": HARD([-1e6, 0.0, 0.5, 1e6]),
    "presence_penalty": HARD([-1e6, 0.0, 0.5, 1e6]),
    "penalty_last_n": HARD([0, 1, 64, 2**20]),
    "dry_multiplier": HARD([0.0, 0.8, 1e6]),
    "dry_base": HARD([1.0, 1.75, 1e6]),
    "dry_allowed_length": HARD([0, 1, 2, 2**31 - 1]),
    "dry_penalty_last_n": HARD([0, 1, 64, 2**20]),
    "dry_sequence_breakers": HARD([[], ["\n"], ["é", "x" * 40], [" "] * 32, ["\x01\t"]]),
    "mirostat": HARD([0, 0, 1, 2]),
    "mirostat_tau": HARD([0.0, 1e-30, 5.0, 100.0]),
    "mirostat_eta": HARD([0.0, 0.1, 1.0]),
    "min_keep": HARD([0, 1, 5, 2**31 - 1]),
    "ignore_eos": st.booleans(),
    "logit_bias": HARD([None, {"0": -math.inf}, {"5": 1e6, "6": -1e6}, dict.fromkeys(map(str, range(100)), 1e6)]),
    "seed": HARD([0, 1, 2**32 - 2]),
}
LIVES = """
import json, sys
from mullama import Context, InvalidParameter, Model, SamplerParams, SamplingError
with Context(Model.load(), n_ctx=64, n_seq_max=4, n_threads=1) as context:
    for line in sys.stdin:
        values = json.loads(line)
        values["logit_bias"] = {int(k): v for k, v in values["logit_bias"].items()} if values["logit_bias"] else None
        try:
            params = SamplerParams(**values)
        except InvalidParameter:
            print("invalid")
            continue
        try:
            print(len(context.generate("Once upon a time, once upon a time", 8, params).tokens))
        except SamplingError as e:
            print(e)
"""


@settings(max_examples=8, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.fixed_dictionaries(SAMPLING), min_size=20, max_size=60))
def test_no_valid_sampling_ends_the_process(batch: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(values) + "\n" for values in batch)
    done = subprocess.run(
        [sys.executable, "-c", LIVES], input=lines, capture_output=True, text=True, timeout=100, check=False
    )
    said = done.stdout.splitlines()
    assert (done.returncode, done.stderr, len(said)) == (0, "", len(batch)), (done, batch[len(said)])
    assert [line for line in said if not (line.isdigit() or line == "invalid" or "no token is left" in line)] == []
