"""Other models' vocabularies: tokenising and detokenising compared with what llama.cpp's own tests expect, and metadata."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mullama import Context, ContextError, Model, SamplerParams

MODELS = Path(__file__).resolve().parents[1] / "vendor" / "llama.cpp" / "models"
FILES = sorted(MODELS.glob("ggml-vocab-*.gguf"))
EXPECTED = [file for file in FILES if file.with_name(file.name + ".inp").is_file()]

pytestmark = pytest.mark.skipif(not FILES, reason="llama.cpp's source is not placed here (make build)")


def name(file: Path) -> str:
    return file.stem.removeprefix("ggml-vocab-")


@functools.cache
def load(file: Path) -> Model:
    return Model.load(file, vocab_only=True)


def pairs(file: Path) -> list[tuple[str, list[int]]]:
    """The texts, separated by marker lines, and the ids of each, one line per text."""
    texts = file.with_name(file.name + ".inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    if texts[-1] == "":  # no text follows the last marker
        texts.pop()
    lines = file.with_name(file.name + ".out").read_text("utf-8").splitlines()
    return list(zip(texts, [[int(word) for word in line.split()] for line in lines], strict=True))


def test_all_kinds_are_here() -> None:
    kinds = {load(file).metadata()["tokenizer.ggml.model"] for file in FILES}
    assert {"llama", "gpt2", "bert", "t5"} <= kinds
    assert len(EXPECTED) >= 15


@pytest.mark.parametrize("file", EXPECTED, ids=name)
def test_tokens_are_those_that_llama_cpp_expects(file: Path) -> None:
    model = load(file)
    expected = pairs(file)
    assert len(expected) > 40
    for text, ids in expected:
        assert model.tokenize(text, add_special=False) == ids, text
        with_special = model.tokenize(text)
        at = [i for i in range(len(with_special) - len(ids) + 1) if with_special[i : i + len(ids)] == ids]
        assert at, "special tokens come before and after, and change nothing between"
        assert len(with_special) - len(ids) <= 2


@pytest.mark.parametrize("file", EXPECTED, ids=name)
def test_text_comes_back(file: Path) -> None:
    """BERT's vocabulary normalises letters and spaces; every other one restores the text."""
    model = load(file)
    for text, ids in pairs(file):
        if model.architecture == "bert":
            assert model.detokenize(ids).split() == model.detokenize(model.tokenize(text)).split()
        else:
            assert model.detokenize(model.tokenize(text)) == text
            again = model.detokenize(ids)  # as from the middle of a text, a leading space is kept
            assert again in (text, " " + text)


@pytest.mark.parametrize("file", EXPECTED, ids=name)
def test_tokens_one_by_one_are_the_same_text(file: Path) -> None:
    """The bytes that a stream has for each token add up to the whole text."""
    model = load(file)
    for _, ids in pairs(file):
        joined = b"".join(model._core.detokenize([token], False) for token in ids)
        assert joined.decode(errors="replace") == model.detokenize(ids)


def test_special_tokens_by_name_only_where_asked() -> None:
    model = load(MODELS / "ggml-vocab-llama-bpe.gguf")
    text = "<|begin_of_text|>Hello<|eot_id|>"
    special = model.tokenize(text, add_special=False, parse_special=True)
    assert (special[0], len(special)) == (model.token_bos, 3)
    assert model.token_is_eog(special[2])
    assert model.detokenize(special) == "Hello"
    assert model.detokenize(special, special=True) == text
    plain = model.tokenize(text, add_special=False)
    assert len(plain) > 3
    assert model.detokenize(plain) == text
    assert not set(plain) & {special[0], special[2]}
    assert model.tokenize("Hello")[0] == model.token_bos
    assert model.tokenize("Hello", add_special=False)[0] != model.token_bos
    assert model.tokenize("", add_special=False) == []


def test_threads_share_a_vocabulary() -> None:
    model = load(MODELS / "ggml-vocab-llama-bpe.gguf")
    expected = pairs(MODELS / "ggml-vocab-llama-bpe.gguf")

    def all_of_it(_: int) -> bool:
        return all(model.tokenize(text, add_special=False) == ids for text, ids in expected)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(all_of_it, range(16)))


FACTS = {  # architecture, n_vocab, token_bos, token_eos: as published by the authors of these models
    "gpt-2": ("gpt2", 50257, 50256, 50256),
    "llama-spm": ("llama", 32000, 1, 2),
    "llama-bpe": ("llama", 128256, 128000, 128001),
    "qwen2": ("qwen2", 151936, 151643, 151643),
    "falcon": ("falcon", 65024, 11, 11),
    "phi-3": ("phi3", 32064, 1, 32000),
}


@pytest.mark.parametrize("which", FACTS)
def test_facts(which: str) -> None:
    model = load(MODELS / f"ggml-vocab-{which}.gguf")
    facts = (model.architecture, model.n_vocab, model.token_bos, model.token_eos)
    assert facts == FACTS[which]
    assert model.token_is_eog(model.token_eos)
    assert not model.token_is_eog(model.tokenize("word", add_special=False)[0])
    metadata = model.metadata()
    assert metadata["general.architecture"] == model.architecture
    assert model.name == metadata["general.name"]
    assert int(metadata["tokenizer.ggml.eos_token_id"]) == model.token_eos
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in metadata.items())
    assert model.n_params == model.size == 0


def test_a_vocabulary_without_an_end_token() -> None:
    model = load(MODELS / "ggml-vocab-bert-bge.gguf")
    assert model.token_eos == -1
    assert not any(model.token_is_eog(token) for token in model.tokenize("some words"))


@pytest.mark.parametrize("file", FILES, ids=name)
def test_a_vocabulary_alone_generates_nothing(file: Path) -> None:
    with pytest.raises(ContextError, match="only its vocabulary was loaded"):
        Context(load(file), n_ctx=256)


def test_nor_does_the_bundled_one(model: Model) -> None:
    vocabulary = Model.load(vocab_only=True)
    assert vocabulary.metadata() == model.metadata()
    text = "Once upon a time, 👩‍🚀 née Müller."
    assert vocabulary.tokenize(text) == model.tokenize(text)
    assert vocabulary.detokenize(vocabulary.tokenize(text)) == text
    with pytest.raises(ContextError, match="only its vocabulary was loaded"):
        Context(vocabulary)
    with Context(model, n_ctx=256, n_seq_max=1, n_threads=1) as context:
        assert len(context.generate("Once", 3, SamplerParams.greedy(ignore_eos=True)).tokens) == 3
