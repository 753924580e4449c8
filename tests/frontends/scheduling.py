"""A plugin of pytest for Dask's own tests: whatever they compute runs on the scheduler under test.

    python -m pytest -p tests.frontends.scheduling --pyargs dask.tests.test_delayed

`DAGSCHED_DASK_SCHEDULER` names it: "dagsched", or "processes" for Dask's multiprocessing scheduler,
with which ours is compared. Also where a test names one of Dask's schedulers, as most do to
be quick, the one under test is taken.
"""

import os
from collections.abc import Iterator
from typing import Any

import dask
import dask.base
import pytest

SCHEDULER = os.environ.get("DAGSCHED_DASK_SCHEDULER", "dagsched")
MARKERS = ("slow", "network", "gpu", "array_expr", "skip_with_pyarrow_strings",
           "xfail_with_pyarrow_strings", "normalize_token")  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    for name in MARKERS:
        config.addinivalue_line("markers", f"{name}: of Dask's own")


@pytest.fixture(autouse=True, scope="session")
def scheduler_under_test() -> Iterator[None]:
    if SCHEDULER == "processes":
        from dask.multiprocessing import get

        # It makes a pool for each computation, which is quick only by forking.
        with dask.config.set({"multiprocessing.context": "fork", "num_workers": 2}):
            yield from scheduling_by(get)
        return
    from dagsched import Config, RunEnv, setrunenv
    from dagsched.plugins.dask import get

    # None of these tests is about lost nodes, and without its only one all that follow fail.
    config = Config(lease_s=60)
    with RunEnv(executors=2, metastore="memory://", config=config) as env:
        setrunenv(env)
        yield from scheduling_by(get)
        setrunenv(None)


def scheduling_by(get: Any) -> Iterator[None]:
    named = dask.base.named_schedulers
    before = dict(named)
    named.update(dict.fromkeys(named, get))
    try:
        with dask.config.set(scheduler=get):
            yield
    finally:
        named.update(before)
