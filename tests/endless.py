"""Streams that run until a test ends them, for tests of cancellation, deadlines and leaks; and what they yield when alone."""

from __future__ import annotations

from functools import cache
from itertools import count
from typing import Any

from mullama import Context, Model, SamplerParams, StreamConfig, TokenData

# After these prompts the bundled model is certain of 150 tokens: their log-probability exceeds the next by at least 0.09, more
# than the batch in which they are computed changes it (0.03).
PROMPT = "Bees are"
PROMPTS = [PROMPT, "Generate a list:", "Count:", "Friendship is"]
SURE = SamplerParams.greedy(ignore_eos=True)
FOREVER_MS = 3_600_000  # a delay or a time limit that no test reaches
LIMIT = 90  # seconds, for calls that must not hang
_serial = count()


def config(max_tokens: int | None = 500, **fields: Any) -> StreamConfig:
    return StreamConfig(**({"max_tokens": max_tokens, "params": SURE, "timeout_ms": 0} | fields))


def long_prompt(model: Model, n: int = 2000) -> list[int]:
    """Tokens that no earlier prompt started with, so that none of them are cached."""
    return (model.tokenize(f"{next(_serial)} and then the story of the fox went on.") * n)[:n]


@cache
def tokens_alone(model: Model, prompt: str, n: int) -> list[TokenData]:
    """What a stream yields that is alone in its context."""
    with Context(model, n_ctx=1024, n_seq_max=1, n_threads=2) as context:
        return list(context.generate_stream(prompt, config(n)))


def alone(model: Model, prompt: str, n: int) -> list[int]:
    return [token.token_id for token in tokens_alone(model, prompt, n)]
