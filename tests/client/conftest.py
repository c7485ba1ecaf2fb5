"""What a node's audit log says, and the exchange in which nodes cosign each other's logs, without a coordinator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cohortium.client.node import Node
from cohortium.client.witnessing import LOG_FILE
from cohortium.governance.log import LogReader, parse_checkpoint, parse_note, parse_signatures
from cohortium.privacy.ledger import open_store
from cohortium.study.plan import Plan
from cohortium.study.witness import Growth, ToCosign, WitnessRequest


def cosigned_note(owner: Node, others: Sequence[Node], plan: Plan) -> str:
    """The owner's newest checkpoint with a cosignature of each of the others: real nodes, real keys, real proofs."""
    news = owner.log.answer(WitnessRequest(plan=plan.digest))
    note = parse_note(news.checkpoint)
    for other in others:
        seen = {one.log: one.size for one in other.log.answer(WitnessRequest(plan=plan.digest)).witnessed}
        known = seen[parse_checkpoint(note.text).origin]
        proofs = owner.log.answer(WitnessRequest(plan=plan.digest, growth_from=(known,) if known else ())).growth
        growth = next((one for one in proofs if one.old == known), Growth(old=known))
        asked = ToCosign(growth=growth, checkpoint=news.checkpoint)
        reply = other.log.answer(WitnessRequest(plan=plan.digest, to_cosign=(asked,)))
        (line,) = [one.line for one in reply.witnessed if one.line is not None]
        note = note.with_signatures(parse_signatures(line))
    return note.to_text()


def exchanged(nodes: Sequence[Node], plan: Plan) -> None:
    """Every node's log is cosigned by all others and gets its cosignatures back."""
    for node in nodes:
        note = cosigned_note(node, [other for other in nodes if other is not node], plan)
        node.log.answer(WitnessRequest(plan=plan.digest, cosigned=note))


@pytest.fixture(scope="session")
def cosigned() -> Callable[..., str]:
    return cosigned_note


@pytest.fixture(scope="session")
def exchange() -> Callable[..., None]:
    return exchanged


@pytest.fixture(scope="session")
def log_entries() -> Callable[[Path], list[dict[str, Any]]]:
    """The entries of the audit log in a node's folder, oldest first."""

    def read(folder: Path) -> list[dict[str, Any]]:
        engine = open_store(folder / LOG_FILE, read_only=True)
        try:
            reader = LogReader(engine)
            return [dict(one.entry) for one in reader.entries(0, reader.size)]
        finally:
            engine.dispose()

    return read


@pytest.fixture
def logged(
    tmp_path: Path, log_entries: Callable[[Path], list[dict[str, Any]]]
) -> Callable[[Node], list[dict[str, Any]]]:
    """The same of a node of `make_node`."""
    return lambda node: log_entries(tmp_path / "nodes" / node.identity.institution)
