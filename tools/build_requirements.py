"""Prints what a checkout's environment needs to build in place and to test, one requirement per line.

    python tools/build_requirements.py [EXTRA …]

The Makefile passes it to pip, so that pyproject.toml is the only list.
"""

from __future__ import annotations

import sys

import build_llama
import vendor


def requirements(extras: list[str]) -> list[str]:
    """What the build, the package and the given extras need, including the extras that these name."""
    project = vendor.load_toml(vendor.ROOT / "pyproject.toml")
    table = project["project"]["optional-dependencies"]
    found = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    found += ["unearth"] if vendor.needs_download() else []
    found += build_llama.missing_tools()
    own = project["project"]["name"] + "["
    waiting = list(extras)
    for extra in waiting:  # grows during the loop
        for requirement in table[extra]:
            if requirement.startswith(own):
                waiting += [name.strip() for name in requirement[len(own) : -1].split(",")]
            else:
                found.append(requirement)
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1:])))
