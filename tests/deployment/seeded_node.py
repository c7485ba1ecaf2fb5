"""A node whose noise comes from a seed, for tests alone: what `cohortium node start` runs, but for its source of bits.

    python seeded_node.py FOLDER PASSWORD_FILE SEED

The package has no such entry: a wheel holds nothing of tests/.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from cohortium.client.serving import at_work
from cohortium.governance.operations import log_as_json
from cohortium.study.keys import password_in


class SeededBits:
    """ChaCha20 keyed by a seed."""

    def __init__(self, seed: int) -> None:
        cipher = Cipher(algorithms.ChaCha20(seed.to_bytes(32, "big"), bytes(16)), mode=None)
        self._stream = cipher.encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype=np.uint64)


if __name__ == "__main__":
    log_as_json()
    with at_work(Path(sys.argv[1]), password_in(Path(sys.argv[2])), SeededBits(int(sys.argv[3]))) as serving:
        signal.signal(signal.SIGTERM, lambda *_: serving.stop())
        serving.run()
