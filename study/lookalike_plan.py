"""The plans of lookalike audiences: one that trains an encoder, once, and one for every campaign."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from cohortium.study.document import Agreed
from cohortium.study.plan import TrainingPlan
from cohortium.study.reach import MAX_LEVELS, STANDARD_LEVELS, LevelTarget, even_levels
from cohortium.study.validation import first_repeat

__all__ = [
    "CampaignShares",
    "EncoderPlan",
    "EncoderSettings",
    "EncoderShares",
    "LookalikePlan",
    "LookalikeSettings",
]

_Percent = Annotated[int, Field(strict=True, ge=0, le=100)]
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_SEED = r"^[a-z][a-z0-9_-]{0,62}$"


def _all_of_it(shares: dict[str, int], needed: tuple[str, ...]) -> None:
    total = sum(shares.values())
    if total != 100:
        raise ValueError(f"shares add up to {total}, not 100; every look at data needs its share")
    if lacking := [name for name in needed if shares[name] == 0]:
        raise ValueError(f"{' and '.join(lacking)} need a share above 0")


class EncoderShares(Agreed):
    """How an encoder's privacy budget (its mu^2) is divided, in percent; together 100.

    Args:
        marginals: distributions of every feature: the ranges and the centre of the feature basis.
        moments: covariances of basis and embedding, from which the encoder and every campaign start.
        training: every step of the encoder's training; 0 keeps the principal axes it would start from.
        centres: mean coordinates of basis and embedding, from which every seed's mean is told apart.
    """

    marginals: _Percent = 5
    moments: _Percent = 55
    training: _Percent = 35
    centres: _Percent = 5

    @model_validator(mode="after")
    def _whole(self) -> EncoderShares:
        _all_of_it(self.model_dump(), ("marginals", "moments", "centres"))
        return self


class EncoderSettings(Agreed):
    """How the encoder is built and trained; nothing of it is chosen by looking at data.

    Args:
        hidden: units of each of the two hidden layers.
        width: dimensions of the embedding.
        rounds: full-batch steps, each one question.
        learning_rate: largest of Adam at the coordinator; it rises over three rounds and then falls to a tenth.
        clip: L2 norm to which a person's gradient is clipped.
        hide: per cent of the features that a row hides from itself in a round.
        seed: of the first weights and of what is hidden; no seed ever influences noise.
    """

    hidden: Annotated[int, Field(strict=True, ge=2, le=512)] = 64
    width: Annotated[int, Field(strict=True, ge=1, le=256)] = 32
    rounds: Annotated[int, Field(strict=True, ge=1, le=200)] = 30
    learning_rate: Annotated[_Number, Field(gt=0, le=1)] = 0.002
    clip: Annotated[_Number, Field(ge=0.01, le=100)] = 1.0
    hide: Annotated[int, Field(strict=True, ge=1, le=99)] = 30
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**31)] = 0


class EncoderPlan(TrainingPlan):
    """A plan that trains an encoder on everybody's customers; campaigns stand on what it releases.

    Args:
        study: `encoder`.
        encoder, shares: see there.
    """

    study: Literal["encoder"]
    encoder: EncoderSettings = EncoderSettings()
    shares: EncoderShares = EncoderShares()


class CampaignShares(Agreed):
    """How a campaign's privacy budget (its mu^2) is divided, in percent; together 100.

    Args:
        features: everything that teaches the ranker on features to tell seeds from the rest; 0 leaves it out.
        embedding: the same for the ranker on the embedding; 0 leaves it out.
        contest: comparison of the two, which picks the one that is released; 0 where there is one alone.
        curve: reach and dilution of the audience.
        profile: who the audience is, beside everybody eligible; 0 leaves it undescribed.
    """

    features: _Percent = 58
    embedding: _Percent = 8
    contest: _Percent = 6
    curve: _Percent = 16
    profile: _Percent = 12

    @model_validator(mode="after")
    def _whole(self) -> CampaignShares:
        _all_of_it(self.model_dump(), ("curve",))
        rankers = (self.features > 0) + (self.embedding > 0)
        if rankers == 0:
            raise ValueError("features or embedding need a share above 0")
        if (rankers == 2) != (self.contest > 0):
            raise ValueError("contest needs a share above 0 where there are two rankers, and none where there is one")
        return self


class LookalikeSettings(Agreed):
    """Which customers are valued, and what is wanted of those like them.

    Args:
        seed: name of the seed list; institutions without a list of that name have no seeds and take part all the same.
        steps: gradients by which each ranker is moved after the seeds' sum; 0 keeps the discriminant of the sum alone,
            for very small budgets.
        levels: audiences to offer: narrow (2.5% of the eligible), balanced (5%) and broad (10%) when left out; with
            locks on reach, similarity or dilution where they must hold.
        bins: beside the levels, so many nested ones in equal steps up to a quarter of the eligible; 0 for none.
        before: people that a level of that name reached before a refit, which keeps it within 0.9 to 1.1 of them.
    """

    seed: Annotated[str, StringConstraints(pattern=_SEED)]
    steps: Annotated[int, Field(strict=True, ge=0, le=5)] = 4
    levels: Annotated[tuple[LevelTarget, ...], Field(min_length=1, max_length=MAX_LEVELS)] = STANDARD_LEVELS
    bins: Annotated[int, Field(strict=True, ge=0, le=25)] = 0
    before: dict[str, Annotated[_Number, Field(gt=0)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _distinct(self) -> LookalikeSettings:
        names = [level.name for level in self.targets]
        if repeated := first_repeat(names):
            raise ValueError(f"levels must have distinct names; '{repeated}' repeats")
        if len(names) > MAX_LEVELS:
            raise ValueError(f"{len(names)} levels and bins are more than {MAX_LEVELS}")
        if strangers := sorted(set(self.before) - set(names)):
            raise ValueError(f"before names no level: '{strangers[0]}'; use one of {', '.join(names)}")
        return self

    @property
    def targets(self) -> tuple[LevelTarget, ...]:
        """Levels and bins."""
        return self.levels + (even_levels(self.bins) if self.bins else ())


class LookalikePlan(TrainingPlan):
    """A plan that finds customers like those of a seed.

    Args:
        study: `lookalike`.
        model: digest of the encoder's model that the campaign stands on.
        lookalike, shares: see there.
    """

    study: Literal["lookalike"]
    model: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    lookalike: LookalikeSettings
    shares: CampaignShares = CampaignShares()
