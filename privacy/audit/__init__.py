"""The empirical privacy audit: attacks on real releases that bound their privacy loss from below, and noise tests.

May import `study` and the rest of `privacy`.
Must never happen here: a promise. An audit can refute a claim; it can never prove one.
"""
