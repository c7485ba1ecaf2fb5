"""`cohortium log`: what a node logged, whether anybody changed it since, proofs of it, and witnessing by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine

from cohortium.cli.access import authorised
from cohortium.client.node import read_key
from cohortium.governance.access import Act
from cohortium.governance.log import (
    AuditLog,
    Checkpoint,
    ConsistencyProof,
    Ed25519Signer,
    InclusionProof,
    LogReader,
    Witness,
    known_logs,
    load_proof,
    log_origin,
    log_verifier,
    member_of,
    parse_checkpoint,
    parse_note,
    parse_signatures,
    prove_consistency,
    prove_inclusion,
    quorum_for,
    verify_log,
)
from cohortium.privacy.stores import has_store, open_store
from cohortium.server.founding import open_coordinator
from cohortium.study.charter import Charter, load_charter
from cohortium.study.errors import DataError, OutputError
from cohortium.study.keys import find_password, read_plain_identity

__all__ = ["app"]

NOT_VERIFIED = 1
"""Exit code of `verify` when a log or a proof does not hold; mistakes of the caller exit with 2."""

_FILE, _KEY = "log.sqlite", "identity.pem"

app = typer.Typer(
    name="log",
    help="A node's tamper-evident audit log: show it, verify it, prove entries of it, witness the logs of others.",
    no_args_is_help=True,
)

_Folder = Annotated[Path, typer.Argument(help="The folder of a node or of the coordinator, with log.sqlite.")]
_Charter = Annotated[Path, typer.Option(help="The federation's charter, TOML or JSON, with everybody's public keys.")]
_Json = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]


@app.command("show")
def show(
    folder: _Folder,
    first: Annotated[int, typer.Option("--from", min=0, help="The first entry to show.")] = 0,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="How many entries to show.")] = 20,
    as_json: _Json = False,
) -> None:
    """The log's name and size, its newest checkpoint and who cosigned it, and entries in order.

    \b
    Examples:
      cohortium log show state/north
      cohortium log show state/north --from 100 --count 50 --json
    """
    authorised(folder, Act.LOG_READ)
    with _reader(folder) as log:
        entries, size, note = log.entries(first, first + count), log.size, log.newest()
    if as_json:
        rows = [{"index": entry.index, "entry": entry.entry, "salt": entry.salt} for entry in entries]
        typer.echo(json.dumps({"origin": log.origin, "size": size, "checkpoint": note, "entries": rows}, indent=2))
        return
    typer.echo(f"{log.origin}: {size} entries")
    if note is not None:
        others = [signature.name for signature in parse_note(note).signatures if signature.name != log.origin]
        typer.echo(f"newest checkpoint: {_checkpoint(note).size} entries, cosigned by {', '.join(others) or 'nobody'}")
    table = Table("entry", "what", box=None, pad_edge=False)
    for entry in entries:
        table.add_row(str(entry.index), json.dumps(entry.entry, ensure_ascii=False))
    if entries:
        Console(highlight=False, markup=False, soft_wrap=True).print(table)


@app.command("verify")
def verify(
    what: Annotated[Path, typer.Argument(help="A folder with log.sqlite, or a proof made by `cohortium log prove`.")],
    charter: _Charter,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="A checkpoint of this log that somebody else kept, such as a witness; may be repeated."),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Hash every entry again and compare with all checkpoints, or check a proof: offline, with the charter alone.

    Without --against a log is compared with the checkpoints in its own file, which its owner could have made anew. A
    checkpoint that somebody else kept is what the owner cannot change.

    Exits with 0 when everything agrees, 1 when something was changed, or a proof does not hold or lacks cosignatures, 2
    when there is nothing to read.

    \b
    Examples:
      cohortium log verify state/north --charter charter.toml --against north-seen-by-west.txt
      cohortium log verify proof.json --charter charter.toml
    """
    if what.is_dir():
        authorised(what, Act.LOG_READ)
    agreed = load_charter(charter)
    told = _verified_log(what, agreed, against or []) if what.is_dir() else _verified_proof(what, agreed)
    if as_json:
        typer.echo(json.dumps(told, indent=2))
    else:
        for finding in told["findings"]:
            typer.echo(finding)
        typer.echo(f"{told['origin']}: {told['size']} entries, {'verified' if told['verified'] else 'NOT verified'}")
        typer.echo(f"cosigned by a quorum: {told['cosigned'] or 'nothing'}")
    if not told["verified"]:
        raise typer.Exit(NOT_VERIFIED)


@app.command("prove")
def prove(
    folder: _Folder,
    out: Annotated[Path, typer.Option(help="Where to write the proof, a JSON file.")],
    entry: Annotated[int | None, typer.Option(min=0, help="Prove that this entry is in the log.")] = None,
    since: Annotated[
        int | None, typer.Option(min=0, help="Prove that the log only grew since its checkpoint of this size; 0: ever.")
    ] = None,
) -> None:
    """Write a proof that an entry is in the log, or that the log only grew: checked by `cohortium log verify`.

    \b
    Examples:
      cohortium log prove state/north --entry 7 --out proof.json
      cohortium log prove state/north --since 0 --out growth.json
    """
    authorised(folder, Act.LOG_READ)
    if (entry is None) == (since is None):
        raise DataError("say what to prove", place="--entry, --since", fix="give one of the two")
    with _reader(folder) as log:
        proof = _entry_proof(log, entry) if entry is not None else _growth_proof(log, since or 0)
    _write(out, proof.to_bytes() + b"\n")
    typer.echo(f"{out}: under the checkpoint of {_checkpoint(proof.note).size} entries")


@app.command("witness")
def witness(
    folder: _Folder,
    charter: Annotated[Path | None, typer.Option(help="The federation's charter; needed to cosign or keep.")] = None,
    cosign: Annotated[
        Path | None, typer.Option(help="Another log's growth proof (`prove --since`), to be cosigned by hand.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="A checkpoint of this node's own log with a cosignature, to be kept.")
    ] = None,
    tell: Annotated[
        str | None,
        typer.Option(help="An institution: cosign anew the newest checkpoint of its log that this node knows."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the cosigned checkpoint.")] = None,
    as_json: _Json = False,
) -> None:
    """Show what this node witnessed of other logs; cosign another log's checkpoint; tell and keep what was cosigned.

    A run does this by itself with every question. By hand it serves a log whose node is out of reach. A checkpoint is
    cosigned only if it continues the one that this node cosigned last; a proof from another size is refused, and the
    refusal names the size to begin from.

    \b
    Examples:
      cohortium log witness state/west
      cohortium log witness state/west --charter charter.toml --cosign growth.json --out cosigned.txt
      cohortium log witness state/north --charter charter.toml --keep cosigned.txt
      cohortium log witness state/west --charter charter.toml --tell north --out north-by-west.txt
    """
    authorised(folder, Act.LOG_READ if cosign is None and keep is None and tell is None else Act.LOG_WITNESS)
    if cosign is not None:
        _cosign(folder, _needed(charter, "--charter"), cosign, _needed(out, "--out"))
    elif tell is not None:
        _tell(folder, _needed(charter, "--charter"), tell, _needed(out, "--out"))
    elif keep is not None:
        _keep(folder, _needed(charter, "--charter"), keep)
    else:
        with _opened(folder, read_only=True) as store:
            logs = known_logs(store)
        if as_json:
            rows = [{"origin": k.checkpoint.origin, "size": k.checkpoint.size, "checkpoint": k.note} for k in logs]
            typer.echo(json.dumps({"logs": rows}, indent=2))
        for known in [] if as_json else logs:
            typer.echo(
                f"{known.checkpoint.origin}: {known.checkpoint.size} entries, root {known.checkpoint.root.hex()}"
            )
        if not logs and not as_json:
            typer.echo("this node has witnessed no log yet")


def _verified_log(folder: Path, charter: Charter, against: list[Path]) -> dict[str, Any]:
    with _reader(folder) as log:
        origin, note = log.origin, log.cosigned()
    owner = member_of(charter, origin)
    quorum = quorum_for(charter, owner)
    held = [_text(path) for path in against]
    report = verify_log(folder / _FILE, quorum.verifier, notes=held)
    findings = [finding.message for finding in report.findings]
    cosigned = 0
    try:
        cosigned = _checkpoint(note).size if note is not None and quorum.satisfied(note) else 0
    except DataError as error:
        findings.append(f"the kept cosigned checkpoint: {error.message}")
    bad = report.first_bad
    return {
        "verified": not findings,
        "origin": origin,
        "size": report.size,
        "root": report.root.hex(),
        "checkpoints": report.checkpoints,
        "first_bad": None if bad is None else [bad.first, bad.last],
        "findings": findings,
        "cosigned": f"the first {cosigned} entries" if cosigned else None,
    }


def _verified_proof(file: Path, charter: Charter) -> dict[str, Any]:
    proof = load_proof(file)
    checkpoint = _checkpoint(proof.note)
    quorum = quorum_for(charter, member_of(charter, checkpoint.origin))
    findings, satisfied = [], False
    try:
        proof.check(quorum.verifier)
        satisfied = quorum.satisfied(proof.note)
    except DataError as error:
        findings.append(error.message)
    if not findings and not satisfied:
        findings.append(
            "the proof holds, but too few witnesses cosigned its checkpoint: the log could show others another"
        )
    told: dict[str, Any] = {"verified": not findings, "origin": checkpoint.origin, "size": checkpoint.size}
    if isinstance(proof, InclusionProof):
        told |= {"index": proof.index, "entry": proof.entry}
    cosigned = f"the first {checkpoint.size} entries" if satisfied else None
    return {**told, "findings": findings, "cosigned": cosigned}


def _entry_proof(log: LogReader, index: int) -> InclusionProof:
    """Under the cosigned checkpoint if it covers the entry, else under the newest."""
    cosigned = log.cosigned()
    note = cosigned if cosigned is not None and _checkpoint(cosigned).size > index else _newest(log)
    return prove_inclusion(log, index, note)


def _growth_proof(log: LogReader, since: int) -> ConsistencyProof:
    return prove_consistency(log, log.checkpoint_at(since) if since else None, _newest(log))


def _newest(log: LogReader) -> str:
    note = log.newest()
    if note is None:
        raise DataError("no checkpoint was made yet", place=log.origin, fix="a checkpoint is made with every question")
    return note


def _cosign(folder: Path, charter: Path, file: Path, out: Path) -> None:
    agreed, proof = load_charter(charter), load_proof(file)
    if not isinstance(proof, ConsistencyProof):
        raise DataError("is a proof of an entry", place=str(file), fix="make one with `cohortium log prove --since`")
    origin = _checkpoint(proof.new).origin
    verifier = log_verifier(agreed, member_of(agreed, origin))
    with _opened(folder) as store:
        name = LogReader(store).origin
        if name == origin:
            raise DataError("is this node's own log", place=str(file), fix="have another institution witness it")
        here = Witness(store, name, _key(folder))
        line = here.cosign(origin, verifier, proof.old_size(verifier), proof.hashes, proof.new)
    _write(out, parse_note(proof.new).with_signatures(parse_signatures(line)).to_text().encode())
    typer.echo(f"{out}: cosigned {origin} at {_checkpoint(proof.new).size} entries")


def _tell(folder: Path, charter: Path, institution: str, out: Path) -> None:
    """What this node knows of another's log, as of now: whoever was restored shows by it that nothing is lost."""
    agreed = load_charter(charter)
    if institution not in [member.name for member in agreed.institutions]:
        raise DataError("is no institution of the charter", place=institution, fix="name one of its institutions")
    origin = log_origin(agreed.name, institution)
    with _opened(folder) as store:
        here = Witness(store, LogReader(store).origin, _key(folder))
        known = here.known(origin)
        if known is None:
            raise DataError("this node has witnessed no such log", place=origin, fix="ask another institution")
        size = known.checkpoint.size
        line = here.cosign(origin, log_verifier(agreed, institution), size, [], known.note)
    _write(out, parse_note(known.note).with_signatures(parse_signatures(line)).to_text().encode())
    typer.echo(f"{out}: {origin} had {size} entries when it was last witnessed here")


def _keep(folder: Path, charter: Path, file: Path) -> None:
    agreed, note = load_charter(charter), _text(file)
    with _opened(folder) as store:
        origin = LogReader(store).origin
        quorum = quorum_for(agreed, member_of(agreed, origin))
        cosigners = quorum.cosigners(note)  # refuses cosignatures that do not hold
        log = AuditLog(store, origin, Ed25519Signer(origin, _key(folder)))
        log.keep_cosigned(note)
        kept = log.checkpoint_at(_checkpoint(note).size)
    verdict = "a quorum" if quorum.satisfied(kept) else "not yet a quorum"
    typer.echo(f"kept: cosigned by {', '.join(sorted(cosigners)) or 'nobody'}; in all {verdict}")


@contextmanager
def _opened(folder: Path, *, read_only: bool = False) -> Iterator[Engine]:
    if not has_store(folder / _FILE):
        raise DataError("holds no audit log", place=str(folder), fix="name the folder of a node or of the coordinator")
    store = open_store(folder / _FILE, create=False, read_only=read_only)
    try:
        yield store
    finally:
        store.dispose()


@contextmanager
def _reader(folder: Path) -> Iterator[LogReader]:
    with _opened(folder, read_only=True) as store:
        yield LogReader(store)


def _checkpoint(note: str) -> Checkpoint:
    return parse_checkpoint(parse_note(note).text)


def _key(folder: Path) -> Ed25519PrivateKey:
    """Of a node, of a coordinator, or of a simulation's log without either."""
    if not (folder / _KEY).exists():
        raise DataError("holds no usable key", place=str(folder / _KEY), fix="put the node's key back")
    if (folder / "node.json").exists():
        return read_key(folder)
    if (folder / "coordinator.json").exists():
        return open_coordinator(folder, find_password())[1]
    return read_plain_identity(folder / _KEY, fix="put the node's key back")


def _needed(path: Path | None, option: str) -> Path:
    if path is None:
        raise DataError("is needed here", place=option, fix=f"give {option} FILE")
    return path


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("cannot be read as text", place=str(path), fix="check the path") from error


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise OutputError("cannot be written", place=str(path), fix="check the path and its permissions") from error
