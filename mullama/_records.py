"""What a generation hands out: tokens, the completion that they add up to, and the figures about it. Plain values."""

from __future__ import annotations

import enum
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, TypeAlias

from . import _openai

if TYPE_CHECKING:
    from ._openai import TokenBytes

__all__ = [
    "Completion",
    "ContextStatistics",
    "FinishDetail",
    "FinishReason",
    "StreamControl",
    "StreamStatistics",
    "Timings",
    "TokenData",
    "TokenLogprob",
    "Usage",
    "name_candidates",
]

FinishReason: TypeAlias = Literal["stop", "length", "cancelled", "timeout", "error"]
FinishDetail: TypeAlias = Literal["end_token", "stop_sequence", "max_tokens", "context_full"]


class TokenLogprob(NamedTuple):
    """A token that could have been chosen: its id, its own bytes, and the natural logarithm of its probability."""

    token_id: int
    bytes: bytes
    logprob: float

    @property
    def text(self) -> str:
        """Its bytes as text; those that are no whole character become U+FFFD."""
        return self.bytes.decode(errors="replace")


class Outcome(NamedTuple):
    """How a stream went, as the engine hands it over; times in microseconds of `_core.clock_us`, 0 for what has not been."""

    finish: int  # 0 while it generates
    fault: int  # which kind of failure; 0 is none
    message: str  # what the failure says
    stop: int  # which of its stop strings ended it; -1 is none
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    top: tuple[tuple[int, float], ...]  # of all tokens in a row, the same number for each
    text: str
    cached_tokens: int
    called_us: int
    admitted_us: int
    first_us: int
    last_us: int
    ended_us: int


class TokenData(str):
    """The text that one token completed, which is what the value itself is, and what is known about the token.

    It cannot be changed: setting an attribute raises AttributeError.

    The text may be empty: an end token shows none, and a token may carry only the beginning of a character or what
    could be the beginning of a stop string. It then comes with a later token.

    Attributes:
        text: The same text, as a plain `str`.
        token_id: The token's number in the vocabulary.
        is_final: Whether this is the last token of its stream.
        logprob: Natural logarithm of the token's probability in the model's own distribution, before any sampler.
        top_logprobs: The likeliest tokens at its place, as many as `StreamConfig.top_logprobs` asks for.
    """

    if not TYPE_CHECKING:  # slots are quicker to read than properties, and cannot be declared to be as read-only
        __slots__ = ("is_final", "logprob", "token_id", "top_logprobs")

    if TYPE_CHECKING:

        @property
        def token_id(self) -> int: ...
        @property
        def is_final(self) -> bool: ...
        @property
        def logprob(self) -> float: ...
        @property
        def top_logprobs(self) -> tuple[TokenLogprob, ...]: ...

    def __new__(
        cls,
        text: str,
        token_id: int,
        is_final: bool = False,
        logprob: float = 0.0,
        top_logprobs: tuple[TokenLogprob, ...] = (),
    ) -> TokenData:
        self = str.__new__(cls, text)
        object.__setattr__(self, "token_id", token_id)
        object.__setattr__(self, "is_final", is_final)
        object.__setattr__(self, "logprob", logprob)
        object.__setattr__(self, "top_logprobs", top_logprobs)
        return self

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"cannot set {name!r}: a TokenData cannot be changed; make a new one")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"cannot delete {name!r}: a TokenData cannot be changed; make a new one")

    @property
    def text(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return (
            f"TokenData({str(self)!r}, token_id={self.token_id}, is_final={self.is_final}, logprob={self.logprob:.4f})"
        )

    def __reduce__(self) -> tuple[type[TokenData], tuple[object, ...]]:
        return type(self), (str(self), self.token_id, self.is_final, self.logprob, self.top_logprobs)


def name_candidates(token: TokenData, named: tuple[TokenLogprob, ...]) -> None:
    """Completes a token before it is handed out: the core knows no bytes of its candidates."""
    object.__setattr__(token, "top_logprobs", named)


@dataclass(frozen=True, slots=True)
class Usage:
    """Numbers of tokens.

    Attributes:
        prompt_tokens: Of the prompt.
        completion_tokens: Generated, an end token included.
        cached_tokens: Of the prompt, that did not have to be computed again.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    @property
    def total_tokens(self) -> int:
        """Those of the prompt and of the completion."""
        return self.prompt_tokens + self.completion_tokens

    def to_dict(self) -> dict[str, Any]:
        """The ``usage`` of a response in the form of OpenAI's API."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in milliseconds of wall-clock time.

    Attributes:
        queue_ms: From the call until a slot was free.
        prefill_ms: From then until the first token: computing the prompt.
        decode_ms: From the first token to the last, pauses for a slow reader included.
        tokens_per_second: Rate between the first and the last token; 0.0 where there are fewer than two.
    """

    queue_ms: float
    prefill_ms: float
    decode_ms: float
    tokens_per_second: float

    def to_dict(self, usage: Usage) -> dict[str, Any]:
        """The ``timings`` of a response in the form of llama-server, which has numbers of tokens among them."""
        return _openai.timings(
            prompt=usage.prompt_tokens,
            cached=usage.cached_tokens,
            generated=usage.completion_tokens,
            prefill_ms=self.prefill_ms,
            decode_ms=self.decode_ms,
            rate=self.tokens_per_second,
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """A generation as a whole; `str(completion)` is its text.

    Attributes:
        text: All that was generated, without the stop string. After a timeout, a failure or a cancellation it also has what
            was held back for a stop string that did not come.
        tokens: The ids of all tokens that were generated, an end token included.
        finish_reason: ``"stop"`` (an end token or a stop string), ``"length"`` (`max_tokens`, or a full context),
            ``"cancelled"``, ``"timeout"`` or ``"error"``.
        stop_sequence: The stop string that ended it, if one did.
        usage: Numbers of tokens.
        timings: Where the time went.
        logprobs: The log-probability of each token, as `TokenData.logprob`.
        top_logprobs: For each token, as `TokenData.top_logprobs`; empty where none were asked for.
        finish_detail: What exactly ended it: ``"end_token"`` or ``"stop_sequence"`` where the reason is ``"stop"``,
            ``"max_tokens"`` or ``"context_full"`` where it is ``"length"``; None for the other reasons.
        n_echoed: How many characters at the beginning of the text are the prompt's (`CompletionOptions.echo`).
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    stop_sequence: str | None
    usage: Usage
    timings: Timings
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[TokenLogprob, ...], ...] = ()
    finish_detail: FinishDetail | None = None
    n_echoed: int = 0

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        detail = f", finish_detail={self.finish_detail!r}" if self.finish_detail else ""
        return (
            f"<mullama.Completion {reprlib.repr(self.text)}, tokens={len(self.tokens)}, "
            f"finish_reason={self.finish_reason!r}{detail}>"
        )

    def to_dict(
        self,
        *,
        model: str = "mullama",
        id: str = "cmpl-0",  # noqa: A002
        created: int = 0,
        token_bytes: TokenBytes | None = None,
    ) -> dict[str, Any]:
        """A whole ``text_completion`` response in the form of OpenAI's API, with llama-server's ``timings``.

        OpenAI has no word for an end by ``"cancelled"``, ``"timeout"`` or ``"error"``: it becomes ``"length"``, which says
        that the text was cut off.

        Args:
            model: The model's name.
            id: Of the response; a server makes a new one for each.
            created: When the response was made, in seconds since 1970.
            token_bytes: `Model.token_bytes` of the model that wrote it, to have ``logprobs``; None is without.
        """
        return {
            "id": id,
            "object": "text_completion",
            "created": created,
            "model": model,
            "choices": [self.to_choice(token_bytes=token_bytes)],
            "usage": self.usage.to_dict(),
            "timings": self.timings.to_dict(self.usage),
        }

    def to_choice(self, *, index: int = 0, token_bytes: TokenBytes | None = None) -> dict[str, Any]:
        """One of the ``choices`` of such a response, for one that has several. Arguments as `to_dict`."""
        return {
            "index": index,
            "text": self.text,
            "logprobs": _openai.text_logprobs(self.text, self.n_echoed, self._each_token(), token_bytes),
            "finish_reason": _openai.finish_reason(self.finish_reason),
        }

    def _each_token(self) -> Iterator[tuple[int, float, tuple[TokenLogprob, ...]]]:
        """The id of each token, its log-probability, and the likeliest at its place, if they were asked for."""
        tops = self.top_logprobs or ((),) * len(self.tokens)
        return zip(self.tokens, self.logprobs, tops, strict=True)


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
        max_queue: How many may, `ContextParams.max_queue`.
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
    max_queue: int
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
