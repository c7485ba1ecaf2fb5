"""The coordinator's side: the Flower ServerApp that walks a plan's phases and adds up what institutions release.

May import `governance`, `models`, `privacy` and `study`; never `client`.
Must never happen here: reading a customer table.
"""
