"""A node scores its customers with a released model: the numbers, the reasons, the file, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from cohortium.client.audience import SCORES_COLUMNS, SCORES_SCHEMA, read_scores_facts
from cohortium.client.lookalike import (
    admit_model,
    contributions,
    forecast_list,
    leading_reasons,
    open_records,
    score_customers_file,
)
from cohortium.client.node import NodeIdentity, create_node
from cohortium.client.onboarding import onboard, parse_source
from cohortium.client.onboarding.store import load_customer_table
from cohortium.models.basis import UNIT, Basis, Block
from cohortium.models.encoder import Encoder, encoder_shapes, on_scale_grid
from cohortium.models.encoder import on_weight_grid as on_encoder_grid
from cohortium.models.encoding import EncodedStudy
from cohortium.models.features import Rows, on_row_grid, on_weight_grid
from cohortium.models.ranker import Ranker
from cohortium.models.released import encoder_model
from cohortium.models.row_moments import RowMoments, make_frame
from cohortium.models.seed_head import FrameFacts
from cohortium.privacy.table import CustomerTable
from cohortium.study.charter import Charter, parse_charter
from cohortium.study.contract import Contract, parse_contract
from cohortium.study.errors import CohortiumError, DataError, OutputError, RefusedError
from cohortium.study.lookalike_plan import EncoderPlan, LookalikePlan
from cohortium.study.model import LookalikeModel, Model, array_facts, save_model
from cohortium.study.plans import parse_plan
from cohortium.study.reach import CurvePoint, Measured, RankerChoice, RankerQuality, ReachCurve, ReachLevel

TODAY = date(2026, 3, 1)
CONTRACT = """
schema = "cohortium.contract/1"
name = "shop"
purposes = ["research"]
[window]
start = 2026-01-01
end = 2026-07-01
[[tables]]
name = "people"
kind = "customers"
customer = "id"
"""
NUMBER = """
[[features]]
name = "{0}"
table = "people"
kind = "numeric"
column = "{0}"
low = 0
high = 10
missing = 0
block = "behaviour"
"""
REGION = """
[[features]]
name = "region"
table = "people"
kind = "category"
column = "region"
categories = ["east", "west"]
block = "product"
"""
PEOPLE = 1000
KINDS = ("features", "embedding")


@pytest.fixture(scope="module")
def contract() -> Contract:
    return parse_contract(CONTRACT + "".join(NUMBER.format(n) for n in ("visits", "spend", "constant")) + REGION, "c")


def lines(people: int = PEOPLE) -> list[tuple[str, float, float, float, str]]:
    """Visits and spend differ, one number is everybody's, and one in fifty lives where no contract has been."""
    rng = np.random.default_rng(3)
    return [
        (f"c{i:05d}", round(rng.uniform(0, 10), 2), round(rng.uniform(0, 10), 2), 4.0, region_of(i))
        for i in range(people)
    ]


def region_of(i: int) -> str:
    return "south" if i % 50 == 0 else ("east", "west")[i % 2]


def make_basis(contract: Contract) -> Basis:
    blocks = (
        Block(f.name, levels=f.levels) if f.is_category else Block(f.name, low=0.0, high=10.0)
        for f in contract.training_features
    )
    return Basis(tuple(blocks))


def make_ranker(kind: str, contract: Contract, people: CustomerTable) -> Ranker:
    basis = make_basis(contract)
    rows = Rows(basis, on_row_grid((basis.rows(people) / UNIT).mean(axis=0)), 4.0)
    rng = np.random.default_rng(7)
    if kind == "embedding":
        weights = [on_encoder_grid(rng.normal(0.0, 0.7, shape)) for shape in encoder_shapes(basis, 8, 5)]
        weights[0][basis.width + 2] = weights[0][4:6].T @ rows.centre[4:6] * 1.5  # hiding the constant changes nothing
        weights[0] = on_encoder_grid(weights[0])
        scales = on_scale_grid(np.full(basis.width, 1.5))
        encoder = Encoder(basis, scales, (weights[0], weights[1], weights[2], weights[3]))
        rows = Rows(basis, np.zeros(5), 1.0, encoder)
    return Ranker(rows, on_weight_grid(rng.normal(size=rows.width)))


@dataclass(frozen=True)
class House:
    """A node with customers, an approved plan, and a signed model of either kind of ranker beside it."""

    node: Path
    contract: Contract
    key: Ed25519PrivateKey
    plan: LookalikePlan
    people: CustomerTable

    def path(self, kind: str) -> Path:
        return self.node.parent / f"{kind}.safetensors"

    def document(self, ranker: Ranker, **changes: Any) -> Model[LookalikeModel]:
        arrays = ranker.parts()[1]
        points = tuple(
            CurvePoint(cutoff=c, people=Measured(value=n, low=n, high=n), share=s)
            for c, n, s in ((0.5, 200.0, 0.05), (0.0, 400.0, 0.1))
        )
        levels = (ReachLevel(name="tiny", point=None), ReachLevel(name="narrow", point=points[0]))
        whole: dict[str, Any] = {
            "plan": self.plan,
            "run": "r",
            "institutions": 3,
            "customers": 3000.0,
            "features": ranker.rows.features,
            "arrays": array_facts(arrays),
            "releases": (),
            "seeds": 300.0,
            "choice": RankerChoice(ranker="features"),
            "quality": RankerQuality(ranker="features", auc=None, auc_noise_std=None),
            "curve": ReachCurve(eligible=None, points=points, levels=levels),
            **changes,
        }
        return Model(LookalikeModel(**whole), arrays)

    def score(self, kind: str = "features", out: str = "scores.parquet", **options: Any) -> Any:
        with open_records(self.node) as records:
            return score_customers_file(records, self.path(kind), self.node.parent / out, **{"today": TODAY, **options})

    def refused(self, kind: type[CohortiumError], *said: str, model: str = "features", **options: Any) -> None:
        """Scoring is refused in one line with place and fix, and leaves no file."""
        before = sorted(path.name for path in self.node.parent.iterdir())
        with pytest.raises(kind) as caught:
            self.score(model, **options)
        text = str(caught.value)
        assert caught.value.place
        assert caught.value.fix
        assert "\n" not in text
        assert all(word in text for word in said), text
        assert "c00" not in text
        assert sorted(path.name for path in self.node.parent.iterdir()) == before


def make_plan(contract: Contract, **changes: Any) -> LookalikePlan:
    plan = parse_plan(
        {
            "schema": "cohortium.plan/1",
            "study": "lookalike",
            "name": "spring",
            "purpose": "research",
            "lawful_basis": "consent",
            "regions": ["EU"],
            "contract": contract.digest,
            "expires": "2026-12-31",
            "trust": "local",
            "epsilon": 1.0,
            "delta": 1e-6,
            "model": "sha256:" + "0" * 64,
            "lookalike": {"seed": "vip"},
            **changes,
        }
    )
    assert isinstance(plan, LookalikePlan)
    return plan


def make_charter(key: Ed25519PrivateKey | None) -> Charter:
    pinned = {} if key is None else {"coordinator": key.public_key().public_bytes_raw().hex()}
    members = [{"name": name, "region": "EU"} for name in ("north", "south", "west")]
    return parse_charter({"schema": "cohortium.charter/1", "name": "three", "institutions": members, **pinned})


@pytest.fixture(scope="module")
def customers(contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onboarded(contract, tmp_path_factory.mktemp("shop"), lines())


def onboarded(contract: Contract, folder: Path, people: list[tuple[str, float, float, float, str]]) -> Path:
    """The folder that onboarding writes."""
    text = "\n".join(["id,visits,spend,constant,region", *(",".join(map(str, line)) for line in people)])
    (folder / "people.csv").write_text(text + "\n", encoding="utf-8")
    onboard(contract, {"people": parse_source(str(folder / "people.csv"))}, folder / "customers", duplicates=False)
    return folder / "customers"


@pytest.fixture
def house(contract: Contract, customers: Path, tmp_path: Path) -> House:
    return make_house(contract, customers, tmp_path)


def make_house(contract: Contract, customers: Path, tmp_path: Path) -> House:
    node, key, plan = tmp_path / "node", Ed25519PrivateKey.generate(), make_plan(contract)
    create_node(node, NodeIdentity(institution="north"), contract)
    os.makedirs(node / "customers")
    for file in customers.iterdir():
        os.link(file, node / "customers" / file.name)
    people = load_customer_table(node / "customers", contract)
    made = House(node, contract, key, plan, people)
    (tmp_path / "vip.csv").write_text("\n".join(["id", *(f"c{i:05d}" for i in range(150))]) + "\n")
    with open_records(node) as records:
        records.approvals.approve(plan, contract, make_charter(key))
        records.seeds.add("vip", tmp_path / "vip.csv", "id", people)
    for kind in KINDS:
        save_model(made.document(make_ranker(kind, contract, people)), key, made.path(kind))
    return made


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- scores --------------------------------------------------------------------------------------------------------


def test_every_customer_gets_the_rankers_score_bit_for_bit(house: House, kind: str) -> None:
    done = house.score(kind)
    table = pq.read_table(done.path)
    ids = table.column("id").to_pylist()
    assert sorted(ids) == sorted(house.people.keys.tolist())
    ranker = make_ranker(kind, house.contract, house.people)
    wanted = dict(zip(house.people.keys.tolist(), ranker.scores(house.people).tolist(), strict=True))
    assert dict(zip(ids, table.column("score").to_pylist(), strict=True)) == wanted
    assert len(set(wanted.values())) > PEOPLE // 2
    assert (done.customers, done.seeds, done.seed_list) == (PEOPLE, 150, "marked")
    seeds = {i for i, seed in zip(ids, table.column("seed").to_pylist(), strict=True) if seed}
    assert seeds == {f"c{i:05d}" for i in range(150)}


def test_the_file_says_what_it_is_and_is_for_its_owner_alone(house: House) -> None:
    done = house.score()
    schema = pq.read_schema(done.path)
    assert schema.equals(SCORES_COLUMNS)
    facts = read_scores_facts(done.path)
    assert schema.metadata[b"schema"] == SCORES_SCHEMA.encode()
    assert (facts.plan, facts.expires, facts.rows) == (house.plan.digest, date(2026, 12, 31), PEOPLE)
    assert facts.model == done.model
    assert done.path.stat().st_mode & 0o777 == 0o600


def test_scoring_binds_no_plan_to_a_seed_list(house: House) -> None:
    house.score()
    with open_records(house.node) as records:
        assert [entry.used for entry in records.seeds.lists()] == [False]


def test_how_rows_are_cut_changes_nothing(house: House, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pq.read_table(house.score(kind).path)
    monkeypatch.setattr("cohortium.client.lookalike.scoring._ROWS", 7)
    monkeypatch.setattr("cohortium.client.lookalike.reasons._ROWS", 3)
    assert pq.read_table(house.score(kind, out="cut.parquet").path).equals(whole)


def test_a_node_without_the_seed_list_scores_all_the_same(house: House) -> None:
    with open_records(house.node) as records:
        records.seeds.remove("vip")
    done = house.score()
    assert (done.customers, done.seeds, done.seed_list) == (PEOPLE, 0, "none")


def test_a_used_list_that_was_removed_is_told(house: House) -> None:
    with open_records(house.node) as records:
        records.seeds.use("vip", house.plan.digest)
        records.seeds.remove("vip")
    assert house.score().seed_list == "removed"


def test_an_unseen_category_scores_as_the_unknown_one(house: House, kind: str) -> None:
    """As onboarding coded it, and as any code beyond the contract's would."""
    position = house.people.columns.index("region")
    assert (house.people.values[:, position] == 2).sum() == PEOPLE // 50
    table = pq.read_table(house.score(kind).path)
    scores = dict(zip(table.column("id").to_pylist(), table.column("score").to_pylist(), strict=True))
    values = np.array(house.people.values)
    values[values[:, position] == 2, position] = 99.0
    beyond = CustomerTable(house.people.columns, values, house.people.keys)
    again = make_ranker(kind, house.contract, house.people).scores(beyond)
    assert dict(zip(beyond.keys.tolist(), again.tolist(), strict=True)) == scores


def test_progress_ends_with_everybody(house: House) -> None:
    told: list[tuple[str, float]] = []
    house.score(progress=lambda stage, share: told.append((stage, share)))
    assert told[0] == ("checking the table", 0.0)
    assert told[-1] == ("scoring", 1.0)


# --- reasons -------------------------------------------------------------------------------------------------------


def brute_force(ranker: Ranker, people: CustomerTable) -> NDArray[np.float64]:
    """By what the modules promise, one feature at a time, through code that training uses."""
    basis = ranker.rows.basis
    if ranker.rows.encoder is None:
        rows = ranker.rows.of(people)
        return np.column_stack(
            [rows[:, basis.feature_of == j] @ ranker.weights[basis.feature_of == j] for j in range(len(basis.blocks))]
        )
    whole = basis.rows(people)
    shown = np.zeros((len(people), len(basis.blocks)), dtype=np.bool_)

    def score(hide: NDArray[np.bool_]) -> NDArray[np.float64]:
        code = ranker.rows.encoder.gradient_factors(whole, hide)[2][0][:, :-1]  # type: ignore[union-attr] # is there
        return np.asarray(code @ ranker.weights / UNIT)

    one = np.eye(len(basis.blocks), dtype=np.bool_)
    return np.column_stack([score(shown) - score(shown | one[j]) for j in range(len(basis.blocks))])


@pytest.mark.parametrize("loud", [1.0, 30.0])
def test_contributions_are_those_of_hiding_one_feature_at_a_time(house: House, kind: str, loud: float) -> None:
    """Also where activations reach their limits."""
    ranker = make_ranker(kind, house.contract, house.people)
    encoder = ranker.rows.encoder
    if encoder is not None:
        first, second, third, fourth = (on_encoder_grid(matrix * loud) for matrix in encoder.weights)
        rows = replace(ranker.rows, encoder=replace(encoder, weights=(first, second, third, fourth)))
        ranker = replace(ranker, rows=rows)
        if loud > 1.0:
            assert (np.abs(rows.encoder.embed(rows.basis.rows(house.people))) == 8 * UNIT).any()  # type: ignore[union-attr]
    found = contributions(ranker, house.people)
    np.testing.assert_array_equal(found, brute_force(ranker, house.people))
    assert np.abs(found).max() > 0.1


def test_contributions_of_a_ranker_on_features_add_up_to_the_score(house: House) -> None:
    ranker = make_ranker("features", house.contract, house.people)
    np.testing.assert_array_equal(contributions(ranker, house.people).sum(axis=1), ranker.scores(house.people))


def test_reasons_are_the_largest_contributions_in_order(house: House, kind: str) -> None:
    table = pq.read_table(house.score(kind).path).to_pydict()
    ranker = make_ranker(kind, house.contract, house.people)
    added = dict(zip(house.people.keys.tolist(), contributions(ranker, house.people), strict=True))
    named = 0
    for i, *reasons in zip(table["id"], table["reason_1"], table["reason_2"], table["reason_3"], strict=True):
        own = added[i]
        enough = [j for j in np.argsort(-own, kind="stable") if own[j] > 0.01 * np.abs(own).sum()]
        wanted = [house.people.columns[j] for j in enough[:3]]
        assert [reason for reason in reasons if reason is not None] == wanted
        named += len(wanted)
    assert named > PEOPLE


def test_a_constant_feature_is_nobodys_reason(house: House, kind: str) -> None:
    """It stands where the released mean has it, so that it adds nothing that could be named."""
    table = pq.read_table(house.score(kind).path).to_pydict()
    ranker = make_ranker(kind, house.contract, house.people)
    added = contributions(ranker, house.people)
    assert np.abs(added[:, 2]).max() < 0.01 * np.abs(added).sum(axis=1).max()
    reasons = {table[f"reason_{n}"][i] for n in (1, 2, 3) for i in range(PEOPLE)}
    assert {"visits", "spend", "region"} <= reasons
    assert "constant" not in reasons


def test_a_constant_feature_changes_no_ranking(house: House, kind: str) -> None:
    ranker = make_ranker(kind, house.contract, house.people)
    if kind == "features":
        without = replace(ranker, weights=np.where(ranker.rows.basis.feature_of == 2, 0.0, ranker.weights))
        gap = ranker.scores(house.people) - without.scores(house.people)
        np.testing.assert_array_equal(gap, gap[0])
    assert len(np.unique(ranker.scores(house.people))) > PEOPLE // 2


def test_leading_reasons_of_few_features_and_of_nobody() -> None:
    found = leading_reasons(np.array([[2.0, 1.0], [-1.0, 0.0], [1.0, 0.005], [3.0, 3.0]]))
    assert found.tolist() == [[0, 1, -1], [-1, -1, -1], [0, -1, -1], [0, 1, -1]]
    assert leading_reasons(np.empty((0, 5))).shape == (0, 3)


def test_without_reasons_the_scores_are_the_same(house: House, kind: str) -> None:
    full = pq.read_table(house.score(kind).path)
    bare = pq.read_table(house.score(kind, out="bare.parquet", reasons=False).path)
    assert bare.select(["id", "score", "seed"]).equals(full.select(["id", "score", "seed"]))
    assert all(bare.column(f"reason_{n}").null_count == PEOPLE for n in (1, 2, 3))


# --- models that are refused ---------------------------------------------------------------------------------------


def other_key(house: House) -> None:
    ranker = make_ranker("features", house.contract, house.people)
    save_model(house.document(ranker), Ed25519PrivateKey.generate(), house.path("features"))


def other_contract(house: House) -> None:
    foreign = house.contract.with_window(date(2025, 1, 1), date(2025, 7, 1))
    ranker = make_ranker("features", house.contract, house.people)
    save_model(house.document(ranker, plan=make_plan(foreign)), house.key, house.path("features"))


def other_plan(house: House) -> None:
    ranker = make_ranker("features", house.contract, house.people)
    plan = make_plan(house.contract, name="summer")
    save_model(house.document(ranker, plan=plan), house.key, house.path("features"))


def other_levels(house: House) -> None:
    """Signed, but of a contract in which there are more regions."""
    basis = Basis((*make_basis(house.contract).blocks[:-1], Block("region", levels=5)))
    ranker = Ranker(Rows(basis, np.zeros(basis.width), 1.0), np.zeros(basis.width))
    save_model(house.document(ranker), house.key, house.path("features"))


def other_features(house: House) -> None:
    basis = Basis((Block("height", low=0.0, high=1.0),))
    ranker = Ranker(Rows(basis, np.zeros(2), 1.0), np.zeros(2))
    save_model(house.document(ranker), house.key, house.path("features"))


def other_shape(house: House) -> None:
    """Signed, but its weights are not as many as its rows have words."""
    model = house.document(make_ranker("features", house.contract, house.people))
    arrays = {**model.arrays, "ranker": np.zeros(3)}
    document = model.document.model_copy(update={"arrays": array_facts(arrays)})
    save_model(Model(document, arrays), house.key, house.path("features"))


def one_bit(house: House) -> None:
    data = bytearray(house.path("features").read_bytes())
    data[-1] ^= 1
    house.path("features").write_bytes(bytes(data))


def cut(house: House) -> None:
    path = house.path("features")
    path.write_bytes(path.read_bytes()[:-8])


def gone(house: House) -> None:
    house.path("features").unlink()


@pytest.mark.parametrize(
    ("edit", "kind_of_error", "said"),
    [
        (other_key, DataError, "is not signed by this federation's coordinator"),
        (other_contract, DataError, "another contract"),
        (other_plan, RefusedError, "never approved its plan"),
        (other_levels, DataError, "features are not the contract's"),
        (other_features, DataError, "features are not the contract's"),
        (other_shape, DataError, "does not hold a ranker"),
        (one_bit, DataError, "is not the one that the document names"),
        (cut, DataError, "is not a model file"),
        (gone, DataError, "cannot be read"),
    ],
)
def test_a_model_that_is_not_this_nodes_is_refused(
    house: House, edit: Callable[[House], None], kind_of_error: type[CohortiumError], said: str
) -> None:
    edit(house)
    house.refused(kind_of_error, "features.safetensors", said)


def test_an_expired_model_is_refused_the_day_after(house: House) -> None:
    assert house.score(today=date(2026, 12, 31)).customers == PEOPLE
    (house.node.parent / "scores.parquet").unlink()
    house.refused(DataError, "features.safetensors", "expired on 2026-12-31", today=date(2027, 1, 1))


def test_a_charter_without_the_coordinators_key_admits_no_model(house: House) -> None:
    plan = make_plan(house.contract, name="unpinned")
    with open_records(house.node) as records:
        records.approvals.approve(plan, house.contract, make_charter(None))
    ranker = make_ranker("features", house.contract, house.people)
    save_model(house.document(ranker, plan=plan), house.key, house.path("features"))
    house.refused(RefusedError, "pins no key")


def test_an_encoder_is_no_campaigns_model(house: House) -> None:
    path = encoder_file(house)
    path.rename(house.path("features"))
    house.refused(DataError, "is not a model of that kind")


def test_levels_come_from_the_model_and_the_suppressed_are_not_used(house: House) -> None:
    with open_records(house.node) as records:
        admitted = admit_model(records, house.path("features"), TODAY)
        assert [(level.name, level.cutoff, level.reach) for level in admitted.levels] == [("narrow", 0.5, 0.05)]
        assert admitted.level("narrow").cutoff == 0.5
        for name, said in (("tiny", "suppressed 'tiny'"), ("narow", "did you mean 'narrow'?")):
            with pytest.raises(RefusedError) as caught:
                admitted.level(name)
            assert said in str(caught.value)


# --- tables and files that are refused -----------------------------------------------------------------------------


def test_a_changed_customer_table_is_refused(house: House) -> None:
    file = house.node / "customers" / "customers.parquet"
    data = file.read_bytes()
    file.unlink()
    house.refused(DataError, "is missing")
    file.write_bytes(data[:-9] + bytes(9))
    house.refused(DataError, "was changed")


def test_a_folder_without_a_node_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no node"), open_records(tmp_path):
        pass


@pytest.mark.parametrize("there", [b"mine", b""])
def test_what_is_no_scores_file_is_not_overwritten(house: House, there: bytes) -> None:
    out = house.node.parent / "scores.parquet"
    out.write_bytes(there)
    house.refused(OutputError, "exists and is no scores file")
    assert out.read_bytes() == there


def test_an_earlier_scores_file_is_replaced_and_a_missing_folder_named(house: House) -> None:
    first = house.score().path.read_bytes()
    assert house.score().path.read_bytes() == first
    house.score("embedding")
    assert (house.node.parent / "scores.parquet").read_bytes() != first
    house.refused(OutputError, "folder does not exist", out="no/scores.parquet")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_an_interrupted_scoring_leaves_what_was_there(
    house: House, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    monkeypatch.setattr("cohortium.client.lookalike.scoring._ROWS", 300)
    before = house.score().path.read_bytes()

    def tell(stage: str, share: float) -> None:
        if share > 0.5:
            raise stop

    with pytest.raises((KeyboardInterrupt, OutputError)):
        house.score("embedding", progress=tell)
    assert (house.node.parent / "scores.parquet").read_bytes() == before
    assert not list(house.node.parent.glob(".*"))


SLOW = """
import sys, time
from datetime import date
from pathlib import Path
from cohortium.client.lookalike import open_records, scoring
scoring._ROWS = 100
def tell(stage, share):
    if share > 0.5:
        print("half", flush=True)
        time.sleep(60)
with open_records(Path(sys.argv[1])) as records:
    scoring.score_customers_file(
        records, Path(sys.argv[2]), Path(sys.argv[3]), today=date(2026, 3, 1), progress=tell
    )
"""


def test_a_killed_scoring_leaves_no_file_and_the_next_one_works(house: House) -> None:
    out = house.node.parent / "scores.parquet"
    words = [sys.executable, "-c", SLOW, str(house.node), str(house.path("features")), str(out)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        with pytest.raises(OutputError, match="another process writes it"):
            house.score()
        process.kill()
        process.wait()
    assert not out.exists()
    assert (out.parent / ".scores.parquet.partial").exists()
    assert house.score().customers == PEOPLE
    assert not (out.parent / ".scores.parquet.partial").exists()


# --- the doctor ----------------------------------------------------------------------------------------------------


def encoder_file(house: House, shift: float = 0.0) -> Path:
    """A released encoder of the node's contract, from the exact moments of its own customers.

    Its mean coordinates have noise: everywhere so many standard deviations of it.
    """
    document = {key: value for key, value in house.plan.to_json().items() if key not in ("model", "lookalike")}
    plan = parse_plan({**document, "study": "encoder", "name": "encoder", "shares": {}})
    assert isinstance(plan, EncoderPlan)
    facts = []
    for kind in KINDS:
        rows = make_ranker(kind, house.contract, house.people).rows
        values = rows.of(house.people)
        moments = RowMoments(PEOPLE, values.mean(axis=0), np.cov(values.T, bias=True), 1e-3)
        frame, variances, factors = make_frame(rows, moments)
        mean = frame.coordinates(values).mean(axis=0) + shift * 1e-3
        facts.append(FrameFacts(frame, PEOPLE, variances, factors, 1e-3, moments.mean, mean, 1e-3))
    encoder = facts[1].frame.rows.encoder
    assert encoder is not None
    with open_records(house.node) as records:
        records.approvals.approve(plan, house.contract, make_charter(house.key))
    path = house.node.parent / "encoder.safetensors"
    save_model(encoder_model(EncodedStudy(encoder, facts[0], facts[1]), plan, "r", 3, ()), house.key, path)
    return path


def test_the_doctor_forecasts_from_the_nodes_own_seeds(house: House) -> None:
    model = encoder_file(house)
    spend = house.people.select(("spend",))[:, 0]
    alike = house.people.keys[np.argsort(-spend)[:200]].tolist()
    listed = house.node.parent / "alike.csv"
    listed.write_text("\n".join(["id", *alike]) + "\n")
    with open_records(house.node) as records:
        records.seeds.add("alike", listed, "id", house.people)

        def forecast(name: str, **options: Any) -> Any:
            return forecast_list(records, name, model, today=TODAY, **options)

        told, random = forecast("alike"), forecast("vip")
        assert told.here == told.total == 200
        assert told.centroid.expected > random.centroid.expected + 0.1
        assert forecast("alike", epsilon=0.2).centroid.expected < told.centroid.expected
        assert forecast("alike", elsewhere=(500,)).centroid.expected > told.centroid.expected
        assert [entry.used for entry in records.seeds.lists()] == [False, False]
        for name, options, said in (
            ("nobody", {}, "no seed list"),
            ("vip", {"epsilon": 0.0}, "epsilon"),
            ("vip", {"epsilon": float("nan")}, "epsilon"),
            ("vip", {"wanted": 1.0}, "wanted"),
        ):
            with pytest.raises(CohortiumError) as caught:
                forecast(name, **options)
            assert said in str(caught.value)
        with pytest.raises(DataError, match="kind"):
            forecast_list(records, "vip", house.path("features"), today=TODAY)


def test_the_doctor_takes_the_noise_of_the_model_for_no_signal(contract: Contract, tmp_path: Path) -> None:
    """Every customer is alike: whatever the noise of the released mean, no number of seeds can help."""
    alike = [(f"c{i:05d}", 3.0, 5.0, 4.0, "east") for i in range(PEOPLE)]
    house = make_house(contract, onboarded(contract, tmp_path, alike), tmp_path)
    for shift in (0.0, 1.0, -1.2):
        with open_records(house.node) as records:
            told = forecast_list(records, "vip", encoder_file(house, shift), today=TODAY)
        assert told.more is None
        assert told.centroid.expected == pytest.approx(0.0, abs=0.01)
        assert "No number of customers" in " ".join(told.advice())
