"""Limits: numbers that a plan keeps to; of several on one fact the strictest wins."""

from __future__ import annotations

from collections.abc import Iterable

from cohortium.governance.rules.pack import Limit

__all__ = ["combine_limits"]


def combine_limits(*sources: Iterable[Limit]) -> tuple[Limit, ...]:
    """The strictest limit for every stage, fact and operator, over packs and institutions.

    Equal ones become one that names the rules of all. Combining is commutative, associative and idempotent, so it does
    not matter who combines first.
    """
    found: dict[tuple[str, str, str], Limit] = {}
    for limit in (limit for source in sources for limit in source):
        key = (limit.stage, limit.fact, limit.op)
        other = found.get(key)
        if other is None or limit.stricter_than(other):
            found[key] = limit
        elif limit.number == other.number:
            rules = tuple(sorted({*limit.rules, *other.rules}))
            found[key] = limit.model_copy(update={"rules": rules})
    return tuple(found[key] for key in sorted(found))
