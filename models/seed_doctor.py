"""The seed doctor: how true to a seed list a noised direction will be, before any epsilon is spent.

A campaign learns the direction of the seeds from a noised sum: with x the rows of the seeds as the plan bounds them
(centred by released means, divided by the clipping radius, |x| <= 1), it sees v + z, where v is the sum of x over the
seeds and z is noise of standard deviation sigma in every coordinate. The number of seeds scales the direction and does
not turn it. Two cosines say how good v + z is:

- *centroid*, the headline: between v + z and v, the direction of these very seeds without noise. What the noise costs.
- *population*: between v + z and m, the mean of the people of whom the seeds are a sample. It also counts that the
  sample is small: v is n m and a sampling error of covariance n C.

Both are laws of |u + e| for a known vector u and a Gaussian error e, so nothing is released and nothing is charged;
but u, m and C are exact statistics of one institution's seeds. **A forecast stays there**, as the list does.

The noise is not known in advance. One release's cosine therefore scatters around the forecast, and no forecast can be
nearer to it than `CosineForecast.low` and `.high` say: for 100 seeds at a small epsilon by 0.1 and more.

The means that rows are centred by are released, so they have noise e of a known covariance E, and what is seen of m is
m - e. Of N seeds that turns the sum by N e, which more seeds do not cure; and |m - e|^2 is larger than |m|^2 by tr(E),
which is taken off. Where the rest is within three standard deviations of |e|^2, nothing sets the seeds apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cohortium.privacy.accounting import budget_for, sigma_for
from cohortium.privacy.query import SCALE
from cohortium.privacy.sharing import ALONE, NoiseShare
from cohortium.study.errors import CohortiumError, Defect

__all__ = [
    "ADVISED_SEEDS",
    "LEAST_SEEDS",
    "CosineForecast",
    "SeedForecast",
    "SeedMoments",
    "forecast_seed",
    "seed_moments",
    "seed_noise",
]

LEAST_SEEDS = 100
"""Fewer seeds of one institution are refused."""

ADVISED_SEEDS = 500
"""Fewer seeds are accepted with a warning."""

_SURE = 3.0
"""Standard deviations by which a squared length must exceed what errors explain."""

_NODES = 4096
_MOST_MORE = 10_000_000
_MAX_DIMENSIONS = 512


def seed_noise(
    epsilon: float,
    delta: float,
    share: float,
    *,
    institutions: int,
    noise: NoiseShare = ALONE,
    bound_squared: int = SCALE**2,
) -> float:
    """Standard deviation of the noise in every word of a plan's sum over seeds, in units of 1.0.

    The same steps as the door's: the smallest integer sigma that the share of the plan's mu^2 pays for, of which every
    institution adds its part. With shared noise the total is sigma sqrt(m / (t - c)) for m institutions, with full
    noise at each of them sigma sqrt(m).

    Args:
        epsilon, delta: of the plan.
        share: part of the plan's mu^2 that this one sum costs, above 0 and at most 1.
        institutions: m, how many are expected to answer.
        noise: whose noise it is (`privacy.sharing.noise_share(plan)`).
        bound_squared: of the query, in squared integer units; one unit of radius by default.

    Raises:
        CohortiumError: an epsilon, delta or share that no plan may have, or fewer institutions than noise shares.
    """
    if not 0 < share <= 1:
        raise CohortiumError("the share must be above 0 and at most 1", place="share", fix="state a share such as 0.3")
    if institutions < max(noise.contributions, 1):
        raise CohortiumError(
            "fewer institutions than the plan's minimum",
            place="institutions",
            fix="count every institution that answers",
        )
    allotment = math.floor(Fraction(share) * budget_for(epsilon, delta).mu2)
    return noise.sigma_of(sigma_for(bound_squared, allotment)) * math.sqrt(institutions) / SCALE


@dataclass(frozen=True)
class SeedMoments:
    """What the doctor knows of one institution's seeds. Exact, so it stays there.

    Args:
        people: n, how many seeds, at least 2.
        mean: of their rows, in units of the clipping radius, shape (d,).
        covariance: of their rows, unbiased, shape (d, d).
        centre_noise: E, covariance of the noise in what the rows are centred by, shape (d, d); None for public centres.
    """

    people: int
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    centre_noise: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        d = len(self.mean)
        squares = (self.covariance, self.noise_of_centre)
        if self.people < 2 or self.mean.shape != (d,) or d < 1 or any(one.shape != (d, d) for one in squares):
            raise Defect("seed moments: shapes disagree")
        if not all(np.isfinite(one).all() for one in (self.mean, *squares)):
            raise Defect("seed moments: a value is not finite")

    @property
    def noise_of_centre(self) -> NDArray[np.float64]:
        """E, zeros for public centres."""
        return np.zeros_like(self.covariance) if self.centre_noise is None else self.centre_noise

    @property
    def length_squared(self) -> float:
        """|v|^2 / n^2 of these very seeds without noise, without bias: |mean|^2 less tr(E). 0 where E explains it."""
        noise = self.noise_of_centre
        square = float(self.mean @ self.mean) - float(np.trace(noise))
        return square if square > _SURE * _deviation(noise) else 0.0

    @property
    def signal_squared(self) -> float:
        """|m|^2 of the population mean, without bias: that of a sample is too large by tr(C) / n. At least 0."""
        return max(self.length_squared - float(np.trace(self.covariance)) / self.people, 0.0)

    @property
    def is_distinct(self) -> bool:
        """Whether |m|^2 is more than three standard deviations of its error, of sample and centre, above 0."""
        return self.signal_squared > _SURE * _deviation(self.covariance / self.people + self.noise_of_centre)


def seed_moments(rows: NDArray[np.float64]) -> SeedMoments:
    """Moments of seed rows as the sum counts them.

    Args:
        rows: centred, clipped and divided by the radius; float64, shape (n, d), n at least 2, d at most 512.

    Raises:
        CohortiumError: fewer than two seeds, more than 512 dimensions, or a row longer than 1 (not clipped).
    """
    if rows.ndim != 2 or len(rows) < 2 or not 1 <= rows.shape[1] <= _MAX_DIMENSIONS:
        raise CohortiumError(
            f"the doctor needs two seeds at least and 1 to {_MAX_DIMENSIONS} features", fix="list more customers"
        )
    if not np.isfinite(rows).all() or float((rows * rows).sum(axis=1).max()) > 1 + 1e-9:
        raise CohortiumError("the seeds' rows are not clipped to 1", fix="bound them as the plan's query does")
    mean = rows.mean(axis=0)
    centred = rows - mean
    return SeedMoments(len(rows), mean, centred.T @ centred / (len(rows) - 1))


@dataclass(frozen=True)
class CosineForecast:
    """The law of a cosine, each figure from -1 to 1.

    Args:
        expected: its mean.
        low, high: its central 95%: where a single release falls.
    """

    expected: float
    low: float
    high: float


@dataclass(frozen=True)
class SeedForecast:
    """What a plan's noise will leave of a seed. Made from exact statistics: it stays at the institution.

    Args:
        here: seeds of this institution.
        total: seeds of all institutions.
        noise: standard deviation per coordinate, in units of the radius.
        dimensions: d.
        centroid: cosine to the noise-free centroid of these very seeds.
        population: cosine to the mean of the people of whom they are a sample.
        wanted: the centroid cosine that was asked for.
        more: how many more matched customers bring the expected centroid cosine there; 0 when it is there already,
            None when ten million would not, or when nothing tells them from the rest.
        reachable: for `more` None the largest expected centroid cosine, today's when nothing tells them from the rest;
            else `wanted`.
    """

    here: int
    total: int
    noise: float
    dimensions: int
    centroid: CosineForecast
    population: CosineForecast
    wanted: float
    more: int | None
    reachable: float

    def advice(self) -> tuple[str, ...]:
        """The forecast in plain words, one sentence a line."""
        lines = [
            f"With {self.total:,} seeds the learnt direction has an expected cosine of {self.centroid.expected:.2f}"
            f" to the seeds' own (95% of runs: {self.centroid.low:.2f} to {self.centroid.high:.2f}).",
            f"Measured against the people of whom they are a sample, it is {self.population.expected:.2f}"
            f" ({self.population.low:.2f} to {self.population.high:.2f}).",
        ]
        if self.more is None and self.reachable > self.centroid.expected:
            lines.append(
                f"However many more such customers there are, the noise of the model's means leaves at most"
                f" {self.reachable:.2f}: {self.wanted:.2f} was wanted."
            )
        elif self.more is None:
            lines.append(
                "No number of customers like these is known to help: they are hardly told from the rest."
                f" List customers who have more in common, or spend more epsilon: {self.wanted:.2f} was wanted."
            )
        elif self.more > 0:
            lines.append(
                f"{self.more:,} more matched customers bring the expected cosine from {self.centroid.expected:.2f}"
                f" to {self.wanted:.2f}."
            )
        if self.here < ADVISED_SEEDS:
            lines.append(f"{self.here:,} seeds of this institution are fewer than the {ADVISED_SEEDS} advised.")
        return tuple(lines)


def forecast_seed(
    moments: SeedMoments,
    noise: float,
    *,
    elsewhere: Sequence[int] = (),
    wanted: float = 0.9,
    transform: NDArray[np.float64] | None = None,
) -> SeedForecast:
    """Predict the cosine of a noised seed direction, and what it takes to bring it to a wanted one.

    Seeds of other institutions are taken to be a sample of the same people: their sum is unknown here, so its expected
    length is used, |v|^2 = |v_here|^2 + 2 k v_here.m + k^2 |m|^2 + k tr(C) for k seeds elsewhere. The same stands
    behind `more`.

    Args:
        moments: of this institution's seeds.
        noise: standard deviation of the sum's noise per coordinate, in units of the radius (`seed_noise`), above 0.
        elsewhere: matched seeds of the other institutions (or the low ends of their bands), each at least 0.
        wanted: expected centroid cosine to reach, above 0 and below 1.
        transform: what post-processing multiplies the noisy sum by (a ridge's inverse, say), shape (d, d); noise and
            rows are transformed alike. None leaves both as they are.

    Raises:
        CohortiumError: an argument out of its range.
    """
    if not (math.isfinite(noise) and noise > 0):
        raise CohortiumError("the noise must be above 0", fix="use seed_noise with the plan's epsilon and share")
    if not 0 < wanted < 1:
        raise CohortiumError("the wanted cosine must lie between 0 and 1", fix="state a cosine such as 0.9")
    if any(count < 0 for count in elsewhere):
        raise CohortiumError("a number of seeds is negative", place="elsewhere", fix="give counts of 0 or more")
    law = _Law(moments, noise, transform)
    others = sum(elsewhere)
    centroid, population = law.centroid(others), law.population(others)
    more, reachable = _more(law, others, wanted, centroid.expected)
    return SeedForecast(
        here=moments.people,
        total=moments.people + others,
        noise=noise,
        dimensions=len(moments.mean),
        centroid=centroid,
        population=population,
        wanted=wanted,
        more=more,
        reachable=reachable,
    )


def _more(law: _Law, others: int, wanted: float, now: float) -> tuple[int | None, float]:
    """The fewest further seeds, by bisection: the expected cosine grows with the signal's length."""
    if now >= wanted:
        return 0, wanted
    if not law.is_distinct:
        return None, now
    top = law.centroid(others + _MOST_MORE).expected
    if top < wanted:
        return None, max(top, now)
    low, high = 0, _MOST_MORE
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if law.centroid(others + middle).expected >= wanted else (middle, high)
    return high, wanted


class _Law:
    """Both cosines as functions of the number of further seeds, by integration over fixed Gaussian nodes.

    The nodes stand for the error's law, as in any numerical integral: nobody is sampled and nothing is protected by
    them, so a fixed generator makes them. Equal inputs give equal forecasts.
    """

    def __init__(self, moments: SeedMoments, noise: float, transform: NDArray[np.float64] | None) -> None:
        d = len(moments.mean)
        mapping = np.eye(d) if transform is None else transform
        if mapping.shape != (d, d) or not np.isfinite(mapping).all():
            raise CohortiumError("the transform does not fit the seeds' features", fix="use the ranker's own")
        self.is_distinct = moments.is_distinct
        self._n = moments.people
        self._mean = mapping @ moments.mean
        self._spread = float(np.trace(moments.covariance))
        self._signal, self._length = moments.signal_squared, moments.length_squared
        self._seen = float(moments.mean @ moments.mean)
        self._noise = noise * (_nodes(d) if transform is None else _nodes(d) @ mapping.T)
        self._sampling = _drawn(moments.covariance, 1) @ mapping.T
        self._centre = None if moments.centre_noise is None else _drawn(moments.centre_noise, 2) @ mapping.T

    def centroid(self, others: int) -> CosineForecast:
        """cos(v + z - n e, v)."""
        error = self._error(self._n + others)
        return _summary(_length(self._mean) * self._stretch(others), error @ _unit(self._mean), error)

    def population(self, others: int) -> CosineForecast:
        """cos(n m + sampling error + z - n e, m), m along the seeds' mean and of its unbiased length."""
        n, shrink = self._n + others, math.sqrt(self._signal / self._seen) if self._seen > 0 else 0.0
        error = self._error(n) + math.sqrt(n) * self._sampling
        return _summary(n * shrink * _length(self._mean), error @ _unit(self._mean), error)

    def _error(self, n: int) -> NDArray[np.float64]:
        """The noise of a sum of n rows, and n times that of their centre."""
        return self._noise if self._centre is None else self._noise + n * self._centre

    def _stretch(self, k: int) -> float:
        """Expected length of the sum of n + k seeds, in lengths of the seeds' mean as seen."""
        if self._length == 0:
            return 0.0
        n, signal = self._n, self._signal
        square = n * n * self._length + 2 * k * n * signal + k * k * signal + k * self._spread
        return math.sqrt(square / self._seen)


def _summary(signal: float, along: NDArray[np.float64], error: NDArray[np.float64]) -> CosineForecast:
    """Mean and central 95% of cos(u + e, u), |u| = signal, from the errors' parts along u and their lengths."""
    squares = np.einsum("ij,ij->i", error, error)
    whole = np.sqrt(np.maximum(signal * signal + 2 * signal * along + squares, 1e-300))
    cosine = np.clip((signal + along) / whole, -1.0, 1.0)
    low, high = np.quantile(cosine, (0.025, 0.975))
    return CosineForecast(float(cosine.mean()), float(low), float(high))


def _deviation(covariance: NDArray[np.float64]) -> float:
    """Standard deviation of the squared length of a Gaussian error of that covariance."""
    return math.sqrt(2 * float((covariance**2).sum()))


def _length(vector: NDArray[np.float64]) -> float:
    return math.sqrt(float(vector @ vector))


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """The vector's direction; the first axis for a vector without one."""
    length = _length(vector)
    if length == 0:
        return np.asarray(np.eye(1, len(vector))[0])
    return np.asarray(vector / length)


def _drawn(covariance: NDArray[np.float64], stream: int) -> NDArray[np.float64]:
    """The nodes of a stream as Gaussian errors of that covariance, one a row."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((_nodes(len(values), stream) * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)


@lru_cache(maxsize=8)
def _nodes(d: int, stream: int = 0) -> NDArray[np.float64]:
    """Points that stand for the standard normal law in d dimensions, each with its mirror image."""
    half = np.random.default_rng((d, stream)).standard_normal((_NODES // 2, d))
    nodes = np.concatenate([half, -half])
    nodes.flags.writeable = False
    return nodes
