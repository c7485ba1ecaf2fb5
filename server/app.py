"""The coordinator's Flower ServerApp: gathers the institutions, walks the plan, hands over the bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from cohortium.server.federation import gather_federation
from cohortium.server.study_run import Asked, run_study
from cohortium.study.bundle import Bundle
from cohortium.study.contract import Contract
from cohortium.study.plan import Plan

__all__ = ["StudyOrder", "make_server_app"]


@dataclass(frozen=True)
class StudyOrder:
    """What a coordinator is to run.

    Args:
        plan, contract: agreed by the institutions.
        run: 32 hexadecimal digits; the same run again resumes it.
        expected: institutions to wait for before the first question.
        timeout: seconds to wait for connections and for the answers to one question.
    """

    plan: Plan
    contract: Contract
    run: str
    expected: int
    timeout: float = 600.0


def make_server_app(
    order: StudyOrder, deliver: Callable[[Bundle], None], progress: Callable[[Asked], None]
) -> ServerApp:
    """The app the coordinator runs, on every engine.

    Args:
        order: what to run.
        deliver: called once with the released bundle.
        progress: called after every question.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _context: Context) -> None:
        federation = gather_federation(grid, order.plan, order.expected, order.timeout)
        deliver(run_study(order.plan, order.contract, order.run, federation, progress))

    return app
