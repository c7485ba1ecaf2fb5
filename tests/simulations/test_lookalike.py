"""Lookalikes end to end: the estimator and the simulated campaign, with the federation's own apps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from cohortium.client.audience import read_manifest
from cohortium.client.lookalike import admit_model, open_records
from cohortium.governance.report import load_lookalike_summary
from cohortium.simulations import FederatedLookalike
from cohortium.simulations.lookalike_study import (
    ENCODER_FILE,
    LOOKALIKE_FILE,
    SeedOrder,
    simulate_campaign,
    simulate_encoder,
)
from cohortium.simulations.run_folder import SimulationOrder
from cohortium.simulations.sources import own_data
from cohortium.study.contract import Contract, parse_contract
from cohortium.study.errors import CohortiumError, DataError, OutputError, PlanError, RefusedError
from cohortium.study.model import EncoderModel, LookalikeModel, Model, load_model
from cohortium.study.plans import load_plan, named_model, parse_plan

QUICK = {"rounds": 1, "hidden": 16, "width": 4}
CONTRACT = """
schema = "cohortium.contract/1"
name = "shop"
max_bad_share = 0.5
purposes = ["LookalikeModelling"]
window = { start = 2024-01-01, end = 2025-01-01 }

[[tables]]
name = "customers"
kind = "customers"
customer = "id"

[[features]]
name = "visits"
table = "customers"
kind = "numeric"
column = "visits"
low = 0
high = 100
missing = 0
transform = "log1p"
block = "behaviour"

[[features]]
name = "spend"
table = "customers"
kind = "numeric"
column = "spend"
low = -4
high = 4
missing = 0
block = "behaviour"

[[features]]
name = "always_one"
table = "customers"
kind = "numeric"
column = "always_one"
low = 0
high = 2
missing = 1
block = "behaviour"

[[features]]
name = "colour"
table = "customers"
kind = "category"
column = "colour"
categories = ["red", "green"]
block = "behaviour"
"""


def people(n: int = 3000, seed: int = 0) -> tuple[pd.DataFrame, NDArray[np.bool_]]:
    """Customers, and who belongs to the concept: red ones who spend."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "visits": rng.poisson(8, n).astype(float),
            "spend": rng.normal(0, 1, n).clip(-4, 4),
            "always_one": np.ones(n),
            "colour": rng.choice(["red", "green", "blue"], n),
        }
    )
    member = (frame["spend"] + (frame["colour"] == "red") + rng.normal(0, 0.3, n)) > 1.4
    return frame, member.to_numpy()


@pytest.fixture(scope="module")
def contract() -> Contract:
    return parse_contract(CONTRACT, "shop.toml")


def estimator(contract: Contract | None = None, **changes: Any) -> FederatedLookalike:
    return FederatedLookalike(contract=contract, encoder=QUICK, random_state=0, **changes)


@pytest.fixture(scope="module")
def fitted(contract: Contract) -> tuple[FederatedLookalike, pd.DataFrame, NDArray[np.bool_], NDArray[np.bool_]]:
    frame, member = people()
    seed = member & (np.random.default_rng(1).random(len(frame)) < 0.6)
    model = estimator(contract, epsilon_encoder=3.0, epsilon_campaign=3.0)
    return model.fit(frame, seed, institutions=3), frame, member, seed


def test_people_like_the_seeds_are_found_among_those_nobody_listed(fitted: Any, contract: Contract) -> None:
    model, _frame, _member, _seed = fitted
    unseen, member = people(2000, seed=7)
    assert roc_auc_score(member, model.score_samples(unseen)) > 0.85
    assert model.embed(unseen).shape == (2000, 4)
    assert model.n_features_in_ == 4


def test_a_score_is_the_same_in_any_company(fitted: Any) -> None:
    model, frame, _member, _seed = fitted
    together = model.score_samples(frame)
    alone = np.concatenate([model.score_samples(frame.iloc[[row]]) for row in range(20)])
    assert (together[:20] == alone).all()


def test_unknown_categories_score_as_one_unknown(fitted: Any) -> None:
    model, frame, _member, _seed = fitted
    strange = frame.head(50).assign(colour="octarine")
    assert (model.score_samples(strange) == model.score_samples(strange.assign(colour="never seen"))).all()


def test_levels_are_nested_and_everything_is_charged(fitted: Any) -> None:
    model, _frame, _member, seed = fitted
    names = [level.name for level in model.reach_curve_.levels]
    assert names == ["narrow", "balanced", "broad"]
    spent = model.privacy_spent_
    assert spent.epsilon < 6.0 + 1e-9
    assert spent.releases == len(model.encoder_model_.document.releases) + len(model.model_.document.releases) == 20
    assert list(spent.person_at) == [1, 2, 3]
    seeds = model.model_.document.seeds
    assert seeds is None or abs(seeds - seed.sum()) < 200


def test_without_noise_the_quality_is_that_of_the_data(contract: Contract) -> None:
    frame, member = people(4000)
    seed = member & (np.arange(len(frame)) % 2 == 0)
    model = estimator(contract, trust="unsafe-none").fit(frame, seed, institutions=2)
    quality = model.model_.document.quality
    exact = roc_auc_score(seed, model.score_samples(frame))
    assert quality.auc is not None
    assert quality.auc.value == pytest.approx(exact, abs=0.01)  # ties within a bin count half
    assert model.privacy_spent_.epsilon == np.inf
    assert model.model_.document.seeds == pytest.approx(seed.sum(), abs=1e-3)
    reach = {level.name: level.point for level in model.reach_curve_.levels}
    eligible = model.score_samples(frame[~seed])
    for point in reach.values():
        if point is not None:
            assert point.people.value == pytest.approx((eligible >= point.cutoff).sum(), abs=1e-3)


def test_a_matrix_needs_bounds_and_a_frame_a_contract(contract: Contract) -> None:
    X = np.zeros((500, 2))
    with pytest.raises(PlanError, match="no bounds"):
        FederatedLookalike().fit(X, np.arange(200))
    with pytest.raises(DataError, match="contract"):
        FederatedLookalike().fit(people(500)[0], np.arange(200))
    with pytest.raises(DataError, match="no such column"):
        estimator(contract).fit(people(500)[0].drop(columns="spend"), np.arange(200))
    with pytest.raises(ValueError, match="NaN"):
        estimator(contract).fit(people(500)[0].assign(spend=np.nan), np.arange(200))


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (np.array([0, 1, 1]), "twice"),
        (np.array([-1]), "row numbers"),
        (np.array([500]), "row numbers"),
        (np.array([], dtype=int), "mask, or row numbers"),
        (np.ones(499, dtype=bool), "one entry"),
        (np.array([0.5]), "mask, or row numbers"),
    ],
)
def test_seeds_that_do_not_fit_the_rows(seed: NDArray[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FederatedLookalike(bounds=(-1, 1)).fit(np.zeros((500, 1)), seed)


@pytest.mark.parametrize("rows", [range(99), range(500), range(300)])
def test_too_few_seeds_and_too_many_are_refused_before_anything_is_spent(rows: range) -> None:
    X = np.random.default_rng(0).random((500, 1))
    with pytest.raises(RefusedError):
        FederatedLookalike(bounds=(0, 1), encoder=QUICK).fit(X, np.array(rows))


def test_an_institution_without_seeds_takes_part(contract: Contract) -> None:
    frame, member = people(3000)
    where = np.arange(len(frame)) % 3
    model = estimator(contract).fit(frame, member & (where == 0), institutions=where.tolist())
    assert model.model_.document.institutions == 3


# --- the simulated campaign ------------------------------------------------------------------------------------------


def plan_text(study: str, **lines: str) -> str:
    extra = "".join(f"{name} = {value}\n" for name, value in lines.items())
    return (
        'schema = "cohortium.plan/1"\n'
        f'study = "{study}"\nname = "{study}"\npurpose = "LookalikeModelling"\nlawful_basis = "consent"\n'
        'regions = ["simulation"]\ncontract = "contract.toml"\nexpires = 2099-01-01\ntrust = "local"\n'
        f"min_institutions = 2\nmin_cell = 50\nepsilon = 1.2\ndelta = 1e-6\n{extra}"
    )


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with a contract, customers of three shops, seeds of one, and two plans."""
    frame, member = people(6000)
    frame.insert(0, "id", [f"c{row}" for row in range(len(frame))])
    frame["shop"] = np.array(["north", "east", "west"])[np.arange(len(frame)) % 3]
    frame.to_parquet(tmp_path / "customers.parquet")
    pd.DataFrame({"id": frame["id"][member]}).to_csv(tmp_path / "valued.csv", index=False)
    (tmp_path / "contract.toml").write_text(CONTRACT)
    settings = "[encoder]\nrounds = 1\nhidden = 16\nwidth = 4\n"
    (tmp_path / "encoder.toml").write_text(plan_text("encoder") + settings)
    campaign = plan_text("lookalike", model='"encoder/encoder.safetensors"')
    (tmp_path / "campaign.toml").write_text(campaign + '[lookalike]\nseed = "valued"\n')
    return tmp_path


def order(shop: Path, name: str, **changes: Any) -> SimulationOrder:
    plan, contract = load_plan(shop / f"{name}.toml")
    data = own_data({"customers": shop / "customers.parquet"}, "shop", contract)
    return SimulationOrder(plan, contract, data, shop / name, state=shop / "nodes", **changes)


def seeds(shop: Path, **changes: Any) -> SeedOrder:
    return SeedOrder(shop / "valued.csv", "id", institutions=("north",), audience="broad", concept="valued", **changes)


def test_a_campaign_from_plans_to_exported_audiences_and_a_report(shop: Path) -> None:
    base = simulate_encoder(order(shop, "encoder"), lambda _line: None)
    assert named_model(shop / "campaign.toml") == shop / "encoder" / ENCODER_FILE
    wanted = order(shop, "campaign", base=base)
    said: list[str] = []
    summary = simulate_campaign(wanted, seeds(shop), said.append)
    assert load_lookalike_summary(shop / "campaign" / "lookalike.json") == summary
    assert "reach" in (shop / "campaign" / "report.html").read_text()
    roles = {entry.facts.name: entry.role for entry in summary.institutions}
    assert roles == {"north": "seeds", "east": "audience", "west": "audience"}
    assert not any("north:" in line and "audience" in line for line in said)  # who holds the seeds looks for nobody
    assert summary.truth is not None
    assert summary.truth.campaign.auc > 0.8
    charter = json.loads((shop / "campaign" / "charter.json").read_text())
    path = shop / "campaign" / LOOKALIKE_FILE
    assert load_model(path, LookalikeModel, signer=charter["coordinator"]).document == summary.campaign
    with pytest.raises(DataError, match="not signed"):
        load_model(path, LookalikeModel, signer="ab" * 32)
    for name in ("east", "west"):
        with open_records(shop / "nodes" / name) as records:
            assert admit_model(records, path).levels
        exported = next((shop / "nodes" / name / "exports").iterdir())
        assert read_manifest(exported).added >= 50
        ids = set(pd.read_csv(exported / "add-000001.csv")["id"])
        scores = pq.read_table(shop / "nodes" / name / "scores.parquet").to_pandas()
        broad = next(level.point for level in summary.campaign.curve.levels if level.name == "broad")
        assert broad is not None
        assert ids == set(scores["id"][scores["score"] >= broad.cutoff])
    again = simulate_campaign(replace(wanted, resume=True), seeds(shop), lambda _line: None)
    assert again.campaign == summary.campaign  # nothing was asked twice, nothing exported twice
    assert len(list((shop / "nodes" / "east" / "exports").iterdir())) == 1


def test_a_campaign_stands_on_the_model_that_its_plan_names_and_no_other(shop: Path) -> None:
    base = simulate_encoder(order(shop, "encoder"), lambda _line: None)
    wanted = order(shop, "campaign")
    plan = parse_plan({**wanted.plan.to_json(), "model": "sha256:" + "0" * 64})
    with pytest.raises(PlanError, match="not the one that the plan names"):
        simulate_campaign(replace(wanted, plan=plan, base=base), seeds(shop), lambda _line: None)
    with pytest.raises(PlanError, match="no campaign"):
        simulate_campaign(order(shop, "encoder", base=base), seeds(shop), lambda _line: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"column": "nobody"}, "no readable column"),
        ({"institutions": ("south",)}, "no institution 'south'"),
        ({"file": Path("missing.csv")}, "no readable column"),
    ],
)
def test_seeds_that_cannot_be_registered_leave_nothing_behind(
    shop: Path, changes: dict[str, Any], message: str
) -> None:
    base = simulate_encoder(order(shop, "encoder"), lambda _line: None)
    wrong = replace(seeds(shop), **changes)
    with pytest.raises(CohortiumError, match=message):
        simulate_campaign(order(shop, "campaign", base=base), wrong, lambda _line: None)
    assert not (shop / "campaign").exists()


def test_a_list_too_short_at_one_institution_names_the_file_and_the_institution(shop: Path) -> None:
    base = simulate_encoder(order(shop, "encoder"), lambda _line: None)
    ids = [f"c{row}" for row in range(0, 6000, 3)][:300] + [f"c{row}" for row in range(1, 6000, 3)][:76]
    (shop / "short.csv").write_text("\n".join(["id", *ids]) + "\n")
    wrong = replace(seeds(shop), file=shop / "short.csv", institutions=None)
    with pytest.raises(RefusedError, match="76 usable seeds") as caught:
        simulate_campaign(order(shop, "campaign", base=base), wrong, lambda _line: None)
    assert caught.value.place == f"{shop / 'short.csv'}: customers of 'east'"
    assert caught.value.fix is not None
    assert "--seed-institutions" in caught.value.fix
    assert "seeds.parquet" not in str(caught.value)


def test_an_interrupted_encoder_goes_on_from_where_it_stopped(shop: Path) -> None:
    class StopError(Exception):
        pass

    def stop(line: str) -> None:
        if "moments 1" in line:
            raise StopError

    with pytest.raises(StopError):
        simulate_encoder(order(shop, "encoder"), stop)
    assert not (shop / "encoder" / ENCODER_FILE).exists()
    with pytest.raises(OutputError, match="holds a run already"):
        simulate_encoder(order(shop, "encoder"), lambda _line: None)
    model = simulate_encoder(order(shop, "encoder", resume=True), lambda _line: None)
    assert isinstance(model, Model)
    assert isinstance(model.document, EncoderModel)
    per_step = {(release.phase, release.step): release.attempt for release in model.document.releases}
    assert set(per_step.values()) == {1}
