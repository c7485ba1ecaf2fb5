"""Reading packs: strictly, with every mistake named by file, rule, field and fix, and no two packs that overlap."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from cohortium.governance.rules.errors import RuleError
from cohortium.governance.rules.fixtures import fixture_problems
from cohortium.governance.rules.pack import PACK_FORMS, Pack, Rule
from cohortium.study.canonical import digest_json
from cohortium.study.document import parse_toml, read_toml, validated
from cohortium.study.validation import first_repeat, suggestion

__all__ = ["HOUSE", "load_packs", "pack_names", "parse_pack", "read_pack"]

HOUSE = "house"
"""The pack that is in force everywhere, whatever else is asked for."""


def parse_pack(text: str, place: str) -> Pack:
    """The pack in a TOML text, its fixtures not yet run; `RuleError` names place, rule, field and fix."""
    return _pack_of(parse_toml(text, place, RuleError), place)


def read_pack(path: Path) -> Pack:
    """The pack in a TOML file, its fixtures run; `RuleError` names file, rule, field and fix."""
    pack = _pack_of(read_toml(path, RuleError), str(path))
    _refuse_bad_fixtures(pack, str(path))
    return pack


def pack_names() -> tuple[str, ...]:
    """The packs that ship, the house's first."""
    names = sorted(Path(entry.name).stem for entry in _FOLDER.iterdir() if entry.name.endswith(".toml"))
    return (HOUSE, *(name for name in names if name != HOUSE))


def load_packs(names: Iterable[str], own: Sequence[Pack] = ()) -> tuple[Pack, ...]:
    """The packs of these names, or of these groups; the house's is always among them.

    Args:
        names: `eu`, `gulf`, …
        own: packs of the institution's own. They add rules and can make limits stricter, never looser.

    Raises:
        RuleError: no such pack; a pack, a rule or the same test of the same article twice.
    """
    shipped = {name: _shipped(name) for name in pack_names()}
    groups = {pack.group for pack in shipped.values()} - {None}
    chosen = {HOUSE: shipped[HOUSE]}
    for name in names:
        found = [pack for pack in shipped.values() if name in (pack.name, pack.group)]
        if not found:
            raise RuleError(f"there is no pack '{name}'", fix=suggestion(name, [*shipped, *sorted(map(str, groups))]))
        chosen |= {pack.name: pack for pack in found}
    packs = (*chosen.values(), *own)
    _refuse_overlaps(packs)
    return packs


_FOLDER = files("cohortium.governance.rules").joinpath("packs")


@cache
def _shipped(name: str) -> Pack:
    place = f"{name}.toml"
    pack = parse_pack(_FOLDER.joinpath(place).read_text(encoding="utf-8"), place)
    _refuse_bad_fixtures(pack, place)
    return pack


def _refuse_bad_fixtures(pack: Pack, place: str) -> None:
    problem = next(fixture_problems(pack, place), None)
    if problem is not None:
        raise problem


def _pack_of(raw: dict[str, Any], place: str) -> Pack:
    for number, table in enumerate(_tables(raw.get("rules")), start=1):
        named = f"'{table['id']}'" if isinstance(table.get("id"), str) else f"number {number}"
        validated(Rule, table, f"{place}: rule {named}", PACK_FORMS, RuleError)
    pack = validated(Pack, raw, place, PACK_FORMS, RuleError)
    if (twice := first_repeat(rule.id for rule in pack.rules)) is not None:
        raise RuleError("occurs twice", place=f"{place}: rule '{twice}': id", fix="rename or remove one")
    for rule in pack.rules:
        _refuse_stale_dates(pack, rule, place)
        _refuse_missing_facts(pack, rule, place)
    return pack


def _tables(raw: object) -> list[dict[str, Any]]:
    return [entry for entry in raw if isinstance(entry, dict)] if isinstance(raw, list) else []


def _refuse_stale_dates(pack: Pack, rule: Rule, place: str) -> None:
    """The status must be true on the day on which the pack's law was read."""
    spot = f"{place}: rule '{rule.id}'"
    if rule.in_force_until is not None and rule.in_force_until < pack.as_of:
        raise RuleError(
            f"had expired when the pack was read, on {pack.as_of}",
            place=f"{spot}: in_force_until",
            fix="remove the rule, or correct the date",
        )
    began = rule.in_force_from is None or rule.in_force_from <= pack.as_of
    if rule.status in ("in_force", "guidance") and not began:
        raise RuleError(
            f"is not in force on {pack.as_of}, when the pack was read",
            place=f"{spot}: in_force_from",
            fix='set status = "adopted_future", or correct the date',
        )
    if rule.status == "adopted_future" and rule.in_force_from is not None and began:
        raise RuleError(
            f"is in force on {pack.as_of}, when the pack was read",
            place=f"{spot}: status",
            fix='set status = "in_force", or correct the date',
        )


def _refuse_missing_facts(pack: Pack, rule: Rule, place: str) -> None:
    for name in rule.reads:
        if name not in pack.sheet:
            raise RuleError(
                f"the pack's sheet says nothing of '{name}', which rule '{rule.id}' reads",
                place=f"{place}: sheet",
                fix=f"add {name} = … so that the rule is silent",
            )


def _refuse_overlaps(packs: Sequence[Pack]) -> None:
    if (twice := first_repeat(pack.name for pack in packs)) is not None:
        raise RuleError(f"two packs are named '{twice}'", fix="rename one, or leave one out")
    owner: dict[str, str] = {}
    tests: dict[str, str] = {}
    for pack in packs:
        for rule in pack.rules:
            if rule.id in owner:
                raise RuleError(
                    f"packs '{owner[rule.id]}' and '{pack.name}' both have a rule '{rule.id}'",
                    fix="rename the rule in one, or leave one pack out",
                )
            owner[rule.id] = pack.name
            key = _test_key(rule)
            if key in tests:
                raise RuleError(
                    f"rules '{tests[key]}' and '{rule.id}' are the same test of the same article: the packs overlap",
                    fix="leave one rule or one pack out",
                )
            tests[key] = rule.id


def _test_key(rule: Rule) -> str:
    parts = (rule.applies, rule.must, rule.limit and rule.limit.model_dump(), rule.obligation)
    return digest_json([rule.article, rule.stage, *parts])
