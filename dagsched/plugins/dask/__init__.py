"""Dask on an environment of ours: its collections, and graphs written by hand.

    dask.config.set(scheduler=dagsched.plugins.dask.get)

See README.md in this folder for what is supported.
"""

from dagsched.plugins.optional import require

require("dask.task_spec", "dask")

from dagsched.plugins.dask.client import Client  # noqa: E402 - after the check
from dagsched.plugins.dask.futures import Future  # noqa: E402
from dagsched.plugins.dask.getting import get  # noqa: E402
from dagsched.plugins.dask.waiting import as_completed, futures_of, wait  # noqa: E402

__all__ = ["Client", "Future", "as_completed", "futures_of", "get", "wait"]
