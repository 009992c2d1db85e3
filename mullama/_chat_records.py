"""What a chat hands out: the message of the assistant, whole or as it comes, and the tools that it calls. Plain values."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from . import _openai
from ._records import Completion, FinishReason, Timings, TokenData, Usage

if TYPE_CHECKING:
    from ._openai import TokenBytes

__all__ = ["ChatCompletion", "ChatDelta", "ChatMessage", "ToolCall", "ToolCallDelta"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that the model wants called.

    Attributes:
        id: Made up for this call; the message with its result names it as ``tool_call_id``.
        name: Of the function.
        arguments: JSON text.
    """

    id: str
    name: str
    arguments: str

    def to_dict(self) -> dict[str, Any]:
        """One of the ``tool_calls`` of a message in the form of OpenAI's API."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """What is new of a tool call. The first of a call has its id and name, the others only a fragment of its arguments.

    Attributes:
        index: Which of the message's calls, from 0.
        id: The id, on the first of the call; else None.
        name: The function's name, on the first of the call; else None.
        arguments: A piece of JSON text; all pieces of a call joined are its arguments.
    """

    index: int
    id: str | None
    name: str | None
    arguments: str

    def to_dict(self) -> dict[str, Any]:
        """One of the ``tool_calls`` of a delta in the form of OpenAI's API; id and name are there on the first of a call."""
        call: dict[str, Any] = {"index": self.index}
        function = {"arguments": self.arguments}
        if self.id is not None:
            call |= {"id": self.id, "type": "function"}
        if self.name is not None:
            function = {"name": self.name, **function}
        return {**call, "function": function}


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """What one token adds to the message. That is often nothing, which makes it false; `str(delta)` is its content.

    Attributes:
        content: Text for the user; may be empty.
        reasoning_content: Text that the model thinks to itself; may be empty.
        tool_calls: What is new of tool calls.
        token: The token itself, which is the text as the model wrote it.
    """

    content: str
    reasoning_content: str
    tool_calls: tuple[ToolCallDelta, ...]
    token: TokenData

    def __str__(self) -> str:
        return self.content

    def __bool__(self) -> bool:
        """Whether it adds anything."""
        return bool(self.content or self.reasoning_content or self.tool_calls)

    def to_dict(self) -> dict[str, Any]:
        """The ``delta`` of a ``chat.completion.chunk`` in the form of OpenAI's API; what adds nothing is left out."""
        delta: dict[str, Any] = {}
        if self.reasoning_content:
            delta["reasoning_content"] = self.reasoning_content
        if self.content:
            delta["content"] = self.content
        if self.tool_calls:
            delta["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        return delta

    def to_choice(
        self,
        *,
        index: int = 0,
        finish_reason: FinishReason | Literal["tool_calls"] | None = None,
        token_bytes: TokenBytes | None = None,
    ) -> dict[str, Any]:
        """The choice of a ``chat.completion.chunk`` in the form of OpenAI's API.

        Args:
            index: Which of several answers this one is.
            finish_reason: On the last one, that of the answer (`ChatCompletion.finish_reason`), put into OpenAI's words as
                `Completion.to_dict` does.
            token_bytes: `Model.token_bytes` of the model that writes it, to have ``logprobs``; None is without.
        """
        token = self.token
        each = [(token.token_id, token.logprob, token.top_logprobs)]
        return {
            "index": index,
            "delta": self.to_dict(),
            "logprobs": _openai.chat_logprobs(each, token_bytes),
            "finish_reason": _openai.finish_reason(finish_reason),
        }


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """A message of the assistant. It can stand among the messages of the next request as it is.

    Attributes:
        content: Text for the user.
        reasoning_content: What the model thought to itself.
        tool_calls: The tools that it wants called.
        role: Always ``"assistant"``.
    """

    content: str
    reasoning_content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    role: Literal["assistant"] = "assistant"

    def __repr__(self) -> str:
        thought = f", reasoning_content={reprlib.repr(self.reasoning_content)}" if self.reasoning_content else ""
        calls = f", tool_calls={reprlib.repr([call.name for call in self.tool_calls])}" if self.tool_calls else ""
        return f"<mullama.ChatMessage {reprlib.repr(self.content)}{thought}{calls}>"

    def to_dict(self) -> dict[str, Any]:
        """The message as a `dict` in the form of OpenAI's API."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning_content:
            message["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            message["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        return message


@dataclass(frozen=True, slots=True)
class ChatCompletion:
    """An answer as a whole; `str(answer)` is its content.

    Attributes:
        message: What the assistant says.
        finish_reason: ``"tool_calls"`` where the message asks for tools and is whole; else as `Completion.finish_reason`.
        completion: The generation behind it: the text as the model wrote it, tokens, usage, timings.
    """

    message: ChatMessage
    finish_reason: FinishReason | Literal["tool_calls"]
    completion: Completion

    def __str__(self) -> str:
        return self.message.content

    def __repr__(self) -> str:
        return f"<mullama.ChatCompletion {self.message!r}, finish_reason={self.finish_reason!r}>"

    @property
    def text(self) -> str:
        """What the message says to the user: its content."""
        return self.message.content

    @property
    def usage(self) -> Usage:
        """Numbers of tokens."""
        return self.completion.usage

    @property
    def timings(self) -> Timings:
        """Where the time went."""
        return self.completion.timings

    def to_dict(
        self,
        *,
        model: str = "mullama",
        id: str = "chatcmpl-0",  # noqa: A002
        created: int = 0,
        token_bytes: TokenBytes | None = None,
    ) -> dict[str, Any]:
        """A whole ``chat.completion`` response in the form of OpenAI's API; arguments and the rest as `Completion.to_dict`."""
        return {
            "id": id,
            "object": "chat.completion",
            "created": created,
            "model": model,
            "choices": [self.to_choice(token_bytes=token_bytes)],
            "usage": self.usage.to_dict(),
            "timings": self.timings.to_dict(self.usage),
        }

    def to_choice(self, *, index: int = 0, token_bytes: TokenBytes | None = None) -> dict[str, Any]:
        """One of the ``choices`` of such a response, for one that has several. Arguments as `to_dict`."""
        return {
            "index": index,
            "message": self.message.to_dict(),
            "logprobs": _openai.chat_logprobs(self.completion._each_token(), token_bytes),
            "finish_reason": _openai.finish_reason(self.finish_reason),
        }
