"""Validation errors of agreed documents in one line: where, what, and how to mend it."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

__all__ = ["first_problem", "first_repeat", "suggestion"]

_MOST_CHARACTERS = 64


def first_problem(
    error: ValidationError, raw: Mapping[str, Any], root: type[BaseModel], forms: Mapping[str, str]
) -> tuple[str, str, str]:
    """The first thing wrong in a document: place inside it, message, fix; further problems are only counted.

    Unknown keys come first: a field that is missing is most often one that was misspelt, and the fix names it.

    Args:
        error: what pydantic found.
        raw: the document.
        root: the model the document was validated against.
        forms: for patterns used by the models, what they ask for in words.
    """
    problems = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
    message, fix = _explained(problems[0], root, forms)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return _spot(problems[0]["loc"], raw), message + more, fix


def suggestion(name: str, known: Iterable[str]) -> str:
    """The nearest known name as a question, or the known names."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"use one of {', '.join(itertools.islice(names, 24))}"


def first_repeat(names: Iterable[str]) -> str | None:
    """The first name that occurs a second time."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _explained(problem: ErrorDetails, root: type[BaseModel], forms: Mapping[str, str]) -> tuple[str, str]:
    """What is wrong and what to do, in the document's words rather than the validator's."""
    kind, loc = problem["type"], problem["loc"]
    field = str(loc[-1]) if loc else ""
    if kind == "extra_forbidden":
        return f"unknown key '{_line(field)}'", suggestion(field, _fields_at(root, loc))
    if kind == "missing":
        return f"'{field}' is missing", f"add {field} = …"
    if field == "schema":
        expected = re.findall(r"'([^']*)'", str(problem.get("ctx", {}).get("expected", "")))
        return "unknown schema", f'set schema = "{"".join(expected)}", or install the version that reads this one'
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        return f"'{_line(problem['input'])}' is not a {field}", suggestion(str(problem["input"]), choices)
    if kind == "string_pattern_mismatch":
        form = forms.get(problem["ctx"]["pattern"], "shorten it")
        return f"'{_line(problem['input'])}' is not of the right form", form
    message, _, fix = problem["msg"].removeprefix("Value error, ").partition("; ")
    return message[:1].lower() + message[1:], fix or "correct the value"


def _fields_at(root: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys that the document may have where `loc` points."""
    model = root
    for part in loc[:-1]:
        if isinstance(part, str) and part in model.model_fields:
            model = next(_models_in(model.model_fields[part].annotation), model)
    return [field.alias or name for name, field in model.model_fields.items()]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _spot(loc: tuple[int | str, ...], raw: Mapping[str, Any]) -> str:
    """`feature 'recency', low` from ('features', 0, 'low'); `shares.rfm` from ('shares', 'rfm')."""
    if len(loc) > 1 and isinstance(loc[1], int) and isinstance(raw.get(str(loc[0])), list):
        item = raw[str(loc[0])][loc[1]]
        name = item.get("name") if isinstance(item, dict) else None
        named = f"'{_line(name)}'" if isinstance(name, str) else f"number {loc[1] + 1}"
        return ", ".join([f"{str(loc[0]).removesuffix('s')} {named}", *map(_line, loc[2:])])
    return ".".join(_line(part) for part in loc if not str(part).startswith(("constrained-", "tuple[")))


def _line(value: object) -> str:
    """What a document holds, as part of one line: without line breaks, and not at length."""
    text = " ".join(str(value).split())
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "…"
