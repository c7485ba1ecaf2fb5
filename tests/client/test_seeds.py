"""Seed lists: what becomes of every line, the floors, versions that do not change, nothing half written."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

import cohortium.client.seeds as module
from cohortium.client.onboarding import Resources
from cohortium.client.seeds import SeedOrigin, SeedStore
from cohortium.models.basis import Basis, Block
from cohortium.models.features import Rows, on_weight_grid
from cohortium.models.ranker import Ranker
from cohortium.models.seed_choice import SeedRule
from cohortium.privacy.ledger import open_store
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import CohortiumError, DataError, RefusedError

MODEL = "sha256:" + "c" * 64
PLAN, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def people(n: int = 1000) -> CustomerTable:
    return CustomerTable(
        ("x",), np.arange(n, dtype=np.float64)[:, np.newaxis], np.array([f"c{i:05d}" for i in range(n)])
    )


def ids(*numbers: int) -> list[str]:
    return [f"c{i:05d}" for i in range(*numbers)]


@pytest.fixture
def database(tmp_path: Path) -> sa.Engine:
    return open_store(tmp_path / "node.sqlite")


@pytest.fixture
def store(database: sa.Engine) -> SeedStore:
    return SeedStore(database)


@pytest.fixture
def listed(tmp_path: Path) -> Callable[..., Path]:
    def write(lines: list[str], name: str = "vip.csv", header: str = "id") -> Path:
        path = tmp_path / name
        path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
        return path

    return write


def test_every_line_is_counted_once_as_what_it_is(store: SeedStore, listed: Any) -> None:
    lines = [*ids(300), " c00001 ", "c00002", '""', "nobody-1", "nobody-2", "nobody-2"]
    counts = store.add("vip", listed(lines), "id", people())
    assert (counts.matched, counts.unknown, counts.duplicate, counts.blank, counts.malformed) == (300, 2, 3, 1, 0)
    assert counts.listed == len(lines)
    assert (counts.consented, counts.allowed) == (300, 300)
    assert not counts.consent_checked
    assert "Consent: not checked." in counts.advice()[1]
    assert any("500 advised" in line for line in counts.advice())
    assert [entry.counts for entry in store.lists()] == [counts]


def test_the_mask_marks_the_listed_and_nobody_where_there_is_no_list(store: SeedStore, listed: Any) -> None:
    store.add("vip", listed(ids(100, 300)), "id", people())
    table = people()
    np.testing.assert_array_equal(np.flatnonzero(store.mask("vip", table)), np.arange(100, 300))
    assert store.members("vip").tolist() == ids(100, 300)
    np.testing.assert_array_equal(store.mask("vip", table.take(slice(250, 400))), np.arange(250, 400) < 300)
    assert not store.mask("other", table).any()
    assert store.mask("vip", table.take(slice(0, 0))).shape == (0,)


@pytest.mark.parametrize("kind", ["plain text", "parquet of numbers", "csv with more columns", "gzip"])
def test_every_kind_of_file_gives_the_same_list(store: SeedStore, tmp_path: Path, kind: str) -> None:
    table = CustomerTable(("x",), np.zeros((900, 1)), np.arange(900))
    if kind == "plain text":
        path, column = tmp_path / "vip.txt", None
        path.write_bytes("\ufeff".encode() + "\r\n".join(["5", " 7 ", "", *map(str, range(8, 206))]).encode() + b"\n\n")
    elif kind == "parquet of numbers":
        path, column = tmp_path / "vip.parquet", "id"
        values = pa.array([5.0, 7.0, None, None, *range(8, 206)], type=pa.float64())
        pq.write_table(pa.table({"id": values, "other": values}), path)
    else:
        path, column = tmp_path / "vip.csv", "who"
        lines = ["other;who", "1;5", "2; 7 ", "3;", "4;", *(f"9;{i}" for i in range(8, 206))]
        text = ("\n".join(lines) + "\n").encode()
        if kind == "gzip":
            import gzip

            path = tmp_path / "vip.csv.gz"
            text = gzip.compress(text)
        path.write_bytes(text)
    counts = store.add("vip", path, column, table)
    assert (counts.matched, counts.blank, counts.listed) == (200, 2, 202)
    assert set(store.members("vip")) == {"5", "7", *map(str, range(8, 206))}


def test_empty_lines_of_a_csv_file_are_no_customers(store: SeedStore, tmp_path: Path) -> None:
    path = tmp_path / "vip.csv"
    path.write_text("id\n" + "\n\n".join(ids(150)) + "\n", encoding="utf-8")
    assert store.add("vip", path, "id", people()).matched == 150


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (ids(99), "99 usable seeds"),
        ([], "0 usable seeds"),
        (["nobody"] * 200, "0 usable seeds"),
        (ids(1000), "every customer is in the seed"),
        (ids(501), "more than half"),
    ],
)
def test_lists_that_teach_nothing_are_refused_and_leave_nothing(
    store: SeedStore, listed: Any, lines: list[str], message: str
) -> None:
    with pytest.raises(RefusedError, match=message) as caught:
        store.add("vip", listed(lines), "id", people())
    assert caught.value.fix
    assert store.lists() == ()
    assert not store.mask("vip", people()).any()


@pytest.mark.parametrize("count", [100, 500])
def test_the_floor_and_the_half_are_allowed(store: SeedStore, listed: Any, count: int) -> None:
    counts = store.add("vip", listed(ids(count)), "id", people())
    assert counts.matched == count
    assert any("advised" in line for line in counts.advice()) == (count < 500)


class Without:
    """A consent store in which these customers said no."""

    def __init__(self, keys: list[str]) -> None:
        self._keys = keys

    def snapshot(self, table: CustomerTable) -> CustomerTable:
        return table.take(~np.isin(table.keys, self._keys))


def test_consent_and_rules_are_filters_and_the_floor_counts_what_remains(database: sa.Engine, listed: Any) -> None:
    store = SeedStore(database, consent=Without(ids(50)), policy=Without(ids(40, 60)))
    counts = store.add("vip", listed(ids(200)), "id", people())
    assert (counts.matched, counts.consented, counts.allowed) == (200, 150, 140)
    assert "Consent: 150 remain. Rules: 140 remain." in counts.advice()
    assert store.mask("vip", people()).sum() == 200, "consent is asked at every release, not once"
    with pytest.raises(RefusedError, match="99 usable seeds"):
        store.add("few", listed(ids(159)), "id", people())


def test_a_list_of_exported_customers_is_refused_above_one_half(store: SeedStore, listed: Any) -> None:
    seen: list[int] = []

    def share(found: Any) -> float:
        seen.append(len(found))
        return 0.501

    with pytest.raises(RefusedError, match="no lookalike of a lookalike"):
        store.add("vip", listed(ids(200)), "id", people(), already_exported=share)
    assert seen == [200]
    assert store.lists() == ()
    store.add("vip", listed(ids(200)), "id", people(), already_exported=lambda found: 0.5)


def test_a_list_changes_only_until_a_plan_used_it(store: SeedStore, listed: Any) -> None:
    store.add("vip", listed(ids(200)), "id", people())
    with pytest.raises(RefusedError, match="there is a list of this name"):
        store.add("vip", listed(ids(300)), "id", people())
    store.add("vip", listed(ids(300)), "id", people(), replace=True)
    assert store.use("vip", PLAN) == store.lists()[0].version
    with pytest.raises(RefusedError, match="cannot change"):
        store.add("vip", listed(ids(200)), "id", people(), replace=True)
    assert store.mask("vip", people()).sum() == 300


def test_a_plan_is_bound_to_a_version_and_stays_so(store: SeedStore, listed: Any, database: sa.Engine) -> None:
    store.add("vip", listed(ids(200)), "id", people())
    first, again, other = store.use("vip", PLAN), SeedStore(database).use("vip", PLAN), store.use("vip", OTHER)
    assert first == again == other == store.lists()[0].version
    with database.begin() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM seed_uses")).scalar() == 2
    assert store.use("nothing", PLAN) is None


def test_a_plan_that_found_no_list_never_sees_one(store: SeedStore, listed: Any, database: sa.Engine) -> None:
    assert store.use("late", PLAN) is None
    store.add("late", listed(ids(200)), "id", people())
    assert store.use("late", PLAN) is None
    assert SeedStore(database).use("late", PLAN) is None, "after a restart too"
    assert not store.lists()[0].used, "no plan used it: it may change"
    store.add("late", listed(ids(300)), "id", people(), replace=True)
    assert store.use("late", OTHER) == store.lists()[0].version
    assert store.lists()[0].used
    store.remove("late")
    assert store.use("late", "sha256:" + "d" * 64) is None
    assert [entry.removed for entry in store.lists()] == [True]


def test_a_list_whose_absence_alone_was_seen_leaves_its_name_when_removed(store: SeedStore, listed: Any) -> None:
    store.use("late", PLAN)
    for _ in range(2):
        store.add("late", listed(ids(200)), "id", people())
        store.remove("late")
        assert store.lists() == ()


def test_versions_tell_equal_lists_of_one_store_and_nothing_across_stores(tmp_path: Path, listed: Any) -> None:
    versions = []
    for name in ("a", "b"):
        store = SeedStore(open_store(tmp_path / f"{name}.sqlite"))
        store.add("one", listed(ids(200)), "id", people())
        store.add("same", listed(ids(200)[::-1]), "id", people())
        store.add("less", listed(ids(199)), "id", people())
        versions.append({entry.name: entry.version for entry in store.lists()})
    assert versions[0]["one"] == versions[0]["same"] != versions[0]["less"]
    assert not set(versions[0].values()) & set(versions[1].values())


def test_removing_erases_the_members_and_a_used_name_is_never_given_again(
    store: SeedStore, listed: Any, database: sa.Engine
) -> None:
    store.add("vip", listed(ids(200)), "id", people())
    store.remove("vip")
    assert store.lists() == ()
    store.add("vip", listed(ids(300)), "id", people())
    store.use("vip", PLAN)
    store.remove("vip")
    assert [entry.removed for entry in store.lists()] == [True]
    assert not store.mask("vip", people()).any()
    assert store.use("vip", PLAN) is None
    with database.begin() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM seed_members")).scalar() == 0
    with pytest.raises(RefusedError, match="cannot change"):
        store.add("vip", listed(ids(300)), "id", people(), replace=True)
    with pytest.raises(RefusedError, match="no seed list of that name"):
        store.remove("vip")


def on_disk(database: sa.Engine) -> bytes:
    path = Path(str(database.url.database))
    return b"".join(each.read_bytes() for each in path.parent.glob(path.name + "*"))


@pytest.mark.parametrize("how", ["remove", "replace"])
def test_no_id_of_an_erased_list_stays_on_disk_while_another_process_has_the_database_open(
    store: SeedStore, listed: Any, database: sa.Engine, how: str
) -> None:
    with contextlib.closing(sqlite3.connect(str(database.url.database))) as other:
        other.execute("SELECT count(*) FROM seed_lists").fetchone()
        store.add("vip", listed(ids(200)), "id", people())
        assert b"c00150" in on_disk(database)
        if how == "remove":
            assert store.remove("vip").erased
        else:
            store.add("vip", listed(ids(800, 950)), "id", people(), replace=True)
            assert store.erase_log()
        assert b"c00150" not in on_disk(database)


def test_a_log_that_another_process_reads_is_said_to_stay(store: SeedStore, listed: Any, database: sa.Engine) -> None:
    database.dispose()
    sa.event.listen(database, "connect", lambda connection, _record: connection.execute("PRAGMA busy_timeout=10"))
    store.add("vip", listed(ids(200)), "id", people())
    with contextlib.closing(sqlite3.connect(str(database.url.database), isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM seed_lists").fetchone()
        assert not store.remove("vip").erased
        assert b"c00150" in on_disk(database)
        other.execute("ROLLBACK")
        assert store.erase_log()
    assert b"c00150" not in on_disk(database)


def test_removing_names_the_lists_that_were_refined_from_it(store: SeedStore, listed: Any) -> None:
    store.add("vip", listed(ids(400)), "id", people())
    store.add("other", listed(ids(400)), "id", people())
    for source, name, least in (("vip", "b", 100), ("b", "a", 150), ("other", "z", 100)):
        store.refine(source, name, rule_from(least), MODEL, people())
    store.use("b", PLAN)
    assert store.remove("b").refined == ("a",)
    assert store.remove("vip").refined == ("a",), "through the list between, which is gone"
    store.add("vip", listed(ids(500)), "id", people())
    assert store.remove("vip").refined == (), "another list of the same name"
    assert store.remove("a").refined == ()


def test_a_failed_write_leaves_the_earlier_list_whole(
    store: SeedStore, listed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add("vip", listed(ids(200)), "id", people())
    before = store.lists()
    monkeypatch.setattr(module, "_CHUNK", 60)

    def failing(value: Any) -> bytes:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(module, "canonical_bytes", failing)  # the members are written by then
        with pytest.raises(OSError, match="disk full"):
            store.add("vip", listed(ids(300)), "id", people(), replace=True)
    assert store.lists() == before
    assert store.members("vip").tolist() == ids(200)
    store.add("vip", listed(ids(300)), "id", people(), replace=True)
    assert store.members("vip").tolist() == ids(300), "several chunks are one list"
    assert store.mask("vip", people()).sum() == 300


@pytest.mark.parametrize("name", ["", "Vip", "1vip", "v p", "v" * 65, "vip\n"])
def test_a_name_that_no_plan_could_state_is_refused(store: SeedStore, listed: Any, name: str) -> None:
    with pytest.raises(RefusedError, match="not a name"):
        store.add(name, listed(ids(200)), "id", people())


def test_bad_files_give_one_line_without_an_id(store: SeedStore, tmp_path: Path, listed: Any) -> None:
    ragged = listed([f"{key},x" if i % 4 == 0 else key for i, key in enumerate(ids(400))], "ragged.csv")
    headless = tmp_path / "headless.csv"
    headless.write_text("\n".join(ids(200)), encoding="utf-8")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 c00001")
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"\n".join([b"c0000\xff"] * 50 + [key.encode() for key in ids(200)]))
    cases: list[tuple[Path, str | None]] = [
        (ragged, "id"),
        (headless, "id"),
        (broken, "id"),
        (latin, None),
        (tmp_path / "missing.csv", "id"),
        (tmp_path / "missing.txt", None),
        (listed(ids(200)), "customer"),
        (listed(ids(200)), None),
        (tmp_path, "id"),
    ]
    for path, column in cases:
        with pytest.raises(DataError) as caught:
            store.add("vip", path, column, people())
        line = str(caught.value)
        assert "vip" in line
        assert "c000" not in line
        assert "\n" not in line
        assert str(tmp_path) not in line
        assert caught.value.fix
    assert store.lists() == ()


@pytest.mark.parametrize("kind", ["csv", "parquet", "headless"])
def test_a_column_that_is_not_there_is_named_and_no_other_is(
    store: SeedStore, tmp_path: Path, listed: Any, kind: str
) -> None:
    path = listed(ids(200), header="c00777" if kind == "headless" else "id")
    if kind == "parquet":
        path = tmp_path / "vip.parquet"
        pq.write_table(pa.table({"id": ids(200)}), path)
    with pytest.raises(DataError) as caught:
        store.add("vip", path, "customer", people())
    assert str(caught.value).startswith(f"vip ({path.name}): no column 'customer' — fix: name the column of the ids")
    assert "contract" not in str(caught.value)
    assert "c00" not in str(caught.value)


def test_some_unreadable_lines_are_counted_not_hidden(store: SeedStore, listed: Any) -> None:
    counts = store.add("vip", listed([*ids(200), "c00300,extra"]), "id", people())
    assert (counts.malformed, counts.matched, counts.listed) == (1, 200, 201)


def test_a_list_of_mostly_strangers_is_accepted_with_a_warning(store: SeedStore, listed: Any) -> None:
    counts = store.add("vip", listed([*ids(200), *(f"z{i}" for i in range(300))]), "id", people())
    assert any("Most ids are not customers here" in line for line in counts.advice())


def test_nothing_of_the_reading_stays_beside_the_database(store: SeedStore, listed: Any, tmp_path: Path) -> None:
    store.add("vip", listed(ids(200)), "id", people())
    with pytest.raises(CohortiumError):
        store.add("few", listed(ids(20)), "id", people())
    assert [path.name for path in tmp_path.glob(".seeds-*")] == []


def test_more_lines_than_fit_the_memory_limit_are_read(store: SeedStore, tmp_path: Path) -> None:
    path = tmp_path / "many.parquet"
    strangers = pa.array([f"stranger-{i:020d}" for i in range(600_000)])
    pq.write_table(pa.table({"id": pa.concat_arrays([strangers, pa.array(ids(250))])}), path)
    counts = store.add("vip", path, "id", people(), resources=Resources(memory_limit="64MB", threads=1))
    assert (counts.matched, counts.unknown) == (250, 600_000)


def rule_from(least: int, share: float = 1.0) -> SeedRule:
    """Customers from that number on pass, and so many of them stay."""
    rows = Rows(Basis((Block("x", low=0.0, high=1000.0, degree=1),)), np.zeros(1), 4.0)
    ranker = Ranker(rows, on_weight_grid(np.array([1.0])))
    cutoff = float(ranker.scores(people().take(slice(least, least + 1)))[0])
    return SeedRule(ranker, cutoff, np.empty(0), np.array([share]))


def test_a_refined_list_holds_whom_the_rule_keeps_and_says_what_it_was_made_of(store: SeedStore, listed: Any) -> None:
    store.add("vip", listed(ids(400)), "id", people())
    shuffled = people().take(np.random.default_rng(0).permutation(1000))  # type: ignore[arg-type]
    made = store.refine("vip", "good", rule_from(250), MODEL, shuffled)
    assert (made.counts.listed, made.counts.matched, made.alike, made.drawn) == (400, 150, 250, 0)
    assert store.members("good").tolist() == ids(250, 400)
    assert store.members("vip").tolist() == ids(400)
    store.add("same", listed(ids(250, 400)), "id", people())
    entries = {entry.name: entry for entry in store.lists()}
    assert entries["good"].origin == SeedOrigin("vip", entries["vip"].version, MODEL)
    assert entries["good"].counts == made.counts
    assert entries["good"].version == entries["same"].version
    assert entries["vip"].origin is None
    assert not entries["good"].used


def test_the_same_refinement_made_again_draws_the_same_members(tmp_path: Path, listed: Any) -> None:
    def drawn(
        store: SeedStore, *, source: str = "vip", name: str = "new", model: str = MODEL, share: float = 0.5
    ) -> set[str]:
        store.refine(source, name, rule_from(100, share), model, people())
        kept = set(store.members(name))
        store.remove(name)
        return kept

    store = SeedStore(open_store(tmp_path / "a.sqlite"))
    store.add("vip", listed(ids(500)), "id", people())
    store.add("shorter", listed(ids(499)), "id", people())
    first = drawn(store)
    assert drawn(store) == first, "made again"
    assert drawn(SeedStore(open_store(tmp_path / "a.sqlite"))) == first, "after a restart"
    other = SeedStore(open_store(tmp_path / "b.sqlite"))
    other.add("vip", listed(ids(500)), "id", people())
    different = [
        drawn(other),
        drawn(store, name="newer"),
        drawn(store, model="sha256:" + "d" * 64),
        drawn(store, source="shorter"),
        drawn(store, share=0.5000001),
    ]
    for kept in different:
        assert len(kept & first) < 150, "some 100 of 200 by chance"


def test_draws_of_two_names_differ_and_their_counts_add_up(store: SeedStore, listed: Any) -> None:
    store.add("vip", listed(ids(500)), "id", people())
    first, second = (store.refine("vip", name, rule_from(100, 0.5), MODEL, people()) for name in ("one", "two"))
    assert first.alike == 100
    assert first.alike + first.drawn + first.counts.matched == 500
    assert abs(first.counts.matched - 200) < 60
    assert set(store.members("one")) < set(ids(100, 500))
    assert set(store.members("one")) != set(store.members("two"))
    assert second.advice()[0].startswith(f"500 members: {second.counts.matched} kept, 100 left out because")
    assert "best used whole" in " ".join(second.advice())
    assert "500 advised" in second.advice()[-1]


def test_who_is_no_customer_any_more_is_not_kept(store: SeedStore, listed: Any) -> None:
    store.add("vip", listed(ids(400)), "id", people())
    made = store.refine("vip", "good", rule_from(100), MODEL, people().take(slice(50, 1000)))
    assert (made.counts.unknown, made.alike, made.counts.matched) == (50, 50, 300)


def test_consent_and_rules_filter_a_refined_list_too(database: sa.Engine, listed: Any) -> None:
    store = SeedStore(database, consent=Without(ids(300, 350)), policy=Without(ids(340, 360)))
    store.add("vip", listed(ids(500)), "id", people())
    counts = store.refine("vip", "good", rule_from(200), MODEL, people()).counts
    assert (counts.matched, counts.consented, counts.allowed) == (300, 250, 240)
    with pytest.raises(RefusedError, match="99 usable seeds"):
        store.refine("vip", "few", rule_from(401), MODEL, people())


def test_a_used_list_and_a_refined_one_can_be_refined(store: SeedStore, listed: Any) -> None:
    store.add("vip", listed(ids(400)), "id", people())
    store.use("vip", PLAN)
    store.refine("vip", "good", rule_from(100), MODEL, people())
    store.refine("good", "best", rule_from(200), MODEL, people())
    assert store.members("best").tolist() == ids(200, 400)


@pytest.mark.parametrize(
    ("source", "name", "least", "message"),
    [
        ("vips", "good", 0, "no seed list of that name"),
        ("gone", "good", 0, "no seed list of that name"),
        ("vip", "vip", 0, "there is a list of this name"),
        ("vip", "other", 0, "there is a list of this name"),
        ("vip", "gone", 0, "cannot change"),
        ("vip", "Good", 0, "not a name"),
        ("vip", "good", 301, "99 usable seeds"),
        ("vip", "good", 999, "0 usable seeds"),
    ],
)
def test_a_refinement_that_breaks_a_rule_leaves_everything_as_it_was(
    store: SeedStore, listed: Any, source: str, name: str, least: int, message: str
) -> None:
    for each in ("vip", "other", "gone"):
        store.add(each, listed(ids(400)), "id", people())
    store.use("gone", PLAN)
    store.remove("gone")
    before = store.lists()
    with pytest.raises(RefusedError, match=message) as caught:
        store.refine(source, name, rule_from(least), MODEL, people())
    assert caught.value.fix
    assert store.lists() == before
    assert store.members("other").tolist() == ids(400)
    assert store.members("good").tolist() == []


def test_a_refined_list_of_exported_customers_is_refused(store: SeedStore, listed: Any) -> None:
    store.add("vip", listed(ids(400)), "id", people())
    with pytest.raises(RefusedError, match="no lookalike of a lookalike"):
        store.refine("vip", "good", rule_from(250), MODEL, people(), already_exported=lambda found: len(found) / 299)
    assert [entry.name for entry in store.lists()] == ["vip"]


def test_a_list_that_changes_while_it_is_refined_is_noticed(store: SeedStore, listed: Any) -> None:
    store.add("vip", listed(ids(400)), "id", people())

    def meanwhile(found: Any) -> float:
        store.add("vip", listed(ids(300)), "id", people(), replace=True)
        return 0.0

    with pytest.raises(RefusedError, match="changed by another process"):
        store.refine("vip", "good", rule_from(0), MODEL, people(), already_exported=meanwhile)
    assert [entry.name for entry in store.lists()] == ["vip"]
