"""One page a case: what a reviewer reads before signing, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cohortium.governance.review.case import PARTS, Case, Part, changed_parts
from cohortium.governance.review.standing import Standing, possible_reviewers, standing
from cohortium.governance.review.statement import Signed
from cohortium.governance.review.store import ReviewStore
from cohortium.study.charter import Charter

__all__ = ["CasePage", "case_page", "summary"]

_MOST_ROWS, _MOST_CHARACTERS = 500, 200

_Cell = str | int | float | bool | None


@dataclass(frozen=True)
class CasePage:
    """What there is to know of a case.

    Args:
        case, statements, standing: the record, and what it comes to.
        age: days since it was opened.
        earlier: name of the last case of the same kind about the same thing that was approved, if any.
        changed: which documents differ from those of that case; all of them without one.
        documents: by part, a summary (`summary`) of what is under the signature.
        may_sign: person ids by the function that is waited for.
        waivers: of earlier cases about the same thing: person, reason, task and last day.
    """

    case: Case
    statements: tuple[Signed, ...]
    standing: Standing
    age: int
    earlier: str | None
    changed: tuple[Part, ...]
    documents: Mapping[Part, Mapping[str, Any]]
    may_sign: Mapping[str, tuple[str, ...]]
    waivers: tuple[Mapping[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """The page as JSON types."""
        return {
            "case": self.case.to_json(),
            "digest": self.case.digest,
            "subject": self.case.subject.digest,
            "state": self.standing.state,
            "reasons": list(self.standing.reasons),
            "waiting_for": {function: list(people) for function, people in self.may_sign.items()},
            "approvers": list(self.standing.approvers),
            "conditions": list(self.standing.conditions),
            "tasks": list(self.standing.tasks),
            "until": None if self.standing.until is None else self.standing.until.isoformat(),
            "left_out": list(self.standing.left_out),
            "age": self.age,
            "earlier": self.earlier,
            "changed": list(self.changed),
            "documents": {part: dict(told) for part, told in self.documents.items()},
            "waivers": [dict(waiver) for waiver in self.waivers],
            "statements": [signed.statement.to_json() for signed in self.statements],
        }


def case_page(store: ReviewStore, name: str, charter: Charter, now: datetime) -> CasePage:
    """The page of a case; `DataError` when there is none of that name, or a document is not the one that was opened."""
    case, statements = store.case(name), store.statements(name)
    found = standing(case, statements, charter, now)
    earlier = store.last_approved(case, charter, now)
    return CasePage(
        case=case,
        statements=statements,
        standing=found,
        age=case.age(now),
        earlier=None if earlier is None else earlier.name,
        changed=changed_parts(None if earlier is None else earlier.subject, case.subject),
        documents={part: summary(store.document(case, part)) for part in PARTS},
        may_sign={
            function: tuple(one.person for one in possible_reviewers(case, charter, function))
            for function in found.waiting_for
        },
        waivers=tuple(_earlier_waivers(store, case, charter, now)),
    )


def summary(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document's plain values, and the plain values of the rows of its tables (metrics, findings, duties).

    Texts are cut at 200 characters and lose what a terminal would obey, tables are cut at 500 rows. Whatever is nested
    deeper is left out: the document has it.
    """
    told: dict[str, Any] = _cells(document)
    for name, rows in document.items():
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
            told[name] = [_cells(row) for row in rows[:_MOST_ROWS]]
    return told


def _cells(row: Mapping[str, Any]) -> dict[str, _Cell]:
    found: dict[str, _Cell] = {}
    for name, value in row.items():
        if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
            found[name] = _printable(", ".join(value))
        elif isinstance(value, str):
            found[name] = _printable(value)
        elif value is None or isinstance(value, bool | int | float):
            found[name] = value
    return found


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text[:_MOST_CHARACTERS])


def _earlier_waivers(store: ReviewStore, case: Case, charter: Charter, now: datetime) -> list[dict[str, str]]:
    waivers = []
    for other in store.cases():
        if other.about != case.about or other.name == case.name:
            continue
        record = store.statements(other.name)
        if standing(other, record, charter, now).state == "invalid":
            continue
        for said in (signed.statement for signed in record):
            if said.action == "waive":
                words = {"person": said.person, "reason": said.reason, "task": said.task, "expires": said.expires}
                waivers.append({"case": other.name, **{name: str(word) for name, word in words.items()}})
    return waivers
