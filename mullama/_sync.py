"""The blocking shell: a context and its streams for plain synchronous code, in one thread or in many."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

from . import _checks, _core, _exit, _log
from ._generation import EndOfGeneration, Generation, GenerationFace
from ._model import Model
from ._records import Completion, ContextStatistics, StreamControl, TokenData
from .config import UNSET, ContextParams, SamplerParams, StreamConfig, Unset, stream_config
from .errors import ClosedError, ContextError, StreamingError

__all__ = ["Context", "TokenIterator"]

_DEFAULT_N_CTX = 4096  # of a model that was trained with more: memory grows with it


class Context:
    """An engine for a model: slots that generate at once, a queue before them, the KV cache behind them.

    A thread of its own runs it, without the GIL; it lives until `close`, the end of the ``with`` block, or until nothing
    refers to the context any more. Any number of threads may stream from one context.

    Args:
        model: A model that was loaded with its weights.
        params: What the context is like; `ContextParams()` where it is left out.
        **changes: Fields of `ContextParams` by themselves, as in ``Context(model, n_ctx=2048)``.

    Raises:
        ContextError: The model cannot generate, or there is not the memory.
        InvalidParameter: A field is out of range or of the wrong type.
    """

    def __init__(self, model: Model, params: ContextParams | None = None, **changes: Any) -> None:
        if not isinstance(model, Model):
            raise _checks.refuse_type("model", model, "a mullama.Model", "Load one with Model.load().")
        if params is not None and not isinstance(params, ContextParams):
            raise _checks.refuse_type("params", params, "a ContextParams", "For example ContextParams(n_ctx=2048).")
        unknown = changes.keys() - ContextParams.__dataclass_fields__.keys()
        if unknown:
            raise _checks.refuse_type(min(unknown), changes[min(unknown)], "left out: ContextParams has no such field")
        params = (params or ContextParams()).replace(**changes)
        if params.n_ctx is None:
            bounds = (_DEFAULT_N_CTX, model.n_ctx_train, params.n_cells)
            params = params.replace(n_ctx=min(bound for bound in bounds if bound))
        self.model = model
        self._core = _make_engine(model, params)
        self.params = params
        thread = threading.Thread(target=self._core.run, name="mullama-engine", daemon=True)
        thread.start()
        self._shutdown = weakref.finalize(self, _shut_down, self._core, thread)
        self._shutdown.atexit = False  # _exit.py does that
        _exit.contexts.add(self)

    def close(self) -> None:
        """Stop the engine and give its memory back. Streams that are open end with a `ClosedError`. Again does nothing."""
        self._shutdown()

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def n_ctx(self) -> int:
        """Tokens that one sequence may use."""
        return self._core.n_ctx

    @property
    def n_threads(self) -> int:
        """Threads that compute single tokens."""
        return self._core.n_threads

    def statistics(self) -> ContextStatistics:
        """The context at this moment."""
        return ContextStatistics(*self._core.stats())

    def clear_cache(self) -> None:
        """Forget all prompts and completions that are kept for reuse. Streams that run go on, and are then forgotten."""
        self._engine().clear_cache()

    def generate_stream(
        self,
        prompt: str | Sequence[int],
        max_tokens: int | StreamConfig | Unset | None = UNSET,
        params: SamplerParams | None = None,
        *,
        config: StreamConfig | None = None,
    ) -> TokenIterator:
        """Start generating, and iterate over the tokens while they are generated.

        An iterator that nothing refers to any more cancels its generation, as when a loop over the call itself is left. A
        signal handler that raises (Ctrl-C) breaks the wait for a token.

        Args:
            prompt: Text, in which the names of special tokens count as such, or token ids.
            max_tokens: At most so many tokens, or a whole `StreamConfig` in its place.
            params: How tokens are chosen.
            config: A `StreamConfig`, instead of the two before.

        Raises:
            InvalidParameter: An argument is out of range, of the wrong type, or given twice; the prompt is empty.
            TokenizationError: The prompt cannot be encoded.
            ContextError: The prompt is longer than the context (code ``PROMPT_TOO_LONG``).
            ClosedError: The context was closed.
        """
        return TokenIterator(Generation(self, prompt, stream_config(max_tokens, params, config)))

    def generate(
        self,
        prompt: str | Sequence[int],
        max_tokens: int | StreamConfig | Unset | None = UNSET,
        params: SamplerParams | None = None,
        *,
        config: StreamConfig | None = None,
    ) -> Completion:
        """Generate, and return all of it at the end. Arguments and errors as `generate_stream`, and those of reading it."""
        with self.generate_stream(prompt, max_tokens, params, config=config) as stream:
            for _ in stream:
                pass
        return stream.completion()

    def generate_streaming(
        self,
        prompt: str | Sequence[int],
        max_tokens: int | StreamConfig | Unset | None = UNSET,
        callback: Callable[[TokenData], bool | StreamControl | None] | None = None,
        params: SamplerParams | None = None,
        *,
        config: StreamConfig | None = None,
    ) -> Completion:
        """Generate, calling back with each token on this thread.

        The callback returns True, None or `StreamControl.CONTINUE` to go on, False or `StreamControl.STOP` to stop after
        this token. What it raises stops the generation too, and comes out of here unchanged.

        Returns:
            What was generated until then.
        """
        if not callable(callback):
            raise _checks.refuse_type("callback", callback, "a function of one token")
        with self.generate_stream(prompt, max_tokens, params, config=config) as stream:
            for token in stream:
                answer = callback(token)
                if answer is False or answer is StreamControl.STOP:
                    break
                if answer is not None and answer is not True and answer is not StreamControl.CONTINUE:
                    raise _checks.refuse_type("callback's answer", answer, "a bool, a StreamControl or None")
        return stream.completion()

    def _engine(self) -> _core.Engine:
        if not self._shutdown.alive:
            _exit.park()
            raise ClosedError("the context was closed", hint="Make another one of the same model.")
        return self._core


class TokenIterator(GenerationFace, Iterator[TokenData]):
    """The tokens of one generation, for a ``for`` loop. One thread reads at a time.

    As a context manager it waits at the end of the block until its slot is free.
    """

    def __init__(self, generation: Generation) -> None:
        super().__init__(generation)
        self._bell: _core.Doorbell | None = None
        self._reading = threading.Lock()

    def __next__(self) -> TokenData:
        if not self._reading.acquire(blocking=False):
            raise StreamingError(
                "another thread is reading this stream", hint="Give each stream one reader.", code="STREAM_BUSY"
            )
        try:
            while (token := self._take()) is None:
                self._wait()
            return token
        except EndOfGeneration:
            raise StopIteration from None
        finally:
            self._reading.release()

    def next(self) -> TokenData | None:
        """The next token, waiting for it; None at the end."""
        return next(self, None)

    def try_next(self) -> TokenData | None:
        """The next token if one lies ready; None if not, and at the end (`is_finished` tells which)."""
        try:
            return self._take()
        except EndOfGeneration:
            return None

    def close(self) -> None:
        """Stop generating, throw away what was not read, and wait until the slot is free. Again does nothing."""
        self._close()
        core = self._generation.core
        while not core.ended:
            self._generation.discard()
            self._wait()

    def __enter__(self) -> TokenIterator:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self) -> None:
        core = self._generation.core
        if self._bell is None:
            self._bell = _core.Doorbell()
        core.arm(self._bell)
        if core.ready:
            core.disarm()
        else:
            core.wait(self._bell)


def _make_engine(model: Model, params: ContextParams) -> _core.Engine:
    if not model._core.can_generate:
        why = f"{model.architecture} is no architecture that writes from left to right"
        if model._core.vocab_only:
            why = "only its vocabulary was loaded"
        elif not model._core.has_vocabulary:
            why = "it has no vocabulary"
        raise ContextError(f"the model cannot generate: {why}", hint="Load a decoder model with its weights.")
    assert params.n_ctx is not None
    try:
        return _core.Engine(
            model._core,
            n_ctx=params.n_ctx,
            n_cells=params.n_cells or 0,
            n_batch=params.n_batch,
            n_ubatch=params.n_ubatch,
            n_seq_max=params.n_seq_max,
            n_threads=params.n_threads or 0,
            n_threads_batch=params.n_threads_batch or 0,
            reuse_prefix=params.reuse_prefix,
        )
    except RuntimeError as e:
        raise ContextError(str(e), hint="A smaller n_ctx, n_seq_max or n_batch needs less memory.") from None
    finally:
        _log.fetch()


def _shut_down(core: _core.Engine, thread: threading.Thread) -> None:
    core.stop()
    if thread is not threading.current_thread():
        thread.join()
        core.release()
    _log.fetch()
