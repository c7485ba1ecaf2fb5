"""The reference pages are complete and true: every field, option, file, schema, exit code and report section."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.main import get_command

from cohortium.cli import data as data_command
from cohortium.cli import main as cli
from cohortium.client.audience import SCORES_COLUMNS, AudienceStore, ExportManifest
from cohortium.client.governing import Governance, OpenBankingLimits
from cohortium.client.node import NodeIdentity
from cohortium.client.onboarding.aggregate import LINE_PROBLEMS
from cohortium.client.onboarding.report import ColumnReport, FeatureReport, OnboardingReport, TableReport
from cohortium.governance.report import (
    LookalikeSummary,
    RunSummary,
    load_fairness_page,
    load_governance_summary,
    load_lookalike_summary,
    load_summary,
    render_fairness_report,
    render_report,
)
from cohortium.governance.report.html import FAIRNESS_SECTIONS, LOOKALIKE_SECTIONS, SECTIONS
from cohortium.governance.report.sections.lookalike import closing as campaign_words
from cohortium.governance.report.summary import CollusionRow, Comparison, InstitutionFacts, LeftOut, PersonAt
from cohortium.models.studies import phases
from cohortium.privacy.ledger import open_store
from cohortium.simulations.bank_world import load_bank_world_contract
from cohortium.simulations.datasets import names as data_sets
from cohortium.simulations.lookalike_study import SeedOrder, simulate_campaign, simulate_encoder
from cohortium.simulations.run_folder import SimulationOrder
from cohortium.simulations.sources import own_data
from cohortium.simulations.starter import demo_campaign_plan, demo_encoder_plan, demo_plan, write_starter
from cohortium.simulations.study import simulate
from cohortium.study.audit_plan import AuditPlan, AuditSettings, AuditShares
from cohortium.study.audit_tables import AuditTable, AuditTables
from cohortium.study.bundle import Bundle, RfmResult, Segment, load_bundle
from cohortium.study.charter import Charter, Institution, Quorum, Reviewer
from cohortium.study.contract import Contract, Derive, Feature, Table, Window
from cohortium.study.lookalike_plan import (
    CampaignShares,
    EncoderPlan,
    EncoderSettings,
    EncoderShares,
    LookalikePlan,
    LookalikeSettings,
)
from cohortium.study.model import AudienceShare, EncoderModel, FrameFact, LookalikeModel, ModelDocument
from cohortium.study.plan import Plan
from cohortium.study.plans import load_plan, parse_plan
from cohortium.study.reach import (
    CurvePoint,
    LevelTarget,
    Lock,
    RankerChoice,
    RankerQuality,
    ReachCurve,
    ReachLevel,
)
from cohortium.study.segment_plan import SegmentPlan, Segments, Shares

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
REFERENCE, FILES = "contract-and-plan.md", "output-files.md"

AGREED: dict[str, type[BaseModel]] = {
    "Contract": Contract,
    "Window": Window,
    "Table": Table,
    "Feature": Feature,
    "Plan fields": Plan,
    "Segment plans": SegmentPlan,
    "Segments": Segments,
    "Shares": Shares,
    "Encoder plans": EncoderPlan,
    "Encoder settings": EncoderSettings,
    "Encoder shares": EncoderShares,
    "Campaign plans": LookalikePlan,
    "Campaign settings": LookalikeSettings,
    "Campaign shares": CampaignShares,
    "Audit plans": AuditPlan,
    "Audit settings": AuditSettings,
    "Audit shares": AuditShares,
    "Audit tables": AuditTables,
    "Audit table": AuditTable,
    "Level": LevelTarget,
    "Lock": Lock,
    "Charter fields": Charter,
    "Institution": Institution,
    "Quorum": Quorum,
    "Reviewer": Reviewer,
    "Governance fields": Governance,
    "Open banking": OpenBankingLimits,
}
"""Heading in the reference, and the model whose fields its table lists."""

WRITTEN: dict[str, type[BaseModel]] = {
    "bundle.json": Bundle,
    "A segment in bundle.json": Segment,
    "RFM in bundle.json": RfmResult,
    "summary.json": RunSummary,
    "An institution in summary.json": InstitutionFacts,
    "A row of person_at": PersonAt,
    "A row of collusion": CollusionRow,
    "A row of left_out": LeftOut,
    "Comparison": Comparison,
    "node.json": NodeIdentity,
    "onboarding.json": OnboardingReport,
    "A table in onboarding.json": TableReport,
    "A column in onboarding.json": ColumnReport,
    "A feature in onboarding.json": FeatureReport,
    "Every released model": ModelDocument,
    "A frame of an encoder": FrameFact,
    "encoder.safetensors": EncoderModel,
    "lookalike.safetensors": LookalikeModel,
    "Choice of the ranker": RankerChoice,
    "Quality of the ranker": RankerQuality,
    "Curve": ReachCurve,
    "A point of the curve": CurvePoint,
    "A level of the curve": ReachLevel,
    "A row of the profile": AudienceShare,
    "manifest.json": ExportManifest,
    "lookalike.json": LookalikeSummary,
}
"""The same for files that a run writes."""


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next heading of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no heading '{heading}'"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of the first table in a text, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def default_of(field: FieldInfo) -> str:
    """A field's default as the reference writes it."""
    if field.is_required():
        return "required"
    value: Any = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, tuple) and value and isinstance(value[0], LevelTarget):
        return ", ".join(level.name for level in value)
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, float):
        return f"`{value:g}`".replace("e+0", "e").replace("e-0", "e-")
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def own_fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """A document's fields by their names on disk, without those that all documents of its family have."""
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    bases = [base for base in model.__mro__[1:] if base in (Plan, ModelDocument)]
    common = {field.alias or name for base in bases for name, field in base.model_fields.items()} - {"study"}
    return {name: field for name, field in fields.items() if name not in common}


@pytest.mark.parametrize("heading", AGREED)
def test_the_reference_lists_every_field_of_an_agreed_document_with_its_default(heading: str) -> None:
    listed = {cells[0].strip("`"): cells[2] for cells in rows(section(page(REFERENCE), heading))}
    assert listed == {name: default_of(field) for name, field in own_fields(AGREED[heading]).items()}


@pytest.mark.parametrize("heading", WRITTEN)
def test_every_field_of_a_written_document_is_explained(heading: str) -> None:
    listed = [cells[0].strip("`") for cells in rows(section(page(FILES), heading))]
    assert sorted(listed) == sorted(own_fields(WRITTEN[heading]))


def test_every_derived_feature_is_defined() -> None:
    listed = [cells[0].strip("`") for cells in rows(section(page(REFERENCE), "Derived features"))]
    assert sorted(listed) == sorted(get_args(Derive))


def commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """The root's own options and every command that does something."""
    if not isinstance(command, click.Group):
        yield name, command
        return
    if name == "cohortium":
        yield name, command
    for word, inner in command.commands.items():
        yield from commands(f"{name} {word}", inner)


COMMANDS = dict(commands("cohortium", get_command(cli.app)))


def option_default(parameter: click.Parameter) -> str:
    if parameter.required:
        return "required"
    if isinstance(parameter.default, bool):
        return "on" if parameter.default else "off"
    return "none" if parameter.default in (None, "") else f"`{parameter.default}`"


def option_name(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Argument):
        return f"`{parameter.metavar or str(parameter.name).upper()}`"
    return " / ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_reference_lists_every_option_of_a_command_with_its_default(name: str) -> None:
    listed = {cells[0]: cells[1] for cells in rows(section(page(REFERENCE), name))}
    assert listed == {option_name(p): option_default(p) for p in COMMANDS[name].params}


def test_the_reference_has_no_command_that_does_not_exist() -> None:
    headings = re.findall(r"^### (cohortium.*)$", page(REFERENCE), re.MULTILINE)
    assert sorted(headings) == sorted(COMMANDS)


def test_the_exit_codes_are_those_of_the_command() -> None:
    listed = [int(cells[0]) for cells in rows(section(page(FILES), "Exit codes"))]
    assert listed == sorted({0, data_command.NOT_READY, cli.MISTAKE, cli.DEFECT, cli.STOPPED})


def test_every_schema_that_the_code_names_is_listed() -> None:
    listed = {cells[0].strip("`") for cells in rows(section(page(FILES), "Schemas"))}
    rooms = ("study", "models", "privacy", "governance", "client", "server", "simulations", "cli")
    sources = (path.read_text(encoding="utf-8") for room in rooms for path in (ROOT / room).rglob("*.py"))
    named = {schema for text in sources for schema in re.findall(r'"(cohortium\.[a-z-]+/\d+)"', text)}
    assert listed == named


def made_up_purchases() -> pd.DataFrame:
    """Of 600 people who do not exist."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "customer_id": rng.integers(0, 600, 6_000).astype(str),
            "date": np.datetime64("2026-01-01") + rng.integers(0, 181, 6_000).astype("timedelta64[D]"),
            "amount": rng.lognormal(3, 1, 6_000),
        }
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three small institutions under the starter contract."""
    folder = tmp_path_factory.mktemp("docs")
    write_starter(folder)
    plan, contract = load_plan(folder / "plan.toml")
    data = own_data({"purchases": made_up_purchases()}, "3", contract)
    simulate(SimulationOrder(plan, contract, data, folder / "results"), lambda line: None)
    return folder / "results"


def test_every_file_that_a_run_leaves_is_explained_and_nothing_else(run: Path) -> None:
    left = {path.relative_to(run) for path in run.rglob("*") if path.is_file()}
    general = {re.sub(r"^institutions/part-\d/", "institutions/NAME/", path.as_posix()) for path in left}
    listed = {cells[0].strip("`") for cells in rows(section(page(FILES), "The folder of a run"))}
    assert listed == general


def test_the_columns_of_the_scored_customers_are_explained(run: Path) -> None:
    listed = [cells[0].strip("`") for cells in rows(section(page(FILES), "segments.parquet"))]
    assert listed == pq.read_schema(run / "institutions" / "part-1" / "segments.parquet").names


def test_the_tables_of_a_node_are_explained(run: Path) -> None:
    listed = {cells[0].strip("`") for cells in rows(section(page(FILES), "node.sqlite"))}
    assert listed == tables(run / "institutions" / "part-1" / "node.sqlite")


def tables(database: Path) -> set[str]:
    with closing(sqlite3.connect(database)) as connection:
        found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        return {name for (name,) in found}


def test_the_tables_of_audiences_are_explained(tmp_path: Path) -> None:
    listed = {cells[0].strip("`") for cells in rows(section(page(FILES), "audiences/"))}
    AudienceStore(open_store(tmp_path / "node.sqlite"), tmp_path / "audiences")
    assert listed == tables(tmp_path / "node.sqlite") - tables(ledger_alone(tmp_path))


def ledger_alone(folder: Path) -> Path:
    open_store(folder / "other.sqlite").dispose()
    return folder / "other.sqlite"


def test_the_columns_of_the_scores_file_are_explained() -> None:
    listed = [cells[0].strip("`") for cells in rows(section(page(FILES), "scores.parquet"))]
    assert listed == SCORES_COLUMNS.names


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Finished runs of an encoder, untrained, and of a campaign on it, at one small institution."""
    folder = tmp_path_factory.mktemp("lookalikes")
    write_starter(folder)
    _, contract = load_plan(folder / "plan.toml")
    data = own_data({"purchases": made_up_purchases()}, "1", contract)
    common = {
        "schema": "cohortium.plan/1",
        "purpose": "CustomerSegmentation",
        "lawful_basis": "consent",
        "regions": ["EU"],
        "contract": contract.digest,
        "expires": "2099-12-31",
        "trust": "local",
        "min_institutions": 1,
        "epsilon": 1.0,
        "delta": 1e-6,
    }
    shares = {"marginals": 5, "moments": 85, "training": 0, "centres": 10}
    plan = parse_plan({**common, "study": "encoder", "name": "encoder", "shares": shares})
    order = SimulationOrder(plan, contract, data, folder / "encoder", state=folder / "nodes")
    base = simulate_encoder(order, lambda line: None)
    settings = {"model": base.digest, "lookalike": {"seed": "valued"}}
    plan = parse_plan({**common, "study": "lookalike", "name": "campaign", **settings})
    listed = folder / "valued.csv"
    listed.write_text("\n".join(["id", *(str(number) for number in range(150))]), encoding="utf-8")
    order = SimulationOrder(plan, contract, data, folder / "campaign", state=folder / "nodes", base=base)
    simulate_campaign(order, SeedOrder(listed, "id"), lambda line: None)
    return folder / "encoder", folder / "campaign"


def test_every_further_file_that_an_encoder_or_a_campaign_leaves_is_explained(campaign: tuple[Path, Path]) -> None:
    left = {path.relative_to(run).as_posix() for run in campaign for path in run.rglob("*") if path.is_file()}
    nodes = campaign[0].parent / "nodes"
    folders = {"coordinator": "institutions/coordinator"}
    left |= {
        f"{folders.get(name, 'institutions/NAME')}/{path.relative_to(nodes / name).as_posix()}"
        for name, path in node_files(nodes)
    }
    left = {re.sub(r"\b[0-9a-f]{64}\b", "DIGEST", path) for path in left}
    known = {cells[0].strip("`") for cells in rows(section(page(FILES), "The folder of a run"))}
    listed = {cells[0].strip("`") for cells in rows(section(page(FILES), "What lookalikes add"))}
    assert left - known == listed


def node_files(nodes: Path) -> Iterator[tuple[str, Path]]:
    for node in nodes.iterdir():
        yield from ((node.name, path) for path in node.rglob("*") if path.is_file())


TITLES = dict.fromkeys(
    [title for _, title, _ in SECTIONS] + [title for _, _, title, _ in LOOKALIKE_SECTIONS] + ["Governance"]
)


@pytest.mark.parametrize("title", TITLES)
def test_the_reviewer_guide_explains_every_section_of_the_report(title: str) -> None:
    assert section(page("reviewer-guide.md"), title).strip()


def test_the_reviewer_guide_explains_every_phase() -> None:
    listed = [cells[0] for cells in rows(section(page("reviewer-guide.md"), "Releases"))]
    assert listed == [phase.name for phase in phases(demo_plan(load_bank_world_contract()))]


def test_the_reviewer_guide_explains_every_phase_of_an_encoder_and_a_campaign() -> None:
    contract = load_bank_world_contract()
    plans = (demo_encoder_plan(contract), demo_campaign_plan(contract, "sha256:" + "0" * 64))
    listed = [cells[0] for cells in rows(section(page("reviewer-guide.md"), "Everything that was released"))]
    assert listed == [phase.name for plan in plans for phase in phases(plan)]


def test_the_operator_guide_explains_every_way_in_which_a_line_is_not_used() -> None:
    listed = {(cells[0], cells[1]) for cells in rows(section(page("operator-guide.md"), "What makes a line unused"))}
    assert listed == {(problem.role, problem.kind) for problem in LINE_PROBLEMS}


def test_the_researcher_guide_names_every_public_data_set() -> None:
    listed = [cells[0].strip("`") for cells in rows(section(page("researcher-guide.md"), "Public data sets"))]
    assert listed == list(data_sets())


def test_the_researcher_guide_names_every_benchmark() -> None:
    listed = re.findall(r"TARGET=(\w+)` \|", section(page("researcher-guide.md"), "Benchmarks"))
    known = re.search(r"TARGET=([a-z_|]+)\"", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert known
    assert listed == known[1].split("|")


def terms() -> list[str]:
    return re.findall(r"^\*\*(.+?)\*\*", page("glossary.md"), re.MULTILINE)


def test_the_glossary_is_sorted_and_holds_every_word_of_the_report_and_every_derived_feature() -> None:
    listed = [term.lower() for term in terms()]
    assert listed == sorted(listed)
    report = render_report(load_summary(DOCS / "sample-report" / "summary.json"))
    explained = re.search(r'<section id="glossary".*?</section>', report, re.DOTALL)
    assert explained
    wanted = {term.lower() for term in re.findall(r"<dt[^>]*>(.*?)</dt>", explained[0])}
    wanted |= {term.lower() for term, _ in campaign_words._GLOSSARY}
    wanted |= {derive.replace("_", " ") for derive in get_args(Derive)}
    assert wanted <= set(listed)


def test_the_sample_report_is_of_this_version_and_drawn_from_its_summary() -> None:
    folder = DOCS / "sample-report"
    summary, shown = load_summary(folder / "summary.json"), (folder / "report.html").read_text(encoding="utf-8")
    assert summary.dataset.note.startswith("synthetic")
    assert load_bundle(folder / "bundle.json") == summary.bundle
    assert summary.bundle.digest in shown
    lookalike = load_lookalike_summary(folder / "lookalike.json")
    governance = load_governance_summary(folder / "governance.json")
    assert heads(shown) == heads(render_report(summary, lookalike, governance)), "write it anew: see docs/README.md"
    for audit in governance.audits:
        page_of = load_fairness_page((folder / audit.page).with_name("audit.json"))
        assert page_of.result.verdict == audit.verdict
        shown = (folder / audit.page).read_text(encoding="utf-8")
        assert heads(shown) == heads(render_fairness_report(page_of)), "write it anew: see docs/README.md"


def heads(report: str) -> list[str]:
    """Titles of sections, and heads of tables: what a reader would miss first."""
    return re.findall(r"<(?:h1|h2|caption|th)\b[^>]*>(.*?)</(?:h1|h2|caption|th)>", report, re.DOTALL)


@pytest.mark.parametrize(
    "missing",
    [
        "consent and rules** in `cohortium simulate`",
        "governance in reports",
        "review and signatures** before a model",
        "erasure",
        "container images",
        "a **second coordinator**",
    ],
)
def test_what_is_not_built_is_said_to_be_not_built(missing: str) -> None:
    assert missing in section(page("known-limitations.md"), "Not built").lower()


@pytest.mark.parametrize(("name", "asked"), [("rules.md", "asked at every export"), ("review.md", "every export asks")])
def test_the_guides_to_what_exports_ask_say_so_before_anything_else(name: str, asked: str) -> None:
    head = " ".join(page(name).split("\n## ")[0].lower().split())
    assert asked in head
    assert "audiences.md#what-lets-an-audience-go-out" in head
    assert "not yet" not in head
    assert section(page("audiences.md"), "What lets an audience go out").strip()


def test_the_reviewer_guide_lists_every_section_of_a_bias_audit() -> None:
    listed = [cells[0] for cells in rows(section(page("reviewer-guide.md"), "The page of a bias audit"))]
    assert listed == [title for _, _, title, _ in FAIRNESS_SECTIONS]
