"""Reading packs: every mistake is named by file, rule, field and fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from cohortium.governance.rules import (
    HOUSE,
    Pack,
    RuleError,
    fixture_problems,
    load_packs,
    pack_names,
    parse_pack,
    read_pack,
)

EPSILON_LIMIT = 'limit = { fact = "privacy.epsilon", op = "<=", number = 2.0 }'
MISTAKES = [
    (
        '"<=" = ["cohort.objectors"',
        '"<=" = ["cohort.objector"',
        "rule 'T-OBJECT': must: there is no fact",
        "did you mean 'cohort.objectors'?",
    ),
    ('must = { "<=" =', 'must = { "=<" =', "rule 'T-OBJECT': must: there is no operator '=<'", "use one of all"),
    ("must = { present =", "must = { not = { presant =", "not TOML", "correct that line"),
    (
        '{ "==" = ["transfer.crosses_border", true] }\nmust',
        '{ "==" = ["transfer.crosses_border", "yes"] }\nmust',
        "rule 'T-TRANSFER': applies: 'transfer.crosses_border' is of the wrong type",
        "state true or false",
    ),
    ('fact = "privacy.epsilon"', 'fact = "privacy.epsilom"', "rule 'T-EPSILON'", "did you mean 'privacy.epsilon'?"),
    (
        "number = 2.0",
        "number = nan",
        "rule 'T-EPSILON': limit.number: input should be a finite number",
        "correct the value",
    ),
    ('op = "<="', 'op = "<"', "rule 'T-EPSILON': limit.op: '<' is not a op", "<="),
    (
        'effect = "deny"',
        'effect = "denies"',
        "rule 'T-OBJECT': effect: 'denies' is not a effect",
        "did you mean 'deny'?",
    ),
    (
        'stage = "admission"\neffect = "deny"',
        'stage = "activaton"\neffect = "deny"',
        "rule 'T-OBJECT': stage",
        "did you mean 'activation'?",
    ),
    ('confidence = "C"', 'confidence = "D"', "rule 'T-OBJECT': confidence", "use one of A, B, C, U, house"),
    (
        'confidence = "C"',
        'confidence = "house"',
        "rule 'T-OBJECT': a house rule is 'house' in status and confidence",
        "set both",
    ),
    (
        'plain = "No objectors."',
        'plane = "No objectors."',
        "rule 'T-OBJECT': plane: unknown key 'plane'",
        "did you mean 'plain'?",
    ),
    ('article = "Law 1"\n', "", "rule 'T-OBJECT': article: 'article' is missing", "add article = …"),
    ('id = "T-OBJECT"', 'id = "object"', "rule 'object': id: 'object' is not of the right form", "capital letters"),
    ('id = "T-OBJECT"\n', "", "rule number 1: id: 'id' is missing", "add id = …"),
    (
        'effect = "deny"',
        'effect = "obligation"',
        "rule 'T-OBJECT': effect 'obligation' has no use for 'must'",
        "remove it",
    ),
    ('obligation = "Answer."\n', "", "rule 'T-REPLY': effect 'obligation' needs 'obligation'", "add it"),
    (
        "clocks = [{ since",
        "clocks = [{ sense",
        "rule 'T-REPLY': clock number 1, sense: unknown key",
        "did you mean 'since'?",
    ),
    ('unit = "months"', 'unit = "month"', "rule 'T-REPLY': clock number 1, unit", "did you mean 'months'?"),
    ('id = "T-EPSILON"', 'id = "T-OBJECT"', "rule 'T-OBJECT': id: occurs twice", "rename or remove one"),
    (
        "in_force_until = 2030-12-31",
        "in_force_until = 2019-12-31",
        "rule 'T-OBJECT': in_force_until: the rule ends before it begins",
        "correct",
    ),
    (
        "in_force_until = 2030-12-31",
        "in_force_until = 2026-11-22",
        "rule 'T-OBJECT': in_force_until: had expired when the pack was read, on 2026-11-23",
        "remove the rule",
    ),
    (
        "in_force_from = 2020-01-01",
        "in_force_from = 2026-11-24",
        "rule 'T-OBJECT': in_force_from: is not in force on 2026-11-23",
        "adopted_future",
    ),
    (
        "in_force_from = 2027-05-13",
        "in_force_from = 2026-11-23",
        "rule 'T-TRANSFER': status: is in force on 2026-11-23",
        "in_force",
    ),
    ('disclaimer = "not legal advice"', 'disclaimer = "legal advice"', "disclaimer", "not legal advice"),
    ('name = "tiny"', 'name = "Tiny Pack"', "name: 'Tiny Pack' is not of the right form", "small letters"),
    (
        "cohort.objectors = 0\n",
        "",
        "sheet: the pack's sheet says nothing of 'cohort.objectors', which rule 'T-OBJECT' reads",
        "add cohort.objectors = …",
    ),
    (
        "cohort.objectors = 0\n",
        "cohort.objectors = true\n",
        "sheet: 'cohort.objectors' is of the wrong type",
        "state a number",
    ),
    (
        "cohort.objectors = 0\n",
        "cohort.objectors = 0\ncohort.people = 3\n",
        "sheet: there is no fact 'cohort.people'",
        "did you mean",
    ),
    ("cohort.objectors = 0\n", "cohort.objectors = 4\n", "sheet: fires T-OBJECT", "correct the sheet"),
    (
        "{ cohort.objectors = 2 }",
        "{ cohort.objectors = 0 }",
        "rule 'T-OBJECT': failing: does not break the rule",
        "state facts under which it applies",
    ),
    (
        "{ cohort.objectors = 2 }",
        '{ cohort.objectors = "2" }',
        "rule 'T-OBJECT': failing.facts: 'cohort.objectors' is of the wrong type",
        "state a number",
    ),
    (
        "{ cohort.objectors = 2 }",
        "{ cohort.objectors = 2, privacy.epsilon = 9.0 }",
        "rule 'T-OBJECT': failing: also fires T-EPSILON",
        "name them in also",
    ),
    (
        "{ cohort.objectors = 2 } }",
        '{ cohort.objectors = 2 } }\nalso = ["T-EPSILON"]',
        "rule 'T-OBJECT': also: T-EPSILON does not fire",
        "leave it out",
    ),
    (
        "passing = { facts = { transfer.crosses_border = true } }",
        "passing = {}",
        "rule 'T-TRANSFER': passing: the rule does not apply, so the fixture shows nothing",
        "state facts",
    ),
    (
        "passing = { facts = { privacy.epsilon = 2.0 } }",
        "passing = { facts = { privacy.epsilon = 2.5 } }",
        "rule 'T-EPSILON': passing: fires T-EPSILON",
        "every rule is silent",
    ),
    (
        "done = 2026-02-28T12:00:00Z",
        "done = 2026-03-01T12:00:00Z",
        "rule 'T-REPLY': passing: the duty is late",
        "make it in time",
    ),
    (
        "done = 2026-02-28T12:00:01Z",
        "done = 2026-02-01T12:00:01Z",
        "rule 'T-REPLY': failing: the duty is in time",
        "make it late",
    ),
    (
        "done = 2026-02-28T12:00:00Z\n",
        "",
        "rule 'T-REPLY': passing: a duty's fixture needs since and done",
        "state both",
    ),
    (
        'amount = 1, unit = "months"',
        'before = "next_round"',
        "rule 'T-REPLY': passing: a clock ends before an event that has no date",
        "state before",
    ),
]


@pytest.mark.parametrize(
    ("old", "new", "spot", "fix"), MISTAKES, ids=[f"{m[2][:50]}-{i}" for i, m in enumerate(MISTAKES)]
)
def test_a_mistake_is_named(pack_text: str, tmp_path: Path, old: str, new: str, spot: str, fix: str) -> None:
    assert old in pack_text
    path = tmp_path / "tiny.toml"
    path.write_text(pack_text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(RuleError) as refused:
        read_pack(path)
    said = str(refused.value)
    assert said.startswith(f"{path}")
    assert spot in said
    assert fix in said.split("fix: ")[1]


def test_a_duty_in_a_failing_fixture_has_to_be_owed(pack_text: str) -> None:
    bent = pack_text.replace(
        "[rules.failing]\nfacts = { transfer.crosses_border = true }", "[rules.failing]\nfacts = {}"
    )
    (problem,) = fixture_problems(parse_pack(bent, "tiny.toml"), "tiny.toml")
    assert "rule 'T-REPLY': failing: the duty is not owed" in str(problem)


def test_a_good_pack_is_read(pack_text: str, tiny: Pack, tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(pack_text, encoding="utf-8")
    assert read_pack(path) == tiny
    assert list(fixture_problems(tiny, "tiny.toml")) == []


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match=r"gone\.toml: No such file or directory — fix: check the path"):
        read_pack(tmp_path / "gone.toml")


def test_the_digest_is_of_the_content(pack_text: str, tiny: Pack) -> None:
    assert tiny.digest == parse_pack("# a comment\n" + pack_text, "elsewhere.toml").digest
    assert tiny.digest != parse_pack(pack_text.replace("number = 2.0", "number = 1.5"), "tiny.toml").digest


def test_the_houses_pack_is_always_in_force() -> None:
    assert [pack.name for pack in load_packs([])] == [HOUSE]
    assert [pack.name for pack in load_packs(["uk", "eu", "uk"])] == [HOUSE, "uk", "eu"]


def test_a_group_is_its_packs() -> None:
    assert {pack.name for pack in load_packs(["gulf"])} == {HOUSE, "sa", "ae", "bh", "sharia"}
    assert {pack.name for pack in load_packs(["us-states"])} == {HOUSE, "us-ca", "us-co", "us-ny"}


def test_a_pack_that_there_is_not_is_named() -> None:
    with pytest.raises(RuleError, match="there is no pack 'golf' — fix: did you mean 'gulf'"):
        load_packs(["eu", "golf"])


def test_all_packs_go_together() -> None:
    assert len(load_packs(pack_names())) == 15


def test_two_packs_of_a_name_are_refused(pack_text: str) -> None:
    own = parse_pack(pack_text.replace('name = "tiny"', 'name = "eu"'), "own.toml")
    with pytest.raises(RuleError, match="two packs are named 'eu'"):
        load_packs(["eu"], own=[own])
    assert len(load_packs(["uk"], own=[own])) == 3


def test_two_rules_of_an_id_in_two_packs_are_refused(pack_text: str) -> None:
    own = parse_pack(pack_text.replace("T-OBJECT", "EU-GDPR-8"), "own.toml")
    with pytest.raises(RuleError, match="packs 'eu' and 'tiny' both have a rule 'EU-GDPR-8'"):
        load_packs(["eu"], own=[own])


def test_packs_that_test_the_same_twice_overlap(pack_text: str, tiny: Pack) -> None:
    renamed = pack_text.replace('name = "tiny"', 'name = "tiny-two"').replace('"T-', '"U-')
    with pytest.raises(RuleError, match=r"'T-OBJECT' and 'U-OBJECT' are the same test of the same article"):
        load_packs([], own=[tiny, parse_pack(renamed, "two.toml")])
