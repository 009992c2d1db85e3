"""What all benchmarks share: the sides take turns, each in its own process, and the result is the ratio of their figures.

A benchmark is a module of this folder with a `QUESTION`. Its sides are functions from settings to figures. Each runs in a
fresh process; the sides of a case run one after the other, and then again (A B A B …), so that other load on the machine
affects all of them equally. A ratio compares two figures of the same turn. The result is the median of the ratios; their
range is shown too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mullama import StreamConfig

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
sys.path.insert(0, str(ROOT / "tools"))

Settings = dict[str, Any]
Figures = dict[str, float]

MINUTES_FOR_A_SIDE = 10
ENOUGH = 5  # rounds, for a result that may be saved
# The sampling of every side: the chain top-k, top-p, temperature, random choice. The seed does not affect the cost.
SAMPLING: dict[str, Any] = {"top_k": 40, "top_p": 0.95, "min_p": 0.0, "temperature": 0.8, "seed": 1}


class CannotRun(Exception):
    """A side that cannot run; the message says why, and is shown."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison: what it measures, and its interpreter (this one, unless it needs other packages)."""

    measure: Callable[[Settings], Figures]
    python: Callable[[], str] = lambda: sys.executable


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the result: a figure of one side, and its ratio to the reference if there is one."""

    label: str
    side: str
    figure: str
    unit: str
    reference: str | None = None
    reference_figure: str | None = None  # `figure`, unless it has another name there
    reach: float | None = None  # the target for the ratio, or for the figure if there is no reference
    less: bool = False  # less is better


@dataclass(frozen=True)
class Case:
    """Sides that take turns with the same settings. The setting `model` is a name in `models.SHAPES`."""

    settings: Settings
    rows: Sequence[Row]
    most_rounds: int = 1000  # for cases that take too long for as many rounds as the others

    @property
    def sides(self) -> list[str]:
        names = [name for row in self.rows for name in (row.reference, row.side) if name is not None]
        return list(dict.fromkeys(names))


@dataclass(frozen=True)
class Question:
    """One file of this folder; its docstring says what is compared, and how."""

    file: str
    title: str
    about: str
    sides: Mapping[str, Side]
    cases: Sequence[Case]
    notes: Sequence[str] = field(default=())

    @property
    def name(self) -> str:
        return Path(self.file).stem


def prompt(n: int, seed: int = 0) -> list[int]:
    """BOS, then random ids of ordinary pieces of the benchmarks' vocabulary; the models' weights are random too."""
    numbers = random.Random(seed)
    return [1, *(numbers.randrange(300, 31_900) for _ in range(n - 1))]


def endless(**fields: Any) -> StreamConfig:
    """The configuration of every stream in a benchmark: the same sampling, ended only by `max_tokens`."""
    from mullama import SamplerParams, StreamConfig

    return StreamConfig(params=SamplerParams(ignore_eos=True, **SAMPLING), **({"timeout_ms": 0} | fields))


def in_turn(question: Question, case: Case, rounds: int, threads: int, say: Callable[[str], object]) -> list[Settings]:
    """The rows of a case, with the measured figures."""
    from models import bench_model

    settings = {"threads": threads, **case.settings}
    if "model" in settings:
        settings["model"] = str(bench_model(settings["model"]))
    figures: dict[str, list[Figures]] = {}
    reasons: dict[str, str] = {}
    for turn in range(rounds):
        for name in case.sides:
            if name in reasons:
                continue
            say(f"{question.name}: turn {turn + 1} of {rounds}, {name}, {case.rows[0].label}")
            try:
                figures.setdefault(name, []).append(in_a_process(question, name, settings))
            except CannotRun as error:
                reasons[name] = str(error)
    return [answer(row, figures, reasons) for row in case.rows]


def in_a_process(question: Question, name: str, settings: Settings) -> Figures:
    command = [question.sides[name].python(), question.file, "--side", name, json.dumps(settings)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60 * MINUTES_FOR_A_SIDE, check=False, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        raise CannotRun(f"not done within {MINUTES_FOR_A_SIDE} minutes") from None
    if done.returncode:
        said = (done.stderr.strip() or f"status {done.returncode}").splitlines()
        raise CannotRun(said[-1].replace(f"{ROOT}/", ""))  # it may be published
    return dict(json.loads(done.stdout.splitlines()[-1]))


def answer(row: Row, figures: Mapping[str, list[Figures]], reasons: Mapping[str, str]) -> dict[str, Any]:
    """A row as it is saved: medians, ranges, whether it reaches its target; or why it could not run."""
    found: dict[str, Any] = asdict(row)
    for name in (row.side, row.reference):
        if name is not None and name in reasons:
            return {**found, "failed": f"{name}: {reasons[name]}"}
    own = [turn[row.figure] for turn in figures[row.side]]
    found["median"], found["range"] = statistics.median(own), [min(own), max(own)]
    judged = found["median"]
    if row.reference is not None:
        other = [turn[row.reference_figure or row.figure] for turn in figures[row.reference]]
        ratios = [a / b for a, b in zip(own, other, strict=True)]
        found["reference_median"], found["reference_range"] = statistics.median(other), [min(other), max(other)]
        found["ratio"], found["ratio_range"] = statistics.median(ratios), [min(ratios), max(ratios)]
        judged = found["ratio"]
    if row.reach is not None:
        found["reached"] = judged <= row.reach if row.less else judged >= row.reach
    return found


def ask(question: Question, rounds: int, threads: int, only: str, say: Callable[[str], object]) -> dict[str, Any]:
    """The result of a benchmark, ready for JSON."""
    rows = []
    for case in question.cases:
        if any(only in row.label for row in case.rows):
            rows += in_turn(question, case, min(rounds, case.most_rounds), threads, say)
    return {
        "title": question.title,
        "about": question.about,
        "notes": list(question.notes),
        "rounds": min(rounds, *(case.most_rounds for case in question.cases)),
        "threads": threads,
        "machine": machine(),
        "rows": rows,
    }


def machine() -> str:
    """A one-line description of this machine."""
    import mullama

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    python = f"Python {platform.python_version()}"
    return f"{cpu}, {cores} cores, {platform.system()}, {python}, llama.cpp {mullama.llama_cpp_version()}"


def figure(value: float) -> str:
    """A number with three significant digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table: label, our figure, the reference's, the ratio and its range, the target, whether it is reached."""
    if "failed" in row:
        return [row["label"], f"cannot run ({row['failed']})", "", "", "", "", ""]
    sign = "≤" if row["less"] else "≥"
    reach = "" if row["reach"] is None else f"{sign} {row['reach']:g}"
    verdict = {True: "yes", False: "no", None: ""}[row.get("reached")]
    own = f"{figure(row['median'])} {row['unit']}"
    if row["reference"] is None:
        spread = f"{figure(row['range'][0])} … {figure(row['range'][1])}"
        return [row["label"], own, "", "", spread, reach, verdict]
    spread = f"{row['ratio_range'][0]:.2f} … {row['ratio_range'][1]:.2f}"
    other = f"{figure(row['reference_median'])} ({row['reference']})"
    return [row["label"], own, other, f"{row['ratio']:.3g}", spread, reach, verdict]


HEAD = ["case", "mullama", "reference", "ratio", "range", "target", "reached"]


def main(question: Question) -> None:
    """What ``python bench/<name>.py`` does: run one side in this process, or all sides in turn."""
    if sys.argv[1:2] == ["--side"]:
        try:
            print(json.dumps(question.sides[sys.argv[2]].measure(json.loads(sys.argv[3]))))
        except CannotRun as error:
            sys.exit(str(error))
        return
    given = options(argparse.ArgumentParser(description=question.about)).parse_args()
    show(ask(question, given.rounds, given.threads, given.only, say))


def options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=ENOUGH, help="how often each side runs")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of every side")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose label contains this")
    return parser


def say(line: str) -> None:
    print(f"  {line} …", file=sys.stderr, flush=True)


def show(found: Mapping[str, Any]) -> None:
    from mullama._bench import table

    print(f"\n{found['title']} (rounds: {found['rounds']}, {found['threads']} threads, {found['machine']})\n")
    print(table([HEAD, *map(cells, found["rows"])]))
