"""Model files that are unusual but valid: the check before loading accepts them, at little cost; and invalid variants."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from mullama import Context, ContextError, Model, ModelLoadError, SamplerParams, TokenizationError, default_model

VOCABULARIES = Path(__file__).parents[1] / "vendor" / "llama.cpp" / "models"
GREEDY = SamplerParams.greedy(ignore_eos=True)


def rewritten(path: Path, changes: dict[str, Any], **writer: Any) -> Path:
    """The bundled model as the `gguf` package writes it, with some keys changed (None: left out) or added."""
    reader = gguf.GGUFReader(default_model())
    new = gguf.GGUFWriter(path, "llama", **writer)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    fields.pop("general.architecture")
    for name, field in fields.items():
        if name not in changes:
            new.add_key_value(name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for name, value in changes.items():
        if name == "general.alignment" and value == 64:
            new.add_custom_alignment(value)  # and aligns the tensors accordingly
        elif isinstance(value, list):
            new.add_array(name, value)
        elif isinstance(value, str):
            new.add_string(name, value)
        elif isinstance(value, float):
            new.add_float32(name, value)
        elif value is not None:
            new.add_uint32(name, value)
    for tensor in reader.tensors:
        new.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    finish(new)
    return path


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gpt2(path: Path, vocabulary: bool = True) -> Path:
    """A tiny GPT-2 with random weights: another architecture, with a table of 64 positions."""
    source, rng, n, width = gguf.GGUFReader(default_model()).fields, np.random.default_rng(1), 64, 32
    new = gguf.GGUFWriter(path, "gpt2")
    new.add_context_length(n)
    new.add_embedding_length(width)
    new.add_block_count(1)
    new.add_feed_forward_length(width)
    new.add_head_count(4)
    new.add_layer_norm_eps(1e-5)
    tokens = source["tokenizer.ggml.tokens"].contents()
    if vocabulary:
        new.add_tokenizer_model("llama")
        new.add_token_list(tokens)
        new.add_token_scores(source["tokenizer.ggml.scores"].contents())
        new.add_token_types(source["tokenizer.ggml.token_type"].contents())
    else:
        new.add_tokenizer_model("no_vocab")
        new.add_vocab_size(len(tokens))
    shapes = {
        "token_embd.weight": (len(tokens), width),
        "position_embd.weight": (n, width),
        "blk.0.attn_qkv.weight": (3 * width, width),
        "blk.0.attn_qkv.bias": (3 * width,),
    }
    shapes |= {f"blk.0.{name}.weight": (width, width) for name in ("attn_output", "ffn_up", "ffn_down")}
    shapes |= {f"blk.0.{name}.bias": (width,) for name in ("attn_output", "ffn_up", "ffn_down")}
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for name, shape in shapes.items():
        new.add_tensor(name, rng.normal(0, 0.1, shape).astype(np.float32))
    finish(new)
    return path


def greedy(model: Model) -> tuple[int, ...]:
    with Context(model, n_ctx=256, n_threads=1) as context:
        return context.generate("Once upon a time", 8, GREEDY).tokens


@pytest.fixture(scope="module")
def expected() -> tuple[int, ...]:
    return greedy(Model.load())


# ------------------------------------------------------------------------------ right, if unusual


@pytest.mark.parametrize(
    "name", "bert-bge deepseek-coder gpt-2 gpt-neox llama-bpe llama-spm mpt phi-3 qwen2 refact starcoder".split()
)
def test_vocabularies_of_other_models(name: str) -> None:
    path = VOCABULARIES / f"ggml-vocab-{name}.gguf"
    if not path.is_file():
        pytest.skip("this llama.cpp came without it")
    model = Model.load(path, vocab_only=True)
    assert (model.n_vocab > 30_000, model.n_layer, model.n_head) == (True, 0, 0)
    assert model.detokenize(model.tokenize("once upon a time", add_special=False)).strip() == "once upon a time"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="as it is"),
        pytest.param(
            {
                "llama.attention.head_count": [4] * 5,
                "llama.attention.head_count_kv": [2] * 5,
                "llama.feed_forward_length": [512] * 5,
            },
            id="arrays",
        ),
        pytest.param(
            {"mullama.unknown": [1.0, 2.0], "llama.unknown": 7, "other": "x", "llama.empty": ""}, id="unknown keys"
        ),
        pytest.param({"llama.rope.dimension_count": None, "llama.vocab_size": None}, id="without optional keys"),
        pytest.param({"llama.attention.key_length": 64, "llama.attention.value_length": 64}, id="lengths"),
        pytest.param({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 1.0}, id="scaling"),
        pytest.param({"llama.expert_count": 0, "llama.expert_used_count": 0}, id="no experts"),
        pytest.param({"general.alignment": 64}, id="alignment"),
        pytest.param({"tokenizer.ggml.padding_token_id": 2**32 - 1}, id="no such token"),
    ],
)
def test_other_ways_to_write_the_same(tmp_path: Path, changes: dict[str, Any], expected: tuple[int, ...]) -> None:
    assert greedy(Model.load(rewritten(tmp_path / "m.gguf", changes))) == expected


def test_another_architecture(tmp_path: Path) -> None:
    assert len(greedy_in(Model.load(gpt2(tmp_path / "m.gguf")), 64)) == 8


def greedy_in(model: Model, n_ctx: int) -> tuple[int, ...]:
    with Context(model, n_ctx=n_ctx, n_threads=1) as context:
        return context.generate("Once", 8, GREEDY).tokens


# ------------------------------------------------------------------------------ wrong in what the bundled model lacks


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("llama.rope.scaling.type", "sideways", "llama.rope.scaling.type is 'sideways', and must be none, linear"),
        ("llama.expert_count", 4000, "llama.expert_count is 4000, and must be from 0 to 1024"),
        ("llama.expert_count", 4, "llama.expert_used_count is 0, and must be more than 0"),
        ("llama.expert_used_count", 4, "llama.expert_used_count is 4, and must be at most the expert_count, 0"),
        ("llama.nextn_predict_layers", 6, "llama.nextn_predict_layers is 6, and must be from 0 to 5"),
        ("llama.attention.key_length", 2**31, "come to at most 16777216"),
        ("llama.attention.value_length", 32, ""),
        ("llama.full_attention_interval", 0, "llama.full_attention_interval is 0"),
        ("llama.classifier.activation", "none", ""),
        ("llama.attention.head_count", [4, 4, 4], ""),
        ("general.alignment", 48, "alignment"),
    ],
)
def test_a_wrong_value(tmp_path: Path, key: str, value: Any, says: str) -> None:
    path = rewritten(tmp_path / "m.gguf", {key: value})
    with pytest.raises((ModelLoadError, ContextError)) as caught:
        Context(Model.load(path), n_ctx=256, n_threads=1).close()
    assert says in str(caught.value)


def test_no_more_positions_than_the_model_has(tmp_path: Path) -> None:
    model = Model.load(gpt2(tmp_path / "m.gguf"))
    with pytest.raises(ContextError, match="n_ctx is 65, and the model knows 64 positions"):
        Context(model, n_ctx=65)
    with Context(model, n_ctx=64, n_threads=1) as context:
        completion = context.generate("Once", None, GREEDY)
    assert completion.finish_reason == "length"
    assert completion.usage.prompt_tokens + len(completion.tokens) == 65  # the last one needs no cell


def test_a_model_without_vocabulary(tmp_path: Path) -> None:
    model = Model.load(gpt2(tmp_path / "m.gguf", vocabulary=False))
    with pytest.raises(TokenizationError, match="no vocabulary"):
        model.tokenize("a")
    with pytest.raises(TokenizationError, match="no vocabulary"):
        model.detokenize([1])
    with pytest.raises(ContextError, match="no vocabulary"):
        Context(model)


# ------------------------------------------------------------------------------ in parts


def test_in_parts(tmp_path: Path, expected: tuple[int, ...]) -> None:
    rewritten(tmp_path / "m.gguf", {}, split_max_tensors=20)
    first = tmp_path / "m-00001-of-00003.gguf"
    assert greedy(Model.load(first)) == expected


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda part: part.unlink(), "m-00002-of-00003.gguf: it cannot be opened"),
        (lambda part: part.write_bytes(part.read_bytes()[:-1000]), "m-00002-of-00003.gguf: it ends after"),
        (lambda part: part.write_bytes(b"GGUF" + bytes(100)), "m-00002-of-00003.gguf"),
        (
            lambda part: part.write_bytes(part.read_bytes().replace(b"split.no\x02", b"split.no\x03")),
            "m-00002-of-00003.gguf: split.no is missing or no u16",
        ),
    ],
    ids=["missing", "truncated", "nonsense", "type"],
)
def test_a_part_that_is_wrong(tmp_path: Path, harm: Callable[[Path], object], says: str) -> None:
    rewritten(tmp_path / "m.gguf", {}, split_max_tensors=20)
    harm(tmp_path / "m-00002-of-00003.gguf")
    with pytest.raises(ModelLoadError, match=says):
        Model.load(tmp_path / "m-00001-of-00003.gguf")


# ------------------------------------------------------------------------------ at little cost


def test_the_check_is_a_small_part_of_loading(tmp_path: Path) -> None:
    """Measured with a file of 128,000 tokens that passes the check, and that llama.cpp refuses at its first key."""
    path = VOCABULARIES / "ggml-vocab-llama-bpe.gguf"
    if not path.is_file():
        pytest.skip("this llama.cpp came without it")
    refused = tmp_path / "refused.gguf"
    kind = b"tokenizer.ggml.model\x08\0\0\0\x04\0\0\0\0\0\0\0"
    refused.write_bytes(path.read_bytes().replace(kind + b"gpt2", kind + b"gpt9", 1))

    def cost(path: Path) -> float:
        began = time.process_time()
        with contextlib.suppress(ModelLoadError):
            Model.load(path, vocab_only=True)
        return time.process_time() - began

    with pytest.raises(ModelLoadError, match="gpt9"):
        Model.load(refused, vocab_only=True)
    assert min(cost(refused) for _ in range(3)) < 0.5 * min(cost(path) for _ in range(3))
