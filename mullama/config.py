"""The settings of sampling, a stream and a context: frozen records that are checked when they are made.

Strategy: each field has its check beside its default (`_field`), one loop runs them all, and `_agree` checks fields against
each other. Beyond the bounds llama.cpp aborts, throws or silently does something else (`common/sampling.cpp`,
`src/llama-sampler.cpp`, `src/llama-cparams.h`, `ggml.h`), so what passes here is safe to hand to the engine. The engine
checks what depends on the model, such as whether a token id is in its vocabulary.
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

# The steps of the chain, by llama.cpp's names (common_sampler_types_from_names).
SAMPLERS = tuple("penalties dry top_n_sigma top_k typ_p top_p min_p xtc temperature infill adaptive_p".split())

_LLAMA_RANDOM_SEED = 2**32 - 1  # LLAMA_DEFAULT_SEED: llama.cpp draws a seed itself
_SEED_HINT = f"None draws a new one each time, which is what {_LLAMA_RANDOM_SEED} means to llama.cpp."
_LLAMA_MAX_SEQ = 256
_GGML_MAX_N_THREADS = 512
_MAX_LAST_N = 2**20  # a sampler that looks back allocates this many cells at once
_MIN_TEMPERATURE = 1e-6  # below it, logit / temperature overflows a C float


def _max_tokens(name: str, value: object) -> int | None:
    hint = "None (or -1) generates until the model ends the text or the context is full."
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
        """Raises if fields that are valid by themselves conflict."""

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked like a new one."""
        return dataclasses.replace(self, **changes)


# What SamplerParams and StreamConfig share: default and check.
_TEMPERATURE = 0.8, number(_MIN_TEMPERATURE, 1e6, special=0, hint="0 always chooses the likeliest token.")
_TOP_K = 40, integer(0, hint="0 switches it off.")
_TOP_P = 0.95, number(0, 1, above=True, hint="1 switches it off.")
SHARED = {"temperature": _TEMPERATURE[0], "top_k": _TOP_K[0], "top_p": _TOP_P[0]}


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerParams(_Config):
    """How the next token is chosen. The meanings and the order of the steps are llama.cpp's.

    The order is: logit bias, penalties, DRY, top-n-sigma, top-k, typical-p, top-p, min-p, XTC, temperature, and then a random
    choice; `samplers` sets another order. Mirostat replaces all of these but the logit bias and the temperature. A grammar
    or a JSON schema is a constraint on top: tokens that it does not allow are never chosen.

    Attributes:
        temperature: Above 1 flattens the distribution, below 1 sharpens it; 0 is greedy: always the likeliest token.
        top_k: Keep the k likeliest tokens; 0 is off.
        top_p: Keep the likeliest tokens that together have this probability; 1 is off.
        min_p: Keep tokens with at least this fraction of the likeliest token's probability; 0 is off.
        typical_p: Keep locally typical tokens up to this probability; 1 is off.
        top_n_sigma: Keep tokens whose logits are within n standard deviations of the maximum; -1 is off.
        xtc_probability: The probability of removing all likely tokens except the least likely of them; 0 is off.
        xtc_threshold: The probability from which a token counts as likely for XTC; above 0.5 is off.
        dynatemp_range: The temperature varies by up to this much with the entropy; 0 is off.
        dynatemp_exponent: The exponent of that dependence.
        repeat_penalty: Divides the logits of recent tokens; 1 is off.
        frequency_penalty: Subtracted from the logits of recent tokens, once for each occurrence; 0 is off.
        presence_penalty: Subtracted from the logits of recent tokens, once; 0 is off.
        penalty_last_n: How many of the last tokens are recent; 0 switches the three penalties off.
        dry_multiplier: Strength of the penalty on repeated sequences (DRY); 0 is off.
        dry_base: The factor by which it grows with each further repeated token, at least 1.
        dry_allowed_length: Repetitions up to this length are not penalised.
        dry_penalty_last_n: How many tokens back DRY looks; 0 is off.
        dry_sequence_breakers: Strings that interrupt a repetition; at most 32, of at most 40 bytes each.
        mirostat: The version of Mirostat, 1 or 2; 0 is off.
        mirostat_tau: Mirostat's target surprise, in bits.
        mirostat_eta: Mirostat's learning rate.
        min_keep: Each step keeps at least this many tokens; 0 is the step's own default.
        ignore_eos: Never choose an end token; generation then ends at `max_tokens`, or when the context is full.
        logit_bias: Biases by token id, added to the logits; ``-inf`` bans a token.
        samplers: The steps of the chain in order, each at most once; None is the order above.
        adaptive_target: The target probability of adaptive-p, for a chain that ends in ``"adaptive_p"``; -1 is off.
        adaptive_decay: The decay of adaptive-p's moving average, from 0 to 0.99; higher reacts more slowly.
        grammar: A grammar in GBNF (llama.cpp's format) that the text must follow, up to 1 MiB; its root rule is ``root``.
        json_schema: A JSON schema that the text must follow: a mapping, JSON text, or a pydantic model. Stored as text.
            Cannot be combined with `grammar`. One of more than 4096 characters is checked when it is used.
        seed: The random seed, from 0 to 4,294,967,294; None draws a new one for each generation.

    Raises:
        InvalidParameter: A value is out of range; `InvalidParameterType` if it is of the wrong type.
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
                "grammar and json_schema cannot be combined",
                "Give one of them; a schema is converted to a grammar.",
            )
        if self.samplers is not None and self.mirostat:
            raise conflict(
                "samplers",
                self.samplers,
                f"samplers={self.samplers!r} has no effect with mirostat={self.mirostat}, which replaces the chain",
                "Leave one of them out.",
            )
        if self.samplers is not None and self.temperature == 0 and "temperature" not in self.samplers:
            raise conflict(
                "samplers",
                self.samplers,
                'temperature=0 chooses the likeliest token, but these samplers lack "temperature"',
                'Add "temperature" to them.',
            )
        for name in ("mirostat", "dynatemp_range"):
            value = getattr(self, name)
            if self.temperature == 0 and value:
                raise conflict(
                    name,
                    value,
                    f"{name}={value!r} has no effect with temperature=0, which chooses the likeliest token",
                    f"Give a temperature above 0, or leave {name} at 0.",
                )

    @classmethod
    def greedy(cls, **overrides: Any) -> Self:
        """Temperature 0: always the likeliest token, the same text every time. Keyword arguments override fields."""
        return cls(temperature=0.0).replace(**overrides)

    @classmethod
    def creative(cls, **overrides: Any) -> Self:
        """More variety: temperature 1.2, top_k 100, top_p 0.98, min_p 0.05. Keyword arguments override fields."""
        return cls(temperature=1.2, top_k=100, top_p=0.98, min_p=0.05).replace(**overrides)

    @classmethod
    def precise(cls, **overrides: Any) -> Self:
        """Less variety, for facts, code and extraction: temperature 0.2, top_k 20, top_p 0.9. Arguments override fields."""
        return cls(temperature=0.2, top_k=20, top_p=0.9).replace(**overrides)


def _sampler_params(name: str, value: object) -> SamplerParams | None:
    if value is None or isinstance(value, SamplerParams):
        return value
    raise refuse_type(name, value, "a SamplerParams or None", "For example SamplerParams(temperature=0.7).")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig(_Config):
    """The settings of one generation.

    Attributes:
        max_tokens: The maximum number of tokens; None or -1 generates until the model ends the text or the context is
            full.
        temperature: See `SamplerParams`.
        top_k: See `SamplerParams`.
        top_p: See `SamplerParams`.
        stop_sequences: Generation ends before the first of these strings, which is not part of the text. At most 64, of
            at most 4,096 bytes of UTF-8 each. Of two matches, the one that ends first counts; of two that end together, the
            longer one.
        stream_delay_ms: The minimum time between two tokens, in milliseconds; other streams are not delayed.
        buffer_size: Generation pauses when this many tokens, 1 to 65,536, are unread.
        timeout_ms: The time limit of the whole stream, in milliseconds from the call, queueing and pauses included; then
            `StreamTimeoutError`. 0 is no limit. None is 30,000 for streams, and no limit for calls that return a whole text.
        min_tokens: No end token is chosen before this many tokens; stop sequences still apply. At most `max_tokens`.
        top_logprobs: How many of the likeliest tokens to report for each token, up to 20, with their log-probabilities.
        parse_special: Whether the names of special tokens in a prompt that is text are parsed as these tokens; False takes
            the whole prompt as plain text, as for text from users. The contents of chat messages are always plain text.
        lora: LoRA adapters (`Model.load_lora`) to apply to this stream: one or several, each alone or in a pair with its
            scale, from -1,000 to 1,000.
        params: All of the sampling settings; `temperature`, `top_k` and `top_p` must then be set in it, not here.

    Raises:
        InvalidParameter: A value is out of range; `InvalidParameterType` if it is of the wrong type.
    """

    max_tokens: int | None = _field(256, _max_tokens)
    temperature: float = _field(*_TEMPERATURE)
    top_k: int = _field(*_TOP_K)
    top_p: float = _field(*_TOP_P)
    stop_sequences: Sequence[str] = _field((), strings(64, 4096))
    stream_delay_ms: int = _field(0, integer(0, hint="It is in milliseconds; 0 is no delay."))
    buffer_size: int = _field(32, integer(1, 65536, hint="32 is the default."))
    timeout_ms: int | None = _field(None, integer(0, none=True, hint="It is in milliseconds; 0 is no limit."))
    min_tokens: int = _field(0, integer(0, hint="0 lets the model end at any time."))
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
                    f"{name}={value!r} conflicts with params, which has all of the sampling settings",
                    f"Set it there, params=SamplerParams({name}={value!r}, ...), or leave params out.",
                )

    def sampler(self) -> SamplerParams:
        """The sampling in effect: `params`, or else `temperature`, `top_k` and `top_p`, and defaults for the rest."""
        if self.params is not None:
            return self.params
        return SamplerParams(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextParams(_Config):
    """The settings of a context, the engine that serves streams.

    Attributes:
        n_ctx: The maximum length of one sequence, prompt and answer, in tokens; llama.cpp rounds it up to a multiple of
            256. None is the length the model was trained on, but at most 4,096.
        n_batch: The maximum number of tokens in one step of the engine, over all sequences.
        n_ubatch: The maximum number of tokens that are computed at once; at most `n_batch`.
        n_seq_max: How many sequences generate in parallel, 1 to 256; further requests wait in order of arrival.
        max_queue: The maximum number of requests that wait for a slot, including those still being prepared; one more
            raises `QueueFullError`. With 0, none waits.
        n_threads: Threads for single tokens, 1 to 512. None is the number of physical cores that the process may use
            (its affinity), or of CPUs in its cgroup's quota if that is smaller.
        n_threads_batch: Threads for prompts; None is `n_threads`.
        n_cells: KV cells, one for each token, that all sequences share; None is ``n_ctx * n_seq_max``. Fewer save memory;
            requests then wait until there are enough.
        reuse_prefix: Keep the cells of finished sequences, so that a prefix that a new prompt shares with one of them is
            not computed again.

    Raises:
        InvalidParameter: A value is out of range; `InvalidParameterType` if it is of the wrong type.
    """

    n_ctx: int | None = _field(None, integer(1, none=True, hint="It is a number of tokens."))
    n_batch: int = _field(2048, integer(1, _MAX_LAST_N, hint="2048 is the default."))
    n_ubatch: int = _field(512, integer(1, _MAX_LAST_N, hint="512 is the default."))
    n_seq_max: int = _field(4, integer(1, _LLAMA_MAX_SEQ, hint="Further requests wait in a queue."))
    max_queue: int = _field(1024, integer(0, hint="1024 is the default; with 0, no request waits."))
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
                "Give a smaller n_ctx or n_seq_max, or set n_cells.",
            )
        if self.n_cells is not None and self.n_cells < self.n_ctx:
            raise conflict(
                "n_cells",
                self.n_cells,
                f"n_cells={self.n_cells} is less than n_ctx={self.n_ctx}, the length of one sequence",
                f"Give n_cells={self.n_ctx} or more, or a smaller n_ctx.",
            )
