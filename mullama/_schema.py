"""JSON schemas for llama.cpp's converter: checked, rewritten with the keywords it supports, and its grammar corrected.

The converter follows circular references forever, overflows the stack on deep nesting and long names, ignores keywords that it
does not support, and lets strings through that are not JSON. So a schema is read here first. What GBNF cannot express (bounds
of non-integers, `multipleOf`, `uniqueItems`, `not`, `if` …) is left for the application to validate.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from ._checks import refuse, refuse_type
from ._json_patterns import pattern_for_json, with_known_patterns
from ._workers import breathe
from .errors import InvalidParameter

__all__ = ["fixed_grammar", "json_schema", "plain_schema", "tool_schema"]

_Schema = dict[str, Any]

_CHECKED_AT_ONCE = 4096  # characters; a longer one is checked when it is used, which need not block an event loop
_MAX_NESTED = 100  # including references
_MAX_NODES = 10_000
_MAX_OPTIONAL = 200  # properties of one object; the converter's work is cubic in their number
_MAX_NAME_LENGTH = 256
_MAX_PATHS = 2_000_000  # characters of the rule names that it makes, in total
_DIGITS = 10**16  # integers have at most 16 digits
_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
_LISTS = ("oneOf", "anyOf", "allOf")
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}


class _BadSchemaError(ValueError):
    """What is wrong with a schema."""


class _Checked(str):
    """The text of a schema that need not be checked again, where a configuration is made of another one."""

    __slots__ = ()


def json_schema(name: str, value: object) -> str | None:
    """A check of a parameter: a JSON schema (a mapping, its JSON text, or a pydantic model) as JSON text; None stays."""
    if value is None:
        return None
    if isinstance(value, _Checked):
        return value
    schema = _model_schema(name, value) if hasattr(value, "model_json_schema") else value
    try:
        if isinstance(schema, Mapping):
            text = json.dumps(schema, default=_mapping, allow_nan=False)
        elif isinstance(schema, str):
            long = len(schema) > _CHECKED_AT_ONCE
            text = schema if long else json.dumps(json.loads(schema), allow_nan=False)
        else:
            text = "true" if schema is True else ""
        text = "{}" if text == "true" else text
        if not text.lstrip().startswith("{"):
            example = 'For example {"type": "object"}.'
            raise refuse_type(name, value, "a mapping, JSON text, or a pydantic model", example)
        if len(text) <= _CHECKED_AT_ONCE:
            plain_schema(text)
    except RecursionError:
        raise refuse(name, value, f"a JSON schema nested at most {_MAX_NESTED} deep") from None
    except (ValueError, TypeError, OverflowError) as e:
        if isinstance(e, InvalidParameter):
            raise
        raise refuse(name, value, f"a supported JSON schema ({e})") from None
    return _Checked(text)


def plain_schema(text: str) -> str:
    """A schema rewritten with keywords that llama.cpp's converter supports.

    Raises:
        ValueError: A grammar cannot express it, or no value satisfies it.
    """
    return json.dumps(_Reader(json.loads(text)).plain())


def tool_schema(name: str, schema: Mapping[str, Any]) -> _Schema:
    """The schema of a tool's parameters, which the model sees, changed only where the converter needs it.

    The converter supports few patterns, and accepts any string for others, so patterns are rewritten. What a grammar cannot
    express goes into the description, for the model to read.

    Raises:
        InvalidParameter: It is nested too deeply, too large, or a circular reference.
    """
    try:
        plain: _Schema = json.loads(json.dumps(schema, default=_mapping))
        _Outline(plain).plain()
        known: _Schema = with_known_patterns(plain)
        return known
    except RecursionError:
        raise refuse(name, schema, f"a JSON schema nested at most {_MAX_NESTED} deep") from None
    except (ValueError, TypeError) as e:
        raise refuse(name, schema, f"a supported JSON schema ({e})") from None


def fixed_grammar(grammar: str) -> str:
    """The converter's grammar of a plain schema, corrected so that all strings are valid JSON.

    It excludes lone surrogates, and from sets of characters those that JSON must escape.
    """
    return _LITERAL_OR_SET.sub(_fixed_set, grammar.replace(*_ESCAPE))


_ESCAPE = '"u" [0-9a-fA-F]{4}', '"u" ([0-9a-cA-CefEF] [0-9a-fA-F]{3} | [dD] [0-7] [0-9a-fA-F]{2})'
_ESCAPED = r'[^"\\\x7F\x00-\x1F'
_LITERAL_OR_SET = re.compile(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]', re.DOTALL)


def _fixed_set(match: re.Match[str]) -> str:
    breathe()
    found = match[0]
    if not found.startswith("[^") or found.startswith(_ESCAPED):
        return found
    return _ESCAPED + found[2:].removeprefix('"')


def _model_schema(name: str, model: Any) -> object:
    try:
        return model.model_json_schema()
    except Exception as e:
        raise refuse(name, model, f"a model with a JSON schema ({e})") from e


def _mapping(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not a JSON type")


class _Reader:
    """Walks a schema as the converter does, and makes a plain one."""

    def __init__(self, root: _Schema) -> None:
        self.root = root
        self.n_nodes = self.n_characters = 0
        self.names: dict[str, str] = {}  # of the definitions that are referred to
        self.definitions: _Schema = {}
        self.expanding: list[str] = []  # references within allOf, which the converter follows each time

    def plain(self) -> _Schema:
        schema = self.node(self.root, "", 0)
        return schema | {"$defs": self.definitions} if self.definitions else schema

    def node(self, schema: Any, path: str, depth: int) -> _Schema:
        if schema is True:
            return {}
        if not isinstance(schema, dict):
            raise _BadSchemaError(f"no value satisfies the schema at {path or '#'}")
        breathe()
        self.n_nodes += 1
        self.n_characters += len(path)
        if depth > _MAX_NESTED or self.n_nodes > _MAX_NODES or self.n_characters > _MAX_PATHS:
            raise _BadSchemaError(f"it is nested more than {_MAX_NESTED} deep, or has more than {_MAX_NODES} parts")
        schema = self.without_lone_all_of({k: v for k, v in schema.items() if k not in ("$defs", "definitions")})
        if "$ref" in schema:
            return {"$ref": self.follow(schema["$ref"], depth)}
        for key in _LISTS:
            if key in schema:
                alternatives = schema[key]
                if not isinstance(alternatives, list) or not alternatives:
                    raise _BadSchemaError(f"{key} at {path or '#'} must be a list of schemas")
                if key == "allOf":
                    self.expand(alternatives, path, depth)
                schema[key] = [self.node(one, f"{path}-{i}", depth + 1) for i, one in enumerate(alternatives)]
        self.object(schema, path, depth)
        self.tuple(schema, path)
        for key in ("items", "prefixItems"):
            if isinstance(schema.get(key), list):
                schema[key] = [self.node(one, f"{path}-tuple-{i}", depth + 1) for i, one in enumerate(schema[key])]
            elif key in schema:
                schema[key] = self.node(schema[key], f"{path}-item", depth + 1)
        return self.scalar(schema, path)

    # ---- references

    def follow(self, reference: Any, depth: int) -> str:
        """The reference in the plain schema."""
        target = self.end_of(reference)[1]
        if reference not in self.names:
            self.names[reference] = name = f"definition-{len(self.names)}-by-mullama"  # unlike any property
            self.definitions[name] = None  # so that a cycle ends here
            self.definitions[name] = self.node(target, f"#/$defs/{name}", depth + 1)
        return f"#/$defs/{self.names[reference]}"

    def end_of(self, reference: Any) -> tuple[str, Any]:
        """The target of a reference, through any further references."""
        target, seen = self.resolve(reference), {reference}
        while isinstance(target, dict) and "$ref" in target:
            reference = target["$ref"]
            if reference in seen:
                raise _BadSchemaError(f"the $ref {reference} is circular")
            target = self.resolve(reference)
            seen.add(reference)
        return reference, target

    def resolve(self, reference: Any) -> Any:
        if reference == "#":
            return self.root
        if not isinstance(reference, str) or not reference.startswith("#/"):
            raise _BadSchemaError(f"the $ref {reference!r:.80} must be a path in the schema, such as #/$defs/name")
        target: Any = self.root
        for step in reference[2:].split("/"):
            step = unquote(step).replace("~1", "/").replace("~0", "~")
            try:
                target = target[int(step) if isinstance(target, list) else step]
            except (LookupError, ValueError, TypeError):
                raise _BadSchemaError(f"the $ref {reference:.80} does not exist") from None
        return target

    @staticmethod
    def without_lone_all_of(schema: _Schema) -> _Schema:
        while isinstance(lone := schema.get("allOf"), list) and len(lone) == 1 and isinstance(lone[0], dict):
            rest = {key: value for key, value in schema.items() if key != "allOf"}
            if rest.keys() & {"properties", "additionalProperties", "$ref", "oneOf", "anyOf"}:
                break
            schema = rest | lone[0]
        return schema

    def expand(self, components: list[Any], path: str, depth: int) -> None:
        """The converter merges allOf into one object or one enum, and ignores anything else in it."""
        for reference, component in self.components(components, depth):
            if not self.can_join(component):
                raise _BadSchemaError(f"allOf at {path or '#'} can only join objects with properties, or enums")
            if reference is None:
                continue
            if reference in self.expanding:
                raise _BadSchemaError(f"the $ref {reference} is circular through allOf")
            self.expanding.append(reference)
            self.node(component, path, depth + 1)
            self.expanding.pop()

    @staticmethod
    def can_join(component: object) -> bool:
        return isinstance(component, dict) and bool(component.keys() & {"properties", "enum"})

    def components(self, components: list[Any], depth: int) -> Iterator[tuple[str | None, Any]]:
        for one in components:
            if isinstance(one, dict) and "anyOf" in one and isinstance(one["anyOf"], list):
                yield from self.components(one["anyOf"], depth)
            elif isinstance(one, dict) and "$ref" in one:
                yield self.end_of(one["$ref"])
            else:
                yield None, one

    # ---- kinds of values

    def object(self, schema: _Schema, path: str, depth: int) -> None:
        properties, more = schema.get("properties", {}), schema.get("additionalProperties")
        required = schema.get("required", [])
        if not isinstance(properties, dict):
            raise _BadSchemaError(f"properties at {path or '#'} must be an object")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise _BadSchemaError(f"required at {path or '#'} must be a list of names")
        missing = [name for name in required if name not in properties]
        if missing and more is False:
            raise _BadSchemaError(f"{missing[0]!r:.80} at {path or '#'} is required but not allowed")
        if missing:
            properties = properties | {name: more if isinstance(more, dict) else {} for name in missing}
        for name in properties:
            if name in ("", "*"):
                raise _BadSchemaError(f"llama.cpp's converter reserves the property name {name!r}")
            if len(name) > _MAX_NAME_LENGTH:
                raise _BadSchemaError(
                    f"the name of the property {name[:40]!r}… has more than {_MAX_NAME_LENGTH} characters"
                )
            if (more is True or isinstance(more, dict)) and re.search(r'["\\\]^\x00-\x1f\x7f]', name):
                raise _BadSchemaError(f"the property {name!r} cannot be distinguished from additional properties")
        if len(properties) - len(set(required) & properties.keys()) > _MAX_OPTIONAL:
            raise _BadSchemaError(f"an object has more than {_MAX_OPTIONAL} properties that are not required")
        if properties:
            schema["properties"] = {
                name: self.node(one, f"{path}-{name}", depth + 1) for name, one in properties.items()
            }
        if isinstance(more, dict):
            schema["additionalProperties"] = self.node(more, f"{path}-additional", depth + 1)

    @staticmethod
    def tuple(schema: _Schema, path: str) -> None:
        """The converter prefers `items` to `prefixItems`, and a list of schemas becomes an array of exactly that length."""
        if isinstance(schema.get("prefixItems"), list):
            schema.pop("items", None)
        for key in ("items", "prefixItems"):
            items = schema.get(key)
            if isinstance(items, list):
                least, most = schema.get("minItems", 0), schema.get("maxItems", len(items))
                if _number(least) and least > len(items):
                    raise _BadSchemaError(f"minItems at {path or '#'} is more than its {len(items)} items")
                schema[key] = items[: max(0, most)] if isinstance(most, int) else items

    def scalar(self, schema: _Schema, path: str) -> _Schema:
        kinds: Any = schema.get("type")
        kinds = kinds if isinstance(kinds, list) else [kinds]
        if isinstance(schema.get("enum"), list) and all(kind in _TYPES for kind in kinds):
            schema["enum"] = [value for value in schema["enum"] if any(_is_a(kind, value) for kind in kinds)]
            if not schema["enum"]:
                raise _BadSchemaError(f"the enum at {path or '#'} has no value of its type")
        if "integer" in kinds:
            self.bounds(schema, path)
        for low, high in (("minLength", "maxLength"), ("minItems", "maxItems")):
            if _number(schema.get(low)) and _number(schema.get(high)) and schema[low] > schema[high]:
                raise _BadSchemaError(f"at {path or '#'} {low} is more than {high}")
        if "pattern" in schema:
            if not isinstance(schema["pattern"], str):
                raise _BadSchemaError(f"the pattern at {path or '#'} must be a string")
            try:
                schema["pattern"] = pattern_for_json(schema["pattern"])
            except ValueError as e:
                raise _BadSchemaError(f"the pattern at {path or '#'}: {e}") from None
        return schema

    @staticmethod
    def bounds(schema: _Schema, path: str) -> None:
        """The converter supports one bound on each side, of 64 bits."""
        given = {key: schema.pop(key) for key in _BOUNDS if key in schema}
        for key, value in given.items():
            if not _number(value):
                raise _BadSchemaError(f"{key} at {path or '#'} must be a number")
        low = [math.ceil(given[key]) for key in ("minimum",) if key in given]
        low += [math.floor(given[key]) + 1 for key in ("exclusiveMinimum",) if key in given]
        high = [math.floor(given[key]) for key in ("maximum",) if key in given]
        high += [math.ceil(given[key]) - 1 for key in ("exclusiveMaximum",) if key in given]
        if max(low, default=-_DIGITS) > min(high, default=_DIGITS) or max(low, default=0) >= _DIGITS:
            raise _BadSchemaError(f"at {path or '#'} the bounds leave no integer of at most 16 digits")
        if min(high, default=0) <= -_DIGITS:
            raise _BadSchemaError(f"at {path or '#'} the bounds leave no integer of at most 16 digits")
        if low and max(low) > -_DIGITS:
            schema["minimum"] = max(low)
        if high and min(high) < _DIGITS:
            schema["maximum"] = min(high)


class _Outline(_Reader):
    """Walks a schema only to check that the converter terminates on it."""

    def resolve(self, reference: Any) -> Any:
        try:
            return super().resolve(reference)
        except _BadSchemaError:
            return {}  # the converter reports it

    @staticmethod
    def without_lone_all_of(schema: _Schema) -> _Schema:
        return schema

    @staticmethod
    def can_join(component: object) -> bool:
        return True

    @staticmethod
    def tuple(schema: _Schema, path: str) -> None:
        pass

    def object(self, schema: _Schema, path: str, depth: int) -> None:
        properties, required = schema.get("properties"), schema.get("required")
        if isinstance(properties, dict):
            names = set(required) if isinstance(required, list) and all(isinstance(n, str) for n in required) else set()
            if (
                max(map(len, properties), default=0) > _MAX_NAME_LENGTH
                or len(properties.keys() - names) > _MAX_OPTIONAL
            ):
                raise _BadSchemaError("the name of a property is too long, or too many are not required")
            for name, one in properties.items():
                self.node(one, f"{path}-{name}", depth + 1)
        if isinstance(schema.get("additionalProperties"), dict):
            self.node(schema["additionalProperties"], f"{path}-additional", depth + 1)

    def scalar(self, schema: _Schema, path: str) -> _Schema:
        return schema


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_a(kind: str, value: object) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _TYPES[kind]) or (kind == "integer" and isinstance(value, float) and value.is_integer())
