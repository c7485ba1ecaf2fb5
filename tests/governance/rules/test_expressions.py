"""Expressions: Kleene's logic is sound, and what cannot be meant is refused with the nearest thing that can."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium.governance.rules import words
from cohortium.governance.rules.expression import facts_in, parse

DOMAINS: dict[str, tuple[Any, ...]] = {
    "cohort.minors": (0, 1, 2),
    "use.decision": ("none", "pricing", "eligibility"),
    "data.uses_ais": (True, False),
    "docs.tia_ref": ("tia", False),
    "run.lawful_basis": ("consent", "contract", False),
}
"""Facts with all the values that the drawn expressions can tell apart."""

LEAVES = st.one_of(
    st.builds(
        lambda op, number: {op: ["cohort.minors", number]}, st.sampled_from(["<=", ">=", "==", "!="]), st.integers(0, 2)
    ),
    st.builds(lambda op, text: {op: ["use.decision", text]}, st.sampled_from(["==", "!="]), st.just("pricing")),
    st.just({"in": ["use.decision", ["pricing", "eligibility"]]}),
    st.builds(lambda op, value: {op: ["data.uses_ais", value]}, st.sampled_from(["==", "!="]), st.booleans()),
    st.sampled_from([{"present": "docs.tia_ref"}, {"present": "run.lawful_basis"}]),
    st.sampled_from([{"!=": ["run.lawful_basis", "consent"]}, {"in": ["run.lawful_basis", ["consent"]]}]),
)
EXPRESSIONS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"all": parts}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"any": parts}),
        inner.map(lambda part: {"not": part}),
    ),
    max_leaves=8,
)
SHEETS = st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in DOMAINS.items()})


@settings(max_examples=300)
@given(raw=EXPRESSIONS, known=SHEETS)
def test_what_is_known_holds_for_every_completion_of_the_unknown(
    reference: Callable[..., bool], raw: dict[str, Any], known: Mapping[str, Any]
) -> None:
    expression = parse(raw)
    missing = [name for name in dict.fromkeys(facts_in(expression)) if name not in known]
    completions = [
        reference(raw, {**known, **dict(zip(missing, values, strict=True))})
        for values in itertools.product(*(DOMAINS[name] for name in missing))
    ]
    truth = expression.test(known)
    if truth is not None:
        assert set(completions) == {truth}
    if not missing:
        assert [truth] == completions


@pytest.mark.parametrize(
    ("raw", "known", "truth"),
    [
        ({"all": [{"present": "docs.tia_ref"}, {"<=": ["cohort.minors", 0]}]}, {"cohort.minors": 1}, False),
        ({"all": [{"present": "docs.tia_ref"}, {"<=": ["cohort.minors", 0]}]}, {"cohort.minors": 0}, None),
        ({"any": [{"present": "docs.tia_ref"}, {"<=": ["cohort.minors", 0]}]}, {"cohort.minors": 0}, True),
        ({"any": [{"present": "docs.tia_ref"}, {"<=": ["cohort.minors", 0]}]}, {"cohort.minors": 1}, None),
        ({"not": {"present": "docs.tia_ref"}}, {}, None),
        ({"not": {"present": "docs.tia_ref"}}, {"docs.tia_ref": False}, True),
        ({"!=": ["transfer.tool", "derogation"]}, {}, None),
        ({"!=": ["run.lawful_basis", "consent"]}, {"run.lawful_basis": False}, True),
        ({"in": ["run.lawful_basis", ["consent"]]}, {"run.lawful_basis": False}, False),
        ({"<=": ["privacy.epsilon", 3.0]}, {"privacy.epsilon": 3.0}, True),
        ({"<=": ["privacy.epsilon", 3.0]}, {"privacy.epsilon": 3.0000000000000004}, False),
    ],
)
def test_three_values(raw: dict[str, Any], known: dict[str, Any], truth: bool | None) -> None:
    assert parse(raw).test(known) is truth


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (
            {"=<": ["cohort.minors", 0]},
            "there is no operator '=<'; use one of all, any, not, ==, !=, <=, >=, in, present",
        ),
        ({"presents": "docs.tia_ref"}, "there is no operator 'presents'; did you mean 'present'?"),
        ({"<=": ["cohort.minor", 0]}, "there is no fact 'cohort.minor'; did you mean 'cohort.minors'?"),
        ({"==": ["data.uses_ais", "true"]}, "'data.uses_ais' is of the wrong type; state true or false"),
        ({"==": ["data.uses_ais", 1]}, "'data.uses_ais' is of the wrong type; state true or false"),
        ({"<=": ["cohort.minors", True]}, "'cohort.minors' is of the wrong type; state a number"),
        ({"<=": ["cohort.minors", 0.5]}, "'cohort.minors' has a fraction; state a whole number"),
        ({"<=": ["privacy.epsilon", float("nan")]}, "'privacy.epsilon' is not a number"),
        ({"==": ["use.decision", "prices"]}, "'use.decision' has a value that is no choice; did you mean 'pricing'?"),
        ({"in": ["use.decision", ["pricing", "pricing"]]}, "'in' has a choice for 'use.decision' twice"),
        ({"in": ["use.decision", []]}, "'in' needs a list of choices for 'use.decision'"),
        ({"in": ["use.decision", "pricing"]}, "'in' needs a list of choices for 'use.decision'"),
        ({"<=": ["use.decision", "pricing"]}, "'use.decision' is a text, and only numbers have an order"),
        ({"==": ["docs.tia_ref", "tia"]}, "'docs.tia_ref' is a reference; rules ask only whether it is present"),
        ({"==": ["run.lawful_basis", False]}, "ask with 'present' whether there is one"),
        ({"present": "cohort.minors"}, "'cohort.minors' always has a value, so 'present' says nothing"),
        ({"present": ["docs.tia_ref"]}, "'present' needs the name of a fact"),
        ({"all": []}, "'all' needs a list of expressions; give it at least one"),
        ({"any": {"present": "docs.tia_ref"}}, "'any' needs a list of expressions"),
        ({"not": []}, "an expression is a table with one operator"),
        ({}, "an expression is a table with one operator"),
        ({"<=": ["cohort.minors", 0], ">=": ["cohort.minors", 0]}, "an expression is a table with one operator"),
        ({"<=": ["cohort.minors"]}, "'<=' needs a fact and a constant"),
    ],
)
def test_what_cannot_be_meant_is_refused(raw: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        parse(raw)


def test_an_expression_in_words() -> None:
    raw = {
        "all": [
            {"in": ["transfer.tool", ["scc", "bcr"]]},
            {"any": [{"present": "docs.tia_ref"}, {"not": {"==": ["data.uses_ais", True]}}]},
        ]
    }
    said = "transfer.tool is one of scc, bcr and (docs.tia_ref is given or not (data.uses_ais is true))"
    assert words(parse(raw)) == said
