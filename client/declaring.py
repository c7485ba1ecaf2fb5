"""The `governance.toml` that a new node begins with: what its rules ask of people, and no answer."""

from __future__ import annotations

import json
from collections.abc import Iterator

from cohortium.client.governing import is_found
from cohortium.governance.rules import FactSpec, Stage, fact_schema, load_packs, pack_names

__all__ = ["starter_governance"]

_BESIDE = {"uk": ("eu",)}
"""Packs without which another one is not the whole law of its place."""

_TEXT = """\
# What this institution declares of itself. Whoever answers for it takes the # from a line and states what is so.
# What is left out is unknown, and unknown refuses: `cohortium study review` says where an answer is missing. Questions
# that do not arise, such as those on account information where none is used, can stay as they are.
# `false` for a document or a date says that there is none.
schema = "cohortium.governance/1"

# rules in force here, beside those of the house: `cohortium rules list`
{packs}

# who states what follows, and when
declared_by = "nobody yet"

[facts]
"""
_ASKED: tuple[tuple[Stage, str], ...] = (
    ("admission", "asked before a run"),
    ("activation", "asked before an audience goes out"),
    ("retention", "asked while a model is kept"),
)


def starter_governance(region: str) -> str:
    """The file for an institution of a region: the packs of that name, and every fact that they read, to be answered.

    Nothing is answered, so the rules refuse every plan until somebody does.

    Args:
        region: as in the charter; `US-NY` has the packs of `US` too. Where none ships for it, the packs are asked for
            as well, and the file is refused until they are named.
    """
    wanted = {region.lower(), region.lower().split("-")[0]}
    wanted |= {name for one in wanted for name in _BESIDE.get(one, ())}
    packs = sorted(wanted & set(pack_names()))
    line = f"packs = {json.dumps(packs)}" if packs else f"# packs = names; none ships for '{region}'"
    return _TEXT.format(packs=line) + "".join(_questions(packs))


def _questions(packs: list[str]) -> Iterator[str]:
    told: set[str] = set()
    for stage, heading in _ASKED:
        rules = [rule for pack in load_packs(packs) for rule in pack.rules if rule.stage == stage]
        names = {name for rule in rules for name in rule.reads if not is_found(name)} - told
        told |= names
        if names:
            yield f"\n# --- {heading}\n"
        for name, spec in fact_schema().items():
            if name in names:
                yield f"# {spec.meaning}\n# {name} = {_answers(spec)}\n"


def _answers(spec: FactSpec) -> str:
    """What an answer may be, in words; no line is one before it was answered."""
    match spec.kind:
        case "bool":
            return "true or false"
        case "number":
            return "0, or how many"
        case "text":
            return ", ".join(f'"{value}"' for value in spec.values[:-1]) + f' or "{spec.values[-1]}"'
        case "date":
            form = "a date such as 2027-12-31"
        case "reference":
            form = '"where it is filed"'
    return f"{form}, or false" if spec.may_be_none else form
