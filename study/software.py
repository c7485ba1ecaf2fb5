"""Which code a study runs: the installed package, file by file, and the Flower app bundle that points at it.

A plan that institutions approve names both digests. The bundle holds no code: it says which installed modules are the
apps. It is made of the package's version alone, byte for byte the same everywhere, and never compressed, because two
versions of a compressor write two different files.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints

from cohortium.study.document import Agreed
from cohortium.study.errors import Defect

__all__ = ["ROOMS", "Software", "code_digest", "installed_software", "study_bundle"]

ROOMS = ("study", "models", "privacy", "governance", "client", "server", "simulations", "cli")
"""The packages whose files make up the code."""

_KINDS = (".py", ".toml", ".html", ".css", ".js", ".typed")
_DIGEST = r"^sha256:[0-9a-f]{64}$"
_Digest = Annotated[str, StringConstraints(pattern=_DIGEST)]
_BUNDLE_DATE = (1980, 1, 1, 0, 0, 0)
_BUNDLE_CONFIG = """\
[project]
name = "cohortium-study"
version = "{version}"
description = "Points at the installed package cohortium; holds no code."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "cohortium"

[tool.flwr.app.components]
serverapp = "cohortium.server.deployed:app"
clientapp = "cohortium.client.deployed:app"

[tool.flwr.app.config]
plan = ""
run = ""
"""


class Software(Agreed):
    """The code that a plan's questions are asked and answered by.

    Args:
        version: of the package, for people.
        code: digest of the package's files, see `code_digest`.
        bundle: SHA-256 of the Flower app bundle, see `study_bundle`.
    """

    version: Annotated[str, Field(min_length=1, max_length=64)]
    code: _Digest
    bundle: _Digest


@lru_cache(maxsize=1)
def installed_software() -> Software:
    """What is installed here; read once for the life of the process."""
    installed = version("cohortium")
    bundle = hashlib.sha256(study_bundle(installed)).hexdigest()
    return Software(version=installed, code=code_digest(), bundle=f"sha256:{bundle}")


def code_digest() -> str:
    """SHA-256 over the sorted lines `PATH SHA-256` of every file of the package that can decide what it does.

    The same for an editable installation, a wheel and a source tree of the same commit. It covers this package alone:
    the libraries beneath it are pinned by whoever installs them.
    """
    lines = [f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for name, path in sorted(_files())]
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def study_bundle(installed: str) -> bytes:
    """The Flower app bundle of a version of the package: its `pyproject.toml` and the list of contents, stored."""
    config = _BUNDLE_CONFIG.format(version=installed).encode()
    contents = f"pyproject.toml,{hashlib.sha256(config).hexdigest()},{8 * len(config)}".encode()
    whole = BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as bundle:
        for name, data in (("pyproject.toml", config), (".info/CONTENT", contents)):
            bundle.writestr(zipfile.ZipInfo(name, _BUNDLE_DATE), data)
    return whole.getvalue()


def _files() -> Iterator[tuple[str, Path]]:
    for room in ROOMS:
        spec = find_spec(f"cohortium.{room}")
        if spec is None or not spec.submodule_search_locations:
            raise Defect(f"the package lacks its part {room}")
        root = Path(next(iter(spec.submodule_search_locations)))
        for path in root.rglob("*"):
            inside = path.relative_to(root)
            if path.suffix in _KINDS and path.is_file() and "__pycache__" not in inside.parts:
                yield f"{room}/{inside.as_posix()}", path
