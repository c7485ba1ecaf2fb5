"""The page of a bias audit: the verdict, every number beside its limit, what is not known, and how to read it."""
