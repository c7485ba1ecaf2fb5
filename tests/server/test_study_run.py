"""A whole study, bit for bit: the same answers give the same bundle, the sum is the sum of what the doors released."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from flwr.app import Context
from numpy.typing import NDArray

from cohortium.client.app import make_client_app
from cohortium.client.node import Node
from cohortium.models.segmentation import phases
from cohortium.privacy.accounting import Spend, budget_for
from cohortium.privacy.table import CustomerTable
from cohortium.server.app import StudyOrder, make_server_app
from cohortium.server.federation import Federation
from cohortium.server.study_run import Asked, run_study
from cohortium.simulations.grid import run_in_process
from cohortium.study.bundle import Bundle
from cohortium.study.contract import Contract
from cohortium.study.errors import PlanError, RefusedError
from cohortium.study.plan import Plan
from cohortium.study.question import Question

MakeNodes = Callable[..., list[Node]]
RUN = "ab" * 16


@pytest.fixture
def make_nodes(
    make_node: Callable[..., Node],
    make_people: Callable[..., CustomerTable],
    seeded_bits: Callable[[int], Any],
) -> MakeNodes:
    """Three institutions with seeded noise, under names of their own for every call."""
    calls: list[int] = []

    def make(plan: Plan, sizes: Sequence[int] = (300, 200, 400)) -> list[Node]:
        calls.append(1)
        return [
            make_node(f"bank-{len(calls)}-{i}", make_people(size, seed=i), plan, bits=seeded_bits(i))
            for i, size in enumerate(sizes)
        ]

    return make


def federated(plan: Plan, contract: Contract, nodes: Sequence[Node], said: list[Asked] | None = None) -> Bundle:
    """The study by the very apps, over the in-process grid."""
    delivered: list[Bundle] = []
    order = StudyOrder(plan, contract, RUN, expected=len(nodes))
    progress = (lambda _: None) if said is None else said.append

    def open_node(context: Context) -> Node:
        return nodes[int(context.node_config["partition-id"])]

    run_in_process(make_server_app(order, delivered.append, progress), make_client_app(open_node), nodes=len(nodes))
    (bundle,) = delivered
    return bundle


class Doors:
    """Respondents without a grid: every door asked directly, the vectors added."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes, self.questions, self.totals = nodes, list[Question](), list[NDArray[np.int64]]()

    def ask(self, question: Question, width: int) -> tuple[NDArray[np.int64], int]:
        vectors = [node.door.release(question).vector for node in self.nodes]
        assert all(vector.shape == (width,) for vector in vectors)
        total = np.array([sum(map(int, words)) for words in zip(*vectors, strict=True)], dtype=np.int64)
        self.questions.append(question)
        self.totals.append(total)
        return total, len(vectors)


# --- bit for bit -----------------------------------------------------------------------------------------------------


def test_the_same_bits_give_the_same_bundle(
    make_nodes: MakeNodes, make_plan: Callable[..., Plan], small_contract: Contract
) -> None:
    plan = make_plan()
    one, two = (federated(plan, small_contract, make_nodes(plan)).to_bytes() for _ in range(2))
    assert one == two


def test_the_federation_releases_exactly_the_sum_of_its_doors(
    make_nodes: MakeNodes,
    make_plan: Callable[..., Plan],
    small_contract: Contract,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = make_plan()
    doors = Doors(make_nodes(plan))
    direct = run_study(plan, small_contract, RUN, doors, lambda _: None)
    totals: list[tuple[str, list[int]]] = []
    real = Federation.ask

    def ask(self: Federation, question: Question, width: int) -> tuple[NDArray[np.int64], int]:
        total, answered = real(self, question, width)
        totals.append((question.digest, total.tolist()))
        return total, answered

    monkeypatch.setattr(Federation, "ask", ask)
    over_grid = federated(plan, small_contract, make_nodes(plan))
    assert totals == [(q.digest, t.tolist()) for q, t in zip(doors.questions, doors.totals, strict=True)]
    assert over_grid.to_bytes() == direct.to_bytes()


def test_a_run_again_is_free_and_gives_the_same_bytes(
    make_nodes: MakeNodes, make_plan: Callable[..., Plan], small_contract: Contract
) -> None:
    plan = make_plan()
    nodes = make_nodes(plan)
    first = federated(plan, small_contract, nodes)
    spent = [node.ledger.spent() for node in nodes]
    assert federated(plan, small_contract, nodes).to_bytes() == first.to_bytes()
    assert [node.ledger.spent() for node in nodes] == spent


@pytest.mark.parametrize("answered", [0, 1, 3, 6])
def test_a_run_cut_short_anywhere_ends_as_if_it_had_not_been(
    answered: int, make_nodes: MakeNodes, make_plan: Callable[..., Plan], small_contract: Contract
) -> None:
    """Cut between the second and the third institution's answer to a question."""
    plan = make_plan()
    whole = federated(plan, small_contract, make_nodes(plan))
    nodes = make_nodes(plan)

    class CutShort(Doors):
        def ask(self, question: Question, width: int) -> tuple[NDArray[np.int64], int]:
            if len(self.questions) < answered:
                return super().ask(question, width)
            for node in self.nodes[:2]:
                node.door.release(question)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(plan, small_contract, RUN, CutShort(nodes), lambda _: None)
    assert len(list(nodes[0].ledger.charges())) == answered + 1
    assert federated(plan, small_contract, nodes).to_bytes() == whole.to_bytes()
    assert len(list(nodes[0].ledger.charges())) == len(whole.releases)


# --- what it says and costs ------------------------------------------------------------------------------------------


def test_the_bundle_lists_what_every_ledger_charged(
    make_nodes: MakeNodes, make_plan: Callable[..., Plan], small_contract: Contract
) -> None:
    plan, said = make_plan(), list[Asked]()
    nodes = make_nodes(plan)
    bundle = federated(plan, small_contract, nodes, said)
    asked = [(phase.name, step) for phase in phases(plan) for step in range(phase.rounds)]
    assert [(record.phase, record.step) for record in bundle.releases] == asked
    assert [(line.phase, line.step, line.institutions) for line in said] == [(*slot, 3) for slot in asked]
    for node in nodes:
        node.ledger.verify()
        for record, charge in zip(bundle.releases, node.ledger.charges(), strict=True):
            assert (record.question, record.width) == (charge.question, charge.width)
            assert (int(record.sigma), record.mu2, record.tv) == (charge.sigma, charge.spend.mu2, charge.spend.tv)
        total = Spend(sum(r.mu2 for r in bundle.releases), sum(r.tv for r in bundle.releases))
        assert node.ledger.spent() == total
        assert total.fits(budget_for(plan.epsilon, plan.delta))
    assert (bundle.institutions, bundle.run, bundle.plan) == (3, RUN, plan)
    assert bundle.customers == pytest.approx(900, abs=400)


def test_noise_grows_with_the_institutions(
    make_nodes: MakeNodes, make_plan: Callable[..., Plan], small_contract: Contract
) -> None:
    """Every institution adds full noise, so the sum's standard deviation is sqrt(n) times that of one."""
    plan = make_plan(min_institutions=1)
    three = federated(plan, small_contract, make_nodes(plan))
    one = federated(plan, small_contract, make_nodes(plan, (900,)))
    assert three.segments[0].size_std == pytest.approx(one.segments[0].size_std * 3**0.5, rel=1e-9)


def test_an_institution_that_declines_midway_leaves_the_rest_to_finish(
    make_nodes: MakeNodes, make_plan: Callable[..., Plan], small_contract: Contract
) -> None:
    plan = make_plan(min_institutions=2)
    nodes = make_nodes(plan)
    real, calls = nodes[1].door.release, list[Question]()

    def release(question: Question) -> Any:
        calls.append(question)
        return real(question) if len(calls) <= 3 else {}["gone"]

    nodes[1].door.release = release  # type: ignore[method-assign]
    bundle = federated(plan, small_contract, nodes)
    assert bundle.institutions == 2
    assert [record.institutions for record in bundle.releases] == [3] * 3 + [2] * (len(bundle.releases) - 3)
    assert len(calls) == 4
    assert len(list(nodes[1].ledger.charges())) == 3


def test_nothing_is_asked_when_too_few_accept(
    make_nodes: MakeNodes, make_plan: Callable[..., Plan], small_contract: Contract
) -> None:
    plan = make_plan(min_institutions=3)
    nodes = [*make_nodes(plan)[:2], *make_nodes(make_plan(epsilon=0.5))[:1]]
    with pytest.raises(RefusedError, match="only 2 institutions accepted"):
        federated(plan, small_contract, nodes)
    assert all(node.ledger.spent() == Spend() for node in nodes)


def test_a_plan_that_would_fail_half_way_asks_nothing(
    make_nodes: MakeNodes, make_plan: Callable[..., Plan], small_contract: Contract
) -> None:
    plan = make_plan(epsilon=3.0, delta=1e-15)
    nodes = make_nodes(plan)
    with pytest.raises(PlanError, match="delta"):
        federated(plan, small_contract, nodes)
    assert all(node.ledger.spent() == Spend() for node in nodes)
