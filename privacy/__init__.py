"""Sum queries, noise, accounting, the budget ledger and the one door through which anything leaves.

May import `study` only; what it needs from above it names as protocols that `client` wires.
Must never happen here: float noise, a release without a durable charge, randomness from anywhere but `randomness`.
"""
