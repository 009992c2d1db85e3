"""Writes the generated parts of docs/reference/ from the package's signatures, defaults and docstrings, the only source.

    python tools/reference.py            write them
    python tools/reference.py --check    list the pages that are out of date, and fail if there are any

A page is written by hand except for its regions:

    <!-- reference: Model -->
    …
    <!-- end -->

A class's region has its signature, its docstring, and a heading for each public method; a record's, a table of its fields; a
function's, its signature and docstring. What a class inherits from another public class is documented there.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from griffe import Docstring, DocstringSection

import mullama

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "reference"
REGION = re.compile(r"<!-- reference: ([\w.]+) -->\n.*?<!-- end -->", re.DOTALL)
WIDTH = 110  # of a signature on one line

logging.getLogger("griffe").setLevel(logging.ERROR)  # it warns about entries of Raises without a type


def documented() -> dict[str, str]:
    """The page on which each name has its region."""
    return {
        name: page.name
        for page in sorted(PAGES.glob("*.md"))
        for name in re.findall(r"<!-- reference: (\w+) -->", page.read_text("utf-8"))
    }


# -- docstrings as Markdown


def sections(thing: Any) -> list[DocstringSection]:
    """The sections of a Google-style docstring."""
    text = inspect.getdoc(thing) or ""
    return Docstring(text).parse("google", warnings=False)


def markdown(text: str) -> str:
    """Prose of a docstring as Markdown: reStructuredText's double backticks become single ones."""
    return text.replace("``", "`").strip()


def cell(text: str) -> str:
    return re.sub(r"\s*\n\s*", " ", markdown(text)).replace("|", "\\|")


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def prose(parts: list[DocstringSection], *, without: tuple[str, ...] = ()) -> Iterator[str]:
    """The blocks of Markdown for a docstring."""
    for part in parts:
        kind = part.kind.value
        if kind in without:
            continue
        if kind == "text":
            yield markdown(part.value)
        elif kind == "parameters":
            yield table(["argument", "meaning"], [[f"`{one.name}`", cell(one.description)] for one in part.value])
        elif kind == "attributes":
            yield table(["attribute", "meaning"], [[f"`{one.name}`", cell(one.description)] for one in part.value])
        elif kind == "raises":
            rows = [
                [", ".join(f"`{name.strip()}`" for name in str(one.annotation).split(",")), cell(one.description)]
                for one in part.value
            ]
            yield table(["raises", "when"], rows)
        elif kind == "returns":
            yield "Returns: " + " ".join(cell(f"{one.annotation or ''} {one.description}") for one in part.value)
        elif kind == "admonition":
            yield f"{part.title}: {markdown(part.value.description)}"
        else:
            raise SystemExit(f"a docstring has a section {kind!r} that the reference does not support: {part.value!r}")


# -- signatures


def plain(annotation: object) -> str:
    """An annotation as written in the source, without module prefixes."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(
        r"\b(?:mullama|typing|collections\.abc|anyio\.abc|anyio\.streams\.memory|np|npt)\.(?:[a-z_]+\.)*", "", text
    )
    return re.sub(r" \| Unset\b|\bUnset \| ", "", text)


def parameters(function: Any) -> tuple[list[str], str]:
    signature = inspect.signature(function)
    empty = inspect.Parameter.empty
    shown, star = [], False
    for parameter in signature.parameters.values():
        kind = parameter.kind
        if kind is parameter.KEYWORD_ONLY and not star:
            shown.append("*")
        star = star or kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        text = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(kind, "") + parameter.name
        annotated = parameter.annotation is not empty
        text += f": {plain(parameter.annotation)}" if annotated else ""
        if parameter.default is not empty:
            default = (
                "..."
                if repr(parameter.default) == "UNSET" or not _is_literal(parameter.default)
                else repr(parameter.default)
            )
            text += f" = {default}" if annotated else f"={default}"
        shown.append(text)
    returned = "" if signature.return_annotation is empty else f" -> {plain(signature.return_annotation)}"
    return shown, returned


def _is_literal(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str)) or value == ()


def definition(name: str, function: Any, indent: str = "", decorator: str = "") -> str:
    shown, returned = parameters(function)
    word = "async def" if inspect.iscoroutinefunction(inspect.unwrap(function)) else "def"
    head = f"{indent}{decorator}\n" if decorator else ""
    line = f"{indent}{word} {name}({', '.join(shown)}){returned}: ..."
    if len(line) > WIDTH:
        inner = "".join(f"{indent}    {one},\n" for one in shown)
        line = f"{indent}{word} {name}(\n{inner}{indent}){returned}: ..."
    return head + line


def own_members(cls: type) -> dict[str, Any]:
    """The public members of a class that no documented base of it has, in source order."""
    names = documented()
    elsewhere = {name for base in cls.__mro__[1:] if base.__name__ in names for name in vars(base)}
    found: dict[str, Any] = {}
    for base in reversed([base for base in cls.__mro__ if base.__module__.startswith("mullama")]):
        if base is not cls and base.__name__ in names:
            continue
        found |= {name: value for name, value in vars(base).items() if not name.startswith("_")}
    return {name: value for name, value in found.items() if name not in elsewhere or name in vars(cls)}


def is_property(value: Any) -> bool:
    return isinstance(value, property) or type(value).__name__ in (
        "cached_property",
        "member_descriptor",
        "getset_descriptor",
    )


def attribute_type(cls: type, name: str, value: Any) -> str:
    getter = getattr(value, "fget", None) or getattr(value, "func", None)
    if getter is not None:
        return plain(inspect.signature(getter).return_annotation)
    for base in cls.__mro__:
        if name in vars(base).get("__annotations__", {}):
            return plain(vars(base)["__annotations__"][name])
    return "Any"


# -- regions


def of_function(name: str, function: Any) -> Iterator[str]:
    yield f"```pyi\n{definition(name, function)}\n```"
    yield from prose(sections(function))


def of_record(cls: type) -> Iterator[str]:
    """Fields with type, default and meaning; then the other members."""
    parts = sections(cls)
    yield from prose(parts, without=("attributes", "raises"))
    meanings = {
        one.name: cell(one.description) for part in parts if part.kind.value == "attributes" for one in part.value
    }
    fields = dataclasses.fields(cls)
    if missing := [field.name for field in fields if field.name not in meanings]:
        raise SystemExit(f"{cls.__name__}: the docstring's Attributes lack {', '.join(missing)}")
    rows = []
    for field in fields:
        default = "" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        rows.append(
            [
                f"`{field.name}`",
                f"`{plain(field.type)}`".replace("|", "\\|"),
                default.replace("|", "\\|"),
                meanings[field.name],
            ]
        )
    yield table(["field", "type", "default", "meaning"], rows)
    yield from prose([part for part in parts if part.kind.value == "raises"])
    known = {field.name for field in fields}
    yield from of_members(cls, {name: value for name, value in own_members(cls).items() if name not in known})


def of_class(cls: type) -> Iterator[str]:
    members = own_members(cls)
    bases = [base.__name__ for base in cls.__bases__ if base.__name__ in (*documented(), "str", "NamedTuple")]
    lines = [f"class {cls.__name__}({', '.join(bases)}):" if bases else f"class {cls.__name__}:"]
    if "__init__" in vars(cls):
        lines.append(definition("__init__", cls.__init__, "    "))
    annotated = {n: a for n, a in vars(cls).get("__annotations__", {}).items() if not n.startswith("_")}
    lines += [f"    {name}: {plain(annotation)}" for name, annotation in annotated.items() if name not in members]
    for name, value in members.items():
        if is_property(value):
            lines.append(f"    {name}: {attribute_type(cls, name, value)}")
        elif callable(getattr(cls, name)):
            decorator = {classmethod: "@classmethod", staticmethod: "@staticmethod"}.get(type(value), "")
            lines.append(definition(name, getattr(value, "__func__", value), "    ", decorator))
    yield "```pyi\n" + "\n".join(lines) + "\n```"
    yield from prose(sections(cls))
    yield from of_members(cls, members)


def of_members(cls: type, members: dict[str, Any]) -> Iterator[str]:
    described = {one.name for part in sections(cls) if part.kind.value == "attributes" for one in part.value}
    properties = {n: v for n, v in members.items() if is_property(v) and n not in described}
    for name, value in members.items():
        if not is_property(value) and callable(getattr(cls, name)):
            yield f"### `{cls.__name__}.{name}`"
            yield from prose(sections(getattr(cls, name)))
    if properties:
        yield f"### Attributes of `{cls.__name__}`"
        rows = [
            [
                f"`{name}`",
                f"`{attribute_type(cls, name, value)}`".replace("|", "\\|"),
                cell(inspect.getdoc(value) or ""),
            ]
            for name, value in properties.items()
        ]
        yield table(["attribute", "type", "meaning"], rows)


def of_typed_dict(cls: Any) -> Iterator[str]:
    parts = sections(cls)
    yield from prose(parts, without=("attributes",))
    meanings = {
        one.name: cell(one.description) for part in parts if part.kind.value == "attributes" for one in part.value
    }
    rows = []
    for name, annotation in cls.__annotations__.items():
        shown = annotation.__forward_arg__ if isinstance(annotation, typing.ForwardRef) else annotation
        rows.append([f"`{name}`", f"`{plain(shown)}`".replace("|", "\\|"), meanings[name]])
    yield table(["key", "type", "meaning"], rows)


def region(name: str) -> str:
    thing = getattr(mullama, name)
    if typing.is_typeddict(thing):
        blocks = of_typed_dict(thing)
    elif dataclasses.is_dataclass(thing):
        blocks = of_record(thing)
    elif inspect.isclass(thing):
        blocks = of_class(thing)
    else:
        blocks = of_function(name, thing)
    body = "\n\n".join(block for block in blocks if block)
    return f"<!-- reference: {name} -->\n\n{body}\n\n<!-- end -->"


def written(page: str) -> str:
    """The text of a page with its regions regenerated."""
    return REGION.sub(lambda match: region(match[1]), page)


def main(arguments: list[str]) -> int:
    stale = []
    for page in sorted(PAGES.glob("*.md")):
        before = page.read_text("utf-8")
        after = written(before)
        if after != before:
            stale.append(page.relative_to(ROOT).as_posix())
            if "--check" not in arguments:
                page.write_text(after, "utf-8")
    for name in stale:
        print(f"{name} {'is out of date: run `make reference`' if '--check' in arguments else 'written'}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
