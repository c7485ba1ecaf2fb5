"""One run of a plan: drives the programme, puts every question in its slot, decodes the sums, assembles the bundle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cohortium.models.auditing import GroupAnswers, audit_programme, released_tables
from cohortium.models.encoding import encoder_programme
from cohortium.models.lookalike import lookalike_programme
from cohortium.models.programme import Ask, NoisySum, Programme
from cohortium.models.released import checked_base, encoder_model, lookalike_model
from cohortium.models.segmentation import StudyResult, segmentation_programme
from cohortium.models.studies import check_feasible, question_terms
from cohortium.privacy.accounting import Spend, price
from cohortium.privacy.query import SCALE, SumQuery
from cohortium.privacy.release import noise_scale
from cohortium.privacy.secure_sum import SumFailed
from cohortium.server.federation import Federation, SeparateFederation
from cohortium.study.audit_plan import AuditPlan
from cohortium.study.audit_tables import AuditTables
from cohortium.study.bundle import Bundle, ReleaseRecord
from cohortium.study.contract import Contract
from cohortium.study.errors import Defect, RefusedError
from cohortium.study.lookalike_plan import EncoderPlan, LookalikePlan
from cohortium.study.model import EncoderModel, LookalikeModel, Model
from cohortium.study.plan import Plan
from cohortium.study.question import Question, QuestionHeader
from cohortium.study.segment_plan import SegmentPlan

__all__ = ["Asked", "AuditAnswer", "Released", "run_study"]

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Asked:
    """Progress: an attempt at a question came to an end.

    Args:
        phase, step, attempt: which.
        institutions: how many answered.
        problem: why there is no sum; None when there is one.
    """

    phase: str
    step: int
    attempt: int
    institutions: int
    problem: str | None = None


@dataclass(frozen=True)
class AuditAnswer:
    """What an audit's run gives.

    Args:
        document: what is made known: nothing in it is below the minimum cell.
        pooled: the noisy tables that verdicts are made from, by attribute and pair, nothing suppressed: a group of
            which nobody was chosen is a finding.
        own: the same of every institution that answered to the end, by its name; with `local` alone.
    """

    document: AuditTables
    pooled: tuple[GroupAnswers, ...]
    own: Mapping[str, tuple[GroupAnswers, ...]]

    @property
    def digest(self) -> str:
        """Of what is made known."""
        return self.document.digest


Released = Bundle | Model[EncoderModel] | Model[LookalikeModel] | AuditAnswer
"""What a run gives: segments, an encoder, a campaign's ranker, or tables of groups."""


def run_study(
    plan: Plan,
    contract: Contract,
    run: str,
    federation: Federation,
    progress: Callable[[Asked], None],
    base: Model[EncoderModel] | None = None,
) -> Released:
    """Ask everything a plan foresees and return what was learnt.

    Given the same plan, contract, run and answers, the questions are the same: a run that was cut short is resumed by
    running it again, and every institution hands out again what it stored, free of charge.

    Args:
        plan, contract: what the institutions approved.
        run: 32 hexadecimal digits that identify the run.
        federation: who answers.
        progress: called after every question.
        base: for a campaign, the encoder's model that its plan names.

    Raises:
        PlanError: the plan could not be answered to its end, or `base` is not the model it names; nothing was asked.
    """
    check_feasible(plan, contract)
    driver = _Driver(plan, run, federation, progress)
    match plan:
        case SegmentPlan():
            return _bundle(driver.drive(segmentation_programme(plan, contract)), plan, run, driver)
        case EncoderPlan():
            encoded = driver.drive(encoder_programme(plan, contract))
            return encoder_model(encoded, plan, run, driver.institutions, tuple(driver.releases))
        case LookalikePlan():
            found = driver.drive(lookalike_programme(plan, checked_base(plan, base)))
            return lookalike_model(found, plan, run, driver.institutions, tuple(driver.releases))
        case AuditPlan():
            return _audit(plan, contract, run, driver)
    raise Defect(f"a plan of the kind {type(plan).__name__}")


class _Driver:
    """Numbers the steps of every phase, prices each question as the institutions do, and decodes the sums."""

    def __init__(self, plan: Plan, run: str, federation: Federation, progress: Callable[[Asked], None]) -> None:
        self._plan = plan
        self._run = run
        self._federation = federation
        self._progress = progress
        self._steps: Counter[str] = Counter()
        self.releases: list[ReleaseRecord] = []
        self.institutions = 0
        self.parts: list[Mapping[str, NoisySum]] = []
        """Of every question, everybody's own answer, where the federation keeps them."""

    def drive(self, programme: Programme[_Result]) -> _Result:
        """Have a programme's questions answered until it returns."""
        answer: NoisySum | None = None
        while True:
            try:
                ask = next(programme) if answer is None else programme.send(answer)
            except StopIteration as done:
                result: _Result = done.value
                return result
            answer = self.answer(ask)

    def answer(self, ask: Ask) -> NoisySum:
        step = self._steps[ask.phase]
        self._steps[ask.phase] += 1
        for attempt in range(1, self._plan.max_attempts + 1):
            try:
                return self._attempt(ask, step, attempt)
            except SumFailed as failure:
                self._progress(Asked(ask.phase, step, attempt, 0, failure.message))
        raise RefusedError(
            f"no sum of {ask.phase} step {step} after attempt {self._plan.max_attempts}, the last",
            place="plan: max_attempts",
            fix="bring the missing institutions back and resume",
        )

    def _attempt(self, ask: Ask, step: int, attempt: int) -> NoisySum:
        """Ask once; every attempt is a full charge with fresh noise."""
        spec = ask.query.spec()
        header = QuestionHeader(
            plan=self._plan.digest,
            run=self._run,
            phase=ask.phase,
            step=step,
            attempt=attempt,
            kind=spec.kind,
            scalars=spec.scalars,
        )
        question = Question(header, spec.arrays)
        noise = _Noise.of(self._plan, header, ask.query)
        self._record(question, ask, noise, 0)
        total, self.institutions = self._federation.ask(question, ask.query.width)
        self.releases.pop()
        self._record(question, ask, noise, self.institutions)
        self._progress(Asked(header.phase, header.step, attempt, self.institutions))
        if isinstance(self._federation, SeparateFederation):
            self.parts.append({name: noise.answer(part, 1) for name, part in self._federation.parts.items()})
        return noise.answer(total, self.institutions)

    def _record(self, question: Question, ask: Ask, noise: _Noise, institutions: int) -> None:
        """An attempt that came to nothing stays on record: whoever answered it has paid."""
        self.releases.append(
            ReleaseRecord(
                phase=question.header.phase,
                step=question.header.step,
                attempt=question.header.attempt,
                kind=question.header.kind,
                question=question.digest,
                width=ask.query.width,
                sigma=str(noise.sigma),
                mu2=noise.spend.mu2,
                tv=noise.spend.tv,
                institutions=institutions,
            )
        )


@dataclass(frozen=True)
class _Noise:
    """The noise of one question: its sigma, the sigma that each institution adds, and the price."""

    sigma: int
    own_sigma: int
    spend: Spend

    @classmethod
    def of(cls, plan: Plan, header: QuestionHeader, query: SumQuery) -> _Noise:
        if plan.trust == "unsafe-none":
            return cls(0, 0, Spend())
        terms = question_terms(plan, header)
        sigma = noise_scale(query, terms.allotment)
        own = terms.share.sigma_of(sigma)
        return cls(sigma, own, price(query.bound_squared, sigma, query.width, terms.share))

    def answer(self, total: NDArray[np.int64], institutions: int) -> NoisySum:
        """A sum of so many institutions in units of 1.0."""
        std = max(self.own_sigma * sqrt(institutions), 1.0)
        return NoisySum(total / SCALE, std / SCALE, institutions)


def _bundle(result: StudyResult, plan: SegmentPlan, run: str, driver: _Driver) -> Bundle:
    return Bundle(
        plan=plan,
        run=run,
        institutions=driver.institutions,
        scaler=result.scaler,
        segments=result.segments,
        customers=result.customers,
        explained=result.explained,
        k_choices=result.k_choices,
        rfm=result.rfm,
        releases=tuple(driver.releases),
    )


def _audit(plan: AuditPlan, contract: Contract, run: str, driver: _Driver) -> AuditAnswer:
    """The pooled tables, and everybody's own from their parts of the same answers."""
    pooled = driver.drive(audit_programme(plan, contract))
    whole = [name for name in (driver.parts[-1] if driver.parts else ()) if all(name in part for part in driver.parts)]
    own = {name: _reread(plan, contract, name, [part[name] for part in driver.parts]) for name in whole}
    document = AuditTables(
        plan=plan,
        run=run,
        institutions=driver.institutions,
        tables=tuple(table for answers in (pooled, *own.values()) for table in released_tables(answers, plan.min_cell)),
        releases=tuple(driver.releases),
    )
    return AuditAnswer(document, pooled, own)


def _reread(plan: AuditPlan, contract: Contract, name: str, answers: list[NoisySum]) -> tuple[GroupAnswers, ...]:
    """One institution's tables: the questions are the same, and no answer decides about the next one."""
    programme = audit_programme(plan, contract, name)
    next(programme)
    try:
        for answer in answers:
            programme.send(answer)
    except StopIteration as done:
        result: tuple[GroupAnswers, ...] = done.value
        return result
    raise Defect("an audit that asks more than it asked")
