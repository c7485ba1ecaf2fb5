"""`cohortium evidence build` and `verify`: one file with everything an outsider needs, checked offline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from cohortium.cli.access import authorised
from cohortium.cli.options import PasswordFile
from cohortium.governance.access import Act
from cohortium.governance.evidence.verify import CHECKS, Finding, Findings, verify_packs
from cohortium.study.charter import load_charter
from cohortium.study.errors import PlanError
from cohortium.study.keys import find_password

__all__ = ["build", "verify"]

NOT_VERIFIED = 1
"""Exit code of `verify` when something does not hold; mistakes of the caller exit with 2."""


def build(
    out: Annotated[Path, typer.Option("--out", "-o", help="The pack to write, such as evidence.zip; a new file.")],
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of simulated runs on one state; runs inside of them are taken too."),
    ] = None,
    node: Annotated[Path | None, typer.Option(help="The state folder of one node, instead of runs.")] = None,
    coordinator: Annotated[
        Path | None, typer.Option(help="The folder of a federation's coordinator, instead of runs.")
    ] = None,
    plan: Annotated[
        list[str] | None,
        typer.Option(help="Of a node or a coordinator: the digest of a plan; may be repeated. All when left out."),
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="Of runs: where their institutions are, if not in a run's folder.")
    ] = None,
    attack_audit: Annotated[Path | None, typer.Option(help="audit.json of `cohortium privacy audit`.")] = None,
    add: Annotated[
        list[Path] | None,
        typer.Option(help="A further document, such as a model card or a fairness result; may be repeated."),
    ] = None,
    password_file: PasswordFile = None,
) -> None:
    """Write one file that proves to an outsider what was done: logs, charges, decisions, releases, reviews.

    Of simulated runs it covers the coordinator and every institution, and the coordinator signs it. Of a node or a
    coordinator it covers that one, which signs it. Nothing of single customers is in it; docs/evidence.md lists all.

    \b
    Examples:
      cohortium evidence build demo-results -o evidence.zip
      cohortium evidence build --node state/north -o north.zip
      cohortium evidence build --coordinator coordinator --plan sha256:efba... -o spring.zip
    """
    for folder in (node, coordinator):
        if folder is not None:
            authorised(folder, Act.EVIDENCE_BUILD)
    if [node is not None, coordinator is not None, bool(runs)].count(True) != 1:
        raise PlanError(
            "say of what", place="RUNS, --node, --coordinator", fix="give runs, one node, or one coordinator"
        )
    if not runs and state is not None:
        raise PlanError("a node is its own state, and so is a coordinator", place="--state", fix="leave it out")
    if runs and plan:
        raise PlanError("plans are those of the runs", place="--plan", fix="leave it out, or give --node")
    gathered = _gathered(runs, state, node, coordinator, plan or None, password_file)
    gathered.add_further(attack_audit, add or [])
    manifest = gathered.write(out)
    names = ", ".join(f"'{one.name}'" for one in gathered.plans.values())
    typer.echo(f"{out}: {len(manifest.documents)} documents about {names}, signed by {manifest.signer}")
    typer.echo(f"check it with: cohortium evidence verify {out} --charter CHARTER")


def verify(
    packs: Annotated[
        list[Path], typer.Argument(help="Evidence packs of one federation, such as a coordinator's and a node's.")
    ],
    charter: Annotated[Path, typer.Option(help="The federation's charter, TOML or JSON, from somebody you trust.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print every finding as JSON.")] = False,
) -> None:
    """Check packs offline, with the public charter alone: every byte, and everything that their documents say.

    Given together, they are also compared with each other. Exits with 0 when everything holds that is in them, 1 when
    something does not, 2 when there is nothing to read.

    \b
    Examples:
      cohortium evidence verify evidence.zip --charter charter.toml
      cohortium evidence verify coordinator.zip north.zip --charter charter.json
    """
    found = verify_packs(packs, load_charter(charter))
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        for line in _lines(found):
            typer.echo(line)
    if not found.passed:
        raise typer.Exit(NOT_VERIFIED)


def _gathered(
    runs: list[Path] | None,
    state: Path | None,
    node: Path | None,
    coordinator: Path | None,
    plans: list[str] | None,
    password_file: Path | None,
) -> Any:
    """What goes into the pack; imported late, for that takes seconds, which `verify` does not need."""
    if coordinator is not None:
        of_coordinator = import_module("cohortium.server.evidence").of_coordinator
        return of_coordinator(coordinator, plans, find_password(password_file))
    if node is not None:
        password = None if password_file is None else find_password(password_file)
        return import_module("cohortium.client.evidence").of_node(node, plans, password)
    return import_module("cohortium.simulations.evidence").of_runs(runs, state)


def _lines(found: Findings) -> Iterator[str]:
    """One line for every check: of failures every one, of the rest the first and how many more."""
    for check in CHECKS:
        some = [one for one in found.findings if one.check == check]
        failed = [one for one in some if one.status == "failed"]
        passed = [one for one in some if one.status == "passed"]
        for one in failed:
            yield f"{check:14} FAILED  {_about(one)}"
        if passed and not failed:
            more = f", and {len(passed) - 1} more" if len(passed) > 1 else ""
            yield f"{check:14} passed  {_about(passed[0])}{more}"
        if some and not failed and not passed:
            yield f"{check:14} -       {_about(some[0])}"
    if found.altered is not None:
        yield f"NOT verified: the first altered byte lies in {found.altered}"
    else:
        count = sum(one.status == "failed" for one in found.findings)
        yield "verified" if found.passed else f"NOT verified: {count} findings"


def _about(one: Finding) -> str:
    return f"{one.about}: {one.message}" if one.about else one.message
