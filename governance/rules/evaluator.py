"""The evaluator: every rule in force, in three-valued logic; what is not known to be kept is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date

from cohortium.governance.rules.decision import Decision, Duty, Finding, IdleRule, SeenFact
from cohortium.governance.rules.errors import RuleError
from cohortium.governance.rules.expression import All, AnyOf, Comparison, Expression, words
from cohortium.governance.rules.facts import Facts
from cohortium.governance.rules.limits import combine_limits
from cohortium.governance.rules.pack import Limit, Pack, Rule, Stage
from cohortium.governance.rules.schema import Value, fact_schema
from cohortium.privacy.randomness import fresh_key

__all__ = ["evaluate"]


def evaluate(
    packs: Sequence[Pack],
    facts: Facts,
    stage: Stage,
    today: date,
    *,
    agreed: Iterable[Limit] = (),
    salt: str | None = None,
) -> Decision:
    """Decide one stage.

    A rule is kept when `applies` is false or what it asks for is true, in Kleene's logic: if it is kept under every
    value that the missing facts could have for one reason alone. Any rule in force that is not kept refuses, also when
    only a fact is missing; a duty never refuses. Rules that are not in force on the day do nothing and are listed.

    Args:
        packs: those in force at the institution, as `load_packs` gives them; at least one.
        facts: what is known.
        stage: admission, activation or retention.
        today: the day.
        agreed: limits of other institutions; where stricter than the packs' own, the facts are tested against them.
        salt: of the decision to repeat; fresh if left out.

    Raises:
        RuleError: no pack is given, which would admit everything.
    """
    if not packs:
        raise RuleError("no pack of rules is in force", fix="load at least the house's")
    findings: list[Finding] = []
    duties: list[Duty] = []
    limits: list[Limit] = []
    idle: list[IdleRule] = []
    for pack in packs:
        for rule in pack.rules:
            if rule.stage != stage:
                continue
            if (why := rule.idle_on(today)) is not None:
                idle.append(IdleRule(rule=rule.id, why=why))
                continue
            if rule.limit is not None and (rule.applying is None or rule.applying(facts.facts) is not False):
                limits.append(_limit_of(rule))
            kept = rule.kept(facts.facts)
            if kept is True:
                continue
            if rule.refuses:
                findings.append(_finding(pack, rule, facts, broken=kept is False))
            else:
                duties.append(_duty(pack, rule, certain=kept is False))
    own = combine_limits(limits)
    together = combine_limits(own, (limit for limit in agreed if limit.stage == stage))
    findings += [
        found for limit in together if limit not in own and (found := _exceeded(limit, own, facts)) is not None
    ]
    return Decision.model_validate(
        {
            "schema": "cohortium.decision/1",
            "stage": stage,
            "today": today,
            "admitted": not findings,
            "findings": tuple(findings),
            "limits": together,
            "duties": tuple(duties),
            "not_in_force": tuple(idle),
            "packs": {pack.name: pack.digest for pack in packs},
            "facts": facts.digest,
            "salt": fresh_key().hex() if salt is None else salt,
        }
    )


def _limit_of(rule: Rule) -> Limit:
    return Limit(stage=rule.stage, rules=(rule.id,), **rule.limit.model_dump() if rule.limit else {})


def _finding(pack: Pack, rule: Rule, facts: Facts, *, broken: bool) -> Finding:
    return Finding(
        rule=rule.id,
        pack=pack.name,
        article=rule.article,
        plain=rule.plain,
        effect=rule.effect,
        confidence=rule.mark,
        outcome="broken" if broken else "unknown",
        seen=_seen(rule.reads, facts),
        change=_change(rule.asks, rule.reads, facts.facts),
    )


def _duty(pack: Pack, rule: Rule, *, certain: bool) -> Duty:
    return Duty(
        rule=rule.id,
        pack=pack.name,
        article=rule.article,
        confidence=rule.mark,
        obligation=rule.obligation or "",
        deadline=rule.deadline or "",
        clocks=rule.clocks,
        certain=certain,
    )


def _exceeded(limit: Limit, own: Sequence[Limit], facts: Facts) -> Finding | None:
    """A finding when the facts do not keep to a limit that other institutions brought."""
    asks = Comparison(limit.op, limit.fact, limit.number)
    truth = asks.test(facts.facts)
    if truth is True:
        return None
    return Finding(
        rule=limit.rules[0],
        pack="agreed",
        article="limit of another institution of the federation",
        plain=f"Of several limits the strictest holds: {words(asks)}.",
        effect="limit",
        confidence="house",
        outcome="unknown" if truth is None else "broken",
        seen=_seen((limit.fact,), facts),
        change=_change(asks, (limit.fact,), facts.facts),
    )


def _seen(names: Iterable[str], facts: Facts) -> tuple[SeenFact, ...]:
    found = ((name, facts.facts.get(name), facts.provenance.get(name)) for name in names)
    return tuple(SeenFact(fact=name, value=value, provenance=source) for name, value, source in found)


def _change(asks: Expression | None, reads: Iterable[str], values: Mapping[str, Value]) -> str:
    """What would change a refusal: facts to state, and what has to hold."""
    missing = [f"{name} ({fact_schema()[name].origin})" for name in reads if name not in values]
    needed = f"needed: {words(_unmet(asks, values))}" if asks is not None else ""
    return "; ".join(part for part in (f"state {', '.join(missing)}" if missing else "", needed) if part)


def _unmet(asks: Expression, values: Mapping[str, Value]) -> Expression:
    """What is left to be done of an expression that is not true."""
    if isinstance(asks, All):
        left = tuple(_unmet(part, values) for part in asks.parts if part.test(values) is not True)
        return left[0] if len(left) == 1 else All(left or asks.parts)
    if isinstance(asks, AnyOf):
        return AnyOf(tuple(_unmet(part, values) for part in asks.parts))
    return asks
