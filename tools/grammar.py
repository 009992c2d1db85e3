"""The template grammar: one set of rules that both generates sentences and recognises them."""

# Strategy: a template is a line such as "{hero} found [a|an old] {thing}.".  `Writer` walks it and makes
# choices; `recognisers` turns it into regular expressions.  Both read the same word lists, so generated text
# is accepted by construction, and text that breaks agreement (a girl called "he", "a apple") is not.

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache

Words = Mapping[str, Sequence[str]]

#: Word lists by slot name; filled by `define`.
WORDS: dict[str, tuple[str, ...]] = {}
#: Slots that keep their word throughout a document.
STICKY: set[str] = set()

PRONOUNS = {
    "she": {"he": "she", "him": "her", "his": "her", "himself": "herself"},
    "he": {"he": "he", "him": "him", "his": "his", "himself": "himself"},
}
#: Slots whose words depend on the gender of a person: the prefix says which person.
PERSONS = {"": "hero", "f": "friend"}

_TOKEN = re.compile(r"\[|\]|\||\{[A-Za-z0-9_]+\}|a\(n\)|[^\[\]|{}a]+|a")


def define(slot: str, words: str | Sequence[str], *, sticky: bool = False) -> None:
    """Define a named list of words; a string is split at commas."""
    WORDS[slot] = tuple(w.strip() for w in words.split(",")) if isinstance(words, str) else tuple(words)
    if sticky:
        STICKY.add(slot)


def _person_slot(slot: str) -> tuple[str, str] | None:
    """('hero' or 'friend', pronoun) if the slot is a pronoun."""
    for prefix, person in PERSONS.items():
        if slot.startswith(prefix) and slot[len(prefix) :] in PRONOUNS["he"]:
            return person, slot[len(prefix) :]
    return None


def choices(slot: str, genders: Mapping[str, str]) -> tuple[str, ...]:
    """All words that may fill a slot, given the genders of hero and friend."""
    if slot[:1].isupper():
        return tuple(w[:1].upper() + w[1:] for w in choices(slot[:1].lower() + slot[1:], genders))
    pronoun = _person_slot(slot)
    if pronoun:
        return (PRONOUNS[genders[pronoun[0]]][pronoun[1]],)
    base = slot.rstrip("0123456789")
    if base in ("hero", "kind"):
        return WORDS[f"{base}_{genders['hero']}"]
    if base in ("friend", "friendkind"):
        return WORDS[f"{'hero' if base == 'friend' else 'kind'}_{genders['friend']}"]
    return WORDS[base]


class Writer:
    """Generates text from templates with one random source; remembers the sticky words of its document."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.genders = {"hero": rng.choice(("she", "he")), "friend": rng.choice(("she", "he"))}
        self.bound: dict[str, str] = {}

    def word(self, slot: str) -> str:
        """The word for a slot: the remembered one, or a new choice."""
        if slot[:1].isupper():
            text = self.word(slot[:1].lower() + slot[1:])
            return text[:1].upper() + text[1:]
        if slot in self.bound:
            return self.bound[slot]
        base = slot.rstrip("0123456789")
        taken = {w for s, w in self.bound.items() if s.rstrip("0123456789") == base}
        if base in ("hero", "friend"):
            taken |= {self.bound[s] for s in ("hero", "friend") if s in self.bound}
        every = choices(slot, self.genders)
        text = self.rng.choice([w for w in every if w not in taken] or every)
        if base in STICKY or slot != base or base in ("hero", "friend", "kind", "friendkind"):
            self.bound[slot] = text
        return text

    def write(self, template: str) -> str:
        """One text from a template."""
        tokens = _TOKEN.findall(template)
        text, end = self._sequence(tokens, 0)
        if end != len(tokens):
            raise ValueError(f"unbalanced template: {template!r}")
        return re.sub(r"\ba\(n\) (?=[aeiou])", "an ", text).replace("a(n) ", "a ")

    def pick(self, templates: Sequence[str]) -> str:
        """One text from one of several templates."""
        return self.write(self.rng.choice(templates))

    def _sequence(self, tokens: Sequence[str], at: int) -> tuple[str, int]:
        out: list[str] = []
        while at < len(tokens) and tokens[at] not in ("|", "]"):
            token = tokens[at]
            if token == "[":
                text, at = self._alternatives(tokens, at + 1)
                out.append(text)
                continue
            out.append(self.word(token[1:-1]) if token[0] == "{" else token)
            at += 1
        return "".join(out), at

    def _alternatives(self, tokens: Sequence[str], at: int) -> tuple[str, int]:
        # The choice is made first and only that branch is written, so that no unused sticky word is bound.
        starts, depth, end = [at], 0, at
        while tokens[end] != "]" or depth:
            depth += {"[": 1, "]": -1}.get(tokens[end], 0)
            if tokens[end] == "|" and not depth:
                starts.append(end + 1)
            end += 1
        text, _ = self._sequence(tokens, self.rng.choice(starts))
        return text, end + 1


@cache
def recognisers(template: str) -> tuple[re.Pattern[str], ...]:
    """Regular expressions for a template: one for each combination of genders that it mentions."""
    patterns: dict[str, None] = {}
    for hero in ("she", "he"):
        for friend in ("she", "he"):
            patterns[_expression(template, {"hero": hero, "friend": friend})] = None
    return tuple(re.compile(p) for p in patterns)


def _expression(template: str, genders: Mapping[str, str]) -> str:
    seen: set[str] = set()
    out: list[str] = []
    for token in _TOKEN.findall(template):
        if token in "[|]":
            out.append({"[": "(?:", "]": ")", "|": "|"}[token])
        elif token == "a(n)":
            out.append("(?:a(?= [^aeiou])|an(?= [aeiou]))")
        elif token[0] == "{":
            slot = token[1:-1]
            options = "|".join(re.escape(w) for w in sorted(choices(slot, genders), key=len, reverse=True))
            base = slot.rstrip("0123456789")
            keeps = base in STICKY or slot != base or base in ("hero", "friend")
            if slot in seen:
                out.append(f"(?P={slot})")
            elif keeps and template.count(token) > 1 and "[" not in template:
                seen.add(slot)
                out.append(f"(?P<{slot}>{options})")
            else:
                out.append(f"(?:{options})")
        else:
            out.append(re.escape(token))
    return "".join(out)
