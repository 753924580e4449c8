"""The client's ends of broker processes."""

import os
import subprocess
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from dagsched.brokers.launch import GOODBYE, Lifeline
from dagsched.config import Config
from dagsched.launching import BrokerProcess, BrokerProcesses
from dagsched.nodes import NodeEnv


def test_nobody_closes_a_lifeline_while_goodbye_is_said(caplog: Any) -> None:
    """A write whose descriptor another thread closes fails with EBADF, or ends up elsewhere."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    size = os.write(write_end, bytes(1 << 20))  # full, so that a goodbye has to wait
    os.set_blocking(write_end, True)
    process = subprocess.Popen(["true"])
    process.wait()
    lifeline = Lifeline(write_end)
    processes = BrokerProcesses(cast("Any", None), Config())
    node = NodeEnv(2, "127.0.0.1", [3])
    processes._started.append(BrokerProcess(node, process, "prefix", Path("log"), lifeline))
    client = threading.Thread(target=processes.let_go)
    master = threading.Thread(target=processes.close_lifelines)
    client.start()
    while not processes._lifelines.locked():
        assert client.is_alive()
    master.start()
    master.join(0.1)
    assert master.is_alive()
    assert not lifeline.is_closed
    assert os.read(read_end, size) == bytes(size)
    client.join()
    master.join()
    assert lifeline.is_closed
    assert os.read(read_end, 2) == GOODBYE
    os.close(read_end)
    assert not caplog.records


def test_what_has_the_number_of_a_closed_lifeline_is_left_alone() -> None:
    read_end, write_end = os.pipe()
    lifeline = Lifeline(write_end)
    other_read_end, other_write_end = os.pipe()
    os.dup2(other_write_end, write_end)
    with pytest.raises(OSError, match="Bad file descriptor"):
        lifeline.write(GOODBYE)
    lifeline.close()
    assert lifeline.is_closed
    os.write(write_end, b"x")  # it is still open
    assert os.read(other_read_end, 2) == b"x"
    for fd in (read_end, write_end, other_read_end, other_write_end):
        os.close(fd)
