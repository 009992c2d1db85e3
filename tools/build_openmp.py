"""Keeps OpenMP libraries out of the extension: mullama/_native/threads/gomp.cpp answers ggml's calls, or the build fails.

Half of the calls in the extension and half in a library would compute garbage: each would count threads of its own.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from vendor import BuildError

LIBRARY = re.compile(r"(-l|(.*/)?lib)(gomp|omp|iomp5)(\.(so|a|dylib|tbd)(\.[0-9.]+)?)?|-fopenmp(=.*)?|-qopenmp")
CALL = re.compile(r"(GOMP|GOACC|omp|ompx|kmp|__kmpc|__tgt)_\w+")


def without_libraries(link: list[str]) -> list[str]:
    """What is linked, less the libraries of OpenMP."""
    return [word for word in link if not LIBRARY.fullmatch(word)]


def calls(module: Path, compiler: str, environment: dict[str, str]) -> list[str]:
    """The OpenMP calls for which a linked module would need a library."""
    compiler_words = shlex.split(compiler)
    nm = subprocess.check_output([*compiler_words, "-print-prog-name=nm"], text=True, env=environment).strip()
    which = ["-u"] if sys.platform == "darwin" else ["-D", "--undefined-only"]
    listed = subprocess.check_output([nm, *which, str(module)], text=True, env=environment)
    names = (line.split()[-1].partition("@")[0] for line in listed.splitlines() if line.strip())
    if sys.platform == "darwin":
        names = (name.removeprefix("_") for name in names)
    return sorted({name for name in names if CALL.fullmatch(name)})


def check(module: Path, compiler: str, environment: dict[str, str]) -> None:
    """Refuse a module that calls what only an OpenMP library has."""
    if missing := calls(module, compiler, environment):
        clang = any(name.startswith("__kmpc_") for name in missing)
        raise BuildError(
            f"llama.cpp was compiled with calls of OpenMP that mullama does not answer: {', '.join(missing)}.\n"
            + ("They are Clang's; mullama answers GCC's on Linux.\n" if clang else "")
            + 'To fix it:  export CMAKE_ARGS="-DGGML_OPENMP=OFF"   (llama.cpp then has threads of its own)\n'
            "and name compilers with CC and CXX, not in CMAKE_ARGS."
        )
