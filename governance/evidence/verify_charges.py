"""Checks of what was spent and on what grounds: charges against log entries, epsilon, decisions, consent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from cohortium.governance.evidence.pack_parts import LoggedEntry, PackedCharge, PlanSpend
from cohortium.governance.evidence.verify_content import Content, Party
from cohortium.governance.evidence.verify_finding import Check, Finding, NothingToCheckError, judged, nothing, wrong
from cohortium.governance.evidence.verify_logs import Logs
from cohortium.privacy.accounting import Spend, budget_for, epsilon_spent, price
from cohortium.privacy.release import consent_commitment
from cohortium.privacy.sharing import noise_share
from cohortium.study.plan import Plan

__all__ = ["check_charges"]

_NO_RULES = "none"
_NEAR = 1e-9  # relative: what another machine's last digits may make of the same sums


def check_charges(content: Content, logs: Logs) -> Iterator[Finding]:
    """All findings about charges, epsilon, decisions and consent, for every institution."""
    institutions = [party for party in content.parties.values() if party.institution is not None]
    looks: dict[Check, Callable[[Party], str | None]] = {
        "charges": lambda party: _charges(party, logs, content.plans),
        "epsilon": lambda party: _epsilon(party, content.plans),
        "decisions": lambda party: _decisions(party, logs),
        "consent": lambda party: _consent(party, logs),
    }
    for check, look in looks.items():
        if not institutions:
            yield judged(check, "", nothing)
        for party in institutions:
            yield judged(check, party.name, partial(look, party))


def _charges(party: Party, logs: Logs, plans: Mapping[str, Plan]) -> str | None:
    """Charges and `release` entries match one to one, and each costs what its question costs."""
    releases = _releases(party, logs)
    charges = {} if party.ledger is None else {one.sequence: one for one in party.ledger.charges}
    _in_order("charges", [one.sequence for one in party.ledger.charges] if party.ledger is not None else [])
    if not releases and not charges:
        return None
    for number, one in releases.items():
        if number not in charges:
            raise wrong(f"log entry {one.index} is of charge {number}, which is not in the ledger extract")
    for number, charge in charges.items():
        if number not in releases:
            raise wrong(f"charge {number} has no log entry")
        _same(charge, releases[number])
        _priced(charge, plans)
    return f"{len(charges)} charges, each with its one log entry"


def _same(charge: PackedCharge, logged: LoggedEntry) -> None:
    for field in ("plan", "run", "phase", "step", "attempt", "question", "mu2", "tv"):
        if logged.entry.get(field) != getattr(charge, field):
            raise wrong(f"charge {charge.sequence} and log entry {logged.index} do not agree: {field}")


def _priced(charge: PackedCharge, plans: Mapping[str, Plan]) -> None:
    plan = plans.get(charge.plan)
    if plan is None:
        raise wrong(f"charge {charge.sequence} is of a plan that is not in this pack")
    share = noise_share(plan)
    mechanism = "discrete-gaussian-share" if share.is_shared else "discrete-gaussian"
    asked = (mechanism, share.contributions, share.colluders)
    if (charge.mechanism, charge.contributions, charge.colluders) != asked:
        raise wrong(f"charge {charge.sequence} is not under the noise that its plan asks for")
    cost = price(int(charge.bound_squared), int(charge.sigma), charge.width, share)
    if (str(cost.mu2), str(cost.tv)) != (charge.mu2, charge.tv):
        raise wrong(f"charge {charge.sequence} does not cost what was charged")


def _epsilon(party: Party, plans: Mapping[str, Plan]) -> str | None:
    """What the charges add up to, told anew by `privacy.accounting`."""
    if party.ledger is None or not party.ledger.charges:
        return None
    sums: dict[str, tuple[int, Spend]] = {}
    for charge in party.ledger.charges:
        count, spent = sums.get(charge.plan, (0, Spend()))
        sums[charge.plan] = count + 1, spent + Spend(int(charge.mu2), int(charge.tv))
    stated = {one.plan: one for one in party.ledger.spent}
    if set(stated) != set(sums) or len(stated) < len(party.ledger.spent):
        raise wrong("sums are stated of other plans than there are charges of")
    for digest, (count, spent) in sums.items():
        _plan_epsilon(stated[digest], count, spent, plans)
    told = ", ".join(f"{plans[one.plan].name} {one.epsilon:.4f}" for one in party.ledger.spent)
    return f"epsilon {told}"


def _plan_epsilon(stated: PlanSpend, count: int, spent: Spend, plans: Mapping[str, Plan]) -> None:
    plan = plans.get(stated.plan)
    if plan is None:
        raise wrong("a sum is of a plan that is not in this pack")
    if (stated.charges, int(stated.mu2), int(stated.tv), stated.delta) != (count, spent.mu2, spent.tv, plan.delta):
        raise wrong(f"the charges of plan '{plan.name}' do not add up to what is stated")
    if not spent.fits(budget_for(plan.epsilon, plan.delta)):
        raise wrong(f"plan '{plan.name}': the charges pass the plan's epsilon {plan.epsilon:g}")
    epsilon = epsilon_spent(spent, plan.delta)
    if abs(epsilon - stated.epsilon) > _NEAR * epsilon:
        raise wrong(f"plan '{plan.name}': epsilon {stated.epsilon:g} is stated, and the charges come to {epsilon:g}")


def _decisions(party: Party, logs: Logs) -> str | None:
    """Every release names a decision that admitted its run before, and the decision is there with its facts."""
    releases = _releases(party, logs)
    if not releases:
        return None
    held = {} if party.decisions is None else {one.decision.id: one for one in party.decisions.decisions}
    for digest, decided in held.items():
        if decided.facts.digest != decided.decision.facts:
            raise wrong(f"decision {_short(digest)} rests on other facts than those beside it")
    admissions = {
        (one.entry.get("plan"), one.entry.get("run"), one.entry.get("decision")): one
        for one in logs.proven[party.name].of_event("admission")
        if one.entry.get("admitted") == "true"
    }
    used = set()
    for one in releases.values():
        digest = str(one.entry.get("decision"))
        admitted = admissions.get((one.entry.get("plan"), one.entry.get("run"), digest))
        if admitted is None or admitted.index > one.index:
            raise wrong(f"log entry {one.index} is of a run that decision {_short(digest)} did not admit")
        used.add((str(one.entry.get("plan")), digest))
    for plan, digest in used:
        if digest == _NO_RULES:
            continue
        found = held.get(digest)
        if found is None:
            raise wrong(f"decision {_short(digest)}, which entries name, is not there or was altered")
        if not found.decision.admitted or found.decision.stage != "admission" or found.plan != plan:
            raise wrong(f"decision {_short(digest)} did not admit a run of this plan")
    ruled = {digest for _, digest in used if digest != _NO_RULES}
    if not ruled:
        raise NothingToCheckError("no rules were in force: this is a simulation's node")
    return f"{len(ruled)} decisions to admit, with their facts"


def _consent(party: Party, logs: Logs) -> str | None:
    """Roots and salts open the commitments in the log entries."""
    releases = _releases(party, logs)
    openings = {} if party.consent is None else {one.charge: one for one in party.consent.openings}
    if not releases and not openings:
        return None
    _in_order("openings", [one.charge for one in party.consent.openings] if party.consent is not None else [])
    if strays := sorted(set(openings) - set(releases)):
        raise wrong(f"an opening of charge {strays[0]}, which no log entry names")
    for number, one in releases.items():
        opening = openings.get(number)
        if opening is None:
            raise wrong(f"log entry {one.index}: nothing opens its commitment")
        if consent_commitment(opening.root, opening.salt) != one.entry.get("consent"):
            raise wrong(f"log entry {one.index}: root and salt do not open its commitment")
    roots = len({opening.root for opening in openings.values()})
    return f"{len(releases)} commitments open, to {roots} snapshots"


def _releases(party: Party, logs: Logs) -> dict[int, LoggedEntry]:
    """The `release` entries of a party's proven log by the number of their charge."""
    log = logs.of(party.name)
    if log is None:
        return {}
    found: dict[int, LoggedEntry] = {}
    for one in log.of_event("release"):
        number = one.entry.get("charge")
        if type(number) is not int or number in found:
            raise wrong(f"log entry {one.index} is of no charge, or of one that an earlier entry is of")
        found[number] = one
    return found


def _in_order(what: str, numbers: list[int]) -> None:
    if numbers != sorted(set(numbers)):
        raise wrong(f"{what} are not in order, each once")


def _short(digest: str) -> str:
    return f"{digest[:15]}…" if len(digest) > 20 else f"'{digest}'"
