"""A model: its weights, its vocabulary, and what can be asked of them without a context."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from . import _checks, _core, _log
from .errors import ModelLoadError, TokenizationError, model_load_error

__all__ = ["Model", "default_model"]

StrPath = str | os.PathLike[str]


def default_model() -> Path:
    """The file of the small model that comes with mullama; wherever a path is asked for, none means this one."""
    return Path(__file__).with_name("models") / "default.gguf"


def checked_path(path: StrPath | None) -> Path:
    if path is None:
        return default_model()
    if not isinstance(path, (str, os.PathLike)):
        raise _checks.refuse_type("path", path, "a str or os.PathLike", "None is the model that comes with mullama.")
    text = os.fspath(path)
    if not isinstance(text, str):
        raise _checks.refuse_type("path", path, "a path of type str", "Decode it with os.fsdecode().")
    if not text or "\0" in text:
        raise _checks.refuse("path", path, "a file name without NUL", "None is the model that comes with mullama.")
    return Path(text)


class Model:
    """A GGUF model, loaded with `Model.load`. Any number of contexts and threads may share it.

    It is freed when nothing refers to it any more, contexts included.
    """

    def __init__(self, core: _core.Model, path: Path) -> None:
        self._core = core
        self.path = path

    @classmethod
    def load(
        cls,
        path: StrPath | None = None,
        *,
        n_gpu_layers: int = -1,
        use_mmap: bool = True,
        use_mlock: bool = False,
        vocab_only: bool = False,
        on_progress: Callable[[float], object] | None = None,
    ) -> Model:
        """Load a model from a GGUF file. Blocks; `AsyncModel.load` does not.

        Args:
            path: The file; None is the model that comes with mullama. Of a model in several files, the first.
            n_gpu_layers: How many layers to keep on the GPU, where there is one and this build supports it; -1 is all.
            use_mmap: Map the file instead of reading it: faster, and processes share the memory.
            use_mlock: Keep it from being swapped out.
            vocab_only: Only the vocabulary and the metadata, to tokenise with; such a model cannot generate.
            on_progress: Called on this thread with a share from 0.0 to 1.0 while the weights are read. Returning
                False stops the load with a `ModelLoadError`; what it raises stops it too and comes out of here.

        Raises:
            ModelLoadError: The file cannot be read (then also the `FileNotFoundError`, `IsADirectoryError` or
                `PermissionError` that fits), or is not a model that llama.cpp can use.
            InvalidParameter: An argument is of the wrong type or out of range.
        """
        file = checked_path(path)
        layers = _checks.integer(-1, hint="-1 is all of them.")("n_gpu_layers", n_gpu_layers)
        for name, value in (("use_mmap", use_mmap), ("use_mlock", use_mlock), ("vocab_only", vocab_only)):
            _checks.flag(name, value)
        if on_progress is not None and not callable(on_progress):
            raise _checks.refuse_type("on_progress", on_progress, "a function of one float")
        try:
            kind = file.stat().st_mode
            if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
                raise model_load_error(file, "it is no regular file")  # to open a pipe would wait for its other end
            with file.open("rb") as stream:
                magic = stream.read(4)
        except ModelLoadError:
            raise
        except OSError as e:
            raise model_load_error(file, e) from e
        if magic != b"GGUF":
            what = "the file is empty" if not magic else f"it does not begin with GGUF but with {magic!r}"
            raise model_load_error(file, what)
        stopped = False

        def report(fraction: float) -> bool:
            nonlocal stopped
            stopped = on_progress is not None and on_progress(fraction) is False
            return not stopped

        try:
            core = _core.Model(
                os.fsencode(file),
                n_gpu_layers=layers,
                use_mmap=use_mmap,
                use_mlock=use_mlock,
                vocab_only=vocab_only,
                on_progress=None if on_progress is None else report,
            )
        except RuntimeError as e:
            if stopped:
                raise model_load_error(file, "on_progress stopped it", hint="Nothing was kept.") from None
            raise model_load_error(file, str(e) or None) from None
        finally:
            _log.fetch()
        return cls(core, file)

    def __repr__(self) -> str:
        return f"<mullama.Model {self.name!r} of {os.fspath(self.path)!r}>"

    # ------------------------------------------------------------------------------------------ vocabulary

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """The token ids of a text. Lets other threads run meanwhile.

        Args:
            text: Any text that UTF-8 can encode; NUL is not allowed.
            add_special: Begin (and end) as the model was trained to, usually with a BOS token.
            parse_special: Take the names of special tokens in the text for the tokens themselves.

        Raises:
            TokenizationError: The text cannot be encoded, or the model has no vocabulary.
        """
        if not isinstance(text, str):
            raise _checks.refuse_type("text", text, "a str")
        for name, value in (("add_special", add_special), ("parse_special", parse_special)):
            _checks.flag(name, value)
        try:
            data = text.encode()
        except UnicodeEncodeError as e:
            raise TokenizationError(
                f"the text has a lone surrogate, {text[e.start]!r}, at index {e.start}, which UTF-8 cannot encode",
                hint="Remove it, or decode the text with errors='replace' where it comes from.",
            ) from None
        if b"\0" in data:
            raise TokenizationError(f"the text has a NUL character at index {text.index(chr(0))}", hint="Remove it.")
        try:
            return self._core.tokenize(data, add_special, parse_special)
        except RuntimeError as e:
            raise TokenizationError(str(e)) from None

    def detokenize(self, tokens: Iterable[int], *, special: bool = False) -> str:
        """The text that tokens stand for, as a stream of them shows it; invalid bytes become U+FFFD.

        A text that was tokenised with `add_special` comes back as it was: the space that a vocabulary may put before
        the first word is taken off after a BOS token. Elsewhere it stays, because tokens may continue a text.

        Args:
            tokens: Token ids.
            special: Show special tokens by their names; otherwise they show nothing.

        Raises:
            InvalidParameter: An id is out of range.
            TokenizationError: The model has no vocabulary.
        """
        ids = checked_tokens("tokens", tokens, self.n_vocab)
        _checks.flag("special", special)
        try:
            text = self._core.detokenize(ids, special).decode(errors="replace")
        except RuntimeError as e:
            raise TokenizationError(f"cannot turn tokens into text: {e}") from None
        begins = not special and len(ids) > 1 and ids[0] == self.token_bos
        return text[1:] if begins and text.startswith(" ") and self._adds_space else text

    @cached_property
    def _adds_space(self) -> bool:
        return self._core.detokenize(self._core.tokenize(b"a", False, False), False).startswith(b" ")

    def token_is_eog(self, token: int) -> bool:
        """Whether the token ends a generation: end of text, of a turn, or the like."""
        return self._core.is_eog(checked_tokens("token", [token], self.n_vocab)[0])

    # ------------------------------------------------------------------------------------------ facts

    def metadata(self) -> dict[str, str]:
        """The GGUF file's metadata as strings; arrays are left out, as llama.cpp does."""
        return self._core.metadata()

    @property
    def chat_template(self) -> str | None:
        """The model's own chat template, in Jinja, if it has one."""
        return self._core.chat_template()

    @property
    def name(self) -> str:
        """``general.name`` of the metadata, or else the name of the file."""
        return self.metadata().get("general.name", self.path.stem)

    @property
    def architecture(self) -> str:
        """``general.architecture`` of the metadata, such as ``"llama"``."""
        return self.metadata().get("general.architecture", "")

    @property
    def description(self) -> str:
        """Architecture, size and quantisation in llama.cpp's words."""
        return self._core.description

    @property
    def n_ctx_train(self) -> int:
        """Tokens of context that the model was trained with."""
        return self._core.n_ctx_train

    @property
    def n_embd(self) -> int:
        """Width of an embedding."""
        return self._core.n_embd

    @property
    def n_vocab(self) -> int:
        """Number of tokens in the vocabulary."""
        return self._core.n_vocab

    @property
    def n_layer(self) -> int:
        """Number of layers."""
        return self._core.n_layer

    @property
    def n_head(self) -> int:
        """Number of attention heads."""
        return self._core.n_head

    @property
    def n_params(self) -> int:
        """Number of parameters."""
        return self._core.n_params

    @property
    def size(self) -> int:
        """Size of all tensors, in bytes."""
        return self._core.size

    @property
    def token_bos(self) -> int:
        """Id of the token that begins a text; -1 where there is none."""
        return self._core.token_bos

    @property
    def token_eos(self) -> int:
        """Id of the token that ends a text; -1 where there is none."""
        return self._core.token_eos


def checked_tokens(name: str, tokens: Iterable[Any], n_vocab: int) -> list[int]:
    """Token ids as plain integers in range."""
    if isinstance(tokens, (str, bytes)):
        raise _checks.refuse_type(name, tokens, "an iterable of token ids", "Use Model.tokenize() on text.")
    try:
        items = list(tokens)
    except TypeError:
        raise _checks.refuse_type(name, tokens, "an iterable of token ids") from None
    check = _checks.integer(0, n_vocab - 1, hint="It is no token of this model's vocabulary.")
    return [check(name, item) for item in items]
