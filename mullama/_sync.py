"""The blocking shell: a context and its streams for plain synchronous code, in one thread or in many."""

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
    """An engine for a model: slots that generate at once, a queue before them, the KV cache behind them.

    A thread of its own runs it, without the GIL; it lives until `close`, the end of the ``with`` block, or until nothing
    refers to the context any more. Any number of threads may stream from one context.

    Args:
        model: A model that was loaded with its weights.
        params: What the context is like; `ContextParams()` where it is left out.
        **options: Fields of `ContextParams` by themselves, as in ``Context(model, n_ctx=2048)``.

    Raises:
        ContextError: The model cannot generate, or there is not the memory.
        InvalidParameter: A field is unknown, out of range or of the wrong type.
    """

    def __init__(self, model: Model, params: ContextParams | None = None, **options: Unpack[ContextOptions]) -> None:
        super().__init__(model, SharedContext(model, params, options))

    def close(self) -> None:
        """Stop the engine and give its memory back. Streams that are open end with a `ClosedError`. Again does nothing."""
        self._shared.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @arguments(text_request)
    def generate_stream(self, request: TextRequest) -> TokenIterator:
        """Start generating, and iterate over the tokens while they are generated.

        An iterator that nothing refers to any more cancels its generation, as when a loop over the call itself is left. A
        signal handler that raises (Ctrl-C) breaks the wait for a token.

        Args:
            prompt: Text, in which the names of special tokens count as such, or token ids.
            max_tokens: At most so many tokens, or a whole `StreamConfig` in its place.
            params: How tokens are chosen.
            config: What the other arguments change; `StreamConfig()` where it is left out.
            **options: Fields of `StreamConfig` and `SamplerParams` by themselves, and ``stop``, as in
                ``temperature=0.3, seed=1, stop=["\\n"]``; see `StreamOptions`.

        Raises:
            InvalidParameter: An argument is unknown, out of range or of the wrong type; the prompt is empty.
            TokenizationError: The prompt cannot be encoded.
            ContextError: The prompt is longer than the context (code ``PROMPT_TOO_LONG``).
            ClosedError: The context was closed.
        """
        return TokenIterator(self._shared.generation(request))

    @arguments(text_request)
    def generate(self, request: TextRequest) -> Completion:
        """Generate, and return all of it at the end. Arguments and errors as `generate_stream`, and those of reading it.

        There is no time limit unless `timeout_ms` says so.
        """
        with TokenIterator(self._shared.generation(request, whole=True)) as stream:
            for _ in stream:
                pass
        return stream.completion()

    @arguments(several_requests)
    def generate_many(self, several: tuple[TextRequest, int]) -> list[Completion]:
        """n completions of one prompt, at once as far as there are slots; the prompt is computed once for all of them.

        With a seed, the k-th has the seed plus k. Other arguments and errors as `generate`.
        """
        requests = self._shared.several(*several)
        streams: deque[TokenIterator] = deque()
        completions = []
        try:
            while requests.begin(streams, lambda request: TokenIterator(Generation(request))):
                for _ in streams[0]:
                    pass
                completions.append(streams.popleft().completion())
        finally:
            for stream in streams:  # all of them at once, before it waits for one by one
                stream.cancel()
            for stream in streams:
                stream.close()
        return completions

    @arguments(callback_request)
    def generate_streaming(self, asked: tuple[TextRequest, Callback]) -> Completion:
        """Generate, calling back with each token on this thread.

        The callback returns True, None or `StreamControl.CONTINUE` to go on, False or `StreamControl.STOP` to stop after
        this token. What it raises stops the generation too, and comes out of here unchanged. It may also stand second, in
        the place of `max_tokens`. Other arguments and errors as `generate`.

        Returns:
            What was generated until then.
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
        """Start answering a chat, and iterate over what each token adds to the message.

        Args:
            messages: ``{"role": "system" | "user" | "assistant" | "tool", "content": …}`` each, as in OpenAI's API.
            max_tokens: As in `generate_stream`, and so are `params` and `config`.
            **options: As in `generate_stream`, and those of `ChatOptions`: tools, tool_choice, parallel_tool_calls, thinking,
                template, template_arguments.

        Raises:
            ChatError: The template cannot render the messages; later: the answer cannot be parsed.
            InvalidParameter: A message, tool or option is malformed.
        """
        return ChatIterator(self._shared.chat_generation(request))

    @arguments(chat_request)
    def chat(self, request: ChatRequest) -> ChatCompletion:
        """Answer a chat, and return the whole answer. Arguments and errors as `chat_stream`."""
        with ChatIterator(self._shared.chat_generation(request, whole=True)) as stream:
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
        generation, finish = self._shared.decoding(tokens, all_logits)
        with TokenIterator(generation) as stream:
            for _ in stream:
                pass
        return finish()

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
        return self._shared.embed_batch(texts, normalize=normalize, pooling=pooling)

    # ------------------------------------------------------------------------------------------ sessions

    def save_state(self, path: StrPath, *, stop: threading.Event | _core.Stop | None = None) -> None:
        """Write the cached prefixes of finished sequences to a file, whole or not at all. Those under adapters are left out.

        Raises:
            OSError: It cannot be written, or `stop` was set meanwhile; what was there before is left as it was.
        """
        self._shared.save_state(path, stop=stop)

    def load_state(self, path: StrPath) -> int:
        """Take over the cached prefixes of a file that `save_state` wrote. Returns the number of tokens in them.

        Prompts that begin like them are then computed from there on (`Usage.cached_tokens`). What is longer than `n_ctx`, or
        finds no free slot and no room, is left out.

        Raises:
            StateError: It is cut off, damaged, none of ours, or of another model, another build of llama.cpp, or a context
                with another `n_seq_max` or cells that are shared in another way.
            OSError: It cannot be read.
        """
        return self._shared.load_state(path)
