"""A coordinator's studies: what it proposed, who approved, the one run of each, and what that run released.

In the coordinator's folder, for every plan, by the 64 digits of its digest:

    studies/HEX/proposal.json        the plan with all it rests on, signed
    studies/HEX/base.safetensors     for a campaign: the encoder's model that its plan names
    studies/HEX/approvals/NAME.json  one for every institution that approved, its name escaped as in URLs
    studies/HEX/run.json             the run, since it was begun
    studies/HEX/progress.jsonl       one line for every attempt at a question
    studies/HEX/released/            what the run released

Every file but `progress.jsonl` is written whole or not at all, and is on disk when the call returns. Any number of
processes may read; those that write take turns by a lock on the study's folder.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, StringConstraints, ValidationError

from cohortium.governance.log import AuditLog, log_origin, log_verifier
from cohortium.governance.log.note import Ed25519Verifier
from cohortium.models.preflight import preflight
from cohortium.privacy.ledger import open_store
from cohortium.privacy.randomness import fresh_key
from cohortium.server.study_run import Asked
from cohortium.study.charter import Charter, load_charter
from cohortium.study.contract import Contract
from cohortium.study.document import Agreed, Moment, validated
from cohortium.study.errors import CohortiumError, DataError, Defect, OutputError, RefusedError
from cohortium.study.keys import write_whole
from cohortium.study.model import EncoderModel, load_model
from cohortium.study.plan import Plan
from cohortium.study.plans import parse_plan
from cohortium.study.proposal import (
    PROPOSAL_SCHEMA,
    Proposal,
    SignedApproval,
    StudyApproval,
    check_approval,
    parse_approval,
    parse_proposal,
    sign_proposal,
)
from cohortium.study.software import Software, installed_software

__all__ = ["Attempted", "RunState", "Studies", "StudyRun", "StudyStatus"]

RunState = Literal["running", "stopped", "failed", "released"]
"""`released` is final; from `stopped` and `failed` a run may be resumed."""

_STUDIES, _CHARTER, _LOG = "studies", "charter.json", "log.sqlite"
_PROPOSAL, _BASE, _APPROVALS, _RUN = "proposal.json", "base.safetensors", "approvals", "run.json"
_PROGRESS, _RELEASED, _LOCK = "progress.jsonl", "released", "lock"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}")
_MOST_PROBLEM = 500
_log = logging.getLogger(__name__)


class StudyRun(Agreed):
    """The one run of a plan, as `run.json` keeps it.

    Args:
        schema_id: `cohortium.study-run/1`; written `schema`.
        plan: digest.
        run: 32 hexadecimal digits; the same from the beginning to the release, however often it is resumed.
        flower: Flower's numbers of the runs that it was started as, oldest first.
        state: see `RunState`.
        begun_at, changed_at: UTC, whole seconds.
        problem: why it failed, in one line.
    """

    schema_id: Annotated[Literal["cohortium.study-run/1"], Field(alias="schema")]
    plan: str
    run: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
    flower: tuple[int, ...] = ()
    state: RunState
    begun_at: Moment
    changed_at: Moment
    problem: str | None = None


@dataclass(frozen=True)
class Attempted:
    """An attempt at a question that came to an end.

    Args:
        time: UTC, ISO 8601.
        phase, step, attempt: which.
        institutions: how many answered.
        problem: why there is no sum; None when there is one.
    """

    time: str
    phase: str
    step: int
    attempt: int
    institutions: int
    problem: str | None


@dataclass(frozen=True)
class StudyStatus:
    """How a study stands.

    Args:
        plan: digest.
        name, study: of the plan.
        made: when it was proposed.
        expires: the plan's last day.
        expired: whether that is past.
        needed: how many approvals a run needs.
        approved: who approved and still may take part.
        missing: members that did not.
        run: its run; None before it is begun.
        questions: attempts that gave a sum.
        last: the newest attempt.
        released: names of the files that it released.
    """

    plan: str
    name: str
    study: str
    made: datetime
    expires: date
    expired: bool
    needed: int
    approved: tuple[str, ...]
    missing: tuple[str, ...]
    run: StudyRun | None
    questions: int
    last: Attempted | None
    released: tuple[str, ...]


class Studies:
    """The studies in a coordinator's folder.

    Args:
        folder: the coordinator's; `charter.json` in it says who takes part now.
        today: today's date (UTC); a seam for tests of expiry.
    """

    def __init__(self, folder: Path, today: Callable[[], date] | None = None) -> None:
        self._folder = folder
        self._today = today if today is not None else _utc_today

    # --- proposing ---------------------------------------------------------------------------------------------------

    def propose(
        self,
        plan: Plan,
        contract: Contract,
        charter: Charter,
        base: Path | None,
        software: Software,
        key: Ed25519PrivateKey,
    ) -> Proposal:
        """Propose a plan with the code that runs it. Proposing the same again gives the proposal that is there.

        Args:
            plan: as written; `software` takes the place of what it says of the code, and its digest changes with that.
            contract: the one that it names.
            charter: of the federation, with the coordinator's key.
            base: for a campaign, the file of the encoder's model that its plan names.
            software: what is installed here.
            key: the coordinator's identity key.

        Raises:
            PlanError: the plan has expired or is not safe in this federation; the line to change is named.
            RefusedError: the parts do not belong together, the key is not the charter's, or the plan was proposed
                before within another charter.
            DataError: the model cannot be read, or was not signed by this coordinator.
            OutputError: the folder cannot be written.
        """
        whole = parse_plan({**plan.to_json(), "software": software.model_dump(mode="json")})
        preflight(whole, contract, charter, today=self._today())
        raw = {
            "schema": PROPOSAL_SCHEMA,
            "federation": charter.name,
            "plan": whole,
            "contract": contract,
            "charter": charter,
            "base": None if base is None else _model_digest(base, charter),
            "made": datetime.now(UTC).replace(microsecond=0),
        }
        proposal = validated(Proposal, raw, "proposal", {}, RefusedError)
        data = sign_proposal(proposal, key).to_bytes()
        folder = self._place(whole.digest)
        with self._locked(whole.digest, make=True):
            if (folder / _PROPOSAL).exists():
                return self._same(self._read(folder / _PROPOSAL, charter), proposal)
            if base is not None:
                _write(folder / _BASE, base.read_bytes())
            entry = {"event": "study-proposed", "plan": whole.digest}
            self._record(charter, {**entry, "charter": charter.digest, "proposal": proposal.digest}, proposal.digest)
            _write(folder / _PROPOSAL, data)
        return proposal

    def _same(self, there: Proposal, asked: Proposal) -> Proposal:
        if there.charter != asked.charter:
            raise RefusedError(
                "the plan was proposed before, within another charter",
                place=f"plan {asked.plan.digest[7:19]}",
                fix="give the plan another name, and propose it anew",
            )
        return there

    def proposal(self, plan: str) -> Proposal:
        """The proposal of a plan by digest.

        Raises:
            RefusedError: there is none, or it was changed since the coordinator signed it.
        """
        return self._read(self._place(plan) / _PROPOSAL, self._charter())

    def signed(self, plan: str) -> bytes:
        """The proposal of a plan as it was signed; `RefusedError` as `proposal`."""
        self.proposal(plan)
        return (self._place(plan) / _PROPOSAL).read_bytes()

    def base(self, plan: str) -> Path | None:
        """The file of the encoder's model that a proposed campaign stands on; None for other plans."""
        path = self._place(plan) / _BASE
        return path if path.exists() else None

    def plans(self) -> tuple[str, ...]:
        """Every plan that was proposed, by digest, oldest first."""
        proposals = sorted(self._proposals(), key=lambda one: (one.made, one.plan.digest))
        return tuple(one.plan.digest for one in proposals)

    def open_proposals(self) -> list[bytes]:
        """The proposals whose plans have not expired, as they were signed. One that was altered is left out, logged."""
        return [self.signed(one.plan.digest) for one in self._proposals() if one.plan.expires >= self._today()]

    def _proposals(self) -> Iterator[Proposal]:
        charter = self._charter()
        for path in sorted(self._folder.glob(f"{_STUDIES}/*/{_PROPOSAL}")):
            try:
                found = self._read(path, charter)
            except CohortiumError as error:
                _log.warning("left out: %s", error)
                continue
            if path.parent == self._place(found.plan.digest):
                yield found

    def _read(self, path: Path, charter: Charter) -> Proposal:
        if charter.coordinator is None:
            raise RefusedError(
                "the charter has no key of the coordinator", place=str(self._folder / _CHARTER), fix="enrol it"
            )
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RefusedError(
                "there is no such proposal", place=str(path.parent), fix="`cohortium study list` names those there are"
            ) from error
        return _verified(data, str(path), charter.name, charter.coordinator)

    # --- approvals ---------------------------------------------------------------------------------------------------

    def take_approval(self, data: bytes) -> None:
        """Take an institution's approval, from the wire or from a file. A second one of the same changes nothing.

        Raises:
            RefusedError: malformed, of another plan, charter, federation or proposal, not signed by the institution,
                of one that is no member any more, or after the plan expired.
        """
        signed = parse_approval(data, "approval")
        said = signed.approval
        proposal, charter = self.proposal(said.plan), self._charter()
        check_approval(signed, proposal, f"approval of '{said.institution}'")
        if not _is_member(charter, proposal, said.institution):
            raise RefusedError(
                f"'{said.institution}' does not take part any more",
                place="approval",
                fix="enrol it again, and propose the study anew",
            )
        self._require_open(proposal.plan)
        path = self._place(said.plan) / _APPROVALS / f"{quote(said.institution, safe='')}.json"
        with self._locked(said.plan):
            if path.exists() and said.institution in self.approvals(said.plan):
                return
            entry = {
                "event": "study-approved",
                "plan": said.plan,
                "charter": said.charter,
                "proposal": said.proposal,
                "institution": said.institution,
                "approval": said.digest,
            }
            self._record(proposal.charter, entry, said.digest)
            _write(path, data)

    def approvals(self, plan: str) -> dict[str, StudyApproval]:
        """Who approved a plan and is a member still, every signature verified anew."""
        proposal, charter = self.proposal(plan), self._charter()
        found: dict[str, StudyApproval] = {}
        for path in sorted((self._place(plan) / _APPROVALS).glob("*.json")):
            try:
                signed = self._approval(path, proposal)
            except CohortiumError as error:
                _log.warning("left out: %s", error)
                continue
            if _is_member(charter, proposal, signed.approval.institution):
                found[signed.approval.institution] = signed.approval
        return found

    def signed_approvals(self, plan: str) -> list[bytes]:
        """Every approval of a plan as it was signed, of institutions that left since too; none that was altered."""
        proposal, found = self.proposal(plan), []
        for path in sorted((self._place(plan) / _APPROVALS).glob("*.json")):
            try:
                found.append(self._approval(path, proposal).to_bytes())
            except CohortiumError as error:
                _log.warning("left out: %s", error)
        return found

    def _approval(self, path: Path, proposal: Proposal) -> SignedApproval:
        signed = parse_approval(path.read_bytes(), str(path))
        check_approval(signed, proposal, str(path))
        return signed

    # --- the run -----------------------------------------------------------------------------------------------------

    def run(self, plan: str) -> StudyRun | None:
        """The run of a plan; None before it was begun; `DataError` when `run.json` cannot be read."""
        path = self._place(plan) / _RUN
        try:
            return StudyRun.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise DataError("is no run of this version", place=str(path), fix="put back the newest copy") from error

    def begin(self, plan: str) -> StudyRun:
        """Begin the one run of a plan.

        Raises:
            RefusedError: fewer approved than the plan needs, it expired or is for other code, or its run was begun.
        """
        with self._locked(plan):
            self._require_ready(plan)
            earlier = self.run(plan)
            if earlier is not None:
                fix = "resume it" if earlier.state in ("stopped", "failed") else "see `cohortium study status`"
                raise RefusedError(f"its run was begun and is {earlier.state}", place=_named(plan), fix=fix)
            now = _now()
            document = {"plan": plan, "run": fresh_key()[:16].hex(), "state": "running"}
            run = StudyRun.model_validate(
                {"schema": "cohortium.study-run/1", **document, "begun_at": now, "changed_at": now}
            )
            self._keep(run)
        return run

    def resume(self, plan: str) -> StudyRun:
        """Let a run go on that was stopped or failed, under its number: what was answered is not asked again.

        Raises:
            RefusedError: as `begin`, or there is none to resume.
        """
        with self._locked(plan):
            self._require_ready(plan)
            run = self._begun(plan)
            if run.state not in ("stopped", "failed"):
                raise RefusedError(
                    f"its run is {run.state}", place=_named(plan), fix="resume what was stopped or failed"
                )
            return self._keep(run.model_copy(update={"state": "running", "changed_at": _now(), "problem": None}))

    def started(self, plan: str, flower: int) -> StudyRun:
        """Write down which of Flower's runs it now is."""
        with self._locked(plan):
            run = self._begun(plan)
            return self._keep(run.model_copy(update={"flower": (*run.flower, flower), "changed_at": _now()}))

    def note(self, plan: str, state: RunState, problem: str | None = None) -> StudyRun:
        """Write down what became of a run.

        What is released stays released whatever is said afterwards; what was stopped and then ends badly stays stopped.

        Args:
            plan: digest.
            state: `stopped`, `failed` or `released`; a run goes on by `resume` alone.
            problem: why it failed; kept as one line of at most 500 characters.
        """
        with self._locked(plan):
            run = self._begun(plan)
            if state == "running":
                raise Defect("a run goes on by resuming it")
            if run.state in (state, "released") or (run.state, state) == ("stopped", "failed"):
                return run
            line = None if problem is None else " ".join(problem.split())[:_MOST_PROBLEM]
            return self._keep(run.model_copy(update={"state": state, "changed_at": _now(), "problem": line}))

    def note_progress(self, plan: str, asked: Asked) -> None:
        """Append a line to `progress.jsonl`."""
        line = json.dumps({"time": f"{_now():%Y-%m-%dT%H:%M:%SZ}", **asdict(asked)})
        path = self._place(plan) / _PROGRESS
        with (
            self._locked(plan),
            _named_failures(path),
            open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file,
        ):
            kept, newline, _ = file.read().rpartition(b"\n")  # a killed writer leaves half a line, which is cut off
            file.truncate(len(kept) + len(newline))
            file.seek(0, os.SEEK_END)
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def progress(self, plan: str) -> list[Attempted]:
        """Every attempt at a question, oldest first."""
        path = self._place(plan) / _PROGRESS
        lines = path.read_bytes().rpartition(b"\n")[0].splitlines() if path.exists() else []
        try:
            return [Attempted(**json.loads(line)) for line in lines]
        except (ValueError, TypeError) as error:
            raise DataError("holds a line that is none of progress", place=str(path), fix="remove it") from error

    def keep_released(self, plan: str, name: str, data: bytes) -> None:
        """Keep a file that the run releases."""
        if not _FILE.fullmatch(name):
            raise Defect("a released file has a plain name")
        with self._locked(plan):
            _write(self._place(plan) / _RELEASED / name, data)

    def released(self, plan: str) -> list[tuple[str, bytes]]:
        """What a run released, by name; nothing before it has."""
        return [(path.name, path.read_bytes()) for path in self.released_files(plan)]

    def released_files(self, plan: str) -> list[Path]:
        """Where that is."""
        return self._released(plan, self.run(plan))

    def _released(self, plan: str, run: StudyRun | None) -> list[Path]:
        if run is None or run.state != "released":
            return []
        folder = self._place(plan) / _RELEASED
        return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]

    def _require_ready(self, plan: str) -> None:
        proposal = self.proposal(plan)
        self._require_open(proposal.plan)
        if proposal.plan.software != installed_software():
            raise RefusedError(
                "the plan is for other code than is installed here",
                place="plan: software",
                fix="install the version that it names, or propose the plan again",
            )
        approved, needed = len(self.approvals(plan)), proposal.plan.min_institutions
        if approved < needed:
            raise RefusedError(
                f"{approved} of the {needed} institutions that it needs approved it",
                place=_named(plan),
                fix="wait for the approvals that `cohortium study status` misses",
            )

    def _require_open(self, plan: Plan) -> None:
        if plan.expires < self._today():
            raise RefusedError("the plan has expired", place=_named(plan.digest), fix="agree on a new one")

    def _begun(self, plan: str) -> StudyRun:
        run = self.run(plan)
        if run is None:
            raise RefusedError("its run was not begun", place=_named(plan), fix="begin it: cohortium study run")
        return run

    def _keep(self, run: StudyRun) -> StudyRun:
        _write(self._place(run.plan) / _RUN, (run.model_dump_json(indent=2, by_alias=True) + "\n").encode())
        return run

    # --- at a glance -------------------------------------------------------------------------------------------------

    def status(self) -> list[StudyStatus]:
        """How every study stands, oldest first."""
        return [self.status_of(plan) for plan in self.plans()]

    def status_of(self, plan: str) -> StudyStatus:
        """How one study stands; `RefusedError` when there is none."""
        proposal, approved, attempts = self.proposal(plan), self.approvals(plan), self.progress(plan)
        asked, run = proposal.plan, self.run(plan)
        return StudyStatus(
            plan=plan,
            name=asked.name,
            study=asked.study,
            made=proposal.made,
            expires=asked.expires,
            expired=asked.expires < self._today(),
            needed=asked.min_institutions,
            approved=tuple(approved),
            missing=tuple(one.name for one in proposal.charter.institutions if one.name not in approved),
            run=run,
            questions=sum(one.problem is None for one in attempts),
            last=attempts[-1] if attempts else None,
            released=tuple(path.name for path in self._released(plan, run)),
        )

    # --- files -------------------------------------------------------------------------------------------------------

    def _charter(self) -> Charter:
        return load_charter(self._folder / _CHARTER)

    def _place(self, plan: str) -> Path:
        if not _DIGEST.fullmatch(plan):
            raise RefusedError("is no plan's digest", place="plan", fix="give sha256: and 64 hexadecimal digits")
        return self._folder / _STUDIES / plan.removeprefix("sha256:")

    @contextmanager
    def _locked(self, plan: str, *, make: bool = False) -> Iterator[None]:
        """One writer at a time, in whatever process."""
        folder = self._place(plan)
        with _named_failures(folder):
            if make:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                _sync(folder.parent)
            elif not folder.is_dir():
                raise RefusedError("there is no such study", place=_named(plan), fix="propose it first")
            handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _record(self, charter: Charter, entry: Mapping[str, Any], digest: str) -> None:
        """Append to the coordinator's audit log, once for each signed document."""
        engine = open_store(self._folder / _LOG)
        try:
            log = AuditLog(engine, log_origin(charter.name), _Keyless(log_verifier(charter, None)))
            log.append([entry], keys=[f"{entry['event']} {digest}"])
        finally:
            engine.dispose()


class _Keyless:
    """A log's signer without the key: entries are appended under none; whoever runs studies signs checkpoints."""

    def __init__(self, verifier: Ed25519Verifier) -> None:
        self.verifier = verifier

    def sign(self, text: bytes) -> bytes:
        """Not here."""
        raise Defect("a checkpoint is signed by the coordinator that runs studies")


@lru_cache(maxsize=256)
def _verified(data: bytes, place: str, federation: str, coordinator: str) -> Proposal:
    """Remembered by its bytes: nodes ask for open proposals every few seconds."""
    return parse_proposal(data, place, federation=federation, coordinator=coordinator).proposal


def _is_member(charter: Charter, proposal: Proposal, institution: str) -> bool:
    """Whether an institution takes part now, under the identity key with which it was proposed to."""
    now, then = ({one.name: one.identity for one in each.institutions} for each in (charter, proposal.charter))
    return now.get(institution) is not None and now[institution] == then.get(institution)


def _model_digest(path: Path, charter: Charter) -> str:
    return load_model(path, EncoderModel, signer=charter.coordinator).digest


def _named(plan: str) -> str:
    return f"study {plan.removeprefix('sha256:')[:12]}"


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, for its owner alone, on disk when it returns."""
    with _named_failures(path):
        path.parent.mkdir(exist_ok=True, mode=0o700)
        write_whole(path, data)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _named_failures(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            error.strerror or "cannot be written", place=str(path), fix="check space and permissions"
        ) from error


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _utc_today() -> date:
    return datetime.now(UTC).date()
