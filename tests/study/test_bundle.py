"""Bundles: one canonical document, read back exactly, refused when anything does not hold together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cohortium.study.bundle import AxisScale, Bundle, KChoice, MeanEstimate, ReleaseRecord, Segment, load_bundle
from cohortium.study.errors import DataError
from cohortium.study.plan import Plan


@pytest.fixture
def bundle(make_plan: Callable[..., Plan]) -> Bundle:
    record = {"phase": "marginals", "step": 0, "attempt": 1, "kind": "marginals", "question": "sha256:" + "0" * 64}
    return Bundle(
        plan=make_plan(),
        run="0" * 32,
        institutions=3,
        scaler=(AxisScale(feature="spend", log=True, low=0.0, high=7.5),),
        segments=(
            Segment(
                id=1,
                name="high spend",
                centre=(0.1,),
                size=812.25,
                size_std=3.5,
                means=(MeanEstimate(feature="spend", mean=1e300, low=-0.0, high=5e-324),),
                rules=("spend > 4",),
            ),
            Segment(id=2, name="segment 2", centre=(-1.0,), size=None, size_std=3.5),
        ),
        customers=812.25,
        explained=None,
        k_choices=(KChoice(k=2, silhouette=None, cost=0.5),),
        rfm=None,
        releases=(ReleaseRecord(**record, width=7, sigma=str(2**70), mu2=5, tv=0, institutions=3),),
    )


def test_a_bundle_is_read_back_exactly(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "bundle.json"
    path.write_bytes(bundle.to_bytes())
    again = load_bundle(path)
    assert again == bundle
    assert again.to_bytes() == bundle.to_bytes()
    assert again.digest == bundle.digest
    assert again.plan.digest == bundle.plan.digest


def test_what_is_suppressed_is_absent_and_not_zero(bundle: Bundle) -> None:
    shown, hidden = bundle.segments
    assert (shown.suppressed, hidden.suppressed) == (False, True)
    assert bundle.to_json()["segments"][1]["size"] is None


@pytest.mark.parametrize("part", ["scaler", "means", "rfm"])
def test_a_bundle_shows_nothing_of_a_feature_that_its_plan_leaves_out(part: str, bundle: Bundle) -> None:
    document = bundle.to_json()
    document["plan"]["without"] = ["score"]
    assert Bundle.model_validate(document).plan.without == ("score",)
    if part == "rfm":
        edges = {"visits": [1, 2, 3, 4], "score": [1, 2, 3, 4]}
        grid = {"recency": "visits", "frequency": "score", "monetary": None, "edges": edges, "bands": {}}
        document["rfm"] = {**grid, "cells": [], "size_std": 1.0}
    else:
        named = document["scaler"] if part == "scaler" else document["segments"][0]["means"]
        named[0]["feature"] = "score"
    with pytest.raises(ValueError, match="'score', which its plan leaves out"):
        Bundle.model_validate(document)


def test_an_attempt_that_came_to_nothing_stays_on_record(bundle: Bundle, tmp_path: Path) -> None:
    (paid,) = bundle.releases
    failed = paid.model_copy(update={"institutions": 0})
    both = bundle.model_copy(update={"releases": (failed, paid.model_copy(update={"attempt": 2}))})
    path = tmp_path / "bundle.json"
    path.write_bytes(both.to_bytes())
    assert load_bundle(path) == both


def put(path: list[Any], value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return change


BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another schema": put(["schema"], "cohortium.bundle/2"),
    "a key more": put(["more"], 1),
    "a key more inside": put(["segments", 0, "more"], 1),
    "a key less": lambda d: d.pop("releases"),
    "a centre too long": put(["segments", 0, "centre"], [0.0, 0.0]),
    "a centre that is no number": put(["segments", 0, "centre"], ["x"]),
    "ids that skip": put(["segments", 1, "id"], 3),
    "ids that repeat": put(["segments", 1, "id"], 1),
    "no institutions": put(["institutions"], 0),
    "a negative charge": put(["releases", 0, "mu2"], -1),
    "a plan of an unknown trust": put(["plan", "trust"], "none"),
    "an unsafe plan": put(["plan", "trust"], "distributed"),
    "fewer institutions than none": put(["releases", 0, "institutions"], -1),
    "a plan below the house limit": put(["plan", "min_cell"], 10),
    "an integer beyond JSON's exact ones": put(["releases", 0, "mu2"], 2**53),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_does_not_hold_together_is_refused(how: str, bundle: Bundle, tmp_path: Path) -> None:
    document = bundle.to_json()
    BROKEN[how](document)
    path = tmp_path / "bundle.json"
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match="not a bundle of this version"):
        load_bundle(path)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[]", b"null", b'{"customers": NaN}', b"[" * 100_000])
def test_what_is_no_json_object_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bundle.json"
    path.write_bytes(data)
    with pytest.raises(DataError, match="not a bundle"):
        load_bundle(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_none_are_refused(number: str, bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "bundle.json"
    path.write_text(json.dumps({**bundle.to_json(), "customers": float(number.replace("Infinity", "inf"))}))
    assert number in path.read_text()
    with pytest.raises(DataError):
        load_bundle(path)


def test_a_bundle_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "bundle.json", tmp_path):
        with pytest.raises(DataError, match="cannot be read") as caught:
            load_bundle(path)
        assert caught.value.place == str(path)
