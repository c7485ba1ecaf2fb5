"""Partition: every line once, at the right institution, unchanged, and onboarded there as deployed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cohortium.client.onboarding import inspect_sources
from cohortium.simulations.bank_world import BankWorldSpec, load_bank_world_contract, make_bank_world
from cohortium.simulations.partition import ByColumn, ByHash, partition
from cohortium.study.contract import Contract
from cohortium.study.errors import CohortiumError, DataError


@pytest.fixture
def contract() -> Contract:
    return load_bank_world_contract()


@pytest.fixture
def frames() -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(0)
    ids = [f"P{n}" for n in range(60)]
    customers = pd.DataFrame(
        {"customer_id": ids, "sex": "female", "age_band": "60+", "products": 1, "joined": pd.Timestamp("2020-01-01")}
    )
    purchases = pd.DataFrame(
        {
            "customer_id": rng.choice(ids, 400),
            "day": pd.Timestamp("2024-02-01") + pd.to_timedelta(rng.integers(0, 300, 400), unit="D"),
            "amount": rng.integers(1, 99, 400) * 1.0,
            "category": rng.choice(["travel", "dining"], 400),
            "channel": "app",
            "zone": rng.choice(["North 1", "north-1", "Ünknown/..", "", "7"], 400),
        }
    )
    return {"customers": customers, "purchases": purchases}


def test_by_column_every_line_goes_to_its_value(
    contract: Contract, frames: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    split = partition(contract, frames, ByColumn("purchases", "zone"), tmp_path / "out")
    zones = frames["purchases"]["zone"].replace("", "(none)")
    assert {i.label: i.lines["purchases"] for i in split.institutions} == zones.value_counts().to_dict()
    assert len({i.name for i in split.institutions}) == len(split.institutions)
    for institution in split.institutions:
        assert institution.name.isascii()
        assert all(file.parent.parent == tmp_path / "out" for file in institution.sources.values())
        mine = pd.read_parquet(institution.sources["purchases"])
        wanted = frames["purchases"][zones == institution.label].reset_index(drop=True)
        pd.testing.assert_frame_equal(mine, wanted, check_dtype=False)
        # the customers table follows: who has a line here is a person here
        people = set(pd.read_parquet(institution.sources["customers"])["customer_id"])
        assert people == set(wanted["customer_id"])
        assert inspect_sources(contract, institution.sources).people == len(people)
    assert sum(i.lines["customers"] for i in split.institutions) > len(frames["customers"])


def test_by_hash_a_person_is_at_one_institution(
    contract: Contract, frames: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    split = partition(contract, frames, ByHash(3), tmp_path / "out")
    assert [i.label for i in split.institutions] == ["part-1", "part-2", "part-3"]
    seen: set[str] = set()
    for institution in split.institutions:
        people = set(pd.read_parquet(institution.sources["customers"])["customer_id"])
        assert set(pd.read_parquet(institution.sources["purchases"])["customer_id"]) <= people
        assert not people & seen
        seen |= people
    assert seen == set(frames["customers"]["customer_id"])
    assert sum(i.lines["purchases"] for i in split.institutions) == len(frames["purchases"])
    salted = partition(contract, frames, ByHash(3, salt="x"), tmp_path / "salted")
    assert [i.lines for i in salted.institutions] != [i.lines for i in split.institutions]


def test_lines_without_an_id_are_kept_for_onboarding_to_count(
    contract: Contract, frames: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    purchases = frames["purchases"].copy()
    purchases.loc[:9, "customer_id"] = None
    for how in (ByColumn("purchases", "zone"), ByHash(4)):
        split = partition(contract, frames | {"purchases": purchases}, how, tmp_path / type(how).__name__)
        assert sum(i.lines["purchases"] for i in split.institutions) == 400
        counts = [
            inspect_sources(contract, i.sources)
            .column("purchases", "customer_id", "customer")
            .problems.get("missing", 0)
            for i in split.institutions
        ]
        assert sum(counts) == 10


def test_a_text_file_keeps_its_cells_and_counts_its_malformed_lines(
    contract: Contract, frames: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    file = tmp_path / "purchases.csv"
    frames["purchases"].assign(amount="00.50 ").to_csv(file, index=False)
    with file.open("a") as stream:
        stream.write("too,few\n")
    split = partition(contract, frames | {"purchases": file}, ByHash(2), tmp_path / "out")
    assert split.malformed == {"customers": 0, "purchases": 1}
    assert set(pd.read_parquet(split.institutions[0].sources["purchases"])["amount"]) == {"00.50 "}


def test_mistakes_are_named(contract: Contract, frames: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'zoen'"):
        partition(contract, frames, ByColumn("purchases", "zoen"), tmp_path)
    with pytest.raises(CohortiumError, match="no table 'x'"):
        partition(contract, frames, ByColumn("x", "zone"), tmp_path)
    with pytest.raises(DataError, match="at least 1"):
        partition(contract, frames, ByHash(0), tmp_path)
    with pytest.raises(DataError, match="no source for table"):
        partition(contract, {}, ByHash(2), tmp_path)
    many = frames["purchases"].assign(zone=[str(n) for n in range(400)])
    many = pd.concat([many.assign(zone=many["zone"] + suffix) for suffix in "abc"])
    with pytest.raises(DataError, match="would make 1200 institutions"):
        partition(contract, frames | {"purchases": many}, ByColumn("purchases", "zone"), tmp_path)


def test_a_bank_of_the_world_can_be_split_again(tmp_path: Path) -> None:
    world = make_bank_world(tmp_path / "world", np.random.default_rng(0), BankWorldSpec(banks=1, customers=300))
    split = partition(world.contract, world.banks[0].sources, ByColumn("customers", "sex"), tmp_path / "out")
    assert [i.label for i in split.institutions] == ["female", "male"]
    whole = inspect_sources(world.contract, world.banks[0].sources)
    assert sum(inspect_sources(world.contract, i.sources).people for i in split.institutions) == whole.people
