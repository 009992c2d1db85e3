"""The whole build, in seconds, with a llama.cpp checkout of the user's own: what is compiled, linked and chosen, and when."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from pathlib import Path

import pytest
from small_checkout import LLAMA, PACKAGE, ROOT, Tree

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="tests are run without a checkout"),
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    tree = Tree(tmp_path_factory.mktemp("checkout"))
    tree.build()
    return tree


def compiled(output: str) -> set[str]:
    return {Path(line.split()[-1]).name for line in output.splitlines() if line.startswith("compiling ")}


def test_the_own_checkout_is_what_is_linked(tree: Tree) -> None:
    tree.build()
    assert tree.names() == "cpu common release"
    assert (tree.folder / "vendor" / "licenses" / "LICENSE-llama.cpp").read_text() == "MIT"
    assert not (tree.folder / "vendor" / "llama.cpp").exists()


def test_only_what_changed_is_compiled(tree: Tree) -> None:
    assert compiled(tree.build()) == set()
    tree.write("mullama/_native/other.cpp", "int other() { return 2; }")
    assert compiled(tree.build()) == {"other.cpp"}
    tree.write("mullama/_native/names.hpp", PACKAGE["mullama/_native/names.hpp"])
    assert compiled(tree.build()) == {"names.cpp", "_core.cpp"}
    tree.write("mullama/_part.pxi", "def get(): return names() + b'!'")
    assert compiled(tree.build()) == {"_core.cpp"}
    assert tree.names() == "cpu common release!"
    tree.write("mullama/_part.pxi", PACKAGE["mullama/_part.pxi"])
    tree.build()


def test_a_change_in_llama_cpp_is_linked(tree: Tree) -> None:
    tree.write("own-llama.cpp/common.cpp", LLAMA["common.cpp"].replace('"common"', '"changed"'))
    said = tree.build()
    tree.write("own-llama.cpp/common.cpp", LLAMA["common.cpp"])
    assert compiled(said) == set()
    assert tree.names() == "cpu changed release"


def test_what_cmake_args_add_is_linked(tree: Tree) -> None:
    tree.build(CMAKE_ARGS="-DSMALL_BACKEND=ON")
    assert tree.names() == "backend common release"
    tree.build()
    assert tree.names() == "cpu common release"


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="it is for x86-64 on Linux")
def test_a_portable_build_chooses_when_it_is_loaded(tree: Tree) -> None:
    tree.build(MULLAMA_PORTABLE="1")
    has_avx2 = "avx2" in Path("/proc/cpuinfo").read_text().split()
    assert tree.names() == ("fast cpu common release" if has_avx2 else "cpu common release")
    if emulator := shutil.which("qemu-x86_64"):
        assert tree.names(emulator, "-cpu", "Westmere") == "cpu common release"
    assert compiled(tree.build(MULLAMA_PORTABLE="1")) == set()
    tree.build()
    assert tree.names() == "cpu common release"


def test_debug_and_back(tree: Tree) -> None:
    tree.build(MULLAMA_DEBUG="1")
    assert tree.names() == "cpu common debug"
    assert compiled(tree.build()) == set()
    assert tree.names() == "cpu common release"


@pytest.mark.parametrize("way", ["copied", "moved"])
def test_a_checkout_builds_again_elsewhere(tmp_path: Path, way: str) -> None:
    first = Tree(tmp_path / "first")
    first.build()
    first.write("mullama/_part.pxi", "def get(): return names() + b' elsewhere'")
    second = first.elsewhere(tmp_path / "second")
    if way == "copied":
        shutil.copytree(first.folder, second.folder)
        for path in second.folder.rglob(
            "*"
        ):  # times of its own, by which what was built looks younger than its sources
            age = 30 if path.is_relative_to(second.folder / "build") else 60
            os.utime(path, (time.time() - age,) * 2)
        first.write("mullama/_native/names.cpp", "#error this is of the other checkout")
    else:
        first.folder.rename(second.folder)
    second.build()
    second.write("mullama/_native/names.cpp", PACKAGE["mullama/_native/names.cpp"].replace('" "', '"-"'))
    assert compiled(second.build()) == {"names.cpp"}
    assert second.names() == "cpu-common-release elsewhere"
    assert compiled(second.build()) == set()
