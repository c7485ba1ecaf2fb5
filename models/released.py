"""Between what a study learnt and the model that is released: the same numbers, in arrays and a document."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cohortium.models.encoding import EncodedStudy
from cohortium.models.lookalike import CampaignResult
from cohortium.models.ranker import Ranker
from cohortium.models.row_moments import frame_from_parts
from cohortium.models.seed_head import FrameFacts
from cohortium.study.bundle import ReleaseRecord
from cohortium.study.errors import DataError, PlanError, RefusedError
from cohortium.study.lookalike_plan import EncoderPlan, LookalikePlan
from cohortium.study.model import EncoderModel, FrameFact, LookalikeModel, Model, array_facts

__all__ = ["checked_base", "encoder_model", "lookalike_model", "read_encoded", "read_ranker"]

_FRAMES = ("features", "embedding")
_VECTORS = ("variances", "factors", "row_mean", "mean")


def encoder_model(
    study: EncodedStudy, plan: EncoderPlan, run: str, institutions: int, releases: tuple[ReleaseRecord, ...]
) -> Model[EncoderModel]:
    """The released encoder."""
    arrays: dict[str, NDArray[np.float64]] = {}
    frames = {}
    for name, facts in zip(_FRAMES, (study.features, study.embedding), strict=True):
        parts = facts.frame.parts()[1] | {vector: getattr(facts, vector) for vector in _VECTORS}
        arrays |= {f"{name}.{part}": np.ascontiguousarray(values) for part, values in parts.items()}
        frames[name] = FrameFact(people=facts.people, entry_std=facts.entry_std, mean_std=facts.mean_std)
    document = EncoderModel(
        plan=plan,
        run=run,
        institutions=institutions,
        customers=study.features.people,
        features=study.features.frame.rows.features,
        frames=frames,
        arrays=array_facts(arrays),
        releases=releases,
    )
    return Model(document, arrays)


def read_encoded(model: Model[EncoderModel], place: str = "model") -> EncodedStudy:
    """What the study learnt, from its released model; `DataError` when its arrays do not fit together."""
    try:
        features, embedding = (_facts(model, name) for name in _FRAMES)
    except (RefusedError, KeyError) as error:
        raise DataError("does not hold an encoder of this version", place=place, fix="export it again") from error
    encoder = embedding.frame.rows.encoder
    if encoder is None or features.frame.rows.encoder is not None:
        raise DataError("does not hold an encoder of this version", place=place, fix="export it again")
    return EncodedStudy(encoder, features, embedding)


def _facts(model: Model[EncoderModel], name: str) -> FrameFacts:
    own = {
        part.removeprefix(f"{name}."): values for part, values in model.arrays.items() if part.startswith(f"{name}.")
    }
    frame, fact = frame_from_parts(list(model.document.features), own), model.document.frames[name]
    vectors = {vector: own[vector] for vector in _VECTORS}
    if any(values.shape != (frame.rows.width,) for values in vectors.values()) or (vectors["factors"] <= 0).any():
        raise RefusedError("malformed frame")
    return FrameFacts(
        frame=frame,
        people=fact.people,
        entry_std=fact.entry_std,
        mean_std=fact.mean_std,
        variances=vectors["variances"],
        factors=vectors["factors"],
        row_mean=vectors["row_mean"],
        mean=vectors["mean"],
    )


def checked_base(plan: LookalikePlan, base: Model[EncoderModel] | None) -> EncodedStudy:
    """The encoder that a campaign stands on; `PlanError` when it is not the one that the plan names."""
    if base is None or base.digest != plan.model:
        raise PlanError(
            "the encoder's model is not the one that the plan names",
            place="plan: model",
            fix="give the released file of that digest",
        )
    if base.document.plan.contract != plan.contract:
        raise PlanError(
            "the encoder was trained under another contract", place="plan: model", fix="train one under this contract"
        )
    used = base.document.plan.without
    if set(used) != set(plan.without):
        raise PlanError(
            "the campaign leaves out other features than its encoder, all of whose features it uses",
            place="plan: without",
            fix=f"state without = {json.dumps(sorted(used))}, or train an encoder without the same features",
        )
    return read_encoded(base)


def lookalike_model(
    result: CampaignResult, plan: LookalikePlan, run: str, institutions: int, releases: tuple[ReleaseRecord, ...]
) -> Model[LookalikeModel]:
    """The released ranker."""
    arrays: Mapping[str, NDArray[np.float64]] = {
        name: np.ascontiguousarray(values) for name, values in result.ranker.parts()[1].items()
    }
    eligible = result.curve.eligible.value if result.curve.eligible is not None else 0.0
    seeds = result.seeds if result.seeds >= plan.min_cell else None
    document = LookalikeModel(
        plan=plan,
        run=run,
        institutions=institutions,
        customers=eligible + (seeds or 0.0),
        features=result.ranker.rows.features,
        seeds=seeds,
        choice=result.choice,
        quality=result.quality,
        curve=result.curve,
        level=result.level,
        profile=result.profile,
        arrays=array_facts(arrays),
        releases=releases,
    )
    return Model(document, arrays)


def read_ranker(model: Model[LookalikeModel], place: str = "model") -> Ranker:
    """The ranker of a released model; `DataError` when its arrays do not fit together."""
    try:
        return Ranker.from_parts({"features": list(model.document.features)}, model.arrays)
    except RefusedError as error:
        raise DataError("does not hold a ranker of this version", place=place, fix="export it again") from error
