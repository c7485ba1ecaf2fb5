"""An institution's own say: whether a run is admitted by the rules in force here, and who of its customers counts.

`governance.toml` in the node's folder names the packs of rules and states the facts that only people know; everything
else is gathered from plan, charter, consent store, ledger and log. Without it only a node of a simulation answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field, StringConstraints

from cohortium.client.store import Approval, NodeStore
from cohortium.governance.consent import REASONS, Cohort, ConsentStore, OpenBanking, purpose_term
from cohortium.governance.rules import Decision, Facts, Pack, Stage, evaluate, load_packs, pack_names, read_pack
from cohortium.privacy.accounting import Spend, budget_for, epsilon_spent
from cohortium.privacy.gate import Counted
from cohortium.privacy.ledger import Ledger
from cohortium.privacy.stores import has_store, open_store
from cohortium.privacy.table import CustomerTable
from cohortium.study.audit_plan import AuditPlan
from cohortium.study.charter import Charter
from cohortium.study.document import Agreed, Document, read_toml, validated
from cohortium.study.errors import DataError, RefusedError
from cohortium.study.plan import Plan

__all__ = [
    "CONSENT_FILE",
    "GOVERNANCE_FILE",
    "Governance",
    "GovernedLog",
    "NodeGovernance",
    "cohort_of",
    "is_found",
    "open_consent",
    "read_governance",
    "refusal",
]

GOVERNANCE_FILE, CONSENT_FILE = "governance.toml", "consent.sqlite"

_NOBODY_ASKED = bytes(32)  # the root where there is no consent store
_RULE_PURPOSES = {
    "CustomerSegmentation": "dpv:DirectMarketing",
    "LookalikeModelling": "dpv:TargetedAdvertising",
    "DirectMarketing": "dpv:DirectMarketing",
    "Marketing": "dpv:DirectMarketing",
    "Advertising": "dpv:PersonalisedAdvertising",
    "PersonalisedAdvertising": "dpv:PersonalisedAdvertising",
    "TargetedAdvertising": "dpv:TargetedAdvertising",
    "ServicePersonalisation": "dpv:ServicePersonalisation",
    "ResearchAndDevelopment": "dpv:ResearchAndDevelopment",
    "CommercialResearch": "dpv:ResearchAndDevelopment",
    "AcademicResearch": "dpv:ResearchAndDevelopment",
}
_CHANNELS = {"electronic_marketing": "email", "phone": "phone", "advertising": "ads"}
_FOUND = frozenset(
    {
        "audit.age_days",
        "audit.attributes_isolated",
        "audit.protected_attributes",
        "audit.verdict",
        "cohort.purpose_mismatch",
        "data.customer_level_outputs_shared",
        "data.record_linkage",
        "docs.consent_snapshot_root",
        "log.cosigners",
        "model.expires_on",
        "privacy.delta_times_n",
        "privacy.epsilon",
        "privacy.institutions",
        "privacy.min_cell",
        "privacy.secure_aggregation",
        "privacy.unit",
        "review.approvers",
        "review.independent",
        "run.lawful_basis",
        "run.purpose",
        "transfer.crosses_border",
    }
)
_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=512)]


class OpenBankingLimits(Agreed):
    """What is asked of the permission behind account-information data."""

    most_days: Annotated[int, Field(strict=True, ge=1, le=365)] = 180
    most_pulls: Annotated[int, Field(strict=True, ge=0, le=24)] = 4


class Governance(Document):
    """What an institution declares about itself.

    Args:
        schema_id: `cohortium.governance/1`; written `schema` in TOML.
        packs: names of the packs of rules in force here; the house's always is.
        own_packs: files of further packs, relative to this file.
        declared_by: who states the facts, and when.
        facts: those that no document or store tells, by the names of `cohortium rules`.
        sharing: whether customers' data are shared with others, so that opt-outs of sharing count for every purpose.
        special_categories: whether features are of special categories, so that explicit consent to them is needed.
        open_banking: for tables from account information.
    """

    schema_id: Annotated[Literal["cohortium.governance/1"], Field(alias="schema")]
    packs: tuple[_Text, ...]
    own_packs: tuple[_Text, ...] = ()
    declared_by: _Text
    facts: dict[str, Any] = Field(default_factory=dict)
    sharing: Annotated[bool, Field(strict=True)] = False
    special_categories: Annotated[bool, Field(strict=True)] = False
    open_banking: OpenBankingLimits | None = None


def read_governance(folder: Path) -> tuple[Governance, tuple[Pack, ...]] | None:
    """What stands in the node's folder, its packs loaded; None where the file is missing.

    Raises:
        DataError: the file does not hold together.
        RuleError, FactError: no such pack or fact, or one that does not hold together.
    """
    path = folder / GOVERNANCE_FILE
    if not path.exists():
        return None
    declared = validated(Governance, read_toml(path, DataError), str(path), {}, DataError)
    stated = Facts.of(declared.facts, declared.declared_by)
    own = sorted(filter(is_found, stated.facts))
    if own:
        raise DataError(f"{own[0]} is not to be declared: the node finds it itself", place=str(path), fix="remove it")
    return declared, load_packs(declared.packs, [read_pack(folder / name) for name in declared.own_packs])


def is_found(fact: str) -> bool:
    """Whether the node finds a fact itself, so that nobody may declare it."""
    return fact in _FOUND or fact.removeprefix("cohort.") in REASONS


class GovernedLog(Protocol):
    """What decisions need of an audit log; `client.witnessing.NodeLog` is one."""

    def cosigners(self, plan: str) -> int:
        """How many others cosigned the newest checkpoint that any of them did."""
        ...

    def record(self, key: str, entry: Mapping[str, str | int]) -> bytes:
        """See `privacy.gate.AuditSink`."""
        ...


class NodeGovernance:
    """Decides for one node; the consent view of its door.

    Args:
        folder: the node's state folder.
        institution: its name.
        store: keeps decisions.
        approved: the approval of a plan by digest; `RefusedError` when there is none or it has expired.
        ledger: what was spent.
        log: its audit log.
        consent: its consent store; None where it has none.
        simulation: whether it may answer without rules in force.
        today: today's date (UTC).
    """

    def __init__(
        self,
        folder: Path,
        institution: str,
        store: NodeStore,
        approved: Callable[[str], Approval],
        ledger: Ledger,
        log: GovernedLog,
        consent: ConsentStore | None,
        *,
        simulation: bool,
        today: Callable[[], date],
    ) -> None:
        self._declared = read_governance(folder)
        self._place = str(folder / GOVERNANCE_FILE)
        self._institution, self._store, self._approved, self._ledger = institution, store, approved, ledger
        self._log, self._simulation, self._today = log, simulation, today
        self.consent = consent

    def counted(self, people: CustomerTable, plan: str) -> Counted:
        """See `privacy.gate.ConsentView`."""
        if self.consent is None:
            return Counted(people, _NOBODY_ASKED)
        snapshot = self.consent.snapshot(self._cohort(self._approved(plan).plan))
        allowed = snapshot.allowed(people.keys)
        kept = people if allowed.all() else people.take(allowed)
        return Counted(kept, bytes.fromhex(snapshot.root.removeprefix("sha256:")), snapshot.sequence)

    def answered(self, counted: Counted, run: str, question: str) -> None:
        """See `privacy.gate.ConsentView`."""
        if self.consent is not None:
            self.consent.note_round(run, question, counted.sequence)

    def admit(self, plan: str, run: str) -> None:
        """Decide whether a run is admitted, and write the decision down.

        Raises:
            RefusedError: not admitted; names rule, article, fact, value and what would change it.
        """
        approval = self._approved(plan)
        if self._declared is None and self._simulation:
            self._write_down(plan, run, "none", None)
            return
        decision, facts = self.decide(approval.plan, approval.charter, "admission")
        self._write_down(plan, run, decision.id, (decision, facts))
        if not decision.admitted:
            raise RefusedError(refusal(decision), fix="cohortium rules check shows every finding")

    def decide(self, plan: Plan, charter: Charter, stage: Stage, *more: Facts) -> tuple[Decision, Facts]:
        """What the packs in force here say of a plan at a stage, and of which facts.

        Limits are the strictest of those in force at any institution of the charter, by the packs of its region: a plan
        is one for all of them.
        """
        if self._declared is None:
            raise RefusedError("no rules are in force", place=self._place, fix="name the packs in force here")
        packs, today = self._declared[1], self._today()
        facts = Facts.merged(*self._facts(plan, charter, stage, more), *more)
        others = _packs_of_others(packs, charter)
        agreed = evaluate(others, facts, stage, today).limits if others else ()
        return evaluate(packs, facts, stage, today, agreed=agreed), facts

    def _write_down(self, plan: str, run: str, decision: str, documents: tuple[Decision, Facts] | None) -> None:
        admitted = documents is None or documents[0].admitted
        entry = {
            "event": "admission",
            "plan": plan,
            "run": run,
            "decision": decision,
            "admitted": str(admitted).lower(),
        }
        self._log.record(f"admission {plan} {run} {decision}", entry)
        self._store.keep_decision(plan, run, decision, admitted=admitted, documents=documents)

    def activate(
        self, plan: Plan, charter: Charter, entry: Mapping[str, str | int], root: str | None, *more: Facts
    ) -> Decision:
        """Decide whether an audience goes out, and write the decision down: first what it says, then the log's entry.

        Args:
            plan, charter: of the campaign.
            entry: of the audit log, but for the decision: what goes out, the audience's id under `audience`.
            root: of the consent snapshot that chose who goes out; None where no consent is kept.
            more: what audit and review found.

        Raises:
            RefusedError: it does not; names rule, article, fact, value and what would change it. Or nobody states how
                the audience is used, or somebody's consent changed since the snapshot.
        """
        decision, facts = self.decide(plan, charter, "activation", *more)
        if decision.admitted and facts.facts.get("use.activation") in (None, "none"):
            raise RefusedError(
                "an export is an activation, and none is declared", place=self._place, fix="state use.activation"
            )
        if facts.facts.get("docs.consent_snapshot_root") != root and self.consent is not None:
            raise RefusedError("somebody's consent changed meanwhile", place="activation", fix="export again")
        told = {"decision": decision.id, "admitted": str(decision.admitted).lower()}
        whole = {"event": "activation", "plan": plan.digest, **entry, **told}
        documents = decision, facts
        subject = str(entry["audience"])
        self._store.keep_decision(plan.digest, subject, decision.id, admitted=decision.admitted, documents=documents)
        self._log.record(f"activation {entry['audience']} {decision.id}", whole)
        if not decision.admitted:
            raise RefusedError(refusal(decision), place="activation", fix="cohortium rules explain RULE says more")
        return decision

    @property
    def is_simulated(self) -> bool:
        """No rules are in force, as a simulation's node alone may do."""
        return self._declared is None and self._simulation

    def _cohort(self, plan: Plan, stage: Stage = "admission") -> Cohort:
        return cohort_of(plan, None if self._declared is None else self._declared[0], stage)

    def _facts(self, plan: Plan, charter: Charter, stage: Stage, more: Sequence[Facts]) -> list[Facts]:
        """Everything but `more`. What an audit found now stands instead of what is declared of an earlier one."""
        return [
            _plan_facts(plan, stage),
            Facts.of({"log.cosigners": self._log.cosigners(plan.digest)}, "audit log"),
            self._ledger_facts(plan),
            _charter_facts(plan, charter),
            *self._consent_facts(self._cohort(plan, stage)),
            *([] if self._declared is None else [_declared_facts(self._declared[0], more)]),
        ]

    def _ledger_facts(self, plan: Plan) -> Facts:
        """What one person's budget comes to once this plan is spent, whatever else was."""
        spent, already = self._ledger.spent(), self._ledger.spent(plan.digest)
        budget = budget_for(plan.epsilon, plan.delta)  # of which a resumed run has charged a part already
        whole = Spend(spent.mu2 - already.mu2 + budget.mu2, spent.tv - already.tv + budget.tv)
        epsilon = epsilon_spent(whole, plan.delta)
        return Facts.of({"privacy.epsilon": round(epsilon, 6)}, f"ledger of {self._institution}")

    def _consent_facts(self, cohort: Cohort) -> list[Facts]:
        """Nobody whom the snapshot leaves out is in the cohort: of those whom rules count, nobody is left."""
        if self.consent is None:
            return []
        snapshot = self.consent.snapshot(cohort)
        counts: dict[str, Any] = {f"cohort.{reason}": 0 for reason in REASONS if _is_asked(reason, cohort)}
        counts["cohort.purpose_mismatch"] = 0
        return [Facts.of({**counts, "docs.consent_snapshot_root": snapshot.root}, f"consent event {snapshot.sequence}")]


def cohort_of(plan: Plan, declared: Governance | None, stage: Stage) -> Cohort:
    """For what a plan wants people, with what the institution declares about its data.

    At activation also through which channel: by the fact `use.activation`, which then asks consent to that channel.
    """
    purpose = purpose_term(plan.purpose)
    if declared is None:
        return Cohort(purpose, plan.lawful_basis)
    bank, use = declared.open_banking, Facts.of(declared.facts, declared.declared_by).facts.get("use.activation")
    return Cohort(
        purpose,
        plan.lawful_basis,
        sharing=declared.sharing,
        special=declared.special_categories,
        channel=_CHANNELS.get(str(use)) if stage == "activation" else None,
        open_banking=None if bank is None else OpenBanking(bank.most_days, bank.most_pulls),
    )


def open_consent(folder: Path) -> ConsentStore | None:
    """The consent store in a node's folder; None where there is none."""
    path = folder / CONSENT_FILE
    return ConsentStore(open_store(path, create=False)) if has_store(path) else None


def refusal(decision: Decision, most: int = 3) -> str:
    """Why a decision refused, in one line."""
    parts = [
        f"{one.rule} ({one.article}; {one.confidence}): {one.plain} "
        + ", ".join(f"{seen.fact} is {'unknown' if seen.value is None else seen.value}" for seen in one.seen)
        + f" [{one.change}]"
        for one in decision.findings[:most]
    ]
    rest = len(decision.findings) - most
    return "; ".join(parts) + (f"; and {rest} more" if rest > 0 else "")


def _is_asked(reason: str, cohort: Cohort) -> bool:
    """Whether the snapshot looked at it for this cohort: what it did not look at stays unknown."""
    match reason:
        case "without_valid_consent":
            return cohort.basis == "consent"
        case "objectors_unresolved":
            return cohort.basis == "legitimate_interests"
        case "special_without_explicit_consent":
            return cohort.special
        case "ais_without_purpose_consent":
            return cohort.open_banking is not None
        case "without_channel_consent":
            return cohort.channel is not None
    return True


def _packs_of_others(own: Sequence[Pack], charter: Charter) -> tuple[Pack, ...]:
    """Packs of the other members' regions (`US-NY` has those of `US` too) that are not in force here."""
    regions = {member.region.lower() for member in charter.institutions}
    wanted = regions | {region.split("-")[0] for region in regions}
    names = sorted((wanted & set(pack_names())) - {pack.name for pack in own})
    return load_packs(names) if names else ()


def _declared_facts(declared: Governance, more: Sequence[Facts]) -> Facts:
    stated, found = Facts.of(declared.facts, declared.declared_by), {name for part in more for name in part.facts}
    kept = {name: value for name, value in stated.facts.items() if not (name.startswith("audit.") and name in found)}
    return Facts.of(kept, declared.declared_by)


def _plan_facts(plan: Plan, stage: Stage) -> Facts:
    facts: dict[str, Any] = {
        "run.lawful_basis": plan.lawful_basis,
        "privacy.unit": "person",
        "privacy.secure_aggregation": plan.trust == "distributed",
        "privacy.institutions": plan.min_institutions,
        "privacy.min_cell": plan.min_cell,
        "model.expires_on": plan.expires.isoformat(),
        "data.customer_level_outputs_shared": False,
        "data.record_linkage": False,
    }
    purpose = _RULE_PURPOSES.get(purpose_term(plan.purpose))
    if purpose is not None:
        facts["run.purpose"] = purpose
    if stage == "admission":  # no other kind of plan's questions can name protected features
        facts["audit.attributes_isolated"] = True
        facts["audit.protected_attributes"] = len(plan.audit.attributes) if isinstance(plan, AuditPlan) else 0
    return Facts.of(facts, f"plan {plan.digest}")


def _charter_facts(plan: Plan, charter: Charter) -> Facts:
    """Delta by the charter's least number of customers: by the exact one, a decision would tell who is there."""
    regions = {member.region for member in charter.institutions}
    facts = {
        "transfer.crosses_border": len(regions) > 1,
        "privacy.delta_times_n": plan.delta * charter.min_customers,
    }
    return Facts.of(facts, f"charter {charter.digest}")
