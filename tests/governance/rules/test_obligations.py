"""The register of obligations: what decisions bring, what events open, by when, and that nothing is undone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from cohortium.governance.obligations import SOON, ObligationRegister, deadline, parts_of
from cohortium.governance.rules import Decision, Duty, Facts, Rule, evaluate, load_packs, overdue
from cohortium.privacy.ledger import open_store
from cohortium.study.errors import DataError, RefusedError

PACKS = load_packs(["eu", "uk", "us", "us-states", "sg", "th", "gulf", "in", "br"])
CLEAN = Facts.of({name: value for pack in PACKS for name, value in pack.sheet.items()}, "the packs' sheets")
OWED = [rule for pack in PACKS for rule in pack.rules if not rule.refuses]
PLAN, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64
SINCE = date(2026, 1, 1)
START = datetime(2026, 3, 2, 9, tzinfo=UTC)
RULE = "EU-GDPR-12-3"


class Clock:
    now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


EVERYWHERE = pytest.mark.parametrize("store", ["sqlite", "postgresql"], indirect=True)
"""What holds whatever the database."""


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    if getattr(request, "param", "sqlite") == "postgresql":
        request.getfixturevalue("in_postgresql")(tmp_path)
    engine = open_store(tmp_path / "obligations.sqlite")
    yield engine
    engine.dispose()


@pytest.fixture
def register(store: sa.Engine, clock: Clock) -> ObligationRegister:
    return ObligationRegister(store, clock)


def decided(*rules: str, deadline: str | None = None) -> Decision:
    """A decision that brings the duties of these rules, whatever their stage and dates."""
    made = evaluate(PACKS, CLEAN, "retention", date(2026, 3, 2)).to_json()
    chosen = [(pack, rule) for pack in PACKS for rule in pack.rules if rule.id in rules]
    made["duties"] = [duty(pack.name, rule, deadline) for pack, rule in chosen]
    return Decision.model_validate(made)


def duty(pack: str, rule: Rule, deadline: str | None = None) -> dict[str, Any]:
    made = Duty(
        rule=rule.id,
        pack=pack,
        article=rule.article,
        confidence=rule.mark,
        obligation=rule.obligation or "",
        deadline=deadline or rule.deadline or "",
        clocks=rule.clocks,
        certain=True,
    )
    return made.model_dump(mode="json")


def asked(register: ObligationRegister, at: datetime = START, note: str = "case 7") -> str:
    """The obligation of one request for rights."""
    register.owe(decided(RULE), PLAN, SINCE)
    _, (opened,) = register.record("rights_request", at, note)
    return opened


# --- deadlines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", OWED, ids=lambda rule: rule.id)
def test_a_deadline_is_the_one_by_which_the_packs_fixtures_are_judged(
    rule: Rule, register: ObligationRegister, clock: Clock
) -> None:
    register.owe(decided(rule.id), PLAN, SINCE)
    for fixture in (rule.passing, rule.failing):
        assert fixture.since is not None
        assert fixture.done is not None
        clock.now = max(fixture.since, fixture.done)
        for kind in {part.event for part in parts_of(register.standing()[0].duty)}:
            register.record(kind, fixture.since, "it happened")
        for before in {clock.before for clock in rule.clocks if clock.before and clock.before != clock.since}:
            register.record(before.removeprefix("next_"), fixture.before or fixture.since, "it ended")
        opened = [one for one in register.obligations() if one.event.at == fixture.since]
        assert opened
        late = any(one.state(fixture.done) == "overdue" for one in opened)
        assert late is overdue(rule, fixture.since, fixture.done, fixture.before)


def test_the_last_moment_is_in_time_and_the_next_second_is_not(register: ObligationRegister, clock: Clock) -> None:
    asked(register)
    (one,) = register.obligations()
    last = datetime(2026, 4, 2, 9, tzinfo=UTC)
    assert one.due == last
    states = {span: one.state(last - span) for span in (SOON + timedelta(seconds=1), SOON, timedelta(0))}
    assert list(states.values()) == ["open", "due soon", "due soon"]
    assert one.state(last + timedelta(seconds=1)) == "overdue"
    clock.now = last + timedelta(seconds=1)
    assert register.close(one.id, "the privacy office", "told the person", "case 7", last).was_late is False


def test_a_clock_that_ends_before_an_event_waits_for_it(register: ObligationRegister, clock: Clock) -> None:
    register.owe(decided("UK-PRIN-2A-9"), PLAN, SINCE)
    register.record("audit", START, "audit of March")
    (one,) = register.obligations()
    assert (one.due, one.before, one.state(START + timedelta(days=900))) == (None, ("next_audit",), "open")
    planned = START + timedelta(days=90)
    register.record("audit", planned, "audit of June, planned")
    first, second = register.obligations()
    assert (first.due, first.before) == (planned, ())
    assert (second.due, second.event.at) == (None, planned)


def test_of_an_amount_and_an_event_the_earlier_ends_it(register: ObligationRegister) -> None:
    (part,) = parts_of(Duty.model_validate(duty("eu", next(r for r in OWED if r.id == "EU-GDPR-17-MODEL"))))
    assert deadline(part, "erasure", START, ()) == (START + timedelta(days=90), ("next_retraining",))
    register.owe(decided("EU-GDPR-17-MODEL"), PLAN, SINCE)
    retrained = START + timedelta(days=30)
    event, opened = register.record("retraining", retrained, "the spring encoder")
    assert opened == ()
    assert deadline(part, "erasure", START, [event]) == (retrained, ())
    assert deadline(part, "erasure", retrained, [event])[0] == retrained + timedelta(days=90)


def test_parts_of_a_duty_have_deadlines_of_their_own(register: ObligationRegister) -> None:
    register.owe(decided("SG-PDPA-16"), PLAN, SINCE)
    register.record("withdrawal", START, "by letter")
    assert {one.part.act: one.due for one in register.obligations()} == {
        "leave out of rounds": START + timedelta(hours=24),
        "stop everywhere": datetime(2026, 3, 16, 9, tzinfo=UTC),
    }


# --- opening ---------------------------------------------------------------------------------------------------------


@EVERYWHERE
def test_a_duty_stands_once_however_often_it_is_decided(register: ObligationRegister) -> None:
    decision = decided(RULE)
    assert register.owe(decision, PLAN, SINCE) == (RULE,)
    assert register.owe(decision, PLAN, SINCE) == ()
    assert register.owe(decided(RULE), PLAN, SINCE) == ()
    assert register.owe(decided(RULE), OTHER, SINCE) == (RULE,)
    (standing,) = register.standing()
    assert standing.plans == (PLAN, OTHER)
    assert standing.decisions[0] == decision.id
    opened = asked(register)
    assert [one.id for one in register.obligations()] == [opened]
    assert register.obligations()[0].plans == (PLAN, OTHER)


@EVERYWHERE
def test_the_same_event_told_twice_opens_nothing_twice(register: ObligationRegister) -> None:
    opened = asked(register)
    assert register.record("rights_request", START, "case 7")[1] == (opened,)
    assert asked(register, note="case 8") == "ob-2"
    register.close(opened, "the privacy office", "told the person", "case 7")
    assert register.record("rights_request", START, "case 7")[1] == (opened,)
    assert len(register.obligations()) == 2


@EVERYWHERE
def test_an_event_told_before_its_duty_stands_is_not_lost(register: ObligationRegister) -> None:
    asked(register)
    register.owe(decided("EU-GDPR-15-20"), PLAN, START.date())
    assert [one.part.duty.rule for one in register.obligations()] == [RULE, "EU-GDPR-15-20"]
    register.owe(decided("IN-DPDP-R4", "UK-DUAA-COMPLAINT"), PLAN, START.date() + timedelta(days=1))
    register.record("complaint", START, "the day before the duty stood")
    assert len(register.obligations()) == 2


def test_a_changed_rule_holds_for_later_events(register: ObligationRegister) -> None:
    asked(register)
    texts = ["another text", next(rule.deadline for rule in OWED if rule.id == RULE)]
    for number, text in enumerate(texts):
        assert register.owe(decided(RULE, deadline=text), PLAN, SINCE) == (RULE,)
        assert register.standing()[0].duty.deadline == text
        register.record("rights_request", START, f"case {number}")
    told = {one.id: one.part.duty.deadline for one in register.obligations()}
    assert told == {"ob-1": texts[1], "ob-2": texts[0], "ob-3": texts[1]}


def test_of_a_decision_only_the_rules_that_are_named_are_owed(register: ObligationRegister) -> None:
    assert register.owe(decided(RULE, "UK-DUAA-COMPLAINT"), PLAN, SINCE, {"UK-DUAA-COMPLAINT"}) == (
        "UK-DUAA-COMPLAINT",
    )
    assert [duty.duty.rule for duty in register.standing()] == ["UK-DUAA-COMPLAINT"]


def test_events_of_another_store_open_one_obligation_until_it_is_closed(
    register: ObligationRegister, clock: Clock
) -> None:
    register.owe(decided("EU-GDPR-17-MODEL"), PLAN, SINCE)
    told = [(START + timedelta(days=day), f"consent event {day}") for day in (-400, 0, 1, 9)]
    assert register.record_found("erasure", told) == ("ob-1",)
    assert register.record_found("erasure", told) == ()
    (one,) = register.obligations()
    assert (one.event.source, one.due) == ("consent event 0", START + timedelta(days=90))
    clock.now = START + timedelta(days=5)
    register.close("ob-1", "the model's owner", "attack test passed", "report 12")
    assert register.record_found("erasure", told) == ("ob-2",)
    assert [one.event.source for one in register.obligations() if one.closure is None] == ["consent event 9"]


def test_an_unknown_event_is_named_with_the_known_ones(register: ObligationRegister) -> None:
    with pytest.raises(RefusedError, match=r"no duty here begins or ends .* run retention first"):
        register.record("breach", START, "case 1")
    register.owe(decided(RULE), PLAN, SINCE)
    with pytest.raises(RefusedError, match="use one of rights_request"):
        register.record("breach", START, "case 1")
    with pytest.raises(RefusedError, match="did you mean 'rights_request'"):
        register.record("right_request", START, "case 1")
    assert register.obligations() == ()


def test_only_what_is_planned_may_lie_ahead(register: ObligationRegister) -> None:
    register.owe(decided(RULE, "EU-CCD2-13"), PLAN, SINCE)
    ahead = START + timedelta(days=3)
    with pytest.raises(RefusedError, match="lies in the future"):
        register.record("rights_request", ahead, "case 1")
    _, (opened,) = register.record("offer", ahead, "spring cards")
    assert register.obligations()[0].due == ahead
    assert register.close(opened, "the campaign's owner", "printed in the letter", "proof 3").was_late is False


# --- closing and extending -------------------------------------------------------------------------------------------


@EVERYWHERE
def test_closing_keeps_who_when_how_and_evidence(store: sa.Engine, register: ObligationRegister, clock: Clock) -> None:
    opened = asked(register)
    clock.now = START + timedelta(days=40)
    register.close(opened, " the privacy office ", "told the person", "case 7", START + timedelta(days=20))
    (one,) = ObligationRegister(store, clock).obligations()
    assert one.closure is not None
    assert (one.closure.by, one.closure.how, one.closure.evidence) == (
        "the privacy office",
        "told the person",
        "case 7",
    )
    assert (one.closure.at, one.closure.recorded_at) == (START + timedelta(days=20), clock.now)
    assert (one.state(clock.now), one.was_late) == ("closed", False)


def test_closing_late_is_seen(register: ObligationRegister, clock: Clock) -> None:
    opened = asked(register)
    clock.now = START + timedelta(days=31, seconds=1)
    assert register.close(opened, "the privacy office", "told the person", "case 7").was_late


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"id": "ob-9"}, "no such obligation — fix: did you mean 'ob-1'"),
        ({"at": START - timedelta(seconds=1)}, "was done before it was owed"),
        ({"at": START + timedelta(days=9)}, "lies in the future"),
        ({"at": datetime(2026, 3, 2, 9)}, "no time zone"),
        ({"by": " "}, "by: is no line"),
        ({"evidence": "a\nb"}, "evidence: is no line"),
        ({"how": "x" * 513}, "how: is no line"),
    ],
)
def test_a_closing_that_cannot_be_is_refused(register: ObligationRegister, change: dict[str, Any], word: str) -> None:
    said = {"id": asked(register), "by": "the office", "how": "told the person", "evidence": "case 7", **change}
    with pytest.raises((RefusedError, DataError), match=word):
        register.close(**said)
    assert register.obligations()[0].closure is None


@EVERYWHERE
def test_nothing_is_closed_twice(register: ObligationRegister) -> None:
    opened = asked(register)
    register.close(opened, "the privacy office", "told the person", "case 7")
    for act in (
        lambda: register.close(opened, "somebody else", "told again", "case 8"),
        lambda: register.extend(opened, "somebody else", "more time"),
    ):
        with pytest.raises(RefusedError, match=r"was closed by the privacy office, 2026-03-02T09:00:00\+00:00"):
            act()


@EVERYWHERE
def test_an_extension_is_as_long_as_the_rule_allows_and_once(register: ObligationRegister, clock: Clock) -> None:
    opened = asked(register)
    extended = register.extend(opened, "the privacy office", "eleven systems to search")
    assert extended.due == datetime(2026, 6, 2, 9, tzinfo=UTC)
    assert extended.extension is not None
    assert extended.extension.reason == "eleven systems to search"
    with pytest.raises(RefusedError, match="was extended before"):
        register.extend(opened, "the privacy office", "still searching")
    late = asked(register, note="case 8")
    clock.now = datetime(2026, 4, 2, 9, 0, 1, tzinfo=UTC)
    with pytest.raises(RefusedError, match="is overdue"):
        register.extend(late, "the privacy office", "forgotten")
    register.owe(decided("UK-DUAA-COMPLAINT"), PLAN, SINCE)
    _, (complaint,) = register.record("complaint", clock.now, "case 9")
    with pytest.raises(RefusedError, match="lets nobody take longer"):
        register.extend(complaint, "the privacy office", "busy")


# --- the file --------------------------------------------------------------------------------------------------------


@EVERYWHERE
def test_no_row_is_changed_replaced_or_taken_away(store: sa.Engine, register: ObligationRegister) -> None:
    opened = asked(register)
    register.extend(opened, "the privacy office", "eleven systems")
    register.close(opened, "the privacy office", "told the person", "case 7")
    with store.begin() as connection:
        tables = sa.inspect(connection).get_table_names()
        first = {name: connection.exec_driver_sql(f"SELECT * FROM {name}").mappings().first() for name in tables}
    assert len(tables) == 7
    for name, row in first.items():
        assert row is not None, name
        column = next(iter(row))
        sqlite = store.dialect.name == "sqlite"
        marks = ", ".join(["?" if sqlite else "%s"] * len(row))
        for act, values in (
            (f'UPDATE {name} SET "{column}" = "{column}"', ()),
            (f"DELETE FROM {name}", ()),
            (f"INSERT {'OR REPLACE ' if sqlite else ''}INTO {name} VALUES ({marks})", tuple(row.values())),
            *([] if sqlite else [(f"TRUNCATE {name} CASCADE", ())]),
        ):
            with pytest.raises(IntegrityError, match="append-only"), store.begin() as connection:
                connection.exec_driver_sql(act, values)


def test_another_file_is_refused(tmp_path: Path) -> None:
    engine = open_store(tmp_path / "other.sqlite")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE something (x)")
    with pytest.raises(DataError, match="no register of obligations"):
        ObligationRegister(engine)
    engine.dispose()


def test_a_register_is_read_without_being_changed(store: sa.Engine, register: ObligationRegister) -> None:
    asked(register)
    path = Path(str(store.url.database))
    store.dispose()
    engine = open_store(path, read_only=True)
    assert len(ObligationRegister(engine).obligations()) == 1
    engine.dispose()
