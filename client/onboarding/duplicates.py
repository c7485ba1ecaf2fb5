"""Counting lines that repeat an earlier line in every column.

Exactness: lines are compared by a 64-bit hash of all their cells. Two different lines collide with probability 2^-64,
so that among n lines about n^2 / 2^65 are counted wrongly: 0.0003 expected for 100 million lines. Hashes are sorted in
memory, a bounded number at a time; a larger source is read again for each part. `SELECT DISTINCT *` is exact and costs
several times as much.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cohortium.client.onboarding.engine import Engine, quoted
from cohortium.client.onboarding.sources import OpenSource

__all__ = ["count_duplicates"]

_HASHES_AT_ONCE = 64_000_000


def count_duplicates(engine: Engine, source: OpenSource, lines: int, place: str) -> int:
    """Lines of the source that repeat an earlier one.

    Args:
        engine: where the source is open.
        source: what to read.
        lines: its number of lines, which decides into how many parts the work is split.
        place: table named in errors.
    """
    cells = ", ".join(quoted(column) for column in source.types)
    parts = max(-(-lines // _HASHES_AT_ONCE), 1)
    repeats = 0
    for part in range(parts):
        sql = f"SELECT h FROM (SELECT hash({cells}) AS h FROM {source.relation}) WHERE h % {parts} = {part}"
        repeats += _repeats(engine.column("counting duplicates", sql, place))
    return repeats


def _repeats(hashes: NDArray[np.uint64]) -> int:
    hashes.sort()
    return int(np.count_nonzero(hashes[1:] == hashes[:-1]))
