"""llama-crab's face of mullama: one `Llama` object with `create_completion` and its kin. Thin: no logic of its own.

For programs that know llama-crab or llama-cpp-python. Everything here is a call of `Context` with other names; what is
said there of errors and cancellation holds here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from . import _checks
from ._chat import ChatOptions, Message
from ._generation import goes_on
from ._model import Model, StrPath
from ._records import ChatCompletion, ChatDelta, Completion, FinishReason, StreamControl, TokenData, TokenLogprob
from ._sync import Context
from .config import ContextParams, SamplerParams, StreamConfig

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["CompletionChunk", "CompletionOptions", "Llama", "LlamaParams"]


@dataclass(frozen=True, slots=True)
class LlamaParams:
    """What to load, and the context to make for it.

    Attributes:
        path: The GGUF file; None is the model that comes with mullama.
        n_gpu_layers: As in `Model.load`.
        context: As in `Context`.
    """

    path: StrPath | None = None
    n_gpu_layers: int = -1
    context: ContextParams = field(default_factory=lambda: ContextParams(n_seq_max=1))


@dataclass(frozen=True, slots=True)
class CompletionOptions:
    """One completion.

    Attributes:
        max_tokens: At most so many tokens; None until the end.
        stop: A stop string, or several.
        sampler: How tokens are chosen: temperature, seed, logit_bias, grammar and the rest.
        logprobs: Whether each chunk comes with the log-probabilities of its token and of the likeliest at its place.
        top_logprobs: How many of those, up to 20.
        echo: Begin the completion with the prompt.
        suffix: Text that is to follow: the model fills in, where its vocabulary has the marks for it.
        min_tokens: No end token before so many.
        n: So many completions of the one prompt, which is computed once.
        timeout_ms: As in `StreamConfig`; default none.
    """

    max_tokens: int | None = 256
    stop: str | Sequence[str] = ()
    sampler: SamplerParams = field(default_factory=SamplerParams)
    logprobs: bool = False
    top_logprobs: int = 0
    echo: bool = False
    suffix: str | None = None
    min_tokens: int = 0
    n: int = 1
    timeout_ms: int = 0

    def stream_config(self) -> StreamConfig:
        """The same in mullama's own terms."""
        return StreamConfig(
            max_tokens=self.max_tokens,
            stop_sequences=(self.stop,) if isinstance(self.stop, str) and self.stop else self.stop,
            params=self.sampler,
            top_logprobs=self.top_logprobs if self.logprobs else 0,
            min_tokens=self.min_tokens,
            timeout_ms=self.timeout_ms,
        )


@dataclass(frozen=True, slots=True)
class CompletionChunk:
    """One token of a completion.

    Attributes:
        text: The text that it completed; may be empty.
        token: Its id.
        logprobs: Its own log-probability first, then those of the likeliest at its place; None where not asked for.
        stop_reason: Why this is the last chunk, on the last chunk; else None.
    """

    text: str
    token: int
    logprobs: tuple[TokenLogprob, ...] | None
    stop_reason: FinishReason | None


class Llama:
    """A model with one context. Made with `Llama.load`; a context manager."""

    def __init__(self, context: Context) -> None:
        self.context = context

    @classmethod
    def load(cls, params: LlamaParams | StrPath | None = None, **context: Any) -> Self:
        """Load a model and make a context. Keywords are fields of `ContextParams`, such as ``n_ctx=512``."""
        if not isinstance(params, LlamaParams):
            params = LlamaParams(params)
        model = Model.load(params.path, n_gpu_layers=params.n_gpu_layers)
        return cls(Context(model, params.context, **context))

    @property
    def model(self) -> Model:
        """The model that was loaded."""
        return self.context.model

    def close(self) -> None:
        """As `Context.close`."""
        self.context.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def create_completion(self, prompt: str, options: CompletionOptions | None = None) -> Completion:
        """Complete a prompt. Of several completions (`options.n`) the first; `create_completions` gives all."""
        return self.create_completions(prompt, options)[0]

    def create_completions(self, prompt: str, options: CompletionOptions | None = None) -> list[Completion]:
        """`options.n` completions of one prompt; with a seed, the k-th has the seed plus k."""
        options = _checked(options)
        completions = self.context.generate_many(self._prompt(prompt, options), options.n, options.stream_config())
        return [self._echoed(prompt, options, completion) for completion in completions]

    def create_completion_stream(
        self,
        prompt: str,
        options: CompletionOptions | None,
        callback: Callable[[CompletionChunk], bool | StreamControl | None],
    ) -> Completion:
        """Complete a prompt, calling back with each token; see `Context.generate_streaming`.

        With `echo` the first chunk is the prompt, its token -1.
        """
        options = _checked_single(options, callback)
        with self.context.generate_stream(self._prompt(prompt, options), options.stream_config()) as stream:
            if not options.echo or goes_on(callback(CompletionChunk(prompt, -1, None, None))):
                for token in stream:
                    reason = stream._generation.reason() if token.is_final else None
                    if not goes_on(callback(self._chunk(token, options, reason))):
                        break
        return self._echoed(prompt, options, stream.completion())

    def create_chat_completion(
        self,
        messages: Iterable[Message],
        options: CompletionOptions | None = None,
        **chat: Unpack[ChatOptions],
    ) -> ChatCompletion:
        """Answer a chat; see `Context.chat`."""
        return self.context.chat(messages, _checked_single(options, print).stream_config(), **chat)

    def create_chat_completion_stream(
        self,
        messages: Iterable[Message],
        options: CompletionOptions | None,
        callback: Callable[[ChatDelta], bool | StreamControl | None],
        **chat: Unpack[ChatOptions],
    ) -> ChatCompletion:
        """Answer a chat, calling back with what each token adds to the message."""
        config = _checked_single(options, callback).stream_config()
        with self.context.chat_stream(messages, config, **chat) as stream:
            for delta in stream:
                if not goes_on(callback(delta)):
                    break
        return stream.chat_completion()

    def _prompt(self, prompt: str, options: CompletionOptions) -> str | list[int]:
        return prompt if options.suffix is None else self.model.infill_prompt(prompt, options.suffix)

    def _chunk(self, token: TokenData, options: CompletionOptions, reason: FinishReason | None) -> CompletionChunk:
        logprobs = None
        if options.logprobs:
            own = TokenLogprob(token.token_id, self.model.token_bytes(token.token_id), token.logprob)
            logprobs = (own, *token.top_logprobs)
        return CompletionChunk(token.text, token.token_id, logprobs, reason)

    @staticmethod
    def _echoed(prompt: str, options: CompletionOptions, completion: Completion) -> Completion:
        return replace(completion, text=prompt + completion.text) if options.echo else completion


def _checked(options: CompletionOptions | None) -> CompletionOptions:
    if options is not None and not isinstance(options, CompletionOptions):
        raise _checks.refuse_type("options", options, "a CompletionOptions or None")
    options = options or CompletionOptions()
    for name, value in (("echo", options.echo), ("logprobs", options.logprobs)):
        _checks.flag(name, value)
    if options.suffix is not None and not isinstance(options.suffix, str):
        raise _checks.refuse_type("suffix", options.suffix, "a str or None")
    return options


def _checked_single(options: CompletionOptions | None, callback: object) -> CompletionOptions:
    options = _checked(options)
    if options.n != 1:
        raise _checks.refuse("n", options.n, "1 here", "create_completions gives several.")
    if not callable(callback):
        raise _checks.refuse_type("callback", callback, "a function of one chunk")
    return options
