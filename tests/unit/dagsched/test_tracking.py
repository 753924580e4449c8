"""Events for a listener: addresses, lines, and that nobody waits for it."""

import json
import socket
import tempfile
import threading

import pytest

from dagsched import tracking
from dagsched.errors import DagschedError
from dagsched.master.events import OutputsComplete, RunEnded, RunProgressed
from dagsched.tracking import ADDRESS_VARIABLE, Tracker, event_line, track_address


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    assert track_address(False) is None
    assert track_address("host:99") == "host:99"
    assert track_address("unix:/a/b") == "unix:/a/b"
    monkeypatch.setenv(ADDRESS_VARIABLE, "there:1")
    assert track_address(True) == "there:1"


@pytest.mark.parametrize("address", ["host", "host:", ":5", "unix:", "host:x", ""])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match="is not valid: it is host:port or unix:PATH"):
        track_address(address)


def test_true_needs_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    with pytest.raises(ValueError, match=f"set {ADDRESS_VARIABLE}"):
        track_address(True)


def test_lines_hold_plain_fields_and_lengths_of_the_rest() -> None:
    line = json.loads(event_line(RunProgressed(3, 5, 9), "cafe"))
    assert line.pop("time") > 0
    assert line == {
        "env": "cafe",
        "event": "RunProgressed",
        "run": "00000000-3",
        "done_count": 5,
        "total": 9,
    }
    line = json.loads(event_line(OutputsComplete(3, [(2, None, b"x")]), "cafe"))  # type: ignore[list-item]
    assert line["objects_length"] == 1
    ended = RunEnded(3, "done", None, b"secret", None, [], [2, 2])
    line = json.loads(event_line(ended, "cafe"))
    assert (line["state"], line["failure_frame_length"]) == ("done", 6)
    with pytest.raises(DagschedError, match="int is no event"):
        event_line(5, "cafe")


def test_a_listener_gets_every_line_in_order() -> None:
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{directory}/s")
        server.listen()
        tracker = Tracker(f"unix:{directory}/s", "cafe")
        for number in range(100):
            tracker.put(RunProgressed(1, number, 100))
        tracker.open()
        connection, _ = server.accept()
        tracker.close()
        with connection, connection.makefile() as lines:
            assert [json.loads(line)["done_count"] for line in lines] == list(range(100))
    assert tracker.dropped_count == 0


def test_what_nobody_takes_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "QUEUE_EVENTS_MAX", 10)
    tracker = Tracker("unix:/nowhere/at/all", "cafe")
    tracker.open()
    for number in range(15):
        tracker.put(RunProgressed(1, number, 15))
    tracker.close()
    assert tracker.dropped_count == 5
    assert not any(thread.name == "dagsched-track" for thread in threading.enumerate())
