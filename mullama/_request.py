"""A request for the engine, built from what a user asks: prompt tokenised, sampling, grammar and adapters resolved."""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from . import _checks, _core, _interpreter_exit, _log
from ._engine import Engine
from ._model import Model, checked_tokens
from ._schema import fixed_grammar, plain_schema
from .config import SamplerParams, StreamConfig
from .errors import ChatError, ClosedError, ContextError, MullamaError, QueueFullError, SamplingError

__all__ = ["Prompt", "Request", "Several", "TextRequest", "checked_grammar", "prepare", "timed"]

T = TypeVar("T")
Prompt = str | Sequence[int]

STREAM_TIMEOUT_MS = 30_000

# What C++ exceptions of any kind become.
_REFUSALS = (RuntimeError, ValueError, LookupError, ArithmeticError, MemoryError)


@dataclass(frozen=True, slots=True)
class TextRequest:
    """What a call asks for: a prompt, and how to go on from it."""

    prompt: Prompt
    config: StreamConfig


def timed(config: StreamConfig, *, whole: bool) -> StreamConfig:
    """The configuration with a time limit: a call that returns a `whole` text has none unless it is asked for."""
    if config.timeout_ms is not None:
        return config
    return config.replace(timeout_ms=0 if whole else STREAM_TIMEOUT_MS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the engine is handed, every value checked."""

    engine: Engine
    config: StreamConfig
    tokens: list[int]
    stops: tuple[str, ...]
    n_top: int
    sampling: dict[str, object]
    loras: list[tuple[_core.Lora, float]]
    chat: _core.Chat | None
    n_logits: int
    called_us: int

    def submit(self) -> _core.Stream:
        config = self.config
        try:
            stream = self.engine.native().open(called_us=self.called_us, timeout_us=1000 * (config.timeout_ms or 0))
            pending = stream.pending()
            pending.submit(self._finished(pending))
            return stream
        except ClosedError:  # in another thread, just now
            _interpreter_exit.park()
            raise

    def _finished(self, pending: _core.Pending) -> _core.Request:
        config = self.config
        try:
            return _core.Request(
                self.engine.model._core,
                self.tokens,
                max_tokens=-1 if config.max_tokens is None else config.max_tokens,
                delay_us=1000 * config.stream_delay_ms,
                buffer_size=config.buffer_size,
                n_top=self.n_top,
                min_tokens=config.min_tokens,
                stops=[stop.encode() for stop in self.stops],
                sampling=self.sampling,
                chat=self.chat,
                loras=self.loras,
                n_logits=self.n_logits,
                pending=pending,
            )
        except _core.GrammarError as e:
            raise _refuse_grammar(config.sampler(), e) from None
        except RuntimeError as e:
            raise SamplingError(str(e)) from None
        finally:
            _log.fetch()


def prepare(
    engine: Engine, prompt: Prompt, config: StreamConfig, *, chat: _core.Chat | None = None, n_logits: int = 0
) -> Request:
    """Check, tokenise and resolve what is asked.

    With `n_logits` there will be no tokens, only the logits after so many of the prompt's last ones.

    Raises:
        InvalidParameter, TokenizationError, ContextError, ClosedError: As `Context.generate_stream`.
    """
    called_us = _core.clock_us()
    model = engine.model
    if not engine.native().generates:
        raise ContextError(
            f"the model cannot generate: {model.architecture} is no architecture that writes from left to right",
            hint="It can embed() texts.",
        )
    return Request(
        engine=engine,
        config=config,
        tokens=_prompt_tokens(engine, prompt, config.parse_special),
        stops=tuple(dict.fromkeys((*config.stop_sequences, *(chat.stops if chat is not None else ())))),
        n_top=min(config.top_logprobs, model.n_vocab),
        sampling=_sampling(model, config, chat),
        loras=_loras(model, config),
        chat=chat,
        n_logits=n_logits,
        called_us=called_us,
    )


class Several:
    """Requests for one prompt, begun in turn as others end: the engine's queue need not hold all of them.

    Each has a seed of its own, and a buffer for all of its tokens where these are bounded.
    """

    def __init__(self, request: TextRequest, n: int, engine: Engine) -> None:
        count = _checks.integer(1, 65536)("n", n)
        config = request.config
        params = config.sampler()
        first = _random_seed() if params.seed is None else params.seed
        size = min(65536, config.max_tokens or engine.n_ctx)
        plain = {"temperature": 0.8, "top_k": 40, "top_p": 0.95} if config.params is None else {}
        self._engine = engine
        self._tokens = _prompt_tokens(engine, request.prompt, config.parse_special)
        self._config = config.replace(buffer_size=max(config.buffer_size, size))
        self._changes = deque({"params": params.replace(seed=(first + k) % (2**32 - 1)), **plain} for k in range(count))
        # All slots and some more, so that none stands idle between two; half of the queue at least is left to others.
        self._most = engine.params.n_seq_max + min(64, engine.params.max_queue // 2)

    def begin(self, begun: deque[T], start: Callable[[Request], T]) -> bool:
        """Append those for which there is a place beside the ones that were begun; whether there are any."""
        while self._changes and len(begun) < self._most:
            request = prepare(self._engine, self._tokens, self._config.replace(**self._changes[0]))
            try:
                begun.append(start(request))
            except QueueFullError:
                if not begun:
                    raise
                break
            self._changes.popleft()
        return bool(begun)


def _prompt_tokens(engine: Engine, prompt: str | Sequence[int], parse_special: bool) -> list[int]:
    model = engine.model
    if isinstance(prompt, str):
        if not prompt:
            raise _checks.refuse("prompt", prompt, "a text or token ids, at least one character")
        least = model._core.min_token_count(len(prompt))
        if least >= engine.n_ctx:  # to encode megabytes only to refuse them would take long
            raise _too_long(f"at least {least}", engine)
        tokens = model.tokenize(prompt, parse_special=parse_special)
    elif isinstance(prompt, (bytes, bytearray)) or not hasattr(type(prompt), "__iter__"):
        raise _checks.refuse_type("prompt", prompt, "a str or a sequence of token ids")
    else:
        tokens = checked_tokens("prompt", prompt, model.n_vocab)
    if not tokens:
        raise _checks.refuse("prompt", prompt, "a text or token ids, at least one token")
    if len(tokens) >= engine.n_ctx:
        raise _too_long(str(len(tokens)), engine)
    return tokens


def _too_long(n_tokens: str, engine: Engine) -> ContextError:
    return ContextError(
        f"the prompt has {n_tokens} tokens, and a sequence of this context holds {engine.n_ctx}",
        hint="Shorten it, or make the context with a larger n_ctx; one token of room is needed for the answer.",
        code="PROMPT_TOO_LONG",
    )


def _random_seed() -> int:
    return int.from_bytes(os.urandom(8), "little") % (2**32 - 1)  # without llama.cpp's own word for a random one


def _sampling(model: Model, config: StreamConfig, chat: _core.Chat | None) -> dict[str, object]:
    params = config.sampler()
    values = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    if params.seed is None:
        values["seed"] = _random_seed()
    biases = params.logit_bias or {}
    for token in biases:
        if token >= model.n_vocab:
            expected = f"a mapping of token ids below {model.n_vocab}, the size of the model's vocabulary"
            raise _checks.refuse("logit_bias", token, expected)
    del values["json_schema"]  # it is a grammar here
    values["logit_bias"] = list(biases.items())
    values["samplers"] = params.samplers or ()
    values["grammar"] = "" if chat is not None else checked_grammar(params)  # a chat's template brings its own
    return values


def checked_grammar(params: SamplerParams) -> str:
    """The GBNF grammar that the parameters ask for; empty where there is none."""
    if params.json_schema is not None:
        return _grammar_of_schema(params.json_schema)
    return params.grammar or ""


def _refuse_grammar(params: SamplerParams, error: Exception) -> MullamaError:
    if params.json_schema is not None:
        return _checks.refuse("json_schema", params.json_schema, f"a JSON schema that llama.cpp can follow ({error})")
    if params.grammar is not None:
        return _checks.refuse("grammar", params.grammar, f"a grammar that llama.cpp can follow ({error})")
    return ChatError(f"the grammar of the tools cannot be followed: {error}", hint="Give them simpler parameters.")


@lru_cache(maxsize=32)
def _grammar_of_schema(schema: str) -> str:
    try:
        return fixed_grammar(_core.grammar_of_schema(plain_schema(schema).encode()))
    except _REFUSALS as e:
        why = str(e).removeprefix("JSON schema conversion failed:").strip()
        raise _checks.refuse("json_schema", schema, f"a JSON schema that llama.cpp can follow ({why})") from None


def _loras(model: Model, config: StreamConfig) -> list[tuple[_core.Lora, float]]:
    for adapter, _ in config.lora:
        if adapter.model is not model:
            raise _checks.refuse(
                "lora", adapter, "adapters that were loaded for this model", "Use Model.load_lora() of it."
            )
    return [(adapter._core, scale) for adapter, scale in config.lora]
