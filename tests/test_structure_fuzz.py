"""Grammars and schemas that nobody would write, in separate processes: refused with a typed error, or followed.

A failed assertion in llama.cpp, an exception that passes through C, a stack overflow or an endless loop would end
the process; so the examples run in another one, with limits on its memory and on the processor time of each.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAD = """
import os, resource, signal, sys
import hypothesis
from hypothesis import HealthCheck, settings, strategies as st
from mullama import Context, InvalidParameter, Model, SamplerParams, SamplingError, StreamConfig

KIND, EXAMPLES, RUN = sys.argv[1], int(sys.argv[2]), open(sys.argv[3], "w")
model = Model.load()
context = Context(model, n_ctx=256, n_seq_max=1, n_threads=1)
followed = refused = 0

def attempt(**params):
    global followed, refused
    RUN.seek(0), RUN.truncate(), RUN.write(ascii(params)), RUN.flush()
    signal.setitimer(signal.ITIMER_PROF, 10)  # of processor time; it ends the process, also in the middle of C
    try:
        with context.generate_stream("Once", config=StreamConfig(
            max_tokens=6, timeout_ms=0, params=SamplerParams(seed=1, temperature=2.0, top_k=0, top_p=1.0, **params)
        )) as stream:
            for _ in stream:
                pass
        followed += 1
    except InvalidParameter as e:
        assert e.parameter == KIND, e
        refused += 1
    except SamplingError:
        followed += 1
    signal.setitimer(signal.ITIMER_PROF, 0)

LIMITED = settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
"""

GRAMMARS = r"""
names = st.sampled_from(["a", "b", "c-1", "c-1", "c-1", "root", "nowhere"])
literals = st.sampled_from(['""', '"a"', '"bc"', '"\\n"', '"é😀"', '"\\x41\\u00e9"', "[a-z]", "[^a\\]-]", "[]", "[^]", ".",
                            "[a-]"])
repeats = st.sampled_from("* + ? {2} {0,3} {3,1} {2,} {0} {1,1000000} {,2} {1000} {0,0} ** * + ? {2} {0,3}".split())

def more(inner):
    repeated = st.tuples(inner, repeats).map("".join)
    grouped = st.lists(inner, max_size=3).map(lambda items: "(" + " ".join(items) + ")")
    either = st.lists(inner, min_size=1, max_size=3).map(lambda items: "(" + " | ".join(items) + ")")
    return st.one_of(repeated, grouped, either, st.tuples(inner, inner).map(" ".join))

bodies = st.recursive(st.one_of(literals, literals, names), more, max_leaves=12)
rules = st.tuples(names.filter(lambda n: n != "nowhere"), bodies).map(" ::= ".join)
START = ["root ::= a b | c-1", 'a ::= "x"', 'b ::= "y"', 'c-1 ::= "z"']
whole = st.lists(rules, min_size=1, max_size=5).map(lambda some: "\n".join([*START, *some]))

@st.composite
def broken(draw):
    text = draw(whole)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(text)))
        put = draw(st.sampled_from(['', *'()[]{}"\\|*+?^-.:=#<>!,\n\r\t 09aé']))
        text = text[:at] + put + text[at + draw(st.integers(0, 2)):]
    return text

@LIMITED
@hypothesis.given(st.one_of(whole, broken()))
def test(grammar):
    attempt(grammar=grammar or "#")
"""

SCHEMAS = r"""
KEYS = ["type", "properties", "items", "prefixItems", "anyOf", "oneOf", "allOf", "$ref", "$defs", "enum", "const", "required",
        "additionalProperties", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength",
        "minItems", "maxItems", "pattern", "format", "title", "definitions", "not"]
words = st.sampled_from(["object", "array", "string", "integer", "number", "boolean", "null", "date", "uuid", "text", "a", "",
                         "#", "#/$defs/a", "#/$defs/b", "#/properties/a", "#/", "#/$defs", "/", "^a{2,1}$", "^[$", "^(a|b)*$",
                         "^.{3}\\d$", "\\", "^((((a))))+$", "\"", "]", "*", "root", "space", "char"])
numbers = st.one_of(st.integers(-3, 5), st.sampled_from([2**31, 2**63, -(2**63), 10**400, 1e308, -0.5, 1e-300, 10**17, 2**53]))
scalars = st.one_of(st.none(), st.booleans(), numbers, words, st.text(max_size=5))

def more(inner):
    keyed = st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)
    named = st.dictionaries(words, inner, max_size=4)
    return st.one_of(st.lists(inner, max_size=4), keyed, keyed, named)

values = st.recursive(scalars, more, max_leaves=20)
nodes = st.fixed_dictionaries({}, optional={
    "type": st.one_of(words, st.lists(words, max_size=3)), "properties": st.dictionaries(words, values, max_size=4),
    "$ref": words, "items": values, "allOf": st.lists(values, max_size=3), "anyOf": st.lists(values, max_size=3),
    "required": st.lists(words, max_size=2), "enum": st.lists(scalars, max_size=4), "minimum": numbers, "maximum": numbers,
    "minLength": numbers, "maxLength": numbers, "minItems": numbers, "maxItems": numbers, "pattern": words,
    "additionalProperties": values})
roots = st.tuples(nodes, st.dictionaries(st.sampled_from("ab"), nodes)).map(lambda two: two[0] | {"$defs": two[1]})

@LIMITED
@hypothesis.given(st.one_of(values, nodes, roots))
def test(schema):
    if schema is not None:
        attempt(json_schema=schema)
"""

TAIL = """
if "san" not in os.environ.get("LD_PRELOAD", ""):  # a sanitizer's shadow takes terabytes of addresses
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
test()
context.close()
print(followed, refused)
"""


@pytest.mark.parametrize(("kind", "body", "examples"), [("grammar", GRAMMARS, 300), ("json_schema", SCHEMAS, 300)])
def test_it_is_refused_or_followed(tmp_path: Path, kind: str, body: str, examples: int) -> None:
    last = tmp_path / "last.txt"
    command = [sys.executable, "-c", HEAD + body + TAIL, kind, str(examples), str(last)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)  # pytest has a time limit
    case = last.read_text() if last.is_file() else ""
    assert run.returncode == 0, f"status {run.returncode} at {case}\n{run.stderr[-3000:]}"
    followed, refused = map(int, run.stdout.split())
    assert min(followed, refused) >= 10, "else it would show little"
    assert "parsing grammar" not in run.stderr, "llama.cpp was asked about a grammar that it had to print"
