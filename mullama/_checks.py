"""Checks of single values from the user: each returns the value as a plain Python object, or raises with what is valid."""

from __future__ import annotations

import difflib
import itertools
import math
import operator
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from .errors import InvalidParameter, InvalidParameterType

INT32_MAX = 2**31 - 1

# Takes the name and the value of a parameter, and returns the value to store.
Check = Callable[[str, Any], Any]


class _Biases(Mapping[int, float]):
    """An immutable mapping that looks like a dict, and that hashes and pickles."""

    __slots__ = ("_items",)

    def __init__(self, items: dict[int, float]) -> None:
        self._items = items

    def __getitem__(self, token: int) -> float:
        return self._items[token]

    def __iter__(self) -> Iterator[int]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


def short(value: object) -> str:
    """A `repr` for error messages: always short and fast, and never an error."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = _shortener.repr(value)
    except Exception:  # noqa: BLE001  a __repr__ may raise anything; the message matters more
        text = f"<{type(value).__name__} object>"
    return text if len(text) <= 120 else text[:117] + "..."


_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = 80


def refuse(name: str, value: object, expected: str, hint: str | None = None) -> InvalidParameter:
    """The error for a value out of range."""
    message = f"{name} must be {expected}, not {short(value)}"
    return InvalidParameter(message, parameter=name, value=value, hint=hint)


def refuse_type(name: str, value: object, expected: str, hint: str | None = None) -> InvalidParameterType:
    """The error for a value of the wrong type."""
    kind = type(value).__name__
    message = f"{name} must be {expected}, not {short(value)} ({kind})"
    return InvalidParameterType(message, parameter=name, value=value, hint=hint)


def refuse_name(owner: str, given: Mapping[str, object], known: Iterable[str], hint: str = "") -> InvalidParameterType:
    """The error for an unknown keyword of a call or a record."""
    names = list(known)
    name = min(given.keys() - set(names))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    meant = f"Did you mean {' or '.join(near)}?" if near else f"Known are {', '.join(names)}."
    message = f"unknown keyword {name!r} for {owner} (its value is {short(given[name])})"
    return InvalidParameterType(message, parameter=name, value=given[name], hint=f"{meant} {hint}".rstrip())


def conflict(name: str, value: object, message: str, hint: str) -> InvalidParameter:
    """The error for values that are valid by themselves but conflict."""
    return InvalidParameter(message, parameter=name, value=value, hint=hint)


def _is_bool(value: object) -> bool:
    return type(value).__name__ in ("bool", "bool_")  # numpy's too, by its old and its new name


def _to_int(value: Any) -> int:
    if _is_bool(value):
        raise TypeError
    return int(operator.index(value))


def _to_float(value: Any) -> float:
    if _is_bool(value) or hasattr(type(value), "__len__"):  # text and arrays have a length
        raise TypeError
    return float(value)


def _plain(bound: float) -> str:
    return str(int(bound)) if math.isfinite(bound) and bound == int(bound) else repr(bound)


def number(
    low: float,
    high: float,
    *,
    real: bool = True,
    above: bool = False,
    special: float | None = None,
    none: bool = False,
    hint: str | None = None,
) -> Check:
    """A number from `low` (excluded if `above`) to `high`, or `special`, or None if `none`."""
    convert: Callable[[object], float] = _to_float if real else _to_int
    start = f"above {_plain(low)} and up to" if above else f"from {_plain(low)} to"
    expected = f"{'a number' if real else 'an integer'} {start} {_plain(high)}"
    if special is not None:
        expected += f", {_plain(special)}" if none else f" or {_plain(special)}"
    if none:
        expected += " or None"

    def check(name: str, value: object) -> float | None:
        if none and value is None:
            return None
        try:
            result = convert(value)
        except (TypeError, ValueError):
            raise refuse_type(name, value, expected, hint) from None
        except OverflowError:
            raise refuse(name, value, expected, hint) from None
        if result == special:
            return result
        if not low <= result <= high or (above and result == low):  # NaN fails here too
            raise refuse(name, value, expected, hint)
        return result

    return check


def integer(low: int, high: int = INT32_MAX, *, none: bool = False, hint: str | None = None) -> Check:
    return number(low, high, real=False, none=none, hint=hint)


def flag(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise refuse_type(name, value, "True or False")


def strings(max_count: int, max_bytes: int, *, nul: bool = True) -> Check:
    """Non-empty strings, in any iterable except a string."""

    def check(name: str, value: object) -> tuple[str, ...]:
        if isinstance(value, (str, bytes, bytearray)):
            raise refuse_type(name, value, "an iterable of strings", f"Put it into a list: {name}=[{short(value)}].")
        try:
            iterator = iter(value)  # type: ignore[call-overload]
        except TypeError:
            raise refuse_type(name, value, "an iterable of strings", f"Use {name}=() for none.") from None
        items = tuple(itertools.islice(iterator, max_count + 1))
        if len(items) > max_count:
            raise refuse(name, value, f"at most {max_count} strings", "Leave some out.")
        for i, item in enumerate(items):
            one = f"{name}[{i}]"
            if not isinstance(item, str):
                raise refuse_type(one, item, "a string")
            if not item:
                raise refuse(one, item, "a non-empty string", "Leave it out.")
            try:
                size = len(item.encode())
            except UnicodeEncodeError:
                raise refuse(one, item, "text that UTF-8 can encode", "Remove the lone surrogate.") from None
            if size > max_bytes:
                raise refuse(one, item, f"at most {max_bytes} bytes of UTF-8 (it has {size})", "Shorten it.")
            if not nul and "\0" in item:
                raise refuse(one, item, "a string without a NUL character", "llama.cpp would cut it there.")
        return tuple(str.__str__(item) for item in items)  # plain strings, also from subclasses

    return check


def words(known: tuple[str, ...], *, none: str) -> Check:
    """Words from a fixed set, each at most once; `none` is what None means."""

    def check(name: str, value: object) -> tuple[str, ...] | None:
        if value is None:
            return None
        items: tuple[str, ...] = strings(len(known), 64)(name, value)
        for item in items:
            if item not in known:
                raise refuse(name, item, f"made of {', '.join(known)}", f"None is {none}.")
        if not items or len(set(items)) < len(items):
            raise refuse(name, value, "at least one word, each at most once", f"None is {none}.")
        return items

    return check


def text(max_bytes: int) -> Check:
    """A string for llama.cpp's parsers, or None."""

    def check(name: str, value: object) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str):
            raise refuse_type(name, value, "a str or None")
        return str(strings(1, max_bytes, nul=False)(name, [value])[0])

    return check


def loras(name: str, value: object) -> tuple[tuple[object, float], ...]:
    """LoRA adapters, each alone or in a pair with its scale."""
    scale = number(-1e3, 1e3, hint="1.0 is as it was trained.")
    one = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], (int, float))
    if one or isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        value = (value,)
    pairs = [item if isinstance(item, tuple) and len(item) == 2 else (item, 1.0) for item in value]
    for adapter, _ in pairs:
        if not hasattr(type(adapter), "_is_lora"):
            raise refuse_type(
                name, adapter, "LoRA adapters, or pairs of one and its scale", "Load one with Model.load_lora()."
            )
    if len({id(adapter) for adapter, _ in pairs}) < len(pairs):
        raise refuse(name, value, "different adapters", "Add the scales of equal ones.")
    return tuple((adapter, scale(f"{name}'s scale", factor)) for adapter, factor in pairs)


def token_biases(name: str, value: object) -> _Biases | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise refuse_type(name, value, "a mapping of token ids to biases", f"For example {name}={{13: -2.5}}.")
    token = integer(0, hint="Its keys are token ids.")
    bias = number(-1e6, 1e6, special=-math.inf, hint="-inf bans a token, +5 makes it much likelier.")
    items = {token(f"a key of {name}", k): bias(f"{name}[{short(k)}]", v) for k, v in value.items()}
    return _Biases(items) if items else None
