"""Builds the one extension, mullama._core: Cython and C++ from mullama/, linked statically against llama.cpp.

Where llama.cpp comes from is `tools/vendor.py`, how it is built `tools/build_llama.py`; what the package
is called and needs is `pyproject.toml`. The environment has its say (see CONTRIBUTING.md):
MULLAMA_LLAMA_CPP_DIR, MULLAMA_PORTABLE, MULLAMA_DEBUG, MULLAMA_SANITIZE, CMAKE_ARGS,
CMAKE_BUILD_PARALLEL_LEVEL, CC, CXX, CFLAGS, CXXFLAGS, LDFLAGS.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

import build_llama
import build_openmp
import vendor

MACOS = sys.platform == "darwin"
INIT = "PyInit__core"


def sources_in(folder: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.cpp"))


class BuildExt(build_ext):
    """Compile what has changed, object by object, and link it with nothing visible but the module's init."""

    def run(self) -> None:
        os.chdir(ROOT)
        os.environ.update(build_llama.find_compilers())
        build_llama.check_python_headers()
        if MACOS:
            os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")
        super().run()

    def build_extension(self, ext: Extension) -> None:
        mode = build_llama.Mode.from_environment()
        llama = build_llama.build(mode)
        compile_flags, link_flags = self.flags(mode, llama)
        libraries = build_openmp.without_libraries(llama.link)
        compile_flags.append(f'-DMULLAMA_VERSION="{self.distribution.get_version()}"')
        command = self.compiler.compiler_so + getattr(self.compiler, "compiler_so_cxx", [])
        key = build_llama.digest(sys.version, command, compile_flags, llama.key)
        objects = ROOT / "build" / "ext" / f"{sys.implementation.cache_tag}-{key}"
        objects.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name))
        with vendor.locked("ext"):
            sources = [self.translate(ext), *sources_in("mullama/_native")]
            built = self.compile_all(sources, objects, compile_flags)
            script = objects / "exports"
            script.write_text(f"{{ global: {INIT}; local: *; }};\n", "utf-8")
            if not MACOS:
                link_flags.append(f"-Wl,--version-script={script}")
            module = objects / target.name
            stamp = objects / "linked"
            state = build_llama.digest(built, link_flags, libraries)
            if not stamp.is_file() or stamp.read_text() != state or newer([*built, *llama.archives], module):
                print(f"linking {module.name}", flush=True)
                module.unlink(missing_ok=True)  # distutils would keep it: it looks at the objects alone
                self.compiler.link_shared_object(
                    built, str(module), extra_postargs=[*libraries, *link_flags], target_lang="c++"
                )
                build_openmp.check(module, os.environ["CXX"], build_llama.environment())
                stamp.write_text(state, "utf-8")
        replace_if_different(module, target)

    def copy_extensions_to_source(self) -> None:
        """Put what was built into the checkout; setuptools would keep a debug build that is younger."""
        for ext in self.extensions:
            built = Path(self.build_lib, self.get_ext_filename(self.get_ext_fullname(ext.name)))
            replace_if_different(built, ROOT / "mullama" / built.name)

    @staticmethod
    def flags(mode: build_llama.Mode, llama: build_llama.Llama) -> tuple[list[str], list[str]]:
        compiling = [
            *("-O0 -g" if mode.debug else "-O1 -g" if mode.sanitize else "-O3").split(),
            *"-std=c++17 -pthread -fvisibility=hidden -fvisibility-inlines-hidden".split(),
            *mode.flags,
            *(f"-D{name}" for name in llama.defines),
            *(f"-isystem{path}" for path in llama.includes),  # upstream's warnings are upstream's
        ]
        linking = ["-pthread", *(flag for flag in mode.flags if flag.startswith("-fsanitize"))]
        if mode.sanitize == "address":
            # In our own code undefined behaviour ends the run (upstream's is only reported), and a signed
            # overflow is undefined, whatever this Python was compiled with.
            compiling += ["-fno-sanitize-recover=undefined", "-fno-wrapv"]
        if mode.debug or mode.sanitize:
            compiling.append("-UNDEBUG")
        if MACOS:
            linking += [f"-Wl,-exported_symbol,_{INIT}", "-Wl,-dead_strip"]
        else:
            linking += ["-Wl,--exclude-libs,ALL", "-Wl,--gc-sections"]
        return compiling, linking

    def translate(self, ext: Extension) -> str:
        """Cython to C++ in build/translated-<version>; skipped while the files that it is made of are the same.

        Not by `cythonize`, which would put copies of our headers beside its result, where the compiler finds them first.
        """
        from Cython import __version__ as version

        (source, *_) = ext.sources
        target = Path("build", f"translated-{version}", f"{Path(source).stem}.cpp")
        stamp = target.with_suffix(".made-from")
        texts = {
            str(path): path.read_text("utf-8")
            for kind in ("pyx", "pxd", "pxi")
            for path in Path("mullama").glob(f"*.{kind}")
        }
        state = build_llama.digest(texts)
        if not target.is_file() or not stamp.is_file() or stamp.read_text("utf-8") != state:
            print(f"translating {source}", flush=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            stamp.unlink(missing_ok=True)
            command = [sys.executable, "-m", "cython", "-3", "--cplus", "--module-name", ext.name, "-I", "."]
            build_llama.run([*command, "-o", str(target), source], build_llama.environment())
            stamp.write_text(state, "utf-8")
        return target.as_posix()

    def compile_all(self, sources: list[str], objects: Path, flags: list[str]) -> list[str]:
        with ThreadPoolExecutor(int(build_llama.parallel())) as pool:
            jobs = [pool.submit(self.compile, source, objects, flags) for source in sources]
            return [job.result() for job in jobs]

    def compile(self, source: str, objects: Path, flags: list[str]) -> str:
        """One source to one object, unless the object is newer than all that it was made from."""
        target = objects / f"{os.path.relpath(source, ROOT)}.o"
        made_from = target.with_suffix(".d")
        if made_from.is_file() and not newer([source, *dependencies(made_from)], target):
            return str(target)
        print(f"compiling {source}\n", end="", flush=True)  # one write: several threads compile
        made_from.unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        started = time.time_ns()
        working = str(ROOT / "mullama" / "_native")
        (result,) = self.compiler.compile(
            [source],
            output_dir=str(objects / "tree"),
            include_dirs=[working, str(ROOT / "mullama")],
            extra_postargs=[*flags, "-MD", "-MF", f"{made_from}.new"],
        )
        Path(result).replace(target)
        os.utime(target, ns=(started, started))  # what is edited while it compiles counts as younger
        Path(f"{made_from}.new").replace(made_from)
        return str(target)


def dependencies(made_from: Path) -> list[str]:
    """The files that a compiler's .d file names."""
    text = made_from.read_text("utf-8").replace("\\\n", " ").partition(": ")[2]
    return [name.replace("\0", " ") for name in text.replace("\\ ", "\0").split()]


def newer(files: list[str], target: Path) -> bool:
    """Whether `target` is missing, or one of `files` is missing or younger."""
    if not target.is_file():
        return True
    made = target.stat().st_mtime_ns
    return any(not path.is_file() or path.stat().st_mtime_ns > made for path in map(Path, files))


def replace_if_different(new: Path, target: Path) -> None:
    """Copy in one step, so that a process that has the old file loaded keeps it."""
    if not target.is_file() or target.read_bytes() != new.read_bytes():
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copy2(new, beside)
        beside.replace(target)


class BuildPy(build_py):
    """Start from an empty folder, so that a module that was removed is not packed from an earlier build."""

    def run(self) -> None:
        if not getattr(self, "editable_mode", False):
            shutil.rmtree(Path(self.build_lib) / "mullama", ignore_errors=True)
        super().run()


setup(
    ext_modules=[Extension("mullama._core", ["mullama/_core.pyx", *sources_in("mullama/_native")], language="c++")],
    cmdclass={"build_ext": BuildExt, "build_py": BuildPy},
)
