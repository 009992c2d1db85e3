"""One generation as Python reads it, without ever waiting: the core that the blocking and the awaiting shell share.

`Generation` starts a request and takes its tokens; `GenerationFace` is what every kind of stream offers its user on top,
the same under threads, asyncio and trio. Nothing here blocks, awaits or imports a concurrency library.
"""

from __future__ import annotations

import dataclasses
import secrets
from typing import TYPE_CHECKING

from . import _checks, _core, _exit, _log
from ._model import checked_tokens
from ._records import Completion, FinishReason, StreamStatistics, Timings, TokenData, Usage
from .config import StreamConfig
from .errors import ClosedError, ContextError, GenerationError, MullamaError, SamplingError, StreamingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._sync import Context

__all__ = ["Generation", "GenerationFace", "Prompt"]

Prompt = "str | Sequence[int]"

_FINISH: dict[int, FinishReason] = {1: "stop", 2: "length", 3: "cancelled", 4: "timeout", 5: "error"}
_FAULT: dict[int, type[MullamaError]] = {1: GenerationError, 2: SamplingError, 3: ClosedError}


class EndOfGeneration(Exception):
    """There is no token any more; each shell raises its own kind of end instead."""


class Generation:
    """A request in the engine, and its tokens as they come. Holds its context alive; dropped, it cancels the request."""

    def __init__(self, context: Context, prompt: str | Sequence[int], config: StreamConfig) -> None:
        called_us = _core.clock_us()
        engine = context._engine()
        self.config = config
        self._context = context
        tokens = _prompt_tokens(context, prompt)
        self._n_prompt = len(tokens)
        self.core = engine.submit(
            tokens,
            max_tokens=-1 if config.max_tokens is None else config.max_tokens,
            called_us=called_us,
            timeout_us=1000 * config.timeout_ms,
            delay_us=1000 * config.stream_delay_ms,
            buffer_size=config.buffer_size,
            stops=[stop.encode() for stop in config.stop_sequences],
            sampling=_sampling(context, config),
        )
        self._completion: Completion | None = None

    def take(self) -> TokenData | None:
        """The next token; None where none lies ready.

        Raises:
            EndOfGeneration: There will be none.
            StreamingError, GenerationError, …: Nor will there, because it failed; after all tokens that came before.
        """
        taken = self.core.pop()
        if taken is None:
            if not self.core.ended:
                return None
            taken = self.core.pop()  # what came between the two looks
            if taken is None:
                raise self._ending()
        return TokenData(*taken)

    def discard(self) -> None:
        """Throw away what lies ready."""
        while self.core.pop() is not None:
            pass

    def completion(self) -> Completion:
        if self._completion is not None:
            return self._completion
        ended = self.core.ended
        finish, _, _, stop, tokens, text, cached, called, admitted, first, last, end = self.core.outcome()
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
        sequence = self.config.stop_sequences[stop] if stop >= 0 else None
        completion = Completion(text, tokens, _FINISH[finish], sequence, usage, timings)
        if ended:
            self._completion = completion
            _log.fetch()
        return completion

    def _ending(self) -> Exception:
        finish, fault, message = self.core.outcome()[:3]
        if fault:
            if _FAULT[fault] is ClosedError:
                _exit.park()
            return _FAULT[fault](message)
        if _FINISH[finish] == "timeout":
            return StreamingError(
                f"the stream took longer than its timeout_ms={self.config.timeout_ms}",
                hint="Waiting for a slot and for the reader counts; timeout_ms=0 is no limit.",
                code="STREAM_TIMEOUT",
            )
        return EndOfGeneration()


class GenerationFace:
    """What every stream of tokens offers besides its tokens."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._closed = False

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

    def _take(self) -> TokenData | None:
        if self._closed:
            raise ClosedError(
                "the stream was closed", hint="Start another; what this one generated is in completion()."
            )
        return self._generation.take()

    def _close(self) -> None:
        self._closed = True
        self._generation.core.cancel()


def _prompt_tokens(context: Context, prompt: str | Sequence[int]) -> list[int]:
    model = context.model
    if isinstance(prompt, str):
        if not prompt:
            raise _checks.refuse("prompt", prompt, "a text or token ids, at least one character")
        least = model._core.least_tokens(len(prompt))
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


def _sampling(context: Context, config: StreamConfig) -> dict[str, object]:
    params = config.sampler()
    values = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    if params.seed is None:
        values["seed"] = secrets.randbelow(2**32 - 1)
    n_vocab = context.model.n_vocab
    biases = params.logit_bias or {}
    for token in biases:
        if token >= n_vocab:
            raise _checks.refuse("logit_bias", token, f"a mapping of token ids below {n_vocab}, the model's vocabulary")
    values["logit_bias"] = list(biases.items())
    return values
