"""Rules: time of a decision over all packs, and our evaluator against schema-checked Cedar.

python benchmarks/rules.py [--json OUT] [--sheets 10000] [--seed 0]

Decision: all packs that ship, every fact stated, admission, the digest of the facts and the id included; the median
must stay within 2 ms. The slowest case, no fact stated and every rule refusing, is told beside. Differential: random
fact sheets, every fact stated, decided by us and by Cedar under the exported policies and schema; the rules that refuse
must be the same, one by one. Exit code 1 when the time or a decision is off.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, get_args

import cedarpy

from cohortium.governance.rules import Facts, Pack, Stage, evaluate, export_cedar, fact_schema, load_packs, pack_names

DAY = date(2027, 12, 31)
"""A day on which every dated rule that ships is in force."""

TARGET_MS = 2.0
REPEATS, BATCH = 400, 500


def numbers() -> dict[str, list[float]]:
    """For every number that a rule is about: that number, what lies just beside it, and some far from it."""
    found: dict[str, set[float]] = {name: {0, 1, 1000} for name, spec in fact_schema().items() if spec.kind == "number"}
    for pack in load_packs(pack_names()):
        for rule in pack.rules:
            if rule.limit is not None:
                number = rule.limit.number
                steps = (1.0,) if fact_schema()[rule.limit.fact].integer else (1e-9, 1e-12, 0.5)
                found[rule.limit.fact] |= {number, *(number + sign * step for step in steps for sign in (-1, 1))}
    return {name: sorted(value for value in values if value >= 0) for name, values in found.items()}


def random_sheet(rng: random.Random, ranges: dict[str, list[float]]) -> Facts:
    """A value for every fact."""
    return Facts.of({name: random_value(rng, name, ranges) for name in fact_schema()}, "drawn")


def random_value(rng: random.Random, name: str, ranges: dict[str, list[float]]) -> Any:
    """One of the values that the schema allows."""
    spec = fact_schema()[name]
    if spec.may_be_none and rng.random() < 0.3:
        return False
    if spec.kind == "bool":
        return rng.random() < 0.5
    if spec.kind == "number":
        return rng.choice(ranges[name])
    if spec.kind == "text":
        return rng.choice(spec.values)
    return date(2027, 1, 31) if spec.kind == "date" else f"document {rng.randrange(100)}"


def differential(packs: Sequence[Pack], sheets: int, seed: int) -> dict[str, int]:
    """How many decisions and single rules were compared, and how many of them differ."""
    export = export_cedar(packs, DAY)
    schema = json.dumps(export.schema)
    checked = cedarpy.validate_policies(export.policies, schema)
    if not checked.validation_passed:
        raise SystemExit(f"Cedar refuses the export: {checked.errors}")
    stages: list[Stage] = [stage for stage in get_args(Stage) if stage in export.schema[""]["actions"]]
    rng, ranges = random.Random(seed), numbers()
    told = {"sheets": sheets, "decisions": 0, "admitted": 0, "refusing_rules": 0, "disagreements": 0}
    for start in range(0, sheets, BATCH):
        drawn = [(random_sheet(rng, ranges), rng.choice(stages)) for _ in range(min(BATCH, sheets - start))]
        answers = cedarpy.is_authorized_batch(
            [export.request(facts.facts, stage) for facts, stage in drawn], export.policies, [], schema=schema
        )
        for (facts, stage), answer in zip(drawn, answers, strict=True):
            ours = evaluate(packs, facts, stage, DAY)
            theirs = set(answer.diagnostics.id_annotations_by_reason.values()) - {"permit"}
            refusing = {finding.rule for finding in ours.findings}
            told["decisions"] += 1
            told["admitted"] += ours.admitted
            told["refusing_rules"] += len(refusing)
            same = refusing == theirs and ours.admitted == answer.allowed and not answer.diagnostics.errors
            told["disagreements"] += not same
    return told


def decision_times(packs: Sequence[Pack]) -> dict[str, float]:
    """Milliseconds, digest of the facts and id included: the median with every fact stated, and with none."""
    sheet = {name: value for pack in packs for name, value in pack.sheet.items()}
    return {name: _median_ms(packs, values) for name, values in (("all_facts", sheet), ("no_facts", {}))}


def _median_ms(packs: Sequence[Pack], values: dict[str, Any]) -> float:
    taken = []
    for _ in range(REPEATS):
        facts = Facts.of(values, "sheet")
        start = time.perf_counter()
        evaluate(packs, facts, "admission", DAY).public  # noqa: B018 - the id is computed when it is asked for
        taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken)


def main() -> int:
    """Print and optionally write the figures; 1 when the time or a decision is off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheets", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    packs = load_packs(pack_names())
    start = time.perf_counter()
    times, told = decision_times(packs), differential(packs, arguments.sheets, arguments.seed)
    figures = {"rules": sum(len(pack.rules) for pack in packs), "ms": times, **told}
    figures["seconds"] = round(time.perf_counter() - start, 1)
    print(json.dumps(figures, indent=2))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return int(times["all_facts"] > TARGET_MS or told["disagreements"] > 0)


if __name__ == "__main__":
    sys.exit(main())
