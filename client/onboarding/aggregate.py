"""The one pass over a source: every line becomes part of its person's aggregate or of a count of unused lines.

A line that cannot be used carries a bit mask of everything wrong with it. It is grouped under that mask instead of
under its person, so that one GROUP BY computes all features and all counts. A person's key never begins with a blank
(ids are cut), the masks' keys always do.

Amounts are added as whole ten-thousandths of the currency: integer sums do not depend on the order of lines or
threads, so identical input gives identical output. Distinct days are bits of 64-bit words, which is several times
faster than a distinct count and takes a fixed amount of memory per person.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cohortium.client.onboarding import cells
from cohortium.client.onboarding.engine import literal, quoted
from cohortium.client.onboarding.sources import OpenSource
from cohortium.study.contract import Contract, Feature, Table

__all__ = ["AMOUNT_UNITS", "LINE_PROBLEMS", "LineProblem", "TableSql", "day_words", "share_column"]

AMOUNT_UNITS = 10_000
"""Integer units per unit of currency: amounts are rounded to four decimals."""

_WORD_DAYS = 64
_LONGEST_BITMAP_DAYS = 1024


@dataclass(frozen=True)
class LineProblem:
    """One reason why a line is not used.

    Args:
        bit: its bit in the mask.
        role: the column it stands in.
        kind: what is wrong, as reports say it.
        bad: whether it counts towards `max_bad_share`; a line outside the window is unused but not bad.
    """

    bit: int
    role: Literal["customer", "time", "amount"]
    kind: str
    bad: bool = True


LINE_PROBLEMS: tuple[LineProblem, ...] = (
    LineProblem(1, "customer", "missing"),
    LineProblem(2, "time", "missing"),
    LineProblem(4, "time", "not a date"),
    LineProblem(8, "time", "before the window", bad=False),
    LineProblem(16, "time", "after the window", bad=False),
    LineProblem(32, "amount", "missing"),
    LineProblem(64, "amount", "not a number"),
    LineProblem(128, "amount", "not finite"),
    LineProblem(256, "amount", "negative"),
    LineProblem(512, "amount", "above max_amount"),
)


def share_column(feature: Feature, table: Table) -> str | None:
    """The source column a share is computed from; None for any other feature."""
    return {"category_share": table.category, "channel_share": table.channel}.get(feature.derive or "")


def day_words(contract: Contract) -> int:
    """64-bit words that hold one bit per day of the window; 0 when it is so long that days are counted instead."""
    days = contract.window.days
    return 0 if days > _LONGEST_BITMAP_DAYS else -(-days // _WORD_DAYS)


@dataclass(frozen=True)
class TableSql:
    """The statements that read one table of the contract.

    Args:
        contract: what the columns mean.
        table: the table.
        source: where its lines are.
    """

    contract: Contract
    table: Table
    source: OpenSource

    @property
    def features(self) -> tuple[Feature, ...]:
        """The contract's features that come from this table."""
        return tuple(feature for feature in self.contract.features if feature.table == self.table.name)

    @property
    def attributes(self) -> tuple[Feature, ...]:
        """Those of them that read a column."""
        return tuple(feature for feature in self.features if feature.column is not None)

    @property
    def name(self) -> str:
        """The aggregate's name in the database."""
        return quoted(f"agg_{self.table.name}")

    def derives(self, *names: str) -> bool:
        """Whether any feature of the table is one of these derived ones."""
        return any(feature.derive in names for feature in self.features)

    @property
    def counts_baskets(self) -> bool:
        """Whether a distinct count of baskets is needed."""
        return self.table.basket is not None and self.derives("frequency", "basket_size")

    @property
    def counts_days(self) -> bool:
        """Whether a distinct count of purchase days is needed."""
        return self.derives("gap") or (self.table.basket is None and self.derives("frequency", "basket_size"))

    def create(self) -> str:
        """CREATE TABLE of one row per person and one per kind of unused line."""
        aggregates = ",\n  ".join(f"{sql} AS {quoted(name)}" for name, sql in self._aggregates().items())
        return f"CREATE TEMP TABLE {self.name} AS\nSELECT key,\n  {aggregates}\nFROM {self.lines()}\nGROUP BY key"

    def create_modes(self, feature: Feature) -> str:
        """CREATE TABLE of the most frequent value, ties to the smallest, of people with more than one."""
        value = quoted(f"{feature.name}.value")
        low, high = quoted(f"{feature.name}.low"), quoted(f"{feature.name}.high")
        return (
            f"CREATE TEMP TABLE {self.modes(feature)} AS\nSELECT key, value FROM (\n"
            f"  SELECT key, {value} AS value, count(*) AS times FROM {self.lines()}\n"
            f"  WHERE {value} IS NOT NULL AND key IN (SELECT key FROM {self.name} WHERE {low} <> {high})\n"
            f"  GROUP BY ALL\n) QUALIFY row_number() OVER (PARTITION BY key ORDER BY times DESC, value) = 1"
        )

    def modes(self, feature: Feature) -> str:
        """Name of the table `create_modes` creates."""
        return quoted(f"modes_{feature.name}")

    def lines(self) -> str:
        """A subquery of all lines with their key and the parsed cells."""
        wanted = ", ".join(f"{sql} AS {quoted(name)}" for name, sql in self._cells().items())
        parsed = f"(SELECT {wanted} FROM {self.source.relation})"
        return f"(SELECT *, {self._key()} AS key FROM {parsed})"

    def _cells(self) -> dict[str, str]:
        table = self.table
        wanted = {"id": self._text(table.customer)}
        if table.time is not None and table.amount is not None:
            wanted["time.absent"] = self._absent(table.time)
            wanted["day"] = self._day(table.time, table.time_format)
            wanted["amount.absent"] = self._absent(table.amount)
            wanted["amount"] = self._number(table.amount)
        if self.counts_baskets and table.basket is not None:
            wanted["basket"] = self._text(table.basket)
        for feature in self.features:
            wanted.update(self._feature_cells(feature))
        return wanted

    def _feature_cells(self, feature: Feature) -> dict[str, str]:
        role = share_column(feature, self.table)
        if role is not None:
            return {f"{feature.derive}": self._text(role)}
        if feature.column is None:
            return {}
        present = f"NOT ({self._absent(feature.column)})"
        if feature.is_category:
            kind, tokens = self.source.types[feature.column], self.table.missing_tokens
            value = cells.category_code(feature.column, kind, feature.categories, tokens)
            return {f"{feature.name}.present": present, f"{feature.name}.value": value}
        if feature.kind == "date":
            day = self._day(feature.column, feature.date_format)
            return {f"{feature.name}.present": present, f"{feature.name}.value": f"{self.contract.window.days} - {day}"}
        value = self._number(feature.column)
        return {
            f"{feature.name}.present": present,
            f"{feature.name}.value": f"CASE WHEN isfinite({value}) THEN {value} END",
            f"{feature.name}.odd": f"NOT isfinite({value})",
        }

    def _key(self) -> str:
        problems = self._problems()
        used = "id IS NOT NULL"
        if self.table.kind == "transactions":
            least = 0 if self.table.negative_amounts == "bad" else -self.table.max_amount
            used += (
                f" AND day >= 0 AND day < {self.contract.window.days}"
                f" AND amount >= {least!r} AND amount <= {self.table.max_amount!r}"
            )
        mask = " + ".join(f"CASE WHEN {sql} THEN {bit} ELSE 0 END" for bit, sql in problems.items())
        return f"CASE WHEN {used} THEN id ELSE ' ' || CAST({mask} AS VARCHAR) END"

    def _problems(self) -> dict[int, str]:
        """Condition of every bit of LINE_PROBLEMS that this table can have; together they are the negation of used."""
        found = {1: "id IS NULL"}
        if self.table.kind == "customers":
            return found
        limit = repr(self.table.max_amount)
        found |= {
            2: '"time.absent"',
            4: 'NOT "time.absent" AND day IS NULL',
            8: "day < 0",
            16: f"day >= {self.contract.window.days}",
            32: '"amount.absent"',
            64: 'NOT "amount.absent" AND amount IS NULL',
            128: "NOT isfinite(amount)",
            512: f"isfinite(amount) AND abs(amount) > {limit}",
        }
        if self.table.negative_amounts == "bad":
            found[256] = f"isfinite(amount) AND amount < 0 AND amount >= -{limit}"
        return found

    def _aggregates(self) -> dict[str, str]:
        wanted = {"lines": "count(*)"}
        if self.table.kind == "transactions":
            wanted |= {"first_day": "min(day)", "last_day": "max(day)", **self._amounts()}
        if self.counts_days:
            wanted |= self._distinct_days()
        if self.counts_baskets:
            # lines without a basket are one basket a day; a cut text never begins with a blank
            wanted["baskets"] = "count(DISTINCT coalesce(basket, ' ' || CAST(day AS VARCHAR)))"
            wanted["basket.present"] = "count(basket)"
        for feature in self.attributes:
            wanted |= self._attribute(feature)
        return wanted

    def _amounts(self) -> dict[str, str]:
        units = f"CAST(round(amount * {AMOUNT_UNITS}) AS BIGINT)"
        usable = f"CASE WHEN abs(amount) <= {self.table.max_amount!r} THEN {units} END"
        wanted = {}
        if self.derives("monetary", "basket_size", "category_share", "channel_share", "trend"):
            wanted["units"] = f"sum({usable})"
        if self.derives("trend"):
            half = self.contract.window.days // 2
            wanted["units.second"] = f"sum(CASE WHEN day >= {half} THEN {usable} ELSE 0 END)"
        for feature in self.features:
            if share_column(feature, self.table) is not None:
                same = f"{feature.derive} = {literal(feature.value or '')}"
                wanted[f"{feature.name}.units"] = f"sum(CASE WHEN {same} THEN {usable} ELSE 0 END)"
                wanted[f"{feature.derive}.present"] = f"count({feature.derive})"
        return wanted

    def _distinct_days(self) -> dict[str, str]:
        words = day_words(self.contract)
        if words == 0:
            return {"days": "count(DISTINCT day)"}
        bit = "1::UBIGINT << CAST(day & 63 AS UBIGINT)"
        return {
            f"days.{word}": f"bit_or(CASE WHEN day >= 0 AND day >> 6 = {word} THEN {bit} END)" for word in range(words)
        }

    def _attribute(self, feature: Feature) -> dict[str, str]:
        value = quoted(f"{feature.name}.value")
        wanted = {
            f"{feature.name}.low": f"min({value})",
            f"{feature.name}.high": f"max({value})",
            f"{feature.name}.present": f"count(*) FILTER ({quoted(f'{feature.name}.present')})",
            f"{feature.name}.parsed": f"count({value})",
        }
        if not feature.is_category and feature.kind != "date":
            wanted[f"{feature.name}.odd"] = f"count(*) FILTER ({quoted(f'{feature.name}.odd')})"
        return wanted

    def _text(self, column: str) -> str:
        return cells.text(column, self.source.types[column], self.table.missing_tokens)

    def _absent(self, column: str) -> str:
        return cells.absent(column, self.source.types[column], self.table.missing_tokens)

    def _number(self, column: str) -> str:
        return cells.number(column, self.source.types[column], self.table.name, self.table.missing_tokens)

    def _day(self, column: str, form: str | None) -> str:
        kind, tokens = self.source.types[column], self.table.missing_tokens
        return cells.day_number(column, kind, self.table.name, self.contract.window.start, form, tokens)
