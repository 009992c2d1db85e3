"""Streams that go on until a test ends them, for the tests of cancellation, deadlines and leaks; and what they yield alone."""

from __future__ import annotations

from functools import cache
from itertools import count
from typing import Any

from mullama import Context, Model, SamplerParams, StreamConfig, TokenData

# After these the bundled model is sure of each of 150 tokens: by at least 0.09 in log-probability to the next likely one, more
# than it matters in which batch they were computed (0.03).
PROMPT = "Bees are"
PROMPTS = [PROMPT, "Generate a list:", "Count:", "Friendship is"]
SURE = SamplerParams.greedy(ignore_eos=True)
FOREVER_MS = 3_600_000  # a delay or a time limit after which no test is still there
LIMIT = 90  # seconds, for what must not hang
_serial = count()


def config(max_tokens: int | None = 500, **fields: Any) -> StreamConfig:
    return StreamConfig(**({"max_tokens": max_tokens, "params": SURE, "timeout_ms": 0} | fields))


def long_prompt(model: Model, n: int = 2000) -> list[int]:
    """Tokens that no prompt before began with, so that none of them are in the cache."""
    return (model.tokenize(f"{next(_serial)} and then the story of the fox went on.") * n)[:n]


@cache
def tokens_alone(model: Model, prompt: str, n: int) -> list[TokenData]:
    """What a stream yields that is by itself in its context."""
    with Context(model, n_ctx=1024, n_seq_max=1, n_threads=2) as context:
        return list(context.generate_stream(prompt, config(n)))


def alone(model: Model, prompt: str, n: int) -> list[int]:
    return [token.token_id for token in tokens_alone(model, prompt, n)]
