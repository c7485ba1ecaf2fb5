"""Seeds, scores and audiences from the outside: one campaign from a list of ids to files, and back to nobody."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cohortium.cli.main import main
from cohortium.client.audience import ScoresOrigin, read_scores_facts
from cohortium.client.lookalike import AdmittedModel, open_records, score_customers_file
from cohortium.client.node import NodeIdentity, create_node
from cohortium.client.onboarding import onboard, parse_source
from cohortium.client.onboarding.store import load_customer_table
from cohortium.models.basis import UNIT, Basis, Block
from cohortium.models.encoder import Encoder, encoder_shapes
from cohortium.models.encoding import EncodedStudy
from cohortium.models.features import Rows, on_row_grid, on_weight_grid
from cohortium.models.ranker import Ranker
from cohortium.models.released import encoder_model
from cohortium.models.row_moments import RowMoments, make_frame
from cohortium.models.seed_head import FrameFacts
from cohortium.privacy.table import CustomerTable
from cohortium.study.charter import parse_charter
from cohortium.study.contract import Contract, parse_contract
from cohortium.study.lookalike_plan import EncoderPlan, LookalikePlan
from cohortium.study.model import LookalikeModel, Model, array_facts, load_model, save_model
from cohortium.study.plans import parse_plan
from cohortium.study.reach import CurvePoint, Measured, RankerChoice, RankerQuality, ReachCurve, ReachLevel

PEOPLE = 1000
SHARES = {"narrow": 0.15, "broad": 0.4}
LEAVES = (
    "score",
    *("seed add", "seed list", "seed remove", "seed doctor"),
    *("audience preview", "audience create", "audience refresh", "audience export", "audience expire"),
    *("audience list", "audience settle"),
)
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
[[features]]
name = "visits"
table = "people"
kind = "numeric"
column = "visits"
low = 0
high = 10
missing = 0
block = "behaviour"
[[features]]
name = "region"
table = "people"
kind = "category"
column = "region"
categories = ["east", "west"]
block = "product"
"""


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


def assert_mistake(outcome: Outcome, *said: str) -> None:
    """Exit code 2, nothing on stdout, one line with place and fix on stderr, no customer."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert " — fix: " in outcome.err
    assert all(text in outcome.err for text in said), outcome.err
    assert "c00" not in outcome.err


def document(contract: Contract, study: str, **changes: Any) -> dict[str, Any]:
    return {
        "schema": "cohortium.plan/1",
        "study": study,
        "name": study,
        "purpose": "research",
        "lawful_basis": "consent",
        "regions": ["EU"],
        "contract": contract.digest,
        "expires": "2999-12-31",
        "trust": "local",
        "epsilon": 1.0,
        "delta": 1e-6,
        **changes,
    }


def encoder_for(contract: Contract, rows: Rows, people: CustomerTable) -> tuple[EncoderPlan, EncodedStudy]:
    """An encoder of zeros: the doctor looks at the frame of features alone."""
    shapes = encoder_shapes(rows.basis, 2, 2)
    weights = [np.zeros(shape) for shape in shapes]
    encoder = Encoder(rows.basis, np.ones(rows.basis.width), (weights[0], weights[1], weights[2], weights[3]))
    facts = []
    for kind in (rows, Rows(rows.basis, np.zeros(2), 1.0, encoder)):
        values = kind.of(people)
        moments = RowMoments(PEOPLE, values.mean(axis=0), np.cov(values.T, bias=True), 1e-3)
        frame, variances, factors = make_frame(kind, moments)
        mean = frame.coordinates(values).mean(axis=0)
        facts.append(FrameFacts(frame, PEOPLE, variances, factors, 1e-3, moments.mean, mean, 1e-3))
    plan = parse_plan(document(contract, "encoder"))
    assert isinstance(plan, EncoderPlan)
    return plan, EncodedStudy(encoder, facts[0], facts[1])


def campaign_for(plan: LookalikePlan, ranker: Ranker, people: CustomerTable) -> Model[LookalikeModel]:
    """A campaign's result whose levels reach the shares that they name here; `tiny` is suppressed."""
    cutoffs = {name: float(np.quantile(ranker.scores(people), 1 - share)) for name, share in SHARES.items()}
    points = {
        name: CurvePoint(cutoff=cutoffs[name], people=Measured(value=n, low=n, high=n), share=SHARES[name])
        for name, n in (("narrow", 450.0), ("broad", 1200.0))
    }
    shown = tuple(ReachLevel(name=name, point=point) for name, point in points.items())
    arrays = ranker.parts()[1]
    result = LookalikeModel(
        plan=plan,
        run="r",
        institutions=3,
        customers=3000.0,
        features=ranker.rows.features,
        arrays=array_facts(arrays),
        releases=(),
        seeds=300.0,
        choice=RankerChoice(ranker="features"),
        quality=RankerQuality(ranker="features", auc=None, auc_noise_std=None),
        curve=ReachCurve(
            eligible=None, points=tuple(points.values()), levels=(ReachLevel(name="tiny", point=None), *shown)
        ),
    )
    return Model(result, arrays)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a node, the operator's files and two released models; read only."""
    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(3)
    rows = [(f"c{i:05d}", round(rng.uniform(0, 10), 2), ("east", "west")[i % 2]) for i in range(PEOPLE)]
    (home / "people.csv").write_text("id,visits,region\n" + "".join(f"{i},{v},{r}\n" for i, v, r in rows))
    (home / "vip.csv").write_text("customer\n" + "".join(f"{i}\n" for i, *_ in rows[:150]))
    (home / "objections.csv").write_text("who\n" + "".join(f"{i}\n" for i, *_ in rows[900:]) + "stranger\n")
    mails = "".join(f"{i}, {i.upper()}@Shop.example ,{v}\n" for i, v, _ in rows[:990])
    (home / "crm.csv").write_text("customer,mail,phone\n" + mails)
    contract = parse_contract(CONTRACT, "contract")
    node, key = home / "node", Ed25519PrivateKey.generate()
    create_node(node, NodeIdentity(institution="north", simulation=True), contract)
    onboard(contract, {"people": parse_source(str(home / "people.csv"))}, node / "customers", duplicates=False)
    people = load_customer_table(node / "customers", contract)
    basis = Basis((Block("visits", low=0.0, high=10.0), Block("region", levels=3)))
    kind = Rows(basis, on_row_grid((basis.rows(people) / UNIT).mean(axis=0)), 4.0)
    encoder_plan, study = encoder_for(contract, kind, people)
    encoder = encoder_model(study, encoder_plan, "r", 3, ())
    plan = parse_plan(document(contract, "lookalike", model=encoder.digest, lookalike={"seed": "vip"}))
    assert isinstance(plan, LookalikePlan)
    ranker = Ranker(kind, on_weight_grid(np.array([2.0, 0.25, 0.125, 0.0, 0.0])))
    members = [{"name": name, "region": "EU"} for name in ("north", "south", "west")]
    pinned = key.public_key().public_bytes_raw().hex()
    charter = {"schema": "cohortium.charter/1", "name": "three", "institutions": members, "coordinator": pinned}
    with open_records(node) as records:
        for each in (encoder_plan, plan):
            records.approvals.approve(each, contract, parse_charter(charter))
    save_model(encoder, key, home / "encoder.safetensors")
    save_model(campaign_for(plan, ranker, people), key, home / "lookalike.safetensors")
    save_model(campaign_for(plan, Ranker(kind, ranker.weights * 2), people), key, home / "other.safetensors")
    stranger = Ed25519PrivateKey.generate()
    save_model(campaign_for(plan, ranker, people), stranger, home / "forged.safetensors")
    return home


@pytest.fixture
def home(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the working directory."""
    copy = shutil.copytree(built, tmp_path / "home")
    monkeypatch.chdir(copy)
    return copy


SCORES = ("--scores", "scores.parquet")
MODEL = ("--model", "lookalike.safetensors")
SCORE = ("score", "node", *MODEL, "--out", "scores.parquet", "--quiet")
CREATE = ("audience", "create", "node", *SCORES, *MODEL, "--name", "spring", "--level", "broad")


@pytest.fixture(scope="module")
def marked(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a seed list and a scores file besides; read only."""
    home = shutil.copytree(built, tmp_path_factory.mktemp("marked") / "home")
    with open_records(home / "node") as records:
        records.seeds.add("vip", home / "vip.csv", "customer", records.people())
        score_customers_file(records, home / "lookalike.safetensors", home / "scores.parquet")
    return home


@pytest.fixture
def scored(marked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the working directory."""
    copy = shutil.copytree(marked, tmp_path / "home")
    monkeypatch.chdir(copy)
    return copy


def members_of(home: Path, level: str, *, suppressed: bool = False) -> set[str]:
    """Who belongs to a level, by the scores file alone."""
    table = pq.read_table(home / "scores.parquet").to_pydict()
    scores = np.array(table["score"])
    cutoff = float(np.quantile(scores, 1 - SHARES[level]))
    chosen = {i for i, score in zip(table["id"], scores, strict=True) if score >= cutoff}
    out = {f"c{i:05d}" for i in range(150)}
    return chosen - (out | {f"c{i:05d}" for i in range(900, PEOPLE)} if suppressed else out)


def rows_of(folder: Path, operation: str) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    for path in sorted(folder.glob(f"{operation}-*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            rows.extend(csv.DictReader(file))
    return rows


class TestHelp:
    @pytest.mark.parametrize("command", LEAVES)
    def test_every_command_shows_an_example(self, cohortium: Callable[..., Outcome], command: str) -> None:
        outcome = cohortium(*command.split(), "--help")
        assert outcome.code == 0
        _, example, shown = outcome.out.partition("Example")
        assert example
        assert f"cohortium {command}" in shown

    @pytest.mark.parametrize("group", ["seed", "audience"])
    def test_groups_list_every_command(self, cohortium: Callable[..., Outcome], group: str) -> None:
        outcome = cohortium(group, "--help")
        assert all(leaf.split()[1] in outcome.out for leaf in LEAVES if leaf.startswith(f"{group} "))


class TestSeed:
    def test_a_list_is_added_shown_and_removed(self, home: Path, cohortium: Callable[..., Outcome]) -> None:
        words = ("seed", "add", "node", "vip", "--file", "vip.csv", "--column", "customer")
        told = cohortium(*words)
        assert told.code == 0
        assert "150 matched" in told.out
        assert "500 advised" in told.out
        (entry,) = cohortium("seed", "list", "node", "--json").json
        assert (entry["name"], entry["state"], entry["counts"]["matched"]) == ("vip", "free", 150)
        assert "vip" in cohortium("seed", "list", "node").out
        assert_mistake(cohortium(*words), "there is a list of this name")
        assert cohortium(*words, "--replace", "--json").json["counts"]["allowed"] == 150
        assert cohortium("seed", "remove", "node", "vip").out == "removed 'vip'\n"
        assert cohortium("seed", "list", "node").out == "no seed list\n"
        assert_mistake(cohortium("seed", "remove", "node", "vip"), "no seed list of that name")

    @pytest.mark.parametrize(
        ("name", "lines", "said"),
        [
            ("vip", 99, "100 are the least"),
            ("vip", 501, "more than half of the customers"),
            ("vip", PEOPLE, "every customer is in the seed"),
            ("VIP", 150, "not a name for a seed list"),
        ],
    )
    def test_floors_hold(self, home: Path, cohortium: Callable[..., Outcome], name: str, lines: int, said: str) -> None:
        (home / "list.csv").write_text("id\n" + "".join(f"c{i:05d}\n" for i in range(lines)))
        assert_mistake(cohortium("seed", "add", "node", name, "--file", "list.csv", "--column", "id"), said)
        assert cohortium("seed", "list", "node", "--json").json == []

    def test_the_doctor_tells_before_anything_is_spent(self, scored: Path, cohortium: Callable[..., Outcome]) -> None:
        words = ("seed", "doctor", "node", "vip", "--model", "encoder.safetensors")
        spent = cohortium("ledger", "show", "node", "--json").out
        told = cohortium(*words)
        assert told.code == 0
        assert "expected cosine of" in told.out
        more = cohortium(*words, "--epsilon", "2", "--elsewhere", "400", "--json").json
        assert more["total"] == 550
        assert 0 <= more["centroid"]["low"] <= more["centroid"]["expected"] <= more["centroid"]["high"] <= 1
        assert cohortium("ledger", "show", "node", "--json").out == spent
        assert_mistake(cohortium("seed", "doctor", "node", "gold", "--model", "encoder.safetensors"), "no seed list")
        assert_mistake(cohortium("seed", "doctor", "node", "vip", *MODEL), "is not a model of that kind")

    def test_no_lookalike_of_a_lookalike(self, scored: Path, cohortium: Callable[..., Outcome]) -> None:
        made = cohortium(*CREATE, "--json").json["id"]
        assert cohortium("audience", "export", "node", made, "--out", "ads").code == 0
        exported = [row["id"] for row in rows_of(scored / "ads", "add")]
        (scored / "again.csv").write_text("\n".join(["id", *exported, *(f"c{i:05d}" for i in range(100))]))
        words = ("seed", "add", "node", "again", "--file", "again.csv", "--column", "id")
        assert_mistake(cohortium(*words), "no lookalike of a lookalike")


class TestScore:
    def test_everybody_is_scored(self, home: Path, cohortium: Callable[..., Outcome]) -> None:
        outcome = cohortium(*SCORE)
        assert outcome.code == 0
        assert "1,000 customers scored, 0 of them seeds" in outcome.out
        assert "no seed list of the campaign's name" in outcome.out
        assert outcome.err == ""
        reasons = set(pq.read_table(home / "scores.parquet").column("reason_1").to_pylist())
        assert "visits" in reasons

    def test_the_file_names_the_node_and_its_table(self, scored: Path) -> None:
        table = hashlib.sha256((scored / "node" / "customers" / "customers.parquet").read_bytes()).hexdigest()
        facts = read_scores_facts(scored / "scores.parquet")
        assert facts.origin == ScoresOrigin("north", f"sha256:{table}")

    def test_json_is_printed_alone_and_progress_goes_to_stderr(
        self, scored: Path, cohortium: Callable[..., Outcome]
    ) -> None:
        words = [word for word in SCORE if word != "--quiet"]
        outcome = cohortium(*words, "--no-reasons", "--json")
        told = outcome.json
        assert (told["customers"], told["seeds"], told["seed_list"]) == (PEOPLE, 150, "marked")
        assert "scoring 100%" in outcome.err
        assert pq.read_table(scored / "scores.parquet").column("reason_1").null_count == PEOPLE

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("score", "node", "--model", "forged.safetensors", "--out", "s.parquet"), "is not signed by"),
            (("score", "node", "--model", "encoder.safetensors", "--out", "s.parquet"), "not a model of that kind"),
            (("score", "node", "--model", "people.csv", "--out", "s.parquet"), "is not a model file"),
            (("score", "node", "--model", "none.safetensors", "--out", "s.parquet"), "cannot be read"),
            (("score", "customers", *MODEL, "--out", "s.parquet"), "holds no node"),
            (("score", "node", *MODEL, "--out", "people.csv"), "is no scores file"),
        ],
    )
    def test_mistakes_are_one_line_and_leave_no_file(
        self, home: Path, cohortium: Callable[..., Outcome], words: tuple[str, ...], said: str
    ) -> None:
        before = {path.name: path.read_bytes() for path in home.iterdir() if path.is_file()}
        assert_mistake(cohortium(*words, "--quiet"), said)
        assert {path.name: path.read_bytes() for path in home.iterdir() if path.is_file()} == before


class TestAudience:
    def test_a_preview_shows_bands_and_records_nothing(self, scored: Path, cohortium: Callable[..., Outcome]) -> None:
        told = cohortium("audience", "preview", "node", *SCORES, *MODEL, "--json").json
        assert [level["name"] for level in told["levels"]] == ["narrow", "broad"]
        assert told["levels"][1]["reach"] == SHARES["broad"]
        assert told["levels"][1]["size"] == "300\N{EN DASH}500"
        assert len(members_of(scored, "broad")) in range(300, 500)
        shown = cohortium("audience", "preview", "node", *SCORES, *MODEL, "--level", "narrow", "--cutoff", "-99")
        assert "narrow" in shown.out
        assert "custom" in shown.out
        assert "broad" not in shown.out
        assert cohortium("audience", "list", "node").out == "no audience\n"

    def test_a_preview_names_what_the_campaign_suppressed_and_why(
        self, scored: Path, cohortium: Callable[..., Outcome]
    ) -> None:
        words = ("audience", "preview", "node", *SCORES, *MODEL)
        (why,) = cohortium(*words, "--json").json["suppressed"].values()
        assert why == "fewer than 100 people are eligible"
        assert f"suppressed by the campaign: tiny: {why}" in cohortium(*words).out
        assert "tiny" not in cohortium(*words, "--level", "broad").out
        assert_mistake(cohortium(*words, "--level", "tiny"), f"the campaign suppressed 'tiny': {why}")

    def test_a_campaign_that_suppressed_every_level_says_why(
        self, scored: Path, cohortium: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(AdmittedModel, "levels", ())
        words = ("audience", "preview", "node", *SCORES, *MODEL)
        assert_mistake(cohortium(*words), "no level to offer: fewer than 100 people are eligible")
        assert "custom" in cohortium(*words, "--cutoff", "-99").out

    def test_a_cutoff_needs_no_model(self, scored: Path, cohortium: Callable[..., Outcome]) -> None:
        words = ("audience", "preview", "node", *SCORES)
        (level,) = cohortium(*words, "--cutoff", "-99", "--json").json["levels"]
        assert (level["name"], level["size"], level["reach"]) == ("custom", "500\N{EN DASH}1,000", None)
        assert_mistake(cohortium(*words), "levels come from the model")
        assert_mistake(cohortium(*words, "--level", "broad", "--cutoff", "1"), "levels come from the model")

    def test_from_scores_to_files_and_back_to_nobody(self, scored: Path, cohortium: Callable[..., Outcome]) -> None:
        suppress = ("--suppress", "objections.csv", "--column", "who")
        made = cohortium(*CREATE, *suppress, "--json").json
        wanted = members_of(scored, "broad", suppressed=True)
        assert made["lists"] == [{"file": "objections.csv", "ids": 101, "blank": 0, "matched": 100, "unmatched": 1}]
        to = ("--destination", "ads", "--format", "csv", "--max-rows", "100")
        mail = ("--contacts", "crm.csv", "--id-column", "customer", "--column", "email=mail:email,sha256")
        first = cohortium("audience", "export", "node", made["id"], "--out", "ads-1", *to, *mail, "--json").json
        assert (first["kind"], first["sequence"], first["added"], first["removed"]) == ("full", 1, len(wanted), 0)
        assert first["model"] == cohortium("audience", "list", "node", "--json").json[0]["model"]
        assert len(list((scored / "ads-1").glob("add-*.csv"))) == -(-len(wanted) // 100)
        hashes = {hashlib.sha256(f"{i}@shop.example".encode()).hexdigest() for i in wanted}
        assert {row["email"] for row in rows_of(scored / "ads-1", "add")} == hashes

        (scored / "more.csv").write_text("who\n" + "".join(f"{i}\n" for i in sorted(wanted)[:40]))
        again = ("audience", "refresh", "node", made["id"], *SCORES, "--suppress", "more.csv", "--column", "who")
        assert cohortium(*again, "--json").json["revision"] == 2
        second = cohortium("audience", "export", "node", made["id"], "--out", "ads-2", *to, *mail, "--json").json
        assert (second["kind"], second["added"], second["removed"]) == ("delta", 0, 40)
        assert second["previous"] == first["digest"]

        ended = cohortium("audience", "expire", "node", made["id"])
        assert "  ads: removal due" in cohortium("audience", "list", "node").out
        assert f"cohortium audience export node {made['id']} --destination ads --removal" in ended.out
        assert_mistake(cohortium("audience", "export", "node", made["id"], "--out", "ads-3", *to, *mail), "has expired")
        gone = ("audience", "export", "node", made["id"], "--out", "ads-3", "--destination", "ads", "--removal")
        assert_mistake(cohortium(*gone, *mail), "--removal")
        told = cohortium(*gone)
        assert f"ads 3, removal: 0 to add, {len(wanted) - 40} to remove" in told.out
        removed = {row["email"] for name in ("ads-2", "ads-3") for row in rows_of(scored / name, "remove")}
        assert removed == hashes
        (entry,) = cohortium("audience", "list", "node", "--json").json
        assert (entry["state"], entry["removal_due"], len(entry["exports"])) == ("expired", [], 3)
        shown = cohortium("audience", "list", "node").out
        assert shown.startswith(f"{made['id']}: 'spring', broad, ")
        assert all(f"  ads {text}, " in shown for text in ("1: full", "2: delta", "3: removal"))

    def test_members_without_a_contact_are_told(self, scored: Path, cohortium: Callable[..., Outcome]) -> None:
        made = cohortium(*CREATE, "--json").json["id"]
        lacking = len([i for i in members_of(scored, "broad") if i >= "c00990"])
        assert lacking > 0
        words = ("audience", "export", "node", made, "--contacts", "crm.csv", "--id-column", "customer")
        told = cohortium(*words, "--column", "mail:email", "--out", "ads")
        assert f"{lacking} members without a line in the contacts" in told.out
        words = ("audience", "export", "node", made, "--contacts", "crm.csv", "--column", "mail:email", "--out", "b")
        assert_mistake(cohortium(*words), "crm.csv: no column 'id'", "holds it with --id-column")

    def test_telephone_numbers_need_a_calling_code(self, scored: Path, cohortium: Callable[..., Outcome]) -> None:
        made = cohortium(*CREATE, "--json").json["id"]
        lines = "".join(f"c{i:05d},020 7946 {i:04d}\n" for i in range(PEOPLE))
        (scored / "phones.csv").write_text("id,phone\n" + lines)
        words = ("audience", "export", "node", made, "--contacts", "phones.csv", "--column", "phone:e164", "--out", "p")
        assert_mistake(cohortium(*words), "default calling code")
        assert cohortium(*words, "--calling-code", "44", "--trunk", "0").code == 0
        assert {row["phone"][:9] for row in rows_of(scored / "p", "add")} == {"+44207946"}

    @pytest.mark.parametrize("form", ["jsonl", "parquet"])
    def test_other_formats(self, scored: Path, cohortium: Callable[..., Outcome], form: str) -> None:
        made = cohortium(*CREATE, "--json").json["id"]
        assert cohortium("audience", "export", "node", made, "--out", "ads", "--format", form).code == 0
        path = scored / "ads" / f"add-000001.{form}"
        rows = (
            pq.read_table(path).to_pylist()
            if form == "parquet"
            else [json.loads(line) for line in path.read_text().splitlines()]
        )
        assert {row["id"] for row in rows} == members_of(scored, "broad")

    def test_an_audience_takes_the_place_of_another(self, scored: Path, cohortium: Callable[..., Outcome]) -> None:
        first = cohortium(*CREATE, "--json").json["id"]
        assert_mistake(cohortium(*CREATE), "an active audience has this name")
        second = cohortium(*CREATE, "--replaces", first, "--json").json
        old, new = sorted(cohortium("audience", "list", "node", "--json").json, key=lambda each: each["id"] != first)
        assert (old["state"], old["replaced_by"]) == ("expired", second["id"])
        assert (new["id"], new["state"]) == (second["id"], "active")
        last_day = datetime.now(UTC).date() + timedelta(days=30)
        assert abs((datetime.fromisoformat(new["expires"]).date() - last_day).days) <= 1

    def test_a_sensitive_name_needs_a_reason(self, scored: Path, cohortium: Callable[..., Outcome]) -> None:
        words = ("audience", "create", "node", *SCORES, *MODEL, "--level", "broad", "--name", "wealthy widows")
        assert_mistake(cohortium(*words), "the name suggests")
        made = cohortium(*words, "--allow-name", "title of a play", "--json").json
        assert made["reason"] == "title of a play"

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ((*SCORES, *MODEL), "neither a level nor a cut-off"),
            ((*SCORES, *MODEL, "--level", "broad", "--cutoff", "1"), "neither a level nor a cut-off, or both"),
            ((*SCORES, "--level", "broad"), "levels come from the model"),
            ((*SCORES, *MODEL, "--level", "tiny"), "suppressed 'tiny'"),
            ((*SCORES, *MODEL, "--level", "broadest"), "did you mean 'broad'?"),
            ((*SCORES, "--model", "other.safetensors", "--level", "broad"), "the scores are of another model"),
            ((*SCORES, "--model", "forged.safetensors", "--level", "broad"), "is not signed by"),
            ((*SCORES, "--cutoff", "99"), "fewer than 100 members are left"),
            ((*SCORES, "--cutoff", "nan"), "not a finite number"),
            (("--scores", "people.csv", "--cutoff", "1"), "is no readable Parquet file"),
            (("--scores", "none.parquet", "--cutoff", "1"), "no such file"),
            ((*SCORES, "--cutoff", "-99", "--suppress", "vip.csv"), "name the column that holds it with --column"),
        ],
    )
    def test_mistakes_create_nothing(
        self, scored: Path, cohortium: Callable[..., Outcome], words: tuple[str, ...], said: str
    ) -> None:
        assert_mistake(cohortium("audience", "create", "node", "--name", "spring", *words), said)
        assert cohortium("audience", "list", "node", "--json").json == []

    def test_who_was_left_out_is_said_in_plain_words(self, scored: Path, cohortium: Callable[..., Outcome]) -> None:
        words = (*SCORES, *MODEL, "--suppress", "objections.csv", "--column", "who")
        seen = cohortium("audience", "preview", "node", *words, "--cutoff", "-99").out
        bands = ("seeds: 100\N{EN DASH}200", "on suppression lists: 100\N{EN DASH}200", "not allowed: fewer than 100")
        assert f"left out: {'; '.join(bands)}\n" in seen
        made = cohortium("audience", "create", "node", *words, "--name", "all", "--cutoff", "-99").out
        assert "left out: 150 seeds, 100 on suppression lists, 0 not allowed\n" in made

    def test_a_list_that_matches_nobody_is_refused_unless_it_is_meant(
        self, scored: Path, cohortium: Callable[..., Outcome]
    ) -> None:
        made = cohortium(*CREATE, "--json").json["id"]
        (scored / "lower.csv").write_text("who\nC00900\nC00901\n")
        suppress = ("--suppress", "lower.csv", "--column", "who")
        for words in (
            ("audience", "preview", "node", *SCORES, *MODEL, *suppress),
            ("audience", "create", "node", *SCORES, *MODEL, "--name", "b", "--level", "broad", *suppress),
            ("audience", "refresh", "node", made, *SCORES, *suppress),
        ):
            assert_mistake(cohortium(*words), "lower.csv: no id in column 'who' is a customer's here")
            allowed = cohortium(*words, "--allow-unmatched", "--json")
            assert allowed.json["lists"][0]["matched"] == 0
            assert allowed.err.startswith("warning: lower.csv: 2 of 2 ids are nobody's here")

    def test_more_strangers_than_customers_on_a_list_are_warned_of(
        self, scored: Path, cohortium: Callable[..., Outcome]
    ) -> None:
        words = ("audience", "preview", "node", *SCORES, *MODEL, "--suppress", "list.csv")
        for strangers, err in ((2, ""), (3, "warning: list.csv: 3 of 5 ids are nobody's here")):
            (scored / "list.csv").write_text("\n".join(["id", "c00900", "c00901", *map(str, range(strangers))]))
            told = cohortium(*words)
            assert told.code == 0
            assert bool(told.err) == bool(err)
            assert told.err.startswith(err)

    def test_another_nodes_scores_make_no_audience(self, scored: Path, cohortium: Callable[..., Outcome]) -> None:
        made = cohortium(*CREATE, "--json").json
        shutil.copytree(scored / "node", scored / "west")
        identity = NodeIdentity.model_validate_json((scored / "node" / "node.json").read_bytes())
        west = identity.model_copy(update={"institution": "west"})
        (scored / "west" / "node.json").write_text(west.model_dump_json())
        for words in (
            ("audience", "preview", "west", *SCORES, *MODEL),
            ("audience", "create", "west", *SCORES, *MODEL, "--name", "summer", "--level", "broad"),
            ("audience", "refresh", "west", made["id"], *SCORES),
        ):
            assert_mistake(cohortium(*words), "another institution's customers")
        assert [each["revision"] for each in cohortium("audience", "list", "west", "--json").json] == [1]

    def test_scores_of_an_earlier_onboarding_make_no_audience(
        self, scored: Path, cohortium: Callable[..., Outcome]
    ) -> None:
        made = cohortium(*CREATE, "--json").json["id"]
        with (scored / "people.csv").open("a") as file:
            file.write("d00000,5,east\n")
        shutil.rmtree(scored / "node" / "customers")
        source = parse_source(str(scored / "people.csv"))
        onboard(parse_contract(CONTRACT, "contract"), {"people": source}, scored / "node" / "customers")
        refresh = ("audience", "refresh", "node", made, *SCORES)
        assert_mistake(cohortium(*refresh), "onboarded anew since they were scored")
        assert cohortium(*SCORE).code == 0
        assert cohortium(*refresh).code == 0

    def test_an_export_of_nobody_we_know(self, scored: Path, cohortium: Callable[..., Outcome]) -> None:
        made = cohortium(*CREATE, "--json").json["id"]
        export = ("audience", "export", "node")
        assert_mistake(cohortium(*export, "aud-0", "--out", "ads"), "no such audience")
        assert_mistake(cohortium(*export, made, "--out", "ads", "--format", "xlsx"), "no format 'xlsx'")
        assert_mistake(cohortium(*export, made, "--out", "ads", "--column", "mail:email"), "needs contacts")
        assert_mistake(cohortium(*export, made, "--out", "ads", "--column", "id:rot13"), "unknown step")
        assert_mistake(cohortium(*export, made, "--out", "node"), "exists")
        assert_mistake(cohortium("audience", "expire", "node", "aud-0"), "no such audience")
        assert not (scored / "ads").exists()


class TestInterrupted:
    def test_a_released_model_survives_a_power_cut(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = load_model(home / "lookalike.safetensors", LookalikeModel, signer=None)
        out, steps, sync, replace = home / "again.safetensors", [], os.fsync, os.replace

        def fsync(handle: int) -> None:
            steps.append(os.fstat(handle).st_ino)
            sync(handle)

        def renamed(staged: Path, path: Path) -> None:
            steps.append(path.name)
            replace(staged, path)

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "replace", renamed)
        save_model(model, Ed25519PrivateKey.generate(), out)
        assert steps == [out.stat().st_ino, out.name, home.stat().st_ino]

    @staticmethod
    def stopped_at(step: str, words: tuple[object, ...], cohortium: Callable[..., Outcome]) -> Outcome:
        """The command, stopped where an export reaches a step of it."""

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(step, stop)
            return cohortium(*words)

    @pytest.mark.parametrize("step", ["exports.sync_folder", "exports._publish", "store.AudienceStore.seal_export"])
    def test_an_export_that_has_not_appeared_is_made_once_by_the_next(
        self, scored: Path, cohortium: Callable[..., Outcome], step: str
    ) -> None:
        made = cohortium(*CREATE, "--json").json["id"]
        words = ("audience", "export", "node", made, "--out", "ads", "--json")
        outcome = self.stopped_at(f"cohortium.client.audience.{step}", words, cohortium)
        assert (outcome.code, outcome.out, outcome.err) == (130, "", "stopped\n")
        assert not (scored / "ads").exists()
        again = cohortium(*words).json
        assert (again["kind"], again["sequence"], again["added"]) == ("full", 1, len(members_of(scored, "broad")))
        assert [path.name for path in scored.iterdir() if "partial" in path.name] == []

    def test_a_folder_that_was_taken_before_it_was_recorded_is_settled(
        self, scored: Path, cohortium: Callable[..., Outcome]
    ) -> None:
        made = cohortium(*CREATE, "--json").json["id"]
        words = ("audience", "export", "node", made, "--out", "ads")
        step = "cohortium.client.audience.store.AudienceStore.finish_export"
        assert self.stopped_at(step, words, cohortium).code == 130
        shutil.move(scored / "ads", scored / "taken")
        assert_mistake(cohortium(*words), "settle the export")
        settle = ("audience", "settle", "node", made, "--outcome", "delivered")
        assert cohortium(*settle).out == "recorded: default 1\n"
        assert_mistake(cohortium(*settle), "no interrupted export")
        delta = cohortium("audience", "export", "node", made, "--out", "next", "--json").json
        assert (delta["kind"], delta["sequence"], delta["added"]) == ("delta", 2, 0)
