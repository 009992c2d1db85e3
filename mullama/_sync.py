"""The blocking shell: a context and its streams for plain synchronous code, in one thread or in many."""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from . import _checks, _core, _exit, _log
from ._chat import ChatGeneration, ChatOptions, Message
from ._generation import Generation, many
from ._model import Model, StrPath, checked_tokens
from ._records import ChatCompletion, Completion, ContextStatistics, StreamControl, TokenData
from ._state import checked_state_path, read_state, write_state
from ._sync_streams import ChatIterator, TokenIterator
from ._vectors import Array, Vectors, checked_pooling
from .config import UNSET, ContextParams, SamplerParams, StreamConfig, Unset, stream_config
from .errors import ClosedError, ContextError, StateError

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Context"]

T = TypeVar("T")

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
        known = ContextParams.__dataclass_fields__
        if changes.keys() - known.keys():
            raise _checks.refuse_name("ContextParams has no such field as", changes, known, "Leave it out.")
        params = (params or ContextParams()).replace(**changes)
        if params.n_ctx is None:
            bounds = (_DEFAULT_N_CTX, model.n_ctx_train, params.n_cells)
            params = params.replace(n_ctx=min(bound for bound in bounds if bound))
        self.model = model
        self._core = _make_engine(model, params)
        self.params = params
        thread = threading.Thread(target=self._core.run, name="mullama-engine", daemon=True)
        thread.start()
        self._decoded: list[int] = []
        self._logits: Array | None = None
        self._vectors: dict[str | None, Vectors] = {}
        self._vectors_lock = threading.Lock()
        self._shutdown = weakref.finalize(self, _shut_down, self._core, thread)
        self._shutdown.atexit = False  # _exit.py does that
        _exit.contexts.add(self)

    def close(self) -> None:
        """Stop the engine and give its memory back. Streams that are open end with a `ClosedError`. Again does nothing."""
        self._shutdown()
        with self._vectors_lock:
            vectors = [*self._vectors.values()]
            self._vectors.clear()
        for one in vectors:
            one.close()

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

    def generate_many(
        self,
        prompt: str | Sequence[int],
        n: int,
        max_tokens: int | StreamConfig | Unset | None = UNSET,
        params: SamplerParams | None = None,
        *,
        config: StreamConfig | None = None,
    ) -> list[Completion]:
        """n completions of one prompt, at once as far as there are slots; the prompt is computed once for all of them.

        With a seed, the k-th has the seed plus k. Other arguments and errors as `generate`.
        """
        with ExitStack() as stack:
            streams = [
                stack.enter_context(TokenIterator(generation))
                for generation in many(self, prompt, n, stream_config(max_tokens, params, config))
            ]
            for stream in streams:
                stack.callback(stream.cancel)  # all of them at once, before it waits for one by one
            for stream in streams:
                for _ in stream:
                    pass
        return [stream.completion() for stream in streams]

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
                if not goes_on(callback(token)):
                    break
        return stream.completion()

    # ------------------------------------------------------------------------------------------ chat

    def chat_stream(
        self,
        messages: Iterable[Message],
        max_tokens: int | StreamConfig | Unset | None = UNSET,
        params: SamplerParams | None = None,
        *,
        config: StreamConfig | None = None,
        **options: Unpack[ChatOptions],
    ) -> ChatIterator:
        """Start answering a chat, and iterate over what each token adds to the message.

        Args:
            messages: ``{"role": "system" | "user" | "assistant" | "tool", "content": …}`` each, as in OpenAI's API.
            max_tokens: As in `generate_stream`, and so are `params` and `config`.
            **options: See `ChatOptions`: tools, tool_choice, parallel_tool_calls, thinking, template, template_arguments.

        Raises:
            ChatError: The template cannot render the messages; later: the answer cannot be parsed.
            InvalidParameter: A message, tool or option is malformed.
        """
        return ChatIterator(ChatGeneration(self, messages, options, stream_config(max_tokens, params, config)))

    def chat(
        self,
        messages: Iterable[Message],
        max_tokens: int | StreamConfig | Unset | None = UNSET,
        params: SamplerParams | None = None,
        *,
        config: StreamConfig | None = None,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletion:
        """Answer a chat, and return the whole answer. Arguments and errors as `chat_stream`."""
        with self.chat_stream(messages, max_tokens, params, config=config, **options) as stream:
            for _ in stream:
                pass
        return stream.chat_completion()

    # ------------------------------------------------------------------------------------------ numbers

    def decode(self, tokens: Sequence[int], *, all_logits: bool = False) -> Array:
        """Append tokens to the text that `decode` was given so far, and compute the model's logits: to sample by oneself.

        What was computed before is not computed again while its cells are cached. One thread at a time.

        Returns:
            float32 of shape (n_vocab,), after the last token; with `all_logits` (len(tokens), n_vocab), after each.

        Raises:
            ContextError: The text is longer than the context (code ``PROMPT_TOO_LONG``).
        """
        text, generation = self._start_decoding(tokens, all_logits)
        with TokenIterator(generation) as stream:
            for _ in stream:
                pass
        return self._finish_decoding(text, generation, all_logits)

    def logits(self) -> Array:
        """The logits after the last token that `decode` was given: float32 of shape (n_vocab,).

        Raises:
            ContextError: It was given none.
        """
        if self._logits is None:
            raise ContextError("there are no logits yet", hint="Call decode() with some tokens first.")
        return self._logits.copy()

    def reset(self) -> None:
        """Begin a new text for `decode`."""
        self._decoded, self._logits = [], None

    def _start_decoding(self, tokens: Sequence[int], all_logits: bool) -> tuple[list[int], Generation]:
        self._engine()
        added = checked_tokens("tokens", tokens, self.model.n_vocab)
        if not added:
            raise _checks.refuse("tokens", tokens, "at least one token id")
        n_logits = len(added) if _checks.flag("all_logits", all_logits) else 1
        text = [*self._decoded, *added]
        return text, Generation(self, text, StreamConfig(timeout_ms=0, max_tokens=1), n_logits=n_logits)

    def _finish_decoding(self, text: list[int], generation: Generation, all_logits: bool) -> Array:
        import numpy as np

        rows: Array = np.frombuffer(generation.core.take_logits(), np.float32).reshape(-1, self.model.n_vocab)
        self._decoded, self._logits = text, rows[-1].copy()
        last: Array = rows[-1]
        return rows if all_logits else last

    def embed(self, text: str, *, normalize: bool = True, pooling: str | None = None) -> Array:
        """The embedding of a text: float32 of shape (n_embd,). See `embed_batch`."""
        row: Array = self.embed_batch([text], normalize=normalize, pooling=pooling)[0]
        return row

    def embed_batch(self, texts: Sequence[str], *, normalize: bool = True, pooling: str | None = None) -> Array:
        """The embeddings of texts: float32 of shape (len(texts), n_embd). Blocks; generation goes on meanwhile.

        Args:
            texts: Not empty, each of at most `n_ctx` tokens.
            normalize: Make each of length 1.
            pooling: ``"mean"``, ``"cls"`` or ``"last"``; None is what the model was made for, or else the mean.

        Raises:
            InvalidParameter, TokenizationError, ContextError: A text is empty, cannot be encoded, or is too long.
        """
        return self._embed(texts, normalize, pooling)

    def _embed(
        self, texts: Sequence[str], normalize: bool, pooling: str | None, stop: _core.Stop | None = None
    ) -> Array:
        pooling = checked_pooling(pooling)
        with self._vectors_lock:
            self._engine()
            if pooling not in self._vectors:
                self._vectors[pooling] = Vectors(self.model, self.n_ctx, pooling, self.params.n_threads or 0)
            vectors = self._vectors[pooling]
        return vectors.embed(texts, normalize=normalize, stop=stop)

    # ------------------------------------------------------------------------------------------ sessions

    def save_state(self, path: StrPath, *, stop: threading.Event | _core.Stop | None = None) -> None:
        """Write the cached prefixes of finished sequences to a file, whole or not at all. Those under adapters are left out.

        Raises:
            OSError: It cannot be written, or `stop` was set meanwhile; what was there before is left as it was.
        """
        checked_state_path(path)
        write_state(path, self, self._engine().save_state(), stop)

    def load_state(self, path: StrPath) -> int:
        """Take over the cached prefixes of a file that `save_state` wrote. Returns the number of tokens in them.

        Prompts that begin like them are then computed from there on (`Usage.cached_tokens`). What is longer than `n_ctx`, or
        finds no free slot and no room, is left out.

        Raises:
            StateError: It is cut off, damaged, none of ours, or of another model, another build of llama.cpp, or a context
                with another `n_seq_max` or cells that are shared in another way.
            OSError: It cannot be read.
        """
        engine = self._engine()
        try:
            return engine.load_state(read_state(path, self))
        except RuntimeError as e:
            raise StateError(f"the state does not fit this context: {e}", hint="Compute the prompt again.") from None

    def _engine(self) -> _core.Engine:
        if not self._shutdown.alive:
            _exit.park()
            raise ClosedError("the context was closed", hint="Make another one of the same model.")
        return self._core


def goes_on(answer: object) -> bool:
    """What a callback's answer means."""
    if inspect.iscoroutine(answer):
        answer.close()  # it is refused below, and Python would warn that nobody awaited it
    if answer is False or answer is StreamControl.STOP:
        return False
    if answer is None or answer is True or answer is StreamControl.CONTINUE:
        return True
    raise _checks.refuse_type("the callback's answer", answer, "a bool, a StreamControl or None")


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
