"""The documentation is correct: its links work, and its reference matches the whole public interface.

Its examples are run by test_docs_examples.py.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path

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


def test_generated_parts_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "tools" / "reference.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


BY_HAND = {"ChatOptions", "TokenLogprob"}


@pytest.mark.parametrize("name", mullama.__all__)
def test_every_class_and_function_has_a_generated_part(name: str) -> None:
    thing = getattr(mullama, name)
    is_error = inspect.isclass(thing) and issubclass(thing, BaseException)  # these are in a table
    if (inspect.isclass(thing) or inspect.isfunction(thing)) and not is_error and name not in BY_HAND:
        assert f"<!-- reference: {name} -->" in section(f"{name}()" if inspect.isfunction(thing) else name)


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
