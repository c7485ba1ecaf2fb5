"""Review: cases over card, audit, DPIA and policy decision, and the signatures of two people from two functions.

Nothing here decides by itself: `standing` says what the verified signatures of a case amount to, on one day.
Must never happen here: an approval of anything but the very documents that were signed.
"""

from cohortium.governance.review.case import (
    CASE_SCHEMA,
    PARTS,
    Case,
    Kind,
    Part,
    Risk,
    Subject,
    changed_parts,
    document_digest,
    open_case,
    read_document,
    risk_of,
)
from cohortium.governance.review.exchange import CaseFile, export_case, parse_case_file
from cohortium.governance.review.keys import read_identity, read_reviewer_key, write_reviewer_key
from cohortium.governance.review.page import CasePage, case_page, summary
from cohortium.governance.review.standing import (
    CLOCK_SKEW,
    Standing,
    is_approved,
    possible_reviewers,
    review_facts,
    standing,
)
from cohortium.governance.review.statement import (
    MAX_APPROVAL_DAYS,
    STATEMENT_SCHEMA,
    Action,
    Signed,
    Statement,
    Terms,
    sign_statement,
)
from cohortium.governance.review.store import ReviewStore, require_approved

__all__ = [
    "CASE_SCHEMA",
    "CLOCK_SKEW",
    "MAX_APPROVAL_DAYS",
    "PARTS",
    "STATEMENT_SCHEMA",
    "Action",
    "Case",
    "CaseFile",
    "CasePage",
    "Kind",
    "Part",
    "ReviewStore",
    "Risk",
    "Signed",
    "Standing",
    "Statement",
    "Subject",
    "Terms",
    "case_page",
    "changed_parts",
    "document_digest",
    "export_case",
    "is_approved",
    "open_case",
    "parse_case_file",
    "possible_reviewers",
    "read_document",
    "read_identity",
    "read_reviewer_key",
    "require_approved",
    "review_facts",
    "risk_of",
    "sign_statement",
    "standing",
    "summary",
    "write_reviewer_key",
]
