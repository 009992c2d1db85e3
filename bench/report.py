"""Runs the benchmarks, all or the given ones, and writes the results; this is what `make bench` runs.

    python bench/report.py [QUESTION …] [--rounds 5] [--threads N] [--only TEXT]

Each result is printed as a table. With at least five rounds, and no case left out, it is saved in
``docs/benchmarks.json``; then ``docs/benchmarks.md``, its plots, and the table in ``docs/explanation/performance.md``
are regenerated from all saved results. So no figure is ever typed by hand, and a single benchmark can be run again.
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
    "many_readers",
    "thousand_streams",
    "footprint",
)
DOCS = ROOT / "docs"
KEPT = DOCS / "benchmarks.json"
PAGE = DOCS / "benchmarks.md"
PLOTS = {"benchmarks-ratios.svg": "Every ratio and its target", "benchmarks-streams.svg": "Many streams"}
PERFORMANCE = DOCS / "explanation" / "performance.md"
BEGIN, END = "<!-- written by `make bench` -->", "<!-- end of what `make bench` writes -->"

OPENING = """\
# Benchmarks

This page holds the figures that `make bench` measured. The command generates the page from `benchmarks.json`; no figure is
typed by hand.

The sides of a comparison run in turn, each in its own process, with the same model, threads, context and sampling. A ratio
compares two figures of the same turn; the table shows the median, and the range over all turns. The models have random
weights, which cost as much as trained ones (`bench/models.py`). [Performance](explanation/performance.md) explains what the
figures mean, and which optimisations were tried.
"""


def markdown(rows: list[list[str]]) -> str:
    """A table; a side that cannot run says so in the second column."""
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
    """A short table of the rows that have a target."""
    rows = [["benchmark", "case", "measured", "target", "reached"]]
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
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"any of {', '.join(QUESTIONS)}; default: all")
    given = parser.parse_args()
    if unknown := set(given.questions) - set(QUESTIONS):
        parser.error(f"unknown benchmark: {', '.join(sorted(unknown))}; choose from {', '.join(QUESTIONS)}")
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
