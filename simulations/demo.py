"""The demo: segments of eight institutions, then customers like those that three of them value, found at the others."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import numpy as np

from cohortium.client.onboarding.engine import literal
from cohortium.governance.report import LookalikeSummary, RunSummary, render_report
from cohortium.simulations.bank_world import BankWorldSpec, make_bank_world
from cohortium.simulations.governed import SimulatedGovernance
from cohortium.simulations.lookalike_study import SeedOrder, simulate_campaign, simulate_encoder
from cohortium.simulations.run_folder import Say, SimulationOrder, write_bytes
from cohortium.simulations.sources import BankWorldData, SplitData, demo_data
from cohortium.simulations.starter import demo_campaign_plan, demo_encoder_plan, demo_plan
from cohortium.simulations.study import simulate

__all__ = ["Demo", "run_demo"]

_ZONES = ("114", "115", "others")
_PRODUCT = "560402"
_LEVEL = "wide"


@dataclass(frozen=True)
class Demo:
    """What the demo left behind."""

    segments: RunSummary
    lookalike: LookalikeSummary


def run_demo(out: Path, *, synthetic: bool, resume: bool, say: Say) -> Demo:
    """Run the demo's three plans on one federation; their ledgers add up.

    Args:
        out: folder of the first run; `encoder` and `campaign` in it are the folders of the other two.
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
    state = first.state_folder

    def later(name: str) -> SimulationOrder:
        folder = out / name
        return replace(first, out=folder, state=state, resume=(folder / "run.json").exists())

    say("")
    model = simulate_encoder(replace(later("encoder"), plan=demo_encoder_plan(contract)), say)
    plan = demo_campaign_plan(contract, model.digest)
    with tempfile.TemporaryDirectory(prefix="cohortium-") as work:
        seeds = _seeds(data, Path(work))
        lookalike = simulate_campaign(replace(later("campaign"), plan=plan, base=model), seeds, say)
    write_bytes(out / "report.html", render_report(segments, lookalike).encode())
    return Demo(segments, lookalike)


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
