"""`cohortium backup`: a node as one encrypted file, put back, and shown to be the newest before it answers again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from cohortium.cli.access import authorised
from cohortium.client.backup import Made, make_backup, restore_backup
from cohortium.client.node import NodeIdentity
from cohortium.client.restored import confirm
from cohortium.client.store import NodeStore
from cohortium.governance.access import Act
from cohortium.privacy.accounting import budget_for
from cohortium.privacy.ledger import Ledger, open_store
from cohortium.study.errors import DataError
from cohortium.study.keys import CREDENTIAL, PASSWORD_FILE, check_password, find_password

__all__ = ["app"]

app = typer.Typer(
    name="backup",
    help="A node as one encrypted file. A node that was put back answers nothing until witnesses showed it to be the "
    "newest.",
    no_args_is_help=True,
)

_Folder = Annotated[Path, typer.Argument(help="The node's state folder.")]
_Password = Annotated[
    Path | None,
    typer.Option(
        help=f"File with the backup's password on its first line; else that of the keys: {PASSWORD_FILE}, the systemd "
        f"credential {CREDENTIAL}, or a prompt."
    ),
]


@app.command("make")
def make(
    folder: _Folder,
    out: Annotated[Path, typer.Option(help="The file to be made; nothing is written over.")],
    password_file: _Password = None,
) -> None:
    """Write a backup while the node runs: stores, keys, models and audiences, encrypted; customer tables are left out.

    \b
    Example:
      cohortium backup make state/north --out north.backup --password-file backup-password
    """
    authorised(folder, Act.BACKUP_MAKE)
    password = find_password(password_file, new=True)
    check_password(password, "the backup")
    _tell(f"{out}: made", make_backup(folder, out, password))


@app.command("restore")
def restore(
    file: Annotated[Path, typer.Argument(help="The backup.")],
    to: Annotated[Path, typer.Option(help="The folder to be made.")],
    stores: Annotated[
        Path | None, typer.Option(help="A stores.toml for it, with fresh schemas; SQLite files, if left out.")
    ] = None,
    password_file: _Password = None,
) -> None:
    """Put a node back into a folder of its own. It answers nothing until `cohortium backup confirm`.

    \b
    Example:
      cohortium backup restore north.backup --to state/north-again --password-file backup-password
    """
    _tell(f"{to}: restored", restore_backup(file, to, find_password(password_file), stores))
    typer.echo("it answers nothing until `cohortium backup confirm`; plans approved before are not answered any more")


@app.command("confirm")
def confirm_restored(
    folder: _Folder,
    checkpoint: Annotated[
        list[Path],
        typer.Option(
            help="A checkpoint of this node's log from a witness (`cohortium log witness --tell`); repeat it."
        ),
    ],
    consent_is_current: Annotated[
        bool, typer.Option("--consent-is-current", help="What people said since the backup was recorded again.")
    ] = False,
) -> None:
    """Compare a restored node with what witnesses know of its audit log; let it answer again where nothing is missing.

    \b
    Example:
      cohortium backup confirm state/north-again --checkpoint from-west.txt --checkpoint from-south.txt
    """
    authorised(folder, Act.BACKUP_RESTORE)
    try:
        identity = NodeIdentity.model_validate_json((folder / "node.json").read_bytes())
        notes = [path.read_text(encoding="utf-8") for path in checkpoint]
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise DataError("no node of this version, or no checkpoint", place=str(folder), fix="check paths") from error
    database = open_store(folder / "node.sqlite", create=False)
    try:
        lifetime = budget_for(identity.lifetime_epsilon, identity.lifetime_delta)
        done = confirm(
            folder,
            identity.institution,
            NodeStore(database),
            Ledger(database, identity.institution, lifetime),
            notes,
            delta=identity.lifetime_delta,
            consent_is_current=consent_is_current,
        )
    finally:
        database.dispose()
    typer.echo(
        f"{identity.institution}: confirmed, {done.entries} log entries as {', '.join(done.witnesses)} know them"
    )
    typer.echo(f"{done.closed} runs that had begun are closed; agree on new plans")


def _tell(what: str, made: Made) -> None:
    typer.echo(f"{what}: {made.institution} as of {made.made_at}, {len(made.members)} files")
