"""What a user can set: sampling, one stream, one context. Frozen records that are checked when they are made.

Strategy: each field carries its check beside its default (`_field`), one loop runs them all, and what has to
agree across fields stands in `_agree`. The bounds are those beyond which llama.cpp aborts, throws or silently
does something else (`common/sampling.cpp`, `src/llama-sampler.cpp`, `src/llama-cparams.h`, `ggml.h`), so what
passes here is safe to hand to the engine; what depends on the model (is this token id in its vocabulary?) the
engine checks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ._checks import (
    INT32_MAX,
    Check,
    conflict,
    flag,
    integer,
    loras,
    number,
    refuse_type,
    strings,
    text,
    token_biases,
    words,
)
from ._schema import json_schema

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SHARED", "ContextParams", "SamplerParams", "StreamConfig"]

# The steps of the chain, by the names that llama.cpp gives them (common_sampler_types_from_names).
SAMPLERS = tuple("penalties dry top_n_sigma top_k typ_p top_p min_p xtc temperature infill adaptive_p".split())

_LLAMA_RANDOM_SEED = 2**32 - 1  # LLAMA_DEFAULT_SEED: llama.cpp draws a seed of its own
_SEED_HINT = f"None draws a new one each time; {_LLAMA_RANDOM_SEED} is llama.cpp's own word for that."
_LLAMA_MAX_SEQ = 256
_GGML_MAX_N_THREADS = 512
_MAX_LAST_N = 2**20  # a sampler that looks back allocates this many cells at once
_MIN_TEMPERATURE = 1e-6  # below it a logit divided by it overflows a C float


def _max_tokens(name: str, value: object) -> int | None:
    hint = "None (or -1) is until the end of the text or a full context."
    count: int | None = number(1, INT32_MAX, real=False, special=-1, none=True, hint=hint)(name, value)
    return None if count == -1 else count


def _field(default: object, check: Check) -> Any:
    return field(default=default, metadata={"check": check})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Config:
    """Runs the checks of its fields when it is made."""

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            object.__setattr__(self, one.name, one.metadata["check"](one.name, getattr(self, one.name)))
        self._agree()

    def _agree(self) -> None:
        """Raises if fields that are right by themselves do not go together."""

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked like a new one."""
        return dataclasses.replace(self, **changes)


# What SamplerParams and StreamConfig share: default and check.
_TEMPERATURE = 0.8, number(_MIN_TEMPERATURE, 1e6, special=0, hint="0 always takes the likeliest token.")
_TOP_K = 40, integer(0, hint="0 switches it off.")
_TOP_P = 0.95, number(0, 1, above=True, hint="1 switches it off.")
SHARED = {"temperature": _TEMPERATURE[0], "top_k": _TOP_K[0], "top_p": _TOP_P[0]}


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerParams(_Config):
    """How the next token is chosen; the meanings and the order of the steps are llama.cpp's (`common.h`).

    Logit bias, penalties, DRY, top-n-sigma, top-k, typical-p, top-p, min-p, XTC, temperature, then chance.
    Mirostat replaces all of these but the logit bias and the temperature.

    Attributes:
        temperature: Above 1 flatter, below 1 sharper; 0 is greedy: always the likeliest token.
        top_k: Keep the k likeliest tokens; 0 is off.
        top_p: Keep the likeliest tokens that together have this probability; 1 is off.
        min_p: Keep tokens that have at least this share of the likeliest one's probability; 0 is off.
        typical_p: Keep locally typical tokens up to this probability; 1 is off.
        top_n_sigma: Keep logits within n standard deviations of the greatest; -1 is off.
        xtc_probability: How often to leave out all likely tokens but the least of them; 0 is off.
        xtc_threshold: What counts as likely for that; above 0.5 is off.
        dynatemp_range: The temperature moves by this much with the entropy; 0 is off.
        dynatemp_exponent: The shape of that.
        repeat_penalty: Divides the logits of recent tokens; 1 is off.
        frequency_penalty: Taken off the logits of recent tokens once for each time they occurred; 0 is off.
        presence_penalty: Taken off once if they occurred at all; 0 is off.
        penalty_last_n: How many tokens back "recent" reaches; 0 switches the three penalties off.
        dry_multiplier: Strength of the penalty on repeated sequences (DRY); 0 is off.
        dry_base: Its growth for each further token of the repetition, at least 1.
        dry_allowed_length: Repetitions of this length are free.
        dry_penalty_last_n: How many tokens back DRY looks; 0 is off.
        dry_sequence_breakers: Strings over which no repetition is counted; at most 32, 40 bytes each.
        mirostat: 0 is off, 1 and 2 are the versions of the algorithm.
        mirostat_tau: The surprise, in bits, that Mirostat aims at.
        mirostat_eta: Its learning rate.
        min_keep: Each step leaves at least this many tokens; 0 leaves that to the step.
        ignore_eos: Never choose an end token; generation then ends at `max_tokens` or a full context.
        logit_bias: Added to the logits of these token ids; `-inf` is never.
        samplers: The steps of the chain in their order, of `SAMPLERS`; None is the order above.
        adaptive_target: The probability that adaptive-p aims at, for a chain that ends in ``"adaptive_p"``; -1 is off.
        adaptive_decay: How slowly adaptive-p forgets, up to 0.99.
        grammar: A grammar in GBNF that the text must follow (llama.cpp's `grammars/README.md`); its root is ``root``.
        json_schema: A JSON schema that the text must follow: a mapping, its text, or a pydantic model. Kept as text.
        seed: Of the random numbers, from 0 to 4294967294; None draws a new one for each generation.

    Raises:
        InvalidParameter: A value is out of range; `InvalidParameterType` if it is of a wrong type.
    """

    temperature: float = _field(*_TEMPERATURE)
    top_k: int = _field(*_TOP_K)
    top_p: float = _field(*_TOP_P)
    min_p: float = _field(0.0, number(0, 1, hint="0 switches it off."))
    typical_p: float = _field(1.0, number(0, 1, above=True, hint="1 switches it off."))
    top_n_sigma: float = _field(-1.0, number(0, 1e6, above=True, special=-1, hint="-1 switches it off."))
    xtc_probability: float = _field(0.0, number(0, 1, hint="0 switches it off."))
    xtc_threshold: float = _field(0.1, number(0, 1))
    dynatemp_range: float = _field(0.0, number(0, 1e6, hint="0 switches it off."))
    dynatemp_exponent: float = _field(1.0, number(0, 1e3))
    repeat_penalty: float = _field(1.0, number(1e-3, 1e3, hint="1 switches it off, 1.1 is usual."))
    frequency_penalty: float = _field(0.0, number(-1e6, 1e6, hint="0 switches it off."))
    presence_penalty: float = _field(0.0, number(-1e6, 1e6, hint="0 switches it off."))
    penalty_last_n: int = _field(64, integer(0, _MAX_LAST_N, hint="0 switches the penalties off."))
    dry_multiplier: float = _field(0.0, number(0, 1e6, hint="0 switches it off."))
    dry_base: float = _field(1.75, number(1, 1e6, hint="dry_multiplier=0 switches DRY off."))
    dry_allowed_length: int = _field(2, integer(0))
    dry_penalty_last_n: int = _field(64, integer(0, _MAX_LAST_N, hint="0 switches DRY off."))
    dry_sequence_breakers: Sequence[str] = _field(("\n", ":", '"', "*"), strings(32, 40, nul=False))
    mirostat: int = _field(0, integer(0, 2, hint="0 switches it off."))
    mirostat_tau: float = _field(5.0, number(0, 100, hint="It is a surprise in bits; 5 is usual."))
    mirostat_eta: float = _field(0.1, number(0, 1, hint="It is a learning rate; 0.1 is usual."))
    min_keep: int = _field(0, integer(0))
    ignore_eos: bool = _field(False, flag)
    logit_bias: Mapping[int, float] | None = _field(None, token_biases)
    samplers: Sequence[str] | None = _field(None, words(SAMPLERS, none="llama.cpp's own chain"))
    adaptive_target: float = _field(-1.0, number(0, 1, special=-1, hint="-1 switches it off."))
    adaptive_decay: float = _field(0.9, number(0, 0.99))
    grammar: str | None = _field(None, text(2**20))
    json_schema: Any = _field(None, json_schema)  # noqa: RUF009
    seed: int | None = _field(None, integer(0, _LLAMA_RANDOM_SEED - 1, none=True, hint=_SEED_HINT))

    def _agree(self) -> None:
        if self.grammar is not None and self.json_schema is not None:
            raise conflict(
                "json_schema",
                self.json_schema,
                "there are a grammar and a json_schema",
                "Give one of them: a schema is turned into a grammar.",
            )
        if self.samplers is not None and self.mirostat:
            raise conflict(
                "samplers",
                self.samplers,
                f"samplers={self.samplers!r} does nothing beside mirostat={self.mirostat}, which replaces the chain",
                "Leave one of them out.",
            )
        if self.samplers is not None and self.temperature == 0 and "temperature" not in self.samplers:
            raise conflict(
                "samplers",
                self.samplers,
                'temperature=0 takes the likeliest token, and these samplers have no step "temperature"',
                'Add "temperature" to them.',
            )
        for name in ("mirostat", "dynatemp_range"):
            value = getattr(self, name)
            if self.temperature == 0 and value:
                raise conflict(
                    name,
                    value,
                    f"{name}={value!r} does nothing beside temperature=0, which takes the likeliest token",
                    f"Give a temperature above 0, or leave {name} at 0.",
                )

    @classmethod
    def greedy(cls, **overrides: Any) -> Self:
        """Always the likeliest token: the same text every time."""
        return cls(temperature=0.0).replace(**overrides)

    @classmethod
    def creative(cls, **overrides: Any) -> Self:
        """More surprise: a high temperature, and a floor (`min_p`) that keeps nonsense out."""
        return cls(temperature=1.2, top_k=100, top_p=0.98, min_p=0.05).replace(**overrides)

    @classmethod
    def precise(cls, **overrides: Any) -> Self:
        """Little surprise: for facts, code and extraction."""
        return cls(temperature=0.2, top_k=20, top_p=0.9).replace(**overrides)


def _sampler_params(name: str, value: object) -> SamplerParams | None:
    if value is None or isinstance(value, SamplerParams):
        return value
    raise refuse_type(name, value, "a SamplerParams or None", "For example SamplerParams(temperature=0.7).")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig(_Config):
    """One generation: how long, how chosen, where it stops, how it is buffered.

    Attributes:
        max_tokens: At most this many tokens; None (or -1, which becomes None) until the model ends the text
            or the context is full.
        temperature: See `SamplerParams`.
        top_k: See `SamplerParams`.
        top_p: See `SamplerParams`.
        stop_sequences: Generation stops before the first of these to appear, and none of it is shown. Any
            iterable of strings; at most 64, each of at most 4096 bytes of UTF-8.
        stream_delay_ms: The least time between two tokens, in milliseconds; for throttling and for watching.
        buffer_size: When this many tokens (1 to 65536) lie unread, generation pauses until one is read.
        timeout_ms: For the whole stream, in milliseconds from the call, waiting and pauses included; then
            `StreamTimeoutError`. 0 is no limit. None is 30000 for streams, and no limit for calls that return
            a whole text.
        min_tokens: No end token is chosen before so many tokens; stop strings still count.
        top_logprobs: With each token come so many of the likeliest at its place, up to 20, with their log-probabilities.
        parse_special: Whether names of special tokens in a prompt that is text stand for the tokens, as in a chat template
            that you render yourself; False takes all of it as text, for what others wrote. Chats do not need it: what
            their messages say is always text.
        lora: Adapters that the model wears for this stream (`Model.load_lora`): one, or several, each by itself or
            as a pair with its scale.
        params: The rest of the sampling. When it is given it is the whole of it, and `temperature`, `top_k`
            and `top_p` are set there and not here.

    Raises:
        InvalidParameter: A value is out of range; `InvalidParameterType` if it is of a wrong type.
    """

    max_tokens: int | None = _field(256, _max_tokens)
    temperature: float = _field(*_TEMPERATURE)
    top_k: int = _field(*_TOP_K)
    top_p: float = _field(*_TOP_P)
    stop_sequences: Sequence[str] = _field((), strings(64, 4096))
    stream_delay_ms: int = _field(0, integer(0, hint="It is in milliseconds; 0 is no delay."))
    buffer_size: int = _field(32, integer(1, 65536, hint="32 is the default."))
    timeout_ms: int | None = _field(None, integer(0, none=True, hint="It is in milliseconds; 0 is no limit."))
    min_tokens: int = _field(0, integer(0, hint="0 lets the model end when it likes."))
    top_logprobs: int = _field(0, integer(0, 20, hint="The token's own log-probability always comes with it."))
    parse_special: bool = _field(True, flag)
    lora: Any = _field((), loras)  # noqa: RUF009
    params: SamplerParams | None = _field(None, _sampler_params)  # noqa: RUF009

    def _agree(self) -> None:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise conflict(
                "min_tokens",
                self.min_tokens,
                f"min_tokens={self.min_tokens} is more than max_tokens={self.max_tokens}",
                "Give a smaller min_tokens, or a larger max_tokens.",
            )
        if self.params is None:
            return
        for name, default in SHARED.items():
            value = getattr(self, name)
            if value != default:
                raise conflict(
                    name,
                    value,
                    f"{name}={value!r} is given beside params, which is the whole of the sampling",
                    f"Set it there: params=SamplerParams({name}={value!r}, ...), or params=None.",
                )

    def sampler(self) -> SamplerParams:
        """The sampling in effect: `params`, or these three fields here and defaults for the rest."""
        if self.params is not None:
            return self.params
        return SamplerParams(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextParams(_Config):
    """The engine that serves streams: how long, how many at once, on how many threads.

    Attributes:
        n_ctx: Tokens (prompt and answer) that one sequence may use; llama.cpp rounds it up to a multiple of
            256. None is the length the model was trained on, but at most 4096.
        n_batch: At most this many tokens go to the model in one step of the engine, over all sequences.
        n_ubatch: At most this many of them are computed at once; no more than `n_batch`.
        n_seq_max: Sequences that generate at once, 1 to 256; further requests wait in the order they came.
        max_queue: At most so many requests wait for a slot, those that are still prepared included; one more is a
            `QueueFullError`. 0: none waits, so that there are no more requests than slots.
        n_threads: Threads that compute single tokens, 1 to 512. None is the number of physical cores that the
            process may use (its affinity), or of CPUs in the CPU quota of its cgroup if these are fewer.
        n_threads_batch: Threads that compute prompts; None is `n_threads`.
        n_cells: KV cells (one holds one token) that all sequences share; None is `n_ctx * n_seq_max`, so that
            none ever waits for room. Fewer save memory; requests then wait until there is room.
        reuse_prefix: Keep the cells of a finished sequence, and do not compute again what a new prompt shares
            with it.

    Raises:
        InvalidParameter: A value is out of range; `InvalidParameterType` if it is of a wrong type.
    """

    n_ctx: int | None = _field(None, integer(1, none=True, hint="It is a number of tokens."))
    n_batch: int = _field(2048, integer(1, _MAX_LAST_N, hint="2048 is the default."))
    n_ubatch: int = _field(512, integer(1, _MAX_LAST_N, hint="512 is the default."))
    n_seq_max: int = _field(4, integer(1, _LLAMA_MAX_SEQ, hint="Further requests wait in a queue."))
    max_queue: int = _field(1024, integer(0, hint="1024 is the default; 0 lets none wait."))
    n_threads: int | None = _field(None, integer(1, _GGML_MAX_N_THREADS, none=True))
    n_threads_batch: int | None = _field(None, integer(1, _GGML_MAX_N_THREADS, none=True))
    n_cells: int | None = _field(None, integer(1, none=True, hint="It is a number of tokens."))
    reuse_prefix: bool = _field(True, flag)

    def _agree(self) -> None:
        if self.n_ubatch > self.n_batch:
            raise conflict(
                "n_ubatch",
                self.n_ubatch,
                f"n_ubatch={self.n_ubatch} is more than n_batch={self.n_batch}",
                f"Give n_ubatch={self.n_batch} or less as well, or a larger n_batch.",
            )
        if self.n_ctx is None:
            return
        if self.n_cells is None and self.n_ctx * self.n_seq_max > INT32_MAX:
            raise conflict(
                "n_ctx",
                self.n_ctx,
                f"n_ctx={self.n_ctx} times n_seq_max={self.n_seq_max} is more than {INT32_MAX} cells",
                "Give a smaller n_ctx, fewer sequences, or n_cells for what they share.",
            )
        if self.n_cells is not None and self.n_cells < self.n_ctx:
            raise conflict(
                "n_cells",
                self.n_cells,
                f"n_cells={self.n_cells} holds less than the n_ctx={self.n_ctx} tokens of one sequence",
                f"Give n_cells={self.n_ctx} or more, or a smaller n_ctx.",
            )
