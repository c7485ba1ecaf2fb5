"""What one round of the encoder's training costs: CPU per row and memory, beside a loop that knows no privacy.

    python benchmarks/encoder.py [--rows 4096] [--repeats 31]

Measured in one process and one thread: the product's sum of clipped gradients (exact, float64, every person checked by
the door; from the customers' table, hiding of features included), a plain float32 step of torch on the same network and
rows with Adam, and Opacus's ghost clipping of the same without noise. A repetition takes a step of each, one after the
other, so that a machine that slows down slows all of them; ratios are taken within a repetition, and medians over
repetitions. Two networks: the plan's default on a census-like basis, and one of about 83,000 weights. Memory is what a
process grows by while it answers.

Targets: at most 2.2 times the CPU of the plain loop at 83,000 weights; at most 200 MB more memory at 4,096 rows. Exits
with 1 when one is missed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from cohortium.models.basis import UNIT, Basis, Block
from cohortium.models.encoder import Encoder, EncoderGradientQuery, encoder_shapes, on_weight_grid
from cohortium.models.rows import HASH, row_hashes
from cohortium.privacy.query import bounded_total
from cohortium.privacy.table import CustomerTable

MOST_CPU, MOST_MEMORY = 2.2, 200.0
WIDTH = 32
NETWORKS = {
    # name: (number of numeric features, levels of every category, hidden units)
    "default": (6, (9, 17, 8, 15, 7, 6, 3, 42), 64),
    "83k": (10, (20,) * 13, 128),
}


def make(name: str, rows: int) -> tuple[EncoderGradientQuery, CustomerTable]:
    """A network with small random weights, and customers drawn at random."""
    numbers, levels, hidden = NETWORKS[name]
    blocks = [Block(f"n{index}", low=0.0, high=1.0) for index in range(numbers)]
    blocks += [Block(f"c{index}", levels=count) for index, count in enumerate(levels)]
    basis, rng = Basis(tuple(blocks)), np.random.default_rng(0)
    first, second, third, fourth = (
        on_weight_grid(rng.normal(0, 0.1, shape)) for shape in encoder_shapes(basis, hidden, WIDTH)
    )
    encoder = Encoder(basis, np.ones(basis.width), (first, second, third, fourth))
    values = [rng.random(rows) for _ in range(numbers)] + [
        rng.integers(0, count, rows).astype(float) for count in levels
    ]
    keys = np.arange(rows)
    table = CustomerTable((*basis.features, HASH), np.column_stack([*values, row_hashes(keys)]), keys)
    return EncoderGradientQuery(encoder, 0, 77, 1.0), table


def cpu(steps: tuple[Callable[[], object], ...], repeats: int) -> np.ndarray:
    """CPU milliseconds of each step in each repetition, shape (repeats, steps)."""
    times = np.empty((repeats + 2, len(steps)))
    for repeat in range(len(times)):  # the first two warm up
        for index, step in enumerate(steps):
            start = time.process_time()
            step()
            times[repeat, index] = time.process_time() - start
    return times[2:] * 1e3


def torch_steps(
    query: EncoderGradientQuery, people: CustomerTable
) -> tuple[Callable[[], object], Callable[[], object]]:
    """A plain step with Adam, and one with Opacus's ghost clipping, of the same network on the same rows."""
    warnings.simplefilter("ignore")
    import torch  # noqa: PLC0415 - slow to import, and not needed by the process that measures memory
    from opacus.grad_sample import GradSampleModuleFastGradientClipping  # noqa: PLC0415
    from opacus.optimizers import DPOptimizerFastGradientClipping  # noqa: PLC0415
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415

    torch.set_num_threads(1)
    shapes = [matrix.shape for matrix in query.encoder.weights]
    basis = torch.tensor(query.encoder.basis.rows(people) / UNIT, dtype=torch.float32)
    hidden = torch.tensor(query._hidden(people))
    columns = torch.tensor(query.encoder.basis.feature_of)

    def network() -> nn.Module:
        sizes = [(rows - 1, width) for rows, width in shapes]
        return nn.Sequential(
            nn.Linear(*sizes[0]), nn.ReLU(), nn.Linear(*sizes[1]), nn.Linear(*sizes[2]), nn.ReLU(), nn.Linear(*sizes[3])
        )

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reduction = "mean"

        def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            loss = ((output - target) ** 2).sum(1) / 2
            return loss if self.reduction == "none" else loss.mean()

    def inputs() -> torch.Tensor:
        return torch.cat([basis * ~hidden[:, columns], hidden.float()], 1)

    plain, criterion = network(), Loss()
    adam = torch.optim.Adam(plain.parameters(), 1e-3)

    def plain_step() -> None:
        adam.zero_grad()
        criterion(plain(inputs()), basis).backward()
        adam.step()

    private = GradSampleModuleFastGradientClipping(network(), max_grad_norm=1.0, use_ghost_clipping=True)
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.Adam(private.parameters(), 1e-3),
        noise_multiplier=0.0,
        max_grad_norm=1.0,
        expected_batch_size=len(people),
    )
    ghost_loss = DPLossFastGradientClipping(private, optimizer, Loss(), loss_reduction="mean")

    def ghost_step() -> None:
        optimizer.zero_grad()
        ghost_loss(private(inputs()), basis).backward()
        optimizer.step()

    return plain_step, ghost_step


def memory(name: str, rows: int) -> float:
    """MB by which a process of its own grows while it answers once."""
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[3]); import encoder\n"
        "query, people = encoder.make(sys.argv[1], int(sys.argv[2]))\n"
        "encoder.bounded_total(query, people.take(slice(0, 256)))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "encoder.bounded_total(query, people)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)\n"
    )
    folder = os.path.dirname(os.path.abspath(__file__))
    done = subprocess.run(
        [sys.executable, "-c", code, name, str(rows), folder], check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=31)
    options = parser.parse_args()
    missed = False
    print(
        f"{'network':<8} {'weights':>7} {'plain ms':>9} {'Opacus ghost':>13} {'product':>9} {'ratio':>6} "
        f"{'80% of them':>14} {'more MB':>8}"
    )
    for name in NETWORKS:
        query, people = make(name, options.rows)
        steps = (*torch_steps(query, people), lambda query=query, people=people: bounded_total(query, people))
        times = cpu(steps, options.repeats)
        plain, _ghost, product = np.median(times, axis=0)
        ratios = times[:, 1:] / times[:, :1]
        ghost_ratio, ratio = np.median(ratios, axis=0)
        low, high = np.quantile(ratios[:, 1], (0.1, 0.9))
        grown = memory(name, options.rows)
        print(
            f"{name:<8} {query.width:>7} {plain:>9.1f} {ghost_ratio:>12.2f}x {product:>9.1f} {ratio:>5.2f}x "
            f"{low:>6.2f} to {high:.2f} {grown:>8.1f}",
            flush=True,
        )
        missed |= grown > MOST_MEMORY or (name == "83k" and ratio > MOST_CPU)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
