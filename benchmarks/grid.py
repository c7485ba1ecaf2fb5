"""What the in-process grid costs: against a plain loop, and against Flower's Ray simulation.

    python benchmarks/grid.py [--json OUT] [--rounds N] [--ray-python PATH]

1. A k-means step of 8 institutions (12,500 customers, 8 features, 8 clusters): a plain loop over the institutions
   against the same step through `ServerApp`, `ClientApp` and the in-process grid, in alternating rounds of one run.
   No noise and no ledger on either side. Target: at most 1.3 times the loop.
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
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray

from cohortium.privacy.query import SCALE, Contribution, QuerySpec, bounded_total, quantise
from cohortium.privacy.table import CustomerTable
from cohortium.simulations.grid import run_in_process
from cohortium.simulations.ray_engine import run_on_ray
from cohortium.study.arrays import from_array, to_record

INSTITUTIONS = 8
CUSTOMERS = 12_500
FEATURES = 8
CLUSTERS = 8
WORDS = 100_000
WARM_UP = 3
MOST_TIMES_THE_LOOP = 1.3
LEAST_TIMES_FASTER_THAN_RAY = 8.0

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class KMeansStep:
    """Residuals to the nearest centre and a count, by cluster."""

    centres: NDArray[np.float64]
    radius: float = 4.0

    @property
    def width(self) -> int:
        """Words in the answer: for each cluster the residuals and the count."""
        return int(self.centres.size + len(self.centres))

    @property
    def bound_squared(self) -> int:
        """A clipped residual and a count."""
        return 2 * SCALE**2

    @property
    def words_per_person(self) -> int:
        """The words of one cluster."""
        return int(self.centres.shape[1]) + 1

    def contribute(self, people: CustomerTable) -> Contribution:
        """The person's residual and count at the columns of the nearest cluster."""
        distances = (self.centres**2).sum(axis=1) - 2.0 * people.values @ self.centres.T
        nearest = distances.argmin(axis=1)
        values = np.full((len(people), self.words_per_person), SCALE, dtype=np.int64)
        values[:, :-1] = quantise(people.values - self.centres[nearest], self.radius)
        columns = nearest[:, np.newaxis] * self.words_per_person + np.arange(self.words_per_person)
        return Contribution(columns, values)

    def spec(self) -> QuerySpec:
        """The query as it would travel."""
        return QuerySpec("benchmark_k_means_step", {"radius": self.radius}, {"centres": self.centres})

    def moved(self, total: NDArray[np.int64]) -> NDArray[np.float64]:
        """The centres after the step that these sums describe."""
        by_cluster = total.reshape(self.centres.shape[0], self.words_per_person) / SCALE
        moved: NDArray[np.float64] = self.centres + self.radius * by_cluster[:, :-1] / np.maximum(by_cluster[:, -1:], 1)
        return moved


def institution(seed: int) -> CustomerTable:
    """Made-up customers around as many centres as there are clusters."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(scale=3.0, size=(CLUSTERS, FEATURES))
    values = centres[rng.integers(CLUSTERS, size=CUSTOMERS)] + rng.normal(size=(CUSTOMERS, FEATURES))
    return CustomerTable(tuple(f"f{i}" for i in range(FEATURES)), values, np.arange(CUSTOMERS))


def loop_step(tables: Sequence[CustomerTable], step: KMeansStep) -> NDArray[np.int64]:
    """The step's sum over all institutions by a plain loop."""
    return np.sum([bounded_total(step, table) for table in tables], axis=0)


def grid_step(grid: Grid, step: KMeansStep) -> NDArray[np.int64]:
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
        total = bounded_total(KMeansStep(centres), tables[int(context.node_config["partition-id"])])
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
        step = KMeansStep(tables[0].values[:CLUSTERS].copy())
        for _ in range(WARM_UP + rounds):
            started = time.perf_counter()
            expected = loop_step(tables, step)
            between = time.perf_counter()
            total = grid_step(grid, step)
            through_grid.append(time.perf_counter() - between)
            loop.append(between - started)
            if not np.array_equal(total, expected):
                raise SystemExit("the grid's sum differs from the loop's")
            step = KMeansStep(step.moved(total))

    run_in_process(server, k_means_client(tables), nodes=INSTITUTIONS)
    seconds = {"loop": median_of(loop), "grid": median_of(through_grid)}
    ratio = seconds["grid"] / seconds["loop"]
    return {"seconds_per_step": seconds, "times_the_loop": ratio, "met": ratio <= MOST_TIMES_THE_LOOP}


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


def report(k_means: dict[str, Any], words: dict[str, Any]) -> None:
    """The figures in two lines."""
    step, round_ = k_means["seconds_per_step"], words["seconds_per_round"]
    print(
        f"k-means step: loop {step['loop'] * 1e3:.2f} ms, in-process grid {step['grid'] * 1e3:.2f} ms: "
        f"{k_means['times_the_loop']:.3f} times the loop (target at most {MOST_TIMES_THE_LOOP})"
    )
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
    words = measure_words(options.rounds, options.ray_python)
    report(k_means, words)
    if options.json is not None:
        options.json.write_text(json.dumps({"k_means_step": k_means, "words": words}, indent=2) + "\n")
    return 0 if k_means["met"] and words["met"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
