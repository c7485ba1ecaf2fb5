"""The output folder: whole or not at all, the same for the same input, and never read under another contract."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cohortium.client.onboarding import load_customer_table, load_protected_table, load_report, onboard
from cohortium.client.onboarding.store import staging
from cohortium.study.contract import Contract
from cohortium.study.errors import DataError, OutputError

FILES = ["customers.parquet", "onboarding.json", "protected.parquet"]


def test_the_trainers_file_holds_no_protected_feature(contract: Contract, make_lines: Any, tmp_path: Path) -> None:
    onboard(contract, {"purchases": make_lines(1)}, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == FILES
    trained = pq.read_schema(tmp_path / "out" / "customers.parquet").names
    audited = pq.read_schema(tmp_path / "out" / "protected.parquet").names
    assert trained == ["id", *(feature.name for feature in contract.training_features)]
    assert audited == ["id", *(feature.name for feature in contract.protected_features)]


def test_identical_input_gives_identical_output_whatever_the_order_of_lines(
    contract: Contract, make_lines: Any, tmp_path: Path
) -> None:
    frame = make_lines(2, lines=5_000, people=700)
    for name, lines in (("a", frame), ("b", frame), ("c", frame.sample(frac=1, random_state=0))):
        onboard(contract, {"purchases": lines}, tmp_path / name)
    for file in ("customers.parquet", "protected.parquet"):
        assert len({(tmp_path / name / file).read_bytes() for name in "abc"}) == 1
    reports = [json.loads((tmp_path / name / "onboarding.json").read_text()) for name in "abc"]
    for report in reports:
        report.pop("seconds")
    assert reports[0] == reports[1] == reports[2]


def test_a_second_onboarding_replaces_the_first(contract: Contract, make_lines: Any, tmp_path: Path) -> None:
    first = onboard(contract, {"purchases": make_lines(1, people=10)}, tmp_path / "out")
    second = onboard(contract, {"purchases": make_lines(1, people=30)}, tmp_path / "out")
    assert first.people < second.people == len(load_customer_table(tmp_path / "out", contract))
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_failure_leaves_the_earlier_folder(contract: Contract, make_lines: Any, tmp_path: Path) -> None:
    onboard(contract, {"purchases": make_lines(1)}, tmp_path / "out")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in FILES}
    with pytest.raises(DataError):
        onboard(contract, {"purchases": make_lines(1)[:0]}, tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


_HELD = """
import sys, time
from pathlib import Path
from cohortium.client.onboarding.store import staging
with staging(Path(sys.argv[1])) as (new, scratch):
    (new / "customers.parquet").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_killed_run_leaves_nothing_that_looks_finished(contract: Contract, make_lines: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", _HELD, str(out)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"writing\n"
    with pytest.raises(OutputError, match="another onboarding writes here"):
        onboard(contract, {"purchases": make_lines(1)}, out)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    with pytest.raises(DataError, match="holds no finished onboarding"):
        load_customer_table(out, contract)
    onboard(contract, {"purchases": make_lines(1)}, out)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_kill_between_the_two_renames_is_mended_by_the_next_run(
    contract: Contract, make_lines: Any, tmp_path: Path
) -> None:
    onboard(contract, {"purchases": make_lines(1)}, tmp_path / "out")
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / "out").rename(tmp_path / ".out.partial" / "old")
    with pytest.raises(DataError):
        onboard(contract, {"purchases": make_lines(1)[:0]}, tmp_path / "out")
    assert len(load_customer_table(tmp_path / "out", contract))
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_the_lock_of_a_run_in_progress_is_not_removed(tmp_path: Path) -> None:
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    with (partial / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (partial / "new").mkdir()
        with pytest.raises(OutputError), staging(tmp_path / "out"):
            pass
        assert (partial / "new").is_dir()


def test_a_folder_of_something_else_is_not_touched(contract: Contract, make_lines: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="is no onboarding folder"):
        onboard(contract, {"purchases": make_lines(1)}, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_another_contract_is_refused(contract: Contract, make_contract: Any, make_lines: Any, tmp_path: Path) -> None:
    onboard(contract, {"purchases": make_lines(1)}, tmp_path / "out")
    other = make_contract(max_amount=500.0)
    for load in (load_customer_table, load_protected_table):
        with pytest.raises(DataError, match="another contract"):
            load(tmp_path / "out", other)


@pytest.mark.parametrize("name", ["customers.parquet", "onboarding.json"])
def test_a_changed_file_is_refused(name: str, contract: Contract, make_lines: Any, tmp_path: Path) -> None:
    onboard(contract, {"purchases": make_lines(1)}, tmp_path / "out")
    file = tmp_path / "out" / name
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(DataError, match="fix: onboard again"):
        load_customer_table(tmp_path / "out", contract)


def test_the_report_on_disk_is_the_report_returned(contract: Contract, make_lines: Any, tmp_path: Path) -> None:
    started = time.perf_counter()
    report = onboard(contract, {"purchases": make_lines(1)}, tmp_path / "out")
    assert load_report(tmp_path / "out") == report
    assert report.contract_digest == contract.digest
    assert set(report.seconds) == {"features", "duplicates", "writing"}
    assert sum(report.seconds.values()) <= time.perf_counter() - started
    assert all(digest.startswith("sha256:") for digest in report.outputs.values())


def test_source_files_are_recorded_by_name_size_and_digest(contract: Contract, make_lines: Any, tmp_path: Path) -> None:
    make_lines(1).to_parquet(tmp_path / "lines.parquet")
    report = onboard(contract, {"purchases": tmp_path / "lines.parquet"}, tmp_path / "out")
    (facts,) = report.tables[0].source["files"]
    assert facts["name"] == "lines.parquet"
    assert facts["bytes"] == (tmp_path / "lines.parquet").stat().st_size
    assert len(facts["sha256"]) == 64
    assert str(tmp_path) not in report.model_dump_json()
