"""The institution's side: data onboarding, the node's durable store, the Flower ClientApp that answers questions.

May import `governance`, `models`, `privacy` and `study`; never `server`.
Must never happen here: a reply that the door did not seal, a customer value in an exception, log line or metric.
"""
