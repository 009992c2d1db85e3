"""The blocking shell: a context for synchronous code, in one thread or in many."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ._arguments import Callback, arguments, callback_request, chat_request, several_requests, text_request
from ._chat import ChatRequest
from ._chat_records import ChatCompletion
from ._context import BaseContext, SharedContext
from ._embeddings import Array
from ._generation import Generation, goes_on
from ._model import Model, StrPath
from ._options import ContextOptions
from ._records import Completion
from ._request import TextRequest
from ._sync_streams import ChatIterator, TokenIterator
from .config import ContextParams

if TYPE_CHECKING:
    import threading

    from typing_extensions import Self, Unpack

    from . import _core

__all__ = ["Context"]


class Context(BaseContext):
    """An engine for a model: slots that generate in parallel, a queue of requests, and the KV cache.

    The engine runs in its own thread, without the GIL, until `close`, the end of the ``with`` block, or until the context is
    garbage-collected. Any number of threads may stream from one context; each stream has one reader. Several contexts may
    share a model.

    Args:
        model: A model that was loaded with its weights.
        params: The context's settings; `ContextParams()` by default.
        **options: Single fields of `ContextParams`, as in ``Context(model, n_ctx=2048)``.

    Attributes:
        model: The model.

    Raises:
        ContextError: The model cannot generate, or there is not enough memory.
        InvalidParameter: A field is unknown, out of range or of the wrong type.
        ForkError: The process was forked from one that had loaded a model.
    """

    def __init__(self, model: Model, params: ContextParams | None = None, **options: Unpack[ContextOptions]) -> None:
        super().__init__(model, SharedContext(model, params, options))

    def close(self) -> None:
        """Stop the engine and free its memory. Open streams end with a `ClosedError`. Idempotent."""
        self._shared.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @arguments(text_request)
    def generate_stream(self, request: TextRequest) -> TokenIterator:
        """Start generating, and return an iterator over the tokens. Does not wait.

        Args:
            prompt: Text, in which the names of special tokens are parsed as these tokens unless
                ``StreamConfig(parse_special=False)``, or token ids; at least one token.
            max_tokens: The maximum number of tokens, 256 by default; None or -1 generates until the model ends the text or
                the context is full. Or a whole `StreamConfig`.
            params: How tokens are chosen; `SamplerParams()` by default.
            config: The settings that the other arguments override; `StreamConfig()` by default.
            **options: Single fields of `StreamConfig` and `SamplerParams`, and ``stop``, as in
                ``temperature=0.3, seed=1, stop="END"``; see `StreamOptions`.

        Raises:
            InvalidParameter: An argument is unknown, out of range or of the wrong type, or the prompt is empty.
            TokenizationError: The prompt cannot be encoded.
            ContextError: The prompt is longer than the context (code ``PROMPT_TOO_LONG``).
            QueueFullError: `ContextParams.max_queue` requests are waiting already.
            ClosedError: The context was closed.
            ForkError: The process was forked from the one that made the context.
        """
        return TokenIterator(self._shared.generation(request))

    @arguments(text_request)
    def generate(self, request: TextRequest) -> Completion:
        """Generate, and return the whole completion. Arguments as `Context.generate_stream`; Ctrl-C stops it.

        There is no time limit unless `timeout_ms` is set. Raises what `Context.generate_stream` raises, and what reading
        a `TokenIterator` raises; the error's `completion` has what was generated before it.
        """
        with TokenIterator(self._shared.generation(request, whole=True)) as stream:
            for _ in stream:
                pass
        return stream.completion()

    @arguments(several_requests)
    def generate_many(self, several: tuple[TextRequest, int]) -> list[Completion]:
        """Return ``n`` completions of one prompt, from 1 to 65,536, in the order in which they were started.

        They run in parallel, up to the number of slots, and the prompt is computed once for all of them. With a seed, the
        k-th (from 0) uses the seed plus k. Other arguments and errors as `Context.generate`. Ctrl-C stops all of them.
        """
        requests = self._shared.several(*several)
        streams: deque[TokenIterator] = deque()
        completions = []
        try:
            while requests.begin(streams, lambda request: TokenIterator(Generation(self._shared.engine, request))):
                for _ in streams[0]:
                    pass
                completions.append(streams.popleft().completion())
        finally:
            for stream in streams:  # cancel all of them before waiting for each
                stream.cancel()
            for stream in streams:
                stream.close()
        return completions

    @arguments(callback_request)
    def generate_streaming(self, asked: tuple[TextRequest, Callback]) -> Completion:
        """Generate, call ``callback`` with each token in this thread, and return what was generated.

        The callback returns True, None or `StreamControl.CONTINUE` to go on, or False or `StreamControl.STOP` to stop
        after this token; anything else is an `InvalidParameter`. An exception that it raises stops the generation and
        propagates unchanged. The callback may also be the second argument, in place of `max_tokens`. Other arguments and
        errors as `Context.generate`.
        """
        request, callback = asked
        with TokenIterator(self._shared.generation(request, whole=True)) as stream:
            for token in stream:
                if not goes_on(callback(token)):
                    break
        return stream.completion()

    # ------------------------------------------------------------------------------------------ chat

    @arguments(chat_request)
    def chat_stream(self, request: ChatRequest) -> ChatIterator:
        """Start answering a chat, and return an iterator over what each token adds to the message. Does not wait.

        Other errors are those of `Context.generate_stream`. Reading also raises `ChatError` if the answer cannot be parsed.

        Args:
            messages: Mappings as in OpenAI's API: ``role`` is ``system``, ``developer``, ``user``, ``assistant`` or ``tool``;
                ``content`` is text, and may be None beside ``tool_calls``. A `ChatMessage` may be one of them.
            max_tokens: As in `Context.generate_stream`, as are `params` and `config`. A grammar or JSON schema constrains
                the answer.
            **options: As in `Context.generate_stream`, and those of `ChatOptions`, such as `tools`.

        Raises:
            ChatError: The template cannot render the messages.
            InvalidParameter: A message, tool or option is malformed.
        """
        return ChatIterator(self._shared.chat_generation(request))

    @arguments(chat_request)
    def chat(self, request: ChatRequest) -> ChatCompletion:
        """Answer a chat, and return the whole answer. Arguments and errors as `Context.chat_stream`; Ctrl-C stops it.

        There is no time limit unless `timeout_ms` is set.
        """
        with ChatIterator(self._shared.chat_generation(request, whole=True)) as stream:
            for _ in stream:
                pass
        return stream.chat_completion()

    # ------------------------------------------------------------------------------------------ numbers

    def decode(self, tokens: Sequence[int], *, all_logits: bool = False) -> Array:
        """Append tokens to the text of the previous calls, and return the model's logits, for sampling in Python.

        The result is float32 of shape ``(n_vocab,)``, the logits after the last token, or ``(len(tokens), n_vocab)`` with
        `all_logits`. They are the model's own, before any sampler. Earlier tokens are not computed again while their cells
        are cached. One thread at a time. After an error, nothing was appended.

        Args:
            tokens: Token ids, at least one.
            all_logits: Return the logits after each of `tokens`, not only after the last.

        Raises:
            ContextError: The text is longer than the context (code ``PROMPT_TOO_LONG``).
            InvalidParameter: There are no tokens, or one is out of range.
            ClosedError: The context was closed.
        """
        generation, finish = self._shared.decoding(tokens, all_logits)
        with TokenIterator(generation) as stream:
            for _ in stream:
                pass
        return finish()

    def embed(self, text: str, *, normalize: bool = True, pooling: str | None = None) -> Array:
        """The embedding of one text, float32 of shape ``(n_embd,)``. Arguments and errors as `Context.embed_batch`."""
        row: Array = self.embed_batch([text], normalize=normalize, pooling=pooling)[0]
        return row

    def embed_batch(self, texts: Sequence[str], *, normalize: bool = True, pooling: str | None = None) -> Array:
        """The embeddings of texts, float32 of shape ``(len(texts), n_embd)``.

        Blocks, but other threads and the context's streams continue. The first call with each `pooling` allocates memory
        of its own.

        Args:
            texts: Non-empty texts of at most `n_ctx` tokens each.
            normalize: Scale each embedding to length 1.
            pooling: ``"mean"``, ``"cls"`` (the first token) or ``"last"``; None is what the model was trained for, or else
                the mean.

        Raises:
            InvalidParameter: A text is empty or not a `str`, or `pooling` is unknown.
            TokenizationError: A text cannot be encoded.
            ContextError: A text is too long (code ``PROMPT_TOO_LONG``), or there is not enough memory.
            ClosedError: The context was closed.
        """
        return self._shared.embed_batch(texts, normalize=normalize, pooling=pooling)

    # ------------------------------------------------------------------------------------------ sessions

    def save_state(self, path: StrPath, *, stop: threading.Event | _core.Stop | None = None) -> None:
        """Write the cached prefixes of finished sequences to a file, atomically: an existing file is replaced or unchanged.

        Prefixes that were computed with a LoRA adapter are left out.

        Args:
            path: The file.
            stop: Setting this event from another thread stops the writing.

        Raises:
            OSError: The file cannot be written.
            InterruptedError: `stop` was set.
        """
        self._shared.save_state(path, stop=stop)

    def load_state(self, path: StrPath) -> int:
        """Load the cached prefixes from a file that `Context.save_state` wrote, and return the number of their tokens.

        Prompts that begin with one of them are then computed from its end (see `Usage`, ``cached_tokens``). Prefixes that
        are longer than `n_ctx`, or for which there is no free slot or cells, are left out.

        Raises:
            StateError: The file is truncated, damaged, not written by mullama, or of another model, another build of
                llama.cpp, or a context with another `n_seq_max` or another sharing of cells (`n_cells`).
            OSError: The file cannot be read.
        """
        return self._shared.load_state(path)
