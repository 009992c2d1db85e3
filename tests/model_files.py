"""Model files that tests write: LoRA adapters for the bundled model, a tiny encoder, the bundled model with other weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from mullama import default_model

VOCABULARIES = Path(__file__).resolve().parents[1] / "vendor" / "llama.cpp" / "models"


@cache
def shapes() -> dict[str, tuple[int, int]]:
    """The bundled model's matrices, as (columns, rows)."""
    tensors = gguf.GGUFReader(default_model()).tensors
    return {t.name: (int(t.shape[0]), int(t.shape[1])) for t in tensors if len(t.shape) == 2}


def adapter(
    path: Path,
    *,
    size: float = 1.0,
    seed: int = 0,
    rank: int = 4,
    targets: Sequence[str] = ("attn_q", "ffn_down"),
    dtype: Any = np.float32,
    tensors: dict[str, np.ndarray] | None = None,
    **keys: Any,
) -> Path:
    """A random LoRA adapter; `tensors` replaces all tensors, `keys` (with __ for dots) changes keys, or removes them (None)."""
    random = np.random.default_rng(seed)
    values: dict[str, Any] = {
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(rank),
    } | {key.replace("__", "."): value for key, value in keys.items()}
    writer = gguf.GGUFWriter(path, values.pop("general.architecture", "llama"))
    for key, value in values.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    if tensors is None:
        tensors = {}
        for name, (columns, rows) in shapes().items():
            if name.split(".")[-2] in targets:
                tensors[f"{name}.lora_a"] = random.standard_normal((rank, columns)) / np.sqrt(columns)
                tensors[f"{name}.lora_b"] = random.standard_normal((rows, rank)) * size
    for name, tensor in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor, dtype))
    return finished(writer, path)


@cache
def words() -> list[tuple[Any, ...]]:
    """The fields of a BERT vocabulary with only common words."""
    vocabulary = VOCABULARIES / "ggml-vocab-bert-bge.gguf"
    if not vocabulary.is_file():
        pytest.skip("this llama.cpp came without the vocabulary")
    fields = [field for name, field in gguf.GGUFReader(vocabulary).fields.items() if name.startswith("tokenizer.")]
    values = [(field, field.contents()) for field in fields]
    return [(field.name, value[:4000] if isinstance(value, list) else value, *field.types) for field, value in values]


def byte_vocabulary(path: Path, control: Sequence[str], user_defined: Sequence[str] = ()) -> list[int]:
    """A vocabulary of single bytes and of special tokens by these names; the types of its tokens."""
    kinds = {"<unk>": gguf.TokenType.UNKNOWN, "<s>": gguf.TokenType.CONTROL, "</s>": gguf.TokenType.CONTROL}
    kinds |= {f"<0x{i:02X}>": gguf.TokenType.BYTE for i in range(256)}
    kinds |= dict.fromkeys(user_defined, gguf.TokenType.USER_DEFINED) | dict.fromkeys(control, gguf.TokenType.CONTROL)
    writer = gguf.GGUFWriter(path, "llama")
    for add in (
        writer.add_embedding_length,
        writer.add_feed_forward_length,
        writer.add_head_count,
        writer.add_block_count,
    ):
        add(1)
    writer.add_context_length(512)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(list(kinds))
    writer.add_token_scores([0.0] * len(kinds))
    writer.add_token_types([int(kind) for kind in kinds.values()])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    finished(writer, path)
    return [int(kind) for kind in kinds.values()]


def encoder(path: Path, *, pooling: gguf.PoolingType = gguf.PoolingType.CLS, width: int = 32, layers: int = 2) -> Path:
    """A BERT with random weights: it is bidirectional, has 512 positions, and cannot generate."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(2)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    sizes = {}
    for name, value, *types in words():
        sizes[name] = value
        writer.add_key_value(name, value, types[0], types[1] if len(types) > 1 else None)

    def matrix(name: str, rows: int, columns: int, bias: bool = True) -> None:
        weights = random.standard_normal((rows, columns)) / np.sqrt(columns)
        writer.add_tensor(f"{name}.weight", weights.astype(np.float32))
        if bias:
            writer.add_tensor(f"{name}.bias", np.zeros(rows, np.float32))

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(width, np.float32))

    matrix("token_embd", len(sizes["tokenizer.ggml.tokens"]), width, bias=False)
    matrix("position_embd", 512, width, bias=False)
    matrix("token_types", sizes.get("tokenizer.ggml.token_type_count", 2), width, bias=False)
    norm("token_embd_norm")
    for i in range(layers):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{i}.{part}", width, width)
        norm(f"blk.{i}.attn_output_norm")
        matrix(f"blk.{i}.ffn_up", 2 * width, width)
        matrix(f"blk.{i}.ffn_down", width, 2 * width)
        norm(f"blk.{i}.layer_output_norm")
    return finished(writer, path)


def other_weights(path: Path) -> Path:
    """The bundled model with some other weights, but the same metadata."""
    data = bytearray(default_model().read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40_000] = data[middle - 40_000 : middle]
    path.write_bytes(data)
    return path


def finished(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
