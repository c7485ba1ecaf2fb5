"""`cohortium review`: cases before reviewers, their signatures, and case files that anybody can verify."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cohortium.cli.access import authorised
from cohortium.client.lookalike import REVIEW_FILE, case_documents, open_records
from cohortium.client.node import NodeIdentity, read_key
from cohortium.governance.access import Act
from cohortium.governance.fairness import load_fairness
from cohortium.governance.review import (
    PARTS,
    Action,
    Case,
    CasePage,
    Kind,
    Part,
    ReviewStore,
    Standing,
    Terms,
    case_page,
    document_digest,
    export_case,
    open_case,
    parse_case_file,
    read_document,
    read_reviewer_key,
    sign_statement,
    write_reviewer_key,
)
from cohortium.privacy.stores import has_store, open_store
from cohortium.study.charter import (
    Charter,
    Function,
    Reviewer,
    enrol_reviewer,
    load_charter,
    prove_possession,
)
from cohortium.study.errors import DataError, OutputError, PlanError, RefusedError
from cohortium.study.keys import password_in
from cohortium.study.validation import suggestion

__all__ = ["PASSWORD", "app"]

NOT_VERIFIED = 1
"""Exit code of `verify` when a case file does not hold together; mistakes of the caller exit with 2."""

PASSWORD = "COHORTIUM_REVIEW_PASSWORD"
"""Environment variable with the password of a reviewer's key."""

app = typer.Typer(
    name="review",
    help="Cases before reviewers: two people of two functions sign card, audit, DPIA and policy decision.",
    no_args_is_help=True,
)
key_app = typer.Typer(name="key", help="Reviewers' keys, and their enrolment in the charter.", no_args_is_help=True)
app.add_typer(key_app)

_Node = Annotated[Path, typer.Argument(metavar="NODE", help="The node's state folder.")]
_CaseName = Annotated[str, typer.Argument(metavar="CASE", help="The case's name; `review list` has it.")]
_Charter = Annotated[Path, typer.Option(help="The charter with the reviewers, TOML or JSON.")]
_Key = Annotated[Path, typer.Option(help="The reviewer's key file.")]
_PasswordFile = Annotated[
    Path | None,
    typer.Option(help=f"File whose first line is the key's password; else {PASSWORD}, else a prompt."),
]
_Expires = Annotated[str, typer.Option(help="Last day (UTC), as 2026-12-31 or as a number of days, 90d; at most 366d.")]
_Conditions = Annotated[list[str] | None, typer.Option("--condition", help="On which it stands; repeat it.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@key_app.command("new")
def key_new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Key file to make; must not exist.")],
    charter: Annotated[Path, typer.Option(help="The charter of the federation, TOML or JSON.")],
    person: Annotated[str, typer.Option(help="The reviewer's id at the institution, not their name.")],
    institution: Annotated[str, typer.Option(help="Whose cases they sign.")],
    function: Annotated[Function, typer.Option(help="What they answer for.")],
    password_file: _PasswordFile = None,
) -> None:
    """Make a reviewer's key, encrypted under a password, and print the request to be enrolled, signed by it.

    The password has 16 characters or more and is never an argument.

    \b
    Example:
      cohortium review key new priya.pem --charter charter.toml --person p-17 --institution north \\
        --function privacy > request.json
    """
    agreed = load_charter(charter)
    members = [member.name for member in agreed.institutions]
    if institution not in members:
        raise PlanError(
            f"'{institution}' is no member of '{agreed.name}'",
            place="--institution",
            fix=suggestion(institution, members),
        )
    key = write_reviewer_key(file, _password(password_file, confirm=True))
    try:
        asked = prove_possession(agreed.name, person, institution, function, key)
    except PlanError:
        file.unlink()  # the id has the wrong form: the mended command finds no file in its way
        raise
    typer.echo(json.dumps(asked.model_dump(mode="json"), indent=2))


@key_app.command("enrol")
def key_enrol(
    node: _Node,
    request: Annotated[Path, typer.Argument(metavar="REQUEST", help="What `key new` printed.")],
    charter: Annotated[Path, typer.Option(help="The charter so far, TOML or JSON.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the entry as JSON.")] = False,
) -> None:
    """Vouch for a reviewer with the institution's identity key, and print the entry for the charter.

    Check in person that the request is theirs: whoever is enrolled signs for your institution.

    \b
    Example:
      cohortium review key enrol state/north request.json --charter charter.toml >> charter.toml
    """
    authorised(node, Act.REVIEWER_ENROL)
    agreed = load_charter(charter)
    asked = _parse_request(request)
    if asked.institution != _institution(node):
        raise RefusedError(
            f"the request is for '{asked.institution}', and this node is '{_institution(node)}'",
            place=str(request),
            fix="have that institution vouch for its reviewer",
        )
    reviewer = enrol_reviewer(agreed.name, asked, read_key(node))
    agreed.with_reviewers([reviewer])
    entry = reviewer.model_dump(mode="json")
    if as_json:
        typer.echo(json.dumps(entry, indent=2))
        return
    typer.echo("\n[[reviewers]]")
    for name, value in entry.items():
        typer.echo(f"{name} = {json.dumps(value)}")


@app.command("open")
def open_review(
    node: _Node,
    name: Annotated[str, typer.Argument(metavar="CASE", help="Name of the new case.")],
    charter: _Charter,
    kind: Annotated[Kind, typer.Option(help="What is asked for.")],
    about: Annotated[str, typer.Option(help="The model or campaign, the same word in every version.")],
    purpose: Annotated[str, typer.Option(help="What it is for.")],
    owner: Annotated[str, typer.Option(help="Person id of who wants it and answers for it.")],
    builder: Annotated[list[str], typer.Option(help="Person id of who built what is reviewed; repeat it.")],
    audit: Annotated[Path, typer.Option(help="The fairness audit's result, JSON.")],
    dpia: Annotated[Path, typer.Option(help="The data protection impact assessment, JSON.")],
    card: Annotated[
        Path | None,
        typer.Option(help="The model card, JSON; for an audience made of the audited model, which the node holds."),
    ] = None,
    decision: Annotated[
        Path | None,
        typer.Option(help="The policy decision, JSON; for an audience the one that admitted its campaign here."),
    ] = None,
    facts: Annotated[
        Path | None,
        typer.Option(
            help="Declared facts by name, JSON, for the risk tier; what is missing counts. For an audience "
            "those on which its campaign was admitted, when left out."
        ),
    ] = None,
    link: Annotated[list[str] | None, typer.Option(help="Where more stands, as NAME=PLACE; repeat it.")] = None,
    as_json: _Json = False,
) -> None:
    """Put four documents before the institution's reviewers. The store keeps copies: what is signed stays readable.

    For the export of an audience, card and decision come from the node itself, and exports accept no others.

    \b
    Examples:
      cohortium review open state/north spring-1 --charter charter.toml --kind audience_export --about "spring offer" \\
        --purpose Marketing --owner p-3 --builder p-8 --audit audit/fairness.json --dpia dpia.json --facts facts.json
      cohortium review open state/north spring-1 --charter charter.toml --kind model_release --about "spring offer" \\
        --purpose Marketing --owner p-3 --builder p-8 --card card.json --audit audit.json --dpia dpia.json \\
        --decision decision.json --facts facts.json
    """
    authorised(node, Act.REVIEW_OPEN, name)
    agreed, institution = load_charter(charter), _institution(node)
    documents, known = _opened_documents(node, kind, audit, dpia, card, decision)
    case = open_case(
        documents,
        known if facts is None else _read_json(facts),
        name=name,
        federation=agreed.name,
        institution=institution,
        kind=kind,
        about=about,
        purpose=purpose,
        owner=owner,
        builders=builder,
        opened_at=_now(),
        links=dict(_link(one) for one in link or ()),
    )
    with _opened(node, create=True) as store:
        store.open(case, documents)
    _say_opened(case, as_json)


def _opened_documents(
    node: Path, kind: Kind, audit: Path, dpia: Path, card: Path | None, decision: Path | None
) -> tuple[dict[Part, dict[str, Any]], dict[str, Any]]:
    """What is given, for an audience with what the node adds, and the facts that the node knows."""
    given: dict[Part, Path] = {"audit": audit, "dpia": dpia}
    if card is not None:
        given["card"] = card
    if decision is not None:
        given["decision"] = decision
    documents = {part: _read_json(path) for part, path in given.items()}
    missing = [part for part in PARTS if part not in documents]
    if not missing:
        return documents, {}
    if kind != "audience_export":
        fix = "give the JSON file; a node adds it for audiences alone"
        raise DataError(f"the {missing[0]} is missing", place=f"--{missing[0]}", fix=fix)
    with open_records(node) as records:
        made, facts = case_documents(records.models, records.approvals, load_fairness(audit), documents["dpia"])
    return {**made, **documents}, dict(facts.facts)


@app.command("list")
def list_cases(node: _Node, charter: _Charter, as_json: _Json = False) -> None:
    """The queue: every case with its risk tier, owner, age, and how it stands.

    \b
    Example:
      cohortium review list state/north --charter charter.toml
    """
    authorised(node, Act.REVIEW_READ)
    agreed, now = load_charter(charter), _now()
    with _opened(node) as store:
        listed = [(case, store.standing(case.name, agreed, now)) for case in store.cases()]
    if as_json:
        typer.echo(json.dumps([_row(case, found, now) for case, found in listed], indent=2))
        return
    table = Table("case", "kind", "about", "risk", "owner", "days", "standing", "waits for", box=None, pad_edge=False)
    for case, found in listed:
        waits = " and ".join(found.waiting_for)
        table.add_row(
            case.name, case.kind, case.about, case.risk.tier, case.owner, str(case.age(now)), found.state, waits
        )
    _console().print(table)


@app.command("show")
def show(node: _Node, name: _CaseName, charter: _Charter, as_json: _Json = False) -> None:
    """One page: what is asked, what changed, every metric and finding, who signed and who has still to.

    \b
    Example:
      cohortium review show state/north spring-1 --charter charter.toml
    """
    authorised(node, Act.REVIEW_READ, name)
    with _opened(node) as store:
        page = case_page(store, name, load_charter(charter), _now())
    if as_json:
        typer.echo(json.dumps(page.to_json(), indent=2))
    else:
        _print_page(page)


@app.command("approve")
def approve(
    node: _Node,
    name: _CaseName,
    charter: _Charter,
    key: _Key,
    expires: _Expires,
    condition: _Conditions = None,
    password_file: _PasswordFile = None,
    as_json: _Json = False,
) -> None:
    """Sign that these very documents may go ahead, until a day. A change of any of them voids it.

    \b
    Example:
      cohortium review approve state/north spring-1 --charter charter.toml --key priya.pem --expires 2026-12-31
    """
    authorised(node, Act.REVIEW_SIGN, name)
    terms = Terms(conditions=tuple(condition or ()), expires=_last_day(expires))
    _sign(node, name, charter, key, password_file, "approve", terms, as_json)


@app.command("return")
def return_case(
    node: _Node,
    name: _CaseName,
    charter: _Charter,
    key: _Key,
    question: Annotated[list[str], typer.Option(help="What has to be answered; repeat it.")],
    password_file: _PasswordFile = None,
    as_json: _Json = False,
) -> None:
    """Send a case back with questions. What was signed before does not count any more.

    \b
    Example:
      cohortium review return state/north spring-1 --charter charter.toml --key priya.pem \\
        --question "why so few over 65?"
    """
    authorised(node, Act.REVIEW_SIGN, name)
    _sign(node, name, charter, key, password_file, "return", Terms(questions=tuple(question)), as_json)


@app.command("reject")
def reject(
    node: _Node,
    name: _CaseName,
    charter: _Charter,
    key: _Key,
    reason: Annotated[str, typer.Option(help="Why.")],
    password_file: _PasswordFile = None,
    as_json: _Json = False,
) -> None:
    """Stop these very documents for good. Changed ones are a new case.

    \b
    Example:
      cohortium review reject state/north spring-1 --charter charter.toml --key priya.pem --reason "proxies of age"
    """
    authorised(node, Act.REVIEW_SIGN, name)
    _sign(node, name, charter, key, password_file, "reject", Terms(reason=reason), as_json)


@app.command("waive")
def waive(
    node: _Node,
    name: _CaseName,
    charter: _Charter,
    key: _Key,
    reason: Annotated[str, typer.Option(help="Why the audit's verdict may be passed over for a while.")],
    task: Annotated[str, typer.Option(help="What remedies it.")],
    expires: _Expires,
    condition: _Conditions = None,
    password_file: _PasswordFile = None,
    as_json: _Json = False,
) -> None:
    """Sign that the audit's verdict is passed over until a day. It takes two people, as an approval does.

    \b
    Example:
      cohortium review waive state/north spring-1 --charter charter.toml --key priya.pem \\
        --reason "group too small to judge" --task "audit again in May" --expires 2026-06-30
    """
    authorised(node, Act.REVIEW_SIGN, name)
    terms = Terms(conditions=tuple(condition or ()), reason=reason, task=task, expires=_last_day(expires))
    _sign(node, name, charter, key, password_file, "waive", terms, as_json)


@app.command("export")
def export(
    node: _Node,
    name: _CaseName,
    out: Annotated[Path, typer.Option(help="File to write; must not exist.")],
) -> None:
    """Write a case with its statements to a file. It holds digests of the documents, not what they say.

    \b
    Example:
      cohortium review export state/north spring-1 --out spring-1.case.json
    """
    authorised(node, Act.REVIEW_READ, name)
    with _opened(node) as store:
        data = export_case(store.case(name), store.statements(name))
    try:
        with out.open("xb") as file:
            file.write(data)
    except OSError as error:
        raise OutputError(error.strerror or "cannot be written", place=str(out), fix="name a new file") from error
    typer.echo(f"written to {out}")


@app.command("verify")
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `review export` wrote.")],
    charter: _Charter,
    card: Annotated[Path | None, typer.Option(help="Compare: the model card, JSON.")] = None,
    audit: Annotated[Path | None, typer.Option(help="Compare: the fairness audit's result, JSON.")] = None,
    dpia: Annotated[Path | None, typer.Option(help="Compare: the impact assessment, JSON.")] = None,
    decision: Annotated[Path | None, typer.Option(help="Compare: the policy decision, JSON.")] = None,
    as_json: _Json = False,
) -> None:
    """Verify a case file offline: every signature, every link, every date, and documents that are given.

    Exits with 0 when everything holds, however the case stands; with 1 and a line for everything that does not.

    \b
    Example:
      cohortium review verify spring-1.case.json --charter charter.toml --audit audit.json
    """
    found = parse_case_file(_read(file), str(file))
    told = found.standing(load_charter(charter), _now())
    given: dict[Part, Path | None] = {"card": card, "audit": audit, "dpia": dpia, "decision": decision}
    findings = list(told.reasons) if told.state == "invalid" else []
    for part, path in given.items():
        if path is not None and document_digest(_read_json(path)) != getattr(found.case.subject, part):
            findings.append(f"{path}: is not the {part} that was signed")
    if as_json:
        head = {"verified": not findings, "findings": findings, "head": found.head}
        typer.echo(json.dumps({**head, **_row(found.case, told, _now())}, indent=2))
    else:
        for line in findings:
            typer.echo(line)
        typer.echo("NOT verified" if findings else f"verified: {told.state}; {'; '.join(told.reasons)}")
    if findings:
        raise typer.Exit(NOT_VERIFIED)


def _sign(
    node: Path,
    name: str,
    charter: Path,
    key_file: Path,
    password_file: Path | None,
    action: Action,
    terms: Terms,
    as_json: bool,
) -> None:
    agreed, now = load_charter(charter), _now()
    with _opened(node) as store:
        case, previous = store.case(name), store.head(name)
        key = read_reviewer_key(key_file, _password(password_file))
        reviewer = _enrolled(agreed, key.public_key().public_bytes_raw().hex(), key_file)
        found = store.add(name, sign_statement(case, previous, reviewer, key, action, terms, now), agreed, now)
    if as_json:
        typer.echo(json.dumps(_row(case, found, now), indent=2))
    else:
        typer.echo(f"signed as {reviewer.person} ({reviewer.function}); the case is {found.state}")
        for reason in found.reasons:
            typer.echo(reason)


def _enrolled(charter: Charter, public: str, place: Path) -> Reviewer:
    found = next((one for one in charter.reviewers if one.key == public), None)
    if found is None:
        raise RefusedError(
            "is not the key of a reviewer of this charter", place=str(place), fix="enrol it with `review key enrol`"
        )
    return found


def _parse_request(path: Path) -> Reviewer:
    document = _read_json(path)
    try:
        return Reviewer.model_validate(document)
    except ValueError as error:
        raise DataError("is no request of `review key new`", place=str(path), fix="make it anew") from error


def _password(file: Path | None, *, confirm: bool = False) -> str:
    """From a file, the environment or a prompt; never from an argument, which other users of the machine could see."""
    if file is not None:
        return password_in(file)
    if (given := os.environ.get(PASSWORD)) is not None:
        return given
    return str(typer.prompt("password", hide_input=True, confirmation_prompt=confirm, err=True))


def _institution(node: Path) -> str:
    try:
        return NodeIdentity.model_validate_json((node / "node.json").read_bytes()).institution
    except (OSError, ValueError) as error:
        raise DataError("holds no node", place=str(node), fix="name a node's state folder") from error


@contextmanager
def _opened(node: Path, *, create: bool = False) -> Iterator[ReviewStore]:
    _institution(node)
    path = node / REVIEW_FILE
    if not create and not has_store(path):
        raise DataError("no case was opened here", place=str(node), fix="open one with `cohortium review open`")
    engine = open_store(path)
    try:
        yield ReviewStore(engine)
    finally:
        engine.dispose()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(error.strerror or "cannot be read", place=str(path), fix="check the path") from error


def _read_json(path: Path) -> dict[str, Any]:
    return read_document(_read(path), str(path))


def _link(text: str) -> tuple[str, str]:
    name, equals, place = text.partition("=")
    if not equals:
        raise PlanError("a link without '='", place="--link", fix="write it as NAME=PLACE")
    return name, place


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _last_day(text: str) -> date:
    try:
        if text.endswith("d"):
            return _now().date() + timedelta(days=int(text.removesuffix("d")))
        return date.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise PlanError(
            f"'{text}' is no day", place="--expires", fix="write it as 2026-12-31, or as a number of days, 90d"
        ) from error


def _row(case: Case, found: Standing, now: datetime) -> dict[str, Any]:
    return {
        "case": case.name,
        "digest": case.digest,
        "kind": case.kind,
        "about": case.about,
        "risk": case.risk.tier,
        "owner": case.owner,
        "age": case.age(now),
        "state": found.state,
        "reasons": list(found.reasons),
        "waiting_for": list(found.waiting_for),
        "approvers": list(found.approvers),
        "until": None if found.until is None else found.until.isoformat(),
        "waived": found.waived,
    }


def _say_opened(case: Case, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"case": case.name, "digest": case.digest, "subject": case.subject.digest}, indent=2))
        return
    typer.echo(f"opened '{case.name}': risk {case.risk.tier}")
    for reason in case.risk.reasons:
        typer.echo(f"  {reason}")


def _console() -> Console:
    return Console(highlight=False, markup=False)


def _print_page(page: CasePage) -> None:
    case, found = page.case, page.standing
    until = "" if found.until is None else f" until {found.until}"
    lines = [
        f"{case.name}: {found.state}{until}",
        *(f"  {reason}" for reason in (*found.reasons, *found.left_out)),
        f"{case.kind} of {case.about} at {case.institution}, for {case.purpose}",
        f"risk {case.risk.tier}; owner {case.owner}; built by {', '.join(case.builders)}; open {page.age} days",
        *(f"  {reason}" for reason in case.risk.reasons),
        f"changed since {page.earlier}: {', '.join(page.changed) or 'nothing'}"
        if page.earlier
        else "nothing was approved before",
        *(f"condition: {condition}" for condition in found.conditions),
        *(f"to do: {task}" for task in found.tasks),
        *(f"{name}: {place}" for name, place in case.links.items()),
        *(f"waived in {one['case']} by {one['person']} to {one['expires']}: {one['reason']}" for one in page.waivers),
    ]
    for function, people in page.may_sign.items():
        lines.append(f"to be signed for {function}, by {' or '.join(people) or 'nobody who is enrolled'}")
    for line in lines:
        typer.echo(line)
    for part in PARTS:
        _print_document(part, getattr(case.subject, part), page.documents[part])
    for said in (signed.statement for signed in page.statements):
        words = "; ".join((*said.conditions, *said.questions, *(text for text in (said.reason, said.task) if text)))
        last = "" if said.expires is None else f" to {said.expires}"
        typer.echo(f"{said.at:%Y-%m-%d %H:%M} {said.person} ({said.function}): {said.action}{last} {words}".rstrip())


def _print_document(part: Part, digest: str, told: Mapping[str, Any]) -> None:
    typer.echo(f"\n{part} {digest}")
    for name, value in told.items():
        if not isinstance(value, list):
            typer.echo(f"  {name}: {value}")
    for name, rows in told.items():
        if isinstance(rows, list):
            heads = list(dict.fromkeys(head for row in rows for head, cell in row.items() if cell is not None))
            table = Table(*heads, title=name, title_justify="left", box=None, pad_edge=False)
            for row in rows:
                table.add_row(*("" if row.get(head) is None else str(row[head]) for head in heads))
            _console().print(table)
