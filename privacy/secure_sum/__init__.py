"""Secure sums: the coordinator learns the sum of at least t institutions' vectors and nothing of a single one.

The protocol of Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017), with
double masking and signed survivor sets, on a complete graph. Bytes in, bytes out: no transport, no clock.
Must never happen here: a key that outlives its attempt, a mask from anything but a cryptographic stream, a log line.
"""

from cohortium.privacy.secure_sum.aggregator import Aggregator, SumFailed, SumRound
from cohortium.privacy.secure_sum.messages import ShareRequest, SumInput, SurvivorSet, UnmaskRequest
from cohortium.privacy.secure_sum.participant import Masking, Participant
from cohortium.privacy.secure_sum.state import OnceStore, SqlOnceStore
from cohortium.privacy.secure_sum.terms import (
    LEAST_CONTRIBUTIONS,
    MAX_PARTIES,
    SumRun,
    SumTerms,
    usual_contributions,
)

__all__ = [
    "LEAST_CONTRIBUTIONS",
    "MAX_PARTIES",
    "Aggregator",
    "Masking",
    "OnceStore",
    "Participant",
    "ShareRequest",
    "SqlOnceStore",
    "SumFailed",
    "SumInput",
    "SumRound",
    "SumRun",
    "SumTerms",
    "SurvivorSet",
    "UnmaskRequest",
    "usual_contributions",
]
