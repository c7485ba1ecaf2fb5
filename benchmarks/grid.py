"""What the in-process grid costs: against a plain loop, and against Flower's Ray simulation.

    python benchmarks/grid.py [--json OUT] [--rounds N] [--ray-python PATH]

1. A k-means step of 8 institutions (12,500 customers, 8 features, 8 clusters): a plain loop over the institutions
   against the same step through `ServerApp`, `ClientApp` and the in-process grid, in alternating rounds of one run.
   Both sides answer the product's own query; no noise and no ledger on either. Target: at most 1.3 times the loop.
   Beside it, without a target, the same step through the full door: ledger, exact noise, stored reply, seal.
2. 100,000 words to and from each of 8 institutions with trivial work: the in-process grid against Ray. Target: at
   least 8 times faster a round. Ray runs in this interpreter if it is installed there, else in the one that
   `--ray-python` names, else in `.venv-ray`, which is made.

Exits with 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray

from cohortium.client.app import make_client_app
from cohortium.client.node import NodeIdentity, create_node, open_node
from cohortium.models.moments import MomentQuery, read_moments
from cohortium.models.scaler import Scaler
from cohortium.privacy.query import SCALE, bounded_total
from cohortium.privacy.table import CustomerTable
from cohortium.server.federation import gather_federation
from cohortium.simulations.grid import run_in_process
from cohortium.simulations.ray_engine import run_on_ray
from cohortium.study.arrays import from_array, to_record
from cohortium.study.contract import Contract
from cohortium.study.plan import Plan
from cohortium.study.plans import parse_plan
from cohortium.study.question import Question, QuestionHeader

INSTITUTIONS = 8
CUSTOMERS = 12_500
FEATURES = 8
CLUSTERS = 8
WORDS = 100_000
WARM_UP = 3
MOST_TIMES_THE_LOOP = 1.3
LEAST_TIMES_FASTER_THAN_RAY = 8.0

REPOSITORY = Path(__file__).resolve().parent.parent


NAMES = tuple(f"x{index}" for index in range(FEATURES))
SCALER = Scaler(NAMES, np.zeros(FEATURES, dtype=bool), np.full(FEATURES, -12.0), np.full(FEATURES, 12.0))
WEIGHTS = (0.3, 1.0)


def step_query(centres: NDArray[np.float64]) -> MomentQuery:
    """The product's k-means step: residuals to the nearest centre, clipped, and counts."""
    return MomentQuery(SCALER, centres, np.full(len(centres), 0.5), WEIGHTS)


def moved(query: MomentQuery, total: NDArray[np.int64]) -> NDArray[np.float64]:
    """The centres after the step that these sums describe."""
    moments = read_moments(query, total / SCALE)
    return query.centres + query.radii[:, np.newaxis] * moments.sums / np.maximum(moments.counts, 1.0)[:, np.newaxis]


def institution(seed: int) -> CustomerTable:
    """Made-up customers around as many centres as there are clusters."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(scale=3.0, size=(CLUSTERS, FEATURES))
    values = centres[rng.integers(CLUSTERS, size=CUSTOMERS)] + rng.normal(size=(CUSTOMERS, FEATURES))
    return CustomerTable(NAMES, np.clip(values, -12, 12), np.arange(CUSTOMERS))


def loop_step(tables: Sequence[CustomerTable], step: MomentQuery) -> NDArray[np.int64]:
    """The step's sum over all institutions by a plain loop."""
    return np.sum([bounded_total(step, table) for table in tables], axis=0)


def grid_step(grid: Grid, step: MomentQuery) -> NDArray[np.int64]:
    """The step's sum over all institutions through Flower."""
    content = RecordDict({"query": to_record({"centres": step.centres.copy()})})
    replies = grid.send_and_receive([Message(content, node, "query.step") for node in grid.get_node_ids()])
    return np.sum([answer_of(reply, step.width) for reply in replies], axis=0)


def answer_of(reply: Message, width: int) -> NDArray[np.int64]:
    """The vector in a reply."""
    return from_array(reply.content.array_records["answer"]["total"], np.int64, (width,))


def k_means_client(tables: Sequence[CustomerTable]) -> ClientApp:
    """Institutions that answer a k-means step."""
    app = ClientApp()

    @app.query("step")
    def step(message: Message, context: Context) -> Message:
        centres = from_array(message.content.array_records["query"]["centres"], np.float64, (CLUSTERS, FEATURES))
        total = bounded_total(step_query(centres), tables[int(context.node_config["partition-id"])])
        return Message(RecordDict({"answer": to_record({"total": total})}), reply_to=message)

    return app


def measure_k_means(rounds: int) -> dict[str, Any]:
    """Seconds a step by the loop and through the grid, in alternating rounds of one run."""
    tables = [institution(seed) for seed in range(INSTITUTIONS)]
    loop: list[float] = []
    through_grid: list[float] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        step = step_query(SCALER.transform(tables[0].values[:CLUSTERS]))
        for _ in range(WARM_UP + rounds):
            started = time.perf_counter()
            expected = loop_step(tables, step)
            between = time.perf_counter()
            total = grid_step(grid, step)
            through_grid.append(time.perf_counter() - between)
            loop.append(between - started)
            if not np.array_equal(total, expected):
                raise SystemExit("the grid's sum differs from the loop's")
            step = step_query(moved(step, total))

    run_in_process(server, k_means_client(tables), nodes=INSTITUTIONS)
    seconds = {"loop": median_of(loop), "grid": median_of(through_grid)}
    ratio = seconds["grid"] / seconds["loop"]
    return {"seconds_per_step": seconds, "times_the_loop": ratio, "met": ratio <= MOST_TIMES_THE_LOOP}


def measure_door(repetitions: int) -> dict[str, Any]:
    """Seconds a k-means step through the product's own apps: approved plan, ledger, exact noise, stored reply, seal."""
    seconds: list[float] = []
    with tempfile.TemporaryDirectory(prefix="cohortium-") as folder, ExitStack() as stack:
        contract = matrix_contract()
        nodes = []
        for index in range(INSTITUTIONS):
            create_node(Path(folder) / str(index), NodeIdentity(institution=f"i{index}", simulation=True), contract)
            nodes.append(open_node(Path(folder) / str(index), institution(index)))
            stack.callback(nodes[-1].close)
        client = make_client_app(lambda context: nodes[int(context.node_config["partition-id"])])
        for repetition in range(repetitions):
            plan = door_plan(contract, repetition)
            for node in nodes:
                node.store.approve(plan, contract)
            run_in_process(door_server(plan, seconds), client, nodes=INSTITUTIONS)
    return {"seconds_per_step": median_of(seconds)}


def door_server(plan: Plan, seconds: list[float]) -> ServerApp:
    """A coordinator that asks the plan's Lloyd steps and notes the seconds of each."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        federation = gather_federation(grid, plan, INSTITUTIONS, timeout=60.0)
        query = step_query(SCALER.transform(institution(0).values[:CLUSTERS]))
        spec = query.spec()
        for step in range(3):
            header = QuestionHeader(
                plan=plan.digest,
                run=uuid4().hex,
                phase="lloyd",
                step=step,
                attempt=1,
                kind=spec.kind,
                scalars=spec.scalars,
            )
            started = time.perf_counter()
            federation.ask(Question(header, spec.arrays), query.width)
            seconds.append(time.perf_counter() - started)

    return app


def matrix_contract() -> Contract:
    """Plain numbers x0, x1, … within -12 and 12."""
    numbers = {"table": "people", "kind": "numeric", "low": -12.0, "high": 12.0, "missing": 0.0, "block": "behaviour"}
    return Contract.model_validate(
        {
            "schema": "cohortium.contract/1",
            "name": "matrix",
            "purposes": ["benchmark"],
            "window": {"start": "2000-01-01", "end": "2000-01-02"},
            "tables": [{"name": "people", "kind": "customers", "customer": "row"}],
            "features": [{"name": name, "column": name, **numbers} for name in NAMES],
        }
    )


def door_plan(contract: Contract, number: int) -> Plan:
    """A cheap plan, distinct by number, so that many fit into a lifetime budget."""
    return parse_plan(
        {
            "schema": "cohortium.plan/1",
            "name": f"door-{number}",
            "purpose": "benchmark",
            "lawful_basis": "legitimate_interests",
            "regions": ["simulation"],
            "contract": contract.digest,
            "expires": "2099-12-31",
            "epsilon": 0.1,
            "delta": 1e-6,
            "segments": {"k": CLUSTERS, "scale": "bounds"},
            "shares": {"marginals": 7, "clustering": 93, "profiles": 0, "rfm": 0},
        }
    )


def median_of(seconds: Sequence[float]) -> float:
    """The median round, warm-up left out."""
    return statistics.median(seconds[WARM_UP:])


def words_client() -> ClientApp:
    """Institutions that add one to every word they get."""
    app = ClientApp()

    @app.query("words")
    def words(message: Message, context: Context) -> Message:
        received = from_array(message.content.array_records["answer"]["total"], np.int64, (WORDS,))
        return Message(RecordDict({"answer": to_record({"total": received + 1})}), reply_to=message)

    return app


def words_server(rounds: int, seconds: list[float]) -> ServerApp:
    """A coordinator that sends words to everybody and adds up what comes back; notes the seconds of each round."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        while len(nodes := list(grid.get_node_ids())) < INSTITUTIONS:
            time.sleep(0.1)
        for number in range(WARM_UP + rounds):
            started = time.perf_counter()
            content = RecordDict({"answer": to_record({"total": np.full(WORDS, number, dtype=np.int64)})})
            replies = grid.send_and_receive([Message(content, node, "query.words") for node in nodes])
            total = np.sum([answer_of(reply, WORDS) for reply in replies], axis=0)
            seconds.append(time.perf_counter() - started)
            if not (total == INSTITUTIONS * (number + 1)).all():
                raise SystemExit("the words that came back are wrong")

    return app


def seconds_in_process(rounds: int) -> float:
    """Seconds a round of words on the in-process grid."""
    seconds: list[float] = []
    run_in_process(words_server(rounds, seconds), words_client(), nodes=INSTITUTIONS)
    return median_of(seconds)


def seconds_on_ray(rounds: int) -> float:
    """Seconds a round of words on Ray, in this interpreter."""
    seconds: list[float] = []
    run_on_ray(words_server(rounds, seconds), words_client(), nodes=INSTITUTIONS)
    return median_of(seconds)


def seconds_on_ray_of(python: str, rounds: int) -> float:
    """Seconds a round of words on Ray, in another interpreter."""
    command = [python, str(Path(__file__).resolve()), "--ray-alone", "--rounds", str(rounds)]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    line = next(line for line in reversed(finished.stdout.splitlines()) if line.startswith("{"))
    return float(json.loads(line)["seconds_per_round"])


def ray_interpreter() -> str:
    """The interpreter of `.venv-ray`, which is made when it is not there."""
    folder = REPOSITORY / ".venv-ray"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "-e", f"{REPOSITORY}[ray]"], check=True)
    return str(python)


def measure_words(rounds: int, ray_python: str | None) -> dict[str, Any]:
    """Seconds a round of words on both engines."""
    if ray_python is None and find_spec("ray") is not None:
        ray = seconds_on_ray(rounds)
    else:
        ray = seconds_on_ray_of(ray_python or ray_interpreter(), rounds)
    seconds = {"ray": ray, "grid": seconds_in_process(rounds)}
    ratio = seconds["ray"] / seconds["grid"]
    return {"seconds_per_round": seconds, "times_faster_than_ray": ratio, "met": ratio >= LEAST_TIMES_FASTER_THAN_RAY}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="What the in-process grid costs.")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures to this file")
    parser.add_argument("--rounds", type=int, default=30, help="measured rounds of each kind (30)")
    parser.add_argument("--ray-python", metavar="PATH", help="an interpreter that has cohortium[ray]")
    parser.add_argument("--ray-alone", action="store_true", help="print the seconds of a round on Ray, nothing else")
    return parser.parse_args()


def report(k_means: dict[str, Any], door: dict[str, Any], words: dict[str, Any]) -> None:
    """The figures in two lines."""
    step, round_ = k_means["seconds_per_step"], words["seconds_per_round"]
    print(
        f"k-means step: loop {step['loop'] * 1e3:.2f} ms, in-process grid {step['grid'] * 1e3:.2f} ms: "
        f"{k_means['times_the_loop']:.3f} times the loop (target at most {MOST_TIMES_THE_LOOP})"
    )
    print(f"the same step through the full door: {door['seconds_per_step'] * 1e3:.2f} ms")
    print(
        f"{INSTITUTIONS} x {WORDS} words: Ray {round_['ray'] * 1e3:.2f} ms, in-process grid {round_['grid'] * 1e3:.2f} "
        f"ms: {words['times_faster_than_ray']:.1f} times faster (target at least {LEAST_TIMES_FASTER_THAN_RAY:g})"
    )


def main() -> int:
    """Measures, reports, and says by the exit code whether the targets were met."""
    options = arguments()
    if options.ray_alone:
        print(json.dumps({"seconds_per_round": seconds_on_ray(options.rounds)}))
        return 0
    k_means = measure_k_means(options.rounds)
    door = measure_door(max(options.rounds // 3, 2))
    words = measure_words(options.rounds, options.ray_python)
    report(k_means, door, words)
    if options.json is not None:
        options.json.write_text(
            json.dumps({"k_means_step": k_means, "full_door": door, "words": words}, indent=2) + "\n"
        )
    return 0 if k_means["met"] and words["met"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
