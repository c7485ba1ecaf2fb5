"""Names that say what people are need a reason."""

from __future__ import annotations

import pytest

from cohortium.client.audience.names import check_name, sensitive_topic
from cohortium.study.errors import RefusedError

FLAGGED = {
    "financial status": (
        *("Credit-Score 700+", "high_income Q3", "HighIncome", "highincome", "poor families", "DEBTS"),
        *("heavily indebted", "over-indebted", "OverIndebted", "overindebtedness", "cash-strapped", "low earners"),
        *("Schuldner", "Schuldnerinnen", "überschuldet", "Verschuldung 2026"),
    ),
    "health": ("pregnant women", "Gesundheit 2026", "diabetics? diabetic!", "overweight", "Übergewichtige"),
    "religion or belief": ("halal shoppers", "Catholics"),
    "origin": ("ethnicity: other", "Asian homes"),
    "politics or union": ("likely voters", "left-wing readers"),
    "sex life or orientation": ("LGBT travel",),
    "vulnerability or crime": (
        "recent widows",
        "victim support",
        "single mothers",
        "SingleParents",
        "Alleinerziehende",
    ),
}
FINE = (
    *("spring campaign A", "Richmond stores", "broken links", "richer menus", "Armenia trip", "control arm", "aud-01"),
    *("single malts", "mother's day", "weight plates", "cash back", "Gewichte"),
)


@pytest.mark.parametrize(("topic", "name"), [(topic, name) for topic, names in FLAGGED.items() for name in names])
def test_a_name_that_suggests_a_trait_is_flagged(topic: str, name: str) -> None:
    assert sensitive_topic(name) == topic
    with pytest.raises(RefusedError, match=topic):
        check_name(name, None)
    with pytest.raises(RefusedError, match=topic):
        check_name(name, "  ")
    check_name(name, "the product's own name")


@pytest.mark.parametrize("name", FINE)
def test_words_that_only_contain_a_flagged_one_pass(name: str) -> None:
    assert sensitive_topic(name) is None
    check_name(name, None)


def test_accents_and_full_width_letters_do_not_hide_a_word() -> None:
    assert sensitive_topic("pòor") == "financial status"
    assert sensitive_topic("\uff50\uff4f\uff4f\uff52") == "financial status"


@pytest.mark.parametrize("name", ["", " ", " a", "a\n", "a\x07b", "x" * 81])
def test_a_malformed_name_is_refused_whatever_the_reason(name: str) -> None:
    with pytest.raises(RefusedError, match="malformed name"):
        check_name(name, "a reason")
