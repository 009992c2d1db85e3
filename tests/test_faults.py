"""Faults in our threads: faulthandler reports them, as in Python's own; other signals are left to the main thread."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SETUP = """
import faulthandler, os, signal, sys, threading, time
from pathlib import Path
from mullama import Context, Model, SamplerParams, StreamConfig
faulthandler.enable()
before = set(os.listdir("/proc/self/task"))
context = Context(Model.load(), n_ctx=512, n_threads=2)
slow = SamplerParams(temperature=2.0, top_k=0, grammar="root ::= c\\nc ::= [a-z] (c (c) | c c)", seed=1)
stream = context.generate_stream("Once", config=StreamConfig(params=slow, timeout_ms=0))
plain = context.generate_stream("Once", config=StreamConfig(timeout_ms=0, stream_delay_ms=10))
def ours():  # the engine's, its helper, and a chooser at least
    return sorted(set(os.listdir("/proc/self/task")) - before, key=int)
while len(ours()) < 3:
    next(plain)
"""

FAULTS = [signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at the kernel's list of threads")


def python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SETUP + script], capture_output=True, text=True, timeout=110, check=False
    )


def test_which_signals_our_threads_take() -> None:
    done = python("""
for thread in ours():
    for _ in range(100):  # one that is just being started blocks everything
        status = Path(f"/proc/self/task/{thread}/status").read_text()
        blocked = next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk"))
        if int(blocked, 16) & 1 << int(signal.SIGSEGV) - 1 == 0:
            break
        time.sleep(0.01)
    print(blocked)
os._exit(0)
""")
    assert done.returncode == 0, done.stderr
    masks = [int(line, 16) for line in done.stdout.split()]
    assert len(masks) >= 3
    for mask in masks:
        blocked = {number for number in signal.valid_signals() if mask & 1 << (number - 1)}
        assert not blocked & set(FAULTS)
        assert {signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1} <= blocked


@pytest.mark.parametrize("which", [0, 1, 2])
def test_faulthandler_reports_a_fault(which: int) -> None:
    done = python(
        f"""
import ctypes
ctypes.CDLL(None).syscall(234, os.getpid(), int(ours()[{which}]), int(signal.SIGSEGV))  # tgkill
time.sleep(60)
"""
        if sys.maxsize > 2**32
        else ""
    )
    assert done.returncode == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in done.stderr
    assert "Current thread" in done.stderr or "Thread 0x" in done.stderr
