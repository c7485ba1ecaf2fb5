"""Links and anchors resolve; no page names hosts, paths of a machine or people; every figure has a home."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
BESIDE = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
PAGES = [path for path in (ROOT / name for name in BESIDE) if path.exists()] + sorted(DOCS.rglob("*.md"))
SAMPLE = sorted(path for path in (DOCS / "sample-report").rglob("*") if path.suffix in (".html", ".json"))

KNOWN_HOSTS = (
    "arxiv.org",
    "keepachangelog.com",
    "semver.org",
    "eur-lex.europa.eu",
    "doi.org",
    "flower.ai",
    "www.w3.org",
)
"""The only hosts that a page may name: standards and papers."""

_HOST = re.compile(r"\b(?:[a-z0-9-]+\.)+(?:org|com|io|net|dev|ai|co|example|cloud|eu)\b", re.IGNORECASE)
_PATH = re.compile(r"(?<![\w.:/-])/(?:home|root|tmp|var|usr|opt|etc|mnt|srv|work|Users|private)(?:/|\b)")
_PERSON = re.compile(r"[\w.+-]+@[\w-]+\.\w+|(?<![\w`/.])@[a-z][\w-]+", re.IGNORECASE)
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_NUMBER = r"\d[\d,]*(?:\.\d+)?"
_UNITS = r"(?:%|\u00d7|(?:x|s|ms|seconds?|minutes?|[GM]i?B|times|fold)\b)"
_FIGURE = re.compile(rf"(?<![\w.])({_NUMBER})\s?{_UNITS}|(?<![\w.])(?<!Python )(\d+\.\d{{2,}})(?!\w|\.\d)")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", text_of(page))


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them, or the ids of an HTML page."""
    if page.suffix == ".html":
        return set(re.findall(r'\bid="([^"]+)"', text_of(page)))
    found: set[str] = set()
    for title in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")
        number = 1
        while (candidate := slug if number == 1 else f"{slug}-{number - 1}") in found:
            number += 1
        found.add(candidate)
    return found


def links(page: Path) -> list[str]:
    without_code = re.sub(r"`[^`\n]*`", "", prose(page))
    return re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", without_code)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_internal_links_and_anchors_resolve(page: Path) -> None:
    for link in links(page):
        if link.startswith(("https:", "http:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)} links to {link}, which is not there"
        if anchor:
            assert anchor in anchors(target), f"{name_of(page)} links to {link}, which has no such heading"


def test_every_page_is_reached_from_the_index() -> None:
    index = DOCS / "README.md"
    reached = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    decisions = DOCS / "decisions"
    missing = [page for page in DOCS.glob("*.md") if page != index and page.resolve() not in reached]
    assert not missing
    assert (decisions / "README.md").resolve() in reached


@pytest.mark.parametrize("page", [*PAGES, *SAMPLE], ids=name_of)
def test_no_page_names_hosts_paths_of_a_machine_or_people(page: Path) -> None:
    text = text_of(page)
    hosts = {host.lower() for host in _HOST.findall(text)} - set(KNOWN_HOSTS)
    assert not hosts, f"{name_of(page)} names {sorted(hosts)}"
    assert not _PATH.findall(text), f"{name_of(page)} names a path of a machine"
    written = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)  # style sheets have rules that begin with @
    assert not _PERSON.findall(written), f"{name_of(page)} names a person"


def figures(page: Path) -> list[str]:
    """Numbers that claim something: shares, factors, times, sizes, and anything with two decimals."""
    return [first or second for first, second in _FIGURE.findall(prose(page))]


def test_every_figure_of_the_readme_is_in_the_benchmarks() -> None:
    claimed = figures(ROOT / "README.md") if (ROOT / "README.md").exists() else []
    if not claimed:
        return
    home = text_of(DOCS / "benchmarks.md")
    homeless = [figure for figure in claimed if not re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", home)]
    assert not homeless, f"README.md claims {homeless}, which docs/benchmarks.md does not have"


def test_the_check_of_figures_sees_shares_factors_times_and_decimals(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "It takes 5.2 s, 1.003 of the cost, 12% or 8 times 3 banks; Python 3.11, cohortium 0.1.0.\n", "utf-8"
    )
    assert figures(page) == ["5.2", "1.003", "12", "8"]
