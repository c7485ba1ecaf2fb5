"""`cohortium audience`: from scored customers to files for a destination, and back to nobody."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.console import Console
from rich.table import Table

from cohortium.cli.access import authorised
from cohortium.client.audience import (
    Activation,
    ChosenAudience,
    Contacts,
    Destination,
    ExportManifest,
    IdList,
    Level,
    ListedAudience,
    ListMatch,
    PhoneRules,
    Preview,
    create,
    custom_level,
    expire,
    export,
    export_removal,
    export_withdrawals,
    list_audiences,
    parse_column,
    preview,
    read_manifest,
    read_scores_facts,
    refresh,
    settle,
)
from cohortium.client.audience.files import FORMATS, Format
from cohortium.client.lookalike import AdmittedModel, NodeRecords, admit_model, approved_plan, open_records
from cohortium.governance.access import Act
from cohortium.governance.report.bands import SUPPRESSED
from cohortium.study.errors import DataError, RefusedError

__all__ = ["app"]

app = typer.Typer(
    name="audience",
    help="Audiences from scored customers: preview, create, export, refresh, expire. Nothing goes through the "
    "federation.",
    no_args_is_help=True,
)

_FORMATS: dict[str, Format] = {form: form for form in FORMATS}

_Node = Annotated[Path, typer.Argument(metavar="NODE", help="The node's state folder.")]
_Audience = Annotated[str, typer.Argument(metavar="AUDIENCE", help="The audience's id; `audience list` has it.")]
_Scores = Annotated[Path, typer.Option(help="The scores file that `cohortium score` wrote.")]
_Model = Annotated[
    Path | None, typer.Option(help="The model that gave the scores, for its levels; not needed with cut-offs alone.")
]
_Suppress = Annotated[
    list[Path] | None, typer.Option(help="CSV or Parquet file of customers who stay out; repeat it for several.")
]
_Column = Annotated[str, typer.Option(help="Which column of the suppression lists holds the ids.")]
_AllowUnmatched = Annotated[
    bool, typer.Option("--allow-unmatched", help="Take suppression lists of which nobody is a customer here.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command("preview")
def preview_levels(
    node: _Node,
    scores: _Scores,
    model: _Model = None,
    level: Annotated[
        list[str] | None, typer.Option(help="A level of the model; repeat it. All of them when left out.")
    ] = None,
    cutoff: Annotated[list[float] | None, typer.Option(help="A cut-off on the score instead; repeat it.")] = None,
    suppress: _Suppress = None,
    column: _Column = "id",
    allow_unmatched: _AllowUnmatched = False,
    as_json: _Json = False,
) -> None:
    """Show how many customers every level would have here, in bands, after all exclusions. Nothing is recorded.

    \b
    Examples:
      cohortium audience preview state/north --scores scores.parquet --model lookalike.safetensors
      cohortium audience preview state/north --scores scores.parquet --cutoff 1.5 --suppress objections.csv
    """
    authorised(node, Act.AUDIENCE_READ)
    with open_records(node) as records:
        levels = _levels(records, scores, model, level or [], cutoff or [])
        min_cell = _min_cell(records, scores)
        hidden = {} if model is None or level or cutoff else _model_of(records, scores, model).suppressed
        told = preview(
            scores,
            levels,
            origin=records.origin(),
            min_cell=min_cell,
            suppression=_lists(suppress, column, allow_unmatched),
            activation=_activation(records, scores),
        )
    _warn_of_strangers(told.lists)
    if as_json:
        typer.echo(json.dumps(_preview_json(told, hidden), indent=2))
    else:
        _print_preview(told, hidden, min_cell)


@app.command("create")
def create_audience(
    node: _Node,
    scores: _Scores,
    name: Annotated[str, typer.Option(help="What people call it, also where it is exported to.")],
    model: _Model = None,
    level: Annotated[
        str | None, typer.Option(help="A level of the model: narrow, balanced, broad, bin-01 and so on.")
    ] = None,
    cutoff: Annotated[float | None, typer.Option(help="A cut-off on the score instead of a level.")] = None,
    suppress: _Suppress = None,
    column: _Column = "id",
    allow_unmatched: _AllowUnmatched = False,
    allow_name: Annotated[
        str | None, typer.Option(metavar="REASON", help="Why a name that suggests something sensitive is right.")
    ] = None,
    replaces: Annotated[
        str | None, typer.Option(metavar="AUDIENCE", help="An active audience that expires in the same instant.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Choose the members of a new audience and record it under a fresh id. Nothing is exported yet.

    It lasts 30 days, less when the model ends earlier. Seeds, customers on a suppression list and whoever may not be
    activated stay out; fewer members than the plan's minimum cell are refused.

    \b
    Examples:
      cohortium audience create state/north --scores scores.parquet --model lookalike.safetensors \\
        --level balanced --name "spring campaign A" --suppress objections.csv --column customer_id
      cohortium audience create state/north --scores scores.parquet --cutoff 1.5 --name "spring campaign B"
    """
    authorised(node, Act.AUDIENCE_CREATE, name)
    with open_records(node) as records:
        chosen_level = _one_level(records, scores, model, level, cutoff)
        made = create(
            records.audiences(),
            scores,
            chosen_level,
            name,
            min_cell=_min_cell(records, scores),
            suppression=_lists(suppress, column, allow_unmatched),
            activation=_activation(records, scores),
            name_reason=allow_name,
            replaces=replaces,
        )
    _print_chosen(made, as_json=as_json)


@app.command("refresh")
def refresh_audience(
    node: _Node,
    audience: _Audience,
    scores: _Scores,
    suppress: _Suppress = None,
    column: _Column = "id",
    allow_unmatched: _AllowUnmatched = False,
    as_json: _Json = False,
) -> None:
    """Choose an active audience's members anew from newer scores of the same model; the next export has the changes.

    Whoever was suppressed before stays out.

    \b
    Example:
      cohortium audience refresh state/north aud-0123 --scores scores.parquet --suppress objections.csv
    """
    authorised(node, Act.AUDIENCE_CREATE, audience)
    with open_records(node) as records:
        made = refresh(
            records.audiences(),
            audience,
            scores,
            suppression=_lists(suppress, column, allow_unmatched),
            activation=_activation(records, scores),
        )
    _print_chosen(made, as_json=as_json)


@app.command("export")
def export_audience(
    node: _Node,
    audience: _Audience,
    out: Annotated[Path, typer.Option(help="The folder to write; a new one.")],
    form: Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")] = "csv",
    contacts: Annotated[
        Path | None, typer.Option(help="CSV or Parquet file with the customers' identifiers, one line each.")
    ] = None,
    id_column: Annotated[str, typer.Option(help="Which column of the contacts holds the ids.")] = "id",
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SOURCE:STEPS",
            help="A column of the export, its source in the contacts and its steps; repeat it. The id when left out.",
        ),
    ] = None,
    calling_code: Annotated[
        str | None, typer.Option(help="For the step e164: calling code of numbers written without one, such as 44.")
    ] = None,
    trunk: Annotated[
        str, typer.Option(help="For the step e164: what national numbers begin with, such as 0; empty for none.")
    ] = "",
    max_rows: Annotated[int | None, typer.Option(min=1, help="Most rows of a file; one file when left out.")] = None,
    destination: Annotated[str, typer.Option(help="Whom it is for; each has its own sequence.")] = "default",
    removal: Annotated[
        bool, typer.Option("--removal", help="Of an expired audience: remove everybody the destination still holds.")
    ] = False,
    withdrawals: Annotated[
        bool, typer.Option("--withdrawals", help="Only remove: who left, or may no longer be activated. Asks nobody.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Write an audience for a destination into a new folder: full the first time, afterwards what changed.

    The folder appears whole or not at all, with a manifest. Steps: trim, lower, email, e164, digits, sha256. What is
    not surely an identifier becomes none and is counted. Scores and reasons are never exported.

    \b
    Examples:
      cohortium audience export state/north aud-0123 --out ads-1 --format csv
      cohortium audience export state/north aud-0123 --out ads-1 --destination ads --contacts crm.csv \\
        --id-column customer_id --column email=mail:email,sha256 --column phone:e164,sha256 --calling-code 44 --trunk 0
      cohortium audience export state/north aud-0123 --out ads-2 --destination ads --withdrawals
      cohortium audience export state/north aud-0123 --out ads-3 --destination ads --removal
    """
    authorised(node, Act.AUDIENCE_EXPORT, audience)
    chosen_format = _format(form)
    with open_records(node) as records:
        store = records.audiences()
        if removal and withdrawals:
            raise DataError("is everybody", place="--removal", fix="leave one of --removal and --withdrawals out")
        if withdrawals:
            _refuse_with_removal(contacts, column, calling_code, "--withdrawals")
            allowed = records.activation(store.audience(audience).plan)
            export_withdrawals(
                store, audience, out, destination, activation=allowed, format=chosen_format, max_rows=max_rows
            )
        elif removal:
            _refuse_with_removal(contacts, column, calling_code, "--removal")
            export_removal(store, audience, out, destination, format=chosen_format, max_rows=max_rows)
        else:
            phones = PhoneRules(calling_code, trunk) if calling_code is not None else None
            columns = tuple(parse_column(text) for text in column or ["id"])
            to = Destination(destination, columns, chosen_format, max_rows, phones)
            listed = Contacts(contacts, id_column) if contacts is not None else None
            allowed = records.activation(store.audience(audience).plan)
            export(store, audience, out, to, contacts=listed, activation=allowed)
    _print_manifest(read_manifest(out), out, as_json=as_json)


@app.command("expire")
def expire_audience(node: _Node, audience: _Audience, as_json: _Json = False) -> None:
    """End an audience for ever, and say which destinations still hold members. Its id stays taken.

    \b
    Example:
      cohortium audience expire state/north aud-0123
    """
    authorised(node, Act.AUDIENCE_CREATE, audience)
    with open_records(node) as records:
        ended = expire(records.audiences(), audience)
    if as_json:
        typer.echo(json.dumps(_listed_json(ended), indent=2))
        return
    typer.echo(f"{ended.audience.id} has expired")
    for name in ended.removal_due:
        typer.echo(
            f"next: cohortium audience export {node} {ended.audience.id} --destination {name} --removal --out DIR"
        )


@app.command("list")
def list_all(node: _Node, as_json: _Json = False) -> None:
    """Show all audiences of a node, expired ones too, what was exported, and which removals are due.

    \b
    Example:
      cohortium audience list state/north
    """
    authorised(node, Act.AUDIENCE_READ)
    with open_records(node) as records:
        listed = list_audiences(records.audiences())
    if as_json:
        typer.echo(json.dumps([_listed_json(entry) for entry in listed], indent=2))
        return
    for entry in listed:
        _print_listed(entry)
    if not listed:
        typer.echo("no audience")


@app.command("settle")
def settle_export(
    node: _Node,
    audience: _Audience,
    outcome: Annotated[
        str,
        typer.Option(
            click_type=click.Choice(["delivered", "lost"]),
            help="delivered: the destination took the folder. lost: nobody did.",
        ),
    ],
    destination: Annotated[str, typer.Option(help="Whom the export was for.")] = "default",
) -> None:
    """Say what became of an interrupted export that was complete and whose folder is gone.

    Delivered, it is recorded. Lost, it is forgotten, and the next export has its changes.

    \b
    Example:
      cohortium audience settle state/north aud-0123 --destination ads --outcome lost
    """
    authorised(node, Act.AUDIENCE_EXPORT, audience)
    with open_records(node) as records:
        record = settle(records.audiences(), audience, destination, "delivered" if outcome == "delivered" else "lost")
    typer.echo("forgotten" if record is None else f"recorded: {destination} {record.sequence}")


def _levels(
    records: NodeRecords, scores: Path, model: Path | None, names: list[str], cutoffs: list[float]
) -> list[Level]:
    """Those that are named, or all of the model."""
    if model is None:
        if names or not cutoffs:
            raise DataError("levels come from the model", place="--model", fix="give it, or cut-offs alone")
        return [custom_level(cutoff) for cutoff in cutoffs]
    admitted = _model_of(records, scores, model)
    if not (names or cutoffs or admitted.levels):
        why = "; ".join(dict.fromkeys(admitted.suppressed.values())) or "it released none"
        raise RefusedError(f"the campaign has no level to offer: {why}", place=str(model), fix="give a cut-off")
    named = [admitted.level(name) for name in names] if names or cutoffs else list(admitted.levels)
    return named + [custom_level(cutoff) for cutoff in cutoffs]


def _one_level(records: NodeRecords, scores: Path, model: Path | None, name: str | None, cutoff: float | None) -> Level:
    if (name is None) == (cutoff is None):
        raise DataError("neither a level nor a cut-off, or both", place="--level", fix="give one of the two")
    names, cutoffs = [name] if name is not None else [], [cutoff] if cutoff is not None else []
    return _levels(records, scores, model, names, cutoffs)[0]


def _model_of(records: NodeRecords, scores: Path, model: Path) -> AdmittedModel:
    """The model, found to be the one that gave the scores."""
    admitted = admit_model(records, model)
    if read_scores_facts(scores).model != admitted.model.digest:
        raise RefusedError(
            "the scores are of another model", place=str(scores), fix=f"score again with {model.name}, or give its own"
        )
    return admitted


def _min_cell(records: NodeRecords, scores: Path) -> int:
    return approved_plan(records, read_scores_facts(scores).plan, str(scores)).min_cell


def _activation(records: NodeRecords, scores: Path) -> Activation:
    """Who may be activated under the plan of a scores file."""
    return records.activation(read_scores_facts(scores).plan)


def _lists(files: list[Path] | None, column: str, allow_unmatched: bool) -> tuple[IdList, ...]:
    return tuple(IdList(file, column, allow_unmatched) for file in files or ())


def _format(text: str) -> Format:
    if text not in _FORMATS:
        raise DataError(f"no format '{text}'", place="--format", fix=f"use one of {', '.join(FORMATS)}")
    return _FORMATS[text]


def _refuse_with_removal(contacts: Path | None, column: list[str] | None, calling_code: str | None, place: str) -> None:
    if contacts is not None or column or calling_code is not None:
        raise DataError(
            "a removal takes what the destination holds, and no contacts or columns",
            place=place,
            fix="leave --contacts, --column and --calling-code out",
        )


def _preview_json(told: Preview, hidden: dict[str, str]) -> dict[str, Any]:
    return {
        "model": told.model,
        "plan": told.plan,
        "expires": told.expires.isoformat(),
        "levels": [{**asdict(each.level), "size": str(each.size)} for each in told.levels],
        "suppressed": hidden,
        "out": {"seed": told.seed, "suppressed": told.suppressed, "not_allowed": told.not_allowed},
        "lists": [_match_json(match) for match in told.lists],
    }


def _print_preview(told: Preview, hidden: dict[str, str], min_cell: int) -> None:
    table = Table("level", "from score", "reach of all", "customers here", box=None, pad_edge=False)
    for each in told.levels:
        reach = f"{each.level.reach:.1%}" if each.level.reach is not None else "-"
        table.add_row(each.level.name, f"{each.level.cutoff:.6g}", reach, str(each.size))
    Console(highlight=False, markup=False).print(table)
    for why in dict.fromkeys(hidden.values()):
        typer.echo(f"suppressed by the campaign: {', '.join(name for name in hidden if hidden[name] == why)}: {why}")
    left = {"seeds": told.seed, "on suppression lists": told.suppressed, "not allowed": told.not_allowed}
    shown = {what: f"fewer than {min_cell}" if size == SUPPRESSED else size for what, size in left.items()}
    typer.echo("left out: " + "; ".join(f"{what}: {size}" for what, size in shown.items()))
    _print_matches(told.lists)
    typer.echo(f"of use until {told.expires}")


def _print_chosen(made: ChosenAudience, *, as_json: bool) -> None:
    audience, out = made.audience, made.excluded
    _warn_of_strangers(made.lists)
    if as_json:
        told = {**_audience_json(made), "out": asdict(out), "lists": [_match_json(match) for match in made.lists]}
        typer.echo(json.dumps(told, indent=2))
        return
    typer.echo(f"{audience.id}: '{audience.name}', {audience.size} customers, until {audience.expires}")
    listed = f"{out.suppressed:,} on suppression lists"
    typer.echo(f"left out: {out.seed:,} seeds, {listed}, {out.not_allowed:,} not allowed")
    _print_matches(made.lists)


def _print_matches(lists: tuple[ListMatch, ...]) -> None:
    for match in lists:
        typer.echo(f"{match.file}: {match.matched:,} of {match.ids:,} ids are customers here, {match.blank:,} blank")


def _warn_of_strangers(lists: tuple[ListMatch, ...]) -> None:
    for match in lists:
        if match.unmatched > match.matched:
            what = f"{match.unmatched:,} of {match.ids:,} ids are nobody's here"
            typer.echo(f"warning: {match.file}: {what}; check --column and how the ids are written", err=True)


def _match_json(match: ListMatch) -> dict[str, Any]:
    return {**asdict(match), "unmatched": match.unmatched}


def _audience_json(made: ChosenAudience | ListedAudience) -> dict[str, Any]:
    audience = made.audience
    return {
        "id": audience.id,
        "name": audience.name,
        "reason": audience.reason,
        "level": asdict(audience.level),
        "size": audience.size,
        "state": audience.state,
        "created": audience.created,
        "expires": audience.expires.isoformat(),
        "replaced_by": audience.replaced_by,
        "revision": audience.revision,
        "model": audience.model,
        "plan": audience.plan,
    }


def _listed_json(entry: ListedAudience) -> dict[str, Any]:
    exports = [
        {
            "destination": record.destination,
            "sequence": record.sequence,
            "state": record.state,
            "kind": record.kind,
            "removal": record.removal,
            "folder": str(record.folder),
            "digest": record.digest,
            "exported": record.exported,
        }
        for record in entry.exports
    ]
    return {**_audience_json(entry), "state": entry.state, "exports": exports, "removal_due": list(entry.removal_due)}


def _print_listed(entry: ListedAudience) -> None:
    """In lines, not in a table: an id that is folded cannot be copied."""
    made = entry.audience
    state = f"until {made.expires}" if entry.state == "active" else "expired"
    typer.echo(f"{made.id}: '{made.name}', {made.level.name}, {entry.size} customers, {state}")
    for record in entry.exports:
        kind = "removal" if record.removal else str(record.kind)
        waiting = "" if record.state == "done" else ", interrupted"
        typer.echo(f"  {record.destination} {record.sequence}: {kind}{waiting}, {record.folder}")
    for name in entry.removal_due:
        typer.echo(f"  {name}: removal due")


def _print_manifest(manifest: ExportManifest, out: Path, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(manifest.to_json(), indent=2))
        return
    kind = "removal" if manifest.removal else manifest.kind
    rows = f"{manifest.added:,} to add, {manifest.removed:,} to remove, in {len(manifest.files)} files"
    typer.echo(f"{manifest.destination} {manifest.sequence}, {kind}: {rows}")
    left = {"without a line in the contacts": manifest.unmatched, "not allowed": manifest.not_allowed}
    left |= {f"without a usable {column}": count for column, count in manifest.unusable.items()}
    for what, count in left.items():
        if count:
            typer.echo(f"{count:,} members {what}")
    typer.echo(f"export: {out}, to be removed after {manifest.expires}")
