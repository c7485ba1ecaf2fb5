"""Who agreed to what: consent records, objections, permissions, and snapshots of who may be counted.

Durable truth is an append-only store; what a question is answered from is a set operation over everybody's standing.
Must never happen here: anybody's id in a file, an error or a log; a root leaving without a fresh salt.
"""

from cohortium.governance.consent.imports import ImportCounts, ImportMapping, import_signals, load_mapping
from cohortium.governance.consent.purposes import PURPOSES, covers, extension_terms, purpose_term
from cohortium.governance.consent.records import RecordTemplate, load_template
from cohortium.governance.consent.signals import (
    AgeSignal,
    BankSignal,
    ConsentSignal,
    ErasureSignal,
    FlagSignal,
)
from cohortium.governance.consent.snapshot import REASONS, Cohort, OpenBanking, Snapshot
from cohortium.governance.consent.store import BackDatedError, ConsentStore, Entry, Obligation, Recorded, Rejected

__all__ = [
    "PURPOSES",
    "REASONS",
    "AgeSignal",
    "BackDatedError",
    "BankSignal",
    "Cohort",
    "ConsentSignal",
    "ConsentStore",
    "Entry",
    "ErasureSignal",
    "FlagSignal",
    "ImportCounts",
    "ImportMapping",
    "Obligation",
    "OpenBanking",
    "RecordTemplate",
    "Recorded",
    "Rejected",
    "Snapshot",
    "covers",
    "extension_terms",
    "import_signals",
    "load_mapping",
    "load_template",
    "purpose_term",
]
