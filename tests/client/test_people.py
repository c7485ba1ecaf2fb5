"""Customers as plans ask about them: a plan's seeds are those of its first question, whatever is added later."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cohortium.client.people import PlanPeople
from cohortium.client.seeds import SeedStore
from cohortium.models.rows import SEED
from cohortium.privacy.ledger import open_store
from cohortium.privacy.table import CustomerTable
from cohortium.study.lookalike_plan import LookalikePlan
from cohortium.study.plans import parse_plan

PEOPLE = CustomerTable(("x",), np.zeros((1000, 1)), np.array([f"c{i:05d}" for i in range(1000)]))


def plan(name: str) -> LookalikePlan:
    made = parse_plan(
        {
            "schema": "cohortium.plan/1",
            "study": "lookalike",
            "name": name,
            "purpose": "research",
            "lawful_basis": "consent",
            "regions": ["EU"],
            "contract": "sha256:" + "1" * 64,
            "expires": "2998-12-31",
            "trust": "local",
            "epsilon": 1.0,
            "delta": 1e-6,
            "model": "sha256:" + "0" * 64,
            "lookalike": {"seed": "late"},
        }
    )
    assert isinstance(made, LookalikePlan)
    return made


def marked(asked: PlanPeople, name: str) -> int:
    return int(asked.of(plan(name)).select((SEED,)).sum())


def test_a_list_added_after_a_plans_first_question_is_for_later_plans(tmp_path: Path) -> None:
    seeds = SeedStore(open_store(tmp_path / "node.sqlite"))
    asked = PlanPeople(PEOPLE, seeds)
    assert marked(asked, "first") == 0
    (tmp_path / "late.txt").write_text("\n".join(PEOPLE.keys[:200]))
    seeds.add("late", tmp_path / "late.txt", None, PEOPLE)
    for number in range(5):
        assert marked(asked, f"later-{number}") == 200
    assert marked(asked, "first") == 0, "its table was let go and is made anew"
    assert marked(PlanPeople(PEOPLE, seeds), "first") == 0, "after a restart"
