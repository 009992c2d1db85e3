"""What a generation hands out: tokens, the completion that they add up to, and the figures about it. Plain values."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Completion",
    "ContextStatistics",
    "FinishReason",
    "StreamControl",
    "StreamStatistics",
    "Timings",
    "TokenData",
    "Usage",
]

FinishReason = Literal["stop", "length", "cancelled", "timeout", "error"]


class TokenData(str):
    """The text that one token completed, which is what the value itself is, and what is known about the token.

    The text may be empty: an end token shows none, and a token may carry only the beginning of a character or what
    could be the beginning of a stop string. It then comes with a later token.

    Attributes:
        text: The same text, as a plain `str`.
        token_id: The token's number in the vocabulary.
        is_final: Whether this is the last token of its stream.
        logprob: Natural logarithm of the token's probability in the model's own distribution, before any sampler.
    """

    __slots__ = ("is_final", "logprob", "token_id")

    token_id: int
    is_final: bool
    logprob: float

    def __new__(cls, text: str, token_id: int, is_final: bool = False, logprob: float = 0.0) -> TokenData:
        self = str.__new__(cls, text)
        self.token_id = token_id
        self.is_final = is_final
        self.logprob = logprob
        return self

    @property
    def text(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return (
            f"TokenData({str(self)!r}, token_id={self.token_id}, is_final={self.is_final}, logprob={self.logprob:.4f})"
        )

    def __reduce__(self) -> tuple[type[TokenData], tuple[str, int, bool, float]]:
        return type(self), (str(self), self.token_id, self.is_final, self.logprob)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens: of the prompt, of the completion, and how many of the prompt's did not have to be computed again."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in milliseconds of wall-clock time.

    Attributes:
        queue_ms: From the call until a slot was free.
        prefill_ms: From then until the first token: the prompt was read.
        decode_ms: From the first token to the last, pauses for a slow reader included.
        tokens_per_second: Rate between the first and the last token; 0 where there are fewer than two.
    """

    queue_ms: float
    prefill_ms: float
    decode_ms: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Completion:
    """A generation as a whole; `str(completion)` is its text.

    Attributes:
        text: All that was generated, without the stop string.
        tokens: The ids of all tokens that were generated, an end token included.
        finish_reason: ``"stop"`` (an end token or a stop string), ``"length"`` (max_tokens, or the context is full),
            ``"cancelled"``, ``"timeout"`` or ``"error"``.
        stop_sequence: The stop string that ended it, if one did.
        usage: Numbers of tokens.
        timings: Where the time went.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    stop_sequence: str | None
    usage: Usage
    timings: Timings

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class StreamStatistics:
    """A stream at this moment.

    Attributes:
        current_buffer_used: Tokens that lie ready to be read.
        max_buffer_size: How many may, before generation pauses.
        tokens_generated: Tokens generated so far, read or not.
        paused: Generation waits for the reader.
        finished: Nothing more will be generated.
    """

    current_buffer_used: int
    max_buffer_size: int
    tokens_generated: int
    paused: bool
    finished: bool


@dataclass(frozen=True, slots=True)
class ContextStatistics:
    """A context at this moment, as of the engine's last step.

    Attributes:
        slots: Sequences that can generate at once.
        busy: Of these, how many do.
        queued: Requests that wait for a slot.
        paused: Sequences that wait for a slow reader.
        cells: KV cells in all.
        cached_cells: Cells that hold finished sequences, for reuse.
        steps: Batches computed so far.
        tokens_in: Tokens computed so far, those of prompts included.
        tokens_out: Tokens generated so far.
    """

    slots: int
    busy: int
    queued: int
    paused: int
    cells: int
    cached_cells: int
    steps: int
    tokens_in: int
    tokens_out: int


class StreamControl(enum.Enum):
    """What a callback may return: go on, or stop after this token."""

    CONTINUE = True
    STOP = False
