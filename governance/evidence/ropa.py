"""The record of processing activities (GDPR Art. 30(1)): one entry for every plan that an institution approved.

Filled from plan, contract and charter, and from facts that the institution declares. What neither says is not guessed:
it stands in the entry as open. Rendered as CSV for people, and as JSON-LD in terms of the W3C Data Privacy Vocabulary
(DPV 2.1 and later), whose context is inline: reading it needs no network.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from cohortium.governance.consent import purpose_term
from cohortium.governance.evidence.card import NOT_LEGAL_ADVICE
from cohortium.governance.rules import Facts
from cohortium.study.audit_plan import AuditPlan
from cohortium.study.charter import Charter
from cohortium.study.contract import Contract, Feature
from cohortium.study.document import Agreed, Document
from cohortium.study.errors import Defect, RefusedError
from cohortium.study.lookalike_plan import LookalikePlan
from cohortium.study.plan import LawfulBasis, Plan, TrainingPlan

__all__ = [
    "ROPA_SCHEMA",
    "DataCategory",
    "Measure",
    "RopaEntry",
    "data_of",
    "declared_text",
    "measures_of",
    "recipients_of",
    "ropa",
    "ropa_csv",
    "ropa_jsonld",
    "transfers_of",
]

ROPA_SCHEMA = "cohortium.ropa/1"
"""The schema name this version reads and writes; any other is refused."""

_OWN_TERMS = ("CustomerSegmentation", "LookalikeModelling")
_ARTICLE = "GDPR Art. 30(1) (C, unverified)"
_BASES: dict[LawfulBasis, str] = {
    "consent": "A6-1-a",
    "contract": "A6-1-b",
    "legal_obligation": "A6-1-c",
    "vital_interests": "A6-1-d",
    "public_task": "A6-1-e",
    "legitimate_interests": "A6-1-f",
}
_WHAT = {
    "segments": "find segments of customers from noisy sums",
    "encoder": "train an encoder of customer rows from noisy sums of gradients",
    "lookalike": "rank customers by how like valued customers they are, from noisy sums",
    "audit": "count people by protected group and outcome, to audit for bias",
}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class DataCategory(Agreed):
    """A category of personal data: one agreed feature, or what a run adds to it.

    Args:
        name: of the feature.
        kind: what its values are.
        block: its group in the contract; None of protected features and of what is no feature.
        protected: whether it is for audits alone.
    """

    name: str
    kind: str
    block: str | None = None
    protected: bool = False


class Measure(Agreed):
    """A measure of security, and the term of DPV that is nearest."""

    term: str
    text: str


class RopaEntry(Document):
    """See the module.

    Args:
        schema_id: `cohortium.ropa/1`; written `schema`.
        activity: the plan's name, and what it does.
        plan, contract, charter: digests of what the entry is filled from.
        controller: the institution.
        joint_controllers: the others, where an arrangement with them is declared.
        purpose: the plan's.
        purpose_term: the term of DPV, or of our extension; None for a purpose that is neither.
        lawful_basis: as the plan declares it.
        people: categories of people.
        data: categories of personal data.
        special: what is declared about special categories.
        recipients: to whom what is disclosed.
        transfers: to other countries, and under which instrument.
        erasure: envisaged limits.
        expires: last day on which the plan's questions are answered and what it released may be used.
        security: measures, with the plan's figures.
        declared_by: who states the facts that no document tells.
        open: what the institution has still to state.
        notice: what to make of it.
    """

    schema_id: Annotated[Literal["cohortium.ropa/1"], Field(alias="schema")] = "cohortium.ropa/1"
    activity: str
    plan: str
    contract: str
    charter: str
    controller: str
    joint_controllers: tuple[str, ...]
    purpose: str
    purpose_term: str | None
    lawful_basis: LawfulBasis
    people: tuple[str, ...]
    data: tuple[DataCategory, ...]
    special: str
    recipients: tuple[str, ...]
    transfers: tuple[str, ...]
    erasure: tuple[str, ...]
    expires: date
    security: tuple[Measure, ...]
    declared_by: str
    open: tuple[str, ...]
    notice: str

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


def ropa(
    institution: str, approved: Iterable[tuple[Plan, Charter]], contract: Contract, declared: Facts
) -> tuple[RopaEntry, ...]:
    """The entries of an institution, one for each approved plan, in the order given.

    Args:
        institution: the controller, as the charters name it.
        approved: every plan with the charter that it was approved within.
        contract: what its customers' rows mean.
        declared: facts that the institution states, by the names of `governance.rules`.

    Raises:
        PlanError: a plan of another contract.
    """
    return tuple(_entry(institution, plan, charter, contract, declared) for plan, charter in approved)


def _entry(institution: str, plan: Plan, charter: Charter, contract: Contract, declared: Facts) -> RopaEntry:
    plan.check_contract(contract)
    joint = declared_text(declared, "docs.joint_controller_ref")
    others = tuple(one.name for one in charter.institutions if one.name != institution)
    return RopaEntry(
        activity=f"{plan.name}: {_WHAT[plan.study]}",
        plan=plan.digest,
        contract=contract.digest,
        charter=charter.digest,
        controller=institution,
        joint_controllers=others if joint is not None else (),
        purpose=plan.purpose,
        purpose_term=_term(plan.purpose),
        lawful_basis=plan.lawful_basis,
        people=(f"customers of {institution}, {contract.window.start} to {contract.window.end}",),
        data=data_of(plan, contract),
        special=_special(declared),
        recipients=recipients_of(plan, declared),
        transfers=transfers_of(plan, charter, declared),
        erasure=_erasure(plan, declared),
        expires=plan.expires,
        security=measures_of(institution, plan, charter),
        declared_by=", ".join(declared.sources) or "nobody",
        open=tuple(_open(plan, charter, declared)),
        notice=f"Pre-filled for {_ARTICLE}. {NOT_LEGAL_ADVICE}",
    )


def declared_text(declared: Facts, name: str) -> str | None:
    """A declared fact as text; None where it is unknown, or declared not to exist."""
    value = declared.facts.get(name)
    return None if value is None or value is False else str(value)


def data_of(plan: Plan, contract: Contract) -> tuple[DataCategory, ...]:
    """The personal data that a plan's questions read: protected features in audits alone."""
    if isinstance(plan, TrainingPlan):
        categories = tuple(_category(contract, feature) for feature in plan.features(contract))
        seed = DataCategory(name="membership of the list of valued customers", kind="yes or no")
        return (*categories, seed) if isinstance(plan, LookalikePlan) else categories
    if not isinstance(plan, AuditPlan):
        raise Defect(f"a plan of the kind {type(plan).__name__}")
    audit = plan.audit
    named = dict.fromkeys(name for name in (*audit.attributes, audit.column, audit.label, *audit.proxies) if name)
    categories = tuple(_category(contract, contract.feature(name)) for name in named)
    outcome = DataCategory(name="segment, audience or treatment that is audited", kind="category")
    return (*categories, outcome)


def _category(contract: Contract, feature: Feature) -> DataCategory:
    unit = contract.unit_of(feature)
    kind = f"{feature.kind} ({unit})" if unit else feature.kind
    return DataCategory(name=feature.name, kind=kind, block=feature.block, protected=feature.protected)


def _term(purpose: str) -> str | None:
    try:
        term = purpose_term(purpose)
    except RefusedError:
        return None
    return f"cohortium:{term}" if term in _OWN_TERMS else f"dpv:{term}"


def _special(declared: Facts) -> str:
    count, inferred = (declared.facts.get(name) for name in ("features.special_category", "features.special_inferred"))
    if count is None or inferred is None:
        return "to be stated: whether features are of special categories, or reveal them"
    return f"declared: {count} features of special categories; revealed by others: {'yes' if inferred else 'no'}"


def recipients_of(plan: Plan, declared: Facts) -> tuple[str, ...]:
    """To whom what is disclosed, in words."""
    if plan.trust == "distributed":
        seen = f"the coordinator: noisy sums over {plan.min_institutions} institutions or more, no institution's own"
    elif plan.trust == "local":
        seen = "the coordinator: this institution's sums, each with all its noise"
    else:
        seen = "the coordinator: exact sums, in a simulation"
    found = [seen, "the other institutions: what the run releases, which holds no customer"]
    if isinstance(plan, LookalikePlan):
        where = declared_text(declared, "use.activation") or "to be stated"
        found.append(f"destinations of exported audiences: identifiers of the chosen customers (activation: {where})")
    return tuple(found)


def transfers_of(plan: Plan, charter: Charter, declared: Facts) -> tuple[str, ...]:
    """What crosses borders, and under which instrument."""
    regions = sorted({one.region for one in charter.institutions})
    if len(regions) < 2:
        return (f"none within the federation: every institution is in {regions[0]}",)
    tool = declared_text(declared, "transfer.tool") or "to be stated"
    assessed = declared_text(declared, "docs.tia_ref") or "to be stated"
    return (
        f"noisy sums and what is released, among {', '.join(regions)}; rows stay at their institution",
        f"instrument: {tool}; transfer impact assessment: {assessed}",
    )


def _erasure(plan: Plan, declared: Facts) -> tuple[str, ...]:
    kept = declared.facts.get("log.retention_days")
    return (
        f"what the plan releases: used until {plan.expires}, then retired",
        "customer table, scores and audiences at the institution: its own schedule, to be stated",
        "withdrawal or objection: out of the next question; house limit 24 hours",
        f"audit log: {kept} days, as declared; it holds no customer" if kept is not None else "audit log: to be stated",
    )


def measures_of(institution: str, plan: Plan, charter: Charter) -> tuple[Measure, ...]:
    """The measures of security that follow from plan and charter, with their figures."""
    quorum = charter.quorum_of(institution)
    noise = {
        "distributed": f"shared noise: at most {plan.colluders} of {plan.min_institutions} institutions collude",
        "local": "this institution adds all of the noise itself",
        "unsafe-none": "NO NOISE: for simulations alone",
    }[plan.trust]
    found = [
        Measure(
            term="dpv:DifferentialPrivacy",
            text=f"epsilon {plan.epsilon:g} at delta {plan.delta:g} for one person at one institution; {noise}"
            if plan.trust != "unsafe-none"
            else noise,
        )
    ]
    if plan.trust == "distributed":
        text = f"secure sum: nothing is unmasked of fewer than {plan.min_institutions} institutions"
        found.append(Measure(term="dpv:SecureMultiPartyComputation", text=text))
    return (
        *found,
        Measure(
            term="dpv:TechnicalMeasure",
            text=f"fewer than {plan.min_cell} (noisy) people are suppressed; a ledger refuses what the budget of a "
            "lifetime does not hold",
        ),
        Measure(
            term="dpv:LoggingPolicy",
            text=f"tamper-evident log of every question, cosigned by {quorum.witnesses} other institutions, of which "
            f"{quorum.outside_group} outside the group",
        ),
        Measure(term="dpv:CryptographicAuthentication", text="messages signed by identities that the charter pins"),
        Measure(term="dpv:OrganisationalMeasure", text="the institution's own rules admit the run before it begins"),
    )


def _open(plan: Plan, charter: Charter, declared: Facts) -> Iterable[str]:
    """What Art. 30(1) asks for and nobody stated."""
    yield "name and contact details of the controller, its representative and its data protection officer"
    yield "how long customer tables, scores and audiences are kept at the institution"
    asked = {
        "docs.joint_controller_ref": "whether the other institutions are joint controllers, under which arrangement",
        "docs.processor_contract_ref": "the coordinator's role, and the contract with it",
        "log.retention_days": "how long the audit log is kept",
        "features.special_category": "whether features are of special categories",
        "features.special_inferred": "whether features reveal special categories",
    }
    if isinstance(plan, LookalikePlan):
        asked["use.activation"] = "where audiences are taken to"
    if len({one.region for one in charter.institutions}) > 1:
        asked |= {"transfer.tool": "the instrument of transfers", "docs.tia_ref": "the transfer impact assessment"}
    for name, words in asked.items():
        if declared.facts.get(name) is None:
            yield f"{words} (declare {name})"
    if _term(plan.purpose) is None:
        yield f"which purpose of DPV '{plan.purpose}' is"


_COLUMNS = (
    "activity",
    "controller",
    "joint controllers",
    "contact details",
    "purpose",
    "lawful basis (declared)",
    "categories of people",
    "categories of personal data",
    "special categories",
    "recipients",
    "transfers",
    "envisaged erasure",
    "security measures",
    "last day",
    "plan",
    "contract",
    "declared by",
    "to be stated",
    "notice",
)


def ropa_csv(entries: Sequence[RopaEntry]) -> str:
    """The entries as CSV (RFC 4180), one line each; several values of a cell are apart by '; '.

    A text that a spreadsheet would take for a formula begins with an apostrophe.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    for entry in entries:
        writer.writerow([_inert(cell) for cell in _row(entry)])
    return text.getvalue()


def _row(entry: RopaEntry) -> tuple[str, ...]:
    return (
        entry.activity,
        entry.controller,
        "; ".join(entry.joint_controllers),
        "to be stated",
        entry.purpose if entry.purpose_term is None else f"{entry.purpose} ({entry.purpose_term})",
        f"{entry.lawful_basis} (GDPR Art. 6(1)({_BASES[entry.lawful_basis][-1]}))",
        "; ".join(entry.people),
        "; ".join(_data_text(one) for one in entry.data),
        entry.special,
        "; ".join(entry.recipients),
        "; ".join(entry.transfers),
        "; ".join(entry.erasure),
        "; ".join(one.text for one in entry.security),
        entry.expires.isoformat(),
        entry.plan,
        entry.contract,
        entry.declared_by,
        "; ".join(entry.open),
        entry.notice,
    )


def _data_text(data: DataCategory) -> str:
    group = "for audits alone" if data.protected else data.block
    return f"{data.name}: {data.kind}" + (f", {group}" if group else "")


def _inert(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def ropa_jsonld(entries: Sequence[RopaEntry]) -> dict[str, Any]:
    """The entries as one record in JSON-LD 1.1, in terms of DPV."""
    return {
        "@context": {
            "dpv": "https://w3id.org/dpv#",
            "eu-gdpr": "https://w3id.org/dpv/legal/eu/gdpr#",
            "dct": "http://purl.org/dc/terms/",
            "xsd": "http://www.w3.org/2001/XMLSchema#",
            "cohortium": "urn:cohortium:purpose:",
            "ropa": "urn:cohortium:ropa:",
        },
        "@type": "dpv:ROPA",
        "dct:description": f"Record of processing activities, {_ARTICLE}",
        "dct:rights": NOT_LEGAL_ADVICE,
        "dpv:hasProcess": [_process(entry) for entry in entries],
    }


def _process(entry: RopaEntry) -> dict[str, Any]:
    joint = [_named("dpv:DataController", name) for name in (entry.controller, *entry.joint_controllers)]
    shared = {"dpv:hasJointDataControllers": {"@type": "dpv:JointDataControllers", "dpv:hasDataController": joint}}
    purpose = {"@id": entry.purpose_term} if entry.purpose_term else _named("dpv:Purpose", entry.purpose)
    return {
        "@id": f"urn:cohortium:plan:{entry.plan}",
        "@type": "dpv:Process",
        "dct:title": entry.activity,
        "dct:valid": {"@type": "xsd:date", "@value": entry.expires.isoformat()},
        "dct:source": [entry.plan, entry.contract, entry.charter],
        "dpv:hasDataController": joint[0],
        **(shared if entry.joint_controllers else {}),
        "dpv:hasPurpose": purpose,
        "dpv:hasLegalBasis": {"@id": f"eu-gdpr:{_BASES[entry.lawful_basis]}"},
        "dpv:hasDataSubject": [_described("dpv:Customer", text) for text in entry.people],
        "dpv:hasPersonalData": [_described("dpv:PersonalData", _data_text(one)) for one in entry.data],
        "dpv:hasRecipient": [_described("dpv:Recipient", text) for text in entry.recipients],
        "dpv:hasStorageCondition": [_described("dpv:StorageDuration", text) for text in entry.erasure],
        "dpv:hasTechnicalOrganisationalMeasure": [_described(one.term, one.text) for one in entry.security],
        "ropa:special": entry.special,
        "ropa:transfers": list(entry.transfers),
        "ropa:declaredBy": entry.declared_by,
        "ropa:open": list(entry.open),
    }


def _named(kind: str, name: str) -> dict[str, str]:
    return {"@type": kind, "dct:title": name}


def _described(kind: str, text: str) -> dict[str, str]:
    return {"@type": kind, "dct:description": text}
