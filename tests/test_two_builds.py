"""mullama beside another build of llama.cpp in one process: neither sees the other's symbols, and both generate."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from mullama import _core, default_model

START = f"MODEL = {str(default_model())!r}\n"

MULLAMA = """
import mullama
completion = mullama.Context(mullama.Model.load(MODEL), n_ctx=256, n_threads=1).generate(
    "Once upon a time", 8, mullama.SamplerParams.greedy(ignore_eos=True))
assert completion.text, completion
print("mullama", len(completion.tokens))
"""

# With all its symbols visible globally, which is the worst that another package can do.
OTHER = """
import os, sys
sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = MODEL
params.n_ctx, params.n_parallel, params.cpuparams.n_threads, params.warmup = 256, 1, 1, False
server = xllamacpp.Server(params)
answer = server.handle_completions(
    {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0, "ignore_eos": True})
assert answer["choices"][0]["text"], answer
print("other", answer["usage"]["completion_tokens"])
"""


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param((OTHER, MULLAMA), id="before"),
        pytest.param((MULLAMA, OTHER), id="after"),
        pytest.param((MULLAMA, OTHER, MULLAMA), id="before and after"),
    ],
)
def test_another_build_of_llama_cpp_in_the_same_process(parts: tuple[str, ...]) -> None:
    pytest.importorskip("xllamacpp", reason="there is no wheel of it for this Python")
    done = subprocess.run(
        [sys.executable, "-c", START + "".join(parts)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, (done.returncode, done.stdout[-500:], done.stderr[-3000:])
    said = [line for line in done.stdout.splitlines() if line.startswith(("mullama ", "other "))]
    assert said == ["mullama 8" if part is MULLAMA else "other 8" for part in parts]


def test_nothing_is_exported_but_the_module() -> None:
    library = ctypes.CDLL(_core.__file__)
    assert hasattr(library, "PyInit__core")
    names = "llama_decode", "llama_log_set", "ggml_init", "ggml_abort", "gguf_init_from_file", "common_log_main"
    assert [name for name in names if hasattr(library, name)] == []
