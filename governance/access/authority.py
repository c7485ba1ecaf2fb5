"""The question that every privileged command asks before it does anything: may whoever calls do this here?"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from cohortium.governance.access.accounts import Account, AccountStore, Person, os_login
from cohortium.governance.access.roles import FIRST_ROLES, PERMITTED, Act, Role
from cohortium.privacy.stores import open_store
from cohortium.study.document import read_json
from cohortium.study.errors import DataError, RefusedError

__all__ = ["ACCESS_FILE", "authorise", "create_accounts", "open_accounts"]

ACCESS_FILE = "access.sqlite"
"""Accounts and the log of acts, in the folder of a node or of the coordinator."""

_NODE, _COORDINATOR = "node.json", "coordinator.json"
_NODE_FORM = "cohortium.node/1"


def authorise(
    folder: Path,
    act: Act,
    *,
    account: str | None = None,
    password: Callable[[], str] | None = None,
    subject: str | None = None,
) -> Person | None:
    """Allow an act in a folder to whoever calls, or refuse it; both are logged, durably, before this ends.

    Args:
        folder: of a node or of the coordinator.
        act: what is to be done.
        account: whose account; that of the effective OS user when left out.
        password: asks for the password of that account; called at most once.
        subject: the name or digest of what it is done to; never a customer's id.

    Returns:
        Who it is; None in a folder that asks nobody: a simulation's, or one that holds neither node nor coordinator.

    Raises:
        RefusedError: who calls may not; or the folder has no accounts and is no simulation's.
        DataError, OutputError: the accounts cannot be read, or the act cannot be logged. It is not allowed then.
    """
    if not _is_there(folder / ACCESS_FILE):
        if _asks_nobody(folder):
            return None
        may = " or ".join(sorted(PERMITTED[act]))
        raise RefusedError(
            f"{act.value} takes the role {may}, and there are no accounts here",
            place=str(folder / ACCESS_FILE),
            fix=f"make the first one: cohortium account add {folder} NAME --first; if it was lost, put back its copy",
        )
    with open_accounts(folder) as store:
        return store.admit(act, account, password, subject)


def create_accounts(
    folder: Path,
    first: str | None = None,
    roles: Collection[Role] = FIRST_ROLES,
    *,
    login: str | None = None,
    password: str | None = None,
) -> Account:
    """Begin the accounts of a folder with the first one, which makes the others.

    Args:
        folder: of a node or of the coordinator.
        first: the account's name; that of the OS user when left out, or `first` where that is no name of an account.
        roles: what it may do.
        login: the OS user it belongs to; whoever calls, without a password.
        password: its password instead.

    Raises:
        RefusedError: there are accounts already.
        DataError: as `AccountStore.add`.
    """
    bound = login if login is not None or password is not None else os_login()
    engine = open_store(folder / ACCESS_FILE)
    try:
        store = AccountStore(engine, create=True)
        return store.begin(first, roles, login=bound, password=password)
    finally:
        engine.dispose()


@contextmanager
def open_accounts(folder: Path) -> Iterator[AccountStore]:
    """The accounts of a folder; `DataError` where there are none."""
    engine = open_store(folder / ACCESS_FILE, create=False)
    try:
        yield AccountStore(engine)
    finally:
        engine.dispose()


def _asks_nobody(folder: Path) -> bool:
    """Whether a folder without accounts is a simulation's, or nobody's. What cannot be read is neither."""
    if _is_there(folder / _COORDINATOR):
        return False
    node = folder / _NODE
    if not _is_there(node):
        return True
    identity = read_json(node, DataError)
    if identity.get("format") != _NODE_FORM:
        raise DataError("holds a node of another version", place=str(node), fix="use the version it names")
    return identity.get("simulation") is True


def _is_there(path: Path) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise RefusedError(
            error.strerror or "cannot be read", place=str(path), fix="call as an OS user who may read the folder"
        ) from error
    return True
