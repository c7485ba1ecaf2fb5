"""Run by the peer's own interpreter: diffprivlib's KMeans on a matrix, one cost per seed, as JSON on standard output.

python peer_diffprivlib.py MATRIX.npy K EPSILON SEEDS
"""

import json
import sys
import time
import warnings

import numpy as np
from diffprivlib.models import KMeans

X = np.load(sys.argv[1])
k, epsilon, seeds = int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
warnings.simplefilter("ignore")
start = time.perf_counter()
costs = []
for seed in range(seeds):
    bounds = (np.full(X.shape[1], -1.0), np.full(X.shape[1], 1.0))
    centres = KMeans(k, epsilon=epsilon, bounds=bounds, random_state=seed).fit(X).cluster_centers_
    squares = (X * X).sum(axis=1)[:, None] - 2 * X @ centres.T + (centres * centres).sum(axis=1)
    costs.append(float(np.maximum(squares, 0).min(axis=1).sum()))
print(json.dumps({"costs": costs, "seconds": time.perf_counter() - start}))
