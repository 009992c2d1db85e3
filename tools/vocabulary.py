"""The vocabulary: a SentencePiece model of the corpus, and an encoder that splits text as llama.cpp does."""

# Strategy: byte-pair merges by score, no normalisation, no leading space.  Lines with non-ASCII letters or emoji are
# left out of the training text, so such characters have no pieces of their own and are written as byte tokens.
# Markers such as <|im_start|> are split off first; the rest goes through SentencePiece.

from __future__ import annotations

import io
import re
from collections.abc import Iterable

import sentencepiece as spm

CONTROL = ("<|im_start|>", "<|im_end|>")
MARKERS = ("<tools>", "</tools>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
#: The types of tokens in a GGUF file.
NORMAL, UNKNOWN, CONTROL_TYPE, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
ASCII = "".join(chr(c) for c in range(33, 127))
_SPECIAL = re.compile("(" + "|".join(re.escape(m) for m in CONTROL + MARKERS) + ")")


def train(texts: Iterable[str], size: int) -> bytes:
    """Train the vocabulary and return the SentencePiece model."""
    model = io.BytesIO()

    def lines() -> Iterable[str]:
        for text in texts:
            for line in _SPECIAL.sub("\n", text).split("\n"):
                if line.isascii() and line.strip():
                    yield line

    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        required_chars=ASCII,
        character_coverage=1.0,
        control_symbols=list(CONTROL),
        user_defined_symbols=list(MARKERS),
        num_threads=1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=1,
        max_sentence_length=100000,
    )
    return model.getvalue()


class Vocabulary:
    """Encodes and decodes; its ids equal llama.cpp's when that parses special tokens."""

    def __init__(self, model: bytes) -> None:
        self.sp = spm.SentencePieceProcessor(model_proto=model)
        self.bos, self.eos = self.sp.bos_id(), self.sp.eos_id()
        self.special = {m: self.sp.piece_to_id(m) for m in CONTROL + MARKERS}
        self.turn_end = self.special["<|im_end|>"]

    def __len__(self) -> int:
        return int(self.sp.get_piece_size())

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in _SPECIAL.split(text):
            if part in self.special:
                ids.append(self.special[part])
            elif part:
                ids.extend(self.sp.encode(part))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        names = {i: m for m, i in self.special.items()}
        out = bytearray()
        for i in ids:
            piece = self.sp.id_to_piece(i)
            if self.sp.is_byte(i):
                out.append(int(piece[3:5], 16))
            elif i in names:
                out += names[i].encode()
            elif not self.sp.is_control(i):
                out += piece.replace("\u2581", " ").encode()
        return out.decode("utf-8", "replace")

    def table(self) -> list[tuple[str, float, int]]:
        """(piece, score, llama.cpp token type) of every token."""
        rows: list[tuple[str, float, int]] = []
        for i in range(len(self)):
            piece = self.sp.id_to_piece(i)
            kind = NORMAL
            if self.sp.is_unknown(i):
                kind = UNKNOWN
            elif self.sp.is_control(i):
                kind = CONTROL_TYPE
            elif self.sp.is_byte(i):
                kind = BYTE
            elif piece in MARKERS:
                kind = USER_DEFINED
            rows.append((piece, self.sp.get_score(i), kind))
        return rows
