"""The folder onboarding writes, and how it is read again.

    customers.parquet    id, then the training features
    protected.parquet    id, then the protected features: for audits; the trainer never opens it
    onboarding.json      what was counted, the contract's digest, SHA-256 of the two files

The folder appears whole or not at all: it is filled beside its place and renamed. Whatever a killed run leaves is in
`.NAME.partial` next to it, which the next run for the same place removes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from cohortium.client.onboarding.report import ONBOARDING_SCHEMA, OnboardingReport
from cohortium.privacy.table import CustomerTable
from cohortium.study.contract import Contract, Feature
from cohortium.study.errors import DataError, OutputError

__all__ = [
    "CUSTOMERS_FILE",
    "PROTECTED_FILE",
    "REPORT_FILE",
    "file_digest",
    "load_customer_table",
    "load_protected_table",
    "load_report",
    "staging",
]

CUSTOMERS_FILE = "customers.parquet"
PROTECTED_FILE = "protected.parquet"
REPORT_FILE = "onboarding.json"


@contextmanager
def staging(out: Path) -> Iterator[tuple[Path, Path]]:
    """Two private folders beside `out`: (new, scratch). `new` takes the place of `out` when the block ends well.

    An exception leaves `out` as it was. So does a kill, but for the instant between two renames: the earlier folder
    then waits in `.NAME.partial/old`, and the next run puts it back before it starts.

    Raises:
        OutputError: `out` is something else than an earlier onboarding, cannot be written, or is being written.
    """
    _refuse_foreign(out)
    partial = out.parent / f".{out.name}.partial"
    try:
        partial.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(partial / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise OutputError(error.strerror or "cannot be written", place=out.name, fix="choose another folder") from error
    try:
        _take(lock, out)
    except OutputError:
        os.close(lock)  # the folder belongs to the run that holds the lock
        raise
    try:
        new, scratch, old = partial / "new", partial / "scratch", partial / "old"
        if old.is_dir() and not out.exists():
            old.rename(out)
        for folder in (new, scratch):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
        yield new, scratch
        _replace(out, new, old)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(lock)


def _take(lock: int, out: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError("another onboarding writes here", place=out.name, fix="wait until it has ended") from error


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not (out / REPORT_FILE).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise OutputError("exists and is no onboarding folder", place=out.name, fix="choose another folder")


def _replace(out: Path, new: Path, old: Path) -> None:
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    try:
        new.rename(out)
    except OSError as error:
        if old.exists():
            old.rename(out)
        raise OutputError("cannot be put in place", place=out.name, fix="choose another folder") from error


def file_digest(file: Path) -> str:
    """`sha256:…` of a file's bytes."""
    with file.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def load_report(folder: Path) -> OnboardingReport:
    """The report of an onboarding folder; `DataError` when there is none of this version."""
    place = folder.name
    try:
        report = OnboardingReport.model_validate_json((folder / REPORT_FILE).read_bytes())
    except OSError as error:
        raise DataError("holds no finished onboarding", place=place, fix="onboard the institution's tables") from error
    except ValidationError as error:
        raise DataError("onboarding.json is not of this version", place=place, fix="onboard again") from error
    if report.schema_id != ONBOARDING_SCHEMA:
        raise DataError("onboarding.json is not of this version", place=place, fix="onboard again")
    return report


def load_customer_table(folder: Path, contract: Contract) -> CustomerTable:
    """The training features of an onboarding folder, people in the order of their ids.

    Args:
        folder: what `onboard` wrote.
        contract: the contract it was written under.

    Returns:
        columns in the contract's order without the protected ones; keys are the ids as NumPy text.

    Raises:
        DataError: no finished onboarding, another contract, or a file that was changed since.
    """
    return _load(folder, contract, CUSTOMERS_FILE, contract.training_features)


def load_protected_table(folder: Path, contract: Contract) -> CustomerTable:
    """The protected features, for audits alone; otherwise like `load_customer_table`, people in the same order."""
    return _load(folder, contract, PROTECTED_FILE, contract.protected_features)


def _load(folder: Path, contract: Contract, name: str, features: Sequence[Feature]) -> CustomerTable:
    report = load_report(folder)
    if report.contract_digest != contract.digest:
        raise DataError(
            f"was onboarded under another contract than '{contract.name}'", place=folder.name, fix="onboard again"
        )
    file = folder / name
    if not file.is_file() or file_digest(file) != report.outputs.get(name):
        raise DataError(f"{name} is missing or was changed", place=folder.name, fix="onboard again")
    columns = tuple(feature.name for feature in features)
    table = pq.read_table(file, columns=["id", *columns])
    values = np.empty((table.num_rows, len(columns)), dtype=np.float64)
    for position, column in enumerate(columns):
        values[:, position] = table.column(column).cast(pa.float64()).to_numpy()
    return CustomerTable(columns=columns, values=values, keys=np.asarray(table.column("id").to_numpy(), dtype=np.str_))
