"""Rewrites regular expressions of JSON schemas in the syntax that llama.cpp's converter supports, for JSON-encoded text."""

from __future__ import annotations

import re
from typing import Any

from ._workers import breathe

__all__ = ["pattern_for_json", "with_known_patterns"]

_TOKEN = re.compile(
    r"""\\x[0-9a-fA-F]{2} | \\u[0-9a-fA-F]{4} | \\.
    | \[\^?\]?(?:\\.|[^\]\\])*\]
    | \(\?: | \(\?P?<[A-Za-z_]\w*> | \(\? | \{\d+(?:,\d*)?\} | .""",
    re.VERBOSE | re.DOTALL,
)
_ITEM = re.compile(r"\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.|.", re.DOTALL)
_CLASSES = {"d": "0-9", "w": "0-9A-Z_a-z", "s": " "}
_QUANTIFIER = re.compile(r"[*+?]|\{\d+(?:,\d*)?\}")
_MAX_LENGTH = 10_000
_VALUES = ("enum", "const", "default", "examples")  # their values are not schemas
_MAX_GROUPS = 50  # nested
_LAST = 0x10FFFF

Ranges = list[tuple[int, int]]
# Characters that JSON escapes, and characters to exclude.
_ESCAPED: Ranges = [(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F), (0xD800, 0xDFFF)]


def pattern_for_json(pattern: str) -> str:
    """An anchored pattern: a JSON string whose encoded content matches it satisfies the given pattern.

    Raises:
        ValueError: It is not a regular expression, or a grammar cannot express it (look-around, back-references, …).
    """
    if len(pattern) > _MAX_LENGTH:
        raise ValueError(f"it has more than {_MAX_LENGTH} characters")
    if not pattern:
        return ""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as e:
        raise ValueError(f"{pattern!r:.80} is not a regular expression ({e})") from None
    tokens = _TOKEN.findall(pattern)
    starts, ends = tokens[:1] == ["^"], len(tokens) > 1 and tokens[-1] == "$"
    body, depth, repeated = [], 0, True
    for token in tokens[starts : len(tokens) - ends]:
        if _QUANTIFIER.fullmatch(token):
            if not repeated:
                body.append(token)
            elif token != "?":  # which makes the repetition lazy: it matches the same strings
                raise ValueError(f"a grammar cannot express {token!r} after another repetition")
            repeated = True
            continue
        repeated = token in ("(", "|") or token.startswith("(?")
        depth += token.startswith("(") - (token == ")")
        if depth > _MAX_GROUPS:
            raise ValueError(f"it has more than {_MAX_GROUPS} nested groups")
        body.append(_translated(token))
    text = "".join(body)
    if not (starts and ends):
        text = f"{'' if starts else '.*'}(?:{text}){'' if ends else '.*'}"
    return f"^{text}$"


def _translated(token: str) -> str:
    if token.startswith("["):
        return _set(token)
    if token.startswith("\\") and len(token) == 2:
        name = token[1]
        if name in "dws":
            return _set(f"[{token}]")
        if name in "DWS":
            return _set(f"[^\\{name.lower()}]")
        if name.isalnum():
            raise ValueError(f"a grammar cannot express {token!r}")
        return _literal(name)
    if token.startswith("\\"):
        return _literal(chr(_code(token)))
    if token in ("(", ")", "|", ".", "(?:"):
        return "(?:" if token == "(" else token
    if token.startswith("(?") and token.endswith(">"):
        return "(?:"
    if token in ("^", "$", "(?"):
        raise ValueError("a grammar cannot express look-around, flags, or an anchor within a pattern")
    return _literal(token)


def _literal(character: str) -> str:
    if character in '"\\':
        return r"(?:\\" + ('"' if character == '"' else r"\\") + ")"  # as JSON encodes it
    if any(low <= ord(character) <= high for low, high in _ESCAPED):
        raise ValueError(f"a grammar for JSON cannot express the character {character!r}")
    if character in "^$.[](){}|*+?":
        return f"(?:\\{character})"  # a group, since the converter would repeat the whole preceding literal
    return character if character.isascii() else f"(?:{character})"


def _set(token: str) -> str:
    """A set of characters, without those that JSON escapes."""
    negated = token.startswith("[^")
    ranges = _ranges(token[2 if negated else 1 : -1])
    if negated:
        kept = _without([(0, _LAST)], [*ranges, *_ESCAPED])
        ranges = _without([(0, _LAST)], kept)
        choices = [f"[^{''.join(_range(low, high) for low, high in ranges)}]"] if kept else []
    else:
        kept = _without(ranges, _ESCAPED)
        choices = [f"[{''.join(_range(low, high) for low, high in kept)}]"] if kept else []
        choices += [_literal(c) for c in '"\\' if any(low <= ord(c) <= high for low, high in ranges)]
    if not choices:
        raise ValueError(f"the set {token!r:.80} has no character that JSON can hold unescaped")
    return choices[0] if len(choices) == 1 else f"(?:{'|'.join(choices)})"


def _ranges(text: str) -> Ranges:
    items = _ITEM.findall(text)
    ranges: Ranges = []
    i = 0
    while i < len(items):
        if items[i][0] == "\\" and items[i][1:] in _CLASSES:
            ranges += _ranges(_CLASSES[items[i][1]])
            i += 1
            continue
        low = high = _code(items[i])
        if i + 2 < len(items) and items[i + 1] == "-":
            high = _code(items[i + 2])
            i += 2
        ranges.append((low, high))
        i += 1
    return ranges


def _code(item: str) -> int:
    if item[0] != "\\":
        return ord(item)
    if item[1] in "xu" and len(item) > 2:
        return int(item[2:], base=16)  # noqa: FURB166  no 0x
    if item[1] in "tnrfv":
        return ord({"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v"}[item[1]])
    if item[1].isalnum():
        raise ValueError(f"a grammar cannot express {item!r} in a set of characters")
    return ord(item[1])


def _without(ranges: Ranges, holes: Ranges) -> Ranges:
    for start, end in sorted(holes):
        parts: Ranges = []
        for low, high in ranges:
            if low < start:
                parts.append((low, min(high, start - 1)))
            if high > end:
                parts.append((max(low, end + 1), high))
        ranges = parts
    return sorted(set(ranges))


def _range(low: int, high: int) -> str:
    def escaped(code: int) -> str:
        if code < 128 and chr(code).isalnum():
            return chr(code)
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return escaped(low) if low == high else f"{escaped(low)}-{escaped(high)}"


def with_known_patterns(value: Any) -> Any:
    """A schema with patterns that the converter supports; others move to the description, for the model to read."""
    breathe()
    if isinstance(value, list):
        return [with_known_patterns(one) for one in value]
    if not isinstance(value, dict):
        return value
    schema = {k: v if k in _VALUES else with_known_patterns(v) for k, v in value.items()}
    pattern = schema.get("pattern")
    if isinstance(pattern, str):  # otherwise it is a property of that name
        try:
            schema["pattern"] = pattern_for_json(pattern)
        except ValueError:
            del schema["pattern"]
            described = schema.get("description")
            schema["description"] = f"{described} (pattern: {pattern})" if described else f"pattern: {pattern}"
    return schema
