"""What can go wrong, as exception types: each has a stable code, says what happened and what to do about it.

Strategy: an error of ours is also the built-in error that a Python programmer would expect there (a missing
file is a `FileNotFoundError`, a bad value a `ValueError`), so nobody has to learn new names to catch it.
Cancellation is not an error of ours: anyio's passes through untouched.
"""

from __future__ import annotations

import errno as _errno
import os
import pickle
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from ._records import ChatCompletion, Completion

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
    "SamplingError",
    "StateError",
    "StreamTimeoutError",
    "StreamingError",
    "TokenizationError",
    "model_load_error",
]


class MullamaError(Exception):
    """The base of every error that mullama raises itself.

    Args:
        message: What happened, with the value that caused it.
        hint: What to do about it, if there is something to say. `str(error)` is the message and the hint.
        code: A stable word for programs. Each class has its own; one error may carry a narrower one.

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
        """The keywords that build this error again; what a subclass adds to `__init__` it adds here."""
        return {"hint": self.hint, "code": self.code}

    def __reduce__(self) -> tuple[Any, ...]:
        keywords = self._keywords()
        # What others hung on the error (`add_note`) travels too; what `__init__` sets, it sets again.
        extra = {k: v for k, v in self.__dict__.items() if k not in keywords and k != "message"}
        return _rebuild, (type(self), self.message, keywords), extra or None


def _rebuild(cls: type[MullamaError], message: str, keywords: dict[str, Any]) -> MullamaError:
    return cls(message, **keywords)


class ModelLoadError(MullamaError, OSError):
    """The model file could not be opened, or is not a model that can be used.

    `path` (also `filename`) is the file. `errno` is the system's number where the system refused, and `None`
    where the file was read but its contents are not right; `strerror` says the same in words.
    """

    code = "MODEL_LOAD_ERROR"
    path: str | None
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
    """There is no file at the path that was given for the model."""

    _default_errno = _errno.ENOENT


class ModelIsADirectoryError(ModelLoadError, IsADirectoryError):
    """The path that was given for the model is a directory."""

    _default_errno = _errno.EISDIR


class ModelPermissionError(ModelLoadError, PermissionError):
    """The model file exists, but this user may not read it."""

    _default_errno = _errno.EACCES


class ContextError(MullamaError):
    """A context could not be made, or cannot do what was asked of it."""

    code = "CONTEXT_ERROR"


class ForkError(ContextError):
    """A model or context was used in a child process after `fork`; its engine lives in the parent only."""

    code = "FORKED"


class TokenizationError(MullamaError):
    """Text could not be turned into tokens, or tokens into text."""

    code = "TOKENIZATION_ERROR"


class SamplingError(MullamaError):
    """A sampler could not be built, or found no token to choose."""

    code = "SAMPLING_ERROR"


class ChatError(MullamaError):
    """A chat template could not render the messages, or an answer could not be parsed."""

    code = "CHAT_ERROR"


class StateError(MullamaError):
    """A saved state cannot be used: it is cut off, is none of ours, or belongs to another model or build."""

    code = "STATE_ERROR"


class GenerationError(MullamaError):
    """The model failed while it was generating; the tokens before it have been delivered."""

    code = "GENERATION_ERROR"


class StreamingError(MullamaError):
    """A stream cannot do what was asked of it: it has no completion yet (code `STREAM_RUNNING`), or another thread is reading
    it (`STREAM_BUSY`). Its subclass `StreamTimeoutError` means that it ran out of time."""

    code = "STREAMING_ERROR"


class StreamTimeoutError(StreamingError, TimeoutError):
    """A stream reached its `timeout_ms`. The tokens before that have been delivered, and are in `completion`."""

    code = "STREAM_TIMEOUT"


class ClosedError(MullamaError):
    """A context or stream was used after it had been closed."""

    code = "CLOSED"


class InvalidParameter(MullamaError, ValueError):
    """A parameter has a value that cannot be used: `parameter` is its name, `value` what was given."""

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
        try:  # A user can have passed anything; the error must reach another process all the same.
            pickle.dumps(value)
        except Exception:  # noqa: BLE001
            value = f"<{type(value).__name__} object>"
        return super()._keywords() | {"parameter": self.parameter, "value": value}


class InvalidParameterType(InvalidParameter, TypeError):
    """A parameter has a value of a type that cannot be used there."""


_BY_ERRNO: dict[int | None, tuple[type[ModelLoadError], str, str]] = {
    _errno.ENOENT: (
        ModelNotFoundError,
        "no such file",
        "Check the path, or leave it out to use the model that comes with mullama.",
    ),
    _errno.EISDIR: (ModelIsADirectoryError, "it is a directory", "Name the .gguf file inside it."),
    _errno.EACCES: (
        ModelPermissionError,
        "permission denied",
        "Make the file readable for this user, and its directories searchable.",
    ),
}
_BY_ERRNO[_errno.EPERM] = _BY_ERRNO[_errno.EACCES]


def model_load_error(
    path: str | bytes | os.PathLike[Any], cause: OSError | int | str | None = None, *, hint: str | None = None
) -> ModelLoadError:
    """The error for a model that did not load, of the type that fits.

    Args:
        path: The model file.
        cause: The `OSError` or errno with which the system refused it, or the reason in words
            ("not a GGUF file"). `None` where nothing more is known.
        hint: What to do about it, where there is something better to say than usual.
    """
    name = os.fsdecode(path)
    number = cause if isinstance(cause, int) else cause.errno if isinstance(cause, OSError) else None
    if number is not None:
        unknown = (ModelLoadError, os.strerror(number), "Check that the path names a readable .gguf file.")
        cls, reason, usual = _BY_ERRNO.get(number, unknown)
    else:
        cls, reason = ModelLoadError, str(cause or "llama.cpp could not read it")
        usual = "Check that it is a whole GGUF file that llama.cpp knows; if in doubt, fetch it again."
    strerror = reason if number is None else None
    return cls(
        f"cannot load the model {name!r}: {reason}",
        path=name,
        errno=number,
        strerror=strerror,
        hint=usual if hint is None else hint,
    )
