"""Rules: packs of law and house limits as data, facts, and the evaluator that decides from them; unknown refuses.

Not legal advice. Values of facts stay at the institution: others get a decision's `public` view alone.
"""

from cohortium.governance.rules.cedar import CedarExport, export_cedar
from cohortium.governance.rules.decision import Decision, Duty, Finding, IdleRule, PublicDecision, SeenFact
from cohortium.governance.rules.errors import FactError, RuleError
from cohortium.governance.rules.evaluator import evaluate
from cohortium.governance.rules.expression import words
from cohortium.governance.rules.facts import Facts, read_facts
from cohortium.governance.rules.fixtures import fixture_problems, overdue
from cohortium.governance.rules.limits import combine_limits
from cohortium.governance.rules.loader import HOUSE, load_packs, pack_names, parse_pack, read_pack
from cohortium.governance.rules.pack import Clock, Limit, Pack, Rule, Stage
from cohortium.governance.rules.schema import FactSpec, Value, fact_schema

__all__ = [
    "HOUSE",
    "CedarExport",
    "Clock",
    "Decision",
    "Duty",
    "FactError",
    "FactSpec",
    "Facts",
    "Finding",
    "IdleRule",
    "Limit",
    "Pack",
    "PublicDecision",
    "Rule",
    "RuleError",
    "SeenFact",
    "Stage",
    "Value",
    "combine_limits",
    "evaluate",
    "export_cedar",
    "fact_schema",
    "fixture_problems",
    "load_packs",
    "overdue",
    "pack_names",
    "parse_pack",
    "read_facts",
    "read_pack",
    "words",
]
