"""A node is put back whole or not at all, and answers nothing before witnesses showed that it is the newest."""

from __future__ import annotations

import hashlib
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from cohortium.cli.backup import app as backup_commands
from cohortium.cli.ledger import app as ledger_commands
from cohortium.cli.log import app as log_commands
from cohortium.client import backup, restored
from cohortium.client.backup import make_backup, restore_backup
from cohortium.client.node import Node, open_node
from cohortium.client.restored import confirm
from cohortium.client.store import NodeStore
from cohortium.governance.access import Person, Role, create_accounts, open_accounts, passwords
from cohortium.governance.consent import ConsentStore
from cohortium.governance.log import AuditLog, Ed25519Signer, LogReader, log_origin, quorum_for
from cohortium.governance.obligations import ObligationRegister
from cohortium.governance.obligations.register import TABLES as OBLIGATION_TABLES
from cohortium.models.marginals import Axis, MarginalsQuery
from cohortium.privacy.accounting import budget_for
from cohortium.privacy.ledger import Ledger, open_store
from cohortium.privacy.secure_sum import SqlOnceStore
from cohortium.privacy.store_forms import insert_all
from cohortium.privacy.table import CustomerTable
from cohortium.server.witnesses import Witnesses
from cohortium.study.canonical import canonical_bytes
from cohortium.study.charter import Charter, NeededWitnesses
from cohortium.study.errors import CohortiumError, DataError, OutputError, RefusedError
from cohortium.study.plan import Plan
from cohortium.study.question import PlanQuestion, Question, QuestionHeader
from cohortium.study.witness import WitnessReply, WitnessRequest

QUERY = MarginalsQuery((Axis("visits", 0, 40, integer=True),))
RUN = "0" * 32
PASSWORD = "four words of a song"


@pytest.fixture(autouse=True)
def cheap_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The strength of scrypt is not what is tested."""
    monkeypatch.setattr(backup, "_COST", 2**4)


@dataclass
class House:
    """The first of three institutions, whose log both others witness."""

    plan: Plan
    charter: Charter
    nodes: list[Node]
    folders: list[Path]
    people: CustomerTable
    cosigned: Callable[..., str]
    attempts: int = 0

    @property
    def folder(self) -> Path:
        return self.folders[0]

    def witness(self) -> None:
        note = self.cosigned(self.nodes[0], self.nodes[1:], self.plan)
        self.nodes[0].log.answer(WitnessRequest(plan=self.plan.digest, cosigned=note))

    def begin(self) -> None:
        self.witness()
        self.nodes[0].accept(PlanQuestion(self.plan.digest, RUN, int(datetime.now(UTC).timestamp())))
        self.witness()

    def release(self) -> None:
        """One more question is answered, and witnessed."""
        self.attempts += 1
        spec = QUERY.spec()
        header = QuestionHeader(
            plan=self.plan.digest,
            run=RUN,
            phase="marginals",
            step=0,
            attempt=self.attempts,
            kind=spec.kind,
            scalars=spec.scalars,
        )
        self.nodes[0].door.release(Question(header, spec.arrays))
        self.witness()

    def tell(self, out: Path, *others: int) -> list[Path]:
        """What others know of the first node's log, cosigned now, by the command that their operators run."""
        charter = out / "charter.json"
        charter.write_bytes(self.charter.to_bytes())
        files = []
        for other in others:
            files.append(out / f"by-{other}.txt")
            words = ["witness", self.folders[other], "--charter", charter, "--tell", "bank 0", "--out", files[-1]]
            done = CliRunner().invoke(log_commands, [str(word) for word in words])
            assert done.exit_code == 0, done.exception
        return files

    def confirm(self, folder: Path, notes: list[Path], **more: bool) -> Any:
        engine = open_store(folder / "node.sqlite", create=False)
        try:
            ledger = Ledger(engine, "bank 0", self.nodes[0].ledger.lifetime)
            texts = [note.read_text() for note in notes]
            terms: dict[str, Any] = {"delta": 1e-6, "consent_is_current": False, **more}
            return confirm(folder, "bank 0", NodeStore(engine), ledger, texts, **terms)
        finally:
            engine.dispose()


@pytest.fixture
def make_house(
    tmp_path: Path,
    make_plan: Callable[..., Plan],
    make_people: Callable[..., CustomerTable],
    make_members: Callable[..., Any],
    cosigned: Callable[..., str],
) -> Callable[[], House]:
    def make() -> House:
        plan, tables = make_plan(max_attempts=5), [make_people(50, seed) for seed in range(3)]
        members = make_members(tables, plan)
        return House(plan, members.charter, members.nodes, members.folders, tables[0], cosigned)

    return make


@pytest.fixture
def house(make_house: Callable[[], House]) -> House:
    house = make_house()
    house.begin()
    house.release()
    return house


@pytest.fixture
def made(house: House, tmp_path: Path) -> Path:
    """A backup after one release, made while the node runs."""
    make_backup(house.folder, tmp_path / "made", PASSWORD)
    return tmp_path / "made"


# --- the file --------------------------------------------------------------------------------------------------------


def test_a_node_comes_back_whole(house: House, made: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert b"SQLite" not in made.read_bytes()
    assert b"PRIVATE KEY" not in made.read_bytes()
    (house.folder / "models").mkdir()
    (house.folder / "models" / "m.safetensors").write_bytes(bytes(3 * 2**20))  # longer than a piece
    (house.folder / "customers").mkdir()
    (house.folder / "customers" / "table.parquet").write_bytes(b"rows")
    (house.folder / ".backup-of-a-killed-process").mkdir()
    told = make_backup(house.folder, tmp_path / "again", PASSWORD)
    assert told == restore_backup(tmp_path / "again", tmp_path / "back", PASSWORD)
    back = tmp_path / "back"
    assert (back / "identity.pem").read_bytes() == (house.folder / "identity.pem").read_bytes()
    assert (back / "models" / "m.safetensors").read_bytes() == bytes(3 * 2**20)
    assert not (back / "customers").exists()
    assert stat.S_IMODE(back.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in back.rglob("*") if path.is_file()} == {0o600}
    engine = open_store(back / "node.sqlite", read_only=True)
    ledger = Ledger(engine, "bank 0", house.nodes[0].ledger.lifetime)
    ledger.verify()
    assert list(ledger.charges()) == list(house.nodes[0].ledger.charges())
    engine.dispose()
    assert not list(tmp_path.glob(".*partial"))
    assert not list(house.folder.glob(".backup-*"))


def test_a_backup_with_one_byte_changed_is_refused(made: Path, tmp_path: Path) -> None:
    data = made.read_bytes()
    for at in (3, 20, data.index(b"salt") + 9, data.index(b"\n"), data.index(b"\n") + 1, len(data) // 2, len(data) - 1):
        (tmp_path / "edited").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(CohortiumError):
            restore_backup(tmp_path / "edited", tmp_path / "back", PASSWORD)
        assert not (tmp_path / "back").exists()


def test_a_backup_that_was_cut_off_or_goes_on_is_refused(made: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(backup, "_PIECE", 4096)
    house_folder = next(path for path in tmp_path.rglob("bank 0"))
    make_backup(house_folder, tmp_path / "pieces", PASSWORD)
    data = (tmp_path / "pieces").read_bytes()
    start = data.index(b"\n") + 1
    piece = 4096 + 16
    for edited in (
        data[:start],
        data[: start + 2 * piece],
        data[:-1],
        data + b"x",
        data[:start]
        + data[start + piece : start + 2 * piece]
        + data[start : start + piece]
        + data[start + 2 * piece :],
    ):
        (tmp_path / "edited").write_bytes(edited)
        with pytest.raises(DataError, match="altered or cut off"):
            restore_backup(tmp_path / "edited", tmp_path / "back", PASSWORD)
    restore_backup(tmp_path / "pieces", tmp_path / "back", PASSWORD)


def test_a_wrong_password_and_places_that_are_taken(house: House, made: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the password is wrong"):
        restore_backup(made, tmp_path / "back", PASSWORD + "!")
    with pytest.raises(OutputError, match="is there already"):
        make_backup(house.folder, made, PASSWORD)
    with pytest.raises(RefusedError, match="is there already"):
        restore_backup(made, house.folder, PASSWORD)
    with pytest.raises(DataError, match="holds no node"):
        make_backup(tmp_path, tmp_path / "none", PASSWORD)
    with backup._scratch(house.folder), pytest.raises(OutputError, match="another backup is being made"):
        make_backup(house.folder, tmp_path / "second", PASSWORD)
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("cost", [0, 1, 3, 2**18, 2**40])
def test_a_file_does_not_choose_what_its_password_costs(cost: int, tmp_path: Path) -> None:
    line = canonical_bytes({"schema": "cohortium.backup/1", "salt": "0" * 64, "cost": cost})
    (tmp_path / "hostile").write_bytes(line + b"\n" + bytes(100))
    with pytest.raises(DataError, match="cost"):
        restore_backup(tmp_path / "hostile", tmp_path / "back", PASSWORD)


def test_accounts_come_back_and_their_log_says_so(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "COST", 2)
    create_accounts(house.folder, "kim")
    with open_accounts(house.folder) as store:
        store.add("rolf", [Role.AUDITOR], by=Person("kim", frozenset()), password=PASSWORD)
        kept = store.log.newest()
    made = make_backup(house.folder, tmp_path / "b", PASSWORD)
    with open_accounts(house.folder) as store:
        store.disable("rolf", by=Person("kim", frozenset()))
        newer = store.log.newest()
    restore_backup(tmp_path / "b", tmp_path / "back", PASSWORD)
    with open_accounts(tmp_path / "back") as store:
        assert {one.name: one.state for one in store.accounts()} == {"kim": "active", "rolf": "active"}
        (entry,) = store.log.entries(2, store.log.size)
        assert (entry.entry["event"], entry.entry["made_at"]) == ("accounts-restored", made.made_at)
        assert kept is not None
        assert newer is not None
        assert store.verify([kept]) == ()
        assert store.verify([newer]) != (), "who kept a newer checkpoint sees what is missing"


@pytest.mark.parametrize("name", ["../out", "/dev/shm/cohortium-out", "a/../../out", ".hidden", "a//b", "a\n"])
def test_a_member_never_leaves_the_folder(tmp_path: Path, name: str) -> None:
    """Not even one of a backup that was made with the password."""
    member = {"name": name, "size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    told = canonical_bytes({"institution": "x", "made_at": "2026-01-01", "members": [member]})
    with (tmp_path / "hostile").open("wb") as file:
        backup._seal(file, PASSWORD, iter([len(told).to_bytes(4, "big") + told + b"x"]))
    with pytest.raises(DataError, match="name"):
        restore_backup(tmp_path / "hostile", tmp_path / "back", PASSWORD)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hostile"]


def test_a_member_is_what_the_manifest_says(tmp_path: Path) -> None:
    member = {"name": "node.json", "size": 1, "sha256": hashlib.sha256(b"y").hexdigest()}
    told = canonical_bytes({"institution": "x", "made_at": "2026-01-01", "members": [member]})
    with (tmp_path / "hostile").open("wb") as file:
        backup._seal(file, PASSWORD, iter([len(told).to_bytes(4, "big") + told + b"x"]))
    with pytest.raises(DataError, match=r"node\.json: is not what the manifest says"):
        restore_backup(tmp_path / "hostile", tmp_path / "back", PASSWORD)


def test_no_piece_is_read_of_a_backup_that_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the pieces hold, the last one says that it is."""
    monkeypatch.setattr(backup, "_PIECE", 64)
    with (tmp_path / "b").open("wb") as file:
        backup._seal(file, PASSWORD, iter([bytes(200)]))
    data = (tmp_path / "b").read_bytes()
    (tmp_path / "b").write_bytes(data[: data.index(b"\n") + 1 + 2 * (64 + 16)])
    with (tmp_path / "b").open("rb") as file:
        plain = backup._Plain(file, PASSWORD, "b")
        assert plain.read(64) == bytes(64)
        with pytest.raises(DataError, match="cut off"):
            plain.read(64)


# --- after a restore -------------------------------------------------------------------------------------------------


def test_a_restored_node_answers_nothing_until_it_is_confirmed(house: House, made: Path, tmp_path: Path) -> None:
    back = tmp_path / "back"
    restore_backup(made, back, PASSWORD)
    with pytest.raises(RefusedError, match=r"restored from a backup .* answers nothing yet"):
        open_node(back, house.people)
    notes = house.tell(tmp_path, 1, 2)
    done = house.confirm(back, notes)
    assert (done.entries, len(done.witnesses), done.closed) == (2, 2, 1)
    with pytest.raises(RefusedError, match="is confirmed"):
        house.confirm(back, notes)
    node = open_node(back, house.people)
    assert node.ledger.held().mu2 == 0
    with pytest.raises(RefusedError, match="approved before this node was restored"):
        node.accept(PlanQuestion(house.plan.digest, RUN, int(datetime.now(UTC).timestamp())))
    with pytest.raises(RefusedError, match="approved before this node was restored"):
        node.log.answer(WitnessRequest(plan=house.plan.digest))
    later = house.plan.model_copy(update={"name": "later"})
    node.store.approve(later, node.contract, house.charter)
    assert node.log.answer(WitnessRequest(plan=later.digest)).checkpoint
    node.close()


def test_what_others_witnessed_since_refuses_the_copy_for_good(house: House, made: Path, tmp_path: Path) -> None:
    house.release()
    house.release()
    restore_backup(made, tmp_path / "back", PASSWORD)
    with pytest.raises(RefusedError, match=r"witnessed 4 entries .* this copy has 2: up to 2 releases") as refused:
        house.confirm(tmp_path / "back", house.tell(tmp_path, 1, 2))
    held = house.nodes[0].ledger.held() + house.nodes[0].ledger.spent()
    assert "begin a new node, and leave out of its lifetime budget epsilon 1.0" in str(refused.value)
    assert held.mu2 <= budget_for(1.0, 1e-6).mu2, "what the message tells is no less than what was spent"
    with pytest.raises(RefusedError, match="answers nothing yet"):
        open_node(tmp_path / "back", house.people)


def test_cosignatures_of_before_the_restore_do_not_count(house: House, made: Path, tmp_path: Path) -> None:
    notes = house.tell(tmp_path, 1, 2)
    house.release()
    time.sleep(1.1 - time.time() % 1)  # cosignatures tell whole seconds
    restore_backup(made, tmp_path / "back", PASSWORD)
    with pytest.raises(RefusedError, match="0 witnesses cosigned since"):
        house.confirm(tmp_path / "back", notes)


def test_one_of_two_witnesses_is_not_enough(house: House, made: Path, tmp_path: Path) -> None:
    restore_backup(made, tmp_path / "back", PASSWORD)
    (note,) = house.tell(tmp_path, 1)
    with pytest.raises(RefusedError, match=r"1 witnesses cosigned since .*; 2 are needed"):
        house.confirm(tmp_path / "back", [note, note])
    altered = tmp_path / "altered"
    altered.write_text(note.read_text().replace("\n2\n", "\n1\n"))
    with pytest.raises(DataError):
        house.confirm(tmp_path / "back", [altered])


def test_a_node_whose_log_nobody_has_to_witness_needs_one_witness_all_the_same(
    house: House, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise nobody would say that the copy is the newest."""

    def none(charter: Charter, institution: str) -> Any:
        return replace(quorum_for(charter, institution), needed=NeededWitnesses(0, 0))

    monkeypatch.setattr(restored, "quorum_for", none)
    restore_backup(made, tmp_path / "back", PASSWORD)
    with pytest.raises(RefusedError, match=r"0 witnesses cosigned since .*; 1 are needed"):
        house.confirm(tmp_path / "back", [])
    house.confirm(tmp_path / "back", house.tell(tmp_path, 1))


def test_witnesses_of_the_own_group_are_not_enough(
    house: House, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grouped(charter: Charter, institution: str) -> Any:
        outside = frozenset({log_origin(charter.name, "bank 2")})
        return replace(quorum_for(charter, institution), needed=NeededWitnesses(1, 1), outside=outside)

    monkeypatch.setattr(restored, "quorum_for", grouped)
    restore_backup(made, tmp_path / "back", PASSWORD)
    by_1, by_2 = house.tell(tmp_path, 1, 2)
    with pytest.raises(RefusedError, match="1 of them outside the group"):
        house.confirm(tmp_path / "back", [by_1])
    house.confirm(tmp_path / "back", [by_2])


@pytest.mark.parametrize(
    "edit", ["DELETE FROM charges WHERE sequence = 1", "UPDATE charges SET mu2 = 1 WHERE sequence = 1"]
)
def test_every_release_of_the_log_has_its_charge_in_a_restored_ledger(house: House, tmp_path: Path, edit: str) -> None:
    """Not the newest alone."""
    house.release()
    make_backup(house.folder, tmp_path / "made", PASSWORD)
    restore_backup(tmp_path / "made", tmp_path / "back", PASSWORD)
    engine = open_store(tmp_path / "back" / "node.sqlite", create=False)
    with engine.begin() as connection:
        connection.exec_driver_sql(edit)
    engine.dispose()
    with pytest.raises(RefusedError, match="the ledger lacks charge 1"):
        house.confirm(tmp_path / "back", house.tell(tmp_path, 1, 2))


def test_another_log_under_the_same_name_is_refused(house: House, made: Path, tmp_path: Path) -> None:
    back = tmp_path / "back"
    restore_backup(made, back, PASSWORD)
    engine = open_store(house.folder / "log.sqlite", read_only=True)
    first = LogReader(engine).entry(0).entry
    engine.dispose()
    for file in back.glob("log.sqlite*"):
        file.unlink()
    origin = log_origin(house.charter.name, "bank 0")
    engine = open_store(back / "log.sqlite")
    key = Ed25519PrivateKey.generate()
    AuditLog(engine, origin, Ed25519Signer(origin, key)).append([first, first])
    engine.dispose()
    with pytest.raises(RefusedError, match="witnessed another audit log"):
        house.confirm(back, house.tell(tmp_path, 1, 2))


def test_withdrawals_since_the_backup_are_asked_for(house: House, tmp_path: Path) -> None:
    store = ConsentStore(open_store(house.folder / "consent.sqlite"))
    store.object_("ann")
    store.close()
    make_backup(house.folder, tmp_path / "with consent", PASSWORD)
    restore_backup(tmp_path / "with consent", tmp_path / "back", PASSWORD)
    notes = house.tell(tmp_path, 1, 2)
    with pytest.raises(RefusedError, match="knows no withdrawal since"):
        house.confirm(tmp_path / "back", notes)
    house.confirm(tmp_path / "back", notes, consent_is_current=True)


def test_a_node_of_before_its_first_run_is_not_confirmed(make_house: Callable[[], House], tmp_path: Path) -> None:
    house = make_house()
    make_backup(house.folder, tmp_path / "early", PASSWORD)
    restore_backup(tmp_path / "early", tmp_path / "back", PASSWORD)
    with pytest.raises(RefusedError, match="holds no audit log"):
        house.confirm(tmp_path / "back", [])


# --- without a restore -----------------------------------------------------------------------------------------------


def test_a_ledger_behind_its_log_is_not_opened(house: House, tmp_path: Path) -> None:
    make_backup(house.folder, tmp_path / "old", PASSWORD)
    house.release()
    house.nodes[0].close()
    restore_backup(tmp_path / "old", tmp_path / "back", PASSWORD)
    for file in house.folder.glob("node.sqlite*"):
        file.unlink()
    shutil.copy(tmp_path / "back" / "node.sqlite", house.folder / "node.sqlite")
    engine = open_store(house.folder / "node.sqlite")
    NodeStore(engine).confirm_restored(("nobody",))  # whoever puts a file back by hand gets past the mark
    engine.dispose()
    with pytest.raises(RefusedError, match="the ledger lacks charge 2"):
        open_node(house.folder, house.people)


def test_a_ledger_with_another_question_in_the_slot_is_not_opened(house: House) -> None:
    (charge,) = house.nodes[0].ledger.charges()
    house.nodes[0].close()
    for file in house.folder.glob("node.sqlite*"):
        file.unlink()
    with closing(Ledger(open_store(house.folder / "node.sqlite"), "bank 0", house.nodes[0].ledger.lifetime)) as other:
        other.reserve(charge.slot.plan, charge.slot.run, budget_for(1.0, 1e-6), date.max)
        terms = {"width": charge.width, "bound_squared": charge.bound_squared, "sigma": charge.sigma}
        other.charge(charge.slot, "sha256:" + "0" * 64, **terms)
    with pytest.raises(RefusedError, match="the ledger lacks charge 1"):
        open_node(house.folder, house.people)


def test_an_old_folder_put_back_by_hand_is_refused_by_itself_and_by_others(house: House, tmp_path: Path) -> None:
    """Nothing in the folder tells that it is old: its ledger and its log agree. What others cosigned tells."""
    old = tmp_path / "old"
    for store in ("node", "log"):
        backup.copy_store(house.folder / f"{store}.sqlite", _in(old, f"{store}.sqlite"), [])
    for name in ("node.json", "contract.json", "identity.pem"):
        shutil.copy(house.folder / name, old / name)
    house.release()
    newest = house.cosigned(house.nodes[0], house.nodes[1:], house.plan)
    house.nodes[0].close()
    node = open_node(old, house.people)
    with pytest.raises(RefusedError, match="does not hold what others witnessed"):
        node.log.take(WitnessRequest(plan=house.plan.digest, cosigned=newest))
    members = {"bank 0": node, "bank 1": house.nodes[1], "bank 2": house.nodes[2]}

    def ask(requests: Any) -> dict[str, WitnessReply]:
        return {name: members[name].log.answer(request) for name, request in requests.items()}

    engine = open_store(tmp_path / "coordinator.sqlite")
    origin = log_origin(house.charter.name)
    own = AuditLog(engine, origin, Ed25519Signer(origin, Ed25519PrivateKey.generate()))
    coordinator = Witnesses(house.plan.digest, RUN, house.charter, own, SqlOnceStore(engine), ask)
    for reply in ask(dict.fromkeys(members, WitnessRequest(plan=house.plan.digest))).values():
        coordinator.members = (*coordinator.members, coordinator.who(reply))
    coordinator.exchange()
    assert coordinator.lacking(members) == ["bank 0"]
    engine.dispose()
    node.close()


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


def test_a_node_in_postgresql_is_backed_up_and_put_back(
    make_house: Callable[[], House], tmp_path: Path, in_postgresql: Callable[..., str]
) -> None:
    """Into SQLite, and into fresh schemas; its ledger is verified by the second code path everywhere."""
    stores = ("node", "consent", "review", "log", "obligations")
    in_postgresql(_in(tmp_path / "federation-0" / "bank 0", "x").parent, stores)
    house = make_house()
    house.begin()
    house.release()
    engine = open_store(house.folder / "obligations.sqlite")
    ObligationRegister(engine)
    events = [(number, "breach", "2026-01-01", "x", str(number), "2026-01-02") for number in (1, 2)]
    with engine.begin() as connection:
        insert_all(connection, OBLIGATION_TABLES.tables["occurrences"], events)
    engine.dispose()
    assert not list(house.folder.glob("*.sqlite"))
    make_backup(house.folder, tmp_path / "made", PASSWORD)
    restore_backup(tmp_path / "made", tmp_path / "files", PASSWORD)
    fresh = _in(tmp_path / "fresh", "x").parent
    in_postgresql(fresh, stores)
    restore_backup(tmp_path / "made", tmp_path / "schemas", PASSWORD, fresh / "stores.toml")
    assert not list((tmp_path / "schemas").glob("*.sqlite"))
    with pytest.raises(RefusedError, match="was begun already"):
        restore_backup(tmp_path / "made", tmp_path / "other", PASSWORD, fresh / "stores.toml")
    for folder in (house.folder, tmp_path / "files", tmp_path / "schemas"):
        done = CliRunner().invoke(ledger_commands, ["verify", str(folder)])
        assert (done.exit_code, done.output.startswith("1 charges, verified")) == (0, True), done.exception
    for folder in (tmp_path / "files", tmp_path / "schemas"):
        engine = open_store(folder / "obligations.sqlite", create=False)
        with engine.begin() as connection:
            assert [*map(tuple, connection.exec_driver_sql("SELECT * FROM occurrences ORDER BY number"))] == events
        engine.dispose()
        with pytest.raises(RefusedError, match="answers nothing yet"):
            open_node(folder, house.people)
        house.confirm(folder, house.tell(tmp_path, 1, 2))
        node = open_node(folder, house.people)
        assert list(node.ledger.charges()) == list(house.nodes[0].ledger.charges())
        later = house.plan.model_copy(update={"name": "later"})
        node.store.approve(later, node.contract, house.charter)
        assert node.ledger.reserve(later.digest, RUN, budget_for(0.1, 1e-6), later.expires).plan == later.digest
        node.ledger.verify()
        node.close()


# --- the commands ----------------------------------------------------------------------------------------------------


def test_the_commands(house: House, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text(PASSWORD + "\n")
    password.chmod(0o600)

    def run(*words: object) -> Any:
        return CliRunner().invoke(backup_commands, [str(word) for word in words])

    done = run("make", house.folder, "--out", tmp_path / "b", "--password-file", password)
    assert (done.exit_code, "bank 0 as of" in done.output) == (0, True), done.exception
    done = run("restore", tmp_path / "b", "--to", tmp_path / "back", "--password-file", password)
    assert (done.exit_code, "answers nothing until" in done.output) == (0, True), done.exception
    notes = [word for note in house.tell(tmp_path, 1, 2) for word in ("--checkpoint", note)]
    done = run("confirm", tmp_path / "back", *notes)
    assert (done.exit_code, "confirmed, 2 log entries" in done.output) == (0, True), done.exception
    password.write_text("short\n")
    assert isinstance(
        run("make", house.folder, "--out", tmp_path / "c", "--password-file", password).exception, DataError
    )


def _in(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder / name
