"""Audiences at an institution: previewed, created, exported and expired from its own scores file.

May import what `client` may. The operator's files come in; files for the institution's marketing systems go out.
Must never happen here: a row sent through the federation, a customer value in a message, half an export, an id reused.
"""

from cohortium.client.audience.activation import Activation, Clearance, EverybodyAllowed
from cohortium.client.audience.creation import ChosenAudience, create, refresh
from cohortium.client.audience.destination import Destination
from cohortium.client.audience.exports import export, export_removal, export_withdrawals
from cohortium.client.audience.levels import Level, custom_level
from cohortium.client.audience.lifecycle import (
    LOOKALIKE_LIMIT,
    ListedAudience,
    expire,
    exported_ids,
    list_audiences,
    looks_like_audience,
)
from cohortium.client.audience.lists import Contacts, IdList, ListMatch
from cohortium.client.audience.manifest import EXPORT_SCHEMA, ExportManifest, read_manifest
from cohortium.client.audience.normalise import Column, PhoneRules, parse_column
from cohortium.client.audience.previews import LevelSize, Preview, preview
from cohortium.client.audience.recovery import recover, settle
from cohortium.client.audience.scores import (
    SCORES_COLUMNS,
    SCORES_SCHEMA,
    ScoresFacts,
    ScoresOrigin,
    iterate_scores,
    read_scores_facts,
)
from cohortium.client.audience.selection import Exclusions
from cohortium.client.audience.store import Audience, AudienceStore, ExportRecord

__all__ = [
    "EXPORT_SCHEMA",
    "LOOKALIKE_LIMIT",
    "SCORES_COLUMNS",
    "SCORES_SCHEMA",
    "Activation",
    "Audience",
    "AudienceStore",
    "ChosenAudience",
    "Clearance",
    "Column",
    "Contacts",
    "Destination",
    "EverybodyAllowed",
    "Exclusions",
    "ExportManifest",
    "ExportRecord",
    "IdList",
    "Level",
    "LevelSize",
    "ListMatch",
    "ListedAudience",
    "PhoneRules",
    "Preview",
    "ScoresFacts",
    "ScoresOrigin",
    "create",
    "custom_level",
    "expire",
    "export",
    "export_removal",
    "export_withdrawals",
    "exported_ids",
    "iterate_scores",
    "list_audiences",
    "looks_like_audience",
    "parse_column",
    "preview",
    "read_manifest",
    "read_scores_facts",
    "recover",
    "refresh",
    "settle",
]
