"""The model card: what a released model is, is for and is not for, what it cost, how good it is, whom it may fail.

A card is a function of what was released and of the audits of it, and of nothing else: no clock, no random number, no
number that is computed anew. Whoever holds the same files makes the same card, byte for byte, so a node compares
digests instead of trusting a card that it was given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from itertools import groupby
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from cohortium.governance.fairness import FairnessResult, Metric, NotJudged, Verdict
from cohortium.study.bundle import Bundle, ReleaseRecord
from cohortium.study.document import Agreed, Document
from cohortium.study.errors import DataError
from cohortium.study.model import EncoderModel, LookalikeModel, Model
from cohortium.study.plan import LawfulBasis, Plan, StudyKind, Trust
from cohortium.study.reach import CurvePoint, Measured, RankerQuality
from cohortium.study.validation import first_repeat

__all__ = [
    "CARD_SCHEMA",
    "NOT_LEGAL_ADVICE",
    "CardAudit",
    "CardFeature",
    "CardFigure",
    "CardPrivacy",
    "CardRelease",
    "ModelCard",
    "Released",
    "model_card",
]

CARD_SCHEMA = "cohortium.model-card/1"
"""The schema name this version reads and writes; any other is refused."""

NOT_LEGAL_ADVICE = (
    "Not legal advice. Behind every article stands how surely it was read: A in the official text, B in a secondary "
    "source, C recalled and unverified, U uncertain; house marks limits of our own."
)
"""What every text says that names an article."""

Released = Bundle | Model[EncoderModel] | Model[LookalikeModel]
"""What a run releases, read and verified by `study.bundle` or `study.model`."""

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
_Units = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]*)$")]
_Count = Annotated[int, Field(ge=0)]

_SHOWN = 12  # metrics that did not pass; an audit's document has all

_WHAT: dict[StudyKind, str] = {
    "segments": "Segments of customers: centres in a scaled space of the contract's numbers, found by k-means on noisy "
    "sums over all institutions. An institution puts each of its own customers into the nearest.",
    "encoder": "An encoder: turns a customer's row into a short vector from which missing features can be told. "
    "Campaigns stand on it; by itself it ranks and selects nobody.",
    "lookalike": "A ranker: scores customers by how like the valued customers of some institutions they are. An "
    "institution scores its own customers, and a level says from which score on they make an audience.",
}
_FOR: dict[StudyKind, tuple[str, ...]] = {
    "segments": (
        "describing groups of customers, and choosing what to offer to a whole group, for the plan's purpose",
        "scoring at the institutions that took part, each its own customers, under the contract it was learnt by",
    ),
    "encoder": ("campaigns of the same federation, under the contract it was learnt by",),
    "lookalike": (
        "choosing, at an institution that took part, whom of its own customers to address, for the plan's purpose",
        "audiences at the released levels, after consent, rules and review at the institution",
    ),
}
_NOT_FOR = (
    "credit decisions, prices, eligibility, or anything else of legal or similarly significant effect (GDPR Art. 22; "
    "C, unverified; house)",
    "singling out people for age, disability or hardship, or inferring faith, health, origin or any other special "
    "category (GDPR Art. 9; C, unverified)",
    "people who objected to direct marketing (GDPR Art. 21(2); C, unverified)",
    "customers of institutions that took no part, and rows by another contract",
    "any use after its last day",
)
_LIMITS = (
    "Every number of people is noisy. What is below the plan's minimum cell is suppressed, which does not mean 0.",
    "The privacy claim is for one person at one institution. A customer of several institutions loses more; a person "
    "with two ids at one is protected as two.",
    "Differential privacy is about single people. What a group has in common is released.",
    "Learnt from the contract's window. It says nothing of later behaviour, and nothing here measures drift.",
)
_OF_KIND: dict[StudyKind, tuple[str, ...]] = {
    "segments": (
        "Intervals of means are for the noise alone: not for sampling, and not for clipping to the released 1% and 99% "
        "quantiles.",
        "Segments are roughly round in the scaled space. Categories enter no distance.",
        "A run can end in a local optimum, and another run of the same plan numbers and names its segments anew.",
    ),
    "encoder": ("No figure of its quality is released. What a campaign makes of it stands on the campaign's card.",),
    "lookalike": (
        "Quality is measured on the very seeds that the ranker was learnt on. No interval corrects how much that "
        "flatters it.",
        "Sought people who are no seeds count as misses in precision and lift.",
        "Intervals of reach are for the noise alone; those of quality also for the chance of who the seeds are.",
        "A level's reach is of all institutions together. At one institution it can differ much.",
    ),
}
_NO_NOISE = "NO PRIVACY: made without noise, for simulations alone. Nothing here protects anybody."
_UNAUDITED = "No fairness audit is on this card: it says nothing of bias, for or against."
_RETRAINING = (
    "Nothing is updated in place: a new version is a new plan, which every institution approves and which charges the "
    "same ledgers again. A person's withdrawal or erasure changes later questions, not what was released; the model "
    "serves to its last day if the privacy account and an attack test support anonymity, and is otherwise retired or "
    "made anew within 90 days (GDPR Art. 17, 5(2) with EDPB Opinion 28/2024; B; the 90 days: house)."
)


class CardFeature(Agreed):
    """A feature that the model reads. The contract of that digest has its kind, block and public bounds.

    Args:
        name: its name in the contract.
        scale: how distances stretch it; None where the released document does not say.
        low, high: the released range that distances use, in the contract's unit; None likewise.
    """

    name: str
    scale: Literal["linear", "log1p"] | None = None
    low: _Finite | None = None
    high: _Finite | None = None


class CardRelease(Agreed):
    """Questions of one phase and kind, and what they cost each person.

    Args:
        phase, kind: which.
        questions: how many were answered.
        failed: attempts that came to nothing, which whoever answered has paid for.
        institutions: the fewest that an answer is of; None where there is none.
        mu2, tv: their price in the ledger's units, in decimal digits: sums may pass what JSON numbers hold exactly.
    """

    phase: str
    kind: str
    questions: _Count
    failed: _Count
    institutions: _Count | None
    mu2: _Units
    tv: _Units


class CardPrivacy(Agreed):
    """What was promised to whom, and what it cost.

    Args:
        epsilon, delta: the plan's bound for everything that it releases.
        unit: whom the promise is for.
        adjacency: which two data sets must look alike.
        trust: whose noise protects.
        min_institutions, colluders: with shared noise, t and c of the plan; colluders None otherwise.
        min_cell: fewer (noisy) people than this are suppressed.
        mu2, tv: the price of all releases.
        releases: in short, in order.
    """

    epsilon: _Finite
    delta: _Finite
    unit: Literal["one person at one institution, with all their rows"] = (
        "one person at one institution, with all their rows"
    )
    adjacency: Literal["add or remove"] = "add or remove"
    trust: Trust
    min_institutions: _Count
    colluders: _Count | None
    min_cell: _Count
    mu2: _Units
    tv: _Units
    releases: tuple[CardRelease, ...]


class CardFigure(Agreed):
    """A figure as it was released.

    Args:
        name: which, such as `reach`, `lift`, `size`.
        of: the level, segment or part of the ranking it is about; None for the whole model.
        unit: what it counts; `ratio` for shares and lifts.
        value: None when suppressed, or when noise hides it.
        low, high: the released 95% interval; None where there is none.
        std: standard deviation of the noise in it; None where an interval says it.
    """

    name: str
    of: str | None = None
    unit: str
    value: _Finite | None
    low: _Finite | None = None
    high: _Finite | None = None
    std: _Finite | None = None


class CardAudit(Agreed):
    """A fairness audit in short; its document has every metric.

    Args:
        audit: digest of the result.
        plan: digest of the audit's plan.
        level: of a campaign, whose audience; None for segments.
        made: day on which it was judged (UTC).
        epsilon, delta: what it cost each person besides; epsilon None for an audit without noise.
        verdict: overall.
        judged, passed: how many metrics have a verdict, and how many pass.
        worst: those that fail, then those that are inconclusive, at most 12.
        more: how many of these are not shown.
        insufficient: what was too small to judge, and why.
        not_judged: what could not be made, and why.
        reversals: how many directions differ between the pooled table and an institution's.
    """

    audit: _Digest
    plan: str
    level: str | None
    made: date
    epsilon: _Finite | None
    delta: _Finite
    verdict: Verdict
    judged: _Count
    passed: _Count
    worst: tuple[Metric, ...]
    more: _Count
    insufficient: tuple[Metric, ...]
    not_judged: tuple[NotJudged, ...]
    reversals: _Count


class ModelCard(Document):
    """See the module.

    Args:
        schema_id: `cohortium.model-card/1`; written `schema`.
        kind: what was released.
        name, purpose, lawful_basis, regions: the plan's; the basis is what the institutions declared.
        what: what it is.
        intended, not_for: uses.
        model: digest of the bundle or model.
        plan, contract: digests.
        encoder: digest of the encoder's model that a campaign stands on; None otherwise.
        run: identifies the run.
        institutions: how many answered to the end.
        features: in the model's order.
        privacy: what was promised, and what it cost.
        figures: quality, as released.
        audits: by level and digest; none means that nothing is known of bias.
        limits: what a reader must know.
        expires: last day on which it may be used.
        retraining: what happens next.
        notice: what to make of the articles.
    """

    schema_id: Annotated[Literal["cohortium.model-card/1"], Field(alias="schema")] = "cohortium.model-card/1"
    kind: Literal["segments", "encoder", "lookalike"]
    name: str
    purpose: str
    lawful_basis: LawfulBasis
    regions: tuple[str, ...]
    what: str
    intended: tuple[str, ...]
    not_for: tuple[str, ...]
    model: _Digest
    plan: _Digest
    contract: _Digest
    encoder: _Digest | None
    run: str
    institutions: Annotated[int, Field(ge=1)]
    features: Annotated[tuple[CardFeature, ...], Field(min_length=1)]
    privacy: CardPrivacy
    figures: tuple[CardFigure, ...]
    audits: tuple[CardAudit, ...]
    limits: tuple[str, ...]
    expires: date
    retraining: str
    notice: str

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


def model_card(released: Released, fairness: Sequence[FairnessResult] = ()) -> ModelCard:
    """The card of a released bundle or model.

    Args:
        released: read and verified by its loader.
        fairness: results of audits of it, in any order.

    Raises:
        DataError: a result of something else, or the same one twice.
    """
    document = released if isinstance(released, Bundle) else released.document
    plan = document.plan
    kind = plan.study
    return ModelCard(
        kind=kind,
        name=plan.name,
        purpose=plan.purpose,
        lawful_basis=plan.lawful_basis,
        regions=plan.regions,
        what=_WHAT[kind],
        intended=_FOR[kind],
        not_for=_NOT_FOR,
        model=released.digest,
        plan=plan.digest,
        contract=plan.contract,
        encoder=document.plan.model if isinstance(document, LookalikeModel) else None,
        run=document.run,
        institutions=document.institutions,
        features=_features(document),
        privacy=_privacy(plan, document.releases),
        figures=_figures(document),
        audits=_audits(released.digest, fairness),
        limits=_limits(plan, audited=bool(fairness)),
        expires=plan.expires,
        retraining=_RETRAINING,
        notice=NOT_LEGAL_ADVICE,
    )


def _limits(plan: Plan, *, audited: bool) -> tuple[str, ...]:
    first = (_NO_NOISE,) if plan.trust == "unsafe-none" else ()
    return (*first, *_OF_KIND[plan.study], *_LIMITS, *(() if audited else (_UNAUDITED,)))


def _features(document: Bundle | EncoderModel | LookalikeModel) -> tuple[CardFeature, ...]:
    if not isinstance(document, Bundle):
        return tuple(CardFeature(name=name) for name in document.features)
    return tuple(
        CardFeature(name=axis.feature, scale="log1p" if axis.log else "linear", low=axis.low, high=axis.high)
        for axis in document.scaler
    )


def _privacy(plan: Plan, releases: Sequence[ReleaseRecord]) -> CardPrivacy:
    grouped = groupby(releases, key=lambda one: (one.phase, one.kind))
    return CardPrivacy(
        epsilon=plan.epsilon,
        delta=plan.delta,
        trust=plan.trust,
        min_institutions=plan.min_institutions,
        colluders=plan.colluders if plan.trust == "distributed" else None,
        min_cell=plan.min_cell,
        mu2=str(sum(one.mu2 for one in releases)),
        tv=str(sum(one.tv for one in releases)),
        releases=tuple(_in_short(phase, kind, list(asked)) for (phase, kind), asked in grouped),
    )


def _in_short(phase: str, kind: str, asked: Sequence[ReleaseRecord]) -> CardRelease:
    answered = [one.institutions for one in asked if one.institutions]
    return CardRelease(
        phase=phase,
        kind=kind,
        questions=len(answered),
        failed=len(asked) - len(answered),
        institutions=min(answered, default=None),
        mu2=str(sum(one.mu2 for one in asked)),
        tv=str(sum(one.tv for one in asked)),
    )


def _figures(document: Bundle | EncoderModel | LookalikeModel) -> tuple[CardFigure, ...]:
    people = CardFigure(name="customers", unit="people", value=document.customers)
    match document:
        case Bundle():
            return (people, *_of_segments(document))
        case LookalikeModel():
            return (people, *_of_campaign(document))
    frames = document.frames.items()
    return (people, *(CardFigure(name="people", of=name, unit="people", value=one.people) for name, one in frames))


def _of_segments(bundle: Bundle) -> Iterable[CardFigure]:
    yield CardFigure(name="variance explained", unit="ratio", value=bundle.explained)
    for choice in bundle.k_choices:
        if choice.k == len(bundle.segments):
            yield CardFigure(name="silhouette", of=f"k = {choice.k}", unit="ratio", value=choice.silhouette)
    for one in bundle.segments:
        yield CardFigure(
            name="size", of=f"{one.id}: {one.name}", unit="people", value=one.size, std=one.size_std or None
        )


def _of_campaign(model: LookalikeModel) -> Iterable[CardFigure]:
    yield CardFigure(name="seeds", unit="people", value=model.seeds)
    yield _measured("eligible", None, "people", model.curve.eligible)
    yield from _of_ranker(model.quality)
    for level in model.curve.levels:
        yield from _of_level(level.name, level.point)
        if level.change is not None:
            yield CardFigure(name="change of reach", of=level.name, unit="ratio", value=level.change)


def _of_ranker(quality: RankerQuality) -> Iterable[CardFigure]:
    yield _measured("AUC", f"the ranker on {quality.ranker}", "ratio", quality.auc)
    for top, found in zip((5, 10, 20), quality.recall, strict=True):
        yield _measured("recall", f"the top {top}%", "ratio", found)
    for top, found in zip((1, 5, 10), quality.lift, strict=True):
        yield _measured("lift", f"the top {top}%", "ratio", found)


def _of_level(name: str, point: CurvePoint | None) -> Iterable[CardFigure]:
    yield _measured("reach", name, "people", None if point is None else point.people)
    for what in ("lift", "precision", "recall", "relevance"):
        yield _measured(what, name, "ratio", None if point is None else getattr(point, what))


def _measured(name: str, of: str | None, unit: str, found: Measured | None) -> CardFigure:
    if found is None:
        return CardFigure(name=name, of=of, unit=unit, value=None)
    return CardFigure(name=name, of=of, unit=unit, value=found.value, low=found.low, high=found.high)


def _audits(model: str, fairness: Sequence[FairnessResult]) -> tuple[CardAudit, ...]:
    audits = sorted((_audit(model, result) for result in fairness), key=lambda one: (one.level or "", one.audit))
    if repeated := first_repeat(one.audit for one in audits):
        raise DataError(f"the audit {repeated[:19]}… is given twice", place="model card", fix="give each result once")
    return tuple(audits)


def _audit(model: str, result: FairnessResult) -> CardAudit:
    if result.audited != model:
        raise DataError(
            f"the audit {result.digest[:19]}… is of something else than {model[:19]}…",
            place="model card",
            fix="give results of audits of this very model",
        )
    judged = [one for one in result.metrics if one.verdict is not None]
    poor = [one for verdict in ("fail", "inconclusive") for one in judged if one.verdict == verdict]
    return CardAudit(
        audit=result.digest,
        plan=result.plan,
        level=result.level,
        made=result.made,
        epsilon=result.epsilon,
        delta=result.delta,
        verdict=result.verdict,
        judged=len(judged),
        passed=sum(one.verdict == "pass" for one in judged),
        worst=tuple(poor[:_SHOWN]),
        more=max(0, len(poor) - _SHOWN),
        insufficient=result.too_small,
        not_judged=result.not_judged,
        reversals=len(result.reversals),
    )
