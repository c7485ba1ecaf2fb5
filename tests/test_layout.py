"""The house: rooms and their rules, no second copy of a module, and a wheel that has everything in it."""

from __future__ import annotations

import ast
import tomllib
import zipfile
from collections import Counter
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("study", "models", "privacy", "governance", "client", "server", "simulations", "cli")
ALLOWED = {
    "study": set[str](),
    "privacy": {"study"},
    "models": {"privacy", "study"},
    "governance": {"models", "privacy", "study"},
    "client": {"governance", "models", "privacy", "study"},
    "server": {"governance", "models", "privacy", "study"},
    "simulations": {"client", "governance", "models", "privacy", "server", "study"},
    "cli": set(ROOMS) - {"cli"},
}
"""Arrows point down only. import-linter checks the same; this table says so without it."""


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from (path for path in sorted((ROOT / folder).rglob("*.py")) if "__pycache__" not in path.parts)


def imported(path: Path) -> Iterator[str]:
    """Every module a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def local(path: Path) -> str:
    return str(path.relative_to(ROOT))


# --- rooms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is_for_and_what_it_forbids(room: str) -> None:
    text = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    lines = [line for line in text.splitlines() if line]
    assert len(lines) >= 3
    assert any(line.startswith("May import") for line in lines)
    assert any(line.startswith("Must never happen here:") for line in lines)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_typed_and_seen_by_the_type_checker(room: str) -> None:
    assert (ROOT / room / "py.typed").is_file()
    assert (ROOT / "typing_view" / "cohortium" / room).resolve() == ROOT / room


def test_the_rooms_are_the_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = project["tool"]["setuptools"]["package-dir"]
    assert folders == {f"cohortium.{room}": room for room in ROOMS}
    assert set(project["tool"]["coverage"]["run"]["source"]) == set(ROOMS)
    assert set(project["tool"]["importlinter"]["root_packages"]) == set(folders)
    assert set(project["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]) >= set(ROOMS)
    assert not (ROOT / "cohortium").exists(), "a folder of that name would shadow the installed package"


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_point_down_only(room: str) -> None:
    for path in sources(room):
        rooms = {name.split(".")[1] for name in imported(path) if name.startswith("cohortium.")}
        assert rooms <= ALLOWED[room] | {room}, local(path)


def test_nothing_is_imported_by_its_bare_name() -> None:
    """A bare name would load a second copy of the module, with classes that are not the first copy's."""
    for path in sources(*ROOMS, "tests", "benchmarks"):
        bare = {name for name in imported(path) if name.split(".")[0] in ROOMS}
        assert bare == set(), local(path)


def test_rooms_import_by_full_names() -> None:
    for path in sources(*ROOMS):
        assert not [name for name in imported(path) if name.startswith(".")], local(path)


def test_no_room_executes_what_it_reads() -> None:
    for path in sources(*ROOMS):
        assert {"pickle", "marshal", "shelve"}.isdisjoint(imported(path)), local(path)


def test_every_file_says_what_it_is() -> None:
    for path in sources(*ROOMS, "benchmarks"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), local(path)


def test_every_folder_of_modules_is_a_package() -> None:
    for path in sources(*ROOMS):
        assert (path.parent / "__init__.py").is_file(), local(path)


def test_test_files_have_names_of_their_own() -> None:
    names = Counter(path.name for path in sources("tests") if path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_what_neighbours_import_is_offered() -> None:
    """Whatever a module imports from another one of the house stands in that one's `__all__`."""
    offered: dict[str, list[str]] = {}
    for path in sources(*ROOMS):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
                names = ast.literal_eval(node.value)
                assert len(set(names)) == len(names), local(path)
                module = ".".join(("cohortium", *path.relative_to(ROOT).with_suffix("").parts))
                offered[module.removesuffix(".__init__")] = names
    for path in sources(*ROOMS):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in offered:
                private = [a.name for a in node.names if a.name not in offered[node.module]]
                submodules = [n for n in private if f"{node.module}.{n}" in offered]
                assert set(private) == set(submodules), f"{local(path)}: {private} from {node.module}"


# --- the wheel -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(built_wheel: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(built_wheel)


@pytest.mark.slow
@pytest.mark.online
def test_the_wheel_has_every_module_and_every_packaged_file(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if name.startswith("cohortium/")}
    there = {
        f"cohortium/{path.relative_to(ROOT)}"
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == there
    assert {Path(name).suffix for name in packed} == {".py", ".typed", ".toml", ".css"}


@pytest.mark.slow
@pytest.mark.online
def test_the_wheel_has_the_command_the_licence_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    others = {name for name in wheel.namelist() if not name.startswith("cohortium/")}
    folder = next(iter(others)).split("/")[0]
    assert {name.removeprefix(folder + "/") for name in others} == {
        *("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"),
    }
    assert wheel.read(f"{folder}/entry_points.txt").decode().split() == [
        *("[console_scripts]", "cohortium", "=", "cohortium.cli.main:main"),
    ]
    metadata = Parser().parsestr(wheel.read(f"{folder}/METADATA").decode())
    assert metadata["Name"] == "cohortium"
    assert metadata["License-Expression"] == "Apache-2.0"
