"""The fold of a journal: what counts, what is dropped, what is an error."""

import re
import struct
import zlib

import pytest

from dagsched.errors import StoreUnavailable, VersionMismatch
from dagsched.metastore.fold import Entry, Output, fold_entries, fold_records, missing_subtrees
from dagsched.metastore.records import (
    PART_BYTES,
    VERSION,
    Ended,
    Failed,
    Outputs,
    Placed,
    Record,
    Submitted,
    SubtreeDone,
    encode_record,
)
from dagsched.protocol.messages import Failure, Location, ObjectInfo

INLINE = ObjectInfo(9, 1, 3)
STORED = ObjectInfo(8, 1, 50_000, Location("seg", 0, 50_000))
DONE = [SubtreeDone(1, subtree, 1, 2, b"", b"") for subtree in range(3)]
HISTORY: list[Record] = [
    Submitted(0, None, (b"plan",)),
    Placed(1, ((0, 2, 1), (1, 5, 1), (2, 2, 1))),
    DONE[0],
    DONE[1],
    Placed(2, ((2, 5, 2),)),
    DONE[2],
    Outputs(2, ((5, INLINE), (2, STORED)), (b"abc",)),
    Ended("done"),
]


def entries_of(records: list[Record]) -> list[Entry]:
    return [
        Entry(position, b"".join(encode_record(record, group=position)))
        for position, record in enumerate(records, 1)
    ]


def test_a_whole_journal() -> None:
    state = fold_entries("s", entries_of(HISTORY))
    assert state.submitted == HISTORY[0]
    assert state.placements == {0: (2, 1, 1), 1: (5, 1, 1), 2: (5, 2, 2)}
    assert state.done == dict(enumerate(DONE))
    assert state.outputs == {9: Output(5, 2, INLINE, b"abc"), 8: Output(2, 2, STORED, None)}
    assert (state.state, state.epoch, state.record_count) == ("done", 2, 8)
    assert (state.next_position, state.dropped) == (9, None)
    assert missing_subtrees(state, 5) == [3, 4]


def test_an_empty_journal() -> None:
    state = fold_entries("s", [])
    assert (state.state, state.next_position, state.submitted) == ("absent", 1, None)


def test_records_and_their_bytes_fold_alike() -> None:
    folded = fold_records("s", HISTORY)
    folded.next_position = len(HISTORY) + 1
    assert folded == fold_entries("s", entries_of(HISTORY))


def test_repeated_entries_count_once() -> None:
    entries = entries_of(HISTORY)
    repeated = [*entries[:4], entries[1], entries[3], *entries[4:], entries[0]]
    assert fold_entries("s", repeated) == fold_entries("s", entries)


def test_repeated_records_change_nothing() -> None:
    once = fold_records("s", HISTORY)
    twice = fold_records("s", [record for record in HISTORY for _ in range(2)])
    twice.record_count = once.record_count
    assert twice == once


def test_what_an_older_epoch_says_later_does_not_count() -> None:
    late = [*HISTORY, Placed(1, ((2, 2, 1),)), SubtreeDone(0, 1, 9, 7, b"", b"")]
    state = fold_records("s", late)
    assert state.placements[2] == (5, 2, 2)
    assert state.done[1] == DONE[1]


def test_the_first_failure_counts() -> None:
    first, second = (Failed(Failure(position, 1, "raised"), b"e") for position in (4, 5))
    assert fold_records("s", [first, second]).failed == first


def test_a_journal_cut_at_each_byte_of_its_last_entry() -> None:
    entries = entries_of(HISTORY)
    last = entries[-2]
    before = fold_entries("s", entries[:-2])
    for length in range(1, len(last.data)):
        state = fold_entries("s", [*entries[:-2], Entry(last.position, last.data[:length])])
        assert state.dropped is not None
        assert re.fullmatch(r"stream s, position 7, byte 0: the .* is cut off", state.dropped)
        state.dropped = None
        assert state == before


def test_a_changed_byte_in_the_last_entry_drops_it() -> None:
    entries = entries_of(HISTORY)
    data = bytearray(entries[-1].data)
    data[-1] ^= 1
    state = fold_entries("s", [*entries[:-1], Entry(8, bytes(data))])
    assert state.dropped == "stream s, position 8, byte 0: the checksum is wrong"
    assert (state.state, state.next_position) == ("open", 8)


def test_damage_in_the_middle_names_stream_and_position() -> None:
    entries = entries_of(HISTORY)
    entries[3] = Entry(4, b"garbage, garbage")
    with pytest.raises(StoreUnavailable, match="stream s, position 4, byte 0: no record begins"):
        fold_entries("s", entries)


def test_a_lacking_entry_names_stream_and_position() -> None:
    entries = entries_of(HISTORY)
    with pytest.raises(StoreUnavailable, match="stream s, position 3 to 4"):
        fold_entries("s", [*entries[:2], *entries[4:]])


def test_a_newer_record_is_refused() -> None:
    head = struct.pack("<2sBxI", b"dJ", VERSION + 1, 1)
    frame = head + struct.pack("<I", zlib.crc32(b"\xc0", zlib.crc32(head))) + b"\xc0"
    with pytest.raises(VersionMismatch, match=r"version 2.*version 1"):
        fold_entries("s", [*entries_of(HISTORY), Entry(9, frame)])


def test_a_large_record_is_joined_across_entries() -> None:
    record = Submitted(0, None, (bytes(PART_BYTES), b"x"))
    entries = [Entry(place, frame) for place, frame in enumerate(encode_record(record), 1)]
    assert len(entries) == 2
    assert fold_entries("s", entries).submitted == record


def test_an_incomplete_large_record_does_not_count() -> None:
    large = encode_record(Submitted(0, None, (bytes(PART_BYTES), b"x")), group=1)
    small = encode_record(Submitted(3, None, (b"again",)))[0]
    state = fold_entries("s", [Entry(1, large[0]), Entry(2, small)])
    assert state.submitted == Submitted(3, None, (b"again",))
    assert state.record_count == 1


def test_an_output_without_its_bytes_is_damage() -> None:
    frame = encode_record(Outputs(1, ((2, INLINE),), ()))[0]
    state = fold_entries("s", [Entry(1, frame)])
    assert state.dropped == "stream s, position 1, record 0: the bytes of output 9 are missing"
    assert state.outputs == {}
