"""Where simulated customers come from: what a word on the command line means, and what it cannot mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cohortium.client.onboarding import parse_source
from cohortium.simulations import sources as module
from cohortium.simulations.bank_world import load_bank_world_contract
from cohortium.simulations.datasets import names
from cohortium.simulations.partition import ByColumn, ByHash
from cohortium.simulations.sources import (
    BANK_WORLD,
    BankWorldData,
    demo_data,
    is_public,
    own_data,
    public_data,
    split_rule,
)
from cohortium.study.contract import Contract
from cohortium.study.errors import CohortiumError, DataError


def silent(_: str) -> None:
    pass


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("3", ByHash(3)),
        ("1000", ByHash(1000)),
        ("region", ByColumn("people", "region")),
        ("people.region", ByColumn("people", "region")),
        ("other.region", ByColumn("people", "other.region")),
        ("²", ByColumn("people", "²")),
        ("-3", ByColumn("people", "-3")),
    ],
)
def test_a_number_or_a_column(text: str, rule: ByColumn | ByHash, small_contract: Contract) -> None:
    assert split_rule(text, small_contract) == rule


@pytest.mark.parametrize("text", ["0", "1001", "99999999999999999999"])
def test_a_number_of_institutions_has_limits(text: str, small_contract: Contract) -> None:
    with pytest.raises(DataError, match="1 to 1000"):
        split_rule(text, small_contract)
    with pytest.raises(DataError, match="1 to 1000"):
        public_data(BANK_WORLD, text, small_contract, silent)


def test_with_several_tables_a_column_needs_its_table() -> None:
    contract = load_bank_world_contract()
    assert split_rule("purchases.channel", contract) == ByColumn("purchases", "channel")
    with pytest.raises(DataError, match="in which table") as caught:
        split_rule("channel", contract)
    assert "customers.channel" in str(caught.value.fix)


def test_own_tables_need_to_be_told_what_institutions_are(small_contract: Contract) -> None:
    with pytest.raises(DataError, match="nothing says"):
        own_data({"people": parse_source("people.csv")}, None, small_contract)


def test_public_names_are_known_and_files_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_public(BANK_WORLD)
    assert all(is_public(name) for name in names())
    (tmp_path / "people").touch()
    for text in ("people", "people.csv", "people=x", "/data/people", "sqlite:///x.db#t"):
        assert not is_public(text)
    with pytest.raises(DataError, match="no such file or public set") as caught:
        is_public("bank-word")
    assert BANK_WORLD in str(caught.value.fix)


def test_the_split_is_part_of_what_identifies_a_run(small_contract: Contract) -> None:
    source = {"people": parse_source("people.csv")}
    splits = [own_data(source, text, small_contract).split for text in ("2", "3", "region", "score")]
    splits += [BankWorldData(2).split, BankWorldData(3).split]
    assert len(set(splits)) == len(splits)
    assert own_data(source, "3", small_contract).split == splits[1]


# --- customers -------------------------------------------------------------------------------------------------------


def test_own_tables_are_split_by_the_column(study_folder: Path, small_contract: Contract, tmp_path: Path) -> None:
    data = own_data({"people": parse_source(str(study_folder / "people.csv"))}, "region", small_contract)
    tables = data.tables(small_contract, tmp_path / "work")
    assert list(tables) == ["north", "south", "west"]
    assert all(set(sources) == {"people"} for sources in tables.values())
    assert data.facts.name == "small"


def test_the_synthetic_world_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    contract = load_bank_world_contract()

    def world(folder: str, seed: int) -> dict[str, bytes]:
        tables = BankWorldData(2, seed).tables(contract, tmp_path / folder)
        assert list(tables) == ["bank-1", "bank-2"]
        return {f"{b}/{t}": Path(str(source)).read_bytes() for b, own in tables.items() for t, source in own.items()}

    assert world("a", 1) == world("b", 1)
    assert world("c", 2) != world("a", 1)


def test_the_synthetic_world_needs_its_own_contract(small_contract: Contract, tmp_path: Path) -> None:
    with pytest.raises(CohortiumError, match="not the bank world's"):
        BankWorldData(2).tables(small_contract, tmp_path / "w")


@pytest.mark.parametrize("reason", [None, "out of reach"])
def test_the_demo_says_when_it_falls_back_and_does_not_try_when_told(
    reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def unavailable(name: str) -> str:
        asked.append(name)
        return reason or "unasked"

    monkeypatch.setattr(module, "unavailable_reason", unavailable)
    said: list[str] = []
    contract, data = demo_data(reason is None, said.append)
    assert isinstance(data, BankWorldData)
    assert contract == load_bank_world_contract()
    assert asked == ([] if reason is None else ["ta-feng"])
    assert said == ([] if reason is None else ["out of reach: using the synthetic bank world instead"])


def test_an_unavailable_set_is_named_with_a_fix(monkeypatch: pytest.MonkeyPatch, small_contract: Contract) -> None:
    fail: Callable[..., None] = lambda *_, **__: (_ for _ in ()).throw(DataError("out of reach", fix="give a file"))  # noqa: E731
    monkeypatch.setattr(module, "fetch", fail)
    with pytest.raises(DataError, match="out of reach"):
        public_data("ta-feng", None, small_contract, silent)
