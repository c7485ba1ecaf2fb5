"""Import of what people said before, from CSV or JSON, in bulk.

A mapping (TOML) says which columns hold what. Rows that cannot be taken are counted, and listed in a file of rejects by
row number, field and reason; no value of a row is quoted anywhere. Every piece is committed with how far the import
came: a killed import goes on where it stopped, and one that was finished changes nothing when it is asked for again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import zoneinfo
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import IO, Annotated, Any, Literal, TypeAlias

from pydantic import Field, ValidationError, model_validator

from cohortium.governance.consent.records import load_template
from cohortium.governance.consent.signals import FLAGS, AnySignal, parse_signal
from cohortium.governance.consent.store import ConsentStore, Entry, Rejected
from cohortium.study.document import Agreed, Document, read_toml, validated
from cohortium.study.errors import DataError, RefusedError

__all__ = ["ImportCounts", "ImportMapping", "import_signals", "load_mapping"]

PIECE = 50_000
_LARGEST_ARRAY = 256 * 2**20
_FLAG_KINDS = tuple(name for name in FLAGS if name not in ("minor", "erasure"))

Row: TypeAlias = dict[str, str] | Rejected


class Columns(Agreed):
    """Which column holds what; `person` and `time` always, others by kind."""

    person: str
    time: str
    state: str | None = None
    purposes: str | None = None
    evidence_hash: str | None = None
    permission: str | None = None
    valid_until: str | None = None
    last_authentication: str | None = None
    pulls_24h: str | None = None


class ImportMapping(Document):
    """How rows of a file become signals.

    Args:
        schema_id: `cohortium.consent-import/1`; written `schema` in TOML.
        kind: `consent`, `age-band`, `open-banking`, or an objection, opt-out or permission.
        columns: where things are.
        state: of every row, where no column holds it.
        states: what values of the state column mean; a value that is not listed stands for itself.
        purposes: of every row, where no column holds them.
        purpose_names: what values in the purposes column mean.
        separator: between purposes in one cell.
        template: file of the record template of consents, beside the mapping.
        event_type, validity_duration, entity_id: of every consent.
        zone: time zone of times that name none, such as UTC or Europe/Berlin; without it they are rejected.
    """

    schema_id: Annotated[Literal["cohortium.consent-import/1"], Field(alias="schema")]
    kind: str
    columns: Columns
    state: str | None = None
    states: dict[str, str] = Field(default_factory=dict)
    purposes: tuple[str, ...] = ()
    purpose_names: dict[str, str] = Field(default_factory=dict)
    separator: Annotated[str, Field(min_length=1, max_length=3)] = "|"
    template: str | None = None
    event_type: Literal["implied", "expressed", "explicit"] = "explicit"
    validity_duration: str = "until-withdrawn"
    entity_id: str = "data subject"
    zone: str | None = None

    @model_validator(mode="after")
    def _holds_together(self) -> ImportMapping:
        known = ("consent", "age-band", "open-banking", *_FLAG_KINDS)
        if self.kind not in known:
            raise ValueError(f"kind is none that can be imported; use one of {', '.join(known)}")
        if (self.state is None) == (self.columns.state is None):
            raise ValueError("state: give either one state for all rows, or the column that holds it")
        if self.kind == "consent" and bool(self.purposes) == (self.columns.purposes is not None):
            raise ValueError("purposes: give either purposes for all rows, or the column that holds them")
        if self.kind == "consent" and self.template is None:
            raise ValueError("template is missing: a consent refers to a record template; name its file")
        if self.zone is not None and self.zone not in zoneinfo.available_timezones():
            raise ValueError("zone is no time zone; use such as UTC or Europe/Berlin")
        return self


@dataclass(frozen=True)
class ImportCounts:
    """What became of a file's rows.

    Args:
        rows: read in all.
        recorded: now in the store; `repeated`: were there before; `rejected`: listed in the file of rejects.
        finished: whether the file was read to its end.
    """

    rows: int = 0
    recorded: int = 0
    repeated: int = 0
    rejected: int = 0
    reject_bytes: int = 0
    finished: bool = False


def load_mapping(path: Path) -> ImportMapping:
    """The mapping of a TOML file; `DataError` names the key that does not hold."""
    return validated(ImportMapping, read_toml(path, DataError), str(path), {}, DataError)


def import_signals(
    store: ConsentStore,
    file: Path,
    mapping_file: Path,
    rejects: Path,
    progress: Callable[[ImportCounts], None] = lambda _: None,
) -> ImportCounts:
    """Record every row of a file that can be taken.

    Args:
        store: where to.
        file: `.csv` (UTF-8, header line), `.jsonl` with an object a line, or `.json` with a list of objects, up to
            256 MiB.
        mapping_file: TOML, see `ImportMapping`.
        rejects: CSV file of rejected rows: row, field, reason. A stopped import goes on with its file.
        progress: told after every piece, which is then durable.

    Raises:
        DataError: a file cannot be read, or has not the mapped columns; nothing of it was recorded.
    """
    mapping = load_mapping(mapping_file)
    digest = None
    if mapping.kind == "consent":
        digest = store.add_template(load_template(mapping_file.parent / str(mapping.template)))
    source = _source(file, mapping, digest)
    kept = store.progress(source)
    counts = ImportCounts() if kept is None else ImportCounts(**json.loads(kept))
    if counts.finished:
        return counts
    reader = _Reader(mapping, digest)
    with _rows(file, mapping) as rows, _rejects(rejects, counts.reject_bytes) as out:
        remaining = islice(enumerate(rows, start=1), counts.rows, None)
        while True:
            piece = list(islice(remaining, PIECE))
            counts = _record(store, source, reader, piece, counts, out)
            progress(counts)
            if counts.finished:
                return counts


def _record(
    store: ConsentStore,
    source: str,
    reader: _Reader,
    piece: list[tuple[int, Row]],
    counts: ImportCounts,
    out: IO[bytes],
) -> ImportCounts:
    """One piece: recorded together with the progress that says so, after its rejects are on disk."""
    read = [(number, row if isinstance(row, Rejected) else reader.entry(row)) for number, row in piece]
    entries = [entry for _, entry in read if isinstance(entry, Entry)]
    told: ImportCounts | None = None

    def account(done: list[Any]) -> bytes:
        nonlocal told
        results = iter(done)
        whole = [(number, next(results) if isinstance(entry, Entry) else entry) for number, entry in read]
        refused = [(number, each) for number, each in whole if isinstance(each, Rejected)]
        text = "".join(f"{number},{each.field},{each.reason}\n" for number, each in refused).encode()
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
        repeated = sum(1 for each in done if not isinstance(each, Rejected) and each.repeated)
        told = ImportCounts(
            rows=counts.rows + len(piece),
            recorded=counts.recorded + len(piece) - len(refused) - repeated,
            repeated=counts.repeated + repeated,
            rejected=counts.rejected + len(refused),
            reject_bytes=counts.reject_bytes + len(text),
            finished=len(piece) < PIECE,
        )
        return json.dumps(asdict(told)).encode()

    store.record_many(entries, source, account)
    return counts if told is None else told


class _Reader:
    """Turns rows into entries; cells that recur are read once."""

    def __init__(self, mapping: ImportMapping, template: str | None) -> None:
        self._mapping = mapping
        self._template = template
        self._zone = None if mapping.zone is None else zoneinfo.ZoneInfo(mapping.zone)
        self._signals: dict[tuple[str, ...], AnySignal | Rejected] = {}
        self._times: dict[str, int | None] = {}
        named = mapping.columns.model_dump(exclude_none=True)
        self._about = [named[name] for name in _ABOUT if name in named]
        self._personal: dict[str, str] = {name: column for name, column in named.items() if name in _PERSONAL}

    def entry(self, row: dict[str, str]) -> Entry | Rejected:
        """The entry of a row."""
        columns = self._mapping.columns
        cells = tuple([row[name] for name in self._about])
        signal = self._signals.get(cells)
        if signal is None:
            signal = self._signal(row)
            if len(self._signals) < PIECE:
                self._signals[cells] = signal
        if isinstance(signal, Rejected):
            return signal
        time = self._time(row[columns.time])
        if time is None:
            return Rejected("time", "is no ISO 8601 time with a zone")
        personal: dict[str, str] | None = {
            name: row[column] for name, column in self._personal.items() if row[column]
        } or None
        return Entry(row[columns.person], signal, time, personal)

    def _time(self, cell: str) -> int | None:
        if cell not in self._times:
            if len(self._times) >= PIECE:
                self._times.clear()
            self._times[cell] = self._read_time(cell)
        return self._times[cell]

    def _read_time(self, cell: str) -> int | None:
        try:
            time = datetime.fromisoformat(cell)
        except ValueError:
            return None
        if time.tzinfo is None:
            if self._zone is None:
                return None
            time = time.replace(tzinfo=self._zone)
        return int(time.timestamp())

    def _signal(self, row: dict[str, str]) -> AnySignal | Rejected:
        mapping, columns = self._mapping, self._mapping.columns
        cell = mapping.state if columns.state is None else row[columns.state]
        raw: dict[str, Any] = {"kind": mapping.kind, "state": mapping.states.get(str(cell), cell)}
        if mapping.kind == "consent":
            cells = list(mapping.purposes) if columns.purposes is None else _split(row[columns.purposes], mapping)
            raw |= {
                "template": self._template,
                "purposes": cells,
                "event_type": mapping.event_type,
                "validity_duration": mapping.validity_duration,
                "entity_id": mapping.entity_id,
            }
        for name in ("valid_until", "last_authentication", "pulls_24h"):
            column = getattr(columns, name)
            if column is not None and row[column]:
                raw[name] = row[column]
        return _parsed(raw)


_PERSONAL = ("evidence_hash", "permission")
_ABOUT = ("state", "purposes", "valid_until", "last_authentication", "pulls_24h")


def _parsed(raw: dict[str, Any]) -> AnySignal | Rejected:
    """The signal, or which field does not hold; what pydantic says would quote the cell."""
    try:
        return parse_signal(raw)
    except ValidationError as error:
        places = [str(part) for part in error.errors(include_input=False)[0]["loc"]]
    except RefusedError:
        places = ["purposes"]
    field = next((part for part in reversed(places) if part in raw), "state")
    return Rejected(field, "holds what is not foreseen; map it")


def _split(cell: str, mapping: ImportMapping) -> list[str]:
    parts = (part.strip(" ") for part in cell.split(mapping.separator))
    return [mapping.purpose_names.get(part, part) for part in parts if part]


def _source(file: Path, mapping: ImportMapping, template: str | None) -> str:
    """The digest under which an import is known: of file, mapping and template."""
    try:
        with file.open("rb") as handle:
            content = hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise DataError(error.strerror or "cannot be read", place=str(file), fix="check the path") from None
    return "sha256:" + hashlib.sha256(f"{content}\n{mapping.digest}\n{template}".encode()).hexdigest()


@contextmanager
def _rejects(path: Path, kept: int) -> Iterator[IO[bytes]]:
    """The file of rejects, cut to what was committed."""
    try:
        handle = path.open("r+b" if kept else "wb")
    except OSError as error:
        fix = "name the file of the import that was stopped" if kept else "name a file in a folder that is there"
        raise DataError(error.strerror or "cannot be written", place=str(path), fix=fix) from None
    with handle:
        handle.truncate(kept)
        handle.seek(kept)
        yield handle


@contextmanager
def _rows(file: Path, mapping: ImportMapping) -> Iterator[Iterator[Row]]:
    """The file's rows, each with every mapped column as text, or why it is none."""
    wanted = list(dict.fromkeys(mapping.columns.model_dump(exclude_none=True).values()))
    with file.open("rb") as raw:
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
        if file.name.endswith(".csv"):
            yield _csv_rows(text, wanted, file)
        elif file.name.endswith(".jsonl"):
            yield (_json_row(line, wanted, mapping.separator) for line in text if line.strip())
        elif file.name.endswith(".json"):
            yield (_object_row(each, wanted, mapping.separator) for each in _array(text, file))
        else:
            raise DataError("unknown kind of file", place=str(file), fix="give .csv, .jsonl or .json")


def _csv_rows(text: io.TextIOWrapper, wanted: list[str], file: Path) -> Iterator[Row]:
    reader = csv.reader(text, strict=True)
    header = [name.strip() for name in next(reader, [])]
    missing = [name for name in wanted if header.count(name) != 1]
    if missing:
        raise DataError("is not a column, or more than one", place=f"{file}: {missing[0]}", fix="correct the mapping")
    places = [header.index(name) for name in wanted]

    def rows() -> Iterator[Row]:
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error:
                yield Rejected("row", "is no CSV")
                continue
            if len(cells) != len(header):
                if cells:
                    yield Rejected("row", "has not as many fields as the header")
                continue
            yield _checked({name: cells[place].strip(" ") for name, place in zip(wanted, places, strict=True)})

    return rows()


def _json_row(line: str, wanted: list[str], separator: str) -> Row:
    try:
        return _object_row(json.loads(line), wanted, separator)
    except (ValueError, RecursionError):
        return Rejected("row", "is no JSON")


def _object_row(found: Any, wanted: list[str], separator: str) -> Row:
    if not isinstance(found, dict):
        return Rejected("row", "is no JSON object")
    row = {}
    for name in wanted:
        value = found.get(name)
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            value = separator.join(value)
        if isinstance(value, bool) or not isinstance(value, str | int | None):
            return Rejected(name, "is neither text nor a whole number")
        row[name] = "" if value is None else str(value).strip(" ")
    return _checked(row)


def _checked(row: dict[str, str]) -> Row:
    for name, cell in row.items():
        if not cell.isascii():
            try:
                cell.encode()
            except UnicodeEncodeError:
                return Rejected(name, "is not UTF-8")
    return row


def _array(text: io.TextIOWrapper, file: Path) -> list[Any]:
    if file.stat().st_size > _LARGEST_ARRAY:
        raise DataError("is too large to be read at once", place=str(file), fix="write .jsonl, one object a line")
    try:
        found = json.load(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise DataError("is no JSON list of objects", place=str(file), fix="write a list, or .jsonl")
    return found
