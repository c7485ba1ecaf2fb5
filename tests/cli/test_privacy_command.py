"""`cohortium privacy audit` from the outside: what it prints and writes, its exit codes, and a broken build."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cohortium.cli import privacy as command
from cohortium.cli.main import main
from cohortium.privacy.audit import mechanism
from cohortium.privacy.audit.many_runs import ClaimFinding
from cohortium.privacy.audit.membership import MembershipFinding
from cohortium.privacy.audit.noise import NoiseFinding
from cohortium.privacy.discrete_gaussian import sample_discrete_gaussian
from cohortium.simulations import privacy_audit
from cohortium.simulations.privacy_audit import AuditReport
from cohortium.simulations.privacy_audit_page import render_audit

PAGE = Path(__file__).resolve().parents[2] / "docs" / "privacy-audit.md"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the command; its exit code."""

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["cohortium", "privacy", "audit", *map(str, words)])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run


@pytest.fixture(scope="module")
def report() -> AuditReport:
    """A small audit of the true build."""
    order = privacy_audit.AuditOrder(runs=200, epsilons=(4.0,))
    return privacy_audit.run_privacy_audit(order, lambda line: None)


def test_the_quick_audit_of_the_true_build_refutes_nothing(
    call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--quick", "--epsilon", 4, "--out", tmp_path / "audit") == 0
    out, progress = capsys.readouterr()
    found = AuditReport.model_validate_json((tmp_path / "audit" / "audit.json").read_bytes())
    assert found.flags == ()
    assert [claim.release for claim in found.claims] == [
        "histogram",
        "clustering",
        "head",
        "encoder",
        "histogram, shared noise",
    ]
    assert {(claim.plan_epsilon, claim.runs) for claim in found.claims} == {(4.0, 2_000)}
    assert all(finding.power_at_five_percent > 1 - 1e-9 for finding in found.noise)
    assert "no claim was refuted" in out
    assert out.count("measured at least") == 5
    assert "preparing" in progress


@pytest.mark.parametrize(
    ("words", "runs", "epsilons"),
    [
        ([], 20_000, (1.0, 2.0, 4.0)),
        (["--quick"], 2_000, (1.0, 2.0, 4.0)),
        (["--runs", 300, "--epsilon", 8, "--epsilon", 0.5], 300, (8.0, 0.5)),
    ],
)
def test_what_is_audited_follows_from_the_options(
    words: list[object],
    runs: int,
    epsilons: tuple[float, ...],
    call: Callable[..., int],
    report: AuditReport,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    orders = []

    def remembered(order: privacy_audit.AuditOrder, say: object) -> AuditReport:
        orders.append(order)
        return report

    monkeypatch.setattr(command, "run_privacy_audit", remembered)
    assert call(*words, "--out", tmp_path, "--json") == 0
    assert orders == [privacy_audit.AuditOrder(runs, epsilons)]
    assert AuditReport.model_validate_json(capsys.readouterr().out) == report


def test_a_build_of_half_the_noise_is_refuted_with_exit_code_1(
    call: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def halved(sigma: int, width: int, bits: Any) -> Any:
        return sample_discrete_gaussian(sigma // 2, width, bits)

    monkeypatch.setattr(mechanism, "sample_discrete_gaussian", halved)
    assert call("--runs", 600, "--epsilon", 4, "--out", tmp_path, "--quiet") == 1
    out, progress = capsys.readouterr()
    assert progress == ""
    flags = AuditReport.model_validate_json((tmp_path / "audit.json").read_bytes()).flags
    assert len(flags) == 5
    assert "REFUTED: histogram at epsilon 4: leaks more than it claims" in out
    assert (tmp_path / "audit.html").read_text(encoding="utf-8").count('<td class="t">REFUTED</td>') == 5


def test_a_wrong_sampler_is_refuted_by_the_noise_test(monkeypatch: pytest.MonkeyPatch) -> None:
    def coarse(sigma: int, width: int, bits: Any) -> Any:
        return sample_discrete_gaussian(sigma, width, bits) & ~np.int64(1)

    monkeypatch.setattr(privacy_audit, "sample_discrete_gaussian", coarse)
    order = privacy_audit.AuditOrder(runs=200, epsilons=(4.0,))
    found = privacy_audit.run_privacy_audit(order, lambda line: None)
    assert {finding.lattice_step for finding in found.noise} == {2}
    assert len(found.flags) == len(found.noise) > 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--runs", "199"], "runs must be from 200"),
        (["--quick", "--runs", "500"], "both a number of runs and --quick"),
        (["--epsilon", "0"], "must be from 0.1 to 16"),
        (["--epsilon", "17"], "must be from 0.1 to 16"),
        (["--epsilon", "nan"], "must be from 0.1 to 16"),
        (["--epsilon", "2", "--epsilon", "2"], "twice"),
    ],
)
def test_mistakes_exit_with_2_and_write_nothing(
    words: list[str], said: str, call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*words, "--out", tmp_path / "audit") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "audit").exists()


def test_an_audit_is_never_overwritten_and_a_file_is_no_folder(
    call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "audit.json").write_text("mine", encoding="utf-8")
    assert call("--out", tmp_path) == 2
    assert "holds an audit already" in capsys.readouterr().err
    assert (tmp_path / "audit.json").read_text(encoding="utf-8") == "mine"
    assert call("--out", tmp_path / "audit.json") == 2


class _Tags(HTMLParser):
    """Every tag and attribute of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_loads_nothing_runs_nothing_and_escapes_every_text(report: AuditReport) -> None:
    hostile = "<script>alert(1)</script>"
    claim = report.claims[0].model_copy(update={"release": hostile, "flagged": True})
    attack = report.membership[0].model_copy(update={"attack": hostile})
    page = render_audit(report.model_copy(update={"claims": (claim, *report.claims[1:]), "membership": (attack,)}))
    assert hostile not in page
    assert "&lt;script&gt;" in page
    found = _Tags()
    found.feed(page)
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "img", "link", "iframe", "object"})
    assert not [name for _, attrs in found.tags for name in attrs if name in ("src", "href") or name.startswith("on")]
    assert "http" not in page.replace("http-equiv", "")


def test_the_plot_shows_every_claim_where_the_axis_says(report: AuditReport) -> None:
    page = render_audit(report)
    svg = re.search(r"<svg.*?</svg>", page, re.DOTALL)
    assert svg
    assert svg[0].count('class="limit"') == svg[0].count("<circle") == len(report.claims)
    marks = {
        float(x) for x in re.findall(r'<line x1="([\d.]+)" x2="\1" y1="[\d.]+" y2="[\d.]+" class="limit">', svg[0])
    }
    assert len(marks) == 1, "all claim epsilon 4"
    ranges = re.findall(r'<line x1="([\d.]+)" x2="([\d.]+)" y1="[\d.]+" y2="[\d.]+" class="range">', svg[0])
    assert len(ranges) == len(report.claims)
    for claim, (low, high) in zip(report.claims, ranges, strict=True):
        assert claim.epsilon_lower is not None
        assert (float(low) < min(marks)) == (claim.epsilon_lower < claim.claimed_epsilon)
        assert float(low) < float(high)


def test_numbers_beyond_200_are_words_on_the_page(report: AuditReport) -> None:
    update = dict.fromkeys(("epsilon_lower", "epsilon_estimate", "epsilon_upper"))
    claim = report.claims[0].model_copy(update={**update, "flagged": True})
    assert "above 200" in render_audit(report.model_copy(update={"claims": (claim,)}))
    assert "above 200" in privacy_audit.claim_line(claim)


def test_membership_inference_is_called_sanity_on_the_page(report: AuditReport) -> None:
    assert "sanity, never proof" in render_audit(report)
    assert all(finding.auc_low < 0.55 for finding in report.membership)


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("audit.json", AuditReport),
        ("A claim in audit.json", ClaimFinding),
        ("Noise in audit.json", NoiseFinding),
        ("Membership in audit.json", MembershipFinding),
    ],
)
def test_every_field_of_the_report_is_explained(heading: str, model: Any) -> None:
    text = PAGE.read_text(encoding="utf-8")
    section = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section
    assert re.findall(r"^\| `(\w+)` \|", section[1], re.MULTILINE) == list(model.model_fields)


def test_the_written_report_reads_back_as_it_was(report: AuditReport) -> None:
    text = report.model_dump_json(indent=2)
    assert AuditReport.model_validate_json(text) == report
    assert json.loads(text)["format"] == "cohortium.privacy-audit/1"
