"""Draws the plots of docs/benchmarks.md from the saved results; runs in the environment that has matplotlib.

python bench/plots.py benchmarks.json FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

mpl.use("svg")
# The same figures give the same file.
mpl.rcParams.update({"svg.hashsalt": "mullama", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False})
mpl.rcParams.update({"axes.spines.right": False, "figure.facecolor": "white"})

OURS, THEIRS, MISSED, QUIET = "#1f6f8b", "#8a8a8a", "#c8553d", "#bbbbbb"


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)


def ratios(answers: dict[str, Any], path: Path) -> None:
    """Each ratio as a point with its range; a bar at its target, and the reference at 1."""
    rows = [(found["title"], row) for found in answers.values() for row in found["rows"] if "ratio" in row]
    figure, axes = plt.subplots(figsize=(7.5, 0.24 * len(rows) + 1.2))
    axes.axvline(1, color=QUIET, linewidth=1)
    for y, (_, row) in enumerate(rows):
        colour = MISSED if row.get("reached") is False else OURS
        axes.plot(row["ratio_range"], [y, y], color=colour, linewidth=1.5, alpha=0.6)
        axes.plot([row["ratio"]], [y], "o", color=colour, markersize=5)
        if row["reach"] is not None:
            axes.plot([row["reach"]], [y], "|", color="black", markersize=10)
    axes.set_yticks(range(len(rows)), [f"{title}: {row['label']}" for title, row in rows])
    axes.set_xscale("log")
    ticks = [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.invert_yaxis()
    axes.set_xlabel("mullama / reference (median and range; | is the target)")
    save(figure, path)


def streams(found: dict[str, Any], path: Path) -> None:
    """Total tokens per second over the number of streams."""
    rows = [row for row in found["rows"] if "ratio" in row]
    counts = [int(row["label"].split()[0]) for row in rows]
    figure, axes = plt.subplots(figsize=(6, 3.2))
    sides = ((THEIRS, "reference_", rows[0]["reference"]), (OURS, "", "mullama, sampled, read and timed in Python"))
    for colour, prefix, name in sides:
        axes.plot(counts, [row[f"{prefix}median"] for row in rows], "o-", color=colour, label=name, markersize=4)
        low, high = zip(*(row[f"{prefix}range"] for row in rows), strict=True)
        axes.fill_between(counts, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("concurrent streams")
    axes.set_ylabel("total tokens/s")
    axes.legend(frameon=False)
    save(figure, path)


def main() -> None:
    answers = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    folder = Path(sys.argv[2])
    ratios(answers, folder / "benchmarks-ratios.svg")
    if any("ratio" in row for row in answers.get("many_streams", {}).get("rows", ())):
        streams(answers["many_streams"], folder / "benchmarks-streams.svg")


if __name__ == "__main__":
    main()
