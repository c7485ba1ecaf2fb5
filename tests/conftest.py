"""A small study that the tests of several rooms share: three regions, three kinds of customers, seconds to run.

Seeded noise exists in tests alone: the package ships the operating system's source and no other.
"""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import settings
from numpy.typing import NDArray

from cohortium.client.node import Node, NodeIdentity, create_node, identity_key, open_node
from cohortium.models.programme import Ask, NoisySum
from cohortium.models.studies import question_terms
from cohortium.privacy.query import SCALE, bounded_total
from cohortium.privacy.release import noise_scale
from cohortium.privacy.table import CustomerTable
from cohortium.study.charter import Charter, parse_charter
from cohortium.study.contract import Contract
from cohortium.study.keys import PASSWORD_FILE, write_whole
from cohortium.study.plan import Plan
from cohortium.study.question import Question, QuestionHeader
from cohortium.study.segment_plan import SegmentPlan
from cohortium.study.software import ROOMS

settings.register_profile("cohortium", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("cohortium")

_OFFLINE = ("Could not find a version", "No matching distribution", "Connection", "Temporary failure", "Max retries")

# a sixth of the suite's time went into looking for garbage among a million objects that modules keep for good
gc.freeze()
gc.set_threshold(50_000, 10, 10)


def pytest_unconfigure() -> None:
    """Libraries complain at the end of objects that were kept from collection."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def built_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of what would be committed."""
    root, copy, out = Path(__file__).parents[1], tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(root / name, copy)
    for room in ROOMS:
        shutil.copytree(root / room, copy / room, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-cache-dir"]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_RETRIES": "1"}
    done = subprocess.run(
        [*command, "--wheel-dir", str(out), str(copy)], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode and any(sign in done.stderr for sign in _OFFLINE):
        pytest.skip("the build backend could not be fetched: the package index is out of reach")
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


CONTRACT_TOML = """
schema = "cohortium.contract/1"
name = "small"
purposes = ["research"]
max_bad_share = 0.05

[window]
start = 2024-01-01
end = 2025-01-01

[[tables]]
name = "people"
kind = "customers"
customer = "id"

[[features]]
name = "visits"
table = "people"
kind = "numeric"
column = "visits"
low = 0
high = 40
integer = true
missing = 0
block = "behaviour"

[[features]]
name = "spend"
table = "people"
kind = "numeric"
column = "spend"
low = 0
high = 2_000
transform = "log1p"
missing = 0
block = "value"

[[features]]
name = "score"
table = "people"
kind = "numeric"
column = "score"
low = -1
high = 1
missing = 0
block = "behaviour"
"""

PLAN_TOML = """
schema = "cohortium.plan/1"
name = "small"
purpose = "research"
lawful_basis = "consent"
regions = ["EU"]
contract = "contract.toml"
expires = 2099-12-31
trust = "local"
epsilon = 1.0
delta = 1e-6
min_institutions = 2
min_cell = 50

[segments]
k = 3

[shares]
marginals = 20
clustering = 60
profiles = 20
rfm = 0
"""

CENTRES = np.array([[4.0, 20.0, -0.6], [20.0, 300.0, 0.0], [34.0, 1500.0, 0.7]])
COLUMNS = ("visits", "spend", "score")
REGIONS = ("north", "south", "west")
KEYS = {name: Ed25519PrivateKey.from_private_bytes(name.ljust(32).encode()) for name in REGIONS}


def customers(count: int, seed: int = 0) -> NDArray[np.float64]:
    """Rows around three centres, within the contract's bounds."""
    rng = np.random.default_rng(seed)
    rows = CENTRES[rng.integers(0, 3, count)] * rng.uniform(0.8, 1.2, (count, 3))
    rows[:, 0] = np.round(rows[:, 0])
    return np.clip(np.round(rows, 3), [0.0, 0.0, -1.0], [40.0, 2000.0, 1.0])


class SeededBits:
    """ChaCha20 keyed by a seed: reproducible, of good quality, for tests only."""

    def __init__(self, seed: int) -> None:
        cipher = Cipher(algorithms.ChaCha20(seed.to_bytes(32, "big"), bytes(16)), mode=None)
        self._stream = cipher.encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype=np.uint64)


@dataclass(frozen=True)
class Driven:
    """What a programme returned, what it asked, and the digest of every question."""

    result: Any
    asks: list[Ask]
    digests: list[str]


def run_programme(programme: Any, plan: Plan, people: CustomerTable, noise: int | None) -> Driven:
    """Answer a programme from one table as one institution would, with seeded Gaussian noise or next to none."""
    rng = None if noise is None else np.random.default_rng(noise)
    steps: Counter[str] = Counter()
    driven = Driven(None, [], [])
    answer: NoisySum | None = None
    while True:
        try:
            ask = next(programme) if answer is None else programme.send(answer)
        except StopIteration as done:
            return replace(driven, result=done.value)
        spec = ask.query.spec()
        header = {"plan": plan.digest, "run": "0" * 32, "phase": ask.phase, "step": steps[ask.phase], "attempt": 1}
        question = Question(QuestionHeader(**header, kind=spec.kind, scalars=spec.scalars), spec.arrays)
        driven.asks.append(ask)
        driven.digests.append(question.digest)
        steps[ask.phase] += 1
        std = noise_scale(ask.query, question_terms(plan, question.header).allotment) / SCALE
        values = bounded_total(ask.query, people) / SCALE
        if rng is None:
            std = std * 1e-6
        else:
            values = values + rng.normal(0.0, std, len(values))
        answer = NoisySum(values, std, 1)


@pytest.fixture(scope="session")
def drive() -> Callable[..., Driven]:
    return run_programme


@pytest.fixture
def seeded_bits() -> Callable[[int], SeededBits]:
    return SeededBits


@pytest.fixture(scope="session")
def small_contract() -> Contract:
    return Contract.model_validate(tomllib.loads(CONTRACT_TOML))


@pytest.fixture(scope="session")
def make_plan(small_contract: Contract) -> Callable[..., Plan]:
    """The small plan, with top-level keys changed."""

    def make(**changes: Any) -> Plan:
        return SegmentPlan.model_validate({**tomllib.loads(PLAN_TOML), "contract": small_contract.digest, **changes})

    return make


@pytest.fixture(scope="session")
def make_people() -> Callable[..., CustomerTable]:
    def make(count: int = 300, seed: int = 0) -> CustomerTable:
        return CustomerTable(COLUMNS, customers(count, seed), np.arange(count))

    return make


@pytest.fixture(scope="session")
def charter() -> Charter:
    """A federation of three whose logs nobody needs to witness: enough for a node that answers alone."""
    public = {name: key.public_key().public_bytes_raw().hex() for name, key in KEYS.items()}
    members = [{"name": name, "region": "EU", "identity": public[name]} for name in REGIONS]
    document = {"schema": "cohortium.charter/1", "name": "small", "institutions": members}
    return parse_charter({**document, "quorum": {"witnesses": 0}})


@pytest.fixture(scope="session", autouse=True)
def node_password(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The password of all nodes that are no simulation's; every process of a test finds it where operators put it."""
    password = "four words of a test"
    file = tmp_path_factory.mktemp("password") / "password"
    file.write_text(password + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PASSWORD_FILE, str(file))
        yield password


def simulated(name: str, epsilon: float) -> NodeIdentity:
    """A node that answers without rules in force."""
    return NodeIdentity(institution=name, lifetime_epsilon=epsilon, simulation=True)


@pytest.fixture
def make_node(tmp_path: Path, small_contract: Contract, charter: Charter) -> Iterator[Callable[..., Node]]:
    """One of the charter's institutions on a table of its own, which approved the given plans."""
    opened: list[Node] = []

    def make(name: str, people: CustomerTable, *plans: Plan, bits: Any = None, epsilon: float = 3.0) -> Node:
        folder = tmp_path / "nodes" / name
        if not folder.exists():
            folder.mkdir(parents=True, mode=0o700)
            private = KEYS[name].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            write_whole(folder / "identity.pem", private)
        create_node(folder, simulated(name, epsilon), small_contract)
        opened.append(open_node(folder, people, bits))
        for plan in plans:
            opened[-1].store.approve(plan, small_contract, charter)
        return opened[-1]

    yield make
    for node in opened:
        node.close()


@dataclass(frozen=True)
class Members:
    """Institutions whose charter pins their keys, and the folders of their nodes."""

    charter: Charter
    nodes: list[Node]
    folders: list[Path]


@pytest.fixture
def make_members(tmp_path: Path, small_contract: Contract) -> Iterator[Callable[..., Members]]:
    """A federation that can sign, under a folder of its own for every call; every member approved the given plans."""
    made: list[Members] = []

    def make(tables: Sequence[CustomerTable], *plans: Plan, bits: Sequence[Any] = (), epsilon: float = 3.0) -> Members:
        base, nodes, folders, members = tmp_path / f"federation-{len(made)}", [], [], []
        for index, people in enumerate(tables):
            name = f"bank {index}"
            folders.append(base / name)
            create_node(folders[-1], simulated(name, epsilon), small_contract)
            nodes.append(open_node(folders[-1], people, bits[index] if bits else None))
            members.append({"name": name, "region": "EU", "identity": identity_key(folders[-1])})
        document = {"schema": "cohortium.charter/1", "name": "signing", "institutions": members}
        made.append(Members(parse_charter(document), nodes, folders))
        for node in nodes:
            for plan in plans:
                node.store.approve(plan, small_contract, made[-1].charter)
        return made[-1]

    yield make
    for members in made:
        for node in members.nodes:
            node.close()


@pytest.fixture
def study_folder(tmp_path: Path) -> Path:
    """plan.toml, contract.toml and people.csv: 900 customers of three regions."""
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "contract.toml").write_text(CONTRACT_TOML, encoding="utf-8")
    (folder / "plan.toml").write_text(PLAN_TOML, encoding="utf-8")
    lines = ["id,region,visits,spend,score"]
    for number, row in enumerate(customers(900)):
        lines.append(f"c{number:04d},{REGIONS[number % 3]},{row[0]:.0f},{row[1]:.3f},{row[2]:.3f}")
    (folder / "people.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


def _postgres_binaries() -> Path | None:
    found = shutil.which("pg_ctl")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists() and (place / "pg_ctl").exists()), None)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """A real server on a socket in a folder of its own: its SQLAlchemy URL, to which `?schema=` is added."""
    pytest.importorskip("psycopg", reason="PostgreSQL's driver is not installed: pip install cohortium[postgresql]")
    binaries = _postgres_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server is installed: neither pg_ctl on PATH nor in /usr/lib/postgresql")
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        user = {"user": "nobody", "group": "nogroup", "extra_groups": []}  # a server does not run as root
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp" if len(tempfile.gettempdir()) > 40 else None) as folder:
        home, data = Path(folder), Path(folder) / "data"
        if user:
            shutil.chown(home, user["user"])

        def run(*command: str) -> None:
            subprocess.run(command, check=True, cwd=home, stdout=subprocess.DEVNULL, timeout=60, **user)

        run(str(binaries / "initdb"), f"--pgdata={data}", "--auth=trust", "--username=cohortium", "--no-sync")
        settings = f"-c listen_addresses='' -c unix_socket_directories='{home}' -c shared_buffers=16MB"
        control = (str(binaries / "pg_ctl"), f"--pgdata={data}")
        run(*control, "--wait", f"--log={home / 'log'}", f"--options={settings}", "start")
        try:
            yield f"postgresql+psycopg://cohortium@/postgres?host={home}"
        finally:
            run(*control, "--wait", "--mode=immediate", "stop")


_SCHEMAS = itertools.count()


@pytest.fixture
def in_postgresql(postgresql: str) -> Callable[[Path], str]:
    """Has the stores of a folder in fresh schemas of the server; gives their URLs' common beginning."""

    def declare(folder: Path, stores: Sequence[str] = ("node", "consent", "review", "log", "obligations")) -> str:
        number = next(_SCHEMAS)
        lines = [f'{name} = "{postgresql}&schema=t{number}_{name}"' for name in stores]
        file = folder / "stores.toml"
        file.touch(mode=0o600)
        file.write_text("\n".join(['schema = "cohortium.stores/1"', *lines]) + "\n")
        return f"{postgresql}&schema=t{number}_"

    return declare
