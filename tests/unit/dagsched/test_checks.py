"""Messages that make no sense: each rule, broken alone."""

import numpy as np
import pytest
from msgspec.structs import replace

from dagsched.errors import ProtocolError
from dagsched.protocol import messages as m
from dagsched.protocol.checks import POSITIONS_MAX, check_parcel

TOTAL = 10
FUNCTION = m.FunctionInfo(0, b"0123456789abcdef", "f", None)
PLACE = m.PlaceSubtree(1, 1, 0, 1, 2, 5, TOTAL, 0, [(FUNCTION, True)], [m.TaskOptions(3)])


def ints(*values):
    return np.array(values, "<i4").tobytes()


def longs(*values):
    return np.array(values, "<i8").tobytes()


FRAMES = {
    "members": b"",
    "indptr": ints(0, 1, 2, 4),
    "deps": ints(1, 2, 3, 9),
    "function_of": ints(0, 0, 0),
    "flags": bytes(3),
    "levels": b"",
    "imports": ints(1, 9),
    "brokers": ints(3, 0),
    "chunk": b"chunk",
    "function": b"pickle",
}


def check(message, *frames, total=TOTAL):
    check_parcel(message, frames, lambda run: total)


def place(message=PLACE, **frames):
    check(message, *(FRAMES | frames).values())


def test_an_honest_subtree():
    place()
    place(levels=ints(2, 4))
    place(members=ints(2, 3), indptr=ints(0, 1, 2, 2), deps=ints(1, 2))
    check_parcel(PLACE, list(FRAMES.values()), lambda run: None)


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ({"indptr": ints(0, 1, 4)}, "indptr of 3 for 3 tasks"),
        ({"indptr": ints(1, 1, 2, 4)}, "doesn't fit"),
        ({"indptr": ints(0, 1, 2, 3)}, "doesn't fit"),
        ({"indptr": ints(0, 3, 2, 4)}, "doesn't fit"),
        ({"indptr": b"odd"}, "indptr of 3 bytes"),
        ({"deps": ints(1, 2, 3, 10)}, "deps 1 to 10 of 10"),
        ({"deps": ints(-1, 2, 3, 9)}, "deps -1 to 9"),
        ({"deps": ints(1, 3, 3, 9)}, "comes before what it needs"),
        ({"deps": ints(0, 2, 3, 9)}, "no imports"),
        ({"function_of": ints(0, 0)}, "functions of 2 tasks"),
        ({"function_of": ints(0, 1, 0)}, "doesn't name"),
        ({"function_of": ints(0, -1, 0)}, "doesn't name"),
        ({"flags": bytes(2)}, "flags of 2"),
        ({"levels": ints(1, 4)}, "levels"),
        ({"levels": ints(4, 2)}, "levels"),
        ({"levels": ints(2, 5)}, "levels"),
        ({"imports": ints(9, 1)}, "imports that don't rise"),
        ({"imports": b"", "brokers": b""}, "no imports"),
        ({"brokers": ints(3)}, "brokers for some"),
        ({"members": ints(3, 3)}, "members"),
        ({"members": ints(1, 3)}, "members"),
        ({"members": ints(2, 5)}, "members"),
        ({"members": ints(2, 3)}, "no members"),
        ({"members": ints(3, 4), "indptr": ints(0, 0, 1, 2), "deps": ints(2, 3)}, "no imports"),
    ],
)
def test_arrays_of_a_subtree(frames, text):
    with pytest.raises(ProtocolError, match=text):
        place(**frames)


@pytest.mark.parametrize(
    "changes",
    [
        {"lo": 5}, {"lo": -1}, {"hi": 11}, {"total": 4}, {"total": 11},
        {"total": POSITIONS_MAX + 1},
        {"functions": []}, {"functions": [(replace(FUNCTION, index=TOTAL), True)]},
        {"functions": [(replace(FUNCTION, index=-1), True)]}, {"functions": [(FUNCTION, False)]},
        {"options": [m.TaskOptions(5)]}, {"options": [m.TaskOptions(3, retries=-1)]},
        {"options": [m.TaskOptions(3, timeout_s=0.0)]},
        {"options": [m.TaskOptions(3, timeout_s=float("nan"))]},
        {"options": [m.TaskOptions(3, crash_limit=0)]},
    ],
)  # fmt: skip
def test_numbers_of_a_subtree(changes):
    with pytest.raises(ProtocolError, match="PlaceSubtree"):
        place(replace(PLACE, **changes))


INFO = m.ObjectInfo(2, 3, 100)
PLACED = replace(INFO, location=m.Location("name", 0, 100))


@pytest.mark.parametrize(
    ("message", "frames"),
    [
        (m.Release(1), [ints(0, 9)]),
        (m.PutObjects(1, (9,)), [b"bytes"]),
        (m.Relocate(1), [ints(1, 2), ints(3, 0)]),
        (m.OutputsReady(1, 1, (INFO, PLACED)), [b"inline"]),
        (m.TaskTrace(1, 3, 1), [ints(4), longs(1, 2), longs(7, 1, 0, 0), longs(4, 1, 9)]),
        (
            m.TaskTrace(1, 3, 1),
            [
                ints(4, m.TRACE_GAP, 2),
                longs(1, 2, 5, 6),
                longs(7, 1, 0, 0, 8, 1, 5, 6),
                longs(4, 1, 9, 2, 3, 60),
            ],
        ),
        (m.TaskTrace(1, 3, 1), [ints(4, -1, 2), longs(1, 2, 5, 6), longs(7, 3, 0, 0), b""]),
        (m.NodeTrace(1), [b"", b""]),
        (m.NodeTrace(1), [longs(9, 1, 3, 80, -1, 5, 6), longs(7, 3, 2, 80, 5, 6)]),
        (m.SubtreeDone(1, 1, 0, 1, ((0, 1, 0.5),)), [ints(4), longs(8)]),
        (m.TaskFailed(1, 1, m.Failure(9, 1, "raised")), [b"pickle"]),
        (m.TaskFailed(1, 1, m.Failure(9, 1, "lost")), []),
        (m.Value(7, None), []),
        (m.Value(7, PLACED), []),
        (m.ObjectsData(1, (INFO,)), [b"inline"]),
        (m.ObjectsData(1, (INFO,), info_only=True), []),
        (m.TransferStart(1, 1, INFO), []),
        (m.Ping(1), []),
        (m.AskWhere(1, 9), []),
        (m.SetPeers(((3, 1, "ipc://x"),)), []),
        (m.SetPeers((), (3,)), []),
    ],
)
def test_honest_messages(message, frames):
    check(message, *frames)
    for wrong in (frames[:-1], [*frames, b"more"]):
        if wrong != frames:
            with pytest.raises(ProtocolError):
                check(message, *wrong)


@pytest.mark.parametrize(
    ("message", "frames"),
    [
        (m.Release(1), [ints(10)]),
        (m.Release(1), [ints(-1)]),
        (m.PutObjects(1, (10,)), [b"bytes"]),
        (m.PutObjects(1, (9,)), [b""]),
        (m.Relocate(1), [ints(1, 2), ints(3)]),
        (m.OutputsReady(1, 1, (replace(INFO, first=8),)), [b"inline"]),
        (m.OutputsReady(1, 1, (replace(INFO, count=0),)), [b"inline"]),
        (m.OutputsReady(1, 1, (replace(INFO, size_bytes=-1),)), [b"inline"]),
        (m.OutputsReady(1, 1, (replace(INFO, location=m.Location("a/b", 0, 9)),)), []),
        (m.OutputsReady(1, 1, (replace(INFO, location=m.Location("a", -1, 9)),)), []),
        (m.TaskTrace(1, 3, 1), [ints(4), longs(1), longs(7, 1, 0, 0), b""]),
        (m.TaskTrace(1, 3, 1), [ints(-2), longs(1, 2), longs(7, 1, 0, 0), b""]),
        (m.TaskTrace(1, 3, 1), [ints(4), longs(1, 2), b"", b""]),
        (m.TaskTrace(1, 3, 1), [ints(4), longs(1, 2), longs(7, 1, 0), b""]),
        (m.TaskTrace(1, 3, 1), [ints(4), longs(1, 2), longs(7, 2, 0, 0), b""]),
        (m.TaskTrace(1, 3, 1), [ints(4), longs(1, 2), longs(7, 1, -1, 0), b""]),
        (
            m.TaskTrace(1, 3, 1),
            [ints(4, 5), longs(1, 2, 3), longs(7, 2, 0, 0, 7, -1, 0, 0), b""],
        ),
        (m.TaskTrace(1, 3, 1), [ints(4), longs(1, 2), longs(7, 1, 0, 0), longs(4, 7, 9)]),
        (m.TaskTrace(1, 3, 1), [ints(4), longs(1, 2), longs(7, 1, 0, 0), longs(4, 1, -9)]),
        (m.NodeTrace(1), [longs(10, 1, 3, 80, -1, 5, 6), b""]),
        (m.NodeTrace(1), [longs(9, 0, 3, 80, -1, 5, 6), b""]),
        (m.NodeTrace(1), [longs(9, 1, 3, 80, -1, 5), b""]),
        (m.NodeTrace(1), [b"", longs(7, 3, 3, 80, 5, 6)]),
        (m.NodeTrace(1), [b"", longs(7, 4, 2, 80, 5, 6)]),
        (m.SubtreeDone(1, 1, 0, 1, ()), [ints(4), longs(-8)]),
        (m.SubtreeDone(1, 1, 0, 1, ()), [ints(4), longs(8, 8)]),
        (m.SubtreeDone(1, 1, 0, 1, ((0, 1, float("nan")),)), [ints(4), longs(8)]),
        (m.TaskFailed(1, 1, m.Failure(10, 1, "lost")), []),
        (m.TaskExpanded(1, 1, 10), []),
        (m.ObjectsData(1, (PLACED,)), [b"inline"]),
        (m.TransferStart(1, 1, replace(INFO, size_bytes=0)), []),
        (m.TransferStart(1, 1, PLACED), []),
        (m.TransferChunk(1, -1), [b"bytes"]),
        (m.AskWhere(1, 10), []),
        (m.Redirect(1, 0, 1, -1, 2), []),
        (m.EndRun(1, (10,)), []),
        (m.CancelRun(1, -1.0), []),
        (m.SetExecutors((3, 3)), []),
        (m.SetExecutors((0,)), []),
        (m.SetPeers(((3, 0, "ipc://x"),)), []),
        (m.SetPeers((), (0,)), []),
        (m.SetPeers(((3, 1, "inproc://x"),)), []),
        (m.Holdings(1, 1, ()), [b""] * 5),
        (m.Holdings(1, 1, ()), [b"", b"", b"1234", b"", b"", b""]),
        (m.Ping(1), [b"frame"]),
    ],
)
def test_messages_that_make_no_sense(message, frames):
    with pytest.raises(ProtocolError, match=type(message).__name__):
        check(message, *frames)
