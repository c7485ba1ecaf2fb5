"""Which model files a node uses: released under a plan it approved, signed by that federation's coordinator, in time.

The order: the file must be a whole model of that kind and version; its plan must be for the node's contract and must
have been approved here; the charter of that approval pins the key, under which the signature must hold; the model must
not have expired; its features must be the contract's. Before the signature holds, nothing of the file is used for
anything but to refuse it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TypeVar

from cohortium.client.audience.levels import Level
from cohortium.client.lookalike.records import NodeRecords
from cohortium.client.store import Approval
from cohortium.models.basis import Basis
from cohortium.models.levels import why_suppressed
from cohortium.models.ranker import Ranker
from cohortium.models.released import read_ranker
from cohortium.study.contract import Feature
from cohortium.study.errors import DataError, RefusedError
from cohortium.study.model import EncoderModel, LookalikeModel, Model, load_model
from cohortium.study.plan import Plan
from cohortium.study.validation import suggestion

__all__ = ["AdmittedModel", "admit_model", "approved_plan", "check_basis", "load_approved"]

_Released = TypeVar("_Released", EncoderModel, LookalikeModel)

_NAMES = {
    EncoderModel: ("an encoder", "encoder.safetensors"),
    LookalikeModel: ("a campaign", "lookalike.safetensors"),
}


@dataclass(frozen=True)
class AdmittedModel:
    """A campaign's model that this node may use.

    Args:
        path: the file.
        model: what it holds.
        ranker: what scores customers.
    """

    path: Path
    model: Model[LookalikeModel]
    ranker: Ranker

    @property
    def levels(self) -> tuple[Level, ...]:
        """The campaign's levels that are not suppressed, by growing reach."""
        return tuple(
            Level(level.name, level.point.cutoff, level.point.share or None)
            for level in self.model.document.curve.levels
            if level.point is not None
        )

    @property
    def suppressed(self) -> dict[str, str]:
        """The campaign's other levels, each with the reason why it is suppressed."""
        document = self.model.document
        targets = {target.name: target for target in document.plan.lookalike.targets}
        return {
            level.name: why_suppressed(document.curve, targets.get(level.name), document.plan.min_cell)
            for level in document.curve.levels
            if level.point is None
        }

    def level(self, name: str) -> Level:
        """The level of that name.

        Raises:
            RefusedError: there is none, or the campaign suppressed it.
        """
        place = f"{self.path.name}: level"
        shown = {level.name: level for level in self.levels}
        if name in shown:
            return shown[name]
        if name in self.suppressed:
            raise RefusedError(
                f"the campaign suppressed '{name}': {self.suppressed[name]}",
                place=place,
                fix=f"use one of {', '.join(shown)}" if shown else "run the campaign again, or give a cut-off",
            )
        fix = suggestion(name, shown) if shown else "give a cut-off"
        raise RefusedError(f"no level '{name}'", place=place, fix=fix)


def admit_model(records: NodeRecords, path: Path, today: date | None = None) -> AdmittedModel:
    """A campaign's model, checked as the module says.

    Args:
        records: of the node.
        path: the released file.
        today: in UTC; a seam for tests of expiry.

    Raises:
        DataError: no model of this kind and version, changed, signed by somebody else, expired, another contract, or
            arrays that do not fit together.
        RefusedError: the node never approved its plan, or the charter pins no key.
    """
    model = load_approved(records, path, LookalikeModel, today)
    ranker = read_ranker(model, str(path))
    check_basis(ranker.rows.basis, model.document.plan.features(records.contract), path)
    return AdmittedModel(path, model, ranker)


def load_approved(
    records: NodeRecords, path: Path, kind: type[_Released], today: date | None = None
) -> Model[_Released]:
    """A released model of an approved plan; errors as `admit_model`. Its arrays are not yet made into anything."""
    claimed = _claimed(path, kind)
    if claimed.contract != records.contract.digest:
        raise DataError(
            "was learnt under another contract than this node's",
            place=str(path),
            fix="take the model of a plan under this contract",
        )
    approval = _approval(records, claimed.digest, str(path))
    if approval.charter.coordinator is None:
        raise RefusedError(
            "the charter of its plan pins no key to check its signature with",
            place=str(path),
            fix="agree on a charter with the coordinator's key, and on a plan under it",
        )
    day = today or datetime.now(UTC).date()
    model = load_model(path, kind, signer=approval.charter.coordinator, today=day)
    if model.document.plan.digest != approval.plan.digest:
        raise DataError("was replaced while it was read", place=str(path), fix="try again")
    return model


def _claimed(path: Path, kind: type[_Released]) -> Plan:
    """The plan that an unverified file states; a file of the other kind is refused as what it is."""
    try:
        return load_model(path, kind, signer=None).document.plan
    except DataError:
        other = LookalikeModel if kind is EncoderModel else EncoderModel
        if not _is_model(path, other):
            raise
    (wanted, file), (found, _) = _NAMES[kind], _NAMES[other]
    raise DataError(f"is not a model of that kind: it is {found}'s", place=str(path), fix=f"name {wanted}'s {file}")


def _is_model(path: Path, kind: type[EncoderModel] | type[LookalikeModel]) -> bool:
    """Whether a file is a whole model of that kind and version, signed or not."""
    try:
        load_model(path, kind, signer=None)
    except DataError:
        return False
    return True


def approved_plan(records: NodeRecords, digest: str, place: str) -> Plan:
    """The plan of that digest; `RefusedError` when the node never approved it."""
    return _approval(records, digest, place).plan


def check_basis(basis: Basis, features: Sequence[Feature], path: Path) -> None:
    """Whether a basis reads features that its plan uses, and no others; `DataError` otherwise."""
    levels = {feature.name: feature.levels for feature in features}
    if any(levels.get(block.feature) != block.levels for block in basis.blocks):
        raise DataError("its features are not the contract's", place=str(path), fix="get the released file")


def _approval(records: NodeRecords, digest: str, place: str) -> Approval:
    approval = records.approvals.approved(digest)
    if approval is None:
        raise RefusedError(
            f"this node never approved its plan {digest[:19]}…",
            place=place,
            fix="read and approve that plan first, or name the node that did",
        )
    return approval
