"""The server app that the study's bundle names: one run of a proposed plan, at the coordinator that started it.

Flower starts it in a process of its own, with the plan's digest and the run's number as its configuration; everything
else is in the coordinator's folder. Whatever ends it, the same run can be started again: sums that were released are in
the coordinator's journal, and institutions answer what they were asked before with the bytes they stored.
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid import HttpGrid

from cohortium.governance.log import AuditLog, Ed25519Signer, log_origin
from cohortium.governance.operations import log_as_json, tell
from cohortium.privacy.ledger import open_store
from cohortium.privacy.secure_sum import SqlOnceStore
from cohortium.server.app import StudyOrder, conduct
from cohortium.server.members import active_keys
from cohortium.server.prompt import PromptGrid
from cohortium.server.studies import Studies
from cohortium.server.study_run import AuditAnswer, Released
from cohortium.server.superlink import COORDINATOR_FOLDER
from cohortium.study.bundle import Bundle
from cohortium.study.errors import CohortiumError, RefusedError
from cohortium.study.keys import find_password, read_identity_file
from cohortium.study.model import EncoderModel, Model, load_model, save_model
from cohortium.study.proposal import Proposal

__all__ = ["GATHER_SECONDS", "WAVE_SECONDS", "app", "at_nodes"]

WAVE_SECONDS = "COHORTIUM_WAVE_SECONDS"
"""Environment variable: how long a wave of messages waits for an institution that is connected but does not answer."""

GATHER_SECONDS = "COHORTIUM_GATHER_SECONDS"
"""Environment variable: how long a run waits for all that approved before it begins with enough of them."""

BUNDLE_FILE, ENCODER_FILE, LOOKALIKE_FILE, TABLES_FILE = (
    "bundle.json",
    "encoder.safetensors",
    "lookalike.safetensors",
    "tables.json",
)
_LOCK_SECONDS = 60.0
_log = logging.getLogger(__name__)

app = ServerApp()
"""Named by the bundle; started by Flower's SuperLink alone."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study that the run's configuration names; `CohortiumError` when it cannot be run to its end."""
    log_as_json()
    folder = Path(os.environ[COORDINATOR_FOLDER])
    plan, run = str(context.run_config["plan"]), str(context.run_config["run"])
    studies = Studies(folder)
    with _alone(folder, run):
        try:
            _conduct(grid, folder, studies, plan, run)
        except CohortiumError as error:
            tell(_log, "the run failed", logging.ERROR, plan=plan, problem=str(error))
            studies.note(plan, "failed", str(error))
            raise


def _conduct(grid: Grid, folder: Path, studies: Studies, plan: str, run: str) -> None:
    begun = studies.run(plan)
    if begun is None or begun.run != run or begun.state != "running":
        raise RefusedError("no such run is to be run", place=plan, fix="cohortium study run, or resume")
    proposal, approved = studies.proposal(plan), frozenset(studies.approvals(plan))
    key = read_identity_file(folder / "identity.pem", find_password())
    members = partial(at_nodes, folder, approved)
    if not isinstance(grid, HttpGrid):
        raise RefusedError("a grid that does not authenticate its nodes")
    prompt = PromptGrid(grid, folder)
    wave = float(os.environ.get(WAVE_SECONDS, "600"))
    order = StudyOrder(
        plan=proposal.plan,
        contract=proposal.contract,
        charter=proposal.charter,
        run=run,
        expected=_wait_for(lambda: len(members(prompt)), len(approved), proposal.plan.min_institutions),
        timeout=wave,
        base=_base(studies, proposal),
        members=members,
    )
    database, log_store = open_store(folder / "coordinator.sqlite"), open_store(folder / "log.sqlite")
    try:
        origin = log_origin(proposal.charter.name)
        log = AuditLog(log_store, origin, Ed25519Signer(origin, key))
        note = partial(studies.note_progress, plan)
        released = conduct(prompt, order, SqlOnceStore(database), log, note)
    finally:
        prompt.close()
        database.dispose()
        log_store.dispose()
    name, data = _file(released, key)
    studies.keep_released(plan, name, data)
    studies.note(plan, "released")
    tell(_log, "released", plan=plan, file=name)


def at_nodes(folder: Path, approved: frozenset[str], grid: Grid) -> dict[int, str]:
    """Which institution is at which of Flower's nodes: by the transport key that it was enrolled with.

    Args:
        folder: of the coordinator.
        approved: institutions that approved the plan; others are not asked.
        grid: knows the public key that each connected node has proven to hold.
    """
    keys = {key.decode().strip(): name for key, name in active_keys(folder, datetime.now(UTC)).items()}
    if not isinstance(grid, PromptGrid):
        raise RefusedError("a grid that does not authenticate its nodes")
    found = {}
    for node in grid.inner.get_nodes():
        name = keys.get(_text(node.public_key).strip())
        if name in approved and node.status == "online":
            found[int(node.node_id)] = str(name)
    return found


def _wait_for(online: Callable[[], int], all_of_them: int, minimum: int) -> int:
    """Wait until everybody is connected, or long enough; how many are. `RefusedError` when that is too few."""
    deadline = time.monotonic() + float(os.environ.get(GATHER_SECONDS, "300"))
    count = online()
    while count < all_of_them and time.monotonic() < deadline:
        time.sleep(0.2)  # Flower offers no way to be told
        count = online()
    if count < minimum:
        raise RefusedError(
            f"{count} of {all_of_them} institutions that approved are connected; the plan needs {minimum}",
            fix="have the missing nodes started, and resume",
        )
    return count


def _base(studies: Studies, proposal: Proposal) -> Model[EncoderModel] | None:
    path = studies.base(proposal.plan.digest)
    return None if path is None else load_model(path, EncoderModel, signer=proposal.charter.coordinator)


def _file(released: Released, key: Ed25519PrivateKey) -> tuple[str, bytes]:
    """What a run releases, as a file."""
    if isinstance(released, Bundle):
        return BUNDLE_FILE, released.to_bytes()
    if isinstance(released, AuditAnswer):
        return TABLES_FILE, released.document.to_bytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / (ENCODER_FILE if isinstance(released.document, EncoderModel) else LOOKALIKE_FILE)
        save_model(released, key, path)
        return path.name, path.read_bytes()


@contextmanager
def _alone(folder: Path, run: str) -> Iterator[None]:
    """One process for one run: what an earlier life of the coordinator left behind has to end first."""
    with open(folder / "flower" / f"{run}.lock", "w", encoding="utf-8") as lock:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RefusedError("another process is at this run", place=run, fix="wait, and resume") from None
                time.sleep(0.2)
        yield


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()
