"""A synthetic world of banks with known truth: the demo's offline default, and the ground truth of tests.

Everything is generated; no person in it exists. Each bank has its own mix of six true segments (drawn from a Dirichlet
distribution: non-IID), some people are customers of two or three banks under one id, sex and age depend on the segment
(so that a segment model can be unfair), some people have not consented, and the first bank has valued some of its
customers as seeds for lookalikes.

Files, in the folder given:

    contract.toml                 the feature contract (packaged `bank-world.contract.toml`)
    README.txt                    one line: synthetic
    truth.parquet                 id, institution, segment, seed, consent, home: what an experiment may know
    bank-1/customers.parquet      one line a customer          bank-1/purchases.parquet      their purchases of 2024
    bank-1/consent.parquet        customer_id, consent         bank-1/seeds.parquet          customer_id (first bank)
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cohortium.client.onboarding.engine import literal
from cohortium.study.contract import Contract, parse_contract
from cohortium.study.errors import OutputError

__all__ = [
    "SEGMENTS",
    "Bank",
    "BankWorld",
    "BankWorldSpec",
    "Segment",
    "bank_world_contract_text",
    "load_bank_world_contract",
    "make_bank_world",
    "write_benchmark_lines",
]

CATEGORIES = ("groceries", "dining", "travel", "home", "health", "leisure")
CHANNELS = ("branch", "web", "app")
AGE_BANDS = ("18-29", "30-44", "45-59", "60+")

_SECONDARY_OVERLAP = 0.2
_SMALLEST_AMOUNT = 0.01


@dataclass(frozen=True)
class Segment:
    """One true segment and how its people behave.

    Args:
        name: for reports.
        purchases: mean purchases a year.
        amount: (mean, standard deviation) of the log of an amount in EUR.
        categories, channels: probabilities, in the order of CATEGORIES and CHANNELS.
        active: share of the year, counted from its beginning, in which they buy: below 1 they have lapsed.
        growth: how much more probable a purchase is at the end of the active time than at its beginning, -1..1.
        ages: probabilities of AGE_BANDS.
        women: share of women.
        products: mean number of products above the first.
        seed: probability that the first bank valued such a customer.
    """

    name: str
    purchases: float
    amount: tuple[float, float]
    categories: tuple[float, ...]
    channels: tuple[float, ...]
    active: float
    growth: float
    ages: tuple[float, ...]
    women: float
    products: float
    seed: float


SEGMENTS: tuple[Segment, ...] = (
    Segment("everyday families", 70, (3.4, 0.6), (0.60, 0.10, 0.02, 0.14, 0.08, 0.06), (0.10, 0.45, 0.45), 1.0, 0.0,
            (0.08, 0.55, 0.32, 0.05), 0.58, 2.0, 0.02),
    Segment("affluent travellers", 45, (4.9, 0.8), (0.10, 0.24, 0.42, 0.08, 0.04, 0.12), (0.08, 0.37, 0.55), 1.0, 0.1,
            (0.05, 0.35, 0.45, 0.15), 0.40, 3.5, 0.45),
    Segment("young digital", 60, (2.6, 0.6), (0.22, 0.36, 0.08, 0.04, 0.03, 0.27), (0.01, 0.14, 0.85), 1.0, 0.6,
            (0.75, 0.22, 0.03, 0.00), 0.48, 0.6, 0.12),
    Segment("branch pensioners", 22, (3.7, 0.5), (0.46, 0.08, 0.05, 0.11, 0.25, 0.05), (0.86, 0.12, 0.02), 1.0, 0.0,
            (0.00, 0.02, 0.13, 0.85), 0.60, 1.2, 0.03),
    Segment("home builders", 16, (5.2, 0.9), (0.12, 0.05, 0.03, 0.70, 0.05, 0.05), (0.25, 0.60, 0.15), 1.0, -0.4,
            (0.10, 0.50, 0.32, 0.08), 0.45, 2.6, 0.20),
    Segment("lapsing", 9, (3.1, 0.7), (0.40, 0.18, 0.06, 0.14, 0.10, 0.12), (0.30, 0.45, 0.25), 0.5, -0.7,
            (0.24, 0.30, 0.26, 0.20), 0.52, 0.4, 0.01),
)  # fmt: skip
"""The truth, one line a segment; every bank has them in its own proportions."""


@dataclass(frozen=True)
class BankWorldSpec:
    """The size and shape of a world.

    Args:
        banks: number of institutions, at least 1.
        customers: customers of a bank on average; banks differ by up to a factor of three.
        mix: Dirichlet concentration of the segment mixes; small is very non-IID, large is all alike.
        overlap: share of a bank's customers that are customers of a second bank as well, 0..1.
        consent: share of people who consented, 0..1; the old a little more, the young a little less.
    """

    banks: int = 5
    customers: int = 4_000
    mix: float = 1.5
    overlap: float = 0.08
    consent: float = 0.88


@dataclass(frozen=True)
class Bank:
    """One institution's files.

    Args:
        name: `bank-1`, …
        sources: the file of every table of the contract.
        consent: file with customer_id and consent.
        seeds: file with the ids it valued; only the first bank has one.
    """

    name: str
    sources: dict[str, Path]
    consent: Path
    seeds: Path | None


@dataclass(frozen=True)
class BankWorld:
    """A generated world: its contract, its banks, and the file that holds the truth."""

    contract: Contract
    banks: tuple[Bank, ...]
    truth: Path


def load_bank_world_contract() -> Contract:
    """The contract every generated bank keeps."""
    return parse_contract(bank_world_contract_text(), "bank-world.contract.toml")


def make_bank_world(folder: Path, rng: np.random.Generator, spec: BankWorldSpec | None = None) -> BankWorld:
    """Generate a world. The same generator state and spec give the same rows.

    Args:
        folder: where to write; created.
        rng: simulation randomness; advanced.
        spec: size and shape.

    Raises:
        OutputError: the folder cannot be written.
    """
    spec = spec or BankWorldSpec()
    contract = load_bank_world_contract()
    people = _people(rng, spec)
    links = _memberships(rng, people, spec)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "contract.toml").write_text(bank_world_contract_text(), encoding="utf-8")
        (folder / "README.txt").write_text("Synthetic: generated by cohortium. No person in it exists.\n", "utf-8")
        links.to_parquet(folder / "truth.parquet", index=False)
        banks = tuple(
            _write_bank(
                folder, f"bank-{number + 1}", links[links["institution"] == f"bank-{number + 1}"], rng, contract
            )
            for number in range(spec.banks)
        )
    except OSError as error:
        raise OutputError(error.strerror or "cannot be written", place=folder.name, fix="choose another") from error
    return BankWorld(contract, banks, folder / "truth.parquet")


def bank_world_contract_text() -> str:
    """The contract every generated bank keeps, as TOML."""
    return (resources.files("cohortium.simulations") / "bank-world.contract.toml").read_text(encoding="utf-8")


def _people(rng: np.random.Generator, spec: BankWorldSpec) -> pd.DataFrame:
    """Everybody, at their first bank: id, home, segment (index), sex, age_band, consent, joined."""
    sizes = np.maximum((spec.customers * rng.uniform(0.5, 1.5, spec.banks)).astype(int), 1)
    home = np.repeat(np.arange(spec.banks), sizes)
    mixes = rng.dirichlet(np.full(len(SEGMENTS), spec.mix), spec.banks)
    segment = np.concatenate([rng.choice(len(SEGMENTS), size, p=mix) for size, mix in zip(sizes, mixes, strict=True)])
    age = _by_segment(rng, segment, [s.ages for s in SEGMENTS])
    women = np.array([s.women for s in SEGMENTS])[segment]
    consents = np.clip(spec.consent + 0.02 * (age - 1.5), 0, 1)
    numbers = rng.permutation(len(home))
    return pd.DataFrame(
        {
            "id": [f"P{number:08d}" for number in numbers],
            "home": home,
            "segment": segment,
            "sex": np.where(rng.random(len(home)) < women, "female", "male"),
            "age_band": np.asarray(AGE_BANDS)[age],
            "consent": rng.random(len(home)) < consents,
        }
    )


def _by_segment(
    rng: np.random.Generator, segment: NDArray[np.int64], probabilities: list[tuple[float, ...]]
) -> NDArray[np.int64]:
    """One draw a row from its segment's distribution."""
    cumulative = np.cumsum(np.asarray(probabilities), axis=1)
    drawn = (rng.random((len(segment), 1)) > cumulative[segment]).sum(axis=1)
    return np.asarray(np.minimum(drawn, cumulative.shape[1] - 1), dtype=np.int64)


def _memberships(rng: np.random.Generator, people: pd.DataFrame, spec: BankWorldSpec) -> pd.DataFrame:
    """Who is a customer where: the truth file, one line a person and bank."""
    parts = [people.assign(bank=people["home"])]
    again = people.index.to_numpy()
    for step, share in ((1, spec.overlap), (2, _SECONDARY_OVERLAP)):
        if spec.banks <= step:
            break
        again = again[rng.random(len(again)) < share]
        # the same distance round the circle of banks for a step: never a bank the person has already
        parts.append(people.loc[again].assign(bank=(people.loc[again, "home"] + step) % spec.banks))
    links = pd.concat(parts, ignore_index=True)
    likely = np.array([s.seed for s in SEGMENTS])[links["segment"]]
    links["seed"] = (rng.random(len(links)) < likely) & (links["bank"] == 0)
    links["institution"] = [f"bank-{bank + 1}" for bank in links["bank"]]
    links["home"] = [f"bank-{bank + 1}" for bank in links["home"]]
    links["segment_name"] = np.asarray([s.name for s in SEGMENTS])[links["segment"]]
    return links.drop(columns="bank").sort_values(["institution", "id"], ignore_index=True)


def _write_bank(folder: Path, name: str, links: pd.DataFrame, rng: np.random.Generator, contract: Contract) -> Bank:
    home = folder / name
    home.mkdir(exist_ok=True)
    links = links.reset_index(drop=True)
    frames = {"customers": _customers(links, rng, contract), "purchases": _purchases(links, rng, contract)}
    frames["consent"] = pd.DataFrame({"customer_id": links["id"], "consent": links["consent"]})
    seeds = links.loc[links["seed"], "id"]
    if len(seeds):
        frames["seeds"] = pd.DataFrame({"customer_id": seeds})
    files = {what: home / f"{what}.parquet" for what in frames}
    for what, frame in frames.items():
        frame.to_parquet(files[what], index=False)
    sources = {table.name: files[table.name] for table in contract.tables}
    return Bank(name, sources, files["consent"], files.get("seeds"))


def _customers(links: pd.DataFrame, rng: np.random.Generator, contract: Contract) -> pd.DataFrame:
    products = np.array([s.products for s in SEGMENTS])[links["segment"]]
    days = np.minimum(rng.exponential(1_800, len(links)), 7_000).astype(int) + 1
    return pd.DataFrame(
        {
            "customer_id": links["id"],
            "sex": links["sex"],
            "age_band": links["age_band"],
            "products": np.minimum(1 + rng.poisson(products), 8),
            "joined": pd.Timestamp(contract.window.end) - pd.to_timedelta(days, unit="D"),
        }
    )


def _purchases(links: pd.DataFrame, rng: np.random.Generator, contract: Contract) -> pd.DataFrame:
    """Lines in random order, as a till would not write them: onboarding must not depend on it."""
    truth = links["segment"].to_numpy()
    counts = rng.poisson(np.array([s.purchases for s in SEGMENTS])[truth] * rng.gamma(4.0, 0.25, len(links)))
    rows = rng.permutation(np.repeat(np.arange(len(links)), counts))
    segment = truth[rows]
    means, spreads = np.array([s.amount for s in SEGMENTS])[segment].T
    amount = np.maximum(np.round(np.exp(rng.normal(means, spreads)), 2), _SMALLEST_AMOUNT)
    return pd.DataFrame(
        {
            "customer_id": links["id"].to_numpy()[rows],
            "day": pd.Timestamp(contract.window.start) + pd.to_timedelta(_days(rng, segment, contract), unit="D"),
            "amount": amount,
            "category": np.asarray(CATEGORIES)[_by_segment(rng, segment, [s.categories for s in SEGMENTS])],
            "channel": np.asarray(CHANNELS)[_by_segment(rng, segment, [s.channels for s in SEGMENTS])],
        }
    )


def _days(rng: np.random.Generator, segment: NDArray[np.int64], contract: Contract) -> NDArray[np.int64]:
    """Days within the window, of density 1 + growth (2u - 1) over the active share u of it (inverse transform)."""
    growth = np.array([s.growth for s in SEGMENTS])[segment]
    active = np.array([s.active for s in SEGMENTS])[segment]
    u = rng.random(len(segment))
    tilt = np.where(growth == 0, 1.0, growth)
    tilted = (tilt - 1 + np.sqrt((1 - tilt) ** 2 + 4 * tilt * u)) / (2 * tilt)
    place = np.where(growth == 0, u, tilted)
    days = (place * active * contract.window.days).astype(np.int64)
    return np.asarray(np.minimum(days, contract.window.days - 1), dtype=np.int64)


def write_benchmark_lines(folder: Path, lines: int, customers: int, chunk: int = 10_000_000) -> list[Path]:
    """Synthetic purchase lines in Parquet for benchmarks, fast: a hash of the line number decides every cell.

    Args:
        folder: where the files go; created.
        lines: how many lines in all.
        customers: people they belong to; the busiest has several times the average.
        chunk: lines a file.

    Returns:
        The files. Columns: customer_id (text), day (date in 2024), amount, category (of eight), channel (of three).
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with duckdb.connect(":memory:", config={"threads": "2", "memory_limit": "1GB"}) as connection:
        for number, start in enumerate(range(0, lines, chunk)):
            file = folder / f"lines-{number:03d}.parquet"
            connection.execute(_benchmark_sql(start, min(start + chunk, lines), customers, file))
            files.append(file)
    return files


def _benchmark_sql(start: int, end: int, customers: int, file: Path) -> str:
    skewed = f"CAST(floor({customers} * pow((h % 1000003) / 1000003.0, 1.3)) AS BIGINT) + h // 1000003 % 3"
    categories = ", ".join(
        map(literal, ("groceries", "fuel", "travel", "dining", "home", "health", "leisure", "other"))
    )
    channels = ", ".join(map(literal, CHANNELS))
    return f"""
        COPY (
            SELECT 'C' || lpad(CAST(({skewed}) % {customers} AS VARCHAR), 8, '0') AS customer_id,
                   DATE '2024-01-01' + CAST((h >> 20) % 366 AS INTEGER) AS day,
                   round(exp(2 + 3 * ((g % 100003) / 100003.0)), 2) AS amount,
                   [{categories}][1 + CAST((g >> 17) % 8 AS INTEGER)] AS category,
                   [{channels}][1 + CAST((g >> 30) % 3 AS INTEGER)] AS channel
            FROM (SELECT hash(i) AS h, hash(i + 1000000007) AS g FROM range({start}, {end}) AS t(i))
        ) TO {literal(str(file))} (FORMAT parquet)"""
