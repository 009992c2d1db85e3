"""News fragments: named as towncrier expects, one change each, and all of them joined into the changelog."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FRAGMENTS = sorted(path for path in (ROOT / "changelog.d").glob("*") if path.name != "README.md")


@pytest.mark.parametrize("path", FRAGMENTS, ids=lambda path: path.name)
def test_a_fragment_is_one_change(path: Path) -> None:
    assert re.fullmatch(r"\+[a-z0-9-]+\.(feature|change|fix|removal|doc)\.md", path.name)
    text = path.read_text("utf-8")
    assert text.endswith(".\n")
    assert "\n\n" not in text, "one paragraph"
    assert len(text) <= 500, "one change in one or two sentences"


def test_towncrier_joins_them() -> None:
    command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "1.0", "--date", "2026-01-01"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    joined = " ".join(done.stdout.split())
    for path in FRAGMENTS:
        assert " ".join(path.read_text("utf-8").split()) in joined, path.name
