"""`cohortium seed refine` from the outside: a list made of a list by a released model, or one line and no change."""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cohortium.cli.main import main
from cohortium.client.lookalike import open_records, refine_list
from cohortium.client.node import NodeIdentity, create_node
from cohortium.client.onboarding import onboard, parse_source
from cohortium.client.seeds import SeedStore
from cohortium.governance.access import Role, create_accounts
from cohortium.models.basis import Basis, Block
from cohortium.models.features import Rows, on_weight_grid
from cohortium.models.ranker import Ranker
from cohortium.study.charter import parse_charter
from cohortium.study.contract import Contract, parse_contract
from cohortium.study.errors import DataError
from cohortium.study.lookalike_plan import EncoderPlan, LookalikePlan
from cohortium.study.model import EncoderModel, LookalikeModel, Model, array_facts, save_model
from cohortium.study.plans import parse_plan
from cohortium.study.reach import CurvePoint, Measured, RankerChoice, RankerQuality, ReachCurve

PEOPLE, LISTED, GOOD = 1000, 400, 250
"""Of the customers, c00000 to c00399 are listed; the first 250 visit often, all others rarely."""

CONTRACT = """
schema = "cohortium.contract/1"
name = "{name}"
purposes = ["research"]
[window]
start = 2026-01-01
end = 2026-07-01
[[tables]]
name = "people"
kind = "customers"
customer = "id"
[[features]]
name = "visits"
table = "people"
kind = "numeric"
column = "visits"
low = 0
high = 10
missing = 0
block = "behaviour"
"""
RANKER = Ranker(
    Rows(Basis((Block("visits", low=0.0, high=10.0, degree=1),)), np.zeros(1), 4.0), on_weight_grid(np.array([1.0]))
)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self
        return json.loads(self.out)


@pytest.fixture
def cohortium(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Exit code and prints of the command in this process."""

    def run(*words: object) -> Outcome:
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["cohortium", *map(str, words)])
            with pytest.raises(SystemExit) as left:
                main()
        printed = capsys.readouterr()
        return Outcome(int(left.value.code or 0), printed.out, printed.err)

    return run


def plan_for(contract: Contract, **changes: Any) -> LookalikePlan:
    plan = parse_plan(
        {
            "schema": "cohortium.plan/1",
            "study": "lookalike",
            "name": "winter",
            "purpose": "research",
            "lawful_basis": "consent",
            "regions": ["EU"],
            "contract": contract.digest,
            "expires": "2998-12-31",
            "trust": "local",
            "epsilon": 1.0,
            "delta": 1e-6,
            "model": "sha256:" + "0" * 64,
            "lookalike": {"seed": "winter-vip"},
            **changes,
        }
    )
    assert isinstance(plan, LookalikePlan)
    return plan


def model_for(plan: LookalikePlan, *, shown: bool = True) -> Model[LookalikeModel]:
    """A campaign's result whose seeds and others part most at a score of 0: five visits."""
    points = tuple(
        CurvePoint(
            cutoff=cutoff,
            people=Measured(value=3000 * share, low=3000 * share, high=3000 * share),
            share=share,
            recall=Measured(value=recall, low=recall - 0.05, high=recall) if shown else None,
        )
        for cutoff, share, recall in ((0.5, 0.05, 0.5), (0.0, 0.2, 0.9), (-0.5, 0.6, 0.95))
    )
    arrays = RANKER.parts()[1]
    document = LookalikeModel(
        plan=plan,
        run="r",
        institutions=3,
        customers=3000.0,
        features=RANKER.rows.features,
        arrays=array_facts(arrays),
        releases=(),
        seeds=300.0,
        choice=RankerChoice(ranker="features"),
        quality=RankerQuality(ranker="features", auc=None, auc_noise_std=None),
        curve=ReachCurve(eligible=None, points=points, levels=()),
    )
    return Model(document, arrays)


def encoder_for(plan: LookalikePlan) -> Model[EncoderModel]:
    agreed = {key: value for key, value in plan.to_json().items() if key not in ("model", "lookalike")}
    made = parse_plan({**agreed, "study": "encoder", "shares": {}})
    assert isinstance(made, EncoderPlan)
    document = EncoderModel(
        plan=made, run="r", institutions=3, customers=3000.0, features=("visits",), frames={}, arrays={}, releases=()
    )
    return Model(document, {})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a node that keeps a list of 400 and a short one, and released models; read only."""
    home = tmp_path_factory.mktemp("home")
    visits = np.random.default_rng(3).uniform(0.0, 4.9, PEOPLE).round(2)
    visits[:GOOD] += 5.1
    keys = [f"c{i:05d}" for i in range(PEOPLE)]
    (home / "people.csv").write_text("id,visits\n" + "".join(f"{k},{v}\n" for k, v in zip(keys, visits, strict=True)))
    (home / "vip.csv").write_text("id\n" + "\n".join(keys[:LISTED]) + "\n")
    (home / "poor.csv").write_text("id\n" + "\n".join(keys[GOOD - 99 : LISTED]) + "\n")
    contract, foreign = (parse_contract(CONTRACT.format(name=name), name) for name in ("shop", "bank"))
    node, key, stranger = home / "node", Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    create_node(node, NodeIdentity(institution="north"), contract)
    create_accounts(node, roles=frozenset(Role))
    onboard(contract, {"people": parse_source(str(home / "people.csv"))}, node / "customers", duplicates=False)
    members = [{"name": name, "region": "EU"} for name in ("north", "south", "west")]
    pinned = key.public_key().public_bytes_raw().hex()
    charter = {"schema": "cohortium.charter/1", "name": "three", "institutions": members, "coordinator": pinned}
    plan = plan_for(contract)
    with open_records(node) as records:
        records.approvals.approve(plan, contract, parse_charter(charter))
        for name in ("vip", "poor"):
            records.seeds.add(name, home / f"{name}.csv", "id", records.people())
    for name, model, signer in (
        ("winter", model_for(plan), key),
        ("forged", model_for(plan), stranger),
        ("hidden", model_for(plan, shown=False), key),
        ("unapproved", model_for(plan_for(contract, name="other")), key),
        ("foreign", model_for(plan_for(foreign)), key),
    ):
        save_model(model, signer, home / f"{name}.safetensors")
    save_model(encoder_for(plan), key, home / "encoder.safetensors")
    return home


@pytest.fixture
def home(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the working directory."""
    copy = shutil.copytree(built, tmp_path / "home")
    monkeypatch.chdir(copy)
    return copy


WINTER = ("--model", "winter.safetensors")


def members_of(home: Path, name: str) -> list[str]:
    with open_records(home / "node") as records:
        return records.seeds.members(name).tolist()


def test_who_looks_like_the_rest_is_left_out_and_the_list_says_where_it_came_from(
    home: Path, cohortium: Callable[..., Outcome]
) -> None:
    outcome = cohortium("seed", "refine", "node", "vip", *WINTER, "--as", "vip-clean")
    assert outcome.code == 0, outcome
    lines = outcome.out.splitlines()
    assert lines[0] == (
        "400 members: 250 kept, 150 left out because they look like the rest, 0 left out by the draw,"
        " 0 no customers any more."
    )
    assert "best used whole" in outcome.out
    assert lines[-1] == "kept as 'vip-clean', of 'vip', by a model of customers like 'winter-vip'"
    assert outcome.err == ""
    assert members_of(home, "vip-clean") == [f"c{i:05d}" for i in range(GOOD)]
    assert len(members_of(home, "vip")) == LISTED
    entries = {entry["name"]: entry for entry in cohortium("seed", "list", "node", "--json").json}
    origin = entries["vip-clean"]["origin"]
    assert origin == {"list": "vip", "version": entries["vip"]["version"], "model": origin["model"]}
    assert entries["vip"]["origin"] is None
    shown = cohortium("seed", "list", "node").out
    assert shown.splitlines()[-1] == f"vip-clean: refined from 'vip' by the model {origin['model']}"


def test_a_share_thins_and_json_is_printed_alone(home: Path, cohortium: Callable[..., Outcome]) -> None:
    words = ("seed", "refine", "node", "vip", *WINTER, "--as", "short", "--share", "0.6", "--json")
    told = cohortium(*words).json
    assert (told["name"], told["list"], told["model_seed"], told["alike"]) == ("short", "vip", "winter-vip", 150)
    kept = told["counts"]["matched"]
    assert told["drawn"] == GOOD - kept > 0
    assert len(members_of(home, "short")) == kept >= 100
    entries = cohortium("seed", "list", "node", "--json").json
    assert next(e["origin"]["model"] for e in entries if e["name"] == "short") == told["model"]


def test_removing_names_the_lists_refined_from_it(home: Path, cohortium: Callable[..., Outcome]) -> None:
    assert cohortium("seed", "refine", "node", "vip", *WINTER, "--as", "vip-clean").code == 0
    outcome = cohortium("seed", "remove", "node", "vip")
    assert (outcome.code, outcome.err) == (0, "")
    first, second = outcome.out.splitlines()
    assert first == "removed 'vip'"
    assert second.startswith("its members are also in vip-clean, refined from it")
    assert cohortium("seed", "remove", "node", "vip-clean").out.splitlines() == ["removed 'vip-clean'"]


@pytest.mark.parametrize("how", ["remove", "replace"])
def test_ids_that_stay_in_the_log_are_told(
    home: Path, cohortium: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    words: tuple[str, ...] = ("remove", "node", "vip")
    if how == "replace":
        words = ("add", "node", "vip", "--file", "vip.csv", "--column", "id", "--replace")
    with monkeypatch.context() as patch:
        patch.setattr(SeedStore, "erase_log", lambda self: False)
        outcome = cohortium("seed", *words)
    assert outcome.code == 0
    assert outcome.err.startswith("warning: another process reads the node's database")
    assert outcome.err.count("\n") == 1
    assert " — fix: " in outcome.err
    if how == "replace":
        assert cohortium("seed", *words).err == ""


def test_nothing_is_charged(home: Path, cohortium: Callable[..., Outcome]) -> None:
    assert cohortium("seed", "refine", "node", "vip", *WINTER, "--as", "vip-clean").code == 0
    with sqlite3.connect(home / "node" / "node.sqlite") as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        counts = {name: database.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}
    for name in ("charges", "replies", "events", "reservations"):
        assert counts.get(name, 0) == 0
    assert counts["seed_lists"] == 3


def test_an_expired_model_refines_nothing(home: Path) -> None:
    with open_records(home / "node") as records:
        with pytest.raises(DataError, match="expired on 2998-12-31"):
            refine_list(records, "vip", home / "winter.safetensors", "new", today=date(2999, 1, 1))
        assert {entry.name for entry in records.seeds.lists()} == {"vip", "poor"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("node", "vips", *WINTER, "--as", "new"), "no seed list of that name"),
        (("people.csv", "vip", *WINTER, "--as", "new"), "holds no node"),
        (("node", "vip", *WINTER, "--as", "poor"), "there is a list of this name"),
        (("node", "vip", *WINTER, "--as", "vip"), "there is a list of this name"),
        (("node", "vip", *WINTER, "--as", "New"), "not a name for a seed list"),
        (("node", "poor", *WINTER, "--as", "new"), "99 usable seeds"),
        (("node", "vip", *WINTER, "--as", "new", "--share", "0.05"), "100 are the least"),
        (("node", "vip", *WINTER, "--as", "new", "--share", "0"), "no such share"),
        (("node", "vip", *WINTER, "--as", "new", "--share", "1.5"), "no such share"),
        (("node", "vip", "--model", "none.safetensors", "--as", "new"), "cannot be read"),
        (("node", "vip", "--model", "vip.csv", "--as", "new"), "is not a model file"),
        (("node", "vip", "--model", "forged.safetensors", "--as", "new"), "is not signed by"),
        (("node", "vip", "--model", "unapproved.safetensors", "--as", "new"), "never approved its plan"),
        (("node", "vip", "--model", "foreign.safetensors", "--as", "new"), "under another contract"),
        (
            ("node", "vip", "--model", "encoder.safetensors", "--as", "new"),
            "is not a model of that kind: it is an encoder's — fix: name a campaign's lookalike.safetensors",
        ),
        (("node", "vip", "--model", "hidden.safetensors", "--as", "new"), "does not tell its seeds from others"),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(
    home: Path, cohortium: Callable[..., Outcome], words: tuple[str, ...], said: str
) -> None:
    before = cohortium("seed", "list", "node", "--json").json
    outcome = cohortium("seed", "refine", *words)
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert " — fix: " in outcome.err
    assert said in outcome.err
    assert "c00" not in outcome.err
    assert cohortium("seed", "list", "node", "--json").json == before
    assert members_of(home, "new") == []
    assert len(members_of(home, "poor")) == 249


def test_the_doctor_refuses_a_campaigns_model_as_what_it_is(home: Path, cohortium: Callable[..., Outcome]) -> None:
    outcome = cohortium("seed", "doctor", "node", "vip", *WINTER)
    assert (outcome.code, outcome.out) == (2, "")
    said = "is not a model of that kind: it is a campaign's — fix: name an encoder's encoder.safetensors"
    assert outcome.err == f"error: winter.safetensors: {said}\n"
