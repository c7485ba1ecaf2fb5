"""The demo: segments of eight institutions, then customers like those that three of them value, found at the others."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import numpy as np

from cohortium.client.onboarding.engine import literal
from cohortium.governance.report import (
    AuditFacts,
    EvidenceFacts,
    FairnessPage,
    GovernanceSummary,
    LookalikeSummary,
    RunSummary,
    WithdrawalFacts,
    render_report,
)
from cohortium.simulations.audit_study import simulate_audit, write_page
from cohortium.simulations.bank_world import BankWorldSpec, make_bank_world
from cohortium.simulations.evidence import of_runs
from cohortium.simulations.governance_account import governed_institutions, with_outcome
from cohortium.simulations.governed import SimulatedGovernance
from cohortium.simulations.lookalike_study import (
    LOOKALIKE_FILE,
    SeedOrder,
    export_changes,
    simulate_campaign,
    simulate_encoder,
)
from cohortium.simulations.reviewing import review_audience
from cohortium.simulations.run_folder import Begun, Say, SimulationOrder, write_bytes
from cohortium.simulations.sources import BankWorldData, SplitData, demo_data
from cohortium.simulations.starter import (
    demo_audit_plan,
    demo_campaign_plan,
    demo_encoder_plan,
    demo_monitoring_plan,
    demo_plan,
)
from cohortium.simulations.study import simulate
from cohortium.simulations.withdrawing import MemberWithdraws
from cohortium.study.charter import parse_charter
from cohortium.study.contract import Contract
from cohortium.study.lookalike_plan import LookalikePlan
from cohortium.study.model import LookalikeModel, load_model

__all__ = ["Demo", "run_demo"]

EVIDENCE_FILE = "evidence.zip"

_ZONES = ("114", "115", "others")
_PRODUCT = "560402"
_LEVEL = "wide"
_VERIFIES = "cohortium evidence verify {out}/" + EVIDENCE_FILE + " --charter {out}/charter.json"


@dataclass(frozen=True)
class Demo:
    """What the demo left behind."""

    segments: RunSummary
    lookalike: LookalikeSummary
    audit: FairnessPage
    governance: GovernanceSummary


def run_demo(out: Path, *, synthetic: bool, resume: bool, say: Say) -> Demo:
    """Run the demo's five plans on one federation; their ledgers add up.

    The third's audience is audited by the fourth, and put before two reviewers wherever it is to be exported. While the
    fifth is answered, a customer in such an audience withdraws.

    Args:
        out: folder of the first run; `encoder`, `campaign`, `audit` and `monitoring` in it are those of the others.
        synthetic: use the synthetic bank world, without trying to fetch.
        resume: continue the demo that `out` holds, wherever it stopped.
        say: called with one line of progress at a time.

    Raises:
        OutputError, DataError, BudgetError: as `simulate`.
    """
    contract, data = demo_data(synthetic, say)
    first = SimulationOrder(demo_plan(contract), contract, data, out, lifetime_delta=1e-6, resume=resume)
    first = replace(first, governance=SimulatedGovernance())
    segments = simulate(first, say)
    state, names = first.state_folder, tuple(one.name for one in segments.institutions)

    def later(name: str) -> SimulationOrder:
        folder = out / name
        return replace(first, out=folder, state=state, onboarded=names, resume=(folder / "run.json").exists())

    say("")
    model = simulate_encoder(replace(later("encoder"), plan=demo_encoder_plan(contract)), say)
    plan = demo_campaign_plan(contract, model.digest)
    pages: list[FairnessPage] = []
    with tempfile.TemporaryDirectory(prefix="cohortium-") as work:
        seeds = _seeds(data, Path(work))

        def review(begun: Begun) -> None:
            exporting = [name for name in begun.folders if name not in (seeds.institutions or ())]
            pages.append(_reviewed(later, plan, contract, begun, exporting, say))

        lookalike = simulate_campaign(replace(later("campaign"), plan=plan, base=model), seeds, say, review)
    watched, withdrawals = _monitored(later, contract, segments, lookalike, say)
    charter = parse_charter(json.loads((out / "charter.json").read_bytes()))
    page = with_outcome(pages[0], {name: state / name for name in names}, plan, charter)
    write_page(page, out / "audit")
    pack = out / EVIDENCE_FILE
    pack.unlink(missing_ok=True)  # of a demo that was resumed
    of_runs([out], state).write(pack)
    say(f"{EVIDENCE_FILE}: {_VERIFIES.format(out=out)}")
    governance = GovernanceSummary(
        mode="simulation",
        institutions=governed_institutions({name: state / name for name in names}, charter),
        audits=(AuditFacts.of(page, "audit/report.html"), AuditFacts.of(watched, "monitoring/report.html")),
        evidence=(EvidenceFacts(file=EVIDENCE_FILE, sha256=_sha256(pack), command=_VERIFIES.format(out=".")),),
        withdrawals=withdrawals,
    )
    write_bytes(out / "governance.json", governance.to_bytes())
    write_bytes(out / "report.html", render_report(segments, lookalike, governance).encode())
    return Demo(segments, lookalike, page, governance)


def _reviewed(
    later: Callable[[str], SimulationOrder],
    plan: LookalikePlan,
    contract: Contract,
    begun: Begun,
    exporting: Sequence[str],
    say: Say,
) -> FairnessPage:
    """Audit the campaign's audience, and have the reviewers of every institution that is to export it sign."""
    file = later("campaign").out / LOOKALIKE_FILE
    audited = load_model(file, LookalikeModel, signer=None)
    page = simulate_audit(replace(later("audit"), plan=demo_audit_plan(contract, audited.digest)), file, say)
    say(f"  the audit's verdict: {page.result.verdict}")
    for name in exporting:
        found = review_audience(begun.folders[name], name, plan, contract, begun.charter, page.result)
        waived = ", its verdict waived" if found.waived else ""
        say(f"  {name}: {found.state} by {' and '.join(found.approvers)}{waived}, until {found.until}")
    return page


def _monitored(
    later: Callable[[str], SimulationOrder],
    contract: Contract,
    segments: RunSummary,
    lookalike: LookalikeSummary,
    say: Say,
) -> tuple[FairnessPage, tuple[WithdrawalFacts, ...]]:
    """Audit the segments; between its questions somebody in an exported audience withdraws, and is removed from it."""
    campaign, run = later("campaign"), lookalike.campaign.run
    plan = demo_monitoring_plan(contract, segments.bundle)
    order = replace(later("monitoring"), plan=plan)
    bundle = campaign.out.parent / "bundle.json"
    exporting = [one.facts.name for one in lookalike.institutions if one.exports]
    if not exporting:
        return simulate_audit(order, bundle, say), ()
    folders = {one.name: order.state_folder / one.name for one in segments.institutions}
    export = folders[exporting[0]] / "exports" / run
    withdraws = MemberWithdraws(folders, exporting[0], export, plan, "outcomes")
    page = simulate_audit(order, bundle, say, withdraws.after)
    changes = export_changes(replace(campaign, plan=lookalike.campaign.plan), exporting[0], run)
    told = withdraws.account(changes.removed, changes.added)
    for line in (f"{told.institution}: {told.what}", f"the first without them: {told.first_without}", *told.changed):
        say(f"  {line}")
    return page, (told,)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _seeds(data: object, work: Path) -> SeedOrder:
    """Who is valued: buyers of one product group in three zones; in the synthetic world, the first bank's own list."""
    if isinstance(data, SplitData):
        source, file = data.sources["purchases"], work / "buyers.parquet"
        with duckdb.connect(":memory:") as connection:
            lines = f"read_csv({literal(str(source))}, all_varchar = true)"
            buyers = f"SELECT DISTINCT trim(CUSTOMER_ID) AS id FROM {lines} WHERE trim(PRODUCT_SUBCLASS) = '{_PRODUCT}'"
            connection.execute(f"COPY ({buyers}) TO {literal(str(file))} (FORMAT parquet)")
        concept = f"bought from the product group {_PRODUCT}"
        return SeedOrder(file, "id", institutions=_ZONES, audience=_LEVEL, concept=concept)
    banks = data.banks if isinstance(data, BankWorldData) else 1
    world = make_bank_world(work / "world", np.random.default_rng(0), BankWorldSpec(banks=banks))
    first = world.banks[0]
    return SeedOrder(first.seeds or work, "customer_id", institutions=(first.name,), audience=_LEVEL)
