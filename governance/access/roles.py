"""Roles, privileged acts, and which role may do which act. What is not listed, nobody may do."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

__all__ = ["FIRST_ROLES", "PERMITTED", "Act", "Role"]


class Role(StrEnum):
    """What somebody answers for. An account may have several."""

    OPERATOR = "operator"
    PRIVACY_OFFICER = "privacy-officer"
    REVIEWER = "reviewer"
    RESEARCHER = "researcher"
    AUDITOR = "auditor"


class Act(StrEnum):
    """Everything that needs a role at a node or a coordinator."""

    NODE_START = "node-start"
    NODE_JOIN = "node-join"
    KEY_ROTATE = "key-rotate"
    COORDINATOR_START = "coordinator-start"
    MEMBER_ENROL = "member-enrol"
    MEMBER_REVOKE = "member-revoke"
    MEMBER_READ = "member-read"
    STUDY_PROPOSE = "study-propose"
    STUDY_REVIEW = "study-review"
    STUDY_APPROVE = "study-approve"
    STUDY_RUN = "study-run"
    STUDY_STOP = "study-stop"
    STUDY_READ = "study-read"
    CUSTOMERS_CHANGE = "customers-change"
    CONSENT_CHANGE = "consent-change"
    CONSENT_READ = "consent-read"
    SEED_CHANGE = "seed-change"
    SEED_READ = "seed-read"
    MODEL_ADD = "model-add"
    SCORE = "score"
    AUDIENCE_CREATE = "audience-create"
    AUDIENCE_EXPORT = "audience-export"
    AUDIENCE_READ = "audience-read"
    RETENTION_RUN = "retention-run"
    RETENTION_CHANGE = "retention-change"
    RETENTION_READ = "retention-read"
    REVIEW_OPEN = "review-open"
    REVIEW_SIGN = "review-sign"
    REVIEW_READ = "review-read"
    REVIEWER_ENROL = "reviewer-enrol"
    EVIDENCE_BUILD = "evidence-build"
    LEDGER_READ = "ledger-read"
    LOG_READ = "log-read"
    LOG_WITNESS = "log-witness"
    BACKUP_MAKE = "backup-make"
    BACKUP_RESTORE = "backup-restore"
    ACCOUNT_CHANGE = "account-change"
    ACCOUNT_READ = "account-read"
    PASSWORD_CHANGE = "password-change"


_OPERATOR, _OFFICER = Role.OPERATOR, Role.PRIVACY_OFFICER
_REVIEWER, _RESEARCHER, _AUDITOR = Role.REVIEWER, Role.RESEARCHER, Role.AUDITOR

PERMITTED: Mapping[Act, frozenset[Role]] = MappingProxyType(
    {
        Act.NODE_START: frozenset({_OPERATOR}),
        Act.NODE_JOIN: frozenset({_OPERATOR}),
        Act.KEY_ROTATE: frozenset({_OPERATOR}),
        Act.COORDINATOR_START: frozenset({_OPERATOR}),
        Act.MEMBER_ENROL: frozenset({_OPERATOR}),
        Act.MEMBER_REVOKE: frozenset({_OPERATOR, _OFFICER}),
        Act.MEMBER_READ: frozenset({_OPERATOR, _OFFICER, _AUDITOR}),
        Act.STUDY_PROPOSE: frozenset({_OPERATOR}),
        Act.STUDY_REVIEW: frozenset({_OPERATOR, _OFFICER, _REVIEWER}),
        Act.STUDY_APPROVE: frozenset({_OFFICER}),
        Act.STUDY_RUN: frozenset({_OPERATOR}),
        Act.STUDY_STOP: frozenset({_OPERATOR, _OFFICER}),
        Act.STUDY_READ: frozenset({_OPERATOR, _OFFICER, _REVIEWER, _AUDITOR}),
        Act.CUSTOMERS_CHANGE: frozenset({_OPERATOR}),
        Act.CONSENT_CHANGE: frozenset({_OFFICER}),
        Act.CONSENT_READ: frozenset({_OFFICER}),
        Act.SEED_CHANGE: frozenset({_OPERATOR}),
        Act.SEED_READ: frozenset({_OPERATOR, _OFFICER}),
        Act.MODEL_ADD: frozenset({_OPERATOR, _OFFICER}),
        Act.SCORE: frozenset({_OPERATOR, _RESEARCHER}),
        Act.AUDIENCE_CREATE: frozenset({_OPERATOR}),
        Act.AUDIENCE_EXPORT: frozenset({_OPERATOR}),
        Act.AUDIENCE_READ: frozenset({_OPERATOR, _OFFICER}),
        Act.RETENTION_RUN: frozenset({_OPERATOR, _OFFICER}),
        Act.RETENTION_CHANGE: frozenset({_OFFICER}),
        Act.RETENTION_READ: frozenset({_OPERATOR, _OFFICER, _AUDITOR}),
        Act.REVIEW_OPEN: frozenset({_OPERATOR, _OFFICER, _REVIEWER}),
        Act.REVIEW_SIGN: frozenset({_REVIEWER}),
        Act.REVIEW_READ: frozenset({_OPERATOR, _OFFICER, _REVIEWER, _AUDITOR}),
        Act.REVIEWER_ENROL: frozenset({_OFFICER}),
        Act.EVIDENCE_BUILD: frozenset({_OPERATOR, _OFFICER, _AUDITOR}),
        Act.LEDGER_READ: frozenset({_OPERATOR, _OFFICER, _AUDITOR}),
        Act.LOG_READ: frozenset({_OPERATOR, _OFFICER, _AUDITOR}),
        Act.LOG_WITNESS: frozenset({_OPERATOR}),
        Act.BACKUP_MAKE: frozenset({_OPERATOR}),
        Act.BACKUP_RESTORE: frozenset({_OPERATOR}),
        Act.ACCOUNT_CHANGE: frozenset({_OFFICER}),
        Act.ACCOUNT_READ: frozenset({_OPERATOR, _OFFICER, _AUDITOR}),
        Act.PASSWORD_CHANGE: frozenset(Role),
    }
)
"""For every act the roles that may do it; each is enough."""

FIRST_ROLES = frozenset({_OPERATOR, _OFFICER})
"""Of the first account of a folder: somebody has to make the others."""
