"""The public names of mullama, and nothing else."""

import importlib.util as _util
import sys as _sys

if _util.find_spec("mullama._core") is None:
    raise ImportError(
        f"mullama is not compiled for Python {_sys.version_info[0]}.{_sys.version_info[1]}: "
        "its extension mullama._core is missing.\n"
        "Fix it in a checkout with:  make build   (or: python -m pip install -e .)\n"
        "elsewhere with:              python -m pip install --force-reinstall mullama",
        name="mullama._core",
    )

from ._async import AsyncContext, AsyncModel
from ._async_streams import ChatStream, StreamClosedError, TokenStream
from ._chat import ChatOptions, Message, Tool
from ._chat_records import ChatCompletion, ChatDelta, ChatMessage, ToolCall, ToolCallDelta
from ._embeddings import cosine_similarity
from ._merge import merge
from ._model import Lora, Model, default_model
from ._options import ContextOptions, StreamOptions
from ._records import (
    Completion,
    ContextStatistics,
    FinishDetail,
    FinishReason,
    StreamControl,
    StreamStatistics,
    Timings,
    TokenData,
    TokenLogprob,
    Usage,
)
from ._sync import Context
from ._sync_streams import ChatIterator, TokenIterator
from ._version import __version__, llama_cpp_version
from .config import ContextParams, SamplerParams, StreamConfig
from .errors import (
    ChatError,
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
    QueueFullError,
    SamplingError,
    StateError,
    StreamingError,
    StreamTimeoutError,
    TokenizationError,
)
from .llama import CompletionChunk, CompletionOptions, Llama, LlamaParams

__all__ = [
    "AsyncContext",
    "AsyncModel",
    "ChatCompletion",
    "ChatDelta",
    "ChatError",
    "ChatIterator",
    "ChatMessage",
    "ChatOptions",
    "ChatStream",
    "ClosedError",
    "Completion",
    "CompletionChunk",
    "CompletionOptions",
    "Context",
    "ContextError",
    "ContextOptions",
    "ContextParams",
    "ContextStatistics",
    "FinishDetail",
    "FinishReason",
    "ForkError",
    "GenerationError",
    "InvalidParameter",
    "InvalidParameterType",
    "Llama",
    "LlamaParams",
    "Lora",
    "Message",
    "Model",
    "ModelIsADirectoryError",
    "ModelLoadError",
    "ModelNotFoundError",
    "ModelPermissionError",
    "MullamaError",
    "QueueFullError",
    "SamplerParams",
    "SamplingError",
    "StateError",
    "StreamClosedError",
    "StreamConfig",
    "StreamControl",
    "StreamOptions",
    "StreamStatistics",
    "StreamTimeoutError",
    "StreamingError",
    "Timings",
    "TokenData",
    "TokenIterator",
    "TokenLogprob",
    "TokenStream",
    "TokenizationError",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "Usage",
    "__version__",
    "cosine_similarity",
    "default_model",
    "llama_cpp_version",
    "merge",
]
