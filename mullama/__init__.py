"""The public names of mullama, and nothing else."""

try:
    from . import _core  # noqa: F401
except ImportError as e:
    if e.name != "mullama._core" and "_core" not in str(e):
        raise
    raise ImportError(
        "mullama is not compiled here: its extension mullama._core is missing. "
        "In a checkout run `make build`; elsewhere install it with `pip install .` or `pip install mullama`."
    ) from e

from ._async import AsyncContext, AsyncModel, StreamClosedError, TokenStream
from ._model import Model, default_model
from ._records import (
    Completion,
    ContextStatistics,
    StreamControl,
    StreamStatistics,
    Timings,
    TokenData,
    Usage,
)
from ._sync import Context, TokenIterator
from ._version import __version__, llama_cpp_version
from .config import ContextParams, SamplerParams, StreamConfig
from .errors import (
    ClosedError,
    ContextError,
    ForkError,
    GenerationError,
    InvalidParameter,
    InvalidParameterType,
    ModelIsADirectoryError,
    ModelLoadError,
    ModelNotFoundError,
    ModelPermissionError,
    MullamaError,
    SamplingError,
    StreamingError,
    TokenizationError,
)

__all__ = [
    "AsyncContext",
    "AsyncModel",
    "ClosedError",
    "Completion",
    "Context",
    "ContextError",
    "ContextParams",
    "ContextStatistics",
    "ForkError",
    "GenerationError",
    "InvalidParameter",
    "InvalidParameterType",
    "Model",
    "ModelIsADirectoryError",
    "ModelLoadError",
    "ModelNotFoundError",
    "ModelPermissionError",
    "MullamaError",
    "SamplerParams",
    "SamplingError",
    "StreamClosedError",
    "StreamConfig",
    "StreamControl",
    "StreamStatistics",
    "StreamingError",
    "Timings",
    "TokenData",
    "TokenIterator",
    "TokenStream",
    "TokenizationError",
    "Usage",
    "__version__",
    "default_model",
    "llama_cpp_version",
]
