"""`make fuzz`: every target for a while, by mutations of hypothesis, and by coverage where atheris is installed.

    python fuzz/run.py [--seconds 60] [--target NAME ...]

Ends with 1, and says which bytes, when there is a finding.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

if "--atheris" in sys.argv:
    import atheris

    with atheris.instrument_imports(include=["cohortium"]):
        from targets import TARGETS, Target
else:
    from targets import TARGETS, Target  # beside this file

_PIECES = (
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\\u0061",
    b"-0",
    b"1e999",
    b"null",
    b"9" * 17,
    b"\xff",
    b"\0",
    b" " * 9,
    b"=",
    b"\n",
    b"\r",
)


def _mutated(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """A seed with a few pieces replaced, doubled, cut out or put in."""

    @st.composite
    def mutate(draw: st.DrawFn) -> bytes:
        data = draw(st.sampled_from(seeds))
        for _ in range(draw(st.integers(1, 6))):
            at = draw(st.integers(0, len(data)))
            upto = min(len(data), at + draw(st.integers(0, 80)))
            piece = draw(st.sampled_from(_PIECES) | st.binary(max_size=8))
            kept, after = draw(st.sampled_from([(at, at), (at, upto), (upto, at), (at, min(at + 1, len(data)))]))
            data = data[:kept] + piece + data[after:]
        return data

    return mutate()


def _by_mutation(target: Target, seconds: float) -> tuple[int, int]:
    """How many were tried and how many of them accepted."""
    tried = accepted = 0
    seeds, until = target.seeds(), time.monotonic() + seconds
    for seed in seeds:
        if not target.feed(seed):
            sys.stdout.write("    a seed that is not accepted\n")
    while time.monotonic() < until:

        @settings(
            max_examples=500,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(data=_mutated(seeds))
        def once(data: bytes) -> None:
            nonlocal tried, accepted
            if time.monotonic() < until:
                tried += 1
                accepted += target.feed(data)

        once()
    return tried, accepted


def _by_coverage(name: str, seconds: int) -> int:
    """In a process of its own: libFuzzer ends its process."""
    words = [sys.executable, str(Path(__file__)), "--atheris", name, "--seconds", str(seconds)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stdout.write(done.stdout[-4000:] + done.stderr[-4000:])
    return done.returncode


def _atheris(name: str, seconds: int) -> None:
    target = TARGETS[name]
    seeds = target.seeds()

    def once(data: bytes) -> None:
        target.feed(data)

    def change(data: bytes, most: int, seed: int) -> bytes:
        start = seeds[seed // 4 % len(seeds)] if len(data) < 4 or seed % 4 == 0 else data
        return bytes(atheris.Mutate(start, most))[:most]

    words = [
        sys.argv[0],
        f"-max_total_time={seconds}",
        "-max_len=65536",
        "-rss_limit_mb=4096",
        "-artifact_prefix=/dev/null",
    ]
    atheris.Setup(words, once, custom_mutator=change)
    atheris.Fuzz()


def main() -> int:
    """Run the targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together, by each way")
    parser.add_argument("--target", nargs="*", choices=sorted(TARGETS), default=sorted(TARGETS))
    parser.add_argument("--atheris", choices=sorted(TARGETS), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.atheris:
        _atheris(chosen.atheris, chosen.seconds)
        return 0
    each = max(1.0, chosen.seconds / len(chosen.target))
    for name in chosen.target:
        tried, accepted = _by_mutation(TARGETS[name], each)
        sys.stdout.write(f"{name:20} {tried:8,} mutations, {accepted:,} accepted\n")
    if importlib.util.find_spec("atheris") is None:
        sys.stdout.write("atheris is not installed: fuzzing by coverage is SKIPPED\n")
        return 0
    failed = 0
    for name in chosen.target:
        found = bool(_by_coverage(name, round(each)))
        failed += found
        sys.stdout.write(f"{name:20} by coverage: {'FINDING' if found else 'nothing found'}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
