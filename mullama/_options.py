"""The keyword arguments of calls, for type checkers, and the configuration that the arguments of a call result in.

Type checkers need the names of keyword arguments in a `TypedDict`, so those of the records in `config` are repeated here; a
test compares the two.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from ._checks import conflict, refuse_name, refuse_type
from .config import SHARED, SamplerParams, StreamConfig

__all__ = ["UNSET", "ContextOptions", "MaxTokens", "StreamOptions", "Unset", "stream_config"]


class Unset(enum.Enum):
    """The type of `UNSET`: an argument that was left out, where None has a meaning."""

    UNSET = "UNSET"

    def __repr__(self) -> str:
        return "UNSET"


UNSET = Unset.UNSET
MaxTokens = int | StreamConfig | Unset | None


class SamplerOptions(TypedDict, total=False):
    """The fields of `SamplerParams`."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    top_n_sigma: float
    xtc_probability: float
    xtc_threshold: float
    dynatemp_range: float
    dynatemp_exponent: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    penalty_last_n: int
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: int
    dry_sequence_breakers: Sequence[str]
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    min_keep: int
    ignore_eos: bool
    logit_bias: Mapping[int, float] | None
    samplers: Sequence[str] | None
    adaptive_target: float
    adaptive_decay: float
    grammar: str | None
    json_schema: Any
    seed: int | None


class StreamOptions(SamplerOptions, total=False):
    """The keyword arguments of every call that generates: the fields of `StreamConfig` and `SamplerParams`, and ``stop``.

    `max_tokens` and `params` are positional arguments as well, and are not part of it. The fields override those of the
    call's ``config`` and ``params``. An unknown keyword is an `InvalidParameterType` that suggests the nearest names. For
    functions with ``**options: Unpack[StreamOptions]``.

    Attributes:
        stop: One or several stop sequences; short for `stop_sequences`.
    """

    stop: str | Sequence[str]
    stop_sequences: Sequence[str]
    stream_delay_ms: int
    buffer_size: int
    timeout_ms: int | None
    min_tokens: int
    top_logprobs: int
    parse_special: bool
    lora: Any


class ContextOptions(TypedDict, total=False):
    """The keyword arguments of every call that makes a context: the fields of `ContextParams`."""

    n_ctx: int | None
    n_batch: int
    n_ubatch: int
    n_seq_max: int
    n_threads: int | None
    n_threads_batch: int | None
    n_cells: int | None
    max_queue: int
    reuse_prefix: bool


def stream_config(
    max_tokens: MaxTokens = UNSET,
    params: SamplerParams | None = None,
    config: StreamConfig | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    known: Iterable[str] = (),
) -> StreamConfig:
    """The configuration that the arguments of a call result in.

    It is `config` (or the one passed as `max_tokens`), with `params` as its sampling, and then with `options` applied.
    `known` are further names to suggest for a misspelt one.

    Raises:
        InvalidParameter: Two configurations, or a value that is out of range or of the wrong type.
    """
    base: object = config
    if isinstance(max_tokens, StreamConfig):
        if config is not None:
            raise conflict("config", config, "two stream configurations were given", "Pass one of them.")
        base, max_tokens = max_tokens, UNSET
    elif isinstance(max_tokens, SamplerParams):
        raise refuse_type("max_tokens", max_tokens, "an integer or a StreamConfig", "Pass it as params=.")
    if base is not None and not isinstance(base, StreamConfig):
        raise refuse_type("config", base, "a StreamConfig", "For example StreamConfig(max_tokens=100).")
    changes: dict[str, Any] = {} if max_tokens is UNSET else {"max_tokens": max_tokens}
    if params is not None:
        changes |= {**SHARED, "params": params}
    if options:
        _check_names(options, known)
        changes |= _renamed(options)
    result = base or StreamConfig()
    sampling = {name: changes.pop(name) for name in options or {} if name in SamplerOptions.__annotations__}
    if changes:
        result = result.replace(**changes)
    if result.params is None and sampling.keys() <= SHARED.keys():
        return result.replace(**sampling) if sampling else result
    return result.replace(**SHARED, params=result.sampler().replace(**sampling)) if sampling else result


def _check_names(options: Mapping[str, Any], more: Iterable[str]) -> None:
    known = [*StreamOptions.__annotations__, *more]
    if options.keys() - set(known):
        hint = "It accepts the fields of StreamConfig and SamplerParams."
        raise refuse_name("a call that generates", options, ["max_tokens", "params", "config", *known], hint)


def _renamed(options: Mapping[str, Any]) -> dict[str, Any]:
    changes = dict(options)
    if "stop" in changes:
        stop = changes.pop("stop")
        if "stop_sequences" in changes:
            raise conflict("stop", stop, "stop and stop_sequences mean the same", "Pass one of them.")
        changes["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    return changes
