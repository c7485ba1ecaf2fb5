"""What a decision says: at the institution everything, to others one word and an id."""

from __future__ import annotations

from datetime import date
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from cohortium.governance.rules.pack import Clock, Effect, Idleness, Limit, Stage
from cohortium.governance.rules.schema import Value
from cohortium.study.canonical import digest_json
from cohortium.study.document import Agreed, Document

__all__ = ["Decision", "Duty", "Finding", "IdleRule", "PublicDecision", "SeenFact"]


class SeenFact(Agreed):
    """A fact as the rule saw it; `value` and `provenance` are None when it is unknown."""

    fact: str
    value: Value | None
    provenance: str | None


class Finding(Agreed):
    """Why the stage is refused, by one rule.

    Args:
        rule, pack, article, plain, effect: the rule's.
        confidence: its mark, such as `C, unverified`.
        outcome: `broken`: the facts break it; `unknown`: they do not suffice to tell.
        seen: the facts that it read.
        change: what would change it.
    """

    rule: str
    pack: str
    article: str
    plain: str
    effect: Effect
    confidence: str
    outcome: Literal["broken", "unknown"]
    seen: tuple[SeenFact, ...]
    change: str


class Duty(Agreed):
    """What has to be done, and by when.

    Args:
        rule, pack, article, confidence: the rule's.
        obligation, deadline, clocks: what, by when in words, and by when for machines.
        certain: whether it is known to be owed; a duty of which that is unknown is kept like one that is.
    """

    rule: str
    pack: str
    article: str
    confidence: str
    obligation: str
    deadline: str
    clocks: tuple[Clock, ...]
    certain: bool


class IdleRule(Agreed):
    """A rule of the stage that did not apply on the day, and why."""

    rule: str
    why: Idleness


class PublicDecision(Agreed):
    """All that leaves the institution: one of two words, and an id under which the institution finds the rest."""

    decision: Literal["admitted", "declined"]
    id: str


class Decision(Document):
    """What the packs in force say of one set of facts at one stage on one day.

    Args:
        schema_id: `cohortium.decision/1`; written `schema` in JSON.
        stage, today: of the evaluation.
        admitted: no rule in force refused.
        findings: every refusal, in the order of packs and rules.
        limits: what the run has to keep to, the strictest of each.
        duties: obligations that come with it.
        not_in_force: rules of this stage that did not apply on the day.
        packs: digests by name.
        facts: digest.
        salt: 32 random bytes in hex. Without them the id could be guessed back to the facts.
    """

    schema_id: Annotated[Literal["cohortium.decision/1"], Field(alias="schema")]
    stage: Stage
    today: date
    admitted: bool
    findings: tuple[Finding, ...]
    limits: tuple[Limit, ...]
    duties: tuple[Duty, ...]
    not_in_force: tuple[IdleRule, ...]
    packs: dict[str, str]
    facts: str
    salt: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

    @cached_property
    def digest(self) -> str:
        """`sha256:…` of the canonical JSON (RFC 8785)."""
        return digest_json(self.to_json())

    @property
    def id(self) -> str:
        """The digest."""
        return self.digest

    @property
    def public(self) -> PublicDecision:
        """What others may see."""
        return PublicDecision(decision="admitted" if self.admitted else "declined", id=self.id)
