"""HTML and SVG that cannot be broken out of: whatever is not `Html` already is escaped."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Sequence

__all__ = [
    "Attribute",
    "Child",
    "Html",
    "definitions",
    "figure",
    "items",
    "join",
    "paragraph",
    "section",
    "table",
    "tag",
]

_VOID = frozenset({"meta", "br"})
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Html(str):
    """Markup built by this module. Adding a plain `str` gives a plain `str`, which is escaped again: it fails safe."""

    __slots__ = ()


Child = str | int
Attribute = str | int | float


def text(value: Child) -> Html:
    """Text for content and attributes: escaped, with control and direction-changing characters made visible."""
    if isinstance(value, Html):
        return value
    return Html(html.escape("".join(_visible(character) for character in str(value))))


def tag(name: str, /, *children: Child, **attributes: Attribute) -> Html:
    """An element; `class_` stands for class, and `_` for `-` in attribute names."""
    written = "".join(f' {_attribute_name(key)}="{_attribute(value)}"' for key, value in attributes.items())
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(parts: Iterable[Child]) -> Html:
    """Parts one after the other."""
    return Html("".join(text(part) for part in parts))


def paragraph(*children: Child, note: bool = False) -> Html:
    """A paragraph; a note is set small."""
    return tag("p", *children, class_="note") if note else tag("p", *children)


def section(anchor: str, title: str, *children: Child) -> Html:
    """A section with its heading, which names it for assistive technology."""
    heading = tag("h2", title, id=f"{anchor}-title")
    return tag("section", heading, *children, id=anchor, aria_labelledby=f"{anchor}-title")


def items(entries: Iterable[Child]) -> Html:
    """A bulleted list."""
    return tag("ul", *(tag("li", entry) for entry in entries))


def definitions(entries: Iterable[tuple[str, Child]]) -> Html:
    """Terms and what they mean or hold."""
    return tag("dl", *(tag("div", tag("dt", term), tag("dd", meaning)) for term, meaning in entries))


def figure(drawing: Html, caption: Child, class_: str = "chart") -> Html:
    """A drawing with a caption; it scrolls sideways where the screen is narrower than it can be read."""
    return tag("figure", tag("div", drawing, class_="scroll"), tag("figcaption", caption), class_=class_)


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[Child]],
    numeric: Sequence[int] = (),
    class_: str = "data",
) -> Html:
    """A table whose first column heads its rows; `numeric` columns align right. Wide ones scroll sideways."""
    classes = ["n" if column in numeric else "t" for column in range(len(head))]
    top = tag("tr", *(tag("th", title, scope="col", class_=name) for title, name in zip(head, classes, strict=True)))
    body = join(_row(row, classes) for row in rows)
    whole = tag("table", tag("caption", caption), tag("thead", top), tag("tbody", body), class_=class_)
    return tag("div", whole, class_="scroll", role="region", tabindex=0, aria_label=caption)


def _row(cells: Sequence[Child], classes: Sequence[str]) -> Html:
    first, *others = zip(cells, classes, strict=True)
    return tag(
        "tr",
        tag("th", first[0], scope="row", class_=first[1]),
        *(tag("td", cell, class_=name) for cell, name in others),
    )


def _attribute_name(key: str) -> str:
    return key.removesuffix("_").replace("_", "-")


def _attribute(value: Attribute) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else text(value)


def _visible(character: str) -> str:
    if character in "\n\t":
        return " "
    return _REPLACEMENT if character in _BIDI or unicodedata.category(character) in {"Cc", "Cs"} else character
