"""The `cohortium` command: gathers the nouns and turns errors into one line and an exit code."""

from __future__ import annotations

import sys
import traceback
from collections import UserDict
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import typer
from rich.console import Console
from typer.core import TyperGroup
from typer.main import get_command_from_info, get_group
from typer.models import CommandInfo

from cohortium.study.errors import CohortiumError, Defect

__all__ = ["app", "main"]

MISTAKE, DEFECT, STOPPED = 2, 70, 130

_MARKUP: Literal["rich"] = "rich"

_NOUNS = {
    "demo": (
        "demo",
        "Eight institutions learn shared segments from 817,741 real grocery purchases without pooling a row.",
    ),
    "init": (
        "init",
        "Write a starter plan and feature contract, every line explained. Existing files are never touched.",
    ),
    "simulate": (
        "simulate_command",
        "Run a plan over simulated institutions: the same apps, ledgers and noise as deployed, in one process.",
    ),
    "score": (
        "score",
        "Score all customers of a node with a model released under a plan it approved, or find their segments.",
    ),
    "doctor": (
        "doctor",
        "Check Python, packages, the noise, the ledger's durability, the data cache, disk space and Ray.",
    ),
    "data": (
        "app",
        "Check an institution's tables against a feature contract, give them to its node; fetch public data sets.",
    ),
    "seed": (
        "app",
        "Lists of valued customers, for whose likes campaigns look. A list never leaves its institution.",
    ),
    "audience": (
        "app",
        "Audiences from scored customers: preview, create, export, refresh, expire. Nothing goes through the "
        "federation.",
    ),
    "ledger": (
        "app",
        "What a node has spent, what still fits, and whether its ledger holds together. Nothing is ever changed.",
    ),
    "privacy": ("app", "Audit the privacy of what this installation releases."),
    "consent": ("app", "What customers agreed and objected to, and who may be counted. Nothing of it leaves the node."),
    "rules": ("app", "Rule packs of law and house limits: read, explain, try on facts, test. Not legal advice."),
    "log": (
        "app",
        "A node's tamper-evident audit log: show it, verify it, prove entries of it, witness the logs of others.",
    ),
    "evidence": (
        "app",
        "What outsiders read and check: evidence packs, model cards, records of processing, DPIAs, provenance.",
    ),
    "retention": (
        "app",
        "What ends on its last day, what is owed and until when, and how it was met. Not legal advice.",
    ),
    "fairness": ("app", "Fairness audits: let a released model be audited here; read and compare what audits found."),
    "review": (
        "app",
        "Cases before reviewers: two people of two functions sign card, audit, DPIA and policy decision.",
    ),
    "federation": (
        "app",
        "Set up a federation: the coordinator's identity and private CA, and who is a member. One file each way.",
    ),
    "node": ("app", "An institution's node: make its keys, join a federation, renew its certificate."),
    "coordinator": (
        "app",
        "Run a federation's coordinator: Flower's SuperLink behind the one port that members reach.",
    ),
    "study": (
        "app",
        "Studies between institutions: propose, review, approve, run. Nobody answers what it did not approve.",
    ),
    "backup": (
        "app",
        "A node as one encrypted file. A node that was put back answers nothing until witnesses showed it to be the "
        "newest.",
    ),
    "account": (
        "app",
        "Who may do what at a node or the coordinator: accounts with roles, and the log of what they did.",
    ),
}
"""For every noun: what its module of the same name defines it as, and its help line."""

_LISTED = {name: click.Command(name, help=line) for name, (_, line) in _NOUNS.items()}


class _Nouns(UserDict[str, click.Command]):
    """The nouns by name, each imported when it is looked up: together they take seconds to import."""

    def __getitem__(self, name: str) -> click.Command:
        noun = getattr(import_module(f"cohortium.cli.{name}"), _NOUNS[name][0])
        if isinstance(noun, typer.Typer):
            return get_group(noun)
        information = CommandInfo(name, callback=noun)
        return get_command_from_info(information, pretty_exceptions_short=True, rich_markup_mode=_MARKUP)


class _Root(TyperGroup):
    """Imports the noun that is called and no other, and says that it was stopped, which typer would keep to itself."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Nouns(_LISTED)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_LISTED)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """As much of a noun as a list of them shows."""
        return _LISTED.get(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The noun that is called, whole."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else self.commands[name], rest

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("stopped", err=True)
            raise typer.Exit(STOPPED) from None


app = typer.Typer(
    name="cohortium",
    cls=_Root,
    help="Federated customer segmentation under customer-level differential privacy.\n\n"
    "Begin with `cohortium demo`, then `cohortium init` for your own data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=_MARKUP,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cohortium {version('cohortium')}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    _account: Annotated[
        str | None,
        typer.Option(
            "--account",
            metavar="NAME",
            envvar="COHORTIUM_ACCOUNT",
            help="The account to call as; that of the OS user when left out.",
        ),
    ] = None,
) -> None:
    """Options that come before a command."""


def main() -> None:
    """Run the command. Exit codes: 0 done, 1 not ready, 2 the caller's mistake, 70 a bug of ours, 130 stopped."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    try:
        app()
    except CohortiumError as error:
        errors.print(f"error: {error}")
        sys.exit(MISTAKE)
    except Defect as error:
        errors.print(f"bug: {error} — please report it; nothing that was charged is lost")
        sys.exit(DEFECT)
    except Exception as error:  # noqa: BLE001 - its text or traceback could quote a customer
        place = traceback.extract_tb(error.__traceback__)[-1]
        errors.print(
            f"bug: internal error of type {type(error).__name__} in {Path(place.filename).name}, line {place.lineno} — "
            "please report it; nothing that was charged is lost"
        )
        sys.exit(DEFECT)
