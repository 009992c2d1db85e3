"""Passes llama.cpp's log lines to Python's logging, as ``mullama.llama_cpp``.

The lines are stored in C, because they may come from any thread, including the engine's, and must not wait for the GIL.
They are fetched after a load, when a context is made or closed, and when a stream ends.
"""

from __future__ import annotations

import logging

from . import _core

logger = logging.getLogger("mullama.llama_cpp")
logging.getLogger("mullama").addHandler(logging.NullHandler())  # silent unless the application asks for it

_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}


def fetch() -> str:
    """Log what llama.cpp has logged since the last call, and return the last error in it, or an empty string."""
    error = ""
    for level, text in _core.take_log_lines():
        logger.log(_LEVELS.get(level, logging.INFO), "%s", text)
        error = text if level == 4 else error
    return error
