"""What must hold between ledgers, logs and what was seen to leave nodes; for `faults.py`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from cohortium.governance.log import LogReader, leaf_hash
from cohortium.privacy.accounting import budget_for
from cohortium.privacy.ledger import Charge, Ledger, Slot, open_store
from cohortium.simulations.loopback import Deployment
from cohortium.study.errors import CohortiumError

__all__ = ["Books"]


class Books:
    """What ledgers and logs said at the last look, and what was found wrong.

    Args:
        deployment: whose.
        lifetime: epsilon of every ledger.
    """

    def __init__(self, deployment: Deployment, lifetime: float) -> None:
        self._deployment, self._lifetime = deployment, lifetime
        self._charges: dict[str, list[Charge]] = {}
        self._heads: dict[str, tuple[int, bytes]] = {}
        self.problems: dict[str, list[str]] = {}
        self.forget()

    def forget(self) -> None:
        """Begin a new list of problems."""
        self.problems = {"uncharged": [], "re-masked": [], "lost": []}

    def look(self) -> None:
        """Read every ledger and log, and compare with the last look."""
        for name in self._deployment.institutions:
            folder = self._deployment.node(name)
            with closing(self._ledger(name)) as ledger:
                try:
                    ledger.verify()
                except CohortiumError as error:
                    self.problems["lost"].append(f"{name}: {error}")
                now = list(ledger.charges())
            before = self._charges.get(name, [])
            if now[: len(before)] != before:
                self.problems["lost"].append(f"{name}: {len(before)} charges are not those of before")
            self._charges[name] = now
            self._log_only_grew(name, folder / "log.sqlite")
        self._log_only_grew("coordinator", self._deployment.coordinator / "log.sqlite")

    def _ledger(self, name: str) -> Ledger:
        store = open_store(self._deployment.node(name) / "node.sqlite", read_only=True)
        return Ledger(store, name, budget_for(self._lifetime, 1e-6))

    def _log_only_grew(self, name: str, path: Path) -> None:
        size, root = self._heads.get(name, (0, b""))
        if not path.exists() and not size:
            return  # a node begins its log with the first plan that it answers
        with reading(path) as log:
            if log.size < size or (size and log.root(size) != root):
                self.problems["lost"].append(f"{name}: a log that shrank or changed")
            now = log.size
            self._heads[name] = now, log.root(now)

    def check(self, run: str, events: list[dict[str, Any]]) -> None:
        """Compare what left nodes in a run, what they paid for and logged, and what the coordinator took."""
        self.look()
        gone = [event for event in events if event["moment"] == "leaving" and event.get("run") == run]
        for name in self._deployment.institutions:
            self._check_bodies(name, [event for event in gone if event["node"] == name])
        with reading(self._deployment.coordinator / "log.sqlite") as log:
            entries = [one.entry for one in log.entries(0, log.size) if one.entry.get("run") == run]
        for entry in entries:
            if entry["event"] == "question":
                for name, said in entry["contributions"].items():
                    self._check_taken(name, slot_of(entry), str(entry["question"]), str(said["leaf"]))

    def _check_bodies(self, name: str, gone: list[dict[str, Any]]) -> None:
        bodies: dict[tuple[Any, ...], set[str]] = {}
        paid = {charge.slot: charge for charge in self._charges[name]}
        for event in gone:
            if "body" in event:
                place = event["wave"], event.get("round"), event.get("phase"), event.get("step"), event.get("attempt")
                bodies.setdefault(place, set()).add(event["body"])
            if event.get("reply") == "release":
                charge = paid.get(slot_of(event))
                if event["charge"] is None or charge is None or charge.sequence != event["charge"]:
                    self.problems["uncharged"].append(f"{name}: {slot_of(event)}")
                elif charge.question != event["question"] or self._stored(name, charge) != event["words"]:
                    self.problems["re-masked"].append(f"{name}: not what was stored: {slot_of(event)}")
        for place, found in bodies.items():
            if len(found) > 1:
                self.problems["re-masked"].append(f"{name}: {len(found)} bodies of {place}")

    def _stored(self, name: str, charge: Charge) -> str:
        """The digest of the words that a charge paid for, as the ledger keeps them."""
        with closing(self._ledger(name)) as ledger:
            reply = ledger.replay(charge.slot, charge.question) or b""
        return hashlib.sha256(reply[: 8 * charge.width]).hexdigest()

    def _check_taken(self, name: str, slot: Slot, question: str, leaf: str) -> None:
        """A contribution that the coordinator took: one charge, and that very entry in the node's log."""
        charges = [one for one in self._charges[name] if one.slot == slot and one.question == question]
        with reading(self._deployment.node(name) / "log.sqlite") as log:
            entries = [one for one in log.entries(0, log.size) if one.entry.get("question") == question]
        if len(charges) != 1 or len(entries) != 1 or leaf_hash(entries[0].leaf.to_bytes()).hex() != leaf:
            self.problems["uncharged"].append(f"{name}: {len(charges)} charges, {len(entries)} entries of {slot}")


def slot_of(said: Mapping[str, Any]) -> Slot:
    """Of an event or of an entry."""
    return Slot(said["plan"], said["run"], said["phase"], said["step"], said["attempt"])


@contextmanager
def reading(path: Path) -> Iterator[LogReader]:
    """A log in a file."""
    store = open_store(path, read_only=True)
    try:
        yield LogReader(store)
    finally:
        store.dispose()
