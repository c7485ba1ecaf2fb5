"""The partner's and the coordinator's guide, followed word for word, by three institutions and a coordinator at once.

What a page shows is what its reader would see: a block under `<!-- prints -->` is what the commands before it printed,
with `…` for anything, and a fingerprint or a plan's digits in it stand for those that were printed. Whoever reads them
out, the same example is the same value on both pages. Commands that only look are called again until they show it.

Different from what a reader does: passwords come from files instead of being typed, ports are free ones on loopback,
and all but `start` are called in this process.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

import pytest

from cohortium.simulations.loopback import Deployment, Process, free_port, wait_until
from cohortium.study.errors import OutputError
from cohortium.study.software import installed_software

from .pages import ROOT, Example, examples, purchases, run_cohortium

PARTNER, COORDINATOR = ROOT / "docs" / "partners-guide.md", ROOT / "docs" / "coordinators-guide.md"
MOST_COMMANDS = 15
LOOKS = (("study", "list"), ("study", "status"))
OWN_PASSWORD = (("account", "add"), ("review", "key", "new"))
"""Commands that ask for somebody's own password, and take it from nowhere else unless they are told."""
FINGERPRINT, DIGITS = r"(?:[0-9a-f]{4} ){7}[0-9a-f]{4}", r"[0-9a-f]{12}"
TOLD = re.compile(rf"{FINGERPRINT}|(?<![0-9a-f]){DIGITS}(?![0-9a-f])")
"""What is read out: a fingerprint, or the first digits of a plan."""


def section_of(example: Example) -> str:
    """The heading that a block stands under."""
    lines = example.page.read_text(encoding="utf-8").splitlines()[: example.line]
    return next(line.lstrip("# ") for line in reversed(lines) if line.startswith("#"))


def commands(page: Path) -> Iterator[list[str]]:
    return (words for example in examples(page) if example.language == "bash" for words in example.commands)


@dataclass
class House:
    """A folder in which somebody follows a guide.

    Args:
        says: what stands in the guide, and what this house says instead.
        said: the fingerprints and digits of the guide, and those that were read out here.
    """

    name: str
    folder: Path
    says: dict[str, str]
    said: dict[str, str] = field(default_factory=dict)

    def own(self, text: str) -> str:
        """What the guide says, for this house."""
        names = "|".join(re.escape(word) for word in self.says)
        return re.sub(rf"(?<!\w)({names})(?!\w| sea)", lambda found: self.says[found[0]], text)

    def read_out(self, text: str) -> str:
        """The same with what was read out instead of the examples."""
        silent = [one for one in TOLD.findall(text) if one not in self.said]
        assert not silent, f"{self.name} was never told {silent}"
        return TOLD.sub(lambda found: self.said[found[0]], text)

    def sees(self, wanted: str, output: str) -> bool:
        """Whether the output is as the guide shows it; learns what stands for the examples in it."""
        seen: list[str] = []

        def part(text: str) -> str:
            pieces, at = "", 0
            for found in TOLD.finditer(text):
                known = self.said.get(found[0])
                pieces += re.escape(text[at : found.start()])
                shape = FINGERPRINT if " " in found[0] else DIGITS
                pieces += f"({shape if known is None else re.escape(known)})"
                seen.append(found[0])
                at = found.end()
            return pieces + re.escape(text[at:])

        parts = [part(" ".join(one.split())) for one in self.own(wanted).split("…")]
        found = re.search(r"\s?.*?\s?".join(parts), " ".join(output.split()))
        if found is not None:
            self.said.update(zip(seen, found.groups(), strict=True))
        return found is not None


@dataclass
class Followed:
    """A federation of readers."""

    processes: Deployment
    patch: pytest.MonkeyPatch
    done: set[tuple[Path, int]] = field(default_factory=set)
    running: dict[str, Process] = field(default_factory=dict)
    begun: dict[str, Process] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.processes.root

    def follow(self, house: House, page: Path, heading: str, *parts: int) -> None:
        """What stands under a heading; or parts of it, numbered by blocks of commands."""
        self.patch.chdir(house.folder)
        looked: Callable[[], str] = str
        number, again = 0, False
        for example in examples(page):
            if section_of(example) != heading:
                continue
            place = f"{page.name}:{example.line}"
            mine = not parts or (number - 1 if example.prints else number) in parts
            if example.language == "bash":
                number += 1
            if not mine:
                continue
            self.done.add((page, example.line))
            if example.file:
                Path(example.file).parent.mkdir(exist_ok=True)
                Path(example.file).write_text(example.text, encoding="utf-8")
            elif example.note.startswith("answers: "):
                answer(Path(example.note.removeprefix("answers: ")), example.text)
            elif example.prints:
                self.shown(house, example, looked, 90 if again else 0)
            elif example.language == "bash":
                looked, again = self.call(house, example, place)

    def shown(self, house: House, example: Example, looked: Callable[[], str], seconds: float) -> None:
        """Wait so long until the output is as the guide shows it."""
        place = f"{example.page.name}:{example.line}"
        try:
            wait_until(lambda: house.sees(example.text, looked()), seconds, place)
        except OutputError:
            pytest.fail(f"{place}: printed was\n{looked()}")

    def ahead(self, house: House, page: Path) -> None:
        """Start what the page's section Start will start, while others do something else."""
        (example,) = (one for one in examples(page) if one.language == "bash" and section_of(one) == "Start")
        self.patch.chdir(house.folder)
        self.begun[house.name] = self.start(house, [house.own(word) for word in example.commands[0]])

    def call(self, house: House, example: Example, place: str) -> tuple[Callable[[], str], bool]:
        """Call a block's commands: what they printed, and whether to look again for more."""
        own = [[house.read_out(house.own(word)) for word in words] for words in example.commands]
        called = [[file for word in words for file in (glob(word) if "*" in word else [word])] for words in own]
        if "start" in called[-1]:
            for words in called[:-1]:
                self.printed(words, place)
            process = self.begun.pop(house.name, None) or self.start(house, called[-1])
            return lambda: process.log.read_bytes()[process.begins :].decode(), True
        if called[-1][0] == "curl":
            return lambda: urllib.request.urlopen(called[-1][1], timeout=5).read().decode(), True
        if len(called) == 1 and tuple(called[0][1:3]) in LOOKS:
            return lambda: self.printed(called[0], place), True
        output = "".join(self.printed(words, place) for words in called)
        return lambda: output, False

    def printed(self, words: list[str], place: str) -> str:
        for asks in OWN_PASSWORD:
            if words[1 : len(asks) + 1] == list(asks):
                words = ["cohortium", *asks, "--password-file", str(self.root / "own"), *words[len(asks) + 1 :]]
        code, output = run_cohortium(words, self.patch)
        assert code == 0, f"{place}: {' '.join(words)} ended with {code}\n{output}"
        return output

    def start(self, house: House, words: list[str]) -> Process:
        if (before := self.running.get(house.name)) is not None:
            before.kill()
        health = ["--health-port", house.says.get("127.0.0.1:9442", "127.0.0.1:0").rpartition(":")[2]]
        command = ("-m", "cohortium.cli", *words[1:], *health)
        self.running[house.name] = self.processes.start(*command, name=house.name, folder=house.folder)
        return self.running[house.name]


def answer(file: Path, answers: str) -> None:
    """Take the # from the questions that are answered; each has to be asked in the file."""
    text = file.read_text(encoding="utf-8")
    for line in answers.splitlines():
        name = line.partition(" = ")[0]
        if name:
            text, times = re.subn(rf"^(# )?{re.escape(name)} = .*$", line, text, flags=re.MULTILINE)
            assert times == 1, f"{file} does not ask {name}"
    file.write_text(text, encoding="utf-8")


def bring(source: House, target: House, *names: str) -> None:
    """Send files from one house to another, by whatever way."""
    for name in names:
        shutil.copy(source.folder / source.own(name), target.folder)


def test_the_first_study_is_approved_after_few_commands() -> None:
    called = list(commands(PARTNER))
    approving = next(number for number, words in enumerate(called, 1) if "approve" in words)
    assert approving <= MOST_COMMANDS
    text = PARTNER.read_text(encoding="utf-8")
    assert f"in {approving} commands" in text
    assert f"These were {approving} commands." in text


INSTALLED = """
import sys
from pathlib import Path
import cohortium.cli.main as main
from cohortium.simulations.starter import write_starter
from cohortium.study.plans import load_plan
from cohortium.study.software import installed_software

assert Path(main.__file__).is_relative_to(Path.cwd()), main.__file__
for data in (None, "bank-world", "ta-feng"):
    write_starter(Path(str(data)), data)
    load_plan(Path(str(data)) / "plan.toml")
print(installed_software().code)
"""


@pytest.mark.slow
@pytest.mark.online
def test_installing_gives_the_very_code_of_this_tree_with_all_its_files(built_wheel: Path, tmp_path: Path) -> None:
    """The guide's commands in an empty folder; what the package needs is lent by this installation, not fetched."""
    for file in (built_wheel, ROOT / "constraints.txt"):
        shutil.copy(file, tmp_path)
    here = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    alone = {"PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    (example,) = (one for one in examples(PARTNER) if one.language == "bash" and section_of(one) == "Install")
    for line in [*example.text.splitlines(), f".venv/bin/python -c '{INSTALLED}'"]:
        done = subprocess.run(
            shlex.split(line),
            cwd=tmp_path,
            env={**os.environ, **here, **alone},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        if "pip install" in line:
            (site,) = tmp_path.glob(".venv/lib/python*/site-packages")
            (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"])
    assert done.stdout.splitlines()[-1] == installed_software().code


@pytest.fixture
def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Followed]:
    for name in ("typed", "own"):
        (tmp_path / name).write_text(f"several plain words, {name}\n")
    monkeypatch.setenv("COHORTIUM_PASSWORD_FILE", str(tmp_path / "typed"))
    monkeypatch.setenv("COHORTIUM_ACCOUNT_PASSWORD_FILE", str(tmp_path / "own"))
    processes = Deployment(tmp_path)
    yield Followed(processes, monkeypatch)
    processes.close()


@pytest.mark.slow
def test_the_guides_lead_from_an_empty_folder_to_a_study_that_was_answered_and_through_bad_days(
    followed: Followed,
) -> None:
    address = f"127.0.0.1:{free_port()}"
    coordinator = House("coordinator", followed.root / "desk", {"coordinator:9440": address, "0.0.0.0:9440": address})
    coordinator.folder.mkdir()
    follow = followed.follow
    follow(coordinator, COORDINATOR, "Found the federation")
    followed.ahead(coordinator, COORDINATOR)
    follow(coordinator, COORDINATOR, "Agree on it")
    members = {}
    for name in ("north", "south", "west"):
        says = {**coordinator.says, "north": name, "127.0.0.1:9442": f"127.0.0.1:{free_port()}"}
        member = members[name] = House(name, followed.root / name, says, dict(coordinator.said))
        member.folder.mkdir()
        shutil.copy(coordinator.folder / "study" / "contract.toml", member.folder)
        purchases().to_csv(member.folder / "purchases.csv", index=False)
        rows = [f"C{number:05d},2026-03-02T10:00:00Z,objects" for number in range(20)]
        (member.folder / "objections.csv").write_text("\n".join(["customer_id,said_at,state", *rows]) + "\n")
        follow(member, PARTNER, "Check your tables")
        follow(member, PARTNER, "Make the node")
        bring(member, coordinator, "north.request.json")
        desk = House("coordinator", coordinator.folder, member.says, member.said)
        follow(desk, COORDINATOR, "Enrol a member")
        bring(desk, member, "north.enrolment.json")
        follow(member, PARTNER, "Join")
        for heading in ("Give it your customers", "Say who may be counted", "Answer for the rules"):
            follow(member, PARTNER, heading)
        follow(member, PARTNER, "Add a second person")
        followed.ahead(member, PARTNER)
    north, south, west = members.values()
    for member in members.values():
        bring(coordinator, member, "coordinator/charter.json")
    follow(coordinator, COORDINATOR, "Start")
    follow(coordinator, COORDINATOR, "Propose")
    for member in members.values():
        follow(member, PARTNER, "Start")
        follow(member, PARTNER, "Approve a study")
    follow(coordinator, COORDINATOR, "Run")
    for member in members.values():
        assert member.said["3d0c6a998b92"] == coordinator.said["3d0c6a998b92"]
        follow(member, PARTNER, "What came back, and what it cost")
    follow(north, PARTNER, "Every day")
    follow(coordinator, COORDINATOR, "Every day")
    follow(north, PARTNER, "Reviewers")
    bring(north, coordinator, "p-17.json")
    follow(coordinator, COORDINATOR, "Add a reviewer")

    follow(north, PARTNER, "A new certificate", 0)
    bring(north, coordinator, "north.request.json")
    coordinator.said |= north.said
    follow(coordinator, COORDINATOR, "Rotate")
    bring(coordinator, north, "north.enrolment.json")
    follow(north, PARTNER, "A new certificate", 1)
    follow(coordinator, COORDINATOR, "Upgrade")
    north.said |= coordinator.said
    follow(north, PARTNER, "A plan that you do not like")

    followed.running.pop("north").kill()
    follow(north, PARTNER, "Restoring a backup", 0)
    for member in (south, west):
        witness = House(member.name, member.folder, {"south": member.name})
        follow(witness, PARTNER, "Restoring a backup", 1)
        bring(witness, north, "north-by-south.txt")
    follow(north, PARTNER, "Restoring a backup", 2)
    follow(coordinator, COORDINATOR, "Revoke")
    wait_until(lambda: not followed.running["west"].running, 30, "the end of the revoked node")
    assert followed.running["west"].process.returncode != 0

    left = {
        f"{page.name}:{one.line}"
        for page in (PARTNER, COORDINATOR)
        for one in examples(page)
        if (page, one.line) not in followed.done and section_of(one) != "Install"
    }
    assert not left, "nobody followed these blocks"
