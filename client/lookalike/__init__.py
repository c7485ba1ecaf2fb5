"""A released lookalike model at an institution: admitted, and used to score its own customers. Nothing of it leaves.

May import what `client` may. Reads a node's records and its table of customers, a bounded number of rows at a time.
Must never happen here: a score or a reason sent through the federation, a customer value in a message, half a file.
"""

from cohortium.client.lookalike.activating import REVIEW_FILE, GovernedActivation, case_documents
from cohortium.client.lookalike.admission import AdmittedModel, admit_model, approved_plan, load_approved
from cohortium.client.lookalike.forecast import forecast_list
from cohortium.client.lookalike.reasons import REASONS, contributions, leading_reasons
from cohortium.client.lookalike.records import NodeRecords, open_records
from cohortium.client.lookalike.refining import RefinedList, refine_list
from cohortium.client.lookalike.scoring import ScoredCustomers, score_customers_file

__all__ = [
    "REASONS",
    "REVIEW_FILE",
    "AdmittedModel",
    "GovernedActivation",
    "NodeRecords",
    "RefinedList",
    "ScoredCustomers",
    "admit_model",
    "approved_plan",
    "case_documents",
    "contributions",
    "forecast_list",
    "leading_reasons",
    "load_approved",
    "open_records",
    "refine_list",
    "score_customers_file",
]
