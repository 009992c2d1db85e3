"""The C++ test programs, compiled like the extension and run to completion."""

from __future__ import annotations

from pathlib import Path

import pytest

from build_programs import HERE, NATIVE, program, run

PROGRAMS = sorted(HERE.glob("*.cpp"))
SEEN = sorted([*HERE.glob("*.[ch]pp"), *NATIVE.rglob("*.[ch]pp")])


@pytest.mark.timeout(900)  # compiling under a sanitizer on a busy machine
@pytest.mark.parametrize("source", PROGRAMS, ids=lambda source: source.stem)
def test_program(source: Path) -> None:
    run([str(program(source, seen=SEEN))])
