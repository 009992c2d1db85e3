"""Makes the models for the benchmarks: Llama architecture, random weights, Q4_0, the 32,000 pieces of Llama 2's vocabulary.

Random weights cost exactly as much as trained ones; nothing is downloaded. The vocabulary comes with llama.cpp's sources.
Run it as a script (``python bench/models.py mid``), or call `bench_model`: each file is made once, in ``build/bench/``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = ROOT / "vendor" / "llama.cpp" / "models" / "ggml-vocab-llama-spm.gguf"


@dataclass(frozen=True)
class Shape:
    """Dimensions of a model; it has about 2·32,000·width + layers·(4·width² + 3·width·hidden) parameters."""

    width: int
    layers: int
    heads: int
    hidden: int


SHAPES = {
    "tiny": Shape(width=64, layers=2, heads=2, hidden=192),  # 4 M parameters
    "mid": Shape(width=768, layers=12, heads=12, hidden=2048),  # 134 M
    "half": Shape(width=1280, layers=18, heads=20, hidden=3456),  # 439 M
}


def bench_model(name: str) -> Path:
    """The file of the model `name` ("tiny", "mid" or "half"), created if it does not exist yet."""
    path = ROOT / "build" / "bench" / f"{name}-q4_0.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        write_model(partial, name, SHAPES[name])
        partial.replace(path)
    return path


def write_model(path: Path, name: str, shape: Shape) -> None:
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(f"mullama bench {name}")
    writer.add_context_length(8192)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    n_vocab = copy_vocabulary(writer)

    def matrix(tensor: str, rows: int, columns: int) -> None:
        weights = random.standard_normal((rows, columns), np.float32) / np.sqrt(columns)
        quantised = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q4_0)
        writer.add_tensor(f"{tensor}.weight", quantised, raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    def ones(tensor: str) -> None:
        writer.add_tensor(f"{tensor}.weight", np.ones(shape.width, np.float32))

    matrix("token_embd", n_vocab, shape.width)
    ones("output_norm")
    matrix("output", n_vocab, shape.width)
    for i in range(shape.layers):
        ones(f"blk.{i}.attn_norm")
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{i}.{part}", shape.width, shape.width)
        ones(f"blk.{i}.ffn_norm")
        matrix(f"blk.{i}.ffn_gate", shape.hidden, shape.width)
        matrix(f"blk.{i}.ffn_up", shape.hidden, shape.width)
        matrix(f"blk.{i}.ffn_down", shape.width, shape.hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def copy_vocabulary(writer: gguf.GGUFWriter) -> int:
    """Copy the tokenizer's fields from llama.cpp's vocabulary file; returns the number of pieces."""
    n_vocab = 0
    for field in gguf.GGUFReader(VOCABULARY).fields.values():
        if not field.name.startswith("tokenizer."):
            continue
        value = field.contents()
        if field.name == "tokenizer.ggml.tokens":
            n_vocab = len(value)
        subtype = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, field.types[0], subtype)
    writer.add_vocab_size(n_vocab)
    return n_vocab


if __name__ == "__main__":
    for wanted in sys.argv[1:] or SHAPES:
        print(bench_model(wanted))
