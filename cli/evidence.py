"""`cohortium evidence`: documents for outsiders, made of what was released, approved and declared."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cohortium.cli.access import authorised
from cohortium.cli.evidence_pack import build, verify
from cohortium.governance.access import Act
from cohortium.governance.evidence import (
    Dpia,
    Outcome,
    Released,
    card_cyclonedx,
    card_markdown,
    complete_dpia,
    dpia,
    dpia_markdown,
    model_card,
    prov_json,
    ropa,
    ropa_csv,
    ropa_jsonld,
)
from cohortium.governance.fairness import load_fairness
from cohortium.study.bundle import Bundle, load_bundle
from cohortium.study.charter import Charter, load_charter
from cohortium.study.contract import Contract, load_contract
from cohortium.study.document import read_json, read_toml, validated
from cohortium.study.errors import ContractError, DataError, OutputError, RefusedError
from cohortium.study.model import EncoderModel, LookalikeModel, load_model

__all__ = ["app"]

app = typer.Typer(
    name="evidence",
    help="What outsiders read and check: evidence packs, model cards, records of processing, DPIAs, provenance.",
    no_args_is_help=True,
)

_OUTCOMES: dict[Outcome, str] = {
    "approve": "approved",
    "conditionally approve": "conditionally_approved",
    "reject": "rejected",
    "refer": "referred",
}

_Node = Annotated[Path, typer.Argument(metavar="NODE", help="The node's state folder.")]
_Out = Annotated[Path | None, typer.Option("--out", "-o", help="A new file to write; printed when left out.")]
_Fairness = Annotated[
    list[Path] | None, typer.Option(help="A result of a fairness audit of it, JSON; may be repeated.")
]


@app.command("card")
def card(
    released: Annotated[
        Path, typer.Argument(metavar="RELEASED", help="bundle.json, encoder.safetensors or lookalike.safetensors.")
    ],
    fairness: _Fairness = None,
    charter: Annotated[
        Path | None, typer.Option(help="The charter, TOML or JSON, to check a model's signature with.")
    ] = None,
    contract: Annotated[
        Path | None, typer.Option(help="The contract, TOML or JSON: with --format markdown, to show every feature.")
    ] = None,
    form: Annotated[
        Literal["json", "markdown", "cyclonedx"], typer.Option("--format", help="Which of the three.")
    ] = "json",
    out: _Out = None,
) -> None:
    """The model card of what a run released: what it is and is not for, what it cost, how good it is, whom it may fail.

    A card is a function of the released file and the audits: everybody makes the same one, and its digest is what
    reviewers sign (JSON). Markdown begins with the metadata that model hubs read; CycloneDX 1.6 is for inventories.

    \b
    Examples:
      cohortium evidence card bundle.json -o card.json
      cohortium evidence card lookalike.safetensors --fairness fairness.json --charter charter.toml -o card.json
      cohortium evidence card bundle.json --format markdown --contract contract.toml -o README.md
      cohortium evidence card bundle.json --format cyclonedx -o card.cdx.json
    """
    if contract is not None and form != "markdown":
        raise DataError("is shown in Markdown alone", place="--contract", fix="leave it out, or use --format markdown")
    if charter is not None and released.suffix == ".json":
        raise RefusedError("a bundle has no signature", place="--charter", fix="leave it out")
    found = _released(released, None if charter is None else _signer(charter))
    if charter is None and released.suffix != ".json":
        typer.echo(f"{released}: its signature was not checked; give --charter", err=True)
    made = model_card(found, [load_fairness(path) for path in fairness or ()])
    match form:
        case "json":
            _write(_json(made.to_json()), out)
        case "markdown":
            _write(card_markdown(made, None if contract is None else _read_contract(contract)), out)
        case "cyclonedx":
            _write(_json(card_cyclonedx(made)), out)
    _say_written(out, f"model card {made.digest}")


@app.command("ropa")
def records(
    node: _Node,
    form: Annotated[Literal["csv", "jsonld", "json"], typer.Option("--format", help="Which of the three.")] = "csv",
    out: _Out = None,
) -> None:
    """The record of processing activities (GDPR Art. 30(1)): one entry for every plan that the node approved.

    Filled from plans, contract, charters and governance.toml. What none of them says is listed as to be stated, and not
    guessed. CSV is for people; JSON-LD is in terms of the W3C Data Privacy Vocabulary. Not legal advice.

    \b
    Examples:
      cohortium evidence ropa state/north -o ropa.csv
      cohortium evidence ropa state/north --format jsonld -o ropa.jsonld
    """
    authorised(node, Act.EVIDENCE_BUILD)
    found = _reading().read_node(node)
    entries = ropa(
        found.institution, [(one.plan, one.charter) for one in found.approvals], found.contract, found.declared
    )
    match form:
        case "csv":
            _write(ropa_csv(entries), out)
        case "jsonld":
            _write(_json(ropa_jsonld(entries)), out)
        case "json":
            _write(_json([entry.to_json() for entry in entries]), out)
    left = sum(len(entry.open) for entry in entries)
    _say_written(out, f"{len(entries)} entries, in which {left} things are to be stated")


@app.command("dpia")
def assessment(
    node: _Node,
    plan: Annotated[
        str, typer.Argument(metavar="PLAN", help="A plan that the node approved: its name, digest or how that begins.")
    ],
    questions: Annotated[
        bool, typer.Option("--questions", help="Write the open questions as a file to be answered, and nothing else.")
    ] = False,
    answers: Annotated[
        Path | None, typer.Option(help="That file, answered; it may also replace what declared facts answer.")
    ] = None,
    outcome: Annotated[Outcome | None, typer.Option(help="What is decided; a draft when left out.")] = None,
    by: Annotated[list[str] | None, typer.Option(help="Person id of who answers for the outcome; repeat it.")] = None,
    condition: Annotated[list[str] | None, typer.Option(help="Of a conditional approval; repeat it.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Markdown for people instead of JSON.")] = False,
    out: _Out = None,
) -> None:
    """A data protection impact assessment (GDPR Art. 35(7)): pre-filled, then completed and decided by people.

    The draft has what plan, contract, charter and governance.toml say, names the command that shows each figure, and
    asks the rest. An outcome needs an answer to every question and somebody who answers for it. Not legal advice.

    \b
    Examples:
      cohortium evidence dpia state/north spring-segments --markdown
      cohortium evidence dpia state/north spring-segments --questions -o answers.toml
      cohortium evidence dpia state/north spring-segments --answers answers.toml --outcome approve \\
        --by priya --by rolf -o dpia.json
      cohortium evidence dpia state/north spring-segments --answers answers.toml \\
        --outcome "conditionally approve" --condition "only own channels" --by priya -o dpia.json
    """
    authorised(node, Act.EVIDENCE_BUILD)
    reading = _reading()
    found = reading.read_node(node)
    chosen = reading.find_approval(found, plan)
    made = dpia(found.institution, chosen.plan, chosen.charter, found.contract, found.declared)
    if questions:
        _refuse_with_questions(answers, outcome, by, condition, markdown)
        _write(_question_file(made), out)
        _say_written(out, f"{len(made.open)} open questions")
        return
    if outcome is not None:
        today = datetime.now(UTC).date()
        made = complete_dpia(made, _answers(answers), outcome, by=by or [], on=today, conditions=condition or [])
    elif answers is not None or by or condition:
        raise RefusedError("only an outcome has these", place="--answers, --by, --condition", fix="give --outcome")
    _write(dpia_markdown(made) if markdown else _json(made.to_json()), out)
    if made.state == "draft":
        _say_written(out, f"draft with {len(made.open)} open questions")
    else:
        _say_written(out, f"{made.state}; to be declared in {node / 'governance.toml'}:")
        typer.echo(f'docs.dpia_ref = "{made.digest}"', err=True)
        typer.echo(f'docs.dpia_outcome = "{_OUTCOMES[made.state]}"', err=True)


@app.command("prov")
def provenance(
    node: _Node,
    released: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RELEASED]...", help="What runs released under plans that the node approved."),
    ] = None,
    fairness: Annotated[
        list[Path] | None, typer.Option(help="A result of a fairness audit, JSON; may be repeated.")
    ] = None,
    out: _Out = None,
) -> None:
    """Where things come from, in PROV-JSON (W3C): plans, decisions, questions, releases, audits, reviews, exports.

    Made of the node's approvals, its audit log and its review cases, and of the released files that are given. Log
    entries name no customer, and nothing else is read.

    \b
    Examples:
      cohortium evidence prov state/north bundle.json -o prov.json
      cohortium evidence prov state/north lookalike.safetensors --fairness fairness.json -o prov.json
    """
    authorised(node, Act.EVIDENCE_BUILD)
    reading = _reading()
    found = reading.read_node(node)
    charter = found.approvals[-1].charter
    if any(one.charter.digest != charter.digest for one in found.approvals):
        raise RefusedError("its plans are of several charters", place=str(node), fix="give a node of one federation")
    document = prov_json(
        charter,
        found.contract,
        plans=[one.plan for one in found.approvals],
        released=[_approved(path, charter, found) for path in released or ()],
        fairness=[load_fairness(path) for path in fairness or ()],
        logs={found.institution: reading.log_entries(found)},
        reviews=reading.review_cases(found),
    )
    _write(_json(document), out)
    counts = ", ".join(f"{len(document[kind])} {kind}" for kind in ("entity", "activity", "agent"))
    _say_written(out, counts)


app.command("build")(build)
app.command("verify")(verify)


def _reading() -> Any:
    """What reads a node's folder, imported where it is needed: it brings everything that a node needs."""
    return import_module("cohortium.cli.evidence_node")


def _released(path: Path, signer: str | None) -> Released:
    """A bundle, which is not signed, or a model; its signature is checked where a key is given."""
    if path.suffix == ".json":
        return load_bundle(path)
    try:
        load_model(path, LookalikeModel, signer=None)
    except DataError:
        return load_model(path, EncoderModel, signer=signer)
    return load_model(path, LookalikeModel, signer=signer)


def _approved(path: Path, charter: Charter, node: Any) -> Released:
    """What was released under a plan that the node approved, its signature checked where the charter pins a key."""
    read = _released(path, charter.coordinator)
    document = read if isinstance(read, Bundle) else read.document
    if document.plan.digest not in [one.plan.digest for one in node.approvals]:
        raise RefusedError("was released under a plan that is not approved here", place=str(path), fix="leave it out")
    return read


def _signer(path: Path) -> str:
    charter = load_charter(path)
    if charter.coordinator is None:
        raise RefusedError("pins no key of a coordinator", place=str(path), fix="give the charter the run was under")
    return charter.coordinator


def _read_contract(path: Path) -> Contract:
    if path.suffix == ".json":
        return validated(Contract, read_json(path, DataError), str(path), {}, ContractError)
    return load_contract(path)


def _answers(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    read = read_toml(path, DataError)
    for name, answer in read.items():
        if not isinstance(answer, str):
            raise DataError("is no text", place=f"{path}: {name}", fix='write it as name = "answer"')
    return {name: answer for name, answer in read.items() if answer.strip()}


def _question_file(made: Dpia) -> str:
    """TOML with every question: the open ones to be answered, the others as comments."""
    lines = [
        f"# Impact assessment of '{made.activity}' at {made.institution}: answer every question that has no answer.",
        "# What a declared fact answers is a comment; take the mark away to answer it yourself.",
    ]
    for one in made.questions:
        answer = "" if one.answer is None else one.answer
        mark = "" if one.answer is None else "# "
        lines += ["", f"# {one.text}", f"{mark}{one.name} = {json.dumps(answer, ensure_ascii=False)}"]
    return "\n".join([*lines, ""])


def _refuse_with_questions(*given: object) -> None:
    if any(given):
        raise RefusedError("the questions come before answers and outcome", place="--questions", fix="give it alone")


def _json(document: object) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _write(text: str, out: Path | None) -> None:
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        with out.open("xb") as file:
            file.write(text.encode())
    except OSError as error:
        raise OutputError(error.strerror or "cannot be written", place=str(out), fix="name a new file") from error


def _say_written(out: Path | None, what: str) -> None:
    typer.echo(what if out is None else f"{out}: {what}", err=True)
