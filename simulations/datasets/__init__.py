"""Public data sets for experiments: fetched at run time, checked against pinned digests, never shipped.

Each set has a feature contract beside this file. Licences are mostly unstated: `describe` says what is known.
"""

from cohortium.simulations.datasets.catalogue import DataSet, contract_text, describe, load_packaged_contract, names
from cohortium.simulations.datasets.download import Fetched, cache_folder, fetch, unavailable_reason

__all__ = [
    "DataSet",
    "Fetched",
    "cache_folder",
    "contract_text",
    "describe",
    "fetch",
    "load_packaged_contract",
    "names",
    "unavailable_reason",
]
