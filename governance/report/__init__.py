"""The report of a run: a summary of what was learnt and what it cost, and one printable HTML page drawn from it.

May import `models`, `privacy` and `study`.
Must never happen here: a number about customers that is not in the summary, a size that is not a band, a resource from
elsewhere.
"""

from cohortium.governance.report.bands import SUPPRESSED, size_band
from cohortium.governance.report.html import render_report
from cohortium.governance.report.summary import (
    SIMULATION_NOTE,
    SUMMARY_SCHEMA,
    AloneCost,
    CollusionRow,
    Comparison,
    ContractFacts,
    DatasetFacts,
    FeatureFacts,
    InstitutionFacts,
    LeftOut,
    PersonAt,
    RunSummary,
    StageTime,
    Units,
    collusion,
    load_summary,
    person_at,
)

__all__ = [
    "SIMULATION_NOTE",
    "SUMMARY_SCHEMA",
    "SUPPRESSED",
    "AloneCost",
    "CollusionRow",
    "Comparison",
    "ContractFacts",
    "DatasetFacts",
    "FeatureFacts",
    "InstitutionFacts",
    "LeftOut",
    "PersonAt",
    "RunSummary",
    "StageTime",
    "Units",
    "collusion",
    "load_summary",
    "person_at",
    "render_report",
    "size_band",
]
