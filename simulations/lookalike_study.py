"""One command's worth of lookalikes: an encoder trained by many institutions, and campaigns that stand on it.

Beside what every run leaves in its folder (`simulations.run_folder`):

    encoder.safetensors     what an encoder's run released, signed by the simulated coordinator
    lookalike.safetensors   what a campaign released, likewise
    lookalike.json          everything the campaign's report is drawn from
    report.html             of a campaign
    institutions/NAME/scores.parquet   a campaign's scores of that institution's customers
    institutions/NAME/exports/RUN      the audience that it exported
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.metrics import roc_auc_score

from cohortium.client.audience import ExportManifest, create, export, list_audiences, read_manifest
from cohortium.client.lookalike import admit_model, open_records, score_customers_file
from cohortium.client.node import Node
from cohortium.client.onboarding.engine import literal
from cohortium.governance.report import (
    ContractFacts,
    ExportBand,
    HeldOut,
    LookalikeSummary,
    LookalikeTruth,
    Participant,
    campaign_costs,
    collusion,
    render_lookalike_report,
    size_band,
)
from cohortium.models.released import read_ranker
from cohortium.simulations.run_folder import (
    Begun,
    Clock,
    Say,
    SimulationOrder,
    begin_run,
    coordinator_key,
    institution_facts,
    run_plan,
    write_bytes,
)
from cohortium.study.errors import DataError, Defect, PlanError, RefusedError
from cohortium.study.lookalike_plan import LookalikePlan
from cohortium.study.model import EncoderModel, LookalikeModel, Model, save_model

__all__ = ["ENCODER_FILE", "LOOKALIKE_FILE", "SeedOrder", "export_changes", "simulate_campaign", "simulate_encoder"]

ENCODER_FILE, LOOKALIKE_FILE, SCORES_FILE = "encoder.safetensors", "lookalike.safetensors", "scores.parquet"


@dataclass(frozen=True)
class SeedOrder:
    """Whose customers are the seeds of a simulated campaign.

    Args:
        file: CSV or Parquet with the seeds' customer ids.
        column: of the ids.
        institutions: those that hold a seed list; all that have a customer among the ids when left out.
        audience: level of which every institution without a seed list exports an audience; None for no exports.
        concept: what the seeds have in common, in words, where the file holds everybody like that: then it is known how
            well those whom nobody listed are found.
    """

    file: Path
    column: str
    institutions: tuple[str, ...] | None = None
    audience: str | None = None
    concept: str | None = None


def simulate_encoder(order: SimulationOrder, say: Say) -> Model[EncoderModel]:
    """Train an encoder over simulated institutions and write its model; resumed and refused as `study.simulate`."""
    clock = Clock(say)
    with ExitStack() as stack:
        begun = begin_run(order, say, clock, stack, lambda _nodes: None)
        with clock.stage("training the encoder"):
            released = run_plan(order, begun, say)
    if not isinstance(released, Model) or not isinstance(released.document, EncoderModel):
        raise Defect("an encoder's study released no encoder")
    save_model(released, coordinator_key(order), order.out / ENCODER_FILE)
    return released


def simulate_campaign(
    order: SimulationOrder, seeds: SeedOrder, say: Say, before_exports: Callable[[Begun], None] | None = None
) -> LookalikeSummary:
    """Run a campaign over simulated institutions: model, scores, audiences, report; else as `study.simulate`.

    Args:
        order, seeds: what to simulate.
        say: called with one line of progress at a time.
        before_exports: called with the run when its model is there and no node is open: to audit and to review it.
    """
    plan, base, clock = order.plan, order.base, Clock(say)
    if not isinstance(plan, LookalikePlan) or base is None:
        raise PlanError("is no campaign's plan", place="plan: study", fix='set study = "lookalike" and name its model')
    listed = _ids(seeds)
    with ExitStack() as stack:
        begun = begin_run(order, say, clock, stack, lambda nodes: _register(plan, seeds, listed, nodes, order.out, say))
        with clock.stage("campaign"):
            released = run_plan(order, begun, say)
        if not isinstance(released, Model) or not isinstance(released.document, LookalikeModel):
            raise Defect("a campaign released no ranker")
        save_model(released, coordinator_key(order), order.out / LOOKALIKE_FILE)
        holders = {name for name, node in begun.nodes.items() if _has_list(node, plan.lookalike.seed)}
        summary = _summary(order, begun, base, released, seeds, listed, holders, clock)
    if plan.trust != "unsafe-none":
        with clock.stage("scoring"):
            for name in begun.folders:
                _scored(order, name)
        if before_exports is not None:
            before_exports(begun)
        with clock.stage("audiences"):
            exported = {
                name: _exported(order, name, seeds.audience, begun.file.run, say)
                for name in begun.folders
                if seeds.audience is not None and name not in holders
            }
        summary = _with_exports(summary, exported, clock)
    write_bytes(order.out / "lookalike.json", summary.to_bytes())
    write_bytes(order.out / "report.html", render_lookalike_report(summary).encode())
    return summary


def _has_list(node: Node, name: str) -> bool:
    return any(known.name == name and not known.removed for known in node.seeds.lists())


def _scored(order: SimulationOrder, name: str) -> None:
    """Score an institution's customers, which keeps a copy of the model to be audited by."""
    with open_records(order.state_folder / name) as records:
        records.models.add(order.out / LOOKALIKE_FILE)
        score_customers_file(records, order.out / LOOKALIKE_FILE, order.state_folder / name / SCORES_FILE)


def _exported(order: SimulationOrder, name: str, level: str, run: str, say: Say) -> int | None:
    """Export a level's audience at an institution: how many, if it did."""
    folder = order.state_folder / name
    with open_records(folder) as records:
        admitted = admit_model(records, order.out / LOOKALIKE_FILE)
        store, out = records.audiences(), folder / "exports" / run
        allowed = records.activation(order.plan.digest)
        made = next((known for known in list_audiences(store) if known.audience.name == run), None)
        try:
            audience = (
                made.audience
                if made is not None
                else create(
                    store,
                    folder / SCORES_FILE,
                    admitted.level(level),
                    run,
                    min_cell=order.plan.min_cell,
                    activation=allowed,
                ).audience
            )
            if not out.exists():
                export(store, audience.id, out, activation=allowed)
        except RefusedError as error:  # an institution that exports nothing is no reason to end the run
            say(f"  {name}: no audience, {error}")
            return None
        people = read_manifest(out).added
        say(f"  {name}: an audience of {size_band(float(people))} customers exported")
        return people


def export_changes(order: SimulationOrder, name: str, run: str) -> ExportManifest:
    """Export once more what an institution exported in a campaign's run: what changed since.

    Args:
        order: of the campaign.
        name: of the institution.
        run: the campaign's run.

    Raises:
        RefusedError: rules or review do not let it go out any more.
    """
    folder = order.state_folder / name
    out = folder / "exports" / f"{run}-changes"
    if not out.exists():
        with open_records(folder) as records:
            store = records.audiences()
            made = next(known.audience for known in list_audiences(store) if known.audience.name == run)
            export(store, made.id, out, activation=records.activation(order.plan.digest))
    return read_manifest(out)


def _summary(
    order: SimulationOrder,
    begun: Begun,
    base: Model[EncoderModel],
    released: Model[LookalikeModel],
    seeds: SeedOrder,
    listed: set[str],
    holders: set[str],
    clock: Clock,
) -> LookalikeSummary:
    campaign, encoder = released.document, base.document
    ledgers = {name: node.ledger for name, node in begun.nodes.items()}
    encoder_spends = [ledger.spent(encoder.plan.digest) for ledger in ledgers.values()]
    spends = [ledger.spent(campaign.plan.digest) for ledger in ledgers.values()]
    shown = {level.name for level in campaign.curve.levels if level.point is not None}
    return LookalikeSummary(
        version=version("cohortium"),
        started=begun.file.started,
        finished=datetime.now(UTC),
        stages=tuple(clock.stages),
        dataset=order.data.facts,
        encoder=encoder,
        campaign=campaign,
        contract=ContractFacts.of(order.contract),
        institutions=tuple(
            Participant.of(
                institution_facts(campaign.plan, name, node),
                encoder_spent=node.ledger.spent(encoder.plan.digest),
                encoder=encoder.plan,
                role="seeds" if name in holders else "audience",
                exported=None,
            )
            for name, node in begun.nodes.items()
        ),
        chosen=seeds.audience if seeds.audience in shown else None,
        costs=campaign_costs(encoder_spends, spends, encoder.plan, campaign.plan),
        collusion=collusion(spends, campaign.plan, len(begun.nodes)),
        encoder_collusion=collusion(encoder_spends, encoder.plan, len(begun.nodes)),
        truth=_truth(begun, released, seeds.concept, listed, holders) if seeds.concept is not None else None,
    )


def _with_exports(summary: LookalikeSummary, exported: Mapping[str, int | None], clock: Clock) -> LookalikeSummary:
    """The summary with what was exported, and when that was done."""

    def entry(one: Participant) -> Participant:
        people = exported.get(one.facts.name)
        if people is None:
            return one
        return one.model_copy(update={"exports": True, "exported": ExportBand.of(people)})

    institutions = tuple(entry(one) for one in summary.institutions)
    return summary.model_copy(
        update={"institutions": institutions, "stages": tuple(clock.stages), "finished": datetime.now(UTC)}
    )


def _truth(
    begun: Begun, released: Model[LookalikeModel], concept: str, listed: set[str], holders: set[str]
) -> LookalikeTruth | None:
    """How well the concept is found among the customers of institutions that listed nobody."""
    scorer = read_ranker(released)
    tables = [node.people for name, node in begun.nodes.items() if name not in holders]
    if not tables:
        return None
    scores = np.concatenate([scorer.scores(table) for table in tables])
    member = np.array([key in listed for table in tables for key in table.keys.tolist()])
    if not member.any() or member.all():
        return None
    best = np.argsort(-scores, kind="stable")

    def found(share: float) -> float:
        return float(member[best[: max(int(len(best) * share), 1)]].sum())

    recall = tuple(found(share) / float(member.sum()) for share in (0.05, 0.1, 0.2))
    lift = tuple(found(share) / max(int(len(best) * share), 1) / float(member.mean()) for share in (0.01, 0.05, 0.1))
    return LookalikeTruth(
        concept=concept,
        campaign=HeldOut(
            ranker="this campaign, customers of institutions that listed nobody",
            auc=float(roc_auc_score(member, scores)),
            recall=(recall[0], recall[1], recall[2]),
            lift=(lift[0], lift[1], lift[2]),
        ),
    )


def _register(
    plan: LookalikePlan, seeds: SeedOrder, listed: set[str], nodes: Mapping[str, Node], out: Path, say: Say
) -> None:
    """Every institution that is to have seeds gets the list of those ids that are its customers."""
    name = plan.lookalike.seed
    chosen = seeds.institutions if seeds.institutions is not None else tuple(nodes)
    if strangers := sorted(set(chosen) - set(nodes)):
        raise DataError(
            f"there is no institution '{strangers[0]}'",
            place="--seed-institutions",
            fix=f"use some of {', '.join(sorted(nodes))}",
        )
    work = out / ".seeds"
    work.mkdir(exist_ok=True, mode=0o700)
    try:
        for institution in chosen:
            node = nodes[institution]
            if _has_list(node, name):
                continue  # a resumed run
            own = [key for key in node.people.keys.tolist() if key in listed]
            if not own and seeds.institutions is None:
                continue
            file = work / "seeds.parquet"
            pq.write_table(pa.table({"id": pa.array(own, pa.string())}), file)
            try:
                counts = node.seeds.add(name, file, "id", node.people)
            except (DataError, RefusedError) as error:  # of a file that nobody but this function knows
                raise type(error)(
                    error.message,
                    place=f"{seeds.file}: customers of '{institution}'",
                    fix=f"{error.fix}; or name other institutions with --seed-institutions",
                ) from error
            say(f"  {institution}: {counts.allowed:,} seeds")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _ids(seeds: SeedOrder) -> set[str]:
    reader = "read_parquet" if seeds.file.suffix == ".parquet" else "read_csv"
    options = "" if reader == "read_parquet" else ", all_varchar = true"
    column = '"' + seeds.column.replace('"', '""') + '"'
    sql = f"SELECT DISTINCT trim(CAST({column} AS VARCHAR)) FROM {reader}({literal(str(seeds.file))}{options})"
    try:
        with duckdb.connect(":memory:") as connection:
            rows = connection.execute(sql).fetchall()
    except duckdb.Error as error:
        raise DataError(
            f"has no readable column '{seeds.column}'", place=str(seeds.file), fix="name the column of the ids"
        ) from error
    return {key for (key,) in rows if key}
