"""The bundled default model: its corpus, its file, and what it writes."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import Any

import gguf
import pytest

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "mullama" / "models" / "default.gguf"
sys.path.insert(0, str(ROOT / "tools"))

import corpus  # noqa: E402

# --- the corpus ---


def test_same_seed_gives_the_same_corpus() -> None:
    assert list(corpus.documents(7, 200)) == list(corpus.documents(7, 200))


def test_another_seed_gives_another_corpus() -> None:
    assert list(corpus.documents(7, 50)) != list(corpus.documents(8, 50))


def test_a_longer_corpus_begins_like_a_shorter_one() -> None:
    assert list(islice(corpus.documents(7, 1000), 50)) == list(corpus.documents(7, 50))


def test_accents_and_emoji_occur() -> None:
    text = "".join(corpus.plain_text(d) for d in corpus.documents(7, 1000))
    assert {"é", "ë", "🌟", "😊"} <= set(text)


def test_all_kinds_of_documents_occur() -> None:
    documents = list(corpus.documents(7, 300))
    texts = [corpus.plain_text(d) for d in documents]
    assert any(t.startswith("Once upon a time") for t in texts)
    assert any(t.startswith("<|im_start|>system\n") for t in texts)
    assert any("<tool_call>" in t and "<tool_response>" in t for t in texts)
    assert all(d.ends_with_eos != t.startswith("<|im_start|>") for d, t in zip(documents, texts, strict=True))


def test_only_answers_are_learnt_in_conversations() -> None:
    for document in corpus.documents(7, 300):
        if not document.ends_with_eos:
            before = ""
            for text, learn in document.parts:
                assert learn == before.endswith("<|im_start|>assistant\n")
                before += text


def test_every_sentence_of_a_story_is_accepted() -> None:
    stories = [d for d in corpus.documents(7, 600) if d.ends_with_eos and len(d.parts) == 1]
    told = [s for d in stories for s in corpus.sentences(corpus.plain_text(d))]
    assert len(told) > 1000
    assert [s for s in told if not corpus.accepts(s)] == []


@pytest.mark.parametrize(
    "sentence",
    [
        "Once upon a time, there was a kind girl named Mia.",
        "Zoë was so happy that she danced all the way home.",
        "The capital of France is Paris.",
        "And they lived happily ever after. 🌟",
        "2 + 2 = 4.",
        "1, 2, 3, 4, 5.",
    ],
)
def test_accepts_what_is_right(sentence: str) -> None:
    assert corpus.accepts(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "",
        "Once upon a time",
        "Once upon a time, there was an owl.",
        "Once upon a time, there was a apple girl named Mia.",
        "Once upon a time, there was an kind girl named Mia.",
        "Once upon a time, there was a kind boy named Mia.",
        "Zoë was so happy that he danced all the way home.",
        "Zoë was so happy that she danced all the way home",
        "Zoë were so happy that she danced all the way home.",
        "The capital of France is Rome.",
        "2 + 2 = 5.",
        "1, 2, 4.",
        "And they lived happily ever after. And they",
    ],
)
def test_rejects_what_is_broken(sentence: str) -> None:
    assert not corpus.accepts(sentence)


def test_sentences_splits_speech_and_emoji() -> None:
    text = '"Are you ready?" asked Mia. "Yes, of course," said Tom. They laughed! 🎈\n\nThe end. ❤️'
    assert corpus.sentences(text) == [
        '"Are you ready?" asked Mia.',
        '"Yes, of course," said Tom.',
        "They laughed! 🎈",
        "The end. ❤️",
    ]


# --- the file ---


@pytest.fixture(scope="module")
def reader() -> gguf.GGUFReader:
    return gguf.GGUFReader(FILE)


def value(reader: gguf.GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    assert field is not None, key
    return field.contents()


def test_the_file_is_small() -> None:
    assert 1_000_000 < FILE.stat().st_size <= 4_000_000


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("general.architecture", "llama"),
        ("general.name", "mullama default model"),
        ("general.license", "MIT"),
        ("tokenizer.ggml.model", "llama"),
        ("tokenizer.ggml.add_bos_token", True),
        ("tokenizer.ggml.add_eos_token", False),
        ("tokenizer.ggml.add_space_prefix", False),
    ],
)
def test_metadata(reader: gguf.GGUFReader, key: str, expected: object) -> None:
    assert value(reader, key) == expected


def test_description_and_context(reader: gguf.GGUFReader) -> None:
    assert "small" in value(reader, "general.description")
    assert value(reader, "llama.context_length") >= 4096


def test_vocabulary(reader: gguf.GGUFReader) -> None:
    pieces = value(reader, "tokenizer.ggml.tokens")
    types = value(reader, "tokenizer.ggml.token_type")
    scores = value(reader, "tokenizer.ggml.scores")
    assert 1000 <= len(pieces) <= 2000
    assert len(pieces) == len(types) == len(scores) == len(set(pieces)) == value(reader, "llama.vocab_size")
    assert [p for p, kind in zip(pieces, types, strict=True) if kind == gguf.TokenType.BYTE] == [
        f"<0x{b:02X}>" for b in range(256)
    ]
    for name, key in (("<s>", "bos"), ("</s>", "eos"), ("<|im_end|>", "eot")):
        at = value(reader, f"tokenizer.ggml.{key}_token_id")
        assert (pieces[at], types[at]) == (name, gguf.TokenType.CONTROL)
    assert types[pieces.index("<|im_start|>")] == gguf.TokenType.CONTROL
    # Accented letters and emoji have no pieces of their own, so they are split into byte tokens.
    assert all(p.replace("\u2581", " ").isascii() for p in pieces)


def test_chat_template(reader: gguf.GGUFReader) -> None:
    template = value(reader, "tokenizer.chat_template")
    for part in (
        "<|im_start|>",
        "<|im_end|>",
        "tools",
        "<tool_call>",
        "<tool_response>",
        "add_generation_prompt",
    ):
        assert part in template


# --- what it writes ---


def test_greedy_story_is_grammatical_and_ends_by_itself() -> None:
    from mullama import Context, Model, SamplerParams, default_model

    context = Context(Model.load(default_model()), n_ctx=512)
    completion = context.generate("Once upon a time", max_tokens=200, params=SamplerParams.greedy())
    told = corpus.sentences("Once upon a time" + completion.text)
    assert completion.finish_reason == "stop"
    assert len(completion.tokens) <= 200
    assert len(told) >= 3
    assert [s for s in told if not corpus.accepts(s)] == []
