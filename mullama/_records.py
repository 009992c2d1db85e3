"""What a generation hands out: tokens, the completion that they add up to, and the figures about it. Plain values."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal, NamedTuple

__all__ = [
    "ChatCompletion",
    "ChatDelta",
    "ChatMessage",
    "Completion",
    "ContextStatistics",
    "FinishDetail",
    "FinishReason",
    "StreamControl",
    "StreamStatistics",
    "Timings",
    "TokenData",
    "TokenLogprob",
    "ToolCall",
    "ToolCallDelta",
    "Usage",
]

FinishReason = Literal["stop", "length", "cancelled", "timeout", "error"]
FinishDetail = Literal["end_token", "stop_sequence", "max_tokens", "context_full"]


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

    The text may be empty: an end token shows none, and a token may carry only the beginning of a character or what
    could be the beginning of a stop string. It then comes with a later token.

    Attributes:
        text: The same text, as a plain `str`.
        token_id: The token's number in the vocabulary.
        is_final: Whether this is the last token of its stream.
        logprob: Natural logarithm of the token's probability in the model's own distribution, before any sampler.
        top_logprobs: The likeliest tokens at its place, as many as `StreamConfig.top_logprobs` asks for.
    """

    __slots__ = ("is_final", "logprob", "token_id", "top_logprobs")

    token_id: int
    is_final: bool
    logprob: float
    top_logprobs: tuple[TokenLogprob, ...]

    def __new__(
        cls,
        text: str,
        token_id: int,
        is_final: bool = False,
        logprob: float = 0.0,
        top_logprobs: tuple[TokenLogprob, ...] = (),
    ) -> TokenData:
        self = str.__new__(cls, text)
        self.token_id = token_id
        self.is_final = is_final
        self.logprob = logprob
        self.top_logprobs = top_logprobs
        return self

    @property
    def text(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return (
            f"TokenData({str(self)!r}, token_id={self.token_id}, is_final={self.is_final}, logprob={self.logprob:.4f})"
        )

    def __reduce__(self) -> tuple[type[TokenData], tuple[object, ...]]:
        return type(self), (str(self), self.token_id, self.is_final, self.logprob, self.top_logprobs)


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
        finish_reason: ``"stop"`` (an end token or a stop string), ``"length"`` (`max_tokens`, or a full context),
            ``"cancelled"``, ``"timeout"`` or ``"error"``.
        stop_sequence: The stop string that ended it, if one did.
        usage: Numbers of tokens.
        timings: Where the time went.
        logprobs: The log-probability of each token, as `TokenData.logprob`.
        top_logprobs: For each token, as `TokenData.top_logprobs`; empty where none were asked for.
        finish_detail: What exactly ended it: ``"end_token"`` or ``"stop_sequence"`` where the reason is ``"stop"``,
            ``"max_tokens"`` or ``"context_full"`` where it is ``"length"``; None for the other reasons.
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


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that the model wants called: its name, and its arguments as JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """What is new of a tool call. The first of a call has its id and name, the others only a fragment of its arguments."""

    index: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """What one token adds to the message; often nothing.

    Attributes:
        content: Text for the user.
        reasoning_content: Text that the model thinks to itself.
        tool_calls: What is new of tool calls.
        token: The token itself.
    """

    content: str
    reasoning_content: str
    tool_calls: tuple[ToolCallDelta, ...]
    token: TokenData

    def __str__(self) -> str:
        return self.content

    def __bool__(self) -> bool:
        """Whether it adds anything."""
        return bool(self.content or self.reasoning_content or self.tool_calls)


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """A message of the assistant; `to_dict` gives it in the form in which the next request takes it."""

    content: str
    reasoning_content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    role: Literal["assistant"] = "assistant"

    def to_dict(self) -> dict[str, object]:
        """The message as a `dict` in the form of OpenAI's API."""
        message: dict[str, object] = {"role": self.role, "content": self.content}
        if self.reasoning_content:
            message["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.tool_calls
            ]
        return message


@dataclass(frozen=True, slots=True)
class ChatCompletion:
    """An answer as a whole.

    Attributes:
        message: What the assistant says.
        finish_reason: ``"tool_calls"`` where the message asks for tools and is whole; else as `Completion.finish_reason`.
        completion: The generation behind it: raw text, tokens, usage, timings.
    """

    message: ChatMessage
    finish_reason: FinishReason | Literal["tool_calls"]
    completion: Completion

    def __str__(self) -> str:
        return self.message.content

    @property
    def text(self) -> str:
        """What the message says to the user: its content."""
        return self.message.content

    @property
    def usage(self) -> Usage:
        """Numbers of tokens."""
        return self.completion.usage

    @property
    def timings(self) -> Timings:
        """Where the time went."""
        return self.completion.timings


class StreamControl(enum.Enum):
    """What a callback may return: go on, or stop after this token."""

    CONTINUE = True
    STOP = False
