"""`cohortium federation`: the coordinator's set-up: its identity and CA, and who is a member."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cohortium.cli.access import authorised
from cohortium.cli.options import PasswordFile
from cohortium.governance.access import Act, create_accounts
from cohortium.server.founding import SETTINGS, found_federation, read_coordinator
from cohortium.server.members import CHARTER, Member, add_reviewers, enrol, load_members, revoke
from cohortium.study.charter import Reviewer
from cohortium.study.document import read_json, validated
from cohortium.study.enrolment import file_name, load_request
from cohortium.study.errors import DataError
from cohortium.study.keys import find_password, write_whole

__all__ = ["app"]

app = typer.Typer(
    name="federation",
    help="Set up a federation: the coordinator's identity and private CA, and who is a member. One file each way.",
    no_args_is_help=True,
)

_Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The coordinator's folder.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command("init")
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The coordinator's folder to make.")],
    name: Annotated[str, typer.Option(help="The federation's name; it never changes.")],
    address: Annotated[str, typer.Option(help="HOST:PORT where nodes will connect to.")],
    also: Annotated[list[str] | None, typer.Option(help="Another host name or IP of it; repeat it.")] = None,
    password_file: PasswordFile = None,
    as_json: _Json = False,
) -> None:
    """Make a coordinator's folder: its identity key, the federation's private CA, and federation.toml to be edited.

    The password has 16 characters or more, encrypts every key in the folder, and is never an argument. Edit
    federation.toml before the first enrolment: afterwards its thresholds are fixed. Whoever calls becomes the folder's
    first account.

    \b
    Example:
      cohortium federation init coordinator --name "north sea" --address coordinator:9440
    """
    password = find_password(password_file, new=True)
    made = found_federation(folder, name, address, password, datetime.now(UTC), tuple(also or ()))
    create_accounts(folder)
    fingerprint = made.fingerprint(folder)
    told = {"federation": name, "address": address, "identity": made.identity, "fingerprint": fingerprint}
    _say(
        told,
        [
            f"founded '{name}'; its nodes will connect to {address}",
            f"coordinator's fingerprint: {fingerprint}",
            f"edit {folder / SETTINGS} now; then enrol with `cohortium federation enrol`",
        ],
        as_json,
    )


@app.command("enrol")
def enrol_member(
    folder: _Folder,
    request: Annotated[Path, typer.Argument(metavar="REQUEST", help="What `node init` or `node rotate` made.")],
    fingerprint: Annotated[str, typer.Option(help="Of the request, as the institution read it out to you.")],
    out: Annotated[Path | None, typer.Option(help="File to send back; NAME.enrolment.json here when left out.")] = None,
    password_file: PasswordFile = None,
    as_json: _Json = False,
) -> None:
    """Enrol an institution, or a member's new transport key, and write the file that goes back to it.

    Call the institution at a number that you know, not one from the message that brought the file, and have the
    fingerprint read out: it is what makes the file theirs. A member's former certificate is revoked.

    \b
    Example:
      cohortium federation enrol coordinator A.request.json \\
        --fingerprint "7f7e c9a5 cd56 d594 6fa4 6c95 8e94 1924"
    """
    authorised(folder, Act.MEMBER_ENROL)
    asked = load_request(request)
    found = enrol(folder, find_password(password_file), asked, fingerprint, datetime.now(UTC), str(request))
    target = out or Path(f"{file_name(asked.institution)}.enrolment.json")
    write_whole(target, found.enrolment.to_bytes())
    confirmed = read_coordinator(folder).fingerprint(folder)
    member, changed = found.member.current, _changed(found.member)
    told = {
        "institution": asked.institution,
        "outcome": found.kind,
        "region": member.region,
        "group": member.group,
        "changed": changed,
        "serial": member.serial,
        "not_after": member.not_after.isoformat(),
        "file": str(target),
        "fingerprint": confirmed,
    }
    lines = {
        "enrolled": f"enrolled '{asked.institution}'",
        "rotated": f"'{asked.institution}' has a new certificate; the one before is revoked",
        "repeated": f"'{asked.institution}' is enrolled on this request already; nothing changed",
    }
    _say(
        told,
        [
            f"{lines[found.kind]}, until {member.not_after:%Y-%m-%d}",
            f"region {member.region}, {f'group {member.group}' if member.group else 'no group'}",
            *(f"CHANGED {one}: ask the institution why" for one in changed),
            f"send back {target}; fingerprint to read out: {confirmed}",
        ],
        as_json,
    )


@app.command("revoke")
def revoke_member(
    folder: _Folder,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The institution's name; `federation members` has it.")],
    reason: Annotated[str, typer.Option(help="Why, for the log.")],
    password_file: PasswordFile = None,
    as_json: _Json = False,
) -> None:
    """Revoke a member: its keys are refused from now on and for good, and the charter no longer names it.

    It may be enrolled again with new keys, from `cohortium node init` in a new folder.

    \b
    Example:
      cohortium federation revoke coordinator north --reason "left the federation"
    """
    authorised(folder, Act.MEMBER_REVOKE, name)
    member = revoke(folder, find_password(password_file), name, reason, datetime.now(UTC))
    ended = member.current.ended_at
    told = {
        "institution": name,
        "serial": member.current.serial,
        "revoked_at": None if ended is None else ended.isoformat(),
        "reason": member.current.reason,
    }
    _say(told, [f"'{name}' is revoked"], as_json)


@app.command("reviewer")
def reviewer(
    folder: _Folder,
    enrolments: Annotated[
        list[Path], typer.Argument(metavar="ENROLMENT...", help="What `review key enrol --json` printed.")
    ],
    password_file: PasswordFile = None,
    as_json: _Json = False,
) -> None:
    """Add reviewers to the charter, whom their institutions enrolled with `cohortium review key enrol`.

    \b
    Example:
      cohortium federation reviewer coordinator priya.json rolf.json
    """
    authorised(folder, Act.REVIEWER_ENROL)
    given = [validated(Reviewer, read_json(path, DataError), str(path), {}, DataError) for path in enrolments]
    charter = add_reviewers(folder, find_password(password_file), given, datetime.now(UTC))
    told = [one.model_dump(mode="json", include={"person", "institution", "function"}) for one in charter.reviewers]
    people = ", ".join(f"{one.person} of {one.institution}" for one in charter.reviewers)
    _say({"reviewers": told}, [f"{folder / CHARTER} has reviewers {people}"], as_json)


@app.command("members")
def members(folder: _Folder, as_json: _Json = False) -> None:
    """Who was ever enrolled: region, group, state, until when the certificate is good. Needs no password.

    \b
    Example:
      cohortium federation members coordinator
    """
    authorised(folder, Act.MEMBER_READ)
    read_coordinator(folder)
    listed = [(name, member.current) for name, member in load_members(folder).items()]
    if as_json:
        shown = [{"institution": name, **one.model_dump(mode="json")} for name, one in listed]
        typer.echo(json.dumps({"members": shown}, indent=2, ensure_ascii=False))
        return
    table = Table("institution", "region", "group", "state", "certificate until", box=None, pad_edge=False)
    for name, one in listed:
        table.add_row(name, one.region, one.group or "", one.state, f"{one.not_after:%Y-%m-%d}")
    Console(highlight=False, markup=False).print(table)


def _changed(member: Member) -> list[str]:
    """What the newest certificate says of the institution that the one before did not."""
    if not member.former:
        return []
    before, now = member.former[-1], member.current
    pairs = {"region": (before.region, now.region), "group": (before.group, now.group)}
    return [f"{name} from {old or 'none'} to {new or 'none'}" for name, (old, new) in pairs.items() if old != new]


def _say(told: dict[str, Any], lines: list[str], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    for line in lines:
        typer.echo(line)
