"""The encoder: a masked-feature autoencoder, and its clipped gradients as a sum query.

    basis with some features hidden, one flag per hidden feature  ->  hidden  ->  embedding  ->  hidden  ->  whole basis

The loss of a row is half the squared error of the reconstruction of what was hidden; it looks at that row alone (no
batch normalisation, no loss across rows). Per-example gradients are never formed: the gradient of a linear layer is
the outer product of its input and the error behind it, whose norm is the product of theirs (Goodfellow, "Efficient
per-example gradient computations", arXiv 1510.01799; "ghost clipping", Li, Tramer, Liang, Hashimoto, ICLR 2022). So a
person's contribution is four pairs of short vectors, which `privacy.query` checks and adds up exactly.

Everything is computed on grids on which float64 is exact: activations in steps of 2^-10, weights of 2^-16, errors of
2^-16. A person's contribution is therefore the same bit for bit in any company and in any batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cohortium.models.basis import UNIT, Basis, basis_from_array, basis_to_array
from cohortium.models.rows import HASH, row_words
from cohortium.privacy.query import Contribution, Outer, QuerySpec
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import Defect, RefusedError

__all__ = [
    "GRADIENT_SCALE",
    "WEIGHT_LIMIT",
    "Encoder",
    "EncoderGradientQuery",
    "encoder_from_arrays",
    "encoder_shapes",
    "on_scale_grid",
    "on_weight_grid",
]

GRADIENT_SCALE = 2**30
"""Integer units per clipping norm: with inputs in steps of 2^-10 no error passes 2^20 units."""

WEIGHT_LIMIT = 32.0
"""Largest absolute weight."""

_WEIGHT_UNIT = 2**16
_REACH = 8 * UNIT  # of activations, and of what goes in
_ERROR_UNIT = 2**16
_ERROR_REACH = 2**21  # 32
_MAX_SIDE = 1024
_SLACK = 1.0 - 2.0**-40
_ROWS = 256
_BYTES = 8  # of pseudo-random bits in a word: one for every feature
_Weights = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def encoder_shapes(basis: Basis, hidden: int, width: int) -> tuple[tuple[int, int], ...]:
    """Shapes of the four weight matrices; the last row of each is the bias."""
    inputs = basis.width + len(basis.blocks) + 1
    return (inputs, hidden), (hidden + 1, width), (width + 1, hidden), (hidden + 1, basis.width)


def on_weight_grid(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights rounded to multiples of 2^-16 within [-32, 32]."""
    return np.asarray(np.rint(np.clip(weights, -WEIGHT_LIMIT, WEIGHT_LIMIT) * _WEIGHT_UNIT) / _WEIGHT_UNIT)


def on_scale_grid(scales: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scales rounded to multiples of 2^-6 within [2^-6, 8]."""
    return np.asarray(np.rint(np.clip(scales, 2.0**-6, 8.0) * 64.0) / 64.0)


@dataclass(frozen=True)
class Encoder:
    """Weights of an autoencoder on a basis.

    Args:
        basis: what it sees; d columns, f features.
        scales: by which each column is multiplied, multiples of 2^-6 up to 8, shape (d,).
        weights: four matrices on the weight grid, shapes as `encoder_shapes` gives them.

    Raises:
        Defect: wrong shapes, or weights off the grid.
    """

    basis: Basis
    scales: NDArray[np.float64]
    weights: _Weights

    def __post_init__(self) -> None:
        if self.scales.shape != (self.basis.width,) or not np.array_equal(on_scale_grid(self.scales), self.scales):
            raise Defect("encoder: scales of another shape or off their grid")
        if len(self.weights) != 4 or self.weights[0].ndim != 2 or self.weights[1].ndim != 2:
            raise Defect("encoder: four matrices")
        shapes = encoder_shapes(self.basis, self.weights[0].shape[1], self.width)
        if tuple(matrix.shape for matrix in self.weights) != shapes:
            raise Defect("encoder: weights of other shapes")
        if not all(np.array_equal(on_weight_grid(matrix), matrix) for matrix in self.weights):
            raise Defect("encoder: weights off their grid")

    @property
    def width(self) -> int:
        """Dimensions of the embedding."""
        return int(self.weights[1].shape[1])

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(matrix.size for matrix in self.weights)

    @cached_property
    def _with_bias(self) -> tuple[NDArray[np.float64], ...]:
        """The weights, each with one more column, which passes the bias on to the next layer."""
        return tuple(np.column_stack([matrix, np.eye(len(matrix))[-1]]) for matrix in self.weights[:3])

    def _scaled(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows of the basis, scaled and again in whole steps."""
        scaled: NDArray[np.float64] = rows * self.scales
        return np.rint(scaled, out=scaled)

    def embed(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Embeddings of rows of the basis with nothing hidden.

        Args:
            rows: from `Basis.rows`, shape (n, d).

        Returns:
            whole numbers in steps of 2^-10 as float64, at most 2^13 in size, shape (n, width).
        """
        result = np.empty((len(rows), self.width))
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            inputs = np.zeros((len(part), len(self.weights[0])))
            inputs[:, : rows.shape[1]] = self._scaled(part)
            inputs[:, -1] = UNIT
            hidden = _forward(inputs, self._with_bias[0], 0)
            result[start : start + _ROWS] = _forward(hidden, self.weights[1], -_REACH)
        return result

    def gradient_factors(
        self, rows: NDArray[np.float64], hide: NDArray[np.bool_]
    ) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Input and error of each of the four layers, whose outer products are the gradients of the rows' losses.

        Args:
            rows: from `Basis.rows`, shape (n, d).
            hide: which features each row hides, shape (n, f).

        Returns:
            per layer the inputs in steps of 2^-10 (bias included) and the errors in steps of 2^-16, as whole numbers.
        """
        width = rows.shape[1]
        hides = hide.astype(np.float64)
        hides_column = np.repeat(hides, self.basis.widths, axis=1)
        inputs = np.empty((len(rows), len(self.weights[0])))
        target = self._scaled(rows)
        wanted = target * hides_column
        np.subtract(target, wanted, out=inputs[:, :width])
        np.multiply(hides, float(UNIT), out=inputs[:, width:-1])
        inputs[:, -1] = UNIT
        hidden = _forward(inputs, self._with_bias[0], 0)
        code = _forward(hidden, self._with_bias[1], -_REACH)
        opened = _forward(code, self._with_bias[2], 0)
        error4 = _forward(opened, self.weights[3], -_REACH)
        error4 *= hides_column
        error4 -= wanted
        error4 *= _ERROR_UNIT // UNIT
        error3 = _backward(error4, self.weights[3], opened)
        error2 = _backward(error3, self.weights[2], None)
        error1 = _backward(error2, self.weights[1], hidden)
        return [(inputs, error1), (hidden, error2), (code, error3), (opened, error4)]


def _forward(inputs: NDArray[np.float64], weights: NDArray[np.float64], least: int) -> NDArray[np.float64]:
    """A layer's output on the grid of activations; exact until it is rounded."""
    result = inputs @ weights
    np.rint(result, out=result)
    return np.clip(result, least, _REACH, out=result)


def _backward(
    error: NDArray[np.float64], weights: NDArray[np.float64], output: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """The error in front of a layer, on its grid; through a rectifier with the given whole output."""
    result = error @ weights[:-1].T
    if output is not None:
        result *= np.minimum(output[:, :-1], 1.0)
    np.rint(result, out=result)
    return np.clip(result, -_ERROR_REACH, _ERROR_REACH, out=result)


@dataclass(frozen=True)
class EncoderGradientQuery:
    """The sum of all customers' clipped gradients of the reconstruction loss.

    A person adds the gradient clipped to the L2 norm `clip`, in units of which it is quantised towards zero: its words
    have a norm of at most GRADIENT_SCALE. That is the sensitivity, exactly; the door checks it for every person.

    Args:
        encoder: at whose weights.
        stream: number of the pseudo-random stream that hides features, a public number of the round.
        hide_share: how often a feature is hidden, in 1..255 of 256.
        clip: L2 norm to which a person's gradient is clipped, positive.
    """

    encoder: Encoder
    stream: int
    hide_share: int
    clip: float
    kind = "encoder-gradient"
    words_per_person = 0
    bound_squared = GRADIENT_SCALE**2

    @property
    def width(self) -> int:
        return self.encoder.size

    @property
    def outers(self) -> tuple[Outer, ...]:
        result, offset = [], 0
        for matrix in self.encoder.weights:
            result.append(Outer(offset, *matrix.shape))
            offset += matrix.size
        return tuple(result)

    def contribute(self, people: CustomerTable) -> Contribution:
        rows = self.encoder.basis.rows(people)
        factors = self.encoder.gradient_factors(rows, self._hidden(people))
        squares = np.zeros(len(people))
        for left, right in factors:  # each exact; elementwise from here
            squares += np.einsum("ij,ij->i", left, left) * np.einsum("ij,ij->i", right, right)
        norms = np.sqrt(squares) * (1.0 / (UNIT * _ERROR_UNIT))
        factor = (GRADIENT_SCALE / (UNIT * _ERROR_UNIT) * _SLACK) / np.maximum(norms, self.clip)
        for _left, right in factors:
            right *= factor[:, np.newaxis]
            np.trunc(right, out=right)
        nothing = np.empty((len(people), 0), dtype=np.int64)
        return Contribution(nothing, nothing, tuple(factors))

    def _hidden(self, people: CustomerTable) -> NDArray[np.bool_]:
        hashes = people.select((HASH,))[:, 0]
        features = len(self.encoder.basis.blocks)
        words = -(-features // _BYTES)
        drawn = [row_words(hashes, self.stream * words + index + 1) for index in range(words)]
        parts = np.column_stack(drawn).astype("<u8").view(np.uint8).reshape(len(people), words * _BYTES)
        return np.asarray(parts[:, :features] < self.hide_share)

    def gradient(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The noisy sum of clipped gradients in the loss's unit, flat, from integer words of shape (width,)."""
        return values * (self.clip / GRADIENT_SCALE)

    def spec(self) -> QuerySpec:
        arrays = {f"weights{index}": matrix for index, matrix in enumerate(self.encoder.weights)}
        arrays |= {"basis": basis_to_array(self.encoder.basis), "scales": self.encoder.scales}
        arrays["clip"] = np.array([self.clip])
        scalars = {
            "features": list(self.encoder.basis.features),
            "stream": self.stream,
            "hide_share": self.hide_share,
        }
        return QuerySpec(self.kind, scalars, arrays)

    @classmethod
    def from_spec(cls, spec: QuerySpec) -> EncoderGradientQuery:
        """Rebuild strictly; `RefusedError` for anything `spec` would not have written."""
        names = {"basis", "clip", "scales", *(f"weights{index}" for index in range(4))}
        if set(spec.scalars) != {"features", "stream", "hide_share"} or set(spec.arrays) != names:
            raise RefusedError("malformed encoder question")
        stream, hide_share, clip = spec.scalars["stream"], spec.scalars["hide_share"], spec.arrays["clip"]
        if type(stream) is not int or not 0 <= stream < 2**20 or type(hide_share) is not int:
            raise RefusedError("malformed encoder question")
        if not 1 <= hide_share <= 255 or clip.shape != (1,) or not 2.0**-10 <= float(clip[0]) <= 2.0**10:
            raise RefusedError("malformed encoder question")
        encoder = encoder_from_arrays(spec.scalars["features"], spec.arrays)
        return cls(encoder, stream, hide_share, float(clip[0]))


def encoder_from_arrays(features: object, arrays: Mapping[str, NDArray[np.float64]]) -> Encoder:
    """An encoder from its wire form (`basis`, `scales`, `weights0` to `weights3`); `RefusedError` when malformed."""
    basis = basis_from_array(features, arrays["basis"])
    first, second, third, fourth = (arrays[f"weights{index}"] for index in range(4))
    weights = (first, second, third, fourth)
    if any(m.ndim != 2 or not 1 <= min(m.shape) <= max(m.shape) <= 2 * _MAX_SIDE for m in weights):
        raise RefusedError("malformed encoder")
    if not all(np.isfinite(values).all() for values in (*weights, arrays["scales"])):
        raise RefusedError("malformed encoder")
    try:
        return Encoder(basis, arrays["scales"], weights)
    except Defect:
        raise RefusedError("malformed encoder") from None
