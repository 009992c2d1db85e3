"""Bytes to text: UTF-8 assembly and stop strings compared with a slow oracle, then end to end on the bundled model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mullama import Context, Model, SamplerParams, StreamConfig
from mullama._core import Text

# Few letters, so that stop strings overlap each other and themselves; one character of each length in UTF-8.
LETTERS = "aab\n é€😀\ufffd"
# What tokens are made of: whole and partial characters, and invalid bytes.
FRAGMENTS = [c.encode() for c in LETTERS] + [
    *(b"\xc3", b"\xa9", b"\xe2", b"\x82", b"\xac", b"\xe2\x82", b"\xf0", b"\x9f", b"\x98", b"\x80", b"\xf0\x9f\x98"),
    *(b"\xff", b"\xc0", b"\xc1\xbf", b"\xf5", b"\xed\xa0\x80", b"\xe0\x9f", b"\xf0\x8f", b"\xf4\x90", b"\xef\xbf"),
]

stop_strings = st.lists(st.text(st.sampled_from(LETTERS), min_size=1, max_size=5), max_size=4)
fragments = st.lists(st.sampled_from(FRAGMENTS), max_size=24).map(b"".join)
texts = st.text(st.sampled_from(LETTERS), max_size=24).map(str.encode)
anything = st.one_of(texts, fragments, st.binary(max_size=24))


@st.composite
def split(draw: st.DrawFn, source: st.SearchStrategy[bytes] = anything) -> list[bytes]:
    """Some bytes, split into tokens at any point; some tokens are empty."""
    data = draw(source)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=len(data) + 2)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def find(text: str, stops: Sequence[str]) -> tuple[int, int] | None:
    """The start and index of the stop string that ends first in the text; the longest of several."""
    for end in range(len(text) + 1):
        ending = [(-len(stop), i) for i, stop in enumerate(stops) if text[:end].endswith(stop)]
        if ending:
            length, i = min(ending)
            return end + length, i
    return None


def held(text: str, stops: Sequence[str]) -> int:
    """The length of the text's end that may still become a stop string."""
    return max((n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n])), default=0)


# Starts of characters. (Python's incremental decoder also keeps those of surrogates, which are already invalid.)
OPEN = {
    chr(point).encode()[:n]
    for point in range(0x80, 0x110000, 64)
    if not 0xD800 <= point < 0xE000
    for n in range(1, len(chr(point).encode()))
}


def decided(data: bytes) -> str:
    """The text of some bytes, without a partial character at the end."""
    open_bytes = next((n for n in (1, 2, 3) if data[-n:] in OPEN), 0)
    return data[: len(data) - open_bytes].decode(errors="replace")


def oracle(tokens: Sequence[bytes], stops: Sequence[str]) -> Iterator[tuple[str, int]]:
    """The text of each token, and the stop string that it completes or -1; the last item is for the end."""
    shown = 0
    for n in range(1, len(tokens) + 2):
        token, data = tokens[n - 1] if n <= len(tokens) else None, b"".join(tokens[:n])
        text = data.decode(errors="replace") if token is None else decided(data)
        found = find(text, stops)
        until = found[0] if found else len(text) if token is None else len(text) - held(text, stops)
        yield text[shown:until], found[1] if found else -1
        if found:
            return
        shown = until


def assemble(tokens: Sequence[bytes], stops: Sequence[str]) -> Iterator[tuple[str, int]]:
    """The same, by the engine's own assembly."""
    text = Text([stop.encode() for stop in stops])
    for token in tokens:
        answer = text.feed(token)
        yield answer
        if answer[1] >= 0:
            assert text.finish() == ("", -1), "after a stop string there is nothing more"
            return
    yield text.finish()
    assert text.finish() == ("", -1)


# ------------------------------------------------------------------------------------------ alone


@given(split())
@example([b"\xf0\x9f", b"\x98", b"\x80"])
@example([b"\xe2\x82"])
@example([b"\xe2\x82", b"a"])
@example([b"\xf0", b"\xf0\x9f\x98\x80", b"\xf0"])
@example([b"\xed", b"\xa0\x80"])
def test_utf8_is_what_pythons_decoder_makes_of_it(tokens: list[bytes]) -> None:
    assert list(assemble(tokens, [])) == list(oracle(tokens, []))


@given(split(), stop_strings)
@example([b"aab"], ["ab", "aab"])  # both end here: the longer
@example([b"aabb"], ["b", "aabb"])  # ends first: the shorter
@example([b"a", b"a", b"a", b"b"], ["aab"])  # a false start that overlaps
@example([b"ab\xf0"], ["b"])  # a partial character after the stop string
@example([b"a", b"\xff"], ["a\ufffd"])
@example([b"a", b"\xf0"], ["a\ufffd"])  # decided only by the end
@example([b"\xe2", b"\x82\xac"], ["€"])
def test_stop_strings_are_found_and_never_shown(tokens: list[bytes], stops: list[str]) -> None:
    """Token by token: no part of a stop string is delivered, and nothing else is held back longer than necessary."""
    assert list(assemble(tokens, stops)) == list(oracle(tokens, stops))


@given(st.data(), anything, stop_strings)
def test_the_outcome_does_not_depend_on_the_split(data: st.DataObject, source: bytes, stops: list[str]) -> None:
    def outcome(tokens: list[bytes]) -> tuple[str, int]:
        answers = list(assemble(tokens, stops))
        return "".join(text for text, _ in answers), answers[-1][1]

    whole = outcome([source])
    assert outcome(data.draw(split(st.just(source)))) == whole
    assert outcome([bytes([byte]) for byte in source]) == whole
    found = find(source.decode(errors="replace"), stops)
    assert whole[1] == (found[1] if found else -1)
    assert found is None or whole[0] == source.decode(errors="replace")[: found[0]]


# ------------------------------------------------------------------------------------------ on the model

PROMPT = "Once upon a time there was"


@pytest.fixture(scope="module")
def alone(model: Model) -> Iterator[Context]:
    """One sequence and no reuse, so that a seed determines every token."""
    with Context(model, n_ctx=512, n_seq_max=1, n_threads=1, reuse_prefix=False) as context:
        yield context


def config(seed: int, max_tokens: int = 60, stops: Sequence[str] = (), **sampling: object) -> StreamConfig:
    params = SamplerParams(**({"seed": seed, "temperature": 1.0, "ignore_eos": True} | sampling))
    return StreamConfig(max_tokens=max_tokens, stop_sequences=stops, params=params, timeout_ms=0)


def pieces(model: Model, ids: Sequence[int]) -> list[bytes]:
    return [model._core.detokenize([token], False) for token in ids]


def byte_tokens(model: Model) -> dict[int, int]:
    """The token id of each single byte that the vocabulary has."""
    found: dict[int, int] = {}
    for token, piece in enumerate(pieces(model, range(model.n_vocab))):
        if len(piece) == 1:
            found.setdefault(piece[0], token)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_each_token_is_one_record_and_all_text_arrives(alone: Context, seed: int) -> None:
    with alone.generate_stream(PROMPT, config=config(seed)) as stream:
        records = list(stream)
    completion = stream.completion()
    assert [record.token_id for record in records] == list(completion.tokens)
    assert len(records) == 60
    assert "".join(records) == completion.text == alone.model.detokenize(completion.tokens)
    assert all(record.logprob <= 0 for record in records)
    assert [record.is_final for record in records] == [False] * 59 + [True]


@pytest.mark.parametrize("seed", range(3))
def test_stop_strings_out_of_a_seeded_run(alone: Context, seed: int) -> None:
    """Each stop string is taken from the same seed's text without it: within, at and across token boundaries."""
    free = alone.generate(PROMPT, config=config(seed))
    parts = pieces(alone.model, free.tokens)
    ends = [len(b"".join(parts[:i]).decode(errors="ignore")) for i in range(len(parts) + 1)]
    text = free.text
    for i in range(5, 50, 9):
        for a, b in (
            (ends[i], ends[i + 1]),
            (ends[i] + 1, ends[i + 3] + 1),
            (ends[i + 1] - 1, ends[i + 6]),
            (ends[i], ends[i] + 1),
        ):
            stops = [text[a:b] or "?", text[a + 1 : b + 2] or "!", "not in any text", text[b - 1 : b + 7] or "#"]
            expected = list(oracle(parts, stops))
            with alone.generate_stream(PROMPT, config=config(seed, stops=stops)) as stream:
                records = list(stream)
            completion = stream.completion()
            assert [str(record) for record in records] == [shown for shown, _ in expected]
            assert list(completion.tokens) == list(free.tokens[: len(expected)])
            assert completion.text == "".join(records)
            assert completion.finish_reason == "stop"
            assert completion.stop_sequence == stops[expected[-1][1]]
            assert not any(stop in completion.text for stop in stops)
            assert records[-1].is_final


def test_text_that_is_held_back_at_the_end_is_shown(alone: Context) -> None:
    """The start of a stop string that was never completed is part of the text; the last record has it."""
    free = alone.generate(PROMPT, config=config(1, 30))
    stop = free.text[-3:] + "that does not come"
    completion = alone.generate(PROMPT, config=config(1, 30, [stop]))
    assert (completion.text, completion.finish_reason, completion.stop_sequence) == (free.text, "length", None)


@pytest.mark.parametrize("written", ["é", "€", "😀"])
def test_characters_that_are_split_over_byte_tokens_arrive_whole(alone: Context, written: str) -> None:
    """The model is made to write one character repeatedly, one token per byte: all but the last have no text."""
    tokens = byte_tokens(alone.model)
    ids = [tokens[byte] for byte in written.encode()]
    # Each byte is more likely than the next, and none is repeated before the others.
    bias = {token: 1e4 - 1e3 * i for i, token in enumerate(ids)}
    cycle = {"logit_bias": bias, "presence_penalty": 1e5, "penalty_last_n": len(ids) - 1, "temperature": 0.0}
    with alone.generate_stream(PROMPT, config=config(1, 3 * len(ids) + 1, **cycle)) as stream:
        records = list(stream)
    assert [record.token_id for record in records] == [*ids * 3, ids[0]]
    once = [""] * (len(ids) - 1) + [written]
    assert [str(record) for record in records] == [*once * 3, "\ufffd"]
    assert stream.completion().text == written * 3 + "\ufffd"


def emitted(parts: Sequence[bytes], stops: Sequence[str] = ()) -> list[tuple[str, int]]:
    """The oracle's results as records: what the end decides comes with the last token."""
    *answers, (text, stop), (rest, last) = oracle(parts, stops)
    return [*answers, (text + rest, max(stop, last))]


@pytest.mark.parametrize("seed", range(5))
def test_invalid_bytes_become_replacement_characters_once(alone: Context, seed: int) -> None:
    """Random byte tokens: most of the bytes are not UTF-8, and each record has the text that the oracle gives."""
    tokens = byte_tokens(alone.model)
    likely = {tokens[byte]: 1e3 for byte in b"a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\xff" if byte in tokens}
    sampling = {"logit_bias": likely, "temperature": 1e3, "top_k": 0, "top_p": 1.0}
    with alone.generate_stream(PROMPT, config=config(seed, 64, **sampling)) as stream:
        records = list(stream)
    completion = stream.completion()
    parts = pieces(alone.model, completion.tokens)
    assert "\ufffd" in completion.text
    assert completion.text == "".join(records) == b"".join(parts).decode(errors="replace")
    assert completion.text == alone.model.detokenize(completion.tokens)
    assert [str(record) for record in records] == [shown for shown, _ in emitted(parts)]


@pytest.mark.parametrize("seed", range(5))
def test_stop_strings_among_invalid_bytes(alone: Context, seed: int) -> None:
    tokens = byte_tokens(alone.model)
    likely = {tokens[byte]: 1e3 for byte in b"aab\xc3\xa9\xf0" if byte in tokens}
    sampling = {"logit_bias": likely, "temperature": 1e3, "top_k": 0, "top_p": 1.0}
    free = alone.generate(PROMPT, config=config(seed, 64, **sampling))
    parts = pieces(alone.model, free.tokens)
    for stops in (["é", "b"], ["\ufffda"], ["a\ufffd", "é\ufffd"], [free.text[20:24]], ["aé", free.text[-1:]]):
        expected = list(oracle(parts, stops))
        completion = alone.generate(PROMPT, config=config(seed, 64, stops, **sampling))
        assert completion.text == "".join(shown for shown, _ in expected)
        found = expected[-1][1]
        assert completion.stop_sequence == (stops[found] if found >= 0 else None)
        assert completion.finish_reason == ("stop" if found >= 0 else "length")
        assert completion.tokens == free.tokens[: len(expected)]


def test_a_cancel_loses_nothing_of_what_was_generated(alone: Context) -> None:
    """Wherever it comes: the completion has the text of its tokens, including partial characters."""
    first, second = (byte_tokens(alone.model)[byte] for byte in "é".encode())
    bias = {first: 1e4, second: 1e4}  # one half of a character after the other, since neither is repeated
    halves = {"logit_bias": bias, "presence_penalty": 1e5, "penalty_last_n": 1, "temperature": 0.0}
    outcomes = set()
    for i in range(300):
        with alone.generate_stream(PROMPT, config=config(1, -1, ["é" * 9], **halves)) as stream:
            records = [next(stream) for _ in range(1 + i % 6)]
            stream.cancel()
            records += list(stream)
        completion = stream.completion()
        assert (completion.finish_reason, completion.stop_sequence) in (("cancelled", None), ("stop", "é" * 9))
        assert [record.token_id for record in records] == list(completion.tokens)
        if completion.finish_reason == "cancelled":
            assert completion.text == alone.model.detokenize(completion.tokens)
        outcomes.add(len(records))
    assert len(outcomes) > 3
