"""Runs the Python examples of README.md and docs/, each fenced block in a process and a folder of its own.

A block whose fence says ```python no-run is only compiled: it needs a model or a server that is not there.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```python([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def check(code: str, run: bool) -> str:
    """Why the example does not work, or nothing."""
    try:
        compile(code, "example", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError as error:
        return f"{error.msg}, line {error.lineno} of the example"
    if not run:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        try:
            command = [sys.executable, "-c", code]
            done = subprocess.run(command, cwd=folder, capture_output=True, timeout=120, check=False)
        except subprocess.TimeoutExpired:
            return "did not end within two minutes"
    return done.stderr.decode() if done.returncode else ""


def main() -> int:
    bad = count = 0
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        if not page.is_file():
            continue
        text = page.read_text("utf-8")
        for block in FENCE.finditer(text):
            line = text.count("\n", 0, block.start()) + 1
            count += 1
            if problem := check(block[2], "no-run" not in block[1]):
                bad += 1
                print(f"{page.relative_to(ROOT)}:{line}: {problem}\n")
    print(f"{count} examples, {bad} of them do not work")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
