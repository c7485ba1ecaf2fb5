"""A released bundle, used at a node: its customers find their segments. Nothing of it leaves the institution."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

from cohortium.client.lookalike import NodeRecords
from cohortium.client.lookalike.admission import approved_plan
from cohortium.client.scoring import score_customers, write_segments
from cohortium.study.bundle import load_bundle
from cohortium.study.errors import DataError

__all__ = ["score_bundle_file"]


def score_bundle_file(records: NodeRecords, path: Path, out: Path, today: date | None = None) -> int:
    """Put all customers of a node into the segments of a released bundle; how many there are.

    A bundle bears no signature: it came over the node's own connection to its coordinator, into `released/`.

    Args:
        records: of the node.
        path: the bundle.
        out: the Parquet file; an earlier one is replaced.
        today: in UTC; a seam for tests of expiry.

    Raises:
        DataError: no bundle of this version, of another contract or out of date; or no finished onboarding.
        RefusedError: the node never approved its plan.
        OutputError: the file cannot be written.
    """
    bundle = load_bundle(path)
    if bundle.plan.contract != records.contract.digest:
        raise DataError(
            "was learnt under another contract than this node's", place=str(path), fix="take one of this contract"
        )
    plan = approved_plan(records, bundle.plan.digest, str(path))
    if plan.expires < (today or datetime.now(UTC).date()):
        raise DataError(f"has expired on {plan.expires}", place=str(path), fix="agree on a new plan")
    people = records.people()
    write_segments(score_customers(bundle, people), bundle, out)
    return len(people)
