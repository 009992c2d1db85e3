"""A chat without waiting: messages to a prompt by the model's template, tokens back to what is new of the message.

The work is llama.cpp's (its templates, its parsers for the formats in which models write tool calls and thoughts); here it
is checked, converted, and tied to a generation.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict

from . import _checks, _core
from ._chat_records import ChatCompletion, ChatDelta, ChatMessage, ToolCall, ToolCallDelta
from ._engine import Engine
from ._generation import Generation
from ._model import Model
from ._records import FinishReason, TokenData
from ._request import LONG_TEXT, Prepared, finish, grammar_of, has_long_sampling, refuse_far_too_long
from ._schema import plain_schema, tool_schema
from ._workers import breathe
from .config import StreamConfig
from .errors import ChatError, MullamaError, TokenizationError

__all__ = ["ChatGeneration", "ChatOptions", "ChatRequest", "Message", "Tool", "render_chat"]

_News = tuple[str, str, int, str, str, str]  # reasoning, content, and a tool call's index, id, name, arguments

# A message as in OpenAI's API, ``{"role": …, "content": …}``; or an answer's own.
Message: TypeAlias = Mapping[str, Any] | ChatMessage
# A function that the model may call, as in OpenAI's API.
Tool: TypeAlias = Mapping[str, Any]

_ROLES = ("system", "developer", "user", "assistant", "tool")
_WEIGHT = 400  # characters: what a message costs a template besides its content
_CHOICES = ("auto", "required", "none")


class ChatOptions(TypedDict, total=False):
    """What a chat may be asked for besides its messages; keywords of `Context.chat` and its kin.

    Attributes:
        tools: The functions that the model may call, each as in OpenAI's API:
            ``{"type": "function", "function": {"name": …, "description": …, "parameters": <JSON schema>}}``.
        tool_choice: ``"auto"`` (the default); ``"required"`` or the name of the one function to call, so that the answer ends
            only in a call, before which it may think; or ``"none"``: the model is not told of the tools, and its text is
            text, whatever it looks like.
        parallel_tool_calls: Whether it may call several at once; default False.
        thinking: Whether a model that can think to itself should; default True.
        template: A Jinja template in place of the model's own: its text as a `str`, or its file as a `pathlib.Path`. It is
            a program, and may take 5 seconds of processor time: take it from where you would take code.
        template_arguments: Variables for the template, of any JSON type.
    """

    tools: Sequence[Tool]
    tool_choice: str | Mapping[str, Any]
    parallel_tool_calls: bool
    thinking: bool
    template: str | os.PathLike[str] | None
    template_arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What a call asks for: an answer to messages."""

    messages: Iterable[Message]
    options: ChatOptions
    config: StreamConfig

    def is_long(self, engine: Engine) -> bool:
        options = self.options
        if options.get("tools") or options.get("template") is not None or not engine.model._has_parsed_template():
            return True
        given = [self.messages, options.get("template_arguments")]
        return has_long_sampling(self.config) or _weight(given, LONG_TEXT) > LONG_TEXT

    def prepare(self, engine: Engine, pending: _core.Pending) -> Prepared:
        chat = _open_chat(engine.model, self.messages, self.options, self.config, pending)
        tokens = _prompt_tokens(engine, chat, pending)
        return finish(engine, tokens, self.config, pending, chat=chat)


def _weight(value: object, limit: int) -> int:
    """About how much there is to render, in characters; no more is counted than a little above the limit."""
    total, rest = 0, [value]
    while rest and total <= limit:
        one = rest.pop()
        if isinstance(one, str):
            total += len(one)
        elif isinstance(one, Mapping):
            total += _WEIGHT
            rest += one.values()
        elif isinstance(one, (list, tuple)):
            total += len(one)
            if total <= limit:
                rest += one
        elif isinstance(one, ChatMessage):
            total += _WEIGHT
            rest += (one.content, one.reasoning_content, *(call.arguments for call in one.tool_calls))
    return total


class ChatGeneration:
    """The generation of one answer; `take` gives what each token adds to the message."""

    def __init__(self, engine: Engine, request: ChatRequest, *, apart: bool = False) -> None:
        self._model = engine.model
        self.generation: Generation = Generation(engine, request, apart=apart)
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[str, str, list[str]]] = []
        self._whole = False
        self._failure: str | None = None

    def take(self) -> ChatDelta | None:
        if self._failure is not None:
            error = ChatError(self._failure, hint="Its text so far is in completion().")
            error.completion = self.completion()
            raise error
        try:
            token = self.generation.take()
        except MullamaError as e:
            e.completion = self.completion()
            raise
        if token is None:
            return None
        news: list[_News] = []
        try:
            news += self._parser().feed(str(token), token.token_id)
            if token.is_final:
                news += self._parser().flush()
                if self.generation.reason() == "stop":
                    news += self._finish(token)
        except RuntimeError as e:  # told with the next call: this token is whole
            self._failure = f"the model's answer cannot be parsed: {_brief(e)}"
            self.generation.cancel()
            self.generation.discard()
        return self._delta(token, news)

    def _parser(self) -> _core.Chat:
        prepared = self.generation.prepared
        assert prepared is not None  # there is a token
        assert prepared.chat is not None
        return prepared.chat

    def _finish(self, token: TokenData) -> list[_News]:
        try:
            news = self._parser().finish()
        except RuntimeError:
            if self._model.token_is_eog(token.token_id):
                raise
            return []  # a stop string cut it off, as max_tokens would have
        self._whole = True
        return news

    def completion(self) -> ChatCompletion:
        """The answer as a whole, as far as it was read."""
        completion = self.generation.completion()
        calls = tuple(ToolCall(call_id, name, "".join(parts)) for call_id, name, parts in self._calls)
        message = ChatMessage("".join(self._content), "".join(self._reasoning), calls)
        reason: FinishReason | Literal["tool_calls"] = completion.finish_reason
        if self._failure is not None:
            reason = "error"
        elif calls and self._whole:
            reason = "tool_calls"
        return ChatCompletion(message, reason, completion)

    def _delta(self, token: TokenData, news: list[_News]) -> ChatDelta:
        calls = []
        for reasoning, content, index, call_id, name, arguments in news:
            self._reasoning.append(reasoning)
            self._content.append(content)
            if index < 0:
                continue
            if index == len(self._calls):
                self._calls.append((call_id, name, []))
            self._calls[index][2].append(arguments)
            calls.append(ToolCallDelta(index, call_id or None, name or None, arguments))
        return ChatDelta("".join(n[1] for n in news), "".join(n[0] for n in news), tuple(calls), token)


def render_chat(model: Model, messages: Iterable[Message], options: ChatOptions) -> str:
    """The prompt that a chat comes to, as text."""
    return _open_chat(model, messages, options, StreamConfig()).prompt


def _open_chat(
    model: Model,
    messages: Iterable[Message],
    options: ChatOptions,
    config: StreamConfig,
    pending: _core.Pending | None = None,
) -> _core.Chat:
    if options.keys() - ChatOptions.__annotations__.keys():
        hint = "How to sample is said by params=SamplerParams(…), how long and how far by config=StreamConfig(…)."
        raise _checks.refuse_name("a chat", options, ChatOptions.__annotations__, hint)
    tools, choice = _checked_tools(options)
    params = config.sampler()
    arguments = options.get("template_arguments") or {}
    if not isinstance(arguments, Mapping):
        raise _checks.refuse_type("template_arguments", arguments, "a mapping")
    grammar_of(params, pending)
    if tools and (params.grammar is not None or params.json_schema is not None):
        message = "tools are given beside a grammar or json_schema, which leaves the model no way to call them"
        hint = "Ask for calls and for such an answer in turn, or pass tool_choice='none'."
        raise _checks.conflict("tools", tools, message, hint)
    said = b",".join(_json("messages", one) for one in _checked_messages(messages))  # one by one: each holds the GIL
    try:
        return _core.Chat(
            model.chat_templates(options.get("template"), pending),
            messages=b"[" + said + b"]",
            tools=_json("tools", tools) if tools else b"",
            tool_choice=choice.encode(),
            parallel_tool_calls=_checks.flag("parallel_tool_calls", options.get("parallel_tool_calls", False)),
            grammar=(params.grammar or "").encode(),
            json_schema=b"" if params.json_schema is None else plain_schema(params.json_schema).encode(),
            thinking=_checks.flag("thinking", options.get("thinking", True)),
            reasoning_format=b"auto",
            arguments={str(k): _json(f"template_arguments[{k!r}]", v).decode() for k, v in arguments.items()},
            pending=pending,
        )
    except RuntimeError as e:
        raise ChatError(
            f"the chat template cannot render these messages: {_brief(e)}",
            hint="Some templates want the roles to alternate, or know only some of them; a user's message can say the same.",
        ) from None


def _prompt_tokens(engine: Engine, chat: _core.Chat, pending: _core.Pending) -> list[int]:
    prompt = chat.prompt
    refuse_far_too_long(engine, len(prompt))
    nul = prompt.find("\0")
    if nul >= 0:
        raise TokenizationError(f"the prompt has a NUL character at index {nul}", hint="Remove it from the messages.")
    try:
        return chat.prompt_tokens(pending)
    except RuntimeError as e:
        raise TokenizationError(f"the prompt cannot be tokenised: {_brief(e)}") from None


def _checked_messages(messages: Any) -> list[dict[str, Any]]:
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
        example = 'For example [{"role": "user", "content": "Hello"}].'
        raise _checks.refuse_type("messages", messages, "a list of messages", example)
    checked = [_checked_message(f"messages[{i}]", message) for i, message in enumerate(messages)]
    if not checked:
        raise _checks.refuse("messages", messages, "a list of at least one message")
    return checked


def _checked_message(name: str, message: Any) -> dict[str, Any]:
    breathe()
    if hasattr(message, "to_dict"):
        message = message.to_dict()
    if not isinstance(message, Mapping):
        raise _checks.refuse_type(name, message, "a mapping with role and content")
    role, content, calls = message.get("role"), message.get("content"), message.get("tool_calls")
    if role not in _ROLES:
        raise _checks.refuse(f"{name}['role']", role, f"one of {', '.join(_ROLES)}")
    if content is None and not calls:
        raise _checks.refuse(f"{name}['content']", None, "text, or there must be tool_calls")
    if isinstance(content, (list, tuple)):
        for part in content:
            if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise _checks.refuse(f"a part of {name}['content']", part, 'like {"type": "text", "text": …}')
    elif content is not None and not isinstance(content, str):
        raise _checks.refuse_type(f"{name}['content']", content, "text, or a list of text parts")
    checked = {key: value for key, value in message.items() if value is not None}
    for key in ("reasoning_content", "name", "tool_call_id"):
        if not isinstance(checked.get(key, ""), str):
            raise _checks.refuse_type(f"{name}[{key!r}]", checked[key], "text")
    if calls is not None:
        checked["tool_calls"] = _checked_calls(f"{name}['tool_calls']", calls)
        checked.setdefault("content", "")
    return checked


def _checked_calls(name: str, calls: Any) -> list[dict[str, Any]]:
    if isinstance(calls, (str, bytes, Mapping)) or not isinstance(calls, Iterable):
        raise _checks.refuse_type(name, calls, "a list of tool calls")
    checked = []
    for i, call in enumerate(calls):
        function = _function(call)
        arguments: Any = (function or {}).get("arguments") or "{}"
        if function is None or not isinstance(arguments, (str, Mapping)) or not isinstance(call.get("id", ""), str):
            expected = 'like {"type": "function", "id": …, "function": {"name": …, "arguments": …}}'
            raise _checks.refuse_type(f"{name}[{i}]", call, expected)
        checked.append({**call, "type": "function", "function": {**function, "arguments": arguments}})
    return checked


def _function(tool: Any) -> Mapping[str, Any] | None:
    """What a tool or a call of one has under "function", if it is one with a name."""
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or tool.get("type", "function") != "function":
        return None
    return function if isinstance(function.get("name"), str) and function["name"] else None


def _checked_tools(options: ChatOptions) -> tuple[list[Tool], str]:
    given_tools: Any = options.get("tools") or ()
    if isinstance(given_tools, (str, bytes, Mapping)) or not isinstance(given_tools, Iterable):
        raise _checks.refuse_type("tools", given_tools, "a list of tools")
    tools: list[Tool] = []
    for i, tool in enumerate(given_tools):
        function = _function(tool)
        if function is None or not isinstance(function.get("parameters") or {}, Mapping):
            expected = 'a mapping like {"type": "function", "function": {"name": …, "parameters": …}}'
            raise _checks.refuse_type(f"tools[{i}]", tool, expected)
        if not isinstance(function.get("description") or "", str):
            raise _checks.refuse_type(f"tools[{i}]'s description", function["description"], "text")
        if any(function["name"] == other["function"]["name"] for other in tools):
            raise _checks.refuse(f"tools[{i}]", tool, "of another name than the others")
        known = {key: value for key, value in function.items() if value is not None}
        if function.get("parameters"):
            known["parameters"] = tool_schema(f"tools[{i}]'s parameters", function["parameters"])
        tools.append({**tool, "type": "function", "function": known})
    given: Any = options.get("tool_choice", "auto")
    choice, named = given, False
    if isinstance(given, Mapping):
        choice, named = (_function(given) or {}).get("name"), True
    if not isinstance(choice, str):
        raise _checks.refuse_type("tool_choice", given, "auto, required, none, or a function's name")
    if named or choice not in _CHOICES:
        tools = [tool for tool in tools if tool["function"]["name"] == choice]
        if not tools:
            names = "auto, required, none, or the name of one of the tools"
            raise _checks.refuse("tool_choice", given, names)
        choice = "required"
    if choice == "required" and not tools:
        raise _checks.refuse("tool_choice", given, "auto or none where there are no tools")
    return ([] if choice == "none" else tools), choice  # a model that is not told of tools calls none


def _json(name: str, value: object) -> bytes:
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as e:  # a lone surrogate is a ValueError too
        raise _checks.refuse(name, value, f"what JSON can say ({e})") from None


def _brief(e: Exception) -> str:
    """What llama.cpp says, which may quote all that it was given."""
    text = str(e).strip()
    return text if len(text) <= 600 else text[:300] + " … " + text[-300:]
