"""What mitigations do to an audience and to segments, re-audited, and what they cost in lift: on the adult census set.

    make bench TARGET=mitigation          5 to 20 minutes
    make bench TARGET=mitigation ARGS="--seeds 1"

32,561 persons at five institutions, t = 4, c = 1. Sex, race and age are protected; the seeds are a quarter of those
with an income above 50K; eleven features train. Every figure is of whole runs by the apps that run deployed: an encoder
(epsilon 2, its start from released moments), a campaign (epsilon 1) and an audit of its broad audience (epsilon 1),
each with noise, delta 1e-6, on fresh ledgers. Which features are dropped is chosen by the first audit's own association
metric. Exact figures of the same audiences stand beside: women's rate over men's, and the lift in high incomes, among
people who are no seeds. Medians over runs; noise is fresh in each, so that figures differ a little. No target.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from lookalike_sets import CONTRACTS
from numpy.typing import NDArray

from cohortium.client.onboarding import load_customer_table, onboard
from cohortium.client.onboarding.store import load_protected_table
from cohortium.governance.fairness import (
    Comparison,
    FairnessResult,
    compare,
    judge_answers,
    lift_cost,
    segment_costs,
)
from cohortium.models.released import read_ranker
from cohortium.privacy.table import CustomerTable
from cohortium.server.study_run import AuditAnswer
from cohortium.simulations import group_thresholds_of
from cohortium.simulations.datasets import fetch
from cohortium.simulations.local_federation import LocalFederation, plan_head, split_rows
from cohortium.study.audit_plan import AuditPlan
from cohortium.study.bundle import Bundle
from cohortium.study.contract import Contract, load_contract
from cohortium.study.model import EncoderModel, LookalikeModel, Model, save_model
from cohortium.study.plans import parse_plan

INSTITUTIONS, LEVEL, DELTA = 5, "broad", 1e-6
PROTECTED, CUTS = ("sex", "race", "age"), {"age": [30, 45, 60]}
LABEL = {"name": "income", "column": "income_over_50k", "categories": [">50K", "<=50K"]}
START = {"marginals": 5, "moments": 85, "training": 0, "centres": 10}
REFERENCE = {"sex": "Male", "race": "White"}
KS, DROPPED, RATIOS = (3, 4, 6, 8, 12), (1, 2, 3), (0.8, 0.9)


@dataclass(frozen=True)
class World:
    """The persons.

    Args:
        contract: with sex, race, age and the income protected.
        people, protected: their tables, in one order.
        seed: who is a seed, shape (n,).
    """

    contract: Contract
    people: CustomerTable
    protected: CustomerTable
    seed: NDArray[np.bool_]

    @property
    def rich(self) -> NDArray[np.bool_]:
        """Who has an income above 50K, shape (n,)."""
        return np.asarray(self.protected.select(("income",))[:, 0] == 0.0)


def adult() -> World:
    """The census set under a contract that protects sex, race, age and the outcome."""
    raw = load_contract(CONTRACTS / "adult-all.toml").to_json()
    for feature in raw["features"]:
        if feature["name"] in PROTECTED:
            feature |= {"protected": True, "block": None}
    raw["features"].append({"table": "customers", "kind": "category", "protected": True, **LABEL})
    contract = Contract.model_validate(raw)
    with tempfile.TemporaryDirectory(prefix="cohortium-") as folder:
        made = Path(folder) / "customers"
        onboard(contract, {"customers": fetch("adult").sources["customers"]}, made, duplicates=False)
        people, protected = load_customer_table(made, contract), load_protected_table(made, contract)
    world = World(contract, people, protected, np.zeros(len(people), dtype=np.bool_))
    members = np.flatnonzero(world.rich)
    known = np.random.default_rng(0).choice(members, len(members) // 4, replace=False)
    return replace(world, seed=np.isin(np.arange(len(people)), known))


@dataclass(frozen=True)
class Found:
    """One campaign: what it released, what its audit says, and what is exact.

    Args:
        model: the campaign's.
        result: of the audit of its audience.
        scores: everybody's, shape (n,).
        ratio, lift: exact: lowest impact ratio of sex, lift in incomes.
    """

    model: Model[LookalikeModel]
    result: FairnessResult
    scores: NDArray[np.float64]
    ratio: float
    lift: float


def campaign(world: World, without: tuple[str, ...], number: int) -> Found:
    """Encoder, campaign and audit, on fresh ledgers."""
    with ExitStack() as stack:
        federation, folder = begun(world, stack, number)
        seeds = set(world.people.keys[world.seed].tolist())
        for index, node in enumerate(federation.nodes):
            listed = folder / f"seed-{index}.txt"
            listed.write_text("\n".join(str(key) for key in node.people.keys if key in seeds), encoding="utf-8")
            node.seeds.add("valued", listed, None, node.people)
        head = {**plan_head("mitigation", world.contract, None, INSTITUTIONS, None, 1), "delta": DELTA}
        head["without"] = list(without)
        base = federation.run(parse_plan({**head, "study": "encoder", "epsilon": 2.0, "shares": START}))
        wanted = {"study": "lookalike", "model": base.digest, "lookalike": {"seed": "valued"}, "epsilon": 1.0}
        model = federation.run(parse_plan({**head, **wanted}), cast("Model[EncoderModel]", base))
        model = cast("Model[LookalikeModel]", model)
        file = folder / "lookalike.safetensors"
        save_model(model, Ed25519PrivateKey.generate(), file)
        subject = {"of": "audience", "model": model.digest, "level": LEVEL, "seed": "valued"}
        result = audited(world, federation, file, subject, without)
    scores = read_ranker(model).scores(world.people)
    point = next(level.point for level in model.document.curve.levels if level.name == LEVEL)
    chosen = scores >= (np.inf if point is None else point.cutoff)
    return Found(model, result, scores, exact_ratio(world, chosen), exact_lift(world, chosen))


def begun(world: World, stack: ExitStack, number: int) -> tuple[LocalFederation, Path]:
    """Institutions of equal size, each with its protected table."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cohortium-")))
    masks = [
        np.isin(np.arange(len(world.people)), rows) for rows in split_rows(len(world.people), INSTITUTIONS, number)
    ]
    tables, protected = ([table.take(mask) for mask in masks] for table in (world.people, world.protected))
    return LocalFederation(folder, world.contract, tables, protected, epsilon=4.0, delta=DELTA, stack=stack), folder


def audited(
    world: World, federation: LocalFederation, file: Path, subject: dict[str, Any], without: tuple[str, ...] = ()
) -> FairnessResult:
    """The audit of a released file, at epsilon 1; of an audience with the features that it uses as proxies."""
    for node in federation.nodes:
        node.models.add(file)
    audit: dict[str, Any] = {**subject, "attributes": list(PROTECTED), "cuts": CUTS, "reference": REFERENCE}
    shares = {"outcomes": 100}
    if subject["of"] == "audience":
        audit["proxies"] = [f.name for f in world.contract.training_features if f.name not in without]
        shares = {"outcomes": 70, "proxies": 30}
    head = {**plan_head("audit", world.contract, None, INSTITUTIONS, None, 1), "delta": DELTA, "epsilon": 1.0}
    plan = parse_plan({**head, "study": "audit", "min_cell": 50, "shares": shares, "audit": audit})
    answer = cast("AuditAnswer", federation.run(plan))
    return judge_answers(cast("AuditPlan", plan), answer.pooled, {}, datetime.now(UTC).date())


def exact_ratio(world: World, chosen: NDArray[np.bool_]) -> float:
    """Rate of the women over that of the men, among people who are no seeds."""
    sex = world.protected.select(("sex",))[:, 0]
    women, men = (chosen[~world.seed & (sex == code)].mean() for code in (0.0, 1.0))
    return float(women / men)


def exact_lift(world: World, chosen: NDArray[np.bool_]) -> float:
    """Share of high incomes in the audience over that among everybody, of people who are no seeds."""
    rest = ~world.seed
    return float(world.rich[rest & chosen].mean() / world.rich[rest].mean())


def strongest(result: FairnessResult, attribute: str) -> list[str]:
    """Features by falling association with an attribute, as the audit estimates it."""
    found = {
        metric.outcome: metric.estimate
        for metric in result.metrics
        if metric.name == "proxy" and metric.attributes == (attribute,) and metric.outcome and metric.estimate
    }
    return sorted(found, key=lambda name: -found[name])


def impact(result: FairnessResult) -> tuple[float, str]:
    """The women's impact ratio as the audit estimates it, and its verdict."""
    metric = next(each for each in result.metrics if (each.name, each.group) == ("impact-ratio", ("Female",)))
    return metric.estimate or 0.0, f"{metric.low or 0:.2f} to {metric.high or 1:.2f} {metric.verdict}"


def drops(world: World, number: int) -> tuple[list[dict[str, Any]], Found, Comparison]:
    """The audience as it is, and without the strongest proxies of sex."""
    before, rows = campaign(world, (), number), []
    ranked = strongest(before.result, "sex")
    variants = {"as it is": (), **{f"without the {n} strongest": tuple(ranked[:n]) for n in DROPPED}}
    compared: Comparison | None = None
    for name, without in variants.items():
        found = campaign(world, without, number) if without else before
        cost = lift_cost(before.model.document.curve, found.model.document.curve, LEVEL)
        estimate, verdict = impact(found.result)
        if without:
            compared = compare(before.result, found.result, name, [cost], without)
        rows.append(
            {"mitigation": name, "without": without, "ratio": found.ratio, "lift": found.lift, "audit": estimate,
             "verdict": verdict, "released_lift": cost.after.value if cost.after else float("nan"),
             "overall": found.result.verdict}
        )  # fmt: skip
    if compared is None:
        raise RuntimeError("no feature has an association with sex")
    return rows, before, compared


def thresholds(world: World, before: Found, number: int) -> list[dict[str, Any]]:
    """Thresholds by sex on the scores of the audience as it is, at the same reach, exactly and at epsilon 1."""
    rest = ~world.seed
    frame = pd.DataFrame(
        {
            "sex": np.array(["Female", "Male"], dtype=object)[world.protected.select(("sex",))[:, 0].astype(int)],
            "score": before.scores,
            "rich": world.rich.astype(int),
        }
    )[rest].reset_index(drop=True)
    point = next(level.point for level in before.model.document.curve.levels if level.name == LEVEL)
    reach = float(np.mean(frame["score"] >= (point.cutoff if point else np.inf)))
    points = [each.cutoff for each in before.model.document.curve.points]  # released, so public
    rows = []
    for epsilon in (None, 1.0):
        for ratio in RATIOS:
            found = group_thresholds_of(
                frame, group="sex", score="score", reach=reach, ratio=ratio, label="rich", cuts=sorted(points)[-90:],
                institutions=INSTITUTIONS, epsilon=epsilon,
            )  # fmt: skip
            chosen = np.zeros(len(world.people), dtype=np.bool_)
            chosen[np.flatnonzero(rest)] = found.select(frame, number).to_numpy()
            noise = "exact" if epsilon is None else f"epsilon {epsilon:g}"
            mitigation = found.mitigation
            rows.append(
                {"mitigation": f"thresholds by sex to {ratio:g}, {noise}", "ratio": exact_ratio(world, chosen),
                 "lift": exact_lift(world, chosen), "audit": mitigation.ratio_after, "verdict": "",
                 "released_lift": mitigation.lift_after or float("nan"), "overall": ""}
            )  # fmt: skip
    return rows


def folded(world: World) -> World:
    """The coarsening that was considered: husbands and wives are one category, hours are above or below 40."""
    names = list(world.people.columns)
    values = world.people.values.copy()
    relation, hours = names.index("relationship"), names.index("hours_per_week")
    labels = list(world.contract.feature("relationship").categories)
    values[values[:, relation] == labels.index("Wife"), relation] = labels.index("Husband")
    values[:, hours] = np.where(values[:, hours] > 40, 60.0, 30.0)
    return replace(world, people=CustomerTable(world.people.columns, values, world.people.keys))


def coarse(world: World, number: int) -> list[dict[str, Any]]:
    """The audience learnt from coarser proxies: not built, measured here by changing the rows."""
    found = campaign(folded(world), (), number)
    estimate, verdict = impact(found.result)
    curve = found.model.document.curve
    shown = lift_cost(curve, curve, LEVEL).after
    return [
        {"mitigation": "coarse relationship and hours", "ratio": found.ratio, "lift": found.lift, "audit": estimate,
         "verdict": verdict, "released_lift": shown.value if shown else float("nan"), "overall": found.result.verdict}
    ]  # fmt: skip


def segments(world: World, number: int) -> tuple[list[dict[str, Any]], Comparison]:
    """Segments of different number, at epsilon 1: what they tell about sex, and what they explain."""
    rows, first = [], None
    compared: Comparison | None = None
    for k in KS:
        with ExitStack() as stack:
            federation, folder = begun(world, stack, number)
            head = {
                **plan_head("segments", world.contract, None, INSTITUTIONS, None, 1),
                "delta": DELTA,
                "epsilon": 1.0,
            }
            shares = {"marginals": 15, "clustering": 65, "profiles": 20, "rfm": 0}
            bundle = cast("Bundle", federation.run(parse_plan({**head, "segments": {"k": k}, "shares": shares})))
            (folder / "bundle.json").write_bytes(bundle.to_bytes())
            subject = {"of": "segments", "model": bundle.digest, "segments": len(bundle.segments)}
            result = audited(world, federation, folder / "bundle.json", subject)
        first = first or (bundle, result)
        compared = compare(first[1], result, f"{k} segments for {KS[0]}", segment_costs(first[0], bundle))
        told = {each.name: each for each in result.metrics if each.attributes == ("sex",) and each.group is None}
        leak, balance = told["leakage"], told.get("balance")
        rows.append(
            {"k": k, "leakage": leak.estimate, "leakage_high": leak.high, "verdict": leak.verdict,
             "balance": balance.estimate if balance else None, "explained": bundle.explained}
        )  # fmt: skip
    if compared is None:
        raise RuntimeError("no number of segments")
    return rows, compared


def medians(runs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Row by row over runs; texts are the first run's."""
    result = []
    for rows in zip(*runs, strict=False):
        row: dict[str, Any] = dict(rows[0])
        for key, value in row.items():
            numbers = [other[key] for other in rows if isinstance(other[key], float)]
            row[key] = statistics.median(numbers) if isinstance(value, float) else value
        result.append(row)
    return result


def main() -> int:
    """Measure, print, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    start, world = time.perf_counter(), adult()
    audiences, kinds, texts = [], [], []
    for number in range(options.seeds):
        rows, before, compared = drops(world, number)
        rows += [*coarse(world, number), *thresholds(world, before, number)]
        audiences.append(rows)
        found, of_segments = segments(world, number)
        kinds.append(found)
        texts.append((compared, of_segments))
        print(f"run {number}: {time.perf_counter() - start:.0f} s", flush=True)
    print(f"\nAudience '{LEVEL}': women's impact ratio and lift, exact and as released; verdict of the first run")
    print(
        f"{'mitigation':<36} {'ratio':>6} {'lift':>6} {'audit':>6} {'lift':>6}  interval and verdict, overall verdict"
    )
    for row in medians(audiences):
        print(f"{row['mitigation']:<36} {row['ratio']:6.3f} {row['lift']:6.3f} {row['audit']:6.3f} "
              f"{row['released_lift']:6.3f}  {row['verdict']}, {row['overall']}")  # fmt: skip
    for number, rows in enumerate(audiences):
        print(f"run {number}: by falling association with sex {', '.join(rows[len(DROPPED)]['without'])}")
    print("\nSegments: what they tell about sex (V, and the end of its interval), balance, explained variance")
    for row in medians(kinds):
        print(f"k = {row['k']:<4} V {row['leakage']:.3f} (to {row['leakage_high']:.3f}) {row['verdict']:<14} "
              f"balance {row['balance']:.3f}  explained {row['explained']:.3f}")  # fmt: skip
    print("\n" + "\n".join(each.to_text() for each in texts[0]))
    print(f"{time.perf_counter() - start:.0f} s")
    if options.json:
        written = {"audiences": audiences, "segments": kinds, "comparisons": [c.to_json() for c in texts[0]]}
        options.json.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
