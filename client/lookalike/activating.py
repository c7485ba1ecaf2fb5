"""An institution's own say about its audiences: who of its customers may be in one, and whether it may go out.

An export goes out when, on that day, all of this holds:

- others have witnessed the log entry of every release of the node, the last ones too;
- two reviewers of two functions approved a case about this model, this level and these documents: the model card, which
  is made anew from the model, the fairness audit of it, the data protection impact assessment, and the decision that
  admitted the campaign here;
- the rules in force admit the activation, on facts of plan, charter, consent, ledger, audit and review.

The decision stands in the audit log before the first row is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from cohortium.client.audience.activation import Clearance
from cohortium.client.audience.store import Audience
from cohortium.client.node import NodeBooks
from cohortium.client.people import AuditModels
from cohortium.client.store import Approval, NodeStore
from cohortium.governance.consent import Snapshot
from cohortium.governance.evidence import Dpia, ModelCard, model_card
from cohortium.governance.fairness import THRESHOLDS, FairnessResult
from cohortium.governance.review import (
    Case,
    Part,
    ReviewStore,
    Standing,
    document_digest,
    require_approved,
    review_facts,
    standing,
)
from cohortium.governance.rules import Decision, Facts
from cohortium.privacy.stores import has_store, open_store
from cohortium.study.audit_plan import AuditPlan
from cohortium.study.errors import RefusedError
from cohortium.study.model import LookalikeModel, Model

__all__ = ["REVIEW_FILE", "GovernedActivation", "campaign_card", "case_documents"]

REVIEW_FILE = "review.sqlite"

_PLACE = "review"
_Kept = TypeVar("_Kept", FairnessResult, Dpia)
_OPEN = "open one with `cohortium review open`, and have it signed"


@dataclass(frozen=True)
class GovernedActivation:
    """See `client.audience.Activation`.

    Args:
        folder: the node's state folder.
        institution: the node's name.
        books: opens what it approved, logged and decides.
        models: that it holds.
        approval: of the campaign's plan.
        snapshot: whom consents allow; None where none are kept, in a simulation.
        now: the time (UTC); a seam for tests.
    """

    folder: Path
    institution: str
    books: Callable[[], NodeBooks]
    models: AuditModels
    approval: Approval
    snapshot: Snapshot | None
    now: Callable[[], datetime] = lambda: datetime.now(UTC).replace(microsecond=0)

    def allowed(self, ids: Sequence[str]) -> NDArray[np.bool_]:
        """See `Activation`."""
        if self.snapshot is None:
            return np.ones(len(ids), dtype=np.bool_)
        return self.snapshot.allowed(np.asarray(ids, dtype=np.str_))

    def cleared(self, audience: Audience, destination: str, sequence: int) -> Clearance | None:
        """See `Activation`."""
        books = self.books()
        if books.governance.is_simulated:
            return None
        plan, charter = self.approval.plan, self.approval.charter
        books.log.require_witnessed(plan.digest)
        model = self.models.campaign(audience.model, f"{audience.id}: model")
        self._check_level(model, audience)
        case, result, found, head = self._reviewed(books, model, audience)
        entry: dict[str, str | int] = {
            "audience": audience.id,
            "model": audience.model,
            "level": audience.level.name,
            "destination": destination,
            "sequence": sequence,
            "case": case.digest,
            "statement": head,
        }
        reviewed = Facts.of(review_facts(found), f"case {case.name}")
        root = None if self.snapshot is None else self.snapshot.root
        decision = books.governance.activate(plan, charter, entry, root, self._audit_facts(result, found), reviewed)
        if self._reviewed(books, model, audience)[3] != head:
            raise RefusedError("a reviewer spoke meanwhile", place=_PLACE, fix="read the case, and export again")
        return Clearance(decision=decision.id, case=case.digest)

    def _check_level(self, model: Model[LookalikeModel], audience: Audience) -> None:
        """The audience is of the campaign that was approved, and begins where the model's level does."""
        levels = {level.name: level.point for level in model.document.curve.levels}
        point = levels.get(audience.level.name)
        if model.document.plan.digest != self.approval.plan.digest:
            raise RefusedError("the model is of another plan", place=audience.id, fix="create the audience anew")
        if point is None or point.cutoff != audience.level.cutoff:
            raise RefusedError(
                f"the audience does not begin where the model's level '{audience.level.name}' does",
                place=audience.id,
                fix="create it by a level of the model: no other cut-off was audited",
            )

    def _reviewed(
        self, books: NodeBooks, model: Model[LookalikeModel], audience: Audience
    ) -> tuple[Case, FairnessResult, Standing, str]:
        """The approved case of the audience, its audit, how it stands, and the digest of its last statement."""
        path = self.folder / REVIEW_FILE
        if not has_store(path):
            raise RefusedError("no audience is before the reviewers", place=_PLACE, fix=_OPEN)
        engine = open_store(path, create=False)
        try:
            store, charter, now = ReviewStore(engine), self.approval.charter, self.now()
            case, result = self._case(store, audience)
            self._check_documents(books, store, case, result, model)
            said = store.statements(case.name)  # read once: what they come to and the last of them belong together
            found = standing(case, said, charter, now)
            if found.state != "approved":
                require_approved(store, case.subject, charter, now, institution=self.institution)
                raise RefusedError("a reviewer spoke meanwhile", place=_PLACE, fix="read the case, and export again")
            return case, result, found, said[-1].digest
        finally:
            engine.dispose()

    def _case(self, store: ReviewStore, audience: Audience) -> tuple[Case, FairnessResult]:
        """The newest case about that model and level, approved or not."""
        for case in reversed(store.cases()):
            if (case.kind, case.institution) != ("audience_export", self.institution):
                continue
            document = store.document(case, "audit")
            if (document.get("audited"), document.get("level")) != (audience.model, audience.level.name):
                continue
            result = _read(FairnessResult, store, case, "audit")
            if result is None:
                raise _not("audit", case, "a fairness result of this version")
            return case, result
        raise RefusedError(
            f"no audience of level '{audience.level.name}' of this model is before the reviewers",
            place=_PLACE,
            fix=f"have that level audited, and {_OPEN}",
        )

    def _check_documents(
        self, books: NodeBooks, store: ReviewStore, case: Case, result: FairnessResult, model: Model[LookalikeModel]
    ) -> None:
        """The card is the model's, the audit was asked as a plan says that this institution approved, and the decision
        is one that admitted the campaign here."""
        self._check_audit(books, case, result)
        if case.subject.card != campaign_card(model, result).digest:
            raise _not("card", case, "the card of this model and audit")
        decided = books.store.decisions(self.approval.plan.digest)
        admissions = {one.id for one, _ in decided if _is_admission(one)}
        if case.subject.decision not in admissions:
            raise _not("policy decision", case, "one that admitted the campaign here")
        assessed = _read(Dpia, store, case, "dpia")
        wanted = self.approval.plan.digest, self.institution
        if assessed is None or (assessed.plan, assessed.institution) != wanted:
            raise _not("impact assessment", case, "one of this campaign at this institution")
        if assessed.state not in ("approve", "conditionally approve"):
            raise _not("impact assessment", case, f"an approval: it came to '{assessed.state}'")

    def _check_audit(self, books: NodeBooks, case: Case, result: FairnessResult) -> None:
        """By a plan of this model and level, by the usual limits, and of every group that the plan asks about."""
        approval = books.store.approved(result.plan)
        plan = None if approval is None else approval.plan
        if not isinstance(plan, AuditPlan):
            raise _not("audit", case, "one whose plan this institution approved")
        if (plan.audit.model, plan.audit.level, float(plan.min_cell)) != (
            result.audited,
            result.level,
            result.minimum_cell,
        ):
            raise _not("audit", case, "what its plan asks about")
        known = {each.name: each for each in THRESHOLDS}
        if any(known.get(each.name) != each for each in result.thresholds):
            raise _not("audit", case, "judged by the usual limits")
        asked = {(name,) for name in plan.audit.attributes} | set(plan.audit.pairs)
        compared = {
            metric.attributes
            for metric in result.metrics
            if (metric.name, metric.institution) == ("impact-ratio", None)
        }
        if not asked <= compared:
            raise _not("audit", case, "about every group that its plan asks about")

    def _audit_facts(self, result: FairnessResult, found: Standing) -> Facts:
        attributes = {name for metric in result.metrics for name in metric.attributes}
        return Facts.of(
            {
                "audit.verdict": "waived_four_eyes" if found.waived else result.verdict,
                "audit.age_days": (self.now().date() - result.made).days,
                "audit.fairness_ref": result.digest,
                "audit.protected_attributes": len(attributes),
                "audit.attributes_isolated": True,
            },
            f"fairness audit {result.digest}",
        )


def case_documents(
    held: AuditModels, kept: NodeStore, result: FairnessResult, assessed: Mapping[str, Any]
) -> tuple[dict[Part, dict[str, Any]], Facts]:
    """The four documents of a case about an audience: two that are given, one made and one kept by the node.

    Args:
        held: models that the node holds.
        kept: its decisions.
        result: the audit of the audience.
        assessed: the impact assessment.

    Returns:
        The documents, and the facts on which the campaign was admitted here.

    Raises:
        RefusedError: the node does not hold the model that was audited, or nothing admitted its campaign here.
    """
    model = held.campaign(result.audited, "audit: audited")
    decided = [pair for pair in kept.decisions(model.document.plan.digest) if _is_admission(pair[0])]
    if not decided:
        raise RefusedError(
            "no decision admitted this campaign here", place=_PLACE, fix="give a decision of a run of the campaign"
        )
    decision, facts = decided[-1]
    documents: dict[Part, dict[str, Any]] = {
        "card": campaign_card(model, result).to_json(),
        "audit": result.to_json(),
        "dpia": dict(assessed),
        "decision": decision.to_json(),
    }
    return documents, facts


def _is_admission(decision: Decision) -> bool:
    return decision.admitted and decision.stage == "admission"


def campaign_card(model: Model[LookalikeModel], audit: FairnessResult) -> ModelCard:
    """The card under a case about an audience: of the campaign's model and that one audit."""
    return model_card(model, (audit,))


def _read(kind: type[_Kept], store: ReviewStore, case: Case, part: Part) -> _Kept | None:
    """A document of a case as what it should be; None where it is something else, which stands for nothing here."""
    document = store.document(case, part)
    try:
        found = kind.model_validate(document)
    except ValidationError:
        return None
    return found if document_digest(document) == found.digest else None


def _not(what: str, case: Case, wanted: str) -> RefusedError:
    return RefusedError(f"the {what} of case '{case.name}' is not {wanted}", place=_PLACE, fix=_OPEN)
