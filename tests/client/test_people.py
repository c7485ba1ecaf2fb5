"""Customers as plans ask about them: a plan's seeds are those of its first question, whatever is added later.

Protected features are read for audits and for nothing else; what an audit reads is codes that the node makes.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from cohortium.client.node import Node, NodeIdentity, create_node, identity_key, open_node
from cohortium.client.onboarding import onboard, parse_source
from cohortium.client.onboarding.store import load_customer_table, load_protected_table
from cohortium.client.people import AuditModels, PlanPeople
from cohortium.client.seeds import SeedStore
from cohortium.models.audit_queries import Cells, GroupCountsQuery
from cohortium.models.auditing import DISTANCE, LABEL, OUTCOME
from cohortium.models.basis import Basis, Block
from cohortium.models.features import Rows, on_weight_grid
from cohortium.models.marginals import Axis, MarginalsQuery
from cohortium.models.moments import MomentQuery
from cohortium.models.ranker import Ranker
from cohortium.models.rows import SEED
from cohortium.models.scaler import Scaler
from cohortium.models.studies import phases
from cohortium.privacy.ledger import open_store
from cohortium.privacy.query import SumQuery
from cohortium.privacy.table import CustomerTable
from cohortium.study.bundle import AxisScale, Bundle, KChoice, Segment
from cohortium.study.charter import parse_charter
from cohortium.study.contract import Contract
from cohortium.study.errors import DataError, Defect, RefusedError
from cohortium.study.lookalike_plan import LookalikePlan
from cohortium.study.model import LookalikeModel, Model, array_facts, save_model
from cohortium.study.plan import Plan
from cohortium.study.plans import parse_plan
from cohortium.study.question import PlanQuestion, Question, QuestionHeader
from cohortium.study.reach import CurvePoint, Measured, RankerChoice, RankerQuality, ReachCurve, ReachLevel
from cohortium.study.segment_plan import SegmentPlan


def feature(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "table": "people", "column": name, **more}


CONTRACT = Contract.model_validate(
    {
        "schema": "cohortium.contract/1",
        "name": "bank",
        "purposes": ["research"],
        "window": {"start": "2024-01-01", "end": "2025-01-01"},
        "tables": [{"name": "people", "kind": "customers", "customer": "id"}],
        "features": [
            feature("visits", kind="numeric", low=0, high=10, missing=0, block="behaviour"),
            feature("spend", kind="numeric", low=0, high=10, missing=0, block="value"),
            feature("sex", kind="category", categories=["f", "m"], protected=True),
            feature("age", kind="numeric", low=18, high=90, missing=18, protected=True),
            feature("treated", kind="category", categories=["loan", "card"], protected=True),
            feature("answer", kind="category", categories=["yes", "no"], protected=True),
        ],
    }
)
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


def never() -> CustomerTable:
    raise AssertionError("protected features were read for a plan that is no audit")


def asked_of(seeds: SeedStore, folder: Path) -> PlanPeople:
    return PlanPeople(PEOPLE, seeds, CONTRACT, never, AuditModels(folder / "models", CONTRACT))


def marked(asked: PlanPeople, name: str) -> int:
    return int(asked.of(plan(name)).select((SEED,)).sum())


def test_a_list_added_after_a_plans_first_question_is_for_later_plans(tmp_path: Path) -> None:
    seeds = SeedStore(open_store(tmp_path / "node.sqlite"))
    asked = asked_of(seeds, tmp_path)
    assert marked(asked, "first") == 0
    (tmp_path / "late.txt").write_text("\n".join(PEOPLE.keys[:200]))
    seeds.add("late", tmp_path / "late.txt", None, PEOPLE)
    for number in range(5):
        assert marked(asked, f"later-{number}") == 200
    assert marked(asked, "first") == 0, "its table was let go and is made anew"
    assert marked(asked_of(seeds, tmp_path), "first") == 0, "after a restart"


# --- audits ----------------------------------------------------------------------------------------------------------

HEAD = {
    "schema": "cohortium.plan/1",
    "purpose": "research",
    "lawful_basis": "consent",
    "regions": ["EU"],
    "contract": CONTRACT.digest,
    "expires": "2998-12-31",
    "trust": "local",
    "min_institutions": 1,
    "epsilon": 1.0,
    "delta": 1e-6,
}
COLUMN = {"of": "column", "column": "treated", "attributes": ["sex", "age"], "cuts": {"age": [30, 60]}}
CENTRES = np.array([[-0.5, -0.5], [0.5, 0.5], [0.5, -0.5]])


def rows(count: int = 800) -> list[tuple[str, float, float, str, str, str, str]]:
    """Customers with gaps: one in ten lacks a sex, an age, a treatment and an answer."""
    rng = np.random.default_rng(4)

    def drawn(*texts: str) -> str:
        return str(rng.choice([*texts, ""], p=[0.45, 0.45, 0.1]))

    def age() -> str:
        return "" if rng.random() < 0.1 else str(int(rng.integers(19, 90)))

    numbers = [[round(float(value), 2) for value in rng.uniform(0, 10, 2)] for _ in range(count)]
    texts = [(drawn("f", "m"), age(), drawn("loan", "card"), drawn("yes", "no")) for _ in range(count)]
    return [(f"c{i:05d}", *numbers[i], *texts[i]) for i in range(count)]


def segment_plan(**changes: Any) -> Plan:
    return SegmentPlan.model_validate({**HEAD, "name": "segments", "shares": SHARES, **changes})


SHARES = {"marginals": 20, "clustering": 60, "profiles": 20, "rfm": 0}


def audit_plan(audit: dict[str, Any], **changes: Any) -> Plan:
    return parse_plan({**HEAD, "name": "audit", "study": "audit", "audit": audit, **changes})


def bundle(**changes: Any) -> Bundle:
    plan = segment_plan(**changes)
    assert isinstance(plan, SegmentPlan)
    return Bundle(
        plan=plan,
        run="0" * 32,
        institutions=3,
        scaler=tuple(AxisScale(feature=name, log=False, low=0.0, high=10.0) for name in ("visits", "spend")),
        segments=tuple(
            Segment(id=number, name="some", centre=tuple(centre), size=200.0, size_std=3.0)
            for number, centre in enumerate(CENTRES.tolist(), start=1)
        ),
        customers=600.0,
        explained=None,
        k_choices=(KChoice(k=3, silhouette=None, cost=1.0),),
        rfm=None,
        releases=(),
    )


BASIS = Basis((Block("visits", low=0.0, high=10.0), Block("spend", low=0.0, high=10.0)))
RANKER = Ranker(Rows(BASIS, np.zeros(BASIS.width), 4.0), on_weight_grid(np.linspace(1.0, 0.1, BASIS.width)))


def campaign() -> Model[LookalikeModel]:
    made = parse_plan(
        {
            **HEAD,
            "name": "spring",
            "study": "lookalike",
            "model": "sha256:" + "0" * 64,
            "lookalike": {"seed": "valued"},
        }
    )
    assert isinstance(made, LookalikePlan)
    arrays = RANKER.parts()[1]
    point = CurvePoint(cutoff=0.25, people=Measured(value=90.0, low=80.0, high=99.0), share=0.1)
    levels = (ReachLevel(name="tiny", point=None), ReachLevel(name="narrow", point=point))
    document = LookalikeModel(
        plan=made,
        run="0" * 32,
        institutions=3,
        customers=800.0,
        features=RANKER.rows.features,
        arrays=array_facts(arrays),
        releases=(),
        seeds=None,
        choice=RankerChoice(ranker="features"),
        quality=RankerQuality(ranker="features", auc=None, auc_noise_std=None),
        curve=ReachCurve(eligible=None, points=(point,), levels=levels),
    )
    return Model(document, arrays)


@pytest.fixture
def node(tmp_path: Path) -> Any:
    """A node on customers that were onboarded: protected features lie in a file of their own."""
    folder = tmp_path / "node"
    create_node(folder, NodeIdentity(institution="bank", simulation=True), CONTRACT)
    header = "id,visits,spend,sex,age,treated,answer"
    (tmp_path / "people.csv").write_text("\n".join([header, *(",".join(map(str, row)) for row in rows())]))
    sources = {"people": parse_source(str(tmp_path / "people.csv"))}
    onboard(CONTRACT, sources, folder / "customers", duplicates=False)
    opened = open_node(folder, load_customer_table(folder / "customers", CONTRACT))
    yield opened
    opened.close()


def coded(texts: list[str], *labels: str) -> list[float]:
    return [float(labels.index(text)) if text else float(len(labels)) for text in texts]


def column(table: CustomerTable, name: str) -> list[float]:
    return list(table.select((name,))[:, 0].tolist())


def test_an_audit_gets_codes_of_protected_features_and_no_value_of_a_customer(node: Node) -> None:
    audit = {**COLUMN, "label": "answer", "positive": "no", "proxies": ["spend"]}
    table = node.asked_about.of(audit_plan(audit, shares={"outcomes": 50, "labels": 25, "proxies": 25}))
    ids, _, spend, sexes, ages, treated, answers = zip(*rows(), strict=True)
    assert table.keys.tolist() == list(ids)
    assert table.columns == ("@code:sex", "@code:age", "@code:spend", OUTCOME, LABEL)
    assert column(table, "@code:sex") == coded(list(sexes), "f", "m")
    assert column(table, OUTCOME) == coded(list(treated), "loan", "card")
    assert column(table, LABEL) == coded(list(answers), "no", "yes")
    told = [3.0 if not age else float(np.searchsorted([30, 60], int(age), side="right")) for age in ages]
    assert column(table, "@code:age") == told
    bins = [8.0 if value == 0 else float(np.floor(value / 1.25 + 1e-12)) for value in spend]
    assert column(table, "@code:spend") == [min(code, 7.0) if code < 8 else 8.0 for code in bins]


def test_a_column_s_chosen_categories_stand_beside_the_rest_and_the_unknown(node: Node) -> None:
    table = node.asked_about.of(audit_plan({**COLUMN, "chosen": ["card"]}))
    assert column(table, OUTCOME) == coded([row[5] for row in rows()], "card", "loan")


def points(people: CustomerTable) -> NDArray[np.float64]:
    return people.select(("visits", "spend")) / 5.0 - 1.0


def test_segments_and_distances_are_those_of_the_bundle(node: Node, tmp_path: Path) -> None:
    released = bundle()
    (tmp_path / "bundle.json").write_bytes(released.to_bytes())
    assert node.models.add(tmp_path / "bundle.json") == released.digest
    audit = {"of": "segments", "model": released.digest, "segments": 3, "attributes": ["sex"], "distance": True}
    table = node.asked_about.of(audit_plan(audit, shares={"outcomes": 60, "distances": 40}))
    gaps = np.linalg.norm(points(node.people)[:, np.newaxis] - CENTRES, axis=2)
    assert column(table, OUTCOME) == gaps.argmin(axis=1).tolist()
    np.testing.assert_allclose(column(table, DISTANCE), np.minimum(gaps.min(axis=1) / np.sqrt(2), 1.0), atol=1e-5)


def test_an_audience_is_chosen_rest_and_seed(node: Node, tmp_path: Path) -> None:
    model = campaign()
    save_model(model, Ed25519PrivateKey.generate(), tmp_path / "lookalike.safetensors")
    node.models.add(tmp_path / "lookalike.safetensors")
    (tmp_path / "valued.txt").write_text("\n".join(node.people.keys[:200]))
    node.seeds.add("valued", tmp_path / "valued.txt", None, node.people)
    plan = audit_plan(audience(model))
    outcome = np.array(column(node.asked_about.of(plan), OUTCOME))
    assert (outcome[:200] == 2.0).all()
    assert (outcome[200:] == np.where(RANKER.scores(node.people)[200:] >= 0.25, 0.0, 1.0)).all()
    assert set(outcome[200:]) == {0.0, 1.0}


def audience(model: Model[LookalikeModel], **changes: Any) -> dict[str, Any]:
    audit = {"of": "audience", "model": model.digest, "level": "narrow", "seed": "valued", "attributes": ["sex"]}
    return {**audit, **changes}


def accept(node: Node, plan: Plan, folder: Path) -> None:
    """In a federation of one, whose log nobody else can witness."""
    member = {"name": "bank", "region": "EU", "identity": identity_key(folder / "node")}
    charter = parse_charter({"schema": "cohortium.charter/1", "name": "one", "institutions": [member]})
    node.store.approve(plan, CONTRACT, charter)
    node.accept(PlanQuestion(plan.digest, "ab" * 16, int(time.time())))


@pytest.mark.parametrize("case", ["segments", "audience"])
def test_a_plan_whose_model_the_node_does_not_hold_is_refused_and_reserves_nothing(
    case: str, node: Node, tmp_path: Path
) -> None:
    released = bundle() if case == "segments" else campaign()
    audit = {"of": "segments", "model": released.digest, "segments": 3, "attributes": ["sex"]}
    plan = audit_plan(audit if case == "segments" else audience(campaign()))
    with pytest.raises(RefusedError, match="does not hold") as refusal:
        accept(node, plan, tmp_path)
    assert released.digest[:19] in str(refusal.value.fix)
    assert node.ledger.reservation(plan.digest) is None
    with pytest.raises(RefusedError, match="does not hold"):
        node.check_terms(plan, "ab" * 16)


@pytest.mark.parametrize(
    ("changes", "said"), [({"level": "tiny"}, "use one of narrow"), ({"seed": "other"}, "name 'valued'")]
)
def test_an_audience_that_the_model_does_not_have_is_refused(
    changes: dict[str, str], said: str, node: Node, tmp_path: Path
) -> None:
    save_model(campaign(), Ed25519PrivateKey.generate(), tmp_path / "lookalike.safetensors")
    node.models.add(tmp_path / "lookalike.safetensors")
    with pytest.raises(RefusedError, match="plan: audit") as refusal:
        accept(node, audit_plan(audience(campaign(), **changes)), tmp_path)
    assert said in str(refusal.value)


def test_a_bundle_of_another_number_of_segments_is_refused(node: Node, tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_bytes(bundle().to_bytes())
    digest = node.models.add(tmp_path / "bundle.json")
    with pytest.raises(RefusedError, match="has 3 segments"):
        accept(node, audit_plan({"of": "segments", "model": digest, "segments": 4, "attributes": ["sex"]}), tmp_path)


def test_a_model_of_another_contract_or_one_that_was_changed_is_refused(node: Node, tmp_path: Path) -> None:
    other = bundle(contract="sha256:" + "9" * 64)
    (tmp_path / "other.json").write_bytes(other.to_bytes())
    with pytest.raises(DataError, match="another contract"):
        node.models.add(tmp_path / "other.json")
    (tmp_path / "bundle.json").write_bytes(bundle().to_bytes())
    digest = node.models.add(tmp_path / "bundle.json")
    (kept,) = (tmp_path / "node" / "models").iterdir()
    kept.write_bytes(bundle().to_bytes().replace(b'"some"', b'"same"'))
    with pytest.raises(RefusedError, match="was changed"):
        accept(node, audit_plan({"of": "segments", "model": digest, "segments": 3, "attributes": ["sex"]}), tmp_path)


def test_protected_features_of_other_customers_or_missing_ones_are_refused(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "node" / "customers"
    protected = load_protected_table(folder, CONTRACT)
    fewer = CustomerTable(protected.columns, protected.values[1:], protected.keys[1:])
    moved = open_node(tmp_path / "node", node.people, protected=lambda: fewer)
    with pytest.raises(DataError, match="same customers"):
        moved.asked_about.check(audit_plan(COLUMN))
    moved.close()
    (folder / "protected.parquet").unlink()
    with pytest.raises(DataError, match=r"protected\.parquet"):
        accept(node, audit_plan(COLUMN), tmp_path)


# --- nobody but an audit sees a protected feature --------------------------------------------------------------------


def question(plan: Plan, phase: str, query: SumQuery) -> Question:
    spec = query.spec()
    header = QuestionHeader(
        plan=plan.digest, run="ab" * 16, phase=phase, step=0, attempt=1, kind=spec.kind, scalars=spec.scalars
    )
    return Question(header, spec.arrays)


def moments(*names: str) -> MomentQuery:
    ones = np.ones(len(names))
    return MomentQuery(Scaler(names, ones < 0, -ones, ones), np.zeros((1, len(names))), np.ones(1), (0.5, 1.0))


def test_no_training_plan_s_question_can_name_a_protected_feature(node: Node, tmp_path: Path) -> None:
    plan = segment_plan()
    accept(node, plan, tmp_path)
    assert "marginals" in {phase.name for phase in phases(plan)}
    for name in ("sex", "@code:sex", OUTCOME):
        with pytest.raises(Defect, match="no column"):
            node.door.release(question(plan, "marginals", MarginalsQuery((Axis(name, 0.0, 2.0),))))
    cells = GroupCountsQuery(Cells(("sex",), (3,), ((0,),)))
    for phase in ("marginals", "outcomes"):
        with pytest.raises(RefusedError, match="foresees"):
            node.door.release(question(plan, phase, cells))
    assert node.ledger.spent().mu2 == 0


def test_an_audit_s_question_can_name_neither_a_trained_feature_nor_another_kind(node: Node, tmp_path: Path) -> None:
    plan = audit_plan(COLUMN)
    accept(node, plan, tmp_path)
    with pytest.raises(Defect, match="no column"):
        node.door.release(question(plan, "outcomes", GroupCountsQuery(Cells(("visits",), (3,), ((0,),)))))
    with pytest.raises(RefusedError, match="foresees"):
        node.door.release(question(plan, "outcomes", moments("visits")))
    assert node.ledger.spent().mu2 == 0


@pytest.mark.parametrize("kind", ["segments", "encoder", "lookalike"])
def test_the_protected_features_are_read_for_no_plan_but_an_audit(kind: str, tmp_path: Path) -> None:
    asked = asked_of(SeedStore(open_store(tmp_path / "node.sqlite")), tmp_path)
    made = parse_plan({**HEAD, "name": "one", "study": kind, **OWN[kind]})
    asked.check(made)
    assert set(asked.of(made).columns) <= {"x", "@hash", "@seed"}
    with pytest.raises(AssertionError, match="protected features were read"):
        asked.check(audit_plan(COLUMN))


# --- what a plan leaves out ------------------------------------------------------------------------------------------

OWN: dict[str, dict[str, Any]] = {
    "segments": {"shares": SHARES},
    "encoder": {},
    "lookalike": {"model": "sha256:" + "0" * 64, "lookalike": {"seed": "valued"}},
}


@pytest.mark.parametrize("kind", OWN)
def test_a_feature_that_a_plan_leaves_out_is_no_column_of_its_table(kind: str, node: Node) -> None:
    made = {without: parse_plan({**HEAD, "name": "one", "study": kind, **OWN[kind], "without": without}) for without in
            ((), ("spend",))}  # fmt: skip
    whole, less = (node.asked_about.of(plan) for plan in made.values())
    assert {"visits", "spend"} <= set(whole.columns)
    assert set(less.columns) == set(whole.columns) - {"spend"}
    assert column(less, "visits") == column(whole, "visits")
    assert less.keys.tolist() == node.people.keys.tolist()


def test_a_question_that_names_what_its_plan_leaves_out_fails_and_costs_nothing(node: Node, tmp_path: Path) -> None:
    plan = segment_plan(without=["spend"])
    accept(node, plan, tmp_path)
    for names in (("spend",), ("visits", "spend")):
        axes = tuple(Axis(name, 0.0, 10.0) for name in names)
        with pytest.raises(Defect, match="no column spend"):
            node.door.release(question(plan, "marginals", MarginalsQuery(axes)))
    assert node.ledger.spent().mu2 == 0
    node.door.release(question(plan, "marginals", MarginalsQuery((Axis("visits", 0.0, 10.0),))))
    assert node.ledger.spent().mu2 > 0


def test_the_codes_of_a_person_do_not_depend_on_anybody_else(node: Node, tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_bytes(bundle().to_bytes())
    digest = node.models.add(tmp_path / "bundle.json")
    audit = {"of": "segments", "model": digest, "segments": 3, "attributes": ["age"], "cuts": {"age": [40]}}
    plan = audit_plan({**audit, "distance": True}, shares={"outcomes": 60, "distances": 40})
    protected = load_protected_table(tmp_path / "node" / "customers", CONTRACT)

    def asked(rows: slice) -> CustomerTable:
        alone = protected.take(rows)
        people = PlanPeople(node.people.take(rows), node.seeds, CONTRACT, lambda: alone, node.models)
        return people.of(plan)

    company = asked(slice(None))
    for person in range(0, 800, 37):
        assert (asked(slice(person, person + 1)).values[0] == company.values[person]).all()
