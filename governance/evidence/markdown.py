"""Markdown from texts that others chose: names and reasons stay words, whatever is in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["bullets", "plain", "table", "yaml_text"]

_MARKS = frozenset("\\`*_[]<>#|~")
_YAML_ESCAPES = {'"': '\\"', "\\": "\\\\"}


def plain(text: str) -> str:
    """A text as one line in which nothing is markup, and nothing that a terminal would obey."""
    shown = "".join(each if each.isprintable() else " " for each in text)
    return "".join("\\" + each if each in _MARKS else each for each in " ".join(shown.split()))


def bullets(texts: Iterable[str]) -> list[str]:
    """A list, one line each."""
    return [f"- {plain(text)}" for text in texts]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table, one line a row."""
    lines = [list(heads), ["---"] * len(heads), *([plain(cell) for cell in row] for row in rows)]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def yaml_text(text: str) -> str:
    """A text as a double-quoted YAML scalar (YAML 1.2.2, 7.3.1): what is not printable is escaped."""
    return '"' + "".join(_escaped(each) for each in text) + '"'


def _escaped(character: str) -> str:
    if character in _YAML_ESCAPES or character.isprintable():
        return _YAML_ESCAPES.get(character, character)
    return f"\\U{ord(character):08x}"
