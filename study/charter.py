"""The charter: who takes part in a federation, and the thresholds that no plan of it may undercut."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import AfterValidator, Field, StringConstraints, model_validator

from cohortium.study.canonical import canonical_bytes
from cohortium.study.document import Agreed, Document, read_json, read_toml, validated
from cohortium.study.errors import Defect, PlanError
from cohortium.study.plan import MAX_EPSILON, MIN_CELL, Plan
from cohortium.study.validation import first_repeat

__all__ = [
    "CHARTER_SCHEMA",
    "SIMULATION",
    "Charter",
    "Function",
    "Institution",
    "NeededWitnesses",
    "PersonId",
    "Quorum",
    "Reviewer",
    "enrol_reviewer",
    "has_signed",
    "load_charter",
    "one_spelling",
    "parse_charter",
    "prove_possession",
]

CHARTER_SCHEMA = "cohortium.charter/1"
"""The schema name this version reads and writes; any other is refused."""

SIMULATION = "simulation"
"""Region of institutions whose customers are public or synthetic."""

_TEXT = r"^[^\s](.{0,126}[^\s])?$"
_KEY = r"^[0-9a-f]{64}$"
_SIGNATURE = r"^[0-9a-f]{128}$"
_PERSON = r"^[a-z0-9]([a-z0-9._-]{0,126}[a-z0-9])?$"
_FORMS = {
    _TEXT: "give a name of 1 to 128 characters",
    _KEY: "give the Ed25519 public key as 64 hexadecimal digits",
    _SIGNATURE: "give the Ed25519 signature as 128 hexadecimal digits",
    _PERSON: "give an id, not a name: 1 to 128 small letters, digits, '.', '-' and '_'",
}


def one_spelling(name: str) -> str:
    """The name, if it is in Unicode's normal form C and has nothing that cannot be seen; `ValueError` otherwise.

    Letters of two alphabets can look alike all the same.
    """
    if not name.isprintable() or unicodedata.normalize("NFC", name) != name:
        raise ValueError("a name is printable, in Unicode's normal form C; write it anew")
    return name


_Text = Annotated[str, StringConstraints(pattern=_TEXT), AfterValidator(one_spelling)]

PersonId = Annotated[str, StringConstraints(pattern=_PERSON)]
"""A person's id, not their name. One spelling each: no capitals, blanks or letters that look like others."""

Function = Literal["risk", "compliance", "privacy"]
"""What a reviewer answers for."""

_ENROLMENT = "cohortium.reviewer/1"
_POSSESSION, _VOUCHING = "possession", "vouching"
_UNSIGNED = "0" * 128

_PRIME = 2**255 - 19
_ORDER_8 = tuple(
    int.from_bytes(bytes.fromhex(point), "little")
    for point in (
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    )
)
_SMALL_ORDER = {0, 1, _PRIME - 1, *_ORDER_8}


class Institution(Agreed):
    """One member.

    Args:
        name: how it is called, for people; distinct within the charter.
        region: where its customers are, such as EU.
        group: members of one group of companies share it; a group does not witness for itself.
        identity: its Ed25519 public key in hexadecimal, under which it signs; a simulation makes one that lacks.
    """

    name: _Text
    region: _Text
    group: _Text | None = None
    identity: Annotated[str, StringConstraints(pattern=_KEY)] | None = None


class Reviewer(Agreed):
    """A person who signs cases of one institution, and the key they sign with.

    Args:
        person: the person's id at the institution.
        institution: a member; the reviewer signs its cases and no others.
        function: what the person answers for: `risk`, `compliance` or `privacy`.
        key: their Ed25519 public key in hexadecimal.
        possession: signature of the enrolment by that key: whoever enrolled holds it.
        vouching: signature of the enrolment by the institution's identity key: the institution says who they are.
    """

    person: PersonId
    institution: _Text
    function: Function
    key: Annotated[str, StringConstraints(pattern=_KEY)]
    possession: Annotated[str, StringConstraints(pattern=_SIGNATURE)]
    vouching: Annotated[str, StringConstraints(pattern=_SIGNATURE)]

    def enrolment(self, federation: str, part: str) -> bytes:
        """What one of the two signatures covers: the part it is, the federation, and everything else here."""
        body = self.model_dump(mode="json", exclude={"possession", "vouching"})
        return f"{_ENROLMENT} {part}\n{federation}\n".encode() + canonical_bytes(body)

    def is_possessed(self, federation: str) -> bool:
        """Whether the reviewer's own key signed the enrolment in that federation."""
        return has_signed(self.key, self.possession, self.enrolment(federation, _POSSESSION))

    def is_vouched_for(self, federation: str, identity: str) -> bool:
        """Whether the institution of that identity key signed the enrolment in that federation."""
        return has_signed(identity, self.vouching, self.enrolment(federation, _VOUCHING))


class Quorum(Agreed):
    """Whose cosignatures a log's checkpoint needs before anybody relies on it.

    Args:
        witnesses: how many other institutions; 2, or all others where there are fewer, when left out.
        outside_group: how many of them do not belong to the institution's own group; 1, or 0 where there is none, when
            left out.
    """

    witnesses: Annotated[int, Field(strict=True, ge=0, le=1000)] | None = None
    outside_group: Annotated[int, Field(strict=True, ge=0, le=1000)] | None = None


@dataclass(frozen=True)
class NeededWitnesses:
    """A quorum with its defaults filled in for one institution."""

    witnesses: int
    outside_group: int


class Charter(Document):
    """Who takes part, and what they agreed on once for all plans.

    Args:
        schema_id: `cohortium.charter/1`; written `schema` in TOML.
        name: the federation's name.
        institutions: its members.
        max_epsilon: no plan may ask for more; above the house limit of 3 only where every region is `simulation`.
        min_cell: no plan may release smaller cells.
        min_customers: every institution has at least so many; a plan's delta is at most a tenth of one in so many.
        coordinator: its Ed25519 public key in hexadecimal, under which it signs released models; a simulation makes one
            that lacks.
        quorum: of witnesses of the institutions' audit logs.
        reviewers: who may sign cases of review. Each is enrolled under two signatures, which are verified when the
            charter is read; an institution needs its identity key for that. A simulation, whose keys are made at its
            start, adds them afterwards (`with_reviewers`).
    """

    schema_id: Annotated[Literal["cohortium.charter/1"], Field(alias="schema")]
    name: _Text
    institutions: Annotated[tuple[Institution, ...], Field(min_length=1)]
    max_epsilon: Annotated[float, Field(strict=True, gt=0, le=50, allow_inf_nan=False)] = MAX_EPSILON
    min_cell: Annotated[int, Field(strict=True, ge=MIN_CELL, le=10**6)] = MIN_CELL
    min_customers: Annotated[int, Field(strict=True, ge=1, le=10**10)] = 1000
    coordinator: Annotated[str, StringConstraints(pattern=_KEY)] | None = None
    quorum: Quorum = Quorum()
    reviewers: tuple[Reviewer, ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> Charter:
        if repeated := first_repeat(institution.name for institution in self.institutions):
            raise ValueError(f"institutions must have distinct names; rename one '{repeated}'")
        if repeated := first_repeat(member.identity for member in self.institutions if member.identity is not None):
            raise ValueError(f"institutions must have distinct identity keys; two have {repeated[:16]}…")
        if self.max_epsilon > MAX_EPSILON and {member.region for member in self.institutions} != {SIMULATION}:
            raise ValueError(f"max_epsilon must be {MAX_EPSILON:g} or less outside simulations")
        self._check_quorum()
        self._check_reviewers()
        return self

    def _check_reviewers(self) -> None:
        """Every enrolment verifies, and nobody signs under two keys."""
        identities = {member.name: member.identity for member in self.institutions}
        others = {key for key in (self.coordinator, *identities.values()) if key is not None}
        for reviewer in self.reviewers:
            who = f"reviewer '{reviewer.person}'"
            if reviewer.institution not in identities:
                raise ValueError(f"{who} is of '{reviewer.institution}', which is no member; name one of the members")
            if (identity := identities[reviewer.institution]) is None:
                raise ValueError(
                    f"{who} cannot be verified: '{reviewer.institution}' has no identity key; add its identity, or "
                    "leave the reviewers out of a simulation's charter"
                )
            if reviewer.key in others:
                raise ValueError(
                    f"{who} uses the key of an institution or of the coordinator; make them a key of their own"
                )
            if not reviewer.is_possessed(self.name):
                raise ValueError(f"{who} did not sign this enrolment with their own key; enrol them anew")
            if not reviewer.is_vouched_for(self.name, identity):
                raise ValueError(f"{who} is not vouched for by '{reviewer.institution}'; have it sign this enrolment")
        if repeated := first_repeat(reviewer.key for reviewer in self.reviewers):
            raise ValueError(f"reviewers must have distinct keys; two have {repeated[:16]}…")
        if repeated := first_repeat(f"{one.person}' of '{one.institution}" for one in self.reviewers):
            raise ValueError(f"a reviewer has one key at an institution; '{repeated}' has two: remove one")

    def with_reviewers(self, reviewers: Iterable[Reviewer]) -> Charter:
        """The charter with these reviewers besides those it has; `PlanError` where an enrolment does not verify."""
        added = [reviewer.model_dump(mode="json") for reviewer in reviewers]
        whole = self.to_json()
        return parse_charter({**whole, "reviewers": [*whole["reviewers"], *added]})

    def _check_quorum(self) -> None:
        """Every institution must be able to gather its quorum, or its first question would pause for ever."""
        for member in self.institutions:
            others, outside = len(self._others(member)), len(self._outside(member))
            needed = self.quorum_of(member.name)
            if needed.witnesses > others:
                raise ValueError(f"quorum.witnesses is above the {others} other institutions; lower it")
            if needed.outside_group > outside:
                raise ValueError(
                    f"quorum.outside_group is above the {outside} institutions outside the group of '{member.name}'; "
                    "lower it, or enrol others"
                )
            if needed.outside_group > needed.witnesses:
                raise ValueError("quorum.outside_group is above quorum.witnesses; lower it")

    def quorum_of(self, institution: str) -> NeededWitnesses:
        """Whose cosignatures that member's log needs, the defaults filled in; `Defect` for nobody's name."""
        member = next((one for one in self.institutions if one.name == institution), None)
        if member is None:
            raise Defect("the quorum of an institution that the charter does not name")
        witnesses, outside = self.quorum.witnesses, self.quorum.outside_group
        if witnesses is None:
            witnesses = min(2, len(self._others(member)))
        if outside is None:
            outside = min(1, witnesses, len(self._outside(member)))
        return NeededWitnesses(witnesses, outside)

    def _others(self, member: Institution) -> list[Institution]:
        return [one for one in self.institutions if one.name != member.name]

    def _outside(self, member: Institution) -> list[Institution]:
        return [one for one in self._others(member) if member.group is None or one.group != member.group]

    def check_plan(self, plan: Plan, place: str = "plan") -> None:
        """Whether a plan keeps the charter's limits; `PlanError` names the line to change."""
        if plan.epsilon > self.max_epsilon:
            raise PlanError(
                f"epsilon {plan.epsilon} is above the charter's {self.max_epsilon}",
                place=f"{place}: epsilon",
                fix=f"set epsilon = {self.max_epsilon} or less",
            )
        if plan.min_cell < self.min_cell:
            raise PlanError(
                f"min_cell {plan.min_cell} is below the charter's {self.min_cell}",
                place=f"{place}: min_cell",
                fix=f"set min_cell = {self.min_cell} or more",
            )
        if plan.min_institutions > len(self.institutions):
            raise PlanError(
                f"min_institutions {plan.min_institutions} is above the {len(self.institutions)} members",
                place=f"{place}: min_institutions",
                fix='lower it, enrol more institutions, or, with fewer than three, set trust = "local"',
            )
        if 10 * self.min_customers * Fraction(repr(plan.delta)) > 1:
            raise PlanError(
                f"delta {plan.delta:g} is above 1 / (10 * {self.min_customers:,}), the charter's min_customers",
                place=f"{place}: delta",
                fix=f"set delta = {1 / (10 * self.min_customers):g} or less",
            )


def prove_possession(
    federation: str, person: str, institution: str, function: Function, key: Ed25519PrivateKey
) -> Reviewer:
    """A reviewer's request to be enrolled: signed by their own key, not yet vouched for.

    Args:
        federation: the charter's name.
        person, institution, function: who they are.
        key: their own.

    Raises:
        PlanError: an id, an institution's name or a function that is of the wrong form.
    """
    public = key.public_key().public_bytes_raw().hex()
    document = {
        "person": person,
        "institution": institution,
        "function": function,
        "key": public,
        "possession": _UNSIGNED,
        "vouching": _UNSIGNED,
    }
    asked = validated(Reviewer, document, "enrolment", _FORMS, PlanError)
    return asked.model_copy(update={"possession": key.sign(asked.enrolment(federation, _POSSESSION)).hex()})


def enrol_reviewer(federation: str, asked: Reviewer, identity: Ed25519PrivateKey) -> Reviewer:
    """The reviewer, vouched for by the institution whose identity key that is.

    Raises:
        PlanError: the request is not signed by the reviewer's own key for this federation.
    """
    if not asked.is_possessed(federation):
        raise PlanError(
            "the request is not signed by the reviewer's own key for this federation",
            place=f"enrolment of '{asked.person}'",
            fix="have the reviewer make it anew under the charter's name",
        )
    return asked.model_copy(update={"vouching": identity.sign(asked.enrolment(federation, _VOUCHING)).hex()})


def has_signed(public: str, signature: str, data: bytes) -> bool:
    """Whether an Ed25519 key, both in hexadecimal, signed these bytes.

    Keys of small order, under which a signature can fit any message, and encodings outside the field sign nothing.
    """
    try:
        point = int.from_bytes(bytes.fromhex(public), "little") & (2**255 - 1)
        if point >= _PRIME or point in _SMALL_ORDER:
            return False
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), data)
    except (InvalidSignature, ValueError):
        return False
    return True


def load_charter(path: Path) -> Charter:
    """Read a charter from a TOML file, or a JSON one by its name; `PlanError` in one line with field and fix."""
    read = read_json if path.suffix == ".json" else read_toml
    return parse_charter(read(path, PlanError), place=str(path))


def parse_charter(document: dict[str, Any], place: str = "charter") -> Charter:
    """Validate a charter of JSON or TOML types; `PlanError` in one line otherwise."""
    return validated(Charter, document, place, _FORMS, PlanError)
