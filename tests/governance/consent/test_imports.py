"""Files become signals: what cannot be taken is named by row and field, a stopped import goes on, nothing is quoted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cohortium.governance.consent import Cohort, ConsentStore, import_signals, imports, load_mapping
from cohortium.governance.consent.imports import ImportCounts
from cohortium.study.errors import DataError

from .conftest import Clock, template_document

SEGMENTS = Cohort("CustomerSegmentation", "consent")

MAPPING = """
schema = "cohortium.consent-import/1"
kind = "consent"
template = "template.toml"
validity_duration = "P1Y"

[columns]
person = "id"
time = "at"
state = "said"
purposes = "what"

[states]
yes = "ConsentGiven"
no = "ConsentRefused"

[purpose_names]
ads = "TargetedAdvertising"
all = "Marketing"
"""

ROWS = [
    ("anna", "2026-02-01T10:00:00Z", "yes", "all"),
    ("ben", "2026-02-01T10:00:00+02:00", "yes", "ads|Personalisation"),
    ("", "2026-02-01T10:00:00Z", "yes", "all"),
    ("cleo", "2026-02-01", "yes", "all"),
    ("dora", "2026-02-01T10:00:00Z", "perhaps-4711", "all"),
    ("emil", "2026-02-01T10:00:00Z", "yes", "spying-4711"),
    ("fred", "2027-02-01T10:00:00Z", "yes", "all"),
    ("gita", "2026-02-01T10:00:00Z", "no", "all"),
    ("hans", "2026-02-01T10:00:00Z", "yes", "ResearchAndDevelopment"),
]
REJECTS = "3,person,is not an id\n4,time,is no ISO 8601 time with a zone\n"


def toml(value: Any, name: str = "") -> str:
    """Enough TOML for a template."""
    plain = {key: each for key, each in value.items() if not isinstance(each, dict | list) or not _tables(each)}
    text = "".join(f"{key} = {_inline(each)}\n" for key, each in plain.items())
    for key, each in value.items():
        if isinstance(each, dict):
            text += f"\n[{key}]\n{toml(each)}"
        elif _tables(each):
            text += "".join(f"\n[[{key}]]\n{toml(part)}" for part in each)
    return text


def _tables(value: Any) -> bool:
    tables = isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "pii_type" not in value[0]
    return isinstance(value, dict) or tables


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_inline(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_inline(each) for each in value) + "]"
    return json.dumps(value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "files"
    home.mkdir()
    (home / "template.toml").write_text(toml(template_document()))
    (home / "mapping.toml").write_text(MAPPING)
    return home


def write_csv(folder: Path, rows: list[tuple[str, ...]]) -> Path:
    (folder / "c.csv").write_text("\n".join(["id,at,said,what", *(",".join(row) for row in rows)]) + "\n")
    return folder / "c.csv"


def load(store: ConsentStore, folder: Path, file: Path, **more: Any) -> ImportCounts:
    return import_signals(store, file, folder / "mapping.toml", folder / "rejects.csv", **more)


def test_rows_are_recorded_or_rejected_by_name(store: ConsentStore, folder: Path) -> None:
    counts = load(store, folder, write_csv(folder, ROWS))
    assert (counts.rows, counts.recorded, counts.rejected, counts.finished) == (9, 3, 6, True)
    told = (folder / "rejects.csv").read_text()
    assert told.startswith(REJECTS)
    assert [line.split(",")[:2] for line in told.splitlines()[2:]] == [
        ["5", "state"],
        ["6", "purposes"],
        ["7", "time"],
        ["9", "purposes"],
    ]
    assert "4711" not in told
    people = np.array([row[0] for row in ROWS])
    assert people[store.snapshot(SEGMENTS).allowed(people)].tolist() == ["anna"]
    assert people[store.snapshot(Cohort("LookalikeModelling", "consent")).allowed(people)].tolist() == ["anna", "ben"]


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_json_says_the_same(store: ConsentStore, folder: Path, suffix: str) -> None:
    objects: list[Any] = [dict(zip(("id", "at", "said", "what"), row, strict=True)) for row in ROWS]
    objects[1]["what"] = ["ads", "Personalisation"]
    objects += [["no object"], {**objects[0], "id": 7.5}]
    lines = [json.dumps(each) for each in objects]
    file = folder / f"c.{suffix}"
    file.write_text("\n".join([*lines, "{no json"]) if suffix == "jsonl" else f"[{','.join(lines)}]")
    counts = load(store, folder, file)
    assert (counts.recorded, counts.rejected) == (3, 9 if suffix == "jsonl" else 8)


def test_a_finished_import_changes_nothing_and_rows_known_before_are_told(store: ConsentStore, folder: Path) -> None:
    first = load(store, folder, write_csv(folder, ROWS[:2]))
    assert load(store, folder, folder / "c.csv") == first
    assert store.sequence == 2
    more = load(store, folder, write_csv(folder, [*ROWS[:2], ROWS[7]]))
    assert (more.recorded, more.repeated, store.sequence) == (1, 2, 3)


def test_a_stopped_import_goes_on_where_it_was(
    store: ConsentStore, open_consent: Callable[[], ConsentStore], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "PIECE", 2)
    file = write_csv(folder, ROWS)

    def stop(counts: ImportCounts) -> None:
        if counts.rows == 4:
            with (folder / "rejects.csv").open("ab") as out:
                out.write(b"half a line" * 100)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(store, folder, file, progress=stop)
    assert store.sequence == 2
    assert load(open_consent(), folder, file) == ImportCounts(
        rows=9, recorded=3, rejected=6, reject_bytes=(folder / "rejects.csv").stat().st_size, finished=True
    )
    told = (folder / "rejects.csv").read_text()
    assert told.startswith(REJECTS)
    assert len(told.splitlines()) == 6
    assert store.verify() == 3


def test_ragged_lines_broken_text_and_zones(store: ConsentStore, folder: Path) -> None:
    (folder / "mapping.toml").write_text(
        MAPPING.replace('kind = "consent"', 'kind = "consent"\nzone = "Europe/Berlin"')
    )
    (folder / "c.csv").write_bytes(
        b"\xef\xbb\xbfid,at,said,what\nanna,2026-02-01,yes,all\nben,2026-02-01,yes\nc\xff,2026-02-01,yes,all\n\n"
    )
    counts = load(store, folder, folder / "c.csv")
    assert (counts.recorded, counts.rejected) == (1, 2)
    assert store.receipt("anna")[0]["said_at"] == "2026-01-31T23:00:00+00:00"
    told = (folder / "rejects.csv").read_text()
    assert told == "2,row,has not as many fields as the header\n3,id,is not UTF-8\n"


@pytest.mark.parametrize(
    ("kind", "header", "row", "flag"),
    [
        ("gpc", "id,at,said", "anna,2026-02-01T00:00:00Z,yes", "gpc"),
        ("age-band", "id,at,said", "anna,2026-02-01T00:00:00Z,13-17", "minor"),
        ("open-banking", "id,at,said,u,l", "anna,2026-02-01T00:00:00Z,authorised,2027-01-01,2026-02-01", None),
    ],
)
def test_other_kinds(store: ConsentStore, folder: Path, kind: str, header: str, row: str, flag: str | None) -> None:
    more = 'valid_until = "u"\nlast_authentication = "l"\n' if kind == "open-banking" else ""
    (folder / "mapping.toml").write_text(
        f'schema = "cohortium.consent-import/1"\nkind = "{kind}"\n[columns]\nperson = "id"\ntime = "at"\n'
        'state = "said"\n'
        f'{more}[states]\nyes = "set"\n'
    )
    (folder / "c.csv").write_text(f"{header}\n{row}\n")
    assert load(store, folder, folder / "c.csv").recorded == 1
    standing = store.standing("anna")
    assert standing is not None
    assert standing["flags"] == ([flag] if flag else [])
    assert (standing["open_banking"] is not None) == (flag is None)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("kind", "kinds"), "unknown key"),
        (('"consent"', '"vote"'), "none that can be imported"),
        (('state = "said"', ""), "state"),
        (('purposes = "what"', ""), "purposes"),
        (('template = "template.toml"', ""), "template is missing"),
        (('kind = "consent"', 'kind = "consent"\nzone = "Mars"'), "zone"),
    ],
)
def test_a_mapping_that_does_not_hold(folder: Path, change: tuple[str, str], word: str) -> None:
    (folder / "mapping.toml").write_text(MAPPING.replace(*change))
    with pytest.raises(DataError, match=word):
        load_mapping(folder / "mapping.toml")


def test_files_that_cannot_be_read(store: ConsentStore, folder: Path, clock: Clock) -> None:
    (folder / "c.csv").write_text("id,at,said\n")
    (folder / "c.xls").write_text("")
    (folder / "c.json").write_text("{}")
    for name, word in (("c.csv", "what"), ("c.xls", "kind of file"), ("c.json", "list"), ("none.csv", "No such file")):
        with pytest.raises(DataError, match=word):
            load(store, folder, folder / name)
    assert store.sequence == 0
