"""Many institutions on one machine with the very apps that run deployed; data sets, baselines, estimators.

May import every room but `cli`. Un-noised data may be compared with results here and only here, marked as such.
Must never happen here: a second implementation of anything that a deployed federation runs.
"""

from cohortium.simulations.estimator import FederatedKMeans
from cohortium.simulations.fairness import FairnessAudit, GroupThresholds, fairness_audit, group_thresholds_of
from cohortium.simulations.local_federation import PrivacySpent
from cohortium.simulations.lookalike import FederatedLookalike

__all__ = [
    "FairnessAudit",
    "FederatedKMeans",
    "FederatedLookalike",
    "GroupThresholds",
    "PrivacySpent",
    "fairness_audit",
    "group_thresholds_of",
]
