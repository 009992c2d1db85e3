"""Invalid model files: each raises an error that says what is wrong, and none aborts the process.

`python tests/test_bad_files.py 5000 [MODEL]` tries that many random corruptions; the seed of a crash is printed.
"""

from __future__ import annotations

import errno
import json
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mullama import Context, Model, ModelLoadError, SamplerParams, default_model

# ------------------------------------------------------------------------------ each file in a process of its own

# Forks a warm process for each path that it reads, and reports its exit status, its result, and what it printed.
TRIER = """
import json, os, resource, signal, sys, tempfile
from mullama import Context, Model, SamplerParams
from mullama import ContextError, GenerationError, ModelLoadError, SamplingError, TokenizationError

def attempt(path):
    try:
        model = Model.load(path)
        repr(model), model.metadata(), model.chat_template, model.description, model.name, model.architecture
        model.n_params, model.size, model.n_head, model.n_layer, model.n_embd, model.n_vocab, model.token_bos
        try:
            model.detokenize(model.tokenize("Once, é \\U0001f600\\n<s>\\x01"))
            model.detokenize(range(model.n_vocab), special=True)
        except TokenizationError:
            pass
        with Context(model, n_ctx=64, n_threads=1, n_seq_max=2) as context:
            for params in (SamplerParams(seed=1, typical_p=0.7, top_n_sigma=2, repeat_penalty=1.3, dry_multiplier=0.8),
                           SamplerParams.greedy(), SamplerParams(seed=2, mirostat=2)):
                try:
                    context.generate("Once upon a time", 5, params)
                except (TokenizationError, GenerationError, SamplingError):
                    pass
    except (ModelLoadError, ContextError) as e:
        return f"{type(e).__name__}: {e}"
    return "works"

for line in sys.stdin:
    printed, said = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    if (pid := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(printed.fileno(), 2)
        signal.alarm(60)
        code = 1
        try:
            said.write(attempt(line.strip()).encode())
            said.flush()
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    printed.seek(0), said.seek(0)
    print(json.dumps([status, said.read().decode(), printed.read().decode(errors="replace")[-2000:]]), flush=True)
"""


class Trier:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "tried.gguf"
        self.process = subprocess.Popen(
            [sys.executable, "-c", TRIER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, data: bytes) -> str:
        """The result of loading a model with these bytes: "works", or the error's type and message."""
        self.path.write_bytes(data)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{self.path}\n")
        self.process.stdin.flush()
        status, said, printed = json.loads(self.process.stdout.readline())
        assert (status, printed) == (0, ""), (status, said, printed)
        return str(said)

    def close(self) -> None:
        with self.process:
            self.process.communicate()


@pytest.fixture(scope="module")
def trier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trier]:
    trier = Trier(tmp_path_factory.mktemp("bad"))
    yield trier
    trier.close()


# ------------------------------------------------------------------------------ damage

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class Part(NamedTuple):
    kind: str
    name: str
    begin: int
    end: int


def parts_of(data: bytes) -> list[Part]:
    """A GGUF file, field by field, as specified."""
    names = ("magic", 0, 4), ("version", 4, 8), ("n_tensors", 8, 16), ("n_kv", 16, 24)
    parts = [Part("head", *name) for name in names]
    n_tensors, n_kv = struct.unpack_from("<QQ", data, 8)
    at = 24

    def take(kind: str, name: str, size: int) -> int:
        nonlocal at
        parts.append(Part(kind, name, at, at + size))
        at += size
        return int.from_bytes(data[at - size : at], "little")

    def string(kind: str, name: str) -> str:
        size = take(f"length of {kind}", name, 8)
        take(kind, name, size)
        return data[at - size : at].decode()

    for i in range(n_kv):
        key = string("key", f"key {i}")
        type_ = take("type", key, 4)
        n = 1
        if type_ == 9:
            type_ = take("element type", key, 4)
            n = take("count", key, 8)
        for j in range(n):
            name = key if n == 1 else f"{key}[{j}]"
            if type_ == 8:
                string("text", name)
            else:
                take("number" if n == 1 else "element", name, SIZES[type_])
    for i in range(n_tensors):
        name = string("tensor", f"tensor {i}")
        for j in range(take("dimensions", name, 4)):
            take("shape", f"{name}.{j}", 8)
        take("tensor type", name, 4)
        take("offset", name, 8)
    parts.append(Part("data", "data", -(-at // 32) * 32, len(data)))
    return [part for part in parts if part.begin < part.end]


ODD_FLOATS = [float("nan"), float("inf"), float("-inf"), -1.0, -0.0, 0.0, 1e-40, 3e38]
ODD_NUMBERS = [
    *range(10),
    63,
    64,
    65,
    128,
    511,
    512,
    513,
    2**16,
    2**24,
    2**28 + 2,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    -1,
]


def damage(data: bytes, parts: dict[str, list[Part]], draw: Callable[[int], int]) -> tuple[bytes, list[str]]:
    """Change some fields, or truncate the file. `draw(n)` is a number from 0 to n - 1, and makes all choices."""
    broken = bytearray(data)
    what = []
    kinds = sorted(parts) + ["number"] * 5
    for _ in range(1 + draw(8) // 6):
        several = parts[kinds[draw(len(kinds))]]
        part = several[draw(len(several))]
        size = part.end - part.begin
        place = part.begin + draw(size)
        way = draw(10)
        what.append(f"{part.kind} {part.name} {way}@{place - part.begin}")
        if way == 0:
            del broken[place:]
            break
        if part.kind == "data":
            some = min(1 << draw(16), part.end - place)
            broken[place : place + some] = bytes([[0, 0x7C, 0x7F, 0xFF][draw(4)]]) * some
        elif way < 3 and size == 4:
            struct.pack_into("<f", broken, part.begin, ODD_FLOATS[draw(len(ODD_FLOATS))])
        elif way < 7 and size in (1, 2, 4, 8):
            number = ODD_NUMBERS[draw(len(ODD_NUMBERS))] % (1 << 8 * size)
            broken[part.begin : part.end] = number.to_bytes(size, "little")
        elif way < 9:
            broken[place] ^= 1 << draw(8)
        else:
            broken[place] = draw(256)
    return bytes(broken), what


def by_kind(data: bytes) -> dict[str, list[Part]]:
    kinds: dict[str, list[Part]] = {}
    for part in parts_of(data):
        kinds.setdefault(part.kind, []).append(part)
    return kinds


DATA = default_model().read_bytes()
PARTS = by_kind(DATA)


@settings(max_examples=80, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_random_damage_never_ends_the_process(trier: Trier, choices: st.DataObject) -> None:
    broken, what = damage(DATA, PARTS, lambda n: choices.draw(st.integers(0, n - 1)))
    assert trier(broken), what


@pytest.mark.parametrize("kind", sorted(PARTS))
def test_cut_off_within_each_kind_of_field(trier: Trier, kind: str) -> None:
    part = PARTS[kind][-1]
    for end in {part.begin, (part.begin + part.end) // 2, part.end - 1}:
        assert trier(DATA[:end]).startswith("ModelLoadError: ")


def edited(name: str, value: bytes, kind: str = "number") -> bytes:
    (part,) = (part for part in PARTS[kind] if part.name == name)
    assert part.end - part.begin == len(value)
    return DATA[: part.begin] + value + DATA[part.end :]


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def f32(value: float) -> bytes:
    return struct.pack("<f", value)


EPS = "llama.attention.layer_norm_rms_epsilon"
N_KV = "llama.attention.head_count_kv"
TOKENS = "tokenizer.ggml.tokens"
TWIN = next(part for part in PARTS["text"] if part.name.startswith(f"{TOKENS}[") and part.end - part.begin == 1)
ANOTHER = next(part for part in PARTS["text"] if part.name.startswith(f"{TOKENS}[") and part != TWIN
               and part.end - part.begin == 1)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "kind", "says"),
    [
        (EPS, f32(-1), "number", f"{EPS} is -1, and must be from 0 to 1"),
        (EPS, f32(float("nan")), "number", f"{EPS} is NaN"),
        (EPS, f32(float("inf")), "number", f"{EPS} is inf"),
        ("llama.block_count", u32(0), "number", "llama.block_count is 0, and must be from 1 to 512"),
        ("llama.block_count", u32(513), "number", "llama.block_count is 513"),
        (N_KV, u32(2**28 + 2), "number", f"{N_KV} is {2**28 + 2}, and must be a divisor of head_count"),
        (N_KV, u32(3), "number", f"{N_KV} is 3"),
        ("llama.attention.head_count", u32(0), "number", ""),
        ("llama.attention.head_count", u32(2**31), "number", f"llama.attention.head_count is {2**31}"),
        ("llama.embedding_length", u32(0), "number", "llama.embedding_length is 0"),
        ("llama.context_length", u32(2**32 - 1), "number", "llama.context_length is 4294967295"),
        ("llama.rope.dimension_count", u32(63), "number", "llama.rope.dimension_count is 63, and must be even"),
        ("llama.rope.freq_base", f32(float("nan")), "number", "llama.rope.freq_base is NaN"),
        ("llama.vocab_size", u32(2**32 - 1), "number", "llama.vocab_size is 4294967295"),
        ("tokenizer.ggml.model", b"\xffama\xe1", "text", "unknown tokenizer: '\ufffdama\ufffd'"),
        (TWIN.name, DATA[ANOTHER.begin : ANOTHER.end], "text", "and must be unlike all tokens before it"),
        ("n_tensors", b"\xff" * 7 + b"\x7f", "head", ""),
        ("n_kv", b"\xff" * 7 + b"\x7f", "head", ""),
        (f"{TOKENS}", b"\0\0\0\x10\0\0\0\0", "count", ""),
    ],
)  # fmt: skip
def test_what_once_ended_the_process(trier: Trier, name: str, value: bytes, kind: str, says: str) -> None:
    said = trier(edited(name, value, kind))
    assert said.startswith("ModelLoadError: cannot load the model")
    assert says in said


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    """The model loads, and its streams fail one by one; contexts of another model are not affected."""
    path = tmp_path / "nan.gguf"
    (data,) = PARTS["data"]
    path.write_bytes(DATA[: data.begin] + b"\xff" * (data.end - data.begin))
    with Context(Model.load(path), n_ctx=256, n_threads=1) as context:
        for params in (SamplerParams(), SamplerParams.greedy(), SamplerParams(mirostat=1)):
            with pytest.raises(Exception, match="no number for a token") as caught:
                context.generate("Once", 5, params)
            assert type(caught.value).__name__ == "SamplingError"
        assert context.statistics().busy == 0


# ------------------------------------------------------------------------------ what is not a model at all


@pytest.mark.parametrize(
    ("name", "type_", "number", "says"),
    [
        ("missing.gguf", FileNotFoundError, errno.ENOENT, "no such file"),
        ("folder", IsADirectoryError, errno.EISDIR, "it is a directory"),
        ("a-file/model.gguf", ModelLoadError, errno.ENOTDIR, "Not a directory"),
        ("x" * 300, ModelLoadError, errno.ENAMETOOLONG, "name too long"),
        ("empty.gguf", ModelLoadError, None, "the file is empty"),
        ("a-file", ModelLoadError, None, "it begins with b'just', not with GGUF"),
        ("pipe", ModelLoadError, None, "not a regular file"),
        ("magic.gguf", ModelLoadError, None, "failed to read header"),
    ],
)
def test_no_model_at_all(tmp_path: Path, name: str, type_: type[Exception], number: int | None, says: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a-file").write_text("just text")
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "magic.gguf").write_bytes(b"GGUF")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(type_, match=says) as caught:
        Model.load(tmp_path / name)
    assert isinstance(caught.value, ModelLoadError)
    assert (caught.value.errno, caught.value.path) == (number, str(tmp_path / name))
    assert caught.value.hint


def test_a_file_that_this_user_may_not_read(tmp_path: Path) -> None:
    path = tmp_path / "secret.gguf"
    path.write_bytes(DATA[:100])
    path.chmod(0)
    script = (
        "import os, sys; from mullama import Model\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "try: Model.load(sys.argv[1])\n"
        "except PermissionError as e: print(type(e).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ModelPermissionError\n", "")


def main(n: int, file: str) -> None:
    """Try random corruptions, from the command line."""
    data = Path(file).read_bytes()
    kinds, trier, began = by_kind(data), Trier(Path(os.environ.get("TMPDIR", "/tmp"))), time.monotonic()
    first = random.SystemRandom().randrange(1 << 40)
    outcomes: dict[str, int] = {}
    for seed in range(first, first + n):
        broken, what = damage(data, kinds, random.Random(seed).randrange)
        try:
            said = trier(broken).split(":")[0]
        except AssertionError as e:
            said = "CRASH"
            print(seed, what, e, flush=True)
        outcomes[said] = outcomes.get(said, 0) + 1
    trier.close()
    print(outcomes, f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else str(default_model()))
