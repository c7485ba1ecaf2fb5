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
- A page of FOLLOWED is run elsewhere.
- A page of GOES_ON is run in the folder that another page leaves, in the same test.
- Blocks that fetch a public set are run after all others of their page, in a test of their own that skips when the set
  is out of reach.
"""

from __future__ import annotations

import doctest
import io
import shlex
import shutil
import string
from pathlib import Path
from typing import Any

import pytest

from cohortium.simulations import datasets

from .pages import LANGUAGES, NOT_RUN, ROOT, Example, examples, name_of, printed, purchases, run_cohortium

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]
GOES_ON = {"docs/refusals.md": "docs/reviewer-guide.md"}
"""Pages that take long to begin with, and the page that begins with the same."""
FOLLOWED = ("docs/partners-guide.md", "docs/coordinators-guide.md")
"""Pages that test_guides.py follows, by several institutions at once."""


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
        if name_of(page) in (*GOES_ON, *FOLLOWED):
            continue
        todo = [example for example in wanted(page, online) if example.language in LANGUAGES and not example.not_run]
        if todo:
            long = any(word in example.text for example in todo for word in ("cohortium demo", "cohortium simulate"))
            found.append(pytest.param(page, id=name_of(page), marks=[pytest.mark.slow] if long else []))
    return found


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
