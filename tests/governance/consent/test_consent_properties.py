"""Random lives of people against a plain reference; roots that change exactly when standings do."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium.governance.consent import (
    PURPOSES,
    BackDatedError,
    Cohort,
    ConsentSignal,
    ConsentStore,
    Entry,
    FlagSignal,
    RecordTemplate,
    covers,
)
from cohortium.governance.consent.columns import STORED, Columns
from cohortium.privacy.ledger import open_store

from .conftest import Clock, template_document

PEOPLE = ("anna", "ben", "cleo", "dora")
BROADER = {
    "CustomerSegmentation": {"Marketing"},
    "TargetedAdvertising": {"PersonalisedAdvertising", "Advertising", "Marketing", "Personalisation"},
    "Marketing": set(),
}
TEMPLATE = RecordTemplate.model_validate(template_document())


@dataclass
class Person:
    """What the reference knows: the last word on every purpose asked about, and flags."""

    words: dict[str, tuple[bool, date | None]] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)
    erasing: bool = False


def may(person: Person | None, suppressed: set[str] | None, purpose: str, basis: str, today: date) -> bool:
    """The rules, written out again."""
    flags = person.flags if person is not None else (suppressed or set())
    if (person is not None and person.erasing) or (person is None and suppressed is not None):
        return False
    if "marketing-objection" in flags or (basis == "legitimate_interests" and "interests-objection" in flags):
        return False
    if purpose == "TargetedAdvertising" and "gpc" in flags:
        return False
    if basis != "consent":
        return True
    valid, end = (person.words if person is not None else {}).get(purpose, (False, None))
    return valid and (end is None or today < end)


actions = st.one_of(
    st.tuples(
        st.just("consent"),
        st.sampled_from(PEOPLE),
        st.sampled_from(["Marketing", "Personalisation", "TargetedAdvertising", "CustomerSegmentation"]),
        st.sampled_from(["ConsentGiven", "RenewedConsentGiven", "ConsentWithdrawn", "ConsentUnknown"]),
        st.sampled_from([None, 1, 3]),
    ),
    st.tuples(
        st.just("flag"),
        st.sampled_from(PEOPLE),
        st.sampled_from(["marketing-objection", "interests-objection", "gpc"]),
        st.booleans(),
    ),
    st.tuples(st.just("erase"), st.sampled_from(PEOPLE), st.booleans()),
    st.tuples(st.just("wait"), st.integers(1, 60)),
    st.tuples(st.just("late"), st.sampled_from(PEOPLE)),
)


@settings(max_examples=12)
@given(st.lists(actions, min_size=4, max_size=12))
def test_random_lives(lives: list[Any]) -> None:
    clock = Clock()
    known: dict[str, Person] = {}
    suppressed: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = ConsentStore(open_store(Path(folder) / "consent.sqlite"), clock)
        digest = store.add_template(TEMPLATE)
        ids = np.array(PEOPLE)
        for life in lives:
            clock.forward(seconds=1)
            _live(store, clock, digest, known, suppressed, life)
            _compare(store, clock, known, suppressed, ids)
        fresh = ConsentStore(open_store(Path(folder) / "consent.sqlite"), clock)
        cohort = Cohort("Marketing", "consent")
        assert fresh.snapshot(cohort).root == store.snapshot(cohort).root
        fresh.verify()
        fresh.close()
        store.close()


def _live(
    store: ConsentStore,
    clock: Clock,
    digest: str,
    known: dict[str, Person],
    suppressed: dict[str, set[str]],
    life: Any,
) -> None:
    kind, who = life[0], life[1]
    if kind == "wait":
        clock.forward(hours=who)
        return
    if kind == "late":
        person = known.get(who)
        if person is not None and person.words:
            purpose = next(iter(person.words))
            signal = _signal(
                digest, purpose if purpose in ("Marketing", "Personalisation") else "Marketing", "ConsentGiven", 7
            )
            try:
                store.record(Entry(who, signal, clock.seconds - 400 * 86400))
            except BackDatedError:
                return
            # only on matters of which nothing later stands: then it is the last word on them
            _word(person, signal.purposes[0], True, _end(clock.seconds - 400 * 86400, 7))
        return
    if kind == "erase" and life[2] and who in known and known[who].erasing:
        store.complete_erasure(who)
        suppressed[who] = set(known.pop(who).flags)
        return
    person = known.setdefault(who, Person(flags=set(suppressed.get(who, ()))))
    if kind == "erase":
        store.erase(who)
        person.erasing = True
    elif kind == "flag":
        store.record(Entry(who, FlagSignal(kind=life[2], state="set" if life[3] else "cleared"), clock.seconds))
        (person.flags.add if life[3] else person.flags.discard)(life[2])
    else:
        _, _, purpose, state, days = life
        store.record(Entry(who, _signal(digest, purpose, state, days), clock.seconds))
        valid = state in ("ConsentGiven", "RenewedConsentGiven")
        _word(person, purpose, valid, _end(clock.seconds, days) if valid else None)


def _signal(digest: str, purpose: str, state: Any, days: int | None) -> ConsentSignal:
    return ConsentSignal(
        template=digest,
        purposes=(purpose,),
        state=state,
        event_type="explicit",
        validity_duration="until-withdrawn" if days is None else f"P{days}D",
        entity_id="data subject",
    )


def _end(seconds: int, days: int | None) -> date | None:
    return None if days is None else datetime.fromtimestamp(seconds, UTC).date() + timedelta(days=days)


def _word(person: Person, purpose: str, valid: bool, end: date | None) -> None:
    for term, broader in BROADER.items():
        if purpose == term or purpose in broader:
            person.words[term] = (valid, end)


def _compare(
    store: ConsentStore, clock: Clock, known: dict[str, Person], suppressed: dict[str, set[str]], ids: Any
) -> None:
    for purpose, basis in itertools.product(BROADER, ("consent", "contract", "legitimate_interests")):
        expected = [may(known.get(who), suppressed.get(who), purpose, basis, clock.now.date()) for who in PEOPLE]
        cohort = Cohort(purpose, basis)  # type: ignore[arg-type]
        assert store.snapshot(cohort).allowed(ids).tolist() == expected, (purpose, basis)


def test_a_snapshot_is_made_anew_only_when_something_changed(store: ConsentStore, clock: Clock) -> None:
    cohort = Cohort("Marketing", "consent")
    ids = np.array(PEOPLE)
    first = store.snapshot(cohort)
    mask = first.allowed(ids)
    assert store.snapshot(cohort) is first
    clock.forward(hours=11)
    assert store.snapshot(cohort) is first
    assert first.allowed(ids).tolist() == mask.tolist()
    clock.forward(hours=1)
    assert store.snapshot(cohort) is not first  # another day
    store.object_("anna")
    assert store.snapshot(cohort).sequence == 1


def test_a_snapshot_sees_what_another_process_recorded(store: ConsentStore, open_consent: Any) -> None:
    cohort = Cohort("Marketing", "contract")
    ids = np.array(PEOPLE)
    assert store.snapshot(cohort).allowed(ids).all()
    open_consent().object_("ben")
    assert store.snapshot(cohort).allowed(ids).tolist() == [True, False, True, True]


def test_roots_change_exactly_when_standings_do(store: ConsentStore, clock: Clock) -> None:
    cohort = Cohort("Marketing", "consent")
    seen = {store.snapshot(cohort).root}
    for person, flag in itertools.product(PEOPLE, ("gpc", "marketing-objection")):
        store.object_(person, flag)  # type: ignore[arg-type]
        seen.add(store.snapshot(cohort).root)
    assert len(seen) == 9
    before = store.snapshot(cohort).root
    clock.forward(days=1)
    store.object_("anna", "gpc")  # once more: the event is new, the standing is not
    assert store.snapshot(cohort).root == before
    clock.forward(days=1)
    store.object_("anna", "gpc", cleared=True)
    assert store.snapshot(cohort).root != before
    clock.forward(days=1)
    store.object_("anna", "gpc")
    assert store.snapshot(cohort).root == before
    store.erase("anna")
    pending = store.snapshot(cohort).root
    store.complete_erasure("anna")
    assert len({before, pending, store.snapshot(cohort).root}) == 3


def columns_of(rng: np.random.Generator, people: int) -> Any:
    stored = np.zeros(people, dtype=STORED)
    stored["lookup"] = rng.integers(0, 2**63, (people, 2))
    stored["row"]["tag"] = rng.integers(0, 2**63, (people, 2)) * 2 + 1
    stored["row"]["flags"] = rng.integers(0, 64, people)
    stored["row"]["until"] = rng.integers(0, 60_000, (people, 16))
    return stored


def test_an_advanced_tree_is_the_tree_made_anew() -> None:
    rng = np.random.default_rng(5)
    stored = columns_of(rng, 3_000)
    stored["row"]["tag"][1_960:2_040, 0] = stored["row"]["tag"][0, 0]  # a crowded bucket, first words alike
    columns = Columns(stored[:2_000], 1)
    changed = stored[1_500:2_500].copy()
    changed["row"]["flags"] += 64
    gone = stored["row"]["tag"][[3, 17, 1_999, 2_400]].astype(np.uint64)
    columns.advance(changed, gone, 2)
    now = np.concatenate([stored[:1_500], changed])
    left = ~(now["row"]["tag"][:, None, :].astype(np.uint64) == gone[None, :, :]).all(axis=2).any(axis=1)
    assert columns.root == Columns(rng.permutation(now[left]), 2).root
    assert columns.root != Columns(now, 2).root
    once_more = now[left][:1].copy()
    once_more["row"]["until"][0, 3] ^= 1
    root = columns.root
    columns.advance(once_more, np.zeros((0, 2), dtype=np.uint64), 3)
    assert columns.root != root


def plain_root(stored: Any) -> bytes:
    """The tree's definition, written out again."""
    buckets: dict[int, list[tuple[bytes, bytes]]] = {}
    for row in stored["row"]:
        buckets.setdefault(int(row["tag"][0]) >> 44, []).append((row["tag"].tobytes(), row.tobytes()))
    nodes = {
        number: sha256(b"\0" + b"".join(row for _, row in sorted(rows))).digest() for number, rows in buckets.items()
    }
    for _ in range(20):
        parents = {number >> 1 for number in nodes}
        below = {number: nodes.get(2 * number, bytes(32)) + nodes.get(2 * number + 1, bytes(32)) for number in parents}
        nodes = {number: sha256(b"\1" + pair).digest() for number, pair in below.items()}
    return nodes.get(0, bytes(32))


def test_the_root_is_that_of_the_definition() -> None:
    stored = columns_of(np.random.default_rng(6), 400)
    stored["row"]["tag"][300:, 0] = stored["row"]["tag"][:100, 0] ^ np.uint64(1)
    columns = Columns(stored[:350], 1)
    assert columns.root == plain_root(stored[:350])
    columns.advance(stored[350:], stored["row"]["tag"][:100].astype(np.uint64), 2)
    assert columns.root == plain_root(stored[100:])
    columns.advance(stored[:0], stored["row"]["tag"].astype(np.uint64), 3)
    assert columns.root == plain_root(stored[:0]) == Columns(stored[:0], 3).root == bytes(32)


def test_every_purpose_has_a_slot() -> None:
    assert len(PURPOSES) <= 16
    assert all(covers(term, term) for term in PURPOSES)
