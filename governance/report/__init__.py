"""The reports of runs: a summary of what was learnt and what it cost, and one printable HTML page drawn from it.

May import `models`, `privacy` and `study`.
Must never happen here: a number about customers that is not in the summary, a size that is not a band, a resource from
elsewhere.
"""

from cohortium.governance.report.bands import SUPPRESSED, size_band
from cohortium.governance.report.facts import (
    CollusionRow,
    ContractFacts,
    DatasetFacts,
    FeatureFacts,
    InstitutionFacts,
    PersonAt,
    StageTime,
    Units,
    collusion,
    person_at,
)
from cohortium.governance.report.html import render_lookalike_report, render_report
from cohortium.governance.report.lookalike_summary import (
    LOOKALIKE_SUMMARY_SCHEMA,
    CampaignCost,
    ExportBand,
    HeldOut,
    LookalikeSummary,
    LookalikeTruth,
    Participant,
    campaign_costs,
    load_lookalike_summary,
)
from cohortium.governance.report.sections.lookalike.fragment import lookalike_section
from cohortium.governance.report.summary import (
    SIMULATION_NOTE,
    SUMMARY_SCHEMA,
    AloneCost,
    Comparison,
    LeftOut,
    RunSummary,
    load_summary,
)

__all__ = [
    "LOOKALIKE_SUMMARY_SCHEMA",
    "SIMULATION_NOTE",
    "SUMMARY_SCHEMA",
    "SUPPRESSED",
    "AloneCost",
    "CampaignCost",
    "CollusionRow",
    "Comparison",
    "ContractFacts",
    "DatasetFacts",
    "ExportBand",
    "FeatureFacts",
    "HeldOut",
    "InstitutionFacts",
    "LeftOut",
    "LookalikeSummary",
    "LookalikeTruth",
    "Participant",
    "PersonAt",
    "RunSummary",
    "StageTime",
    "Units",
    "campaign_costs",
    "collusion",
    "load_lookalike_summary",
    "load_summary",
    "lookalike_section",
    "person_at",
    "render_lookalike_report",
    "render_report",
    "size_band",
]
