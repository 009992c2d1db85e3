"""The default number of compute threads: at most the number of CPUs of the process, in contexts and for embeddings.

The quotas of control groups are in tests/native/default_threads.cpp.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mullama import Context, Model, SamplerParams

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to CPUs")

PROMPT = "Once upon a time"
CHILD = f"""
import os, sys
os.sched_setaffinity(0, {{int(sys.argv[1])}})
import mullama
model = mullama.Model.load()
for threads in (None, 3):
    with mullama.Context(model, n_ctx=256, n_threads=threads) as context:
        print(context.n_threads, context.generate({PROMPT!r}, 16, mullama.SamplerParams.greedy()).tokens)
        before = len(os.listdir("/proc/self/task"))
        context.embed({PROMPT!r})
        print(len(os.listdir("/proc/self/task")) - before)
"""


def test_it_is_what_the_process_may_use(model: Model) -> None:
    with Context(model, n_ctx=256) as context:
        assert 1 <= context.n_threads <= len(os.sched_getaffinity(0))


def test_a_process_bound_to_one_cpu_has_one_thread_and_the_same_tokens(model: Model) -> None:
    with Context(model, n_ctx=256, n_threads=2) as context:
        tokens = context.generate(PROMPT, 16, SamplerParams.greedy()).tokens
    cpu = str(min(os.sched_getaffinity(0)))
    run = subprocess.run([sys.executable, "-c", CHILD, cpu], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [f"1 {tokens}", "0", f"3 {tokens}", "2"]
