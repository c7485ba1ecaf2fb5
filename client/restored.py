"""Whether a node's books are the newest there are: after a restore, and whenever they are opened.

An old ledger would spend the people's budget twice, and an old store of secure sums could unmask one sum in two ways. A
node that was put back from a backup therefore answers nothing until witnesses showed that its audit log is as long as
the one they cosigned, and never goes on with a run that was approved before.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cohortium.client.store import NodeStore, Restored
from cohortium.governance.log import LogEntry, LogQuorum, LogReader, log_origin, open_checkpoint, quorum_for
from cohortium.privacy.accounting import epsilon_spent
from cohortium.privacy.ledger import Ledger, Slot
from cohortium.privacy.stores import has_store, open_store
from cohortium.study.charter import Charter
from cohortium.study.errors import DataError, RefusedError

__all__ = ["Confirmed", "confirm", "require_confirmed", "require_ledger_of_log"]

_LOG, _CONSENT = "log.sqlite", "consent.sqlite"
_PAGE = 256


@dataclass(frozen=True)
class Confirmed:
    """What a confirmation rests on.

    Args:
        entries: of the node's audit log.
        witnesses: who cosigned it since the restore, by the names of their logs.
        closed: reservations that were closed: their runs cannot go on.
    """

    entries: int
    witnesses: tuple[str, ...]
    closed: int


def require_confirmed(store: NodeStore, folder: Path) -> None:
    """`RefusedError` for a node that was restored, and of which nobody showed that it is the newest."""
    restored = store.restored()
    if restored is not None and restored.confirmed_at is None:
        raise RefusedError(
            f"was restored from a backup of {restored.made_at}: it answers nothing yet",
            place=str(folder),
            fix="get checkpoints from witnesses (`cohortium log witness --tell`), then `cohortium backup confirm`",
        )


def require_ledger_of_log(folder: Path, ledger: Ledger) -> None:
    """`RefusedError` unless the ledger has the charge of the audit log's newest release.

    A ledger that is ahead is as it should be: a charge comes before its entry.
    """
    if not has_store(folder / _LOG):
        return
    with ExitStack() as stack:
        engine = open_store(folder / _LOG, read_only=True)
        stack.callback(engine.dispose)
        log = LogReader(engine)
        for stop in range(log.size, 0, -_PAGE):
            releases = [one for one in log.entries(max(stop - _PAGE, 0), stop) if one.entry.get("event") == "release"]
            if releases:
                _require_charge(releases[-1], ledger, folder)
                return


def confirm(
    folder: Path,
    institution: str,
    store: NodeStore,
    ledger: Ledger,
    notes: Sequence[str],
    *,
    delta: float,
    consent_is_current: bool,
) -> Confirmed:
    """Let a restored node answer again, if what witnesses know of it is what it has.

    Formal guarantee: afterwards the ledger has the charge of every release that a quorum of witnesses knows of, and no
    plan that was approved before the restore is answered.

    Args:
        folder: the node's.
        institution: its name.
        store, ledger: its own.
        notes: checkpoints of its log, each cosigned by a witness after the restore.
        delta: of the lifetime budget, to tell an epsilon.
        consent_is_current: whether what people said since the backup was recorded again.

    Raises:
        RefusedError: it was not restored, or is confirmed; too few witnesses cosigned since the restore; what they
            cosigned is longer than this log or another one; a release has no charge; consent is not current.
        DataError: a note is no checkpoint of this log, or a cosignature in it does not hold.
    """
    restored = store.restored()
    if restored is None or restored.confirmed_at is not None:
        raise RefusedError("was not restored, or is confirmed", place=str(folder), fix="nothing is to be done")
    if not has_store(folder / _LOG):
        raise RefusedError(
            "holds no audit log: the backup is from before the first run, and nobody can tell what came after it",
            place=str(folder),
            fix=_begin_anew(ledger, restored, delta),
        )
    if has_store(folder / _CONSENT) and not consent_is_current:
        raise RefusedError(
            f"its consent store knows no withdrawal since {restored.made_at}",
            place=str(folder),
            fix="record what people said since (`cohortium consent import`), then add --consent-is-current",
        )
    with ExitStack() as stack:
        engine = open_store(folder / _LOG, read_only=True)
        stack.callback(engine.dispose)
        log = LogReader(engine)
        quorum = quorum_for(_charter(store, log.origin, institution), institution)
        witnesses = _witnesses(log, quorum, notes, restored, _begin_anew(ledger, restored, delta))
        entries = log.size
        for start in range(0, entries, _PAGE):
            for one in log.entries(start, start + _PAGE):
                if one.entry.get("event") == "release":
                    _require_charge(one, ledger, folder)
    going = [one for one in ledger.reservations() if one.closed_at is None]
    for reservation in going:
        ledger.close_reservation(reservation.plan, reservation.run)
    store.confirm_restored(witnesses)
    return Confirmed(entries, witnesses, len(going))


def _witnesses(
    log: LogReader, quorum: LogQuorum, notes: Sequence[str], restored: Restored, anew: str
) -> tuple[str, ...]:
    """Who cosigned this very log since the restore, if they are enough."""
    since = int(datetime.fromisoformat(restored.restored_at).timestamp())
    found: set[str] = set()
    for note in notes:
        checkpoint, opened = open_checkpoint(note, quorum.verifier)
        signed = opened.signers(list(quorum.witnesses.values()))
        if checkpoint.size > log.size:
            raise RefusedError(
                f"others witnessed {checkpoint.size} entries of this node's audit log, and this copy has {log.size}: "
                f"up to {checkpoint.size - log.size} releases are not in its ledger",
                place=log.origin,
                fix=anew,
            )
        if log.root(checkpoint.size) != checkpoint.root:
            raise RefusedError("others witnessed another audit log of this node", place=log.origin, fix=anew)
        keys = {(one.name, one.key_id) for one in quorum.witnesses.values() if one.name in signed}
        found |= {
            one.name
            for one in opened.signatures
            if (one.name, one.key_id) in keys and int.from_bytes(one.value[:8], "big") >= since
        }
    needed = max(quorum.needed.witnesses, 1)
    if len(found) < needed or len(found & quorum.outside) < quorum.needed.outside_group:
        raise RefusedError(
            f"{len(found)} witnesses cosigned since {restored.restored_at}; {needed} are needed, "
            f"{quorum.needed.outside_group} of them outside the group",
            place=log.origin,
            fix="have each of them run `cohortium log witness FOLDER --charter FILE --tell INSTITUTION --out FILE`",
        )
    return tuple(sorted(found))


def _require_charge(entry: LogEntry, ledger: Ledger, folder: Path) -> None:
    told = entry.entry
    try:
        slot = Slot(told["plan"], told["run"], told["phase"], told["step"], told["attempt"])
        charge = ledger.find(slot)
        same = charge is not None and (
            (charge.sequence, charge.question, str(charge.spend.mu2), str(charge.spend.tv))
            == (told["charge"], told["question"], told["mu2"], told["tv"])
        )
    except KeyError:
        same = False
    if not same:
        raise RefusedError(
            f"the ledger lacks charge {told.get('charge')}, of which the audit log has the release: it is an old copy",
            place=str(folder),
            fix="put back the newest ledger; where there is none, begin a new node: see docs/stores.md",
        )


def _charter(store: NodeStore, origin: str, institution: str) -> Charter:
    for plan in reversed(store.plans()):
        approval = store.approved(plan)
        if approval is not None and log_origin(approval.charter.name, institution) == origin:
            return approval.charter
    raise DataError("no plan of the log's federation was approved here", place=origin, fix="restore a later backup")


def _begin_anew(ledger: Ledger, restored: Restored, delta: float) -> str:
    spent = epsilon_spent(ledger.spent() + ledger.held(), delta)
    return (
        "do not use this copy; begin a new node, and leave out of its lifetime budget epsilon "
        f"{spent:.4f}, which this copy charged or held for runs that had begun, and the whole epsilon of every plan "
        f"that ran here after {restored.made_at}: the coordinator's log names them"
    )
