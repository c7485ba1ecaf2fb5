"""One run of a plan: drives the programme, puts every question in its slot, decodes the sums, assembles the bundle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import TypeVar

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
from cohortium.server.federation import Federation
from cohortium.study.bundle import Bundle, ReleaseRecord
from cohortium.study.contract import Contract
from cohortium.study.errors import Defect, RefusedError
from cohortium.study.lookalike_plan import EncoderPlan, LookalikePlan
from cohortium.study.model import EncoderModel, LookalikeModel, Model
from cohortium.study.plan import Plan
from cohortium.study.question import Question, QuestionHeader
from cohortium.study.segment_plan import SegmentPlan

__all__ = ["Asked", "Released", "run_study"]

Released = Bundle | Model[EncoderModel] | Model[LookalikeModel]
"""What a run makes known: segments, an encoder, or a campaign's ranker."""

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
        std = max(noise.own_sigma * sqrt(self.institutions), 1.0)
        return NoisySum(total / SCALE, std / SCALE, self.institutions)

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
