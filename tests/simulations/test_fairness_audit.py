"""One call on a frame: plain group-bys without noise, within the noise with it, planted bias found, the tiny named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cohortium.governance import fairness as statistics
from cohortium.models.auditing import CHOSEN, REST, SEEDS
from cohortium.privacy.table import CustomerTable
from cohortium.server.study_run import AuditAnswer
from cohortium.simulations import fairness_audit, group_thresholds_of
from cohortium.simulations.local_federation import LocalFederation, plan_head
from cohortium.study.bundle import AxisScale, Bundle, KChoice, Segment
from cohortium.study.contract import Contract
from cohortium.study.errors import CohortiumError, DataError, PlanError, RefusedError
from cohortium.study.plan import Plan
from cohortium.study.plans import parse_plan


def people(count: int = 12_000, *, bias: float = 1.0, seed: int = 0) -> pd.DataFrame:
    """Selected at 40%, women `bias` times that; one in ten of unknown sex; responses depend on nothing."""
    rng = np.random.default_rng(seed)
    sex = rng.choice(np.array(["f", "m", None]), count, p=[0.45, 0.45, 0.1])
    return pd.DataFrame(
        {
            "sex": sex,
            "age": pd.cut(rng.uniform(18, 80, count), [0, 40, 99], labels=["young", "old"]),
            "bank": rng.choice(["north", "south", "west"], count),
            "chosen": rng.random(count) < np.where(sex == "f", 0.4 * bias, 0.4),
            "bought": rng.integers(0, 2, count),
        }
    )


def plain(frame: pd.DataFrame, by: str | list[str]) -> pd.DataFrame:
    filled = frame.assign(sex=frame.sex.fillna("unknown"), age=frame.age.astype(str))
    grouped = filled.groupby(by)
    bought = filled[filled.bought == 1].groupby(by).chosen
    chosen = filled[filled.chosen].groupby(by).bought
    return pd.DataFrame(
        {
            "people": grouped.size().astype(float),
            "selected": grouped.chosen.sum().astype(float),
            "rate": grouped.chosen.mean(),
            "positives": grouped.bought.sum().astype(float),
            "true_positive_rate": bought.mean(),
            "precision": chosen.mean(),
        }
    )


def test_without_noise_it_counts_what_pandas_counts() -> None:
    frame = people()
    audit = fairness_audit(frame, group="sex", selected="chosen", label="bought")
    expected = plain(frame, "sex")
    pd.testing.assert_frame_equal(audit.by_group, expected, check_exact=True, check_index_type=False)
    assert audit.impact_ratio.tolist() == pytest.approx((expected.rate / expected.rate.max()).tolist(), rel=1e-12)
    assert audit.noise_free
    assert audit.privacy_spent is None
    assert "protects nobody" in repr(audit)


def test_several_groups_are_compared_alone_and_in_pairs() -> None:
    frame = people(6000)
    audit = fairness_audit(frame, group=["sex", "age"], selected="chosen", institutions="bank")
    assert audit.by_group.index.get_level_values("attribute").unique().tolist() == ["sex", "age", "sex & age"]
    for (sex, age), row in plain(frame, ["sex", "age"]).iterrows():  # type: ignore[misc] # pandas types no index
        found = audit.by_group.loc[("sex & age", f"{sex} & {age}")]
        assert found.tolist() == row[["people", "selected", "rate"]].tolist()
    rows = audit.to_frame()
    assert set(rows.institution.dropna()) == {"north", "south", "west"}
    assert len(audit.impact_ratio) == len(audit.verdicts) == len(audit.by_group) == 3 + 2 + 6
    own = rows[(rows.name == "impact-ratio") & (rows.institution == "south") & (rows.attributes == "sex")]
    assert own.people.tolist() == plain(frame[frame.bank == "south"], "sex").people.tolist()


def test_a_group_without_a_value_is_there_where_somebody_has_none() -> None:
    frame = people(3000)
    assert "unknown" in fairness_audit(frame, group="sex", selected="chosen").by_group.index
    whole = frame[frame.sex.notna()]
    audit = fairness_audit(whole, group="sex", selected="chosen")
    assert audit.by_group.index.tolist() == ["f", "m"]
    texts = frame.assign(sex=frame.sex.fillna("unknown"))
    again = fairness_audit(texts, group="sex", selected="chosen")
    assert again.by_group.equals(fairness_audit(frame, group="sex", selected="chosen").by_group)


def test_people_whose_selection_is_unknown_are_in_no_rate() -> None:
    frame = people(3000).assign(chosen=lambda f: f.chosen.astype(object))
    frame.loc[frame.index[::3], "chosen"] = None
    audit = fairness_audit(frame, group="sex", selected="chosen")
    assert audit.by_group.people.sum() == 2000


@pytest.mark.parametrize("epsilon", [None, 1.0], ids=["without noise", "with noise"])
@pytest.mark.parametrize(("bias", "verdict"), [(0.65, "fail"), (1.0, "pass")])
def test_a_planted_bias_fails_and_a_fair_selection_passes(bias: float, verdict: str, epsilon: float | None) -> None:
    frame = people(20_000, bias=bias)
    institutions = None if epsilon is None else "bank"
    audit = fairness_audit(frame, group="sex", selected="chosen", institutions=institutions, epsilon=epsilon)
    assert audit.verdicts.loc["f", "impact-ratio"] == verdict
    assert audit.impact_ratio["f"] == pytest.approx(bias if bias < 1 else 1.0, abs=0.06)
    assert audit.verdict == verdict


def test_a_tiny_group_is_insufficient_and_not_shown() -> None:
    frame = people(4000)
    frame.loc[frame.index[:30], "sex"] = "x"
    audit = fairness_audit(frame, group="sex", selected="chosen", epsilon=1.0)
    assert audit.verdicts.loc["x", "impact-ratio"] == "insufficient"
    assert audit.by_group.loc["x"].isna().all()
    assert np.isnan(audit.impact_ratio["x"])
    assert audit.verdict == "insufficient", "what is too small to judge does not pass"


@pytest.mark.parametrize("institutions", [3, 2], ids=["distributed", "local"])
def test_with_noise_it_is_within_the_noise_and_costs_what_was_asked(institutions: int) -> None:
    frame = people()
    audit = fairness_audit(frame, group="sex", selected="chosen", institutions=institutions, epsilon=1.0)
    exact = plain(frame, "sex")
    rows = audit.to_frame()
    std = rows[rows.institution.isna() & (rows.name == "impact-ratio")].people_std.iloc[0]
    assert 1.0 < std < 40.0
    gaps = (audit.by_group.people - exact.people).abs()
    assert gaps.max() < 6 * std
    assert gaps.max() > 0
    assert audit.privacy_spent is not None
    assert audit.privacy_spent.epsilon <= 1.0
    assert not audit.noise_free
    assert "epsilon 1" in repr(audit)
    assert set(rows.institution.dropna()) == (set() if institutions == 3 else {"0", "1"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"group": "sect"}, "no column 'sect'"),
        ({"selected": "picked"}, "no column 'picked'"),
        ({"institutions": "branch"}, "no column 'branch'"),
        ({"group": "chosen"}, "named twice"),
        ({"group": "number"}, "makes 3000 groups"),
        ({"selected": "number"}, "something else than 0 and 1"),
        ({"label": "age"}, "something else than 0 and 1"),
    ],
    ids=str,
)
def test_what_cannot_be_audited_is_named_with_the_fix(changes: dict[str, Any], said: str) -> None:
    frame = people(3000).assign(number=np.arange(3000) / 7)
    with pytest.raises(DataError) as refusal:
        fairness_audit(frame, **{"group": "sex", "selected": "chosen", **changes})
    assert said in str(refusal.value)
    assert refusal.value.fix
    with pytest.raises(PlanError):
        fairness_audit(frame, group="sex", selected="chosen", epsilon=-1.0)


# --- segments, end to end --------------------------------------------------------------------------------------------

CENTRES = np.array([[-0.5], [0.5]])


def contract() -> Contract:
    people = {"table": "people", "kind": "category", "protected": True}
    number = {"kind": "numeric", "low": 0, "high": 10, "missing": 0, "block": "value"}
    return Contract.model_validate(
        {
            "schema": "cohortium.contract/1",
            "name": "bank",
            "purposes": ["research"],
            "window": {"start": "2000-01-01", "end": "2000-01-02"},
            "tables": [{"name": "people", "kind": "customers", "customer": "row"}],
            "features": [
                {"name": "spend", "table": "people", "column": "spend", **number},
                {"name": "sex", "column": "sex", "categories": ["f", "m"], **people},
            ],
        }
    )


def released(plan: Plan) -> Bundle:
    return Bundle(
        plan=plan,  # type: ignore[arg-type] # a segment plan
        run="0" * 32,
        institutions=2,
        scaler=(AxisScale(feature="spend", log=False, low=0.0, high=10.0),),
        segments=tuple(
            Segment(id=index, name="some", centre=tuple(centre), size=200.0, size_std=3.0)
            for index, centre in enumerate(CENTRES.tolist(), start=1)
        ),
        customers=400.0,
        explained=None,
        k_choices=(KChoice(k=2, silhouette=None, cost=1.0),),
        rfm=None,
        releases=(),
    )


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.mark.parametrize("institutions", [2, 3], ids=["local", "distributed"])
def test_segments_are_audited_by_nodes_that_hold_the_bundle(
    institutions: int, stack: ExitStack, tmp_path: Path
) -> None:
    rng, agreed = np.random.default_rng(5), contract()
    spend = [rng.uniform(0, 10, (2000, 1)) for _ in range(institutions)]
    sex = [(part[:, 0] + rng.normal(0, 4, 2000) > 5).astype(float) for part in spend]
    keys = np.arange(2000)
    tables = [CustomerTable(("spend",), part, keys) for part in spend]
    protected = [CustomerTable(("sex",), part[:, np.newaxis], keys) for part in sex]
    federation = LocalFederation(tmp_path, agreed, tables, protected, epsilon=2.0, delta=1e-6, stack=stack)
    head = plan_head("segments", agreed, None, institutions, None, 1) | {"epsilon": 1.0, "delta": 1e-6}
    bundle = released(parse_plan({**head, "shares": {"marginals": 20, "clustering": 60, "profiles": 20, "rfm": 0}}))
    (tmp_path / "bundle.json").write_bytes(bundle.to_bytes())
    audit = {"of": "segments", "model": bundle.digest, "segments": 2, "attributes": ["sex"], "distance": True}
    shares = {"outcomes": 70, "distances": 30}
    plan = parse_plan({**head, "name": "audit", "study": "audit", "audit": audit, "shares": shares})
    for node in federation.nodes:
        node.models.add(tmp_path / "bundle.json")
    answer = federation.run(plan)
    assert isinstance(answer, AuditAnswer)
    (pooled,) = answer.pooled
    exact = [np.histogram2d(s, part[:, 0] > 5, bins=[2, 2])[0] for s, part in zip(sex, spend, strict=True)]
    std = pooled.outcomes.std
    assert np.abs(pooled.outcomes.counts[:2] - sum(exact)).max() < 6 * std < 300
    assert np.abs(pooled.outcomes.counts[2]).max() < 6 * std, "nobody is of unknown sex"
    far = np.concatenate([np.abs(part[:, 0] / 5 - 1 - np.sign(part[:, 0] - 5) / 2) for part in spend])
    assert pooled.distances is not None
    for code in range(2):
        inside = np.concatenate(sex) == code
        assert abs(pooled.distances.counts[code, 0] - far[inside].sum()) < 6 * pooled.distances.std
    statistics.SegmentTables(people=pooled.outcomes, distance=pooled.distances)
    document = answer.document
    assert document.tables[0].counts[2] == (None, None)
    assert document.institutions == institutions
    assert [record.phase for record in document.releases] == ["outcomes", "distances"]
    if institutions == 3:
        assert answer.own == {}
        return
    parts = [answer.own[name][0].outcomes for name in sorted(answer.own)]
    assert len(parts) == 2
    np.testing.assert_allclose(sum(part.counts for part in parts), pooled.outcomes.counts)
    for part, true in zip(parts, exact, strict=True):
        assert np.abs(part.counts[:2] - true).max() < 6 * part.std
        assert part.std == pytest.approx(std / np.sqrt(2)), "each carries full noise of its own"
    assert {table.institution for table in document.tables} == {None, *answer.own}


def test_the_words_of_the_tables_are_those_of_the_statistics() -> None:
    assert (statistics.CHOSEN, statistics.REST, statistics.SEEDS) == (CHOSEN, REST, SEEDS)


# --- thresholds by group ---------------------------------------------------------------------------------------------

CUTS = [round(cut, 1) for cut in np.linspace(-2, 2.5, 46).tolist()]


def scored(count: int = 12_000) -> pd.DataFrame:
    """Women score lower for the same responses."""
    rng = np.random.default_rng(1)
    sex, worth = rng.choice(["f", "m"], count, p=[0.3, 0.7]), rng.normal(size=count)
    bought = (rng.random(count) < 1 / (1 + np.exp(2 - 1.5 * worth))).astype(int)
    return pd.DataFrame({"sex": sex, "score": worth + 0.5 * (sex == "m"), "bought": bought})


WANTED: dict[str, Any] = {"group": "sex", "score": "score", "reach": 0.2, "ratio": 0.9, "label": "bought"}


def test_thresholds_reach_the_ratio_when_who_they_choose_is_audited_again() -> None:
    frame = scored()
    found = group_thresholds_of(frame, **WANTED, cuts=CUTS)
    assert found.noise_free
    chosen = found.select(frame, random_state=0)
    assert chosen.mean() == pytest.approx(0.2, abs=0.01)
    again = fairness_audit(frame.assign(chosen=chosen), group="sex", selected="chosen", label="bought")
    before = fairness_audit(
        frame.assign(chosen=frame.score >= frame.score.quantile(0.8)), group="sex", selected="chosen"
    )
    assert before.verdict == "fail"
    assert before.impact_ratio["f"] == pytest.approx(found.mitigation.ratio_before, abs=0.02)
    assert found.mitigation.ratio_after >= 0.9 - 1e-9
    assert again.impact_ratio["f"] == pytest.approx(found.mitigation.ratio_after, abs=0.03)
    assert again.verdicts.loc["f", "impact-ratio"] == "pass"
    assert found.mitigation.lift_after == pytest.approx(frame.bought[chosen].mean() / frame.bought.mean(), rel=0.03)


def test_the_tables_are_those_of_pandas_and_a_missing_score_or_sex_counts_apart() -> None:
    frame = scored(4000)
    whole = group_thresholds_of(frame, **WANTED, cuts=[0.0, 1.0])
    assert [cutoff.bin for cutoff in whole.mitigation.before] == ["1 and above", "1 and above"]
    share = 0.2 * len(frame) / (frame.score >= 1).sum()
    assert [cutoff.part for cutoff in whole.mitigation.before] == pytest.approx([share, share])
    rows = pd.DataFrame({"sex": ["f", "m"] * 50, "score": [np.nan] * 100, "bought": [1] * 100})
    more = group_thresholds_of(pd.concat([frame, rows]), **WANTED, cuts=[0.0, 1.0])
    assert more.mitigation == whole.mitigation
    unknown = frame.assign(sex=frame.sex.where(np.arange(len(frame)) >= 400))
    named = group_thresholds_of(unknown, **WANTED, cuts=[0.0, 1.0])
    assert [cutoff.group for cutoff in named.mitigation.after] == [("f",), ("m",), ("unknown",)]
    assert named.select(unknown, 0)[:400].mean() == pytest.approx(named.mitigation.after[2].rate, abs=0.06)
    with pytest.raises(DataError, match="a group of 'sex' has no threshold"):
        whole.select(unknown)
    assert not more.select(rows, 0).any(), "without a score nobody is chosen while others are"


def test_with_noise_the_answer_is_near_and_its_price_is_told() -> None:
    frame = scored()
    exact = group_thresholds_of(frame, **WANTED, cuts=CUTS[::5])
    noisy = group_thresholds_of(frame, **WANTED, cuts=CUTS[::5], institutions=3, epsilon=1.0)
    assert not noisy.noise_free
    assert noisy.privacy_spent is not None
    assert 0.9 < noisy.privacy_spent.epsilon <= 1.0
    for first, second in zip(exact.mitigation.after, noisy.mitigation.after, strict=True):
        assert first.group == second.group
        assert first.rate == pytest.approx(second.rate, abs=0.02)
    assert noisy.mitigation != exact.mitigation


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"epsilon": 1.0}, "no cuts"),
        ({"cuts": [1.0, 0.0]}, "do not ascend"),
        ({"cuts": [0.0, float("nan")]}, "do not ascend"),
        ({"cuts": []}, "do not ascend"),
        ({"score": "sex", "group": "bought", "label": None}, "no numbers"),
        ({"score": "other"}, "no column 'other'"),
        ({"reach": 1.0}, "reach must be"),
        ({"packs": ["atlantis"]}, "no pack 'atlantis'"),
        ({"packs": ["us"], "facts": {"product.colour": "red"}}, "product.colour"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_refused_in_one_line(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(CohortiumError, match=match):
        group_thresholds_of(scored(200), **{**WANTED, **changes})


def test_with_noise_a_tiny_group_gets_no_threshold() -> None:
    frame = scored(4000)
    frame.loc[:4, "sex"] = "x"
    with pytest.raises(DataError, match="fewer than 50 people"):
        group_thresholds_of(frame, **WANTED, cuts=[0.0], epsilon=3.0)


@pytest.mark.parametrize(
    ("packs", "facts", "rule"),
    [
        (["us"], {"product.category": "card", "features.proxy_test_ref": "test-1"}, "US-ECOA-REGB"),
        (["us"], {}, "US-ECOA-REGB"),
        (["us-ny"], {"product.category": "mortgage"}, "US-NY-296A"),
        (["eu"], {"features.special_category": 1, "cohort.special_without_explicit_consent": 3}, "EU-GDPR-9"),
        (["eu"], {}, "EU-GDPR-9"),
    ],
    ids=str,
)
def test_a_stated_pack_that_forbids_the_group_s_use_or_cannot_tell_refuses(
    packs: list[str], facts: dict[str, Any], rule: str
) -> None:
    with pytest.raises(RefusedError, match=rule) as refusal:
        group_thresholds_of(scored(200), **WANTED, packs=packs, facts=facts)
    assert "confidence" in refusal.value.message


def test_a_fact_that_denies_the_group_s_use_does_not_help() -> None:
    facts = {"product.category": "card", "features.proxy_test_ref": "test-1", "features.prohibited_basis": 0}
    with pytest.raises(RefusedError, match="US-ECOA-REGB"):
        group_thresholds_of(scored(200), **WANTED, packs=["us"], facts=facts)


def test_packs_that_allow_it_change_nothing() -> None:
    frame = scored(400)
    allowed = group_thresholds_of(frame, **WANTED, packs=["us"], facts={"product.category": "deposit"})
    assert allowed == group_thresholds_of(frame, **WANTED)
