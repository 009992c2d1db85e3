"""Prints what a checkout's own environment needs, one requirement a line: to build in place, and to test.

    python tools/build_requirements.py [EXTRA …]

The Makefile hands it to pip, so that pyproject.toml stays the only list.
"""

from __future__ import annotations

import sys

import build_llama
import vendor


def requirements(extras: list[str]) -> list[str]:
    """What the build, the package and the named extras need; an extra that names another is followed."""
    project = vendor.load_toml(vendor.ROOT / "pyproject.toml")
    table = project["project"]["optional-dependencies"]
    found = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    found += ["unearth"] if vendor.needs_download() else []
    found += build_llama.missing_tools()
    own = project["project"]["name"] + "["
    waiting = list(extras)
    for extra in waiting:  # grows while it is read
        for requirement in table[extra]:
            if requirement.startswith(own):
                waiting += [name.strip() for name in requirement[len(own) : -1].split(",")]
            else:
                found.append(requirement)
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1:])))
