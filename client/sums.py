"""A node's part in secure sums: which run belongs to which approved plan, and who this node is in its charter."""

from __future__ import annotations

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cohortium.client.store import Approval
from cohortium.models.studies import phases
from cohortium.privacy.secure_sum import (
    Masking,
    OnceStore,
    Participant,
    ShareRequest,
    SumRun,
    SurvivorSet,
    UnmaskRequest,
)
from cohortium.study.errors import RefusedError
from cohortium.study.question import QuestionHeader

__all__ = ["NodeSums"]

_RUN = -1


class NodeSums:
    """Answers the messages of secure sums, for approved and unexpired plans only.

    Args:
        institution: this node's name in its charters.
        identity: its Ed25519 key.
        approved: the approval of a plan by digest; `RefusedError` when there is none or it has expired.
        store: durable; one per institution.
    """

    def __init__(
        self,
        institution: str,
        identity: Ed25519PrivateKey,
        approved: Callable[[str], Approval],
        store: OnceStore,
    ) -> None:
        self._institution = institution
        self._identity = identity
        self._approved = approved
        self._store = store
        self._runs: dict[tuple[str, str], SumRun] = {}

    def check(self, plan: str, run: str) -> None:
        """Whether this node may introduce itself to a run: `RefusedError` when its key is not pinned, or the run's plan
        is another one. Writes nothing."""
        self._of(plan, run)
        if self._store.find(run, _RUN, "plan") not in (None, plan.encode()):
            raise RefusedError("the run belongs to another plan")

    def introduce(self, plan: str, run: str) -> bytes:
        """This node's signed keys of a run; the run belongs to that plan from now on."""
        participant = self._of(plan, run)
        if self._store.keep(run, _RUN, "plan", plan.encode()) != plan.encode():
            raise RefusedError("the run belongs to another plan")
        return participant.introduce()

    def begin(self, question: QuestionHeader, request: bytes, digest: str) -> Masking:
        """What the door asks for before it charges: see `Participant.begin`."""
        return self._of(question.plan, question.run).begin(request, digest)

    def share(self, request: bytes) -> bytes:
        """See `Participant.share`; for no more rounds than the plan has attempts."""
        asked = ShareRequest.from_bytes(request)
        participant, plan = self._in(asked.run), self._approved(self._plan_of(asked.run)).plan
        if asked.round >= plan.max_attempts * sum(phase.rounds for phase in phases(plan)):
            raise RefusedError("more rounds than the plan has attempts")
        return participant.share(request)

    def consent(self, request: bytes) -> bytes:
        """See `Participant.consent`."""
        return self._in(SurvivorSet.from_bytes(request).run).consent(request)

    def unmask(self, request: bytes) -> bytes:
        """See `Participant.unmask`."""
        return self._in(UnmaskRequest.from_bytes(request).survivor_set.run).unmask(request)

    def _in(self, run: str) -> Participant:
        """This node in the sums of a run that it was introduced to."""
        return self._of(self._plan_of(run), run)

    def _plan_of(self, run: str) -> str:
        plan = self._store.find(run, _RUN, "plan")
        if plan is None:
            raise RefusedError("a run that this institution was not introduced to")
        return plan.decode()

    def _of(self, plan: str, run: str) -> Participant:
        approval = self._approved(plan)
        if (plan, run) not in self._runs:
            self._runs = {(plan, run): SumRun.of(approval.plan, approval.charter, run)}
        return Participant(self._runs[plan, run], self._institution, self._identity, self._store)
