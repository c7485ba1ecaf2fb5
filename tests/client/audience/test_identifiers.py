"""Identifiers: what is surely one is written in one way, what is not is none."""

from __future__ import annotations

import hashlib

import pytest

from cohortium.client.audience import Column, PhoneRules, parse_column
from cohortium.client.audience.normalise import e164, normaliser
from cohortium.study.errors import DataError

GERMANY, ITALY, AMERICA = PhoneRules("49", "0"), PhoneRules("39", ""), PhoneRules("1", "")
HUNGARY, RUSSIA, SPAIN = PhoneRules("36", "06"), PhoneRules("7", "8"), PhoneRules("34", "")


@pytest.mark.parametrize(
    ("value", "rules", "wanted"),
    [
        ("0170 1234567", GERMANY, "+491701234567"),
        ("(0170) 123-45/67", GERMANY, "+491701234567"),
        ("\u00a00170\u00a01234567 ", GERMANY, "+491701234567"),
        ("+49 (0)170 1234567", GERMANY, "+491701234567"),
        ("0049 170 1234567", GERMANY, "+491701234567"),
        ("+44 20 7946 0958", GERMANY, "+442079460958"),
        ("06 1234 5678", ITALY, "+390612345678"),
        ("347 1234567", ITALY, "+393471234567"),
        ("212 555 0123", AMERICA, "+12125550123"),
        ("1 (212) 555-0123", AMERICA, "+12125550123"),
        ("+1 212 555 0123", GERMANY, "+12125550123"),
        ("06 20 123 4567", HUNGARY, "+36201234567"),
        ("8 912 345-67-89", RUSSIA, "+79123456789"),
        ("612 34 56 78", SPAIN, "+34612345678"),
    ],
)
def test_numbers_become_international_ones(value: str, rules: PhoneRules, wanted: str) -> None:
    assert e164(value, rules) == wanted


@pytest.mark.parametrize(
    ("value", "rules"),
    [
        ("", GERMANY),
        ("170 1234567", GERMANY),  # a national number without its trunk prefix, or a foreign one without its plus
        ("491701234567", GERMANY),
        ("0", GERMANY),
        ("01", GERMANY),
        ("0170 1234567 ext 5", GERMANY),
        ("0170-CALL-ME", GERMANY),
        ("++491701234567", GERMANY),
        ("+0170 1234567", GERMANY),
        ("000170 1234567", GERMANY),
        ("+49" + "1" * 14, GERMANY),
        ("0170 1234567, 0171 7654321", GERMANY),
        ("\u0660\u0661\u0667\u0660\u0661\u0662\u0663\u0664\u0665\u0666\u0667", GERMANY),
        ("393471234567", ITALY),
        ("555 0123", AMERICA),
        ("112 555 0123", AMERICA),
        ("+1 212 555 012", GERMANY),
        ("912 345-67-89", RUSSIA),
    ],
)
def test_what_is_not_surely_a_number_is_none(value: str, rules: PhoneRules) -> None:
    assert e164(value, rules) is None


@pytest.mark.parametrize(
    ("code", "trunk"), [("", "0"), ("+49", "0"), ("049", "0"), ("1", "1"), ("39", "0"), ("49", "x")]
)
def test_phone_rules_are_valid_once_made(code: str, trunk: str) -> None:
    with pytest.raises(DataError):
        PhoneRules(code, trunk)


@pytest.mark.parametrize(
    ("steps", "value", "wanted"),
    [
        ("trim", "  Ab ", "Ab"),
        ("trim,lower", "  Ab ", "ab"),
        ("trim", "   ", None),
        ("email", " Ann.O+x@Example.ORG ", "ann.o+x@example.org"),
        ("email", "ann@localhost", None),
        ("email", "a b@example.org", None),
        ("email", "a@b@example.org", None),
        ("email", "a@example.org;b@example.org", None),
        ("email", "a@example..org", None),
        ("e164,digits", "0170 1234567", "491701234567"),
        ("digits", "no digit", None),
    ],
)
def test_steps_follow_each_other(steps: str, value: str, wanted: str | None) -> None:
    assert normaliser(parse_column(f"x:{steps}"), GERMANY)(value) == wanted


def test_sha256_is_of_the_normalised_utf8_text_in_hexadecimal() -> None:
    hashed = normaliser(parse_column("email:email,sha256"), None)
    assert hashed(" Ann@Example.org") == hashlib.sha256(b"ann@example.org").hexdigest()
    assert (
        normaliser(parse_column("name:lower,sha256"), None)("\u00c4") == hashlib.sha256("\u00e4".encode()).hexdigest()
    )


@pytest.mark.parametrize("steps", ["trim,sha256", "email,sha256", "digits,sha256"])
def test_nothing_is_never_hashed(steps: str) -> None:
    assert normaliser(parse_column(f"x:{steps}"), None)("  ") is None


def test_a_hash_is_not_hashed_again() -> None:
    assert normaliser(parse_column("x:email,sha256"), None)("0" * 64) is None
    with pytest.raises(DataError, match="a step follows sha256"):
        parse_column("x:sha256,sha256")


def test_columns_are_written_in_one_line() -> None:
    assert parse_column("phone") == Column("phone", "phone")
    assert parse_column("em=mail:email,sha256") == Column("em", "mail", ("email", "sha256"))
    for text in ("", "a b", "x:upper", "x:email,e164", "x:"):
        if text == "x:":
            assert parse_column(text) == Column("x", "x")
            continue
        with pytest.raises(DataError):
            parse_column(text)


def test_e164_needs_rules() -> None:
    with pytest.raises(DataError, match="default calling code"):
        normaliser(parse_column("phone:e164"), None)
