"""Validation errors in the document's words: one line, the place a reader can find, a fix."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, StringConstraints, ValidationError, model_validator

from cohortium.study.document import Agreed
from cohortium.study.validation import first_problem, first_repeat, suggestion

FORM = r"^[a-z]+$"


class Part(Agreed):
    name: Annotated[str, StringConstraints(pattern=FORM)]
    kind: Literal["red", "green"] = "red"
    size: Annotated[int, Field(ge=1)] = 1


class Whole(Agreed):
    schema_id: Annotated[Literal["test/1"], Field(alias="schema")] = "test/1"
    title: str
    parts: tuple[Part, ...] = ()
    single: Part | None = None

    @model_validator(mode="after")
    def _sensible(self) -> Whole:
        if self.title == "bad":
            raise ValueError("the title is bad; choose another")
        if self.title == "worse":
            raise ValueError("The title is worse")
        return self


def problem(raw: dict[str, Any]) -> tuple[str, str, str]:
    with pytest.raises(ValidationError) as caught:
        Whole.model_validate(raw)
    return first_problem(caught.value, raw, Whole, {FORM: "use small letters"})


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({}, ("title", "'title' is missing", "add title = …")),
        ({"title": "a", "tile": 1}, ("tile", "unknown key 'tile'", "did you mean 'title'?")),
        ({"tile": "a"}, ("tile", "unknown key 'tile' (and 1 more)", "did you mean 'title'?")),
        ({"title": "a", "schema": "x"}, ("schema", "unknown schema", None)),
        ({"title": "bad"}, ("", "the title is bad", "choose another")),
        ({"title": "worse"}, ("", "the title is worse", "correct the value")),
        ({"title": "a", "parts": [{"name": "b", "size": 0}]}, ("part 'b', size", None, "correct the value")),
        ({"title": "a", "parts": [{"size": 2}]}, ("part number 1, name", "'name' is missing", "add name = …")),
        ({"title": "a", "parts": [{"name": "b"}, 7]}, ("part number 2", None, None)),
        ({"title": "a", "parts": [{"name": "B"}]}, ("part 'B', name", "'B' is not of the right form", "use small letters")),  # noqa: E501
        ({"title": "a", "single": {"name": "b", "kind": "gren"}}, ("single.kind", "'gren' is not a kind", "did you mean 'green'?")),  # noqa: E501
        ({"title": "a", "single": {"name": "b", "sise": 1}}, ("single.sise", "unknown key 'sise'", "did you mean 'size'?")),  # noqa: E501
        ({"title": "a", "parts": [{"name": "b", "sise": 1}]}, ("part 'b', sise", "unknown key 'sise'", "did you mean 'size'?")),  # noqa: E501
    ],
    ids=str,
)  # fmt: skip
def test_the_first_problem_in_words(raw: dict[str, Any], expected: tuple[str | None, ...]) -> None:
    for part, wanted in zip(problem(raw), expected, strict=True):
        assert wanted is None or part == wanted


@pytest.mark.parametrize(
    "raw",
    [
        {"title": "a", "a\nb": 1},
        {"title": "a", "parts": [{"name": "a\nb"}]},
        {"title": "a", "parts": [{"name": "b", "kind": "a\nb"}]},
        {"title": "a", "parts": [{"name": "B" * 10_000}]},
        {"title": "a", "parts": [{"name": "b", "kind": "x" * 10_000}]},
        {"title": "a", "x" * 10_000: 1},
    ],
    ids=lambda raw: repr(raw)[:40],
)
def test_whatever_the_document_holds_it_is_one_short_line(raw: dict[str, Any]) -> None:
    for part in problem(raw):
        assert "\n" not in part
        assert len(part) < 200


def test_without_a_near_name_all_are_offered() -> None:
    assert suggestion("zzz", ["alpha", "beta"]) == "use one of alpha, beta"
    assert suggestion("alpa", ["alpha", "beta"]) == "did you mean 'alpha'?"
    assert suggestion("zzz", [f"n{i}" for i in range(1000)]).count(",") == 23


def test_the_first_repeat() -> None:
    assert first_repeat(["a", "b", "a", "b"]) == "a"
    assert first_repeat(["a", "b"]) is None
    assert first_repeat([]) is None
