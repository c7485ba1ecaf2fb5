"""`cohortium data`: look at an institution's tables before anything leaves, and fetch public sets to try things on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cohortium.cli.access import authorised
from cohortium.client.lookalike import open_records
from cohortium.client.onboarding import (
    OnboardingReport,
    Progress,
    Readiness,
    Source,
    assess,
    inspect_sources,
    onboard,
    parse_source,
)
from cohortium.governance.access import Act
from cohortium.simulations.datasets import describe, fetch, names
from cohortium.study.contract import Contract, load_contract
from cohortium.study.errors import DataError

__all__ = ["app", "named_sources"]

NOT_READY = 1
"""Exit code of `check` and `onboard` when something blocks; mistakes of the caller exit with 2."""

app = typer.Typer(
    name="data",
    help="Check an institution's tables against a feature contract, give them to its node; fetch public data sets.",
    no_args_is_help=True,
)

_Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE...", help="One per table: a file, a folder of Parquet files, or a database as URL#TABLE."
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print the report and the findings as JSON.")]
_Duplicates = Annotated[bool, typer.Option(help="Also count repeated lines; reads the sources a second time.")]

_MARKS = {"ok": "ok", "advice": "advice", "blocks": "BLOCKS"}


@app.command("check")
def check(
    contract_file: Annotated[Path, typer.Argument(metavar="CONTRACT", help="The feature contract, a TOML file.")],
    sources: _Sources,
    as_json: _Json = False,
    duplicates: _Duplicates = True,
) -> None:
    """Read the tables as onboarding would, write nothing, and say what is missing and how to mend it.

    CONTRACT is the feature contract, a TOML file. Give one SOURCE per table of the contract, in its order or as
    TABLE=SOURCE: a .csv, .csv.gz or .parquet file, a folder of Parquet files, or a database as URL#TABLE or
    'URL#SELECT ...'.

    Everything that cannot be used is counted by column. No customer value is printed. Exits with 0 when the
    institution is ready, 1 when something blocks, 2 when the command or the contract is wrong.

    \b
    Examples:
      cohortium data check contract.toml purchases.csv
      cohortium data check contract.toml customers=crm.parquet purchases=sqlite:///shop.db#sales
      cohortium data check contract.toml purchases.csv --json > readiness.json
    """
    contract = load_contract(contract_file)
    named = named_sources(contract, sources)
    with _progress() as told:
        report = inspect_sources(contract, named, duplicates=duplicates, progress=told)
    _tell(contract, report, as_json)


@app.command("onboard")
def onboard_tables(
    node: Annotated[Path, typer.Argument(metavar="NODE", help="The node's state folder.")],
    sources: _Sources,
    as_json: _Json = False,
    duplicates: _Duplicates = True,
) -> None:
    """Read the tables into the node's folder, one bounded row a customer, by the contract that the node was made with.

    An earlier extract is replaced when this one ends well, and kept when it is refused. A node at work answers from
    what it read at its start: start it again afterwards. SOURCE, what is printed and the exit code are as for `check`.

    \b
    Examples:
      cohortium data onboard state/north purchases.csv
      cohortium data onboard state/north customers=crm.parquet purchases=sqlite:///shop.db#sales
    """
    authorised(node, Act.CUSTOMERS_CHANGE)
    with open_records(node) as records, _progress() as told:
        contract, folder = records.contract, records.customers
        named = named_sources(contract, sources)
        report = onboard(contract, named, folder, duplicates=duplicates, progress=told)
    _tell(contract, report, as_json, f"{report.people:,} customers stand in {folder}")


@app.command("fetch")
def fetch_set(
    name: Annotated[str, typer.Argument(metavar="NAME", help="One of the names that `cohortium data list` shows.")],
    from_file: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="The raw file, or an archive of it, instead of a download."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Also copy the files there.")] = None,
) -> None:
    """Download a public data set once, verify it, and say where its tables and its contract are.

    NAME is one that `cohortium data list` shows.

    The files stay in a cache folder ($COHORTIUM_CACHE, else the user's cache) and are checked against pinned digests.
    Most licences are unstated: use the sets for research and do not pass them on.

    \b
    Examples:
      cohortium data fetch ta-feng
      cohortium data fetch hillstrom --from hillstrom.csv.zip --out data/hillstrom
    """
    console = Console(stderr=True, highlight=False)
    found = fetch(name, file=from_file, out=out, progress=lambda line: console.print(line, markup=False))
    typer.echo(f"{found.about.name}: {found.about.about}")
    typer.echo(f"licence: {found.about.licence}")
    typer.echo(f"contract: {found.folder / 'contract.toml'}")
    for table, file in found.sources.items():
        typer.echo(f"{table}: {file}")


@app.command("list")
def list_sets() -> None:
    """List the public data sets that `fetch` knows, with what is known of their licences.

    \b
    Example:
      cohortium data list
    """
    table = Table("name", "what it is", "licence", box=None, pad_edge=False)
    for name in names():
        about = describe(name)
        table.add_row(name, about.about, about.licence)
    Console(highlight=False, markup=False).print(table)


def named_sources(contract: Contract, texts: list[str]) -> dict[str, Source]:
    """Sources by table from command-line texts, either all `TABLE=SOURCE` or one per table in the contract's order.

    Raises:
        DataError: too many, too few, a table named twice, or both ways mixed.
    """
    tables = [table.name for table in contract.tables]
    pairs = [text.partition("=") for text in texts]
    prefixed = [bool(sign) and name in tables for name, sign, _ in pairs]
    expected = " ".join(f"{name}=SOURCE" for name in tables)
    if all(prefixed):
        named = {name: parse_source(tail) for name, _, tail in pairs}
        if len(named) == len(texts):
            return named
        raise DataError("a table has two sources", place=contract.name, fix=f"give {expected}")
    if any(prefixed) or len(texts) != len(tables):
        raise DataError(f"the contract has {len(tables)} tables", place=contract.name, fix=f"give {expected}")
    return {name: parse_source(text) for name, text in zip(tables, texts, strict=True)}


@contextmanager
def _progress() -> Iterator[Progress]:
    with Console(stderr=True).status("reading") as status:
        yield lambda stage, share: status.update(f"{stage} {share:.0%}")


def _tell(contract: Contract, report: OnboardingReport, as_json: bool, *more: str) -> None:
    readiness = assess(contract, report)
    if as_json:
        typer.echo(_as_json(report, readiness))
    else:
        _print_check(report, readiness)
        for line in more:
            typer.echo(line)
    if not readiness.ready:
        raise typer.Exit(NOT_READY)


def _as_json(report: OnboardingReport, readiness: Readiness) -> str:
    return (
        f'{{"ready": {"true" if readiness.ready else "false"},\n"readiness": {readiness.model_dump_json()},\n'
        f'"report": {report.model_dump_json()}}}'
    )


def _print_check(report: OnboardingReport, readiness: Readiness) -> None:
    console = Console(highlight=False, markup=False)
    console.print(f"contract {report.contract}  {report.contract_digest}", soft_wrap=True)
    lines = Table("table", "lines", "used", "malformed", "repeated", "first day", "last day", box=None, pad_edge=False)
    for table in report.tables:
        repeated = "-" if table.duplicates is None else str(table.duplicates)
        days = [str(day) if day else "-" for day in (table.first_day, table.last_day)]
        lines.add_row(table.name, str(table.lines), str(table.used), str(table.malformed), repeated, *days)
    console.print(lines)
    problems = Table("column", "used as", "problem", "cells", "of", box=None, pad_edge=False)
    for column in report.columns:
        for kind, count in column.problems.items():
            problems.add_row(f"{column.table}.{column.column}", column.used_as, kind, str(count), str(column.cells))
    if problems.row_count:
        console.print(problems)
    findings = Table("", "about", "found", "what to do", box=None, pad_edge=False)
    for finding in readiness.findings:
        findings.add_row(_MARKS[finding.level], finding.about, finding.text, finding.fix)
    console.print(findings)
    console.print("ready" if readiness.ready else "not ready: mend what blocks, then check again")
