"""Numbers, dates and names in words: units, thousands separators, and no more digits than the noise supports."""

from __future__ import annotations

import math
from datetime import datetime

from cohortium.study.bundle import MeanEstimate
from cohortium.study.reach import Measured

__all__ = [
    "amount",
    "delta_text",
    "duration",
    "epsilon_left_text",
    "epsilon_text",
    "estimate",
    "interval",
    "label",
    "measured",
    "measured_interval",
    "measured_percent",
    "measured_percents",
    "moment",
    "number",
    "percent",
    "plural",
    "short_delta",
    "short_digest",
    "shortened",
    "spread",
]

_NO_BOUND = "no useful bound"


def label(name: str) -> str:
    """An identifier as words: `basket_size` is 'basket size'."""
    return name.replace("_", " ")


def shortened(name: str, length: int) -> str:
    """At most `length` characters, the last an ellipsis where something was cut."""
    return name if len(name) <= length else name[: length - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def plural(count: int, one: str, many: str | None = None) -> str:
    """'1 institution', '8 institutions'."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def percent(share: float) -> str:
    """A share of 1 with one decimal; what would round to 0.0% says so."""
    return "below 0.1%" if 0 < share < 0.0005 else f"{100 * share:.1f}%"


def amount(value: float, resolution: float = 0.0) -> str:
    """A number with thousands separators, rounded to two digits of `resolution`, or to three digits without one."""
    scale = resolution if resolution > 0 else abs(value) / 10
    exponent = math.floor(math.log10(scale)) - 1 if scale > 0 else 0
    decimals = max(0, -exponent)
    rounded = round(value, -exponent)
    return f"{rounded if rounded else 0.0:,.{min(decimals, 6)}f}"


def number(value: float) -> str:
    """A number as agreed or released: whole, with decimals up to four digits in all, none of them zeros at its end."""
    decimals = min(max(4 - math.ceil(math.log10(abs(value))), 0), 12) if value else 0
    written = f"{round(value, decimals) or 0.0:,.{decimals}f}"
    return written.rstrip("0").rstrip(".") if "." in written else written


def spread(std: float) -> str:
    """A standard deviation, to two digits."""
    return amount(std, std)


def estimate(mean: MeanEstimate) -> str:
    """A noised mean with as many digits as its interval supports."""
    return amount(mean.mean, _half_width(mean))


def interval(mean: MeanEstimate) -> str:
    """The 95% interval of a noised mean."""
    half = _half_width(mean)
    return f"{amount(mean.low, half)} to {amount(mean.high, half)}"


def measured(found: Measured, scale: float = 1.0) -> str:
    """A noisy value times `scale`, with as many digits as its interval supports."""
    return amount(scale * found.value, scale * _half(found))


def measured_interval(found: Measured, scale: float = 1.0) -> str:
    """Its 95% interval."""
    half = scale * _half(found)
    return f"{amount(scale * found.low, half)} to {amount(scale * found.high, half)}"


def measured_percent(found: Measured) -> str:
    """A noisy share of 1."""
    return f"{measured(found, 100)}%"


def measured_percents(found: Measured) -> str:
    """Its 95% interval."""
    return f"{measured_interval(found, 100)}%"


def epsilon_text(epsilon: float | None) -> str:
    """An epsilon that was spent, rounded up to three decimals."""
    return _NO_BOUND if epsilon is None else f"{math.ceil(round(epsilon * 1000, 6)) / 1000:.3f}"


def epsilon_left_text(epsilon: float | None) -> str:
    """An epsilon that is left, rounded down to three decimals."""
    return _NO_BOUND if epsilon is None else f"{math.floor(round(epsilon * 1000, 6)) / 1000:.3f}"


def short_delta(delta: float) -> str:
    """A delta as a number: 1e-6."""
    return f"{delta:g}".replace("e-0", "e-")


def short_digest(digest: str) -> str:
    """The beginning of a digest, for the eye: `sha256:0123456789ab…`."""
    return digest[:19] + "\N{HORIZONTAL ELLIPSIS}"


def delta_text(delta: float) -> str:
    """A delta as a number and as odds."""
    return f"{short_delta(delta)} (about 1 in {round(1 / delta):,})"


def duration(seconds: float) -> str:
    """Seconds, or minutes and seconds."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes:,} min {rest} s"


def moment(time: datetime) -> str:
    """A moment in UTC, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC")


def _half_width(mean: MeanEstimate) -> float:
    return max(mean.high - mean.mean, mean.mean - mean.low)


def _half(found: Measured) -> float:
    return max(found.high - found.value, found.value - found.low)
