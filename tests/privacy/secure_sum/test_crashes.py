"""Whoever dies around any write and is restarted from its store never answers twice, and no sum comes out wrong."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cohortium.privacy.ledger import open_store
from cohortium.privacy.secure_sum import Aggregator, SqlOnceStore, SumFailed
from cohortium.study.errors import RefusedError

MakeSums = Callable[..., Any]
Vectors = Callable[..., list[Any]]


def question_of(number: int) -> str:
    return f"sha256:{number + 3:064x}"


class DeathError(Exception):
    """The process is gone."""


class DyingStore:
    """Dies once, around its `at`-th write: before it is on disk or right after."""

    def __init__(self, inner: Any, at: int, after: bool) -> None:
        self.inner, self.at, self.after, self.writes = inner, at, after, 0

    def find(self, run: str, number: int, item: str) -> bytes | None:
        found: bytes | None = self.inner.find(run, number, item)
        return found

    def keep(self, run: str, number: int, item: str, value: bytes) -> bytes:
        kept: bytes = self._write(lambda: self.inner.keep(run, number, item, value))
        return kept

    def erase(self, run: str, before: int, items: tuple[str, ...]) -> None:
        self._write(lambda: self.inner.erase(run, before, items))

    def _write(self, write: Callable[[], Any]) -> Any:
        self.writes += 1
        if self.writes == self.at and not self.after:
            raise DeathError
        done = write()
        if self.writes == self.at:
            raise DeathError
        return done


class Study:
    """Two rounds over four institutions, of two waves and of three, driven to the end whoever dies on the way."""

    def __init__(self, sums: Any, vectors: list[Any], stays_away: bool = False) -> None:
        self.sums, self.vectors, self.stays_away = sums, vectors, stays_away
        self.left: dict[tuple[Any, ...], set[bytes]] = defaultdict(set)
        self.totals: dict[int, Any] = {}
        self.ledgers: dict[tuple[int, int], bytes] = {}
        self.deaths = 0

    def answer(self, party: int, number: int, wave: str, call: Callable[[Any], bytes]) -> bytes | None:
        """What a party sends; after its death it is asked again, unless it stays away from this wave."""
        for _ in range(3):
            try:
                reply = call(self.sums.of(party))
            except DeathError:
                self.deaths += 1
                if self.stays_away:
                    return None
            else:
                self.left[party, number, wave].add(reply)
                if wave == "asked again":
                    assert self.left[party, number, wave] <= self.left[party, number, "unmask"]
                return reply
        raise AssertionError("died twice")

    def coordinate(self, step: Callable[[], Any]) -> Any:
        """A step of the coordinator; after its death it is made anew from its store, and the step taken again."""
        try:
            return step()
        except DeathError:
            self.deaths += 1
            self.sums.aggregator = Aggregator(self.sums.run, self.sums.aggregator._store)
            for name in range(4):
                self.sums.aggregator.introduce(self.sums.of(name).introduce())
            self.sums.aggregator.close_roster()
            return step()

    def run(self) -> None:
        self.coordinate(self.gather)
        for number in range(2):
            self.coordinate(lambda n=number: self.share(n))
            try:
                total, who = self.coordinate(lambda n=number: self.ask(n))
            except SumFailed:
                continue
            expected = np.zeros(5, dtype=np.uint64)
            for party in who:
                expected += self.vectors[party].view(np.uint64)
            assert (total.view(np.uint64) == expected).all()
            self.totals[number] = total

    def gather(self) -> None:
        for party in range(4):
            reply = self.answer(party, -1, "introduce", lambda p: p.introduce())
            if reply is not None:
                self.sums.aggregator.introduce(reply)
        self.sums.aggregator.close_roster()

    def share(self, number: int) -> None:
        lacking = set(range(4)) - set(self.sums.aggregator.offered(number))
        for party in sorted(lacking - ({3} if number else set())):
            reply = self.answer(party, number, "offer", lambda p: p.share(self.sums.aggregator.share_request(number)))
            if reply is not None:
                self.sums.aggregator.take_offer(reply, party, number)

    def ask(self, number: int) -> Any:
        attempt = self.sums.aggregator.begin(number, question_of(number))
        for party in attempt.parties:

            def masked(p: Any, asked: int = party) -> bytes:
                """As the door does: a reply that is in the ledger comes from there, and the round may be over."""
                if (asked, number) not in self.ledgers:
                    vector, note = p.begin(attempt.input_request(asked), question_of(number)).apply(self.vectors[asked])
                    self.ledgers[asked, number] = note + vector.tobytes()
                return self.ledgers[asked, number]

            reply = self.answer(party, number, "input", masked)
            if reply is not None:
                attempt.take_vector(party, np.frombuffer(reply[64:], dtype=np.int64), reply[:64])
        chosen = attempt.choose_survivors()
        for party in attempt.contributors if attempt.waves == 3 else ():
            reply = self.answer(party, number, "consent", lambda p: p.consent(chosen))
            if reply is not None:
                attempt.take_consent(party, reply)
        request = attempt.unmask_request()
        for party in attempt.contributors:
            if number == 0 and party == 3:
                continue  # misses the wave, and with it round 1: three waves there
            reply = self.answer(party, number, "unmask", lambda p: p.unmask(request))
            if reply is not None:
                attempt.take_opened(party, reply)
                self.answer(party, number, "asked again", lambda p: p.unmask(request))
        return attempt.total(), attempt.contributors

    def check(self) -> None:
        """Nobody answered a wave of a round in two ways."""
        assert all(len(replies) == 1 for replies in self.left.values())


def count_writes(make_sums: MakeSums, vectors: list[Any], whose: str) -> int:
    sums = make_sums(4, 3, ready=False)
    store = dying(sums, whose, 0, False)
    study = Study(sums, vectors)
    study.run()
    study.check()
    assert len(study.totals) == 2
    return store.writes


def dying(sums: Any, whose: str, at: int, after: bool) -> DyingStore:
    if whose == "institution":
        store = DyingStore(sums.parties[1].store, at, after)
        sums.parties[1].store = store
    else:
        store = DyingStore(sums.aggregator._store, at, after)
        sums.aggregator = Aggregator(sums.run, store)
    return store


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("whose", ["institution", "coordinator"])
def test_whoever_dies_around_any_write_goes_on(
    make_sums: MakeSums, make_vectors: Vectors, whose: str, after: bool
) -> None:
    vectors = make_vectors(4)
    writes = count_writes(make_sums, vectors, whose)
    assert writes >= 15
    for at in range(1, writes + 1):
        sums = make_sums(4, 3, ready=False)
        dying(sums, whose, at, after)
        study = Study(sums, vectors)
        study.run()
        study.check()
        assert study.deaths == 1
        assert len(study.totals) == 2
        leftover = {item for (_, number, item) in _values(sums.parties[1].store) if number == 0}
        assert not leftover & {"dealt", "held", "masked"}


@pytest.mark.parametrize("after", [False, True])
def test_whoever_dies_and_misses_the_wave_spoils_no_sum(
    make_sums: MakeSums, make_vectors: Vectors, after: bool
) -> None:
    vectors, sums_of = make_vectors(4), {0: 0, 1: 0, 2: 0}
    for at in range(1, count_writes(make_sums, vectors, "institution") + 1):
        sums = make_sums(4, 3, ready=False)
        dying(sums, "institution", at, after)
        study = Study(sums, vectors, stays_away=True)
        try:
            study.run()
        except RefusedError:
            assert at == 1  # it never introduced itself, and came back to a roster without it
            continue
        study.check()
        sums_of[len(study.totals)] += 1
    assert sums_of[2] > 0
    assert sums_of[1] > 0


def _values(store: Any) -> dict[tuple[str, int, str], bytes]:
    values: dict[tuple[str, int, str], bytes] = getattr(store, "inner", store).values
    return values


# --- two at once -----------------------------------------------------------------------------------------------------


def test_two_processes_on_one_store_answer_alike(make_sums: MakeSums, make_vectors: Vectors, tmp_path: Path) -> None:
    """Threads with connections of their own lock the file as processes do; a wave is answered by four at once."""
    sums, vectors = make_sums(4, 3, ready=False), make_vectors(5)
    party = sums.parties[0]
    engines = [open_store(tmp_path / "node.sqlite") for _ in range(4)]
    stores = [SqlOnceStore(engine) for engine in engines]
    party.store = stores[0]

    def at_once(call: Callable[[Any, int], bytes]) -> bytes:
        replies: list[Any] = [None] * 4
        gate = threading.Barrier(4)

        def answer(index: int) -> None:
            participant = type(sums.of(0))(sums.run, party.name, party.identity, stores[index])
            gate.wait()
            replies[index] = call(participant, index)

        threads = [threading.Thread(target=answer, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert None not in replies
        assert len(set(replies)) == 1
        return bytes(replies[0])

    first = at_once(lambda p, _: p.introduce())
    sums.introduce()
    assert sums.of(0).introduce() == first
    at_once(lambda p, _: p.share(sums.aggregator.share_request(0)))
    sums.share(0)
    attempt = sums.aggregator.begin(0, question_of(0))

    def masked(participant: Any, index: int) -> bytes:
        """Each with other noise: the vector that was kept first is the one that leaves."""
        vector, note = participant.begin(attempt.input_request(0), question_of(0)).apply(vectors[index])
        return bytes(note) + vector.tobytes()

    at_once(masked)
    sums.inputs(attempt, vectors, question_of(0), set())
    request = attempt.choose_survivors() and attempt.unmask_request()
    for other in range(1, 4):
        attempt.take_opened(other, sums.of(other).unmask(request))
    attempt.take_opened(0, at_once(lambda p, _: p.unmask(request)))
    rest = sum(vectors[other].view(np.uint64) for other in range(1, 4))
    assert any((attempt.total().view(np.uint64) == rest + vectors[own].view(np.uint64)).all() for own in range(4))
    for engine in engines:
        engine.dispose()


_OTHER_PROCESS = """
import sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cohortium.privacy.ledger import open_store
from cohortium.privacy.secure_sum import Participant, SqlOnceStore, SumRun
path, key, *rest = sys.argv[1:]
identity = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(key))
run = SumRun(*rest, {"bank 000": identity.public_key().public_bytes_raw()}, 3, 1)
sys.stdout.write(Participant(run, "bank 000", identity, SqlOnceStore(open_store(Path(path)))).introduce().hex())
"""


def test_two_real_processes_answer_alike(make_sums: MakeSums, tmp_path: Path) -> None:
    sums = make_sums(4, 3, ready=False)
    key = sums.parties[0].identity.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()).hex()
    words = [str(tmp_path / "node.sqlite"), key, sums.run.federation, sums.run.plan, sums.run.run]
    processes = [
        subprocess.Popen([sys.executable, "-c", _OTHER_PROCESS, *words], stdout=subprocess.PIPE) for _ in range(2)
    ]
    replies = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(replies) == 1
    assert sums.aggregator.introduce(bytes.fromhex(replies.pop().decode())) == "bank 000"
