"""The feature contract: what the parties agree that a customer's row means, before anybody looks at data.

A contract is TOML on disk, frozen models in memory and one RFC 8785 digest on every wire. Bounds and categories are
**public**: they come from product knowledge, never from one institution's rows, because whatever is computed from
rows without noise would leak past the privacy budget.

Definitions (one glossary; `client/onboarding` computes them, tests compare with an independent implementation). A line
is *used* when its customer id is present, its day lies in the window and its amount is a usable number.

=================  ==================================================================================================
derive             value for one person, from that person's used lines
=================  ==================================================================================================
recency            days from the last purchase day to the window's end (exclusive), so at least 1
tenure             days from the first purchase day to the window's end
frequency          number of distinct baskets if the table names a basket column, else of distinct purchase days
monetary           sum of amounts
basket_size        monetary divided by frequency
gap                (last day - first day) / (distinct purchase days - 1); missing with fewer than two purchase days
category_share     amount of lines whose category is `value`, divided by monetary; missing when monetary <= 0
channel_share      the same for the channel column
trend              (amount in the window's second half - amount in its first) / monetary; missing when monetary <= 0;
                   the second half starts `days // 2` days after the window's start
=================  ==================================================================================================

**Who is a person.** If the contract has tables of kind `customers`, the people are the union of their ids, and lines
of anybody else are counted and left out. Without one they are the union of the ids with at least one used line.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import Field, StringConstraints, model_validator

from cohortium.study.document import Agreed, Document, parse_toml, read_toml, validated
from cohortium.study.errors import ContractError
from cohortium.study.validation import first_repeat, suggestion

__all__ = [
    "AMOUNT_DERIVES",
    "CONTRACT_SCHEMA",
    "Block",
    "Contract",
    "Derive",
    "Feature",
    "FeatureKind",
    "Table",
    "TableKind",
    "Transform",
    "Window",
    "load_contract",
    "parse_contract",
]

CONTRACT_SCHEMA = "cohortium.contract/1"
"""The schema name this version reads and writes; any other is refused."""

Block = Literal["value", "behaviour", "channel", "product", "life-stage"]
Derive = Literal[
    "recency", "frequency", "monetary", "tenure", "basket_size", "gap", "category_share", "channel_share", "trend"
]
FeatureKind = Literal["numeric", "category", "date", "money"]
TableKind = Literal["transactions", "customers"]
Transform = Literal["linear", "log1p"]

AMOUNT_DERIVES: frozenset[str] = frozenset({"monetary", "basket_size"})
"""Derived features in the contract's currency."""

_SHARES: dict[str, str] = {"category_share": "category", "channel_share": "channel"}
_ALWAYS_DEFINED: frozenset[str] = frozenset({"frequency", "monetary"})
_MISSING_WITH_LINES: frozenset[str] = frozenset({"gap", "category_share", "channel_share", "trend"})
_DAY_DERIVES: frozenset[str] = frozenset({"recency", "tenure", "gap"})

_IDENTIFIER = r"^[a-z][a-z0-9_]{0,62}$"
_LABEL = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,126}$"
_CURRENCY = r"^[A-Z]{3}$"
_FORMS = {
    _IDENTIFIER: "begin with a small letter, go on with small letters, digits and _",
    _LABEL: "use letters, digits, dots, - and _",
    _CURRENCY: "use three capital letters such as EUR",
}

_Identifier = Annotated[str, StringConstraints(pattern=_IDENTIFIER)]
_Label = Annotated[str, StringConstraints(pattern=_LABEL)]
_Text = Annotated[str, StringConstraints(min_length=1, max_length=256)]
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Flag = Annotated[bool, Field(strict=True)]
_Currency = Annotated[str, StringConstraints(pattern=_CURRENCY)]
_Named = TypeVar("_Named", "Table", "Feature")


class Window(Agreed):
    """The days that count.

    Args:
        start: first day, inclusive.
        end: day after the last one (exclusive): the as-of date from which recency, tenure and dates are counted.
    """

    start: date
    end: date

    @property
    def days(self) -> int:
        """Length in days, at least 1."""
        return (self.end - self.start).days

    @model_validator(mode="after")
    def _ordered(self) -> Window:
        if self.end <= self.start:
            raise ValueError("end must lie after start; end is exclusive, so give the day after the last one")
        return self


class Table(Agreed):
    """A table every institution brings, and the names of its columns there.

    Args:
        name: how features and the command line refer to it.
        kind: `transactions` (many lines a person) or `customers` (one line a person).
        customer: column with the person's id; compared as text, surrounding blanks cut.
        time: column with the day of the transaction (transactions only).
        amount: column with the amount in the contract's currency (transactions only).
        time_format: strptime format of a text time column; without it, ISO 8601.
        basket, category, channel, product: optional columns of a transactions table.
        negative_amounts: `bad` (the line is not used, and counted) or `returns` (the line counts with its sign).
        max_amount: largest believable absolute amount of one line; a line above it is bad.
        missing_tokens: texts that mean "no value", besides the empty text.
    """

    name: _Identifier
    kind: TableKind
    customer: _Text
    time: _Text | None = None
    amount: _Text | None = None
    time_format: _Text | None = None
    basket: _Text | None = None
    category: _Text | None = None
    channel: _Text | None = None
    product: _Text | None = None
    negative_amounts: Literal["bad", "returns"] = "bad"
    max_amount: Annotated[_Number, Field(gt=0, le=1e11)] = 1e9
    missing_tokens: tuple[_Text, ...] = ()

    @model_validator(mode="after")
    def _columns_fit_kind(self) -> Table:
        if self.kind == "transactions":
            for field in ("time", "amount"):
                if getattr(self, field) is None:
                    raise ValueError(f"a transactions table needs {field}; name its column")
            return self
        for field in ("time", "amount", "time_format", "basket", "category", "channel", "product"):
            if getattr(self, field) is not None:
                raise ValueError(f"a customers table has no {field}; remove it or set kind = 'transactions'")
        return self

    @property
    def role_columns(self) -> tuple[str, ...]:
        """The columns named by the table itself, in a fixed order and each once."""
        roles = (self.customer, self.time, self.amount, self.basket, self.category, self.channel, self.product)
        return tuple(dict.fromkeys(column for column in roles if column is not None))


class Feature(Agreed):
    """One number or category per person.

    Args:
        name: identifier; the column's name in the customer table.
        table: table it is read from.
        kind: numeric, category, date (turned into days before the window's end) or money (the contract's currency).
        column: source column. In a transactions table: the person's most frequent value, conflicts counted.
        derive: what to compute from the transactions instead of reading a column.
        value: the category or channel a share is of.
        low, high: public bounds; a value outside is clipped and counted. Dates: days before the window's end.
        categories: public list of values; any other, and none, is the extra code `len(categories)`.
        unit: what the number counts; money takes the currency, dates take days.
        integer: the value is rounded to a whole number.
        transform: how distances scale it: `linear` (x - low) / (high - low), or
            `log1p` (log1p x - log1p low) / (log1p high - log1p low).
        missing: public value, within the bounds, for people without one.
        date_format: strptime format of a text date column; without it, ISO 8601.
        block: group of features weighed together; exactly the features that are not protected have one.
        protected: for fairness audits alone: stored apart, never in a distance, never in an encoder.
    """

    name: _Identifier
    table: _Identifier
    kind: FeatureKind
    column: _Text | None = None
    derive: Derive | None = None
    value: _Text | None = None
    low: _Number | None = None
    high: _Number | None = None
    categories: tuple[_Text, ...] = ()
    unit: _Text | None = None
    integer: _Flag = False
    transform: Transform = "linear"
    missing: _Number | None = None
    date_format: _Text | None = None
    block: Block | None = None
    protected: _Flag = False

    @model_validator(mode="after")
    def _holds_together(self) -> Feature:
        self._check_origin()
        if self.kind == "category":
            self._check_category()
        else:
            self._check_number()
        self._check_use()
        return self

    def _check_origin(self) -> None:
        if (self.column is None) == (self.derive is None):
            raise ValueError("name either column or derive, one of the two")
        if (self.derive in _SHARES) != (self.value is not None):
            raise ValueError("value belongs to category_share and channel_share, and both need it")
        if self.derive is None:
            return
        wanted = "money" if self.derive in AMOUNT_DERIVES else "numeric"
        if self.kind != wanted:
            raise ValueError(f"derive = '{self.derive}' gives a {wanted}; set kind = '{wanted}'")

    def _check_category(self) -> None:
        if not self.categories:
            raise ValueError("a category needs categories, the public list of its values")
        if repeated := first_repeat(self.categories):
            raise ValueError(f"categories must be distinct; '{repeated}' repeats")
        if padded := [text for text in self.categories if text != text.strip()]:
            raise ValueError(f"categories must not begin or end with blanks; see '{padded[0]}'")
        for field in ("low", "high", "missing", "unit", "date_format"):
            if getattr(self, field) is not None:
                raise ValueError(f"a category has no {field}; remove it")
        if self.integer or self.transform != "linear":
            raise ValueError("a category has neither integer nor transform; remove them")

    def _check_number(self) -> None:
        if self.categories:
            raise ValueError("categories belong to kind = 'category'; remove them or change kind")
        if self.low is None or self.high is None:
            raise ValueError(f"a {self.kind} needs low and high, public bounds stated in advance")
        if not self.low < self.high:
            raise ValueError("low must be less than high")
        if self.missing is not None and not self.low <= self.missing <= self.high:
            raise ValueError("missing must lie within low and high")
        if self.transform == "log1p" and self.low < 0:
            raise ValueError("transform = 'log1p' needs low >= 0")
        if self.integer and any(x is not None and not x.is_integer() for x in (self.low, self.high, self.missing)):
            raise ValueError("integer = true needs whole low, high and missing")
        if self.date_format is not None and self.kind != "date":
            raise ValueError("date_format belongs to kind = 'date'")
        self._check_natural_range()

    def _check_natural_range(self) -> None:
        low, high = self.bounds
        if self.derive in _SHARES and not 0 <= low < high <= 1:
            raise ValueError("a share lies in 0..1; set low and high within it")
        if self.derive == "trend" and not -1 <= low < high <= 1:
            raise ValueError("a trend lies in -1..1; set low and high within it")
        if self.derive in _DAY_DERIVES and low < 0:
            raise ValueError(f"{self.derive} counts days; set low >= 0")

    def _check_use(self) -> None:
        if self.protected and self.block is not None:
            raise ValueError("a protected feature is for audits alone and has no block; remove one of the two")
        if not self.protected and self.block is None:
            raise ValueError(f"needs block, one of {', '.join(get_args(Block))} (or protected = true)")

    @property
    def bounds(self) -> tuple[float, float]:
        """(low, high); of a category, its codes 0..len(categories)."""
        if self.low is None or self.high is None:
            return 0.0, float(len(self.categories))
        return self.low, self.high

    @property
    def is_category(self) -> bool:
        """Whether the value is a code rather than a quantity."""
        return self.kind == "category"

    @property
    def unknown_code(self) -> int:
        """Code of a category that is missing or not in the list: `len(categories)`."""
        return len(self.categories)

    @property
    def levels(self) -> int:
        """Number of codes of a category, the unknown one included; 0 for numbers."""
        return len(self.categories) + 1 if self.is_category else 0


class Contract(Document):
    """What the parties agree a customer's row means.

    Args:
        schema_id: `cohortium.contract/1`; written `schema` in TOML.
        name: the contract's name, for people.
        currency: ISO 4217 code of every amount; needed as soon as one exists.
        purposes: what the features may be used for.
        window: the days that count.
        max_bad_share: largest share of bad cells in any column before onboarding refuses, 0..1.
        tables: one or more tables.
        features: one or more features; their order is the order of the customer table's columns.
    """

    schema_id: Annotated[Literal["cohortium.contract/1"], Field(alias="schema")]
    name: _Label
    currency: _Currency | None = None
    purposes: tuple[_Label, ...]
    window: Window
    max_bad_share: Annotated[_Number, Field(ge=0, le=1)] = 0.05
    tables: tuple[Table, ...]
    features: tuple[Feature, ...]

    @model_validator(mode="after")
    def _holds_together(self) -> Contract:
        for what, names in (
            ("purposes", self.purposes),
            ("tables", tuple(table.name for table in self.tables)),
            ("features", tuple(feature.name for feature in self.features)),
        ):
            if not names:
                raise ValueError(f"{what} must not be empty; state at least one")
            if repeated := first_repeat(names):
                raise ValueError(f"{what} must have distinct names; '{repeated}' repeats")
        self._check_currency()
        for feature in self.features:
            self._check_feature(feature)
        self._check_protected_apart()
        if not self.training_features:
            raise ValueError("every feature is protected; add one that may be trained on")
        return self

    def _check_currency(self) -> None:
        uses = [f"table '{table.name}'" for table in self.tables if table.amount is not None]
        uses += [f"feature '{feature.name}'" for feature in self.features if feature.kind == "money"]
        if uses and self.currency is None:
            raise ValueError(f"{uses[0]} holds money; set currency, for example 'EUR'")

    def _check_feature(self, feature: Feature) -> None:
        tables = {table.name: table for table in self.tables}
        if feature.name == "id":
            raise ValueError("feature 'id': the name is taken by the person's id; choose another")
        if feature.table not in tables:
            raise ValueError(
                f"feature '{feature.name}': no table '{feature.table}'; {suggestion(feature.table, tables)}"
            )
        table = tables[feature.table]
        if feature.derive is not None and table.kind != "transactions":
            raise ValueError(f"feature '{feature.name}': derive needs a transactions table, '{table.name}' is not one")
        role = _SHARES.get(feature.derive or "")
        if role is not None and getattr(table, role) is None:
            raise ValueError(f"feature '{feature.name}': table '{table.name}' names no {role} column; add {role} = '…'")
        if feature.kind == "money" and feature.unit not in (None, self.currency):
            raise ValueError(f"feature '{feature.name}': money is in the contract's currency; remove unit")
        if feature.kind == "date" and feature.unit not in (None, "days"):
            raise ValueError(f"feature '{feature.name}': a date is counted in days; remove unit")
        if self._may_be_missing(feature) and feature.missing is None:
            raise ValueError(
                f"feature '{feature.name}': some people have no value; set missing, a public value within its bounds"
            )

    def _may_be_missing(self, feature: Feature) -> bool:
        """Whether a person of this contract can lack the feature; categories have their own code for it."""
        if feature.is_category or feature.derive in _ALWAYS_DEFINED:
            return False
        return feature.derive is None or feature.derive in _MISSING_WITH_LINES or len(self.tables) > 1

    def _check_protected_apart(self) -> None:
        protected: dict[tuple[str, str | None], str] = {
            (feature.table, feature.column): feature.name for feature in self.protected_features if feature.column
        }
        tables = {table.name: table for table in self.tables}
        for feature in self.training_features:
            role = _SHARES.get(feature.derive or "")
            column = getattr(tables[feature.table], role) if role else feature.column
            if twin := protected.get((feature.table, column)):
                raise ValueError(
                    f"feature '{feature.name}' reads the column that '{twin}' protects; a protected column may not be"
                    " trained on under another name"
                )

    @property
    def training_features(self) -> tuple[Feature, ...]:
        """The features that may enter a distance or an encoder, in order."""
        return tuple(feature for feature in self.features if not feature.protected)

    @property
    def protected_features(self) -> tuple[Feature, ...]:
        """The features for audits alone, in order."""
        return tuple(feature for feature in self.features if feature.protected)

    def feature(self, name: str) -> Feature:
        """The feature of that name; `ContractError` with the nearest name otherwise."""
        return self._named(name, self.features, "feature")

    def table(self, name: str) -> Table:
        """The table of that name; `ContractError` with the nearest name otherwise."""
        return self._named(name, self.tables, "table")

    def _named(self, name: str, items: tuple[_Named, ...], what: str) -> _Named:
        by_name = {item.name: item for item in items}
        if name not in by_name:
            raise ContractError(f"no {what} '{name}'", place=self.name, fix=suggestion(name, by_name))
        return by_name[name]

    def unit_of(self, feature: Feature) -> str:
        """Unit for people: the currency for money, days for dates and day counts, else what the contract says."""
        if feature.kind == "money":
            return self.currency or ""
        if feature.kind == "date" or (feature.unit is None and feature.derive in _DAY_DERIVES):
            return "days"
        return feature.unit or ""

    def columns_of(self, table: Table) -> tuple[str, ...]:
        """Every source column the contract reads from the table, each once, the table's own first."""
        read = (feature.column for feature in self.features if feature.table == table.name and feature.column)
        return tuple(dict.fromkeys((*table.role_columns, *read)))

    def with_window(self, start: date, end: date) -> Contract:
        """The same contract over other days, validated again: for refits and for held-out periods."""
        window = {"start": start.isoformat(), "end": end.isoformat()}
        return validated(Contract, {**self.to_json(), "window": window}, self.name, _FORMS, ContractError)


def load_contract(path: Path | str) -> Contract:
    """Read a contract from a TOML file.

    Raises:
        ContractError: one line naming the file, the table, feature or field, and the fix.
    """
    return validated(Contract, read_toml(Path(path), ContractError), str(path), _FORMS, ContractError)


def parse_contract(text: str, place: str) -> Contract:
    """The contract in a TOML text; `place` is what messages call it. Raises `ContractError` like `load_contract`."""
    return validated(Contract, parse_toml(text, place, ContractError), place, _FORMS, ContractError)
