"""An encoder's run and a campaign that are killed have charged at most their price, and resumed they end as one run."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from cohortium.client.audience import read_manifest
from cohortium.models.studies import phases
from cohortium.privacy.accounting import Spend
from cohortium.privacy.ledger import Ledger, open_store
from cohortium.study.model import EncoderModel, LookalikeModel, Model, load_model

from .test_kill import REGIONS, call_main, dies

HEAD = """
schema = "cohortium.plan/1"
name = "{study}"
study = "{study}"
purpose = "research"
lawful_basis = "consent"
regions = ["simulation"]
contract = "contract.toml"
expires = 2099-12-31
trust = "local"
epsilon = 1.4
delta = 1e-6
min_institutions = 2
min_cell = 50
"""
PLANS = {
    "encoder": HEAD.format(study="encoder") + "[encoder]\nrounds = 3\nhidden = 4\nwidth = 2\n",
    "campaign": HEAD.format(study="lookalike")
    + 'model = "encoder/encoder.safetensors"\n[lookalike]\nseed = "valued"\nlevels = [{name = "broad", share = 0.4}]\n',
}


@dataclass(frozen=True)
class Run:
    """A run of one of the plans in a folder that also holds the institutions' nodes."""

    study: Path
    name: str

    @property
    def words(self) -> list[str]:
        folder, out = self.study, self.study / self.name
        words = ["simulate", str(folder / f"{self.name}.toml"), "--data", str(folder / "people.csv"), "--quiet"]
        words += ["--institutions", "region", "--state", str(folder / "nodes"), "--out", str(out)]
        if self.name == "campaign":
            words += ["--seeds", str(folder / "valued.csv"), "--seed-institutions", "north", "--audience", "broad"]
        return words

    def dies_at_the_line_of(self, phase: str, step: int) -> None:
        """Run it until a line of progress is about to say that this question was answered."""
        place, marker = ("cohortium.simulations.run_folder", "_asked"), f"phase='{phase}', step={step},"
        dies(*place, marker, "1", "before", *self.words)

    def resume(self) -> bytes:
        """Run it to its end; the bytes of the model."""
        assert call_main(*self.words, "--resume") == 0
        return self.file.read_bytes()

    @property
    def file(self) -> Path:
        return self.study / self.name / ("encoder.safetensors" if self.name == "encoder" else "lookalike.safetensors")

    @property
    def model(self) -> Model[Any]:
        """What was released, under the key that the charter pins."""
        signer = json.loads((self.study / self.name / "charter.json").read_bytes())["coordinator"]
        return load_model(self.file, EncoderModel if self.name == "encoder" else LookalikeModel, signer=signer)

    def answered(self) -> dict[str, list[tuple[Any, ...]]]:
        """By institution, every charge of this plan with the digest of the reply that it paid for; ledgers verify."""
        plan = json.loads((self.study / self.name / "run.json").read_bytes())["plan"]
        found = {}
        for name in REGIONS:
            store = open_store(self.study / "nodes" / name / "node.sqlite", create=False)
            ledger = Ledger(store, name, Spend())
            ledger.verify()
            with store.begin() as connection:
                rows = connection.execute(
                    text(
                        "SELECT phase, step, attempt, question, link, r.digest FROM charges c"
                        " LEFT JOIN replies r USING (sequence) WHERE plan = :plan ORDER BY sequence"
                    ),
                    {"plan": plan},
                )
                found[name] = [tuple(row) for row in rows]
            ledger.close()
        return found

    def ended_for_the_price_of_one(self, before: dict[str, list[tuple[Any, ...]]]) -> None:
        """Every question was answered once; what was answered before the kill was not answered again."""
        document, after = self.model.document, self.answered()
        asked = [(record.phase, record.step, record.attempt, record.question) for record in document.releases]
        foreseen = [(phase.name, step, 1) for phase in phases(document.plan) for step in range(phase.rounds)]
        assert sorted(each[:3] for each in asked) == sorted(foreseen)
        for name, rows in after.items():
            assert [row[:4] for row in rows] == asked
            assert all(reply is not None for *_, reply in rows)
            assert rows[: len(before[name])] == before[name]
        price = Spend(sum(record.mu2 for record in document.releases), sum(record.tv for record in document.releases))
        for name in REGIONS:
            ledger = Ledger(open_store(self.study / "nodes" / name / "node.sqlite", create=False), name, Spend())
            assert ledger.spent(document.plan.digest) == price
            ledger.close()


@pytest.fixture
def study(study_folder: Path) -> Path:
    """Both plans and, of the 900 customers, a list of the 140 in the north who spend most."""
    for name, plan in PLANS.items():
        (study_folder / f"{name}.toml").write_text(plan, encoding="utf-8")
    with (study_folder / "people.csv").open(encoding="utf-8") as file:
        north = [row for row in csv.DictReader(file) if row["region"] == "north"]
    best = sorted(north, key=lambda row: -float(row["spend"]))[:140]
    (study_folder / "valued.csv").write_text("\n".join(["id", *(row["id"] for row in best)]) + "\n", encoding="utf-8")
    return study_folder


def test_runs_killed_among_their_questions_end_for_the_price_of_one_run_each(study: Path) -> None:
    for name, phase, step in (("encoder", "training", 1), ("campaign", "features-steps", 0)):
        run = Run(study, name)
        run.dies_at_the_line_of(phase, step)
        before = run.answered()
        assert {rows[-1][:3] for rows in before.values()} == {(phase, step, 1)}
        assert not run.file.exists()
        model = run.resume()
        run.ended_for_the_price_of_one(before)
        run.file.unlink()
        assert run.resume() == model, "of stored answers, to the byte"
        run.ended_for_the_price_of_one(before)
    for name in ("south", "west"):
        (export,) = (study / "nodes" / name / "exports").iterdir()
        assert read_manifest(export).sequence == 1
    assert not (study / "nodes" / "north" / "exports").exists()
