"""The code a plan names: one digest for the same files, another for any other, and a bundle that holds no code."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.cli.config_utils import get_fab_metadata
from flwr.common.config import get_fused_config_from_fab
from flwr.supercore.run import Run

from cohortium.study.errors import Defect
from cohortium.study.software import ROOMS, code_digest, installed_software, study_bundle


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of one small file in every room, in the place of the installed one."""
    for room in ROOMS:
        (tmp_path / room / "inner").mkdir(parents=True)
        (tmp_path / room / "inner" / "__init__.py").write_text(f"# {room}\n")

    def find(name: str) -> SimpleNamespace | None:
        folder = tmp_path / name.removeprefix("cohortium.")
        return SimpleNamespace(submodule_search_locations=[str(folder)]) if folder.exists() else None

    monkeypatch.setattr("cohortium.study.software.find_spec", find)
    return tmp_path


def test_a_byte_a_name_a_new_or_a_missing_file_changes_the_digest(package: Path) -> None:
    seen = {code_digest()}
    code = package / "privacy" / "inner" / "__init__.py"
    code.write_text("# privacy!\n")
    seen.add(code_digest())
    code.rename(code.with_name("other.py"))
    seen.add(code_digest())
    (package / "client" / "plan.toml").write_text("")
    seen.add(code_digest())
    (package / "study" / "inner" / "__init__.py").unlink()
    seen.add(code_digest())
    assert len(seen) == 5


def test_what_running_the_package_leaves_behind_changes_nothing(package: Path) -> None:
    before = code_digest()
    (package / "study" / "__pycache__").mkdir()
    (package / "study" / "__pycache__" / "kept.py").write_text("x")
    (package / "study" / "inner" / "notes.txt").write_text("x")
    (package / "study" / "inner" / "module.pyc").write_bytes(b"x")
    assert code_digest() == before


def test_content_cannot_move_between_files_unseen(package: Path) -> None:
    one, two = (package / room / "inner" / "__init__.py" for room in ("study", "models"))
    before = code_digest()
    shutil.copy(one, package / "kept.py")
    shutil.copy(two, one)
    shutil.copy(package / "kept.py", two)
    assert code_digest() != before


def test_a_package_without_one_of_its_parts_is_our_defect(package: Path) -> None:
    shutil.rmtree(package / "governance")
    with pytest.raises(Defect, match="governance"):
        code_digest()


def test_the_installed_code_is_the_tree_s() -> None:
    root = Path(__file__).parents[2]
    kinds = (".py", ".toml", ".html", ".css", ".js", ".typed")
    files = sorted(
        path.relative_to(root).as_posix()
        for room in ROOMS
        for path in (root / room).rglob("*")
        if path.suffix in kinds and "__pycache__" not in path.parts
    )
    lines = "".join(f"{name} {hashlib.sha256((root / name).read_bytes()).hexdigest()}\n" for name in files)
    assert code_digest() == "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


def test_the_bundle_holds_no_code_and_flower_reads_it() -> None:
    bundle = study_bundle("1.2.3")
    assert bundle == study_bundle("1.2.3") != study_bundle("1.2.4")
    with zipfile.ZipFile(BytesIO(bundle)) as opened:
        assert opened.namelist() == ["pyproject.toml", ".info/CONTENT"]
        assert {info.compress_type for info in opened.infolist()} == {zipfile.ZIP_STORED}
    assert get_fab_metadata(bundle) == ("cohortium/cohortium-study", "1.2.3")
    assert get_fused_config_from_fab(bundle, Run.create_empty(1)) == {"plan": "", "run": ""}


def test_the_installed_software_names_its_own_bundle() -> None:
    software = installed_software()
    assert software.bundle == "sha256:" + hashlib.sha256(study_bundle(software.version)).hexdigest()
    assert software.code == code_digest()
