"""`cohortium node`: an institution's node: its keys, its enrolment, the rotation of its transport key, its work."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from cohortium.cli.access import authorised
from cohortium.cli.options import PasswordFile
from cohortium.client.joining import found_node, join, rotate
from cohortium.client.node import NodeIdentity
from cohortium.client.serving import at_work
from cohortium.governance.access import Act, create_accounts
from cohortium.governance.operations import HealthPage, log_as_json
from cohortium.study.contract import load_contract
from cohortium.study.document import validated
from cohortium.study.enrolment import FORMS, EnrolmentRequest, file_name, load_enrolment
from cohortium.study.errors import DataError
from cohortium.study.keys import find_password, write_whole
from cohortium.study.plan import MAX_EPSILON

__all__ = ["app"]

app = typer.Typer(
    name="node",
    help="An institution's node: make its keys, join a federation, renew its certificate.",
    no_args_is_help=True,
)

_Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The node's state folder.")]
_Out = Annotated[Path | None, typer.Option(help="File to send; NAME.request.json here when left out.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command("init")
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The node's state folder to make.")],
    institution: Annotated[str, typer.Option(help="Your name in the federation.")],
    federation: Annotated[str, typer.Option(help="The federation's name; the request is good for no other.")],
    region: Annotated[str, typer.Option(help="Where your customers are, such as EU or UK.")],
    contract: Annotated[Path, typer.Option(help="The feature contract, TOML.")],
    group: Annotated[str | None, typer.Option(help="The group of companies that you belong to.")] = None,
    lifetime_epsilon: Annotated[float, typer.Option(help="Most that one person's privacy ever pays.")] = MAX_EPSILON,
    lifetime_delta: Annotated[float, typer.Option(help="The delta of that budget.")] = 1e-6,
    out: _Out = None,
    password_file: PasswordFile = None,
    as_json: _Json = False,
) -> None:
    """Make a node's folder with its keys, and the request that goes to the coordinator.

    The keys are made here, encrypted, and never leave; the request has their public halves alone. The password has 16
    characters or more and is never an argument. Whoever calls becomes the folder's first account. Send the file, then
    read its fingerprint out by telephone.

    \b
    Example:
      cohortium node init state --institution A --federation "north sea" --region EU --contract contract.toml
    """
    given = {"institution": institution, "lifetime_epsilon": lifetime_epsilon, "lifetime_delta": lifetime_delta}
    identity = validated(NodeIdentity, given, "node", FORMS, DataError)
    agreed, password = load_contract(contract), find_password(password_file, new=True)
    asked = found_node(folder, identity, agreed, password, federation=federation, region=region, group=group)
    create_accounts(folder)
    _hand_over(asked, out, as_json)


@app.command("join")
def join_federation(
    folder: _Folder,
    enrolment: Annotated[Path, typer.Argument(metavar="ENROLMENT", help="What the coordinator sent back.")],
    fingerprint: Annotated[str, typer.Option(help="Of the coordinator, as it was read out to you.")],
    password_file: PasswordFile = None,
    as_json: _Json = False,
) -> None:
    """Take the coordinator's enrolment: its CA, its identity key, and this node's certificate.

    Call the coordinator at a number that you know, and have its fingerprint read out: from now on this node believes in
    that coordinator and no other.

    \b
    Example:
      cohortium node join state A.enrolment.json --fingerprint "580e aaab 8a3b d853 1be9 993a fd9d 9631"
    """
    authorised(folder, Act.NODE_JOIN)
    found = load_enrolment(enrolment)
    link = join(folder, found, fingerprint, find_password(password_file), place=str(enrolment))
    _say(
        {"federation": link.federation, "institution": link.institution, "address": link.address},
        [f"'{link.institution}' has joined '{link.federation}' at {link.address}"],
        as_json,
    )


@app.command("rotate")
def rotate_key(folder: _Folder, out: _Out = None, password_file: PasswordFile = None, as_json: _Json = False) -> None:
    """Make a new transport key, and the request for its certificate; the old key serves until `join` takes the answer.

    A certificate is good for 397 days: rotate before. With the coordinator's `federation enrol` the old one is revoked,
    so join soon afterwards.

    \b
    Example:
      cohortium node rotate state
    """
    authorised(folder, Act.KEY_ROTATE)
    _hand_over(rotate(folder, find_password(password_file)), out, as_json)


@app.command("start")
def start(
    folder: _Folder,
    health_port: Annotated[
        int, typer.Option(help="Port on loopback of /healthz and /metrics; 0 takes a free one.")
    ] = 9442,
    password_file: PasswordFile = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C: answer what approved plans foresee, fetch proposals, deliver approvals.

    It connects to the coordinator and opens no port but the health page, on loopback. A run whose app bundle is not the
    one of an approved plan is declined unread. Killed at any moment, it goes on where it was. Log lines are JSON on
    standard error and hold nothing of customers. Customers, rules and contract are read at the start: start it again
    after you onboarded or changed `governance.toml`; consent and approvals are read as they change.

    \b
    Example:
      cohortium node start state
    """
    authorised(folder, Act.NODE_START)
    password = find_password(password_file)
    log_as_json()
    with at_work(folder, password) as serving:
        page = HealthPage("127.0.0.1", health_port, serving.health, serving.registry)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: serving.stop())
        try:
            serving.run()
        finally:
            page.close()


def _hand_over(asked: EnrolmentRequest, out: Path | None, as_json: bool) -> None:
    target = out or Path(f"{file_name(asked.institution)}.request.json")
    write_whole(target, asked.to_bytes())
    _say(
        {"institution": asked.institution, "file": str(target), "fingerprint": asked.fingerprint},
        [f"send {target} to the coordinator", f"fingerprint to read out by telephone: {asked.fingerprint}"],
        as_json,
    )


def _say(told: dict[str, Any], lines: list[str], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    for line in lines:
        typer.echo(line)
