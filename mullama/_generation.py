"""One generation as Python reads it, without ever waiting: what the streams of both shells share.

`Generation` takes the tokens of a request; `BaseStream` is what every kind of stream offers its user on top, the same
under threads, asyncio and trio. Nothing here blocks, awaits or imports a concurrency library.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Generic, NoReturn, Protocol, TypeVar, cast

from . import _checks, _core, _interpreter_exit, _log
from ._engine import Engine
from ._preparation import Asked, Preparation
from ._records import (
    Completion,
    FinishDetail,
    FinishReason,
    StreamControl,
    StreamStatistics,
    Timings,
    TokenData,
    TokenLogprob,
    Usage,
    name_candidates,
)
from ._request import Prepared, n_top
from .config import StreamConfig
from .errors import (
    ClosedError,
    ContextError,
    ForkError,
    GenerationError,
    MullamaError,
    SamplingError,
    StreamingError,
    StreamTimeoutError,
)

__all__ = ["BaseStream", "EndOfGeneration", "Generation", "Source", "goes_on"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_FINISH: dict[int, FinishReason] = {1: "stop", 2: "length", 3: "cancelled", 4: "timeout", 5: "error"}
_PREPARATION = 4  # and if nothing more is known of it, a GenerationError
_FAULT: dict[int, type[MullamaError]] = {1: GenerationError, 2: SamplingError, 3: ClosedError, 4: GenerationError}


class EndOfGeneration(Exception):
    """There is no token any more; each shell raises its own kind of end instead."""


class Generation:
    """A request on its way to the engine, and its tokens as they come. Holds its engine alive; dropped, it cancels.

    With `apart` what may be long is prepared by a worker: what is wrong with it is raised where the tokens are taken. Else the
    whole of it is prepared here, and raises here.
    """

    def __init__(self, engine: Engine, asked: Asked, *, apart: bool = False) -> None:
        called_us = _core.clock_us()
        native = engine.native()
        if not native.generates:
            raise ContextError(
                f"the model cannot generate: {engine.model.architecture} is not an autoregressive architecture",
                hint="It can embed() texts.",
            )
        self.config: StreamConfig = asked.config
        self._model = engine.model
        self._n_top = n_top(engine, asked.config)
        try:
            self.core: _core.Stream = native.open(called_us=called_us, timeout_us=1000 * (asked.config.timeout_ms or 0))
            self._preparation = Preparation(engine, asked, self.core.pending())
            if apart and asked.is_long(engine):
                self._preparation.start(engine.workers)
            else:
                self._prepare()
        except ClosedError:  # in another thread, just now
            _interpreter_exit.park()
            raise
        self._pop = self.core.pop
        self._completion: Completion | None = None

    def _prepare(self) -> None:
        try:
            self._preparation.run()
        except BaseException:
            self.core.cancel()  # not when the error is forgotten
            raise

    def __del__(self) -> None:
        if hasattr(self, "_preparation"):
            self._preparation.withdraw()

    @property
    def generation(self) -> Generation:
        return self

    @property
    def prepared(self) -> Prepared | None:
        """What was submitted; None before that."""
        return self._preparation.prepared

    @property
    def preparation(self) -> Preparation | None:
        """What is still at work for it in a worker, also after the end."""
        return self._preparation if self._preparation.running else None

    def cancel(self) -> None:
        self.core.cancel()
        self._preparation.withdraw()

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
            candidates = cast("tuple[tuple[int, float], ...]", token.top_logprobs)  # until they are named
            name_candidates(token, self._named(candidates))
        return token

    def _named(self, candidates: tuple[tuple[int, float], ...]) -> tuple[TokenLogprob, ...]:
        token_bytes = self._model.token_bytes
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
        outcome = self.core.outcome()
        if outcome.finish not in _FINISH:
            raise StreamingError(
                "the stream is still generating, so its completion is not there yet",
                hint="Read it to its end, or cancel it.",
                code="STREAM_RUNNING",
            )
        tokens, admitted, first, last = outcome.tokens, outcome.admitted_us, outcome.first_us, outcome.last_us
        until = outcome.ended_us or _core.clock_us()
        prepared = self.prepared
        usage = Usage(prepared.n_prompt if prepared else 0, len(tokens), outcome.cached_tokens)
        timings = Timings(
            queue_ms=((admitted or until) - outcome.called_us) / 1000,
            prefill_ms=((first or until) - admitted) / 1000 if admitted else 0.0,
            decode_ms=(last - first) / 1000,
            tokens_per_second=1e6 * (len(tokens) - 1) / (last - first) if last > first else 0.0,
        )
        sequence = prepared.stops[outcome.stop] if prepared and outcome.stop >= 0 else None
        named, n = self._named(outcome.top), self._n_top
        tops = tuple(named[i : i + n] for i in range(0, len(named), n)) if named else ()
        reason = _FINISH[outcome.finish]
        detail = self._finish_detail(reason, sequence, len(tokens))
        logprobs = outcome.logprobs
        completion = Completion(outcome.text, tokens, reason, sequence, usage, timings, logprobs, tops, detail)
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
        outcome = self.core.outcome()
        error: Exception
        if self._preparation.failure is not None and outcome.fault == _PREPARATION:
            error = self._preparation.failure
        elif outcome.fault:
            error = _FAULT[outcome.fault](outcome.message)
        elif _FINISH[outcome.finish] == "timeout":
            error = StreamTimeoutError(
                f"the stream took longer than its timeout_ms={self.config.timeout_ms}",
                hint="Waiting for a slot and for the reader counts; timeout_ms=0 is no limit.",
            )
        else:
            return EndOfGeneration()
        if isinstance(error, ClosedError):
            _interpreter_exit.park()
        if isinstance(error, MullamaError):
            error.completion = self.completion()
        return error


class Source(Protocol[T_co]):
    """Where a stream takes its items from: a generation itself, or what is made of its tokens."""

    @property
    def generation(self) -> Generation: ...

    def take(self) -> T_co | None:
        """As `Generation.take`."""


class BaseStream(Generic[T]):
    """What every stream of a generation offers besides its items."""

    def __init__(self, source: Source[T]) -> None:
        self._generation = source.generation
        self._take: Callable[[], T | None] = source.take

    def __repr__(self) -> str:
        core = self._generation.core
        how = "generating"
        if self._take is _closed:
            how = "closed"
        elif core.ended:
            try:
                how = f"finished ({self._generation.completion().finish_reason})"
            except ForkError:
                how = "of another process"
        return f"<mullama.{type(self).__name__} {how}, {core.generated} tokens>"

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
        self._generation.cancel()

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
        self._generation.cancel()


def _closed() -> NoReturn:
    """What is taken from a stream that was closed."""
    raise ClosedError("the stream was closed", hint="Start another; what this one generated is in completion().")


def goes_on(answer: object) -> bool:
    """What a callback's answer means."""
    if inspect.iscoroutine(answer):
        answer.close()  # it is refused below, and Python would warn that nobody awaited it
    if answer is False or answer is StreamControl.STOP:
        return False
    if answer is None or answer is True or answer is StreamControl.CONTINUE:
        return True
    raise _checks.refuse_type("the callback's answer", answer, "a bool, a StreamControl or None")
