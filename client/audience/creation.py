"""Audiences are made, their members chosen anew, and ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa

from cohortium.client.audience.activation import Activation
from cohortium.client.audience.levels import Level
from cohortium.client.audience.lists import IdList, ListMatch
from cohortium.client.audience.names import check_name
from cohortium.client.audience.scores import ScoresFacts, read_scores_facts, refuse_expired, refuse_foreign
from cohortium.client.audience.selection import Exclusions, Selector
from cohortium.client.audience.store import Audience, AudienceStore, fresh_audience_id
from cohortium.client.audience.work import (
    AUDIENCE_RESOURCES,
    append,
    file_digest,
    snapshot_relation,
    stream,
    workbench,
    write_snapshot,
)
from cohortium.client.onboarding.engine import Engine, Resources
from cohortium.study.errors import DataError, RefusedError
from cohortium.study.plan import MIN_CELL

__all__ = ["LIFETIME_DAYS", "ChosenAudience", "create", "refresh"]

LIFETIME_DAYS = 30
"""How long an audience lasts unless somebody says otherwise."""

_IDS = pa.schema([pa.field("id", pa.string())])


@dataclass(frozen=True)
class ChosenAudience:
    """An audience whose members have just been chosen, and who stayed out. Exact and local."""

    audience: Audience
    excluded: Exclusions
    lists: tuple[ListMatch, ...]


@dataclass(frozen=True)
class _Members:
    """What was chosen and written."""

    scores: str
    members: int
    members_digest: str
    suppressed_digest: str
    excluded: Exclusions
    lists: tuple[ListMatch, ...]


def create(
    store: AudienceStore,
    scores: Path,
    level: Level,
    name: str,
    *,
    min_cell: int,
    activation: Activation,
    suppression: Sequence[IdList] = (),
    expires: date | None = None,
    name_reason: str | None = None,
    replaces: str | None = None,
    resources: Resources = AUDIENCE_RESOURCES,
) -> ChosenAudience:
    """Choose the members of a new audience and record it under a fresh id.

    Args:
        store: where audiences are.
        scores: the scores file.
        level: where on the score it begins.
        name: see `names.check_name`; no other active audience has it.
        min_cell: the plan's; a smaller audience is refused.
        activation: who may be activated.
        suppression: lists of customers who stay out, now and at every `refresh`.
        expires: its last day; after 30 days by default. Never later than the model's.
        name_reason: why a name that suggests something sensitive is right all the same.
        replaces: the id of an active audience that expires in the same instant.
        resources: memory and threads.

    Raises:
        DataError: a scores file or a list that cannot be read as it should be.
        RefusedError: the name, scores of other customers than the node's, an expired model, a day beyond the model's,
            too few members, `replaces` is not active.
        OutputError: the lists cannot be written, or another command works on audiences.
    """
    check_name(name, name_reason)
    facts = read_scores_facts(scores)
    refuse_foreign(facts, store.origin())
    refuse_expired(facts, store.today())
    last_day = _last_day(store, facts, expires)
    if min_cell < MIN_CELL:
        raise DataError(f"the minimum cell is below {MIN_CELL}", place="min_cell", fix="give the plan's")
    with store.locked():
        _refuse_name_in_use(store, name, replaces)
        audience = fresh_audience_id()
        chosen = _choose(store, audience, 1, facts, level, suppression, activation, None, resources)
        _refuse_small(chosen.members, min_cell, "choose a level that reaches further")
        made = Audience(
            id=audience,
            name=name,
            reason=(name_reason or "").strip() or None,
            model=facts.model,
            plan=facts.plan,
            level=level,
            min_cell=min_cell,
            created=store.timestamp(),
            expires=last_day,
            state="active",
            replaced_by=None,
            revision=1,
            scores=chosen.scores,
            members=chosen.members,
            members_digest=chosen.members_digest,
            suppressed_digest=chosen.suppressed_digest,
        )
        store.add(made, replaces)
    return ChosenAudience(made, chosen.excluded, chosen.lists)


def refresh(
    store: AudienceStore,
    audience: str,
    scores: Path,
    *,
    activation: Activation,
    suppression: Sequence[IdList] = (),
    resources: Resources = AUDIENCE_RESOURCES,
) -> ChosenAudience:
    """Choose the members of an active audience anew: same model, same cut-off, newer scores.

    The next export has the changes. Whoever was suppressed before stays out; the lists given now are added.

    Raises:
        DataError: as `create`.
        RefusedError: the audience has expired, the scores are of another model or of other customers, or too few
            members are left.
        OutputError: as `create`.
    """
    facts = read_scores_facts(scores)
    with store.locked():
        old = store.audience(audience)
        _refuse_other_model(store, old, facts)
        kept = snapshot_relation(store.suppressed_file(old.id, old.revision), old.suppressed_digest)
        revision = old.revision + 1
        chosen = _choose(store, old.id, revision, facts, old.level, suppression, activation, kept, resources)
        _refuse_small(chosen.members, old.min_cell, "expire the audience and export its removal")
        new = replace(
            old,
            revision=revision,
            scores=chosen.scores,
            members=chosen.members,
            members_digest=chosen.members_digest,
            suppressed_digest=chosen.suppressed_digest,
        )
        store.renew(new)
    return ChosenAudience(new, chosen.excluded, chosen.lists)


def _choose(
    store: AudienceStore,
    audience: str,
    revision: int,
    facts: ScoresFacts,
    level: Level,
    suppression: Sequence[IdList],
    activation: Activation,
    kept: str | None,
    resources: Resources,
) -> _Members:
    excluded, digest = Exclusions(), file_digest(facts.path)
    with workbench(store.folder, resources) as engine:
        selector = Selector(engine, facts, suppression, activation, kept)
        engine.run("choosing", "CREATE TABLE members (id VARCHAR)", facts.path.name)
        for chosen in selector.chosen(level.cutoff):
            append(engine, "members", {"id": chosen.ids}, facts.path.name)
            excluded += chosen.excluded
        ((members,),) = engine.run("counting", "SELECT count(*) FROM members", facts.path.name)
        members_digest = _write_ids(engine, "members", store.members_file(audience, revision))
        suppressed_digest = _write_ids(engine, "suppressed", store.suppressed_file(audience, revision))
    if file_digest(facts.path) != digest:
        raise DataError("was changed while it was read", place=facts.path.name, fix="wait until scoring has ended")
    return _Members(digest, int(members), members_digest, suppressed_digest, excluded, selector.matches)


def _write_ids(engine: Engine, table: str, path: Path) -> str:
    return write_snapshot(path, _IDS, stream(engine, f"SELECT DISTINCT id FROM {table} ORDER BY id", path.name))


def _last_day(store: AudienceStore, facts: ScoresFacts, asked: date | None) -> date:
    if asked is None:
        return min(store.today() + timedelta(days=LIFETIME_DAYS), facts.expires)
    if not store.today() <= asked <= facts.expires:
        raise RefusedError(
            "the audience's last day is past, or later than the model's",
            place="expires",
            fix=f"give a day from today up to {facts.expires.isoformat()}",
        )
    return asked


def _refuse_name_in_use(store: AudienceStore, name: str, replaces: str | None) -> None:
    if replaces is not None and store.is_expired(store.audience(replaces)):
        raise RefusedError("the audience to replace has expired", place="replaces", fix="create without replacing")
    active = [a for a in store.audiences() if not store.is_expired(a) and a.id != replaces]
    if any(other.name == name for other in active):
        raise RefusedError(
            "an active audience has this name", place="audience", fix="use another name, refresh that one or replace it"
        )


def _refuse_other_model(store: AudienceStore, audience: Audience, facts: ScoresFacts) -> None:
    if store.is_expired(audience):
        raise RefusedError("the audience has expired", place=audience.id, fix="create a new one")
    refuse_foreign(facts, store.origin())
    refuse_expired(facts, store.today())
    if (facts.model, facts.plan) != (audience.model, audience.plan):
        raise RefusedError(
            "the scores are of another model than the audience",
            place=facts.path.name,
            fix="create a new audience that replaces this one",
        )


def _refuse_small(members: int, min_cell: int, fix: str) -> None:
    if members < min_cell:
        raise RefusedError(f"fewer than {min_cell} members are left", place="audience", fix=fix)
