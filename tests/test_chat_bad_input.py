"""Invalid chats: messages, tools, options and templates that are refused before anything is generated."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_helpers import TEMPLATES, USER, WEATHER, saying
from conftest import SANITIZED

from mullama import ChatError, Context, InvalidParameter, Model, MullamaError, SamplerParams, TokenizationError
from mullama._chat import render_chat

VOCABULARIES = TEMPLATES.parent


@pytest.fixture(scope="module")
def context(model: Model) -> Iterator[Context]:
    with Context(model, n_ctx=512, n_seq_max=1, n_threads=1) as context:
        yield context


@pytest.fixture(autouse=True)
def nothing_ran(context: Context) -> Iterator[None]:
    """A refused call leaves no trace, and the engine works as before."""
    before = context.statistics().tokens_in
    yield
    assert context.statistics().tokens_in == before
    assert context.chat([USER], 20, saying("Yes.")).message.content == "Yes."


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def call(**function: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}


# ------------------------------------------------------------------------------ messages


@pytest.mark.parametrize(
    ("messages", "type_", "says"),
    [
        (None, TypeError, "messages must be a list of messages"),
        ("Hello", TypeError, "a list of messages"),
        (USER, TypeError, "a list of messages"),
        (7, TypeError, "a list of messages"),
        ([], InvalidParameter, "at least one message"),
        (["Hello"], TypeError, "messages[0] must be a mapping with role and content"),
        ([USER, None], TypeError, "messages[1]"),
        ([{"content": "x"}], InvalidParameter, "messages[0]['role'] must be one of system"),
        ([{"role": "robot", "content": "x"}], InvalidParameter, "'robot'"),
        ([{"role": ["user"], "content": "x"}], InvalidParameter, "['user']"),
        ([{"role": "user"}], InvalidParameter, "messages[0]['content'] must be text"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], InvalidParameter, "content"),
        ([{"role": "user", "content": 7}], TypeError, "text, or a list of text parts, not 7"),
        ([{"role": "user", "content": b"x"}], TypeError, "b'x'"),
        ([{"role": "user", "content": ["x"]}], InvalidParameter, "a part of messages[0]['content']"),
        ([{"role": "user", "content": [{"type": "text"}]}], InvalidParameter, "a part"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], InvalidParameter, "image_url"),
        ([{"role": "user", "content": "a\ud800"}], InvalidParameter, "surrogates not allowed"),
        ([{"role": "user", "content": "a\0b"}], TokenizationError, "NUL"),
        ([USER | {"extra": nested(100_000)}], InvalidParameter, "what JSON can say"),
        ([USER | {"extra": nested(400)}], ChatError, "nested too deeply"),
        ([USER | {"extra": object()}], InvalidParameter, "not JSON serializable"),
        ([USER | {"extra": float("nan")}], InvalidParameter, "JSON"),
        ([USER | {"name": 7}], TypeError, "messages[0]['name']"),
        ([{"role": "tool", "content": "x", "tool_call_id": 7}], TypeError, "tool_call_id"),
        ([{"role": "assistant", "tool_calls": "x"}], TypeError, "a list of tool calls"),
        ([{"role": "assistant", "tool_calls": ["x"]}], TypeError, "messages[0]['tool_calls'][0]"),
        ([{"role": "assistant", "tool_calls": [{"type": "web", "function": {"name": "f"}}]}], TypeError, "'web'"),
        ([call(arguments="{}")], TypeError, "tool_calls"),
        ([call(name="f", arguments=7)], TypeError, "tool_calls"),
        ([call(name="f", arguments="{not JSON")], ChatError, "tool call arguments as JSON"),
        ([call(name="f", arguments="[" * 10**6 + "]" * 10**6)], ChatError, "nested too deeply"),
    ],
    ids=lambda value: repr(value)[:40] if not isinstance(value, list) else "messages",
)  # fmt: skip
def test_messages(context: Context, messages: Any, type_: type[Exception], says: str) -> None:
    with pytest.raises(type_) as caught:
        context.chat(messages)
    assert isinstance(caught.value, MullamaError)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 1500


def test_a_message_that_holds_itself(context: Context) -> None:
    message: dict[str, Any] = dict(USER)
    message["self"] = message
    with pytest.raises(InvalidParameter, match="Circular"):
        context.chat([message])


def test_a_chat_that_is_too_long(context: Context) -> None:
    with pytest.raises(MullamaError) as caught:
        context.chat([USER | {"content": "word " * 5000}])
    assert caught.value.code == "PROMPT_TOO_LONG"


def test_what_messages_may_be(model: Model) -> None:
    parts = [{"type": "text", "text": "How is"}, {"type": "text", "text": "the weather?"}]
    messages = (
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts, "name": None},
        call(name="f", arguments={"x": 1}),
        {"role": "tool", "content": [{"type": "text", "text": "Sunny"}]},
        {"role": "assistant", "content": "It is sunny."},
        {"role": "user", "content": ""},
    )
    prompt = render_chat(model, iter(messages), {})
    assert prompt.startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHow is\nthe weather?<|im_end|>\n"
    )
    assert '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call><|im_end|>' in prompt
    assert "<tool_response>\nSunny\n</tool_response>" in prompt
    assert prompt.endswith("It is sunny.<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n")
    assert '"arguments": {}}' in render_chat(model, [USER, call(name="f", arguments="")], {})


# ------------------------------------------------------------------------------ tools and other options


def with_schema(schema: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}


@pytest.mark.parametrize(
    ("options", "type_", "says"),
    [
        ({"tools": 7}, TypeError, "tools must be a list of tools"),
        ({"tools": "get_weather"}, TypeError, "a list of tools"),
        ({"tools": WEATHER}, TypeError, "a list of tools"),
        ({"tools": ["get_weather"]}, TypeError, "tools[0]"),
        ({"tools": [{"type": "function"}]}, TypeError, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, TypeError, "tools[0]"),
        ({"tools": [{"type": "web_search", "function": {"name": "f"}}]}, TypeError, "web_search"),
        ({"tools": [WEATHER, WEATHER]}, InvalidParameter, "tools[1] must be of another name"),
        ({"tools": [{"function": {"name": "f", "description": 7}}]}, TypeError, "description"),
        ({"tools": [{"function": {"name": "f\ud800"}}]}, InvalidParameter, "surrogates"),
        (with_schema("object"), TypeError, "tools[0]"),
        (with_schema({"type": "nonsense"}), ChatError, "nonsense"),
        (with_schema({"type": "object", "properties": 5}), ChatError, "properties must be an object"),
        (with_schema({"type": "object", "properties": {"a": {"$ref": "#/none"}}}), ChatError, "cannot resolve"),
        (with_schema({"type": "object", "properties": {"a": {"enum": nested(400)}}}), ChatError, "nested too deeply"),
        ({"tool_choice": None, "tools": [WEATHER]}, TypeError, "tool_choice"),
        ({"tool_choice": "get_time", "tools": [WEATHER]}, InvalidParameter, "the name of one of the tools"),
        ({"tool_choice": {"function": {}}, "tools": [WEATHER]}, TypeError, "tool_choice"),
        ({"tool_choice": "required"}, InvalidParameter, "where there are no tools"),
        ({"parallel_tool_calls": 1}, TypeError, "parallel_tool_calls must be True or False"),
        ({"thinking": "no"}, TypeError, "thinking"),
        ({"template_arguments": [1]}, TypeError, "template_arguments must be a mapping"),
        ({"template_arguments": {"x": object()}}, InvalidParameter, "template_arguments['x']"),
        ({"tool_choices": 1}, TypeError, "unknown keyword 'tool_choices' for a call that generates (its value is 1)"),
        ({"response_format": {}, "thinking": 7}, TypeError, "'response_format'"),
    ],
    ids=lambda value: repr(value)[:50],
)  # fmt: skip
def test_options(context: Context, options: Any, type_: type[Exception], says: str) -> None:
    with pytest.raises(type_) as caught:
        context.chat([USER], **options)
    assert isinstance(caught.value, MullamaError)
    assert says in str(caught.value)


def test_grammars(context: Context) -> None:
    with pytest.raises(InvalidParameter, match="tools are given beside a grammar or json_schema"):
        context.chat([USER], params=saying("x"), tools=[WEATHER])
    with pytest.raises(InvalidParameter, match="grammar"):
        context.chat([USER], params=SamplerParams(grammar="root ::= ("))
    with pytest.raises(InvalidParameter, match="json_schema"):
        context.chat([USER], params=SamplerParams(json_schema={"type": "nonsense"}))


# ------------------------------------------------------------------------------ templates


@pytest.mark.parametrize(
    ("template", "type_", "says"),
    [
        (7, TypeError, "template must be a Jinja template as text, a path, or None"),
        (b"{{ x }}", TypeError, "template"),
        ("", InvalidParameter, "with {{ … }} or {% … %} in it"),
        ("chat.jinja", InvalidParameter, "pass a pathlib.Path for a file"),
        ("{{ '\ud800' }}", ChatError, "surrogates"),
        ("{{ messages[0].content", ChatError, "cannot be used"),
        ("{% for m in messages %}{{ m.content }}", ChatError, "cannot be used"),
        ("{% nonsense %}", ChatError, "nonsense"),
        ("{{ messages | nonsense }}", ChatError, "nonsense"),
        ("{{ raise_exception('no such luck') }}", ChatError, "no such luck"),
        ("{{ messages[0].nobody() }}", ChatError, "nobody"),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_templates(context: Context, template: Any, type_: type[Exception], says: str) -> None:
    with pytest.raises(type_) as caught:
        context.chat([USER], template=template)
    assert isinstance(caught.value, MullamaError)
    assert says in str(caught.value)
    assert "std::exception" not in str(caught.value)


def test_files_of_templates(context: Context, model: Model, tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text("<{{ messages[0].content }}|{{ mood | tojson }}|{{ add_generation_prompt }}>", "utf-8")
    for template in (file, file.read_text("utf-8")):
        given = {"template": template, "template_arguments": {"mood": ["glad", {"é": 1}]}}
        assert render_chat(model, [USER], given).startswith(f'<{USER["content"]}|["glad", {{"é": 1}}]|')  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        context.chat([USER], template=tmp_path / "none.jinja")
    with pytest.raises(IsADirectoryError):
        context.chat([USER], template=tmp_path)
    file.write_bytes(b"{{ '\xff' }}")
    with pytest.raises(ChatError, match="not valid UTF-8"):
        context.chat([USER], template=file)
    file.write_bytes(b"")
    with pytest.raises(InvalidParameter, match="template"):
        context.chat([USER], template=file)


def test_a_model_without_a_template() -> None:
    vocabulary = Model.load(VOCABULARIES / "ggml-vocab-gpt-2.gguf", vocab_only=True)
    with pytest.raises(ChatError, match=r'the model has no chat template.*template="chatml"'):
        render_chat(vocabulary, [USER], {})
    assert USER["content"] in render_chat(vocabulary, [USER], {"template": "chatml"})


def test_a_template_that_refuses_an_order_of_roles(context: Context) -> None:
    """Some templates raise errors; the user needs to see the template's own reason."""
    with pytest.raises(ChatError, match="alternate"):
        context.chat([USER, USER], template=TEMPLATES / "google-gemma-2-2b-it.jinja")


@pytest.mark.skipif(SANITIZED, reason="a sanitizer's shadow takes more addresses than the limit")
def test_a_range_without_end_is_no_end_of_the_process() -> None:
    """A template that allocates without end raises an error when memory runs out, here at a limit of 2 GB."""
    program = """
import resource, mullama
from mullama._chat import render_chat
model = mullama.Model.load(vocab_only=True)
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
try:
    render_chat(model, [{"role": "user", "content": "x"}], {"template": "{% for i in range(10**10) %}{{ i }}{% endfor %}"})
except mullama.ChatError as e:
    print(e)
print(render_chat(model, [{"role": "user", "content": "x"}], {})[:12])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("<|im_start|>\n"), done.stdout


def test_errors_quote_little(context: Context) -> None:
    long = [{"type": "function", "function": {"name": "f", "parameters": {"type": "nonsense", "title": "x" * 10**5}}}]
    with pytest.raises(ChatError) as caught:
        context.chat([USER | {"content": json.dumps("y" * 100)}], tools=long)
    assert len(str(caught.value)) < 1000
