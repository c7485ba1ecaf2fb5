"""What makes a federation answerable: reports, consent, rules, the audit log, fairness audits, review.

Reports are drawn by runs. The other parts stand beside them: nothing in `client` or `server` asks them yet.

May import `models`, `privacy` and `study`.
Must never happen here: a second way out for numbers derived from customers.
"""
