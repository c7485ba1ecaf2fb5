"""`cohortium study`: from a proposal to what its run released, at the coordinator and at the nodes that approve."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console

from cohortium.cli.access import authorised
from cohortium.cli.options import PasswordFile
from cohortium.cli.progress import progress_printer
from cohortium.client.approving import approval_file, approve, decline
from cohortium.client.node import read_key
from cohortium.client.proposals import add_proposal, pending
from cohortium.client.reviewing import Review, review
from cohortium.governance.access import Act, os_login
from cohortium.server.founding import open_coordinator
from cohortium.server.studies import Attempted, Studies, StudyRun, StudyStatus
from cohortium.study.charter import load_charter
from cohortium.study.errors import CohortiumError, DataError, RefusedError, printable
from cohortium.study.keys import find_password, write_whole
from cohortium.study.plans import load_plan, named_model
from cohortium.study.proposal import MAX_PROPOSAL, parse_approval
from cohortium.study.software import installed_software

__all__ = ["Control", "app"]

NOT_READY = 1
"""Exit code of `review` when the plan cannot be approved, and of `--wait` when the run did not release."""

_CHARTER, _FEWEST_DIGITS, _LOOK_SECONDS = "charter.json", 6, 0.2

app = typer.Typer(
    name="study",
    help="Studies between institutions: propose, review, approve, run. Nobody answers what it did not approve.",
    no_args_is_help=True,
)

_Coordinator = Annotated[Path, typer.Argument(metavar="FOLDER", help="The coordinator's folder.")]
_Node = Annotated[Path, typer.Argument(metavar="FOLDER", help="The node's folder.")]
_Either = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a node or of the coordinator.")]
_Plan = Annotated[
    str, typer.Argument(metavar="PLAN", help="The plan's digest, or its first 6 or more digits; `study list` has it.")
]
_SomePlan = Annotated[
    str | None, typer.Argument(metavar="[PLAN]", help="The plan's digest, or its first 6 or more digits.")
]
_File = Annotated[
    Path | None, typer.Option("--proposal", help="A proposal that was handed over as a file; it is kept.")
]
_Wait = Annotated[bool, typer.Option("--wait", help="Stay until the run ends, with a line for every question.")]
_Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


class Control(Protocol):
    """What starts and stops runs at a coordinator at work; `cohortium.server.control` has it."""

    def start(self, plan: str, run: str) -> int:
        """Start or resume a run; Flower's number of it."""
        ...

    def stop(self, flower_run: int) -> None:
        """End it."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


# --- at the coordinator ----------------------------------------------------------------------------------------------


@app.command("propose")
def propose(
    folder: _Coordinator,
    plan: Annotated[Path, typer.Argument(metavar="PLAN.TOML", help="The plan, which names its contract's file.")],
    base: Annotated[
        Path | None, typer.Option(help="For a campaign whose plan names the encoder's model by digest: its file.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write the proposal to as well, to hand it over.")] = None,
    password_file: PasswordFile = None,
    as_json: _Json = False,
) -> None:
    """Propose a plan to the members, with the code that is installed here, signed.

    Nodes that are connected fetch it. The digest that is printed is the plan's with that code; members approve it.

    \b
    Examples:
      cohortium study propose coordinator plan.toml
      cohortium study propose coordinator campaign.toml --base encoder.safetensors --out campaign.proposal.json
    """
    authorised(folder, Act.STUDY_PROPOSE, plan.name)
    asked, contract = load_plan(plan)
    charter = load_charter(folder / _CHARTER)
    _, key = open_coordinator(folder, find_password(password_file))
    studies = Studies(folder)
    model = base if base is not None else named_model(plan)
    made = studies.propose(asked, contract, charter, model, installed_software(), key)
    digest = made.plan.digest
    if out is not None:
        write_whole(out, studies.signed(digest))
    told = {"plan": digest, "proposal": made.digest, "needed": made.plan.min_institutions, "file": _shown(out)}
    lines = [
        f"proposed '{made.plan.name}' to {len(charter.institutions)} members",
        f"plan: {digest}",
        f"runs once {made.plan.min_institutions} of them have approved it",
    ]
    _say(told, lines + ([f"hand over {out}"] if out is not None else []), as_json)


@app.command("take")
def take(
    folder: _Coordinator,
    approval: Annotated[Path, typer.Argument(metavar="APPROVAL", help="What `study approve --out` wrote.")],
    as_json: _Json = False,
) -> None:
    """Take an approval that was handed over as a file. Nodes that are connected deliver theirs by themselves.

    \b
    Example:
      cohortium study take coordinator north.approval.json
    """
    authorised(folder, Act.STUDY_RUN, approval.name)
    data, studies = _read(approval), Studies(folder)
    studies.take_approval(data)
    told = parse_approval(data, str(approval)).approval
    said = studies.approvals(told.plan)[told.institution]
    line = f"'{said.institution}' approved {said.plan} on {said.approved_at:%Y-%m-%d}"
    _say(said.to_json(), [line], as_json)


@app.command("run")
def run_study(
    folder: _Coordinator, plan: _Plan, wait: _Wait = False, quiet: _Quiet = False, as_json: _Json = False
) -> None:
    """Begin the one run of a plan that enough members approved. The coordinator has to be at work.

    With --wait it exits with 0 when the run has released, 1 when it was stopped or failed. Without, or when the waiting
    is interrupted, the run goes on by itself.

    \b
    Example:
      cohortium study run coordinator 3f9a2c --wait
    """
    authorised(folder, Act.STUDY_RUN, plan)
    studies, digest = Studies(folder), _known(folder, plan)
    _start(folder, studies, digest, studies.begin)
    _follow(studies, digest, wait, quiet, as_json)


@app.command("resume")
def resume(
    folder: _Coordinator, plan: _Plan, wait: _Wait = False, quiet: _Quiet = False, as_json: _Json = False
) -> None:
    """Let a run go on that was stopped or has failed. What was answered is not asked, and not paid for, again.

    A coordinator that starts takes up by itself what was running when it ended.

    \b
    Example:
      cohortium study resume coordinator 3f9a2c --wait
    """
    authorised(folder, Act.STUDY_RUN, plan)
    studies, digest = Studies(folder), _known(folder, plan)
    _start(folder, studies, digest, studies.resume)
    _follow(studies, digest, wait, quiet, as_json)


@app.command("stop")
def stop(folder: _Coordinator, plan: _Plan, as_json: _Json = False) -> None:
    """Stop a run. What members answered stays charged; the run can be resumed while the plan lasts.

    \b
    Example:
      cohortium study stop coordinator 3f9a2c
    """
    authorised(folder, Act.STUDY_STOP, plan)
    studies, digest = Studies(folder), _known(folder, plan)
    run = studies.note(digest, "stopped")
    if run.flower and run.state == "stopped":
        with _control(folder) as control:
            control.stop(run.flower[-1])
    _say(_run_json(run), [_run_line(run)], as_json)


# --- at a node -------------------------------------------------------------------------------------------------------


@app.command("review")
def review_plan(folder: _Node, plan: _SomePlan = None, proposal: _File = None, as_json: _Json = False) -> None:
    """Read a proposed plan in plain words: what it asks, what it costs, what changed, which rules speak.

    Customers are counted for you alone: the numbers under `consent` stand in nothing that leaves. Exits with 0 when the
    plan can be approved, 1 when something stands in its way.

    \b
    Examples:
      cohortium study review state/north 3f9a2c
      cohortium study review state/north --proposal spring.proposal.json --json
    """
    authorised(folder, Act.STUDY_REVIEW, _named(plan, proposal))
    told = review(folder, _asked_for(folder, plan, proposal))
    if as_json:
        typer.echo(json.dumps(told.to_json(), indent=2, ensure_ascii=False))
    else:
        _print_review(told)
    if told.problems:
        raise typer.Exit(NOT_READY)


@app.command("approve")
def approve_plan(
    folder: _Node,
    plan: _SomePlan = None,
    proposal: _File = None,
    out: Annotated[Path | None, typer.Option(help="File to write the approval to as well, to hand it over.")] = None,
    password_file: PasswordFile = None,
    as_json: _Json = False,
) -> None:
    """Approve a proposed plan under the institution's signature: its node answers the plan until its last day.

    Refused where a rule in force here refuses, the lifetime budget does not suffice, or other code is installed. An
    approval cannot be taken back; a node that is not started answers nothing.

    \b
    Examples:
      cohortium study approve state/north 3f9a2c
      cohortium study approve state/north --proposal spring.proposal.json --out north.approval.json
    """
    person = authorised(folder, Act.STUDY_APPROVE, _named(plan, proposal))
    digest = _asked_for(folder, plan, proposal)
    key = read_key(folder, None if password_file is None else find_password(password_file))
    said = approve(folder, digest, os_login() if person is None else person.account, key)
    if out is not None:
        write_whole(out, approval_file(folder, digest).read_bytes())
    lines = [f"{said.approver} approved {digest} for '{said.institution}'"]
    lines += [f"hand over {out}" if out is not None else "the node delivers it to the coordinator"]
    _say({**said.to_json(), "file": _shown(out)}, lines, as_json)


@app.command("decline")
def decline_plan(
    folder: _Node,
    plan: _Plan,
    reason: Annotated[str, typer.Option(help="Why, in one line. It stays in this folder.")],
    as_json: _Json = False,
) -> None:
    """Write down that a proposed plan is not approved here, for good. Nobody is told.

    \b
    Example:
      cohortium study decline state/north 3f9a2c --reason "the purpose is not ours"
    """
    person = authorised(folder, Act.STUDY_APPROVE, plan)
    digest = _known(folder, plan)
    decline(folder, digest, os_login() if person is None else person.account, reason)
    _say({"plan": digest, "declined": True}, [f"declined {digest}; nothing was sent"], as_json)


# --- at either -------------------------------------------------------------------------------------------------------


@app.command("list")
def list_studies(folder: _Either, as_json: _Json = False) -> None:
    """What was proposed, and how it stands.

    \b
    Example:
      cohortium study list state/north
    """
    authorised(folder, Act.STUDY_READ)
    rows = _rows(folder)
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for row in rows:
        typer.echo(f"{row['plan'][7:19]}  {row['state']:<9} {row['study']:<9} until {row['expires']}  {row['name']}")
    if not rows:
        typer.echo("nothing was proposed")


@app.command("status")
def status(folder: _Either, plan: _SomePlan = None, as_json: _Json = False) -> None:
    """How studies stand: who approved, how far a run is, what it released.

    \b
    Examples:
      cohortium study status coordinator
      cohortium study status state/north 3f9a2c --json
    """
    authorised(folder, Act.STUDY_READ, plan)
    chosen = None if plan is None else _known(folder, plan)
    if _is_coordinator(folder):
        studies = Studies(folder)
        found = studies.status() if chosen is None else [studies.status_of(chosen)]
        _say([_status_json(one) for one in found], [line for one in found for line in _status_lines(one)], as_json)
        return
    rows = [row for row in _rows(folder) if chosen in (None, row["plan"])]
    lines = [line for row in rows for line in _node_lines(row)]
    _say(rows, lines, as_json)


# --- runs ------------------------------------------------------------------------------------------------------------


def _start(folder: Path, studies: Studies, plan: str, begin: Callable[[str], StudyRun]) -> None:
    """Begin or resume, and have the coordinator start it; a run that could not be started has failed."""
    with _control(folder) as control:
        run = begin(plan)
        try:
            studies.started(plan, control.start(plan, run.run))
        except CohortiumError as error:
            studies.note(plan, "failed", str(error))
            raise


def _follow(studies: Studies, plan: str, wait: bool, quiet: bool, as_json: bool) -> None:
    say = progress_printer(quiet)
    shown = 0
    while True:
        run = studies.run(plan)
        attempts = studies.progress(plan) if wait else []
        for one in attempts[shown:]:
            say(_attempt_line(one))
        shown = len(attempts)
        if run is None or not wait or run.state != "running":
            break
        time.sleep(_LOOK_SECONDS)
    found = studies.status_of(plan)
    _say(_status_json(found), _status_lines(found), as_json)
    if wait and (found.run is None or found.run.state != "released"):
        raise typer.Exit(NOT_READY)


@contextmanager
def _control(folder: Path) -> Iterator[Control]:
    """The coordinator at work in a folder; `RefusedError` when none is. Its module brings Flower: not before."""
    control: Control = import_module("cohortium.server.control").connect(folder)
    try:
        yield control
    finally:
        control.close()


# --- which plan ------------------------------------------------------------------------------------------------------


def _asked_for(folder: Path, plan: str | None, proposal: Path | None) -> str:
    """The plan that is named, in a file or by its digits; either alone."""
    if (plan is None) == (proposal is None):
        raise DataError("name one plan", place="PLAN", fix="give its digest, or --proposal with its file")
    if proposal is not None:
        return add_proposal(folder, _read(proposal)).plan.digest
    return _known(folder, str(plan))


def _named(plan: str | None, proposal: Path | None) -> str | None:
    """For the log of acts: the plan as the caller names it."""
    return proposal.name if plan is None and proposal is not None else plan


def _known(folder: Path, wanted: str) -> str:
    """The digest of the proposed plan that begins with these digits."""
    digits = wanted.removeprefix("sha256:")
    if len(digits) < _FEWEST_DIGITS:
        raise DataError("is too short", place=f"PLAN {wanted}", fix=f"give {_FEWEST_DIGITS} digits or more")
    plans = (
        Studies(folder).plans() if _is_coordinator(folder) else [one.proposal.plan.digest for one in pending(folder)]
    )
    found = [plan for plan in plans if plan.removeprefix("sha256:").startswith(digits)]
    if len(found) != 1:
        raise RefusedError(
            "begins several plans" if found else "is no plan that was proposed here",
            place=f"PLAN {wanted}",
            fix="`cohortium study list` has their digests",
        )
    return found[0]


def _is_coordinator(folder: Path) -> bool:
    if (folder / "coordinator.json").is_file():
        return True
    if (folder / "node.json").is_file():
        return False
    raise DataError("holds neither a node nor a coordinator", place=str(folder), fix="name the folder of one")


# --- what is told ----------------------------------------------------------------------------------------------------


def _rows(folder: Path) -> list[dict[str, Any]]:
    """One for every study: the same keys at a node and at the coordinator, and more of each."""
    if _is_coordinator(folder):
        return [_row(one.plan, one.name, one.study, one.expires, _state(one)) for one in Studies(folder).status()]
    rows = []
    for one in pending(folder):
        plan, file = one.proposal.plan, approval_file(folder, one.proposal.plan.digest)
        results, taken = folder / "released" / file.stem, file.with_suffix(".taken")
        rows.append(
            {
                **_row(plan.digest, plan.name, plan.study, plan.expires, one.state),
                "delivered": taken.exists() and not taken.read_bytes(),
                "refused": taken.exists() and bool(taken.read_bytes()),
                "released": sorted(path.name for path in results.iterdir()) if results.is_dir() else [],
            }
        )
    return rows


def _row(plan: str, name: str, study: str, expires: Any, state: str) -> dict[str, Any]:
    return {"plan": plan, "name": name, "study": study, "expires": str(expires), "state": state}


def _state(found: StudyStatus) -> str:
    if found.run is not None:
        return found.run.state
    if found.expired:
        return "expired"
    return "ready" if len(found.approved) >= found.needed else "proposed"


def _status_json(found: StudyStatus) -> dict[str, Any]:
    whole = {**asdict(found), "run": None if found.run is None else _run_json(found.run), "state": _state(found)}
    told: dict[str, Any] = json.loads(json.dumps(whole, default=str))
    return told


def _run_json(run: StudyRun) -> dict[str, Any]:
    return run.model_dump(mode="json", by_alias=True)


def _status_lines(found: StudyStatus) -> list[str]:
    lines = [f"{found.name} ({found.study}), {found.plan}: {_state(found)}"]
    lines += [f"  approved by {len(found.approved)} of {found.needed} needed: {', '.join(found.approved) or 'nobody'}"]
    if found.missing and found.run is None:
        lines += [f"  not by {', '.join(found.missing)}"]
    if found.run is not None and found.run.problem:
        lines += [f"  {found.run.problem}"]
    if found.last is not None:
        lines += [f"  {found.questions} questions answered; last: {_attempt_line(found.last)}"]
    if found.released:
        lines += [f"  released: {', '.join(found.released)}"]
    return lines


def _node_lines(row: dict[str, Any]) -> list[str]:
    lines = [f"{row['name']} ({row['study']}), {row['plan']}: {row['state']}"]
    if row["state"] == "approved":
        told = "was refused by the coordinator" if row["refused"] else "was not yet delivered"
        lines += [f"  the approval {'was delivered' if row['delivered'] else told}"]
    return lines + ([f"  released: {', '.join(row['released'])}"] if row["released"] else [])


def _run_line(run: StudyRun) -> str:
    return f"run {run.run} of {run.plan} is {run.state}"


def _attempt_line(one: Attempted) -> str:
    outcome = f"{one.institutions} institutions" if one.problem is None else one.problem
    return f"{one.phase} step {one.step + 1}, attempt {one.attempt}: {outcome}"


def _print_review(told: Review) -> None:
    console = Console(highlight=False, markup=False)

    def say(text: str) -> None:
        console.print("\n".join(map(printable, text.split("\n"))), soft_wrap=True)

    say(f"{told.name} ({told.study}) in {told.federation}")
    say(f"plan {told.plan}")
    say(f"for {told.purpose}, on the basis of {told.lawful_basis}; people in {', '.join(told.regions)}")
    say(f"until {told.expires}; nobody is described in a group below {told.min_cell}")
    say(f"noise: {told.trust}; at least {told.min_institutions} institutions, each question up to {told.max_attempts}x")
    say("\nwho takes part")
    for member in told.members:
        group = f", group {member.group}" if member.group else ""
        say(f"  {member.name}, {member.region}{group}, key {(member.identity or 'none')[:16]}")
    say(f"\nwhat is asked, of {', '.join(told.features)}")
    for one in told.asked:
        times = "once" if one.questions == 1 else f"{one.questions} times"
        say(f"  {one.phase}, {times}: {one.asks} ({one.share:.1f}% of the budget; alone epsilon {one.epsilon:.3f})")
    say(f"\nwhat comes of it, for all members: {told.released}")
    say(f"\nwhat it costs one person, at delta {told.delta:g}")
    for count, epsilon in told.person_at.items():
        say(f"  customer of {count} institution{'s' if count > 1 else ''}: epsilon {epsilon:.4f}")
    life = told.lifetime
    after = "does not fit" if life.after is None else f"{life.after:.4f} with this plan"
    held = f"{life.held:.4f} with what open runs hold"
    say(f"  here, for life: {life.before:.4f} spent, {held}, {after}; of {life.epsilon:g}")
    same = "as installed here" if told.software == told.installed else f"installed: {' '.join(told.installed)}"
    say(f"\ncode: {' '.join(told.software)}, {same}")
    _print_changes(told, say)
    say("\nthe plan, field by field, and its charter")
    for name, value in told.fields.items():
        if not name.startswith("charter.institutions."):
            say(f"  {name}: {value}")
    _print_rules(told, say)
    if told.coverage is not None:
        say(f"\nconsent, for this house alone: {told.coverage.counted:,} of {told.coverage.people:,} on record count")
        say(f"  who is not on record {'does not count' if told.lawful_basis == 'consent' else 'counts as well'}")
        for reason, count in told.coverage.left_out.items():
            if count:
                say(f"  {reason}: {count:,}")
    say(f"\nhere it is {told.state}")
    for problem in told.problems:
        say(f"in its way: {problem}")
    if not told.problems:
        say("nothing stands in its way")


def _print_changes(told: Review, say: Callable[[str], None]) -> None:
    if told.earlier is None:
        say("\nno plan of this name was approved here before")
        return
    say(f"\nchanged since {told.earlier}")
    for change in told.changes:
        say(f"  {change.field}: {change.before or 'nothing'} -> {change.after or 'nothing'}")


def _print_rules(told: Review, say: Callable[[str], None]) -> None:
    if told.decision is None:
        say("\nrules: none were asked")
        return
    say(f"\nrules of {', '.join(told.decision.packs)}: {told.decision.public.decision} (not legal advice)")
    for finding in told.decision.findings:
        say(f"  {finding.rule} ({finding.article}; {finding.confidence}): {finding.plain} {finding.change}")
    for limit in told.decision.limits:
        say(f"  limit: {limit.fact} {limit.op} {limit.number:g} ({', '.join(limit.rules)})")
    for duty in told.decision.duties:
        say(f"  owed: {duty.obligation} By when: {duty.deadline} ({duty.rule}, {duty.article}; {duty.confidence})")


def _say(told: Any, lines: list[str], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    for line in lines or ["nothing was proposed"]:
        typer.echo(line)


def _shown(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_PROPOSAL + 1)
    except OSError as error:
        raise DataError(error.strerror or "cannot be read", place=str(path), fix="check the path") from error
