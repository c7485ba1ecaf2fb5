"""Audiences end for ever, and whoever was exported is recognised."""

from __future__ import annotations

from typing import Any

import pytest

from cohortium.client.audience import (
    Destination,
    EverybodyAllowed,
    expire,
    export,
    export_removal,
    exported_ids,
    list_audiences,
    looks_like_audience,
    refresh,
)
from cohortium.study.errors import DataError, RefusedError

CROWD = {f"c{i:03d}": 0.9 for i in range(100)} | {f"x{i:03d}": 0.1 for i in range(20)}


@pytest.fixture
def made(house: Any) -> str:
    return house.create(CROWD).audience.id


def test_an_expired_audience_keeps_its_id_and_never_comes_back(house: Any, made: str) -> None:
    assert expire(house.store, made).state == "expired"
    assert expire(house.store, made).state == "expired"
    assert house.store.audience(made).id == made
    for call in (
        lambda: export(house.store, made, house.folder / "out", activation=EverybodyAllowed()),
        lambda: refresh(house.store, made, house.scores(CROWD), activation=EverybodyAllowed()),
    ):
        with pytest.raises(RefusedError, match="the audience has expired"):
            call()
    with pytest.raises(RefusedError, match="the destination holds nothing of the audience"):
        export_removal(house.store, made, house.folder / "out")
    assert not (house.folder / "out").exists()
    assert not list(house.store.folder.glob("*.parquet"))


def test_an_audience_that_never_was_cannot_expire(house: Any) -> None:
    with pytest.raises(RefusedError, match="no such audience"):
        expire(house.store, "aud-0")


def test_the_list_shows_bands_states_and_what_is_due(house: Any, made: str) -> None:
    other = house.create(CROWD, name="b").audience.id
    export(house.store, made, house.folder / "1", activation=EverybodyAllowed())
    export(house.store, made, house.folder / "2", Destination("ads"), activation=EverybodyAllowed())
    house.clock.pass_days(10)
    expire(house.store, other)
    shown = {each.audience.id: each for each in list_audiences(house.store)}
    assert (shown[made].state, shown[made].size, shown[made].removal_due) == ("active", "100\u2013200", ())
    assert (shown[other].state, shown[other].exports) == ("expired", ())
    house.clock.pass_days(30)
    shown = {each.audience.id: each for each in list_audiences(house.store)}
    assert (shown[made].state, shown[made].removal_due) == ("expired", ("ads", "default"))
    assert [(record.destination, record.sequence) for record in shown[made].exports] == [("ads", 1), ("default", 1)]


def test_exported_ids_are_those_that_went_out_also_after_the_end(house: Any, made: str) -> None:
    assert list(exported_ids(house.store)) == []
    export(house.store, made, house.folder / "1", activation=EverybodyAllowed())
    refresh(house.store, made, house.scores(CROWD | {"c000": 0.1, "x000": 0.9}), activation=EverybodyAllowed())
    export(house.store, made, house.folder / "2", activation=EverybodyAllowed())
    everybody = sorted([f"c{i:03d}" for i in range(100)] + ["x000"])
    assert list(exported_ids(house.store)) == everybody
    expire(house.store, made)
    export_removal(house.store, made, house.folder / "3")
    assert list(exported_ids(house.store)) == everybody


def test_a_seed_of_exported_members_is_recognised(house: Any, made: str) -> None:
    members, others = ([f"{k}{i:03d}" for i in range(20)] for k in "cx")
    assert looks_like_audience(members, house.store) == 0.0
    export(house.store, made, house.folder / "1", activation=EverybodyAllowed())
    export(house.store, made, house.folder / "2", Destination("ads"), activation=EverybodyAllowed())
    assert looks_like_audience(members, house.store) == 1.0
    assert looks_like_audience(others, house.store) == 0.0
    assert looks_like_audience(members + others, house.store) == 0.5
    assert looks_like_audience(members * 3 + others, house.store) == 0.5
    assert looks_like_audience([], house.store) == 0.0


def test_a_list_that_was_changed_is_not_passed_over(house: Any, made: str) -> None:
    export(house.store, made, house.folder / "1", activation=EverybodyAllowed())
    (file,) = house.store.folder.glob("*.exported.*")
    file.unlink()
    with pytest.raises(DataError, match="is missing or was changed"):
        looks_like_audience(["c000"], house.store)
