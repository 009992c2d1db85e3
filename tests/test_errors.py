"""What every error type guarantees: its code, its base classes, its message, and that it can be pickled."""

from __future__ import annotations

import copy
import errno
import os
import pathlib
import pickle
from typing import Any

import pytest

from mullama import Completion, Timings, Usage, errors
from mullama.errors import (
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
    model_load_error,
)

CODES: dict[type[MullamaError], str] = {
    MullamaError: "MULLAMA_ERROR",
    ModelLoadError: "MODEL_LOAD_ERROR",
    ModelNotFoundError: "MODEL_LOAD_ERROR",
    ModelIsADirectoryError: "MODEL_LOAD_ERROR",
    ModelPermissionError: "MODEL_LOAD_ERROR",
    ContextError: "CONTEXT_ERROR",
    ChatError: "CHAT_ERROR",
    StateError: "STATE_ERROR",
    ForkError: "FORKED",
    QueueFullError: "QUEUE_FULL",
    TokenizationError: "TOKENIZATION_ERROR",
    SamplingError: "SAMPLING_ERROR",
    GenerationError: "GENERATION_ERROR",
    StreamingError: "STREAMING_ERROR",
    StreamTimeoutError: "STREAM_TIMEOUT",
    ClosedError: "CLOSED",
    InvalidParameter: "INVALID_PARAMETER",
    InvalidParameterType: "INVALID_PARAMETER",
}

RELATIVES: dict[type[MullamaError], tuple[type[BaseException], ...]] = {
    ModelLoadError: (OSError,),
    ModelNotFoundError: (ModelLoadError, FileNotFoundError),
    ModelIsADirectoryError: (ModelLoadError, IsADirectoryError),
    ModelPermissionError: (ModelLoadError, PermissionError),
    ForkError: (ContextError,),
    QueueFullError: (ContextError,),
    StreamTimeoutError: (StreamingError, TimeoutError),
    InvalidParameter: (ValueError,),
    InvalidParameterType: (InvalidParameter, ValueError, TypeError),
}

every_class = pytest.mark.parametrize("cls", CODES, ids=lambda cls: cls.__name__)
# Three ways to copy an error, which must keep its message; pickle with each protocol that supports exceptions.
COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle{n}": (lambda e, n=n: pickle.loads(pickle.dumps(e, n))) for n in range(pickle.HIGHEST_PROTOCOL + 1)},
}
every_copy = pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)


def test_the_table_above_is_complete() -> None:
    exported = {getattr(errors, name) for name in errors.__all__}
    assert {cls for cls in exported if isinstance(cls, type)} == set(CODES)


@every_class
def test_code_and_relatives(cls: type[MullamaError]) -> None:
    error = cls("it broke")
    assert error.code == cls.code == CODES[cls]
    assert isinstance(error, (MullamaError, *RELATIVES.get(cls, ())))
    assert all(isinstance(error, relative) for relative in RELATIVES.get(cls, ()))


@every_class
def test_message_and_hint(cls: type[MullamaError]) -> None:
    plain, hinted = cls("it broke"), cls("it broke", hint="Fix it.")
    assert (plain.message, plain.hint, str(plain)) == ("it broke", None, "it broke")
    assert (hinted.message, hinted.hint, str(hinted)) == ("it broke", "Fix it.", "it broke. Fix it.")
    assert str(cls("it broke!", hint="Fix it.")) == "it broke! Fix it."
    assert plain.args == ("it broke",)
    assert repr(plain) == f"{cls.__name__}('it broke')"


@every_class
def test_code_of_one_error_does_not_leak_into_the_class(cls: type[MullamaError]) -> None:
    assert cls("too late", code="TOO_LATE").code == "TOO_LATE"
    assert cls("again").code == CODES[cls]


@every_class
@every_copy
def test_copies_say_the_same(cls: type[MullamaError], duplicate: Any) -> None:
    error = cls("it broke", hint="Fix it.", code="SPECIAL")
    if hasattr(error, "add_note"):
        error.add_note("seen in passing")
    other = duplicate(error)
    assert type(other) is cls
    assert other is not error
    assert vars(other) == vars(error)
    assert (other.code, str(other), other.args) == ("SPECIAL", str(error), error.args)


@every_class
@every_copy
def test_copies_keep_the_completion(cls: type[MullamaError], duplicate: Any) -> None:
    error = cls("it broke")
    assert error.completion is None
    error.completion = Completion("Once upon", (1, 2), "error", None, Usage(3, 2, 0), Timings(1.0, 2.0, 3.0, 4.0))
    assert duplicate(error).completion == error.completion
    assert cls("again").completion is None


@every_copy
def test_copies_keep_what_the_system_said(duplicate: Any) -> None:
    other = duplicate(ModelLoadError("it broke", path="a.gguf", errno=errno.EIO))
    assert (other.path, other.filename, other.errno) == ("a.gguf", "a.gguf", errno.EIO)
    assert other.strerror == os.strerror(errno.EIO)


@every_copy
def test_copies_keep_parameter_and_value(duplicate: Any) -> None:
    other = duplicate(InvalidParameter("no", parameter="top_k", value=[1, 2]))
    assert (other.parameter, other.value) == ("top_k", [1, 2])


def test_a_value_that_cannot_be_pickled_does_not_keep_the_error_here() -> None:
    value = (n for n in ())
    error = InvalidParameterType("no", parameter="top_k", value=value)
    assert error.value is value
    other = pickle.loads(pickle.dumps(error))
    assert (other.parameter, other.value) == ("top_k", "<generator object>")


@pytest.mark.parametrize(
    ("number", "cls"),
    [
        (errno.ENOENT, ModelNotFoundError),
        (errno.EISDIR, ModelIsADirectoryError),
        (errno.EACCES, ModelPermissionError),
        (errno.EPERM, ModelPermissionError),
        (errno.EIO, ModelLoadError),
        (errno.ENOTDIR, ModelLoadError),
        (errno.ENAMETOOLONG, ModelLoadError),
    ],
)
@pytest.mark.parametrize("whole", [True, False], ids=["OSError", "errno"])
def test_model_load_error_from_the_system(number: int, cls: type[ModelLoadError], whole: bool) -> None:
    error = model_load_error("dir/m.gguf", OSError(number, "?") if whole else number)
    assert type(error) is cls
    assert (error.errno, error.strerror) == (number, os.strerror(number))
    assert error.path == error.filename == "dir/m.gguf"
    assert "'dir/m.gguf'" in str(error)
    assert error.hint
    assert error.hint in str(error)


def test_model_load_error_from_a_reason() -> None:
    error = model_load_error("m.gguf", "not a GGUF file", hint="Convert it.")
    assert type(error) is ModelLoadError
    assert (error.errno, error.strerror, error.path) == (None, "not a GGUF file", "m.gguf")
    assert str(error) == "cannot load the model 'm.gguf': not a GGUF file. Convert it."


def test_model_load_error_when_nothing_is_known() -> None:
    error = model_load_error("m.gguf")
    assert type(error) is ModelLoadError
    assert error.errno is None
    assert error.hint


def test_an_os_error_without_a_number_is_a_reason() -> None:
    error = model_load_error("m.gguf", OSError("the tape is torn"))
    assert "the tape is torn" in str(error)
    assert error.errno is None


@pytest.mark.parametrize("path", [pathlib.Path("x", "m.gguf"), b"x/m.gguf", "x/m.gguf"], ids=["Path", "bytes", "str"])
def test_paths_in_every_form(path: Any) -> None:
    assert model_load_error(path, errno.ENOENT).path == str(pathlib.Path("x", "m.gguf"))


def test_classes_know_their_errno() -> None:
    assert ModelNotFoundError("gone", path="m").errno == errno.ENOENT
    assert ModelIsADirectoryError("dir", path="m").errno == errno.EISDIR
    assert ModelPermissionError("no", path="m").errno == errno.EACCES
    assert ModelLoadError("bad", path="m").errno is None


def test_what_users_write_in_except_clauses(tmp_path: pathlib.Path) -> None:
    missing = tmp_path / "missing.gguf"
    with pytest.raises(OSError, match="missing") as system:
        missing.open("rb")
    with pytest.raises(FileNotFoundError) as caught:
        raise model_load_error(missing, system.value) from system.value
    assert caught.value.filename == str(missing)
