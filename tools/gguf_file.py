"""Writes the GGUF file: metadata, vocabulary and tensors under llama.cpp's names, quantised to Q8_0."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch

from chat_format import TEMPLATE
from network import Llama
from vocabulary import Vocabulary

DESCRIPTION = (
    "A very small Llama that mullama brings along for its demo, tests and documentation: short stories, small "
    "questions and answers, tool calls. Trained from scratch on a generated corpus."
)


def write(path: Path, model: Llama, vocabulary: Vocabulary, seed: int) -> None:
    """Write the model; the same weights give the same bytes."""
    shape = model.shape
    out = gguf.GGUFWriter(path, "llama")
    out.add_type("model")
    out.add_name("mullama default model")
    out.add_basename("mullama-default")
    out.add_version(f"1, seed {seed}")
    out.add_description(DESCRIPTION)
    out.add_organization("mullama")
    out.add_license("MIT")
    out.add_languages(["en"])
    out.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    out.add_quantization_version(gguf.GGML_QUANT_VERSION)
    out.add_context_length(shape.context)
    out.add_embedding_length(shape.width)
    out.add_block_count(shape.layers)
    out.add_feed_forward_length(shape.hidden)
    out.add_head_count(shape.heads)
    out.add_head_count_kv(shape.kv_heads)
    out.add_rope_dimension_count(shape.head_width)
    out.add_rope_freq_base(shape.rope_base)
    out.add_layer_norm_rms_eps(shape.norm_eps)
    out.add_vocab_size(shape.vocab)

    table = vocabulary.table()
    out.add_tokenizer_model("llama")
    out.add_tokenizer_pre("default")
    out.add_token_list([piece.encode() for piece, _, _ in table])
    out.add_token_scores([score for _, score, _ in table])
    out.add_token_types([kind for _, _, kind in table])
    out.add_bos_token_id(vocabulary.bos)
    out.add_eos_token_id(vocabulary.eos)
    out.add_eot_token_id(vocabulary.turn_end)
    out.add_unk_token_id(0)
    out.add_add_bos_token(True)
    out.add_add_eos_token(False)
    out.add_add_space_prefix(False)
    out.add_chat_template(TEMPLATE)

    for name, tensor in sorted(model.state_dict().items()):
        values: np.ndarray = tensor.detach().to(torch.float32).numpy()
        if values.ndim == 1:
            out.add_tensor(name, values)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            out.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
