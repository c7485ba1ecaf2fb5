"""An institution's tables become one bounded row per person: the only place that reads raw customer data.

May import `privacy` and `study`. One door in (`onboard`), one door out (`load_customer_table`).
Must never happen here: a customer value in a message, bounds taken from the data, a bad cell dropped in silence.
"""

from cohortium.client.onboarding.engine import Progress, Resources
from cohortium.client.onboarding.readiness import Finding, Readiness, assess
from cohortium.client.onboarding.report import ColumnReport, FeatureReport, OnboardingReport, TableReport
from cohortium.client.onboarding.run import inspect_sources, onboard, refuse_bad_shares
from cohortium.client.onboarding.sources import Source, SqlSource, parse_source
from cohortium.client.onboarding.store import load_customer_table, load_protected_table, load_report

__all__ = [
    "ColumnReport",
    "FeatureReport",
    "Finding",
    "OnboardingReport",
    "Progress",
    "Readiness",
    "Resources",
    "Source",
    "SqlSource",
    "TableReport",
    "assess",
    "inspect_sources",
    "load_customer_table",
    "load_protected_table",
    "load_report",
    "onboard",
    "parse_source",
    "refuse_bad_shares",
]
