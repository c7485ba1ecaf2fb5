"""The doctor: every finding is something that was tried, and every failure is found."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cohortium.simulations import doctor
from cohortium.simulations.doctor import Finding, examine
from cohortium.study.errors import DataError

NEEDED = {"Python", "packages", "noise", "ledger", "disk"}


def finding(name: str) -> Finding:
    return next(found for found in examine() if found.name == name)


def test_a_fit_machine_is_found_fit() -> None:
    findings = examine()
    assert {found.name for found in findings if not found.optional} == NEEDED
    assert [found.name for found in findings if not found.ok and not found.optional] == []
    assert len({found.name for found in findings}) == len(findings)
    json.dumps([found.to_json() for found in findings])


@pytest.mark.parametrize("scale", [0.95, 1.05])
def test_noise_of_a_wrong_scale_is_found(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chi-square test of 50,000 draws: 5% off is 22 standard errors off."""
    real = doctor.sample_discrete_gaussian

    def wrong(sigma: int, count: int, bits: Any) -> NDArray[np.int64]:
        return np.asarray(np.rint(real(sigma, count, bits) * scale), dtype=np.int64)

    monkeypatch.setattr(doctor, "sample_discrete_gaussian", wrong)
    assert not finding("noise").ok


def test_noise_that_is_missing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "sample_discrete_gaussian", lambda _s, n, _b: np.zeros(n, dtype=np.int64))
    assert not finding("noise").ok


def test_a_ledger_that_cannot_be_opened_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Path) -> None:
        raise DataError("cannot be opened")

    monkeypatch.setattr(doctor, "open_store", fails)
    assert finding("ledger") == Finding("ledger", False, "cannot be opened")


def test_a_missing_package_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PACKAGES", ("numpy", "no-such-package"))
    found = finding("packages")
    assert not found.ok
    assert "no-such-package" in found.detail


def test_a_full_disk_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 0))
    assert not finding("disk").ok


def test_an_old_python_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 9))
    assert not finding("Python").ok


def test_what_is_optional_does_not_make_a_machine_unfit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(doctor, "cache_folder", lambda: Path("/proc/nowhere"))
    missing = [found for found in examine() if not found.ok]
    assert "Ray" in {found.name for found in missing}
    assert all(found.optional for found in missing)
