"""The page of a bias audit: verdict first, every number beside its limit, nothing below the minimum cell, escaped."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cohortium.governance.fairness import (
    CHOSEN,
    REST,
    THRESHOLDS,
    Audited,
    AuditTerms,
    FairnessResult,
    LookalikeTables,
    Metric,
    SegmentTables,
    audit_lookalike,
    audit_segments,
)
from cohortium.governance.fairness.result import overall
from cohortium.governance.report import (
    FAIRNESS_PAGE_SCHEMA,
    FairnessPage,
    MitigationFacts,
    PackFacts,
    PolicyFacts,
    ReviewFacts,
    load_fairness_page,
    render_fairness_report,
)
from cohortium.governance.report.charts.interval import IntervalRow, Mark, interval_chart, interval_scale
from cohortium.governance.report.html import FAIRNESS_SECTIONS
from cohortium.governance.report.policy_facts import clock_in_words
from cohortium.governance.report.sections.fairness.header import EXPORT_RULE
from cohortium.governance.report.sections.fairness.metrics import MOST_ROWS
from cohortium.governance.report.sections.fairness.words import decides, metric_words
from cohortium.governance.rules import Clock, Decision, Facts, Limit, Pack, evaluate, load_packs
from cohortium.models.group_table import GroupTable
from cohortium.study.errors import DataError

from .test_report import _Page as Page

_DAY = date(2026, 11, 23)
_AGES = (("18-34",), ("35-64",), ("65+",), ("unknown",))
_STD = 9.0
_SECRET = "cohort.without_channel_consent"
_AUDITED = Audited("sha256:" + "a" * 64, "sha256:" + "b" * 64, 0.5, 1e-6, _DAY, "balanced")


def _audience(rates: tuple[float, ...], people: tuple[float, ...], institution: str | None = None) -> LookalikeTables:
    sizes = np.array(people)
    chosen = sizes * rates
    counts = np.stack([chosen, sizes - chosen], axis=1) + 0.4
    audience = GroupTable(("age_group",), _AGES, (CHOSEN, REST), counts, _STD, institution=institution)
    seeds = GroupTable(("age_group",), _AGES, ("seed", "others"), counts * 0.5, _STD, institution=institution)
    return LookalikeTables(audience, seeds=seeds)


def _audit(*tables: LookalikeTables, audited: Audited = _AUDITED, **terms: Any) -> FairnessResult:
    return audit_lookalike(tables, audited, AuditTerms(**{"minimum_cell": 100.0, **terms}))


def _failing() -> FairnessResult:
    """65+ fares worse over all institutions and better at one: Simpson's paradox."""
    pooled = _audience((0.2, 0.2, 0.1, 0.2), (9_000.0, 20_000.0, 9_000.0, 30.0))
    north = _audience((0.2, 0.2, 0.35, 0.2), (4_123.0, 9_000.0, 3_000.0, 10.0), "North")
    return _audit(pooled, north)


def _page(result: FairnessResult | None = None, **changes: Any) -> FairnessPage:
    fields: dict[str, Any] = {
        "version": "0.1.0",
        "mode": "simulation",
        "of": "audience",
        "name": "Autumn campaign",
        "purpose": "TargetedAdvertising",
        "institutions": 3,
        "trust": "distributed",
        "result": _failing() if result is None else result,
    }
    return FairnessPage(**{**fields, **changes})


def _text(page: FairnessPage) -> str:
    return re.sub(r"\s+", " ", Page(render_fairness_report(page)).text)


def _passing() -> FairnessResult:
    return _audit(_audience((0.2, 0.2, 0.2, 0.2), (9_000.0, 20_000.0, 9_000.0, 30.0)))


def _without_noise() -> FairnessResult:
    audited = Audited("sha256:" + "a" * 64, "sha256:" + "b" * 64, None, 1e-6, _DAY)
    table = GroupTable(("age_group",), _AGES[:2], (CHOSEN, REST), np.array([[400.0, 1_600.0], [390.0, 1_610.0]]), 0.0)
    return _audit(LookalikeTables(table), audited=audited)


def _segments(groups: int = 3, segments: int = 3) -> FairnessResult:
    counts = np.random.default_rng(4).uniform(60, 4_000, (groups, segments))
    labels = tuple((f"group {one}",) for one in range(groups))
    table = GroupTable(("region",), labels, tuple(f"segment {one + 1}" for one in range(segments)), counts, _STD)
    audited = Audited("sha256:" + "a" * 64, "sha256:" + "b" * 64, 0.5, 1e-6, _DAY)
    return audit_segments([SegmentTables(table, ("segment 1",))], audited, AuditTerms(minimum_cell=100.0))


@pytest.fixture(scope="module")
def packs() -> tuple[Pack, ...]:
    return load_packs(["house", "eu"])


@pytest.fixture(scope="module")
def decision(packs: tuple[Pack, ...]) -> Decision:
    stated = {"audit.verdict": "fail", "use.activation": "electronic_marketing", _SECRET: 31_337}
    facts = Facts.of(stated, "test")
    agreed = (Limit(stage="activation", fact="privacy.epsilon", op="<=", number=1.5, rules=("XX-ELSEWHERE",)),)
    return evaluate(packs, facts, "activation", _DAY, agreed=agreed, salt="0" * 64)


_VARIANTS: dict[str, Callable[[], FairnessPage]] = {
    "fail with institutions": _page,
    "pass": lambda: _page(_passing()),
    "named reference": lambda: _page(
        _audit(
            _audience((0.2, 0.16, 0.2, 0.2), (9_000.0, 20_000.0, 9_000.0, 400.0)),
            references={("age_group",): ("18-34",)},
        )
    ),
    "everybody too few": lambda: _page(_audit(_audience((0.2,) * 4, (90.0, 80.0, 70.0, 30.0)))),
    "without noise": lambda: _page(_without_noise(), trust="unsafe-none"),
    "segments": lambda: _page(_segments(), of="segments"),
    "many rows": lambda: _page(_segments(9, 12), of="segments", mode="deployment", trust="local"),
    "many institutions": lambda: _page(
        _audit(*(_audience((0.2,) * 4, (4_000.0,) * 4, name) for name in (None, *(f"Bank {n}" for n in range(36)))))
    ),
    "a column": lambda: _page(_passing(), of="column"),
    "with mitigations": lambda: _page(mitigations=(MitigationFacts(what="drop basket size"),)),
}


@pytest.fixture(params=_VARIANTS, name="variant", scope="module")
def _variant(request: pytest.FixtureRequest) -> tuple[FairnessPage, str, Page]:
    page = _VARIANTS[request.param]()
    html = render_fairness_report(page)
    return page, html, Page(html)


# --- every page -------------------------------------------------------------------------------------------------------


def test_page_is_well_formed_complete_and_self_contained(variant: tuple[FairnessPage, str, Page]) -> None:
    page, html, read = variant
    wanted = {anchor for anchor, *_ in FAIRNESS_SECTIONS} - (set() if page.mitigations else {"mitigations"})
    assert len(read.ids) == len(set(read.ids))
    assert {one for one in read.ids if not one.endswith("-title")} == wanted
    assert {reference.lstrip("#") for reference in read.references} <= set(read.ids)
    assert read.tags.count("h1") == 1
    assert all("caption" in table and "th" in table for table in read.tables)
    for forbidden in ("http:", "https:", "src=", "@import", "url(", "//", "<script", "javascript:"):
        assert forbidden not in html
    assert not {"script", "link", "img", "iframe", "object", "embed", "use", "image"} & set(read.tags)
    assert not [name for name in read.attributes if name.startswith("on")]
    assert "default-src 'none'" in html.replace("&#x27;", "'")
    assert {"nan", "inf", "None"}.isdisjoint(re.findall(r"[A-Za-z]+", read.text))


def test_charts_have_text_and_tables_have_scopes(variant: tuple[FairnessPage, str, Page]) -> None:
    page, html, _ = variant
    drawings = re.findall(r"<svg[^>]*>", html)
    assert len(drawings) >= len({(metric.name, metric.attributes) for metric in page.result.metrics})
    assert all(re.search(r'role="img" aria-label="[^"]+"', drawing) for drawing in drawings)
    assert len(re.findall(r"<th ", html)) == len(re.findall(r'<th scope="(?:col|row)"', html))


def test_every_number_has_a_row_and_a_spoken_mark(variant: tuple[FairnessPage, str, Page]) -> None:
    page, html, _ = variant
    drawn = sum(drawing.count("<g>") for drawing in re.findall(r"<svg.*?</svg>", html))
    rows = sum(table.count("<tr>") - 1 for table in re.findall(r'<table class="data audit">.*?</table>', html))
    assert drawn == rows == len(page.result.metrics)
    assert all(drawing.count("<g>") <= MOST_ROWS for drawing in re.findall(r"<svg.*?</svg>", html))


def test_institutions_stay_in_one_drawing_with_the_row_of_all() -> None:
    names = (None, *(f"Bank {n}" for n in range(12)))
    html = render_fairness_report(_page(_audit(*(_audience((0.2,) * 4, (4_000.0,) * 4, name) for name in names))))
    drawings = re.findall(r'<svg[^>]*aria-label="Impact ratio.*?</svg>', html)
    assert [drawing.count("<g>") for drawing in drawings] == [26, 26]
    assert all(
        drawing[drawing.index("<g>") :].index('class="row"') < drawing.index("row inner") for drawing in drawings
    )


def test_people_are_bands_and_what_is_below_the_minimum_cell_is_the_word(
    variant: tuple[FairnessPage, str, Page],
) -> None:
    page, html, read = variant
    shown = set(re.findall(r"\d[\d,]*(?:\.\d+)?", read.text))
    for metric in page.result.metrics:
        if metric.people is not None and metric.people % 100:
            assert not {f"{metric.people:,.1f}", f"{metric.people:,.0f}", f"{metric.people:.1f}"} & shown
    tables = "".join(re.findall(r'<table class="data audit">.*?</table>', html))
    hidden = sum(metric.people is None for metric in page.result.metrics)
    assert len(re.findall(r'<td class="n">suppressed</td>', tables)) == 3 * hidden


def test_the_same_result_gives_the_same_page(variant: tuple[FairnessPage, str, Page]) -> None:
    page, html, _ = variant
    again = FairnessPage.model_validate_json(page.to_bytes())
    assert again == page
    assert render_fairness_report(again) == html


def test_who_decides_is_who_the_result_counts(variant: tuple[FairnessPage, str, Page]) -> None:
    result = variant[0].result
    deciding = [metric for metric in result.metrics if decides(metric)]
    for kept in range(len(result.metrics)):
        one = result.metrics[kept]
        alone = overall([one]) if one.verdict else None
        assert decides(one) == (alone is not None and not _listed_only(one))
    assert overall(deciding) == result.verdict


def _listed_only(metric: Metric) -> bool:
    """A verdict that changes nothing beside a pass."""
    passing = metric.model_copy(update={"verdict": "pass", "why": None})
    return overall([metric, passing]) == "pass" != metric.verdict


# --- the verdict ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "of", "said"),
    [
        (_passing, "audience", "Pass. All 6 comparisons that decide keep to their limits"),
        (
            _failing,
            "audience",
            "Fail. 3 of 12 comparisons are shown to break the limit: this audience may not be exported on this audit.",
        ),
        (
            lambda: _audit(_audience((0.2, 0.16, 0.2, 0.2), (9_000.0, 9_000.0, 9_000.0, 30.0))),
            "column",
            "That is not a pass: an audience that rests on this outcome may not be exported on this audit.",
        ),
        (
            lambda: _audit(_audience((0.2, 0.2, 0.2, 0.2), (9_000.0, 20_000.0, 300.0, 30.0))),
            "audience",
            "Insufficient. 2 of 6 comparisons are of too few people to be judged. That is not a pass",
        ),
    ],
    ids=["pass", "fail", "inconclusive", "insufficient"],
)
def test_the_verdict_comes_first_in_one_sentence(result: Callable[[], FairnessResult], of: str, said: str) -> None:
    page = _page(result(), of=of)
    html, text = render_fairness_report(page), _text(page)
    assert said in text.replace(" . ", ". ").replace(".  ", ". ")
    assert html.index(f'class="judgement {page.result.verdict}"') < html.index("<nav")
    assert (EXPORT_RULE in text.split("What is judged")[0]) == (page.result.verdict != "pass")


def test_an_audit_that_judges_nothing_is_no_pass() -> None:
    whole = _passing()
    nothing = FairnessResult.model_validate(
        whole.to_json() | {"metrics": [], "thresholds": [], "verdict": "insufficient"}
    )
    text = _text(_page(nothing))
    assert "Insufficient. Nothing could be judged. That is not a pass" in text
    assert "No metric could be judged" in text


def test_the_export_rule_is_a_rule_of_the_house(packs: tuple[Pack, ...]) -> None:
    (rule,) = (rule for pack in packs for rule in pack.rules if rule.id == EXPORT_RULE)
    assert (rule.stage, rule.confidence) == ("activation", "house")
    assert rule.must == {"in": ["audit.verdict", ["pass", "waived_four_eyes"]]}


def test_what_decided_it_is_named_with_its_figures() -> None:
    text = _text(_page())
    assert "Impact ratio of 65+ by age group : 0.50" in text.split("What is judged")[0]
    assert "limit at least 0.8" in text.split("What is judged")[0]


def test_what_the_reader_must_know_is_there() -> None:
    text = _text(_page())
    for words in (
        "level 'balanced'",
        "Judged on 2026-11-23 (UTC)",
        "at most epsilon 0.500 at delta 1e-6 (about 1 in 1,000,000) for a person at one institution",
        "shared: each institution adds a part of it",
        "Smallest cell shown 100 people",
        "four-fifths rule, 29 CFR 1607.4(D)",
        "Not legal advice",
        "5 standard deviations of the noise",
        "Holm",
        "Simpson",
        "there is no table of responses",
        "65+ age group 35-64 North 0.50 worse 1.75 better",
        "sha256:" + "a" * 64,
        _page().result.digest,
    ):
        assert words in text, words


def test_too_small_and_not_made_have_their_own_section_with_reasons() -> None:
    page = _page()
    section = _text(page).split("What could not be judged, and why")[1].split("Directions that differ by")[0]
    assert page.result.too_small
    assert section.count("fewer people expected than the minimum cell") == len(page.result.too_small)
    for missing in page.result.not_judged:
        assert metric_words(missing.metric).title in section
        assert missing.why in section
    assert "no: unknown" in section
    assert " yes " not in section


def test_directions_that_nobody_can_see_are_not_said_to_be_none() -> None:
    alone, several = (
        _text(_page(_passing())),
        _text(_page(_audit(_audience((0.2,) * 4, (9_000.0,) * 4), _audience((0.2,) * 4, (4_000.0,) * 4, "North")))),
    )
    assert "No institution released tables of its own" in alone
    assert "No reversal is shown" in several


def test_no_privacy_is_shouted() -> None:
    text = _text(_page(_without_noise(), trust="unsafe-none"))
    assert "NO PRIVACY." in text
    assert "no bound: there is no noise" in text
    assert "NO PRIVACY." not in _text(_page())


@pytest.mark.parametrize("limit", [0.8, 0.123])
def test_no_end_of_an_interval_is_rounded_across_the_limit(limit: float) -> None:
    result = _failing().to_json()
    (at,) = [n for n, each in enumerate(result["thresholds"]) if each["name"] == "impact-ratio"]
    result["thresholds"][at]["limit"] = limit
    for metric in result["metrics"]:
        if metric["threshold"] == "impact-ratio":
            metric |= {"verdict": "inconclusive", "why": None, "people": 5_000.0}
            metric |= {"estimate": limit + 0.1, "low": limit - 0.0004, "high": limit + 0.2}
    result["verdict"] = "inconclusive"
    result["metrics"] = [metric for metric in result["metrics"] if metric["threshold"] == "impact-ratio"]
    result["thresholds"] = [result["thresholds"][at]]
    result["reversals"] = []
    html = render_fairness_report(_page(FairnessResult.model_validate(result)))
    lows = re.findall(r'<td class="n">(\d\.\d+) to ', html)
    assert len(lows) == 8
    assert all(float(low) < limit for low in lows)


# --- rules and review -------------------------------------------------------------------------------------------------


def test_articles_are_quoted_with_marks_and_values_stay_at_home(packs: tuple[Pack, ...], decision: Decision) -> None:
    page = _page(policies=(PolicyFacts.of(decision, packs, "North"),))
    text = _text(page)
    assert not decision.admitted
    assert 31_337 in [seen.value for finding in decision.findings for seen in finding.seen]
    assert "Activation at North: declined" in text
    assert decision.id in text
    for finding in decision.findings:
        for words in (finding.article, finding.plain, finding.confidence, finding.rule):
            assert re.sub(r"\s+", " ", words) in text, words
    marks = {finding.confidence for finding in decision.findings}
    assert any(mark.endswith("unverified") for mark in marks)
    assert "31,337" not in text + render_fairness_report(page)
    assert "31337" not in text + page.to_bytes().decode()
    assert "privacy.epsilon at most 1.5 limit of another institution of the federation XX-ELSEWHERE" in text
    assert "Mark C recalled, unverified" in text
    assert "Mark U uncertain, unverified" in text


def test_limits_name_the_article_of_every_rule_that_sets_them(packs: tuple[Pack, ...]) -> None:
    decided = evaluate(packs, Facts.of({}, "test"), "admission", _DAY, salt="0" * 64)
    told = PolicyFacts.of(decided, packs)
    known = {rule.id: rule for pack in packs for rule in pack.rules}
    assert decided.limits
    assert [(each.fact, each.op, each.number) for each in told.limits] == [
        (each.fact, each.op, each.number) for each in decided.limits
    ]
    for limit in told.limits:
        assert [(one.article, one.confidence) for one in limit.rules] == [
            (known[one.rule].article, known[one.rule].mark) for one in limit.rules
        ]
    assert [(duty.rule, len(duty.clocks)) for duty in told.duties] == [
        (duty.rule, len(duty.clocks)) for duty in decided.duties
    ]


def test_rules_in_force_are_counted_by_mark(packs: tuple[Pack, ...]) -> None:
    for pack in packs:
        facts = PackFacts.of(pack, _DAY)
        in_force = [rule for rule in pack.rules if rule.idle_on(_DAY) is None]
        assert (facts.name, facts.digest) == (pack.name, pack.digest)
        assert {each.confidence: each.rules for each in facts.in_force} == {
            mark: sum(rule.confidence == mark for rule in in_force) for mark in {rule.confidence for rule in in_force}
        }
    assert any(rule.idle_on(_DAY) for pack in packs for rule in pack.rules)


@pytest.mark.parametrize(
    ("clock", "words"),
    [
        (
            Clock(since="rights_request", amount=1, unit="months", extendable=2),
            "within 1 month of: rights request, extendable by 2 (law)",
        ),
        (
            Clock(since="opt_out", amount=15, unit="business_days", act="stop"),
            "stop: within 15 business days of: opt out (law)",
        ),
        (
            Clock(since="withdrawal", before="next_round", set_by="house"),
            "before the next round, counted from: withdrawal (our own limit)",
        ),
        (Clock(since="offer", before="price", set_by="guidance"), "before the price, counted from: offer (guidance)"),
    ],
)
def test_clocks_are_told_in_words(clock: Clock, words: str) -> None:
    assert clock_in_words(clock) == words


def test_reviewers_and_mitigations_are_drawn_when_they_are_given() -> None:
    case = ReviewFacts(
        case="autumn-1", kind="audience_export", state="waiting", approved_by=("privacy",),
        waiting_for=("risk or compliance",), conditions=("by e-mail only",), tasks=("fold the groups",),
    )  # fmt: skip
    own = MitigationFacts(
        what="thresholds by group", condition="the rules allow it", ratio_before=0.54, ratio_after=0.8
    )
    text = _text(_page(reviews=(case,), mitigations=(own,)))
    assert "autumn-1 audience export waiting privacy risk or compliance not approved by e-mail only task: fold" in text
    assert "thresholds by group 0.54 0.80 not known not known the rules allow it" in text
    bare = _text(_page())
    assert "No case of review was handed to this page" in bare
    assert "No decision of the rules was handed to this page" in bare
    assert "What can be asked for" not in bare


# --- what does not hold together --------------------------------------------------------------------------------------


def test_a_page_is_read_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "fairness-page.json"
    path.write_bytes(_page().to_bytes())
    assert load_fairness_page(path) == _page()
    assert json.loads(path.read_bytes())["schema"] == FAIRNESS_PAGE_SCHEMA
    path.write_text(path.read_text(encoding="utf-8").replace("fairness-page/1", "fairness-page/2"), encoding="utf-8")
    with pytest.raises(DataError, match="is not a fairness page of this version — fix: make it again"):
        load_fairness_page(path)
    with pytest.raises(DataError, match="cannot be read"):
        load_fairness_page(tmp_path / "none.json")


def _shown_below_the_cell() -> FairnessPage:
    result = _failing()
    first = result.metrics[0].model_copy(update={"people": 99.0})
    return _page(result.model_copy(update={"metrics": (first, *result.metrics[1:])}))


def _remade(**changes: float | None) -> FairnessPage:
    """The page of one described number."""
    (first, *_) = _segments().metrics
    one = first.model_copy(update={"why": None, **changes})
    result = _segments().model_copy(update={"metrics": (one,), "thresholds": (), "verdict": "insufficient"})
    return _page(FairnessResult.model_validate(result.to_json()), of="segments")


_NUMBER = st.none() | st.floats(-1e15, 1e15)


@settings(max_examples=60, deadline=None)
@given(st.none() | st.floats(100, 1e15), st.floats(0, 1e15), _NUMBER, _NUMBER, _NUMBER)
def test_any_number_is_drawn(
    people: float | None, std: float, estimate: float | None, low: float | None, high: float | None
) -> None:
    ends = sorted(end for end in (low, high) if end is not None)
    both = {"low": ends[0], "high": ends[1]} if len(ends) == 2 else {"low": low, "high": high}
    html = render_fairness_report(_remade(people=people, people_std=std, estimate=estimate, **both))
    (drawing,) = re.findall(r"<svg.*?</svg>", html)
    places = [float(one) for one in re.findall(r' (?:x|x1|x2|cx|width)="([-\d.]+)"', drawing)]
    assert all(0 <= place <= 680 for place in places)
    assert not re.search(r"\b(?:nan|inf|None)\b", drawing)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: _page(of="segments"), "is not about a segments"),
        (lambda: _page(_segments(), of="audience"), "is not about a audience"),
        (lambda: _page(trust="unsafe-none"), "exactly where there is no noise"),
        (lambda: _page(_without_noise()), "exactly where there is no noise"),
        (lambda: _page(_without_noise(), trust="unsafe-none", mode="deployment"), "possible only in a simulation"),
        (_shown_below_the_cell, "fewer people than the minimum cell"),
        (lambda: _remade(estimate=1e16, high=1e17), "numbers that no audit has"),
        (lambda: _remade(people_std=1e200), "numbers that no audit has"),
        (lambda: _page(institutions=0), "greater than or equal to 1"),
        (lambda: _page(more=1), "Extra inputs"),
    ],
    ids=[
        "of",
        "subject",
        "trust",
        "noise",
        "deployment",
        "cell",
        "estimate",
        "noise of people",
        "institutions",
        "extra",
    ],
)
def test_what_does_not_hold_together_is_refused(make: Callable[[], FairnessPage], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        make()


_HOSTILE = st.one_of(
    st.sampled_from(
        [
            "<script>alert(1)</script>",
            '"><img src=x onerror=alert(1)>',
            "</title></style></svg>&amp;<b>",
            "a\u202eb\x00c",
        ]
    ),
    st.text(min_size=1, max_size=40).filter(lambda text: bool(text.strip())),
)


@settings(max_examples=10, deadline=None)
@given(st.lists(_HOSTILE, min_size=7, max_size=7, unique=True))
def test_every_text_is_escaped(texts: list[str]) -> None:
    assert _shape(_named(texts)) == _shape(_named([f"name {n}" for n in range(7)]))


def _named(texts: list[str]) -> FairnessPage:
    result = _passing().to_json()
    for metric in result["metrics"]:
        metric["attributes"] = [texts[0]]
        metric["group"] = ["unknown"] if metric["group"] == ["unknown"] else metric["group"] and [texts[1]]
        metric["why"] = metric["why"] and texts[2]
    result["thresholds"][0]["source"] = texts[3]
    quoted = ReviewFacts(case=texts[4], kind="waiver", state="waiting", conditions=(texts[5],))
    return _page(FairnessResult.model_validate(result), name=texts[6], reviews=(quoted,))


def _shape(page: FairnessPage) -> tuple[list[str], list[str]]:
    read = Page(render_fairness_report(page))
    assert not re.search(r"[\x00\x1b\u202e]", read.text)
    return [name for name in read.tags if name not in ("line", "polygon", "g", "svg")], sorted(set(read.attributes))


# --- the drawing ------------------------------------------------------------------------------------------------------


def _row(mark: Mark, estimate: float | None, low: float | None, high: float | None) -> IntervalRow:
    return IntervalRow("65+", mark, "words", "spoken", estimate, low, high)


def _numbers(svg: str, element: str, attribute: str) -> list[float]:
    return [float(found) for found in re.findall(rf'<{element}[^>]* {attribute}="([-\d.]+)"', svg)]


def test_dots_and_lines_lie_where_their_numbers_are() -> None:
    rows = [_row("pass", 0.9, 0.85, 0.95), _row("inconclusive", 0.8, 0.7, 0.9)]
    scale = interval_scale(rows, 0.8, "at least", 1.0)
    svg = interval_chart("ratio", rows, scale)
    axis = scale.axis
    assert _numbers(svg, "circle", "cx") == pytest.approx([axis.at(0.9), axis.at(0.8)], abs=0.01)
    (limit,) = re.findall(r'<line x1="([\d.]+)"[^>]*class="limit thin"', svg)
    assert float(limit) == pytest.approx(axis.at(0.8), abs=0.01)
    ranges = re.findall(r'<line x1="([\d.]+)" x2="([\d.]+)"[^>]*class="range \w+"', svg)
    assert [(float(one), float(two)) for one, two in ranges] == [
        pytest.approx((axis.at(0.85), axis.at(0.95)), abs=0.01),
        pytest.approx((axis.at(0.7), axis.at(0.9)), abs=0.01),
    ]
    (even,) = re.findall(r'<line x1="([\d.]+)"[^>]*class="chance"', svg)
    assert float(even) == pytest.approx(axis.at(1.0), abs=0.01)


@pytest.mark.parametrize(("side", "ends"), [("at least", ("low", "limit")), ("at most", ("limit", "high"))])
def test_the_shaded_side_is_the_one_that_fails(side: Any, ends: tuple[str, str]) -> None:
    rows = [_row("pass", 0.2, 0.1, 0.4)]
    scale = interval_scale(rows, 0.3, side, None)
    svg = interval_chart("share", rows, scale)
    places = {"low": scale.axis.low, "high": scale.axis.high, "limit": 0.3}
    left, right = (scale.axis.at(places[end]) for end in ends)
    (x,), (width,) = _numbers(svg, "rect", "x"), _numbers(svg, "rect", "width")
    assert (x, x + width) == pytest.approx((left, right), abs=0.02)


@pytest.mark.parametrize(
    ("mark", "shape"),
    [
        ("pass", "circle"),
        ("fail", "polygon"),
        ("inconclusive", "circle"),
        ("insufficient", "line"),
        ("reference", "rect"),
        ("described", "circle"),
    ],
)
def test_verdicts_differ_in_shape(mark: Mark, shape: str) -> None:
    rows = [_row(mark, 0.5, 0.4, 0.6)]
    svg = interval_chart("ratio", rows, interval_scale(rows, 0.8, "at least", None))
    assert re.search(rf'<{shape}[^>]*class="verdict {mark}"', svg)


def test_what_has_no_end_goes_on_and_what_is_suppressed_is_not_drawn() -> None:
    rows = [_row("insufficient", 40.0, 0.2, None), _row("pass", 1.0, 0.9, 1.1), _row("suppressed", 0.3, 0.2, 0.4)]
    rows.append(_row("pass", 1.0, 0.9, 9.0))
    scale = interval_scale(rows, 0.8, "at least", 1.0)
    svg = interval_chart("ratio", rows, scale)
    assert scale.axis.high < 3
    assert svg.count('class="tip"') == 2
    assert svg.count('class="verdict') == 2
    assert svg.count('class="range') == 3


def test_every_metric_of_the_thresholds_has_words() -> None:
    for result in (_failing(), _segments()):
        for name in {metric.name for metric in result.metrics} | {each.metric for each in result.not_judged}:
            assert metric_words(name).meaning != "See the audit's documentation."
    assert metric_words("new-metric").title == "New metric"
    assert {"impact-ratio", "variation"} <= {each.name for each in THRESHOLDS}


def test_an_interval_goes_on_below_the_drawing_too() -> None:
    rows = [_row("inconclusive", 0.02, -9.0, 0.1)]
    scale = interval_scale(rows, 0.0, "at least", 0.0)
    svg = interval_chart("uplift", rows, scale)
    assert -0.3 < scale.axis.low < -0.02
    (tip,) = re.findall(r'points="[^"]* ([\d.]+),[^"]* [^"]*" class="tip"', svg)
    assert float(tip) < scale.axis.at(scale.axis.low)
