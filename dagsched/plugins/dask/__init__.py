"""Dask on an environment of ours: its collections, and graphs written by hand.

    dask.config.set(scheduler=dagsched.plugins.dask.get)

See README.md in this folder for what is supported.
"""

from dagsched.plugins.dask.getting import get

__all__ = ["get"]
