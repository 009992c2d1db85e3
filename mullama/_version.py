"""Which mullama this is, and which llama.cpp is in it."""

from importlib.metadata import PackageNotFoundError, version

from . import _core

__all__ = ["__version__", "llama_cpp_version"]

try:
    __version__ = version("mullama")
except PackageNotFoundError:  # a checkout that was built but not installed
    __version__ = "0+unknown"


def llama_cpp_version() -> str:
    """The build of llama.cpp that is linked in, as upstream tags it, such as ``"b11549"``."""
    return f"b{_core.llama_cpp_build()[0]}"
