"""Is this machine fit to run a node or a simulation? Every finding is something that was tried just now."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from scipy.stats import chi2

from cohortium.privacy.discrete_gaussian import sample_discrete_gaussian
from cohortium.privacy.ledger import open_store
from cohortium.privacy.randomness import OsBitSource
from cohortium.simulations.datasets import cache_folder
from cohortium.study.errors import CohortiumError

__all__ = ["Finding", "examine"]

_PACKAGES = ("flwr", "dp-accounting", "duckdb", "numpy", "pandas", "pyarrow", "scikit-learn", "scipy", "sqlalchemy")
_DRAWS, _SIGMA, _ALPHA = 50_000, 2**24, 1e-6
_LEAST_DISK = 2**30


@dataclass(frozen=True)
class Finding:
    """One thing that was tried.

    Args:
        name: what.
        ok: whether it is as needed.
        detail: what was found, or what to do.
        optional: whether cohortium works without it.
    """

    name: str
    ok: bool
    detail: str
    optional: bool = False

    def to_json(self) -> dict[str, str | bool]:
        """As JSON types."""
        return asdict(self)


def examine() -> list[Finding]:
    """Try everything; never raises for what it finds."""
    checks: tuple[Callable[[], Finding], ...] = (_python, _packages, _noise, _durability, _cache, _disk, _ray)
    return [check() for check in checks]


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    return Finding("Python", sys.version_info >= (3, 11), f"{found} (3.11 or newer is needed)")


def _packages() -> Finding:
    found, missing = [], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding("packages", False, f"missing: {', '.join(missing)}; install cohortium again")
    return Finding("packages", True, ", ".join(found))


def _noise() -> Finding:
    """Chi-square test of the variance of fresh noise from the operating system's randomness, alpha 1e-6."""
    draws = sample_discrete_gaussian(_SIGMA, _DRAWS, OsBitSource()) / _SIGMA
    statistic = float(np.sum(draws**2))
    low, high = float(chi2.ppf(_ALPHA / 2, _DRAWS)), float(chi2.isf(_ALPHA / 2, _DRAWS))
    ok = low < statistic < high
    return Finding("noise", ok, f"standard deviation {np.sqrt(statistic / _DRAWS):.4f} of 1 over {_DRAWS:,} draws")


def _durability() -> Finding:
    """Whether a ledger's database opens with write-ahead logging and full synchronisation."""
    with tempfile.TemporaryDirectory(prefix="cohortium-") as folder:
        try:
            store = open_store(Path(folder) / "ledger.sqlite")
            with store.connect() as connection:
                journal = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
                synchronous = connection.exec_driver_sql("PRAGMA synchronous").scalar()
            store.dispose()
        except CohortiumError as error:
            return Finding("ledger", False, str(error))
    return Finding("ledger", journal == "wal" and synchronous == 2, f"journal {journal}, synchronous {synchronous}")


def _cache() -> Finding:
    folder = cache_folder()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    ok = os.access(nearest, os.W_OK)
    return Finding("data cache", ok, str(folder) if ok else f"{folder} is not writable: set COHORTIUM_CACHE", True)


def _disk() -> Finding:
    free = shutil.disk_usage(tempfile.gettempdir()).free
    return Finding("disk", free >= _LEAST_DISK, f"{free / 2**30:.1f} GiB free for temporary files (1 GiB is needed)")


def _ray() -> Finding:
    there = importlib.util.find_spec("ray") is not None
    return Finding("Ray", there, "installed" if there else "not installed: only --engine ray needs it", True)
