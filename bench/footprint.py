"""Measures the import time, and how much more memory a process needs than a C++ program.

Import: the time of ``import mullama`` in a fresh interpreter, with files in the page cache, compared with that of
``import anyio, trio``. Memory: the peak resident memory of a process that loads the 134 M model and reads one stream of
64 tokens, minus that of the plain loop (`c_loop.cpp`), which does the same; it includes the interpreter and the libraries.
"""

from __future__ import annotations

import os
import subprocess
import sys

from one_stream import loop_command
from turns import ROOT, SAMPLING, Case, Figures, Question, Row, Settings, Side, main, prompt

TOKENS, N_CTX = 64, 512
READ = """
import sys
import anyio
from mullama import AsyncModel, ContextParams, SamplerParams, StreamConfig
async def main(path, threads):
    context = ContextParams(n_ctx={n_ctx}, n_seq_max=1, n_threads=threads)
    config = StreamConfig(max_tokens={tokens}, timeout_ms=0, params=SamplerParams(ignore_eos=True, **{sampling}))
    async with await AsyncModel.load(path, context=context) as model:
        async for token in model.generate_stream({prompt}, config):
            pass
anyio.run(main, sys.argv[1], int(sys.argv[2]))
"""


def import_time(statement: str) -> Figures:
    """The minimum over five fresh interpreters, after one that fills the page cache."""
    code = f"import time; began = time.perf_counter(); {statement}; print(time.perf_counter() - began)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(6)
    ]
    return {"import_ms": 1e3 * min(times[1:])}


def most_resident(command: list[str]) -> Figures:
    """The peak resident memory of a process, as the kernel reports it when the process has ended."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return {"resident_mb": usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)}


def stream(settings: Settings) -> Figures:
    code = READ.format(n_ctx=N_CTX, tokens=TOKENS, sampling=SAMPLING, prompt=prompt(4))
    own = most_resident([sys.executable, "-c", code, settings["model"], str(settings["threads"])])
    loop = most_resident(loop_command(settings["model"], TOKENS, settings["threads"], repeat=1))
    return {"above_mb": own["resident_mb"] - loop["resident_mb"], **own}


QUESTION = Question(
    file=__file__,
    title="Footprint",
    about=__doc__,
    sides={
        "import anyio, trio": Side(lambda _: import_time("import anyio, trio")),
        "mullama": Side(lambda settings: import_time("import mullama") | stream(settings)),
    },
    cases=[
        Case(
            {"model": "mid"},
            [
                Row(label="import mullama", side="mullama", figure="import_ms", unit="ms", reach=150, less=True),
                Row(
                    label="memory above the C++ program's",
                    side="mullama",
                    figure="above_mb",
                    unit="MB",
                    reach=25,
                    less=True,
                ),
                Row(label="total memory", side="mullama", figure="resident_mb", unit="MB", less=True),
                Row(
                    label="import mullama, compared with anyio and trio",
                    side="mullama",
                    figure="import_ms",
                    unit="ms",
                    reference="import anyio, trio",
                    less=True,
                ),
            ],
        )
    ],
)

if __name__ == "__main__":
    main(QUESTION)
