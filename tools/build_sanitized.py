"""Builds a copy of the tree with a sanitizer and runs the suite in it, its C++ programs included.

    python tools/build_sanitized.py address [ARGUMENTS OF PYTEST …]     AddressSanitizer and UBSan
    python tools/build_sanitized.py thread  [ARGUMENTS OF PYTEST …]     ThreadSanitizer, for what is concurrent

The copy is `build/address` or `build/thread`, so the extension in the checkout does not change. It has its own static
libraries, which are kept between runs.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import build_llama
from vendor import ROOT, BuildError

COPIED = "*.py *.toml *.md *.in LICENSE Makefile mullama tools tests examples docs changelog.d .ci".split()
NOT_COPIED = {".so", "__pycache__"}
RUNTIMES = {
    "address": ["libasan.so", "libubsan.so", "libstdc++.so"],
    "thread": ["libtsan.so", "libstdc++.so"],
}

# The part of the suite in which threads meet, which is what ThreadSanitizer runs: elsewhere it only costs ten times the time.
CONCURRENT = """
    tests/native tests/trio
    tests/test_backpressure.py tests/test_callbacks.py tests/test_cancellation.py tests/test_cancellation_asyncio.py
    tests/test_cancellation_prompts.py tests/test_cancellation_races.py tests/test_contract.py tests/test_deadlines.py
    tests/test_leaks.py tests/test_logging.py tests/test_lora.py tests/test_many.py tests/test_no_gil.py tests/test_process.py
    tests/test_streams.py tests/test_streams_channels.py tests/test_streams_contexts.py tests/test_sync.py
    tests/test_sync_threads.py tests/test_vectors.py
""".split()


def copy_tree(target: Path) -> None:
    """Bring the copy up to date; `build` and the extension in it stay, and `vendor` is the checkout's own.

    A file that is the same is left alone, and one that differs is as young as its copy: its objects are older.
    """
    copied = [path for pattern in COPIED for top in ROOT.glob(pattern) for path in (top, *top.rglob("*"))]
    names = {
        path.relative_to(ROOT) for path in copied if path.is_file() and not NOT_COPIED & {path.suffix, path.parent.name}
    }
    target.mkdir(parents=True, exist_ok=True)
    for top in target.iterdir():
        if top.name not in ("build", "vendor"):
            for old in (top, *top.rglob("*")):
                if old.is_file() and old.suffix != ".so" and old.relative_to(target) not in names:
                    old.unlink()
    for name in names:
        copy = target / name
        if not copy.is_file() or copy.read_bytes() != (ROOT / name).read_bytes():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy)
    if not (target / "vendor").is_symlink():
        (target / "vendor").symlink_to(ROOT / "vendor")


def runtimes(sanitizer: str) -> str:
    """The libraries to preload into Python; GCC's, since Clang links them differently."""
    compiler = shlex.split(build_llama.find_compilers()["CXX"])
    found = []
    for name in RUNTIMES[sanitizer]:
        path = Path(subprocess.check_output([*compiler, f"-print-file-name={name}"], text=True).strip())
        if not path.is_absolute():
            raise BuildError(
                f"{compiler[0]} has no {name}.\nTo fix it, use GCC and its sanitizers:  export CC=gcc CXX=g++"
                "   (Fedora: sudo dnf install libasan libubsan libtsan)"
            )
        found.append(str(path.resolve()))
    return " ".join(found)


def without_randomised_addresses() -> list[str]:
    """ThreadSanitizer needs memory at the addresses that it expects; newer kernels randomise them too much."""
    setarch = shutil.which("setarch")
    if setarch and subprocess.run([setarch, "-R", "true"], capture_output=True, check=False).returncode == 0:
        return [setarch, "-R"]
    return []


def main(sanitizer: str, arguments: list[str]) -> int:
    if sys.platform != "linux":
        raise BuildError("the sanitizer builds preload the sanitizer's library, which works on Linux only.")
    tree = ROOT / "build" / sanitizer
    copy_tree(tree)
    environment = os.environ | {"MULLAMA_SANITIZE": sanitizer}
    environment.pop("MULLAMA_DEBUG", None)

    def do(*command: str | Path, **more: str) -> int:
        words = [str(word) for word in command]
        print("+", shlex.join(words), flush=True)
        return subprocess.run(words, cwd=tree, env=environment | more, check=False).returncode

    if status := do(sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"):
        return status
    # Upstream casts numbers from a file to enumerations before it checks whether they are valid.
    known = "".join(f"enum:{name}.cpp\n" for name in ("gguf", "llama-model", "llama-model-loader"))
    (tree / "build" / "known").write_text(known, "utf-8")
    options = {
        # Python keeps memory until it exits; the suite counts leaks itself.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": f"print_stacktrace=1:suppressions={tree / 'build' / 'known'}",
        "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1:exitcode=66",
    }
    prefix = without_randomised_addresses() if sanitizer == "thread" else []
    options |= {"LD_PRELOAD": runtimes(sanitizer), "PYTHONPATH": str(tree), "PYTHONMALLOC": "malloc"}
    chosen = any(argument.startswith("tests/") for argument in arguments)
    files = CONCURRENT if sanitizer == "thread" and not chosen else []
    suite = ["-p", "no:cacheprovider", "--timeout=900", *files, *arguments]
    return do(*prefix, sys.executable, "-m", "pytest", *suite, **options)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in RUNTIMES:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2:]))
