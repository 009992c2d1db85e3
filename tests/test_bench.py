"""`mullama bench`, with the bundled model and a stand-in for upstream's program; the measured figures are not tested."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest
from test_cli import fails, run, succeeds

from mullama import _bench, default_model

SMALL = ["bench", "--streams", "3", "--prompt", "8", "-n", "16", "--repeat", "2", "--threads", "1"]
FIGURES = {"prompt_tokens_per_second", "tokens_per_second"}

UPSTREAM = """\
#!{python}
import json, sys
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert words["--output-format"] == "jsonl", words
assert words["-m"].endswith(".gguf"), words
assert (words["-npp"], words["-ntg"], words["-t"], words["-tb"]) == ("8", "16", "1", "1"), words
assert words["-c"] == str(3 * 256), words
print("some other line")
for n in words["-npl"].split(","):
    print(json.dumps({{"pl": int(n), "speed_pp": 1000.0, "speed_tg": 100.0 * int(n)}}))
"""


def program(folder: Path, text: str) -> str:
    path = folder / "llama-batched-bench"
    path.write_text(text.format(python=sys.executable), "utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_json_has_a_row_for_each_count(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    found = json.loads(succeeds(*SMALL, "--backend", backend, "--json"))
    assert (found["threads"], found["prompt"], found["tokens"], found["upstream"]) == (1, 8, 16, None)
    assert (found["model"], found["file"]) == ("mullama default model", str(default_model()))
    assert (found["parameters"], found["quantization"]) == (3345152, "Q8_0")
    assert [row["streams"] for row in found["rows"]] == [1, 2, 3]
    for row in found["rows"]:
        assert row["upstream"] is None
        assert all(row[figure] > 0 for figure in FIGURES)


def test_threads_that_are_not_named_are_told() -> None:
    found = json.loads(succeeds(*SMALL[:-2], "--json"))
    assert found["threads"] >= 1


def test_a_table_says_where_upstreams_figures_would_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    table = succeeds(*SMALL)
    assert table.startswith("mullama default model (default.gguf), 3.35M parameters, Q8_0\n1 thread, ")
    assert "prompt tokens/s" in table
    assert "--upstream" in table
    assert len([line for line in table.splitlines() if line.lstrip()[:1].isdigit()]) >= 3


def test_upstreams_program_takes_turns(tmp_path: Path) -> None:
    upstream = program(tmp_path, UPSTREAM)
    found = json.loads(succeeds(*SMALL, "--upstream", upstream, "--json"))
    assert found["upstream"] == upstream
    assert [row["upstream"]["tokens_per_second"] for row in found["rows"]] == [100, 200, 300]
    table = succeeds(*SMALL, "--upstream", upstream)
    assert "1,000" in table
    assert "ratio" in table


def test_upstreams_program_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = program(tmp_path, UPSTREAM)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert json.loads(succeeds(*SMALL, "--json"))["upstream"] == upstream


def test_upstreams_program_that_is_missing(tmp_path: Path) -> None:
    assert "no-such-program" in fails(1, *SMALL, "--upstream", str(tmp_path / "no-such-program"))


def test_upstreams_program_that_fails(tmp_path: Path) -> None:
    upstream = program(tmp_path, "#!{python}\nimport sys\nsys.exit('no room')\n")
    line = fails(1, *SMALL, "--upstream", upstream)
    assert upstream in line
    assert "no room" in line


@pytest.mark.parametrize(
    ("option", "value"),
    [("--streams", "0"), ("--streams", "257"), ("--prompt", "0"), ("-n", "1"), ("--repeat", "0"), ("--threads", "0")],
)
def test_options_out_of_range(option: str, value: str) -> None:
    assert option in fails(2, "bench", option, value)


def test_a_model_that_is_missing(tmp_path: Path) -> None:
    path = str(tmp_path / "none.gguf")
    assert path in fails(1, "bench", "-m", path)


def test_help_says_what_it_compares_with() -> None:
    assert "llama-batched-bench" in run("bench", "--help").stdout


@pytest.mark.parametrize(("most", "counts"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))])
def test_counts(most: int, counts: tuple[int, ...]) -> None:
    assert _bench.Load(streams=most).counts == counts
