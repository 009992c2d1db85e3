"""The source itself: how files open, which layer may import what, what is public, and which llama.cpp is linked."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import mullama
from mullama import _core

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mullama"
MEASURE = 400

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="tests are run without a checkout")


def git(*arguments: str) -> list[str]:
    run = subprocess.run(["git", *arguments, "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode or not (ROOT / ".git").exists():
        pytest.skip("no git checkout, or no git")
    return [name for name in run.stdout.split("\0") if name]


def sources(*kinds: str) -> list[Path]:
    """Our source files, tracked or not yet added."""
    folders = ("mullama", "tests", "tools", "bench", "examples")
    found = [path for folder in folders for kind in kinds for path in (ROOT / folder).rglob(f"*.{kind}")]
    return sorted([*found, *(path for kind in kinds for path in ROOT.glob(f"*.{kind}"))])


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


CODE = sources("py", "pyx", "pxd", "pxi", "pyi", "cpp", "hpp")


def opening(path: Path) -> str:
    """What a file opens with: its docstring, or its first comment without lines for tools."""
    text = path.read_text("utf-8")
    text = re.sub(r"\A(#!.*\n|# (distutils|cython): .*\n)*", "", text)
    if docstring := re.match(r'"""(.*?)"""', text, re.DOTALL):
        return docstring[1]
    mark = "//" if path.suffix in (".cpp", ".hpp") else "#"
    comment = re.match(rf"(?:{mark} .*\n(?:{mark}\n)?)+", text)
    return re.sub(rf"^{mark} ?", "", comment[0], flags=re.MULTILINE) if comment else ""


@pytest.mark.parametrize("path", [*CODE, ROOT / "Makefile", *sources("toml")], ids=relative)
def test_a_file_opens_with_what_belongs_in_it(path: Path) -> None:
    sentence = re.split(r"\n\s*\n", opening(path).strip())[0]
    assert re.match(r"[A-Z`'\"A-Za-z]", sentence), "a sentence, in a docstring or a comment at the head of the file"
    assert sentence.rstrip().endswith((".", ":", "`")), sentence
    assert len(sentence.split()) >= 4, sentence


@pytest.mark.parametrize("path", CODE, ids=relative)
def test_no_file_is_too_long_for_one_subject(path: Path) -> None:
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= MEASURE, f"{lines} lines; split it by subject"


# ------------------------------------------------------------------------------------------ layers


def imports(path: Path) -> dict[str, bool]:
    """The modules that a file imports in any way, and whether it does so at import time."""
    tree = ast.parse(path.read_text("utf-8"))
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    found: dict[str, bool] = {}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names = [base] if node.module else [base + alias.name for alias in node.names]
        for name in names:
            found[name] = found.get(name, False) or id(node) not in lazy
    return found


def importers(*packages: str, at_import: bool) -> set[str]:
    """The modules of the package that import one of these."""
    return {
        relative(path)
        for path in PACKAGE.rglob("*.py")
        for name, eager in imports(path).items()
        if name.split(".")[0] in packages and (eager or not at_import)
    }


def test_only_the_awaiting_shell_imports_a_concurrency_library() -> None:
    shell = {f"mullama/{name}.py" for name in ("_async", "_async_streams", "_wakeup", "_merge")}
    shell |= {"mullama/_bench.py", "mullama/_run.py"}  # users of it, in the package for the command's sake
    assert importers("anyio", "sniffio", at_import=True) == shell
    assert importers("anyio", "sniffio", at_import=False) <= shell | {"mullama/cli.py"}
    assert importers("asyncio", "trio", "uvloop", at_import=True) == set()
    assert importers("asyncio", "trio", "uvloop", at_import=False) <= {"mullama/cli.py", "mullama/_wakeup.py"}


# From bottom to top. A module imports only modules from lines above its own, including lazy imports and those for types.
RANKS = """
    _openai
    _records
    _chat_records
    errors
    _core _checks _model_files
    _version _workers
    _json_patterns
    _schema
    _log config
    _model
    _interpreter_exit _options
    _embeddings _engine
    _prompt_cache _request
    _preparation
    _generation
    _chat
    _arguments _context
    _wakeup
    _sync_streams _async_streams
    _sync _async
    _merge llama
    __init__
    _bench _run
    cli
    __main__
"""
# The async shell does nothing with the sync one except expose it as `AsyncContext.context`.
HANDED_OUT = ("_async", "_sync")


def test_imports_go_downwards_only() -> None:
    rank = {name: i for i, line in enumerate(RANKS.split("\n")) for name in line.split()}
    modules = {path.stem: path for path in PACKAGE.glob("*.py")}
    assert rank.keys() == {*modules, "_core"}, "each module has its rank"
    imported = {name: own_imports(path) for name, path in modules.items()}
    imported["_core"] = set(re.findall(r"^from mullama\.(\w+) import", core_text(), re.MULTILINE))
    for name, others in imported.items():
        upwards = {other for other in others if rank[other] >= rank[name] and (name, other) != HANDED_OUT}
        assert not upwards, f"{name} imports {upwards}"


def own_imports(path: Path) -> set[str]:
    """The package's modules that one of its modules imports, at any time and in any way."""
    modules = {path.stem for path in PACKAGE.glob("*.py")} | {"_core"}
    found = set()
    for name in imports(path):
        if name == "mullama" or name.startswith(("mullama.", ".")):
            first = name.removeprefix("mullama").lstrip(".").split(".")[0]
            found.add(first if first in modules else "__init__")
    return found


def core_text() -> str:
    return "".join(path.read_text("utf-8") for path in (PACKAGE / "_core.pyx", *PACKAGE.glob("*.pxi")))


def test_the_native_side_knows_no_python() -> None:
    for path in (path for path in (PACKAGE / "_native").rglob("*") if path.is_file()):
        text = re.sub(r"//.*", "", path.read_text("utf-8"))
        assert not re.search(r"\bPy[A-Z_]\w*|Python\.h|pybind|cython", text), relative(path)
        assert path.suffix in (".cpp", ".hpp"), relative(path)


def test_the_engine_enters_nogil_in_one_place() -> None:
    assert len(re.findall(r"engine\.run\(\)", core_text())) == 1
    assert re.search(r"with nogil:\s*\n\s*engine\.run\(\)", core_text())


# ------------------------------------------------------------------------------------------ upstream


def test_nothing_of_upstream_is_tracked() -> None:
    tracked = [name for name in git("ls-files") if name.startswith("vendor/")]
    assert not [name for name in tracked if name.startswith("vendor/llama.cpp/") and not name.endswith("/README.md")]
    assert "vendor/llama.cpp.toml" in tracked
    assert "vendor/CMakeLists.txt" in tracked


def test_no_build_product_is_tracked() -> None:
    assert not [name for name in git("ls-files") if name.endswith((".so", ".o", ".a", ".pyc", ".dylib", ".pyd"))]


def test_the_linked_llama_cpp_is_the_pinned_one() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import vendor
    finally:
        sys.path.remove(str(ROOT / "tools"))
    if vendor.OWN_CHECKOUT in os.environ:
        pytest.skip("built from a checkout of the user's own")
    pin = vendor.read_pin()
    number, commit = _core.llama_cpp_build()
    assert f"b{number}" == pin.tag == mullama.llama_cpp_version()
    assert commit == pin.package
    assert pin.version.endswith(pin.tag.lstrip("b"))


# ------------------------------------------------------------------------------------------ the public names


def test_the_public_names_exist_once_and_in_order() -> None:
    assert len(set(mullama.__all__)) == len(mullama.__all__)
    assert all(hasattr(mullama, name) for name in mullama.__all__)
    assert not [name for name in mullama.__all__ if name.startswith("_") and name != "__version__"]
    public = {
        name
        for name, value in vars(mullama).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }
    assert public == set(mullama.__all__) - {"__version__"}, "what is there is promised, and nothing else is there"


def test_every_error_is_public() -> None:
    from mullama import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    own = {kind.__name__ for kind in kinds if kind.__module__ == "mullama.errors"}
    assert {name for name in own if not name.startswith("_")} <= set(mullama.__all__)


# Type aliases, such as `Message`, have no docstring; the reference says what they are.
DOCUMENTED = [
    name for name in mullama.__all__ if name != "__version__" and typing.get_origin(getattr(mullama, name)) is None
]


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_public_name_says_what_it_is(name: str) -> None:
    """So must every public method and property that it defines itself."""
    thing = getattr(mullama, name)
    assert inspect.getdoc(thing), name
    assert "(" not in (thing.__doc__ or "")[: len(name) + 1], "not the signature that dataclasses make up"
    if not isinstance(thing, type):
        return
    for member, value in vars(thing).items():
        plain = inspect.unwrap(getattr(value, "__func__", value))
        documented = inspect.isfunction(plain) or isinstance(value, property)
        if documented and not member.startswith("_"):
            assert inspect.getdoc(getattr(thing, member)) or member in INHERITED, f"{name}.{member}"


# Properties whose whole meaning is in the docstring of their class.
INHERITED = {"text", "total_tokens"}
