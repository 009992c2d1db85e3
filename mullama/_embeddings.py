"""Embeddings of texts, and the similarity of vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from . import _checks, _core, _interpreter_exit, _log
from .errors import ClosedError, ContextError, GenerationError

if TYPE_CHECKING:  # numpy is imported where it is used: it would be half of the time of importing mullama
    import numpy as np
    import numpy.typing as npt

    from ._model import Model

    Array = npt.NDArray[np.float32]
else:
    Array = Any

__all__ = ["Embeddings", "checked_pooling", "cosine_similarity"]

# llama_pooling_type; None is the model's own, or the mean where it has none.
POOLINGS: dict[str | None, int] = {None: -1, "mean": 1, "cls": 2, "last": 3}


def checked_pooling(pooling: object) -> str | None:
    if pooling is None or (isinstance(pooling, str) and pooling in POOLINGS):
        return pooling
    raise _checks.refuse("pooling", pooling, "one of 'mean', 'cls', 'last' and None")


class Embeddings:
    """Computes embeddings with one model and one kind of pooling. Thread-safe."""

    def __init__(self, model: Model, n_ctx: int, pooling: str | None, n_threads: int) -> None:
        if model._core.vocab_only:
            raise ContextError("the model has no weights to compute with", hint="Load it without vocab_only.")
        self._model = model
        try:
            self._core = _core.Embedder(model._core, n_ctx=n_ctx, pooling=POOLINGS[pooling], n_threads=n_threads)
        except RuntimeError as e:
            raise ContextError(str(e), hint="A smaller n_ctx needs less memory.") from None
        finally:
            _log.fetch()
        _interpreter_exit.closing.add(self)

    def close(self) -> None:
        """Stop running calls, which raise ClosedError, and wait until they have ended."""
        self._core.close()

    def embed(self, texts: Sequence[str], *, normalize: bool, stop: _core.Stop | None = None) -> Array:
        """Rows of float32 of shape (len(texts), n_embd); of length 1 if `normalize`. Ends early if `stop` is set."""
        import numpy as np

        _checks.flag("normalize", normalize)
        if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
            raise _checks.refuse_type("texts", texts, "an iterable of texts", "Put a single text into a list.")
        tokens = [self._tokens(i, text) for i, text in enumerate(texts)]
        try:
            rows = self._core.embed(tokens, stop or _core.Stop())
        except ClosedError:
            _interpreter_exit.park()
            raise
        except RuntimeError as e:
            raise GenerationError(str(e)) from None
        array: Array = np.frombuffer(rows, np.float32).reshape(len(tokens), self._core.n_embd).copy()
        if normalize and len(tokens):
            lengths = np.linalg.norm(array, axis=1, keepdims=True)
            array /= np.where(lengths > 0, lengths, 1)
        return array

    def _tokens(self, i: int, text: str) -> list[int]:
        if not isinstance(text, str):
            raise _checks.refuse_type(f"texts[{i}]", text, "a str")
        tokens = self._model.tokenize(text)
        if not text or not tokens:
            raise _checks.refuse(f"texts[{i}]", text, "a text of at least one character")
        if len(tokens) > self._core.n_ctx:
            raise ContextError(
                f"texts[{i}] has {len(tokens)} tokens, and the context holds {self._core.n_ctx}",
                hint="Shorten it, or make the context with a larger n_ctx.",
                code="PROMPT_TOO_LONG",
            )
        return tokens


def cosine_similarity(a: npt.ArrayLike, b: npt.ArrayLike) -> Any:
    """The cosine of the angle between two vectors, from -1 to 1; 0 if one of them is zero.

    Two vectors of shape ``(n,)`` give a float. Rows of vectors give an array: ``(n,)`` and ``(k, n)`` give ``(k,)``, and
    ``(k, n)`` and ``(m, n)`` give ``(k, m)``.

    Raises:
        InvalidParameter: The lengths differ, or an argument is not a vector, or rows of vectors, of finite numbers.
    """
    import numpy as np

    left, right = _rows("a", a), _rows("b", b)
    if left.shape[-1] != right.shape[-1]:
        raise _checks.refuse("a, b", (left.shape, right.shape), "vectors or rows of the same length")
    result = np.clip(_unit(left) @ _unit(right).T, -1, 1)
    if left.ndim == right.ndim == 1:
        return float(result)
    return result


def _rows(name: str, value: npt.ArrayLike) -> npt.NDArray[np.float64]:
    import numpy as np

    expected = "a vector of finite numbers, or rows of them"
    try:
        given = np.asarray(value)
        rows = given.astype(np.float64) if given.dtype.kind in "fiu" or not given.size else None
    except (TypeError, ValueError):
        rows = None
    if rows is None:
        raise _checks.refuse_type(name, value, expected)
    if rows.ndim not in (1, 2) or not np.isfinite(rows).all():
        raise _checks.refuse(name, value, expected)
    return rows


def _unit(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    import numpy as np

    largest = np.abs(rows).max(axis=-1, keepdims=True, initial=0)
    rows = rows / np.where(largest > 0, largest, 1)  # so that no square is too large or too small
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    unit: npt.NDArray[np.float64] = rows / np.where(lengths > 0, lengths, 1)
    return unit
