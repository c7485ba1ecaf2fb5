"""Words for segments: a name from a profile, and threshold rules from the coordinator's particles. Free of charge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cohortium.models.assignment import nearest_centre
from cohortium.models.scaler import Scaler

__all__ = ["segment_names", "threshold_rules"]

_WORDS, _MOST_WORDS = 2, 4
_NOTEWORTHY = 0.25  # distance from the average customer on the scale [-1, 1] from which on a feature is named
_LEAF_SHARE = 0.01
_RULES_PER_SEGMENT = 2
_OWN_SHARE = 0.6  # a rule is given only if at least this share of what it selects belongs to the segment


def segment_names(centres: NDArray[np.float64], sizes: Sequence[float], features: Sequence[str]) -> list[str]:
    """A name for every centre of the scaled space: the features in which it differs most from the average.

    Args:
        centres: shape (k, d).
        sizes: noisy people per centre; negative ones count as none.
        features: d names.

    Returns:
        k distinct names such as "high monetary, low recency": two features, up to four where two segments would share a
        name, a number behind where four do not tell them apart; "average" where nothing stands out.
    """
    weights = np.maximum(np.asarray(sizes, dtype=np.float64), 0.0)
    average = np.average(centres, axis=0, weights=weights) if weights.sum() > 0 else centres.mean(axis=0)
    names = [""] * len(centres)
    for words in range(_WORDS, _MOST_WORDS + 1):
        taken = Counter(names)
        for index, row in enumerate(centres - average):
            if words == _WORDS or taken[names[index]] > 1:
                names[index] = _name(row, features, words)
    return _numbered(names)


def threshold_rules(
    particles: NDArray[np.float64], centres: NDArray[np.float64], scaler: Scaler
) -> list[tuple[str, ...]]:
    """For every centre, rules such as "recency <= 12 and frequency > 4" that describe most of its customers.

    A shallow decision tree is fitted to the particles, which are made of released numbers; rules are its leaves, with
    thresholds in the contract's units, the leaf with most particles first.
    """
    from sklearn.tree import DecisionTreeClassifier  # noqa: PLC0415 - slow to import, and a node never gets here

    rules: list[list[tuple[int, str]]] = [[] for _ in centres]
    segment = nearest_centre(particles, centres)
    depth = int(np.ceil(np.log2(max(len(centres), 2)))) + 1
    model = DecisionTreeClassifier(max_depth=depth, min_samples_leaf=_LEAF_SHARE, random_state=0)
    tree = model.fit(particles, segment).tree_
    for leaf, path in _leaves(tree, 0, ()):
        share = tree.value[leaf][0] / tree.value[leaf][0].sum()
        winner = int(model.classes_[int(np.argmax(share))])
        if path and share.max() >= _OWN_SHARE:
            rules[winner].append((int(tree.n_node_samples[leaf]), _rule(path, scaler)))
    return [tuple(text for _, text in sorted(own, key=lambda r: -r[0])[:_RULES_PER_SEGMENT]) for own in rules]


_Step = tuple[int, bool, float]


def _leaves(tree: object, node: int, path: tuple[_Step, ...]) -> list[tuple[int, tuple[_Step, ...]]]:
    """Every leaf with its path of (feature, whether above, threshold)."""
    left, right = tree.children_left[node], tree.children_right[node]  # type: ignore[attr-defined] # scikit-learn has no types
    if left == right:
        return [(node, path)]
    feature, threshold = int(tree.feature[node]), float(tree.threshold[node])  # type: ignore[attr-defined] # likewise
    below = _leaves(tree, int(left), (*path, (feature, False, threshold)))
    return below + _leaves(tree, int(right), (*path, (feature, True, threshold)))


def _rule(path: tuple[_Step, ...], scaler: Scaler) -> str:
    """The path with one condition per feature and side."""
    ends: dict[tuple[int, bool], float] = {}
    for feature, above, threshold in path:
        known = ends.get((feature, above))
        tighter = threshold if known is None else (max(known, threshold) if above else min(known, threshold))
        ends[(feature, above)] = tighter
    parts = []
    for feature, above in sorted(ends):
        point = np.zeros((1, len(scaler.features)))
        point[0, feature] = ends[(feature, above)]
        value = float(scaler.inverse(point)[0, feature])
        parts.append(f"{scaler.features[feature]} {'>' if above else '<='} {value:.3g}")
    return " and ".join(parts)


def _name(difference: NDArray[np.float64], features: Sequence[str], words: int) -> str:
    order = np.argsort(-np.abs(difference), kind="stable")[:words]
    parts = [
        f"{'high' if difference[i] > 0 else 'low'} {features[i]}" for i in order if abs(difference[i]) >= _NOTEWORTHY
    ]
    return ", ".join(parts) if parts else "average"


def _numbered(names: Sequence[str]) -> list[str]:
    """The names, those that still repeat with a number behind."""
    total, seen = Counter(names), Counter[str]()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if total[name] == 1 else f"{name} ({seen[name]})")
    return result
