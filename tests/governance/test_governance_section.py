"""The report's section about governance: who decided what by which articles, and no number about customers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cohortium.governance.report import (
    GOVERNANCE_SUMMARY_SCHEMA,
    AuditFacts,
    DecisionFacts,
    EvidenceFacts,
    GovernanceSummary,
    GovernedInstitution,
    LogFacts,
    PackFacts,
    ReviewFacts,
    RunSummary,
    WithdrawalFacts,
    load_governance_summary,
    render_report,
)
from cohortium.governance.report.html import SECTIONS
from cohortium.governance.review import Case, Standing
from cohortium.governance.rules import Decision, Facts, evaluate, load_packs
from cohortium.study.errors import DataError

from .conftest import Scenario
from .test_fairness_report import _page as fairness_page
from .test_report import _Page as Page

_DAY = date(2026, 11, 23)
_LEFT_OUT = 31_337
_PACKS = load_packs(["house", "eu", "us-ca"])


@cache
def _decided(stage: Any) -> Decision:
    """A refusal that read how many customers objected; duties come with it."""
    return evaluate(_PACKS, Facts.of({"cohort.objectors": _LEFT_OUT}, "test"), stage, _DAY, salt="0" * 64)


@cache
def _run() -> RunSummary:
    return Scenario(institutions=("North", "South"), declined=(), sizes=(4467.8, 1733.1), k=2).build()


def _north() -> GovernedInstitution:
    return GovernedInstitution(
        institution="North",
        packs=tuple(PackFacts.of(pack, _DAY) for pack in _PACKS),
        decisions=tuple(DecisionFacts.of("Autumn segments", _decided(stage)) for stage in ("admission", "activation")),
        log=LogFacts(entries=41, checkpoint=40, root="5f" * 32, cosigned=1, needed=2),
        reviews=(
            ReviewFacts(
                case="autumn-1",
                kind="audience_export",
                state="approved",
                approved_by=("privacy", "risk or compliance"),
                until=date(2027, 1, 31),
                conditions=("by e-mail only",),
                tasks=("fold the age groups",),
            ),
        ),
    )


def _south() -> GovernedInstitution:
    return GovernedInstitution(
        institution="South", log=LogFacts(entries=3, checkpoint=0, root=None, cosigned=0, needed=0)
    )


def _summary(**changes: Any) -> GovernanceSummary:
    fields: dict[str, Any] = {
        "mode": "simulation",
        "institutions": (_north(), _south()),
        "audits": (AuditFacts.of(fairness_page(), "fairness-balanced.html"),),
        "evidence": (
            EvidenceFacts(
                file="evidence.zip", sha256="ab" * 32, command="cohortium evidence verify evidence.zip --charter c.toml"
            ),
        ),
        "withdrawals": (
            WithdrawalFacts(
                institution="North",
                what="consent withdrawn after the question 'cells'",
                first_without="lloyd, step 2",
                changed=("the snapshot's root", "the next audience"),
            ),
        ),
    }
    return GovernanceSummary(**{**fields, **changes})


def _html(governance: GovernanceSummary) -> str:
    whole = render_report(_run(), governance=governance)
    (found,) = re.findall(r'<section id="governance".*?</section>', whole, re.DOTALL)
    return str(found)


def _text(governance: GovernanceSummary) -> str:
    return re.sub(r"\s+", " ", Page(_html(governance)).text)


_VARIANTS: dict[str, Callable[[], GovernanceSummary]] = {
    "everything": _summary,
    "nothing happened": lambda: _summary(
        institutions=(GovernedInstitution(institution="North"),), audits=(), evidence=(), withdrawals=()
    ),
    "deployment": lambda: _summary(mode="deployment", withdrawals=()),
}


@pytest.mark.parametrize("variant", _VARIANTS)
def test_the_page_stays_well_formed_and_self_contained(variant: str) -> None:
    governance = _VARIANTS[variant]()
    html = render_report(_run(), governance=governance)
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    outside = {one for one in page.references if not one.startswith("#") and one not in page.ids}
    assert outside == {audit.page for audit in governance.audits}
    assert {one.removeprefix("#") for one in page.references} - outside <= set(page.ids)
    assert all("caption" in table and "th" in table for table in page.tables)
    for forbidden in ("http:", "https:", "src=", "@import", "url(", "//", "<script", "javascript:"):
        assert forbidden not in html
    assert not [name for name in page.attributes if name.startswith("on")]
    assert {"nan", "inf", "None"}.isdisjoint(re.findall(r"[A-Za-z]+", page.text))
    again = GovernanceSummary.model_validate_json(governance.to_bytes())
    assert again == governance
    assert render_report(_run(), governance=again) == html


def test_governance_stands_before_the_limits_and_in_the_navigation() -> None:
    html = render_report(_run(), governance=_summary())
    anchors = re.findall(r'<section id="([^"]+)"', html)
    listed = re.findall(r'<a href="#([^"]+)">', html[html.index("<nav") : html.index("</nav>")])
    expected = [anchor for anchor, *_ in SECTIONS]
    expected.insert(expected.index("limits"), "governance")
    assert anchors == listed == expected


def test_a_run_without_governance_draws_nothing_of_it() -> None:
    html = render_report(_run())
    assert render_report(_run(), None, None) == html
    assert '"governance"' not in html
    assert "#governance" not in html
    assert [anchor for anchor, *_ in SECTIONS] == re.findall(r'<section id="([^"]+)"', html)
    assert "without a section about governance" in html


def test_limits_follow_from_what_governance_did() -> None:
    governed, bare = (Page(render_report(_run(), governance=one)).text for one in (_summary(), _summary(audits=())))
    assert "without a section about governance" not in governed
    assert "no rule was evaluated there" in governed
    assert "beyond what the bias audits under Governance show" in governed
    assert "no fairness audit ran" not in governed
    assert "no fairness audit ran" in bare
    assert "beyond what the bias audits" not in bare
    everywhere = render_report(_run(), governance=_summary(institutions=(_north(),)))
    assert "no rule was evaluated there" not in everywhere


def test_packs_decisions_and_duties_are_quoted() -> None:
    text, decision = _text(_summary()), _decided("admission")
    for pack in _PACKS:
        counts = {each.confidence: each.rules for each in PackFacts.of(pack, _DAY).in_force}
        figures = " ".join(f"{counts.get(mark, 0)}" for mark in ("A", "B", "C", "U", "house"))
        assert f"North {pack.name} {pack.digest[:19]}\N{HORIZONTAL ELLIPSIS} {figures}" in text
    assert "No rule is in force at: South." in text
    assert not decision.admitted
    assert f"North Autumn segments admission declined 2026-11-23 {decision.id[:19]}\N{HORIZONTAL ELLIPSIS}" in text
    duties = {duty.rule: duty for one in (decision, _decided("activation")) for duty in one.duties}
    assert any(duty.clocks for duty in duties.values())
    assert {duty.certain for duty in duties.values()} == {True, False}
    for duty in duties.values():
        for words in (duty.article, duty.obligation, duty.deadline, duty.confidence, duty.rule):
            assert re.sub(r"\s+", " ", words) in text, words
        assert text.count(f" {duty.rule} ") == 1
        assert (f"{duty.obligation} kept as owed: not enough is known to tell" in text) == (not duty.certain)
    assert "(law)" in text


def test_a_duty_of_two_institutions_stands_once_with_both() -> None:
    south = _south().model_copy(update={"packs": _north().packs, "decisions": _north().decisions})
    alone, both = _text(_summary()), _text(_summary(institutions=(_north(), south)))
    duty = _decided("admission").duties[0]
    assert both.count(f" {duty.rule} ") == 1
    assert both.count(f"{duty.confidence} North, South") >= 1
    assert "North, South" not in alone


def test_logs_say_what_is_covered_and_what_the_quorum_lacks() -> None:
    text = _text(_summary())
    assert f"North 41 40 {'5f' * 8}\N{HORIZONTAL ELLIPSIS} 1 institution, 2 needed quorum lacks 1" in text
    assert "South 3 0 none 0 institutions, 0 needed no quorum is asked for" in text
    north = _north().model_copy(update={"log": LogFacts(entries=4, checkpoint=4, root="0" * 64, cosigned=2, needed=2)})
    assert "2 institutions, 2 needed quorum reached" in _text(_summary(institutions=(north,), withdrawals=()))


def test_review_audits_evidence_and_withdrawals_are_drawn() -> None:
    text = _text(_summary())
    for words in (
        "North autumn-1 audience export approved privacy, risk or compliance nobody 2027-01-31 by e-mail only",
        "by e-mail only task: fold the age groups",
        "Autumn campaign, level 'balanced' fail 2026-11-23 0.500 fairness-balanced.html",
        f"File evidence.zip SHA-256 {'ab' * 32} Verify cohortium evidence verify evidence.zip --charter c.toml",
        "North consent withdrawn after the question 'cells' lloyd, step 2 the snapshot's root the next audience",
        "Not legal advice.",
    ):
        assert words in text, words
    assert '<a href="fairness-balanced.html">fairness-balanced.html</a>' in _html(_summary())
    none = _text(_VARIANTS["nothing happened"]())
    for words in (
        "No decision was recorded.",
        "No audit log was read.",
        "No case of review was opened.",
        "No bias audit was made",
        "No evidence pack was built.",
    ):
        assert words in none, words
        assert words not in text, words
    assert "No rule is in force at: North." in none
    assert "Withdrawals" not in none


def test_what_rules_found_and_whom_they_left_out_stays_at_the_institution() -> None:
    (finding,) = (each for each in _decided("admission").findings if _LEFT_OUT in [one.value for one in each.seen])
    governance = _summary()
    for told in (governance.to_bytes().decode(), render_report(_run(), governance=governance)):
        assert str(_LEFT_OUT) not in told
        assert f"{_LEFT_OUT:,}" not in told
        assert finding.rule not in told
        assert finding.change not in told
        assert _decided("admission").facts not in told
        assert _decided("admission").salt not in told


def _case() -> Case:
    digest = "sha256:" + "1" * 64
    return Case.model_validate(
        {
            "name": "autumn-1", "federation": "f", "institution": "North", "kind": "audience_export", "about": "a",
            "purpose": "p", "owner": "p-1", "builders": ["p-2"], "risk": {"tier": "low", "reasons": []},
            "opened_at": "2026-11-23T00:00:00Z", "links": {},
            "subject": {"card": digest, "audit": digest, "dpia": digest, "decision": digest},
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("standing", "approved_by"),
    [
        (Standing("waiting", (), waiting_for=("privacy", "risk or compliance")), ()),
        (Standing("waiting", (), waiting_for=("risk or compliance",), approvers=("p-7",)), ("privacy",)),
        (Standing("approved", (), approvers=("p-7", "p-9"), until=_DAY), ("privacy", "risk or compliance")),
        (Standing("rejected", ("p-7 (privacy) rejected it",)), ()),
    ],
    ids=["nobody", "one", "both", "rejected"],
)
def test_reviewers_are_functions_and_never_people(standing: Standing, approved_by: tuple[str, ...]) -> None:
    facts = ReviewFacts.of(_case(), standing)
    assert (facts.case, facts.kind, facts.state) == ("autumn-1", "audience_export", standing.state)
    assert (facts.approved_by, facts.waiting_for, facts.until) == (approved_by, standing.waiting_for, standing.until)
    assert "p-" not in facts.model_dump_json()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: _summary(institutions=()), "at least 1 item"),
        (lambda: _summary(institutions=(_north(), _north())), "'North' repeats"),
        (lambda: _summary(mode="deployment"), "only a simulation tells of single withdrawals"),
        (lambda: _summary(institutions=(_south(),)), "'North' is not one of the institutions"),
        (lambda: _summary(customers=5), "Extra inputs"),
        (lambda: LogFacts(entries=3, checkpoint=4, root="0" * 64, cosigned=2, needed=2), "at most the entries"),
        (lambda: LogFacts(entries=3, checkpoint=3, root=None, cosigned=0, needed=2), "a checkpoint has a root"),
        (lambda: LogFacts(entries=3, checkpoint=0, root=None, cosigned=1, needed=2), "nobody cosigns without"),
        (lambda: AuditFacts.of(fairness_page(), "javascript:alert(1)//.html"), "match pattern"),
        (lambda: AuditFacts.of(fairness_page(), "../other/fairness.html"), "match pattern"),
        (lambda: AuditFacts.of(fairness_page(), "/fairness.html"), "match pattern"),
        (lambda: AuditFacts.of(fairness_page(), "fairness.zip"), "match pattern"),
        (lambda: AuditFacts.of(fairness_page(), "a\n.html"), "match pattern"),
        (lambda: EvidenceFacts(file="https://x.example/e.zip", sha256="0" * 64, command="c"), "match pattern"),
    ],
)
def test_what_does_not_hold_together_is_refused(make: Callable[[], object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        make()


def test_a_summary_is_read_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "governance-summary.json"
    path.write_bytes(_summary().to_bytes())
    assert load_governance_summary(path) == _summary()
    assert json.loads(path.read_bytes())["schema"] == GOVERNANCE_SUMMARY_SCHEMA
    path.write_text(path.read_text(encoding="utf-8").replace("summary/1", "summary/2"), encoding="utf-8")
    with pytest.raises(DataError, match="is not a governance summary of this version — fix: make it again"):
        load_governance_summary(path)


_HOSTILE = st.one_of(
    st.sampled_from(
        ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</title></style>&amp;", "a\u202eb\x00c"]
    ),
    st.text(min_size=1, max_size=40).filter(lambda text: bool(text.strip())),
)


@settings(max_examples=15, deadline=None)
@given(st.lists(_HOSTILE, min_size=6, max_size=6, unique=True))
def test_every_text_is_escaped(texts: list[str]) -> None:
    tame, wild = (Page(_html(_named(names))) for names in ([f"name {n}" for n in range(6)], texts))
    assert wild.tags == tame.tags
    assert wild.attributes == tame.attributes
    assert not re.search(r"[\x00\x1b\u202e]", wild.text)


def _named(texts: list[str]) -> GovernanceSummary:
    north = _north().model_copy(update={"institution": texts[0]})
    case = north.reviews[0].model_copy(update={"case": texts[1], "conditions": (texts[2],)})
    decision = north.decisions[0].model_copy(update={"plan": texts[3]})
    told = WithdrawalFacts(institution=texts[0], what=texts[4], first_without=texts[5], changed=(texts[1],))
    north = north.model_copy(update={"reviews": (case,), "decisions": (decision,)})
    return _summary(institutions=(north, _south().model_copy(update={"institution": "other"})), withdrawals=(told,))
