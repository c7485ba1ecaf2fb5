"""One run of a plan: drives the programme, puts every question in its slot, decodes the sums, assembles the bundle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cohortium.models.programme import Ask, NoisySum
from cohortium.models.segmentation import StudyResult, check_feasible, question_terms, segmentation_programme
from cohortium.privacy.accounting import price
from cohortium.privacy.query import SCALE
from cohortium.privacy.release import noise_scale
from cohortium.study.bundle import Bundle, ReleaseRecord
from cohortium.study.contract import Contract
from cohortium.study.plan import Plan
from cohortium.study.question import Question, QuestionHeader

__all__ = ["Asked", "Respondents", "run_study"]


class Respondents(Protocol):
    """Whoever answers questions; `server.federation.Federation` in a federation."""

    def ask(self, question: Question, width: int) -> tuple[NDArray[np.int64], int]:
        """The sum of the releases modulo 2**64 and how many it is of."""
        ...


@dataclass(frozen=True)
class Asked:
    """Progress: a question was answered."""

    phase: str
    step: int
    institutions: int


def run_study(
    plan: Plan,
    contract: Contract,
    run: str,
    respondents: Respondents,
    progress: Callable[[Asked], None],
) -> Bundle:
    """Ask everything a plan foresees and return what was learnt.

    Given the same plan, contract, run and answers, the questions are the same: a run that was cut short is resumed by
    running it again, and every institution hands out again what it stored, free of charge.

    Args:
        plan, contract: what the institutions approved.
        run: 32 hexadecimal digits that identify the run.
        respondents: who answers.
        progress: called after every question.

    Raises:
        PlanError: the plan could not be answered to its end; nothing was asked.
    """
    check_feasible(plan, contract)
    driver = _Driver(plan, run, respondents, progress)
    programme = segmentation_programme(plan, contract)
    answer: NoisySum | None = None
    while True:
        try:
            ask = next(programme) if answer is None else programme.send(answer)
        except StopIteration as done:
            return _bundle(done.value, plan, run, driver)
        answer = driver.answer(ask)


class _Driver:
    """Numbers the steps of every phase, prices each question as the institutions do, and decodes the sums."""

    def __init__(self, plan: Plan, run: str, respondents: Respondents, progress: Callable[[Asked], None]) -> None:
        self._plan = plan
        self._run = run
        self._respondents = respondents
        self._progress = progress
        self._steps: Counter[str] = Counter()
        self.releases: list[ReleaseRecord] = []
        self.institutions = 0

    def answer(self, ask: Ask) -> NoisySum:
        spec = ask.query.spec()
        header = QuestionHeader(
            plan=self._plan.digest,
            run=self._run,
            phase=ask.phase,
            step=self._steps[ask.phase],
            attempt=1,
            kind=spec.kind,
            scalars=spec.scalars,
        )
        self._steps[ask.phase] += 1
        sigma = noise_scale(ask.query, question_terms(self._plan, header).allotment)
        question = Question(header, spec.arrays)
        total, self.institutions = self._respondents.ask(question, ask.query.width)
        self._record(question, ask, sigma)
        self._progress(Asked(header.phase, header.step, self.institutions))
        return NoisySum(total / SCALE, sigma * sqrt(self.institutions) / SCALE, self.institutions)

    def _record(self, question: Question, ask: Ask, sigma: int) -> None:
        spend = price(ask.query.bound_squared, sigma, ask.query.width)
        self.releases.append(
            ReleaseRecord(
                phase=question.header.phase,
                step=question.header.step,
                attempt=question.header.attempt,
                kind=question.header.kind,
                question=question.digest,
                width=ask.query.width,
                sigma=str(sigma),
                mu2=spend.mu2,
                tv=spend.tv,
                institutions=self.institutions,
            )
        )


def _bundle(result: StudyResult, plan: Plan, run: str, driver: _Driver) -> Bundle:
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
