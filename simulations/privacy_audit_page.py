"""An audit's report for people: one self-contained HTML page, drawn from the same figures as its JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

from cohortium.governance.report.charts.axis import LinearAxis, axis_over
from cohortium.governance.report.markup import Html, figure, items, join, paragraph, section, table, tag
from cohortium.privacy.audit.many_runs import ClaimFinding
from cohortium.privacy.audit.membership import MembershipFinding
from cohortium.simulations.privacy_audit import AuditReport
from cohortium.study.errors import OutputError

__all__ = ["AUDIT_FILES", "begin_audit", "render_audit", "write_audit"]

AUDIT_FILES = ("audit.json", "audit.html")
"""What an audit leaves in its folder."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_WIDTH, _LABELS, _ROW, _TOP, _TICKS = 720, 250, 26, 10, 6


def begin_audit(out: Path) -> None:
    """Make the folder, before anything is audited.

    Raises:
        OutputError: it holds an audit already, or cannot be written.
    """
    if any((out / name).exists() for name in AUDIT_FILES):
        raise OutputError("holds an audit already", place=str(out), fix="name another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(error.strerror or "cannot be written", place=str(out), fix="name another folder") from error


def write_audit(report: AuditReport, out: Path) -> None:
    """Write audit.json and audit.html; `OutputError` when the folder cannot be written."""
    texts = (report.model_dump_json(indent=2) + "\n", render_audit(report))
    try:
        for name, text in zip(AUDIT_FILES, texts, strict=True):
            (out / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(error.strerror or "cannot be written", place=str(out), fix="name another folder") from error


def render_audit(report: AuditReport) -> str:
    """The whole page. The same report gives the same bytes; every text is escaped, and nothing is loaded."""
    style = resources.files("cohortium.governance.report").joinpath("report.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", "cohortium: privacy audit"),
        tag("style", Html(style)),
    )
    body = tag("body", tag("header", _verdict(report)), tag("main", _claims(report), _noise(report), _members(report)))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _verdict(report: AuditReport) -> Html:
    title = tag("h1", "Privacy audit")
    if report.flags:
        return join([title, paragraph("Refuted:"), items(report.flags)])
    return join(
        [
            title,
            paragraph("No claim was refuted."),
            paragraph(
                "Attacks that stay below a claim do not prove it: the proof stands in docs/privacy-guarantee.md. "
                f"A sound build is flagged with probability at most {report.false_alarm:g} an audit.",
                note=True,
            ),
        ]
    )


def _claims(report: AuditReport) -> Html:
    head = ("release", "claimed", "at least", "recovered", "any curve", "verdict")
    rows = [
        (
            f"{claim.release}, plan epsilon {claim.plan_epsilon:g}",
            _number(claim.claimed_epsilon),
            _number(claim.epsilon_lower),
            "-" if claim.ratio is None else f"{claim.ratio:.0%}",
            _number(claim.epsilon_lower_any_curve),
            "REFUTED" if claim.flagged else "not refuted",
        )
        for claim in report.claims
    ]
    return section(
        "claims",
        "Claimed and measured epsilon",
        figure(
            _plot(report.claims),
            "Upright marks: claimed. Lines: from the lower to the upper 95% bound of what the attack measured; dots: "
            "its estimate. A line wholly to the right of its mark calls for a second look; REFUTED is far stricter.",
        ),
        table(f"Every claim, by {report.runs:,} releases of either table", head, rows, numeric=(1, 2, 3, 4)),
        paragraph(
            "'At least' is a lower bound on mu, which assumes nothing, written as an epsilon by the curve of Gaussian "
            "differential privacy. 'Any curve' bounds epsilon itself and assumes nothing; so many runs cannot bring it "
            "near the claim.",
            note=True,
        ),
    )


def _plot(claims: Sequence[ClaimFinding]) -> Html:
    """One row a claim: a mark for what is claimed, a line and a dot for what was measured."""
    ends = [e for c in claims for e in (0.0, c.claimed_epsilon, c.epsilon_lower, c.epsilon_upper) if e is not None]
    axis = axis_over(ends, _LABELS, _WIDTH - _LABELS - 20)
    bottom = _TOP + _ROW * len(claims)
    rows = [_row(claim, axis, _TOP + _ROW * (index + 0.5)) for index, claim in enumerate(claims)]
    spoken = "; ".join(
        f"{c.release}: claimed {_number(c.claimed_epsilon)}, at least {_number(c.epsilon_lower)}" for c in claims
    )
    return tag(
        "svg",
        *_ticks(axis, bottom),
        *rows,
        viewBox=f"0 0 {_WIDTH} {bottom + 24}",
        role="img",
        aria_label=f"Claimed and measured epsilon. {spoken}",
        class_="map",
    )


def _ticks(axis: LinearAxis, bottom: float) -> Iterator[Html]:
    for tick in axis.ticks(_TICKS):
        x = axis.at(tick)
        yield tag("line", x1=x, x2=x, y1=_TOP, y2=bottom, class_="grid")
        yield tag("text", axis.written(tick, _TICKS), x=x, y=bottom + 16, text_anchor="middle", class_="tick")


def _row(claim: ClaimFinding, axis: LinearAxis, y: float) -> Html:
    claimed, highest = axis.at(claim.claimed_epsilon), axis.start + axis.length
    lower, middle, upper = (
        highest if value is None else axis.at(value)
        for value in (claim.epsilon_lower, claim.epsilon_estimate, claim.epsilon_upper)
    )
    return tag(
        "g",
        tag("text", f"{claim.release}, {claim.plan_epsilon:g}", x=_LABELS - 10, y=y + 4, text_anchor="end"),
        tag("line", x1=lower, x2=upper, y1=y, y2=y, class_="range"),
        tag("circle", cx=min(middle, highest), cy=y, r=4),
        tag("line", x1=claimed, x2=claimed, y1=y - 9, y2=y + 9, class_="limit"),
    )


def _noise(report: AuditReport) -> Html:
    head = ("sigma", "draws", "measured", "shape p", "scale p", "low bits p", "lattice", "power at 5%", "verdict")
    rows = [
        (
            str(n.sigma),
            f"{n.draws:,}",
            f"{n.measured_sigma / n.sigma:.4f}",
            *(f"{p:.3g}" for p in (n.shape_p, n.scale_p, n.low_bits_p)),
            n.lattice_step,
            f"{n.power_at_five_percent:.6f}",
            "REFUTED" if n.flagged else "as it should be",
        )
        for n in report.noise
    ]
    return section("noise", "Noise", table("Every scale that was used", head, rows, numeric=tuple(range(8))))


def _members(report: AuditReport) -> Html:
    head = ("attack", "AUC", "95% interval", "TPR at 0.1% FPR", "95% interval", "members", "others")
    rows = [_member_row(finding) for finding in report.membership]
    return section(
        "membership",
        "Membership inference: sanity, never proof",
        table("Telling members from others by what was released", head, rows, numeric=(1, 3, 5, 6)),
        paragraph("0.5 is guessing. A weak attack that fails says nothing about stronger ones.", note=True),
    )


def _member_row(finding: MembershipFinding) -> tuple[str, ...]:
    return (
        finding.attack,
        f"{finding.auc:.3f}",
        f"{finding.auc_low:.3f} to {finding.auc_high:.3f}",
        f"{finding.true_positive_rate:.3%}",
        f"{finding.true_positive_low:.3%} to {finding.true_positive_high:.3%}",
        f"{finding.members:,}",
        f"{finding.others:,}",
    )


def _number(epsilon: float | None) -> str:
    return "above 200" if epsilon is None else f"{epsilon:.2f}"
