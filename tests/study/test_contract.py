"""The feature contract: round trip, digest, and one-line errors that name the place and the fix."""

from __future__ import annotations

import datetime
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cohortium.study.contract import Contract, load_contract, parse_contract
from cohortium.study.errors import ContractError

TEXT = """
schema = "cohortium.contract/1"
name = "shop"
currency = "EUR"
purposes = ["CustomerSegmentation"]

[window]
start = 2024-01-01
end = 2024-07-01

[[tables]]
name = "purchases"
kind = "transactions"
customer = "cid"
time = "day"
amount = "amount"
category = "aisle"

[[tables]]
name = "people"
kind = "customers"
customer = "cid"

[[features]]
name = "recency"
table = "purchases"
kind = "numeric"
derive = "recency"
low = 1
high = 182
missing = 182
block = "behaviour"

[[features]]
name = "spend"
table = "purchases"
kind = "money"
derive = "monetary"
low = 0
high = 1_000
transform = "log1p"
block = "value"

[[features]]
name = "toys"
table = "purchases"
kind = "numeric"
derive = "category_share"
value = "toys"
low = 0
high = 1
missing = 0
block = "product"

[[features]]
name = "region"
table = "people"
kind = "category"
column = "region"
categories = ["north", "south"]
block = "life-stage"

[[features]]
name = "sex"
table = "people"
kind = "category"
column = "sex"
categories = ["f", "m"]
protected = true
"""


def raw() -> dict[str, Any]:
    return tomllib.loads(TEXT)


def message(old: str, new: str) -> str:
    assert old in TEXT
    with pytest.raises(ContractError) as caught:
        parse_contract(TEXT.replace(old, new, 1), "shop.toml")
    return str(caught.value)


def test_the_digest_survives_the_round_trip_and_ignores_layout() -> None:
    contract = parse_contract(TEXT, "shop.toml")
    again = Contract.model_validate(contract.to_json())
    reordered = parse_contract(TEXT.replace('name = "shop"\ncurrency = "EUR"', 'currency = "EUR"\nname = "shop"'), "x")
    assert again == contract
    assert again.digest == contract.digest == reordered.digest
    assert contract.digest.startswith("sha256:")


def test_every_agreed_number_is_in_the_digest() -> None:
    digest = parse_contract(TEXT, "x").digest
    for old, new in (("high = 182", "high = 181.5"), ("2024-07-01", "2024-07-02"), ('"f", "m"', '"m", "f"')):
        text = TEXT.replace(old, new, 1).replace("missing = 182", "missing = 100")
        assert parse_contract(text, "x").digest != digest


def test_training_and_protected_features_are_apart() -> None:
    contract = parse_contract(TEXT, "x")
    assert [feature.name for feature in contract.training_features] == ["recency", "spend", "toys", "region"]
    assert [feature.name for feature in contract.protected_features] == ["sex"]
    assert contract.feature("region").levels == 3
    assert contract.feature("region").unknown_code == 2
    assert contract.feature("region").bounds == (0, 2)
    assert contract.feature("spend").levels == 0
    assert contract.unit_of(contract.feature("spend")) == "EUR"
    assert contract.unit_of(contract.feature("recency")) == "days"
    assert contract.columns_of(contract.table("purchases")) == ("cid", "day", "amount", "aisle")
    assert contract.columns_of(contract.table("people")) == ("cid", "region", "sex")


def test_unknown_names_are_refused_with_the_nearest() -> None:
    contract = parse_contract(TEXT, "x")
    with pytest.raises(ContractError, match="did you mean 'recency'"):
        contract.feature("recncy")
    with pytest.raises(ContractError, match="did you mean 'people'"):
        contract.table("peple")


def test_a_contract_is_frozen() -> None:
    contract = parse_contract(TEXT, "x")
    with pytest.raises(ValidationError):
        contract.name = "other"  # type: ignore[misc]


def test_another_window_is_validated_again() -> None:
    contract = parse_contract(TEXT, "x")
    moved = contract.with_window(datetime.date(2024, 1, 1), datetime.date(2024, 6, 1))
    assert moved.window.days == 152
    assert moved.digest != contract.digest
    with pytest.raises(ContractError, match="end must lie after start"):
        contract.with_window(datetime.date(2024, 1, 1), datetime.date(2024, 1, 1))


@pytest.mark.parametrize(
    ("old", "new", "place", "wrong", "fix"),
    [
        ("derive = ", "deriv = ", "feature 'recency'", "unknown key 'deriv'", "'derive'"),
        ('customer = "cid"', 'custmer = "cid"', "table 'purchases'", "unknown key 'custmer'", "'customer'"),
        ("[window]", "[windw]", "windw", "unknown key", "'window'"),
        ("contract/1", "contract/9", "schema", "unknown schema", "cohortium.contract/1"),
        ('schema = "cohortium.contract/1"', "", "schema", "missing", "add schema"),
        ("start = 2024-01-01", "start = 2025-01-01", "window", "end must lie after start", "exclusive"),
        ("start = 2024-01-01", 'start = "soon"', "window.start", "date", ""),
        ('"EUR"', '"euro"', "currency", "not of the right form", "EUR"),
        ('currency = "EUR"', "", "shop.toml", "holds money", "set currency"),
        ('["CustomerSegmentation"]', "[]", "shop.toml", "purposes must not be empty", "at least one"),
        ("low = 1\n", "low = 200\n", "feature 'recency'", "low must be less than high", ""),
        ("low = 1\n", "low = nan\n", "'recency', low", "finite", ""),
        ("low = 1\n", "low = inf\n", "'recency', low", "finite", ""),
        ("low = 1\n", "low = -1\n", "feature 'recency'", "counts days", "low >= 0"),
        ("low = 1\n", 'low = "1"\n', "'recency', low", "number", ""),
        ("low = 1\n", "low = true\n", "'recency', low", "number", ""),
        ("low = 1\n", "", "feature 'recency'", "needs low and high", "public bounds"),
        ("missing = 182", "missing = 183", "feature 'recency'", "missing must lie within", ""),
        ("missing = 182\n", "", "feature 'recency'", "some people have no value", "set missing"),
        ('block = "behaviour"', 'block = "behavior"', "'recency', block", "'behavior' is not a block", "'behaviour'"),
        ('block = "behaviour"\n', "", "feature 'recency'", "needs block", "protected = true"),
        ('derive = "recency"', 'derive = "recent"', "'recency', derive", "is not a derive", "'recency'"),
        ('derive = "recency"', 'column = "x"\nderive = "gap"', "feature 'recency'", "either column or derive", ""),
        ('kind = "money"', 'kind = "numeric"', "feature 'spend'", "gives a money", "kind = 'money'"),
        ('value = "toys"\n', "", "feature 'toys'", "value belongs to", ""),
        ("high = 1\n", "high = 2\n", "feature 'toys'", "a share lies in 0..1", ""),
        ('category = "aisle"\n', "", "shop.toml", "names no category column", "add category"),
        ('"north", "south"', '"north", "north"', "feature 'region'", "distinct", "'north' repeats"),
        ('"north", "south"', '"north", " south"', "feature 'region'", "blanks", "' south'"),
        ('"north", "south"', '"north", 5', "'region', categories", "string", ""),
        ('categories = ["north", "south"]\n', "", "feature 'region'", "needs categories", ""),
        ('table = "people"', 'table = "peoples"', "feature 'region'", "no table 'peoples'", "'people'"),
        ('name = "people"', 'name = "purchases"', "shop.toml", "distinct names", "'purchases' repeats"),
        ('name = "spend"', 'name = "recency"', "shop.toml", "distinct names", "'recency' repeats"),
        ('name = "spend"', 'name = "id"', "feature 'id'", "taken by the person's id", "another"),
        ('name = "spend"', 'name = "Spend!"', "feature 'Spend!', name", "not of the right form", "small letter"),
        ("protected = true", 'protected = true\nblock = "value"', "feature 'sex'", "no block", "remove"),
        ('column = "region"', 'column = "sex"', "shop.toml", "'sex' protects", "another name"),
        ('time = "day"\n', "", "table 'purchases'", "needs time", "name its column"),
        ('kind = "customers"', 'kind = "customers"\ntime = "t"', "table 'people'", "has no time", "remove it"),
        ("low = 1\n", "low = = 1\n", "shop.toml", "not TOML", "correct that line"),
    ],
)
def test_errors_are_one_line_with_place_and_fix(old: str, new: str, place: str, wrong: str, fix: str) -> None:
    text = message(old, new)
    assert "\n" not in text
    assert text.startswith("shop.toml")
    for part in (place, wrong, fix, "fix:"):
        assert part in text


def test_a_contract_needs_something_to_train_on() -> None:
    data = raw()
    data["features"] = data["features"][-1:]
    with pytest.raises(ValidationError, match="every feature is protected"):
        Contract.model_validate(data)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"none.toml: .*fix"):
        load_contract(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ContractError, match="not UTF-8"):
        load_contract(tmp_path / "binary.toml")


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "shop.toml"
    file.write_text(TEXT, encoding="utf-8")
    assert load_contract(file) == parse_contract(TEXT, "shop.toml")


@given(low=st.floats(), high=st.floats(), missing=st.floats())
def test_accepted_bounds_are_finite_ordered_and_hold_the_fill_value(low: float, high: float, missing: float) -> None:
    data = raw()
    data["features"][0] |= {"low": low, "high": high, "missing": missing}
    try:
        feature = Contract.model_validate(data).feature("recency")
    except ValidationError:
        return
    assert feature.missing is not None
    assert 0 <= feature.bounds[0] < feature.bounds[1] < float("inf")
    assert feature.bounds[0] <= feature.missing <= feature.bounds[1]


@given(key=st.text(alphabet="abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12))
def test_no_unknown_key_is_ever_swallowed(key: str) -> None:
    data = raw()
    if key in data["features"][0] or key in {"unit", "integer", "transform", "date_format"}:
        return
    data["features"][0][key] = 1
    with pytest.raises(ValidationError):
        Contract.model_validate(data)
