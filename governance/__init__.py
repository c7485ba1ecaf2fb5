"""What reviewers see: so far the report of a run. Consent, rules, audit log and review are not built yet.

May import `models`, `privacy` and `study`.
Must never happen here: a second way out for numbers derived from customers.
"""
