"""The built extension and the build: one visible symbol, a second build that does nothing, errors
that name the command that fixes them, the licences."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="tests are run without a checkout")


def setup(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return subprocess.run(
        [sys.executable, "setup.py", *map(str, arguments)],
        cwd=ROOT,
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def extension() -> Path:
    import mullama._core

    return Path(mullama._core.__file__)


def test_only_the_init_function_is_visible() -> None:
    if shutil.which("nm") is None:
        pytest.skip("no nm here; it comes with binutils")
    options = ["-gU"] if sys.platform == "darwin" else ["-D", "--defined-only"]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    output = subprocess.check_output(["nm", *options, str(extension())], text=True, env=environment)
    visible = {line.split()[-1].lstrip("_") for line in output.splitlines() if line.strip()}
    assert visible == {"PyInit__core"}


@pytest.mark.timeout(1800)
def test_a_second_build_does_nothing(tmp_path: Path) -> None:
    first = setup("build_ext", "--build-lib", tmp_path)
    assert first.returncode == 0, first.stdout
    (built,) = tmp_path.rglob("_core*.so")
    before = built.stat()
    second = setup("build_ext", "--build-lib", tmp_path)
    assert second.returncode == 0, second.stdout
    for work in ("compiling", "linking", "ythonizing", "Building"):
        assert work not in second.stdout
    after = built.stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)


@pytest.mark.parametrize("variable", ["CC", "CXX"])
def test_without_a_compiler_it_says_how_to_get_one(tmp_path: Path, variable: str) -> None:
    run = setup("build_ext", "--build-lib", tmp_path, **{variable: "/nonexistent/compiler"})
    assert run.returncode == 1
    assert "Traceback" not in run.stdout
    assert f"{variable}=/nonexistent/compiler does not exist" in run.stdout
    for command in ("apt install build-essential", "xcode-select --install", f"export {variable}="):
        assert command in run.stdout


def test_an_unknown_sanitizer_is_named(tmp_path: Path) -> None:
    run = setup("build_ext", "--build-lib", tmp_path, MULLAMA_SANITIZE="memory")
    assert run.returncode == 1
    assert "MULLAMA_SANITIZE=memory is not valid" in run.stdout
    assert "export MULLAMA_SANITIZE=" in run.stdout


def test_without_cmake_it_says_how_to_get_it(tmp_path: Path) -> None:
    """A separate environment that has setuptools but no CMake, not even on the PATH."""
    if (Path(sys.executable).parent / "cmake").exists():
        pytest.skip("CMake comes from this environment")
    compilers = {name: path for name in ("CC", "CXX") if (path := shutil.which("cc" if name == "CC" else "c++"))}
    if len(compilers) < 2:
        pytest.skip("no compilers under their usual names")
    run = setup("build_ext", "--build-lib", tmp_path, PATH=str(tmp_path), **compilers)
    assert run.returncode == 1
    assert "pip install cmake ninja" in run.stdout


def test_the_licences_travel_with_the_package() -> None:
    names = importlib.metadata.metadata("mullama").get_all("License-File") or []
    assert "LICENSE" in names
    assert any(name.endswith("LICENSE-llama.cpp") for name in names)
