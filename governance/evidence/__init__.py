"""What outsiders are given to read and to check: model cards, records of processing, impact assessments, provenance.

May import all other parts of this room, `privacy` and `study`.
Must never happen here: a number about a single customer, a figure that nobody released or declared, a clock or a
random number in a document that others recompute.
"""

from cohortium.governance.evidence.card import CARD_SCHEMA, NOT_LEGAL_ADVICE, ModelCard, Released, model_card
from cohortium.governance.evidence.card_markdown import card_markdown
from cohortium.governance.evidence.cyclonedx import card_cyclonedx
from cohortium.governance.evidence.dpia import (
    DPIA_SCHEMA,
    Dpia,
    Outcome,
    complete_dpia,
    dpia,
    dpia_markdown,
    load_dpia,
)
from cohortium.governance.evidence.prov import prov_json
from cohortium.governance.evidence.ropa import ROPA_SCHEMA, RopaEntry, ropa, ropa_csv, ropa_jsonld

__all__ = [
    "CARD_SCHEMA",
    "DPIA_SCHEMA",
    "NOT_LEGAL_ADVICE",
    "ROPA_SCHEMA",
    "Dpia",
    "ModelCard",
    "Outcome",
    "Released",
    "RopaEntry",
    "card_cyclonedx",
    "card_markdown",
    "complete_dpia",
    "dpia",
    "dpia_markdown",
    "load_dpia",
    "model_card",
    "prov_json",
    "ropa",
    "ropa_csv",
    "ropa_jsonld",
]
