"""What a secure sum costs all parties and the coordinator together, against Flower's SecAgg+, in processor time.

make bench TARGET=secure-sum ARGS="[--json OUT] [--shape 10|100] [--dropped 0 2] [--repetitions 3]"

1. 10 parties x 1,000,000 words and 100 parties x 10,000 words, everybody a neighbour of everybody, the same threshold
   on both sides, without drop-outs and with parties that drop out after sharing keys. Target: at most half of
   SecAgg+'s processor time.
2. The masking stage of one party (HKDF, ChaCha20, addition, for all peers and its own mask) against ChaCha20 alone
   writing as many bytes. Target: at most 1.3 times, at a million words.

What is counted of ours: every call of a participant and of the aggregator from the first message of a run to the sum,
parsing and writing messages included, and sharing keys for the next sum, which is part of the last wave; a participant
is made anew from its store, kept in memory, for every message.

What is counted of Flower's (legacy API, its own unmodified functions, no transport): at the parties the four stage
functions of `secaggplus_mod` alone; at the coordinator the four stage methods of `SecAggPlusWorkflow` without the time
inside the grid. Its records, messages, serialisation, context and the client's training are not counted. Its secret
sharing is reported apart, being minutes at 100 parties, where each figure is of one repetition.

Exits with 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common import Code, FitIns, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.compat.common import recorddict_compat
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.workflow.secure_aggregation import secaggplus_workflow
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from cohortium.privacy.secure_sum import Aggregator, Participant, SumRun
from cohortium.privacy.secure_sum.masking import add_masks, pair_key, self_key

RUN = "ab" * 16
FEDERATION, PLAN, QUESTION = ("sha256:" + digit * 64 for digit in "123")
COLLUDERS = 1
SHAPES = ((10, 1_000_000, 8), (100, 10_000, 90))
"""Parties, words, least number of contributions."""
DROPPED = (0, 2)
MOST_OF_SECAGG = 0.5
MOST_TIMES_THE_CIPHER = 1.3
MASK_ROUNDS = 9

secaggplus_mod = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")


@dataclass
class Spent:
    """Processor seconds by side and stage, and bytes to and from one party by wave."""

    seconds: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    sent: dict[str, tuple[int, int]] = field(default_factory=dict)

    @contextmanager
    def on(self, side: str, stage: str) -> Iterator[None]:
        """Adds what the block takes."""
        started = time.process_time()
        yield
        self.seconds[side, stage] += time.process_time() - started

    @property
    def total(self) -> float:
        """All sides and stages."""
        return sum(self.seconds.values())

    def by_stage(self) -> dict[str, float]:
        """Both sides of each stage together."""
        stages: dict[str, float] = defaultdict(float)
        for (_, stage), seconds in self.seconds.items():
            stages[stage] += seconds
        return dict(stages)


class MemoryStore:
    """Values written once, in memory, as Flower's context is."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, int, str], bytes] = {}

    def keep(self, run: str, number: int, item: str, value: bytes) -> bytes:
        """Store unless stored."""
        return self._values.setdefault((run, number, item), value)

    def find(self, run: str, number: int, item: str) -> bytes | None:
        """What is stored."""
        return self._values.get((run, number, item))

    def erase(self, run: str, before: int, items: tuple[str, ...]) -> None:
        """Erase these items of the rounds below."""
        for key in [key for key in self._values if key[0] == run and key[1] < before and key[2] in items]:
            del self._values[key]


class Ours:
    """One secure sum of this package, every call charged to its side and stage.

    Args:
        vectors: of every party.
        contributions: t of the plan.
    """

    def __init__(self, vectors: list[NDArray[np.int64]], contributions: int) -> None:
        self._vectors = vectors
        self._identities = [Ed25519PrivateKey.generate() for _ in vectors]
        self._stores = [MemoryStore() for _ in vectors]
        public = {name(party): key.public_key().public_bytes_raw() for party, key in enumerate(self._identities)}
        self._run = SumRun(FEDERATION, PLAN, RUN, public, contributions, COLLUDERS)
        self._aggregator = Aggregator(self._run, MemoryStore())
        self.threshold = self._run.terms(len(vectors)).threshold
        self.spent = Spent()

    def run(self, dropped: int) -> NDArray[np.int64]:
        """The sum, when that many parties answer nothing after they have shared keys."""
        everybody = range(len(self._vectors))
        survivors = everybody[dropped:]
        take = self._aggregator
        self._wave("introduction", everybody, lambda _: b"", lambda p, _: p.introduce(), lambda _, r: take.introduce(r))
        with self.spent.on("coordinator", "introduction"):
            take.close_roster()
        with self.spent.on("coordinator", "share"):
            request = take.share_request(0)
        self._wave(
            "share",
            everybody,
            lambda _: request,
            lambda p, r: p.share(r),
            lambda party, r: take.take_offer(r, party, 0),
        )
        with self.spent.on("coordinator", "input"):
            attempt = take.begin(0, QUESTION)
        for party in survivors:
            self._input(attempt, party)
        with self.spent.on("coordinator", "consent"):
            chosen = attempt.choose_survivors()
        if attempt.waves == 3:
            self._wave("consent", survivors, lambda _: chosen, lambda p, r: p.consent(r), attempt.take_consent)
        with self.spent.on("coordinator", "unmask"):
            asked = attempt.unmask_request()
        self._wave("unmask", survivors, lambda _: asked, lambda p, r: p.unmask(r), attempt.take_opened)
        with self.spent.on("coordinator", "sum"):
            return attempt.total()

    def _participant(self, party: int) -> Participant:
        return Participant(self._run, name(party), self._identities[party], self._stores[party])

    def _wave(
        self,
        stage: str,
        parties: Iterable[int],
        ask: Callable[[int], bytes],
        answer: Callable[[Participant, bytes], bytes],
        take: Callable[[int, bytes], object],
    ) -> None:
        for party in parties:
            request = ask(party)
            with self.spent.on("parties", stage):
                reply = answer(self._participant(party), request)
            with self.spent.on("coordinator", stage):
                take(party, reply)
            self.spent.sent[stage] = (len(request), len(reply))

    def _input(self, attempt: Any, party: int) -> None:
        with self.spent.on("coordinator", "input"):
            request = attempt.input_request(party)
        with self.spent.on("parties", "input"):
            masked, note = self._participant(party).begin(request, QUESTION).apply(self._vectors[party])
        with self.spent.on("coordinator", "input"):
            attempt.take_vector(party, masked, note)
        self.spent.sent["input"] = (len(request), masked.nbytes + len(note))


def name(party: int) -> str:
    """A name that sorts by number."""
    return f"institution {party:03d}"


class FlowerGrid:
    """Delivers SecAgg+'s messages to `secaggplus_mod` in this process; dropped nodes stop after sharing keys.

    Args:
        vectors: of every node.
        dropped: how many do not answer from the third wave on.
    """

    def __init__(self, vectors: list[NDArray[np.float32]], dropped: int) -> None:
        self._vectors = dict(enumerate(vectors, start=1))
        self._contexts = {node: Context(1, node, {}, RecordDict(), {}) for node in self._vectors}
        self._dropped = set(list(self._vectors)[:dropped])
        self._wave = 0
        self.inside = 0.0

    def send_and_receive(self, messages: list[Message], *, timeout: float | None = None) -> list[Message]:
        """The replies of the nodes that are still there."""
        started = time.process_time()
        silent = self._dropped if self._wave >= 2 else set()
        replies = [self._answer(message) for message in messages if message.metadata.dst_node_id not in silent]
        self._wave += 1
        self.inside += time.process_time() - started
        return replies

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        content = RecordDict(dict(message.content.items()))
        for key, record in message.content.config_records.items():
            content.config_records[key] = ConfigRecord(dict(record))  # the mod takes entries out
        delivered = Message(content, node, message.metadata.message_type, group_id=message.metadata.group_id)
        reply: Message = secaggplus_mod.secaggplus_mod(delivered, self._contexts[node], self._train)
        reply.metadata.__dict__["_src_node_id"] = node
        return reply

    def _train(self, message: Message, context: Context) -> Message:
        parameters = ndarrays_to_parameters([self._vectors[message.metadata.dst_node_id]])
        result = FitRes(Status(Code.OK, ""), parameters, 1, {})
        return Message(recorddict_compat.fitres_to_recorddict(result, False), reply_to=message)


class FlowerStrategy:
    """Asks everybody, and keeps what comes out."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self.outcome: NDArray[Any] | None = None

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> list[tuple[Any, FitIns]]:
        """No parameters to send: what is measured is the way back."""
        nothing = ndarrays_to_parameters([])
        return [(SimpleNamespace(node_id=node), FitIns(nothing, {})) for node in range(1, self._nodes + 1)]

    def aggregate_fit(self, server_round: int, results: list[tuple[Any, FitRes]], failures: Any) -> tuple[None, Any]:
        """Every result holds the average."""
        self.outcome = parameters_to_ndarrays(results[0][1].parameters)[0]
        return None, {}


FLOWER_STAGES = {
    "_setup": "introduction",
    "_share_keys": "share",
    "_collect_masked_vectors": "input",
    "_unmask": "unmask",
}
SHARING = "secret sharing"


def flower_sum(vectors: list[NDArray[np.float32]], threshold: int, dropped: int) -> tuple[Spent, NDArray[Any]]:
    """One SecAgg+ aggregation by Flower's own functions: what it took, and the average of the survivors."""
    spent = Spent()
    strategy: Any = FlowerStrategy(len(vectors))
    grid: Any = FlowerGrid(vectors, dropped)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    records = RecordDict({"config": ConfigRecord({"current_round": 1})})
    nothing = recorddict_compat.parameters_to_arrayrecord(ndarrays_to_parameters([]), False)
    records.array_records["parameters"] = nothing
    manager: Any = SimpleNamespace(num_available=lambda: len(vectors))
    context = LegacyContext(Context(1, 1, {}, records, {}), strategy=strategy, client_manager=manager)
    flow = secaggplus_workflow.SecAggPlusWorkflow(len(vectors), threshold, max_weight=1.0)
    state = secaggplus_workflow.WorkflowState()
    steps = (flow.setup_stage, flow.share_keys_stage, flow.collect_masked_vectors_stage, flow.unmask_stage)
    with ExitStack() as stack:
        for function, stage in FLOWER_STAGES.items():
            stack.enter_context(charged(spent, secaggplus_mod, function, "parties", stage))
        stack.enter_context(charged(spent, secaggplus_mod, "create_shares", "parties", SHARING))
        stack.enter_context(charged(spent, secaggplus_workflow, "combine_shares", "coordinator", SHARING))
        for step, stage in zip(steps, FLOWER_STAGES.values(), strict=True):
            inside = grid.inside
            with spent.on("coordinator", stage):
                if not step(grid, context, state):
                    raise SystemExit("SecAgg+ gave up")
            spent.seconds["coordinator", stage] -= grid.inside - inside
    spent.seconds["parties", "share"] -= spent.seconds["parties", SHARING]
    spent.seconds["coordinator", "unmask"] -= spent.seconds["coordinator", SHARING]
    if strategy.outcome is None:
        raise SystemExit("SecAgg+ came to no result")
    return spent, strategy.outcome


def charged(spent: Spent, module: Any, function: str, side: str, stage: str) -> Any:
    """A context in which the time of one of Flower's functions is charged to a side and stage."""
    original = getattr(module, function)

    def call(*arguments: Any) -> Any:
        with spent.on(side, stage):
            return original(*arguments)

    return patch.object(module, function, call)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its processor seconds."""
    started = time.process_time()
    result = call()
    return result, time.process_time() - started


def measure_sum(parties: int, width: int, contributions: int, dropped: int, repetitions: int) -> Any:
    """The medians of both protocols, in alternating repetitions; both results are checked."""
    rng = np.random.default_rng(parties)
    floats = [rng.uniform(-1, 1, width).astype(np.float32) for _ in range(parties)]
    integers = [(vector * 2**40).astype(np.int64) for vector in floats]
    ours: list[Spent] = []
    theirs: list[Spent] = []
    threshold = 0
    for _ in range(repetitions):
        sums = Ours(integers, contributions)
        threshold = sums.threshold
        if not np.array_equal(sums.run(dropped), np.sum(integers[dropped:], axis=0)):
            raise SystemExit("the secure sum is wrong")
        ours.append(sums.spent)
        spent, average = flower_sum(floats, threshold, dropped)
        if not np.allclose(average, np.mean(floats[dropped:], axis=0), atol=1e-4):
            raise SystemExit("the average of SecAgg+ is wrong")
        theirs.append(spent)
    mine, other = (sorted(many, key=lambda one: one.total)[len(many) // 2] for many in (ours, theirs))
    ratio = mine.total / other.total
    return {
        "parties": parties,
        "words": width,
        "threshold": threshold,
        "dropped": dropped,
        "cohortium": mine.total,
        "cohortium_by_stage": mine.by_stage(),
        "bytes_to_and_from_a_party": mine.sent,
        "secagg": other.total,
        "secagg_by_stage": other.by_stage(),
        "ratio": ratio,
        "ratio_without_their_secret_sharing": mine.total / (other.total - other.by_stage()[SHARING]),
        "met": ratio <= MOST_OF_SECAGG,
    }


def stage_masks(total: NDArray[np.uint64], peers: int) -> None:
    """The masking stage of one party, key agreement left out."""
    secret = bytes(31) + b"\1"
    pairs = [pair_key(secret, FEDERATION, QUESTION, 0, peer, peers) for peer in range(peers)]
    add_masks(total, [self_key(secret, FEDERATION, QUESTION, 0, peers)], pairs)


def bare_cipher(make: Callable[[], CipherContext], size: int, chunk: int) -> Callable[[], None]:
    """A cipher that writes `size` bytes over and over into one buffer of `chunk` bytes."""
    zeros, buffer = memoryview(bytes(chunk)), bytearray(chunk + 15)

    def call() -> None:
        stream = make()
        for start in range(0, size, chunk):
            stream.update_into(zeros[: min(chunk, size - start)], buffer)

    return call


def chacha20() -> CipherContext:
    """A stream of its own key."""
    return Cipher(algorithms.ChaCha20(os.urandom(32), bytes(16)), mode=None).encryptor()


def aes_256_ctr() -> CipherContext:
    """A stream of its own key."""
    return Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()


def measure_masks(parties: int, width: int) -> dict[str, Any]:
    """Median processor seconds of all masks of one party, in alternating rounds; a bare cipher at its best chunk."""
    total, size = np.zeros(width, dtype=np.uint64), 8 * width
    calls: dict[str, Callable[[], object]] = {"stage": lambda: stage_masks(total, parties - 1)}
    for cipher in (chacha20, aes_256_ctr):
        for chunk in [2**power for power in range(14, 20)] + [size]:
            calls[f"{cipher.__name__} {chunk}"] = repeated(bare_cipher(cipher, size, chunk), parties)
    calls["flower"] = repeated(lambda: pseudo_rand_gen(os.urandom(32), 2**32, [(width,)]), parties)
    rounds = [{key: timed(call)[1] for key, call in calls.items()} for _ in range(MASK_ROUNDS)]
    seconds = {key: statistics.median(one[key] for one in rounds) for key in calls}
    best = {
        cipher: min(value for key, value in seconds.items() if key.startswith(cipher))
        for cipher in ("stage", "chacha20", "aes_256_ctr", "flower")
    }
    return {"parties": parties, "words": width, "seconds": best, "ratio": best["stage"] / best["chacha20"]}


def repeated(call: Callable[[], object], times: int) -> Callable[[], None]:
    """The call so many times."""

    def all_of_them() -> None:
        for _ in range(times):
            call()

    return all_of_them


def report_sum(figures: dict[str, Any]) -> None:
    """The figures of one shape in a few lines."""
    stages = ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in figures["cohortium_by_stage"].items())
    other = ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in figures["secagg_by_stage"].items())
    sizes = ", ".join(f"{wave} {down}/{up}" for wave, (down, up) in figures["bytes_to_and_from_a_party"].items())
    print(
        f"{figures['parties']} parties x {figures['words']:,} words, T = {figures['threshold']}, "
        f"{figures['dropped']} dropped: cohortium {figures['cohortium']:.2f} s ({stages}); "
        f"SecAgg+ {figures['secagg']:.2f} s ({other}): ratio {figures['ratio']:.3f} (at most {MOST_OF_SECAGG}), "
        f"{figures['ratio_without_their_secret_sharing']:.3f} without SecAgg+'s secret sharing"
    )
    print(f"  bytes to/from a party: {sizes}", flush=True)


def report_masks(figures: dict[str, Any]) -> None:
    """The figures in one line."""
    seconds = figures["seconds"]
    print(
        f"masks of a party among {figures['parties']} x {figures['words']:,} words: "
        f"{seconds['stage'] * 1e3:.2f} ms, ChaCha20 alone {seconds['chacha20'] * 1e3:.2f} ms: "
        f"{figures['ratio']:.3f} times (at most {MOST_TIMES_THE_CIPHER} at a million words); "
        f"AES-256-CTR {seconds['aes_256_ctr'] * 1e3:.2f} ms, SecAgg+'s generator {seconds['flower'] * 1e3:.2f} ms",
        flush=True,
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="What a secure sum costs against Flower's SecAgg+.")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures to this file")
    parser.add_argument("--repetitions", type=int, default=3, help="of the sums of 10 parties (3)")
    parser.add_argument("--dropped", type=int, nargs="*", default=list(DROPPED), help="parties that drop out (0 2)")
    parser.add_argument("--shape", type=int, choices=(10, 100), help="only the sums of that many parties")
    return parser.parse_args()


def main() -> int:
    """Measures, reports, and says by the exit code whether the targets were met."""
    options = arguments()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    shapes = [shape for shape in SHAPES if options.shape in (None, shape[0])]
    masks = [measure_masks(parties, width) for parties, width, _ in shapes]
    for figures in masks:
        report_masks(figures)
    sums = []
    for parties, width, contributions in shapes:
        for dropped in options.dropped:
            repetitions = options.repetitions if parties <= 10 else 1
            sums.append(measure_sum(parties, width, contributions, dropped, repetitions))
            report_sum(sums[-1])
    if options.json is not None:
        options.json.write_text(json.dumps({"masks": masks, "sums": sums}, indent=2) + "\n", encoding="utf-8")
    cheap = all(one["ratio"] <= MOST_TIMES_THE_CIPHER for one in masks if one["words"] >= 1_000_000)
    return 0 if cheap and all(one["met"] for one in sums) else 1


if __name__ == "__main__":
    sys.exit(main())
