"""What Python reads of a GGUF file itself: whether it can be one, and a fingerprint of the weights."""

from __future__ import annotations

import glob
import hashlib
import stat
from pathlib import Path

from .errors import ModelLoadError, model_load_error

__all__ = ["check_magic", "fingerprint"]


def check_magic(file: Path) -> None:
    """Raises the error for a file that cannot be read, or does not look like GGUF."""
    try:
        kind = file.stat().st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise model_load_error(file, "it is not a regular file")  # opening a pipe would wait for its other end
        with file.open("rb") as stream:
            magic = stream.read(4)
    except ModelLoadError:
        raise
    except OSError as e:
        raise model_load_error(file, e) from e
    if magic != b"GGUF":
        what = "the file is empty" if not magic else f"it begins with {magic!r}, not with GGUF"
        raise model_load_error(file, what)


def fingerprint(file: Path, n_samples: int = 256, size: int = 4096) -> str:
    """A hash of samples from all parts of the file or files: models with the same metadata differ in it."""
    first = "-00001-of-"
    parts = sorted(file.parent.glob(f"{glob.escape(file.name.split(first)[0])}-*")) if first in file.name else [file]
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as stream:
            n = part.stat().st_size
            digest.update(n.to_bytes(8, "little"))
            for i in range(n_samples):
                stream.seek(i * max(0, n - size) // (n_samples - 1))
                digest.update(stream.read(size))
    return digest.hexdigest()
