"""A second opinion on a ledger: its rows read anew, priced and added up by arithmetic that the ledger does not share.

Reads the file with the standard library and never writes. Nothing here uses `privacy.accounting` or `privacy.ledger`:
what is written twice is what an error would have to be made in twice. Prices are exact fractions; the epsilon is told
by the closed form in terms of the complementary error function, and by two accountants of `dp-accounting`.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

from cohortium.study.errors import DataError

__all__ = ["Replay", "replay"]

_SCHEMA = "cohortium.ledger/2"
_MU2_PER_ONE, _TV_PER_ONE = 2**48, 2**80
_KEPT_FOR_TAIL = Fraction(1, 2**20)
_NEAR, _FAR = 401, 1 / 2**225  # see docs/privacy-guarantee.md, *From the ideal door to the real one*

_COLUMNS = {
    "ledger_header": "schema institution",
    "reservations": "sequence plan run mu2 tv expires reserved_at closed_at digest",
    "charges": "sequence charged_at plan run phase step attempt question mechanism contributions colluders width "
    "bound_squared sigma mu2 tv link",
    "replies": "sequence reply digest",
}
_UNREADABLE = (TypeError, ValueError, ZeroDivisionError, OverflowError)


@dataclass(frozen=True)
class Replay:
    """What the rows of a ledger come to.

    Args:
        institution: whose ledger the file says it is.
        entries: how many charges.
        mu2, tv: the recomputed prices' sums, in units of 2^-48 and 2^-80.
        findings: what is wrong, one line each, naming the entry; empty when nothing is.
    """

    institution: str
    entries: int
    mu2: int
    tv: int
    findings: tuple[str, ...]

    def epsilon(self, delta: float) -> float:
        """The epsilon of the sums by the closed form; infinity when none up to 200 is."""
        below = 0.0
        for step in range(3201):
            epsilon = step / 16
            if self._delta(epsilon) <= delta:
                return _crossing(self._delta, delta, below, epsilon)
            below = epsilon
        return math.inf

    def epsilon_by_pld(self, delta: float) -> float:
        """The same by the privacy loss distribution, pessimistically discretised."""
        grid = math.sqrt(self.mu2 / _MU2_PER_ONE) / 512 or 1.0
        accountant = _dp_accounting("pld.pld_privacy_accountant").PLDAccountant(value_discretization_interval=grid)
        return self._by(accountant, delta)

    def epsilon_by_rdp(self, delta: float) -> float:
        """The same by Renyi orders."""
        return self._by(_dp_accounting("rdp.rdp_privacy_accountant").RdpAccountant(), delta)

    def _delta(self, epsilon: float) -> float:
        distance = self.tv / _TV_PER_ONE
        factor = _NEAR * distance
        by_distance = self._ideal_delta(epsilon) + (1 + math.exp(epsilon)) * distance
        if epsilon < 2 * factor:
            return by_distance
        by_factor = math.exp(factor) * self._ideal_delta(epsilon - 2 * factor) + _FAR * (1 + math.exp(epsilon + factor))
        return min(by_distance, by_factor)

    def _ideal_delta(self, epsilon: float) -> float:
        if not self.mu2:
            return 0.0
        mu = math.sqrt(self.mu2 / _MU2_PER_ONE)
        first = math.erfc((epsilon / mu - mu / 2) / math.sqrt(2)) / 2
        second = math.erfc((epsilon / mu + mu / 2) / math.sqrt(2)) / 2
        return first - math.exp(epsilon) * second

    def _by(self, accountant: Any, delta: float) -> float:
        factor = _NEAR * (self.tv / _TV_PER_ONE)
        epsilon = 2 * factor
        if self.mu2:
            accountant.compose(_dp_accounting("dp_event").GaussianDpEvent(math.sqrt(_MU2_PER_ONE / self.mu2)))
            epsilon += float(accountant.get_epsilon(delta * float(1 - _KEPT_FOR_TAIL) / math.exp(factor)))
        tail = _FAR * (1 + math.exp(min(epsilon + factor, 700)))
        return epsilon if tail <= delta * float(_KEPT_FOR_TAIL) else math.inf


def replay(path: Path, institution: str, lifetime: tuple[int, int] | None = None, today: date | None = None) -> Replay:
    """Read a ledger's file and recompute everything that follows from its rows.

    Finds accidents and clumsy edits in any column of any row, missing rows, sums above what was reserved or above the
    lifetime budget. An owner who computes all links anew, or puts back an old copy, is not found out.

    Args:
        path: `node.sqlite`.
        institution: whose ledger it must be.
        lifetime: (mu2, tv) units that the sums must not pass; not compared when left out.
        today: on which day (UTC) open reservations are held against the lifetime budget; today when left out.

    Raises:
        DataError: there is no such file, or it is no ledger that this version can read.
    """
    tables = _read(path)
    findings: list[str] = []
    if [(row["schema"], row["institution"]) for row in tables["ledger_header"]] != [(_SCHEMA, institution)]:
        findings.append("header: another institution or version")
    genesis = _hashed([_SCHEMA, institution])
    budgets = _reservations(tables["reservations"], tables["tails"], genesis, findings)
    mu2, tv = _charges(tables["charges"], tables["tails"], genesis, budgets, lifetime, findings)
    _replies(tables["replies"], tables["charges"], findings)
    day = (today or datetime.now(UTC).date()).isoformat()
    held = sum(max(rest[0], 0) for rest, open_until in budgets.values() if open_until >= day)
    if lifetime is not None and held and mu2 + held > lifetime[0]:
        findings.append("reservations: they hold more than what is left of the lifetime budget")
    return Replay(institution, len(tables["charges"]), mu2, tv, tuple(findings))


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table, and the highest numbers that were ever given (`tails`), by one consistent read."""
    fix = "point at the state folder of a node; never begin a new ledger in place of a lost one"
    if not path.is_file():
        raise DataError("the ledger is missing", place=str(path), fix=fix)
    log = path.with_name(path.name + "-wal")
    settled = not log.exists() or log.stat().st_size == 0  # nobody has it open: leave no file beside it
    uri = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if settled else ''}"
    try:
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("BEGIN")
            tables = {}
            for table, columns in _COLUMNS.items():
                found = {row["name"] for row in connection.execute(f"PRAGMA table_info({table})")}
                if found != set(columns.split()):
                    raise DataError("is no ledger of this version", place=str(path), fix=fix)
                tables[table] = [dict(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY 1")]
            tables["tails"] = [dict(row) for row in connection.execute("SELECT name, seq FROM sqlite_sequence")]
            return tables
    except sqlite3.DatabaseError as error:
        raise DataError("is no ledger that can be read", place=str(path), fix=fix) from error


def _reservations(
    rows: list[dict[str, Any]], tails: list[dict[str, Any]], genesis: str, findings: list[str]
) -> dict[tuple[str, str], tuple[list[int], str]]:
    """What every reservation may still charge, and until when it is open, by plan and run."""
    budgets: dict[tuple[str, str], tuple[list[int], str]] = {}
    _numbered("reservation", "reservations", rows, tails, findings)
    for row in rows:
        names = _COLUMNS["reservations"].split()[:-1]
        try:
            whole = row["digest"] == _hashed([genesis, *(row[name] for name in names)])
            budget = [int(row["mu2"]), int(row["tv"])]
        except _UNREADABLE:
            whole, budget = False, [0, 0]
        if not whole:
            findings.append(f"reservation {row['sequence']}: altered")
        budgets[row["plan"], row["run"]] = (budget, "" if row["closed_at"] is not None else str(row["expires"]))
    return budgets


def _charges(
    rows: list[dict[str, Any]],
    tails: list[dict[str, Any]],
    genesis: str,
    budgets: dict[tuple[str, str], tuple[list[int], str]],
    lifetime: tuple[int, int] | None,
    findings: list[str],
) -> tuple[int, int]:
    """The recomputed sums; takes every price from its reservation's rest."""
    total, link, passed = [0, 0], genesis, False
    slots: set[tuple[Any, ...]] = set()
    _numbered("entry", "charges", rows, tails, findings)
    for row in rows:
        place = f"entry {row['sequence']}"
        try:
            expected = _hashed([link, *(row[name] for name in _COLUMNS["charges"].split()[:-1])])
            price = _price(row)
        except _UNREADABLE:
            findings.append(f"{place}: cannot be read")
            link = row["link"]
            continue
        if price is None:
            findings.append(f"{place}: unknown accounting event")
            price = (0, 0)
        elif price != (row["mu2"], row["tv"]):
            findings.append(f"{place}: costs {price}, and {(row['mu2'], row['tv'])} was charged")
        elif row["link"] != expected:
            findings.append(f"{place}: altered, or the entry before it is")
        link = row["link"]
        slot = tuple(row[name] for name in ("plan", "run", "phase", "step", "attempt"))
        if slot in slots:
            findings.append(f"{place}: the question's place was filled before")
        slots.add(slot)
        rest = budgets.get((row["plan"], row["run"]), ([-1, -1], ""))[0]
        for currency in (0, 1):
            total[currency] += price[currency]
            rest[currency] -= price[currency]
        if min(rest) < 0:
            findings.append(f"{place}: passes what its run reserved")
        if lifetime is not None and not passed and (total[0] > lifetime[0] or total[1] > lifetime[1]):
            findings.append(f"{place}: passes the lifetime budget")
            passed = True
    return total[0], total[1]


def _price(row: dict[str, Any]) -> tuple[int, int] | None:
    """(mu2, tv) of a charge; None for a mechanism or a share that this version does not know."""
    bound, sigma, width = int(row["bound_squared"]), int(row["sigma"]), int(row["width"])
    t, c = int(row["contributions"]), int(row["colluders"])
    if (row["mechanism"], t, c) == ("discrete-gaussian", 1, 0):
        more = 0
    elif row["mechanism"] == "discrete-gaussian-share" and 1 <= c < t:
        more = 1
    else:
        return None
    mu_squared, distance = Fraction(bound, sigma**2), Fraction(width, 24 * sigma**2)
    return math.ceil(mu_squared * _MU2_PER_ONE), math.ceil(distance * _TV_PER_ONE) + more


def _replies(rows: list[dict[str, Any]], charges: list[dict[str, Any]], findings: list[str]) -> None:
    paid = {row["sequence"]: row for row in charges}
    for row in rows:
        charge, reply = paid.get(row["sequence"]), row["reply"]
        whole = charge is not None and isinstance(reply, bytes) and _fits(len(reply), charge)
        if not whole or charge is None:
            findings.append(f"reply {row['sequence']}: does not belong to its charge")
        elif row["digest"] != "sha256:" + hashlib.sha256(f"{charge['link']}\0".encode() + reply).hexdigest():
            findings.append(f"reply {row['sequence']}: altered")


def _fits(length: int, charge: dict[str, Any]) -> bool:
    """Whether a reply holds its words; what the door keeps beside them may follow."""
    words = charge["width"]
    return isinstance(words, int) and length >= 8 * words


def _numbered(
    word: str, table: str, rows: list[dict[str, Any]], tails: list[dict[str, Any]], findings: list[str]
) -> None:
    """Whether rows are numbered from 1 without a gap up to the last number ever given."""
    numbers = [row["sequence"] for row in rows]
    last = next((row["seq"] for row in tails if row["name"] == table), 0)
    if not isinstance(last, int):
        findings.append(f"{word}s: the last number given is altered")
        return
    wanted = list(range(1, max(len(numbers), last) + 1))
    if numbers != wanted:
        gap = next((n for n, found in zip(wanted, [*numbers, None], strict=False) if n != found), len(wanted))
        findings.append(f"{word} {gap}: missing")
    elif last != len(numbers):
        findings.append(f"{word} {len(numbers)}: was never numbered")


def _hashed(values: list[Any]) -> str:
    text = json.dumps(values, separators=(",", ":"), ensure_ascii=True)
    return f"sha256:{hashlib.sha256(text.encode('ascii')).hexdigest()}"


def _dp_accounting(module: str) -> Any:
    """A module of `dp-accounting`, imported when an epsilon is first told by it: that takes most of a second."""
    return import_module(f"dp_accounting.{module}")


def _crossing(function: Any, level: float, low: float, high: float) -> float:
    """Where a function falls to a level between two points, from above."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if function(middle) <= level else (middle, high)
    return high
