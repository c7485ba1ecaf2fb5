"""Where things come from, in PROV-JSON (W3C member submission of 24 April 2013): who made what, from what, when known.

Entities are documents, by digest: charter, contract, plans, policy decisions, commitments to consent snapshots, noisy
contributions, what was released, audits, review cases and their statements, exports. Activities are runs and their
questions, audits, reviews and exports. Agents are institutions, the coordinator, and reviewers by person id. Log
entries name no customer, and nothing else is read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cohortium.governance.evidence.card import Released
from cohortium.governance.fairness import FairnessResult
from cohortium.governance.review import PARTS, Case, Signed
from cohortium.study.bundle import Bundle
from cohortium.study.charter import Charter
from cohortium.study.contract import Contract
from cohortium.study.errors import DataError
from cohortium.study.model import LookalikeModel
from cohortium.study.plan import Plan

__all__ = ["prov_json"]

_NAMESPACE = "urn:cohortium:prov:"
_DIGEST = re.compile(r"(sha256:)?([0-9a-f]{32,64})")
_COORDINATOR = "agent-coordinator"


def prov_json(
    charter: Charter,
    contract: Contract,
    *,
    plans: Iterable[Plan] = (),
    released: Iterable[Released] = (),
    fairness: Iterable[FairnessResult] = (),
    logs: Mapping[str, Iterable[Mapping[str, Any]]] | None = None,
    reviews: Iterable[tuple[Case, Sequence[Signed]]] = (),
) -> dict[str, Any]:
    """The provenance of what is given, as PROV-JSON.

    Args:
        charter: with whom.
        contract: on which data.
        plans: approved ones.
        released: what runs released.
        fairness: results of audits.
        logs: entries of institutions' audit logs by name; events of other versions are left out.
        reviews: cases with their statements.

    Raises:
        DataError: the log or the case of somebody whom the charter does not name, or a known event without its fields.
    """
    made = _Provenance(charter, contract)
    for plan in plans:
        made.plan(plan)
    for one in released:
        made.released(one)
    for result in fairness:
        made.audit(result)
    for institution, entries in (logs or {}).items():
        for entry in entries:
            made.logged(institution, entry)
    for case, statements in reviews:
        made.review(case, statements)
    return made.to_json()


class _Provenance:
    """Collects nodes and relations; naming one twice adds what is new about it."""

    def __init__(self, charter: Charter, contract: Contract) -> None:
        self._nodes: dict[str, dict[str, dict[str, Any]]] = {"entity": {}, "activity": {}, "agent": {}}
        self._relations: dict[str, dict[tuple[str, str], None]] = defaultdict(dict)
        self._charter = self._entity("charter", charter.digest, label=charter.name)
        self._contract = self._entity("contract", contract.digest, label=contract.name)
        self._members = {one.name: self._member(index, one.name) for index, one in enumerate(charter.institutions, 1)}
        self._agent(_COORDINATOR, "prov:SoftwareAgent", f"coordinator of {charter.name}")

    def plan(self, plan: Plan) -> str:
        found = self._entity("plan", plan.digest, label=plan.name, kind="prov:Plan", purpose=plan.purpose)
        self._relate("wasDerivedFrom", found, self._contract)
        self._relate("wasDerivedFrom", found, self._charter)
        return found

    def released(self, released: Released) -> None:
        document = released if isinstance(released, Bundle) else released.document
        plan, model = self.plan(document.plan), self._model(released.digest)
        run = self._run(document.run, document.plan.digest)
        self._entity("released", released.digest, label=f"what '{document.plan.name}' released")
        self._relate("wasGeneratedBy", model, run)
        self._relate("wasDerivedFrom", model, plan)
        self._relate("wasAttributedTo", model, _COORDINATOR)
        if isinstance(document, LookalikeModel):
            self._relate("used", run, self._model(document.plan.model))
            self._relate("wasDerivedFrom", model, self._model(document.plan.model))
        for record in document.releases:
            question = self._question(record.question, document.run, record.phase, record.step, record.attempt)
            self._relate("used", question, plan)

    def audit(self, result: FairnessResult) -> None:
        found = self._entity(
            "fairness", result.digest, label=f"fairness audit of {result.subject}", verdict=result.verdict
        )
        audited, plan = self._model(result.audited), self._entity("plan", result.plan, kind="prov:Plan")
        audit = self._activity("audit", result.digest, label="fairness audit", made=result.made.isoformat())
        self._relate("used", audit, audited)
        self._relate("used", audit, plan)
        self._relate("wasGeneratedBy", found, audit)
        self._relate("wasDerivedFrom", found, audited)
        self._relate("wasAssociatedWith", audit, _COORDINATOR)

    def logged(self, institution: str, entry: Mapping[str, Any]) -> None:
        event = {"admission": self._admission, "release": self._release, "activation": self._export}
        make = event.get(str(entry.get("event")))
        agent = self._agent_of(institution)
        if make is None:
            return
        try:
            make(agent, entry)
        except (KeyError, TypeError, AttributeError):
            raise DataError(
                f"an entry of event '{entry['event']}' is not of this version",
                place=f"log of {institution}",
                fix="verify the log: cohortium log verify",
            ) from None

    def review(self, case: Case, statements: Sequence[Signed]) -> None:
        agent = self._agent_of(case.institution)
        found = self._entity("case", case.digest, label=case.name, about=case.about, asked=case.kind)
        self._relate("wasAttributedTo", found, agent)
        kinds = {"card": "card", "audit": "fairness", "dpia": "dpia", "decision": "decision"}
        for part in PARTS:
            self._relate("wasDerivedFrom", found, self._entity(kinds[part], getattr(case.subject, part)))
        for signed in statements:
            said = signed.statement
            person = self._agent(
                f"{agent.replace('agent-', 'person-')}-{said.person}",
                "prov:Person",
                said.person,
                function=said.function,
            )
            act = self._activity("review", signed.digest, label=f"{said.action} '{case.name}'", at=said.at.isoformat())
            statement = self._entity("statement", signed.digest, label=said.action)
            self._relate("used", act, found)
            self._relate("wasAssociatedWith", act, person)
            self._relate("wasGeneratedBy", statement, act)
            self._relate("wasAttributedTo", statement, person)

    def to_json(self) -> dict[str, Any]:
        """Nodes and relations in order of names, so that equal provenance is an equal document."""
        found: dict[str, Any] = {"prefix": {"coh": _NAMESPACE}}
        for kind, nodes in self._nodes.items():
            found[kind] = {f"coh:{name}": dict(sorted(nodes[name].items())) for name in sorted(nodes)}
        for kind in sorted(self._relations):
            first, second = _ENDS[kind]
            found[kind] = {
                f"_:{kind}{index}": {first: f"coh:{one}", second: f"coh:{other}"}
                for index, (one, other) in enumerate(sorted(self._relations[kind]), 1)
            }
        return found

    def _admission(self, agent: str, entry: Mapping[str, Any]) -> None:
        if _hex(entry["decision"]) is None:
            return  # no rules were in force
        run = self._run(entry["run"], entry["plan"])
        decision = self._entity("decision", entry["decision"], admitted=entry["admitted"])
        self._relate("wasAttributedTo", decision, agent)
        self._relate("used", run, decision)
        self._relate("wasAssociatedWith", run, agent)

    def _release(self, agent: str, entry: Mapping[str, Any]) -> None:
        run = self._run(entry["run"], entry["plan"])
        question = self._question(entry["question"], entry["run"], entry["phase"], entry["step"], entry["attempt"])
        contribution = self._entity(
            "contribution",
            f"{entry['question'].removeprefix('sha256:')}-{agent.removeprefix('agent-')}",
            label="noisy contribution",
            mu2=entry["mu2"],
            tv=entry["tv"],
        )
        commitment = self._entity("consent", entry["consent"], label="salted commitment to a consent snapshot")
        self._relate("wasAttributedTo", commitment, agent)
        self._relate("used", question, commitment)
        if _hex(entry["decision"]) is not None:
            self._relate("used", question, self._entity("decision", entry["decision"]))
        self._relate("wasGeneratedBy", contribution, question)
        self._relate("wasAttributedTo", contribution, agent)
        self._relate("wasAssociatedWith", question, agent)
        self._relate("used", run, contribution)
        self._relate("wasAssociatedWith", run, agent)

    def _export(self, agent: str, entry: Mapping[str, Any]) -> None:
        decision = self._entity("decision", entry["decision"], admitted=entry["admitted"])
        self._relate("wasAttributedTo", decision, agent)
        if entry["admitted"] != "true":
            return
        name = f"{agent.removeprefix('agent-')}-{entry['audience']}"
        export = self._activity("export", entry["decision"], label=f"export of {entry['audience']}")
        audience = self._entity("audience", name, label=f"audience {entry['audience']}", level=entry.get("level") or "")
        self._relate("wasGeneratedBy", audience, export)
        self._relate("wasAttributedTo", audience, agent)
        self._relate("wasAssociatedWith", export, agent)
        self._relate("used", export, decision)
        self._relate("used", export, self._entity("plan", entry["plan"], kind="prov:Plan"))
        if _hex(entry.get("case")) is not None:
            self._relate("used", export, self._entity("case", entry["case"]))
        if _hex(entry.get("model")) is not None:
            self._relate("used", export, self._model(entry["model"]))
            self._relate("wasDerivedFrom", audience, self._model(entry["model"]))

    def _model(self, digest: str) -> str:
        return self._entity("released", digest)

    def _run(self, run: str, plan: str) -> str:
        found = self._activity("run", run, label="run")
        self._relate("used", found, self._entity("plan", plan, kind="prov:Plan"))
        self._relate("used", found, self._contract)
        self._relate("used", found, self._charter)
        self._relate("wasAssociatedWith", found, _COORDINATOR)
        return found

    def _question(self, digest: str, run: str, phase: str, step: int, attempt: int) -> str:
        found = self._activity("question", digest, label=f"{phase} {step}, attempt {attempt}", run=run)
        self._relate("wasAssociatedWith", found, _COORDINATOR)
        return found

    def _member(self, index: int, name: str) -> str:
        return self._agent(f"agent-{index}", "prov:Organization", name)

    def _agent_of(self, institution: str) -> str:
        if institution not in self._members:
            raise DataError(
                f"'{institution}' is no member of the charter", place="provenance", fix="give the charter it is in"
            )
        return self._members[institution]

    def _agent(self, name: str, kind: str, label: str, **more: str) -> str:
        return self._node("agent", name, label, kind, more)

    def _activity(self, kind: str, name: str, *, label: str, **more: str) -> str:
        return self._node("activity", f"{kind}-{_local(name)}", label, f"coh:{kind}", more)

    def _entity(self, what: str, name: str, *, label: str | None = None, kind: str | None = None, **more: str) -> str:
        return self._node("entity", f"{what}-{_local(name)}", label, kind or f"coh:{what}", more)

    def _node(self, where: str, name: str, label: str | None, kind: str, more: Mapping[str, str]) -> str:
        found = self._nodes[where].setdefault(name, {})
        found["prov:type"] = {"$": kind, "type": "xsd:QName"}
        if label is not None:
            found["prov:label"] = label
        found.update({f"coh:{key}": value for key, value in more.items()})
        return name

    def _relate(self, kind: str, first: str, second: str) -> None:
        self._relations[kind][first, second] = None


_ENDS = {
    "used": ("prov:activity", "prov:entity"),
    "wasGeneratedBy": ("prov:entity", "prov:activity"),
    "wasAssociatedWith": ("prov:activity", "prov:agent"),
    "wasDerivedFrom": ("prov:generatedEntity", "prov:usedEntity"),
    "wasAttributedTo": ("prov:entity", "prov:agent"),
}


def _hex(digest: object) -> str | None:
    """The hexadecimal digits of a digest; None of what is no digest."""
    found = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    return None if found is None else found[2]


def _local(name: str) -> str:
    """The local part of a name: of a digest its digits, of anything else its letters, digits, '.', '-' and '_'."""
    return _hex(name) or re.sub(r"[^A-Za-z0-9._-]", "_", name)
