"""The plan of a fairness audit: who is where by protected group, for segments, an audience or a recorded outcome."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from cohortium.study.contract import Contract, Feature
from cohortium.study.document import Agreed
from cohortium.study.errors import PlanError
from cohortium.study.plan import Plan
from cohortium.study.validation import first_repeat, suggestion

__all__ = ["MAX_ATTRIBUTES", "AuditPlan", "AuditSettings", "AuditShares"]

MAX_ATTRIBUTES = 16
"""Most protected attributes, and most features in proxy tables, of one audit."""

_Percent = Annotated[int, Field(strict=True, ge=0, le=100)]
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Segment = Annotated[int, Field(strict=True, ge=1, le=64)]
_Text = Annotated[str, StringConstraints(min_length=1)]
_Names = Annotated[tuple[_Text, ...], Field(max_length=MAX_ATTRIBUTES)]
_Cuts = Annotated[tuple[_Number, ...], Field(min_length=1, max_length=15)]


class AuditShares(Agreed):
    """How an audit's privacy budget (its mu^2) is divided, in percent; together 100.

    Args:
        outcomes: people by group and outcome, for every attribute and intersection together.
        labels: the same by who responded; more than 0 exactly with a label.
        distances: sums of distances by group; more than 0 exactly with distance = true.
        proxies: people by group and bin of a feature; more than 0 exactly with proxies.
    """

    outcomes: _Percent = 100
    labels: _Percent = 0
    distances: _Percent = 0
    proxies: _Percent = 0

    @model_validator(mode="after")
    def _whole(self) -> AuditShares:
        total = self.outcomes + self.labels + self.distances + self.proxies
        if total != 100:
            raise ValueError(f"shares add up to {total}, not 100; every look at data needs its share")
        if not self.outcomes:
            raise ValueError("outcomes need a share above 0")
        return self


class AuditSettings(Agreed):
    """What is audited, and by which groups; nothing of it is chosen by looking at data.

    Args:
        of: `segments` of a bundle, the `audience` of a campaign's model, or a `column`: a protected category of the
            contract in which the institution records an outcome, such as who was chosen or how somebody was treated.
        model: digest of the bundle or the campaign's model; none for a column.
        segments: how many segments the bundle has.
        level: which of the campaign's levels makes the audience.
        seed: name of the campaign's seed list: its customers are not eligible, and are counted apart.
        column: the protected category that is the outcome.
        chosen: of a column, the categories that count as chosen; without it every category is an outcome of its own.
        attributes: protected features whose groups are compared. Who has no value is in a group `unknown`.
        intersections: pairs of attributes whose groups are crossed, or `all` of them.
        cuts: for each attribute or proxy that is a number, public cut points, ascending, strictly within its bounds; a
            value belongs to the group above a cut that it equals. A proxy without any has eight bins of equal width.
        reference: for attributes that are categories, the group that others are compared with; the best of all where
            none is named.
        label: a protected category that says who responded.
        positive: the category of the label that says yes.
        beneficial, costly: outcomes that are a benefit, or a cost, to whoever has them: numbers of segments, or
            categories of the column.
        distance: whether distances to the segments' centres are summed by group.
        proxies: training features whose association with the attributes is asked for.
    """

    of: Literal["segments", "audience", "column"]
    model: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] | None = None
    segments: _Segment | None = None
    level: _Text | None = None
    seed: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,62}$")] | None = None
    column: _Text | None = None
    chosen: tuple[_Text, ...] = ()
    attributes: Annotated[_Names, Field(min_length=1)]
    intersections: tuple[tuple[_Text, _Text], ...] | Literal["all"] = ()
    cuts: dict[str, _Cuts] = Field(default_factory=dict)
    reference: dict[str, _Text] = Field(default_factory=dict)
    label: _Text | None = None
    positive: _Text | None = None
    beneficial: tuple[_Segment | _Text, ...] = ()
    costly: tuple[_Segment | _Text, ...] = ()
    distance: Annotated[bool, Field(strict=True)] = False
    proxies: _Names = ()

    @model_validator(mode="after")
    def _holds_together(self) -> AuditSettings:
        self._check_subject()
        self._check_groups()
        if (self.label is None) != (self.positive is None):
            raise ValueError("label and positive belong together; name the category of the label that says yes")
        if self.distance and self.of != "segments":
            raise ValueError('distance is of segments alone; remove it, or set of = "segments"')
        self._check_treatments()
        return self

    def _check_subject(self) -> None:
        needed = {"segments": ("model", "segments"), "audience": ("model", "level", "seed"), "column": ("column",)}
        for field in ("model", "segments", "level", "seed", "column"):
            if field in needed[self.of] and getattr(self, field) is None:
                raise ValueError(f'an audit of = "{self.of}" needs {field}; add {field} = …')
            if field not in needed[self.of] and getattr(self, field) is not None:
                raise ValueError(f'an audit of = "{self.of}" has no {field}; remove it')
        if self.chosen and self.of != "column":
            raise ValueError(f'an audit of = "{self.of}" has no chosen; remove it')

    def _check_groups(self) -> None:
        for what in ("attributes", "proxies", "chosen"):
            if repeated := first_repeat(getattr(self, what)):
                raise ValueError(f"{what} must be distinct; '{repeated}' repeats")
        if self.intersections != "all":
            for first, second in self.intersections:
                if first == second or not {first, second} <= set(self.attributes):
                    raise ValueError(f"intersections pair two attributes; '{first}' and '{second}' are no such pair")
            if first_repeat(" and ".join(sorted(pair)) for pair in self.intersections):
                raise ValueError("intersections must be distinct; remove the pair that repeats")
        for name, cuts in self.cuts.items():
            if any(low >= high for low, high in pairwise(cuts)):
                raise ValueError(f"cuts of '{name}' must ascend")
        if strangers := sorted(set(self.reference) - set(self.attributes)):
            raise ValueError(f"reference names '{strangers[0]}', which is no attribute; remove it")
        if taken := [name for name in (self.column, self.label) if name in self.attributes]:
            raise ValueError(f"'{taken[0]}' cannot be an attribute and an outcome; remove it from one of the two")
        if self.label is not None and self.label == self.column:
            raise ValueError("label and column are the same; name another label")

    def _check_treatments(self) -> None:
        named = (*self.beneficial, *self.costly)
        if not named:
            return
        if self.of == "audience" or self.chosen:
            raise ValueError("beneficial and costly are of segments and of a column without chosen; remove them")
        if first_repeat(str(outcome) for outcome in named):
            raise ValueError("an outcome stands twice in beneficial and costly; remove one")
        if self.segments is not None:
            if any(not isinstance(segment, int) or segment > self.segments for segment in named):
                raise ValueError(f"beneficial and costly are numbers of segments; use 1 to {self.segments}")
        elif any(isinstance(outcome, int) for outcome in named):
            raise ValueError("beneficial and costly are categories of the column; write them as texts")

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The pairs of attributes that are crossed."""
        return tuple(combinations(self.attributes, 2)) if self.intersections == "all" else self.intersections


class AuditPlan(Plan):
    """A plan that counts people by protected group and outcome.

    Args:
        study: `audit`.
        audit, shares: see there.
    """

    study: Literal["audit"]
    audit: AuditSettings
    shares: AuditShares = AuditShares()

    @model_validator(mode="after")
    def _shares_fit(self) -> AuditPlan:
        asked = {
            "labels": self.audit.label is not None,
            "distances": self.audit.distance,
            "proxies": self.audit.proxies,
        }
        for name, wanted in asked.items():
            if wanted and not getattr(self.shares, name):
                raise ValueError(f"what is asked has no share; give shares.{name} some per cent")
            if not wanted and getattr(self.shares, name):
                raise ValueError(f"shares.{name} pays for what is not asked; give its share to outcomes")
        return self

    def check_contract(self, contract: Contract, place: str = "plan") -> None:
        """Whether this plan may be run on this contract.

        Raises:
            PlanError: another contract, a purpose the contract does not allow, an attribute or outcome that is no
                protected feature, a category that it does not have, or cuts that are missing, surplus or out of bounds.
        """
        super().check_contract(contract, place)
        audit, place = self.audit, f"{place}: audit"
        protected = {feature.name: feature for feature in contract.protected_features}
        trained = {feature.name: feature for feature in contract.training_features}
        numbers = dict[str, Feature]()
        for name in audit.attributes:
            feature = _found(name, protected, "protected feature", f"{place}.attributes")
            if not feature.is_category:
                numbers[name] = feature
                if name not in audit.cuts:
                    raise PlanError(
                        f"'{name}' is a number without public cut points",
                        place=f"{place}.cuts",
                        fix=f"add cuts.{name} = [ … ], within {feature.low:g} and {feature.high:g}",
                    )
        for name in audit.proxies:
            feature = _found(name, trained, "feature that is trained on", f"{place}.proxies")
            numbers |= {} if feature.is_category else {name: feature}
        for name, cuts in audit.cuts.items():
            low, high = _found(name, numbers, "number among attributes and proxies", f"{place}.cuts").bounds
            if not low < cuts[0] <= cuts[-1] < high:
                raise PlanError(
                    f"cuts of '{name}' do not lie within its bounds",
                    place=f"{place}.cuts",
                    fix=f"use cuts above {low:g} and below {high:g}",
                )
        for name, group in audit.reference.items():
            _check_categories(protected, name, (group,), f"{place}.reference")
        _check_categories(protected, audit.column, (*audit.chosen, *audit.beneficial, *audit.costly), f"{place}.column")
        _check_categories(protected, audit.label, (audit.positive,), f"{place}.label")


def _found(name: str, known: dict[str, Feature], what: str, place: str) -> Feature:
    if name not in known:
        fix = suggestion(name, known) if known else "mark features of the contract with protected = true"
        raise PlanError(f"'{name}' is no {what} of the contract", place=place, fix=fix)
    return known[name]


def _check_categories(
    protected: dict[str, Feature], name: str | None, named: tuple[str | int | None, ...], place: str
) -> None:
    if name is None:
        return
    categories = {one: feature for one, feature in protected.items() if feature.is_category}
    known = _found(name, categories, "protected category", place).categories
    for category in named:
        if category not in known:
            raise PlanError(
                f"'{category}' is no category of '{name}'", place=place, fix=suggestion(str(category), known)
            )
