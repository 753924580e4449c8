"""One environment for a module: executors import Dask and pandas once."""

from collections.abc import Iterator

import pytest

from dagsched import RunEnv, setrunenv
from tests import leaks
from tests.integration.conftest import zero_copy_thread

__all__ = ["zero_copy_thread"]


@pytest.fixture(scope="module")
def shared(zero_copy_thread: None) -> Iterator[RunEnv]:
    """One local node with two executors, which leaves nothing behind."""
    before = leaks.look(None)
    with RunEnv(executors=2, metastore="memory://") as environment:
        yield environment
    setrunenv(None)
    left = [what for what in leaks.left_behind(before, None) if "pytest_timeout" not in what]
    assert left == []


@pytest.fixture
def env(shared: RunEnv) -> RunEnv:
    """That environment, in use."""
    setrunenv(shared)
    return shared
