"""The impact assessment: a draft of what is known, and an outcome that only people give."""

from __future__ import annotations

import json
import shlex
from datetime import date
from pathlib import Path

import click
import pytest
import typer.main

from cohortium.cli import main as cli
from cohortium.governance.evidence import Dpia, Outcome, complete_dpia, dpia, dpia_markdown, load_dpia
from cohortium.study.errors import CohortiumError, DataError, RefusedError

from .released import audit_plan, charter, contract, facts, lookalike_plan, segment_plan

DAY = date(2026, 11, 23)


def draft(**stated: object) -> Dpia:
    return dpia("north", segment_plan(), charter(), contract(), facts(**stated))


def answers(found: Dpia) -> dict[str, str]:
    return {one.name: "as the office judged" for one in found.open}


def test_a_draft_is_a_function_of_documents_and_facts() -> None:
    assert draft().digest == draft().digest
    assert draft().digest != draft(docs__lia_ref="lia-7").digest
    assert draft().state == "draft"
    assert (draft().plan, draft().contract, draft().charter) == (
        segment_plan().digest,
        contract().digest,
        charter().digest,
    )


def test_the_parts_are_those_of_art_35_7_with_their_confidence() -> None:
    parts = {one.part: one for one in draft().parts}
    assert list(parts) == ["description", "necessity", "risks", "measures", "consultation"]
    for part, letter in zip(("description", "necessity", "risks", "measures"), "abcd", strict=True):
        assert parts[part].article == f"GDPR Art. 35(7)({letter}) (A)"  # type: ignore[index]
    assert "unverified" in parts["consultation"].article
    assert "not legal advice" in draft().notice.lower()


def test_declared_facts_answer_their_questions_and_no_others() -> None:
    found = draft(use__activation="own_channels", use__decision="none", features__special_category=0)
    known = {one.name: one for one in found.questions}
    assert known["use"].answer == 'use.activation is "own_channels"; use.decision is "none"'
    assert known["use"].source == "privacy office, 2026-11-23"
    assert known["special"].answer is None  # two of its three facts are missing
    assert all(one.answer is None for one in found.questions if one.name.startswith("risk-"))


def test_only_legitimate_interests_are_answered_by_a_balancing_test() -> None:
    balanced = {one.name: one for one in draft(docs__lia_ref="lia-7").questions}["basis"]
    agreed = dpia("north", segment_plan(lawful_basis="consent"), charter(), contract(), facts(docs__lia_ref="lia-7"))
    assert balanced.answer == 'docs.lia_ref is "lia-7"'
    assert {one.name: one for one in agreed.questions}["basis"].answer is None


def test_an_audit_says_that_it_reads_protected_features() -> None:
    found = dpia("north", audit_plan(), charter(), contract(), facts())
    assert "this plan reads them, to audit" in dpia_markdown(found)
    assert "no question of this plan reads them" in dpia_markdown(draft())
    assert "use" not in [one.name for one in found.questions]  # nobody is addressed with an audit


def test_every_command_that_shows_a_figure_exists() -> None:
    found = dpia("north", lookalike_plan(), charter(), contract(), facts())
    shown = {command for one in found.risks for command in one.shown_by}
    shown |= {one.shown_by for part in found.parts for one in part.statements if one.shown_by}
    assert len(shown) > 5
    root = typer.main.get_command(cli.app)
    assert isinstance(root, click.Group)
    for command in shown:
        _, noun, verb, *arguments = shlex.split(command)
        group = root.commands[noun]
        assert isinstance(group, click.Group)
        leaf = group.commands[verb]
        options = {option for parameter in leaf.params for option in parameter.opts}
        assert {word for word in arguments if word.startswith("--")} <= options, command


def test_a_draft_completes_when_every_question_is_answered() -> None:
    begun = draft(docs__lia_ref="lia-7")
    done = complete_dpia(begun, answers(begun), "approve", by=["priya", "rolf"], on=DAY)
    assert (done.state, done.by, done.on, done.draft) == ("approve", ("priya", "rolf"), DAY, begun.digest)
    assert done.open == ()
    assert {one.name: one.source for one in done.questions}["necessity"] == "priya, rolf"
    assert {one.name: one.source for one in done.questions}["basis"] == "privacy office, 2026-11-23"
    assert Dpia.model_validate_json(done.to_bytes()) == done


def test_people_may_answer_what_a_fact_answered() -> None:
    begun = draft(docs__lia_ref="lia-7")
    done = complete_dpia(begun, {**answers(begun), "basis": "weighed anew"}, "reject", by=["priya"], on=DAY)
    assert {one.name: one.answer for one in done.questions}["basis"] == "weighed anew"


def test_open_questions_are_listed_in_the_refusal() -> None:
    begun = draft()
    given = answers(begun)
    del given["necessity"], given["risk-theft"]
    with pytest.raises(RefusedError, match="2 open questions: necessity, risk-theft"):
        complete_dpia(begun, given, "approve", by=["priya"], on=DAY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"by": []}, "nobody answers for the outcome"),
        ({"by": ["Not An Id"]}, "by number 1.*give an id, not a name"),
        ({"by": ["priya", "priya"]}, "'priya' is named twice"),
        ({"outcome": "conditionally approve"}, "exactly a conditional approval has conditions"),
        ({"conditions": ["only in spring"]}, "exactly a conditional approval has conditions"),
        ({"answers": {"nescessity": "because"}}, "no question 'nescessity'.*necessity"),
        ({"answers": {"necessity": "  "}}, "'necessity' has no words"),
    ],
)
def test_a_completion_that_does_not_hold_together_is_refused(change: dict[str, object], message: str) -> None:
    begun = draft()
    whole: dict[str, object] = {"outcome": "approve", "by": ["priya"], "on": DAY, "conditions": []} | change
    more = whole.pop("answers", {})
    outcome = whole.pop("outcome")
    assert isinstance(more, dict)
    with pytest.raises(CohortiumError, match=message):
        complete_dpia(begun, answers(begun) | more, outcome, **whole)  # type: ignore[arg-type]


def test_a_conditional_approval_keeps_its_conditions() -> None:
    begun = draft()
    done = complete_dpia(
        begun, answers(begun), "conditionally approve", by=["priya"], on=DAY, conditions=["only in spring"]
    )
    assert done.conditions == ("only in spring",)
    assert "only in spring" in dpia_markdown(done)


@pytest.mark.parametrize(
    ("outcome", "allowed"), [("approve", False), ("conditionally approve", False), ("refer", True)]
)
def test_a_high_risk_that_remains_is_not_approved(outcome: Outcome, allowed: bool) -> None:
    begun = draft(docs__dpia_residual_risk="high")
    conditions = ["x"] if outcome == "conditionally approve" else []
    if allowed:
        assert complete_dpia(begun, answers(begun), outcome, by=["priya"], on=DAY).state == outcome
        return
    with pytest.raises(RefusedError, match="declared high"):
        complete_dpia(begun, answers(begun), outcome, by=["priya"], on=DAY, conditions=conditions)
    lower = draft(docs__dpia_residual_risk="low")
    assert complete_dpia(lower, answers(lower), "approve", by=["priya"], on=DAY).state == "approve"


def test_what_is_decided_is_not_decided_again() -> None:
    begun = draft()
    done = complete_dpia(begun, answers(begun), "reject", by=["priya"], on=DAY)
    with pytest.raises(DataError, match="is decided already"):
        complete_dpia(done, {}, "approve", by=["priya"], on=DAY)


@pytest.mark.parametrize(
    "edit",
    [
        {"state": "approve"},
        {"by": ["priya"]},
        {"conditions": ["x"]},
        {"on": "2026-11-23"},
        {"state": "approve", "by": ["priya"], "on": "2026-11-23", "draft": "sha256:0"},  # with open questions
    ],
)
def test_a_draft_that_poses_as_decided_is_no_assessment(edit: dict[str, object], tmp_path: Path) -> None:
    file = tmp_path / "dpia.json"
    file.write_bytes(draft().to_bytes())
    assert load_dpia(file) == draft()
    file.write_text(json.dumps(draft().to_json() | edit))
    with pytest.raises(DataError, match="not an impact assessment"):
        load_dpia(file)


def test_the_markdown_marks_what_is_open() -> None:
    begun = draft()
    text = dpia_markdown(begun)
    assert text.count("TO BE ANSWERED") == len(begun.open)
    assert f"draft: {len(begun.open)} open questions" in text
    done = complete_dpia(begun, answers(begun), "approve", by=["priya"], on=DAY)
    assert "TO BE ANSWERED" not in dpia_markdown(done)
    assert "**approve** at north, by priya on 2026-11-23" in dpia_markdown(done)
