"""Files that an operator brings: lists of ids that stay out, and contacts by id. CSV or Parquet, of any size.

A list of objections that is read wrongly lets people in who objected. A malformed line and a list that matches nobody
are therefore refused rather than counted, and what did not match is always shown.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cohortium.client.onboarding.cells import text
from cohortium.client.onboarding.engine import Engine, quoted
from cohortium.client.onboarding.sources import OpenSource, open_source
from cohortium.study.errors import DataError

__all__ = ["Contacts", "IdList", "ListMatch", "load_contacts", "load_lists"]

_NESTED = ("STRUCT", "MAP", "UNION")


@dataclass(frozen=True)
class IdList:
    """A list of customers who stay out.

    Args:
        path: CSV (also .gz) or Parquet; text with a header line.
        column: which holds the ids, written as in the scores file; blanks around them do not matter.
        may_match_nobody: whether it is known that perhaps none of them is a customer here.
    """

    path: Path
    column: str = "id"
    may_match_nobody: bool = False


@dataclass(frozen=True)
class Contacts:
    """Identifiers of customers, one line each.

    Args:
        path: CSV (also .gz) or Parquet; text with a header line.
        column: which holds the ids, each once.
    """

    path: Path
    column: str = "id"


@dataclass(frozen=True)
class ListMatch:
    """How a list fared. Exact and local.

    Args:
        file: its name.
        ids: different ids in it.
        blank: lines without an id.
        matched: ids of customers who were scored.
    """

    file: str
    ids: int
    blank: int
    matched: int

    @property
    def unmatched(self) -> int:
        """Ids of nobody who was scored: many of them suggest the wrong column or another form of ids."""
        return self.ids - self.matched


def load_lists(engine: Engine, lists: Sequence[IdList], scored: str) -> tuple[ListMatch, ...]:
    """Put the ids of all lists into the engine's table `suppressed(id)`, which must be there.

    Args:
        engine: where.
        lists: what to read.
        scored: relation with the scored customers' `id`.

    Raises:
        DataError: a missing file, an unknown kind of file, a missing column or one of lists, a malformed line, a list
            without ids, or one of which nobody was scored unless it `may_match_nobody`.
    """
    return tuple(_load_list(engine, number, each, scored) for number, each in enumerate(lists, start=1))


def load_contacts(engine: Engine, contacts: Contacts, sources: Sequence[str]) -> None:
    """Make the engine's table `contacts(id, s0, s1, ...)` of text: the sources in order, blanks cut, null when empty.

    Raises:
        DataError: as `load_lists`, or an id on more than one line.
    """
    place = contacts.path.name
    options = {contacts.column: "--id-column"} | {each: "--column" for each in sources if each != contacts.column}
    opened = _opened(engine, "contacts", contacts.path, options)
    wanted = ", ".join(f"{_cell(opened, source)} AS s{i}" for i, source in enumerate(sources))
    create = f"CREATE TABLE contacts AS SELECT {_cell(opened, contacts.column)} AS id, {wanted} FROM {opened.relation}"
    engine.run("reading contacts", create, place)
    _refuse_malformed(engine, opened, place)
    twice = "SELECT 1 FROM contacts WHERE id IS NOT NULL GROUP BY id HAVING count(*) > 1 LIMIT 1"
    if engine.run("comparing ids", twice, place):
        raise DataError(
            f"column '{contacts.column}' has an id more than once", place=place, fix="keep one line per customer"
        )


def _load_list(engine: Engine, number: int, each: IdList, scored: str) -> ListMatch:
    place, table = each.path.name, f"list{number}"
    opened = _opened(engine, table, each.path, {each.column: "--column"})
    cell = _cell(opened, each.column)
    engine.run("reading", f"CREATE TABLE {table} AS SELECT {cell} AS id FROM {opened.relation}", place)
    _refuse_malformed(engine, opened, place)
    count = f"SELECT count(DISTINCT id), count(*) - count(id) FROM {table}"
    ((ids, blank),) = engine.run("counting", count, place)
    if ids == 0:
        raise DataError(f"column '{each.column}' has no id", place=place, fix="name the column that holds the ids")
    known = f"SELECT count(*) FROM (SELECT DISTINCT id FROM {table}) SEMI JOIN {scored} USING (id)"
    ((matched,),) = engine.run("matching", known, place)
    if matched == 0 and not each.may_match_nobody:
        raise DataError(
            f"no id in column '{each.column}' is a customer's here",
            place=place,
            fix="name the column with ids as they were onboarded, or allow it with --allow-unmatched",
        )
    engine.run("collecting", f"INSERT INTO suppressed SELECT id FROM {table} WHERE id IS NOT NULL", place)
    engine.run("dropping", f"DROP TABLE {table}", place)
    return ListMatch(place, int(ids), int(blank), int(matched))


def _opened(engine: Engine, name: str, path: Path, columns: Mapping[str, str]) -> OpenSource:
    """The file, found to have the columns, which are given with the options that name them."""
    opened = open_source(engine, name, path, tuple(columns), Path(tempfile.gettempdir()))
    missing = [column for column in columns if column not in opened.types]
    if missing:  # the names that are there stay unsaid: without a header line they would be a customer's values
        raise DataError(
            f"no column '{missing[0]}'",
            place=path.name,
            fix=f"check the header line, or name the column that holds it with {columns[missing[0]]}",
        )
    nested = [column for column in columns if _is_nested(opened.types[column])]
    if nested:
        raise DataError(
            f"column '{nested[0]}' has more than one value a line", place=path.name, fix="write one plain value a line"
        )
    return opened


def _is_nested(kind: str) -> bool:
    return kind.endswith("]") or kind.startswith(_NESTED)


def _cell(opened: OpenSource, column: str) -> str:
    return text(column, opened.types[column])


def _refuse_malformed(engine: Engine, opened: OpenSource, place: str) -> None:
    if opened.rejects is None:
        return
    ((lines,),) = engine.run("counting", f"SELECT count(*) FROM {quoted(opened.rejects)}", place)
    if lines:
        raise DataError(
            "has malformed lines", place=place, fix="give every line the fields of the header line, in UTF-8"
        )
