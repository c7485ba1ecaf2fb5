"""The synthetic world: reproducible, non-IID, overlapping, with a truth that the data show, onboarded as deployed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cohortium.client.onboarding import load_customer_table, load_protected_table, onboard
from cohortium.simulations.bank_world import (
    SEGMENTS,
    BankWorld,
    BankWorldSpec,
    load_bank_world_contract,
    make_bank_world,
    write_benchmark_lines,
)

SPEC = BankWorldSpec(banks=4, customers=800)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> BankWorld:
    return make_bank_world(tmp_path_factory.mktemp("world"), np.random.default_rng(3), SPEC)


@pytest.fixture(scope="module")
def truth(world: BankWorld) -> pd.DataFrame:
    return pd.read_parquet(world.truth)


def test_probabilities_are_probabilities() -> None:
    for segment in SEGMENTS:
        for chances in (segment.categories, segment.channels, segment.ages):
            assert sum(chances) == pytest.approx(1)
            assert min(chances) >= 0


def test_the_same_seed_gives_the_same_files(world: BankWorld, tmp_path: Path) -> None:
    again = make_bank_world(tmp_path, np.random.default_rng(3), SPEC)
    for one, other in zip(world.banks, again.banks, strict=True):
        for table in one.sources:
            pd.testing.assert_frame_equal(
                pd.read_parquet(one.sources[table]), pd.read_parquet(other.sources[table]), obj=table
            )
    other_seed = make_bank_world(tmp_path / "other", np.random.default_rng(4), SPEC)
    assert not pd.read_parquet(world.truth).equals(pd.read_parquet(other_seed.truth))


def test_it_says_that_it_is_synthetic(world: BankWorld) -> None:
    folder = world.truth.parent
    assert "Synthetic" in (folder / "README.txt").read_text(encoding="utf-8")
    assert "SYNTHETIC" in (folder / "contract.toml").read_text(encoding="utf-8")
    assert world.contract == load_bank_world_contract()


def test_banks_differ_in_mix_and_share_people(truth: pd.DataFrame) -> None:
    mixes = pd.crosstab(truth["institution"], truth["segment"], normalize="index")
    assert (mixes.max() - mixes.min()).max() > 0.1
    assert not truth.duplicated(["id", "institution"]).any()
    per_person = truth.groupby("id").size()
    assert 0.03 < (per_person > 1).mean() < 0.15
    assert (per_person == 3).any()
    assert (truth.groupby("id")[["segment", "sex", "age_band", "consent", "home"]].nunique() == 1).all().all()


def test_consent_and_seeds(world: BankWorld, truth: pd.DataFrame) -> None:
    assert 0.8 < truth["consent"].mean() < 0.95
    assert set(truth.loc[truth["seed"], "institution"]) == {"bank-1"}
    assert [bank.seeds is not None for bank in world.banks] == [True, False, False, False]
    assert world.banks[0].seeds is not None
    assert set(pd.read_parquet(world.banks[0].seeds)["customer_id"]) == set(truth.loc[truth["seed"], "id"])
    flags = pd.read_parquet(world.banks[1].consent).set_index("customer_id")["consent"]
    assert flags.to_dict() == truth[truth["institution"] == "bank-2"].set_index("id")["consent"].to_dict()


def test_every_bank_is_onboarded_by_the_deployed_code_and_shows_its_segments(
    world: BankWorld, truth: pd.DataFrame, tmp_path: Path
) -> None:
    for bank in world.banks:
        report = onboard(world.contract, bank.sources, tmp_path / bank.name)
        table = load_customer_table(tmp_path / bank.name, world.contract)
        expected = truth[truth["institution"] == bank.name].sort_values("id", ignore_index=True)
        assert report.people == len(expected)
        assert list(table.keys) == list(expected["id"])
        assert not any(column.bad for column in report.columns)
        frame = pd.DataFrame(table.values, columns=list(table.columns))
        means = frame.groupby(expected["segment_name"]).mean()
        if {"affluent travellers", "everyday families", "lapsing"} <= set(means.index):
            assert means["travel_share"].idxmax() == "affluent travellers"
            assert means["recency"].idxmax() == "lapsing"


def test_protected_groups_depend_on_segments(world: BankWorld, truth: pd.DataFrame, tmp_path: Path) -> None:
    bank = world.banks[0]
    onboard(world.contract, bank.sources, tmp_path / "out", duplicates=False)
    protected = load_protected_table(tmp_path / "out", world.contract)
    assert protected.columns == ("sex", "age_band")
    old = truth["age_band"] == "60+"
    assert truth.loc[truth["segment_name"] == "branch pensioners", "age_band"].eq("60+").mean() > 2 * old.mean()


def test_benchmark_lines_are_reproducible_and_of_the_size_asked_for(tmp_path: Path) -> None:
    first = write_benchmark_lines(tmp_path / "a", 2_500, 100, chunk=1_000)
    second = write_benchmark_lines(tmp_path / "b", 2_500, 100, chunk=1_000)
    frames = [pd.concat([pd.read_parquet(file) for file in files]) for files in (first, second)]
    pd.testing.assert_frame_equal(frames[0], frames[1])
    assert (len(first), len(frames[0])) == (3, 2_500)
    assert frames[0]["customer_id"].nunique() == 100
    assert frames[0]["day"].astype("datetime64[ns]").between("2024-01-01", "2024-12-31").all()
