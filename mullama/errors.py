"""What can go wrong, as exception types: each has a stable code, says what happened and what to do about it.

Strategy: an error of mullama is also the built-in error that a Python programmer would expect there (a missing file is a
`FileNotFoundError`, a bad value a `ValueError`, a timeout a `TimeoutError`), so nobody has to learn new names to catch it.
Cancellation is not an error: anyio's passes through untouched.
"""

from __future__ import annotations

import errno as _errno
import os
import pickle
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from ._chat_records import ChatCompletion
    from ._records import Completion

__all__ = [
    "ChatError",
    "ClosedError",
    "ContextError",
    "ForkError",
    "GenerationError",
    "InvalidParameter",
    "InvalidParameterType",
    "ModelIsADirectoryError",
    "ModelLoadError",
    "ModelNotFoundError",
    "ModelPermissionError",
    "MullamaError",
    "QueueFullError",
    "SamplingError",
    "StateError",
    "StreamTimeoutError",
    "StreamingError",
    "TokenizationError",
    "model_load_error",
]


class MullamaError(Exception):
    """The base class of every error that mullama raises itself. `str(error)` is its message and its hint.

    Args:
        message: What is wrong, with the value that caused it.
        hint: What to do about it; None where there is nothing to say.
        code: A stable word for programs. Each class has its own, and an error may carry a narrower one.

    Attributes:
        completion: What had been generated when a stream failed, so that no text is lost: a `ChatCompletion` in a chat, a
            `Completion` elsewhere. None where nothing was being generated.
    """

    code: str = "MULLAMA_ERROR"
    message: str
    hint: str | None
    completion: Completion | ChatCompletion | None = None

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        if not self.hint:
            return self.message
        stop = "" if self.message.endswith((".", "!", "?", ":")) else "."
        return f"{self.message}{stop} {self.hint}"

    def _keywords(self) -> dict[str, Any]:
        """The keywords that make this error again; a subclass adds here what it adds to `__init__`."""
        return {"hint": self.hint, "code": self.code}

    def __reduce__(self) -> tuple[Any, ...]:
        keywords = self._keywords()
        # What was added to the error later (a note, a completion) travels too; `__init__` sets the rest again.
        extra = {k: v for k, v in self.__dict__.items() if k not in keywords and k != "message"}
        return _rebuild, (type(self), self.message, keywords), extra or None


def _rebuild(cls: type[MullamaError], message: str, keywords: dict[str, Any]) -> MullamaError:
    return cls(message, **keywords)


class ModelLoadError(MullamaError, OSError):
    """The model file cannot be read, or is not a model that can be used.

    Attributes:
        path: The file; also `filename`, as in every `OSError`.
        errno: The system's error number. None where the system read the file and its contents are wrong.
        strerror: The reason in words.
    """

    code = "MODEL_LOAD_ERROR"
    path: str | None
    filename: Any
    errno: int | None
    strerror: str | None
    _default_errno: ClassVar[int | None] = None

    def __init__(
        self,
        message: str,
        *,
        path: str | bytes | os.PathLike[Any] | None = None,
        errno: int | None = None,
        strerror: str | None = None,
        hint: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.path = self.filename = None if path is None else os.fsdecode(path)
        self.errno = self._default_errno if errno is None else errno
        if strerror is None:
            strerror = message if self.errno is None else os.strerror(self.errno)
        self.strerror = strerror

    def _keywords(self) -> dict[str, Any]:
        own = {"path": self.path, "errno": self.errno, "strerror": self.strerror}
        return super()._keywords() | own


class ModelNotFoundError(ModelLoadError, FileNotFoundError):
    """The model file does not exist."""

    _default_errno = _errno.ENOENT


class ModelIsADirectoryError(ModelLoadError, IsADirectoryError):
    """The path of the model is a directory."""

    _default_errno = _errno.EISDIR


class ModelPermissionError(ModelLoadError, PermissionError):
    """The model file exists, and this user is not allowed to read it."""

    _default_errno = _errno.EACCES


class ContextError(MullamaError):
    """A context cannot be made, or cannot do what was asked of it: its model cannot generate, or the prompt is too long."""

    code = "CONTEXT_ERROR"


class ForkError(ContextError):
    """A model or context was used in a child process after `fork`. Its engine runs in the parent process only."""

    code = "FORKED"


class QueueFullError(ContextError):
    """All slots are taken, and as many requests wait for one as the context's `max_queue` allows: `length` of them."""

    code = "QUEUE_FULL"
    length: int

    def __init__(self, message: str, *, length: int = 0, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(message, hint=hint, code=code)
        self.length = length

    def _keywords(self) -> dict[str, Any]:
        return super()._keywords() | {"length": self.length}


class TokenizationError(MullamaError):
    """Text cannot be turned into tokens, or tokens into text."""

    code = "TOKENIZATION_ERROR"


class SamplingError(MullamaError):
    """A sampler cannot be built, or finds no token that it may choose."""

    code = "SAMPLING_ERROR"


class ChatError(MullamaError):
    """A chat template cannot render the messages, or the model's answer cannot be parsed."""

    code = "CHAT_ERROR"


class StateError(MullamaError):
    """A saved state cannot be used: it is truncated or damaged, was not written by mullama, or belongs to another model,
    context or build of llama.cpp."""

    code = "STATE_ERROR"


class GenerationError(MullamaError):
    """The model failed while it was generating. The tokens before that have been delivered, and are in `completion`."""

    code = "GENERATION_ERROR"


class StreamingError(MullamaError):
    """A stream cannot do what was asked of it: it has no completion yet (code `STREAM_RUNNING`), or another thread is reading
    it (`STREAM_BUSY`). Its subclass `StreamTimeoutError` means that it ran out of time."""

    code = "STREAMING_ERROR"


class StreamTimeoutError(StreamingError, TimeoutError):
    """A stream reached its `timeout_ms`. The tokens before that have been delivered, and are in `completion`."""

    code = "STREAM_TIMEOUT"


class ClosedError(MullamaError):
    """A context or stream was closed, and is used, read or waited for."""

    code = "CLOSED"


class InvalidParameter(MullamaError, ValueError):
    """A parameter has a value that cannot be used.

    Attributes:
        parameter: The name of the parameter.
        value: The value that was given for it.
    """

    code = "INVALID_PARAMETER"
    parameter: str | None
    value: Any

    def __init__(
        self,
        message: str,
        *,
        parameter: str | None = None,
        value: Any = None,
        hint: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.parameter = parameter
        self.value = value

    def _keywords(self) -> dict[str, Any]:
        value = self.value
        try:  # a user may have passed anything, and the error must reach another process all the same
            pickle.dumps(value)
        except Exception:  # noqa: BLE001
            value = f"<{type(value).__name__} object>"
        return super()._keywords() | {"parameter": self.parameter, "value": value}


class InvalidParameterType(InvalidParameter, TypeError):
    """A parameter has a value of the wrong type, or there is no such parameter."""


_BY_ERRNO: dict[int | None, tuple[type[ModelLoadError], str, str]] = {
    _errno.ENOENT: (
        ModelNotFoundError,
        "no such file",
        "Check the path, or leave it out to use the model that comes with mullama.",
    ),
    _errno.EISDIR: (ModelIsADirectoryError, "it is a directory", "Give the path of the .gguf file in it."),
    _errno.EACCES: (
        ModelPermissionError,
        "permission denied",
        "Make the file readable and its directories searchable for this user.",
    ),
}
_BY_ERRNO[_errno.EPERM] = _BY_ERRNO[_errno.EACCES]


def model_load_error(
    path: str | bytes | os.PathLike[Any], cause: OSError | int | str | None = None, *, hint: str | None = None
) -> ModelLoadError:
    """The error for a model that did not load, of the type that fits.

    Args:
        path: The model file.
        cause: The system's `OSError` or error number, or the reason in words ("not a GGUF file"). None where nothing more is
            known.
        hint: What to do about it; None is what usually helps.
    """
    name = os.fsdecode(path)
    number = cause if isinstance(cause, int) else cause.errno if isinstance(cause, OSError) else None
    if number is not None:
        unknown = (ModelLoadError, os.strerror(number), "Check that the path names a readable .gguf file.")
        cls, reason, usual = _BY_ERRNO.get(number, unknown)
    else:
        cls, reason = ModelLoadError, str(cause or "llama.cpp could not read it")
        usual = "Check that it is a complete GGUF file of a kind that llama.cpp supports, or download it again."
    strerror = reason if number is None else None
    return cls(
        f"cannot load the model {name!r}: {reason}",
        path=name,
        errno=number,
        strerror=strerror,
        hint=usual if hint is None else hint,
    )
