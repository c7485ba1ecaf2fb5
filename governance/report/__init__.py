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
from cohortium.governance.report.fairness_page import (
    FAIRNESS_PAGE_SCHEMA,
    FairnessPage,
    MitigationFacts,
    load_fairness_page,
)
from cohortium.governance.report.governance_summary import (
    GOVERNANCE_SUMMARY_SCHEMA,
    AuditFacts,
    DecisionFacts,
    EvidenceFacts,
    GovernanceSummary,
    GovernedInstitution,
    LogFacts,
    WithdrawalFacts,
    load_governance_summary,
)
from cohortium.governance.report.html import render_fairness_report, render_lookalike_report, render_report
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
from cohortium.governance.report.policy_facts import (
    DutyFacts,
    FindingFacts,
    LimitFacts,
    MarkedRules,
    PackFacts,
    PolicyFacts,
    QuotedRule,
    ReviewFacts,
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
    "FAIRNESS_PAGE_SCHEMA",
    "GOVERNANCE_SUMMARY_SCHEMA",
    "LOOKALIKE_SUMMARY_SCHEMA",
    "SIMULATION_NOTE",
    "SUMMARY_SCHEMA",
    "SUPPRESSED",
    "AloneCost",
    "AuditFacts",
    "CampaignCost",
    "CollusionRow",
    "Comparison",
    "ContractFacts",
    "DatasetFacts",
    "DecisionFacts",
    "DutyFacts",
    "EvidenceFacts",
    "ExportBand",
    "FairnessPage",
    "FeatureFacts",
    "FindingFacts",
    "GovernanceSummary",
    "GovernedInstitution",
    "HeldOut",
    "InstitutionFacts",
    "LeftOut",
    "LimitFacts",
    "LogFacts",
    "LookalikeSummary",
    "LookalikeTruth",
    "MarkedRules",
    "MitigationFacts",
    "PackFacts",
    "Participant",
    "PersonAt",
    "PolicyFacts",
    "QuotedRule",
    "ReviewFacts",
    "RunSummary",
    "StageTime",
    "Units",
    "WithdrawalFacts",
    "campaign_costs",
    "collusion",
    "load_fairness_page",
    "load_governance_summary",
    "load_lookalike_summary",
    "load_summary",
    "lookalike_section",
    "person_at",
    "render_fairness_report",
    "render_lookalike_report",
    "render_report",
    "size_band",
]
