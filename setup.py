"""Find the subpackages of every room, so that a new one can never be missing from a wheel."""

from pathlib import Path

from setuptools import setup

ROOMS = ("study", "models", "privacy", "governance", "client", "server", "simulations", "cli")

setup(
    packages=[
        "cohortium." + ".".join(init.parent.parts) for room in ROOMS for init in sorted(Path(room).rglob("__init__.py"))
    ],
)
