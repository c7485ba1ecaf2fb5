"""Features that a plan leaves out: no question reads them, nothing that is released names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cohortium.models
from cohortium.models.encoding import encoder_programme
from cohortium.models.lookalike import lookalike_programme
from cohortium.models.released import checked_base, encoder_model, lookalike_model
from cohortium.models.rows import HASH, SEED, row_hashes
from cohortium.models.segmentation import segmentation_programme
from cohortium.models.studies import check_feasible, widest_questions
from cohortium.privacy.table import CustomerTable
from cohortium.study.contract import Contract
from cohortium.study.errors import Defect, PlanError
from cohortium.study.lookalike_plan import EncoderPlan, LookalikePlan
from cohortium.study.model import EncoderModel, Model
from cohortium.study.plans import parse_plan

NUMBER = {"kind": "numeric", "low": 0.0, "high": 10.0, "missing": 0.0}
CATEGORY = {"kind": "category", "categories": ["a", "b", "c"]}
LEFT_OUT = ["proxy", "area"]
CONTRACT = Contract.model_validate(
    {
        "schema": "cohortium.contract/1",
        "name": "small",
        "purposes": ["research"],
        "window": {"start": "2024-01-01", "end": "2025-01-01"},
        "tables": [{"name": "people", "kind": "customers", "customer": "id"}],
        "features": [
            {"name": name, "table": "people", "column": name, "block": "behaviour", **kind}
            for name, kind in {
                "visits": NUMBER,
                "proxy": NUMBER,
                "spend": NUMBER,
                "area": CATEGORY,
                "card": CATEGORY,
            }.items()
        ],
    }
)
OWN: dict[str, dict[str, Any]] = {
    "segments": {"segments": {"k": 2}, "shares": {"marginals": 20, "clustering": 60, "profiles": 20, "rfm": 0}},
    "encoder": {"encoder": {"hidden": 4, "width": 2, "rounds": 2}},
    "lookalike": {"lookalike": {"seed": "valued", "steps": 1}},
}
Drive = Callable[..., Any]


def plan(study: str, without: list[str], **changes: Any) -> Any:
    head = {
        "schema": "cohortium.plan/1",
        "name": "one",
        "study": study,
        "purpose": "research",
        "lawful_basis": "consent",
        "regions": ["EU"],
        "contract": CONTRACT.digest,
        "expires": "2099-12-31",
        "trust": "local",
        "min_institutions": 1,
        "min_cell": 50,
        "epsilon": 3.0,
        "delta": 1e-6,
    }
    return parse_plan({**head, **OWN[study], "without": without, **changes})


def people(*, without: tuple[str, ...] = (), count: int = 600) -> CustomerTable:
    rng = np.random.default_rng(7)
    kind, keys = rng.integers(0, 2, count), np.arange(count)
    columns = {
        "visits": np.clip(2.0 + 5.0 * kind + rng.normal(0, 0.7, count), 0, 10),
        "proxy": 10.0 * kind,
        "spend": np.clip(7.0 - 4.0 * kind + rng.normal(0, 0.7, count), 0, 10),
        "area": kind.astype(float),
        "card": rng.integers(0, 4, count).astype(float),
        HASH: row_hashes(keys),
        SEED: ((kind == 1) & (rng.random(count) < 0.5)).astype(float),
    }
    kept = {name: values for name, values in columns.items() if name not in without}
    return CustomerTable(tuple(kept), np.column_stack(list(kept.values())), keys)


def base(drive: Drive, made: EncoderPlan, table: CustomerTable) -> Model[EncoderModel]:
    return encoder_model(drive(encoder_programme(made, CONTRACT), made, table, None).result, made, "r", 1, ())


def released(study: str, without: list[str], drive: Drive, table: CustomerTable) -> tuple[Any, list[str]]:
    """What a study of `without` releases of a table, as JSON types, and the digest of every question."""
    if study == "lookalike":
        encoder = base(drive, plan("encoder", without), table)
        made = plan(study, without, model=encoder.digest)
        driven = drive(lookalike_programme(made, checked_base(made, encoder)), made, table, None)
        return lookalike_model(driven.result, made, "r", 1, ()).document.to_json(), driven.digests
    made = plan(study, without)
    if study == "encoder":
        driven = drive(encoder_programme(made, CONTRACT), made, table, None)
        return encoder_model(driven.result, made, "r", 1, ()).document.to_json(), driven.digests
    driven = drive(segmentation_programme(made, CONTRACT), made, table, None)
    return driven.result, driven.digests


@pytest.mark.parametrize("study", OWN)
def test_a_table_without_the_column_answers_the_plan_the_same(study: str, drive: Drive) -> None:
    whole, less = people(), people(without=tuple(LEFT_OUT))
    assert released(study, LEFT_OUT, drive, whole) == released(study, LEFT_OUT, drive, less)


@pytest.mark.parametrize("study", OWN)
def test_nothing_that_is_released_names_what_is_left_out(study: str, drive: Drive) -> None:
    everything, less = (str(released(study, without, drive, people())[0]) for without in ([], LEFT_OUT))
    for name in LEFT_OUT:
        assert f"'{name}'" in everything or (study, name) == ("segments", "area"), "a segment is of numbers"
        assert f"'{name}'" not in less.replace(f"'without': {LEFT_OUT}", "")


@pytest.mark.parametrize("study", OWN)
def test_the_widest_questions_of_a_plan_leave_out_what_it_leaves_out(study: str) -> None:
    changes = {"model": "sha256:" + "0" * 64} if study == "lookalike" else {}
    wide, narrow = (plan(study, without, **changes) for without in ([], LEFT_OUT))
    check_feasible(narrow, CONTRACT)
    table = people(without=tuple(LEFT_OUT), count=60)
    for ask in widest_questions(narrow, CONTRACT):
        ask.query.contribute(table)
    with pytest.raises(Defect, match="no column"):
        widest_questions(wide, CONTRACT)[0].query.contribute(table)


def test_plans_alone_say_which_features_are_used() -> None:
    """Whoever else picks a contract's training features would use what a plan leaves out."""
    package = Path(cohortium.models.__file__ or "").resolve().parents[1]
    rooms = [package / room for room in ("models", "server", "governance", "client")]
    asked = {file.relative_to(package).as_posix() for room in rooms for file in room.rglob("*.py")
             if "training_features" in file.read_text(encoding="utf-8")}  # fmt: skip
    assert asked == {"client/onboarding/run.py", "client/onboarding/store.py"}, "which make the customer table"


def test_a_campaign_leaves_out_what_its_encoder_leaves_out(drive: Drive) -> None:
    encoder = base(drive, plan("encoder", LEFT_OUT), people())
    assert checked_base(plan("lookalike", LEFT_OUT[::-1], model=encoder.digest), encoder)
    for without in ([], ["proxy"], [*LEFT_OUT, "spend"]):
        made = plan("lookalike", without, model=encoder.digest)
        assert isinstance(made, LookalikePlan)
        with pytest.raises(PlanError, match="other features than its encoder") as refusal:
            checked_base(made, encoder)
        assert 'state without = ["area", "proxy"]' in str(refusal.value.fix)
