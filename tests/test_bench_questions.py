"""The benchmarks of bench/: each can run, and turns, ratios and reasons are right; speed is not tested."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
pytestmark = pytest.mark.skipif(not BENCH.is_dir(), reason="tests are run without a checkout")

THREE = """
import os, sys
from turns import CannotRun, Case, Question, Row, Side, main

def count(settings):
    with open(settings["log"], "a+") as log:
        log.write("ours ")
        log.seek(0)
        return {"rate": 10.0 * log.read().count("ours")}

def other(settings):
    with open(settings["log"], "a") as log:
        log.write("theirs ")
    print("what a side prints besides is no figure")
    return {"speed": 20.0}

def missing(settings):
    raise CannotRun("it is not there")

def row(label, **changes):
    return Row(label=label, side="ours", figure="rate", unit="x", **changes)

QUESTION = Question(
    file=__file__,
    title="Three",
    about="What.",
    sides={"theirs": Side(other), "ours": Side(count), "gone": Side(missing)},
    cases=[
        Case({"log": os.environ["LOG"]}, [
            row("ratio", reference="theirs", reference_figure="speed", reach=1.0),
            row("less", reference="theirs", reference_figure="speed", reach=0.9, less=True),
            row("alone", reach=15),
            row("absent", reference="gone"),
        ]),
    ],
)
if __name__ == "__main__":
    main(QUESTION)
"""


@pytest.fixture(autouse=True)
def _bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setenv("PYTHONPATH", str(BENCH))


def ask(folder: Path, monkeypatch: pytest.MonkeyPatch, rounds: int) -> tuple[dict[str, Any], list[str]]:
    import turns

    (folder / "three_sides.py").write_text(THREE, "utf-8")
    monkeypatch.setenv("LOG", str(folder / "log"))
    monkeypatch.syspath_prepend(str(folder))
    question = importlib.import_module("three_sides").QUESTION
    try:
        found = turns.ask(question, rounds, 2, "", lambda _: None)
    finally:
        del sys.modules["three_sides"]
    return {row["label"]: row for row in found["rows"]}, (folder / "log").read_text("utf-8").split()


def test_sides_take_turns_and_a_reason_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, log = ask(tmp_path, monkeypatch, 3)
    assert log == ["theirs", "ours"] * 3
    assert rows["ratio"]["ratio"] == 1.0
    assert rows["ratio"]["ratio_range"] == [0.5, 1.5]
    assert rows["ratio"]["reached"]
    assert not rows["less"]["reached"]
    assert (rows["alone"]["median"], rows["alone"]["reached"]) == (20, True)
    assert "it is not there" in rows["absent"]["failed"]


def test_a_row_becomes_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import turns

    rows, _ = ask(tmp_path, monkeypatch, 1)
    assert turns.cells(rows["ratio"]) == ["ratio", "10.0 x", "20.0 (theirs)", "0.5", "0.50 … 0.50", "≥ 1", "no"]
    assert "it is not there" in turns.cells(rows["absent"])[1]
    assert all(len(turns.cells(row)) == len(turns.HEAD) for row in rows.values())


def test_every_question_is_asked() -> None:
    import report

    with_question = {path.stem for path in BENCH.glob("*.py") if "\nQUESTION = " in path.read_text("utf-8")}
    assert set(report.QUESTIONS) == with_question
    for name in report.QUESTIONS:
        question = importlib.import_module(name).QUESTION
        assert question.name == name
        for case in question.cases:
            assert set(case.sides) <= set(question.sides)
        labels = [row.label for case in question.cases for row in case.rows]
        assert len(set(labels)) == len(labels)


def test_what_is_compared_with_is_pinned() -> None:
    import environments
    import peers

    for package in [*peers.PEERS, "matplotlib"]:
        assert environments.requirement(package).startswith(package)
    assert all("==" in environments.requirement(package) for package in peers.PEERS)
