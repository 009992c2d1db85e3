"""Files that are not a LoRA adapter for the model: each raises ModelLoadError, and none aborts the process, then or later."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_files import adapter, encoder, shapes

from mullama import (
    Context,
    InvalidParameterType,
    Model,
    ModelIsADirectoryError,
    ModelLoadError,
    ModelNotFoundError,
    SamplerParams,
)

PROMPT = "Once upon a time"
GREEDY = SamplerParams.greedy(ignore_eos=True)


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter(tmp_path_factory.mktemp("adapters") / "right.gguf")


def tensors(change: Callable[[str, np.ndarray], np.ndarray | None]) -> dict[str, np.ndarray]:
    """The tensors of an adapter of one matrix, changed; None removes one."""
    name = "blk.0.attn_q.weight"
    columns, rows = shapes()[name]
    right = {f"{name}.lora_a": np.ones((4, columns)), f"{name}.lora_b": np.ones((rows, 4))}
    changed = {key: change(key, value) for key, value in right.items()}
    return {key: value for key, value in changed.items() if value is not None}


def only(suffix: str, change: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    return {"tensors": tensors(lambda key, value: change(value) if key.endswith(suffix) else value)}


WRONG: dict[str, dict[str, Any]] = {
    "no type": {"general__type": None},
    "a model's type": {"general__type": "model"},
    "a number for a type": {"general__type": 3},
    "another architecture": {"general__architecture": "gpt2"},
    "an unknown architecture": {"general__architecture": "nonesuch"},
    "no adapter type": {"adapter__type": None},
    "another adapter type": {"adapter__type": "control_vector"},
    "a number for an adapter type": {"adapter__type": 1.0},
    "a text for alpha": {"adapter__lora__alpha": "16"},
    "only lora_a": only("b", lambda _: None),
    "only lora_b": only("a", lambda _: None),
    "other columns": only("a", lambda a: a[:, :-1]),
    "other rows": only("b", lambda b: b[:-1]),
    "ranks that differ": only("a", lambda a: a[:-1]),
    "three dimensions": only("a", lambda a: np.stack([a, a])),
    "three dimensions twice": {"tensors": tensors(lambda _, value: np.stack([value, value]))},
    "one dimension": only("b", lambda b: b[:, 0]),
    "integers": {"dtype": np.int32},
    "64 bits": {"dtype": np.float64},
    "no such tensor": {
        "tensors": {"blk.9.attn_q.weight.lora_a": np.ones((4, 4)), "blk.9.attn_q.weight.lora_b": np.ones((4, 4))}
    },
    "another name": {"tensors": {"blk.0.attn_q.weight.dora": np.ones((4, 4))}},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file(name: str, model: Model, context: Context, tmp_path: Path) -> None:
    path = adapter(tmp_path / "wrong.gguf", **WRONG[name])
    with pytest.raises(ModelLoadError) as caught:
        model.load_lora(path)
    assert caught.value.path == os.fspath(path)
    assert len(context.generate(PROMPT, 3, GREEDY).tokens) == 3


def test_of_the_embedding_that_is_the_output_too(model: Model, tmp_path: Path) -> None:
    """llama.cpp would accept it, and abort the process in the middle of a batch."""
    if "output.weight" in shapes():
        pytest.skip("the bundled model has a matrix for each")
    columns, rows = shapes()["token_embd.weight"]
    pair = {"token_embd.weight.lora_a": np.ones((rows, 4)), "token_embd.weight.lora_b": np.ones((columns, 4))}
    with pytest.raises(ModelLoadError, match="GGML_ASSERT"):
        model.load_lora(adapter(tmp_path / "a.gguf", tensors=pair))


def test_what_is_no_adapter(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no LoRA adapter"):
        model.load_lora(model.path)
    with pytest.raises(ModelLoadError):
        model.load_lora(encoder(tmp_path / "bert.gguf"))
    with pytest.raises(ModelNotFoundError):
        model.load_lora(tmp_path / "none.gguf")
    with pytest.raises(ModelIsADirectoryError):
        model.load_lora(tmp_path)
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ModelLoadError, match="empty"):
        model.load_lora(tmp_path / "empty")
    for wrong in (None, 3, b"a.gguf"):
        with pytest.raises(InvalidParameterType):
            model.load_lora(wrong)  # type: ignore[arg-type]
    with pytest.raises(ModelLoadError):
        Model.load(encoder(tmp_path / "b.gguf")).load_lora(adapter(tmp_path / "a.gguf"))
    with pytest.raises(ModelLoadError):
        Model.load(vocab_only=True).load_lora(adapter(tmp_path / "a.gguf"))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_that_is_cut_off(share: float, model: Model, right: Path, tmp_path: Path) -> None:
    data = right.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelLoadError):
        model.load_lora(tmp_path / "cut.gguf")


FLIP = """
import random, sys
from mullama import *
model, data = Model.load(), open(sys.argv[1], "rb").read()
head = data.rindex(b"lora_b") + 64
with Context(model, n_ctx=256, n_threads=1) as context:
    for seed in range(int(sys.argv[2])):
        print(seed, file=sys.stderr)
        dice, flipped = random.Random(seed), bytearray(data)
        for _ in range(dice.choice([1, 1, 2, 8])):
            flipped[dice.randrange(head)] ^= 1 << dice.randrange(8)
        open(sys.argv[3], "wb").write(flipped)
        try:
            lora = model.load_lora(sys.argv[3])
            context.generate("Once upon a time", config=StreamConfig(max_tokens=2, lora=lora))
        except (ModelLoadError, SamplingError, GenerationError):
            pass
    assert len(context.generate("Once upon a time", 3, SamplerParams.greedy(ignore_eos=True)).tokens) == 3
"""


def test_bits_that_flipped(right: Path, tmp_path: Path) -> None:
    """Corruption of the tensor descriptions gives an error or a working adapter, never a signal."""
    arguments = [sys.executable, "-c", FLIP, right, "400", tmp_path / "flipped.gguf"]
    run = subprocess.run(arguments, capture_output=True, text=True, timeout=110, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
