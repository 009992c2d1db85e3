"""The arguments of the calls that generate, spelled once: a method declares what it gets, and takes what that is made of.

`arguments(of)` gives a method the signature of the function `of`, for type checkers and for `help` alike:

    @arguments(text_request)
    def generate(self, request: TextRequest) -> Completion: ...

is called as ``context.generate(prompt, max_tokens, params, config=…)``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from ._chat import ChatOptions, ChatRequest, Message
from ._request import Prompt, TextRequest
from .config import UNSET, SamplerParams, StreamConfig, Unset, stream_config

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["MaxTokens", "arguments", "chat_request", "several_requests", "text_request"]

P = ParamSpec("P")
S = TypeVar("S")
A = TypeVar("A")
R = TypeVar("R")

MaxTokens = int | StreamConfig | Unset | None


def text_request(
    prompt: Prompt,
    max_tokens: MaxTokens = UNSET,
    params: SamplerParams | None = None,
    *,
    config: StreamConfig | None = None,
) -> TextRequest:
    return TextRequest(prompt, stream_config(max_tokens, params, config))


def several_requests(
    prompt: Prompt,
    n: int,
    max_tokens: MaxTokens = UNSET,
    params: SamplerParams | None = None,
    *,
    config: StreamConfig | None = None,
) -> tuple[TextRequest, int]:
    return TextRequest(prompt, stream_config(max_tokens, params, config)), n


def chat_request(
    messages: Iterable[Message],
    max_tokens: MaxTokens = UNSET,
    params: SamplerParams | None = None,
    *,
    config: StreamConfig | None = None,
    **options: Unpack[ChatOptions],
) -> ChatRequest:
    return ChatRequest(messages, options, stream_config(max_tokens, params, config))


def arguments(of: Callable[P, A]) -> Callable[[Callable[[S, A], R]], Callable[Concatenate[S, P], R]]:
    """Has a method called with the arguments of a function, and gives it what that makes of them."""

    def decorate(method: Callable[[S, A], R]) -> Callable[Concatenate[S, P], R]:
        def call(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
            return method(self, of(*args, **kwargs))

        async def call_async(self: S, *args: P.args, **kwargs: P.kwargs) -> object:
            return await cast("Any", method(self, of(*args, **kwargs)))

        chosen: Any = call_async if inspect.iscoroutinefunction(method) else call
        functools.update_wrapper(chosen, method)
        own, taken = inspect.signature(method), inspect.signature(of)
        parameters = [*list(own.parameters.values())[:1], *taken.parameters.values()]
        chosen.__signature__ = own.replace(parameters=parameters)
        return cast("Callable[Concatenate[S, P], R]", chosen)

    return decorate
