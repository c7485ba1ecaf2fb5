"""A customer of a simulated institution withdraws between two questions: what that changes, and what it does not."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from cohortium.client.audience import read_manifest
from cohortium.client.governing import CONSENT_FILE, cohort_of, read_governance
from cohortium.governance.consent import ConsentStore
from cohortium.governance.report import WithdrawalFacts
from cohortium.privacy.ledger import open_store
from cohortium.server.study_run import Asked
from cohortium.study.errors import Defect
from cohortium.study.plan import Plan

__all__ = ["MemberWithdraws"]


@dataclass
class MemberWithdraws:
    """Somebody whom an institution exported withdraws every consent when a question has been answered.

    Args:
        folders: of the institutions by name.
        institution: whose customer.
        export: folder of the export that the customer is in.
        plan: whose questions are asked.
        phase: the question after which the customer withdraws.
    """

    folders: Mapping[str, Path]
    institution: str
    export: Path
    plan: Plan
    phase: str

    def __post_init__(self) -> None:
        self._person = _first_member(self.export)
        self._before = {name: self._root(name) for name in self.folders}

    def after(self, asked: Asked) -> None:
        """Called after every question."""
        if asked.phase == self.phase and asked.problem is None:
            with closing(self._consent(self.institution)) as store:
                standing = store.standing(self._person)
                if standing is None or standing["consents"]:
                    store.withdraw(self._person)

    def account(self, removed: int, added: int) -> WithdrawalFacts:
        """What became of it, in words that name no customer.

        Args:
            removed, added: rows of the export that followed.
        """
        with closing(self._consent(self.institution)) as store:
            first = store.receipt(self._person)[-1]["first_round"]
        changed = [name for name in self.folders if self._root(name) != self._before[name]]
        return WithdrawalFacts(
            institution=self.institution,
            what=f"a customer withdrew every consent after the question '{self.phase}' of {self.plan.name}",
            first_without=None if first is None else f"question {first['question']} of run {first['run']}",
            changed=(
                f"consent snapshots that changed: {', '.join(changed) or 'none'}, of {len(self.folders)} institutions",
                _after_export(removed, added),
                "nothing that was answered before: what was released and spent stays",
            ),
        )

    def _root(self, name: str) -> str:
        declared = read_governance(self.folders[name])
        cohort = cohort_of(self.plan, None if declared is None else declared[0], "admission")
        with closing(self._consent(name)) as store:
            return store.snapshot(cohort).root

    def _consent(self, name: str) -> ConsentStore:
        return ConsentStore(open_store(self.folders[name] / CONSENT_FILE, create=False))


def _after_export(removed: int, added: int) -> str:
    """What the next export did: how many rows it has is for the institution alone."""
    if (removed, added) == (1, 0):
        return "the next export to the same destination removes them, and nobody else changes"
    return "the next export to the same destination changes more than them"


def _first_member(export: Path) -> str:
    for file in read_manifest(export).files:
        with (export / file.name).open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                return row["id"]
    raise Defect("an export without a member")
