"""What is wrong with a rule pack or a fact sheet, in one line: file, rule, field, fix."""

from __future__ import annotations

from cohortium.study.errors import CohortiumError

__all__ = ["FactError", "RuleError"]


class RuleError(CohortiumError):
    """A rule pack that does not hold together, or packs that do not go together."""


class FactError(CohortiumError):
    """A fact that is unknown to the schema, of the wrong type, or stated twice with two values."""
