"""What the page of a bias audit is drawn from: the audit's result and what a reviewer needs beside it, in one file.

Every number about customers in it is the result's: noised and paid for by the audit, or, without noise, marked so.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cohortium.governance.fairness import FairnessResult, Mitigation
from cohortium.governance.report.facts import Fact, Text, Written, load_written
from cohortium.governance.report.policy_facts import PolicyFacts, Quote, ReviewFacts
from cohortium.study.plan import Trust

__all__ = ["FAIRNESS_PAGE_SCHEMA", "FairnessPage", "MitigationFacts", "load_fairness_page"]

FAIRNESS_PAGE_SCHEMA = "cohortium.fairness-page/1"
"""The schema name this version reads and writes; any other is refused."""

_MOST = 1e15  # beyond any number of people, ratio or limit

_Ratio = Annotated[float, Field(ge=0, allow_inf_nan=False)] | None

_SUBJECTS = {"segments": ("segments", "column"), "lookalike": ("audience", "column")}


class MitigationFacts(Fact):
    """Something that can be asked for. Whatever is chosen is audited again.

    Args:
        what: in words, such as "a threshold of its own for every group of age".
        condition: what has to be allowed first; empty for nothing.
        ratio_before, ratio_after: lowest over highest rate by the noisy tables; None where unknown.
        lift_before, lift_after: what it costs: rate of responses among the chosen over everybody's; None where unknown.
    """

    what: Text
    condition: Quote = ""
    ratio_before: _Ratio = None
    ratio_after: _Ratio = None
    lift_before: _Ratio = None
    lift_after: _Ratio = None

    @classmethod
    def of(cls, what: str, found: Mitigation, condition: str) -> MitigationFacts:
        """From thresholds by group, worked out on released tables."""
        return cls(
            what=what,
            condition=condition,
            ratio_before=found.ratio_before,
            ratio_after=found.ratio_after,
            lift_before=found.lift_before,
            lift_after=found.lift_after,
        )


class FairnessPage(Written):
    """See the module.

    Args:
        schema_id: `cohortium.fairness-page/1`; written `schema`.
        version: of cohortium.
        mode: `simulation`: all institutions ran on one machine.
        of: what was audited: the segments of a bundle, the audience of a campaign, or a column with an outcome.
        name, purpose: of what was audited, as its plan states them.
        institutions: how many answered the audit.
        trust: whose noise protects the audit's tables.
        result: what the audit says.
        policies: decisions of the rules to be quoted.
        reviews: how cases about it stand.
        mitigations: what can be asked for.
    """

    schema_id: Annotated[Literal["cohortium.fairness-page/1"], Field(alias="schema")] = "cohortium.fairness-page/1"
    version: Text
    mode: Literal["simulation", "deployment"]
    of: Literal["segments", "audience", "column"]
    name: Text
    purpose: Text
    institutions: Annotated[int, Field(ge=1)]
    trust: Trust
    result: FairnessResult
    policies: tuple[PolicyFacts, ...] = ()
    reviews: tuple[ReviewFacts, ...] = ()
    mitigations: tuple[MitigationFacts, ...] = ()

    @model_validator(mode="after")
    def _holds_together(self) -> FairnessPage:
        result = self.result
        if self.of not in _SUBJECTS[result.subject]:
            raise ValueError(f"a result about {result.subject} is not about a {self.of}")
        if (self.trust == "unsafe-none") != (result.epsilon is None):
            raise ValueError("an audit has no epsilon exactly where there is no noise")
        if self.mode == "deployment" and result.epsilon is None:
            raise ValueError("an audit without noise is possible only in a simulation")
        if any(metric.people is not None and metric.people < result.minimum_cell for metric in result.metrics):
            raise ValueError("a metric shows fewer people than the minimum cell; they must be suppressed")
        if any(abs(number) > _MOST for number in _numbers(result)):
            raise ValueError("the result holds numbers that no audit has")
        return self


def _numbers(result: FairnessResult) -> Iterator[float]:
    yield from (each.limit for each in result.thresholds)
    yield from (ratio for each in result.reversals for ratio in (each.pooled, each.local))
    for each in result.metrics:
        found = (each.people, each.people_std, each.estimate, each.low, each.high)
        yield from (number for number in found if number is not None)


def load_fairness_page(path: Path) -> FairnessPage:
    """Read a page; `DataError` for one that is unreadable, of another schema, or does not hold together."""
    return load_written(path, FairnessPage, "fairness page", "make it again from the audit's result")
