"""Every example of the documentation is run.

The convention, for README.md and every page of docs/:

- Each page has one temporary folder, in which its examples run from top to bottom. It holds a copy of
  `docs/sample-report`, and `purchases.csv`: made-up purchases that fit the starter contract, with a column `region`.
- ```bash: every line begins with `cohortium` and is run, or with one of NOT_RUN and is not. `> FILE` keeps its output.
  A block without a language that calls `cohortium` is taken for bash; any other is text.
- ```console: the same for the lines that begin with `$ `; all others are output, which is not compared.
- ```python: run; one namespace per page. A block with `>>>` is run as a doctest.
- `<!-- file: NAME -->` in the line above a block: the block is written to NAME.
- `<!-- exit: N -->` in the line above a block: its last command ends with N; all others end with 0.
- `<!-- prints -->` in the line above a block of text: the last command before it printed that. Line breaks do not
  count, and `…` stands for anything.
- `<!-- not run: REASON -->` in the line above a block: it is not run.
- `$NAME` in a command is the value of NAME in the page's Python.
- A page of GOES_ON is run in the folder that another page leaves, in the same test.
- Blocks that fetch a public set are run after all others of their page, in a test of their own that skips when the set
  is out of reach.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import logging
import re
import shlex
import shutil
import string
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cohortium.cli.main import main
from cohortium.simulations import datasets

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]
NOT_RUN = (
    "#",
    "make",
    "git",
    "python",
    "python3",
    "pip",
    ".venv/bin/python",
    ".venv/bin/pip",
    "source",
    "export",
    "cd",
)
LANGUAGES = ("bash", "console", "python")
COHORTIUM = ("cohortium", ".venv/bin/cohortium")
DEMO_SET = "ta-feng"
GOES_ON = {"docs/refusals.md": "docs/reviewer-guide.md"}
"""Pages that take long to begin with, and the page that begins with the same."""


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


def wanted(page: Path, online: bool) -> list[Example]:
    """Files to write, and examples to run with or without the network."""
    return [
        example
        for example in examples(page)
        if example.file
        or (example.prints and not online)
        or (example.language in LANGUAGES and (example.public_set is not None) == online)
    ]


def params(online: bool) -> list[Any]:
    """The pages that have something to run; those that simulate take a while."""
    found = []
    for page in PAGES:
        if name_of(page) in GOES_ON:
            continue
        todo = [example for example in wanted(page, online) if example.language in LANGUAGES and not example.not_run]
        if todo:
            long = any(word in example.text for example in todo for word in ("cohortium demo", "cohortium simulate"))
            found.append(pytest.param(page, id=name_of(page), marks=[pytest.mark.slow] if long else []))
    return found


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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "docs" / "sample-report", tmp_path / "docs" / "sample-report")
    purchases().to_csv(tmp_path / "purchases.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", params(online=False))
def test_the_examples_of_a_page_run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_all(wanted(page, online=False), monkeypatch)
    for other in (ROOT / later for later, begins in GOES_ON.items() if begins == name_of(page)):
        run_all(wanted(other, online=False), monkeypatch)


@pytest.mark.online
@pytest.mark.parametrize("page", params(online=True) or [pytest.param(None, marks=pytest.mark.skip("no such example"))])
def test_the_examples_that_fetch_run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    todo = wanted(page, online=True)
    for name in sorted({example.public_set for example in todo if example.public_set}):
        if reason := datasets.unavailable_reason(name):
            pytest.skip(reason)
    run_all(todo, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_example_follows_the_convention(page: Path) -> None:
    for example in examples(page):
        place = f"{name_of(page)}:{example.line}"
        if example.language in ("bash", "console") and not example.file:
            assert example.commands, f"{place}: no command"
            for words in example.commands:
                assert words[0] in ("cohortium", *NOT_RUN), f"{place}: '{words[0]}' is neither run nor known"


def test_a_page_that_goes_on_is_run_after_one_that_is_run() -> None:
    for later, begins in GOES_ON.items():
        assert ROOT / later in PAGES
        assert begins in [param.id for param in params(online=False)]


def test_a_block_of_output_is_compared_with_what_was_printed() -> None:
    assert printed("error: … refused\n", "error: the plan is\nrefused — fix: another")
    assert not printed("error: … refused\n", "refused — error: the plan")
    assert not printed("error: refused\n", "error: the plan is refused")
    assert not printed("anything", "")


def run_all(todo: list[Example], monkeypatch: pytest.MonkeyPatch) -> None:
    namespace: dict[str, Any] = {"__name__": "example"}
    output = ""
    for example in todo:
        place = f"{name_of(example.page)}:{example.line}"
        if example.file:
            Path(example.file).parent.mkdir(parents=True, exist_ok=True)
            Path(example.file).write_text(example.text, encoding="utf-8")
        elif example.not_run:
            continue
        elif example.prints:
            assert printed(example.text, output), f"{place}: printed was\n{output}"
        elif example.language == "python":
            run_python(example.text, place, namespace)
        else:
            output = run_commands(example, place, namespace, monkeypatch)


def printed(wanted: str, output: str) -> bool:
    """Whether the parts between `…` stand in the output, in their order and whole."""
    parts = [re.escape(" ".join(part.split())) for part in wanted.split("…")]
    return re.search(r"\s?.*?\s?".join(parts), " ".join(output.split())) is not None


def run_python(text: str, place: str, namespace: dict[str, Any]) -> None:
    if ">>>" not in text:
        exec(compile(text, place, "exec"), namespace)  # noqa: S102 - the documentation's own code
        return
    test = doctest.DocTestParser().get_doctest(text, namespace, place, place, 0)
    report = io.StringIO()
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=report.write, clear_globs=False)
    namespace.update(test.globs)
    assert not report.getvalue(), report.getvalue()


def run_commands(example: Example, place: str, namespace: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a block's commands; what the last one printed."""
    ours, output = [words for words in example.commands if words[0] == "cohortium"], ""
    for number, words in enumerate(ours, start=1):
        expected = example.exit_code if number == len(ours) else 0
        code, output = run_cohortium([string.Template(word).substitute(namespace) for word in words], monkeypatch)
        assert code == expected, f"{place}: {shlex.join(words)} ended with {code}\n{output}"
    return output


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
