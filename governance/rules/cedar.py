"""Rules as Cedar policies and schema, for houses that run Cedar, and as an oracle of our own evaluator.

Each rule in force becomes a `forbid` under its id, beside one `permit` of everything; duties decide nothing and are
left out. Two things differ from our facts:

- Cedar has no unknown. The schema makes every fact that cannot be none a required attribute, and a request without one
  is refused as malformed; used without the schema, Cedar would admit it. A fact that may be none is an optional
  attribute, and one that is unknown cannot be told from none: send a request only when every fact is stated.
- Cedar's decimals have 4 places and its integers 64 bits. Whole numbers are sent as they are. Others are sent as `Long`
  in half steps of 1e-9: 2·floor(10^9·v), and 1 more if that was rounded, so that comparisons with a limit of at most 9
  places stay exact (delta 1e-9 included).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from typing import Any

from cohortium.governance.rules.errors import FactError, RuleError
from cohortium.governance.rules.expression import All, AnyOf, Expression, Not, Present
from cohortium.governance.rules.pack import Pack, Rule, Stage
from cohortium.governance.rules.schema import FactSpec, Value, fact_schema

__all__ = ["CedarExport", "export_cedar"]

_STEPS = 10**9
_LARGEST = 2**63 - 1
_PRINCIPAL, _RESOURCE = "Institution", "Run"


@dataclass(frozen=True)
class CedarExport:
    """Policies and schema.

    Args:
        policies: the text; the first policy permits, every other is one rule, with its id as `@id`.
        schema: in Cedar's JSON form: one action a stage, whose context has the facts that its rules read.
    """

    policies: str
    schema: dict[str, Any]

    def request(self, values: Mapping[str, Value], stage: Stage) -> dict[str, Any]:
        """A request for the stage, of the values of facts as far as its rules read them.

        Raises:
            FactError: a fact that the rules read is unknown, which Cedar would take for none or not see at all.
        """
        context: dict[str, bool | int | str] = {}
        for name in self.schema[""]["actions"][stage]["appliesTo"]["context"]["attributes"]:
            if name not in values:
                raise FactError("is unknown, which Cedar has no word for", place=f"fact '{name}'", fix="state it")
            if values[name] is not False or fact_schema()[name].kind == "bool":
                context[name] = _encoded(values[name], fact_schema()[name])
        return {
            "principal": f'{_PRINCIPAL}::"here"',
            "action": f'Action::"{stage}"',
            "resource": f'{_RESOURCE}::"this"',
            "context": context,
        }


def export_cedar(packs: Sequence[Pack], today: date) -> CedarExport:
    """The rules that can refuse and are in force on a day.

    Raises:
        RuleError: a limit has more than 9 decimal places.
    """
    rules = [rule for pack in packs for rule in pack.rules if rule.refuses and rule.idle_on(today) is None]
    policies = [f'// Not legal advice. Rules in force on {today}.\n@id("permit")\npermit(principal, action, resource);']
    return CedarExport("\n\n".join([*policies, *map(_policy, rules)]) + "\n", _schema(rules))


def _policy(rule: Rule) -> str:
    head = f'@id("{rule.id}")\nforbid(principal, action == Action::"{rule.stage}", resource)'
    conditions = f"when {{ {_text(rule.when)} }}\n" if rule.when is not None else ""
    return f"// {rule.article}\n{head}\n{conditions}unless {{ {_text(rule.asks)} }};" if rule.asks else ""


def _text(expression: Expression) -> str:
    if isinstance(expression, (All, AnyOf)):
        joint = " && " if isinstance(expression, All) else " || "
        return joint.join(f"({_text(part)})" for part in expression.parts)
    if isinstance(expression, Not):
        return f"!({_text(expression.part)})"
    attribute, spec = f"context[{_quoted(expression.fact)}]", fact_schema()[expression.fact]
    given = f"context has {_quoted(expression.fact)}"
    if isinstance(expression, Present):
        return given
    if expression.op == "in":
        choices = ", ".join(_literal(choice, spec) for choice in expression.constant)
        test = f"[{choices}].contains({attribute})"
    elif expression.op == "!=":
        test = f"{attribute} == {_literal(expression.constant, spec)}"
    else:
        test = f"{attribute} {expression.op} {_literal(expression.constant, spec)}"
    whole = f"({given} && {test})" if spec.may_be_none else test
    return f"!({whole})" if expression.op == "!=" else whole


def _schema(rules: Sequence[Rule]) -> dict[str, Any]:
    stages: dict[str, dict[str, Any]] = {}
    for rule in rules:
        attributes = stages.setdefault(rule.stage, {})
        attributes |= {name: _attribute(fact_schema()[name]) for name in rule.reads}
    actions = {stage: {"appliesTo": _applies_to(attributes)} for stage, attributes in stages.items()}
    return {"": {"entityTypes": {_PRINCIPAL: {}, _RESOURCE: {}}, "actions": actions}}


def _applies_to(attributes: Mapping[str, Any]) -> dict[str, Any]:
    context = {"type": "Record", "attributes": dict(sorted(attributes.items()))}
    return {"principalTypes": [_PRINCIPAL], "resourceTypes": [_RESOURCE], "context": context}


def _attribute(spec: FactSpec) -> dict[str, Any]:
    kind = {"bool": "Boolean", "number": "Long"}.get(spec.kind, "String")
    return {"type": kind, "required": not spec.may_be_none}


def _literal(constant: Value, spec: FactSpec) -> str:
    if spec.kind == "number" and not spec.integer and _half_steps(constant) % 2:
        raise RuleError(f"the limit {constant} has more than 9 decimal places", fix="round it")
    encoded = _encoded(constant, spec)
    return _quoted(encoded) if isinstance(encoded, str) else json.dumps(encoded)


def _encoded(value: Value, spec: FactSpec) -> bool | int | str:
    if spec.kind == "bool":
        return bool(value)
    if spec.kind != "number" or not isinstance(value, (int, float)):
        return str(value)
    return int(value) if spec.integer else _half_steps(value)


def _half_steps(value: Value) -> int:
    """A number in half steps of 1e-9; of a float the shortest decimal that means it, which keeps their order."""
    scaled = Fraction(str(value)) * _STEPS
    whole = scaled.numerator // scaled.denominator
    return min(2 * whole + (scaled != whole), _LARGEST)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
