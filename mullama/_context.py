"""What both shells of a context share: its engine, decoding by hand, embeddings and saved state.

Strategy: `SharedContext` does the work; what may take long accepts a `stop`, so that the async shell can run it in a worker
thread. `Context` and `AsyncContext` are shells over one of these, and may share it; `BaseContext` has the methods that both
offer and that do not wait.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from . import _checks, _core
from ._chat import ChatGeneration, ChatRequest
from ._embeddings import Array, Embeddings, checked_pooling
from ._engine import Engine
from ._generation import Generation
from ._model import Model, StrPath, checked_tokens
from ._options import ContextOptions
from ._prompt_cache import checked_state_path, read_state, write_state
from ._records import ContextStatistics
from ._request import Several, TextRequest, timed
from .config import ContextParams, StreamConfig
from .errors import ContextError, ForkError, StateError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BaseContext", "SharedContext"]


class SharedContext:
    """What the shells of one context share. Closed by `close`, or when its engine is garbage-collected."""

    def __init__(self, model: Model, params: ContextParams | None, options: ContextOptions) -> None:
        if not isinstance(model, Model):
            raise _checks.refuse_type("model", model, "a mullama.Model", "Load one with Model.load().")
        if params is not None and not isinstance(params, ContextParams):
            raise _checks.refuse_type("params", params, "a ContextParams", "For example ContextParams(n_ctx=2048).")
        known = ContextOptions.__annotations__
        if options.keys() - known.keys():
            raise _checks.refuse_name("a context", options, known)
        self.model = model
        self.engine: Engine = Engine(model, (params or ContextParams()).replace(**options))
        self._decoded: list[int] = []
        self._logits: Array | None = None
        self._embeddings: dict[str | None, Embeddings] = {}
        self._embeddings_lock = threading.Lock()

    def close(self) -> None:
        self.engine.close()
        with self._embeddings_lock:
            embeddings = [*self._embeddings.values()]
            self._embeddings.clear()
        for one in embeddings:
            one.close()

    # ------------------------------------------------------------------------------------------ generating

    def generation(self, request: TextRequest, *, whole: bool = False, apart: bool = False) -> Generation:
        request = dataclasses.replace(request, config=timed(request.config, whole=whole))
        return Generation(self.engine, request, apart=apart)

    def several(self, request: TextRequest, n: int) -> Several:
        return Several(dataclasses.replace(request, config=timed(request.config, whole=True)), n, self.engine)

    def chat_generation(self, request: ChatRequest, *, whole: bool = False, apart: bool = False) -> ChatGeneration:
        request = dataclasses.replace(request, config=timed(request.config, whole=whole))
        return ChatGeneration(self.engine, request, apart=apart)

    # ------------------------------------------------------------------------------------------ decoding by hand

    def decoding(
        self, tokens: Sequence[int], all_logits: bool, *, apart: bool = False
    ) -> tuple[Generation, Callable[[], Array]]:
        """The generation that computes the logits of more tokens, and the function that returns them when it has ended."""
        self.engine.native()
        added = checked_tokens("tokens", tokens, self.model.n_vocab)
        if not added:
            raise _checks.refuse("tokens", tokens, "at least one token id")
        n_logits = len(added) if _checks.flag("all_logits", all_logits) else 1
        text = [*self._decoded, *added]
        config = StreamConfig(timeout_ms=0, max_tokens=1)
        generation = Generation(self.engine, TextRequest(text, config, n_logits), apart=apart)

        def finish() -> Array:
            import numpy as np

            rows: Array = np.frombuffer(generation.core.take_logits(), np.float32).reshape(-1, self.model.n_vocab)
            self._decoded, self._logits = text, rows[-1].copy()
            last: Array = rows[-1]
            return rows if all_logits else last

        return generation, finish

    def logits(self) -> Array:
        if self._logits is None:
            raise ContextError("there are no logits yet", hint="Call decode() with some tokens first.")
        return self._logits.copy()

    def reset(self) -> None:
        self._decoded, self._logits = [], None

    # ------------------------------------------------------------------------------------------ long-running work

    def embed_batch(
        self, texts: Sequence[str], *, normalize: bool, pooling: str | None, stop: _core.Stop | None = None
    ) -> Array:
        pooling = checked_pooling(pooling)
        with self._embeddings_lock:
            self.engine.native()
            if pooling not in self._embeddings:
                n_threads = self.engine.params.n_threads or 0
                self._embeddings[pooling] = Embeddings(self.model, self.engine.n_ctx, pooling, n_threads)
            embeddings = self._embeddings[pooling]
        return embeddings.embed(texts, normalize=normalize, stop=stop)

    def save_state(self, path: StrPath, *, stop: threading.Event | _core.Stop | None = None) -> None:
        checked_state_path(path)
        write_state(path, self.engine, self.engine.native().save_state(), stop)

    def load_state(self, path: StrPath) -> int:
        native = self.engine.native()
        try:
            return native.load_state(read_state(path, self.engine))
        except RuntimeError as e:
            raise StateError(f"the state does not fit this context: {e}", hint="Compute the prompt again.") from None


class BaseContext:
    """The methods that `Context` and `AsyncContext` share; none of them waits."""

    model: Model

    def __init__(self, model: Model, shared: SharedContext | None) -> None:
        self.model = model
        self._held = shared

    @classmethod
    def _over(cls, model: Model, shared: SharedContext | None) -> Self:
        """Another shell over the same context; `shared` is None where only the vocabulary was loaded."""
        shell = cls.__new__(cls)
        BaseContext.__init__(shell, model, shared)
        return shell

    @property
    def _shared(self) -> SharedContext:
        if self._held is None:
            raise ContextError(
                "the model cannot generate: only its vocabulary was loaded", hint="Load it without vocab_only."
            )
        return self._held

    def __repr__(self) -> str:
        return f"<mullama.{type(self).__name__} of {self.model.name!r}: {self._state()}>"

    def _state(self) -> str:
        if self._held is None:
            return "vocabulary only"
        if self._held.engine.closed:
            return "closed"
        try:
            now = self.statistics()
        except ForkError:
            return "of another process"
        return f"open, {now.busy} of {now.slots} slots busy, {now.queued} queued"

    @property
    def params(self) -> ContextParams:
        """The settings in effect, with `n_ctx` filled in."""
        return self._shared.engine.params

    @property
    def n_ctx(self) -> int:
        """Maximum number of tokens of one sequence, as llama.cpp rounded it."""
        return self._shared.engine.n_ctx

    @property
    def n_threads(self) -> int:
        """Threads that compute single tokens."""
        return self._shared.engine.n_threads

    def statistics(self) -> ContextStatistics:
        """A snapshot of the context."""
        return self._shared.engine.statistics()

    def clear_cache(self) -> None:
        """Discard all cached prompts and completions. Running streams continue; what they compute is not kept."""
        self._shared.engine.native().clear_cache()

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """As `Model.tokenize`, in this thread, at about 10 MB/s."""
        return self.model.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: Iterable[int], *, special: bool = False) -> str:
        """As `Model.detokenize`."""
        return self.model.detokenize(tokens, special=special)

    def token_bytes(self, token: int) -> bytes:
        """As `Model.token_bytes`."""
        return self.model.token_bytes(token)

    def token_is_eog(self, token: int) -> bool:
        """As `Model.token_is_eog`."""
        return self.model.token_is_eog(token)

    def logits(self) -> Array:
        """A copy of the logits after the last token that `decode` was given: float32 of shape ``(n_vocab,)``.

        Raises:
            ContextError: `decode` has not been called since the context was made or reset.
        """
        return self._shared.logits()

    def reset(self) -> None:
        """Start a new text for `decode`."""
        self._shared.reset()
