"""The examples of the documentation run with the bundled model, and those of the guides also with real weights.

All Python blocks of a page run from top to bottom in one fresh interpreter, in a folder where ``model.gguf`` is the model,
with warnings as errors. A block that awaits outside a function runs inside an event loop; it and every plain
``anyio.run`` use the backend of the test, so each page is tested under asyncio and under trio. Real weights are slower: there
a page runs under one of the two, and what it generates is shortened to `ENOUGH` tokens, unless its length matters.
"""

from __future__ import annotations

import ast
import functools
import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import CodeType
from typing import Any

import anyio
import gguf
import numpy as np
import pytest
from test_docs import PAGES, blocks, name_of

import mullama

GUIDES = [page for page in PAGES if page.parent.name == "guides"]
TIME_LIMIT = 110  # seconds per page; on an idle machine a page takes a few
ENOUGH = 30  # tokens per generation with real weights

both = pytest.mark.parametrize("backend", ["asyncio", "trio"])


class Shorter(ast.NodeTransformer):
    """Lower an example's `max_tokens`, given by name or as the second argument of a call that generates.

    Calls with a grammar or a schema, whose text must be complete, or with a minimum length are not changed.
    """

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if {k.arg for k in ast.walk(node) if isinstance(k, ast.keyword)} & {"grammar", "json_schema", "min_tokens"}:
            return node
        self.generic_visit(node)
        given = [keyword.value for keyword in node.keywords if keyword.arg == "max_tokens"]
        if isinstance(node.func, ast.Attribute) and node.func.attr.startswith(("generate", "chat", "open_stream")):
            given += node.args[1:2]
        for value in given:
            if isinstance(value, ast.Constant) and isinstance(value.value, int):
                value.value = min(value.value, ENOUGH)
        return node


def run_page(page: Path, backend: str, shorter: bool) -> None:
    """The body of the subprocess of `run_python`."""
    anyio.run = functools.partial(anyio.run, backend=backend)  # type: ignore[assignment]
    names: dict[str, Any] = {"__name__": "__main__"}
    for line, source in blocks(page, "python"):
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        # Preceded by empty lines, so that a traceback shows the line number of the page.
        tree = ast.parse("\n" * line + source, str(page))
        code = compile(Shorter().visit(tree) if shorter else tree, str(page), "exec", flags=flags, dont_inherit=True)
        if code.co_flags & inspect.CO_COROUTINE:
            anyio.run(functools.partial(_await, code, names))
        else:
            exec(code, names)


async def _await(code: CodeType, names: dict[str, Any]) -> None:
    await eval(code, names)


def make_adapter(file: Path, model: mullama.Model) -> None:
    """A random LoRA adapter for a model."""
    numbers = np.random.default_rng(0)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 1.0)
    for end in ("a", "b"):
        shape = (1, model.n_embd) if end == "a" else (model.n_embd, 1)
        tensor = numbers.normal(0, 0.3, shape).astype(np.float32)
        writer.add_tensor(f"blk.0.attn_q.weight.lora_{end}", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def run_examples(page: Path, backend: str, folder: Path, model: mullama.Model, *args: str) -> None:
    if '"adapter.gguf"' in page.read_text("utf-8"):
        make_adapter(folder / "adapter.gguf", model)
    run_python(folder, __file__, str(page), backend, *args, model=model.path)


def run_python(folder: Path, *args: str, model: Path | None = None) -> str:
    (folder / "model.gguf").symlink_to(model or mullama.default_model())
    done = subprocess.run(
        [sys.executable, "-W", "error", *args],
        cwd=folder,
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},  # several times faster while other tests run
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIME_LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@both
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_examples_run(page: Path, backend: str, model: mullama.Model, tmp_path: Path) -> None:
    run_examples(page, backend, tmp_path, model)


@pytest.mark.weights
@pytest.mark.parametrize(
    ("page", "backend"),
    [pytest.param(page, ("asyncio", "trio")[i % 2], id=page.stem) for i, page in enumerate(GUIDES)],
)
def test_guides_run_on_real_weights(page: Path, backend: str, smollm2: mullama.Model, tmp_path: Path) -> None:
    run_examples(page, backend, tmp_path, smollm2, "shorter")


if __name__ == "__main__":
    run_page(Path(sys.argv[1]), sys.argv[2], shorter=sys.argv[3:] == ["shorter"])
