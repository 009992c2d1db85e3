"""Checks the distributions as a user gets them: sdist and wheel, built and imported in empty environments.

The wheel is built from the unpacked sdist, after a check that nothing needs to be fetched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

import vendor
from vendor import ROOT

SDIST_HAS = (
    "setup.py",
    "pyproject.toml",
    "LICENSE",
    "tools/vendor.py",
    "tools/build_backend.py",
    "vendor/CMakeLists.txt",
    "vendor/processors.c",
    "vendor/llama.cpp.toml",
    "vendor/llama.cpp/LICENSE",
    f"vendor/llama.cpp/{vendor.STAMP}",
    "vendor/llama.cpp/include/llama.h",
    "vendor/llama.cpp/models/ggml-vocab-llama-spm.gguf",
    "mullama/_core.pyx",
    "mullama/models/default.gguf",
    "mullama/py.typed",
)
WHEEL_HAS = ("mullama/__init__.py", "mullama/_core.pyi", "mullama/py.typed", "mullama/models/default.gguf")
WHEEL_LACKS = (".cpp", ".hpp", ".pyx", ".pxi", ".pxd", ".o", ".a")
TRY = "import mullama, mullama._core; print('imported', mullama.__name__, 'from', mullama.__file__)"


def run(*command: str | Path, cwd: Path, **environment: str) -> None:
    print("+", *command, flush=True)
    subprocess.run([str(word) for word in command], cwd=cwd, env=os.environ | environment, check=True)


def must(problems: list[str], what: str) -> None:
    if problems:
        sys.exit(f"{what}: {', '.join(problems)}")


def check_sdist(sdist: Path) -> None:
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    must([name for name in SDIST_HAS if name not in names], "the sdist lacks")
    built = [name for name in names if name.startswith("build/") or name.endswith((".so", ".o", ".a"))]
    must(built, "the sdist has build products")
    print(f"{sdist.name}: {len(names)} files, {sdist.stat().st_size / 1e6:.1f} MB")


def check_wheel(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    must([name for name in WHEEL_HAS if name not in names], "the wheel lacks")
    package = [name for name in names if name.startswith("mullama/")]
    must([name for name in package if name.endswith(WHEEL_LACKS)], "the wheel has sources or build products")
    licenses = [name for name in names if ".dist-info/licenses/" in name]
    if not any(name.endswith("LICENSE-llama.cpp") for name in licenses):
        sys.exit("the wheel lacks llama.cpp's licence")
    if sum(name.endswith(".so") for name in names) != 1:
        sys.exit("the wheel must have exactly one extension")
    print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 1e6:.1f} MB, licences: {len(licenses)}")


def main() -> int:
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        tool = work / "tool"
        venv.create(tool, with_pip=True)
        run(tool / "bin/python", "-m", "pip", "install", "--quiet", "build", cwd=work)
        run(tool / "bin/python", "-m", "build", "--sdist", "--outdir", work, ROOT, cwd=work)
        (sdist,) = work.glob("mullama-*.tar.gz")
        check_sdist(sdist)
        with tarfile.open(sdist) as tar:
            tar.extractall(work, filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(work)
        (tree,) = (path for path in work.glob("mullama-*") if path.is_dir())
        offline = "import sys; sys.path.insert(0, 'tools'); import vendor; sys.exit(vendor.needs_download())"
        run(tool / "bin/python", "-c", offline, cwd=tree)
        run(tool / "bin/python", "-m", "build", "--wheel", "--outdir", work, tree, cwd=work)
        (wheel,) = work.glob("mullama-*.whl")
        check_wheel(wheel)
        empty = work / "empty"
        venv.create(empty, with_pip=True)
        run(empty / "bin/python", "-m", "pip", "install", "--quiet", wheel, cwd=work)
        shutil.rmtree(tree)
        run(empty / "bin/python", "-c", TRY, cwd=work)
        run(empty / "bin/mullama", "--version", cwd=work)
    print("sdist and wheel are OK")
    return 0


if __name__ == "__main__":
    sys.exit(main())
