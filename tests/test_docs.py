"""The documentation is correct: its links work, and its reference matches the whole public interface.

Its examples are run by test_docs_examples.py.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mullama

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.md"))

FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Each fenced block of a language, with the number of lines before it."""
    text = page.read_text("utf-8")
    return [
        (text.count("\n", 0, match.start()) + 1, match[2])
        for match in FENCE.finditer(text)
        if match[1].strip() == language
    ]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text("utf-8"))


# -- the pages


@each_page
def test_no_python_is_left_out(page: Path) -> None:
    languages = {match[1].strip() for match in FENCE.finditer(page.read_text("utf-8"))}
    assert languages <= {"python", "pyi", "text", "mermaid", ""}


@each_page
def test_a_page_opens_with_what_it_is_for(page: Path) -> None:
    title, empty, first = page.read_text("utf-8").split("\n")[:3]
    assert title.startswith("# ")
    assert not empty
    assert first[:1].isalpha()


@each_page
def test_lines_are_short(page: Path) -> None:
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        assert len(line) <= 125 or line.startswith("|"), f"{name_of(page)}:{number}"


def anchors(page: Path) -> set[str]:
    """The anchors of its headings, as GitHub makes them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(prose(page))}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), f"{target} is not there"
        assert not anchor or anchor in anchors(there), f"{target} has no such heading"


def test_the_map_leads_to_every_page() -> None:
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in (ROOT / "docs" / "index.md", ROOT / "docs" / "reference" / "index.md")
        for target in LINK.findall(prose(page))
    }
    assert {page.resolve() for page in PAGES[1:]} - linked == {(ROOT / "docs" / "index.md").resolve()}


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        text = page.read_text("utf-8")
        for command in re.findall(r"(?:`|^    )make((?: [a-z-]+)+)", text, re.MULTILINE):
            assert set(command.split()) <= targets, f"{name_of(page)}: make{command}"


def test_files_that_the_explanation_names_exist() -> None:
    for page in (ROOT / "docs" / "explanation").glob("*.md"):
        for name in re.findall(r"`(mullama/[\w/.]+\.\w+)`", page.read_text("utf-8")):
            assert (ROOT / name).is_file(), f"{name_of(page)}: {name}"


# -- the reference: complete and correct


def stubs() -> Iterator[ast.stmt]:
    for page in REFERENCE:
        for line, source in blocks(page, "pyi"):
            yield from ast.parse("\n" * line + source, str(page)).body


def stub_classes() -> dict[str, ast.ClassDef]:
    return {stub.name: stub for stub in stubs() if isinstance(stub, ast.ClassDef)}


def section(heading: str) -> str:
    """The text of the reference below a heading, up to the next heading of its level or higher."""
    for page in REFERENCE:
        text = page.read_text("utf-8")
        if match := re.search(rf"^(#+) `{re.escape(heading)}`$", text, re.MULTILINE):
            rest = text[match.end() :]
            end = re.search(rf"^#{{1,{len(match[1])}}} ", FENCE.sub(lambda m: " " * len(m[0]), rest), re.MULTILINE)
            return rest[: end.start()] if end else rest
    pytest.fail(f"the reference has no heading `{heading}`")


def rows(text: str) -> dict[str, list[str]]:
    """The rows of the tables, by the code in the first cell."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and (match := re.match(r"`([^`]+)`", cells[0])):
            found[match[1]] = cells
    return found


def is_config(thing: Any) -> bool:
    return inspect.isclass(thing) and dataclasses.is_dataclass(thing)


@pytest.mark.parametrize("name", mullama.__all__)
def test_every_name_has_its_place(name: str) -> None:
    if name != "__version__" and typing.get_origin(getattr(mullama, name)) is None:  # a type alias has no docstring
        assert inspect.getdoc(getattr(mullama, name))
    if inspect.isclass(thing := getattr(mullama, name)) and issubclass(thing, BaseException):
        assert name in rows((ROOT / "docs" / "reference" / "errors.md").read_text("utf-8"))
    else:
        section(name if not inspect.isfunction(thing) else f"{name}()")
    index = prose(ROOT / "docs" / "reference" / "index.md")
    assert f"`{name}`" in index


def written_signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[tuple[str, Any, Any]]:
    """Name, kind and default of each parameter; `...` stands for an omitted argument."""
    kinds = inspect.Parameter
    args = node.args
    positional = [*args.posonlyargs, *args.args]
    lead: list[ast.expr | None] = [None] * (len(positional) - len(args.defaults))
    found: list[tuple[str, Any, ast.expr | None]] = [
        *((a.arg, kinds.POSITIONAL_OR_KEYWORD, d) for a, d in zip(positional, [*lead, *args.defaults], strict=True)),
        *((a.arg, kinds.VAR_POSITIONAL, None) for a in [args.vararg] if a),
        *((a.arg, kinds.KEYWORD_ONLY, d) for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True)),
    ]
    if args.kwarg:
        found.append((args.kwarg.arg, kinds.VAR_KEYWORD, None))
    return [
        (name, kind, kinds.empty if default is None else ast.literal_eval(default)) for name, kind, default in found
    ]


def real_signature(function: Any) -> list[tuple[str, Any, Any]]:
    return [
        (p.name, p.kind, ... if repr(p.default) == "UNSET" else p.default)
        for p in inspect.signature(function).parameters.values()
        if p.name not in ("self", "cls")
    ]


def public(thing: type) -> set[str]:
    """The public names that a class, or a base class of ours, defines."""
    ours = [cls for cls in thing.__mro__ if cls.__module__.startswith("mullama")]
    return {name for cls in ours for name in vars(cls) if not name.startswith("_")}


@pytest.mark.parametrize("name", sorted(stub_classes()))
def test_classes_are_as_written(name: str) -> None:
    thing, stub = getattr(mullama, name), stub_classes()[name]
    written = {node.name: node for node in stub.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    attributes = {n.target.id for n in stub.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    inherited = set()
    for base in stub.bases:
        if isinstance(base, ast.Name) and base.id in stub_classes():
            inherited |= public(getattr(mullama, base.id))
    assert {n for n in written if not n.startswith("_")} | attributes >= public(thing) - inherited
    body = section(name)
    for method, node in written.items():
        real = inspect.getattr_static(thing, method)
        assert written_signature(node)[1:] == (
            [] if isinstance(real, property) else real_signature(getattr(thing, method))
        )
        function = getattr(thing, method)
        if isinstance(real, property):
            continue
        is_async = inspect.iscoroutinefunction(function)
        assert isinstance(node, ast.AsyncFunctionDef) == is_async, method
        if not method.startswith("_"):
            assert inspect.getdoc(function), method
            assert f"`{method}" in body or f".{method}" in body, f"nothing is said about {name}.{method}"


def test_functions_are_as_written() -> None:
    written = {node.name: node for node in stubs() if isinstance(node, ast.FunctionDef)}
    assert set(written) == {name for name in mullama.__all__ if inspect.isfunction(getattr(mullama, name))}
    for name, node in written.items():
        assert written_signature(node) == real_signature(getattr(mullama, name))


@pytest.mark.parametrize("name", [n for n in mullama.__all__ if is_config(getattr(mullama, n))])
def test_records_are_as_written(name: str) -> None:
    fields = dataclasses.fields(getattr(mullama, name))
    table = rows(section(name))
    assert [n for n in table if n in {field.name for field in fields}] == [field.name for field in fields]
    for field in fields:
        if field.default is not dataclasses.MISSING:
            assert ast.literal_eval(table[field.name][2].strip("`")) == field.default, field.name
    for extra in public(getattr(mullama, name)) - {field.name for field in fields}:
        assert f"`{extra}" in section(name) or f"`{name}.{extra}`" in section(name), extra


def test_options_of_a_chat_are_as_written() -> None:
    assert list(rows(section("ChatOptions"))) == list(mullama.ChatOptions.__annotations__)


def test_samplers_are_as_written() -> None:
    from mullama.config import SAMPLERS

    words = re.search(r"The words of `samplers` are llama.cpp's: (.*?)\. A step", section("SamplerParams"), re.DOTALL)
    assert words
    assert tuple(re.findall(r"`(\w+)`", words[1])) == SAMPLERS


def test_errors_are_as_written() -> None:
    page = (ROOT / "docs" / "reference" / "errors.md").read_text("utf-8")
    table = rows(page)
    for name in mullama.__all__:
        thing = getattr(mullama, name)
        if inspect.isclass(thing) and issubclass(thing, mullama.MullamaError):
            _, code, bases, _ = table[name]
            assert code == f"`{thing.code}`"
            assert set(re.findall(r"`(\w+)`", bases)) == {
                base.__name__ for base in thing.__bases__ if base is not Exception
            }
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "mullama").glob("*.py"))
    for code in re.findall(r'code ?= ?"([A-Z_]+)"', sources):
        assert f"`{code}`" in page, code


@pytest.mark.parametrize("command", ["run", "bench"])
def test_options_are_as_written(command: str) -> None:
    import click

    from mullama import cli

    table = rows(section(f"mullama {command}"))
    written = {tuple(re.findall(r"`(-[\w-]+)", cells[0])): cells for cells in table.values()}
    options = [p for p in getattr(cli, command).params if isinstance(p, click.Option)]
    assert {o for names in written for o in names} == {o for p in options for o in p.opts}
    for option in options:
        default = written[tuple(option.opts)][1].strip("`")
        if found := re.search(r"\[default: (.*)\]", option.help or ""):
            assert default == found[1]
        elif not option.is_flag and not option.multiple:
            assert default == str(option.default)


def test_exit_statuses_are_as_written() -> None:
    from mullama import cli

    page = (ROOT / "docs" / "reference" / "command.md").read_text("utf-8")
    for status in re.findall(r"(\d+) \w+", (cli.__doc__ or "").partition("Exit status:")[2]):
        assert f"| {status} |" in page


def test_build_variables_are_all_there() -> None:
    page = (ROOT / "docs" / "reference" / "build.md").read_text("utf-8")
    sources = [ROOT / "setup.py", ROOT / "tools" / "build_llama.py", ROOT / "tools" / "vendor.py"]
    found = {name for path in sources for name in re.findall(r"environ\S*?[\"'](\w+)[\"']", path.read_text("utf-8"))}
    found |= {"MULLAMA_LLAMA_CPP_DIR", "MULLAMA_PORTABLE", "MULLAMA_DEBUG", "MULLAMA_SANITIZE", "CC", "CXX"}
    found -= {"SSL_CERT_FILE"}
    for name in found:
        assert f"`{name}" in page, name
