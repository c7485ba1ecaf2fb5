"""The RFM grid: recency by frequency in quintile scores, with the usual names and people as bands."""

from __future__ import annotations

from cohortium.governance.report.bands import Band, size_band, size_limits
from cohortium.governance.report.markup import Child, Html, join, paragraph, section, table, tag
from cohortium.governance.report.summary import RunSummary
from cohortium.governance.report.wording import label, number, spread
from cohortium.study.bundle import RfmCell, RfmResult

__all__ = ["rfm_grid"]

_ALL_SCORES = ("1", "2", "3", "4", "5")
_HEAT_STEPS = 5


def rfm_grid(summary: RunSummary) -> Html:
    """The section; it says so when the run has no grid."""
    rfm = summary.bundle.rfm
    if rfm is None:
        return section("rfm", "RFM grid", paragraph("The plan or the contract has no RFM grid."))
    return section(
        "rfm",
        "RFM grid",
        paragraph(
            "Scores run from 1 to 5 by fifths of the customers; 5 is best. Recency is read from the feature "
            f"'{label(rfm.recency)}' (fewer is better), frequency from '{label(rfm.frequency)}'. {_merged(rfm)}"
            f"Noise in every cell: standard deviation {spread(rfm.size_std)} people."
        ),
        _grid(rfm),
        table("What the scores mean", ("Score", "Values"), _meanings(summary, rfm)),
    )


def _merged(rfm: RfmResult) -> str:
    names = [name for name in (rfm.recency, rfm.frequency, rfm.monetary) if name and _merged_scores(rfm, name)]
    if not names:
        return ""
    parts = [f"{label(name)} {', '.join(map(_dashed, _merged_scores(rfm, name)))}" for name in names]
    return f"Fifths that ties merged, because many customers share one value: {'; '.join(parts)}. "


def _merged_scores(rfm: RfmResult, name: str) -> list[str]:
    return [score for score in _scores(rfm, name) if "-" in score]


def _scores(rfm: RfmResult, name: str) -> tuple[str, ...]:
    return rfm.bands.get(name, _ALL_SCORES)


def _ends(score: str) -> tuple[int, int]:
    """(first, last) of a score such as '3' or '3-4'."""
    first, _, last = score.partition("-")
    return int(first), int(last or first)


def _grid(rfm: RfmResult) -> Html:
    columns = _scores(rfm, rfm.frequency)
    cells = {(cell.recency, cell.frequency): cell for cell in rfm.cells}
    most = max((band.typical for cell in rfm.cells if (band := _band(cell, rfm))), default=1.0)
    rows = []
    for row in reversed(_scores(rfm, rfm.recency)):
        # a merged band holds the score that its values get: the highest of recency, the lowest of frequency
        found = [cells.get((_ends(row)[1], _ends(column)[0])) for column in columns]
        rows.append((f"Recency {_dashed(row)}", *(_cell(cell, rfm, most) for cell in found)))
    heads = ("", *(f"Frequency {_dashed(column)}" for column in columns))
    return table("People by recency and frequency score", heads, rows, class_="data grid")


def _dashed(score: str) -> str:
    return score.replace("-", "\N{EN DASH}")


def _band(cell: RfmCell, rfm: RfmResult) -> Band | None:
    return size_limits(cell.size, rfm.size_std)


def _cell(cell: RfmCell | None, rfm: RfmResult, most: float) -> Child:
    if cell is None:
        return "not measured"
    band = _band(cell, rfm)
    heat = "none" if band is None else f"heat{round(_HEAT_STEPS * (band.typical / most) ** 0.5)}"
    words = size_band(cell.size, rfm.size_std)
    return tag("div", tag("strong", cell.name), tag("span", words), class_=f"cell {heat}")


def _meanings(summary: RunSummary, rfm: RfmResult) -> list[tuple[Child, ...]]:
    rows: list[tuple[Child, ...]] = []
    for role, name in (("Recency", rfm.recency), ("Frequency", rfm.frequency), ("Monetary", rfm.monetary)):
        if name is not None and name in rfm.edges:
            unit = summary.contract.unit(name)
            scores = reversed(_scores(rfm, name))
            rows += [(join((role, f" {_dashed(score)}")), _values(rfm, name, score, unit)) for score in scores]
    return rows


def _values(rfm: RfmResult, name: str, score: str, unit: str) -> str:
    """The values that get a score: above its lower edge, up to and including its upper one."""
    first, last = _ends(score)
    if name == rfm.recency:
        first, last = 6 - last, 6 - first
    edges = rfm.edges[name]
    low = number(edges[first - 2]) if first > 1 else None
    high = number(edges[last - 1]) if last < 5 else None
    after = f" {unit}" if unit else ""
    if low is None:
        return f"up to {high}{after}" if high is not None else "every value"
    return f"more than {low}{after}" if high is None else f"more than {low}, up to {high}{after}"
