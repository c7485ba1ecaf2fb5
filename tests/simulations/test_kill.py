"""A run that is killed at any moment has charged at most its price, and resumed it ends as one run."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TextIO

import pyarrow.parquet as pq
import pytest

from cohortium.cli.main import main
from cohortium.governance.report import load_summary
from cohortium.privacy.accounting import Spend
from cohortium.privacy.ledger import Ledger, open_store
from cohortium.study.bundle import load_bundle

REGIONS = ("north", "south", "west")
ATTEMPTS = 5
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["cohortium.cli.main", "cohortium.simulations.study"])
"""Every run is a process of its own, forked from one that has only imported: what takes longest is done once."""

BEGINS = """
import os, signal, sys
os.setsid()  # SIGINT stops the run, and no other process, even where this session ignores it
signal.signal(signal.SIGINT, signal.default_int_handler)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
os.dup2(said.fileno(), 2)
said.close()
sys.argv = ["cohortium", *words]
"""
RUNS = """
from cohortium.cli.main import main

main()
"""
DIES_AT = """
import importlib, os, signal, sys
from cohortium.cli.main import main

module, name, marker, count, order = sys.argv[1:6]
del sys.argv[1:6]
place = importlib.import_module(module)
*path, last = name.split(".")
for step in path:
    place = getattr(place, step)
honest, left = getattr(place, last), int(count)

def deadly(*args, **kwargs):
    global left
    if marker in "".join(map(str, args)):
        left -= 1
    result = None if left < 1 and order == "before" else honest(*args, **kwargs)
    if left < 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(place, last, deadly)
main()
"""
"""Runs the command and dies in the Nth call of a function that has the marker in its arguments."""


@dataclass(frozen=True)
class Ended:
    """A run that was resumed to its end, and how much of it was paid before."""

    before: dict[str, Spend]
    price: Spend


def words(study: Path) -> list[str]:
    options = ["--data", str(study / "people.csv"), "--institutions", "region", "--out", str(study / "out")]
    return ["simulate", str(study / "plan.toml"), *options]


def call_main(*arguments: str) -> int:
    """Exit code of the command in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cohortium", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
    return int(left.value.code or 0)


@contextmanager
def child(code: str, *words: str) -> Iterator[tuple[ForkServerProcess, TextIO]]:
    """Python code in a process of its own with these arguments, and what it says on standard error."""
    reads, writes = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=exec, args=(BEGINS + code, {"__name__": "child", "said": writes, "words": words}))
    process.start()
    writes.close()
    with reads, open(reads.fileno(), encoding="utf-8", closefd=False) as said:
        try:
            yield process, said
        finally:
            process.kill()
            process.join()


def dies(*words: str) -> None:
    """A run that dies in the call that `DIES_AT` was told."""
    with child(DIES_AT, *words) as (process, stderr):
        said = stderr.read()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, said


def ended_by(signal_: signal.Signals, study: Path, line: str) -> tuple[int | None, str]:
    """Start `simulate` and send its group a signal at a progress line; the exit code and what was said after it."""
    with child(RUNS, *words(study)) as (process, stderr):
        assert process.pid is not None
        said = []
        for text in stderr:
            said.append(text)
            if line in text:
                os.killpg(process.pid, signal_)
                break
        else:
            pytest.fail(f"'{line}' was never said:\n{''.join(said)}")
        rest = stderr.read()
        process.join(60)
        return process.exitcode, rest


def spends(study: Path) -> dict[str, Spend]:
    """What every ledger that is there says; each verifies."""
    found = {}
    for path in sorted((study / "out").rglob("node.sqlite")):
        ledger = Ledger(open_store(path), path.parent.name, Spend())
        try:
            ledger.verify()
            found[path.parent.name] = ledger.spent()
        finally:
            ledger.close()
    return found


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Filled by the first test of a worker: the price and the files of a run that nobody disturbed."""
    return {"folder": tmp_path_factory.mktemp("reference")}


@pytest.fixture
def one_run(reference: dict[str, object], study_folder: Path) -> tuple[Spend, set[str]]:
    if "price" not in reference:
        study = shutil.copytree(study_folder, Path(str(reference["folder"])) / "study")
        assert call_main(*words(study), "--quiet") == 0
        prices = set(spends(study).values())
        assert len(prices) == 1
        reference.update(price=prices.pop(), files=names(study / "out"))
    price, files = reference["price"], reference["files"]
    assert isinstance(price, Spend)
    assert isinstance(files, set)
    return price, files


@pytest.fixture
def resumed(study_folder: Path, one_run: tuple[Spend, set[str]]) -> Callable[[], Ended]:
    """Resume what a kill left to its end, with everything that must hold before and after."""

    def resume() -> Ended:
        price, files = one_run
        before = spends(study_folder)
        for spent in before.values():
            assert spent.fits(price)
        assert call_main(*words(study_folder), "--quiet", "--resume") == 0
        assert spends(study_folder) == dict.fromkeys(REGIONS, price)
        out = study_folder / "out"
        assert names(out) == files
        bundle = load_bundle(out / "bundle.json")
        assert Spend(sum(r.mu2 for r in bundle.releases), sum(r.tv for r in bundle.releases)) == price
        assert load_summary(out / "summary.json").bundle == bundle
        assert (out / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>")
        scored = [pq.read_table(out / "institutions" / name / "segments.parquet") for name in REGIONS]
        assert [table.num_rows for table in scored] == [300, 300, 300]
        assert all(table.schema.metadata[b"bundle"] == bundle.digest.encode() for table in scored)
        return Ended(before, price)

    return resume


class TestKilledAtAProgressLine:
    @pytest.mark.parametrize(
        "line",
        ["  north:", "federated study", "marginals 1:", "cells 3:", "profiles 1:", "scoring"],
        ids=["onboarding", "onboarded", "first question", "middle question", "last question", "scoring"],
    )
    def test_resume_ends_it_for_the_price_of_one_run(
        self, study_folder: Path, resumed: Callable[[], Ended], line: str
    ) -> None:
        for _ in range(ATTEMPTS):  # a busy machine may finish the run before the signal arrives
            shutil.rmtree(study_folder / "out", ignore_errors=True)
            code, _rest = ended_by(signal.SIGKILL, study_folder, line)
            if code == -signal.SIGKILL:
                break
        assert code == -signal.SIGKILL
        ended = resumed()
        if line in ("marginals 1:", "cells 3:"):
            assert all(spent.mu2 > 0 for spent in ended.before.values())
        if line in ("profiles 1:", "scoring"):
            assert set(ended.before.values()) == {ended.price}

    def test_stop_from_the_keyboard(self, study_folder: Path, resumed: Callable[[], Ended]) -> None:
        for _ in range(ATTEMPTS):
            shutil.rmtree(study_folder / "out", ignore_errors=True)
            code, rest = ended_by(signal.SIGINT, study_folder, "marginals 1:")
            assert "ignored" not in rest, "the signal came in time and was swallowed"
            if code != 0:
                break
        assert code == 130, rest
        assert rest.splitlines()[-1] == "stopped"
        assert "Traceback" not in rest
        assert all(spent.mu2 > 0 for spent in resumed().before.values())


class TestKilledWithinAStep:
    @pytest.mark.parametrize(
        ("place", "marker", "count", "order"),
        [
            ("cohortium.privacy.ledger Ledger.settle", "", 5, "before"),
            ("cohortium.privacy.ledger Ledger.settle", "", 5, "after"),
            ("cohortium.study.keys os.replace", ".node.json.partial", 2, "before"),
            ("cohortium.simulations.run_folder os.replace", "institutions.json.partial", 1, "before"),
            ("cohortium.simulations.run_folder os.replace", "bundle.json.partial", 1, "before"),
            ("cohortium.client.scoring os.replace", "segments.partial", 2, "before"),
            ("cohortium.client.onboarding.engine Engine.run", "", 30, "after"),
        ],
        ids=[
            "charged, not answered",
            "answered, not sent",
            "half a node",
            "half the listing",
            "half a bundle",
            "half the segments",
            "within onboarding",
        ],
    )
    def test_resume_ends_it_for_the_price_of_one_run(
        self, study_folder: Path, resumed: Callable[[], Ended], place: str, marker: str, count: int, order: str
    ) -> None:
        dies(*place.split(), marker, str(count), order, *words(study_folder))
        ended = resumed()
        if "Ledger" in place:
            assert any(0 < spent.mu2 < ended.price.mu2 for spent in ended.before.values())

    def test_a_folder_that_was_only_begun_is_begun_again(
        self, study_folder: Path, one_run: tuple[Spend, set[str]]
    ) -> None:
        place = ("cohortium.simulations.run_folder", "os.replace", "run.json.partial", "1", "before")
        dies(*place, *words(study_folder))
        assert names(study_folder / "out") == {"run.json.partial"}
        assert call_main(*words(study_folder), "--quiet") == 0
        assert names(study_folder / "out") == one_run[1]


class TestKilledInASecureSum:
    """Coordinator and institutions die at once, at a value that one of them writes down."""

    @pytest.mark.parametrize(
        ("place", "marker", "count", "order"),
        [
            ("cohortium.privacy.secure_sum.state SqlOnceStore.keep", "masked", 5, "after"),
            ("cohortium.privacy.secure_sum.state SqlOnceStore.keep", "survivors", 6, "before"),
            ("cohortium.privacy.secure_sum.state SqlOnceStore.keep", "sum ", 2, "before"),
        ],
        ids=["masked, not answered", "survivors named", "unmasked, not written"],
    )
    def test_resume_ends_it_for_the_price_of_one_run(
        self, study_folder: Path, place: str, marker: str, count: int, order: str
    ) -> None:
        plan = study_folder / "plan.toml"
        text = plan.read_text(encoding="utf-8")
        for old, new in (('"local"', '"distributed"'), ("min_institutions = 2", "min_institutions = 3")):
            assert text.count(old) == 1
            text = text.replace(old, new)
        plan.write_text(text, encoding="utf-8")
        dies(*place.split(), marker, str(count), order, *words(study_folder))
        before = spends(study_folder)
        assert all(spent.mu2 > 0 for spent in before.values())
        assert call_main(*words(study_folder), "--quiet", "--resume") == 0
        bundle = load_bundle(study_folder / "out" / "bundle.json")
        assert {(record.attempt, record.institutions) for record in bundle.releases} == {(1, 3)}
        price = Spend(sum(r.mu2 for r in bundle.releases), sum(r.tv for r in bundle.releases))
        assert spends(study_folder) == dict.fromkeys(REGIONS, price)
        assert all(0 < spent.mu2 < price.mu2 for spent in before.values())
