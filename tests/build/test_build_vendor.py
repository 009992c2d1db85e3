"""How llama.cpp's source is placed: hash before unpacking, nothing out of its folder, whole or not at all,
and errors that name the command that mends them. Real archives, real processes."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import vendor  # noqa: E402

PIN = vendor.Pin(tag="b1", package="xllamacpp", version="1.0", sha256="", path="thirdparty/llama.cpp")
INNER = "xllamacpp-1.0/thirdparty/llama.cpp/"
TREE = {
    "LICENSE": "MIT",
    "CMakeLists.txt": "project(llama.cpp)",
    "include/llama.h": "// llama",
    "models/ggml-vocab-x.gguf": "GGUF",
    "tools/server/server.cpp": "// not needed",
    ".github/workflow.yml": "not: needed",
}


def archive(path: Path, files: dict[str, str], links: dict[str, str] | None = None) -> vendor.Pin:
    """Write a package with these files, and give the pin that fits it."""
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            info.mtime = 1_700_000_000
            tar.addfile(info, io.BytesIO(text.encode()))
        for name, goal in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, goal
            tar.addfile(info)
    return replace(PIN, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def package(path: Path, files: dict[str, str] | None = None) -> vendor.Pin:
    return archive(path, {"xllamacpp-1.0/setup.py": "raise SystemExit('was run')"} | {
        INNER + name: text for name, text in (files or TREE).items()
    })  # fmt: skip


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_pin_is_whole() -> None:
    pin = vendor.read_pin()
    assert pin.tag.startswith("b")
    assert pin.tag[1:].isdigit()
    assert pin.requirement.endswith(pin.tag[1:])
    assert len(pin.sha256) == 64
    assert set(pin.sha256) <= set("0123456789abcdef")


def test_places_what_is_needed_and_nothing_else(tmp_path: Path) -> None:
    pin = package(tmp_path / "package.tar.gz")
    place = tmp_path / "vendor" / "llama.cpp"
    vendor.place_pinned(pin, place, tmp_path / "package.tar.gz")
    assert files_in(place) == {
        "LICENSE",
        "CMakeLists.txt",
        "include/llama.h",
        "models/ggml-vocab-x.gguf",
        vendor.STAMP,
    }
    assert vendor.is_placed(pin, place)
    assert not vendor.is_placed(replace(pin, sha256="0" * 64), place)
    assert [path.name for path in place.parent.iterdir()] == ["llama.cpp"]


def test_a_new_pin_replaces_the_whole_tree(tmp_path: Path) -> None:
    place = tmp_path / "vendor" / "llama.cpp"
    vendor.place_pinned(package(tmp_path / "old.tar.gz"), place, tmp_path / "old.tar.gz")
    pin = package(tmp_path / "new.tar.gz", {"LICENSE": "MIT", "src/new.cpp": "//"})
    vendor.place_pinned(pin, place, tmp_path / "new.tar.gz")
    assert files_in(place) == {"LICENSE", "src/new.cpp", vendor.STAMP}


def test_a_wrong_hash_is_refused_before_anything_is_unpacked(tmp_path: Path) -> None:
    package(tmp_path / "package.tar.gz")
    place = tmp_path / "vendor" / "llama.cpp"
    with pytest.raises(vendor.BuildError, match="nothing of it was unpacked") as caught:
        vendor.place_pinned(replace(PIN, sha256="0" * 64), place, tmp_path / "package.tar.gz")
    assert "tools/vendor.py" in str(caught.value)
    assert files_in(tmp_path) == {"package.tar.gz"}


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "xllamacpp-1.0/../../evil",
        INNER + "src/../../../../../evil",
        INNER + "src\\..\\evil",
        "/evil",
    ],
)
def test_a_path_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "package.tar.gz"
    pin = archive(path, {INNER + "LICENSE": "MIT", name: "evil"})
    with pytest.raises(vendor.BuildError, match="refused"):
        vendor.place_pinned(pin, tmp_path / "deep" / "vendor" / "llama.cpp", path)
    assert files_in(tmp_path) == {"package.tar.gz"}


def test_a_link_among_the_sources_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "package.tar.gz"
    pin = archive(path, {INNER + "LICENSE": "MIT"}, {INNER + "src": "../../.."})
    with pytest.raises(vendor.BuildError, match="refused"):
        vendor.place_pinned(pin, tmp_path / "vendor" / "llama.cpp", path)
    assert files_in(tmp_path) == {"package.tar.gz"}


def test_a_killed_placement_leaves_no_half_tree(tmp_path: Path) -> None:
    many = {f"src/{number}.cpp": "//" for number in range(20_000)} | {"LICENSE": "MIT"}
    pin = package(tmp_path / "package.tar.gz", many)
    place = tmp_path / "vendor" / "llama.cpp"
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import vendor\n"
        f"vendor.place_pinned(vendor.{pin!r}, Path(sys.argv[2]), Path(sys.argv[3]))"
    )
    command = [sys.executable, "-c", code, str(ROOT / "tools"), str(place), str(tmp_path / "package.tar.gz")]
    with subprocess.Popen(command) as child:
        while child.poll() is None and not list(place.parent.glob(".llama.cpp-*/tree/src/1.cpp")):
            time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
    assert not place.exists() or len(files_in(place)) == len(many) + 1
    vendor.place_pinned(pin, place, tmp_path / "package.tar.gz")
    assert len(files_in(place)) == len(many) + 1
    assert [path.name for path in place.parent.iterdir()] == ["llama.cpp"]


# -- the script, as a user runs it, in a checkout that has no source yet ---------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("tools/vendor.py", "vendor/llama.cpp.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)
    return tmp_path


def run_vendor(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "MULLAMA_", "LD_PRELOAD"))}
    return subprocess.run(
        [sys.executable, "tools/vendor.py", *arguments],
        cwd=checkout,
        env=inherited | {"PIP_CONFIG_FILE": os.devnull} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_network_it_says_what_to_do(checkout: Path) -> None:
    run = run_vendor(checkout, PIP_INDEX_URL="http://127.0.0.1:9/simple")
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    for hint in ("package index", "tools/vendor.py xllamacpp-", f"export {vendor.OWN_CHECKOUT}="):
        assert hint in run.stderr
    assert not (checkout / "vendor" / "llama.cpp").exists()


def test_an_index_that_serves_another_file_is_refused(checkout: Path) -> None:
    shelf = checkout / "shelf"
    shelf.mkdir()
    pin = vendor.read_pin()
    package(shelf / f"{pin.package}-{pin.version}.tar.gz")
    run = run_vendor(checkout, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(shelf))
    assert run.returncode == 1
    assert "is not the file that is pinned" in run.stderr
    assert pin.sha256 in run.stderr
    assert files_in(checkout / "vendor") == {"llama.cpp.toml"}


@pytest.mark.parametrize("way", ["find-links", "file"])
def test_it_is_placed_from_the_users_own_shelf(checkout: Path, way: str) -> None:
    shelf = checkout / "shelf"
    shelf.mkdir()
    wanted = vendor.read_pin()
    path = shelf / f"{wanted.package}-{wanted.version}.tar.gz"
    pin_file = checkout / "vendor" / "llama.cpp.toml"
    pin_file.write_text(pin_file.read_text().replace(wanted.sha256, package(path).sha256))
    if way == "file":
        run = run_vendor(checkout, str(path))
    else:
        run = run_vendor(checkout, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(shelf))
    assert run.returncode == 0, run.stderr
    assert (checkout / "vendor" / "llama.cpp" / "include" / "llama.h").read_text() == "// llama"
    assert (checkout / "vendor" / "licenses" / "LICENSE-llama.cpp").read_text() == "MIT"


def test_the_users_own_checkout_is_taken(checkout: Path) -> None:
    own = checkout / "own"
    (own / "include").mkdir(parents=True)
    (own / "include" / "llama.h").touch()
    run = run_vendor(checkout, MULLAMA_LLAMA_CPP_DIR=str(own))
    assert (run.returncode, run.stdout.strip()) == (0, str(own.resolve()))


def test_a_checkout_that_is_none_is_named(checkout: Path) -> None:
    run = run_vendor(checkout, MULLAMA_LLAMA_CPP_DIR=str(checkout))
    assert run.returncode == 1
    assert "include/llama.h" in run.stderr
    assert f"export {vendor.OWN_CHECKOUT}=" in run.stderr
