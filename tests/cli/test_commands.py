"""Every command from the outside: what is printed, what is written, which exit code, and what a mistake leaves."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cohortium.cli.main import main
from cohortium.client.lookalike import open_records
from cohortium.client.node import NodeIdentity, create_node
from cohortium.client.onboarding import load_customer_table
from cohortium.client.scoring import SEGMENTS_SCHEMA
from cohortium.client.segmenting import score_bundle_file
from cohortium.governance.report import RunSummary, load_summary
from cohortium.study.bundle import load_bundle
from cohortium.study.charter import parse_charter
from cohortium.study.contract import load_contract
from cohortium.study.errors import DataError, Defect
from cohortium.study.plans import named_model

REGIONS = ("north", "south", "west")
LEAVES = [
    *("demo", "init", "simulate", "doctor", "data check", "data onboard", "data fetch", "data list"),
    *("ledger show", "ledger preview", "ledger verify", "privacy audit"),
]
HEADER = "customer_id,region,date,amount,shop"
CHANNEL = """
[[features]]
name = "shop"
table = "purchases"
kind = "category"
column = "shop"
categories = ["online", "store"]
protected = true
"""
CHARTER = """
schema = "cohortium.charter/1"
name = "three"
max_epsilon = {epsilon}
institutions = [{members}]
"""


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def call_main(*words: object) -> int:
    """Exit code of the command in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cohortium", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
    return int(left.value.code or 0)


@pytest.fixture
def cohortium(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Exit code and prints of the command in this process."""

    def run(*words: object) -> Outcome:
        capsys.readouterr()
        code = call_main(*words)
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return run


def purchases(customers: int = 900) -> list[list[str]]:
    """Lines of purchases, eight a customer, of three kinds of customers in three regions."""
    rng = np.random.default_rng(5)
    lines = []
    for number in range(customers):
        kind = int(rng.integers(3))
        for day in rng.integers((150, 60, 0)[kind], (181, 150, 60)[kind], 2 + 3 * kind):
            date = np.datetime64("2026-01-01") + int(day)
            amount = f"{(20, 80, 400)[kind] * rng.uniform(0.7, 1.3):.2f}"
            lines.append([f"c{number:04d}", REGIONS[number % 3], str(date), amount, ("online", "store")[number % 2]])
    return lines


def write_csv(path: Path, lines: list[list[str]]) -> None:
    path.write_text("\n".join([HEADER, *(",".join(line) for line in lines)]) + "\n", encoding="utf-8")


def change(path: Path, *edits: tuple[str, str]) -> None:
    """Replace texts that are there."""
    text = path.read_text(encoding="utf-8")
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def write_charter(path: Path, epsilon: float, members: tuple[str, ...] = REGIONS) -> None:
    named = ", ".join(f'{{ name = "{member}", region = "EU" }}' for member in members)
    path.write_text(CHARTER.format(epsilon=epsilon, members=named), encoding="utf-8")


def study(folder: Path) -> Path:
    """A starter plan and contract as `cohortium init` writes them, for three segments, with purchases."""
    assert call_main("init", folder) == 0
    change(folder / "plan.toml", ("k = [4, 8]", "k = 3"), ("2027-12-31", "2099-12-31"))
    change(folder / "contract.toml", ('amount = "amount"', 'amount = "amount"\nmax_amount = 100_000'))
    with (folder / "contract.toml").open("a", encoding="utf-8") as file:
        file.write(CHANNEL)
    write_csv(folder / "sales.csv", purchases())
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return study(tmp_path / "home")


def simulate_words(home: Path, **changes: object) -> list[object]:
    """The words of a `simulate` on the study folder; an option set to None is left out."""
    options = {"data": home / "sales.csv", "institutions": "region", "out": home / "out", **changes}
    words: list[object] = ["simulate", home / "plan.toml", "--quiet"]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", value]
    return words


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study folder with a finished run in `out`; read only."""
    home = study(tmp_path_factory.mktemp("finished") / "home")
    assert call_main(*simulate_words(home)) == 0
    return home


def assert_mistake(outcome: Outcome, *said: str) -> None:
    """Exit code 2, nothing on stdout, one line with place and fix on stderr, no row of the data."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert outcome.err.endswith("\n")
    head, fix, advice = outcome.err.partition(" — fix: ")
    assert fix
    assert advice.strip()
    assert head.count(": ") >= 2, "a place before the message"
    for text in said:
        assert text in outcome.err
    assert "Traceback" not in outcome.err
    assert "c00" not in outcome.err


class TestHelp:
    @pytest.mark.parametrize("command", LEAVES)
    def test_every_command_shows_an_example(self, cohortium: Callable[..., Outcome], command: str) -> None:
        outcome = cohortium(*command.split(), "--help")
        assert outcome.code == 0
        _, example, shown = outcome.out.partition("Example")
        assert example
        assert f"cohortium {command}" in shown

    @pytest.mark.parametrize("group", [[], ["data"], ["ledger"], ["privacy"]])
    def test_groups_list_every_command(self, cohortium: Callable[..., Outcome], group: list[str]) -> None:
        outcome = cohortium(*group, "--help")
        assert outcome.code == 0
        names = {leaf.split()[len(group)] for leaf in LEAVES if leaf.split()[: len(group)] == group}
        assert all(name in outcome.out for name in names)

    def test_version(self, cohortium: Callable[..., Outcome]) -> None:
        assert cohortium("--version") == Outcome(0, f"cohortium {version('cohortium')}\n", "")

    def test_unknown_command_is_a_mistake(self, cohortium: Callable[..., Outcome]) -> None:
        outcome = cohortium("simulat")
        assert outcome.code == 2
        assert "Traceback" not in outcome.err


class TestInit:
    def test_init_never_touches_what_is_there(self, cohortium: Callable[..., Outcome], home: Path) -> None:
        before = contents(home)
        assert_mistake(cohortium("init", home), "plan.toml", "exists already")
        assert contents(home) == before

    def test_init_writes_nothing_when_one_file_is_there(
        self, cohortium: Callable[..., Outcome], tmp_path: Path
    ) -> None:
        (tmp_path / "contract.toml").write_text("mine", encoding="utf-8")
        assert_mistake(cohortium("init", tmp_path), "contract.toml")
        assert contents(tmp_path) == {"contract.toml": b"mine"}

    @pytest.mark.parametrize("data", [None, "bank-world"])
    def test_init_names_every_step_to_a_campaign_with_the_files_it_wrote(
        self, cohortium: Callable[..., Outcome], tmp_path: Path, data: str | None
    ) -> None:
        folder = tmp_path / "new"
        outcome = cohortium("init", folder, "--lookalike", *(("--data", data) if data else ()))
        steps = [shlex.split(line) for line in outcome.out.splitlines() if "cohortium simulate" in line]
        plans = {words[words.index("simulate") + 1]: words for words in steps}
        assert set(plans) == {str(folder / f"{name}.toml") for name in ("plan", "encoder", "campaign")}
        encoder, campaign = plans[str(folder / "encoder.toml")], plans[str(folder / "campaign.toml")]
        trained = Path(encoder[encoder.index("--out") + 1].rstrip(",")) / "encoder.safetensors"
        assert named_model(folder / "campaign.toml") == trained
        assert "--seeds" in campaign
        for option in ("--state", "--data", *(() if data else ("--institutions",))):
            assert encoder[encoder.index(option) + 1] == campaign[campaign.index(option) + 1]

    def test_init_refuses_an_unknown_set(self, cohortium: Callable[..., Outcome], tmp_path: Path) -> None:
        outcome = cohortium("init", tmp_path / "new", "--data", "ta-fang")
        assert outcome.code == 2
        assert "ta-feng" in outcome.err
        assert contents(tmp_path) == {}


class TestSimulate:
    def test_a_run_leaves_everything_it_promises(self, finished: Path) -> None:
        out = finished / "out"
        bundle, summary = load_bundle(out / "bundle.json"), load_summary(out / "summary.json")
        assert RunSummary.model_validate_json((out / "summary.json").read_bytes()) == summary
        assert summary.bundle == bundle
        assert len(bundle.segments) == 3
        assert (out / "report.html").read_text(encoding="utf-8").lower().startswith("<!doctype html>")
        charter = parse_charter(json.loads((out / "charter.json").read_text(encoding="utf-8")))
        assert tuple(member.name for member in charter.institutions) == REGIONS
        assert json.loads((out / "run.json").read_text(encoding="utf-8"))["run"] == bundle.run

    def test_every_institution_scored_its_own_customers(self, finished: Path) -> None:
        bundle = load_bundle(finished / "out" / "bundle.json")
        names = {segment.id: segment.name for segment in bundle.segments}
        for region in REGIONS:
            table = pq.read_table(finished / "out" / "institutions" / region / "segments.parquet")
            rows = table.to_pydict()
            expected = {line[0] for line in purchases() if line[1] == region}
            assert len(rows["id"]) == len(expected)
            assert set(rows["id"]) == expected
            assert all(names[s] == n for s, n in zip(rows["segment"], rows["segment_name"], strict=True))
            assert {score for key in rows if key.endswith("_score") for score in rows[key]} <= {1, 2, 3, 4, 5}
            assert table.schema.metadata[b"schema"] == SEGMENTS_SCHEMA.encode()
            assert table.schema.metadata[b"bundle"] == bundle.digest.encode()

    def test_a_node_finds_the_segments_of_its_customers_from_the_bundle_alone(
        self, cohortium: Callable[..., Outcome], finished: Path, tmp_path: Path
    ) -> None:
        node, bundle, out = (
            finished / "out" / "institutions" / "north",
            finished / "out" / "bundle.json",
            "found.parquet",
        )
        outcome = cohortium("score", node, "--model", bundle, "--out", tmp_path / out)
        assert outcome.out == f"300 customers in segments: {tmp_path / out}\n"
        assert pq.read_table(tmp_path / out).equals(pq.read_table(node / "segments.parquet"), check_metadata=True)
        told = json.loads(bundle.read_text(encoding="utf-8"))
        for changes, said in (
            ({"name": "another"}, "never approved its plan"),
            ({"contract": "sha256:" + "0" * 64}, "another contract"),
        ):
            changed = tmp_path / "changed.json"
            changed.write_text(json.dumps({**told, "plan": {**told["plan"], **changes}}), encoding="utf-8")
            assert_mistake(cohortium("score", node, "--model", changed, "--out", tmp_path / "no"), said)
        with open_records(node) as records, pytest.raises(DataError, match="has expired on 2099-12-31"):
            score_bundle_file(records, bundle, tmp_path / "no", today=date(2100, 1, 1))
        assert not (tmp_path / "no").exists()

    def test_nothing_unfinished_is_left(self, finished: Path) -> None:
        left = [p.name for p in (finished / "out").rglob("*") if p.name.startswith(".") or "partial" in p.name]
        assert left == []

    def test_json_is_the_summary_and_progress_goes_to_stderr(
        self, cohortium: Callable[..., Outcome], home: Path
    ) -> None:
        words = [word for word in simulate_words(home) if word != "--quiet"]
        before = contents(home)
        outcome = cohortium(*words, "--json")
        assert outcome.code == 0
        assert {name: data for name, data in contents(home).items() if not name.startswith("out")} == before
        assert json.loads(outcome.out)["bundle"]["institutions"] == 3
        assert outcome.out.encode() == (home / "out" / "summary.json").read_bytes()
        assert "onboarding" in outcome.err
        assert "marginals 1: 3 institutions answered" in outcome.err

    def test_summary_in_words(self, cohortium: Callable[..., Outcome], finished: Path, tmp_path: Path) -> None:
        home = shutil.copytree(finished, tmp_path / "home")
        outcome = cohortium(*simulate_words(home), "--resume")
        assert outcome.code == 0
        assert outcome.err == ""
        assert "3 segments, learnt by 3 institutions" in outcome.out
        assert str(home / "out" / "report.html") in outcome.out

    def test_a_charter_is_kept(self, cohortium: Callable[..., Outcome], home: Path) -> None:
        write_charter(home / "charter.toml", 1.0, (*REGIONS, "absent"))
        assert cohortium(*simulate_words(home, charter=home / "charter.toml")).code == 0
        kept = json.loads((home / "out" / "charter.json").read_text(encoding="utf-8"))
        assert [member["name"] for member in kept["institutions"]] == [*REGIONS, "absent"]


def plan_edit(old: str, new: str) -> Callable[[Path], None]:
    return lambda home: change(home / "plan.toml", (old, new))


def contract_edit(old: str, new: str) -> Callable[[Path], None]:
    return lambda home: change(home / "contract.toml", (old, new))


def nothing(_home: Path) -> None:
    """The study folder is right; an option is wrong."""


def spoil(cell: int, text: str, share: float) -> Callable[[Path], None]:
    """Spoil a share of a column of the data."""

    def edit(home: Path) -> None:
        lines = purchases()
        for line in lines[: int(share * len(lines))]:
            line[cell] = text
        write_csv(home / "sales.csv", lines)

    return edit


def drop_data(home: Path) -> None:
    (home / "sales.csv").unlink()


def no_lines(home: Path) -> None:
    write_csv(home / "sales.csv", [])


def foreign_out(home: Path) -> None:
    (home / "out").mkdir()
    (home / "out" / "thesis.txt").write_text("mine", encoding="utf-8")


def empty_out(home: Path) -> None:
    (home / "out").mkdir()
    spoil(3, "nan", 0.1)(home)


MISTAKES = {
    "plan: unknown field": (plan_edit("epsilon = 1.0", "epsilom = 1.0"), {}, ["plan.toml", "epsilom"]),
    "plan: wrong type": (plan_edit("epsilon = 1.0", 'epsilon = "one"'), {}, ["plan.toml", "epsilon"]),
    "plan: shares": (plan_edit("clustering = 60", "clustering = 61"), {}, ["plan.toml", "shares", "101"]),
    "plan: cell": (plan_edit("min_cell = 100", "min_cell = 10"), {}, ["plan.toml", "min_cell"]),
    "plan: no TOML": (plan_edit("epsilon = 1.0", "epsilon = = 1.0"), {}, ["plan.toml"]),
    "plan: no contract": (plan_edit('contract = "contract.toml"', 'contract = "c.toml"'), {}, ["c.toml"]),
    "plan: purpose": (plan_edit("CustomerSegmentation", "Advertising"), {}, ["purpose", "CustomerSegmentation"]),
    "plan: no such feature": (plan_edit("k = 3", 'k = 3\nfeatures = ["age"]'), {}, ["features", "age"]),
    "plan: expired": (plan_edit("2099-12-31", "2020-01-31"), {}, ["expired"]),
    "plan: too few institutions": (plan_edit("min_institutions = 3", "min_institutions = 4"), {}, ["min_institutions"]),
    "plan: above the house limit": (plan_edit("epsilon = 1.0", "epsilon = 3.5"), {}, ["epsilon", "3.5"]),
    "contract: column not in the file": (contract_edit('"amount"', '"total"'), {}, ["purchases", "total"]),
    "contract: bounds": (contract_edit("low = 1\nhigh = 181", "low = 181\nhigh = 1"), {}, ["contract.toml", "recency"]),
    "contract: infinite bound": (contract_edit("high = 181", "high = inf"), {}, ["contract.toml", "recency", "high"]),
    "contract: unit": (contract_edit('"EUR"', '"Euro"'), {}, ["contract.toml", "currency", "EUR"]),
    "contract: money has its unit": (contract_edit("high = 20_000", 'high = 20_000\nunit = "USD"'), {}, ["monetary"]),
    "data: no file": (drop_data, {}, ["sales.csv"]),
    "data: no lines": (no_lines, {}, ["no lines"]),
    "data: no such set": (nothing, {"data": "ta-fang"}, ["--data", "ta-feng"]),
    "data: no such table": (nothing, {"data": "sale=x.csv"}, []),
    "data: too many bad cells": (spoil(3, "nan", 0.1), {}, ["amount"]),
    "data: too many bad days": (spoil(2, "2026-02-31", 0.1), {}, ["date"]),
    "data: too many bad cells, into an empty folder": (empty_out, {}, ["amount"]),
    "institutions: no such column": (nothing, {"institutions": "regoin"}, ["regoin"]),
    "institutions: nothing": (nothing, {"institutions": None}, ["--institutions"]),
    "institutions: none": (nothing, {"institutions": "0"}, ["--institutions"]),
    "engine": (nothing, {"engine": "spark"}, ["--engine", "in-process, ray"]),
    "lifetime below the plan": (nothing, {"lifetime_epsilon": 0.5}, ["lifetime"]),
    "lifetime out of range": (nothing, {"lifetime_epsilon": 60}, ["lifetime"]),
    "lifetime of nothing": (nothing, {"lifetime_epsilon": 0}, ["lifetime"]),
    "out is not empty": (foreign_out, {}, ["is not empty"]),
}


class TestMistakes:
    @pytest.mark.parametrize("name", MISTAKES)
    def test_one_line_with_place_and_fix_and_nothing_written(
        self, cohortium: Callable[..., Outcome], home: Path, name: str
    ) -> None:
        edit, options, said = MISTAKES[name]
        edit(home)
        before = contents(home.parent)
        assert_mistake(cohortium(*simulate_words(home, **options)), *said)
        assert contents(home.parent) == before

    def test_mended_command_runs_in_the_same_folder(self, cohortium: Callable[..., Outcome], home: Path) -> None:
        plan_edit("2099-12-31", "2020-01-31")(home)
        assert cohortium(*simulate_words(home)).code == 2
        plan_edit("2020-01-31", "2099-12-31")(home)
        assert cohortium(*simulate_words(home)).code == 0

    @pytest.mark.parametrize(
        ("epsilon", "members", "said"),
        [(0.5, REGIONS, ["epsilon", "0.5"]), (1.0, ("north", "south", "eats"), ["'west'", "eats"])],
    )
    def test_a_charter_refuses(
        self,
        cohortium: Callable[..., Outcome],
        home: Path,
        epsilon: float,
        members: tuple[str, ...],
        said: list[str],
    ) -> None:
        write_charter(home / "charter.toml", epsilon, members)
        before = contents(home.parent)
        assert_mistake(cohortium(*simulate_words(home, charter=home / "charter.toml")), *said)
        assert contents(home.parent) == before

    @pytest.mark.parametrize("option", ["out", "state"])
    def test_a_file_is_no_folder(self, cohortium: Callable[..., Outcome], home: Path, option: str) -> None:
        before = contents(home.parent)
        assert_mistake(cohortium(*simulate_words(home, **{option: home / "sales.csv"})), "sales.csv")
        assert contents(home.parent) == before

    def test_resume_without_a_run(self, cohortium: Callable[..., Outcome], home: Path) -> None:
        before = contents(home.parent)
        assert_mistake(cohortium(*simulate_words(home), "--resume"), "no run to resume")
        assert contents(home.parent) == before

    def test_a_run_is_not_overwritten(self, cohortium: Callable[..., Outcome], finished: Path) -> None:
        before = contents(finished)
        assert_mistake(cohortium(*simulate_words(finished)), "holds a run already", "--resume")
        assert contents(finished) == before

    @pytest.mark.parametrize(
        ("edit", "options", "said"),
        [
            (plan_edit("k = 3", "k = 4"), {}, "digest"),
            (contract_edit("high = 181", "high = 180"), {}, "digest"),
            (nothing, {"institutions": "3"}, "--institutions"),
            (nothing, {"data": "bank-world", "institutions": None}, "--data"),
        ],
        ids=["plan", "contract", "institutions", "data"],
    )
    def test_another_run_does_not_resume(
        self,
        cohortium: Callable[..., Outcome],
        finished: Path,
        tmp_path: Path,
        edit: Callable[[Path], None],
        options: dict[str, object],
        said: str,
    ) -> None:
        home = shutil.copytree(finished, tmp_path / "home")
        edit(home)
        before = contents(home)
        assert_mistake(cohortium(*simulate_words(home, **options), "--resume"), "run.json", said)
        assert contents(home) == before

    def test_a_spent_lifetime_budget_refuses_the_second_plan(
        self, cohortium: Callable[..., Outcome], home: Path
    ) -> None:
        words = simulate_words(home, state=home / "state", lifetime_epsilon=1.2)
        assert cohortium(*words).code == 0
        ledgers = {path: path.read_bytes() for path in (home / "state").rglob("node.sqlite*")}
        assert len(ledgers) == 3
        plan_edit('name = "first-segments"', 'name = "second-segments"')(home)
        second = simulate_words(home, state=home / "state", lifetime_epsilon=1.2, out=home / "second")
        assert_mistake(cohortium(*second), "lifetime budget", "north")
        assert {path: path.read_bytes() for path in (home / "state").rglob("node.sqlite*")} == ledgers
        assert not (home / "second").exists()

    def test_a_plan_is_paid_once(self, cohortium: Callable[..., Outcome], home: Path) -> None:
        words = simulate_words(home, state=home / "state")
        assert cohortium(*words).code == 0
        ledgers = {path: path.read_bytes() for path in (home / "state").rglob("node.sqlite*")}
        assert_mistake(cohortium(*simulate_words(home, state=home / "state", out=home / "second")), "budget")
        assert {path: path.read_bytes() for path in (home / "state").rglob("node.sqlite*")} == ledgers


class TestStrangeData:
    def test_bad_cells_below_the_share_are_counted(self, cohortium: Callable[..., Outcome], home: Path) -> None:
        lines = purchases()
        spoilt = {3: ["nan", "inf", "-inf", "1e9", "12 EUR"], 2: ["31.02.2026", "2026-13-01"], 4: ["telex", "fax"]}
        for cell, texts in spoilt.items():
            for position, text in enumerate(texts):
                lines[100 * cell + 7 * position][cell] = text
        write_csv(home / "sales.csv", lines)
        outcome = cohortium(*simulate_words(home), "--json")
        assert outcome.code == 0, outcome.err
        left_out = json.loads(outcome.out)["left_out"]
        assert sum(row["lines"] for row in left_out) == len(lines)
        assert sum(row["bad_cells"] for row in left_out) == 9
        assert sum(row["unused"] for row in left_out) == 7

    @pytest.mark.parametrize("customers", [1, 40])
    def test_few_and_identical_customers_are_suppressed(
        self, cohortium: Callable[..., Outcome], home: Path, customers: int
    ) -> None:
        plan_edit('trust = "distributed"', 'trust = "local"')(home)
        plan_edit("min_institutions = 3", "min_institutions = 1")(home)
        plan_edit("min_cell = 100", "min_cell = 1000")(home)
        rows = [[f"c{number:04d}", "north", "2026-03-01", "10.00", "store"] for number in range(customers)]
        write_csv(home / "sales.csv", rows)
        outcome = cohortium(*simulate_words(home))
        assert outcome.code == 0, outcome.err
        assert "suppressed" in outcome.out
        assert " 0 customers" not in outcome.out
        bundle = load_bundle(home / "out" / "bundle.json")
        assert bundle.segments
        assert all(segment.size is None and segment.means == () for segment in bundle.segments)
        scored = pq.read_table(home / "out" / "institutions" / "north" / "segments.parquet").to_pydict()
        assert set(scored["id"]) == {row[0] for row in rows}
        assert len(set(scored["segment"])) == 1


class TestTrust:
    def test_a_run_without_noise_never_prints_an_epsilon(self, cohortium: Callable[..., Outcome], home: Path) -> None:
        plan_edit('trust = "distributed"', 'trust = "unsafe-none"')(home)
        outcome = cohortium(*simulate_words(home))
        assert outcome.code == 0, outcome.err
        assert "NO PRIVACY" in outcome.out
        assert "epsilon" not in outcome.out

    def test_more_institutions_than_a_sum_is_safe_for(self, cohortium: Callable[..., Outcome], home: Path) -> None:
        outcome = cohortium(*simulate_words(home, institutions=5))
        assert outcome.code == 2
        assert "plan: min_institutions" in outcome.err
        assert "set min_institutions = 4 or more" in outcome.err


class TestExitCodes:
    @pytest.mark.parametrize(
        ("raised", "code", "said"),
        [
            (KeyboardInterrupt(), 130, "stopped"),
            (Defect("a sum is not a sum"), 70, "bug: a sum is not a sum"),
            (ValueError("customer c0815"), 70, "bug: internal error of type ValueError"),
        ],
    )
    def test_stopped_and_defect(
        self,
        cohortium: Callable[..., Outcome],
        home: Path,
        monkeypatch: pytest.MonkeyPatch,
        raised: BaseException,
        code: int,
        said: str,
    ) -> None:
        def broken(*_: object) -> None:
            raise raised

        monkeypatch.setattr("cohortium.cli.simulate.simulate", broken)
        outcome = cohortium(*simulate_words(home))
        assert outcome.code == code
        assert outcome.out == ""
        assert outcome.err.strip().startswith(said)
        assert outcome.err.strip().count("\n") == 0
        assert "c0815" not in outcome.err


class TestOtherCommands:
    def test_data_check(self, cohortium: Callable[..., Outcome], home: Path) -> None:
        before = contents(home)
        outcome = cohortium("data", "check", home / "contract.toml", home / "sales.csv", "--json")
        assert outcome.code in (0, 1)
        found = json.loads(outcome.out)
        assert found["ready"] is (outcome.code == 0)
        assert found["report"]["people"] == 900
        assert contents(home) == before

    def test_data_check_blocks(self, cohortium: Callable[..., Outcome], home: Path) -> None:
        spoil(3, "nan", 0.1)(home)
        outcome = cohortium("data", "check", home / "contract.toml", home / "sales.csv")
        assert outcome.code == 1
        assert "BLOCKS" in outcome.out
        assert "c00" not in outcome.out

    def test_data_onboard_replaces_an_extract_and_keeps_it_when_the_next_is_refused(
        self, cohortium: Callable[..., Outcome], home: Path
    ) -> None:
        contract = load_contract(home / "contract.toml")
        create_node(home / "node", NodeIdentity(institution="north", simulation=True), contract)
        outcome = cohortium("data", "onboard", home / "node", home / "sales.csv")
        assert outcome.code == 0
        assert f"900 customers stand in {home / 'node' / 'customers'}" in outcome.out
        write_csv(home / "sales.csv", purchases(600))
        assert cohortium("data", "onboard", home / "node", f"purchases={home / 'sales.csv'}").code == 0
        spoil(3, "nan", 0.1)(home)
        assert cohortium("data", "onboard", home / "node", home / "sales.csv").code == 2
        assert len(load_customer_table(home / "node" / "customers", contract).keys) == 600
        write_csv(home / "sales.csv", purchases(60))
        outcome = cohortium("data", "onboard", home / "node", home / "sales.csv", "--json")
        assert outcome.code == 1
        assert json.loads(outcome.out)["ready"] is False
        assert "holds no node" in cohortium("data", "onboard", home, home / "sales.csv").err

    def test_data_list(self, cohortium: Callable[..., Outcome]) -> None:
        outcome = cohortium("data", "list")
        assert outcome.code == 0
        assert "ta-feng" in outcome.out

    def test_doctor_json(self, cohortium: Callable[..., Outcome]) -> None:
        outcome = cohortium("doctor", "--json")
        findings = json.loads(outcome.out)
        assert findings
        assert outcome.code == int(any(not f["ok"] and not f["optional"] for f in findings))
