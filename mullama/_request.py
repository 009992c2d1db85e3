"""A request for the engine, built from what a call asks for: prompt tokenised, sampling, grammar and adapters resolved."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from . import _checks, _core, _log
from ._engine import Engine
from ._model import Model, checked_tokens
from ._schema import fixed_grammar, plain_schema
from .config import SamplerParams, StreamConfig
from .errors import ChatError, ContextError, MullamaError, QueueFullError, SamplingError

__all__ = [
    "Prepared",
    "Prompt",
    "Several",
    "TextRequest",
    "finish",
    "grammar_of",
    "n_top",
    "refuse_far_too_long",
    "timed",
]

T = TypeVar("T")
Prompt = str | Sequence[int]

STREAM_TIMEOUT_MS = 30_000

# What C++ exceptions of any kind become.
_REFUSALS = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError)
_MAX_GRAMMARS = 32  # of schemas, that are kept
_grammars: OrderedDict[str, str] = OrderedDict()


# What is beyond these is prepared in a worker where an event loop is not to be held up; see decisions.md for how they were
# measured. It is about a millisecond's work.
LONG_TEXT = 4096  # characters
LONG_IDS = 32_768  # token ids
LONG_BIAS = 1000  # tokens with a bias


class SharedPrompt:
    """A prompt of several requests: the first of them that comes to it tokenises it for all."""

    def __init__(self, prompt: Prompt, parse_special: bool) -> None:
        self.prompt = prompt
        self._parse_special = parse_special
        self._lock = threading.Lock()
        self._tokens: list[int] | None = None

    def tokens(self, engine: Engine, pending: _core.Pending) -> list[int]:
        with self._lock:
            if self._tokens is None:
                self._tokens = _prompt_tokens(engine, self.prompt, self._parse_special, pending)
            return self._tokens


@dataclass(frozen=True, slots=True)
class TextRequest:
    """What a call asks for: a prompt, and how to go on from it.

    With `n_logits` there will be no tokens, only the logits after so many of the prompt's last ones.
    """

    prompt: Prompt | SharedPrompt
    config: StreamConfig
    n_logits: int = 0

    def is_long(self, engine: Engine) -> bool:
        prompt = self.prompt.prompt if isinstance(self.prompt, SharedPrompt) else self.prompt
        limit = LONG_TEXT if isinstance(prompt, str) else LONG_IDS
        return (isinstance(prompt, (str, list)) and len(prompt) > limit) or has_long_sampling(self.config)

    def prepare(self, engine: Engine, pending: _core.Pending) -> Prepared:
        if isinstance(self.prompt, SharedPrompt):
            tokens = self.prompt.tokens(engine, pending)
        else:
            tokens = _prompt_tokens(engine, self.prompt, self.config.parse_special, pending)
        grammar = grammar_of(self.config.sampler(), pending)
        return finish(engine, tokens, self.config, pending, grammar=grammar, n_logits=self.n_logits)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that is ready for the engine, and what its reader has to know of it."""

    native: _core.Request
    n_prompt: int
    stops: tuple[str, ...]
    chat: _core.Chat | None


def has_long_sampling(config: StreamConfig) -> bool:
    """A grammar may take seconds to compile, however short it is."""
    params = config.params
    if params is None:
        return False
    return params.grammar is not None or params.json_schema is not None or len(params.logit_bias or ()) > LONG_BIAS


def timed(config: StreamConfig, *, whole: bool) -> StreamConfig:
    """The configuration with a time limit: a call that returns a `whole` text has none unless it is asked for."""
    if config.timeout_ms is not None:
        return config
    return config.replace(timeout_ms=0 if whole else STREAM_TIMEOUT_MS)


def finish(
    engine: Engine,
    tokens: list[int],
    config: StreamConfig,
    pending: _core.Pending,
    *,
    grammar: str = "",
    chat: _core.Chat | None = None,
    n_logits: int = 0,
) -> Prepared:
    """The request for a prompt that is tokenised. A chat brings its grammar itself.

    Raises:
        InvalidParameter, ContextError, SamplingError, ChatError: As `Context.generate_stream` and `Context.chat_stream`.
    """
    if len(tokens) >= engine.n_ctx:
        raise _too_long(str(len(tokens)), engine)
    model, params = engine.model, config.sampler()
    stops = tuple(dict.fromkeys((*config.stop_sequences, *(chat.stops if chat is not None else ()))))
    try:
        native = _core.Request(
            model._core,
            tokens,
            max_tokens=-1 if config.max_tokens is None else config.max_tokens,
            delay_us=1000 * config.stream_delay_ms,
            buffer_size=config.buffer_size,
            n_top=n_top(engine, config),
            min_tokens=config.min_tokens,
            stops=[stop.encode() for stop in stops],
            sampling=_sampling(model, params, grammar),
            chat=chat,
            loras=_loras(model, config),
            n_logits=n_logits,
            pending=pending,
        )
    except _core.GrammarError as e:
        raise _refuse_grammar(params, e) from None
    except RuntimeError as e:
        raise SamplingError(str(e)) from None
    finally:
        _log.fetch()
    return Prepared(native, len(tokens), stops, chat)


def n_top(engine: Engine, config: StreamConfig) -> int:
    """How many candidates come with each token."""
    return min(config.top_logprobs, engine.model.n_vocab)


class Several:
    """Requests for one prompt, begun in turn as others end: the engine's queue need not hold all of them.

    Each has a seed of its own, and a buffer for all of its tokens where these are bounded.
    """

    def __init__(self, request: TextRequest, n: int, engine: Engine) -> None:
        assert not isinstance(request.prompt, SharedPrompt)
        count = _checks.integer(1, 65536)("n", n)
        config = request.config
        params = config.sampler()
        first = _random_seed() if params.seed is None else params.seed
        size = min(65536, config.max_tokens or engine.n_ctx)
        plain = {"temperature": 0.8, "top_k": 40, "top_p": 0.95} if config.params is None else {}
        self._params, self._plain, self._first, self._left = params, plain, first, range(count)
        self._prompt = SharedPrompt(request.prompt, config.parse_special)
        self._config = config.replace(buffer_size=max(config.buffer_size, size))
        # All slots and some more, so that none stands idle between two; half of the queue at least is left to others.
        self._most = engine.params.n_seq_max + min(64, engine.params.max_queue // 2)

    def begin(self, begun: deque[T], start: Callable[[TextRequest], T]) -> bool:
        """Append those for which there is a place beside the ones that were begun; whether there are any."""
        while self._left and len(begun) < self._most:
            params = self._params.replace(seed=(self._first + self._left[0]) % (2**32 - 1))
            request = TextRequest(self._prompt, self._config.replace(params=params, **self._plain))
            try:
                begun.append(start(request))
            except QueueFullError:
                if not begun:
                    raise
                break
            self._left = self._left[1:]
        return bool(begun)


def _prompt_tokens(engine: Engine, prompt: Prompt, parse_special: bool, pending: _core.Pending) -> list[int]:
    model = engine.model
    if isinstance(prompt, str):
        if not prompt:
            raise _checks.refuse("prompt", prompt, "a text or token ids, at least one character")
        refuse_far_too_long(engine, len(prompt))
        tokens = model._tokens(prompt, True, parse_special, pending)
    elif isinstance(prompt, (bytes, bytearray)) or not hasattr(type(prompt), "__iter__"):
        raise _checks.refuse_type("prompt", prompt, "a str or a sequence of token ids")
    else:
        tokens = checked_tokens("prompt", prompt, model.n_vocab)
    if not tokens:
        raise _checks.refuse("prompt", prompt, "a text or token ids, at least one token")
    return tokens


def refuse_far_too_long(engine: Engine, n_characters: int) -> None:
    """Before a text is tokenised: to do that with megabytes only to refuse them would take long."""
    least = engine.model._core.min_token_count(n_characters)
    if least >= engine.n_ctx:
        raise _too_long(f"at least {least}", engine)


def _too_long(n_tokens: str, engine: Engine) -> ContextError:
    return ContextError(
        f"the prompt has {n_tokens} tokens, and a sequence of this context holds {engine.n_ctx}",
        hint="Shorten it, or make the context with a larger n_ctx; one token of room is needed for the answer.",
        code="PROMPT_TOO_LONG",
    )


def _random_seed() -> int:
    return int.from_bytes(os.urandom(8), "little") % (2**32 - 1)  # without llama.cpp's own word for a random one


def _sampling(model: Model, params: SamplerParams, grammar: str) -> dict[str, object]:
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
    values["grammar"] = grammar
    return values


def grammar_of(params: SamplerParams, pending: _core.Pending | None = None) -> str:
    """The GBNF grammar that the parameters ask for; empty where there is none."""
    if params.json_schema is None:
        return params.grammar or ""
    schema = params.json_schema
    grammar = _grammars.get(schema)
    if grammar is None:
        try:
            grammar = fixed_grammar(_core.grammar_of_schema(plain_schema(schema).encode(), pending))
        except _REFUSALS as e:
            why = str(e).removeprefix("JSON schema conversion failed:").strip()
            raise _checks.refuse("json_schema", schema, f"a JSON schema that llama.cpp can follow ({why})") from None
        if len(_grammars) >= _MAX_GRAMMARS:
            _grammars.popitem(last=False)
        _grammars[schema] = grammar
    return grammar


def _refuse_grammar(params: SamplerParams, error: Exception) -> MullamaError:
    if params.json_schema is not None:
        return _checks.refuse("json_schema", params.json_schema, f"a JSON schema that llama.cpp can follow ({error})")
    if params.grammar is not None:
        return _checks.refuse("grammar", params.grammar, f"a grammar that llama.cpp can follow ({error})")
    return ChatError(f"the grammar of the tools cannot be followed: {error}", hint="Give them simpler parameters.")


def _loras(model: Model, config: StreamConfig) -> list[tuple[_core.Lora, float]]:
    for adapter, _ in config.lora:
        if adapter.model is not model:
            raise _checks.refuse(
                "lora", adapter, "adapters that were loaded for this model", "Use Model.load_lora() of it."
            )
    return [(adapter._core, scale) for adapter, scale in config.lora]
