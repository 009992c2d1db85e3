"""llama.cpp's log messages: they go to Python's logging with their levels, are silent by default, and never pile up."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import SANITIZED

from mullama import Context, Model, ModelLoadError, _core, default_model

NAME = "mullama.llama_cpp"


def broken(folder: Path, old: bytes, new: bytes, name: str = "broken.gguf") -> Path:
    """A copy of the bundled model with a few of its bytes changed."""
    data = default_model().read_bytes()
    assert old in data
    assert len(old) == len(new)
    path = folder / name
    path.write_bytes(data.replace(old, new, 1))
    return path


@pytest.fixture
def unknown(tmp_path: Path) -> Path:
    """A file that only llama.cpp itself refuses: its tokeniser is unknown."""
    kind = b"tokenizer.ggml.model\x08\0\0\0\x05\0\0\0\0\0\0\0"
    return broken(tmp_path, kind + b"llama", kind + b"lambo")


def test_a_load_is_told_in_logging(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, NAME)
    Model.load()
    records = [record for record in caplog.records if record.name == NAME]
    assert len(records) > 20
    assert {record.levelno for record in records} >= {logging.DEBUG, logging.INFO}
    assert any(str(default_model()) in record.getMessage() for record in records)
    assert not any("\n" in record.getMessage() for record in records)


def test_levels_can_be_chosen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, NAME)
    Model.load()
    assert [record for record in caplog.records if record.levelno < logging.WARNING] == []


def test_an_error_is_logged_as_one(caplog: pytest.LogCaptureFixture, unknown: Path) -> None:
    with pytest.raises(ModelLoadError, match="lambo") as caught:
        Model.load(unknown)
    errors = [r.getMessage() for r in caplog.records if r.name == NAME and r.levelno == logging.ERROR]
    assert any("lambo" in line for line in errors)
    assert any(line in str(caught.value) for line in errors)


def test_a_warning_is_logged_as_one(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    key = b"tokenizer.ggml.eos_token_id\x04\0\0\0"
    Model.load(broken(tmp_path, key + b"\x02\0\0\0", key + b"\xff\xff\xff\0"), vocab_only=True)
    assert any(
        r.name == NAME and r.levelno == logging.WARNING and "eos_token_id" in r.getMessage() for r in caplog.records
    )


def test_lines_of_a_context_arrive_too(caplog: pytest.LogCaptureFixture, model: Model) -> None:
    caplog.set_level(logging.INFO, NAME)
    with Context(model, n_ctx=256, n_seq_max=1, n_threads=1):
        assert any("KV buffer" in record.getMessage() for record in caplog.records if record.name == NAME)


SILENT = """
import sys
import mullama
for path in sys.argv[1:]:
    try:
        mullama.Model.load(path)
    except mullama.ModelLoadError:
        pass
    else:
        raise AssertionError(path)
model = mullama.Model.load()
model.tokenize("<s>", parse_special=True)  # with a second BOS, which llama.cpp warns of
odd = mullama.SamplerParams(dry_multiplier=1.0, dry_sequence_breakers=["x" * 40, "\\u00e9"], mirostat=2, seed=1)
with mullama.Context(model, n_ctx=256, n_seq_max=2, n_threads=1) as context:
    context.generate("<s>Once", 5, odd)
    try:
        context.generate("Once", 5, mullama.SamplerParams(logit_bias=dict.fromkeys(range(model.n_vocab), float("-inf"))))
    except mullama.SamplingError:
        pass
    try:
        mullama.Context(model, n_ctx=2**31 - 1, n_seq_max=1)
    except mullama.ContextError:
        pass
"""


def test_silent_unless_asked(tmp_path: Path, unknown: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(default_model().read_bytes()[:-1000])
    bad_count = broken(tmp_path, b"llama.block_count\x04\0\0\0", b"llama.block_count\x05\0\0\0", "type.gguf")
    done = subprocess.run(
        [sys.executable, "-c", SILENT, str(unknown), str(cut), str(bad_count), str(tmp_path / "missing")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


STRUCTURE = r"""
import mullama
bad = [{"grammar": g} for g in ("root ::= [a", "root ::= <nowhere>", "root ::= x", r'root ::= "\q"', "root ::= root")]
bad += [{"json_schema": {"type": "string", "pattern": p}} for p in ("(?=a)b", r"^\bx$", "[", "a{1,2}{3}")]
patterns = "", "a", r"^\d+$", "x|y", "^[^a]*$", "^.{3}$", "(?:a)+?"
good = [{"json_schema": {"type": "string", "pattern": p}} for p in patterns]
question = [{"role": "user", "content": "Hello"}]
with mullama.Context(mullama.Model.load(), n_ctx=512, n_seq_max=2, n_threads=1) as context:
    for given, wrong in [*((one, True) for one in bad), *((one, False) for one in good)]:
        for ask, prompt in ((context.generate, "Once"), (context.chat, question)):
            try:
                ask(prompt, 5, mullama.SamplerParams(seed=1, **given))
            except mullama.InvalidParameter:
                assert wrong, given
            else:
                assert not wrong, given
        schema = {"properties": {"x": given["json_schema"]}} if "json_schema" in given else {"type": given["grammar"]}
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"} | schema}}
        for choice in ("auto", "required", "none"):
            try:
                context.chat(question, 5, tools=[tool], tool_choice=choice)
            except mullama.ChatError:
                assert "grammar" in given and choice != "none", given
"""


def test_what_grammars_and_schemas_lack_is_said_in_errors_alone() -> None:
    """Otherwise llama.cpp's parser and converter print it."""
    done = subprocess.run([sys.executable, "-c", STRUCTURE], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_handler_of_the_root_logger_gets_them() -> None:
    script = "import logging, sys, mullama; logging.basicConfig(level=0, stream=sys.stdout); mullama.Model.load()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) > 20
    assert all(line.split(":")[1] == NAME for line in lines)


def test_what_no_one_fetches_is_bounded() -> None:
    """Messages that no Python code fetches take no more memory than a thousand of them."""

    def load() -> None:
        # Not through Model.load, which fetches messages.
        _core.Model(
            str(default_model()).encode(),
            n_gpu_layers=0,
            use_mmap=True,
            use_mlock=False,
            vocab_only=True,
            on_progress=None,
        )

    _core.take_log_lines()
    load()
    n = len(_core.take_log_lines())
    assert n > 20
    times = 2000 // n
    for _ in range(times):
        load()
    before = psutil.Process().memory_info().rss
    for _ in range(5 * times):
        load()
    assert SANITIZED or psutil.Process().memory_info().rss - before < 3_000_000
    lines = _core.take_log_lines()
    assert len(lines) == 1001
    assert lines[0] == (3, f"{6 * times * n - 1000} older lines were dropped")
    assert _core.take_log_lines() == []
