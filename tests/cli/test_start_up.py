"""A command imports what it needs and no more; a list of nouns imports none of them."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from typer.core import TyperGroup
from typer.main import get_command

from cohortium.cli.main import app

CALL = """
import sys
from cohortium.cli.main import main

sys.argv = ["cohortium", *sys.argv[1:]]
try:
    main()
except SystemExit:
    print(*sys.modules, file=sys.stderr)
"""


def whole() -> TyperGroup:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    return group


@pytest.mark.parametrize("name", list(whole().commands))
def test_a_noun_is_listed_under_the_line_that_its_own_help_begins_with(name: str) -> None:
    group = whole()
    listed, noun = group.get_command(click.Context(group), name), group.commands[name]
    assert listed is not None
    assert noun.help is not None
    assert noun.name == listed.name == name
    assert listed.help == " ".join(noun.help.split("\n\n")[0].split())
    assert (noun.hidden, noun.deprecated) == (False, False)


def test_every_noun_is_listed() -> None:
    group = whole()
    assert group.list_commands(click.Context(group)) == list(group.commands)


@pytest.mark.parametrize(
    ("words", "left_out"),
    [
        ("--help", ("numpy", "flwr", "pydantic")),
        ("simulate --help", ("dp_accounting", "flwr.simulation", "cohortium.cli.audience")),
        ("node start --help", ("sklearn", "pandas", "scipy.stats")),
    ],
)
def test_what_a_command_does_not_need_is_not_imported(words: str, left_out: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-c", CALL, *words.split()], capture_output=True, text=True, check=True)
    imported = set(done.stderr.split())
    assert "cohortium.cli.main" in imported
    assert imported.isdisjoint(left_out)
