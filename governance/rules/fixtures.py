"""Fixtures: each rule says under which facts it is silent and under which it fires, and is held to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime

from cohortium.governance.rules.errors import RuleError
from cohortium.governance.rules.pack import Fixture, Pack, Rule
from cohortium.governance.rules.schema import Value

__all__ = ["fired", "fixture_problems", "overdue"]


def fired(pack: Pack, values: Mapping[str, Value]) -> set[str]:
    """The rules of a pack that refuse under these facts, whatever their stage and dates."""
    return {rule.id for rule in pack.rules if rule.refuses and rule.kept(values) is not True}


def overdue(rule: Rule, since: datetime, done: datetime, before: datetime | None = None) -> bool | None:
    """Whether a duty was done after its first clock ran out; None when a clock waits for an event without a date."""
    ends = [clock.due(since, before) for clock in rule.clocks]
    known = [end for end in ends if end is not None]
    return done > min(known) if len(known) == len(ends) else None


def fixture_problems(pack: Pack, place: str) -> Iterator[RuleError]:
    """What is wrong with the fixtures of a pack, rule by rule.

    Under its sheet every rule is silent. Under a passing fixture its rule applies, and none fires. Under a failing one
    its rule fires, not for want of a fact, and no other but those in `also`.
    """
    if noisy := sorted(fired(pack, pack.sheet)):
        fix = "correct the sheet, under which every rule is silent"
        yield RuleError(f"fires {', '.join(noisy)}", place=f"{place}: sheet", fix=fix)
        return
    for rule in pack.rules:
        for field, problem, fix in (*_passing(pack, rule), *_failing(pack, rule)):
            yield RuleError(problem, place=f"{place}: rule '{rule.id}': {field}", fix=fix)


def _passing(pack: Pack, rule: Rule) -> Iterator[tuple[str, str, str]]:
    values = {**pack.sheet, **rule.passing.facts}
    if rule.applying is not None and rule.applying(values) is not True:
        yield "passing", "the rule does not apply, so the fixture shows nothing", "state facts under which it applies"
    elif noisy := sorted(fired(pack, values)):
        yield "passing", f"fires {', '.join(noisy)}", "state facts under which every rule is silent"
    elif not rule.refuses:
        yield from _timed(rule, rule.passing, "passing", late=False)


def _failing(pack: Pack, rule: Rule) -> Iterator[tuple[str, str, str]]:
    values = {**pack.sheet, **rule.failing.facts}
    found, expected = fired(pack, values), {rule.id, *rule.also} if rule.refuses else set(rule.also)
    if rule.refuses and rule.kept(values) is not False:
        yield "failing", "does not break the rule", "state facts under which it applies and is not kept"
    elif not rule.refuses and rule.kept(values) is not False:
        yield "failing", "the duty is not owed", "state facts under which the rule applies"
    elif found - expected:
        others = ", ".join(sorted(found - expected))
        yield "failing", f"also fires {others}", "change the facts, or, if it cannot be helped, name them in also"
    elif expected - found:
        yield "also", f"{', '.join(sorted(expected - found))} does not fire", "leave it out"
    elif not rule.refuses:
        yield from _timed(rule, rule.failing, "failing", late=True)


def _timed(rule: Rule, fixture: Fixture, field: str, *, late: bool) -> Iterator[tuple[str, str, str]]:
    if fixture.since is None or fixture.done is None:
        yield field, "a duty's fixture needs since and done", "state both, with their offset from UTC"
        return
    found = overdue(rule, fixture.since, fixture.done, fixture.before)
    if found is None:
        yield field, "a clock ends before an event that has no date", "state before = …"
    elif found != late:
        yield field, f"the duty is {'late' if found else 'in time'}", f"make it {'late' if late else 'in time'}"
