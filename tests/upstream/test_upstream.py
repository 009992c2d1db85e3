"""Code that restates upstream's rules for one pin is compared with upstream itself: grammars, files, the allocation clock.

mullama checks grammars and model files before llama.cpp does, since llama.cpp aborts the process on some of them. These tests
run llama.cpp alone, in child processes, and compare: what is accepted must not abort, and what is refused must not have worked.
What is streamed of a chat's answer without calling upstream's parser is compared in test_chat_templates.py.
A change of the pin must pass them (CONTRIBUTING.md).
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_bad_files import DATA, PARTS, damage

from build_programs import NATIVE, program, run
from mullama import default_model

HERE = Path(__file__).resolve().parent
SEEN = sorted([*HERE.glob("*.hpp"), *(NATIVE / "checks").glob("*.[ch]pp")])
LIMITED = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))

pytestmark = pytest.mark.timeout(600)


class Oracle:
    """A program that answers each input with one line."""

    def __init__(self, name: str, *arguments: str) -> None:
        command = [str(program(HERE / f"{name}.cpp", link_llama=True, seen=SEEN)), *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, data: bytes) -> list[str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"%d\n" % len(data) + data)
        self.process.stdin.flush()
        line = self.process.stdout.readline().decode(errors="replace").rstrip("\n")
        assert line, f"the program ended at {data!r:.300}"
        return line.split("\t")

    def close(self) -> None:
        with self.process:
            self.process.communicate()


# ------------------------------------------------------------------------------------------ grammars

NAMES = st.sampled_from(["a", "b", "c-1", "root", "nowhere"])
LITERALS = st.sampled_from(
    [
        '""',
        '"a"',
        '"bc"',
        '"\\n"',
        '"é😀"',
        '"\\x41\\u00e9"',
        "[a-z]",
        "[^a\\]-]",
        "[]",
        "[^]",
        ".",
        "[a-]",
        '"\\q"',
        "<[5]>",
    ]
)
REPEATS = st.sampled_from("* + ? {2} {0,3} {3,1} {2,} {0} {1,1000000} {,2} {1000} {0,0} ** {2001}".split())


def more(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(inner, REPEATS).map("".join),
        st.lists(inner, max_size=3).map(lambda items: "(" + " ".join(items) + ")"),
        st.lists(inner, min_size=1, max_size=3).map(lambda items: "(" + " | ".join(items) + ")"),
        st.tuples(inner, inner).map(" ".join),
    )


BODIES = st.recursive(st.one_of(LITERALS, LITERALS, NAMES), more, max_leaves=12)
RULES = st.tuples(NAMES.filter(lambda name: name != "nowhere"), BODIES).map(" ::= ".join)
START = ["root ::= a b | c-1", 'a ::= "x"', 'b ::= "y"', 'c-1 ::= "z"']
GRAMMARS = st.lists(RULES, min_size=1, max_size=5).map(lambda rules: "\n".join([*START, *rules]))


@st.composite
def broken(draw: st.DrawFn) -> str:
    text = draw(GRAMMARS)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(text)))
        put = draw(st.sampled_from(["", *'()[]{}"\\|*+?^-.:=#<>!,\n\r\t 09aé']))
        text = text[:at] + put + text[at + draw(st.integers(0, 2)) :]
    return text


# Refused although upstream accepts it: it would cost too much (our limit), or upstream misinterprets it.
STRICTER = ("more than ", "left recursion", "a number is too large")


@pytest.fixture(scope="module")
def grammars() -> Iterator[Oracle]:
    oracle = Oracle("grammars", str(default_model()))
    yield oracle
    oracle.close()


@settings(LIMITED, max_examples=100)
@given(st.one_of(GRAMMARS, broken()))
def test_grammars(grammars: Oracle, grammar: str) -> None:
    if "\0" in grammar:
        return
    upstream, ours = grammars(grammar.encode())
    if not ours:
        assert upstream != "died", "what the check lets through may be refused, but must not end the process"
    elif upstream == "accepted":
        assert any(reason in ours for reason in STRICTER), f"refused without need: {ours}"


# ------------------------------------------------------------------------------------------ model files


@pytest.fixture(scope="module")
def files() -> Iterator[Oracle]:
    oracle = Oracle("files")
    yield oracle
    oracle.close()


def test_the_bytes_of_a_cell(files: Oracle) -> None:
    upstream, checked, saved, ours = files(str(default_model()).encode())
    assert (upstream, ours) == ("accepted", "")
    assert 0 <= float(saved) - int(checked) <= 64, "what is saved of a cell has its position and sequence besides"


# Values with which upstream computes something, but not what the file's author meant.
ODD = (
    "epsilon",
    "NaN",
    "must be even",
    "rope.dimension_count",
    "unlike all tokens",
    "rope.scaling.type",
    "expert_",
    "nextn",
)


@settings(LIMITED, max_examples=100)
@given(st.data())
def test_model_files(files: Oracle, tmp_path_factory: pytest.TempPathFactory, choices: st.DataObject) -> None:
    changed, what = damage(DATA, PARTS, lambda n: choices.draw(st.integers(0, n - 1)))
    path = tmp_path_factory.getbasetemp() / "differential.gguf"
    path.write_bytes(changed)
    upstream, _, _, ours = files(str(path).encode())
    if ours and upstream == "accepted":
        assert any(reason in ours for reason in ODD), f"refused without need: {ours} ({what})"


# ------------------------------------------------------------------------------------------ the clock

# Each has ever more parses with every character.
AMBIGUOUS: Sequence[str] = (
    'root ::= ("a" | "a")* "b"',
    'root ::= x*\nx ::= "a" | "aa" | "aaa"',
    'root ::= ("a"? "a"? "a"? "a"? "a"?)*',
    'root ::= (([a-z]+)+)+ "."',
    "root ::= a a a a a a\na ::= [a-z]*",
    'root ::= s\ns ::= "a" s "a" | "a" s | "a"',
)


def test_every_step_through_a_grammar_asks_for_memory() -> None:
    oracle = Oracle("clock", str(default_model()))
    times = {grammar: [float(number) for number in oracle(grammar.encode())] for grammar in AMBIGUOUS}
    oracle.close()
    assert max(seconds for seconds, _, _ in times.values()) > 0.9, f"none of these is ambiguous enough to test: {times}"
    for grammar, (_, gap, _) in times.items():
        assert gap < 0.25, f"{grammar}: {gap} s of processor time between two looks"


# ------------------------------------------------------------------------------------------ choices


def test_the_same_tokens_are_chosen() -> None:
    seen = sorted([*NATIVE.joinpath("checks").glob("*.[ch]pp"), *NATIVE.joinpath("sampling").glob("*.[ch]pp")])
    said = run([str(program(HERE / "choices.cpp", link_llama=True, seen=seen)), str(default_model())])
    rows = [line.split("\t") for line in said.splitlines()]
    assert not [row for row in rows if len(row) != 5], said
    assert min(int(tokens) for _, tokens, *_ in rows) >= 6, f"a case that compares nothing: {said}"
    assert sum(int(turns) for _, _, turns, *_ in rows) > 100, f"hardly anything was interrupted: {said}"
