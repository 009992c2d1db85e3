"""Finds this machine's interpreters for `make test-all`: one line each, with version and path.

python tools/build_pythons.py 3.10 3.11 …
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path


def candidates(version: str) -> list[str]:
    """Names to try: those on the PATH, then those installed by pyenv, the latest patch release first."""
    found = [shutil.which(f"python{version}"), shutil.which("python3")]
    roots = [os.environ.get("PYENV_ROOT"), Path.home() / ".pyenv"]
    for root in filter(None, roots):
        installed = list(Path(root).glob(f"versions/{version}.*/bin/python"))
        found += map(str, sorted(installed, key=patch, reverse=True))
    return [name for name in found if name]


def patch(python: Path) -> int:
    digits = python.parent.parent.name.split(".")[2]
    return int(digits) if digits.isdigit() else -1


def is_version(python: str, version: str) -> bool:
    """Whether it runs and has the expected version (a shim may fail either)."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    run = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return run.returncode == 0 and run.stdout.strip() == version


def main(versions: list[str]) -> int:
    missing = 0
    for version in versions:
        python = next((name for name in candidates(version) if is_version(name, version)), None)
        if python is None:
            missing += 1
            print(f"Python {version} is not installed; skipped", file=sys.stderr)
        else:
            print(version, python)
    return int(missing == len(versions))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
