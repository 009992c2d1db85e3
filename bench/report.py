"""Asks the questions, all or those that are named, and writes down what came out: what `make bench` runs.

    python bench/report.py [QUESTION …] [--rounds 5] [--threads N] [--only TEXT]

Each answer is printed as a table. With at least five rounds, and no case left out, it is kept in
``docs/benchmarks.json``; then ``docs/benchmarks.md``, its plots, and the table in ``docs/explanation/performance.md``
are written anew from all that is kept. So no figure is ever typed by hand, and one question can be asked again by
itself.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from environments import interpreter
from turns import BENCH, ENOUGH, HEAD, ROOT, CannotRun, ask, cells, options, say, show

QUESTIONS = (
    "one_stream",
    "many_streams",
    "peers",
    "long_prompt",
    "cancel",
    "shared_prefix",
    "event_loop",
    "python_cost",
    "thousand_streams",
    "footprint",
)
DOCS = ROOT / "docs"
KEPT = DOCS / "benchmarks.json"
PAGE = DOCS / "benchmarks.md"
PLOTS = {"benchmarks-ratios.svg": "Every ratio, and what it should reach", "benchmarks-streams.svg": "Many streams"}
PERFORMANCE = DOCS / "explanation" / "performance.md"
BEGIN, END = "<!-- written by `make bench` -->", "<!-- end of what `make bench` writes -->"

OPENING = """\
# Benchmarks

This page holds the figures that `make bench` measured; that command writes it, from `benchmarks.json`, and nobody types
a figure.

The sides of a comparison run in turn, each in a process of its own, with the same model, threads, context and sampling.
A ratio is that of two figures of one turn; the one that is shown is the median, the range is that of all turns. The
models have random weights, which cost what trained ones do (`bench/models.py`). What the figures mean, and what was
tried, is told in [performance](explanation/performance.md).
"""


def markdown(rows: list[list[str]]) -> str:
    """A table; what cannot run says so in the second column."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def page(answers: Mapping[str, Any]) -> str:
    plots = [f"![{what}]({name})\n" for name, what in PLOTS.items() if (DOCS / name).is_file()]
    parts = [OPENING, *plots]
    for name, found in answers.items():
        parts.append(f"## {found['title']}\n")
        parts.append(f"{found['about'].strip()}\n")
        parts.append(markdown([HEAD, *map(cells, found["rows"])]) + "\n")
        parts.append(f"`bench/{name}.py`: rounds: {found['rounds']}, threads: {found['threads']}.")
        parts.append(f"{found['machine']}.\n")
    return "\n".join(parts)


def summary(answers: Mapping[str, Any]) -> str:
    """The rows that are to reach something, in short."""
    rows = [["question", "case", "measured", "to reach", "reached"]]
    for found in answers.values():
        for row in found["rows"]:
            if row["reach"] is not None:
                label, own, _, ratio, _, reach, verdict = cells(row)
                rows.append([found["title"], label, ratio or own, reach, verdict])
    return markdown(rows)


def write(answers: Mapping[str, Any]) -> None:
    KEPT.write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n", "utf-8")
    try:
        subprocess.run([interpreter("matplotlib"), str(BENCH / "plots.py"), str(KEPT), str(DOCS)], check=True)
    except (CannotRun, subprocess.CalledProcessError) as error:
        print(f"no plots: {error}", file=sys.stderr)
    PAGE.write_text(page(answers), "utf-8")
    before, _, rest = PERFORMANCE.read_text("utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PERFORMANCE.write_text(f"{before}{BEGIN}\n\n{summary(answers)}\n\n{END}{after}", "utf-8")
    print(f"\nwritten: {PAGE.relative_to(ROOT)}, its plots, and the table in {PERFORMANCE.relative_to(ROOT)}")


def main() -> int:
    parser = options(argparse.ArgumentParser(description=__doc__))
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"of {', '.join(QUESTIONS)}; none: all")
    given = parser.parse_args()
    if unknown := set(given.questions) - set(QUESTIONS):
        parser.error(f"no such question: {', '.join(sorted(unknown))}; there are {', '.join(QUESTIONS)}")
    kept = json.loads(KEPT.read_text("utf-8")) if KEPT.is_file() else {}
    failed = False
    for name in given.questions or QUESTIONS:
        kept[name] = ask(importlib.import_module(name).QUESTION, given.rounds, given.threads, given.only, say)
        show(kept[name])
        failed |= any("failed" in row for row in kept[name]["rows"])
        if given.rounds >= ENOUGH and not given.only:
            write({name: kept[name] for name in QUESTIONS if name in kept})
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
