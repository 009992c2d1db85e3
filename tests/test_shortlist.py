"""A chain that starts with top-k gets a shortlist of tokens, and chooses as it would from all of them."""

from __future__ import annotations

from typing import Any

import pytest

from mullama import Context, Model, SamplerParams, StreamConfig
from mullama.config import SAMPLERS

PROMPT = "Once upon a time there was a little"
N = 144

STEPS = [step for step in SAMPLERS if step not in ("typ_p", "infill", "adaptive_p")]
SOME, MORE = range(300, 330), range(300, 400)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"top_k": 1},
        {"temperature": 0.0},
        {"temperature": 3.0, "top_k": 100, "top_p": 1.0, "min_p": 0.01},
        {"temperature": 2.0, "top_k": 5, "xtc_probability": 0.5, "xtc_threshold": 0.05, "min_keep": 2},
        {"temperature": 2.0, "repeat_penalty": 1.8},
        {"temperature": 2.0, "repeat_penalty": 0.5, "penalty_last_n": 40},
        {"temperature": 1.5, "frequency_penalty": 1.0, "presence_penalty": 2.0, "penalty_last_n": 8},
        {"temperature": 1.5, "frequency_penalty": -3.0, "penalty_last_n": 30},
        {"temperature": 1.5, "presence_penalty": 1e6, "top_k": 3},
        {"temperature": 2.0, "logit_bias": dict.fromkeys(SOME, 6.0)},
        {"temperature": 2.0, "logit_bias": dict.fromkeys(MORE, -1e3), "top_k": 10},
        {"temperature": 2.0, "logit_bias": dict.fromkeys(MORE, float("-inf")), "presence_penalty": 3.0},
    ],
    ids=lambda changes: " ".join(changes) or "as it is",
)
def test_what_top_k_does_not_keep_need_not_be_seen(model: Model, changes: dict[str, Any]) -> None:
    """A step before top-k that does nothing disables the shortlist."""
    params = SamplerParams(**{"seed": 5, "ignore_eos": True, **changes})
    prompt = [*model.tokenize(PROMPT), *range(300, 310)]
    with Context(model, n_ctx=256, n_seq_max=1, n_threads=2) as context:
        by_itself, short, whole = (
            context.generate(prompt, config=StreamConfig(max_tokens=N, params=params.replace(samplers=steps))).tokens
            for steps in (None, STEPS, ["typ_p", *STEPS])
        )
    assert by_itself == short == whole
    assert len(whole) == N
