"""A small pack that the tests bend, and a reader of expressions that shares nothing with the package's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

import pytest

from cohortium.governance.rules import Pack, load_packs, pack_names, parse_pack

PACK_TOML = """
schema = "cohortium.rules/1"
name = "tiny"
title = "Tiny"
as_of = 2026-11-23
disclaimer = "not legal advice"

[sheet]
run.purpose = "dpv:DirectMarketing"
cohort.objectors = 0
docs.tia_ref = "tia-1"
transfer.crosses_border = false
privacy.epsilon = 1.0

[[rules]]
id = "T-OBJECT"
article = "Law 1"
plain = "No objectors."
stage = "admission"
effect = "deny"
applies = { in = ["run.purpose", ["dpv:DirectMarketing"]] }
must = { "<=" = ["cohort.objectors", 0] }
status = "in_force"
in_force_from = 2020-01-01
in_force_until = 2030-12-31
confidence = "C"
passing = {}
failing = { facts = { cohort.objectors = 2 } }

[[rules]]
id = "T-TRANSFER"
article = "Law 2"
plain = "Transfers are assessed."
stage = "admission"
effect = "require"
applies = { "==" = ["transfer.crosses_border", true] }
must = { present = "docs.tia_ref" }
status = "adopted_future"
in_force_from = 2027-05-13
confidence = "B"
passing = { facts = { transfer.crosses_border = true } }
failing = { facts = { transfer.crosses_border = true, docs.tia_ref = false } }

[[rules]]
id = "T-EPSILON"
article = "Law 3"
plain = "Epsilon stays small."
stage = "admission"
effect = "limit"
limit = { fact = "privacy.epsilon", op = "<=", number = 2.0 }
status = "in_force"
confidence = "A"
passing = { facts = { privacy.epsilon = 2.0 } }
failing = { facts = { privacy.epsilon = 2.1 } }

[[rules]]
id = "T-REPLY"
article = "Law 4"
plain = "People get an answer."
stage = "admission"
effect = "obligation"
applies = { "==" = ["transfer.crosses_border", true] }
obligation = "Answer."
deadline = "1 month"
clocks = [{ since = "rights_request", amount = 1, unit = "months" }]
status = "in_force"
confidence = "U"
[rules.passing]
facts = { transfer.crosses_border = true }
since = 2026-01-31T12:00:00Z
done = 2026-02-28T12:00:00Z
[rules.failing]
facts = { transfer.crosses_border = true }
since = 2026-01-31T12:00:00Z
done = 2026-02-28T12:00:01Z
"""


def two_valued(raw: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """What an expression says when every fact is known."""
    ((op, content),) = raw.items()
    if op == "all":
        return all(two_valued(part, values) for part in content)
    if op == "any":
        return any(two_valued(part, values) for part in content)
    if op == "not":
        return not two_valued(content, values)
    if op == "present":
        return values[content] is not False
    name, constant = content
    value = values[name]
    if op == "in":
        return any(type(value) is type(choice) and value == choice for choice in constant)
    if op in ("==", "!="):
        return (value == constant) == (op == "==")
    return value <= constant if op == "<=" else value >= constant


@pytest.fixture(scope="session")
def reference() -> Callable[[Mapping[str, Any], Mapping[str, Any]], bool]:
    return two_valued


@pytest.fixture(scope="session")
def pack_text() -> str:
    return PACK_TOML


@pytest.fixture(scope="session")
def tiny() -> Pack:
    return parse_pack(PACK_TOML, "tiny.toml")


@pytest.fixture(scope="session")
def all_packs() -> tuple[Pack, ...]:
    return load_packs(pack_names())


@pytest.fixture(scope="session")
def late() -> date:
    """A day on which every rule that ships with a date is in force."""
    return date(2027, 12, 31)
