"""Environments under build/ for packages that only the benchmarks need: one for each requirement of the extra `bench`.

They are separate from the environment in which mullama is built and tested, and no process loads two builds of llama.cpp.
Each package is installed as its users install it: from a wheel if there is one, else compiled for this processor.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv

from turns import ROOT, CannotRun

FOLDER = ROOT / "build" / "environments"


def requirement(package: str) -> str:
    """The requirement for a package in the extra `bench`."""
    import vendor

    extras = vendor.load_toml(ROOT / "pyproject.toml")["project"]["optional-dependencies"]
    (found,) = [text for text in extras["bench"] if re.split(r"[\s=<>!~\[;]", text)[0] == package]
    return str(found)


def interpreter(package: str) -> str:
    """The Python of the environment that has this package, created if it does not exist yet."""
    wanted = requirement(package)
    folder = FOLDER / f"{re.sub(r'[^A-Za-z0-9.]+', '-', wanted)}-{sys.implementation.cache_tag}"
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if ready.is_file():
        return str(python)
    print(f"installing {wanted} …", file=sys.stderr, flush=True)
    venv.create(folder, clear=True, with_pip=True)
    command = ["nice", str(python), "-m", "pip", "install", "--quiet", wanted]
    environment = {name: value for name, value in os.environ.items() if name != "CMAKE_ARGS"}
    environment.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise CannotRun(f"pip cannot install {wanted}: {said[-1]}")
    ready.touch()
    return str(python)
