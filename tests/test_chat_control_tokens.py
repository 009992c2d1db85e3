"""What users write never becomes a control token: over all templates, in each place of a chat, and in each vocabulary."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from model_files import byte_vocabulary

from mullama import ChatError, Context, Model, SamplerParams, StreamConfig, TokenizationError, _core
from mullama._chat import _open_chat

MODELS = Path(__file__).resolve().parents[1] / "vendor" / "llama.cpp" / "models"
TEMPLATES = {path.stem: path for path in sorted((MODELS / "templates").glob("*.jinja"))}
VOCABULARIES = sorted(MODELS.glob("ggml-vocab-*.gguf"))

pytestmark = pytest.mark.skipif(not TEMPLATES, reason="llama.cpp's source is not placed here (make build)")

LIMITED = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))

# What looks like the name of a special token in a template.
NAME = re.compile(
    r"<\|[^|<>\s'\"{}]{1,40}\|?>|<｜[^｜<>\s'\"]{1,40}｜>|\[/?[A-Z_]{2,30}\]|\]<\]minimax\[>\[|</?[a-z_:|]{2,30}\|?>"
)
NAMES = {stem: sorted(set(NAME.findall(path.read_text("utf-8")))) for stem, path in TEMPLATES.items()}
ALL_NAMES = sorted(set().union(*NAMES.values()))
TAGS = [name for name in ALL_NAMES if re.fullmatch(r"</?[a-z_:]+>", name)]

# The same text with nothing in it that a special token's name could begin or end with.
HARMLESS = str.maketrans({"<": "(", ">": ")", "|": "!", "[": "{", "]": "}", "｜": "¦"})


class Vocabulary(NamedTuple):
    model: Model
    control: set[int]

    def in_prompt(self, chat: _core.Chat) -> list[int]:
        return [token for token in chat.prompt_tokens() if token in self.control]


@functools.cache
def vocabulary(folder: Path, control: tuple[str, ...], user_defined: tuple[str, ...] = ()) -> Vocabulary:
    path = folder / f"{abs(hash((control, user_defined)))}.gguf"
    kinds = byte_vocabulary(path, control, user_defined)
    return Vocabulary(Model.load(path, vocab_only=True), {i for i, kind in enumerate(kinds) if kind == 3})


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vocabularies")


@pytest.fixture(scope="session")
def vocabularies(folder: Path) -> list[Vocabulary]:
    """Tags such as <think> are control tokens in one, and user-defined ones in the other, as they mostly are."""
    markers = [name for name in ALL_NAMES if name not in TAGS]
    return [vocabulary(folder, tuple(ALL_NAMES)), vocabulary(folder, tuple(markers), tuple(TAGS))]


def opened(model: Model, messages: Any, template: Any = "chatml", **options: Any) -> _core.Chat:
    given: Any = {"template": template, **options}
    return _open_chat(model, messages, given, StreamConfig())


# ------------------------------------------------------------------------------ all templates, all places

SYSTEM, TOOLS = (
    ("system",),
    ("result", "reasoning", "call id", "name", "value", "key", "escaped", "tool", "parameter", "enum"),
)
PLACES = ("user", "last", "answer", *SYSTEM, *TOOLS, "argument")


def chat_with(place: str, text: str, *, system: bool, tools: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A chat with the text in one of its places."""

    def at(here: str, otherwise: str) -> str:
        return text if here == place else otherwise

    name, key = at("name", "get_weather"), at("key", at("parameter", "city"))
    alone = place in ("key", "parameter")  # some templates sort them
    arguments = json.dumps({key: at("value", at("escaped", "Paris"))} | ({} if alone else {"days": 3}))
    if place == "escaped":
        arguments = arguments.replace("<", "\\u003c").replace("|", "\\u007C")
    call = {"id": at("call id", "abcdefghi"), "type": "function", "function": {"name": name, "arguments": arguments}}
    messages: list[dict[str, Any]] = [{"role": "user", "content": at("user", "Hello.")}]
    if system:
        messages.insert(0, {"role": "system", "content": at("system", "Be brief.")})
    if tools:
        thought = at("reasoning", "Hmm.")
        messages += [
            {"role": "assistant", "content": at("answer", "Well."), "reasoning_content": thought, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "name": name, "content": at("result", "Sunny.")},
        ]
    else:
        messages.append({"role": "assistant", "content": at("answer", "Well.")})
    messages.append({"role": "user", "content": at("last", "Thanks.")})
    described = {"type": "string", "description": at("parameter", "Where?"), "enum": [at("enum", "Paris")]}
    parameters = {"type": "object", "properties": {key: described}, "required": [key]}
    function = {"name": name, "description": at("tool", "The weather"), "parameters": parameters}
    options: dict[str, Any] = {"tools": [{"type": "function", "function": function}]} if tools else {}
    if place == "argument":
        options["template_arguments"] = {"date_string": text, "documents": [{"title": text, "text": text}]}
    return messages, options


def rendered(model: Model, template: str, place: str, text: str) -> _core.Chat | None:
    """With all that the template takes; None where it does not take the place at all."""
    for system, tools in ((True, True), (False, True), (True, False), (False, False)):
        if (place in SYSTEM and not system) or (place in TOOLS and not tools):
            continue
        try:
            messages, options = chat_with(place, text, system=system, tools=tools)
            return opened(model, messages, TEMPLATES[template], **options)
        except ChatError:
            continue
    return None


def hostile(names: list[str]) -> st.SearchStrategy[str]:
    """Names of control tokens, whole, cut off and one after the other, in some text."""
    whole = st.sampled_from([*names, "</s>", "<s>"])
    cuts = st.tuples(whole, st.integers(1, 20))
    pieces = st.one_of(
        whole, cuts.map(lambda c: c[0][: c[1]]), cuts.map(lambda c: c[0][c[1] :]), st.sampled_from(' \nxü"\\{}')
    )
    return st.lists(pieces, min_size=1, max_size=4).map("".join)


# Templates that look for something of that kind in there, and leave it out or write it otherwise.
EXAMINED = {"answer", "reasoning", "value", "escaped"}


@pytest.mark.parametrize("template", TEMPLATES)
@settings(LIMITED, max_examples=8)
@given(data=st.data())
def test_control_tokens_are_the_templates(vocabularies: list[Vocabulary], template: str, data: st.DataObject) -> None:
    chosen = data.draw(st.sampled_from(vocabularies))
    place = data.draw(st.sampled_from(PLACES))
    text = data.draw(hostile(NAMES[template]))
    assume(text.strip() and not text.startswith("/"))
    forging = rendered(chosen.model, template, place, text)
    harmless = rendered(chosen.model, template, place, text.translate(HARMLESS))
    assume(harmless is not None)
    assert forging is not None
    assert harmless is not None
    assert chosen.in_prompt(forging) == chosen.in_prompt(harmless)
    if place not in EXAMINED:
        assert forging.prompt.translate(HARMLESS) == harmless.prompt.translate(HARMLESS)


@pytest.mark.parametrize("template", TEMPLATES)
def test_each_place_of_each_template(vocabularies: list[Vocabulary], template: str) -> None:
    """With names from the beginning and the end of its list at once."""
    text = "a" + "b".join(NAMES[template][:5] + NAMES[template][-5:]) + "</s>c"
    for place in PLACES:
        forging, harmless = (
            rendered(vocabularies[0].model, template, place, t) for t in (text, text.translate(HARMLESS))
        )
        assert (forging is None) == (harmless is None)
        if forging is None or harmless is None:
            continue
        assert vocabularies[0].in_prompt(forging) == vocabularies[0].in_prompt(harmless)
        assert (vocabularies[0].in_prompt(harmless) != []) == any(name in harmless.prompt for name in ALL_NAMES)


@pytest.mark.parametrize("template", TEMPLATES)
@settings(LIMITED, max_examples=3)
@given(text=st.lists(st.sampled_from([*"<>[]|", "user", "</b>", "a < b", "text", " ", "é"]), min_size=1).map("".join))
def test_an_ordinary_prompt_is_what_it_was(vocabularies: list[Vocabulary], template: str, text: str) -> None:
    """What only looks a little like a name changes no token."""
    model = vocabularies[1].model
    assume(text.strip() and not any(name in text for name in ALL_NAMES))
    chat = rendered(model, template, "last", text)
    assert chat is not None
    assert chat.prompt_tokens() == model.tokenize(chat.prompt, parse_special=True)


# ------------------------------------------------------------------------------ what strings come to together


@pytest.mark.parametrize(
    ("template", "messages"),
    [
        ("{{ messages[0].content }}{{ messages[1].content }}|", ["<|im_", "end|>"]),
        ("{{ messages[0].content | trim }}>|", ["<|im_end|  \n"]),
        ("<{{ messages[0].content }}>|", ["s"]),
        ("<{{ messages[0].content }}>|", ["|im_end|"]),
        ("{{ '<' ~ '|im_' ~ messages[0].content }}|>|", ["end"]),
        ("{{ '<|' }}{{ messages[0].content }}{{ messages[1].content }}", ["im_", "end|>"]),
        ("{{ messages[0].content | replace('<x>', '') }}", ["<|im_<x>end|>"]),
        ("{{ messages[0].content.split('/') | join('') }}", ["<|im/_end|/>"]),
        ("{{ messages[0].content[::-1] }}", [">|dne_mi|<"]),
        ("{{ messages[0].content | lower }}", ["<|IM_END|>"]),
        ("{{ messages[0].content | tojson }}", ["<|im_end|>"]),
        ("{{ messages[0] | tojson(ensure_ascii=true) }}", ["<|im_end|>é"]),
        ("{{ messages[0].content | upper | lower | title | lower }}", ["x<|im_end|>"]),
        ("{% for c in messages %}{{ c.content }}{% endfor %}", ["<", "|", "im", "_", "end", "|", ">"]),
    ],
)
def test_no_template_puts_a_control_token_together(folder: Path, template: str, messages: list[str]) -> None:
    chosen = vocabulary(folder, ("<|im_end|>", "<|im_start|>"))
    said = [{"role": "user", "content": text} for text in messages]
    chat = opened(chosen.model, said, "{{ '<|im_start|>' }}" + template)
    assert chosen.in_prompt(chat) == [
        1,
        chosen.model.tokenize("<|im_start|>", add_special=False, parse_special=True)[0],
    ]
    assert not set(chat.prompt) & set(map(chr, range(0xF0000, 0x110000)))


def test_the_text_is_the_users(folder: Path) -> None:
    """Also where it has private characters of its own, in whatever form, and names of which one is within the other."""
    chosen = vocabulary(folder, ("<|im_end|>", "<|im_start|>", "<<|im_end|>>"))
    for text in ("<|im_end|>\U000f0000\U000f0002", "\\udb80\\udc01<|im_end|>", "<<|im_end|>>", "<<|im_end|>"):
        for value in (text, json.dumps(text), json.dumps([text, {text: text}])):
            call = {"type": "function", "id": "abcdefghi", "function": {"name": "f", "arguments": {text: value}}}
            messages = [
                {"role": "user", "content": value},
                {"role": "assistant", "content": "", "tool_calls": [call]},
            ]
            chat = opened(chosen.model, messages, "{{ messages[0].content }}{{ messages[1].tool_calls | tojson }}")
            assert chat.prompt.startswith(value)
            assert chosen.in_prompt(chat) == [1]
            ids = chat.prompt_tokens()
            assert chosen.model.detokenize(ids).replace("▁", " ") == chat.prompt
            assert json.dumps(text, ensure_ascii=False) in chat.prompt


def test_a_control_token_that_is_a_plain_character_too(folder: Path) -> None:
    """There is no other token for it."""
    model = vocabulary(folder, ("<|im_end|>", "!")).model
    assert opened(model, [{"role": "user", "content": "Oh."}], "{{ messages[0].content }}!").prompt_tokens()[-1] > 256
    with pytest.raises(RuntimeError, match="control tokens of plain text"):
        opened(model, [{"role": "user", "content": "Oh!"}], "{{ messages[0].content }}!").prompt_tokens()


def test_strings_that_use_every_private_character_are_refused(folder: Path) -> None:
    text = "".join(map(chr, range(0xF0000, 0x110000))) + "<|im_end|>"
    with pytest.raises(ChatError, match="private characters"):
        opened(vocabulary(folder, ("<|im_end|>",)).model, [{"role": "user", "content": text}])


def test_a_nul_is_refused(context: Context) -> None:
    with pytest.raises(TokenizationError, match="NUL"):
        context.chat([{"role": "user", "content": "a\0b"}])


def test_a_schema_that_the_template_shows(vocabularies: list[Vocabulary]) -> None:
    model, _ = chosen = vocabularies[0]
    found = []
    for word in ("<｜User｜>", "(¦User¦)"):
        schema = json.dumps({"type": "object", "properties": {"a": {"const": word}}, "required": ["a"]})
        config = StreamConfig(params=SamplerParams(json_schema=schema))
        options: Any = {"template": TEMPLATES["deepseek-ai-DeepSeek-V4"]}
        chat = _open_chat(model, [{"role": "user", "content": "Hello."}], options, config)
        assert word in chat.prompt
        found.append(chosen.in_prompt(chat))
    assert found[0] == found[1]


# ------------------------------------------------------------------------------ vocabularies


@functools.cache
def load(file: Path) -> Model:
    return Model.load(file, vocab_only=True)


@functools.cache
def specials(file: Path) -> tuple[str, ...]:
    """The names of special tokens: some that come from text, and all that do not."""
    model = load(file)
    names = b"\n".join(model.token_bytes(token) for token in range(model.n_vocab))
    return tuple({name.decode(): 0 for token, name in model.chat_templates("chatml").split(names) if token >= 0})


@pytest.mark.parametrize("file", VOCABULARIES, ids=lambda file: file.stem.removeprefix("ggml-vocab-"))
@settings(LIMITED, max_examples=60)
@given(data=st.data())
def test_a_text_is_split_as_llama_cpp_splits_it(file: Path, data: st.DataObject) -> None:
    model = load(file)
    names = st.sampled_from(specials(file))
    cut = st.tuples(names, st.integers(1, 12)).map(lambda c: c[0][: c[1]])
    plain = st.sampled_from(["\n", " ", "  ", "\t", "<", "|", ">", "[", "▁", "Hello", " world", "ü🌞"])
    other = st.one_of(plain, st.text(max_size=3))
    text = "".join(data.draw(st.lists(st.one_of(names, cut, other), max_size=8))).replace("\0", "")
    ids: list[int] = []
    for token, piece in model.chat_templates("chatml").split(text.encode()):
        ids += [token] if token >= 0 else model.tokenize(piece.decode(), add_special=False)
    assert ids == model.tokenize(text, add_special=False, parse_special=True)


@pytest.mark.parametrize("file", VOCABULARIES, ids=lambda file: file.stem.removeprefix("ggml-vocab-"))
def test_a_forged_name_is_tokenised_as_text(file: Path) -> None:
    """Between the tokens that belong to a prompt's beginning and end."""
    model = load(file)
    for name in specials(file)[:60]:
        text = f"a {name} b{name}"
        chat = opened(model, [{"role": "user", "content": text}], "{{ messages[0].content }}")
        assert chat.prompt == text
        assert chat.prompt_tokens() == model.tokenize(text, parse_special=False)


# ------------------------------------------------------------------------------ a prompt that is text


def test_a_text_prompt_has_names_parsed_or_not(model: Model) -> None:
    """Which of the two, `parse_special` says."""
    name = model.token_bytes(model.token_eos).decode()
    with Context(model, n_ctx=256, n_threads=2) as context:
        for parse in (True, False):
            config = StreamConfig(max_tokens=1, parse_special=parse)
            completion = context.generate(f"Hello {name} you", config=config)
            tokens = model.tokenize(f"Hello {name} you", parse_special=parse)
            assert completion.usage.prompt_tokens == len(tokens)
            assert (model.token_eos in tokens) is parse
    assert StreamConfig().parse_special is True
