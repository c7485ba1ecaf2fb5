"""`cohortium account`: who may do what at a node or a coordinator, and what they did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cohortium.cli.access import ACTS, authorised, called_as
from cohortium.governance.access import PERMITTED, Account, Act, Person, Role, create_accounts, open_accounts
from cohortium.study.errors import DataError, OutputError, RefusedError
from cohortium.study.keys import password_in

__all__ = ["app"]

NOT_VERIFIED = 1
"""Exit code of `verify` when the log of acts does not hold; mistakes of the caller exit with 2."""

app = typer.Typer(
    name="account",
    help="Who may do what at a node or the coordinator: accounts with roles, and the log of what they did.",
    no_args_is_help=True,
)

_Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a node or of the coordinator.")]
_Name = Annotated[str, typer.Argument(metavar="NAME", help="The account's name.")]
_NewPassword = Annotated[
    Path | None, typer.Option("--password-file", help="File whose first line is the new password; else a prompt.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command("add")
def add(
    folder: _Folder,
    name: _Name,
    role: Annotated[list[Role] | None, typer.Option(help="What it may be used for; repeat it.")] = None,
    os_user: Annotated[
        str | None, typer.Option(help="The OS login name that it belongs to; without, it has a password.")
    ] = None,
    password_file: _NewPassword = None,
    first: Annotated[
        bool, typer.Option("--first", help="The first account of a folder without any: operator and privacy-officer.")
    ] = False,
) -> None:
    """Add an account, which belongs to an OS user or has a password of 16 characters or more.

    The first account belongs to whoever calls. Names are never used again.

    \b
    Examples:
      cohortium account add state/north kim --first
      cohortium account add state/north priya --role privacy-officer --os-user priya
      cohortium account add state/north rolf --role reviewer --role auditor
    """
    person = None if first else _named(authorised(folder, Act.ACCOUNT_CHANGE, name), folder)
    if person is None:
        if role or os_user or password_file:
            raise DataError("the first account is the caller's", place="--first", fix="give it without other options")
        if not folder.is_dir():
            raise DataError("is no folder", place=str(folder), fix="name the folder of a node or of the coordinator")
        made = create_accounts(folder, name)
    else:
        password = _new_password(password_file) if os_user is None else None
        with open_accounts(folder) as store:
            made = store.add(name, frozenset(role or ()), by=person, login=os_user, password=password)
    typer.echo(f"added '{made.name}': {', '.join(sorted(made.roles))}; {_belongs(made)}")


@app.command("list")
def list_accounts(folder: _Folder, as_json: _Json = False) -> None:
    """Show all accounts of a folder, disabled ones too.

    \b
    Example:
      cohortium account list state/north
    """
    _named(authorised(folder, Act.ACCOUNT_READ), folder)
    with open_accounts(folder) as store:
        accounts = store.accounts()
    if as_json:
        typer.echo(json.dumps([_to_json(one) for one in accounts], indent=2))
        return
    table = Table("name", "roles", "belongs to", "state", box=None, pad_edge=False)
    for one in accounts:
        state = one.state if one.locked_until is None else f"locked until {one.locked_until:%H:%M:%S} UTC"
        table.add_row(one.name, ", ".join(sorted(one.roles)), _belongs(one), state)
    Console(highlight=False, markup=False, soft_wrap=True).print(table)


@app.command("disable")
def disable(folder: _Folder, name: _Name) -> None:
    """Let an account do nothing any more, for good. The last privacy officer stays.

    \b
    Example:
      cohortium account disable state/north rolf
    """
    person = _named(authorised(folder, Act.ACCOUNT_CHANGE, name), folder)
    with open_accounts(folder) as store:
        store.disable(name, by=person)
    typer.echo(f"disabled '{name}'")


@app.command("password")
def change_password(folder: _Folder, name: _Name, password_file: _NewPassword = None) -> None:
    """Give an account another password: one's own, called with --account; a privacy officer that of anybody.

    It ends the lock after five wrong passwords.

    \b
    Examples:
      cohortium --account rolf account password state/north rolf
      cohortium account password state/north rolf
    """
    person = _named(
        authorised(folder, Act.PASSWORD_CHANGE if called_as() == name else Act.ACCOUNT_CHANGE, name), folder
    )
    with open_accounts(folder) as store:
        store.set_password(name, _new_password(password_file), by=person)
    typer.echo(f"'{name}' has another password")


@app.command("show-permissions")
def show_permissions(
    role: Annotated[Role | None, typer.Option(help="Only what this role may do.")] = None, as_json: _Json = False
) -> None:
    """Every privileged act, the roles that may do it, and the commands that ask for it.

    \b
    Examples:
      cohortium account show-permissions
      cohortium account show-permissions --role auditor
    """
    shown = {act: roles for act, roles in PERMITTED.items() if role is None or role in roles}
    commands = {act: sorted(name for name, acts in ACTS.items() if act in acts) for act in shown}
    if as_json:
        rows = [{"act": act, "roles": sorted(roles), "commands": commands[act]} for act, roles in shown.items()]
        typer.echo(json.dumps(rows, indent=2))
        return
    for act, roles in shown.items():
        typer.echo(f"{act.value}: {', '.join(sorted(roles))} ({', '.join(commands[act]) or 'no command'})")


@app.command("log")
def show_log(
    folder: _Folder,
    start: Annotated[int, typer.Option("--from", min=0, help="The first entry to show.")] = 0,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="How many entries to show.")] = 20,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A new file for the newest checkpoint, to be kept by somebody else.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """The log of privileged acts: who was allowed or refused what, and when.

    A checkpoint that somebody else keeps is what the owner of the folder cannot change: see `account verify`.

    \b
    Examples:
      cohortium account log state/north --from 100
      cohortium account log state/north --checkpoint acts-2026-05.txt
    """
    _named(authorised(folder, Act.LOG_READ), folder)
    with open_accounts(folder) as store:
        entries, size, note = store.log.entries(start, start + count), store.log.size, store.log.newest()
    if checkpoint is not None:
        _write_new(checkpoint, note or "")
    if as_json:
        rows = [{"index": one.index, "entry": one.entry} for one in entries]
        typer.echo(json.dumps({"size": size, "checkpoint": note, "entries": rows}, indent=2))
        return
    typer.echo(f"{size} entries")
    for one in entries:
        typer.echo(f"{one.index}  {json.dumps(one.entry, ensure_ascii=False)}")


@app.command("verify")
def verify(
    folder: _Folder,
    against: Annotated[
        list[Path] | None, typer.Option(help="A checkpoint of this log that somebody else kept; may be repeated.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Hash every act again, compare with all checkpoints, and the accounts with what the log says of them.

    Without --against the log is compared with the checkpoints in its own file, which its owner could have made anew.
    Exits with 0 when everything agrees, 1 when something was changed, 2 when there is nothing to read.

    \b
    Example:
      cohortium account verify state/north --against acts-2026-05.txt
    """
    notes = [_text(path) for path in against or ()]
    with open_accounts(folder) as store:
        findings, size = [one.message for one in store.verify(notes)], store.log.size
    if as_json:
        typer.echo(json.dumps({"verified": not findings, "size": size, "findings": findings}, indent=2))
    else:
        for finding in findings:
            typer.echo(finding)
        typer.echo(f"{size} entries, {'NOT verified' if findings else 'verified'}")
    if findings:
        raise typer.Exit(NOT_VERIFIED)


def _named(person: Person | None, folder: Path) -> Person:
    if person is None:
        raise RefusedError(
            "a simulation asks nobody, and has no accounts", place=str(folder), fix="name a node's folder"
        )
    return person


def _new_password(file: Path | None) -> str:
    if file is not None:
        return password_in(file)
    return str(typer.prompt("new password", hide_input=True, confirmation_prompt=True, err=True))


def _belongs(account: Account) -> str:
    return "a password" if account.login is None else f"OS user {account.login}"


def _to_json(account: Account) -> dict[str, Any]:
    until = account.locked_until
    return {
        "name": account.name,
        "roles": sorted(account.roles),
        "os_user": account.login,
        "state": account.state,
        "locked_until": None if until is None else until.isoformat(timespec="seconds"),
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("cannot be read as text", place=str(path), fix="check the path") from error


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise OutputError(error.strerror or "cannot be written", place=str(path), fix="name a new file") from error
