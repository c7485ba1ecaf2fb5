"""Who is chosen, how large an audience looks, and what is refused before anything is recorded."""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from cohortium.client.audience import (
    AudienceStore,
    EverybodyAllowed,
    Exclusions,
    IdList,
    Level,
    custom_level,
    list_audiences,
    preview,
    refresh,
)
from cohortium.study.errors import CohortiumError, DataError, Defect, OutputError, RefusedError

TODAY = date(2026, 3, 1)
BROAD, NARROW = Level("broad", 0.5, 0.1), Level("narrow", 0.8, 0.025)
OTHER_MODEL = "sha256:" + "b" * 64


class EvenOnly:
    """Allows ids with an even last digit."""

    def allowed(self, ids: Sequence[str]) -> NDArray[np.bool_]:
        return np.array([int(i[-1]) % 2 == 0 for i in ids], dtype=np.bool_)


class TooFew:
    """Answers for one customer less than it was asked for."""

    def allowed(self, ids: Sequence[str]) -> NDArray[np.bool_]:
        return np.ones(max(len(ids) - 1, 0), dtype=np.bool_)


@pytest.fixture
def crowd() -> dict[str, float]:
    """1,000 customers, c0000 with score 0 to c0999 with score 0.999."""
    return {f"c{i:04d}": i / 1000 for i in range(1000)}


@pytest.fixture
def files(house: Any) -> Callable[[], set[str]]:
    """Names of everything in the operator's folder and in the store's, without databases and the lock."""
    return lambda: {p.name for p in house.folder.rglob("*") if ".sqlite" not in p.name and p.name != "lock"}


# --- preview ---------------------------------------------------------------------------------------------------------


def test_sizes_are_bands_and_levels_nest(house: Any, crowd: dict[str, float]) -> None:
    seen = preview(
        house.scores(crowd),
        [NARROW, BROAD, custom_level(0.93)],
        origin=house.store.origin(),
        min_cell=100,
        today=TODAY,
        activation=EverybodyAllowed(),
    )
    assert [level.size for level in seen.levels] == ["200\u2013300", "500\u20131,000", "suppressed"]
    assert [level.level.name for level in seen.levels] == ["narrow", "broad", "custom"]


def test_a_cut_off_is_a_member_s_score(house: Any) -> None:
    scores = {f"c{i}": 0.5 for i in range(100)} | {f"x{i}": float(np.nextafter(0.5, 0)) for i in range(900)}
    (level,) = preview(
        house.scores(scores),
        [BROAD],
        origin=house.store.origin(),
        min_cell=50,
        today=TODAY,
        activation=EverybodyAllowed(),
    ).levels
    assert level.size == "100\u2013200"
    assert house.create(scores).audience.members == 100


@pytest.mark.parametrize(("people", "shown"), [(0, "suppressed"), (119, "suppressed"), (120, "100\u2013200")])
def test_a_size_below_the_minimum_cell_is_suppressed_and_never_0(house: Any, people: int, shown: str) -> None:
    scores = {f"c{i}": 0.9 for i in range(people)} | {f"x{i}": 0.1 for i in range(10)}
    seen = preview(
        house.scores(scores),
        [BROAD],
        origin=house.store.origin(),
        min_cell=120,
        today=TODAY,
        activation=EverybodyAllowed(),
    )
    assert seen.levels[0].size == shown
    assert (seen.seed, seen.suppressed, seen.not_allowed) == ("suppressed",) * 3


def test_a_preview_counts_as_create_chooses(house: Any, crowd: dict[str, float]) -> None:
    """Exclusions are bands as well, each customer counted for the first reason that holds."""
    scores = house.scores(crowd, seeds=[f"c{i:04d}" for i in range(500, 700)])
    listed = IdList(house.csv("out.csv", id=[f"c{i:04d}" for i in range(600, 850)]))
    seen = preview(
        scores,
        [BROAD],
        origin=house.store.origin(),
        min_cell=50,
        suppression=[listed],
        activation=EvenOnly(),
        today=TODAY,
    )
    assert (seen.levels[0].size, seen.seed) == ("50\u2013100", "200\u2013300")
    assert (seen.suppressed, seen.not_allowed) == ("100\u2013200", "50\u2013100")
    made = house.create(scores, suppression=[listed], activation=EvenOnly())
    assert made.excluded == Exclusions(seed=200, suppressed=150, not_allowed=75)
    assert house.members(made.audience) == [f"c{i:04d}" for i in range(850, 1000, 2)]
    assert made.lists == seen.lists


def test_a_preview_writes_nothing(house: Any, crowd: dict[str, float], files: Callable[[], set[str]]) -> None:
    scores, listed = house.scores(crowd), IdList(house.csv("out.csv", id=["c0900"]))
    before = files()
    preview(
        scores,
        [BROAD],
        origin=house.store.origin(),
        min_cell=50,
        suppression=[listed],
        today=TODAY,
        activation=EverybodyAllowed(),
    )
    assert files() == before
    assert list_audiences(house.store) == ()


def test_a_preview_needs_a_level_and_a_living_model(house: Any, crowd: dict[str, float]) -> None:
    scores = house.scores(crowd, labels={"expires": "2026-02-28"})
    with pytest.raises(DataError, match="no level to preview"):
        preview(scores, [], origin=house.store.origin(), min_cell=50, activation=EverybodyAllowed())
    with pytest.raises(RefusedError, match=r"the model expired on 2026-02-28 .* fix: run the campaign again"):
        preview(scores, [BROAD], origin=house.store.origin(), min_cell=50, today=TODAY, activation=EverybodyAllowed())


# --- create ----------------------------------------------------------------------------------------------------------


def test_an_audience_is_recorded_as_it_was_made(house: Any, crowd: dict[str, float]) -> None:
    made = house.create(crowd).audience
    assert made == house.store.audience(made.id)
    assert (made.level, made.members, made.size, made.revision) == (BROAD, 500, "500\u20131,000", 1)
    assert made.expires == date(2026, 3, 31)
    assert made.id.startswith("aud-")
    assert len(made.id) == 36


def test_lists_of_customers_are_for_their_owner_alone(house: Any, crowd: dict[str, float]) -> None:
    made = house.create(crowd).audience
    assert stat.S_IMODE(house.store.folder.stat().st_mode) == 0o700
    for file in house.store.folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(list(house.store.folder.glob(f"{made.id}.*.parquet"))) == 2


def test_no_two_audiences_have_an_id_or_a_name(house: Any, crowd: dict[str, float]) -> None:
    first, second = house.create(crowd).audience, house.create(crowd, name="another").audience
    assert first.id != second.id
    with pytest.raises(RefusedError, match="an active audience has this name"):
        house.create(crowd)
    house.clock.pass_days(31)
    assert house.create(crowd).audience.id not in (first.id, second.id)


def test_an_audience_never_outlives_its_model(house: Any, crowd: dict[str, float]) -> None:
    scores = house.scores(crowd, labels={"expires": "2026-03-10"})
    assert house.create(scores).audience.expires == date(2026, 3, 10)
    for day in (date(2026, 3, 11), date(2026, 2, 28)):
        with pytest.raises(RefusedError, match="fix: give a day from today up to 2026-03-10"):
            house.create(scores, name="b", expires=day)
    assert house.create(scores, name="b", expires=date(2026, 3, 1)).audience.expires == TODAY
    house.clock.pass_days(10)
    with pytest.raises(RefusedError, match="the model expired on 2026-03-10"):
        house.create(scores, name="c")


def test_a_flagged_name_needs_a_reason_which_is_kept(house: Any, crowd: dict[str, float]) -> None:
    with pytest.raises(RefusedError, match="the name suggests financial status"):
        house.create(crowd, name="high income")
    made = house.create(crowd, name="high income", name_reason=" the magazine's title ").audience
    assert house.store.audience(made.id).reason == "the magazine's title"


def test_too_few_members_are_refused_and_leave_nothing(
    house: Any, crowd: dict[str, float], files: Callable[[], set[str]]
) -> None:
    scores = house.scores(crowd)
    before = files()
    with pytest.raises(RefusedError, match="fewer than 100 members are left"):
        house.create(scores, level=custom_level(0.95), min_cell=100)
    assert files() == before
    assert list_audiences(house.store) == ()
    with pytest.raises(DataError, match="the minimum cell is below 50"):
        house.create(scores, min_cell=49)


def test_an_activation_must_answer_for_everybody(house: Any, crowd: dict[str, float]) -> None:
    with pytest.raises(Defect):
        house.create(crowd, activation=TooFew())


def test_a_second_command_waits(house: Any, crowd: dict[str, float]) -> None:
    with house.store.locked(), pytest.raises(OutputError, match="another command works on audiences"):
        house.create(crowd)
    house.create(crowd)


def test_replacing_expires_the_earlier_one_in_the_same_instant(house: Any, crowd: dict[str, float]) -> None:
    old = house.create(crowd).audience
    new = house.create(crowd, replaces=old.id).audience
    gone = house.store.audience(old.id)
    assert (gone.state, gone.replaced_by, new.state) == ("expired", new.id, "active")
    with pytest.raises(RefusedError, match="the audience to replace has expired"):
        house.create(crowd, name="b", replaces=old.id)
    assert not list(house.store.folder.glob(f"{old.id}*"))


# --- suppression lists -----------------------------------------------------------------------------------------------


def test_lists_are_csv_or_parquet_and_what_did_not_match_is_counted(house: Any, crowd: dict[str, float]) -> None:
    csv = house.csv("out.csv", customer=[" c0990 ", "c0991", "c0991", None, "nobody"])
    parquet = house.folder / "out.parquet"
    pq.write_table(pa.table({"id": ["c0991", "c0001", "stranger"]}), parquet)
    made = house.create(crowd, suppression=[IdList(csv, "customer"), IdList(parquet)])
    assert [(m.file, m.ids, m.blank, m.matched, m.unmatched) for m in made.lists] == [
        ("out.csv", 3, 1, 2, 1),
        ("out.parquet", 3, 0, 2, 1),
    ]
    assert made.excluded == Exclusions(suppressed=2)
    assert {"c0990", "c0991"}.isdisjoint(house.members(made.audience))


def test_ids_in_a_list_may_be_numbers(house: Any) -> None:
    path = house.folder / "out.parquet"
    pq.write_table(pa.table({"id": [7, 8]}), path)
    made = house.create({str(i): 0.9 for i in range(100)}, suppression=[IdList(path)])
    assert made.excluded.suppressed == 2


@pytest.mark.parametrize(
    ("name", "text", "column", "message"),
    [
        ("absent.csv", None, "id", "no such file"),
        ("list.xlsx", "id\nc0990\n", "id", "unknown kind of file"),
        ("list.csv", "c0990\nc0991\n", "id", "no column 'id'"),
        ("list.csv", "id\n\n", "id", "column 'id' has no id"),
        ("list.csv", "id,why\nc0990,call\nc0991\n", "id", "has malformed lines"),
        ("list.csv", "", "id", "the file is empty"),
        ("list.csv", "id,ref\nc0990,r1\n", "ref", "no id in column 'ref' is a customer's here"),
        ("list.csv", "id\nC0990\n", "id", "name the column with ids as they were onboarded"),
        ("list.parquet", "id", "id", "the database refused"),
    ],
)
def test_a_list_that_cannot_be_read_surely_is_refused(
    house: Any, crowd: dict[str, float], name: str, text: str | None, column: str, message: str
) -> None:
    path = house.folder / name
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(CohortiumError) as caught:
        house.create(crowd, suppression=[IdList(path, column)])
    assert message in str(caught.value)
    assert name in str(caught.value)
    assert "c099" not in str(caught.value)
    assert list_audiences(house.store) == ()


def test_a_list_of_nobody_may_be_allowed(house: Any, crowd: dict[str, float]) -> None:
    listed = IdList(house.csv("out.csv", id=["stranger"]), may_match_nobody=True)
    made = house.create(crowd, suppression=[listed])
    assert (made.lists[0].matched, made.lists[0].unmatched, made.excluded.suppressed) == (0, 1, 0)


@pytest.mark.parametrize("ids", [[["c0990"]], [{"id": "c0990"}]])
def test_a_column_of_lists_is_no_column_of_ids(house: Any, crowd: dict[str, float], ids: list[Any]) -> None:
    path = house.folder / "out.parquet"
    pq.write_table(pa.table({"id": ids}), path)
    with pytest.raises(DataError, match=r"out\.parquet: column 'id' has more than one value a line") as caught:
        house.create(crowd, suppression=[IdList(path, may_match_nobody=True)])
    assert "c099" not in str(caught.value)


def test_an_id_that_was_scored_twice_is_refused_wherever_it_stands(house: Any, crowd: dict[str, float]) -> None:
    path = house.scores(crowd)
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]).replace_schema_metadata(table.schema.metadata), path)
    for call in (
        lambda: house.create(path),
        lambda: preview(
            path, [BROAD], origin=house.store.origin(), min_cell=50, today=TODAY, activation=EverybodyAllowed()
        ),
    ):
        with pytest.raises(DataError, match=r"scores\.parquet: column 'id' has an id more than once"):
            call()


def test_scores_that_change_while_they_are_read_are_refused(house: Any, crowd: dict[str, float]) -> None:
    path = house.scores(crowd)

    class Rewrites(EvenOnly):
        def allowed(self, ids: Sequence[str]) -> NDArray[np.bool_]:
            with Path(path).open("ab") as file:
                file.write(b" ")
            return super().allowed(ids)

    with pytest.raises(DataError, match="was changed while it was read"):
        house.create(path, activation=Rewrites())


# --- refresh ---------------------------------------------------------------------------------------------------------


def test_a_refresh_chooses_anew_by_the_same_level(house: Any, crowd: dict[str, float]) -> None:
    old = house.create(crowd).audience
    moved = {i: 1 - score for i, score in crowd.items()}
    new = refresh(house.store, old.id, house.scores(moved), activation=EverybodyAllowed()).audience
    assert (new.id, new.revision, new.level) == (old.id, 2, BROAD)
    assert house.members(new) == sorted(i for i, score in moved.items() if score >= 0.5)
    assert not house.store.members_file(old.id, 1).exists()


def test_whoever_was_suppressed_once_stays_out(house: Any, crowd: dict[str, float]) -> None:
    first, second = (IdList(house.csv(f"{i}.csv", id=[i])) for i in ("c0990", "c0995"))
    made = house.create(crowd, suppression=[first]).audience
    again = refresh(house.store, made.id, house.scores(crowd), suppression=[second], activation=EverybodyAllowed())
    assert again.excluded.suppressed == 2
    assert refresh(house.store, made.id, house.scores(crowd), activation=EverybodyAllowed()).excluded.suppressed == 2


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ({"node": "west"}, "of another institution's customers .* fix: score this node's own customers"),
        ({"customers": OTHER_MODEL}, "onboarded anew since they were scored .* fix: score the customers again"),
    ],
)
def test_scores_of_other_customers_are_refused(
    house: Any, crowd: dict[str, float], label: dict[str, str], said: str
) -> None:
    made = house.create(crowd).audience
    foreign = house.scores(crowd, labels=label)
    for call in (
        lambda: preview(
            foreign, [BROAD], origin=house.store.origin(), min_cell=50, today=TODAY, activation=EverybodyAllowed()
        ),
        lambda: house.create(foreign, name="b"),
        lambda: refresh(house.store, made.id, foreign, activation=EverybodyAllowed()),
    ):
        with pytest.raises(RefusedError, match=said):
            call()
    assert house.store.audiences() == (made,)


def test_nobody_is_chosen_in_a_store_that_does_not_know_whose_customers_they_are(
    house: Any, crowd: dict[str, float]
) -> None:
    house.store = AudienceStore(house.engine, house.store.folder, house.clock)
    with pytest.raises(Defect, match="does not know whose they are"):
        house.create(crowd)


def test_a_refresh_needs_the_same_model_an_active_audience_and_enough_members(
    house: Any, crowd: dict[str, float]
) -> None:
    made = house.create(crowd).audience
    with pytest.raises(RefusedError, match="the scores are of another model"):
        refresh(house.store, made.id, house.scores(crowd, labels={"model": OTHER_MODEL}), activation=EverybodyAllowed())
    with pytest.raises(RefusedError, match="fix: expire the audience and export its removal"):
        refresh(house.store, made.id, house.scores(dict.fromkeys(crowd, 0.1)), activation=EverybodyAllowed())
    with pytest.raises(RefusedError, match="no such audience"):
        refresh(house.store, "aud-0", house.scores(crowd), activation=EverybodyAllowed())
    house.clock.pass_days(31)
    with pytest.raises(RefusedError, match="the audience has expired"):
        refresh(house.store, made.id, house.scores(crowd), activation=EverybodyAllowed())
    assert house.store.audience(made.id).revision == 1
