"""A checkout that builds in seconds: the real setup.py and tools, with a minimal llama.cpp (the same
targets, one function each) and a package of two sources."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

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
    # Of two such libraries in one program, the linker would keep one `name` and reject one `reg`.
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
    "mullama/_native/thing.hpp": "#pragma once\nstruct Thing { int number; };",
    "mullama/_native/more.hpp": '#pragma once\n#include "thing.hpp"',
    "mullama/_native/names.hpp": '#pragma once\n#include <string>\n#include "thing.hpp"\n#include "more.hpp"\n'
    "std::string names();",
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
    'cdef extern from "_native/thing.hpp":\n    cdef struct Thing:\n        pass\n'
    'cdef extern from "_native/names.hpp":\n    string names() except +\ninclude "_part.pxi"\n',
}  # fmt: skip
BUILD = (
    "setup.py",
    "pyproject.toml",
    "LICENSE",
    "vendor/CMakeLists.txt",
    "vendor/processors.c",
    "vendor/llama.cpp.toml",
)


class Tree:
    """Create such a checkout in a folder; `llama` and `package` replace files."""

    def __init__(
        self, folder: Path, *, llama: dict[str, str] | None = None, package: dict[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.llama = folder / "own-llama.cpp"
        for name, text in (LLAMA | (llama or {})).items():
            self.write(f"own-llama.cpp/{name}", text)
        for name, text in (PACKAGE | (package or {})).items():
            self.write(name, text)
        for name in (*BUILD, *(f"tools/{path.name}" for path in (ROOT / "tools").glob("*.py"))):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)

    def elsewhere(self, folder: Path) -> Tree:
        """A copy of this tree, or the tree moved there."""
        tree = copy.copy(self)
        tree.folder, tree.llama = folder, folder / self.llama.name
        return tree

    def write(self, name: str, text: str) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text)

    def try_to_build(self, **environment: str) -> subprocess.CompletedProcess[str]:
        """Build in place."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("MULLAMA_", "CMAKE_", "LD_"))
        }
        return subprocess.run(
            [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
            cwd=self.folder,
            env=inherited | {"MULLAMA_LLAMA_CPP_DIR": str(self.llama)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def build(self, **environment: str) -> str:
        """Build in place, and return the output."""
        run = self.try_to_build(**environment)
        assert run.returncode == 0, run.stdout
        return run.stdout

    def names(self, *emulator: str, before: str = "", after: str = "") -> str:
        """The extension's result in a separate process, which may run code before and after."""
        code = f"{before}\nimport mullama._core\nprint(mullama._core.get().decode())\n{after}"
        command = [*emulator, sys.executable, "-c", code]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.check_output(command, cwd=self.folder, text=True, env=environment).strip()
