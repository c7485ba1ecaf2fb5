"""Expressions over facts, in Kleene's three-valued logic: true, false, and None for unknown.

An expression is a table with one operator: `all`, `any` (of expressions), `not`, `present`, and the comparisons `==`,
`!=`, `<=`, `>=`, `in` of a fact with a constant. It is data, and is compiled once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from cohortium.governance.rules.schema import FactSpec, Value, checked_value, fact_schema, spec_of
from cohortium.study.validation import suggestion

__all__ = ["All", "AnyOf", "Comparison", "Expression", "Not", "Present", "Test", "Truth", "facts_in", "parse", "words"]

Truth: TypeAlias = bool | None
"""True, False, or None: unknown."""

Test: TypeAlias = Callable[[Mapping[str, Value]], Truth]
"""A compiled expression: the values of facts in, a truth out. A fact that is not in the mapping is unknown."""

_OPERATORS = ("all", "any", "not", "==", "!=", "<=", ">=", "in", "present")


@dataclass(frozen=True)
class All:
    """True when every part is; false when one is false; else unknown."""

    parts: tuple[Expression, ...]

    @cached_property
    def test(self) -> Test:
        """The expression, compiled once."""
        tests = [part.test for part in self.parts]

        def test(values: Mapping[str, Value]) -> Truth:
            found: Truth = True
            for part in tests:
                truth = part(values)
                if truth is False:
                    return False
                if truth is None:
                    found = None
            return found

        return test


@dataclass(frozen=True)
class AnyOf:
    """True when one part is; false when every part is false; else unknown."""

    parts: tuple[Expression, ...]

    @cached_property
    def test(self) -> Test:
        """The expression, compiled once."""
        tests = [part.test for part in self.parts]

        def test(values: Mapping[str, Value]) -> Truth:
            found: Truth = False
            for part in tests:
                truth = part(values)
                if truth is True:
                    return True
                if truth is None:
                    found = None
            return found

        return test


@dataclass(frozen=True)
class Not:
    """The other way round; unknown stays unknown."""

    part: Expression

    @cached_property
    def test(self) -> Test:
        """The expression, compiled once."""
        inner = self.part.test

        def test(values: Mapping[str, Value]) -> Truth:
            truth = inner(values)
            return None if truth is None else not truth

        return test


@dataclass(frozen=True)
class Present:
    """True when the fact has a value; false when it is stated that there is none; unknown when it is left out."""

    fact: str

    @cached_property
    def test(self) -> Test:
        """The expression, compiled once."""
        name = self.fact

        def test(values: Mapping[str, Value]) -> Truth:
            value = values.get(name)
            return None if value is None else value is not False

        return test


@dataclass(frozen=True)
class Comparison:
    """A fact against a constant; unknown when the fact is."""

    op: str
    fact: str
    constant: Any

    @cached_property
    def test(self) -> Test:
        """The expression, compiled once."""
        name, compare = self.fact, _comparer(self.op, self.constant)

        def test(values: Mapping[str, Value]) -> Truth:
            value = values.get(name)
            return None if value is None else compare(value)

        return test


Expression: TypeAlias = All | AnyOf | Not | Present | Comparison


def parse(raw: object) -> Expression:
    """An expression of TOML or JSON types.

    Raises:
        ValueError: as `problem; fix`: unknown operator or fact with the nearest name, a constant of another type than
            the fact's, a text that the fact can never be, an empty list.
    """
    if not isinstance(raw, Mapping) or len(raw) != 1:
        raise ValueError("an expression is a table with one operator; write { OPERATOR = … }")
    op, content = next(iter(raw.items()))
    if op in ("all", "any"):
        if not isinstance(content, (list, tuple)) or not content:
            raise ValueError(f"'{op}' needs a list of expressions; give it at least one")
        parts = tuple(parse(part) for part in content)
        return All(parts) if op == "all" else AnyOf(parts)
    if op == "not":
        return Not(parse(content))
    if op == "present":
        return _present(content)
    if op not in _OPERATORS:
        raise ValueError(f"there is no operator '{op}'; {suggestion(str(op), _OPERATORS)}")
    return _comparison(op, content)


def facts_in(expression: Expression) -> Iterator[str]:
    """The facts that an expression reads, in order, each as often as it is read."""
    if isinstance(expression, (All, AnyOf)):
        for part in expression.parts:
            yield from facts_in(part)
    elif isinstance(expression, Not):
        yield from facts_in(expression.part)
    else:
        yield expression.fact


def words(expression: Expression) -> str:
    """An expression as one line for people: `transfer.tool is one of scc, bcr, and docs.tia_ref is given`."""
    if isinstance(expression, (All, AnyOf)):
        joint = " and " if isinstance(expression, All) else " or "
        parts = [f"({words(part)})" if isinstance(part, (All, AnyOf)) else words(part) for part in expression.parts]
        return joint.join(parts)
    if isinstance(expression, Not):
        return f"not ({words(expression.part)})"
    if isinstance(expression, Present):
        return f"{expression.fact} is given"
    if expression.op == "in":
        return f"{expression.fact} is one of {', '.join(map(_constant, expression.constant))}"
    return f"{expression.fact} {_VERBS[expression.op]} {_constant(expression.constant)}"


_VERBS = {"==": "is", "!=": "is not", "<=": "is at most", ">=": "is at least"}


def _constant(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _comparer(op: str, constant: Any) -> Callable[[Any], bool]:
    if op == "==":
        return lambda value: bool(value == constant)
    if op == "!=":
        return lambda value: bool(value != constant)
    if op == "<=":
        return lambda value: bool(value <= constant)
    if op == ">=":
        return lambda value: bool(value >= constant)
    choices = frozenset(constant)
    return lambda value: value in choices


def _present(content: object) -> Present:
    if not isinstance(content, str):
        raise ValueError("'present' needs the name of a fact; write { present = \"docs.dpia_ref\" }")
    if not spec_of(content).may_be_none:
        givable = [name for name, spec in fact_schema().items() if spec.may_be_none]
        raise ValueError(f"'{content}' always has a value, so 'present' says nothing; {suggestion(content, givable)}")
    return Present(content)


def _comparison(op: str, content: object) -> Comparison:
    if not isinstance(content, (list, tuple)) or len(content) != 2 or not isinstance(content[0], str):
        raise ValueError(f'\'{op}\' needs a fact and a constant; write {{ "{op}" = ["FACT", CONSTANT] }}')
    name, constant = content
    spec = spec_of(name)
    if op == "in":
        if not isinstance(constant, (list, tuple)) or not constant:
            raise ValueError(f"'in' needs a list of choices for '{name}'; give it at least one")
        choices = tuple(_comparable(name, choice, spec) for choice in constant)
        if len(set(choices)) < len(choices):
            raise ValueError(f"'in' has a choice for '{name}' twice; leave one out")
        return Comparison(op, name, choices)
    if op in ("<=", ">=") and spec.kind != "number":
        raise ValueError(f"'{name}' is a {spec.kind}, and only numbers have an order; use == or in")
    return Comparison(op, name, _comparable(name, constant, spec))


def _comparable(name: str, constant: object, spec: FactSpec) -> Value:
    if spec.kind in ("date", "reference"):
        raise ValueError(f"'{name}' is a {spec.kind}; rules ask only whether it is present")
    if constant is False and spec.kind != "bool":
        raise ValueError(f"'{name}' is a {spec.kind}; ask with 'present' whether there is one")
    return checked_value(name, constant)
