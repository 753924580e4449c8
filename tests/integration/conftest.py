"""Environments of real processes for integration tests."""

from collections.abc import Iterator

import pytest

from dagsched import RunEnv, procs, rmprocs, setrunenv


@pytest.fixture(autouse=True, scope="session")
def zero_copy_thread() -> None:
    """The one thread that pyzmq starts in a process, and keeps, to free frames sent uncopied."""
    import zmq

    with zmq.Context() as context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as two:
        one.bind("inproc://warm-up")
        two.connect("inproc://warm-up")
        one.send(bytes(1 << 20), copy=False)
        assert len(two.recv()) == 1 << 20


@pytest.fixture
def env() -> Iterator[RunEnv]:
    """One local node with two executors."""
    with RunEnv(executors=2, metastore="memory://") as environment:
        yield environment


@pytest.fixture(autouse=True)
def no_processes_left() -> Iterator[None]:
    """Reserved processes and the default environment don't outlive a test."""
    yield
    setrunenv(None)
    rmprocs(procs()[1:])
