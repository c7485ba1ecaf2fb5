"""The feature basis: what encoders and rankers see of a customer, in blocks of one feature each.

A category is one-hot. A number u, brought to [-1, 1] between its released 1% and 99% quantiles, is its first Chebyshev
polynomials, each weighing half as much as the one before, since most of what a number tells is smooth: what is linear
in the basis is a polynomial of the feature, with four columns to add noise to and not twenty. The L2 norm of a block is
at most 1. All values are multiples of 2^-10, on which
sums of products are exact in float64: whatever is computed from a row does not depend on the rows beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cohortium.models.marginals import Axis, Marginal, feature_axis
from cohortium.privacy.table import CustomerTable
from cohortium.study.contract import Feature
from cohortium.study.errors import RefusedError

__all__ = [
    "DEGREE",
    "MAX_BASIS",
    "UNIT",
    "Basis",
    "Block",
    "basis_axes",
    "basis_from_array",
    "basis_to_array",
    "fit_basis",
]

UNIT = 2**10
"""Steps per 1.0 of the basis."""

MAX_BASIS = 1024
"""Most columns of a basis."""

_MAX_BLOCKS = 64
_MAX_END, _LEAST_SPAN = 2.0**53, 2.0**-40
DEGREE = 4
"""Polynomials of a number in the basis of a study."""

_MAX_DEGREE = 16
_TAIL = 0.01


@dataclass(frozen=True)
class Block:
    """The columns of one feature.

    Args:
        feature: its name.
        levels: number of codes of a category, the unknown one included; 0 for numbers.
        low, high: of a number: ends on the transformed scale that become -1 and 1; low < high.
        log: whether a number is taken on the scale log(1 + value).
        degree: of a number: how many polynomials; the first is the number itself.
    """

    feature: str
    levels: int = 0
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    degree: int = 2

    @property
    def width(self) -> int:
        """Columns of the block."""
        return self.levels or self.degree

    @property
    def scales(self) -> tuple[float, ...]:
        """By which a number's polynomials are multiplied: squares that add up to 1, each root half the one before."""
        whole = math.sqrt(sum(0.25**order for order in range(self.degree)))
        return tuple(0.5**order / whole for order in range(self.degree))

    def fill(self, values: NDArray[np.float64], out: NDArray[np.float64]) -> None:
        """Write the block of some people, in steps of 1/UNIT as whole numbers, into zeros of shape (n, width).

        A code that the contract does not have counts as the unknown one, the last.
        """
        if self.levels:
            out[np.arange(len(values)), _codes(values, np.float64(self.levels))] = UNIT
            return
        moved = np.log1p(np.maximum(values, 0.0)) if self.log else values
        unit = np.clip(2.0 * ((moved - self.low) / (self.high - self.low)) - 1.0, -1.0, 1.0)
        before, last = np.ones(len(values)), unit
        for column, scale in enumerate(self.scales):
            np.trunc(last * (UNIT * scale), out=out[:, column])
            before, last = last, 2.0 * unit * last - before


@dataclass(frozen=True)
class Basis:
    """The blocks of all features, in the contract's order."""

    blocks: tuple[Block, ...]

    @cached_property
    def width(self) -> int:
        """Columns of all blocks."""
        return sum(block.width for block in self.blocks)

    @cached_property
    def features(self) -> tuple[str, ...]:
        """The features' names."""
        return tuple(block.feature for block in self.blocks)

    @cached_property
    def feature_of(self) -> NDArray[np.intp]:
        """Index of the block that each column belongs to, shape (width,)."""
        return np.repeat(np.arange(len(self.blocks)), self.widths)

    @cached_property
    def widths(self) -> NDArray[np.intp]:
        """Columns of each block, shape (blocks,)."""
        return np.array([block.width for block in self.blocks], dtype=np.intp)

    def rows(self, people: CustomerTable) -> NDArray[np.float64]:
        """Everybody's row, whole numbers in units of 1/UNIT as float64, shape (n, width)."""
        values = people.select(self.features)
        result = np.zeros((len(people), self.width))
        levels = np.array([block.levels for block in self.blocks], dtype=np.float64)
        starts = np.cumsum(self.widths) - self.widths
        for index in np.flatnonzero(levels == 0):
            block, start = self.blocks[index], starts[index]
            block.fill(values[:, index], result[:, start : start + block.width])
        categories = np.flatnonzero(levels)
        codes = _codes(values[:, categories], levels[categories])
        result[np.arange(len(values))[:, np.newaxis], codes + starts[categories]] = UNIT
        return result


def _codes(values: NDArray[np.float64], levels: NDArray[np.float64] | np.float64) -> NDArray[np.int64]:
    """Codes of categories; one that the contract does not have is the unknown one, the last."""
    return np.where((values >= 0) & (values < levels), values, levels - 1).astype(np.int64)


def basis_axes(features: Sequence[Feature]) -> tuple[Axis, ...]:
    """What the marginals question asks about: every feature of a plan, categories by their codes."""
    return tuple(
        Axis(feature.name, 0.0, float(feature.levels - 1), integer=True)
        if feature.is_category
        else feature_axis(feature)
        for feature in features
    )


def fit_basis(
    features: Sequence[Feature], marginals: Mapping[str, Marginal]
) -> tuple[Basis, NDArray[np.float64], float]:
    """The basis of a plan's features, from released marginals alone.

    Args:
        features: those that the plan uses (`TrainingPlan.features`).
        marginals: by feature, of `basis_axes`.

    Returns:
        the basis; the mean of its rows as the marginals have it, shape (width,), in units of 1.0; and the trace of the
        rows' covariance.
    """
    blocks, means, squares = [], [], []
    for feature in features:
        marginal = marginals[feature.name]
        levels = feature.levels
        block = Block(feature.name, levels=levels) if levels else _number(marginal)
        blocks.append(block)
        values = np.arange(levels, dtype=np.float64) if levels else _middles(marginal.axis)
        mass = _code_mass(marginal, levels) if levels else marginal.mass
        table = np.zeros((len(values), block.width))
        block.fill(values, table)
        weights = mass / mass.sum() if mass.sum() > 0 else np.full(len(values), 1.0 / len(values))
        means.append(weights @ table / UNIT)
        squares.append(weights @ (table / UNIT) ** 2)
    centre = np.concatenate(means)
    trace = float((np.concatenate(squares) - centre**2).sum())
    return Basis(tuple(blocks)), centre, max(trace, 1e-3)


def _number(marginal: Marginal) -> Block:
    axis = marginal.axis
    ends = axis.transform(np.array([marginal.quantile(_TAIL), marginal.quantile(1.0 - _TAIL)]))
    public = axis.transform(np.array([axis.low, axis.high]))
    least = max(1e-6 * float(public[1] - public[0]), _LEAST_SPAN)
    low, high = ends if ends[1] - ends[0] > least else public
    return Block(axis.name, low=float(low), high=float(high), log=axis.log, degree=DEGREE)


def _middles(axis: Axis) -> NDArray[np.float64]:
    return np.asarray(np.clip((axis.edges[1:] + axis.edges[:-1]) / 2.0, axis.low, axis.high))


def _code_mass(marginal: Marginal, levels: int) -> NDArray[np.float64]:
    """Mass of every code; a bin of several codes is divided evenly."""
    edges = marginal.axis.edges
    bins = np.searchsorted(edges[1:-1], np.arange(levels), side="right")
    return np.asarray(marginal.mass[bins] / np.bincount(bins, minlength=len(marginal.mass))[bins])


def basis_to_array(basis: Basis) -> NDArray[np.float64]:
    """A basis's wire form: one row (levels, low, high, log, degree) per block."""
    return np.array([[b.levels, b.low, b.high, float(b.log), 0 if b.levels else b.degree] for b in basis.blocks])


def basis_from_array(features: object, rows: NDArray[np.float64]) -> Basis:
    """A basis from its wire form; `RefusedError` when malformed."""
    if not isinstance(features, list) or not all(isinstance(name, str) and name[:1] != "@" for name in features):
        raise RefusedError("malformed basis")  # a node's own columns are no features
    if not 1 <= len(set(features)) == len(features) <= _MAX_BLOCKS or rows.shape != (len(features), 5):
        raise RefusedError("malformed basis")
    if not np.isfinite(rows).all():
        raise RefusedError("malformed basis")
    basis = Basis(tuple(_block(name, row) for name, row in zip(features, rows, strict=True)))
    if basis.width > MAX_BASIS:
        raise RefusedError("malformed basis")
    return basis


def _block(name: str, row: NDArray[np.float64]) -> Block:
    levels, low, high, log, degree = (float(word) for word in row)
    if levels == 0.0 and degree.is_integer() and 1 <= degree <= _MAX_DEGREE and log in (0.0, 1.0):
        if abs(low) <= _MAX_END >= abs(high) and high - low >= _LEAST_SPAN:
            return Block(name, low=low, high=high, log=log == 1.0, degree=int(degree))
    elif levels.is_integer() and 1 <= levels <= MAX_BASIS and low == high == log == degree == 0.0:
        return Block(name, levels=int(levels))
    raise RefusedError("malformed basis")
