"""Who may call which command: the question that privileged commands begin with, and why others do not ask it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import click
import typer

from cohortium.governance.access import Act, Person, authorise
from cohortium.study.errors import DataError
from cohortium.study.keys import password_in

__all__ = ["ACTS", "PASSWORD_FILE", "UNPRIVILEGED", "authorised", "called_as"]

PASSWORD_FILE = "COHORTIUM_ACCOUNT_PASSWORD_FILE"
"""Environment variable with the path of a file whose first line is the password of the account that is named."""

ACTS: Mapping[str, frozenset[Act]] = MappingProxyType(
    {
        name: frozenset(acts)
        for name, acts in {
            "account add": [Act.ACCOUNT_CHANGE],
            "account disable": [Act.ACCOUNT_CHANGE],
            "account list": [Act.ACCOUNT_READ],
            "account log": [Act.LOG_READ],
            "account password": [Act.ACCOUNT_CHANGE, Act.PASSWORD_CHANGE],
            "audience create": [Act.AUDIENCE_CREATE],
            "audience expire": [Act.AUDIENCE_CREATE],
            "audience export": [Act.AUDIENCE_EXPORT],
            "audience list": [Act.AUDIENCE_READ],
            "audience preview": [Act.AUDIENCE_READ],
            "audience refresh": [Act.AUDIENCE_CREATE],
            "audience settle": [Act.AUDIENCE_EXPORT],
            "backup confirm": [Act.BACKUP_RESTORE],
            "backup make": [Act.BACKUP_MAKE],
            "consent erase": [Act.CONSENT_CHANGE],
            "consent import": [Act.CONSENT_CHANGE],
            "consent object": [Act.CONSENT_CHANGE],
            "consent receipt": [Act.CONSENT_READ],
            "consent snapshot": [Act.CONSENT_READ],
            "consent status": [Act.CONSENT_READ],
            "consent withdraw": [Act.CONSENT_CHANGE],
            "coordinator start": [Act.COORDINATOR_START],
            "data onboard": [Act.CUSTOMERS_CHANGE],
            "evidence build": [Act.EVIDENCE_BUILD],
            "evidence dpia": [Act.EVIDENCE_BUILD],
            "evidence prov": [Act.EVIDENCE_BUILD],
            "evidence ropa": [Act.EVIDENCE_BUILD],
            "fairness add": [Act.MODEL_ADD],
            "federation enrol": [Act.MEMBER_ENROL],
            "federation members": [Act.MEMBER_READ],
            "federation reviewer": [Act.REVIEWER_ENROL],
            "federation revoke": [Act.MEMBER_REVOKE],
            "ledger preview": [Act.LEDGER_READ],
            "ledger show": [Act.LEDGER_READ],
            "ledger verify": [Act.LEDGER_READ],
            "log prove": [Act.LOG_READ],
            "log show": [Act.LOG_READ],
            "log verify": [Act.LOG_READ],
            "log witness": [Act.LOG_READ, Act.LOG_WITNESS],
            "node join": [Act.NODE_JOIN],
            "node rotate": [Act.KEY_ROTATE],
            "node start": [Act.NODE_START],
            "retention close": [Act.RETENTION_CHANGE],
            "retention event": [Act.RETENTION_CHANGE],
            "retention extend": [Act.RETENTION_CHANGE],
            "retention list": [Act.RETENTION_READ],
            "retention run": [Act.RETENTION_RUN],
            "review approve": [Act.REVIEW_SIGN],
            "review export": [Act.REVIEW_READ],
            "review key enrol": [Act.REVIEWER_ENROL],
            "review list": [Act.REVIEW_READ],
            "review open": [Act.REVIEW_OPEN],
            "review reject": [Act.REVIEW_SIGN],
            "review return": [Act.REVIEW_SIGN],
            "review show": [Act.REVIEW_READ],
            "review waive": [Act.REVIEW_SIGN],
            "score": [Act.SCORE],
            "seed add": [Act.SEED_CHANGE],
            "seed doctor": [Act.SEED_READ],
            "seed list": [Act.SEED_READ],
            "seed refine": [Act.SEED_CHANGE],
            "seed remove": [Act.SEED_CHANGE],
            "study approve": [Act.STUDY_APPROVE],
            "study decline": [Act.STUDY_APPROVE],
            "study list": [Act.STUDY_READ],
            "study propose": [Act.STUDY_PROPOSE],
            "study resume": [Act.STUDY_RUN],
            "study review": [Act.STUDY_REVIEW],
            "study run": [Act.STUDY_RUN],
            "study status": [Act.STUDY_READ],
            "study stop": [Act.STUDY_STOP],
            "study take": [Act.STUDY_RUN],
        }.items()
    }
)
"""Every command that asks for authority, and for which act: it calls `authorised` with it before anything else."""

_FILES = "reads the files that it is given, and no node"
_PUBLIC = "prints what the package says"
_FOUNDS = "makes the folder; whoever calls becomes its first account"
_SIMULATES = "its institutions are simulated"

UNPRIVILEGED: Mapping[str, str] = MappingProxyType(
    {
        "account show-permissions": _PUBLIC,
        "account verify": "compares what the caller can read anyway, and prints no entry",
        "backup restore": "makes a folder of its own, which answers nothing until `backup confirm`",
        "data check": _FILES,
        "data fetch": "downloads a public set",
        "data list": _PUBLIC,
        "demo": _SIMULATES,
        "doctor": "checks the machine",
        "evidence card": _FILES,
        "evidence verify": _FILES,
        "fairness compare": _FILES,
        "fairness show": _FILES,
        "federation init": _FOUNDS,
        "init": "writes a starter plan and contract",
        "node init": _FOUNDS,
        "privacy audit": _SIMULATES,
        "review key new": "makes a key of the caller's own",
        "review verify": _FILES,
        "rules check": _FILES,
        "rules explain": _PUBLIC,
        "rules export": _PUBLIC,
        "rules list": _PUBLIC,
        "rules test": _FILES,
        "simulate": _SIMULATES,
    }
)
"""Every command that asks nobody, and why."""


def authorised(folder: Path, act: Act, subject: str | None = None) -> Person | None:
    """Ask whether the caller may do this here, before anything is done; both answers are logged.

    The caller is the effective OS user, or the account that `cohortium --account NAME` names.

    Args:
        folder: of the node or the coordinator.
        act: what the command is for, as `ACTS` says.
        subject: a name or digest of what it is done to; never a customer's id.

    Returns:
        Who it is; None in a simulation's folder, which asks nobody.

    Raises:
        RefusedError, DataError, OutputError: as `governance.access.authorise`.
    """
    return authorise(folder, act, account=called_as(), password=_password, subject=subject)


def called_as() -> str | None:
    """The account that the command line, or COHORTIUM_ACCOUNT, names."""
    context = click.get_current_context(silent=True)
    return None if context is None else context.find_root().params.get("_account")


def _password() -> str:
    """From the file that the environment names, or a prompt; never from an argument."""
    if named := os.environ.get(PASSWORD_FILE):
        return password_in(Path(named))
    if sys.stdin is not None and sys.stdin.isatty():
        return str(typer.prompt(f"password of {called_as()}", hide_input=True, err=True))
    raise DataError(
        "the account needs its password, and nobody is there to be asked",
        place="--account",
        fix=f"set {PASSWORD_FILE} to a file whose first line it is",
    )
