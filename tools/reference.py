"""Writes the generated parts of docs/reference/ from the package's signatures, defaults and docstrings, the only source.

    python tools/reference.py            write them
    python tools/reference.py --check    list the pages that are out of date, and fail if there are any

A page is written by hand except for its regions:

    <!-- reference: Model -->
    …
    <!-- end -->

A class's region has its signature, its docstring, and a heading for each public method; a record's, a table of its fields; a
function's, its signature and docstring. What a class inherits from another public class is documented there; a method that
classes share through a private base is documented once. Names that have a region or a heading become links.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import logging
import re
import sys
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from griffe import Docstring, DocstringSection

import mullama
from mullama import _model, _options, _request

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "reference"
REGION = re.compile(r"<!-- reference: ([\w.]+) -->\n.*?<!-- end -->", re.DOTALL)
WIDTH = 110  # of a signature on one line
LINE = 120  # of prose

# Private names in annotations, and what is shown instead.
ALIASES = {
    name: inspect.formatannotation(alias)
    for name, alias in (("Prompt", _request.Prompt), ("MaxTokens", _options.MaxTokens), ("StrPath", _model.StrPath))
} | {"Array": "NDArray[float32]", "StreamTools": "ObjectReceiveStream", "Templates": "Any"}

# Of classes that share a method, the first of these documents it.
FIRST = ("Context", "TokenStream", "TokenIterator")

logging.getLogger("griffe").setLevel(logging.ERROR)  # it warns about entries of Raises without a type


@functools.cache
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


def code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def described(parts: list[DocstringSection]) -> dict[str, str]:
    """The meaning of each attribute that a docstring lists."""
    return {one.name: cell(one.description) for part in parts if part.kind.value == "attributes" for one in part.value}


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


def plain(annotation: object, item: str = "T") -> str:
    """An annotation as written in the source, without module prefixes and private names; `item` is what T stands for."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(r"\b\w+\b", lambda match: {**ALIASES, "T": item}.get(match[0], match[0]), text)
    text = re.sub(
        r"\b(?:mullama|typing|collections\.abc|anyio\.abc|anyio\.streams\.memory|np|npt|_core)\.(?:[a-z_]+\.)*",
        "",
        text,
    )
    return re.sub(r" \| (?:Unset|Stop)\b|\bUnset \| ", "", text)


def item_type(cls: type) -> str:
    """What a generic base class of it has for T."""
    arguments = [typing.get_args(base) for base in vars(cls).get("__orig_bases__", ())]
    return next((one[0].__name__ for one in arguments if len(one) == 1), "T")


def parameters(function: Any, item: str = "T") -> tuple[list[str], str]:
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
        text += f": {plain(parameter.annotation, item)}" if annotated else ""
        if parameter.default is not empty:
            default = (
                "..."
                if repr(parameter.default) == "UNSET" or not _is_literal(parameter.default)
                else repr(parameter.default)
            )
            text += f" = {default}" if annotated else f"={default}"
        shown.append(text)
    returned = "" if signature.return_annotation is empty else f" -> {plain(signature.return_annotation, item)}"
    if inspect.isasyncgenfunction(inspect.unwrap(function)):  # made one by asynccontextmanager
        returned = returned.replace("AsyncIterator", "AbstractAsyncContextManager")
    return shown, returned


def _is_literal(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str)) or value == ()


def definition(name: str, function: Any, indent: str = "", decorator: str = "", item: str = "T") -> str:
    shown, returned = parameters(function, item)
    word = "async def" if inspect.iscoroutinefunction(inspect.unwrap(function)) else "def"
    head = f"{indent}{decorator}\n" if decorator else ""
    line = f"{indent}{word} {name}({', '.join(shown)}){returned}: ..."
    if len(line) > WIDTH:
        inner = "".join(f"{indent}    {one},\n" for one in shown)
        line = f"{indent}{word} {name}(\n{inner}{indent}){returned}: ..."
    return head + line


def own_bases(cls: type) -> list[type]:
    """The class and its bases in this package that no documented base of it has."""
    inherited = {base for one in cls.__mro__[1:] if one.__name__ in documented() for base in one.__mro__}
    return [base for base in cls.__mro__ if base.__module__.startswith("mullama") and base not in inherited]


def own_members(cls: type) -> dict[str, Any]:
    """The public members of a class that no documented base of it has: its own in source order, then those of its bases."""
    found: dict[str, Any] = {}
    for base in own_bases(cls):
        found |= {n: value for n, value in vars(base).items() if not n.startswith("_") and n not in found}
    return found


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
    return plain(getattr(cls.__new__, "__annotations__", {}).get(name, "Any"))


# -- regions


def of_function(name: str, function: Any) -> Iterator[str]:
    yield f"```pyi\n{definition(name, function)}\n```"
    yield from prose(sections(function))


def of_record(cls: type) -> Iterator[str]:
    """Fields with type, default and meaning; then the other members."""
    parts = sections(cls)
    yield from prose(parts, without=("attributes", "raises"))
    meanings = described(parts)
    fields = dataclasses.fields(cls)
    if missing := [field.name for field in fields if field.name not in meanings]:
        raise SystemExit(f"{cls.__name__}: the docstring's Attributes lack {', '.join(missing)}")
    rows = []
    for field in fields:
        default = "" if field.default is dataclasses.MISSING else code(repr(field.default))
        rows.append([code(field.name), code(plain(field.type)), default, meanings[field.name]])
    yield table(["field", "type", "default", "meaning"], rows)
    yield from prose([part for part in parts if part.kind.value == "raises"])
    known = {field.name for field in fields}
    yield from of_members(cls, {name: value for name, value in own_members(cls).items() if name not in known}, {})


def of_class(cls: type) -> Iterator[str]:
    members, item, parts = own_members(cls), item_type(cls), sections(cls)
    bases = [base.__name__ for base in cls.__bases__ if base.__name__ in (*documented(), "str")]
    lines = [f"class {cls.__name__}({', '.join(bases)}):" if bases else f"class {cls.__name__}:"]
    if "__init__" in vars(cls) and any(part.kind.value == "parameters" for part in parts):  # else it is not for users
        lines.append(definition("__init__", cls.__init__, "    "))
    annotated = {
        name: annotation
        for base in reversed(own_bases(cls))
        for name, annotation in vars(base).get("__annotations__", {}).items()
        if not name.startswith("_")
    }
    lines += [f"    {name}: {plain(annotation)}" for name, annotation in annotated.items() if name not in members]
    for name, value in members.items():
        if is_property(value):
            lines.append(f"    {name}: {attribute_type(cls, name, value)}")
        elif callable(getattr(cls, name)):
            decorator = {classmethod: "@classmethod", staticmethod: "@staticmethod"}.get(type(value), "")
            lines.append(definition(name, getattr(value, "__func__", value), "    ", decorator, item))
    yield "```pyi\n" + "\n".join(lines) + "\n```"
    yield from prose(parts, without=("attributes",))
    yield from of_members(cls, members, described(parts))


def of_enum(cls: type[enum.Enum]) -> Iterator[str]:
    yield (
        "```pyi\n"
        + "\n".join([f"class {cls.__name__}(Enum):", *(f"    {one.name} = {one.value!r}" for one in cls)])
        + "\n```"
    )
    yield from prose(sections(cls))


def shared_with(cls: type, name: str) -> str | None:
    """The class that documents a method that `cls` has from a private base."""
    if name in vars(cls):
        return None
    for other in FIRST:
        if other == cls.__name__:
            return None
        if inspect.getattr_static(getattr(mullama, other), name, None) is inspect.getattr_static(cls, name):
            return other
    return None


def of_members(cls: type, members: dict[str, Any], meanings: dict[str, str]) -> Iterator[str]:
    """A heading for each method, and a table of the attributes: those that the class describes, then the properties."""
    attributes = {n: (members.get(n), text) for n, text in meanings.items()}
    attributes |= {n: (v, inspect.getdoc(v) or "") for n, v in members.items() if is_property(v) and n not in meanings}
    methods = [name for name, value in members.items() if not is_property(value) and callable(getattr(cls, name))]
    elsewhere: dict[str, list[str]] = {}
    for name in methods:
        if other := shared_with(cls, name):
            elsewhere.setdefault(other, []).append(name)
            continue
        if not inspect.getdoc(getattr(cls, name)):
            raise SystemExit(f"{cls.__name__}.{name} has no docstring")
        yield f"### `{cls.__name__}.{name}`"
        yield from prose(sections(getattr(cls, name)))
    for other, names in elsewhere.items():
        yield f"### Shared with `{other}`"
        yield "These are the same methods: " + ", ".join(f"`{other}.{name}`" for name in names) + "."
    if attributes:
        yield f"### Attributes of `{cls.__name__}`"
        rows = [
            [code(name), code(attribute_type(cls, name, value)), cell(meaning)]
            for name, (value, meaning) in attributes.items()
        ]
        yield table(["attribute", "type", "meaning"], rows)


def of_typed_dict(cls: Any) -> Iterator[str]:
    parts = sections(cls)
    yield from prose(parts, without=("attributes",))
    meanings = described(parts)
    rows = []
    for name, annotation in cls.__annotations__.items():
        shown = annotation.__forward_arg__ if isinstance(annotation, typing.ForwardRef) else annotation
        if name in meanings:  # else the text says which records have it
            rows.append([code(name), code(plain(shown)), meanings[name]])
    if rows:
        yield table(["key", "type", "meaning"], rows)


# -- pages


@functools.cache
def targets() -> dict[str, str]:
    """Where each name is documented: `page.md#anchor`."""
    found = {}
    for name, page in documented().items():
        thing = getattr(mullama, name)
        found[name] = f"{page}#{name.lower()}"
        if inspect.isclass(thing) and not typing.is_typeddict(thing):
            for member, value in own_members(thing).items():
                if not is_property(value) and callable(getattr(thing, member)) and not shared_with(thing, member):
                    found[f"{name}.{member}"] = f"{page}#{name.lower()}{member}"
    return found


def linked(text: str, page: str, own: str) -> str:
    """A block of Markdown with links to the names in it but for its own."""

    def link(match: re.Match[str]) -> str:
        target = targets().get(match[1])
        if target is None or match[1] == own:
            return match[0]
        return f"[{match[0]}]({target.removeprefix(page)})"

    return text if text.startswith(("#", "```")) else re.sub(r"(?<!\[)`([\w.]+)`", link, text)


def filled(text: str) -> str:
    """A paragraph with lines of full length; tables, lists and code stay as they are."""
    if text.startswith(("#", "|", "```", "-", "*")) or re.search(r"^\s", text, re.MULTILINE):
        return text
    return textwrap.fill(text, LINE, break_long_words=False, break_on_hyphens=False)


def region(name: str, page: str) -> str:
    thing = getattr(mullama, name)
    if typing.is_typeddict(thing):
        blocks = of_typed_dict(thing)
    elif dataclasses.is_dataclass(thing):
        blocks = of_record(thing)
    elif inspect.isclass(thing) and issubclass(thing, enum.Enum):
        blocks = of_enum(thing)
    elif inspect.isclass(thing):
        blocks = of_class(thing)
    else:
        blocks = of_function(name, thing)
    parts = [
        part for block in blocks for part in (block.split("\n\n") if not block.startswith("```") else [block]) if part
    ]
    body = "\n\n".join(filled(linked(part, page, name)) for part in parts)
    return f"<!-- reference: {name} -->\n\n{body}\n\n<!-- end -->"


def written(page: Path) -> str:
    """The text of a page with its regions regenerated."""
    return REGION.sub(lambda match: region(match[1], page.name), page.read_text("utf-8"))


def main(arguments: list[str]) -> int:
    stale = []
    for page in sorted(PAGES.glob("*.md")):
        before = page.read_text("utf-8")
        after = written(page)
        if after != before:
            stale.append(page.relative_to(ROOT).as_posix())
            if "--check" not in arguments:
                page.write_text(after, "utf-8")
    for name in stale:
        print(f"{name} {'is out of date: run `make reference`' if '--check' in arguments else 'written'}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
