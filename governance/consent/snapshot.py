"""Who may be counted, for one purpose on one day: a set operation over everybody's standing.

People who may not are filtered. How many, and why, is for the institution's own eyes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cohortium.governance.consent.columns import ROW, Columns, keyed_tags, matching, words
from cohortium.governance.consent.purposes import PURPOSES, is_advertising_across_contexts, is_marketing
from cohortium.governance.consent.signals import FLAGS
from cohortium.study.errors import DataError
from cohortium.study.plan import LawfulBasis

__all__ = ["REASONS", "Cohort", "OpenBanking", "Roll", "Snapshot"]

REASONS = (
    "without_valid_consent",
    "objectors",
    "objectors_unresolved",
    "minors",
    "erasure_pending",
    "gpc",
    "share_optouts",
    "affiliate_optouts",
    "without_channel_consent",
    "special_without_explicit_consent",
    "ais_without_purpose_consent",
)
"""Why somebody is left out, by the names of the facts that rules read."""

_BLOCK = 1 << 20
_BIT = {reason: np.uint16(1 << place) for place, reason in enumerate(REASONS)}


@dataclass(frozen=True)
class OpenBanking:
    """What a run on account-information data asks of the permission behind it.

    Args:
        most_days: since the last strong authentication: 180 in the EU, 90 in the UK.
        most_pulls: in 24 hours without the person.
    """

    most_days: int = 180
    most_pulls: int = 4


@dataclass(frozen=True)
class Cohort:
    """What people are wanted for.

    Args:
        purpose: a term of `PURPOSES`, see `purpose_term`.
        basis: the plan's lawful basis.
        sharing: whether customers' data are shared with others, so that opt-outs count whatever the purpose.
        special: whether special categories of data are used: then everybody's explicit consent to it is needed.
        channel: one of `CHANNELS`, for an audience that is activated through it.
        open_banking: for account-information data.
    """

    purpose: str
    basis: LawfulBasis
    sharing: bool = False
    special: bool = False
    channel: str | None = None
    open_banking: OpenBanking | None = None

    def reasons(self, rows: NDArray[np.void], day: int) -> NDArray[np.uint16]:
        """For every row of dtype `ROW`, the reasons to leave it out, as bits of `REASONS`; 0: may be counted."""
        flags = rows["flags"].astype(np.uint32)
        out = np.zeros(len(rows), dtype=np.uint16)

        def leave_out(reason: str, who: NDArray[np.bool_]) -> None:
            out[who] |= _BIT[reason]

        def flagged(name: str) -> NDArray[np.bool_]:
            return np.asarray((flags & np.uint32(FLAGS[name])) != 0)

        no_consent = rows["until"][:, PURPOSES.index(self.purpose)] <= day
        leave_out("erasure_pending", flagged("erasure"))
        if self.basis == "consent":
            leave_out("without_valid_consent", no_consent)
        if self.basis == "legitimate_interests":
            leave_out("objectors_unresolved", flagged("interests-objection"))
        if is_marketing(self.purpose):
            leave_out("objectors", flagged("marketing-objection"))
            leave_out("minors", flagged("minor"))
        if self.sharing or is_advertising_across_contexts(self.purpose):
            leave_out("gpc", flagged("gpc"))
            leave_out("share_optouts", flagged("sharing-opt-out"))
            leave_out("affiliate_optouts", flagged("affiliate-opt-out"))
        if self.channel is not None:
            leave_out("without_channel_consent", ~flagged(f"channel-{self.channel}"))
        if self.special:
            leave_out("special_without_explicit_consent", ~flagged("special-category-consent"))
        if self.open_banking is not None:
            until, seen, pulls = (rows["bank"][:, part].astype(np.int64) for part in range(3))
            stale = (until <= day) | (seen + self.open_banking.most_days < day) | (seen > day)
            leave_out("ais_without_purpose_consent", no_consent | stale | (pulls > self.open_banking.most_pulls))
        return out


class Roll:
    """The ids of one customer table, resolved to rows: hashed once for a table, kept up as rows are added.

    Args:
        ids: shape (n,), of str; not to be changed.
        keys: under which ids are found among the standings, and in the suppression list.
    """

    def __init__(self, ids: NDArray[np.generic], keys: tuple[bytes, bytes]) -> None:
        self.of = weakref.ref(ids)
        self.rows = np.full(len(ids), -1, dtype=np.int64)
        self.suppressed = np.full(len(ids), -1, dtype=np.int64)
        self._keys = keys
        self._lookups = _hashed(keys[0], ids)
        self._seen = self._gone = 0

    def resolve(self, ids: NDArray[np.generic], columns: Columns, suppressed: NDArray[np.uint64]) -> None:
        """Find the ids' rows, and of people without one the entry in the suppression list, shape (entries, 2)."""
        if self._gone != columns.gone:
            known = np.flatnonzero(self.rows >= 0)
            self.rows[known[~columns.alive[self.rows[known]]]] = -1
            self._gone = columns.gone
        if self._seen < len(columns.rows):
            missing = np.flatnonzero(self.rows < 0)
            found = matching(columns.lookups[self._seen :], self._lookups[missing])
            self.rows[missing[found >= 0]] = found[found >= 0] + self._seen
            self._seen = len(columns.rows)
        unknown = np.flatnonzero(self.rows < 0)
        if len(suppressed) and len(unknown):
            self.suppressed[unknown] = matching(suppressed, _hashed(self._keys[1], ids[unknown]))


class Snapshot:
    """Who may be counted for a cohort, as of a sequence and a day; made by `ConsentStore.snapshot`.

    Attributes:
        cohort, sequence, day: for what, after which event, on which day (UTC, since 1970-01-01).
        root: `sha256:…`, over everybody's standing and the suppression list. Leaves only as `privacy.release` commits.
    """

    def __init__(
        self,
        cohort: Cohort,
        day: int,
        columns: Columns,
        suppressed: NDArray[np.uint32],
        root: str,
        roll: Callable[[NDArray[np.generic]], Roll],
    ) -> None:
        self.cohort, self.day, self.sequence, self.root = cohort, day, columns.sequence, root
        self._reasons = cohort.reasons(columns.rows, day)
        self._alive = columns.alive.copy()
        unknown = np.zeros(len(suppressed) + 1, dtype=ROW)
        unknown["flags"][1:] = suppressed
        self._unknown = cohort.reasons(unknown, day)
        self._roll = roll
        self._made: tuple[weakref.ref[NDArray[np.generic]], NDArray[np.uint16]] | None = None

    def allowed(self, ids: NDArray[np.generic]) -> NDArray[np.bool_]:
        """Which people may be counted, shape (n,). Somebody of whom the store has no record: not on the basis of
        consent; otherwise unless suppressed.

        Args:
            ids: customers' ids, shape (n,), of str. The same array is answered from memory: it must not be changed.
        """
        return np.asarray(self._reasons_of(ids) == 0)

    def filtered(self, ids: NDArray[np.generic]) -> dict[str, int]:
        """How many of these people each reason leaves out; one person may have several. For the institution alone."""
        return _counted(self._reasons_of(ids))

    def totals(self) -> dict[str, int]:
        """The same over everybody of whom the store has a record, with `people` and `allowed`. For the institution."""
        reasons = self._reasons[self._alive]
        return {"people": len(reasons), "allowed": int((reasons == 0).sum()), **_counted(reasons)}

    def _reasons_of(self, ids: NDArray[np.generic]) -> NDArray[np.uint16]:
        if self._made is not None and self._made[0]() is ids:
            return self._made[1]
        roll = self._roll(ids)
        known = (roll.rows >= 0) & (roll.rows < len(self._reasons))
        within = roll.suppressed < len(self._unknown) - 1
        out: NDArray[np.uint16] = self._unknown[np.where(within, roll.suppressed, -1) + 1]
        out[known] = self._reasons[roll.rows[known]]
        self._made = (weakref.ref(ids), out)
        return out


def _hashed(key: bytes, ids: NDArray[np.generic]) -> NDArray[np.uint64]:
    """Keyed tags of ids, shape (n, 2)."""
    out = np.empty((len(ids), 2), dtype=np.uint64)
    for at in range(0, len(ids), _BLOCK):
        block = ids[at : at + _BLOCK].tolist()
        if not all(type(each) is str for each in block):
            raise DataError("customer ids must be text", place="customers", fix="make the column of ids text")
        out[at : at + _BLOCK] = words(keyed_tags(key, block))
    return out


def _counted(reasons: NDArray[np.uint16]) -> dict[str, int]:
    return {reason: int(np.count_nonzero(reasons & bit)) for reason, bit in _BIT.items()}
