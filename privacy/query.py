"""The one question type: a sum over customers of a bounded integer contribution.

A sum query maps each person to a vector of integers whose squared L2 norm is at most `bound_squared`: some words
sparsely, others as outer products of two short integer vectors (the gradient of a linear layer is one). Removing
or adding one person therefore changes the sum by at most sqrt(bound_squared) in L2: that number, exact and in integer
units, is the sensitivity from which the door computes the noise. The door does not trust the query to keep its bound:
`bounded_total` checks every person's contribution in exact integer arithmetic and lets one that breaks it count as
zero, so the guarantee rests on these few lines and not on each query's mathematics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import Defect

__all__ = [
    "MAX_LEFT",
    "MAX_RIGHT",
    "SCALE",
    "Contribution",
    "Outer",
    "OuterQuery",
    "QuerySpec",
    "SumQuery",
    "bounded_total",
    "quantise",
    "unit_scale",
]

SCALE = 2**24
"""Integer units per 1.0 of a contribution. Counts are scaled too, so that sigma is at least 2**20 units everywhere."""

MAX_LEFT, MAX_RIGHT = 2**14, 2**20
"""Largest absolute entries of the factors of a product."""

_BLOCK_WORDS = 2**21
_OUTER_ROWS, _OUTER_BLOCKS = 1024, 512  # people in a block, and blocks whose sum float64 holds exactly
_MAX_FACTOR_WORDS = 2**12
_MAX_WORD = 2**28
_LOW_HALF = 2**32 - 1
_CLIP_SLACK = 1.0 - 2.0**-40


@dataclass(frozen=True)
class Contribution:
    """What each of some people adds to the sum, sparsely.

    Args:
        columns: integer positions, shape (people, words); positions of one person must be distinct.
        values: int64, same shape; what the person adds at that position.
        outers: for every outer product of the query its two factors, whole numbers as float64, shapes (people, left)
            and (people, right), at most MAX_LEFT and MAX_RIGHT in size.
    """

    columns: NDArray[np.int64]
    values: NDArray[np.int64]
    outers: tuple[tuple[NDArray[np.float64], NDArray[np.float64]], ...] = ()


@dataclass(frozen=True)
class Outer:
    """Words that hold, row by row, the outer product of two integer vectors of every person.

    Args:
        offset: first of the words.
        left, right: entries of the two vectors, at most 4,096 each; word offset + i * right + j holds left_i * right_j.
    """

    offset: int
    left: int
    right: int

    @property
    def words(self) -> int:
        """How many words."""
        return self.left * self.right


@dataclass(frozen=True)
class QuerySpec:
    """A query as it travels: its kind, JSON scalars and arrays of declared shape. `models.catalogue` rebuilds it."""

    kind: str
    scalars: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, NDArray[np.float64]] = field(default_factory=dict)


class SumQuery(Protocol):
    """A question about an institution's customers that a sum answers."""

    @property
    def width(self) -> int:
        """Words in the answer."""
        ...

    @property
    def bound_squared(self) -> int:
        """Largest squared L2 norm of one person's contribution, in squared integer units. Exact."""
        ...

    @property
    def words_per_person(self) -> int:
        """Entries of one person's sparse contribution: what the block size is computed from."""
        ...

    def contribute(self, people: CustomerTable) -> Contribution:
        """Each person's contribution, a function of that person's row and the query alone."""
        ...

    def spec(self) -> QuerySpec:
        """The query as it travels."""
        ...


@runtime_checkable
class OuterQuery(SumQuery, Protocol):
    """A question some of whose words are outer products."""

    @property
    def outers(self) -> tuple[Outer, ...]:
        """The outer products, whose words neither overlap nor are reached by sparse entries."""
        ...


def quantise(values: NDArray[np.float64], radius: float = 1.0) -> NDArray[np.int64]:
    """Rows clipped to an L2 norm of `radius`, divided by it, scaled and truncated toward zero.

    Args:
        values: float64, shape (people, dimensions).
        radius: clipping norm, positive, in the unit of the values.

    Returns:
        int64 of the same shape. The L2 norm of every row is at most SCALE: truncation cannot lengthen a row, and the
        clip stops short of the radius by more than the rounding of its own division.
    """
    squares = np.zeros(len(values))
    for column in values.T:  # elementwise: the rounding of a row depends neither on its place nor on the other rows
        squares += column * column
    factor = (SCALE * _CLIP_SLACK / np.maximum(np.sqrt(squares), radius))[:, np.newaxis]
    quantised: NDArray[np.int64] = np.trunc(values * factor).astype(np.int64)
    return quantised


def unit_scale(weight: float) -> int:
    """A weight relative to 1.0 in integer units, rounded down."""
    return math.floor(weight * SCALE)


def bounded_total(query: SumQuery, people: CustomerTable) -> NDArray[np.int64]:
    """The exact integer sum of all contributions, each checked against the query's bound.

    Formal guarantee: for every table and every person, adding or removing the person changes the result by at most
    sqrt(query.bound_squared) in L2, whatever `query.contribute` returns for that person, provided that `contribute`
    looks at each row alone: its result for a row must not even be rounded differently in other company.

    Edge cases: a person whose contribution breaks the bound, repeats a position or leaves the vector counts as zero;
    an empty table gives zeros, after the query was asked for the contribution of nobody; a contribution of the wrong
    shape or dtype is a `Defect` that depends on the query alone; floating-point warnings, which depend on people, are
    never raised.
    """
    total = np.zeros(query.width, dtype=np.int64)
    outers = query.outers if isinstance(query, OuterQuery) else ()
    rows = _OUTER_ROWS if outers else max(_BLOCK_WORDS // max(query.words_per_person, 1), 1)
    sums = [np.zeros((outer.left, outer.right)) for outer in outers]
    for number, block in enumerate(people.blocks(rows), start=1):
        with np.errstate(all="ignore"):
            part = query.contribute(block)
        _check_shapes(part, query, outers, len(block))
        kept = _within_bound(part, query)
        if not kept.all():
            pairs = tuple((left[kept], right[kept]) for left, right in part.outers)
            part = Contribution(part.columns[kept], part.values[kept], pairs)
        np.add.at(total, part.columns.ravel(), part.values.ravel())
        for summed, (left, right) in zip(sums, part.outers, strict=True):
            summed += left.T @ right  # exact in float64, in whatever order: at most 2^19 people * 2^14 * 2^20
        if number % _OUTER_BLOCKS == 0:
            _move(sums, outers, total)
    _move(sums, outers, total)
    return total


def _move(sums: list[NDArray[np.float64]], outers: tuple[Outer, ...], total: NDArray[np.int64]) -> None:
    """Add the sums of outer products to the total, and begin them anew."""
    for outer, summed in zip(outers, sums, strict=True):
        total[outer.offset : outer.offset + outer.words] += summed.astype(np.int64).ravel()
        summed.fill(0.0)


def _check_shapes(part: Contribution, query: SumQuery, outers: tuple[Outer, ...], people: int) -> None:
    """`Defect` for a contribution that is not of the query's shapes: depends on the query alone."""
    end = 0
    for outer in sorted(outers, key=lambda o: o.offset):
        if outer.offset < end or min(outer.left, outer.right) < 1:
            raise Defect(f"{type(query).__name__}: outer products that overlap")
        end = outer.offset + outer.words
    if end > query.width:
        raise Defect(f"{type(query).__name__}: outer products beyond the answer")
    sparse = (people, query.words_per_person)
    right_shapes = part.columns.shape == sparse == part.values.shape and len(part.outers) == len(outers)
    right_types = part.columns.dtype == np.int64 == part.values.dtype
    for outer, (left, right) in zip(outers, part.outers, strict=False):
        right_shapes &= left.shape == (people, outer.left) and right.shape == (people, outer.right)
        right_shapes &= max(outer.left, outer.right) <= _MAX_FACTOR_WORDS
        right_types &= left.dtype == np.float64 == right.dtype
    if not right_shapes or not right_types:
        raise Defect(f"{type(query).__name__}: contribution of a wrong shape or dtype")


def _within_bound(part: Contribution, query: SumQuery) -> NDArray[np.bool_]:
    """Which people keep the bound, decided row by row in integers that cannot overflow."""
    if isinstance(query, OuterQuery):
        return _within_bound_outers(part, query)
    columns, values = part.columns, part.values
    if values.size == 0:  # nobody, or a query without words: the same for any number of people
        return np.ones(len(values), dtype=np.bool_)
    largest = max(int(values.max()), -int(values.min()))
    ascending = bool((columns[:, 1:] > columns[:, :-1]).all())
    inside = int(columns.min()) >= 0 and int(columns.max()) < query.width
    if ascending and inside and largest <= _MAX_WORD and columns.shape[1] * largest**2 < 2**63:
        norms = np.einsum("ij,ij->i", values, values)  # no sum of squares can overflow
        return np.asarray(norms <= min(query.bound_squared, 2**63 - 1))
    return _within_bound_any(part, query)


def _within_bound_outers(part: Contribution, query: OuterQuery) -> NDArray[np.bool_]:
    """The same with outer products, whose squared norms are the products of their factors' squared norms."""
    sound = np.ones(len(part.values), dtype=np.bool_)
    squares = []
    for left, right in part.outers:
        for factor, limit in ((left, MAX_LEFT), (right, MAX_RIGHT)):
            # at most 2^12 squares of at most 2^40 each: exact in float64 where everybody is sound
            square = np.einsum("ij,ij->i", factor, factor)
            within = (square <= limit**2).all()  # then so is every entry; nan passes no comparison
            if not (within and (np.rint(factor) == factor).all()):
                sound &= ((np.abs(factor) <= limit) & (np.rint(factor) == factor)).all(axis=1)
                square = np.where(sound, square, 0.0)
            squares.append(square)
    pairs = list(zip(squares[::2], squares[1::2], strict=True))
    if not part.values.size and sound.all():
        rough = np.zeros(len(part.values))
        for first, second in pairs:
            rough += first * second
        if (rough * (1.0 + 2.0**-40) < float(query.bound_squared)).all():  # rounding is far below that margin
            return sound
    exact = np.zeros(len(part.values), dtype=object)  # Python's integers: nothing overflows
    for first, second in pairs:
        whole = [np.where(sound, square, 0.0).astype(np.int64).astype(object) for square in (first, second)]
        exact = exact + whole[0] * whole[1]
    outside = np.ones(query.width, dtype=np.bool_)
    for outer in query.outers:
        outside[outer.offset : outer.offset + outer.words] = False
    for word in range(part.values.shape[1]):
        value, column = part.values[:, word], part.columns[:, word]
        inside = (column >= 0) & (column < query.width)
        sound &= inside & outside[np.where(inside, column, 0)] & (np.abs(value).view(np.uint64) <= _MAX_WORD)
        exact = exact + np.where(sound, value, 0).astype(object) ** 2
    ordered = np.sort(part.columns, axis=1)
    sound &= (ordered[:, 1:] > ordered[:, :-1]).all(axis=1)
    return np.asarray(sound & (exact <= query.bound_squared).astype(np.bool_))


def _within_bound_any(part: Contribution, query: SumQuery) -> NDArray[np.bool_]:
    """The same for contributions of any values and positions."""
    small = np.asarray((np.abs(part.values).view(np.uint64) <= _MAX_WORD).all(axis=1))
    inside = ((part.columns >= 0) & (part.columns < query.width)).all(axis=1)
    columns = np.sort(part.columns, axis=1)
    distinct = (columns[:, 1:] > columns[:, :-1]).all(axis=1)
    # squares are at most 2**56: added in two 32-bit halves, so that any number of words is exact in int64
    squares = np.where(small[:, np.newaxis], part.values, 0) ** 2
    low = (squares & _LOW_HALF).sum(axis=1)
    high = (squares >> 32).sum(axis=1) + (low >> 32)
    bound_high, bound_low = divmod(query.bound_squared, 2**32)
    within = (high < bound_high) | ((high == bound_high) & ((low & _LOW_HALF) <= bound_low))
    return np.asarray(small & inside & distinct & within)
