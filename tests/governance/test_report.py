from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium.governance.report import RunSummary, render_report
from cohortium.governance.report.html import SECTIONS
from cohortium.governance.report.markup import tag
from cohortium.governance.report.sections.rfm import rfm_grid

from .conftest import Scenario

_VOID = {"meta", "br"}


class _Page(HTMLParser):
    """Checks that elements close in order; collects ids, references, headings and visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.tables: list[list[str]] = []
        self.attributes: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.attributes += named
        if "id" in named:
            self.ids.append(named["id"])
        self.references += [named[key] for key in ("href", "aria-labelledby") if key in named]
        self.text += " " + named.get("aria-label", "") + " "
        if tag == "table":
            self.tables.append([])
        if self.tables and "table" in self.open:
            self.tables[-1].append(tag)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data + " "


_VARIANTS: dict[str, Callable[[Scenario], Scenario]] = {
    "typical": lambda s: s,
    "all suppressed": lambda s: replace(s, sizes=(None, None, None)),
    "single institution": lambda s: replace(s, institutions=("Only",), declined=()),
    "k fixed": lambda s: replace(s, k=7),
    "no rfm": lambda s: replace(s, rfm=False),
    "one feature": lambda s: replace(s, features=("monetary",), rfm=False),
    "one segment": lambda s: replace(s, sizes=(1250.0,), k=1),
    "64 segments": lambda s: replace(s, sizes=tuple(920_011.7 - 303.1 * i for i in range(64)), k=64),
    "sizes not measured": lambda s: replace(s, profiles=0, sizes=(None,) * 5),
    "many institutions": lambda s: replace(s, institutions=tuple(f"Bank {i}" for i in range(40)), declined=()),
    "no comparison": lambda s: replace(s, compared=False),
}


@pytest.fixture(params=_VARIANTS, name="variant")
def _variant(request: pytest.FixtureRequest, scenario: Scenario) -> RunSummary:
    return _VARIANTS[request.param](scenario).build()


def test_page_is_well_formed_and_complete(variant: RunSummary) -> None:
    page = _Page(render_report(variant))
    assert len(page.ids) == len(set(page.ids))
    assert {anchor for anchor, _, _ in SECTIONS} <= set(page.ids)
    assert {reference.lstrip("#") for reference in page.references} <= set(page.ids)
    assert page.tags.count("h1") == 1
    assert all("caption" in table and "th" in table for table in page.tables)


def test_page_is_self_contained(variant: RunSummary) -> None:
    html = render_report(variant)
    page = _Page(html)
    for forbidden in ("http:", "https:", "src=", "@import", "url(", "//", "<script", "javascript:"):
        assert forbidden not in html
    assert not {"script", "link", "img", "iframe", "object", "embed", "use", "image"} & set(page.tags)
    assert not [name for name in page.attributes if name.startswith("on")]


def test_no_unbanded_size(variant: RunSummary) -> None:
    page = _Page(render_report(variant))
    bundle = variant.bundle
    sizes = [segment.size for segment in bundle.segments] + [bundle.customers]
    sizes += [cell.size for cell in bundle.rfm.cells] if bundle.rfm else []
    said = re.sub(r"sha256:[0-9a-f]+", "", page.text)  # digits of a digest are no size
    shown = set(re.findall(r"\d[\d,]*(?:\.\d+)?", said))
    for size in (size for size in sizes if size):
        for written in (f"{size:,.1f}", f"{size:.1f}", f"{size:,.0f}", f"{size:.0f}"):
            # a size that happens to be the limit of a band, or below a hundred, may stand there for other reasons
            if size % 100 and size > 100:
                assert written not in shown


def test_suppressed_is_a_word_never_a_number(scenario: Scenario) -> None:
    page = _Page(render_report(replace(scenario, sizes=(None, None)).build()))
    assert "no customer segment large enough to be shown" in page.text
    assert "There is no map" in page.text
    assert "suppressed" in page.text
    assert not re.search(r"\b0 (people|customers)", page.text)


def test_suppressed_segments_are_not_drawn(scenario: Scenario) -> None:
    html = render_report(scenario.build())
    drawing = html[html.index('class="map"') : html.index("</svg>")]
    assert drawing.count("<circle") == 6
    assert "segment 7" not in drawing


def test_unmeasured_sizes_are_not_called_suppressed(scenario: Scenario) -> None:
    page = _Page(render_report(replace(scenario, profiles=0, sizes=(None,) * 5, rfm=False).build()))
    assert "4 institutions together found 5 customer segments, at a privacy loss" in page.text
    assert "not measured" in page.text
    assert "suppressed." not in page.text


def test_what_the_reader_must_know_is_there(scenario: Scenario) -> None:
    summary = scenario.build()
    page = _Page(render_report(summary))
    plan = summary.bundle.plan
    expected = [
        "4 institutions together found 6 customer segments (1 more suppressed: too few people)",
        "among 20,000\N{EN DASH}50,000 customers",
        "legitimate interests, Art. 6(1)(f) GDPR",
        "Harbour Mutual",
        "4,000\N{EN DASH}5,000",
        "Frequency 2\N{EN DASH}3",
        "4 institutions (all)",
        "Un-noised, possible only in simulation.",
        "1.020 times the central, non-private ones",
        "in a deployment they stay at the institution",
        "this report is without a section about governance",
        "Protected features, kept for fairness audits and in no distance: age group",
        plan.digest,
        plan.contract,
        summary.bundle.digest,
        "cohortium.summary/1",
    ]
    for words in expected:
        assert words in page.text, words


def test_merged_frequency_scores_keep_their_people(scenario: Scenario) -> None:
    whole = str(rfm_grid(replace(scenario, merged=False).build()))
    merged = str(rfm_grid(scenario.build()))
    assert whole.count('class="cell') == 25
    assert merged.count('class="cell') == 20
    assert "not measured" not in whole + merged
    assert "more than 1, up to 4 purchase days" in merged


def test_logarithmic_ranges_are_in_the_contracts_unit(scenario: Scenario) -> None:
    page = _Page(render_report(scenario.build()))
    assert re.search(r"monetary\s+EUR\s+logarithmic, log\(1 \+ x\)\s+0\s+5,280\s", page.text)


def test_the_same_summary_gives_the_same_page(scenario: Scenario) -> None:
    assert render_report(scenario.build()) == render_report(scenario.build())


_HOSTILE = st.one_of(
    st.sampled_from(
        [
            "<script>alert(1)</script>",
            '"><img src=x onerror=alert(1)>',
            "</title></style></svg>&amp;<b>",
            "a\u202eb\x00c\x1bd",
            "' onload='x",
            "{}%s$name\\N",
        ]
    ),
    st.text(min_size=1, max_size=60).filter(lambda text: bool(text.strip())),
)


@settings(max_examples=20, deadline=None)
@given(st.lists(_HOSTILE, min_size=5, max_size=5, unique=True))
def test_every_text_is_escaped(texts: list[str]) -> None:
    calm = Scenario(sizes=(4467.8, 1733.1, None), rfm=False, features=("monetary",), institutions=("A", "B"), k=3)
    wild = replace(calm, institutions=tuple(texts[:2]), names=(texts[2], texts[3], "third"), dataset=texts[4])
    tame, hostile = _Page(render_report(calm.build())), _Page(render_report(wild.build()))
    assert [name for name in hostile.tags if name != "tspan"] == [name for name in tame.tags if name != "tspan"]
    assert set(hostile.attributes) <= {*tame.attributes, "x1", "x2", "y1", "y2"}
    assert not re.search(r"[\x00\x1b\u202e]", hostile.text)


def test_attributes_and_text_are_escaped() -> None:
    assert tag("p", '<&">', title='"<') == '<p title="&quot;&lt;">&lt;&amp;&quot;&gt;</p>'
    assert tag("p", tag("b", 1) + "<i>") == "<p>&lt;b&gt;1&lt;/b&gt;&lt;i&gt;</p>"


def test_a_run_without_noise_says_so_and_claims_nothing(scenario: Scenario) -> None:
    text = _Page(render_report(replace(scenario, trust="unsafe-none").build())).text
    assert "NO PRIVACY" in text
    assert "WITHOUT any protection" in text
    for claim in ("accepted the plan", "Privacy account", "Everything that was released", "federated, private"):
        assert claim not in text


def test_shared_noise_names_its_assumption(scenario: Scenario) -> None:
    text = _Page(render_report(replace(scenario, trust="distributed").build())).text
    for said in ("Distributed.", "if institutions collude with the coordinator", "no more than 1 of the institutions"):
        assert said in text
    assert "secure summation" not in text
