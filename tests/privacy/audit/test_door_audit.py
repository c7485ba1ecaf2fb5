"""The audit of a whole door: every release admitted, reserved, charged, noised, stored and sealed by the product."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cohortium.models.basis import Basis, Block
from cohortium.models.catalogue import build_query
from cohortium.models.features import Rows
from cohortium.models.row_moments import Frame
from cohortium.models.rows import SEED
from cohortium.models.seed_queries import SeedGradientQuery
from cohortium.privacy import release as door_module
from cohortium.privacy.accounting import Spend, budget_for
from cohortium.privacy.audit.many_runs import Asked, AuditedRelease, audit_release
from cohortium.privacy.audit.mechanism import DoorArithmetic, Releaser
from cohortium.privacy.discrete_gaussian import sample_discrete_gaussian
from cohortium.privacy.gate import Counted, Terms
from cohortium.privacy.ledger import Ledger, open_store
from cohortium.privacy.query import SumQuery
from cohortium.privacy.release import Door
from cohortium.privacy.table import CustomerTable
from cohortium.study.question import Question, QuestionHeader

RUNS, EPSILON, DELTA, ALARM = 200, 8.0, 1e-6, 1e-6
PLAN, RUN = "sha256:" + "0" * 64, "0" * 32
PLENTY = Spend(2**61, 2**61)
ROWS = Rows(Basis((Block("a", low=-1.0, high=1.0), Block("b", low=-1.0, high=1.0))), np.zeros(4), 2.0)
QUERY = SeedGradientQuery(Frame(ROWS, np.eye(4), 0.5), np.zeros(4), -24.0)


class Everything:
    """Gate, consent view, audit sink and secure sums of an institution that admits all and shares no noise."""

    def __init__(self, allotment: int) -> None:
        self.terms = Terms(allotment)
        self.events = 0

    def admit(self, _question: QuestionHeader) -> Terms:
        return self.terms

    def counted(self, people: CustomerTable, _plan: str) -> Counted:
        return Counted(people, bytes(32))

    def answered(self, *_: Any) -> None:
        pass

    def require_witnessed(self, _plan: str) -> None:
        pass

    def record(self, *_: Any) -> bytes:
        self.events += 1
        return b""

    def begin(self, question: QuestionHeader, request: bytes, digest: str) -> Any:
        raise AssertionError("no secure sum was asked for")


class WholeDoor(DoorArithmetic):
    """Releases of a real door with a real ledger: one step of one run for each."""

    def __init__(self, folder: Path, bits: Any) -> None:
        super().__init__(bits=bits)
        self._folder, self._number = folder, count()
        self.ledgers: list[Ledger] = []

    def releaser(self, query: SumQuery, people: CustomerTable, allotment: int) -> Releaser:
        store = open_store(self._folder / f"node-{next(self._number)}.sqlite")
        self.ledgers.append(Ledger(store, "north bank", PLENTY))
        self.ledgers[-1].reserve(PLAN, RUN, PLENTY, date.max)
        all_ = Everything(allotment)
        door = Door(
            lambda _plan: people,
            self.ledgers[-1],
            gate=all_,
            consent=all_,
            audit=all_,
            sums=all_,
            build=build_query,
            bits=self._bits,
        )
        spec, step = query.spec(), count()

        def release() -> NDArray[np.int64]:
            header = QuestionHeader(
                plan=PLAN,
                run=RUN,
                phase="head",
                step=next(step),
                attempt=1,
                kind=spec.kind,
                scalars=spec.scalars,
            )
            sealed = door.release(Question(header, spec.arrays))
            assert door.has_sealed(sealed)
            return sealed.vector

        return release


def claim() -> AuditedRelease:
    rng = np.random.default_rng(0)
    crowd = np.column_stack([rng.uniform(-1, 1, (200, 2)), rng.integers(0, 2, 200)])
    columns = ("a", "b", SEED)
    asked = Asked(QUERY, budget_for(EPSILON, DELTA).mu2)
    canary = CustomerTable(columns, np.ones((1, 3)), np.arange(1))
    return AuditedRelease("head", EPSILON, DELTA, (asked,), CustomerTable(columns, crowd, np.arange(200)), canary)


def test_releases_of_a_whole_door_are_not_flagged_and_cost_what_is_claimed(
    tmp_path: Path, seeded_bits: Callable[[int], Any]
) -> None:
    door, release = WholeDoor(tmp_path, seeded_bits(1)), claim()
    finding = audit_release(release, door, RUNS, ALARM)
    assert not finding.flagged
    assert finding.canary_strength == pytest.approx(1.0, abs=1e-5)
    assert finding.mu_estimate == pytest.approx(finding.claimed_mu, abs=0.7)
    for ledger in door.ledgers:
        assert ledger.spent() == release.spend.times(RUNS)
        ledger.close()
    assert len(door.ledgers) == 2


def test_a_door_whose_noise_is_halved_after_the_charge_is_flagged(
    tmp_path: Path, seeded_bits: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def halved(sigma: int, width: int, bits: Any) -> NDArray[np.int64]:
        return sample_discrete_gaussian(sigma // 2, width, bits)

    monkeypatch.setattr(door_module, "sample_discrete_gaussian", halved)
    door = WholeDoor(tmp_path, seeded_bits(2))
    finding = audit_release(claim(), door, RUNS, ALARM)
    assert finding.flagged
    for ledger in door.ledgers:
        assert ledger.spent() == claim().spend.times(RUNS), "the ledger cannot know: it charged for what was claimed"
        ledger.close()
