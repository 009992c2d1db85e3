"""Texts and numbers with real weights: a BPE vocabulary with many scripts, log-probabilities, logits, embeddings."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import serving

from mullama import Context, Model, SamplerParams, StreamConfig, cosine_similarity

pytestmark = pytest.mark.weights

TEXTS = [
    "Hello, world!",
    "Grüße aus Köln: ß, Œ, ﬁ",
    "Привет, мир",
    "Γειά σου Κόσμε",
    "日本語のテキスト",
    "你好，世界",
    "안녕하세요",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301",
    "\tdef f(x):\r\n  return  x\n\n",
    "<|im_start|>user\nas plain text<|im_end|>",
]


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_and_back(smollm2: Model, text: str) -> None:
    tokens = smollm2.tokenize(text, add_special=False)
    assert smollm2.detokenize(tokens) == text
    assert b"".join(map(smollm2.token_bytes, tokens)).decode() == text


def test_special_tokens_are_read_on_request(smollm2: Model) -> None:
    plain, special = (smollm2.tokenize("<|im_start|>", add_special=False, parse_special=p) for p in (False, True))
    assert len(plain) > 1 == len(special)
    assert smollm2.detokenize(special) == ""
    assert smollm2.detokenize(special, special=True) == "<|im_start|>"
    assert smollm2.token_is_eog(smollm2.tokenize("<|im_end|>", add_special=False, parse_special=True)[0])


def test_characters_of_several_tokens_come_whole(smollm2_context: Context) -> None:
    text = "日本語 नमस्ते 👩‍👩‍👧‍👦!"
    params = SamplerParams.greedy(grammar=f'root ::= "{text}"')
    with smollm2_context.generate_stream("Repeat: ", 60, params) as stream:
        pieces = list(stream)
    assert "".join(pieces) == text
    assert sum(not piece for piece in pieces) > 3, "tokens that end within a character have no text yet"


def test_log_probabilities(smollm2_context: Context) -> None:
    config = StreamConfig(max_tokens=6, top_logprobs=5, params=SamplerParams.greedy(ignore_eos=True))
    completion = smollm2_context.generate("The capital of France is", config)
    assert "Paris" in completion.text
    for token, logprob, likeliest in zip(completion.tokens, completion.logprobs, completion.top_logprobs, strict=True):
        listed = [other.logprob for other in likeliest]
        assert (likeliest[0].token_id, listed[0]) == (token, logprob), "greedy takes the likeliest"
        assert listed == sorted(listed, reverse=True)
        assert sum(np.exp(listed)) <= 1.0001


def test_logits_and_log_probabilities_agree(smollm2_context: Context) -> None:
    prompt = smollm2_context.model.tokenize("The capital of France is")
    logits = smollm2_context.decode(prompt).astype(np.float64)
    smollm2_context.reset()
    assert logits.shape == (smollm2_context.model.n_vocab,)
    expected = logits - logits.max()
    expected -= np.log(np.exp(expected).sum())
    config = StreamConfig(max_tokens=1, top_logprobs=20, params=SamplerParams.greedy())
    (likeliest,) = smollm2_context.generate(prompt, config).top_logprobs
    for other in likeliest:
        assert other.logprob == pytest.approx(expected[other.token_id], abs=0.1)


CATS = ["The cat sat on the mat.", "A kitten is lying on the rug."]
SHARES = ["The stock market fell sharply today.", "Shares lost value on the exchange this morning."]


def alike(vectors: np.ndarray) -> bool:
    """Whether each text of CATS and SHARES is closer to the other one of its kind than to the rest."""
    near = cosine_similarity(vectors[0], vectors[1]), cosine_similarity(vectors[2], vectors[3])
    far = [cosine_similarity(a, b) for a in vectors[:2] for b in vectors[2:]]
    return bool(min(near) > max(far))


def test_embeddings(smollm2_context: Context) -> None:
    vectors = smollm2_context.embed_batch(CATS + SHARES)
    assert (vectors.shape, vectors.dtype) == ((4, smollm2_context.model.n_embd), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert alike(vectors)


@pytest.mark.anyio
async def test_awaiting_embeddings(smollm2: Model) -> None:
    async with serving(smollm2, n_threads=1, n_ctx=256, n_seq_max=1) as context:
        assert alike(await context.embed_batch(CATS + SHARES))
