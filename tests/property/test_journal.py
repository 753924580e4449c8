"""Journals of any records, through any cut of batches and any damage."""

from hypothesis import given
from hypothesis import strategies as st

from dagsched.errors import StoreUnavailable
from dagsched.metastore.fold import Entry, fold_entries, fold_records
from dagsched.metastore.records import (
    Ended,
    Failed,
    NodesChanged,
    Outputs,
    Placed,
    Record,
    Submitted,
    SubtreeDone,
    encode_record,
)
from dagsched.protocol.messages import ExitInfo, Failure, Location, ObjectInfo

small = st.integers(0, 6)
numbers = st.integers(0, 2**31 - 1)
text = st.text(max_size=8)
data = st.binary(max_size=40)

locations = st.builds(Location, text, numbers, numbers)
inline = st.builds(ObjectInfo, small, st.just(1), numbers, st.none(), text, st.just(()))
stored = st.builds(ObjectInfo, small, st.just(1), numbers, locations, text, st.just(()))
exits = st.none() | st.builds(ExitInfo, st.none() | numbers, st.none() | numbers, numbers, text)
failures = st.builds(Failure, small, small, text, text, text, text, text, small, exits)


@st.composite
def outputs(draw: st.DrawFn) -> Outputs:
    objects = tuple(draw(st.lists(st.tuples(small, inline | stored), max_size=4)))
    count = sum(info.location is None for _, info in objects)
    return Outputs(draw(small), objects, tuple(draw(data) for _ in range(count)))


records: st.SearchStrategy[Record] = st.one_of(
    st.builds(
        Submitted,
        small,
        st.none() | st.floats(0, 1e9),
        st.lists(data, max_size=3).map(tuple),
        st.none() | st.tuples(small, small),
        data,
    ),
    st.builds(Placed, small, st.lists(st.tuples(small, small, small), max_size=4).map(tuple)),
    st.builds(SubtreeDone, small, small, small, small, data, data),
    outputs(),
    st.builds(Failed, failures, data, st.none() | small),
    st.builds(Ended, st.sampled_from(["done", "failed", "cancelled"])),
    st.builds(
        NodesChanged, st.lists(st.tuples(small, text, st.just((1, 2))), max_size=3).map(tuple)
    ),
)


@st.composite
def journals(draw: st.DrawFn) -> tuple[list[Record], list[Entry]]:
    """Records, and the same in batches of any sizes."""
    history = draw(st.lists(records, max_size=12))
    entries: list[Entry] = []
    start = 0
    while start < len(history):
        end = draw(st.integers(start + 1, len(history)))
        frames = [frame for record in history[start:end] for frame in encode_record(record)]
        entries.append(Entry(len(entries) + 1, b"".join(frames)))
        start = end
    return history, entries


@given(journals())
def test_bytes_fold_as_their_records(journal: tuple[list[Record], list[Entry]]) -> None:
    history, entries = journal
    state = fold_entries("s", entries)
    expected = fold_records("s", history)
    expected.next_position = len(entries) + 1
    assert state == expected


@given(journals(), st.data())
def test_repeats_change_nothing(
    journal: tuple[list[Record], list[Entry]], choice: st.DataObject
) -> None:
    _, entries = journal
    repeated: list[Entry] = []
    for index, entry in enumerate(entries):
        repeated.append(entry)
        if choice.draw(st.booleans()):
            repeated.append(entries[choice.draw(st.integers(0, index))])
    assert fold_entries("s", repeated) == fold_entries("s", entries)


@given(journals(), st.data())
def test_one_damaged_byte_is_dropped_or_an_error_never_another_state(
    journal: tuple[list[Record], list[Entry]], choice: st.DataObject
) -> None:
    _, entries = journal
    if not entries:
        return
    which = choice.draw(st.integers(0, len(entries) - 1))
    position, frame = entries[which]
    place = choice.draw(st.integers(0, len(frame) - 1))
    flipped = frame[place] ^ choice.draw(st.integers(1, 255))
    bad = Entry(position, bytes(frame[:place]) + bytes([flipped]) + bytes(frame[place + 1 :]))
    damaged = [*entries[:which], bad, *entries[which + 1 :]]
    try:
        state = fold_entries("s", damaged)
    except StoreUnavailable as error:
        message: str | None = str(error)
    else:
        message = None
    if message is not None:
        assert which < len(entries) - 1
        assert f"stream s, position {position}," in message
    else:
        assert which == len(entries) - 1
        assert state.dropped is not None
        assert state.next_position == position
        assert state.record_count < fold_entries("s", entries).record_count


@given(journals(), st.data())
def test_any_tail_may_vanish(
    journal: tuple[list[Record], list[Entry]], choice: st.DataObject
) -> None:
    history, entries = journal
    kept = choice.draw(st.integers(0, len(entries)))
    state = fold_entries("s", entries[:kept])
    assert state.dropped is None
    expected = fold_records("s", history[: state.record_count])
    expected.next_position = kept + 1
    assert state == expected
