"""What the coordinator wrote down of a run: every released sum, so that a resumed run asks nothing twice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cohortium.privacy.secure_sum import OnceStore, SumFailed
from cohortium.server.federation import WitnessedFederation
from cohortium.study.errors import DataError
from cohortium.study.question import Question, QuestionHeader

__all__ = ["Journaled"]

_RUN = -1


class Journaled:
    """A federation whose sums are kept: a question that was answered is not asked again, whoever is there now.

    Nor does a resumed run go back to an attempt that failed: some have paid for the next one.

    Args:
        federation: who answers.
        store: durable; the coordinator's own. It holds released sums and messages about keys, nothing un-noised.
    """

    def __init__(self, federation: WitnessedFederation, store: OnceStore) -> None:
        self._federation = federation
        self._store = store

    def ask(self, question: Question, width: int) -> tuple[NDArray[np.int64], int]:
        """See `Federation`."""
        run, item = question.header.run, f"sum {question.digest}"
        stored = self._store.find(run, _RUN, item)
        if stored is None:
            self._begin(question.header, question.digest)
            total, institutions = self._federation.ask(question, width)
            answer = institutions.to_bytes(4, "big") + total.astype("<i8").tobytes()
            stored = self._store.keep(run, _RUN, item, answer)
        if len(stored) != 4 + 8 * width:
            raise DataError("a sum of another width", place="coordinator's journal", fix="begin a new run")
        total = np.frombuffer(stored, dtype="<i8", offset=4).astype(np.int64)
        return total, int.from_bytes(stored[:4], "big")

    def close(self, released: str) -> None:
        """See `WitnessedFederation`."""
        self._federation.close(released)

    def _begin(self, header: QuestionHeader, digest: str) -> None:
        """Write down that an attempt is asked; `SumFailed` when the run went on to the next one."""
        step = f"{header.phase} {header.step} attempt"
        if self._store.find(header.run, _RUN, f"{step} {header.attempt + 1}") is not None:
            raise SumFailed("failed before the run was resumed")
        self._store.keep(header.run, _RUN, f"{step} {header.attempt}", digest.encode())
