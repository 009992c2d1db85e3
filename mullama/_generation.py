"""One generation as Python reads it, without ever waiting: the core that the blocking and the awaiting shell share.

`Generation` starts a request and takes its tokens; `GenerationFace` is what every kind of stream offers its user on top,
the same under threads, asyncio and trio. Nothing here blocks, awaits or imports a concurrency library.
"""

from __future__ import annotations

import dataclasses
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Generic, NoReturn, Protocol, TypeVar

from . import _checks, _core, _exit, _log
from ._model import Model, checked_tokens
from ._records import Completion, FinishDetail, FinishReason, StreamStatistics, Timings, TokenData, TokenLogprob, Usage
from ._schema import fixed_grammar, plain_schema
from .config import SamplerParams, StreamConfig
from .errors import (
    ClosedError,
    ContextError,
    GenerationError,
    MullamaError,
    SamplingError,
    StreamingError,
    StreamTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._sync import Context

__all__ = ["EndOfGeneration", "Generation", "GenerationFace", "Source"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_FINISH: dict[int, FinishReason] = {1: "stop", 2: "length", 3: "cancelled", 4: "timeout", 5: "error"}
_FAULT: dict[int, type[MullamaError]] = {1: GenerationError, 2: SamplingError, 3: ClosedError}


# What C++ exceptions of any kind become.
_REFUSALS = (RuntimeError, ValueError, LookupError, ArithmeticError, MemoryError)


class EndOfGeneration(Exception):
    """There is no token any more; each shell raises its own kind of end instead."""


class Generation:
    """A request in the engine, and its tokens as they come. Holds its context alive; dropped, it cancels the request.

    With `n_logits` it has no tokens, only the logits after so many of the prompt's last ones (`_core.Stream.take_logits`).
    """

    def __init__(
        self,
        context: Context,
        prompt: str | Sequence[int],
        config: StreamConfig,
        *,
        chat: _core.Chat | None = None,
        n_logits: int = 0,
    ) -> None:
        called_us = _core.clock_us()
        engine = context._engine()
        if not engine.generates:
            raise ContextError(
                f"the model cannot generate: {context.model.architecture} is no architecture that writes from left to right",
                hint="It can embed() texts.",
            )
        self.config = config
        self._stops = tuple(dict.fromkeys((*config.stop_sequences, *(chat.stops if chat is not None else ()))))
        self._context = context
        tokens = _prompt_tokens(context, prompt)
        self._n_prompt = len(tokens)
        self._n_top = min(config.top_logprobs, context.model.n_vocab)
        try:
            self.core = engine.submit(
                tokens,
                max_tokens=-1 if config.max_tokens is None else config.max_tokens,
                called_us=called_us,
                timeout_us=1000 * config.timeout_ms,
                delay_us=1000 * config.stream_delay_ms,
                buffer_size=config.buffer_size,
                n_top=self._n_top,
                min_tokens=config.min_tokens,
                stops=[stop.encode() for stop in self._stops],
                sampling=_sampling(context.model, config, chat),
                chat=chat,
                loras=_loras(context.model, config),
                n_logits=n_logits,
            )
        except ClosedError:  # in another thread, just now
            _exit.park()
            raise
        self._pop = self.core.pop
        self._completion: Completion | None = None

    @property
    def generation(self) -> Generation:
        return self

    def take(self) -> TokenData | None:
        """The next token; None where none lies ready.

        Raises:
            EndOfGeneration: There will be none.
            StreamingError, GenerationError, …: Nor will there, because it failed; after all tokens that came before.
        """
        token = self._pop()
        if token is None:
            if not self.core.ended:
                return None
            token = self._pop()  # what came between the two looks
            if token is None:
                raise self._ending()
        if self._n_top:
            token.top_logprobs = self._named(self.core.candidates)
        return token

    def _named(self, candidates: tuple[tuple[int, float], ...]) -> tuple[TokenLogprob, ...]:
        token_bytes = self._context.model.token_bytes
        return tuple(TokenLogprob(token, token_bytes(token), logprob) for token, logprob in candidates)

    def discard(self) -> None:
        """Throw away what lies ready."""
        while self._pop() is not None:
            pass

    def reason(self) -> FinishReason | None:
        """Why it ends, for who holds its last token; None before that."""
        return _FINISH.get(self.core.finish)

    def completion(self) -> Completion:
        if self._completion is not None:
            return self._completion
        ended = self.core.ended
        (finish, _, _, stop, tokens, logprobs, top, text, cached, called, admitted, first, last, end) = (
            self.core.outcome()
        )
        if finish not in _FINISH:
            raise StreamingError(
                "the stream is still generating, so its completion is not there yet",
                hint="Read it to its end, or cancel it.",
                code="STREAM_RUNNING",
            )
        until = end or _core.clock_us()
        usage = Usage(self._n_prompt, len(tokens), cached)
        timings = Timings(
            queue_ms=((admitted or until) - called) / 1000,
            prefill_ms=((first or until) - admitted) / 1000 if admitted else 0.0,
            decode_ms=(last - first) / 1000,
            tokens_per_second=1e6 * (len(tokens) - 1) / (last - first) if last > first else 0.0,
        )
        sequence = self._stops[stop] if stop >= 0 else None
        named, n = self._named(top), self._n_top
        tops = tuple(named[i : i + n] for i in range(0, len(named), n)) if named else ()
        detail = self._finish_detail(_FINISH[finish], sequence, len(tokens))
        completion = Completion(text, tokens, _FINISH[finish], sequence, usage, timings, logprobs, tops, detail)
        if ended:
            self._completion = completion
            _log.fetch()
        return completion

    def _finish_detail(self, reason: FinishReason, sequence: str | None, n_tokens: int) -> FinishDetail | None:
        if reason == "stop":
            return "end_token" if sequence is None else "stop_sequence"
        if reason == "length":
            return "max_tokens" if n_tokens == self.config.max_tokens else "context_full"
        return None

    def _ending(self) -> Exception:
        finish, fault, message = self.core.outcome()[:3]
        error: MullamaError
        if fault:
            if _FAULT[fault] is ClosedError:
                _exit.park()
            error = _FAULT[fault](message)
        elif _FINISH[finish] == "timeout":
            error = StreamTimeoutError(
                f"the stream took longer than its timeout_ms={self.config.timeout_ms}",
                hint="Waiting for a slot and for the reader counts; timeout_ms=0 is no limit.",
            )
        else:
            return EndOfGeneration()
        error.completion = self.completion()
        return error


def many(context: Context, prompt: str | Sequence[int], n: int, config: StreamConfig) -> list[Generation]:
    """n generations of one prompt, each with a seed of its own and a buffer for all of its tokens where that is bounded."""
    count = _checks.integer(1, 65536)("n", n)
    params = config.sampler()
    first = _random_seed() if params.seed is None else params.seed
    size = min(65536, config.max_tokens or context.n_ctx)
    plain = {"temperature": 0.8, "top_k": 40, "top_p": 0.95} if config.params is None else {}
    return [
        Generation(
            context,
            prompt,
            config.replace(
                buffer_size=max(config.buffer_size, size),
                params=params.replace(seed=(first + k) % (2**32 - 1)),
                **plain,
            ),
        )
        for k in range(count)
    ]


class Source(Protocol[T_co]):
    """Where a stream takes its items from: a generation itself, or what is made of its tokens."""

    @property
    def generation(self) -> Generation: ...

    def take(self) -> T_co | None:
        """As `Generation.take`."""


class GenerationFace(Generic[T]):
    """What every stream of a generation offers besides its items."""

    def __init__(self, source: Source[T]) -> None:
        self._generation = source.generation
        self._take: Callable[[], T | None] = source.take

    def config(self) -> StreamConfig:
        """The configuration it was started with."""
        return self._generation.config

    def is_finished(self) -> bool:
        """Whether generation is over; tokens may still lie ready."""
        return self._generation.core.ended

    def tokens_generated(self) -> int:
        """How many tokens were generated so far, read or not."""
        return self._generation.core.generated

    def tokens_per_second(self) -> float:
        """Rate from the first token to the last one so far; 0.0 before there are two."""
        return self._generation.core.rate

    def cancel(self) -> None:
        """Stop generating, at once and without waiting; again does nothing.

        No token is added any more. Those that lie ready can still be read; after them the stream is at its end.
        The slot is free within one step of the engine.
        """
        self._generation.core.cancel()

    def statistics(self) -> StreamStatistics:
        """The stream at this moment."""
        core = self._generation.core
        return StreamStatistics(
            current_buffer_used=core.buffered,
            max_buffer_size=self._generation.config.buffer_size,
            tokens_generated=core.generated,
            paused=core.paused,
            finished=core.ended,
        )

    def completion(self) -> Completion:
        """The generation as a whole: text, tokens, why it ended, usage and timings.

        It is there as soon as the stream has ended or was cancelled, read or not, and after a time-out or a failure too,
        with what had been generated.

        Raises:
            StreamingError: It is still generating (code ``STREAM_RUNNING``).
        """
        return self._generation.completion()

    def _close(self) -> None:
        self._take = _closed
        self._generation.core.cancel()


def _closed() -> NoReturn:
    """What is taken from a stream that was closed."""
    raise ClosedError("the stream was closed", hint="Start another; what this one generated is in completion().")


def _prompt_tokens(context: Context, prompt: str | Sequence[int]) -> list[int]:
    model = context.model
    if isinstance(prompt, str):
        if not prompt:
            raise _checks.refuse("prompt", prompt, "a text or token ids, at least one character")
        least = model._core.min_token_count(len(prompt))
        if least >= context.n_ctx:  # to encode megabytes only to refuse them would take long
            raise _too_long(f"at least {least}", context)
        tokens = model.tokenize(prompt, parse_special=True)
    elif isinstance(prompt, (bytes, bytearray)) or not hasattr(type(prompt), "__iter__"):
        raise _checks.refuse_type("prompt", prompt, "a str or a sequence of token ids")
    else:
        tokens = checked_tokens("prompt", prompt, model.n_vocab)
    if not tokens:
        raise _checks.refuse("prompt", prompt, "a text or token ids, at least one token")
    if len(tokens) >= context.n_ctx:
        raise _too_long(str(len(tokens)), context)
    return tokens


def _too_long(n_tokens: str, context: Context) -> ContextError:
    return ContextError(
        f"the prompt has {n_tokens} tokens, and a sequence of this context holds {context.n_ctx}",
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
    values["logit_bias"] = list(biases.items())
    values["samplers"] = params.samplers or ()
    values["grammar"] = "" if chat is not None else checked_grammar(model, params)  # a chat's template brings its own
    return values


def checked_grammar(model: Model, params: SamplerParams) -> str:
    """The GBNF grammar that the parameters ask for; empty where there is none."""
    if params.json_schema is not None:
        name, given = "json_schema", params.json_schema
        grammar = _grammar_of_schema(given)
    elif params.grammar is not None:
        name, given = "grammar", params.grammar
        grammar = given
    else:
        return ""
    try:
        model._core.check_grammar(grammar.encode())
    except _REFUSALS as e:
        raise _checks.refuse(name, given, f"a grammar that llama.cpp can follow ({e})") from None
    finally:
        _log.fetch()
    return grammar


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
