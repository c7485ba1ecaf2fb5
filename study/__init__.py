"""What the parties agree on: contract, plan, charter, wire records, bundle, errors.

May import nothing of cohortium. Everything here is frozen, validated on construction and has one canonical digest.
Must never happen here: reading customer data, drawing noise, talking to a network.
"""
