"""What a rule pack is: rules as data, with their articles, dates, clocks and fixtures."""

from __future__ import annotations

import calendar
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field, StringConstraints, field_validator, model_validator

from cohortium.governance.rules.expression import AnyOf, Comparison, Expression, Not, Test, facts_in, parse
from cohortium.governance.rules.schema import Value, checked_value
from cohortium.study.canonical import digest_json
from cohortium.study.document import Agreed, Document

__all__ = [
    "PACK_FORMS",
    "Clock",
    "Effect",
    "Fixture",
    "Idleness",
    "Limit",
    "Pack",
    "Rule",
    "RuleLimit",
    "Stage",
    "checked_facts",
]

Stage = Literal["admission", "activation", "retention"]
"""May this plan run on my customers? May this audience be exported? What does keeping this model ask for?"""

Effect = Literal["deny", "require", "limit", "obligation"]

Idleness = Literal["proposed", "not dated", "not yet in force", "expired"]
"""Why a rule does not apply on a day."""

Event = Literal[
    "withdrawal",
    "rights_request",
    "complaint",
    "opt_out",
    "erasure",
    "consent_signal",
    "permission_withdrawn",
    "offer",
    "price",
    "audit",
    "board_report",
]

_ID = r"^[A-Z][A-Z0-9]*(-[A-Z0-9]+)+$"
_NAME = r"^[a-z]+(-[a-z]+)*$"
PACK_FORMS = {
    _ID: "use capital letters and digits in parts joined by -, such as EU-GDPR-7-1",
    _NAME: "use small letters in parts joined by -, such as us-ca",
}
"""What the patterns of a pack's texts mean, in words."""

_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_Raw = dict[str, Any]


class Limit(Agreed):
    """A number that a fact must keep to.

    Args:
        stage: at which it is tested.
        fact, op, number: `privacy.epsilon <= 3`.
        rules: whose limit it is; of several equal ones, all.
    """

    stage: Stage
    fact: str
    op: Literal["<=", ">="]
    number: Annotated[float, Field(strict=True, allow_inf_nan=False)]
    rules: tuple[str, ...]

    def stricter_than(self, other: Limit) -> bool:
        """Whether this one leaves less; of the same stage, fact and operator."""
        return self.number < other.number if self.op == "<=" else self.number > other.number


class RuleLimit(Agreed):
    """The limit of one rule, as it stands in a pack."""

    fact: str
    op: Literal["<=", ">="]
    number: Annotated[float, Field(strict=True, allow_inf_nan=False)]

    @model_validator(mode="after")
    def _fits_the_schema(self) -> RuleLimit:
        parse({self.op: [self.fact, self.number]})
        return self


class Clock(Agreed):
    """By when a duty is done: some time after an event, or before another event.

    Args:
        since: what starts it.
        amount, unit: how much time there is. Business days are Monday to Friday; holidays are not known, so that the
            clock is early rather than late. A month ends on the same day of the next one, or on its last.
        before: the event before which it must be done, instead of an amount.
        set_by: the law, a guideline, or this house, which is stricter where the law sets no number.
        act: what this clock is for, where a duty has several.
        extendable: how many units longer it may take, if the person is told why.
    """

    since: Event
    amount: Annotated[int, Field(ge=0, strict=True)] | None = None
    unit: Literal["hours", "days", "business_days", "months"] | None = None
    before: Literal["next_round", "next_retraining", "next_audit", "offer", "price"] | None = None
    set_by: Literal["law", "guidance", "house"] = "law"
    act: _Text | None = None
    extendable: Annotated[int, Field(ge=1, strict=True)] | None = None

    @model_validator(mode="after")
    def _one_end(self) -> Clock:
        if (self.amount is None) != (self.unit is None) or (self.amount is None) == (self.before is None):
            raise ValueError("a clock ends after an amount of a unit, or before an event; state one of the two")
        return self

    def due(self, since: datetime, before: datetime | None = None) -> datetime | None:
        """The last moment, given when it started and, for clocks that end before an event, when that event is.

        None while that event has no date.
        """
        if self.amount is None:
            return before
        if self.unit == "months":
            return _months_later(since, self.amount)
        if self.unit == "business_days":
            return _business_days_later(since, self.amount)
        return since + timedelta(**{str(self.unit): self.amount})


class Fixture(Agreed):
    """Facts under which a rule is known to fire or to stay silent.

    Args:
        facts: what differs from the pack's sheet.
        since, before, done: for a duty: when its clocks started, when the event before which it is to be done is, and
            when it was done.
    """

    facts: _Raw = Field(default_factory=dict)
    since: AwareDatetime | None = None
    before: AwareDatetime | None = None
    done: AwareDatetime | None = None

    @field_validator("facts", mode="after")
    @classmethod
    def _flat(cls, value: _Raw) -> _Raw:
        return checked_facts(value)


class Rule(Agreed):
    """One rule.

    Args:
        id: its name, for good.
        article: where it stands in law, or `House …`.
        plain: what it asks for, for a reviewer.
        stage: when it is evaluated. A duty stands at the stage whose act brings it about.
        effect: `deny` and `require`: `must` has to hold where `applies` does, else the stage is refused; `require` asks
            for something to be supplied; `limit`: a number the fact has to keep to; `obligation`: a duty with clocks.
        applies: when the rule is of interest; always, if left out.
        must: what has to hold.
        limit: of rules of that effect.
        obligation, deadline, clocks: of duties: what is to be done, by when in words, and by when for machines.
        status: `in_force`; `adopted_future`, dated or not; `proposed`; `guidance`; `house`.
        in_force_from, in_force_until: first and last day.
        confidence: A read in official text; B secondary source; C recalled; U uncertain; `house` our own limit.
        source: where it was read.
        note: what a reviewer should know beside.
        passing, failing: where the rule applies and is kept, and where it fires.
        also: rules of this pack that the failing fixture cannot but break too.
    """

    id: Annotated[str, StringConstraints(pattern=_ID)]
    article: _Text
    plain: _Text
    stage: Stage
    effect: Effect
    applies: _Raw | None = None
    must: _Raw | None = None
    limit: RuleLimit | None = None
    obligation: _Text | None = None
    deadline: _Text | None = None
    clocks: tuple[Clock, ...] = ()
    status: Literal["in_force", "adopted_future", "proposed", "guidance", "house"]
    in_force_from: date | None = None
    in_force_until: date | None = None
    confidence: Literal["A", "B", "C", "U", "house"]
    source: str = ""
    note: str = ""
    passing: Fixture
    failing: Fixture
    also: tuple[str, ...] = ()

    @field_validator("applies", "must", mode="after")
    @classmethod
    def _parses(cls, value: _Raw | None) -> _Raw | None:
        if value is not None:
            parse(value)
        return value

    @field_validator("in_force_until", mode="after")
    @classmethod
    def _ends_after_it_began(cls, value: date | None, info: Any) -> date | None:
        began = info.data.get("in_force_from")
        if value is not None and began is not None and value < began:
            raise ValueError("the rule ends before it begins; correct in_force_from or in_force_until")
        return value

    @model_validator(mode="after")
    def _has_what_its_effect_needs(self) -> Rule:
        needed = {"deny": ("must",), "require": ("must",), "limit": ("limit",)}
        wanted = needed.get(self.effect, ("obligation", "deadline", "clocks"))
        for field in ("must", "limit", "obligation", "deadline", "clocks"):
            if bool(getattr(self, field)) != (field in wanted):
                verb = "needs" if field in wanted else "has no use for"
                raise ValueError(
                    f"effect '{self.effect}' {verb} '{field}'; {'add' if verb == 'needs' else 'remove'} it"
                )
        if (self.status == "house") != (self.confidence == "house"):
            raise ValueError("a house rule is 'house' in status and confidence; set both")
        return self

    @property
    def mark(self) -> str:
        """The confidence as it is shown: `C, unverified`."""
        return f"{self.confidence}, unverified" if self.confidence in ("C", "U") else self.confidence

    @property
    def refuses(self) -> bool:
        """Whether it can refuse a stage: every rule but a duty."""
        return self.effect != "obligation"

    @cached_property
    def when(self) -> Expression | None:
        """`applies`, parsed."""
        return None if self.applies is None else parse(self.applies)

    @cached_property
    def asks(self) -> Expression | None:
        """`must` or the limit, parsed; None for a duty."""
        if self.limit is not None:
            return Comparison(self.limit.op, self.limit.fact, self.limit.number)
        return None if self.must is None else parse(self.must)

    @cached_property
    def applying(self) -> Test | None:
        """`applies`, compiled; None if it always does."""
        return None if self.when is None else self.when.test

    @cached_property
    def kept(self) -> Test:
        """Whether it is kept: it does not apply, or what it asks for holds. A duty is owed where this is not true."""
        parts = [Not(self.when)] if self.when is not None else []
        asks = [self.asks] if self.asks is not None else []
        return AnyOf((*parts, *asks)).test

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """The facts that it reads, each once."""
        return tuple(dict.fromkeys(name for part in (self.when, self.asks) if part for name in facts_in(part)))

    def idle_on(self, day: date) -> Idleness | None:
        """Why it does not apply on a day; None when it does."""
        if self.status == "proposed":
            return "proposed"
        if self.status == "adopted_future" and self.in_force_from is None:
            return "not dated"
        if self.in_force_from is not None and day < self.in_force_from:
            return "not yet in force"
        if self.in_force_until is not None and day > self.in_force_until:
            return "expired"
        return None


class Pack(Document):
    """The rules of one place, read on one day.

    Args:
        schema_id: `cohortium.rules/1`; written `schema` in TOML.
        name: by which institutions ask for it.
        title: for people.
        group: packs that can be asked for together.
        as_of: the day on which the law was read; statuses are of that day.
        disclaimer: `not legal advice`.
        sheet: facts under which every rule of the pack is silent; fixtures say what differs.
        rules: at least one.
    """

    schema_id: Annotated[Literal["cohortium.rules/1"], Field(alias="schema")]
    name: Annotated[str, StringConstraints(pattern=_NAME)]
    title: _Text
    group: Annotated[str, StringConstraints(pattern=_NAME)] | None = None
    as_of: date
    disclaimer: Literal["not legal advice"]
    sheet: _Raw
    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]

    @field_validator("sheet", mode="after")
    @classmethod
    def _flat(cls, value: _Raw) -> _Raw:
        return checked_facts(value)

    @cached_property
    def digest(self) -> str:
        """`sha256:…` of the canonical JSON (RFC 8785)."""
        return digest_json(self.to_json())


def checked_facts(raw: Mapping[str, Any]) -> dict[str, Value]:
    """Facts by their whole names, of a table in which `cohort.minors` may be a table `cohort` with `minors` in it.

    Raises:
        ValueError: as `problem; fix`, for the first fact that the schema does not allow.
    """
    flat: dict[str, Value] = {}
    for name, value in raw.items():
        if isinstance(value, Mapping):
            flat |= checked_facts({f"{name}.{inner}": content for inner, content in value.items()})
        else:
            flat[name] = checked_value(name, value)
    return flat


def _months_later(start: datetime, months: int) -> datetime:
    year, month = divmod(start.year * 12 + start.month - 1 + months, 12)
    return start.replace(year=year, month=month + 1, day=min(start.day, calendar.monthrange(year, month + 1)[1]))


def _business_days_later(start: datetime, days: int) -> datetime:
    while days:
        start += timedelta(days=1)
        days -= start.weekday() < calendar.SATURDAY
    return start
