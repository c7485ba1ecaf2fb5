"""The coordinator's Flower ServerApp: gathers the institutions, walks the plan, hands over the bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from cohortium.governance.log import AuditLog
from cohortium.models.preflight import preflight
from cohortium.privacy.secure_sum import OnceStore
from cohortium.server.federation import (
    Gathering,
    OpenFederation,
    SeparateFederation,
    WitnessedFederation,
    gather_federation,
)
from cohortium.server.journal import Journaled
from cohortium.server.study_run import Asked, Released, run_study
from cohortium.study.audit_plan import AuditPlan
from cohortium.study.charter import Charter
from cohortium.study.contract import Contract
from cohortium.study.model import EncoderModel, Model
from cohortium.study.plan import Plan

__all__ = ["StudyOrder", "conduct", "make_server_app"]


@dataclass(frozen=True)
class StudyOrder:
    """What a coordinator is to run.

    Args:
        plan, contract, charter: agreed by the institutions.
        run: 32 hexadecimal digits; the same run again resumes it.
        expected: institutions to wait for before the first question.
        timeout: seconds to wait for connections and for the answers to one question.
        base: for a campaign, the encoder's model that its plan names.
        members: see `server.federation.Gathering`; of the grid that reaches them.
    """

    plan: Plan
    contract: Contract
    charter: Charter
    run: str
    expected: int
    timeout: float = 600.0
    base: Model[EncoderModel] | None = None
    members: Callable[[Grid], Mapping[int, str]] | None = None


def make_server_app(
    order: StudyOrder,
    store: OnceStore,
    log: AuditLog,
    deliver: Callable[[Released], None],
    progress: Callable[[Asked], None],
) -> ServerApp:
    """The app the coordinator runs, on every engine.

    Args:
        order: what to run.
        store: the coordinator's own memory; a durable one lets an interrupted run go on.
        log: the coordinator's audit log.
        deliver: called once with what the run releases.
        progress: called after every question.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _context: Context) -> None:
        deliver(conduct(grid, order, store, log, progress))

    return app


def conduct(
    grid: Grid, order: StudyOrder, store: OnceStore, log: AuditLog, progress: Callable[[Asked], None]
) -> Released:
    """Run a study over a grid, to its last cosignature; the arguments are those of `make_server_app`."""
    preflight(order.plan, order.contract, order.charter)
    members = None if order.members is None else partial(order.members, grid)
    gathering = Gathering(order.plan, order.charter, order.run, order.expected, order.timeout, members)
    federation = _journaled(grid, gathering, store, log)
    released = run_study(order.plan, order.contract, order.run, federation, progress, order.base)
    federation.close(released.digest)
    return released


def _journaled(grid: Grid, gathering: Gathering, store: OnceStore, log: AuditLog) -> WitnessedFederation:
    """The federation, with a journal; for an audit that wants everybody's own tables, one journal for everybody."""
    gathered, plan = gather_federation(grid, gathering, store, log), gathering.plan
    if not isinstance(gathered, OpenFederation) or not isinstance(plan, AuditPlan):
        return Journaled(gathered, store)
    members = {name: Journaled(gathered.alone(name), _MemberStore(store, name)) for name in gathered.nodes}
    return SeparateFederation(members, plan.min_institutions)


class _MemberStore:
    """The part of a store that is about one institution.

    Args:
        store: the whole.
        name: the institution's.
    """

    def __init__(self, store: OnceStore, name: str) -> None:
        self._store = store
        self._prefix = f"of {name}: "

    def keep(self, run: str, number: int, item: str, value: bytes) -> bytes:
        """See `OnceStore`."""
        return self._store.keep(run, number, self._prefix + item, value)

    def find(self, run: str, number: int, item: str) -> bytes | None:
        """See `OnceStore`."""
        return self._store.find(run, number, self._prefix + item)

    def erase(self, run: str, before: int, items: tuple[str, ...]) -> None:
        """See `OnceStore`."""
        self._store.erase(run, before, tuple(self._prefix + item for item in items))
