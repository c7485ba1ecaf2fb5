"""Accounts, and the log of privileged acts, in one file: a change and its entry are committed together or not at all.

The log is a Merkle log (`governance.log`). Its signing key lies in the same file, because an act is logged without
asking anybody for a password. So a checkpoint proves nothing against whoever owns the file, unless somebody else kept
an earlier one: then nothing before it can change unseen, and neither can the key.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Column, Engine, Integer, LargeBinary, MetaData, Row, String, Table, insert, select, update

from cohortium.governance.access.passwords import FAILURES, LOCKED_FOR, hash_password, is_password
from cohortium.governance.access.roles import PERMITTED, Act, Role
from cohortium.governance.log import AuditLog, Ed25519Signer, Finding, JoinedStore, LogEntry, verify_log
from cohortium.privacy.randomness import fresh_key
from cohortium.privacy.store_forms import Form, append_only, open_form
from cohortium.study.errors import DataError, RefusedError

__all__ = ["TABLES", "Account", "AccountStore", "Person", "os_login"]

State = Literal["active", "disabled"]

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_FIRST = "first"
_SUBJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:/-]{0,127}")
_MAX_LOGIN = 256

TABLES = MetaData()

_header = Table(
    "access_header",
    TABLES,
    Column("schema", String, primary_key=True),
    Column("key", LargeBinary, nullable=False),
)

_accounts = Table(
    "accounts",
    TABLES,
    Column("name", String, primary_key=True),
    Column("roles", String, nullable=False),
    Column("login", String),
    Column("password", String),
    Column("state", String, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("locked_until", Integer, nullable=False),
)

append_only(_header, "EXISTS (SELECT 1 FROM access_header)")

_FORM = Form(
    "cohortium.access/1",
    "store of accounts",
    _header,
    TABLES,
    "put back the newest copy, or use the version that wrote it",
)


@dataclass(frozen=True)
class Account:
    """Somebody who may do something.

    Args:
        name: unique for ever: a disabled account's is not given to another one.
        roles: what it may be used for.
        login: the OS login name that it belongs to; None where it has a password.
        state: whether it can be used.
        locked_until: the end of a lock after wrong passwords; None where it is not locked.
    """

    name: str
    roles: frozenset[Role]
    login: str | None
    state: State
    locked_until: datetime | None = None


@dataclass(frozen=True)
class Person:
    """Whoever was allowed an act.

    Args:
        account: the account's name.
        roles: that it has.
    """

    account: str
    roles: frozenset[Role]


@dataclass(frozen=True)
class _Refusal:
    """Why an act is refused: a word for the log, and what the caller is told."""

    reason: Literal["no account", "password", "locked", "disabled", "role"]
    message: str
    fix: str


def os_login() -> str:
    """The login name of the effective user, from the system's user database; `#UID` for a user without one.

    No environment variable is asked.
    """
    uid = os.geteuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"
    return name.encode("utf-8", "backslashreplace").decode()


class AccountStore:
    """The accounts of one node or coordinator, and the log of what was done with them.

    Args:
        store: from `privacy.stores.open_store`.
        create: begin one where there is none.
        now: the time (UTC); a seam for tests of locks.

    Raises:
        DataError: the file is no store of accounts of this version, or there is none to open.
    """

    def __init__(self, store: Engine, *, create: bool = False, now: Callable[[], datetime] | None = None) -> None:
        self._store, self._now = store, now if now is not None else _utc_now
        self.place = str(store.url.database)
        with store.begin() as connection:
            if open_form(connection, _FORM, self.place, key=fresh_key()) and not create:
                raise DataError("is empty", place=self.place, fix="put back the newest copy")
            key = Ed25519PrivateKey.from_private_bytes(connection.execute(select(_header.c.key)).scalar_one())
        origin = f"cohortium/access/{hashlib.sha256(key.public_key().public_bytes_raw()).hexdigest()[:16]}"
        self._signer = Ed25519Signer(origin, key)
        self._joined = JoinedStore(store)
        self.log = AuditLog(self._joined, origin, self._signer)

    # --- asking ------------------------------------------------------------------------------------------------------

    def admit(
        self,
        act: Act,
        account: str | None = None,
        password: Callable[[], str] | None = None,
        subject: str | None = None,
    ) -> Person:
        """Allow an act to whoever calls, or refuse it; either way it is in the log when this ends.

        Formal guarantee: who is returned has an account that is active, that belongs to the effective OS user or whose
        password was given, and a role that may do this act. Of guesses at a password that are made at the same time no
        more are tried than of guesses one after another.

        Args:
            act: what is to be done.
            account: whose account; the OS user's when left out.
            password: asks for the account's password; called at most once, and only where an account is named.
            subject: the name or digest of what it is done to; never a customer's id.

        Raises:
            RefusedError: nobody, or somebody who may not; who may, and how to become one, is said.
            RefusedError: the log of acts was altered. Nothing is allowed until it is put back.
            OutputError: the act cannot be logged.
        """
        login = os_login()
        if account is None:
            found, refusal = self._by_login(login, act)
        else:
            found, refusal = self._by_name(account, login, password)
        if refusal is None and found is not None and not PERMITTED[act] & _roles(found.roles):
            refusal = self._without_role(found, act)
        name = None if found is None else found.name
        with self._joined.together():
            if refusal is None and name is not None:
                refusal = self._ended_meanwhile(name)
            told = {"outcome": "allowed"} if refusal is None else {"outcome": "refused", "reason": refusal.reason}
            self._write({"event": act.value, "account": name, "login": login, **told, **_about(subject)})
        if refusal is not None or found is None:
            raise self._refused(act, refusal)
        return Person(found.name, _roles(found.roles))

    def _by_login(self, login: str, act: Act) -> tuple[Row[Any] | None, _Refusal | None]:
        query = select(_accounts).where(_accounts.c.login == login)
        with self._joined.begin() as connection:
            rows = connection.execute(query.order_by(_accounts.c.state)).all()  # active before disabled
        if not rows:
            message = f"the OS user '{login}' has no account here, and no account was named"
            return None, _Refusal("no account", message, self._grant(act, f"--os-user {login}"))
        return rows[0], None if rows[0].state == "active" else _disabled(rows[0].name)

    def _by_name(
        self, name: str, login: str, password: Callable[[], str] | None
    ) -> tuple[Row[Any] | None, _Refusal | None]:
        row = self._account(name)
        if row is not None and row.login is not None and row.login == login:
            return row, None if row.state == "active" else _disabled(name)
        given = "" if password is None else password()
        if row is not None and (locked := self._begin_guess(name)) is not None:
            return row, locked
        if not is_password(given, None if row is None else row.password) or row is None:
            if self._is_locked(name):
                with self._joined.together():
                    self._write({"event": "account-locked", "account": name, "login": login})
            wrong = "there is no such account, it belongs to another OS user, or its password is another one"
            return row, _Refusal("password", wrong, "give the account's name, and its password")
        self._end_guesses(name)
        return row, None if row.state == "active" else _disabled(name)

    def _begin_guess(self, name: str) -> _Refusal | None:
        """Count a guess as wrong before it is tried: however many are tried at once, five are the most."""
        now = int(self._now().timestamp())
        with self._joined.begin() as connection:
            row = connection.execute(select(_accounts).where(_accounts.c.name == name)).one()
            if _locked(row, now):
                until = datetime.fromtimestamp(row.locked_until, UTC)
                message = f"the account is locked after {FAILURES} wrong passwords, until {until:%H:%M:%S} UTC"
                return _Refusal("locked", message, "wait; if it was not you, tell the privacy officer")
            failures = row.failures + 1
            values = {"failures": failures, "locked_until": 0}
            if failures >= FAILURES:
                values = {"failures": 0, "locked_until": now + LOCKED_FOR}
            connection.execute(update(_accounts).where(_accounts.c.name == name).values(values))
        return None

    def _is_locked(self, name: str) -> bool:
        return _locked(self._account(name), int(self._now().timestamp()))

    def _end_guesses(self, name: str) -> None:
        with self._joined.begin() as connection:
            changed = update(_accounts).where(_accounts.c.name == name)
            connection.execute(changed.values(failures=0, locked_until=0))

    def _ended_meanwhile(self, name: str) -> _Refusal | None:
        """Somebody may have disabled the account while the password was typed."""
        row = self._account(name)
        return _disabled(name) if row is None or row.state != "active" else None

    def _without_role(self, row: Row[Any], act: Act) -> _Refusal:
        message = f"'{row.name}' has the roles {', '.join(sorted(_roles(row.roles)))}, none of which may"
        return _Refusal("role", message, self._grant(act, ""))

    def _grant(self, act: Act, bound: str) -> str:
        role = sorted(PERMITTED[act])[0]
        bound = f" {bound}" if bound else ""
        return f"a privacy officer gives one: cohortium account add FOLDER NAME --role {role}{bound}"

    def _refused(self, act: Act, refusal: _Refusal | None) -> RefusedError:
        told = refusal or _Refusal("no account", "there is no account", self._grant(act, ""))
        may = " or ".join(sorted(PERMITTED[act]))
        return RefusedError(f"{act.value} takes the role {may}: {told.message}", place=self.place, fix=told.fix)

    # --- changing ----------------------------------------------------------------------------------------------------

    def begin(self, name: str | None, roles: Collection[Role], *, login: str | None, password: str | None) -> Account:
        """Make the first account; errors as `add`, and `RefusedError` where there is one already.

        Left out, the name is that of the OS user, or `first` where that is no name of an account.
        """
        if name is None:
            name = login if login is not None and _NAME.fullmatch(login) else _FIRST
        kept = None if password is None else hash_password(password, name)
        with self._joined.together():
            if self.accounts():
                raise RefusedError(
                    "there are accounts already", place=self.place, fix="have a privacy officer add the account"
                )
            return self._add(name, roles, login, kept, by=name)

    def add(
        self, name: str, roles: Collection[Role], *, by: Person, login: str | None = None, password: str | None = None
    ) -> Account:
        """Add an account, and log who did.

        Args:
            name: small letters, digits, `.`, `_`, `-`; a name that was never used here.
            roles: one at least.
            by: whom `admit` allowed `Act.ACCOUNT_CHANGE`.
            login: the OS user it belongs to, or
            password: its password, of 16 characters or more. Exactly one of the two.

        Raises:
            DataError: a name or password of the wrong form; no role; an OS user that the system does not know.
            RefusedError: the name was used before, or an active account belongs to this OS user.
        """
        kept = None if password is None else hash_password(password, name)
        with self._joined.together():
            return self._add(name, roles, login, kept, by=by.account)

    def disable(self, name: str, *, by: Person) -> None:
        """Let an account do nothing any more, for good; `RefusedError` for the last active privacy officer."""
        with self._joined.together():
            self._existing(name)
            others = [one for one in self.accounts() if one.name != name and one.state == "active"]
            if not any(Role.PRIVACY_OFFICER in one.roles for one in others):
                raise RefusedError(
                    "is the last privacy officer: nobody could make accounts any more",
                    place=name,
                    fix="add another privacy officer first",
                )
            with self._joined.begin() as connection:
                connection.execute(update(_accounts).where(_accounts.c.name == name).values(state="disabled"))
            self._write({"event": "account-disabled", "account": by.account, "subject": name})

    def set_password(self, name: str, password: str, *, by: Person) -> None:
        """Give an account another password, and end its lock; `RefusedError` for one that has none."""
        kept = hash_password(password, name)
        with self._joined.together():
            if self._existing(name).password is None:
                raise RefusedError("belongs to an OS user and has no password", place=name, fix="add another account")
            with self._joined.begin() as connection:
                changed = update(_accounts).where(_accounts.c.name == name)
                connection.execute(changed.values(password=kept, failures=0, locked_until=0))
            self._write(
                {"event": "account-password", "account": by.account, "subject": name, "password": _digest(kept)}
            )

    def _add(self, name: str, roles: Collection[Role], login: str | None, kept: str | None, by: str) -> Account:
        if not _NAME.fullmatch(name):
            raise DataError("is no name of an account", place=repr(name), fix="use small letters, digits, . _ -")
        if not roles or (login is None) == (kept is None):
            raise DataError("needs a role, and an OS user or a password", place=name, fix="give these")
        if login is not None:
            _require_login(login)
        earlier = self._account(name)
        if earlier is not None:
            raise RefusedError("was used before", place=name, fix="choose another name: the log knows people by it")
        if any(one.login == login and one.state == "active" for one in self.accounts() if login is not None):
            raise RefusedError("has an account already", place=str(login), fix="disable that one first")
        values = {"name": name, "roles": " ".join(sorted(roles)), "login": login, "password": kept, "state": "active"}
        with self._joined.begin() as connection:
            connection.execute(insert(_accounts).values(**values, failures=0, locked_until=0))
        told = {"roles": sorted(roles), "login": login, "password": None if kept is None else _digest(kept)}
        self._write({"event": "account-added", "account": by, "subject": name, **told})
        return Account(name, frozenset(roles), login, "active")

    def note_restored(self, made_at: str) -> None:
        """Log that the accounts were put back as they were then: who was disabled since may have an account again."""
        with self._joined.together():
            self._write({"event": "accounts-restored", "made_at": made_at, "login": os_login()})

    # --- reading -----------------------------------------------------------------------------------------------------

    def accounts(self) -> tuple[Account, ...]:
        """All accounts, disabled ones too, by name."""
        now = int(self._now().timestamp())
        with self._joined.begin() as connection:
            rows = connection.execute(select(_accounts).order_by(_accounts.c.name)).all()
        return tuple(_read(row, now) for row in rows)

    def verify(self, notes: Sequence[str] = ()) -> tuple[Finding, ...]:
        """What is not as it was: in the log (`governance.log.verify_log`), or between the log and the accounts.

        Args:
            notes: checkpoints of this log that somebody else kept.

        Raises:
            DataError: a note that is no checkpoint that this log signed: it is another log, or a log begun anew.
        """
        found = verify_log(self._store, self._signer.verifier, notes=notes).findings
        return found or tuple(Finding(None, None, text) for text in self._differences())

    def _differences(self) -> Iterable[str]:
        logged = _replayed(self.log.entries(0, self.log.size))
        with self._joined.begin() as connection:
            rows = connection.execute(select(_accounts).order_by(_accounts.c.name)).all()
        kept = {row.name: _facts(row) for row in rows}
        for name in sorted({*logged, *kept}):
            if name not in logged:
                yield f"the account '{name}' is in no entry of the log"
            elif name not in kept:
                yield f"the account '{name}' is gone, and the log has no end of it"
            else:
                changed = [part for part, value in logged[name].items() if kept[name][part] != value]
                if changed:
                    yield f"the {' and '.join(changed)} of the account '{name}' is not what the log says"

    def _account(self, name: str) -> Row[Any] | None:
        if not _NAME.fullmatch(name):
            return None
        with self._joined.begin() as connection:
            return connection.execute(select(_accounts).where(_accounts.c.name == name)).one_or_none()

    def _existing(self, name: str) -> Row[Any]:
        row = self._account(name)
        if row is None or row.state != "active":
            raise RefusedError("is no active account", place=repr(name), fix="see `cohortium account list`")
        return row

    def _write(self, entry: Mapping[str, Any]) -> None:
        """Append an entry, with a checkpoint after it: what is cut off the end is missed."""
        self.log.append([{**entry, "time": self._now().isoformat(timespec="seconds")}])
        self.log.checkpoint()


def _replayed(entries: Iterable[LogEntry]) -> dict[str, dict[str, Any]]:
    """What the log says of every account."""
    told: dict[str, dict[str, Any]] = {}
    for entry in (one.entry for one in entries):
        match entry["event"]:
            case "account-added":
                facts = {part: entry[part] for part in ("roles", "login", "password")}
                told[entry["subject"]] = {**facts, "state": "active"}
            case "account-disabled":
                told[entry["subject"]]["state"] = "disabled"
            case "account-password":
                told[entry["subject"]]["password"] = entry["password"]
    return told


def _facts(row: Row[Any]) -> dict[str, Any]:
    password = None if row.password is None else _digest(row.password)
    return {"roles": row.roles.split(), "login": row.login, "password": password, "state": row.state}


def _read(row: Row[Any], now: int) -> Account:
    until = datetime.fromtimestamp(row.locked_until, UTC) if _locked(row, now) else None
    return Account(row.name, _roles(row.roles), row.login, row.state, until)


def _roles(kept: str) -> frozenset[Role]:
    return frozenset(Role(word) for word in kept.split())


def _locked(row: Row[Any] | None, now: int) -> bool:
    """A lock that would last longer than locks do is of a clock that was wrong."""
    return row is not None and now < row.locked_until <= now + LOCKED_FOR


def _disabled(name: str) -> _Refusal:
    return _Refusal("disabled", f"'{name}' was disabled", "ask a privacy officer for a new account")


def _about(subject: str | None) -> dict[str, str]:
    """The subject as it is written: a name of a plain form, and of anything else the digest."""
    if subject is None:
        return {}
    return {"subject": subject if _SUBJECT.fullmatch(subject) else _digest(subject)}


def _digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'backslashreplace')).hexdigest()}"


def _require_login(login: str) -> None:
    try:
        known = login == os_login() or (0 < len(login) <= _MAX_LOGIN and pwd.getpwnam(login).pw_name == login)
    except (KeyError, ValueError):
        known = False
    if not known:
        raise DataError("is no OS user of this machine", place=repr(login), fix="give the login name of one")


def _utc_now() -> datetime:
    return datetime.now(UTC)
