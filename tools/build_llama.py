"""Builds llama.cpp's static libraries with CMake and determines how to compile and link against them.

Each configuration has its own build directory (`build/llama-<key>`), which is kept between builds, so that only what has
changed is rebuilt. The libraries, include paths and definitions are read from CMake's file API, never guessed, so that
whatever CMAKE_ARGS adds (CUDA, Vulkan, BLAS …) is linked too.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import vendor
from vendor import ROOT, BuildError

CMAKE_AT_LEAST = (3, 14)

# Instruction sets of every x86-64 processor of the last ten years, and of most of them: Haswell (2013), Excavator (2015) and
# later, but no Pentium, Celeron or Atom before 2021. Without the latter set, matrix products are several times slower.
PLAIN_X86 = ["SSE42"]
FAST_X86 = ["SSE42", "AVX", "AVX2", "FMA", "F16C", "BMI2"]


@dataclass(frozen=True)
class Mode:
    """What the environment asks for; every mode has its own build directories.

    `debug` applies to our sources only, as llama.cpp is too slow for tests without optimisation. To step into llama.cpp:
    CMAKE_ARGS=-DCMAKE_BUILD_TYPE=Debug.
    """

    portable: bool = False
    debug: bool = False
    sanitize: str = ""
    plain: bool = False  # the part of a portable build for processors without AVX2

    @classmethod
    def from_environment(cls) -> Mode:
        def flag(name: str) -> bool:
            return os.environ.get(name, "").lower() not in ("", "0", "false", "no", "off")

        sanitize = os.environ.get("MULLAMA_SANITIZE", "")
        if sanitize not in ("", "address", "thread"):
            raise BuildError(
                f"MULLAMA_SANITIZE={sanitize} is not valid.\nTo fix it:  export MULLAMA_SANITIZE=address"
                "   (includes undefined), or thread, or:  unset MULLAMA_SANITIZE"
            )
        return cls(flag("MULLAMA_PORTABLE"), flag("MULLAMA_DEBUG"), sanitize)

    @property
    def x86_features(self) -> list[str]:
        """The instruction sets that a portable build for x86-64 requires; empty for other builds."""
        if not self.portable or platform.machine().lower() not in ("x86_64", "amd64"):
            return []
        return PLAIN_X86 if self.plain else FAST_X86

    @property
    def build_type(self) -> str:
        return "RelWithDebInfo" if self.sanitize else "Release"

    @property
    def flags(self) -> list[str]:
        """Compiler flags that llama.cpp and the extension share."""
        if self.sanitize:
            what = "address,undefined" if self.sanitize == "address" else "thread"
            return [f"-fsanitize={what}", "-fno-omit-frame-pointer"]
        return ["-ffunction-sections", "-fdata-sections"]


@dataclass(frozen=True)
class Llama:
    """What is needed to compile and link against the static libraries."""

    key: str
    source: Path
    includes: list[str]
    defines: list[str]
    link: list[str]
    archives: list[str]


def environment() -> dict[str, str]:
    """What compilers and CMake inherit: not a sanitizer's library that Python was started with, which stops them."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def find_compilers() -> dict[str, str]:
    """The compilers for both CMake and the extension: CC and CXX, else Python's own, else the usual ones."""
    chosen = {}
    for variable, usual in (("CC", ["cc", "gcc", "clang"]), ("CXX", ["c++", "g++", "clang++"])):
        asked = os.environ.get(variable)
        candidates = [asked] if asked else [str(sysconfig.get_config_var(variable) or ""), *usual]
        words = [shlex.split(candidate) for candidate in candidates]
        found = next((w for w in words if w and shutil.which(w[0])), None)
        if found is None:
            kind = "C++17" if variable == "CXX" else "C"
            where = f"{variable}={asked} does not exist" if asked else f"looked for {', '.join(usual)}"
            raise BuildError(
                f"no {kind} compiler ({where}).\nTo fix it:\n"
                "  Debian, Ubuntu    sudo apt install build-essential\n"
                "  Fedora, RHEL      sudo dnf install gcc gcc-c++\n"
                "  Alpine            sudo apk add build-base\n"
                "  macOS             xcode-select --install\n"
                f"or name one:        export {variable}=/path/to/{'g++' if variable == 'CXX' else 'gcc'}"
            )
        chosen[variable] = asked or found[0]
    return chosen


def check_python_headers() -> None:
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        raise BuildError(
            f"Python's headers are missing ({header}).\nTo fix it:\n"
            "  Debian, Ubuntu    sudo apt install python3-dev\n"
            "  Fedora, RHEL      sudo dnf install python3-devel"
        )


def cmake_version(cmake: str) -> tuple[int, ...]:
    run = subprocess.run([cmake, "--version"], capture_output=True, text=True, env=environment(), check=False)
    words = run.stdout.split()
    return tuple(int(n) for n in words[2].split("-")[0].split(".")[:2]) if len(words) > 2 else (0,)


def find_tool(name: str) -> str | None:
    """A tool on the PATH, or the one that a package of the same name installed next to this Python."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def missing_tools() -> list[str]:
    """The packages that provide the build tools that this machine lacks."""
    cmake = find_tool("cmake")
    missing = [] if cmake and cmake_version(cmake) >= CMAKE_AT_LEAST else ["cmake>=3.14"]
    if not find_tool("ninja"):
        missing.append("ninja")
    return missing


def configuration(source: Path, mode: Mode) -> list[str]:
    """The -D options for CMake; the user's CMAKE_ARGS come last and take precedence."""
    on_off = {True: "ON", False: "OFF"}
    options = {
        "CMAKE_BUILD_TYPE": mode.build_type,
        "CMAKE_POSITION_INDEPENDENT_CODE": "ON",
        "CMAKE_C_VISIBILITY_PRESET": "hidden",
        "CMAKE_CXX_VISIBILITY_PRESET": "hidden",
        "CMAKE_VISIBILITY_INLINES_HIDDEN": "ON",
        "BUILD_SHARED_LIBS": "OFF",
        "LLAMA_BUILD_COMMON": "ON",
        "LLAMA_OPENSSL": "OFF",
        "GGML_NATIVE": on_off[not mode.portable],
        "MULLAMA_LLAMA_CPP": str(source),
    }
    for part in ("TESTS", "EXAMPLES", "TOOLS", "SERVER", "APP", "MTMD"):
        options[f"LLAMA_BUILD_{part}"] = "OFF"
    if features := mode.x86_features:
        options |= {f"GGML_{feature}": on_off[feature in features] for feature in FAST_X86}
    if sys.platform == "darwin" and (words := os.environ.get("ARCHFLAGS", "").replace("-arch", "").split()):
        options["CMAKE_OSX_ARCHITECTURES"] = ";".join(words)
    if mode.sanitize:
        options |= {f"CMAKE_{language}_FLAGS_RELWITHDEBINFO": "-O1 -g1 -DNDEBUG" for language in ("C", "CXX")}
    if mode.sanitize == "thread":
        options["CMAKE_PROJECT_ggml_INCLUDE"] = str(ROOT / "vendor" / "thread-sanitizer.cmake")
    if source == vendor.PLACE:
        # By default upstream asks git, which would return mullama's commit.
        pin = vendor.read_pin()
        options |= {"LLAMA_BUILD_NUMBER": pin.tag.lstrip("b"), "LLAMA_BUILD_COMMIT": pin.package}
        options |= {"GGML_BUILD_COMMIT": pin.package, "GIT_EXE": "OFF"}
    if ccache := shutil.which("ccache"):
        options |= {f"CMAKE_{language}_COMPILER_LAUNCHER": ccache for language in ("C", "CXX")}
    own = shlex.split(os.environ.get("CMAKE_ARGS", ""))
    return [f"-D{name}={value}" for name, value in options.items()] + own


def parallel() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(cores)


def digest(*what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:12]


def build(mode: Mode) -> Llama:
    """Unpack the source, configure and build the libraries: everything, or only what has changed."""
    if mode.x86_features and sys.platform == "linux":
        return both(build_one(mode), build_one(replace(mode, plain=True), "ggml-cpu"))
    return build_one(mode)


def accepts(compiler: str, flag: str) -> bool:
    command = [*shlex.split(compiler), flag, "-E", "-x", "c++", os.devnull]
    return subprocess.run(command, capture_output=True, env=environment(), check=False).returncode == 0


def build_one(mode: Mode, target: str = "mullama_probe") -> Llama:
    """Build one configuration: everything that the extension links, or one of its libraries."""
    compilers = find_compilers()
    cmake = find_tool("cmake")
    if cmake is None or cmake_version(cmake) < CMAKE_AT_LEAST:
        raise BuildError(
            f"CMake {'.'.join(map(str, CMAKE_AT_LEAST))} or later is needed.\n"
            f"To fix it:  {sys.executable} -m pip install cmake ninja"
        )
    source = vendor.place()
    ninja = find_tool("ninja")
    flags = " ".join(mode.flags)
    inherited = environment() | compilers
    for name in ("CFLAGS", "CXXFLAGS"):
        inherited[name] = f"{os.environ.get(name, '')} {flags}".strip()
    if mode.x86_features and accepts(compilers["CXX"], "-fno-gnu-unique"):
        inherited["CXXFLAGS"] += " -fno-gnu-unique"  # such names cannot be made local; see `both`
    options = configuration(source, mode)
    names = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "ARCHFLAGS")
    inputs = [inherited.get(name, "") for name in names]
    pin = vendor.read_pin().sha256 if source == vendor.PLACE else ""
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    own_project = (ROOT / "vendor" / "CMakeLists.txt").read_text("utf-8")
    # CMake's files are full of paths: a checkout that was copied or moved has folders of its own.
    key = digest(str(ROOT), options, inputs, pin, bool(ninja), own_project)
    folder = ROOT / "build" / f"llama-{key}"
    with vendor.locked(f"llama-{key}"):
        configured = folder / "mullama-configured"
        tools = f"{cmake}\n{ninja}\n"
        if not configured.is_file() or configured.read_text("utf-8") != tools:
            query = folder / ".cmake" / "api" / "v1" / "query"
            query.mkdir(parents=True, exist_ok=True)
            (query / "codemodel-v2").touch()
            run([cmake, "-S", str(ROOT / "vendor"), "-B", str(folder), *generator, *options], inherited)
            configured.write_text(tools, "utf-8")
        run([cmake, "--build", str(folder), "--target", target, "--parallel", parallel()], inherited)
        return read_file_api(folder, key, source)


def both(fast: Llama, plain: Llama) -> Llama:
    """The libraries, with two variants of ggml's CPU code, one of which vendor/processors.c chooses at run time.

    Each becomes one object in which all names but that of its entry point are local, so that they do not collide.
    """
    (library,) = (path for path in fast.archives if Path(path).name == "libggml-cpu.a")
    (lesser,) = (path for path in plain.archives if Path(path).name == "libggml-cpu.a")
    chooser = ROOT / "vendor" / "processors.c"
    key = digest(fast.key, plain.key, chooser.read_text("utf-8"))
    folder = ROOT / "build" / f"llama-{key}"
    objects = [folder / "processors.o", folder / "fast.o", folder / "plain.o"]
    with vendor.locked(f"llama-{key}"):
        made = min((path.stat().st_mtime_ns for path in objects if path.is_file()), default=0)
        made *= all(path.is_file() for path in objects)
        if made <= max(Path(path).stat().st_mtime_ns for path in (library, lesser)):
            folder.mkdir(parents=True, exist_ok=True)
            inherited = environment() | find_compilers()
            compiler = shlex.split(inherited["CC"])
            run(
                [*compiler, "-O2", "-fPIC", "-fvisibility=hidden", "-c", str(chooser), "-o", str(objects[0])],
                inherited,
            )
            for archive, name, target in ((library, "fast", objects[1]), (lesser, "plain", objects[2])):
                whole = ["-r", "-nostdlib", "-Wl,--force-group-allocation", "-Wl,--whole-archive", archive]
                run([*compiler, *whole, "-o", str(target)], inherited)
                entrance = f"ggml_backend_cpu_reg_{name}"
                names = [f"--redefine-sym=ggml_backend_cpu_reg={entrance}", f"--keep-global-symbol={entrance}"]
                run(["objcopy", *names, str(target)], inherited)
    link = [word for path in fast.link for word in (map(str, objects) if path == library else [path])]
    archives = [path for path in fast.archives if path != library] + [str(path) for path in objects]
    return replace(fast, key=key, link=link, archives=archives, defines=[*fast.defines, "MULLAMA_BOTH_PROCESSORS"])


def run(command: list[str], inherited: dict[str, str]) -> None:
    print("+", shlex.join(command), flush=True)
    status = subprocess.run(command, env=inherited, check=False).returncode
    if status:
        raise BuildError(
            f"`{shlex.join(command[:3])} …` failed with status {status}; its output is above.\n"
            "If it ran out of memory:  build again with CMAKE_BUILD_PARALLEL_LEVEL=1.\n"
            "If the tree may be stale: make clean, or remove build/."
        )


def read_file_api(folder: Path, key: str, source: Path) -> Llama:
    """Ask CMake what a module that links llama-common is compiled and linked with."""
    reply = folder / ".cmake" / "api" / "v1" / "reply"

    def load(name: str) -> Any:
        return json.loads((reply / name).read_text("utf-8"))

    index = load(max(path.name for path in reply.glob("index-*.json")))
    model = load(index["reply"]["codemodel-v2"]["jsonFile"])
    targets = model["configurations"][0]["targets"]
    target = load(next(t["jsonFile"] for t in targets if t["name"] == "mullama_probe"))
    group = target["compileGroups"][0]
    link: list[str] = []
    archives: list[str] = []
    for fragment in target["link"]["commandFragments"]:
        if fragment["role"] in ("libraries", "libraryPath", "frameworkPath"):
            for word in shlex.split(fragment["fragment"]):
                path = folder / word
                if not word.startswith("-") and path.is_file():
                    link.append(str(path))
                    archives.append(str(path))
                else:
                    link.append(word)
    return Llama(
        key=key,
        source=source,
        includes=[entry["path"] for entry in group.get("includes", [])],
        defines=[d["define"] for d in group.get("defines", []) if d["define"] != "mullama_probe_EXPORTS"],
        link=link,
        archives=archives,
    )


if __name__ == "__main__":
    print(json.dumps(asdict(build(Mode.from_environment())), indent=2, default=str))
