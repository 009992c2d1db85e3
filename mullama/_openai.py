"""What takes more than renaming of a record in OpenAI's form: how it ended, its log-probabilities, its timings.

Pure functions of plain values; the records have the rest.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence
from typing import Any

TokenBytes = Callable[[int], bytes]
Top = Sequence[tuple[int, bytes, float]]  # `TokenLogprob`s

_UNLIKELY = -9999.0  # OpenAI's own value for it; JSON has no infinity


def finish_reason(reason: str | None) -> str | None:
    """One of OpenAI's reasons. It has none for a text that was cancelled, late or failed: it was cut off, as at a limit."""
    return reason if reason in ("stop", "tool_calls", None) else "length"


def timings(
    *, prompt: int, cached: int, generated: int, prefill_ms: float, decode_ms: float, rate: float
) -> dict[str, Any]:
    """As llama-server has them; numbers of tokens, milliseconds, and tokens per second."""
    computed = prompt - cached
    return {
        "cache_n": cached,
        "prompt_n": computed,
        "prompt_ms": prefill_ms,
        "prompt_per_token_ms": prefill_ms / computed if computed else 0.0,
        "prompt_per_second": 1000 * computed / prefill_ms if prefill_ms else 0.0,
        "predicted_n": generated,
        "predicted_ms": decode_ms,
        "predicted_per_token_ms": 1000 / rate if rate else 0.0,
        "predicted_per_second": rate,
    }


def chat_logprobs(each: Iterable[tuple[int, float, Top]], token_bytes: TokenBytes | None) -> dict[str, Any] | None:
    """The ``logprobs`` of a chat's choice: each token has its own, also one that shows no text."""
    if token_bytes is None:
        return None
    content = [
        _entry(token_bytes(token), logprob) | {"top_logprobs": [_entry(data, p) for _, data, p in top]}
        for token, logprob, top in each
    ]
    return {"content": content, "refusal": None}


def _entry(data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": data.decode(errors="replace"), "logprob": max(logprob, _UNLIKELY), "bytes": list(data)}


def text_logprobs(
    text: str, start: int, each: Iterable[tuple[int, float, Top]], token_bytes: TokenBytes | None
) -> dict[str, Any] | None:
    """The ``logprobs`` of a text completion's choice, of which the generated part begins at `start`."""
    if token_bytes is None:
        return None
    pieces, logprobs, likeliest = [], [], []
    for token, logprob, top in each:
        pieces.append(token_bytes(token))
        logprobs.append(max(logprob, _UNLIKELY))
        likeliest.append({data.decode(errors="replace"): max(p, _UNLIKELY) for _, data, p in top})
    tokens = [piece.decode(errors="replace") for piece in pieces]
    with_own = [others | {token: p} for others, token, p in zip(likeliest, tokens, logprobs, strict=True)]
    return {
        "tokens": tokens,
        "token_logprobs": logprobs,
        "top_logprobs": with_own if any(likeliest) else None,
        "text_offset": _offsets(text, start, pieces),
    }


def _offsets(text: str, at: int, pieces: list[bytes]) -> list[int]:
    """Where in the text each token's own begins. A token that shows nothing, such as an end token, takes no room."""
    offsets = []
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        offsets.append(at)
        state = decoder.getstate()
        shown = decoder.decode(piece)
        rest = text[at : at + len(shown)]
        if shown.startswith(rest):  # all of it, or what a stop string left of it
            at += len(rest)
        else:
            decoder.setstate(state)
    return offsets
