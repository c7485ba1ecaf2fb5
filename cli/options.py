"""Options that several nouns share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cohortium.study.keys import CREDENTIAL, PASSWORD_FILE

__all__ = ["PasswordFile"]

PasswordFile = Annotated[
    Path | None,
    typer.Option(
        help=f"File whose first line is the keys' password; else {PASSWORD_FILE}, the systemd credential {CREDENTIAL}, "
        "or a prompt."
    ),
]
