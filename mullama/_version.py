"""Which mullama this is, and which llama.cpp is in it. Both are compiled in: to ask the installer's records takes 10 ms."""

from . import _core

__all__ = ["__version__", "llama_cpp_version"]

__version__ = _core.version()


def llama_cpp_version() -> str:
    """The build of llama.cpp that is linked in, as upstream tags it, such as ``"b11549"``."""
    return f"b{_core.llama_cpp_build()[0]}"
