"""What is shipped for installing: systemd units that systemd accepts and rates safe, and container files."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from cohortium.cli.main import app

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
SERVICES: dict[str, Any] = yaml.safe_load((DEPLOY / "containers" / "compose.yaml").read_text())["services"]
NODES = ("north", "south", "east", "west", "centre")
LONGEST = 4.0
"""Exposure as systemd rates it, of 10; what is left is the network that a service of this kind needs."""


def options_of(words: list[str]) -> None:
    """Whether a command line is one that the program takes: every word of it is a command, or an option of that one."""
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    known = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
    assert command.name == "start"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_accepts_the_unit_and_rates_it_safe(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    copy.write_text(re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", unit.read_text()))
    verified = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    assert unit.name not in verified.stderr, verified.stderr
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(copy)], capture_output=True, text=True, check=False
    )
    exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", rated.stdout)
    assert exposure is not None
    assert float(exposure[1]) <= LONGEST


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_runs_a_command_that_there_is_and_keeps_its_password_encrypted(unit: Path) -> None:
    text = unit.read_text()
    started = re.search(r"^ExecStart=/opt/cohortium/bin/cohortium (.*)$", text, re.MULTILINE)
    assert started is not None
    options_of(started[1].split())
    assert "LoadCredentialEncrypted=cohortium-password:" in text
    assert "FLWR_TELEMETRY_ENABLED=0" in text


@pytest.mark.parametrize("name", ["coordinator", *NODES])
def test_a_container_runs_a_command_that_there_is_with_nothing_it_does_not_need(name: str) -> None:
    service = SERVICES[name]
    options_of(service["command"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["volumes"] == [f"./state/{name}:/var/lib/cohortium"]
    assert service["secrets"] == [{"source": f"{name}_password", "target": "password"}]
    assert "ports" not in service


def test_the_compose_file_has_a_coordinator_and_five_institutions() -> None:
    assert set(SERVICES) == {"coordinator", *NODES}
    assert "127.0.0.1:9441/healthz" in SERVICES["coordinator"]["healthcheck"]["test"][-1]


def test_the_image_runs_as_nobody_in_particular_and_phones_nobody() -> None:
    lines = (DEPLOY / "containers" / "Containerfile").read_text()
    assert re.search(r"^USER 10001$", lines, re.MULTILINE)
    for switch in ("FLWR_TELEMETRY_ENABLED=0", "FLWR_DISABLE_UPDATE_CHECK=1", "RAY_USAGE_STATS_ENABLED=0"):
        assert switch in lines
    instructions = {line.split()[0] for line in lines.splitlines() if re.match(r"[A-Z]+ ", line)}
    assert instructions <= {"FROM", "COPY", "RUN", "ENV", "USER", "VOLUME", "WORKDIR", "ENTRYPOINT", "CMD"}
