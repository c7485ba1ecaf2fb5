"""Membership inference by scores: how well a released result tells the people behind it from others like them.

Sanity, never proof: one weak attack that fails says nothing about stronger ones. One that succeeds would say much.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.stats import norm, rankdata

from cohortium.privacy.audit.bounds import share_lower, share_upper
from cohortium.study.errors import Defect

__all__ = ["MembershipFinding", "membership_inference"]

FALSE_POSITIVES = 0.001
_ERROR = 0.05


class MembershipFinding(BaseModel):
    """How well scores tell members from others, with 95% intervals; docs/privacy-audit.md explains every field."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attack: str
    members: int
    others: int
    auc: float
    auc_low: float
    auc_high: float
    false_positive_rate: float
    true_positive_rate: float
    true_positive_low: float
    true_positive_high: float


def membership_inference(attack: str, members: NDArray[np.float64], others: NDArray[np.float64]) -> MembershipFinding:
    """AUC, and the true-positive rate at a false-positive rate of at most 0.1%.

    Intervals of the AUC by DeLong's variance (DeLong, DeLong, Clarke-Pearson 1988), of the rate by Clopper-Pearson
    given the threshold; the threshold's own uncertainty is not in it.

    Args:
        attack: what the scores are.
        members, others: scores, large for membership; at least 1,000 others, so that 0.1% of them is somebody.

    Raises:
        Defect: too few people.
    """
    if len(members) < 2 or len(others) < 1 / FALSE_POSITIVES:
        raise Defect("membership inference: at least 2 members and 1,000 others are needed")
    auc, spread = _auc(members, others)
    allowed = math.floor(FALSE_POSITIVES * len(others))
    threshold = np.sort(others)[::-1][allowed]  # strictly above it: at most `allowed` others
    hits = int((members > threshold).sum())
    return MembershipFinding(
        attack=attack,
        members=len(members),
        others=len(others),
        auc=auc,
        auc_low=max(auc - spread, 0.0),
        auc_high=min(auc + spread, 1.0),
        false_positive_rate=float((others > threshold).mean()),
        true_positive_rate=hits / len(members),
        true_positive_low=share_lower(hits, len(members), _ERROR / 2),
        true_positive_high=share_upper(hits, len(members), _ERROR / 2),
    )


def _auc(members: NDArray[np.float64], others: NDArray[np.float64]) -> tuple[float, float]:
    """The area under the ROC curve, ties counted half, and half the width of its interval."""
    m, n = len(members), len(others)
    ranks = rankdata(np.concatenate([members, others]))
    placed_members = (ranks[:m] - rankdata(members)) / n  # share of others below each member
    placed_others = 1.0 - (ranks[m:] - rankdata(others)) / m
    variance = float(placed_members.var(ddof=1)) / m + float(placed_others.var(ddof=1)) / n
    return float(placed_members.mean()), float(norm.isf(_ERROR / 2)) * math.sqrt(variance)
