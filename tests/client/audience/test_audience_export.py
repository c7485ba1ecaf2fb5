"""Exports: full first, then what changed; rows as the destination wants them; a manifest that can be checked."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cohortium.client.audience import (
    Contacts,
    Destination,
    EverybodyAllowed,
    ExportRecord,
    PhoneRules,
    difference,
    expire,
    export,
    export_removal,
    export_withdrawals,
    list_audiences,
    parse_column,
    read_manifest,
    refresh,
)
from cohortium.client.audience.difference import additions, load_held, removals, snapshot_rows, snapshot_schema
from cohortium.client.audience.work import append, workbench, write_snapshot
from cohortium.client.onboarding.engine import Engine, Resources
from cohortium.study.canonical import digest_json
from cohortium.study.errors import CohortiumError, DataError, OutputError, RefusedError

ADS = Destination(
    "ads",
    (parse_column("email=mail:email,sha256"), parse_column("phone:e164,digits")),
    phones=PhoneRules("49", "0"),
)
PLAIN = Destination("plain", (parse_column("mail"), parse_column("phone")))


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


_TWO = pa.schema([pa.field("c0", pa.string()), pa.field("c1", pa.string())])


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    kept = difference._ROWS_AT_ONCE
    with workbench(None, Resources("256MB", 1)) as opened:
        yield opened
    difference._ROWS_AT_ONCE = kept


class Without(EverybodyAllowed):
    """Allows all but some."""

    def __init__(self, *ids: str) -> None:
        self.ids = ids

    def allowed(self, ids: Sequence[str]) -> NDArray[np.bool_]:
        return np.array([i not in self.ids for i in ids], dtype=np.bool_)


@pytest.fixture
def crowd() -> dict[str, float]:
    """200 members, c000 with the lowest score; 20 others."""
    return {f"c{i:03d}": 0.5 + i / 1000 for i in range(200)} | {f"x{i:03d}": 0.1 for i in range(20)}


@pytest.fixture
def contacts(house: Any) -> Callable[..., Contacts]:
    """Everybody's mail address and telephone number, with changes by id: (mail, phone), or None for no line."""

    def write(**changes: tuple[str | None, str | None] | None) -> Contacts:
        lines: dict[str, Any] = {f"c{i:03d}": (f" C{i:03d}@Example.org", f"0170 1{i:06d}") for i in range(200)}
        kept = {key: value for key, value in (lines | changes).items() if value is not None}
        mails, phones = ([value[k] for value in kept.values()] for k in (0, 1))
        return Contacts(house.csv("contacts.csv", customer=list(kept), mail=mails, phone=phones), "customer")

    return write


@pytest.fixture
def made(house: Any, crowd: dict[str, float]) -> str:
    return house.create(crowd).audience.id


# --- full, then what changed -----------------------------------------------------------------------------------------


def test_the_first_export_is_full_and_ordered_by_itself_not_by_score(house: Any, made: str, rows: Any) -> None:
    done = export(house.store, made, house.folder / "out", activation=EverybodyAllowed())
    assert (done.kind, done.sequence, done.state) == ("full", 1, "done")
    assert rows(house.folder / "out", "add") == [(f"c{i:03d}",) for i in range(200)]
    assert {p.name for p in (house.folder / "out").iterdir()} == {"add-000001.csv", "manifest.json"}


def test_later_exports_hold_what_changed(house: Any, made: str, crowd: dict[str, float], rows: Any) -> None:
    export(house.store, made, house.folder / "1", activation=EverybodyAllowed())
    refresh(house.store, made, house.scores(crowd | {"c000": 0.1, "x000": 0.9}), activation=EverybodyAllowed())
    done = export(house.store, made, house.folder / "2", activation=EverybodyAllowed())
    assert (done.kind, done.sequence) == ("delta", 2)
    assert rows(house.folder / "2", "add") == [("x000",)]
    assert rows(house.folder / "2", "remove") == [("c000",)]
    first, second = (read_manifest(house.folder / name) for name in "12")
    assert (second.previous, first.previous) == (first.digest, None)
    assert (second.added, second.removed, second.members) == (1, 1, 200)


def test_nothing_new_gives_a_manifest_without_rows(house: Any, made: str) -> None:
    export(house.store, made, house.folder / "1", activation=EverybodyAllowed())
    done = export(house.store, made, house.folder / "2", activation=EverybodyAllowed())
    assert (done.kind, done.sequence, done.files) == ("delta", 2, ())
    assert [p.name for p in (house.folder / "2").iterdir()] == ["manifest.json"]


def test_every_destination_has_its_own_sequence(house: Any, made: str, contacts: Any) -> None:
    export(house.store, made, house.folder / "1", activation=EverybodyAllowed())
    assert (
        export(house.store, made, house.folder / "2", ADS, contacts=contacts(), activation=EverybodyAllowed()).kind
        == "full"
    )
    assert export(house.store, made, house.folder / "3", activation=EverybodyAllowed()).sequence == 2
    assert [(r.destination, r.sequence) for r in house.store.exports(made)] == [
        ("ads", 1),
        ("default", 1),
        ("default", 2),
    ]


def test_whoever_may_no_longer_be_activated_is_removed(house: Any, made: str, rows: Any) -> None:
    export(house.store, made, house.folder / "1", activation=EverybodyAllowed())
    export(house.store, made, house.folder / "2", activation=Without("c007"))
    assert rows(house.folder / "2", "remove") == [("c007",)]
    assert read_manifest(house.folder / "2").not_allowed == 1
    export(house.store, made, house.folder / "3", activation=EverybodyAllowed())
    assert rows(house.folder / "3", "add") == [("c007",)]


class Refuses(Without):
    """Lets nothing go out."""

    def cleared(self, audience: Any, destination: str, sequence: int) -> None:
        raise RefusedError("nobody signed")


def test_withdrawals_are_removed_without_anybodys_leave_and_add_nobody(
    house: Any, made: str, crowd: dict[str, float], contacts: Any, rows: Any
) -> None:
    export(house.store, made, house.folder / "1", ADS, contacts=contacts(), activation=EverybodyAllowed())
    held = rows(house.folder / "1", "add")
    refresh(house.store, made, house.scores(crowd | {"c000": 0.1, "x000": 0.9}), activation=EverybodyAllowed())
    with pytest.raises(RefusedError, match="nobody signed"):
        export(house.store, made, house.folder / "2", ADS, contacts=contacts(), activation=Refuses("c007"))
    assert not (house.folder / "2").exists()
    done = export_withdrawals(house.store, made, house.folder / "2", "ads", activation=Refuses("c007"))
    manifest = read_manifest(house.folder / "2")
    assert (done.kind, done.sequence, done.removal) == ("delta", 2, False)
    assert (manifest.added, manifest.removed, manifest.not_allowed) == (0, 2, 1)
    assert manifest.members == len(held) - 2
    removed = rows(house.folder / "2", "remove")
    assert {cell for row in removed for cell in row if cell} <= {cell for row in held for cell in row}
    again = export_withdrawals(house.store, made, house.folder / "3", "ads", activation=Refuses("c007"))
    assert (again.sequence, again.files) == (3, ())
    # who was let in meanwhile is added by the next export that may go out
    all_of_them = contacts(x000=("x@example.org", "0170 2000000"))
    export(house.store, made, house.folder / "4", ADS, contacts=all_of_them, activation=Without("c007"))
    assert read_manifest(house.folder / "4").added == 1
    assert read_manifest(house.folder / "4").removed == 0


def test_withdrawals_may_leave_fewer_than_the_minimum_cell(house: Any, made: str) -> None:
    export(house.store, made, house.folder / "1", activation=EverybodyAllowed())
    gone = Refuses(*(f"c{i:03d}" for i in range(199)))
    export_withdrawals(house.store, made, house.folder / "2", activation=gone)
    assert read_manifest(house.folder / "2").removed == 199


def test_withdrawals_are_of_what_a_destination_holds(house: Any, made: str) -> None:
    with pytest.raises(RefusedError, match="holds nothing of the audience"):
        export_withdrawals(house.store, made, house.folder / "1", activation=EverybodyAllowed())
    export(house.store, made, house.folder / "1", activation=EverybodyAllowed())
    expire(house.store, made)
    with pytest.raises(RefusedError, match="expired"):
        export_withdrawals(house.store, made, house.folder / "2", activation=EverybodyAllowed())


# --- identifiers -----------------------------------------------------------------------------------------------------


def test_identifiers_come_normalised_from_the_contacts(house: Any, made: str, contacts: Any, rows: Any) -> None:
    export(
        house.store,
        made,
        house.folder / "out",
        ADS,
        contacts=contacts(c000=None, c001=("nobody", "170"), c002=(None, "0170 1000002")),
        activation=EverybodyAllowed(),
    )
    found = set(rows(house.folder / "out", "add"))
    assert (sha("c003@example.org"), "491701000003") in found
    assert (None, "491701000002") in found
    assert len(found) == 198
    manifest = read_manifest(house.folder / "out")
    assert (manifest.members, manifest.unmatched, manifest.unusable) == (198, 1, {"email": 2, "phone": 1})
    assert [(c.name, c.source, c.steps) for c in manifest.columns] == [
        ("email", "mail", ("email", "sha256")),
        ("phone", "phone", ("e164(calling_code=49, trunk=0)", "digits")),
    ]


def test_contacts_are_matched_in_many_parts_as_in_one(
    house: Any, made: str, contacts: Any, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = contacts(c000=None, c001=(None, None))
    export(house.store, made, house.folder / "one", ADS, contacts=file, activation=EverybodyAllowed())
    monkeypatch.setattr(difference, "_ROWS_AT_ONCE", 30)
    export(
        house.store,
        made,
        house.folder / "many",
        Destination("b", ADS.columns, phones=ADS.phones),
        contacts=file,
        activation=EverybodyAllowed(),
    )
    one, many = (read_manifest(house.folder / name) for name in ("one", "many"))
    assert rows(house.folder / "many", "add") == rows(house.folder / "one", "add")
    assert (
        (many.unmatched, many.unusable, many.members)
        == (one.unmatched, one.unusable, one.members)
        == (
            1,
            {"email": 1, "phone": 1},
            198,
        )
    )


def test_a_changed_identifier_removes_the_old_one(house: Any, made: str, contacts: Any, rows: Any) -> None:
    export(house.store, made, house.folder / "1", ADS, contacts=contacts(), activation=EverybodyAllowed())
    export(
        house.store,
        made,
        house.folder / "2",
        ADS,
        contacts=contacts(c005=("new@example.org", "0170 1000005")),
        activation=EverybodyAllowed(),
    )
    assert rows(house.folder / "2", "remove") == [(sha("c005@example.org"), None)]
    assert rows(house.folder / "2", "add") == [(sha("new@example.org"), "491701000005")]


def test_a_contact_that_is_gone_is_removed_as_it_was_exported(house: Any, made: str, contacts: Any, rows: Any) -> None:
    export(house.store, made, house.folder / "1", ADS, contacts=contacts(), activation=EverybodyAllowed())
    export(house.store, made, house.folder / "2", ADS, contacts=contacts(c005=None), activation=EverybodyAllowed())
    assert rows(house.folder / "2", "remove") == [(sha("c005@example.org"), "491701000005")]


def test_a_shared_identifier_stays_as_long_as_somebody_has_it(
    house: Any, made: str, crowd: dict[str, float], contacts: Any, rows: Any
) -> None:
    shared = contacts(c001=("c001@example.org", "0170 1000000"))  # c000's number
    export(house.store, made, house.folder / "1", ADS, contacts=shared, activation=EverybodyAllowed())
    refresh(house.store, made, house.scores(crowd | {"c000": 0.1}), activation=EverybodyAllowed())
    export(house.store, made, house.folder / "2", ADS, contacts=shared, activation=EverybodyAllowed())
    assert rows(house.folder / "2", "remove") == [(sha("c000@example.org"), None)]
    refresh(house.store, made, house.scores(crowd | {"c000": 0.1, "c001": 0.1}), activation=EverybodyAllowed())
    export(house.store, made, house.folder / "3", ADS, contacts=shared, activation=EverybodyAllowed())
    assert rows(house.folder / "3", "remove") == [(sha("c001@example.org"), "491701000000")]


_LINES = st.dictionaries(
    st.sampled_from([f"c{i}" for i in range(5)]),
    st.tuples(st.sampled_from(["a", "b", None]), st.sampled_from(["1", "2", None])).filter(any),
)


@settings(max_examples=40)
@given(st.lists(_LINES, min_size=2, max_size=4), st.sampled_from([2, 1_000_000]))
def test_a_destination_that_applies_every_export_holds_exactly_the_members(
    engine: Any,
    tmp_path_factory: pytest.TempPathFactory,
    plans: list[dict[str, tuple[str | None, str | None]]],
    at_once: int,
) -> None:
    """Whatever joins, leaves, changes or is shared, in one part or many; and whoever was ever there is remembered."""
    difference._ROWS_AT_ONCE = at_once
    snapshot = tmp_path_factory.mktemp("held") / "held.parquet"
    held: list[set[str | None]] = [set(), set()]
    ever: set[str] = set()
    for number, lines in enumerate(plans):
        load_held(engine, 2, f"read_parquet('{snapshot}')" if number else None)
        columns = {"id": list(lines), **{f"c{k}": [line[k] for line in lines.values()] for k in (0, 1)}}
        append(engine, "wanted", {name: pa.array(cells, pa.string()) for name, cells in columns.items()}, "test")
        removed, added = (pa.Table.from_batches(list(step(engine, 2)), _TWO) for step in (removals, additions))
        for k in (0, 1):
            gone, come = (set(table.column(k).to_pylist()) - {None} for table in (removed, added))
            assert gone <= held[k]
            assert gone.isdisjoint(come)
            held[k] = (held[k] - gone) | come
            assert held[k] == {line[k] for line in lines.values()} - {None}
        ever |= set(lines)
        write_snapshot(snapshot, snapshot_schema(2), snapshot_rows(engine, 2))
        kept = pq.read_table(snapshot)
        assert kept["id"].to_pylist() == sorted(ever)
        assert {i for i, here in zip(kept["id"].to_pylist(), kept["current"].to_pylist(), strict=True) if here} == set(
            lines
        )
        for table in ("held", "wanted"):
            engine.run("clearing", f"DROP TABLE {table}", "test")


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("max_rows", "sizes"), [(None, [200]), (200, [200]), (64, [64, 64, 64, 8]), (199, [199, 1])])
def test_files_are_cut_after_so_many_rows(house: Any, made: str, max_rows: int | None, sizes: list[int]) -> None:
    export(house.store, made, house.folder / "out", Destination(max_rows=max_rows), activation=EverybodyAllowed())
    files = read_manifest(house.folder / "out").files
    assert [file.rows for file in files] == sizes
    assert [file.name for file in files] == [f"add-{n:06d}.csv" for n in range(1, len(sizes) + 1)]
    lines = [(house.folder / "out" / file.name).read_text().splitlines() for file in files]
    assert [len(each) - 1 for each in lines] == sizes
    assert {each[0] for each in lines} == {'"id"'}


def test_the_three_formats_hold_the_same_rows(house: Any, made: str, contacts: Any) -> None:
    tricky = contacts(c000=('a"b, c\u00e9', "="), c001=(None, "1\u20032"))
    read: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
        "csv": lambda p: [
            {k: v or None for k, v in row.items()} for row in csv.DictReader(io.StringIO(p.read_text("utf-8")))
        ],
        "jsonl": lambda p: [json.loads(line) for line in p.read_text(encoding="utf-8").splitlines()],
        "parquet": lambda p: pq.read_table(p).to_pylist(),
    }
    found = {}
    for form in ("csv", "jsonl", "parquet"):
        to = Destination(form, PLAIN.columns, format=form)
        export(house.store, made, house.folder / form, to, contacts=tricky, activation=EverybodyAllowed())
        (file,) = read_manifest(house.folder / form).files
        found[form] = read[form](house.folder / form / file.name)
    assert found["csv"] == found["jsonl"] == found["parquet"]
    assert {"mail": 'a"b, c\u00e9', "phone": "="} in found["csv"]
    assert len(found["csv"]) == 200


def test_the_manifest_says_whose_audience_it_is_and_when_it_ends(house: Any, made: str) -> None:
    done = export(house.store, made, house.folder / "out", Destination("crm"), activation=EverybodyAllowed())
    raw = json.loads((house.folder / "out" / "manifest.json").read_text())
    kept = house.store.audience(made)
    assert raw["schema"] == "cohortium.audience-export/1"
    assert (raw["audience"], raw["name"], raw["model"], raw["plan"]) == (made, kept.name, kept.model, kept.plan)
    assert (raw["level"], raw["cutoff"], raw["reach"]) == ("broad", 0.5, 0.1)
    assert (raw["destination"], raw["kind"], raw["sequence"], raw["removal"]) == ("crm", "full", 1, False)
    assert (raw["expires"], raw["digest"]) == ("2026-03-31", done.digest)
    for file in raw["files"]:
        content = (house.folder / "out" / file["name"]).read_bytes()
        assert file["sha256"] == "sha256:" + hashlib.sha256(content).hexdigest()


def test_a_changed_folder_is_noticed(house: Any, made: str) -> None:
    folder = house.folder / "out"
    export(house.store, made, folder, activation=EverybodyAllowed())
    manifest, file = folder / "manifest.json", folder / "add-000001.csv"
    kept = manifest.read_text()
    manifest.write_text(kept.replace('"rows": 200', '"rows": 199'))
    with pytest.raises(DataError, match=r"manifest\.json is not of this version or was changed"):
        read_manifest(folder)
    manifest.write_text(kept)
    file.write_text(file.read_text() + '"c999"\n')
    with pytest.raises(DataError, match=r"add-000001\.csv is missing or was changed"):
        read_manifest(folder)
    assert read_manifest(folder, files=False).sequence == 1
    manifest.unlink()
    with pytest.raises(DataError, match="holds no finished export"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sequence", 2**60),
        ("name", "\ud800"),
        ("created", "\udfff"),
        ("added", 2**53),
        ("files", "../add-000001.csv"),
        ("files", "add-000001.csv\nall is well"),
        ("files", "a" * 5000),
        ("files", "\ud800"),
    ],
    ids=range(8),
)
def test_a_manifest_that_no_export_writes_is_refused_in_one_line(house: Any, made: str, key: str, value: Any) -> None:
    folder = house.folder / "out"
    export(house.store, made, folder, activation=EverybodyAllowed())
    raw = json.loads((folder / "manifest.json").read_text())
    (file,) = raw["files"]
    raw[key] = [{**file, "name": value}] if key == "files" else value
    body = {name: each for name, each in raw.items() if name != "digest"}
    with contextlib.suppress(ValueError):  # what has no canonical JSON has no digest to forge
        raw["digest"] = digest_json(body)
    (folder / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(DataError, match=r"manifest\.json is not of this version or was changed") as caught:
        read_manifest(folder)
    assert "\n" not in str(caught.value)


def test_exports_are_for_their_owner_alone(house: Any, made: str) -> None:
    folder = house.folder / "out"
    export(house.store, made, folder, activation=EverybodyAllowed())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}


# --- the end ---------------------------------------------------------------------------------------------------------


def test_an_expired_audience_is_removed_everywhere_and_never_exported_again(
    house: Any, made: str, contacts: Any, rows: Any, applied: Any
) -> None:
    held: list[set[str]] = [set(), set()]
    export(house.store, made, house.folder / "1", ADS, contacts=contacts(), activation=EverybodyAllowed())
    applied(house.folder / "1", held)
    assert expire(house.store, made).removal_due == ("ads",)
    with pytest.raises(RefusedError, match="the audience has expired"):
        export(house.store, made, house.folder / "2", ADS, contacts=contacts(), activation=EverybodyAllowed())
    done = export_removal(house.store, made, house.folder / "2", "ads", max_rows=100)
    assert (done.kind, done.sequence, done.removal) == ("delta", 2, True)
    applied(house.folder / "2", held)
    assert held == [set(), set()]
    manifest = read_manifest(house.folder / "2")
    assert (manifest.removal, manifest.members, manifest.added, manifest.removed) == (True, 0, 0, 200)
    assert manifest.columns == read_manifest(house.folder / "1").columns
    (listed,) = list_audiences(house.store)
    assert (listed.state, listed.removal_due) == ("expired", ())
    with pytest.raises(RefusedError, match="the destination holds nothing of the audience"):
        export_removal(house.store, made, house.folder / "3", "ads")


def test_the_last_day_ends_an_audience_without_a_command(house: Any, made: str) -> None:
    export(house.store, made, house.folder / "1", activation=EverybodyAllowed())
    with pytest.raises(RefusedError, match="the audience is active"):
        export_removal(house.store, made, house.folder / "2")
    house.clock.pass_days(30)
    export(house.store, made, house.folder / "2", activation=EverybodyAllowed())
    house.clock.pass_days(1)
    with pytest.raises(RefusedError, match="fix: create a new one, and export this one's removal"):
        export(house.store, made, house.folder / "3", activation=EverybodyAllowed())
    assert export_removal(house.store, made, house.folder / "3").sequence == 3


# --- refusals --------------------------------------------------------------------------------------------------------


def refused(house: Any, call: Callable[[], ExportRecord], message: str) -> CohortiumError:
    """The error; nothing was recorded and no folder appeared."""
    before = {p.name for p in house.folder.iterdir() if "sqlite" not in p.name}
    kept = house.store.exports()
    with pytest.raises(CohortiumError, match=message) as caught:
        call()
    assert {p.name for p in house.folder.iterdir() if "sqlite" not in p.name} == before
    assert house.store.exports() == kept
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_destination_keeps_its_columns(house: Any, made: str, contacts: Any) -> None:
    file = contacts()
    export(house.store, made, house.folder / "1", ADS, contacts=file, activation=EverybodyAllowed())
    for other in (
        Destination("ads"),
        Destination("ads", (ADS.columns[0],)),
        Destination("ads", ADS.columns, phones=PhoneRules("43", "0")),
    ):
        refused(
            house,
            lambda other=other: export(
                house.store, made, house.folder / "2", other, contacts=file, activation=EverybodyAllowed()
            ),
            "earlier exports to this destination had other columns",
        )
    export(
        house.store,
        made,
        house.folder / "2",
        Destination("ads", ADS.columns, "jsonl", 7, ADS.phones),
        contacts=file,
        activation=EverybodyAllowed(),
    )


def test_contacts_must_be_given_and_name_everybody_once(house: Any, made: str, contacts: Any) -> None:
    out = house.folder / "out"

    def attempt(given: Contacts | None, columns: str = "email=mail:email") -> Callable[[], ExportRecord]:
        to = Destination("crm", (parse_column(columns),))
        return lambda: export(house.store, made, out, to, contacts=given, activation=EverybodyAllowed())

    refused(house, attempt(None), "column 'email' needs contacts")
    twice = Contacts(house.csv("twice.csv", id=["c000", "c000"], mail=["a@b.org", "b@b.org"]))
    error = refused(house, attempt(twice), r"twice\.csv: column 'id' has an id more than once")
    assert "c000" not in str(error)
    headless = Contacts(house.csv("headless.csv", c000=["c001"], c002=["c003"]))
    error = refused(house, attempt(headless), r"headless\.csv: no column 'id' .* holds it with --id-column")
    assert "c00" not in str(error)
    refused(house, attempt(contacts(), "email=e_mail"), r"contacts\.csv: no column 'e_mail' .* holds it with --column")
    refused(house, attempt(Contacts(house.folder / "absent.csv")), "no such file")
    few = Contacts(house.csv("few.csv", id=["c000"], mail=["a@b.org"]))
    refused(house, attempt(few), "fewer than 50 members can be exported")


def test_a_folder_that_exists_or_cannot_be_written_is_refused(house: Any, made: str, tmp_path: Path) -> None:
    for name in ("file", "folder", ".new.partial"):
        (tmp_path / name).write_text("mine") if name == "file" else (tmp_path / name).mkdir()
    (tmp_path / ".new.partial" / "theirs").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "folder", "link"):
        refused(
            house, lambda name=name: export(house.store, made, tmp_path / name, activation=EverybodyAllowed()), "exists"
        )
    refused(house, lambda: export(house.store, made, tmp_path / "new", activation=EverybodyAllowed()), "is in the way")
    refused(
        house,
        lambda: export(house.store, made, tmp_path / "file" / "new", activation=EverybodyAllowed()),
        "fix: check space and permissions",
    )
    assert (tmp_path / ".new.partial" / "theirs").read_text() == "mine"
    if os.geteuid():
        (tmp_path / "folder").chmod(0o500)
        refused(
            house,
            lambda: export(house.store, made, tmp_path / "folder" / "new", activation=EverybodyAllowed()),
            "Permission denied",
        )


def test_lists_that_were_changed_are_refused(house: Any, made: str) -> None:
    export(house.store, made, house.folder / "1", activation=EverybodyAllowed())
    for path in sorted(house.store.folder.glob("*.parquet")):
        kept = path.read_bytes()
        path.write_bytes(kept[:-1] + b"x")
        if "suppressed" not in path.name:
            refused(
                house,
                lambda: export(house.store, made, house.folder / "2", activation=EverybodyAllowed()),
                "is missing or was changed",
            )
        path.write_bytes(kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "Big Ads"}, "malformed name"),
        ({"format": "xlsx"}, "unknown format .* fix: use csv, jsonl, parquet"),
        ({"columns": ()}, "no column, or two of one name"),
        ({"columns": (parse_column("id"), parse_column("ID=mail"))}, "no column, or two of one name"),
        ({"max_rows": 0}, "max_rows is below 1"),
        ({"columns": (parse_column("phone:e164"),)}, "default calling code"),
    ],
)
def test_a_destination_is_valid_once_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Destination(**options)


def test_a_second_export_waits(house: Any, made: str) -> None:
    with house.store.locked(), pytest.raises(OutputError, match="another command works on audiences"):
        export(house.store, made, house.folder / "out", activation=EverybodyAllowed())
