"""Dask on an environment of ours: its collections, and graphs written by hand.

    dask.config.set(scheduler=dagsched.plugins.dask.get)

See README.md in this folder for what is supported.
"""

from dagsched.plugins.dask.client import Client, as_completed, wait
from dagsched.plugins.dask.futures import Future
from dagsched.plugins.dask.getting import get

__all__ = ["Client", "Future", "as_completed", "get", "wait"]
