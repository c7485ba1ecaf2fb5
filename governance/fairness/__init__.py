"""The statistics of the bias audit: noisy tables of people by group in, a result with intervals and verdicts out.

May import `models`, `privacy` and `study`.
Must never happen here: a metric from a table that does not exist, a pass that is not shown, a random number.
"""

from cohortium.governance.fairness.answers import judge_answers
from cohortium.governance.fairness.audit import Audited, audit_lookalike, audit_segments
from cohortium.governance.fairness.comparison import (
    MITIGATION_SCHEMA,
    Comparison,
    Cost,
    Figure,
    Pair,
    compare,
    lift_cost,
    segment_costs,
)
from cohortium.governance.fairness.mitigation import Cutoff, Mitigation, group_thresholds
from cohortium.governance.fairness.result import (
    FAIRNESS_SCHEMA,
    THRESHOLDS,
    FairnessResult,
    Metric,
    NotJudged,
    Reversal,
    Threshold,
    load_fairness,
    thresholds_with,
)
from cohortium.governance.fairness.tables import (
    CHOSEN,
    OTHERS,
    RESPONSES,
    REST,
    SEEDS,
    STABILITY,
    UPLIFT,
    AuditTerms,
    LookalikeTables,
    SegmentTables,
)
from cohortium.governance.fairness.verdicts import Verdict

__all__ = [
    "CHOSEN",
    "FAIRNESS_SCHEMA",
    "MITIGATION_SCHEMA",
    "OTHERS",
    "RESPONSES",
    "REST",
    "SEEDS",
    "STABILITY",
    "THRESHOLDS",
    "UPLIFT",
    "AuditTerms",
    "Audited",
    "Comparison",
    "Cost",
    "Cutoff",
    "FairnessResult",
    "Figure",
    "LookalikeTables",
    "Metric",
    "Mitigation",
    "NotJudged",
    "Pair",
    "Reversal",
    "SegmentTables",
    "Threshold",
    "Verdict",
    "audit_lookalike",
    "audit_segments",
    "compare",
    "group_thresholds",
    "judge_answers",
    "lift_cost",
    "load_fairness",
    "segment_costs",
    "thresholds_with",
]
