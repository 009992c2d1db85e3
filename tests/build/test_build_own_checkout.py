"""The whole build, in seconds: the real setup.py and tools, with a llama.cpp checkout of the user's own that is as
small as can be (the same targets, a function each) and a package of two sources."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LLAMA = {
    "CMakeLists.txt": """
        cmake_minimum_required(VERSION 3.14)
        project(small C CXX)
        add_library(ggml-cpu cpu.cpp)
        if (GGML_AVX2)
            target_compile_definitions(ggml-cpu PRIVATE NAME="fast cpu")
        else()
            target_compile_definitions(ggml-cpu PRIVATE NAME="cpu")
        endif()
        add_library(ggml ggml.cpp)
        target_link_libraries(ggml PRIVATE ggml-cpu)
        target_include_directories(ggml PUBLIC include)
        add_library(llama llama.cpp)
        target_link_libraries(llama PUBLIC ggml)
        add_library(llama-common common.cpp)
        target_link_libraries(llama-common PUBLIC llama)
        if (SMALL_BACKEND)
            add_library(ggml-backend backend.cpp)
            target_compile_definitions(ggml PUBLIC SMALL_BACKEND)
            target_link_libraries(ggml PRIVATE ggml-backend)
        endif()
    """,
    "LICENSE": "MIT",
    "include/llama.h": "const char * llama_name(); const char * common_name();",
    "ggml.cpp": """
        #ifdef SMALL_BACKEND
        const char * backend_name();
        const char * ggml_name() { return backend_name(); }
        #else
        extern "C" const char * const * ggml_backend_cpu_reg();
        const char * ggml_name() { return *ggml_backend_cpu_reg(); }
        #endif
    """,
    # Of two such libraries in one program the linker would keep one `name`, and refuse one `reg`.
    "cpu.cpp": """
        inline const char * name() { static const char * kept = NAME; return kept; }
        const char * reg = name();
        extern "C" const char * const * ggml_backend_cpu_reg() { return &reg; }
    """,
    "backend.cpp": 'const char * backend_name() { return "backend"; }',
    "llama.cpp": 'const char * ggml_name(); const char * llama_name() { return ggml_name(); }',
    "common.cpp": 'const char * common_name() { return "common"; }',
}  # fmt: skip
PACKAGE = {
    "README.md": "",
    "mullama/__init__.py": "",
    "mullama/_native/names.hpp": "#include <string>\nstd::string names();",
    "mullama/_native/names.cpp": """
        #include "names.hpp"
        #include "llama.h"
        #ifdef NDEBUG
        static const std::string mode = "release";
        #else
        static const std::string mode = "debug";
        #endif
        std::string names() { return std::string(llama_name()) + " " + common_name() + " " + mode; }
    """,
    "mullama/_native/other.cpp": "int other() { return 1; }",
    "mullama/_part.pxi": "def get(): return names()",
    "mullama/_core.pyx": 'from libcpp.string cimport string\n'
    'cdef extern from "names.hpp":\n    string names() except +\ninclude "_part.pxi"\n',
}  # fmt: skip
BUILD = (
    "setup.py",
    "pyproject.toml",
    "LICENSE",
    "vendor/CMakeLists.txt",
    "vendor/processors.c",
    "vendor/llama.cpp.toml",
)

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="tests are run without a checkout"),
]


class Tree:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.llama = folder / "own-llama.cpp"
        for name, text in LLAMA.items():
            self.write(f"own-llama.cpp/{name}", text)
        for name, text in PACKAGE.items():
            self.write(name, text)
        for name in (*BUILD, *(f"tools/{path.name}" for path in (ROOT / "tools").glob("*.py"))):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)

    def write(self, name: str, text: str) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text)

    def build(self, **environment: str) -> str:
        """Build in place, and give what was said."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("MULLAMA_", "CMAKE_", "LD_"))
        }
        run = subprocess.run(
            [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
            cwd=self.folder,
            env=inherited | {"MULLAMA_LLAMA_CPP_DIR": str(self.llama)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stdout
        return run.stdout

    def names(self, *emulator: str) -> str:
        command = [*emulator, sys.executable, "-c", "import mullama._core; print(mullama._core.get().decode())"]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.check_output(command, cwd=self.folder, text=True, env=environment).strip()


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
