"""An institution's customers as each plan asks about them: the table, and what the node adds to it.

An encoder's plan needs every row's hash, a campaign's also who is in its seed. Both are columns of the node's own
making beside the contract's; the door, and nobody else, reads them.

A feature that a plan leaves out (`without`) is no column of that plan's table.

An audit's plan gets a table of its own: codes of groups and outcomes, and nothing else. Protected features are read for
it alone. No other plan's questions can name them: their table does not have them.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cohortium.client.seeds import SeedStore
from cohortium.models.assignment import nearest_centre, on_grid
from cohortium.models.auditing import DISTANCE, LABEL, OUTCOME, Coding, audit_layout
from cohortium.models.released import read_ranker
from cohortium.models.rows import HASH, SEED, row_hashes
from cohortium.models.scaler import Scaler
from cohortium.privacy.table import CustomerTable
from cohortium.study.audit_plan import AuditPlan
from cohortium.study.bundle import Bundle, load_bundle
from cohortium.study.contract import Contract
from cohortium.study.errors import DataError, Defect, OutputError, RefusedError
from cohortium.study.lookalike_plan import EncoderPlan, LookalikePlan
from cohortium.study.model import LookalikeModel, Model, load_model
from cohortium.study.plan import Plan, TrainingPlan

__all__ = ["AuditModels", "PlanPeople", "bundle_scaler"]

_KEPT = 4
_BUNDLE, _MODEL = ".json", ".safetensors"
_AUDITED = "plan: audit.model"


def bundle_scaler(bundle: Bundle) -> Scaler:
    """The scaler of a bundle."""
    return Scaler(
        features=tuple(axis.feature for axis in bundle.scaler),
        logs=np.array([axis.log for axis in bundle.scaler]),
        lows=np.array([axis.low for axis in bundle.scaler]),
        highs=np.array([axis.high for axis in bundle.scaler]),
    )


class AuditModels:
    """Released models that an institution lets be audited on its customers: files of one folder, named by digest.

    An audit's plan names a model by its digest, and approving the plan approves that model: no signature says more. A
    file gets here by `add` alone, and what is read is checked against the digest again.

    Args:
        folder: made when the first model is added.
        contract: the node's; a model of another one is refused.
    """

    def __init__(self, folder: Path, contract: Contract) -> None:
        self._folder = folder
        self._contract = contract

    def add(self, path: Path) -> str:
        """Keep a copy of a released bundle (`.json`) or campaign's model (`.safetensors`), whole or not at all.

        Returns:
            Its digest, as an audit's plan names it.

        Raises:
            DataError: no such file of this version, or one that was learnt under another contract.
            OutputError: it cannot be written.
        """
        released = load_bundle(path) if path.suffix == _BUNDLE else load_model(path, LookalikeModel, signer=None)
        plan = released.plan if isinstance(released, Bundle) else released.document.plan
        self._check_contract(plan, str(path))
        kept = self._file(released.digest, _BUNDLE if isinstance(released, Bundle) else _MODEL)
        staged = kept.with_name(f".{kept.name}.partial")
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            with open(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(released.to_bytes() if isinstance(released, Bundle) else path.read_bytes())
                file.flush()
                os.fsync(file.fileno())
            os.replace(staged, kept)
        except OSError as error:
            raise OutputError(
                error.strerror or "cannot be written", place=str(kept), fix="check space and permissions"
            ) from error
        return released.digest

    def bundle(self, digest: str) -> Bundle:
        """The bundle of that digest; `RefusedError` when it was not added here, or is not whole."""
        bundle = load_bundle(self._held(digest, _BUNDLE, "bundle", _AUDITED))
        self._check(digest, bundle.digest, bundle.plan, _AUDITED)
        return bundle

    def campaign(self, digest: str, place: str = _AUDITED) -> Model[LookalikeModel]:
        """The campaign's model of that digest; `RefusedError` when it was not added here, or is not whole."""
        model = load_model(self._held(digest, _MODEL, "campaign's model", place), LookalikeModel, signer=None)
        self._check(digest, model.digest, model.document.plan, place)
        return model

    def _file(self, digest: str, suffix: str) -> Path:
        return self._folder / (digest.removeprefix("sha256:") + suffix)

    def _held(self, digest: str, suffix: str, what: str, place: str) -> Path:
        file = self._file(digest, suffix)
        if not file.is_file():
            raise RefusedError(f"this node does not hold the {what} of that digest", place=place, fix=_fix(digest))
        return file

    def _check(self, wanted: str, found: str, plan: Plan, place: str) -> None:
        if wanted != found:
            raise RefusedError("the model was changed since it was added", place=place, fix=_fix(wanted))
        self._check_contract(plan, place)

    def _check_contract(self, plan: Plan, place: str) -> None:
        if plan.contract != self._contract.digest:
            raise DataError(
                "was learnt under another contract than this node's",
                place=place,
                fix="take the model of a plan under this contract",
            )


def _fix(digest: str) -> str:
    return f"add the released file of digest {digest[:19]}…: cohortium fairness add NODE FILE"


class PlanPeople:
    """Gives the customers as a plan asks about them.

    Args:
        people: the institution's customer table.
        seeds: the institution's seed lists.
        contract: that the table was made by.
        protected: reads the protected features of the same customers in the same order; called for audits alone.
        models: what may be audited here.
    """

    def __init__(
        self,
        people: CustomerTable,
        seeds: SeedStore,
        contract: Contract,
        protected: Callable[[], CustomerTable],
        models: AuditModels,
    ) -> None:
        self._people = people
        self._seeds = seeds
        self._contract = contract
        self._protected = protected
        self._models = models
        self._made: OrderedDict[str, CustomerTable] = OrderedDict()

    def of(self, plan: Plan) -> CustomerTable:
        """The customers with the columns that such a plan's questions read.

        The same at every call, but for a list that was removed since: its people may be marked until the node's next
        start, and are not after it.

        Raises:
            RefusedError, DataError: for an audit, a model that this node does not hold, or protected features that are
                missing or changed.
        """
        if plan.digest not in self._made:
            self._made[plan.digest] = self._make(plan)
            while len(self._made) > _KEPT:
                self._made.popitem(last=False)
        return self._made[plan.digest]

    def check(self, plan: Plan) -> None:
        """Whether this node has what an audit's plan reads, before anything is reserved for it; errors as `of`."""
        if isinstance(plan, AuditPlan):
            self._protected_features()
            self._model(plan)

    def _make(self, plan: Plan) -> CustomerTable:
        if isinstance(plan, AuditPlan):
            return self._audited(plan)
        people = self._used(plan)
        if not isinstance(plan, EncoderPlan | LookalikePlan):
            return people
        table = people.with_column(HASH, row_hashes(people.keys))
        if not isinstance(plan, LookalikePlan):
            return table
        return table.with_column(SEED, self._marked(plan.lookalike.seed, plan))

    def _used(self, plan: Plan) -> CustomerTable:
        """The table without the columns that the plan leaves out: no question can read what is not there."""
        if not isinstance(plan, TrainingPlan) or not plan.without:
            return self._people
        kept = tuple(feature.name for feature in plan.features(self._contract))
        return CustomerTable(kept, self._people.select(kept), self._people.keys)

    def _marked(self, name: str, plan: Plan) -> NDArray[np.float64]:
        """1 for the customers of a seed list, 0 for all others, shape (n,)."""
        if self._seeds.use(name, plan.digest) is None:  # neither list nor absence changes from here on
            return np.zeros(len(self._people))
        return self._seeds.mask(name, self._people).astype(np.float64)

    def _audited(self, plan: AuditPlan) -> CustomerTable:
        """Codes of the groups, the outcome and whatever else the plan asks by; no value of a customer."""
        layout, protected = audit_layout(plan, self._contract), self._protected_features()

        def codes(coding: Coding, table: CustomerTable) -> NDArray[np.float64]:
            return coding.codes(table.select((coding.feature.name,))[:, 0])

        columns = {coding.column: codes(coding, protected) for coding in layout.attributes}
        columns |= {coding.column: codes(coding, self._people) for coding in layout.features}
        if layout.outcome is None:
            columns |= self._modelled(plan)
        else:
            outcome = codes(layout.outcome, protected)
            columns[OUTCOME] = _told(outcome, layout.outcome, plan.audit.chosen) if plan.audit.chosen else outcome
        if layout.label is not None and plan.audit.positive is not None:
            columns[LABEL] = _told(codes(layout.label, protected), layout.label, (plan.audit.positive,))
        return CustomerTable(tuple(columns), np.column_stack(list(columns.values())), self._people.keys)

    def _protected_features(self) -> CustomerTable:
        protected = self._protected()
        if not np.array_equal(protected.keys, self._people.keys):
            raise DataError("protected features are not of the same customers", place="customers", fix="onboard again")
        return protected

    def _model(self, plan: AuditPlan) -> Bundle | Model[LookalikeModel] | None:
        """What the plan audits, and that it is what the plan says of it; None for a column."""
        audit = plan.audit
        if audit.model is None:
            return None
        if audit.of == "segments":
            bundle = self._models.bundle(audit.model)
            if len(bundle.segments) != audit.segments:
                raise RefusedError(
                    f"the bundle has {len(bundle.segments)} segments", place="plan: audit.segments", fix="state so many"
                )
            return bundle
        model = self._models.campaign(audit.model)
        if model.document.plan.lookalike.seed != audit.seed:
            raise RefusedError(
                "the campaign's seed list has another name",
                place="plan: audit.seed",
                fix=f"name '{model.document.plan.lookalike.seed}'",
            )
        _cutoff(model, audit.level)
        return model

    def _modelled(self, plan: AuditPlan) -> dict[str, NDArray[np.float64]]:
        """The outcome that a released model gives everybody, exact and from each row alone."""
        model = self._model(plan)
        if isinstance(model, Bundle):
            scaler, centres = bundle_scaler(model), np.array([segment.centre for segment in model.segments])
            points = scaler.transform(self._people.select(scaler.features))
            segment = nearest_centre(points, centres)
            distance = {DISTANCE: _distances(points, centres[segment])} if plan.audit.distance else {}
            return {OUTCOME: segment.astype(np.float64), **distance}
        if model is None or plan.audit.seed is None:
            raise Defect("an audit of neither a model nor a column")
        below = read_ranker(model).scores(self._people) < _cutoff(model, plan.audit.level)
        seeds = self._marked(plan.audit.seed, plan) > 0
        return {OUTCOME: np.where(seeds, 2.0, below.astype(np.float64))}


def _told(codes: NDArray[np.float64], coding: Coding, yes: tuple[str, ...]) -> NDArray[np.float64]:
    """0 for some categories, 1 for all other known ones, 2 for the unknown one; shape (n,)."""
    told = [
        2.0 if code == len(coding.labels) - 1 else float(label not in yes) for code, label in enumerate(coding.labels)
    ]
    return np.array(told)[codes.astype(np.int64)]


def _distances(points: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Everybody's distance to a centre in the box, over the root of the number of features, clipped to 1; shape (n,).

    Column by column on the grid: sums of squares are exact, so that nobody's rounding depends on anybody else.
    """
    squares = np.zeros(len(points))
    for own, centre in zip(on_grid(points).T, on_grid(centres).T, strict=True):
        squares += (own - centre) ** 2
    return np.minimum(np.sqrt(squares) / math.sqrt(points.shape[1]), 1.0)


def _cutoff(model: Model[LookalikeModel], name: str | None) -> float:
    """The score from which on a customer is in the audience of a level; `RefusedError` where there is no such level."""
    points = {level.name: level.point for level in model.document.curve.levels if level.point is not None}
    point = points.get(name or "")
    if point is None:
        raise RefusedError(
            f"the campaign has no level '{name}', or suppressed it",
            place="plan: audit.level",
            fix=f"use one of {', '.join(points)}" if points else "run the campaign again",
        )
    return point.cutoff
