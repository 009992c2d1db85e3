"""The configurations as records: defaults, fields that must agree, frozen, copied, pickled, merged."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import pickle
import re
from typing import Any

import pytest

from mullama.config import ContextParams, SamplerParams, StreamConfig
from mullama.errors import InvalidParameter

INF = math.inf
INT_MAX = 2**31 - 1

DEFAULTS: dict[type, dict[str, Any]] = {
    SamplerParams: {
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.0,
        "typical_p": 1.0,
        "top_n_sigma": -1.0,
        "xtc_probability": 0.0,
        "xtc_threshold": 0.1,
        "dynatemp_range": 0.0,
        "dynatemp_exponent": 1.0,
        "repeat_penalty": 1.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "penalty_last_n": 64,
        "dry_multiplier": 0.0,
        "dry_base": 1.75,
        "dry_allowed_length": 2,
        "dry_penalty_last_n": 64,
        "dry_sequence_breakers": ("\n", ":", '"', "*"),
        "mirostat": 0,
        "mirostat_tau": 5.0,
        "mirostat_eta": 0.1,
        "min_keep": 0,
        "ignore_eos": False,
        "logit_bias": None,
        "samplers": None,
        "adaptive_target": -1.0,
        "adaptive_decay": 0.9,
        "grammar": None,
        "json_schema": None,
        "seed": None,
    },
    # The table of the API reference, and `params`.
    StreamConfig: {
        "max_tokens": 256,
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.95,
        "stop_sequences": (),
        "stream_delay_ms": 0,
        "buffer_size": 32,
        "timeout_ms": None,
        "min_tokens": 0,
        "top_logprobs": 0,
        "parse_special": True,
        "lora": (),
        "params": None,
    },
    ContextParams: {
        "n_ctx": None,
        "n_batch": 2048,
        "n_ubatch": 512,
        "n_seq_max": 4,
        "max_queue": 1024,
        "n_threads": None,
        "n_threads_batch": None,
        "n_cells": None,
        "reuse_prefix": True,
    },
}

EXAMPLES = [
    SamplerParams(),
    SamplerParams(logit_bias={1: -INF, 7: 2}, seed=3, dry_sequence_breakers=[]),
    StreamConfig(max_tokens=None, stop_sequences=["a", "ä"], params=SamplerParams.greedy()),
    ContextParams(n_ctx=512, n_threads=2),
]


@pytest.mark.parametrize("cls", DEFAULTS, ids=lambda cls: cls.__name__)
def test_fields_and_defaults(cls: type) -> None:
    assert dataclasses.asdict(cls()) == DEFAULTS[cls]


# -- across fields


@pytest.mark.parametrize("changes", [{"mirostat": 1}, {"mirostat": 2}, {"dynatemp_range": 0.5}], ids=repr)
def test_greedy_goes_with_nothing_that_draws(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter, match="temperature"):
        SamplerParams(temperature=0, **changes)
    assert SamplerParams(temperature=0.5, **changes)


@pytest.mark.parametrize("change", [{"temperature": 0.7}, {"top_k": 41}, {"top_p": 0.9}], ids=repr)
def test_params_is_the_whole_of_the_sampling(change: dict[str, Any]) -> None:
    (name,) = change
    for make in (
        lambda: StreamConfig(params=SamplerParams(), **change),
        lambda: StreamConfig(params=SamplerParams()).replace(**change),
    ):
        with pytest.raises(InvalidParameter, match=rf"{name}=.*params") as caught:
            make()
        assert caught.value.parameter == name


def test_the_sampler_in_effect() -> None:
    assert StreamConfig().sampler() == SamplerParams()
    config = StreamConfig(temperature=0.1, top_k=2, top_p=0.3)
    assert config.sampler() == SamplerParams(temperature=0.1, top_k=2, top_p=0.3)
    params = SamplerParams(min_p=0.1)
    assert StreamConfig(params=params).sampler() is params


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"n_batch": 256}, "n_ubatch=256"),
        ({"n_ubatch": 4096}, "n_batch=2048"),
        ({"n_ctx": INT_MAX}, "n_cells"),
        ({"n_ctx": 2**25, "n_seq_max": 64}, "n_seq_max=64"),
        ({"n_ctx": 1024, "n_cells": 1023}, "n_cells=1024"),
    ],
)
def test_context_params_that_do_not_agree(given_: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidParameter, match=re.escape(words)) as caught:
        ContextParams(**given_)
    assert caught.value.hint


def test_context_params_that_agree() -> None:
    assert ContextParams(n_batch=256, n_ubatch=256)
    assert ContextParams(n_ctx=INT_MAX, n_cells=INT_MAX)
    assert ContextParams(n_ctx=INT_MAX, n_seq_max=1)
    assert ContextParams(n_ctx=1024, n_cells=1024)


def test_presets_take_overrides() -> None:
    assert SamplerParams.greedy().temperature == 0
    assert SamplerParams.precise().temperature < SamplerParams().temperature < SamplerParams.creative().temperature
    for preset in (SamplerParams.greedy, SamplerParams.creative, SamplerParams.precise):
        assert preset(seed=5, temperature=0.4) == preset().replace(seed=5, temperature=0.4)
        with pytest.raises(InvalidParameter):
            preset(top_k=-1)


# -- what they are


@pytest.mark.parametrize("config", EXAMPLES, ids=lambda c: type(c).__name__)
def test_frozen_hashable_and_the_same_again(config: Any) -> None:
    name = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, name, 1)
    with pytest.raises((AttributeError, TypeError)):
        config.no_such_field = 1
    assert not hasattr(config, "__dict__")
    duplicates = [
        copy.copy(config),
        copy.deepcopy(config),
        config.replace(),
        type(config)(**_shallow(config)),
    ]
    duplicates += [pickle.loads(pickle.dumps(config, n)) for n in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    for other in duplicates:
        assert other == config
        assert hash(other) == hash(config)
        assert type(other) is type(config)
    assert eval(repr(config), {**globals(), "inf": INF}) == config


def _shallow(config: Any) -> dict[str, Any]:
    return {one.name: getattr(config, one.name) for one in dataclasses.fields(config)}


def test_replace_checks_and_leaves_the_old_one() -> None:
    old = StreamConfig()
    assert old.replace(max_tokens=5).max_tokens == 5
    assert old.max_tokens == 256
    with pytest.raises(InvalidParameter, match="max_tokens"):
        old.replace(max_tokens=0)
    with pytest.raises(TypeError, match="no_such_field"):
        old.replace(no_such_field=1)


@pytest.mark.parametrize("cls", DEFAULTS, ids=lambda cls: cls.__name__)
def test_by_keyword_only(cls: type) -> None:
    with pytest.raises(TypeError):
        cls(1)


@pytest.mark.parametrize("cls", DEFAULTS, ids=lambda cls: cls.__name__)
def test_every_field_is_documented(cls: type) -> None:
    text = inspect.getdoc(cls)
    assert text
    for name in DEFAULTS[cls]:
        assert f"\n    {name}: " in text
