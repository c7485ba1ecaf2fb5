"""Case files: a case with all its statements, for whoever verifies it offline with the public charter."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from cohortium.governance.review.case import FORMS, Case, read_document
from cohortium.governance.review.standing import Standing, standing
from cohortium.governance.review.statement import Signed
from cohortium.study.charter import Charter
from cohortium.study.document import Document, validated
from cohortium.study.errors import DataError

__all__ = ["CaseFile", "export_case", "parse_case_file"]


class CaseFile(Document):
    """A case and its statements, in order. It holds digests of the documents, not what they say.

    What it cannot show is that nothing was cut off its end: compare `head` with another copy, or with the audit log.

    Args:
        schema_id: `cohortium.review-file/1`; written `schema`.
        case: which.
        statements: in order.
    """

    schema_id: Annotated[Literal["cohortium.review-file/1"], Field(alias="schema")] = "cohortium.review-file/1"
    case: Case
    statements: tuple[Signed, ...]

    @property
    def head(self) -> str:
        """Digest of the last statement; of the case, when there is none."""
        return self.statements[-1].digest if self.statements else self.case.digest

    def standing(self, charter: Charter, now: datetime) -> Standing:
        """How the case stands, every signature verified; see `governance.review.standing`."""
        return standing(self.case, self.statements, charter, now)


def export_case(case: Case, statements: Iterable[Signed]) -> bytes:
    """The case file, canonical JSON."""
    return CaseFile(case=case, statements=tuple(statements)).to_bytes()


def parse_case_file(data: bytes, place: str) -> CaseFile:
    """A case file from its bytes, which have to be its canonical JSON; what it claims is not verified yet.

    Raises:
        DataError: it is malformed, or differs in one byte from what was written.
    """
    found = validated(CaseFile, read_document(data, place), place, FORMS, DataError)
    if found.to_bytes() != data:
        raise DataError("is not byte for byte what was exported", place=place, fix="get the exported file")
    return found
