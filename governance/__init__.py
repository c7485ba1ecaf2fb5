"""What makes a federation answerable: reports, consent, rules, the audit log, fairness audits, review.

Nodes ask consent and rules and write the audit log, which the others witness; runs draw reports. Review is asked by no
run or export yet, and a fairness audit is not part of any other run.

May import `models`, `privacy` and `study`.
Must never happen here: a second way out for numbers derived from customers.
"""
