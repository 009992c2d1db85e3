"""Compiles the C++ programs of tests and benchmarks with the extension's flags; cached in build/ by content."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import build_llama

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "tests" / "native"
NATIVE = ROOT / "mullama" / "_native"


def program(source: Path, *, link_llama: bool = False, seen: list[Path] | None = None) -> Path:
    """The program made of one source; `seen` are the files that it includes and that may change."""
    mode = build_llama.Mode.from_environment()
    llama = build_llama.build(mode)
    compiler = shlex.split(build_llama.find_compilers()["CXX"])
    command = [
        *compiler,
        *("-O0" if mode.debug else "-O1" if mode.sanitize else "-O2", "-g1", "-std=c++17", "-pthread"),
        *("-Wall", "-Wextra", "-Werror"),
        *mode.flags,
        *(f"-D{name}" for name in llama.defines),
        f"-I{NATIVE}",
        *(f"-isystem{path}" for path in llama.includes),
    ]
    if mode.sanitize == "address":
        command.append("-fno-sanitize-recover=undefined")
    link = [*llama.link] if link_llama else []
    archives = [os.stat(path).st_mtime_ns for path in llama.archives] if link_llama else []  # noqa: PTH116
    contents = [path.read_text("utf-8") for path in [source, *(seen or [])]]
    target = ROOT / "build" / "programs" / f"{source.stem}-{build_llama.digest(command, link, archives, contents)}"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        run([*command, str(source), "-o", str(beside), *link])
        beside.replace(target)
    return target


def run(command: list[str]) -> str:
    """The output of a command, which is also shown if it fails."""
    done = subprocess.run(command, env=build_llama.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout
