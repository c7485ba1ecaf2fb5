"""The report of a lookalike campaign: complete, well formed, in bands, and honest about noise."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.optimize import brentq
from scipy.stats import norm

from cohortium.cli.simulate import print_campaign
from cohortium.governance.report import (
    ExportBand,
    LookalikeSummary,
    RunSummary,
    campaign_costs,
    load_lookalike_summary,
    lookalike_section,
    render_lookalike_report,
    render_report,
)
from cohortium.governance.report.bands import BAND_LIMITS, measured_band, measured_limits
from cohortium.governance.report.charts.axis import log_axis_over
from cohortium.governance.report.charts.reach import reach_chart
from cohortium.governance.report.html import LOOKALIKE_SECTIONS, SECTIONS
from cohortium.privacy.accounting import MU2_UNIT, Spend, budget_for
from cohortium.study.errors import DataError
from cohortium.study.reach import CurvePoint, Measured, ReachCurve, ReachLevel

from .campaign import Campaign
from .conftest import Scenario
from .test_report import _Page as Page

_VARIANTS: dict[str, Callable[[Campaign], Campaign]] = {
    "typical": lambda c: c,
    "many bins": lambda c: replace(c, bins=25),
    "refitted": lambda c: replace(c, before=(("narrow", 1_500.0), ("balanced", 2_090.0))),
    "noise hides the quality": lambda c: replace(c, seeds=30, noise=20.0),
    "no better than chance": lambda c: replace(c, seeds=420, apart=0.0, noise=20.0),
    "nobody large enough": lambda c: replace(c, eligible=90, chosen=None),
    "nobody at all": lambda c: replace(c, eligible=0, seeds=0, chosen=None),
    "large cells": lambda c: replace(c, min_cell=3_000, chosen=None),
    "not described": lambda c: replace(c, profile=0),
    "one ranker": lambda c: replace(c, contest=0),
    "contest hidden": lambda c: replace(c, margin=None),
    "default kept": lambda c: replace(c, margin=-0.0021),
    "declined": lambda c: replace(c, declined=True, truth=False),
    "single institution": lambda c: replace(c, names=("Only",), trust="local", encoder_trust="local"),
    "no noise": lambda c: replace(c, noise=0.0, trust="unsafe-none", encoder_trust="unsafe-none"),
}


@cache
def _segments() -> RunSummary:
    return Scenario(institutions=("A", "B"), declined=(), sizes=(4467.8, 1733.1), k=2).build()


def page_of(campaign: Campaign) -> Page:
    return Page(render_lookalike_report(campaign.build()))


def remade(summary: LookalikeSummary, *changes: tuple[tuple[str | int, ...], Any]) -> LookalikeSummary:
    """The same summary, validated again, with values put at places of its JSON; models are named anew by digest."""
    tree = summary.to_json()
    for (*path, last), value in changes:
        at: Any = tree
        for step in path:
            at = at[step]
        at[last] = value
    return LookalikeSummary.model_validate(tree)


def written(found: Measured, scale: float = 1) -> str:
    """A value with as many decimals as two digits of its interval's half need."""
    half = scale * max(found.high - found.value, found.value - found.low)
    return f"{scale * found.value:.{max(0, 1 - math.floor(math.log10(half)))}f}"


@pytest.fixture(params=_VARIANTS, name="variant")
def _variant(request: pytest.FixtureRequest) -> LookalikeSummary:
    return _VARIANTS[request.param](Campaign()).build()


# --- every page -------------------------------------------------------------------------------------------------------


def test_page_is_well_formed_complete_and_self_contained(variant: LookalikeSummary) -> None:
    html = render_lookalike_report(variant)
    page = Page(html)
    wanted = {anchor for anchor, *_ in LOOKALIKE_SECTIONS}
    if variant.campaign.plan.trust == "unsafe-none":
        wanted -= {"institutions", "privacy", "releases"}
    assert len(page.ids) == len(set(page.ids))
    assert wanted <= set(page.ids)
    assert {reference.lstrip("#") for reference in page.references} <= set(page.ids)
    assert page.tags.count("h1") == 1
    assert all("caption" in table and "th" in table for table in page.tables)
    for forbidden in ("http:", "https:", "src=", "@import", "url(", "//", "<script", "javascript:"):
        assert forbidden not in html
    assert not {"script", "link", "img", "iframe", "object", "embed", "use", "image"} & set(page.tags)
    assert not [name for name in page.attributes if name.startswith("on")]
    assert html.count("<svg") == html.count('role="img"')
    assert all(re.search(r'aria-label="[^"]+"', svg) for svg in re.findall(r"<svg[^>]*>", html))
    assert "nan" not in re.findall(r"[a-z]+", html)
    assert "inf" not in re.findall(r"[a-z]+", html)


def test_numbers_of_people_are_bands(variant: LookalikeSummary) -> None:
    curve, campaign = variant.campaign.curve, variant.campaign
    counts = [campaign.seeds, campaign.customers, variant.encoder.customers]
    for found in (curve.eligible, *(point.people for point in curve.points)):
        counts += [found.value, found.low, found.high] if found else []
    text = re.sub(r"sha256:[0-9a-f]{64}", "", Page(render_lookalike_report(variant)).text)
    shown = set(re.findall(r"\d[\d,]*(?:\.\d+)?", text))
    for count in (count for count in counts if count is not None and count > 150):
        small = count < 2_100  # an index or a year may be the same whole number
        whole = () if small or not round(count) % 100 else (f"{count:,.0f}", f"{count:.0f}")
        assert not shown & {f"{count:,.1f}", f"{count:.1f}", f"{count:.2f}", *whole}


def test_suppressed_and_hidden_are_words_never_numbers(variant: LookalikeSummary) -> None:
    text = Page(render_lookalike_report(variant)).text
    assert not re.search(r"\b0 (people|customers|others)", text)
    levels = variant.campaign.curve.levels
    hidden = [level.name for level in levels if level.point is None]
    assert ("suppressed" in text.split("Limits")[1]) or not hidden
    for name in hidden:
        assert re.search(rf"\b{name}\b(?: \(chosen\))?[^a-z]+[^%]*%\s+suppressed", text), name


def test_the_section_stands_in_the_segments_report_and_changes_nothing_else(variant: LookalikeSummary) -> None:
    summary = _segments()
    whole, section = render_report(summary, variant), str(lookalike_section(variant))
    page = Page(whole)
    assert len(page.ids) == len(set(page.ids))
    assert {reference.lstrip("#") for reference in page.references} <= set(page.ids)
    assert whole.replace(section, "").replace('<a href="#lookalike">Lookalike</a>', "") == render_report(summary)
    order = [anchor for anchor in page.ids if anchor in {"k", "lookalike", "privacy"}]
    assert order == ["k", "lookalike", "privacy"]
    assert "lookalike" not in {anchor for anchor, *_ in SECTIONS}


# --- what the reader must know ----------------------------------------------------------------------------------------


def test_what_the_reader_must_know_is_there() -> None:
    summary = replace(Campaign(), declined=True).build()
    text, campaign = Page(render_lookalike_report(summary)).text, summary.campaign
    levels = {level.name: level.point for level in campaign.curve.levels}
    point, auc = levels["balanced"], campaign.quality.auc
    assert point is not None
    assert point.lift is not None
    assert auc is not None
    for words in (
        "8 institutions looked for people like the seed 'fund clients', 500\N{EN DASH}1,000 customers, which 5 of them",
        f"Among 20,000\N{EN DASH}50,000 others, the audience 'balanced' reaches {measured_band(point.people)} people.",
        f"{point.lift.value:.2f} times as common there as among all (95% interval {point.lift.low:.2f} to",
        "at most epsilon 1.000 (delta 1e-6) per person and institution; together with the encoder",
        f"in {100 * auc.value:.1f}% of cases",
        "measured on the very seeds that the ranker was learnt on",
        "ahead of the one on the encoder's summary of the features (the embedding) by 1.21 points of AUC (noise ±0.43)",
        "the better of the two with probability 97.0%",
        "Harbour Mutual",
        "9 institutions were asked, 8 accepted the campaign, 8 answered to the end",
        "pays for 5 to 7 more campaigns like this one",
        "8 institutions (all)",
        "3,000\N{EN DASH}4,000",
        "Un-noised, possible only in simulation.",
        "this report shows no fairness audit",
        "lookalike of this audience",
        "one step of the encoder's training",
        campaign.digest,
        campaign.plan.digest,
        summary.encoder.digest,
        summary.contract.digest,
        "cohortium.lookalike-summary/1",
        "0.847",
    ):
        assert words in text, words
    for found in (*campaign.quality.recall, *campaign.quality.lift, *campaign.quality.deciles):
        assert found is not None
        assert written(found, 100 if found in campaign.quality.recall else 1) in text, found


def test_every_level_has_its_row() -> None:
    summary = replace(Campaign(), bins=12, before=(("balanced", 2_090.0),)).build()
    rows = re.findall(r"<tr><th scope=\"row\".*?</tr>", render_lookalike_report(summary))
    by_name = {re.sub(r"<[^>]*>", " ", row).split()[0]: re.sub(r"<[^>]*>", " ", row) for row in rows}
    for level in summary.campaign.curve.levels:
        row = by_name[level.name]
        if level.point is None:
            assert row.count("suppressed") >= 6
            continue
        assert level.point.recall is not None
        assert level.point.relevance is not None
        assert measured_band(level.point.people) in row
        assert f"{100 * level.point.share:.1f}%" in row
        assert f"{written(level.point.recall, 100)}%" in row
        assert f"{written(level.point.relevance, 100)}%" in row
        assert ("(chosen)" in row) == (level.name == "balanced")
        assert ("0.9\N{EN DASH}1.1" in row) == (level.name == "balanced")


def test_a_suppressed_level_has_its_reason_in_the_report_and_on_the_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    summary = replace(Campaign(), bins=25).build()
    rows = re.findall(r"<tr><th scope=\"row\".*?</tr>", render_lookalike_report(summary))
    print_campaign(summary, tmp_path, as_json=False)
    said = dict(re.findall(r"^  (\S+) +suppressed: (.*)$", capsys.readouterr().out, re.MULTILINE))
    assert set(said) == {level.name for level in summary.campaign.curve.levels if level.point is None}
    assert said
    for name, why in said.items():
        (row,) = (row for row in rows if f">{name}<" in row)
        assert f"<small>{why}</small>" in row


def test_categories_that_differ_are_indexed_the_rest_is_said_to_be_noise_or_suppressed() -> None:
    html = render_lookalike_report(Campaign().build())
    rows = {re.sub(r"<[^>]*>", " ", row) for row in re.findall(r"<tr><th scope=\"row\".*?</tr>", html)}
    listed = {
        row.split("  ")[0]: row for row in map(str.strip, rows) if row.startswith(("main product", "home region"))
    }
    chart = html[html.index('class="index"') :].split("</svg>")[0]
    assert "280" in listed["main product: depot &amp; &lt;funds&gt;"]
    assert "depot &amp; &lt;funds&gt;" in chart
    for noise in ("home region: north", "home region: west", "main product: not known"):
        assert "within the noise" in listed[noise]
        assert noise not in chart
    for small in ("main product: safe-deposit box", "home region: not known"):
        assert listed[small].count("suppressed") == 3
        assert small not in chart
    assert chart.index("depot") < chart.index("current account") < chart.index("home region: south")
    assert re.search(r"recency \(days\).*?31\.0.*?58\.0.*?lower", html)
    assert re.search(r"monetary \(EUR\).*?5,120.*?1,89\d.*?higher", html)


def test_categories_that_the_campaign_left_out_are_listed_as_suppressed() -> None:
    summary = Campaign().build()
    rows = [row.model_dump(mode="json") for row in summary.campaign.profile]
    left = [row for row in rows if (row["feature"], row["level"]) != ("main_product", 0)]
    assert len(left) == len(rows) - 1
    html = render_lookalike_report(remade(summary, (("campaign", "profile"), left)))
    (row,) = re.findall(r"<tr><th scope=\"row\"[^>]*>main product: current account.*?</tr>", html)
    assert row.count("suppressed") == 3
    assert "what they leave is not the share of a suppressed category" in re.sub(r"\s+", " ", html)


def test_many_figures_need_more_than_an_interval_apart() -> None:
    """Intervals of one figure that just miss each other are no difference when thirteen are looked at."""
    summary, path = Campaign().build(), ("campaign", "profile", 2, "audience")
    eligible = summary.campaign.profile[2].eligible
    near = {"low": eligible.high + 0.0005, "value": eligible.high + 0.0105, "high": eligible.high + 0.0205}
    far = {"low": eligible.high + 0.0400, "value": eligible.high + 0.0500, "high": eligible.high + 0.0600}
    said = []
    for audience in (near, far):
        html = render_lookalike_report(remade(summary, (path, audience)))
        said.append("mortgage" in html[html.index('class="index"') :].split("</svg>")[0])
    assert said == [False, True]


def test_a_skewed_interval_is_widened_by_its_own_sides() -> None:
    """A mean of logarithms, turned back: its long upper side must not hide that it lies far above, nor be forgotten."""
    summary, place = Campaign().build(), len(Campaign().build().campaign.profile) - 1
    eligible = {"low": 1005.0, "value": 1039.0, "high": 1073.0}
    above, below = {"low": 2900.0, "value": 4600.0, "high": 7500.0}, {"low": 200.0, "value": 440.0, "high": 968.0}
    said = []
    for audience in (above, below):
        row = {"feature": "monetary", "level": None, "audience": audience, "eligible": eligible}
        html = render_lookalike_report(remade(summary, (("campaign", "profile", place), row)))
        said.append(re.findall(r"monetary \(EUR\).*?(higher|lower|within the noise)", html))
    assert said == [["higher"], ["within the noise"]]


def test_a_curve_of_many_points_is_thinned_but_keeps_its_levels_and_ends() -> None:
    whole = Campaign().build().campaign.curve
    first, step = whole.points[0], 0.98
    points = [
        first.model_copy(
            update={
                "cutoff": -float(i),
                "share": step ** (300 - i),
                "people": Measured(value=1e5 * step ** (300 - i), low=1.0, high=2e5),
            }
        )
        for i in range(301)
    ]
    levels = tuple(ReachLevel(name=f"level-{i}", point=points[i]) for i in (101, 102, 200))
    drawn = _chart(ReachCurve(eligible=whole.eligible, points=tuple(points), levels=levels))
    corners = _corners(re.findall(r'<polyline points="([^"]*)" class="curve recall"', drawn)[0])
    marks = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', drawn)]
    assert len(corners) < 110
    assert len(marks) == 3
    assert all(min(abs(x - mark) for x, _ in corners) < 0.1 for mark in marks)
    assert corners[0][0] == pytest.approx(min(x for x, _ in corners))
    assert corners[-1][0] > corners[0][0] + 400


def test_a_run_without_noise_says_so_and_claims_nothing() -> None:
    text = page_of(_VARIANTS["no noise"](Campaign())).text
    assert "NO PRIVACY" in text
    assert "WITHOUT any protection" in text
    for claim in ("accepted the campaign", "Privacy loss (epsilon)", "Everything that was released"):
        assert claim not in text
    section = str(lookalike_section(_VARIANTS["no noise"](Campaign()).build()))
    assert "NO PRIVACY" in section
    assert "What it cost" not in section


def test_no_better_than_chance_and_hidden_are_said_in_words() -> None:
    assert "no better than chance" in page_of(_VARIANTS["no better than chance"](Campaign())).text
    hidden = page_of(_VARIANTS["noise hides the quality"](Campaign())).text
    assert "the noise hides: the seeds are too few for this budget" in hidden
    assert "How much better than chance that is, the noise hides." in hidden
    none = page_of(_VARIANTS["nobody large enough"](Campaign())).text
    assert "no audience is large enough to be shown" in none
    assert "There is no curve" in none
    kept = page_of(_VARIANTS["default kept"](Campaign())).text
    assert "was ahead by 0.21 points of AUC (noise ±0.43), too little to overturn" in kept
    assert "The noise hid which is better" in page_of(_VARIANTS["contest hidden"](Campaign())).text
    assert "nothing was compared" in page_of(_VARIANTS["one ranker"](Campaign())).text


def test_the_same_summary_gives_the_same_page() -> None:
    assert render_lookalike_report(Campaign().build()) == render_lookalike_report(Campaign().made())


_HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title></svg>&amp;<b>",
    "a\u202eb\x00c\x1bd",
)


def test_every_text_is_escaped() -> None:
    wild = replace(Campaign(), names=(*_HOSTILE, "A", "B", "C", "D"), dataset=_HOSTILE[0], concept=_HOSTILE[3])
    hostile, tame = page_of(wild), page_of(Campaign())
    assert hostile.tags == tame.tags
    assert set(hostile.attributes) == set(tame.attributes)
    assert not re.search(r"[\x00\x1b\u202e]", hostile.text)


# --- the drawing of the curve -----------------------------------------------------------------------------------------


def _chart(curve: ReachCurve, chosen: str | None = "balanced") -> str:
    return str(reach_chart(curve, chosen))


def _corners(points: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in points.split())]


def test_the_curve_lies_within_its_ribbon_and_levels_stand_where_they_reach() -> None:
    curve = Campaign().build().campaign.curve
    drawn = _chart(curve)
    lines = {
        name: _corners(found) for found, name in re.findall(r'<polyline points="([^"]*)" class="curve (\w+)"', drawn)
    }
    ribbons = {n: _corners(found) for found, n in re.findall(r'<polygon points="([^"]*)" class="ribbon (\w+)"', drawn)}
    assert set(lines) == set(ribbons) == {"recall", "relevance"}
    for name, line in lines.items():
        assert [x for x, _ in line] == sorted(x for x, _ in line)
        upper, lower = ribbons[name][: len(line)], ribbons[name][len(line) :][::-1]
        assert all(high[1] - 0.2 <= y <= low[1] + 0.2 for (_, y), high, low in zip(line, upper, lower, strict=True))
    first, last = lines["recall"][0], lines["recall"][-1]
    decades = math.log(curve.points[-1].share / curve.points[0].share)
    marks = {float(x) for x in re.findall(r'<line x1="([\d.]+)"[^>]*class="level', drawn)}
    for level in curve.levels:
        assert level.point is not None
        way = math.log(level.point.share / curve.points[0].share) / decades
        assert min(abs(first[0] + way * (last[0] - first[0]) - mark) for mark in marks) < 0.3
    assert len(marks) == 3
    assert drawn.count('class="level chosen"') == 1


def test_shapes_and_dashes_tell_the_curves_apart_without_colour() -> None:
    drawn = _chart(Campaign().build().campaign.curve)
    assert len(re.findall(r"<circle[^>]*mark recall", drawn)) == 3
    assert len(re.findall(r"<rect[^>]*mark relevance", drawn)) == 3
    assert "seeds reached" in drawn
    assert ">relevance<" in drawn


def test_names_of_curves_that_end_in_one_place_stand_apart() -> None:
    even = Measured(value=0.5, low=0.4, high=0.6)
    point = CurvePoint(
        cutoff=0.0, people=Measured(value=500.0, low=450.0, high=550.0), share=0.5, recall=even, relevance=even
    )
    drawn = _chart(ReachCurve(eligible=None, points=(point,), levels=()), None)
    first, second = (float(y) for y in re.findall(r'y="([\d.]+)" class="curve-name', drawn))
    assert abs(first - second) >= 14


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=9, unique=True), st.integers(3, 30))
def test_names_of_levels_do_not_cover_each_other(shares: list[int], length: int) -> None:
    points = [
        CurvePoint(
            cutoff=-share,
            people=Measured(value=1e3 * share, low=0.9e3 * share, high=1.1e3 * share),
            share=share / 100,
        )
        for share in sorted(shares)
    ]
    levels = tuple(ReachLevel(name=f"l{'x' * length}{i}", point=point) for i, point in enumerate(points))
    drawn = _chart(ReachCurve(eligible=None, points=tuple(points), levels=levels), None)
    labels = re.findall(r'<text x="([-\d.]+)" y="([\d.]+)" text-anchor="middle" class="row">([^<]*)<', drawn)
    assert labels
    boxes = [(float(y), float(x) - 3.6 * len(text), float(x) + 3.6 * len(text)) for x, y, text in labels]
    for i, (y, left, right) in enumerate(boxes):
        assert not [box for box in boxes[:i] if box[0] == y and box[1] < right and left < box[2]]


@settings(max_examples=200)
@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=6))
def test_a_logarithmic_axis_holds_its_values_and_round_ticks(values: list[float]) -> None:
    axis = log_axis_over(values, 10.0, 100.0)
    assert axis.low <= min(values) * (1 + 1e-9)
    assert axis.high >= max(values) * (1 - 1e-9)
    assert axis.at(axis.low) == pytest.approx(10.0)
    assert axis.at(axis.high) == pytest.approx(110.0)
    assert axis.at(math.sqrt(axis.low * axis.high)) == pytest.approx(60.0)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 20
    assert all(9.99 <= axis.at(tick) <= 110.01 for tick in ticks)


# --- the document -----------------------------------------------------------------------------------------------------


def test_json_round_trip(tmp_path: Path) -> None:
    summary, path = replace(Campaign(), bins=3, declined=True).build(), tmp_path / "lookalike.json"
    path.write_bytes(summary.to_bytes())
    assert load_lookalike_summary(path) == summary
    assert json.loads(summary.to_bytes())["schema"] == "cohortium.lookalike-summary/1"
    with pytest.raises(DataError, match="cannot be read"):
        load_lookalike_summary(tmp_path / "none.json")
    path.write_text('{"schema": "cohortium.lookalike-summary/2"}')
    with pytest.raises(DataError, match="not a summary of this version"):
        load_lookalike_summary(path)


_POINT = ("campaign", "curve", "points", 0)
_BROKEN: dict[str, tuple[tuple[str | int, ...], Any]] = {
    "stands on another encoder": (("campaign", "plan", "model"), f"sha256:{7:064x}"),
    "name another contract": (("contract", "digest"), f"sha256:{7:064x}"),
    "'age_group' is not a feature that the contract allows": (("campaign", "profile", 0, "feature"), "age_group"),
    "has no category 6": (("campaign", "profile", 0, "level"), 6),
    "told by shares": (("campaign", "profile", 0, "level"), None),
    "a share or an amount": (("campaign", "profile", 0, "audience", "high"), 1.5),
    "fewer people than the plan's minimum": (("campaign", "seeds"), 99.0),
    "level 'odd' is not one": (("chosen",), "odd"),
    "a profile needs the level": (("campaign", "level"), None),
    "of another ranker": (("campaign", "quality", "ranker"), "embedding"),
    "a rate lies outside": (("campaign", "quality", "auc", "high"), 1.01),
    "a probability or a loss": (("campaign", "choice", "probability"), 1.2),
    "AUCs do not differ": (("campaign", "choice", "margin"), 1.2),
    "more institutions answered": (("campaign", "institutions"), 9),
    "distinct names": (("institutions", 1, "facts", "name"), "Bank Ash"),
    "only holds seeds": (("institutions", 1, "role"), "seeds"),
    "needs an export": (("institutions", 1, "exports"), False),
    "begins and ends at the report's limits": (("institutions", 1, "exported"), {"low": 412, "high": 413}),
    "what encoder and campaign did": (("institutions", 0, "encoder", "mu2"), 10**30),
    "must be in UTC": (("started",), "2026-04-07T08:00:00+02:00"),
    "must not lie before started": (("finished",), "2026-04-07T07:00:00Z"),
}


@pytest.mark.parametrize("message", _BROKEN)
def test_a_summary_that_does_not_hold_together_is_refused(message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        remade(Campaign().build(), _BROKEN[message])


@pytest.mark.parametrize(("people", "message"), [(60.0, "fewer people"), (150.0, "differ by less")])
def test_a_curve_that_shows_a_small_cell_is_refused(people: float, message: str) -> None:
    summary = Campaign().build()
    last = summary.campaign.curve.points[0]
    first = last.model_copy(
        update={"cutoff": last.cutoff + 1, "people": Measured(value=people, low=people - 5, high=people + 5)}
    )
    near = last.model_copy(update={"people": Measured(value=people + 40, low=people, high=people + 80)})
    curve = ReachCurve(eligible=summary.campaign.curve.eligible, points=(first, near), levels=())
    changes = (("campaign", "curve"), curve.model_dump(mode="json")), (("chosen",), None)
    bare = (("campaign", "profile"), []), (("campaign", "level"), None)
    with pytest.raises(ValidationError, match=message):
        remade(summary, *changes, *bare)


def test_exports_are_told_as_bands_alone() -> None:
    assert ExportBand.of(412) == ExportBand(low=300, high=500)
    assert ExportBand.of(2_000_000) == ExportBand(low=1_000_000, high=None)
    assert ExportBand.of(49) is None
    text = json.dumps([entry.model_dump(mode="json") for entry in Campaign().build().institutions])
    assert "412" not in re.findall(r"\d+", text)


def _gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon of mu-GDP by its closed form, without the product's accounting."""

    def slack(epsilon: float) -> float:
        tail = math.exp(epsilon) * norm.cdf(-epsilon / mu - mu / 2)
        return float(norm.cdf(-epsilon / mu + mu / 2) - tail) - delta

    return float(brentq(slack, 0.0, 100.0))


@pytest.mark.parametrize("trust", ["distributed", "local"])
def test_costs_of_encoder_and_campaign_add_up_in_mu_squared(trust: str) -> None:
    summary = replace(Campaign(), trust=trust).build()
    first, spent = Spend(budget_for(2.0, 1e-6).mu2, 0), Spend(budget_for(1.0, 1e-6).mu2, 0)
    rows = campaign_costs([first] * 3, [Spend(9, 0), spent, spent], summary.encoder.plan, summary.campaign.plan)
    assert [row.institutions for row in rows] == [1, 2, 3]
    for row in rows:
        j = row.institutions
        several = j * j * spent.mu2 if trust == "distributed" else min(j, 2) * spent.mu2 + (9 if j == 3 else 0)
        mu2 = [j * j * first.mu2, several]
        expected = [_gaussian_epsilon(math.sqrt(m * float(MU2_UNIT)), 1e-6) for m in (*mu2, sum(mu2))]
        assert [row.encoder, row.campaign, row.both] == pytest.approx(expected, rel=1e-6)
        assert row.both_pld == pytest.approx(row.both, rel=1e-2)


def test_costs_without_noise_have_no_bound() -> None:
    summary = _VARIANTS["no noise"](Campaign()).build()
    assert {(row.encoder, row.campaign, row.both, row.both_pld) for row in summary.costs} == {(None,) * 4}


@settings(max_examples=200)
@given(st.floats(0, 3e6), st.floats(0, 1e5), st.floats(0, 1e5))
def test_a_band_holds_the_interval(value: float, below: float, above: float) -> None:
    band = measured_limits(Measured(value=value, low=value - below, high=value + above))
    if value < BAND_LIMITS[0]:
        assert band is None
        return
    assert band is not None
    assert band.low <= max(value - below, 0)
    assert band.high is None or value + above < band.high


# --- any valid summary ------------------------------------------------------------------------------------------------


@st.composite
def _measured(draw: st.DrawFn, low: float, high: float) -> dict[str, float]:
    ends = sorted(draw(st.lists(st.floats(low, high), min_size=3, max_size=3)))
    return {"low": ends[0], "value": ends[1], "high": ends[2]}


def _perhaps(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), strategy)


@st.composite
def _curve(draw: st.DrawFn) -> dict[str, Any]:
    steps = draw(st.lists(st.floats(100.0, 1e5), max_size=8))
    points = []
    for index in range(len(steps)):
        people = sum(steps[: index + 1])
        measured = {
            "value": people,
            "low": people - draw(st.floats(0, people)),
            "high": people + draw(st.floats(0, 1e5)),
        }
        rates = {name: draw(_perhaps(_measured(0.0, 1.0))) for name in ("recall", "precision", "relevance")}
        share = draw(st.floats(1e-7, 1.0))
        lift = draw(_perhaps(_measured(0.0, 1e4)))
        points.append({"cutoff": -float(index), "people": measured, "share": share, "lift": lift, **rates})
    levels = [
        {
            "name": f"level-{index}",
            "point": point,
            "change": draw(_perhaps(st.floats(-1, 1e6))),
            "protected": draw(_perhaps(st.booleans())),
        }
        for index, point in enumerate([*points, None])
    ]
    eligible = draw(_perhaps(_measured(100.0, 1e9)))
    return {"eligible": eligible, "points": points, "levels": draw(st.permutations(levels)) if not points else levels}


@st.composite
def _changes(draw: st.DrawFn) -> list[tuple[tuple[str | int, ...], Any]]:
    curve, lifts = draw(_curve()), _perhaps(_measured(0.0, 1e4))
    rows = [
        {"feature": "main_product", "level": draw(st.integers(0, 5)), **draw(_pair(0.0, 1.0))},
        {"feature": "home_region", "level": draw(st.integers(0, 4)), **draw(_pair(0.0, 1.0))},
        {"feature": "monetary", "level": None, **draw(_pair(-1e12, 1e12))},
    ]
    described = bool(curve["points"]) and draw(st.booleans())
    return [
        (("chosen",), draw(st.sampled_from([None, "level-0"])) if curve["points"] else None),
        (("campaign", "curve"), curve),
        (("campaign", "level"), "level-0" if described else None),
        (("campaign", "profile"), draw(st.lists(st.sampled_from(rows), max_size=5)) if described else []),
        (("campaign", "seeds"), draw(_perhaps(st.floats(100.0, 1e9)))),
        (("campaign", "quality", "auc"), draw(_perhaps(_measured(0.0, 1.0)))),
        (("campaign", "quality", "recall"), draw(st.lists(_perhaps(_measured(0.0, 1.0)), min_size=3, max_size=3))),
        (("campaign", "quality", "lift"), draw(st.lists(lifts, min_size=3, max_size=3))),
        (("campaign", "quality", "deciles"), draw(st.lists(lifts, min_size=10, max_size=10))),
        (("campaign", "choice", "margin"), draw(_perhaps(st.floats(-1.0, 1.0)))),
        (("campaign", "choice", "rival"), draw(st.sampled_from([None, "embedding", "another"]))),
    ]


@st.composite
def _pair(draw: st.DrawFn, low: float, high: float) -> dict[str, Any]:
    return {"audience": draw(_measured(low, high)), "eligible": draw(_measured(low, high))}


@settings(max_examples=40, deadline=None)
@given(_changes())
def test_any_valid_summary_is_drawn(changes: list[tuple[tuple[str | int, ...], Any]]) -> None:
    html = render_lookalike_report(remade(Campaign().build(), *changes))
    page = Page(html)
    assert {anchor for anchor, *_ in LOOKALIKE_SECTIONS} <= set(page.ids)
    numbers = re.findall(r' (?:x|y|x1|x2|y1|y2|cx|cy|r|width|height)="([^"]*)"', html)
    assert all(math.isfinite(float(number)) for number in numbers)
