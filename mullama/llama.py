"""One `Llama` object with the names of llama-crab and llama-cpp-python: `create_completion` and its kin. No logic of its own.

Everything here is a call of `Context` with other names; what is said there of errors and cancellation holds here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from . import _checks
from ._chat import ChatOptions, Message
from ._chat_records import ChatCompletion, ChatDelta
from ._generation import goes_on
from ._model import Model, StrPath, checked_path
from ._records import Completion, FinishReason, StreamControl, TokenData, TokenLogprob
from ._sync import Context
from .config import ContextParams, SamplerParams, StreamConfig, _Config, _field

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["CompletionChunk", "CompletionOptions", "Llama", "LlamaParams"]

T = TypeVar("T")

_EXAMPLE = "For example CompletionOptions(max_tokens=64)."


_OF_STREAM = {field.name: field.metadata["check"] for field in dataclasses.fields(StreamConfig)}


def _path(name: str, value: object) -> object:
    checked_path(value)  # type: ignore[arg-type]
    return value  # as it was given


def _stop(name: str, value: object) -> Sequence[str]:
    checked: Sequence[str] = _OF_STREAM["stop_sequences"](name, (value,) if isinstance(value, str) else value)
    return checked


def _suffix(name: str, value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise _checks.refuse_type(name, value, "a str or None")


def _made(kind: type[T]) -> _checks.Check:
    """The check of a field whose value is a configuration of its own."""

    def check(name: str, value: object) -> T:
        if isinstance(value, kind):
            return value
        raise _checks.refuse_type(name, value, f"a {kind.__name__}", f"For example {name}={kind.__name__}().")

    return check


@dataclass(frozen=True, slots=True)
class LlamaParams(_Config):
    """What to load, and the context to make for it.

    Attributes:
        path: The GGUF file; None is the model that comes with mullama.
        n_gpu_layers: As in `Model.load`.
        context: As in `Context`; one slot where it is left out.

    Raises:
        InvalidParameter: A value is out of range; `InvalidParameterType` if it is of a wrong type.
    """

    path: StrPath | None = _field(None, _path)  # noqa: RUF009
    n_gpu_layers: int = _field(-1, _checks.integer(-1, hint="-1 is all of them."))
    context: ContextParams = field(
        default_factory=lambda: ContextParams(n_seq_max=1), metadata={"check": _made(ContextParams)}
    )


@dataclass(frozen=True, slots=True)
class CompletionOptions(_Config):
    """One completion. Checked when it is made.

    Attributes:
        max_tokens: At most so many tokens; None until the end.
        stop: A stop string, or several.
        sampler: How tokens are chosen: temperature, seed, logit_bias, grammar and the rest.
        logprobs: Whether each chunk comes with the log-probabilities of its token and of the likeliest at its place.
        top_logprobs: How many of those, up to 20.
        echo: Begin the completion with the prompt. Not in a chat.
        suffix: Text that is to follow: the model fills in, where its vocabulary has the marks for it. Not in a chat.
        min_tokens: No end token before so many.
        n: So many completions of the one prompt, which is computed once; `Llama.create_completions` returns all of them.
        timeout_ms: As in `StreamConfig`; default none.

    Raises:
        InvalidParameter: A value is out of range; `InvalidParameterType` if it is of a wrong type.
    """

    max_tokens: int | None = _field(256, _OF_STREAM["max_tokens"])
    stop: str | Sequence[str] = _field((), _stop)
    sampler: SamplerParams = field(default_factory=SamplerParams, metadata={"check": _made(SamplerParams)})
    logprobs: bool = _field(False, _checks.flag)
    top_logprobs: int = _field(0, _OF_STREAM["top_logprobs"])
    echo: bool = _field(False, _checks.flag)
    suffix: str | None = _field(None, _suffix)
    min_tokens: int = _field(0, _OF_STREAM["min_tokens"])
    n: int = _field(1, _checks.integer(1, 65536))
    timeout_ms: int = _field(0, _OF_STREAM["timeout_ms"])

    def _agree(self) -> None:
        if self.top_logprobs and not self.logprobs:
            raise _checks.conflict(
                "top_logprobs",
                self.top_logprobs,
                f"top_logprobs={self.top_logprobs} does nothing without logprobs",
                "Add logprobs=True, or leave it out.",
            )
        self.stream_config()

    def stream_config(self) -> StreamConfig:
        """The same as a `StreamConfig`, for the methods of `Context`."""
        return StreamConfig(
            max_tokens=self.max_tokens,
            stop_sequences=self.stop,
            params=self.sampler,
            top_logprobs=self.top_logprobs,
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
    """A model with one context, as in ``Llama("model.gguf", n_ctx=512)``. A context manager, which closes it.

    Args:
        path: The GGUF file, or a whole `LlamaParams`; None is the model that comes with mullama.
        n_gpu_layers: As in `Model.load`; None is what the `LlamaParams` say, or else all.
        **context: Fields of `ContextParams` by themselves, such as ``n_ctx=512``; one slot unless `n_seq_max` is given.

    Raises:
        ModelLoadError: As `Model.load`.
        ContextError: As `Context`.
        InvalidParameter: An argument is out of range or of the wrong type.
    """

    context: Context

    def __init__(
        self, path: LlamaParams | StrPath | None = None, *, n_gpu_layers: int | None = None, **context: Any
    ) -> None:
        params = path if isinstance(path, LlamaParams) else LlamaParams(path)
        if n_gpu_layers is not None:
            params = params.replace(n_gpu_layers=n_gpu_layers)
        model = Model.load(params.path, n_gpu_layers=params.n_gpu_layers)
        self.context = Context(model, params.context, **context)

    @classmethod
    def load(
        cls, path: LlamaParams | StrPath | None = None, *, n_gpu_layers: int | None = None, **context: Any
    ) -> Self:
        """The same as ``Llama(…)``."""
        return cls(path, n_gpu_layers=n_gpu_layers, **context)

    def __repr__(self) -> str:
        return f"<mullama.Llama with {self.context!r}>"

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

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """As `Model.tokenize`."""
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
        return self.context.chat(messages, _checked_chat(options).stream_config(), **chat)

    def create_chat_completion_stream(
        self,
        messages: Iterable[Message],
        options: CompletionOptions | None,
        callback: Callable[[ChatDelta], bool | StreamControl | None],
        **chat: Unpack[ChatOptions],
    ) -> ChatCompletion:
        """Answer a chat, calling back with what each token adds to the message."""
        config = _checked_chat(options, callback).stream_config()
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
        return replace(completion, text=prompt + completion.text, n_echoed=len(prompt)) if options.echo else completion


def _checked(options: CompletionOptions | None) -> CompletionOptions:
    if options is not None and not isinstance(options, CompletionOptions):
        raise _checks.refuse_type("options", options, "a CompletionOptions or None", _EXAMPLE)
    return options or CompletionOptions()


def _checked_single(options: CompletionOptions | None, callback: object = print) -> CompletionOptions:
    options = _checked(options)
    if options.n != 1:
        raise _checks.refuse("n", options.n, "1 here", "create_completions() gives several.")
    if not callable(callback):
        raise _checks.refuse_type("callback", callback, "a function of one chunk")
    return options


def _checked_chat(options: CompletionOptions | None, callback: object = print) -> CompletionOptions:
    options = _checked_single(options, callback)
    for name, none in (("echo", False), ("suffix", None)):
        if getattr(options, name) != none:
            raise _checks.refuse(name, getattr(options, name), f"{none} in a chat", "Leave it out.")
    return options
