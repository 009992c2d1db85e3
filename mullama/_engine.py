"""The engine of a context: the native one, the thread that runs it, and whether it is open."""

from __future__ import annotations

import threading
import weakref

from . import _core, _interpreter_exit, _log
from ._model import Model
from ._records import ContextStatistics
from ._workers import Workers
from .config import ContextParams
from .errors import ClosedError, ContextError

__all__ = ["Engine", "closed"]

_MAX_WORKERS = 4  # that prepare requests for one engine
_DEFAULT_N_CTX = 4096  # of a model that was trained with more: memory grows with it


class Engine:
    """A native engine and its thread. It lives until `close`, or until nothing refers to it any more.

    Raises:
        ContextError: The model cannot generate, or there is not the memory.
    """

    def __init__(self, model: Model, params: ContextParams) -> None:
        if params.n_ctx is None:
            bounds = (_DEFAULT_N_CTX, model.n_ctx_train, params.n_cells)
            params = params.replace(n_ctx=min(bound for bound in bounds if bound))
        self.model = model
        self.params = params
        self._native = _make(model, params)
        thread = threading.Thread(target=self._native.run, name="mullama-engine", daemon=True)
        thread.start()
        self.workers: Workers = Workers(_MAX_WORKERS)
        self._shutdown = weakref.finalize(self, _shut_down, self._native, thread, self.workers)
        self._shutdown.atexit = False  # _interpreter_exit.py does that
        _interpreter_exit.closing.add(self)

    @property
    def n_ctx(self) -> int:
        return self._native.n_ctx

    @property
    def n_threads(self) -> int:
        return self._native.n_threads

    @property
    def closed(self) -> bool:
        return not self._shutdown.alive

    def statistics(self) -> ContextStatistics:
        return ContextStatistics(*self._native.stats())

    def native(self) -> _core.Engine:
        """The native engine, if it is open.

        Raises:
            ClosedError: It is not.
        """
        if self.closed:
            _interpreter_exit.park()
            raise closed()
        return self._native

    def close(self) -> None:
        """Stop the thread and give the memory back; again does nothing."""
        self._shutdown()


def closed() -> ClosedError:
    return ClosedError("the context was closed", hint="Make another one of the same model.")


def _make(model: Model, params: ContextParams) -> _core.Engine:
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
            max_queue=params.max_queue,
            reuse_prefix=params.reuse_prefix,
        )
    except RuntimeError as e:
        raise ContextError(str(e), hint="A smaller n_ctx, n_seq_max or n_batch needs less memory.") from None
    finally:
        _log.fetch()


def _shut_down(native: _core.Engine, thread: threading.Thread, workers: Workers) -> None:
    native.stop()
    workers.join()  # they end early now; when this returns, nobody uses the model for this engine
    if thread is not threading.current_thread():
        thread.join()
        native.release()
    _log.fetch()
