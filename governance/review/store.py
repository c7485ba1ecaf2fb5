"""The store of review: cases, their documents, and statements, in a file of their own. Rows are only ever added.

Triggers refuse changes; whoever owns the file can drop them. What they cannot do is make a statement: everything read
is compared with its digest, and nothing counts whose signature does not verify. Statements cut off the end of a case
leave no trace here; the digests in the audit log do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    func,
    insert,
    select,
)

from cohortium.governance.review.case import PARTS, Case, Part, Subject, document_digest
from cohortium.governance.review.standing import (
    Standing,
    not_counted,
    possible_reviewers,
    problems_of,
    standing,
)
from cohortium.governance.review.statement import Signed, parse_signed
from cohortium.privacy.store_forms import Form, append_only, open_form
from cohortium.study.canonical import canonical_bytes
from cohortium.study.charter import Charter
from cohortium.study.errors import DataError, RefusedError

__all__ = ["TABLES", "ReviewStore", "require_approved"]

TABLES = MetaData()

_header = Table("review_header", TABLES, Column("schema", String, primary_key=True))

_documents = Table(
    "review_documents",
    TABLES,
    Column("digest", String, primary_key=True),
    Column("document", LargeBinary, nullable=False),
)

_cases = Table(
    "review_cases",
    TABLES,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("name", String, nullable=False, unique=True),
    Column("digest", String, nullable=False, unique=True),
    Column("institution", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("subject", String, nullable=False),
    Column("document", LargeBinary, nullable=False),
    UniqueConstraint("institution", "kind", "subject"),
)

_statements = Table(
    "review_statements",
    TABLES,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("name", String, nullable=False, index=True),
    Column("digest", String, nullable=False, unique=True),
    Column("previous", String, nullable=False, unique=True),
    Column("document", LargeBinary, nullable=False),
)

# without a condition on new rows SQLite's INSERT OR REPLACE could replace old ones
append_only(_header, "EXISTS (SELECT 1 FROM review_header)")
append_only(_documents, "EXISTS (SELECT 1 FROM review_documents WHERE digest = NEW.digest)")
append_only(_cases, "NEW.sequence <> (SELECT COUNT(*) FROM review_cases)")
append_only(_statements, "NEW.sequence <> (SELECT COUNT(*) FROM review_statements)")

_FORM = Form("cohortium.review-store/1", "review store", _header, TABLES, "name review.sqlite")


class ReviewStore:
    """Cases and statements of one institution.

    Args:
        engine: from `privacy.ledger.open_store`; a read-only one can be read.

    Raises:
        DataError: the file is of another version.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._place = str(engine.url.database)
        with engine.begin() as connection:
            open_form(connection, _FORM, self._place)

    def open(self, case: Case, documents: Mapping[Part, Mapping[str, Any]]) -> None:
        """Keep a new case with its documents. The same case again changes nothing.

        Raises:
            DataError: the documents are not those of the case's subject.
            RefusedError: the name is taken, or these very documents are before the reviewers already: what was rejected
                or returned is not put before them under another name, owner or builder.
        """
        kept = {part: canonical_bytes(dict(documents[part])) for part in PARTS if part in documents}
        for part in PARTS:
            if part not in kept or document_digest(documents[part]) != getattr(case.subject, part):
                raise DataError(f"the {part} is not the one of this case", place=case.name, fix="give that very file")
        with self._engine.begin() as connection:
            same = _cases.c.digest == case.digest
            if connection.scalar(select(_cases.c.name).where(same)) is not None:
                return
            self._refuse_known(connection, case)
            for part, document in kept.items():
                digest = getattr(case.subject, part)
                if connection.scalar(select(_documents.c.digest).where(_documents.c.digest == digest)) is None:
                    connection.execute(insert(_documents).values(digest=digest, document=document))
            row = {
                "sequence": connection.scalar(select(func.count()).select_from(_cases)),
                "name": case.name,
                "digest": case.digest,
                "institution": case.institution,
                "kind": case.kind,
                "subject": case.subject.digest,
                "document": case.to_bytes(),
            }
            connection.execute(insert(_cases).values(**row))

    def _refuse_known(self, connection: Connection, case: Case) -> None:
        if connection.scalar(select(_cases.c.name).where(_cases.c.name == case.name)) is not None:
            raise RefusedError("a case has this name", place=case.name, fix="choose another one")
        same = (
            (_cases.c.institution == case.institution)
            & (_cases.c.kind == case.kind)
            & (_cases.c.subject == case.subject.digest)
        )
        known = connection.scalar(select(_cases.c.name).where(same))
        if known is not None:
            raise RefusedError(
                f"these very documents are the case '{known}' already",
                place=case.name,
                fix="have that one signed, or change what the reviewers asked for",
            )

    def cases(self) -> tuple[Case, ...]:
        """Every case, the oldest first; `DataError` when one was altered."""
        with self._engine.begin() as connection:
            rows = connection.execute(select(_cases).order_by(_cases.c.sequence)).all()
        return tuple(self._case(row) for row in rows)

    def case(self, name: str) -> Case:
        """The case of that name; `DataError` when there is none, or it was altered."""
        with self._engine.begin() as connection:
            row = connection.execute(select(_cases).where(_cases.c.name == name)).first()
        if row is None:
            raise DataError(f"there is no case '{name}'", place=self._place, fix="`cohortium review list` has them")
        return self._case(row)

    def document(self, case: Case, part: Part) -> dict[str, Any]:
        """One of the case's documents; `DataError` when it is gone, or is not the one that was opened."""
        digest = getattr(case.subject, part)
        with self._engine.begin() as connection:
            data = connection.scalar(select(_documents.c.document).where(_documents.c.digest == digest))
        try:
            document: Any = json.loads(data or b"")
            if document_digest(document) == digest:
                return dict(document)
        except (ValueError, TypeError):
            pass
        raise self._altered(f"the {part} of case '{case.name}'")

    def statements(self, name: str) -> tuple[Signed, ...]:
        """The statements of a case in the order in which they were kept. What they amount to is for `standing`.

        Raises:
            DataError: a row was altered, so that it is no statement any more or is not the one that was kept.
        """
        with self._engine.begin() as connection:
            return self._statements(connection, name)

    def head(self, name: str) -> str:
        """Digest of the last statement of a case, which the next one names; of the case, when there is none."""
        case, kept = self.case(name), self.statements(name)
        return kept[-1].digest if kept else case.digest

    def add(self, name: str, signed: Signed, charter: Charter, now: datetime) -> Standing:
        """Keep a statement, durably, if it holds and counts; return how the case stands then.

        Formal guarantee: of two statements that follow the same one, made at once, one is kept.

        Raises:
            RefusedError: it is not genuine, is of another case or subject, is dated before the case or in the future,
                does not follow the last statement (a replay, or somebody signed meanwhile), is by somebody who may not
                sign, or the case is rejected. Nothing is kept.
            DataError: what is kept of the case does not hold.
        """
        case = self.case(name)
        with self._engine.begin() as connection:
            kept = self._statements(connection, name)
            if broken := problems_of(case, kept, charter, now):
                raise DataError(broken[0], place=f"{self._place}: {name}", fix="put back the newest copy")
            self._refuse(case, kept, signed, charter, now)
            row = {
                "sequence": connection.scalar(select(func.count()).select_from(_statements)),
                "name": name,
                "digest": signed.digest,
                "previous": signed.statement.previous,
                "document": canonical_bytes(signed.model_dump(mode="json", by_alias=True)),
            }
            connection.execute(insert(_statements).values(**row))
        return standing(case, (*kept, signed), charter, now)

    def _refuse(self, case: Case, kept: tuple[Signed, ...], signed: Signed, charter: Charter, now: datetime) -> None:
        said = signed.statement
        if signed.digest in {one.digest for one in kept}:
            raise RefusedError("this statement was made before", place=case.name, fix="sign a new one")
        if standing(case, kept, charter, now).state == "rejected":
            raise RefusedError("the case is rejected", place=case.name, fix="change the documents, and open a new case")
        if alone := problems_of(case, (), charter, now):
            raise RefusedError(alone[0], place=case.name, fix="use the charter of that federation")
        if why := not_counted(case, said, charter):
            raise RefusedError(f"{why}: the signature cannot count", place=case.name, fix="have somebody else sign")
        if said.case == case.digest and said.previous != (kept[-1].digest if kept else case.digest):
            raise RefusedError(
                "the statement does not follow the last one on this case",
                place=case.name,
                fix="read what was said since, and sign anew",
            )
        if broken := problems_of(case, (*kept, signed), charter, now):
            raise RefusedError(broken[0], place=case.name, fix="sign a new statement on this very case")

    def standing(self, name: str, charter: Charter, now: datetime) -> Standing:
        """How a case stands, every signature verified."""
        return standing(self.case(name), self.statements(name), charter, now)

    def last_approved(self, case: Case, charter: Charter, now: datetime) -> Case | None:
        """The last other case of the same kind about the same thing that was approved, expired since or not."""
        for other in reversed(self.cases()):
            alike = (other.about, other.kind, other.institution) == (case.about, case.kind, case.institution)
            if alike and other.name != case.name:
                found = self.standing(other.name, charter, now)
                if found.state in ("approved", "expired"):
                    return other
        return None

    def find(self, subject: Subject, kind: str, institution: str) -> Case | None:
        """The case of these very documents, if there is one."""
        wanted = (subject.digest, kind, institution)
        return next((one for one in self.cases() if (one.subject.digest, one.kind, one.institution) == wanted), None)

    def _case(self, row: Any) -> Case:
        try:
            case = Case.model_validate_json(row.document)
        except ValidationError as error:
            raise self._altered(f"case '{row.name}'") from error
        stated = (row.name, row.digest, row.institution, row.kind, row.subject, row.document)
        if stated != (case.name, case.digest, case.institution, case.kind, case.subject.digest, case.to_bytes()):
            raise self._altered(f"case '{row.name}'")
        return case

    def _statements(self, connection: Connection, name: str) -> tuple[Signed, ...]:
        query = select(_statements).where(_statements.c.name == name).order_by(_statements.c.sequence)
        return tuple(self._signed(row) for row in connection.execute(query).all())

    def _signed(self, row: Any) -> Signed:
        try:
            signed = parse_signed(json.loads(row.document), "statement")
        except (ValueError, TypeError, DataError) as error:
            raise self._altered(f"statement {row.sequence}") from error
        if (row.digest, row.previous) != (signed.digest, signed.statement.previous):
            raise self._altered(f"statement {row.sequence}")
        return signed

    def _altered(self, what: str) -> DataError:
        return DataError(f"{what} was altered", place=self._place, fix="put back the newest copy")


def require_approved(
    store: ReviewStore, subject: Subject, charter: Charter, now: datetime, *, institution: str
) -> None:
    """Let an audience export go on only where a case of these very documents is approved at this institution.

    Args:
        store: the institution's.
        subject: digests of the documents as they are now.
        charter: who is enrolled.
        now: in UTC.
        institution: whose audience it is; reviewers of others do not decide for it.

    Raises:
        RefusedError: there is no such case, or it is not approved; says who has to sign.
        DataError: the store was altered.
    """
    case = store.find(subject, "audience_export", institution)
    if case is None:
        raise RefusedError(
            "no case of these documents is open: what was approved was something else, or nothing",
            place="review",
            fix="open one with `cohortium review open`, and have it signed",
        )
    found = store.standing(case.name, charter, now)
    if found.state != "approved":
        raise RefusedError(
            f"case '{case.name}' is {found.state}: {'; '.join(found.reasons)}",
            place="review",
            fix=_who_signs(case, charter, found),
        )


def _who_signs(case: Case, charter: Charter, found: Standing) -> str:
    if found.state == "rejected":
        return "change the documents, and open a new case"
    if found.state == "invalid":
        return "put back the newest copy of the store"
    asked = [
        f"{function}: {' or '.join(one.person for one in possible_reviewers(case, charter, function)) or 'nobody yet'}"
        for function in found.waiting_for
    ]
    return f"have it signed by {'; '.join(asked)}"
