"""The card in Markdown: a metadata block that YAML readers read, and texts that stay texts."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from cohortium.governance.evidence import card_markdown, model_card
from cohortium.governance.evidence.markdown import plain, yaml_text
from cohortium.study.contract import parse_contract
from cohortium.study.errors import DataError

from .released import audit, bundle, campaign, contract, encoder

HOSTILE = (
    "two\nlines",
    'a "quoted" name',
    "key: value",
    "---",
    "\\ back",
    "# not a title",
    "tab\tand\rreturn",
    "\u2028separator\x85next\x7f\x00\ufeff",
    "emoji \U0001f600 and ünicode",
    "{flow: [1]}",
    "  padded  ",
    "",
)


def front_matter(text: str) -> dict[str, Any]:
    first, block, _ = text.split("---\n", 2)
    assert first == ""
    found = yaml.safe_load(block)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("text", HOSTILE)
def test_a_quoted_text_is_read_back_by_a_yaml_parser(text: str) -> None:
    assert yaml.safe_load(f"- name: {yaml_text(text)}\n") == [{"name": text}]


@pytest.mark.parametrize("text", HOSTILE)
def test_the_metadata_holds_whatever_the_name_is(text: str) -> None:
    card = model_card(campaign()).model_copy(update={"name": text})
    found = front_matter(card_markdown(card))
    assert found["model-index"][0]["name"] == text


def test_the_metadata_of_a_campaign_has_its_auc_as_the_format_wants_it() -> None:
    found = front_matter(card_markdown(model_card(campaign())))
    (result,) = found["model-index"][0]["results"]
    auc = campaign().document.quality.auc
    assert auc is not None
    assert result["task"]["type"] == "tabular-classification"
    assert set(result["dataset"]) >= {"type", "name"}
    (metric,) = result["metrics"]
    assert metric["type"] == "roc_auc"
    assert metric["value"] == pytest.approx(auc.value, abs=5e-5)
    assert found["metrics"] == ["roc_auc"]
    assert found["license"] == "unknown"
    assert "lookalike" in found["tags"]


def test_the_metadata_of_others_claims_no_result() -> None:
    for released in (bundle(), encoder()):
        assert "model-index" not in front_matter(card_markdown(model_card(released)))


def test_what_people_wrote_is_no_markup() -> None:
    assert plain("a|b\n# c <b>*d*</b>") == "a\\|b \\# c \\<b\\>\\*d\\*\\</b\\>"
    assert plain("a\x1b[31mb\u202ec") == "a \\[31mb c"  # escape sequences and turned writing
    text = card_markdown(model_card(bundle(names=("a | b", "# c\n## d"))))
    assert "\n## d" not in text
    rows = [line for line in text.splitlines() if "1: a" in line]
    assert len(rows) == 1
    assert rows[0].replace("\\|", "").count("|") == 5


def test_figures_have_the_digits_that_their_noise_supports() -> None:
    text = card_markdown(model_card(bundle()))
    assert "| size | 1: loyal | 1,200 people | standard deviation 41 |" in text
    assert "| size | 2: lapsed | suppressed, or hidden by noise |  |" in text
    assert "| lloyd | moments | 2, and 1 attempt that came to nothing | 4 | 75.0% |" in text
    assert "at most 1 collude" in text


def test_with_its_contract_the_card_shows_features_by_block() -> None:
    text = card_markdown(model_card(campaign()), contract())
    assert "| value | monetary | money | 0 to 50,000 EUR |" in text
    assert "| life-stage | home\\_region | category | north, east, south, west |" in text
    assert "age\\_group" not in text  # protected: the model does not read it


def test_another_contract_is_refused() -> None:
    other = parse_contract(
        'schema = "cohortium.contract/1"\nname = "other"\npurposes = ["Lookalike"]\n'
        "window = {start = 2025-01-01, end = 2026-01-01}\n"
        'tables = [{name = "people", kind = "customers", customer = "id"}]\n'
        'features = [{name = "age", table = "people", kind = "numeric", column = "age", low = 0, high = 99, '
        'missing = 0, block = "value"}]\n',
        "test",
    )
    with pytest.raises(DataError, match="not the contract of this card"):
        card_markdown(model_card(campaign()), other)


def test_an_audit_is_shown_with_intervals_and_with_what_was_not_judged() -> None:
    result = audit(campaign().digest, groups=16)
    text = card_markdown(model_card(campaign(), (result,)))
    first = next(one for one in result.metrics if one.verdict == "fail")
    assert first.high is not None
    assert f"| fail | impact-ratio | sex: w0 | {first.estimate:.3f} | {first.low:.3f} to {first.high:.3f} |" in text
    assert "**fail**, level balanced: " in text
    assert "- impact-ratio (sex: unknown): fewer people expected than the minimum cell" in text
    poor = [one for one in result.metrics if one.verdict in ("fail", "inconclusive")]
    assert f"And {len(poor) - 12} more that do not pass." in text
    assert "nothing is known of bias" not in text


def test_a_release_without_noise_claims_no_epsilon() -> None:
    text = card_markdown(model_card(bundle(trust="unsafe-none")))
    assert "**No privacy.**" in text
    assert "Epsilon" not in text.split("## Quality", maxsplit=1)[0]
    assert "Epsilon 1 at delta 1e-6" in card_markdown(model_card(bundle()))
