"""The generated corpus of the default model: seeded documents, and whether the grammar accepts a sentence."""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import corpus_chat
import corpus_stories
import corpus_tools
from chat_format import Part, render
from corpus_topics import HAIKUS, POEMS
from grammar import recognisers


@dataclass(frozen=True)
class Document:
    """One training document; `learn` in a part says whether the model shall learn to write it."""

    parts: tuple[Part, ...]
    ends_with_eos: bool


def plain_text(document: Document) -> str:
    """The document as one text, markers included."""
    return "".join(text for text, _ in document.parts)


def documents(seed: int, count: int) -> Iterator[Document]:
    """`count` documents; the same seed gives the same ones."""
    for number in range(count):
        yield document(random.Random(f"{seed}/{number}"))


def document(rng: random.Random) -> Document:
    """One document: a story, a raw prompt with its answer, a conversation, or one with tools."""
    share = rng.random()
    if share < 0.25:
        return Document(((corpus_stories.story(rng), True),), True)
    if share < 0.265:
        return Document(
            ((corpus_stories.story(rng, opening=corpus_stories.LONG, parts=rng.choice((2, 3))), True),), True
        )
    if share < 0.44:
        asked, answer = corpus_chat.raw(rng)
        return Document(((asked, False), (answer, True)), True)
    if share < 0.87:
        system, exchanges = corpus_chat.conversation(rng)
        messages = [{"role": "system", "content": system}] if system else []
        for asked, answer in exchanges:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        return Document(tuple(render(messages)), False)
    return Document(tuple(render(*corpus_tools.dialogue(rng))), False)


_EMOJI = "[\U0001f000-\U0001faff\u2600-\u27bf\u23f0\u2b50\ufe0f\u200d]"
#: A sentence ends at . ! or ?, a closing quote and emoji included, before a new one begins or the text ends.
_SENTENCE = re.compile(rf"\S.*?[.!?][.!?]*\"?(?: {_EMOJI}+)*(?=\s+[\"A-ZÀ-Ý0-9]|\s*$)|\S.*$", re.DOTALL)
_SUM = re.compile(r"(\d+) (\+|-|\*|plus|minus|times) (\d+) (?:=|is) (-?\d+)\.")


def sentences(text: str) -> list[str]:
    """The sentences of a text, white space made plain."""
    return [s.strip() for s in _SENTENCE.findall(" ".join(text.split()))]


@lru_cache(maxsize=1)
def _patterns() -> tuple[re.Pattern[str], ...]:
    every = dict.fromkeys(corpus_stories.templates() + corpus_chat.prose())
    return tuple(p for t in every for p in recognisers(t))


@lru_cache(maxsize=1)
def _verses() -> frozenset[str]:
    """The sentences of the poems and haikus, which have no variants."""
    texts = [v for table in (POEMS, HAIKUS) for verses in table.values() for v in verses]
    return frozenset(s for text in texts for s in sentences(text))


def _is_sum(sentence: str) -> bool:
    found = _SUM.fullmatch(sentence)
    if not found:
        return False
    a, b, result = int(found[1]), int(found[3]), int(found[4])
    sign = {"plus": "+", "minus": "-", "times": "*"}.get(found[2], found[2])
    return result == {"+": a + b, "-": a - b, "*": a * b}[sign]


def accepts(sentence: str) -> bool:
    """Whether the grammar can write this sentence (emoji after it aside)."""
    plain = re.sub(rf"(?:\s*{_EMOJI}+)+$", "", sentence.strip())
    if plain in _verses() or _is_sum(plain) or _is_count(plain):
        return True
    return any(p.fullmatch(plain) or p.fullmatch(sentence.strip()) for p in _patterns())


def _is_count(sentence: str) -> bool:
    if not re.fullmatch(r"\d+(?:, \d+)+\.", sentence):
        return False
    numbers = [int(n) for n in sentence[:-1].split(", ")]
    return {b - a for a, b in pairwise(numbers)} in ({1}, {-1})


def main() -> None:
    """Print documents, to look at them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=10)
    args = parser.parse_args()
    for made in documents(args.seed, args.count):
        print(plain_text(made), end="\n" + "-" * 80 + "\n")


if __name__ == "__main__":
    main()
