"""A model: its weights, its vocabulary, and what it can do without a context."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _checks, _core, _log
from ._model_files import check_magic, fingerprint
from .errors import ChatError, InvalidParameterType, TokenizationError, model_load_error

__all__ = ["Lora", "Model", "default_model"]

StrPath = str | os.PathLike[str]

_MAX_TEMPLATES = 16  # parsed templates that a model keeps


def default_model() -> Path:
    """The file of the small model that comes with mullama. Wherever a model's path is expected, None means this file."""
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
    if text.startswith(("~/", f"~{os.sep}")):
        text = os.path.expanduser(text)  # noqa: PTH111  Path.expanduser raises where there is no home
    return Path(text)


class Model:
    """The weights and the vocabulary of a GGUF file; make one with `Model.load`.

    Any number of contexts and threads may share it. It is freed when nothing refers to it any more, contexts included.

    Attributes:
        path: The file it was loaded from.
    """

    path: Path

    if not TYPE_CHECKING:  # type checkers would accept the call

        def __init__(self, *_: object, **__: object) -> None:
            raise InvalidParameterType("Model cannot be called", hint="Use Model.load(path).")

    def _hold(self, core: _core.Model, path: Path, weights: str) -> None:
        self._core = core
        self.path = path
        self._weights = weights  # a fingerprint
        self._templates: OrderedDict[str, _core.Templates] = OrderedDict()  # parsed, by their text

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
            path: The file, or the first file of a split model; None is the model that comes with mullama.
            n_gpu_layers: Number of layers to keep on the GPU, if there is one and this build supports it; -1 is all.
            use_mmap: Map the file instead of reading it: faster, and processes share the memory.
            use_mlock: Prevent the weights from being swapped out.
            vocab_only: Load only the vocabulary and the metadata, for tokenising; such a model cannot generate.
            on_progress: Called in this thread with the fraction loaded, from 0.0 to 1.0. Returning False stops the load
                with a `ModelLoadError`; an exception stops it too, and propagates.

        Raises:
            ModelLoadError: The file cannot be read (then it is also a `FileNotFoundError`, `IsADirectoryError` or
                `PermissionError`), or is not a model that llama.cpp supports.
            InvalidParameter: An argument is of the wrong type or out of range.
            ForkError: The process was forked from one that had loaded a model.
        """
        file = checked_path(path)
        layers = _checks.integer(-1, hint="-1 is all of them.")("n_gpu_layers", n_gpu_layers)
        for name, value in (("use_mmap", use_mmap), ("use_mlock", use_mlock), ("vocab_only", vocab_only)):
            _checks.flag(name, value)
        if on_progress is not None and not callable(on_progress):
            raise _checks.refuse_type("on_progress", on_progress, "a function of one float")
        check_magic(file)
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
                raise model_load_error(file, "on_progress stopped it", hint="Nothing was loaded.") from None
            raise model_load_error(file, str(e) or None) from None
        finally:
            _log.fetch()
        model = cls.__new__(cls)
        model._hold(core, file, "" if vocab_only else fingerprint(file))
        return model

    def __repr__(self) -> str:
        return f"<mullama.Model {self.name!r} of {os.fspath(self.path)!r}>"

    # ------------------------------------------------------------------------------------------ vocabulary

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """The token ids of a text. Other threads run meanwhile.

        Args:
            text: Any text that UTF-8 can encode, without NUL characters.
            add_special: Add the tokens that the model expects at the start and end of a text, usually BOS.
            parse_special: Parse the names of special tokens in the text as these tokens. Prompts that are given as text
                are tokenised with this and `add_special`.

        Raises:
            TokenizationError: The text cannot be encoded, or the model has no vocabulary.
            InvalidParameter: An argument is of the wrong type.
        """
        if not isinstance(text, str):
            raise _checks.refuse_type("text", text, "a str")
        for name, value in (("add_special", add_special), ("parse_special", parse_special)):
            _checks.flag(name, value)
        return self._tokens(text, add_special, parse_special)

    def _tokens(
        self, text: str, add_special: bool, parse_special: bool, pending: _core.Pending | None = None
    ) -> list[int]:
        try:
            data = text.encode()
        except UnicodeEncodeError as e:
            raise TokenizationError(
                f"the text has a lone surrogate, {text[e.start]!r}, at index {e.start}, which UTF-8 cannot encode",
                hint="Remove it, or decode the input with errors='replace'.",
            ) from None
        if b"\0" in data:
            raise TokenizationError(f"the text has a NUL character at index {text.index(chr(0))}", hint="Remove it.")
        try:
            return self._core.tokenize(data, add_special, parse_special, pending)
        except RuntimeError as e:
            raise TokenizationError(str(e)) from None

    def detokenize(self, tokens: Iterable[int], *, special: bool = False) -> str:
        """The text of tokens, as a stream yields it; invalid bytes become U+FFFD.

        Tokenising with `add_special` and then detokenising returns the original text: the space that some vocabularies put
        before the first word is removed after a BOS token. Elsewhere it stays, because tokens may continue a text.

        Args:
            tokens: Token ids.
            special: Include the names of special tokens; otherwise they have no text.

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
        """Whether the token ends a generation, such as the end of a text or of a turn."""
        return self._core.is_eog(checked_tokens("token", [token], self.n_vocab)[0])

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a single token, which may be part of a character; for a special token, its name."""
        return self._core.detokenize(checked_tokens("token", [token], self.n_vocab), True)

    def infill_prompt(self, prefix: str, suffix: str) -> list[int]:
        """A prompt, as token ids, for the text between ``prefix`` and ``suffix``, for models trained to fill in the middle.

        Raises:
            TokenizationError: The vocabulary has no fill-in-the-middle tokens, or a text cannot be encoded.
        """
        before, after, middle = self._core.infill_tokens
        if min(before, after, middle) < 0:
            raise TokenizationError(
                "the model's vocabulary has no fill-in-the-middle tokens",
                hint="Use a model that was trained to fill in the middle, or leave the suffix out.",
            )
        head = [token for token in self._core.tokenize(b"a", True, False)[:1] if token == self.token_bos]
        texts = [self.tokenize(text, add_special=False) for text in (prefix, suffix)]
        return [*head, before, *texts[0], after, *texts[1], middle]

    # ------------------------------------------------------------------------------------------ adapters

    def load_lora(self, path: StrPath) -> Lora:
        """Load a LoRA adapter from a GGUF file. Blocks. Apply it to a stream with ``StreamConfig(lora=…)``.

        Raises:
            ModelLoadError: The file cannot be read (see `Model.load`), or the adapter does not fit this model.
        """
        if path is None:
            raise _checks.refuse_type("path", path, "a str or os.PathLike")
        file = checked_path(path)
        check_magic(file)
        try:
            return Lora(self, _core.Lora(self._core, os.fsencode(file)), file)
        except RuntimeError as e:
            raise model_load_error(
                file, str(e) or None, hint="Check that the adapter was made for this model."
            ) from None
        finally:
            _log.fetch()

    # ------------------------------------------------------------------------------------------ chat

    def chat_templates(self, template: object = None, pending: _core.Pending | None = None) -> _core.Templates:
        """Compile a chat template: None is the model's own; otherwise its text as a `str`, or a path. For `Context.chat`.

        The result is cached, so that the first chat does not have to compile the template.

        Raises:
            ChatError: The model has no chat template, or the template is malformed.
        """
        if template is None:
            text = ""
        elif isinstance(template, (str, os.PathLike)):
            text = _template_text(template)
        else:
            raise _checks.refuse_type("template", template, "a Jinja template as text, a path, or None")
        made = self._templates.get(text)
        if made is None:
            try:
                made = _core.Templates(self._core, text.encode(), pending)
            except (RuntimeError, ValueError) as e:
                if not text and self.chat_template is None:
                    hint = 'Pass one as template=; template="chatml" is a common one.'
                    raise ChatError("the model has no chat template", hint=hint) from None
                hint = "Pass another one as template=."
                raise ChatError(f"the chat template cannot be used: {e}", hint=hint) from None
            if len(self._templates) >= _MAX_TEMPLATES:
                self._templates.popitem(last=False)
            self._templates[text] = made
        return made

    def _has_parsed_template(self) -> bool:
        """Whether its own template was used already: to parse one takes milliseconds."""
        return "" in self._templates

    # ------------------------------------------------------------------------------------------ facts

    def metadata(self) -> dict[str, str]:
        """The GGUF file's metadata, as strings; arrays are left out, as llama.cpp does."""
        return self._core.metadata()

    @property
    def chat_template(self) -> str | None:
        """The model's own chat template in Jinja, or None."""
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
        """Id of the token that begins a text; -1 if there is none."""
        return self._core.token_bos

    @property
    def token_eos(self) -> int:
        """Id of the token that ends a text; -1 if there is none."""
        return self._core.token_eos


def _template_text(template: str | os.PathLike[Any]) -> str:
    text = template
    if not isinstance(text, str):
        try:
            text = Path(os.fsdecode(text)).read_text("utf-8")
        except UnicodeDecodeError as e:
            raise ChatError(
                f"the chat template {os.fspath(template)!r} is not valid UTF-8: {e}",
                hint="Pass another one as template=.",
            ) from None
    if "{{" not in text and "{%" not in text and text != "chatml":
        hint = "A str is the template itself; pass a pathlib.Path for a file."
        raise _checks.refuse("template", template, "a Jinja template, with {{ … }} or {% … %} in it", hint)
    return text


class Lora:
    """A LoRA adapter of a model; make one with `Model.load_lora`.

    Any number of streams may apply it, each with its own scale. It is freed when nothing refers to it any more, streams
    included.

    Attributes:
        model: The model it was loaded for.
        path: The file it was loaded from.
    """

    model: Model
    path: Path

    _is_lora = True

    def __init__(self, model: Model, core: _core.Lora, path: Path) -> None:
        self.model = model
        self.path = path
        self._core = core

    def __repr__(self) -> str:
        return f"<mullama.Lora {os.fspath(self.path)!r}>"


def checked_tokens(name: str, tokens: Iterable[Any], n_vocab: int) -> list[int]:
    """Token ids as plain integers in range."""
    if isinstance(tokens, (str, bytes)):
        raise _checks.refuse_type(name, tokens, "an iterable of token ids", "Use Model.tokenize() on text.")
    try:
        items = list(tokens)
    except TypeError:
        raise _checks.refuse_type(name, tokens, "an iterable of token ids") from None
    if {*map(type, items)} == {int} and min(items) >= 0 and max(items) < n_vocab:
        return items  # checked all at once: there may be many
    check = _checks.integer(0, n_vocab - 1, hint="It is not in this model's vocabulary.")
    return [check(name, item) for item in items]
