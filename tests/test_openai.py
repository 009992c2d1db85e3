"""Records in the form of OpenAI's API, checked with the types and the stream reader of OpenAI's own package."""

from __future__ import annotations

import json
import math
from typing import Any

import openai.types
import pytest
from chat_helpers import HERMES, QWEN3, THOUGHT, TIME, USER, WEATHER, saying
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel
from test_text import decided, split

from mullama import (
    ChatCompletion,
    ChatDelta,
    ChatMessage,
    Completion,
    Context,
    FinishReason,
    SamplerParams,
    StreamConfig,
    Timings,
    TokenData,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)

PROMPT = "Once upon a time"
GREEDY = SamplerParams.greedy(ignore_eos=True)
EXTRA = {"timings", "reasoning_content"}  # llama-server's extensions
REASONS = ("stop", "length", "tool_calls")


def unknown(thing: Any) -> set[str]:
    """Fields that pydantic accepted although the type does not have them, at any depth."""
    if isinstance(thing, BaseModel):
        found = set(thing.model_extra or ())
        return found.union(*(unknown(getattr(thing, name)) for name in type(thing).model_fields))
    if isinstance(thing, list):
        return set().union(*map(unknown, thing))
    return set()


def checked(kind: Any, given: dict[str, Any]) -> Any:
    """The dict as OpenAI's type, from JSON as a client reads it, without unknown fields."""
    text = json.dumps(given, allow_nan=False)
    made = kind.model_validate_json(text, strict=True)
    assert unknown(made) <= EXTRA
    assert json.loads(text) == given, "plain JSON types only"
    return made


def made_up(text: str = "Hi", reason: FinishReason = "stop", **changes: Any) -> Completion:
    fields = {"text": text, "tokens": (5, 6), "finish_reason": reason, "stop_sequence": None}
    figures = {"usage": Usage(10, 2, 4), "timings": Timings(1.0, 20.0, 30.0, 25.0), "logprobs": (-0.5, -1.5)}
    return Completion(**(fields | figures | changes))


# ------------------------------------------------------------------------------ completions


def test_a_completion(context: Context) -> None:
    completion = context.generate(PROMPT, 12, GREEDY)
    made = checked(openai.types.Completion, completion.to_dict(model="small", id="cmpl-x", created=1234))
    assert (made.id, made.created, made.model, made.object) == ("cmpl-x", 1234, "small", "text_completion")
    (choice,) = made.choices
    assert (choice.index, choice.text, choice.finish_reason) == (0, completion.text, "length")
    assert choice.logprobs is None
    assert made.usage.prompt_tokens == completion.usage.prompt_tokens
    assert made.usage.completion_tokens == 12
    assert made.usage.total_tokens == completion.usage.total_tokens
    details = checked(openai.types.Completion, made_up().to_dict()).usage.prompt_tokens_details
    assert details.cached_tokens == 4


def test_it_is_made_of_the_record_alone() -> None:
    completion = made_up()
    answer = ChatCompletion(ChatMessage("Hi"), "stop", completion)
    assert completion.to_dict() == completion.to_dict()
    assert answer.to_dict() == answer.to_dict()
    given = [record.to_dict() for record in (completion, answer)]
    assert [one["id"] for one in given] == ["cmpl-0", "chatcmpl-0"]
    assert [(one["created"], one["model"]) for one in given] == [(0, "mullama")] * 2


def test_timings_are_llama_servers() -> None:
    assert made_up().to_dict()["timings"] == {
        "cache_n": 4,
        "prompt_n": 6,
        "prompt_ms": 20.0,
        "prompt_per_token_ms": pytest.approx(20 / 6),
        "prompt_per_second": pytest.approx(300),
        "predicted_n": 2,
        "predicted_ms": 30.0,
        "predicted_per_token_ms": pytest.approx(40),
        "predicted_per_second": pytest.approx(25),
    }
    nothing = made_up(usage=Usage(10, 0, 10), timings=Timings(1.0, 0.0, 0.0, 0.0), tokens=(), logprobs=())
    assert set(nothing.to_dict()["timings"].values()) == {10, 0}


@pytest.mark.parametrize("reason", ["stop", "length", "cancelled", "timeout", "error"])
def test_every_reason_has_a_word_of_openais(reason: FinishReason) -> None:
    """Truncated text is reported as such."""
    expected = "stop" if reason == "stop" else "length"
    made = checked(openai.types.Completion, made_up(reason=reason).to_dict())
    assert made.choices[0].finish_reason == expected
    answer = ChatCompletion(ChatMessage("Hi"), reason, made_up(reason=reason))
    assert checked(openai.types.chat.ChatCompletion, answer.to_dict()).choices[0].finish_reason == expected
    delta = ChatDelta("Hi", "", (), TokenData("Hi", 5, True))
    assert delta.to_choice(finish_reason=reason)["finish_reason"] == expected
    assert delta.to_choice()["finish_reason"] is None


@pytest.mark.parametrize("top", [0, 3])
def test_log_probabilities_of_a_completion(context: Context, top: int) -> None:
    config = StreamConfig(max_tokens=20, params=GREEDY, top_logprobs=top)
    completion = context.generate(PROMPT, config)
    given = completion.to_dict(token_bytes=context.model.token_bytes)
    found = checked(openai.types.Completion, given).choices[0].logprobs
    assert "".join(found.tokens) == completion.text
    assert found.token_logprobs == pytest.approx(list(completion.logprobs))
    assert found.text_offset == [len("".join(found.tokens[:i])) for i in range(20)]
    if top == 0:
        assert found.top_logprobs is None
    else:
        assert [len(others) for others in found.top_logprobs] == [3] * 20
        assert all(max(o, key=o.__getitem__) == t for o, t in zip(found.top_logprobs, found.tokens, strict=True))


def test_the_token_itself_is_among_the_likeliest() -> None:
    """As in OpenAI's API, even for a token that is not among the most likely."""
    others = ((TokenLogprob(1, b"a", -0.1),), (TokenLogprob(2, b"b", -0.2),))
    logprobs = made_up(top_logprobs=others).to_dict(token_bytes={5: b"H", 6: b"i"}.__getitem__)["choices"][0][
        "logprobs"
    ]
    assert logprobs["top_logprobs"] == [{"a": -0.1, "H": -0.5}, {"b": -0.2, "i": -1.5}]


def test_infinity_has_openais_word() -> None:
    completion = made_up(logprobs=(-math.inf, -1.0), top_logprobs=((TokenLogprob(1, b"a", -math.inf),), ()))
    answer = ChatCompletion(ChatMessage("Hi"), "stop", completion)
    text = checked(openai.types.Completion, completion.to_dict(token_bytes=lambda _: b"x"))
    assert text.choices[0].logprobs.token_logprobs == [-9999.0, -1.0]
    chat = checked(openai.types.chat.ChatCompletion, answer.to_dict(token_bytes=lambda _: b"x"))
    assert chat.choices[0].logprobs.content[0].logprob == -9999.0
    assert chat.choices[0].logprobs.content[0].top_logprobs[0].logprob == -9999.0


# Python's incremental decoder, which is used to count offsets, keeps the start of a surrogate although it is invalid.
@given(split().filter(lambda pieces: b"\xed" not in b"".join(pieces)), st.data())
def test_offsets_of_any_tokens(pieces: list[bytes], data: st.DataObject) -> None:
    """Where each token starts in the text, including a text that a stop string cut off, with a prompt before it."""
    whole = b"".join(pieces).decode(errors="replace")
    text = whole[: data.draw(st.integers(0, len(whole)))]
    ends = [len(decided(b"".join(pieces[:i]))) for i in range(len(pieces))]
    completion = made_up("Prompt" + text, tokens=tuple(range(len(pieces))), logprobs=(0.0,) * len(pieces), n_echoed=6)
    offsets = completion.to_dict(token_bytes=pieces.__getitem__)["choices"][0]["logprobs"]["text_offset"]
    assert offsets == [6 + min(end, len(text)) for end in ends]


def test_tokens_that_show_nothing_take_no_room() -> None:
    pieces = {1: b"<mark>", 2: b"a", 3: b"\xc3", 4: b"\xa9!", 5: b"</s>"}
    completion = made_up("aé!", tokens=(1, 2, 1, 3, 4, 5), logprobs=(0.0,) * 6)
    logprobs = completion.to_dict(token_bytes=pieces.__getitem__)["choices"][0]["logprobs"]
    assert logprobs["text_offset"] == [0, 0, 1, 1, 1, 3]
    assert logprobs["tokens"] == ["<mark>", "a", "<mark>", "\ufffd", "\ufffd!", "</s>"]


def test_several_choices(context: Context) -> None:
    several = context.generate_many(PROMPT, 3, 8, SamplerParams(seed=1, ignore_eos=True))
    choices = [completion.to_choice(index=i) for i, completion in enumerate(several)]
    made = checked(openai.types.Completion, several[0].to_dict() | {"choices": choices})
    assert [(choice.index, choice.text) for choice in made.choices] == [(i, c.text) for i, c in enumerate(several)]


# ------------------------------------------------------------------------------ chats


def test_an_answer(context: Context) -> None:
    config = StreamConfig(max_tokens=60, params=saying(THOUGHT), top_logprobs=2)
    answer = context.chat([USER], config, template=QWEN3)
    given = answer.to_dict(model="small", token_bytes=context.model.token_bytes)
    made = checked(openai.types.chat.ChatCompletion, given)
    (choice,) = made.choices
    assert (made.object, choice.finish_reason) == ("chat.completion", "stop")
    assert (choice.message.role, choice.message.content) == ("assistant", answer.text)
    assert choice.message.reasoning_content == answer.message.reasoning_content
    assert made.usage.completion_tokens == answer.usage.completion_tokens
    assert made.timings["predicted_ms"] == answer.timings.decode_ms
    entries = choice.logprobs.content
    assert len(entries) == len(answer.completion.tokens), "every token has its own"
    assert b"".join(bytes(entry.bytes) for entry in entries[:-1]) == THOUGHT.encode()
    assert [len(entry.top_logprobs) for entry in entries] == [2] * len(entries)


def test_an_answer_that_calls_tools(context: Context) -> None:
    options: Any = {"tools": [WEATHER, TIME], "tool_choice": "required"}
    answer = context.chat([USER], 120, SamplerParams.greedy(), **options)
    made = checked(openai.types.chat.ChatCompletion, answer.to_dict())
    (choice,) = made.choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert (call.id, call.type, call.function.name) == (
        answer.message.tool_calls[0].id,
        "function",
        answer.message.tool_calls[0].name,
    )
    assert call.function.arguments == answer.message.tool_calls[0].arguments
    assert context.chat([USER, choice.message.model_dump(exclude_none=True)], 5).usage.completion_tokens == 5


@pytest.mark.parametrize("kind", ["thought", "call"])
def test_deltas_are_what_openais_reader_puts_together(context: Context, kind: str) -> None:
    options: dict[str, Any] = {"template": QWEN3}
    params = saying(THOUGHT)
    if kind == "call":
        options, params = {"tools": [WEATHER], "tool_choice": "required", "template": HERMES}, SamplerParams.greedy()
    with context.chat_stream([USER], 120, params, **options) as stream:
        deltas = list(stream)
    answer = stream.chat_completion()
    state: Any = ChatCompletionStreamState()
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "small"}
    for delta in deltas:
        reason = answer.finish_reason if delta.token.is_final else None
        choice = delta.to_choice(finish_reason=reason, token_bytes=context.model.token_bytes)
        assert all(choice["delta"].values()), "what adds nothing is left out"
        state.handle_chunk(checked(ChatCompletionChunk, {**head, "choices": [choice]}))
    (read,) = state.get_final_completion().choices
    whole = answer.to_choice(token_bytes=context.model.token_bytes)
    assert (read.message.content or "") == whole["message"]["content"]
    assert read.finish_reason == whole["finish_reason"]
    assert [entry.model_dump() for entry in read.logprobs.content] == whole["logprobs"]["content"]
    calls = [(c.id, c.type, c.function.name, c.function.arguments) for c in read.message.tool_calls or ()]
    assert calls == [(c.id, "function", c.name, c.arguments) for c in answer.message.tool_calls]
    assert bool(calls) is (kind == "call")
    thoughts = "".join(delta.to_dict().get("reasoning_content", "") for delta in deltas)
    assert thoughts == answer.message.reasoning_content


def test_id_and_name_of_a_call_are_there_once() -> None:
    first, then = ToolCallDelta(0, "abc", "get_time", ""), ToolCallDelta(0, None, None, '{"c')
    assert first.to_dict() == {
        "index": 0,
        "id": "abc",
        "type": "function",
        "function": {"name": "get_time", "arguments": ""},
    }
    assert then.to_dict() == {"index": 0, "function": {"arguments": '{"c'}}


def test_a_delta_that_adds_nothing_is_empty() -> None:
    assert ChatDelta("", "", (), TokenData("", 5)).to_dict() == {}
    assert list(ChatDelta("b", "a", (ToolCallDelta(0, "1", "f", ""),), TokenData("", 5)).to_dict()) == [
        "reasoning_content",
        "content",
        "tool_calls",
    ]
