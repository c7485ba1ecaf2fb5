"""Pages of the documentation: their fenced blocks, and the commands in them, run in this process."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cohortium.cli.main import main
from cohortium.simulations import datasets

ROOT = Path(__file__).resolve().parents[2]
DEMO_SET = "ta-feng"
NOT_RUN = (
    "#",
    "make",
    "git",
    "python",
    "python3",
    "pip",
    ".venv/bin/python",
    ".venv/bin/pip",
    "curl",
    "source",
    "export",
    "cd",
)
LANGUAGES = ("bash", "console", "python")
COHORTIUM = ("cohortium", ".venv/bin/cohortium")


@dataclass(frozen=True)
class Example:
    """A fenced block."""

    page: Path
    line: int
    language: str
    text: str
    note: str

    @property
    def commands(self) -> list[list[str]]:
        """The command lines, as words; continued lines are one."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        split = [words for line in lines if (words := shlex.split(line, comments=True))]
        return [["cohortium", *words[1:]] if words[0] in COHORTIUM else words for words in split]

    @property
    def file(self) -> str | None:
        return self._noted("file")

    @property
    def not_run(self) -> bool:
        return self._noted("not run") is not None

    @property
    def prints(self) -> bool:
        """Whether it is what the last command printed."""
        return self.note == "prints"

    @property
    def exit_code(self) -> int:
        return int(self._noted("exit") or 0)

    @property
    def public_set(self) -> str | None:
        """The public set that the block fetches, if any."""
        if self.language == "python":
            found = [name for name in datasets.names() if f'fetch("{name}"' in self.text]
            return found[0] if found else None
        for words in self.commands:
            if words[:2] == ["cohortium", "demo"] and "--synthetic" not in words:
                return DEMO_SET
            named = [word for word in words[1:] if word in datasets.names()]
            if named and words[1] != "init" and "--from" not in words:
                return named[0]
        return None

    def _noted(self, key: str) -> str | None:
        return self.note.removeprefix(f"{key}:").strip() if self.note.startswith(f"{key}:") else None


def examples(page: Path) -> Iterator[Example]:
    """The page's fenced blocks in order."""
    lines = page.read_text(encoding="utf-8").splitlines() if page.exists() else []
    start: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
            continue
        above = re.fullmatch(r"<!-- (.*) -->", lines[start - 1].strip()) if start else None
        text = "\n".join(lines[start + 1 : number]) + "\n"
        ours = any(row.startswith(COHORTIUM) for row in lines[start + 1 : number])
        language = lines[start].strip("`").strip() or ("bash" if ours and not _is_tree(text) else "text")
        yield Example(page, start + 1, language, text, above[1] if above else "")
        start = None


def _is_tree(text: str) -> bool:
    """Whether a block lists files rather than commands."""
    return any(re.match(r"\S+/\s", line) for line in text.splitlines())


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def purchases() -> pd.DataFrame:
    """9,000 purchases of 900 people who do not exist."""
    rng = np.random.default_rng(0)
    customer = rng.integers(0, 900, 9_000)
    return pd.DataFrame(
        {
            "customer_id": [f"C{number:05d}" for number in customer],
            "date": np.datetime64("2026-01-01") + rng.integers(0, 181, 9_000).astype("timedelta64[D]"),
            "amount": np.exp(rng.normal(3 + customer % 3, 0.6)).round(2),
            "region": np.array(["north", "south", "west"])[customer % 7 % 3],
        }
    )


def printed(wanted: str, output: str) -> bool:
    """Whether the parts between `…` stand in the output, in their order and whole."""
    parts = [re.escape(" ".join(part.split())) for part in wanted.split("…")]
    return re.search(r"\s?.*?\s?".join(parts), " ".join(output.split())) is not None


def run_cohortium(words: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Exit code and output of a command, run in this process: imports once, not once for each."""
    words, target = (words[:-2], words[-1]) if ">" in words[-2:-1] else (words, None)
    monkeypatch.setattr(sys, "argv", words)
    out, errors = io.StringIO(), io.StringIO()
    code: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors), warnings_to(errors):
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code or 0
    if target is not None:
        Path(target).write_text(out.getvalue(), encoding="utf-8")
    return int(str(code)), out.getvalue() + errors.getvalue()


@contextlib.contextmanager
def warnings_to(stream: io.StringIO) -> Iterator[None]:
    """What is logged is printed, as on a terminal; pytest takes it for itself."""
    logger, handler = logging.getLogger("cohortium"), logging.StreamHandler(stream)
    handler.setLevel(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
