"""Builds upstream's `llama-batched-bench` and `llama-server` from the pinned package, against mullama's static libraries.

    python bench/upstream_programs.py [ARCHIVE]     build both, from a downloaded package if one is given

mullama's build does not unpack the source of these programs, as it does not need it; it comes from the same package with
the same hash. llama.cpp's libraries are shared, so that a difference between the sides is not one between two builds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from turns import BENCH, ROOT, CannotRun

PROGRAMS = {"llama-batched-bench": "batched-bench", "llama-server": "server"}
PLACE = ROOT / "build" / "upstream" / "llama.cpp"
NEEDED = frozenset({"LICENSE", "scripts", "tools", "vendor"})


def upstream_program(name: str, archive: Path | None = None) -> Path:
    """The path of one of `PROGRAMS`, built if it does not exist yet."""
    import build_llama
    import vendor

    llama = build_llama.build(build_llama.Mode.from_environment())
    source = vendor.own_checkout()
    if source is None:
        source, pin = PLACE, vendor.read_pin()
        if not vendor.is_placed(pin, source):
            vendor.place_pinned(pin, source, archive, NEEDED)
    folder = ROOT / "build" / "upstream" / llama.key
    program: Path = folder / PROGRAMS[name] / name
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "UPSTREAM": source,
        "INCLUDES": ";".join(llama.includes),
        "DEFINES": ";".join(llama.defines),
        "LINK": ";".join(llama.link),
    }
    cmake, ninja = build_llama.find_tool("cmake"), build_llama.find_tool("ninja")
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    definitions = [f"-D{option}={value}" for option, value in options.items()]
    with vendor.locked("upstream"):
        run([cmake, "-S", BENCH / "upstream", "-B", folder, *generator, *definitions])
        run([cmake, "--build", folder, "--target", name, "--parallel", build_llama.parallel()])
    return program


def run(command: list[str | Path | None]) -> None:
    """Run a command at low priority; its output is shown only if it fails."""
    import build_llama

    environment = os.environ | build_llama.find_compilers()
    words = ["nice", *map(str, command)]
    done = subprocess.run(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise CannotRun(f"upstream's programs cannot be built: `{' '.join(words[:4])} …` failed")


if __name__ == "__main__":
    for wanted in PROGRAMS:
        print(upstream_program(wanted, Path(sys.argv[1]) if len(sys.argv) > 1 else None))
