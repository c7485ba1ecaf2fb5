"""`cohortium rules`: what the rule packs say, what they decide of a fact sheet, and whether they hold together."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from cohortium.governance.rules import (
    Decision,
    Facts,
    Pack,
    Rule,
    RuleError,
    Stage,
    evaluate,
    export_cedar,
    fact_schema,
    fixture_problems,
    load_packs,
    pack_names,
    parse_pack,
    read_facts,
    read_pack,
    words,
)
from cohortium.study.errors import OutputError
from cohortium.study.validation import suggestion

__all__ = ["app"]

REFUSED = 1
"""Exit code of `check` when the facts are refused, and of `test` when a fixture fails; mistakes exit with 2."""

app = typer.Typer(
    name="rules",
    help="Rule packs of law and house limits: read, explain, try on facts, test. Not legal advice.",
    no_args_is_help=True,
)

_Packs = Annotated[
    list[str] | None, typer.Option("--pack", help="A pack or a group of packs; repeat it. All, if left out.")
]
_Own = Annotated[
    list[Path] | None, typer.Option("--own", help="A pack of your own, a TOML file; repeat it. Only ever stricter.")
]
_Today = Annotated[
    datetime | None, typer.Option("--today", formats=["%Y-%m-%d"], help="The day to decide for; today, if left out.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command("list")
def list_rules(
    packs: _Packs = None,
    own: _Own = None,
    stage: Annotated[Stage | None, typer.Option(help="Only rules of this stage.")] = None,
    confidence: Annotated[
        Literal["A", "B", "C", "U", "house"] | None, typer.Option(help="Only rules of this confidence.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """The rules of packs: id, stage, effect, confidence, and what each asks for. The house's pack is always among them.

    Confidence: A read in official text, B secondary source, C recalled, U uncertain, house our own limit. C and U are
    unverified.

    \b
    Examples:
      cohortium rules list --pack eu --pack uk
      cohortium rules list --confidence U --json
    """
    chosen = _loaded(packs, own)
    rules = [
        (pack, rule)
        for pack in chosen
        for rule in pack.rules
        if stage in (None, rule.stage) and confidence in (None, rule.confidence)
    ]
    if as_json:
        typer.echo(json.dumps([_as_json(pack, rule) for pack, rule in rules], indent=2, ensure_ascii=False))
        return
    for _pack, rule in rules:
        typer.echo(f"{rule.id:<20} {rule.stage:<10} {rule.effect:<10} {rule.mark:<13} {rule.plain}")
    typer.echo(f"{len(rules)} rules of {', '.join(pack.name for pack in chosen)}; not legal advice")


@app.command("explain")
def explain(
    rule_id: Annotated[str, typer.Argument(metavar="RULE", help="The rule's id, such as EU-GDPR-21-2.")],
    own: _Own = None,
    as_json: _Json = False,
) -> None:
    """One rule: plain words, article, what it tests, its fixtures, and how sure its reading is.

    \b
    Example:
      cohortium rules explain EU-GDPR-21-2
    """
    known = {rule.id: (pack, rule) for pack in _loaded(None, own) for rule in pack.rules}
    if rule_id not in known:
        raise RuleError(f"there is no rule '{rule_id}'", fix=suggestion(rule_id, known))
    pack, rule = known[rule_id]
    if as_json:
        typer.echo(json.dumps(_as_json(pack, rule), indent=2, ensure_ascii=False))
    else:
        _print_rule(pack, rule)


@app.command("check")
def check(
    sheets: Annotated[list[Path], typer.Argument(metavar="SHEET...", help="Fact sheets, TOML or JSON.")],
    stage: Annotated[Stage, typer.Option(help="What is asked for: to run, to export, or to keep a model.")],
    packs: _Packs = None,
    own: _Own = None,
    today: _Today = None,
    as_json: _Json = False,
) -> None:
    """Decide a stage of the facts in sheets. What no sheet states is unknown, and unknown refuses.

    Exits with 0 when admitted, 1 when declined, 2 for a mistake in a sheet or pack. Two sheets that state different
    values for a fact are a mistake.

    \b
    Examples:
      cohortium rules check facts.toml --stage admission --pack eu --pack uk
      cohortium rules check plan-facts.json our-facts.toml --stage activation --own our-rules.toml
    """
    facts = Facts.merged(*(read_facts(sheet) for sheet in sheets))
    decision = evaluate(_loaded(packs, own), facts, stage, _day(today))
    if as_json:
        typer.echo(json.dumps({**decision.to_json(), "id": decision.id}, indent=2, ensure_ascii=False))
    else:
        _print_decision(decision)
    if not decision.admitted:
        raise typer.Exit(REFUSED)


@app.command("test")
def run_fixtures(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[PACK...]", help="Packs, TOML files; those that ship if left out.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Run the fixtures of packs: every passing one must be silent, every failing one fire its rule and no other.

    Also says when a pack overlaps with one that ships. Exits with 0 when every fixture holds, 1 when one does not, 2
    when a pack cannot be read.

    \b
    Examples:
      cohortium rules test
      cohortium rules test our-rules.toml
    """
    packs = [(parse_pack(_text_of(file), str(file)), str(file)) for file in files or ()]
    shipped = load_packs(pack_names(), own=[pack for pack, _ in packs])
    tested = packs or [(pack, f"{pack.name}.toml") for pack in shipped]
    problems = [str(problem) for pack, place in tested for problem in fixture_problems(pack, place)]
    rules = sum(len(pack.rules) for pack, _ in tested)
    if as_json:
        told = {"packs": {pack.name: pack.digest for pack, _ in tested}, "rules": rules, "problems": problems}
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        for problem in problems:
            typer.echo(problem)
        verdict = f"{len(problems)} fixtures do NOT hold" if problems else "every fixture holds"
        typer.echo(f"{rules} rules in {len(tested)} packs: {verdict}")
    if problems:
        raise typer.Exit(REFUSED)


@app.command("export")
def export(
    cedar: Annotated[Path, typer.Option(help="Folder for policies.cedar and schema.json; neither is overwritten.")],
    packs: _Packs = None,
    own: _Own = None,
    today: _Today = None,
) -> None:
    """Write the rules that are in force as Cedar policies with their schema.

    Cedar has no unknown: send it only requests in which every fact is stated, and always with the schema.

    \b
    Example:
      cohortium rules export --cedar cedar --pack eu --pack uk
    """
    made = export_cedar(_loaded(packs, own), _day(today))
    cedar.mkdir(parents=True, exist_ok=True)
    texts = {"policies.cedar": made.policies, "schema.json": json.dumps(made.schema, indent=2) + "\n"}
    for name in texts:
        if (cedar / name).exists():
            raise OutputError("is there already", place=str(cedar / name), fix="name another folder")
    for name, text in texts.items():
        (cedar / name).write_text(text, encoding="utf-8")
        typer.echo(f"wrote {cedar / name}")


def _loaded(packs: list[str] | None, own: list[Path] | None) -> tuple[Pack, ...]:
    return load_packs(packs or pack_names(), own=[read_pack(file) for file in own or ()])


def _day(today: datetime | None) -> date:
    return datetime.now(UTC).date() if today is None else today.date()


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RuleError("cannot be read", place=str(file), fix="check the path; packs are UTF-8 text") from error


def _as_json(pack: Pack, rule: Rule) -> dict[str, Any]:
    return {"pack": pack.name, "unverified": rule.mark != rule.confidence, **rule.model_dump(mode="json")}


def _print_rule(pack: Pack, rule: Rule) -> None:
    console = Console(highlight=False, markup=False)
    lines = [
        ("", f"{rule.id}: {rule.plain}"),
        ("article", rule.article),
        ("pack", f"{pack.name} ({pack.title}), read on {pack.as_of}; not legal advice"),
        ("stage, effect", f"{rule.stage}, {rule.effect}"),
        ("in force", _dates(rule)),
        ("applies", f"when {words(rule.when)}" if rule.when else "always"),
        ("asks that", words(rule.asks) if rule.asks else ""),
        ("duty", f"{rule.obligation} ({rule.deadline})" if rule.obligation else ""),
        ("silent at", _facts_text(rule.passing.facts)),
        ("fires at", _facts_text(rule.failing.facts)),
        ("confidence", rule.mark),
        ("source", rule.source),
        ("note", rule.note),
    ]
    for label, text in lines:
        if text:
            console.print(f"{label:<14}{text}" if label else text, soft_wrap=True)
    for name in rule.reads:
        console.print(f"  {name}: {fact_schema()[name].meaning} ({fact_schema()[name].origin})", soft_wrap=True)


def _dates(rule: Rule) -> str:
    dates = [f"from {rule.in_force_from}"] if rule.in_force_from else []
    dates += [f"until {rule.in_force_until}"] if rule.in_force_until else []
    return ", ".join([rule.status, *dates])


def _facts_text(facts: dict[str, Any]) -> str:
    shown = (f"{name} = {json.dumps(value, default=str)}" for name, value in facts.items())
    return ", ".join(shown) or "the pack's sheet"


def _print_decision(decision: Decision) -> None:
    console = Console(highlight=False, markup=False)

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    say(f"{decision.stage} on {decision.today}: {decision.public.decision} (not legal advice)")
    for finding in decision.findings:
        say(f"{finding.rule} ({finding.article}; {finding.confidence}): {finding.outcome}")
        say(f"  {finding.plain}")
        for seen in finding.seen:
            state = f"{json.dumps(seen.value, default=str)}, by {seen.provenance}" if seen.provenance else "unknown"
            say(f"  {seen.fact} = {state}")
        say(f"  what would change it: {finding.change}")
    for limit in decision.limits:
        say(f"limit: {limit.fact} {limit.op} {limit.number:g} ({', '.join(limit.rules)})")
    for duty in decision.duties:
        may = "" if duty.certain else "perhaps "
        say(f"{may}owed: {duty.obligation} By when: {duty.deadline} ({duty.rule}, {duty.article}; {duty.confidence})")
    for idle in decision.not_in_force:
        say(f"not applied: {idle.rule}, {idle.why}")
    say(f"packs {', '.join(decision.packs)}; id {decision.id}")
