"""A fairness audit of a table in one call, and thresholds by group: by the code that runs deployed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cohortium.governance.fairness import (
    Audited,
    AuditTerms,
    FairnessResult,
    LookalikeTables,
    Metric,
    Mitigation,
    audit_lookalike,
    group_thresholds,
)
from cohortium.governance.rules import Facts, Stage, evaluate, load_packs
from cohortium.models.auditing import UNKNOWN, GroupAnswers, audit_phases, audit_programme
from cohortium.models.group_table import GroupTable
from cohortium.models.programme import NoisySum
from cohortium.privacy.query import SCALE, bounded_total
from cohortium.privacy.table import CustomerTable
from cohortium.server.study_run import AuditAnswer
from cohortium.simulations.local_federation import LocalFederation, PrivacySpent, plan_head, split_rows
from cohortium.study.audit_plan import AuditPlan
from cohortium.study.contract import Contract
from cohortium.study.errors import DataError, Defect, RefusedError
from cohortium.study.plan import MIN_CELL, Trust
from cohortium.study.plans import parse_plan

__all__ = ["FairnessAudit", "GroupThresholds", "fairness_audit", "group_thresholds_of"]

_PLACE = "fairness_audit"
_SELECTED, _LABEL, _TOLD = "selected", "label", ("yes", "no")
_MOST_GROUPS = 100
_THRESHOLDS, _BINS = "group_thresholds_of", 50
_BASIS, _SPECIAL = "features.prohibited_basis", "features.special_category"


@dataclass(frozen=True, repr=False)
class FairnessAudit:
    """What `fairness_audit` found.

    Args:
        by_group: one row per group: `people` whose selection is known, `selected`, `rate`; with a label also
            `positives`, `true_positive_rate` and `precision`. Without noise exactly what pandas counts; with noise NaN
            below 50 people.
        result: every metric with its interval, people and verdict.
        noise_free: whether no noise was added: then nothing is protected.
        privacy_spent: what it cost; None without noise.
    """

    by_group: pd.DataFrame
    result: FairnessResult
    noise_free: bool
    privacy_spent: PrivacySpent | None

    @property
    def impact_ratio(self) -> pd.Series[float]:
        """Each group's rate over the best group's, by group; NaN for groups of fewer than 50 people."""
        ratios = [metric.estimate for metric in self._pooled("impact-ratio")]
        return pd.Series(ratios, index=self.by_group.index, name="impact_ratio", dtype=np.float64)

    @property
    def verdicts(self) -> pd.DataFrame:
        """`pass`, `fail`, `inconclusive` or `insufficient` by group, one column per metric that compares groups."""
        names = ("impact-ratio", "true-positive-rate", "precision")
        found = {name: [metric.verdict for metric in self._pooled(name)] for name in names}
        return pd.DataFrame({name: verdicts for name, verdicts in found.items() if verdicts}, index=self.by_group.index)

    @property
    def verdict(self) -> str:
        """The worst verdict of all metrics, of groups and of whole tables."""
        return self.result.verdict

    def to_frame(self) -> pd.DataFrame:
        """One row per metric, as `governance.fairness.Metric` has it; `institution` is None for all together."""
        rows = [metric.model_dump() for metric in self.result.metrics]
        frame = pd.DataFrame(rows, columns=list(Metric.model_fields))
        for column in ("attributes", "group", "reference"):
            frame[column] = [None if labels is None else " & ".join(labels) for labels in frame[column]]
        return frame

    def __repr__(self) -> str:
        spent = self.privacy_spent
        noise = "noise-free: protects nobody" if spent is None else f"epsilon {spent.epsilon:.3g}"
        shown = self.by_group.join(self.impact_ratio).join(self.verdicts.add_prefix("verdict: "))
        return f"<FairnessAudit ({noise}): {self.verdict}>\n{shown}"

    def _pooled(self, name: str) -> list[Metric]:
        """One for each row: metrics come table by table and group by group, as the rows do."""
        return [metric for metric in self.result.metrics if metric.name == name and metric.institution is None]


def fairness_audit(
    frame: pd.DataFrame,
    *,
    group: str | Sequence[str],
    selected: str,
    label: str | None = None,
    institutions: int | str | Sequence[Any] | None = None,
    epsilon: float | None = None,
    delta: float = 1e-6,
) -> FairnessAudit:
    """Compare who is selected between groups.

    Without `epsilon` nothing is protected: counts are exact, and the result says so. With it an audit's plan is run by
    nodes with ledgers behind a door, as deployed; noise comes from the operating system and cannot be seeded. From
    three institutions on they share it in a secure sum; fewer add all of it each, and their own tables are judged too.

    Names of groups are taken as public. A categorical column states them; of any other the values that occur are
    taken. Who has no value is in a group `unknown`, which is there where somebody has none.

    Args:
        frame: one row is one person at one institution.
        group: a column, or several: then every one of them and every pair is compared.
        selected: a column of 0 and 1, or False and True; people without a value are left out of every rate.
        label: likewise, who responded: for true-positive rates and precision.
        institutions: how many equal parts to split the rows into, a column, or one label per row; one when left out.
        epsilon, delta: what the audit may cost one person at one institution.

    Raises:
        DataError: a column is missing, repeats, has too many groups, or is not of 0 and 1.
        ValueError: institutions do not fit the rows.
        PlanError: epsilon or delta are out of range.

    Example:
        >>> import pandas as pd
        >>> from cohortium.simulations import fairness_audit
        >>> frame = pd.DataFrame({"sex": ["f", "m"] * 2000, "chosen": [0, 1, 1, 1] * 1000})
        >>> audit = fairness_audit(frame, group="sex", selected="chosen")
        >>> audit.impact_ratio.tolist(), audit.verdicts.loc["f", "impact-ratio"]
        ([0.5, 1.0], 'fail')
    """
    names = (group,) if isinstance(group, str) else tuple(group)
    by = institutions if isinstance(institutions, str) else None
    _check_columns(frame, [name for name in (*names, selected, label, by) if name is not None])
    groups = [_grouped(frame[name], name) for name in names]
    told = [_told(frame[name], name) for name in (selected, label) if name is not None]
    given: Any = frame[institutions].to_numpy() if isinstance(institutions, str) else institutions
    parts = split_rows(len(frame), given, seed=0)
    contract = _contract([len(one.labels) for one in groups], label is not None)
    values = np.column_stack([*(one.codes for one in groups), *told])
    columns = tuple(feature.name for feature in contract.protected_features)
    protected = [CustomerTable(columns, np.ascontiguousarray(values[rows]), rows) for rows in parts]
    people = [CustomerTable(("one",), np.zeros((len(rows), 1)), rows) for rows in parts]
    plan = _plan(contract, len(names), label is not None, len(parts), epsilon, delta)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cohortium-")))
        budget = {"epsilon": plan.epsilon, "delta": plan.delta}
        federation = LocalFederation(folder, contract, people, protected, **budget, stack=stack)
        found = _exact(federation, plan, contract) if epsilon is None else _private(federation, plan)
        spent = None if epsilon is None else federation.spent(plan.trust, plan.delta, len(audit_phases(plan)))
    institution = _institutions(given, parts)
    named = [_named(one, names, groups, institution) for one in found]
    terms = AuditTerms(minimum_cell=MIN_CELL)
    tables = [LookalikeTables(audience=one.audience, responses=one.responses) for one in named]
    result = audit_lookalike(tables, Audited(_PLACE, plan.digest, epsilon, plan.delta, datetime.now(UTC).date()), terms)
    pooled = [one for one in named if one.outcomes.institution is None]
    rows = pd.concat([_rows(one, names, 0 if epsilon is None else MIN_CELL) for one in pooled])
    return FairnessAudit(rows, result, epsilon is None, spent)


@dataclass(frozen=True)
class GroupThresholds:
    """What `group_thresholds_of` found.

    Args:
        group, score: the columns.
        cuts: of the scores, ascending.
        mitigation: cutoffs by group, ratios, people who change places, and lift with a label: before and after.
        noise_free: whether no noise was added: then nothing is protected.
        privacy_spent: what it cost; None without noise.
    """

    group: str
    score: str
    cuts: tuple[float, ...]
    mitigation: Mitigation
    noise_free: bool
    privacy_spent: PrivacySpent | None

    def select(self, frame: pd.DataFrame, random_state: int | None = None) -> pd.Series[bool]:
        """Who is chosen by the thresholds of the groups, to be audited again; lots are drawn in a group's last bin.

        Raises:
            DataError: a column is missing, or somebody's group has no threshold.
        """
        _check_columns(frame, [self.group, self.score])
        labels = _bin_labels(self.cuts)
        cutoffs = {cutoff.group[0]: cutoff for cutoff in self.mitigation.after}
        names = [UNKNOWN if missing else str(name) for name, missing in
                 zip(frame[self.group], frame[self.group].isna(), strict=True)]  # fmt: skip
        if set(names) - set(cutoffs):
            raise DataError(f"a group of '{self.group}' has no threshold", place=_THRESHOLDS, fix="ask with these rows")
        last = np.array([labels.index(cutoffs[name].bin) for name in names])
        part = np.array([cutoffs[name].part for name in names])
        bins = _bins(frame[self.score], self.cuts)
        lots = np.random.default_rng(random_state).random(len(frame)) < part
        return pd.Series((bins < last) | ((bins == last) & lots), index=frame.index, name="selected")


def group_thresholds_of(
    frame: pd.DataFrame,
    *,
    group: str,
    score: str,
    reach: float,
    ratio: float,
    label: str | None = None,
    cuts: Sequence[float] | None = None,
    institutions: int | str | Sequence[Any] | None = None,
    epsilon: float | None = None,
    delta: float = 1e-6,
    packs: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
) -> GroupThresholds:
    """The score that each group would need so that no group's rate is below `ratio` times the highest, and its cost.

    A threshold by group makes a protected attribute part of who is chosen. **Whether a place allows that, its rules
    decide, not this function**: name the packs in force. Rules about a prohibited basis or a special category of data
    are then asked, with the group counted as one prohibited basis, and refuse what they forbid or cannot tell. No pack
    that ships speaks of such thresholds by name: that none refuses is no permission. Not legal advice.

    Scores are counted by group and bin, by the plan of an audit: exactly without `epsilon`, and as `fairness_audit`
    does with it. Whoever has no score is left out. The ratio is one of noisy tables: audit `select(frame)` again.

    Args:
        frame: one row is one person at one institution.
        group, score: columns; the higher score is chosen first.
        reach: share of the people to choose, within 0 and 1.
        ratio: least rate of a group over the highest, above 0 and at most 1.
        label: a column of 0 and 1, who responded: for the lift, and to lose the least of it.
        cuts: public, ascending cut points of the score, not computed from it: they make the bins. 49 quantiles when
            left out, which only an answer without noise may use.
        institutions, epsilon, delta: as `fairness_audit`.
        packs: names of rule packs, such as `us`; the house's rules are always among them.
        facts: what these rules need to know, such as `{"product.category": "deposit"}`; unknown refuses.

    Raises:
        RefusedError: a rule of a stated pack forbids it, or cannot tell.
        DataError: as `fairness_audit`; cuts are missing or do not ascend; a group of fewer than 50 people, with noise.
        RuleError, FactError: no such pack or fact.

    Example:
        >>> import pandas as pd
        >>> from cohortium.simulations import group_thresholds_of
        >>> frame = pd.DataFrame({"sex": ["f", "m"] * 2000, "score": [n % 40 + n % 2 * 20 for n in range(4000)]})
        >>> found = group_thresholds_of(frame, group="sex", score="score", reach=0.2, ratio=0.8)
        >>> round(found.mitigation.ratio_before, 2), round(found.mitigation.ratio_after, 2)
        (0.0, 0.8)
    """
    if packs:
        _refuse_forbidden(packs, facts or {})
    by = institutions if isinstance(institutions, str) else None
    _check_columns(frame, [name for name in (group, score, label, by) if name is not None])
    ends = _cuts(frame[score], cuts, epsilon)
    groups = [_grouped(frame[group], group)]
    labels = _bin_labels(ends)
    scored = np.where(frame[score].isna(), float(len(labels)), _bins(frame[score], ends))
    told = [] if label is None else [_told(frame[label], label)]
    given: Any = frame[institutions].to_numpy() if isinstance(institutions, str) else institutions
    parts = split_rows(len(frame), given, seed=0)
    contract = _contract([len(groups[0].labels)], label is not None, labels)
    values = np.column_stack([groups[0].codes, scored, *told])
    columns = tuple(feature.name for feature in contract.protected_features)
    protected = [CustomerTable(columns, np.ascontiguousarray(values[rows]), rows) for rows in parts]
    people = [CustomerTable(("one",), np.zeros((len(rows), 1)), rows) for rows in parts]
    plan = _plan(contract, 1, label is not None, len(parts), epsilon, delta, chosen=())
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cohortium-")))
        budget = {"epsilon": plan.epsilon, "delta": plan.delta}
        federation = LocalFederation(folder, contract, people, protected, **budget, stack=stack)
        found = (_exact(federation, plan, contract) if epsilon is None else _private(federation, plan))[0]
        spent = None if epsilon is None else federation.spent(plan.trust, plan.delta, len(audit_phases(plan)))
    named = _named(found, (group,), groups, ())
    counted = replace(named.outcomes, outcomes=labels, counts=named.outcomes.counts[:, :-1])
    if epsilon is not None and (counted.counts.sum(axis=1) < MIN_CELL).any():
        raise DataError(f"a group of fewer than {MIN_CELL} people", place=_THRESHOLDS, fix="fold it into another group")
    answered = named.labels
    responses = None if answered is None else replace(counted, counts=answered.counts[:, :-2:2], std=answered.std)
    mitigation = group_thresholds(counted, reach, ratio, responses)
    return GroupThresholds(group, score, ends, mitigation, epsilon is None, spent)


def _cuts(scores: pd.Series[Any], cuts: Sequence[float] | None, epsilon: float | None) -> tuple[float, ...]:
    if not pd.api.types.is_numeric_dtype(scores):
        raise DataError("scores are no numbers", place=_THRESHOLDS, fix="name a column of numbers")
    if cuts is None and epsilon is not None:
        raise DataError("no cuts", place=_THRESHOLDS, fix="state public cuts=[…], not computed from the scores")
    ends = scores.quantile(np.linspace(0, 1, _BINS + 1)[1:-1]).unique().tolist() if cuts is None else list(cuts)
    if not 1 <= len(ends) < _MOST_GROUPS or not all(low < high for low, high in pairwise(ends)):
        raise DataError("cuts do not ascend, or are not 1 to 99", place=_THRESHOLDS, fix="state fewer, ascending")
    return tuple(float(end) for end in ends)


def _bins(scores: pd.Series[Any], cuts: Sequence[float]) -> NDArray[np.float64]:
    """Everybody's bin, the highest scores' first; of a missing score the last one. Shape (n,)."""
    filled = scores.fillna(-np.inf).to_numpy(dtype=np.float64)
    return np.asarray(len(cuts) - np.searchsorted(np.array(cuts), filled, side="right"), dtype=np.float64)


def _bin_labels(cuts: Sequence[float]) -> tuple[str, ...]:
    between = [f"{low:.17g} to {high:.17g}" for low, high in pairwise(cuts)]
    return (f"{cuts[-1]:.17g} and above", *reversed(between), f"below {cuts[0]:.17g}")


def _refuse_forbidden(packs: Sequence[str], facts: Mapping[str, Any]) -> None:
    """`RefusedError` when a rule about the group's use forbids it or cannot tell; other rules are not asked here."""
    loaded = load_packs(packs)
    known = Facts.of({**facts, _BASIS: 1}, _THRESHOLDS)
    today = datetime.now(UTC).date()
    for stage in get_args(Stage):
        for finding in evaluate(loaded, known, stage, today).findings:
            if {seen.fact for seen in finding.seen} & {_BASIS, _SPECIAL}:
                raise RefusedError(
                    f"{finding.rule} ({finding.article}; confidence {finding.confidence}): {finding.plain}",
                    place=_THRESHOLDS,
                    fix=f"{finding.change}; a group is a prohibited basis wherever a threshold depends on it",
                )


@dataclass(frozen=True)
class _Groups:
    """The groups of a column: their labels, whether somebody is in none of them, and everybody's code, shape (n,)."""

    labels: tuple[str, ...]
    has_unknown: bool
    codes: NDArray[np.float64]


def _check_columns(frame: pd.DataFrame, names: Sequence[str]) -> None:
    for name in names:
        if list(frame.columns).count(name) != 1:
            raise DataError(f"no column '{name}', or more than one", place=_PLACE, fix="name columns of the frame")
    if len(set(names)) != len(names):
        raise DataError("a column is named twice", place=_PLACE, fix="name every column once")
    if frame.empty:
        raise DataError("the frame is empty", place=_PLACE, fix="give it one row per person")


def _grouped(column: pd.Series[Any], name: str) -> _Groups:
    values = list(column.cat.categories) if isinstance(column.dtype, pd.CategoricalDtype) else _sorted(column)
    labels = tuple(dict.fromkeys(str(value) for value in values if str(value) not in ("", UNKNOWN)))
    if not 1 <= len(labels) <= _MOST_GROUPS:
        raise DataError(
            f"column '{name}' makes {len(labels)} groups, not 1 to {_MOST_GROUPS}",
            place=_PLACE,
            fix="cut numbers into a few groups, with pandas.cut, and fold rare categories",
        )
    place = {label: float(code) for code, label in enumerate(labels)}
    known = column.notna().to_numpy()
    texts = (str(value) if is_known else UNKNOWN for value, is_known in zip(column, known, strict=True))
    codes = np.array([place.get(text, float(len(labels))) for text in texts])
    return _Groups(labels, bool((codes == len(labels)).any()), codes)


def _sorted(column: pd.Series[Any]) -> list[Any]:
    """The distinct values that are there, in their own order where they have one."""
    values = column.dropna().unique().tolist()
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=str)


def _told(column: pd.Series[Any], name: str) -> NDArray[np.float64]:
    """Codes of a column of 0 and 1: 0 for 1, 1 for 0, 2 for missing; shape (n,)."""
    if not set(column.dropna().unique().tolist()) <= {0, 1}:
        raise DataError(f"column '{name}' holds something else than 0 and 1", place=_PLACE, fix="make it 0 and 1")
    return np.where(column.isna(), 2.0, np.where(column.fillna(0).astype(np.float64) == 1.0, 0.0, 1.0))


def _contract(groups: Sequence[int], has_label: bool, outcomes: Sequence[str] = _TOLD) -> Contract:
    """Protected g0, g1, … with numbered categories, `selected` and `label`; a constant, for every contract trains."""
    base = {"table": "people", "kind": "category", "protected": True}
    told = {_SELECTED: outcomes, **({_LABEL: _TOLD} if has_label else {})}
    features = [
        {**base, "name": f"g{index}", "column": f"g{index}", "categories": [f"c{code}" for code in range(count)]}
        for index, count in enumerate(groups)
    ] + [{**base, "name": name, "column": name, "categories": list(labels)} for name, labels in told.items()]
    constant = {"name": "one", "column": "one", "table": "people", "kind": "numeric", "block": "behaviour"}
    return Contract.model_validate(
        {
            "schema": "cohortium.contract/1",
            "name": "frame",
            "purposes": ["research"],
            "window": {"start": "2000-01-01", "end": "2000-01-02"},
            "tables": [{"name": "people", "kind": "customers", "customer": "row"}],
            "features": [{**constant, "low": 0, "high": 1, "missing": 0}, *features],
        }
    )


def _plan(
    contract: Contract,
    groups: int,
    has_label: bool,
    institutions: int,
    epsilon: float | None,
    delta: float,
    chosen: Sequence[str] = _TOLD[:1],
) -> AuditPlan:
    audit: dict[str, Any] = {"of": "column", "column": _SELECTED, "chosen": list(chosen), "intersections": "all"}
    audit["attributes"] = [f"g{index}" for index in range(groups)]
    if has_label:
        audit |= {"label": _LABEL, "positive": _TOLD[0]}
    trust: Trust | None = "unsafe-none" if epsilon is None else None
    plan = parse_plan(
        {
            **plan_head("fairness-audit", contract, trust, institutions, None, 1),
            "study": "audit",
            "epsilon": 1.0 if epsilon is None else float(epsilon),
            "delta": float(delta),
            "min_cell": MIN_CELL,
            "audit": audit,
            "shares": {"outcomes": 60, "labels": 40} if has_label else {"outcomes": 100},
        },
        place=_PLACE,
    )
    if not isinstance(plan, AuditPlan):
        raise Defect("an audit's plan of another kind")
    plan.check_contract(contract, _PLACE)
    return plan


def _private(federation: LocalFederation, plan: AuditPlan) -> list[GroupAnswers]:
    """Pooled answers, then every institution's own, whose `institution` is its number."""
    answer = federation.run(plan)
    if not isinstance(answer, AuditAnswer):
        raise Defect("an audit released no tables")
    names = [node.identity.institution for node in federation.nodes]
    own = [_numbered(one, str(names.index(name))) for name, answers in answer.own.items() for one in answers]
    return [*answer.pooled, *(own if len(answer.own) > 1 else [])]


def _numbered(answers: GroupAnswers, institution: str) -> GroupAnswers:
    labels = None if answers.labels is None else replace(answers.labels, institution=institution)
    return replace(answers, outcomes=replace(answers.outcomes, institution=institution), labels=labels)


def _exact(federation: LocalFederation, plan: AuditPlan, contract: Contract) -> list[GroupAnswers]:
    """The same without noise."""
    tables = [node.asked_about.of(plan) for node in federation.nodes]
    own = [_counted(plan, contract, [table], str(index)) for index, table in enumerate(tables)]
    return [*_counted(plan, contract, tables, None), *(one for each in own if len(own) > 1 for one in each)]


def _counted(
    plan: AuditPlan, contract: Contract, tables: Sequence[CustomerTable], institution: str | None
) -> tuple[GroupAnswers, ...]:
    """The programme, answered by exact sums."""
    programme = audit_programme(plan, contract, institution)
    ask = next(programme)
    while True:
        total = np.sum([bounded_total(ask.query, table) for table in tables], axis=0)
        try:
            ask = programme.send(NoisySum(total / SCALE, 0.0, len(tables)))
        except StopIteration as done:
            result: tuple[GroupAnswers, ...] = done.value
            return result


def _institutions(given: Any, parts: Sequence[NDArray[np.intp]]) -> list[str]:
    """What the institutions are called, in the order of the parts."""
    if given is None or isinstance(given, (int, np.integer)):
        return [str(index) for index in range(len(parts))]
    return [str(np.asarray(given)[rows[0]]) for rows in parts]


def _named(
    answers: GroupAnswers, names: Sequence[str], groups: Sequence[_Groups], institutions: Sequence[str]
) -> GroupAnswers:
    """The answers in the caller's words, without the unknown group of a column in which nobody is unknown."""
    places = [int(attribute.removeprefix("g")) for attribute in answers.outcomes.attributes]
    words = [
        {**{f"c{code}": label for code, label in enumerate(groups[place].labels)}, UNKNOWN: UNKNOWN} for place in places
    ]
    there = [
        all(label != UNKNOWN or groups[place].has_unknown for label, place in zip(group, places, strict=True))
        for group in answers.outcomes.groups
    ]

    def named(table: GroupTable) -> GroupTable:
        kept = [group for group, is_there in zip(table.groups, there, strict=True) if is_there]
        return replace(
            table,
            attributes=tuple(names[place] for place in places),
            groups=tuple(tuple(word[label] for word, label in zip(words, group, strict=True)) for group in kept),
            counts=table.counts[np.array(there)],
            institution=None if table.institution is None else institutions[int(table.institution)],
        )

    labels = None if answers.labels is None else named(answers.labels)
    return replace(answers, outcomes=named(answers.outcomes), labels=labels)


def _rows(answers: GroupAnswers, names: Sequence[str], min_cell: float) -> pd.DataFrame:
    """Counts and rates by group; NaN below the minimum cell, and where there is nobody to divide by."""
    table, answered = answers.audience, answers.responses
    chosen, people = table.counts[:, 0], table.counts.sum(axis=1)
    columns = {"people": people, "selected": chosen}
    rates = {"rate": (chosen, people)}
    if answered is not None:
        right, wrong, missed, _ = answered.counts.T
        columns["positives"] = right + missed
        rates |= {"true_positive_rate": (right, right + missed), "precision": (right, right + wrong)}
    shown = {name: np.where(values >= min_cell, values, np.nan) for name, values in columns.items()}
    for name, pair in rates.items():
        top, bottom = (np.where(part >= min_cell, part, np.nan) for part in pair)
        shown[name] = np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom > 0)
    order = ("people", "selected", "rate", "positives", "true_positive_rate", "precision")
    shown = {name: shown[name] for name in order if name in shown}
    groups = [" & ".join(group) for group in table.groups]
    if len(names) == 1:
        return pd.DataFrame(shown, index=pd.Index(groups, name=names[0]))
    attribute = " & ".join(table.attributes)
    index = pd.MultiIndex.from_tuples([(attribute, group) for group in groups], names=["attribute", "group"])
    return pd.DataFrame(shown, index=index)
