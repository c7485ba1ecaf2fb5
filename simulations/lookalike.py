"""A scikit-learn style estimator of lookalikes that runs the federation's own apps."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from cohortium.models.basis import UNIT
from cohortium.models.ranker import Ranker
from cohortium.models.released import read_encoded, read_ranker
from cohortium.privacy.table import CustomerTable
from cohortium.simulations.local_federation import (
    LocalFederation,
    matrix_contract,
    plan_head,
    public_bounds,
    split_rows,
    whole,
)
from cohortium.study.contract import Contract
from cohortium.study.errors import DataError, Defect
from cohortium.study.model import EncoderModel, LookalikeModel, Model
from cohortium.study.plan import Trust
from cohortium.study.plans import parse_plan
from cohortium.study.reach import ReachCurve

__all__ = ["FederatedLookalike"]

_SEED = "seed"


class FederatedLookalike(BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
    """Finds customers like those of a seed under customer-level differential privacy, by the code that runs deployed.

    Two plans are run one after the other over nodes with ledgers: one trains an encoder on everybody, one learns to
    tell the seed from the rest. Noise comes from the operating system and cannot be seeded: two fits differ, by design.

    Args:
        epsilon_encoder, epsilon_campaign: what either plan may cost one person at one institution; `privacy_spent_` has
            both together, which is less than their sum.
        delta: of each plan, and of both together.
        bounds: for a matrix: public (low, high), two numbers or two arrays of length n_features. They must not be
            computed from X. Values outside are clipped.
        contract: for a DataFrame: the feature contract; columns are found by the features' names.
        trust, min_institutions, colluders: as in `FederatedKMeans`.
        encoder: settings of the encoder's plan that differ from its defaults, such as {"rounds": 20}.
        encoder_shares, campaign_shares: shares of either plan, all of them, when they differ from its defaults.
        random_state: seed of the encoder's first weights and of the split into institutions; never of noise.

    Attributes:
        encoder_model_, model_: what the two runs released.
        reach_curve_: the curve of the ranker that won, with the levels narrow, balanced and broad.
        privacy_spent_: see `PrivacySpent`.
        n_features_in_: number of features.

    Example:
        >>> import numpy as np
        >>> from cohortium.simulations import FederatedLookalike
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(4000, 3)).clip(-3, 3)
        >>> seed = rng.choice(np.flatnonzero(X[:, 0] > 1), 400, replace=False)
        >>> model = FederatedLookalike(bounds=(-3, 3), encoder={"rounds": 2}, random_state=0)
        >>> scores = model.fit(X, seed, institutions=3).score_samples(X)
        >>> bool(scores[X[:, 0] > 1].mean() > scores[X[:, 0] < 1].mean())
        True
    """

    def __init__(
        self,
        *,
        epsilon_encoder: float = 2.0,
        epsilon_campaign: float = 1.0,
        delta: float = 1e-6,
        bounds: tuple[ArrayLike, ArrayLike] | None = None,
        contract: Contract | None = None,
        trust: Trust | None = None,
        min_institutions: int | None = None,
        colluders: int = 1,
        encoder: dict[str, Any] | None = None,
        encoder_shares: dict[str, int] | None = None,
        campaign_shares: dict[str, int] | None = None,
        random_state: int | None = None,
    ) -> None:
        self.epsilon_encoder = epsilon_encoder
        self.epsilon_campaign = epsilon_campaign
        self.delta = delta
        self.bounds = bounds
        self.contract = contract
        self.trust = trust
        self.min_institutions = min_institutions
        self.colluders = colluders
        self.encoder = encoder
        self.encoder_shares = encoder_shares
        self.campaign_shares = campaign_shares
        self.random_state = random_state

    def fit(self, X: Any, seed: ArrayLike, *, institutions: int | Sequence[Any] | None = None) -> FederatedLookalike:
        """Train the encoder, then learn to tell the seed from the rest.

        Args:
            X: numbers, shape (n_samples, n_features), with `bounds`; or a DataFrame with `contract`. One row is one
                person at one institution.
            seed: which rows are seeds: a boolean mask of length n_samples, or row numbers.
            institutions: how many equal parts to split the rows into, or one label per row; one when left out.

        Raises:
            ValueError: X holds NaN or infinity; labels or seed do not fit the rows; a seed repeats.
            PlanError, DataError: bounds or a contract are missing or do not fit, or settings are out of range.
            RefusedError: an institution has some seeds but fewer than 100, or more than half of its customers are.
        """
        self.contract_ = self._contract_of(X)
        table = self._table(X)
        marked = _marked(seed, len(table))
        groups = split_rows(len(table), institutions, self.random_state)
        head = plan_head(
            "federated-lookalike", self.contract_, self.trust, len(groups), self.min_institutions, self.colluders
        )
        head["delta"] = float(self.delta)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cohortium-")))
            tables = [table.take(_mask(rows, len(table))) for rows in groups]
            federation = LocalFederation(
                folder,
                self.contract_,
                tables,
                epsilon=float(self.epsilon_encoder) + float(self.epsilon_campaign),
                delta=float(self.delta),
                stack=stack,
            )
            for index, (node, rows) in enumerate(zip(federation.nodes, groups, strict=True)):
                if (own := np.sort(rows)[marked[np.sort(rows)]]).size:
                    listed = folder / f"seed-{index}.txt"
                    listed.write_text("".join(f"{table.keys[row]}\n" for row in own), encoding="utf-8")
                    node.seeds.add(_SEED, listed, None, node.people)
            settings = {"seed": whole(self.random_state or 0), **(self.encoder or {})}
            first = {**head, "study": "encoder", "epsilon": float(self.epsilon_encoder), "encoder": settings}
            if self.encoder_shares is not None:
                first["shares"] = self.encoder_shares
            self.encoder_model_ = _encoder(federation.run(parse_plan(first, place="FederatedLookalike")))
            second = {
                **head,
                "study": "lookalike",
                "epsilon": float(self.epsilon_campaign),
                "model": self.encoder_model_.digest,
                "lookalike": {"seed": _SEED},
            }
            if self.campaign_shares is not None:
                second["shares"] = self.campaign_shares
            self.model_ = _campaign(federation.run(parse_plan(second, place="FederatedLookalike"), self.encoder_model_))
            releases = len(self.encoder_model_.document.releases) + len(self.model_.document.releases)
            self.privacy_spent_ = federation.spent(head["trust"], float(self.delta), releases)
        self.reach_curve_: ReachCurve = self.model_.document.curve
        self.n_features_in_ = len(self.contract_.training_features)
        self._ranker: Ranker = read_ranker(self.model_)
        return self

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """A score for every row, higher for rows more like the seeds, shape (n_samples,)."""
        check_is_fitted(self, "model_")
        return self._ranker.scores(self._table(X))

    def embed(self, X: Any) -> NDArray[np.float64]:
        """The encoder's embedding of every row, shape (n_samples, width)."""
        check_is_fitted(self, "encoder_model_")
        encoder = read_encoded(self.encoder_model_).encoder
        return encoder.embed(encoder.basis.rows(self._table(X))) / UNIT

    def _contract_of(self, X: Any) -> Contract:
        if self.contract is not None:
            return self.contract
        if isinstance(X, pd.DataFrame):
            raise DataError("a DataFrame without a contract", place="FederatedLookalike", fix="give contract=…")
        return matrix_contract(*public_bounds(self.bounds, np.shape(X)[-1], "FederatedLookalike"))

    def _table(self, X: Any) -> CustomerTable:
        """The rows as a customer table: clipped to the public bounds, categories by their codes."""
        features = self.contract_.training_features
        columns = []
        for index, feature in enumerate(features):
            cells = _column(X, feature.name, index)
            if feature.is_category:
                codes = {name: float(code) for code, name in enumerate(feature.categories)}
                texts = pd.Series(np.asarray(cells)).astype(str).str.strip()
                columns.append(texts.map(codes).fillna(feature.unknown_code).to_numpy(dtype=np.float64))
                continue
            values = np.asarray(cells, dtype=np.float64)
            if not np.isfinite(values).all():
                raise ValueError(f"column '{feature.name}' holds NaN or infinity")
            columns.append(np.clip(values, *feature.bounds))
        return CustomerTable(
            tuple(feature.name for feature in features), np.column_stack(columns), np.arange(len(columns[0]))
        )


def _column(X: Any, name: str, index: int) -> Any:
    if not isinstance(X, pd.DataFrame):
        return np.asarray(X)[:, index]
    if name not in X.columns:
        raise DataError("no such column", place=f"X: {name}", fix="name columns as the contract does")
    return X[name]


def _marked(seed: ArrayLike, rows: int) -> NDArray[np.bool_]:
    given = np.asarray(seed)
    if given.dtype == np.bool_:
        if given.shape != (rows,):
            raise ValueError(f"seed must have one entry for each of the {rows} rows")
        return given
    if given.ndim != 1 or not np.issubdtype(given.dtype, np.integer) or given.size == 0:
        raise ValueError("seed must be a boolean mask, or row numbers")
    if given.min() < 0 or given.max() >= rows:
        raise ValueError(f"seed must hold row numbers from 0 to {rows - 1}")
    if len(np.unique(given)) != len(given):
        raise ValueError("a row stands in the seed twice")
    return _mask(given, rows)


def _mask(rows: NDArray[Any], count: int) -> NDArray[np.bool_]:
    mask = np.zeros(count, dtype=np.bool_)
    mask[rows] = True
    return mask


def _encoder(released: Any) -> Model[EncoderModel]:
    if not isinstance(released, Model) or not isinstance(released.document, EncoderModel):
        raise Defect("an encoder's study released no encoder")
    return released


def _campaign(released: Any) -> Model[LookalikeModel]:
    if not isinstance(released, Model) or not isinstance(released.document, LookalikeModel):
        raise Defect("a campaign released no ranker")
    return released
