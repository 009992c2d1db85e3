"""Templates of the large families: prompts are rendered, and scripted answers, split at any point, are parsed into messages."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from chat_answers import CASES, NOW, WEATHER, Says
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mullama import ChatError, ChatMessage, Model, ToolCall, _core

TEMPLATES = Path(__file__).parents[1] / "vendor" / "llama.cpp" / "models" / "templates"

USER = {"role": "user", "content": "How is the weather in Paris?"}


@pytest.fixture(scope="module")
def vocabulary() -> Model:
    return Model.load(vocab_only=True)


def opened(model: Model, template: str | Path, messages: Sequence[Any] = (USER,), **changes: Any) -> _core.Chat:
    options: dict[str, Any] = {
        "messages": json.dumps(messages).encode(),
        "tools": b"",
        "tool_choice": b"auto",
        "parallel_tool_calls": True,
        "grammar": b"",
        "json_schema": b"",
        "thinking": True,
        "reasoning_format": b"auto",
        "arguments": {},
    }
    path = TEMPLATES / f"{template}.jinja"
    return _core.Chat(model.chat_templates(path), **(options | changes))


def with_tools(model: Model, template: str, **changes: Any) -> _core.Chat:
    return opened(model, template, tools=json.dumps([WEATHER, NOW]).encode(), **changes)


class Reader:
    """Assemble deltas as a client does, and check that they come in the promised order."""

    def __init__(self) -> None:
        self.content = self.reasoning = ""
        self.calls: list[list[str]] = []

    def take(self, news: list[tuple[str, str, int, str, str, str]]) -> None:
        kinds = [index >= 0 for _, _, index, _, _, _ in news]
        assert kinds == sorted(kinds), "what is said comes before tool calls"
        for reasoning, content, index, call_id, name, arguments in news:
            self.reasoning += reasoning
            self.content += content
            if index < 0:
                assert reasoning or content
                assert (call_id, name, arguments) == ("", "", "")
            elif index == len(self.calls):
                assert call_id
                assert name
                self.calls.append([call_id, name, arguments])
            else:
                assert index < len(self.calls)
                assert (call_id, name) == ("", ""), "they come once"
                assert arguments, "an empty fragment"
                self.calls[index][2] += arguments

    def says(self) -> Says:
        calls = tuple((name, json.loads(arguments)) for _, name, arguments in self.calls)
        return Says(self.content.strip(), self.reasoning.strip(), calls)


def read(chat: _core.Chat, pieces: Sequence[str], *, whole: bool = True) -> Reader:
    reader = Reader()
    for token, piece in enumerate(pieces):
        reader.take(chat.feed(piece, token))
    if whole:
        reader.take(chat.finish())
    return reader


ANSWERS = [
    pytest.param(template, answer, says, id=f"{template[:24]}-{i}")
    for template, cases in CASES.items()
    for i, (answer, says) in enumerate(cases)
]


@pytest.mark.parametrize(("template", "answer", "says"), ANSWERS)
def test_an_answer_in_one_piece_and_by_characters(vocabulary: Model, template: str, answer: str, says: Says) -> None:
    whole, single = (read(with_tools(vocabulary, template), pieces) for pieces in ([answer], list(answer)))
    assert (whole.says(), single.says()) == (says, says)
    assert (single.content, single.reasoning) == (whole.content, whole.reasoning)


@pytest.mark.parametrize(("template", "answer", "says"), ANSWERS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_answer_split_anywhere(
    vocabulary: Model, template: str, answer: str, says: Says, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(answer) - 1))) if len(answer) > 1 else ())
    pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    assert read(with_tools(vocabulary, template), pieces).says() == says


@pytest.mark.parametrize(("template", "answer", "says"), ANSWERS)
def test_an_answer_cut_off_anywhere_says_the_beginning_of_it(
    vocabulary: Model, template: str, answer: str, says: Says
) -> None:
    """What was sent before the cut is a prefix of the final message: nothing is taken back."""
    whole = read(with_tools(vocabulary, template), [answer])
    for cut in range(1, len(answer), 5):
        part = read(with_tools(vocabulary, template), [answer[:cut]], whole=False)
        assert whole.content.startswith(part.content), answer[:cut]
        assert whole.reasoning.startswith(part.reasoning), answer[:cut]
        assert len(part.calls) <= len(whole.calls)
        for (_, name, arguments), (_, all_name, all_arguments) in zip(part.calls, whole.calls, strict=False):
            assert name == all_name
            assert all_arguments.startswith(arguments)


def check_what_is_told(open_it: Callable[[], _core.Chat], pieces: Sequence[str]) -> Reader:
    """A chat that does not call its parser for every piece, compared with one that parses every prefix of the answer."""
    chat, reader = open_it(), Reader()
    content = reasoning = so_far = ""
    for token, piece in enumerate(pieces):
        so_far += piece
        reader.take(chat.feed(piece, token))
        at_once = read(open_it(), [so_far], whole=False)
        content, reasoning = max(content, at_once.content, key=len), max(reasoning, at_once.reasoning, key=len)
        assert content.startswith(reader.content), so_far
        assert reasoning.startswith(reader.reasoning), so_far
        held = len(content + reasoning) - len(reader.content + reader.reasoning)
        assert held < 32 + len(piece), "no more is held back than a mark"
    reader.take(chat.flush())
    assert (reader.content, reader.reasoning) == (content, reasoning)
    return reader


@pytest.mark.parametrize(("template", "answer", "says"), ANSWERS)
def test_what_is_told_without_the_parser_is_what_it_would_tell(
    vocabulary: Model, template: str, answer: str, says: Says
) -> None:
    assert check_what_is_told(lambda: with_tools(vocabulary, template), answer).says()[:2] == says[:2]
    check_what_is_told(lambda: opened(vocabulary, template), answer)


@pytest.mark.parametrize("template", CASES)
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_is_told_of_any_text(vocabulary: Model, template: str, data: st.DataObject) -> None:
    """Made of markers, partial markers and words, in any order."""
    known = re.findall(r"<[^>]*>|\[[^\]]*\]|\s+|[^<\[\s]+", "".join(answer for answer, _ in CASES[template]))
    piece = st.sampled_from(
        [*known, *(mark[: len(mark) // 2 + 1] for mark in known), "Hello ", "< ", "é🌞", "\n\n", "{"]
    )
    pieces = data.draw(st.lists(piece, min_size=1, max_size=12))
    open_it = data.draw(st.sampled_from([with_tools, opened]))
    # Some templates cannot parse an answer without their markers, and what looked like a call may turn out not to be one.
    with contextlib.suppress(RuntimeError):
        check_what_is_told(lambda: open_it(vocabulary, template), pieces)


LONG = "It is a fine day, and 5 < 6 <b>by the way</b>; [see].\n\n"


def beginning(template: str) -> str:
    """The start of a plain-text answer, for templates in which it is not immediately plain text."""
    plain = [answer for answer, says in CASES[template] if not says.calls and says.content == "Hello."]
    return plain[-1].removesuffix("<|END_RESPONSE|>").removesuffix("Hello.") if plain else ""


@pytest.mark.parametrize("template", [t for t, cases in CASES.items() if any(not says.calls for _, says in cases)])
@pytest.mark.parametrize("tools", [True, False], ids=["tools", "no tools"])
def test_a_long_answer_is_not_parsed_again_for_each_token(vocabulary: Model, template: str, tools: bool) -> None:
    """Counted: the parser reads as much for the last thousand characters as for a thousand before."""
    chat, reader = (with_tools if tools else opened)(vocabulary, template), Reader()
    reader.take(chat.feed(beginning(template), 0))
    parsed = []
    for i, character in enumerate(LONG * 60):
        reader.take(chat.feed(character, i))
        parsed.append(chat.n_parsed)
    reader.take(chat.flush())
    assert reader.content.strip().endswith((LONG * 60).strip())
    assert parsed[-1] - parsed[-1000] <= parsed[1999] - parsed[1000]
    assert parsed[-1] < 100_000, "that is less than it takes to read it twenty times"


def test_long_arguments_are_read_in_proportion(vocabulary: Model) -> None:
    """Counted, too: within a call the parser must start from the beginning, so it is called less often."""
    template = "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use"
    arguments = json.dumps({"city": "Paris, " * 3000})
    answer = f'<tool_call>\n{{"name": "get_weather", "arguments": {arguments}}}\n</tool_call>'
    chat, reader, told = with_tools(vocabulary, template), Reader(), 0
    for i in range(0, len(answer), 4):
        deltas = chat.feed(answer[i : i + 4], i)
        told += bool(deltas)
        reader.take(deltas)
    reader.take(chat.flush())
    ((_, name, said),) = reader.calls
    assert (name, json.loads(said)) == ("get_weather", json.loads(arguments))
    assert chat.n_parsed < 260 * len(answer), "else it would be half as many times as there are pieces"
    assert told > 500, "news all along"


# ------------------------------------------------------------------------------ prompts


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.jinja")), ids=lambda path: path.stem[:30])
def test_every_template_renders_a_chat(vocabulary: Model, path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it ÿ 🌞?"}]
    chat = opened(vocabulary, path.stem, messages)
    assert "Is it ÿ 🌞?" in chat.prompt
    assert "Be brief." in chat.prompt
    assert chat.prompt == opened(vocabulary, path.stem, messages).prompt


@pytest.mark.parametrize("template", [t for t, cases in CASES.items() if any(says.calls for _, says in cases)])
def test_a_tool_call_and_its_result_go_back_into_the_prompt(vocabulary: Model, template: str) -> None:
    answer = next(answer for answer, says in CASES[template] if says.calls)
    chat = with_tools(vocabulary, template)
    assert "get_weather" in chat.prompt
    assert "get_weather" not in opened(vocabulary, template).prompt
    calls = [ToolCall(*call) for call in read(chat, [answer]).calls]
    message = ChatMessage("", "", tuple(calls)).to_dict()
    results = [{"role": "tool", "content": "Sunny", "tool_call_id": call.id, "name": call.name} for call in calls]
    again = with_tools(vocabulary, template, messages=[USER, message, *results])
    added = again.prompt[len(chat.prompt) - 40 :]
    assert "Sunny" in added
    assert calls[0].name in again.prompt


def test_a_template_that_thinks_can_be_told_not_to(vocabulary: Model) -> None:
    template = "Qwen-Qwen3-0.6B"
    assert vocabulary.chat_templates(TEMPLATES / f"{template}.jinja").supports_thinking
    assert not vocabulary.chat_templates(TEMPLATES / "google-gemma-2-2b-it.jinja").supports_thinking
    silent = "<think>\n\n</think>\n\n"
    assert not opened(vocabulary, template).prompt.endswith(silent)
    by_flag = opened(vocabulary, template, thinking=False)
    by_argument = opened(vocabulary, template, arguments={"enable_thinking": "false"})
    for chat in (by_flag, by_argument):
        assert chat.prompt.endswith(silent)
        assert read(chat, ["Hel", "lo."]).says() == Says("Hello.")


# ------------------------------------------------------------------------------ what goes wrong


def test_what_does_not_parse_is_an_error_and_harms_no_other(vocabulary: Model) -> None:
    broken, sound = (with_tools(vocabulary, "Qwen-Qwen2.5-7B-Instruct") for _ in range(2))
    sound.feed("Hel", 1)
    with pytest.raises(RuntimeError, match="does not match"):
        read(broken, ['<tool_call>\n{"name": "nobody", "arguments": {}}\n</tool_call>'])
    sound.feed("lo.", 2)
    assert sound.finish() == []


def test_threads_share_a_template(vocabulary: Model) -> None:
    """Rendering and parsing release the GIL, so that they really run in parallel."""
    answers = CASES["Qwen-Qwen3-0.6B"] * 20
    with ThreadPoolExecutor(4) as pool:
        said = pool.map(lambda case: read(with_tools(vocabulary, "Qwen-Qwen3-0.6B"), list(case[0])).says(), answers)
        assert list(said) == [says for _, says in answers]


def test_a_finished_answer_takes_no_more(vocabulary: Model) -> None:
    chat = opened(vocabulary, "Qwen-Qwen2.5-7B-Instruct")
    chat.feed("Hello.", 1)
    assert chat.feed("", 2) == []
    chat.finish()
    for call in (chat.finish, lambda: chat.feed("x", 3)):
        with pytest.raises(RuntimeError, match="the answer is finished"):
            call()


def test_templates_are_kept_but_not_without_end(vocabulary: Model) -> None:
    first = vocabulary.chat_templates("{{ messages[0].content }} 0")
    assert vocabulary.chat_templates("{{ messages[0].content }} 0") is first
    for i in range(1, 40):
        vocabulary.chat_templates(f"{{{{ messages[0].content }}}} {i}")
    assert len(vocabulary._templates) <= 16
    with pytest.raises(ChatError):
        vocabulary.chat_templates("{{ broken")
