"""The arguments of the calls that generate, written once.

`arguments(of)` gives a method the parameters of the function `of`, for type checkers and `help` alike, and calls it with the
result of that function:

    @arguments(text_request)
    def generate(self, request: TextRequest) -> Completion: ...

is called as ``context.generate(prompt, max_tokens, params, config=…)``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from ._chat import ChatOptions, ChatRequest, Message
from ._checks import conflict, refuse_type
from ._options import UNSET, MaxTokens, StreamOptions, stream_config
from ._records import StreamControl, TokenData
from ._request import Prompt, TextRequest
from .config import SamplerParams, StreamConfig

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "Callback",
    "ChatKeywords",
    "arguments",
    "callback_request",
    "chat_request",
    "several_requests",
    "text_request",
]

P = ParamSpec("P")
S = TypeVar("S")
A = TypeVar("A")
R = TypeVar("R")
T = TypeVar("T")


Answer = bool | StreamControl | None
Callback = Callable[[TokenData], Answer | Awaitable[Answer]]  # only the async shell accepts a coroutine function


class ChatKeywords(ChatOptions, StreamOptions, total=False):
    """The keyword arguments of a chat."""


def text_request(
    prompt: Prompt,
    max_tokens: MaxTokens = UNSET,
    params: SamplerParams | None = None,
    *,
    config: StreamConfig | None = None,
    **options: Unpack[StreamOptions],
) -> TextRequest:
    return TextRequest(_taken(prompt), stream_config(max_tokens, params, config, options))


def several_requests(
    prompt: Prompt,
    n: int,
    max_tokens: MaxTokens = UNSET,
    params: SamplerParams | None = None,
    *,
    config: StreamConfig | None = None,
    **options: Unpack[StreamOptions],
) -> tuple[TextRequest, int]:
    return TextRequest(_taken(prompt), stream_config(max_tokens, params, config, options)), n


def callback_request(
    prompt: Prompt,
    max_tokens: MaxTokens | Callback = UNSET,
    callback: Callback | None = None,
    params: SamplerParams | None = None,
    *,
    config: StreamConfig | None = None,
    **options: Unpack[StreamOptions],
) -> tuple[TextRequest, Callback]:
    if callable(max_tokens):
        if callback is not None:
            raise conflict("callback", callback, "two callbacks were given", "Pass one of them.")
        callback, max_tokens = max_tokens, UNSET
    if not callable(callback):
        raise refuse_type("callback", callback, "a function of one token")
    return TextRequest(_taken(prompt), stream_config(max_tokens, params, config, options)), callback


def chat_request(
    messages: Iterable[Message],
    max_tokens: MaxTokens = UNSET,
    params: SamplerParams | None = None,
    *,
    config: StreamConfig | None = None,
    **options: Unpack[ChatKeywords],
) -> ChatRequest:
    known = ChatOptions.__annotations__
    chat: Any = {name: value for name, value in options.items() if name in known}
    rest = {name: value for name, value in options.items() if name not in known}
    return ChatRequest(_taken(messages), chat, stream_config(max_tokens, params, config, rest, known=known))


def _taken(items: T) -> T:
    """What a user may change or exhaust after the call, as a list of our own; text, and what is no iterable, as it is."""
    if isinstance(items, (str, bytes, bytearray, Mapping)) or not isinstance(items, Iterable):
        return items
    try:
        return cast("T", [*items])
    except TypeError:  # it only looked like one, as an array without a dimension does
        return items


def arguments(of: Callable[P, A]) -> Callable[[Callable[[S, A], R]], Callable[Concatenate[S, P], R]]:
    """Give a method the parameters of a function, and call it with what the function returns for them."""

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
