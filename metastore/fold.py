"""The state of a run, as the fold of its journal. Pure; the same code resumes, simulates and tests.

What a journal may look like, and what the fold makes of it:

- whole: every record counts;
- its tail is damaged or cut: the fold stops before it and says so (`JournalState.dropped`). The run
  must not care: brokers tell again what they hold;
- records repeat (an append was repeated after a lost connection): as if they stood there once;
- a large record's parts are incomplete: it was never committed, so it does not count;
- damage in the middle, or an entry missing there: `StoreUnavailable` naming stream and position,
  for to go on would give a wrong result;
- a newer version: `VersionMismatch`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dagsched.errors import DagschedError, StoreUnavailable
from dagsched.metastore.records import (
    Ended,
    EnvironmentOpened,
    Failed,
    NodesChanged,
    Outputs,
    Part,
    Placed,
    Record,
    Submitted,
    SubtreeDone,
    decode_body,
    decode_parts,
    split_frames,
)
from dagsched.protocol.messages import Frame, ObjectInfo


class Entry(NamedTuple):
    """One appended batch: its place in the stream (from 1, without gaps) and its frames."""

    position: int
    data: Frame


class Output(NamedTuple):
    """An object with results of the run, the broker that has it, and its bytes where inline."""

    broker: int
    epoch: int
    info: ObjectInfo
    data: Frame | None


@dataclass(slots=True)
class JournalState:
    """What the journal of one run (or of the environment) says, all told."""

    stream: str
    run: int = 0
    environment: EnvironmentOpened | None = None
    nodes: NodesChanged | None = None
    submitted: Submitted | None = None
    epoch: int = 0
    placements: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """Subtree -> (broker, epoch, attempt), the last that was given out."""
    done: dict[int, SubtreeDone] = field(default_factory=dict)
    """Subtree -> what became of it, under the last epoch in which it was done."""
    outputs: dict[int, Output] = field(default_factory=dict)
    """First position of the object -> the object."""
    failed: Failed | None = None
    state: str = "absent"
    """``absent`` (no plan in the journal), ``unreadable``, ``open``, or as in `Ended`."""
    next_position: int = 1
    """Where the next entry belongs: after the last sound one."""
    record_count: int = 0
    dropped: str | None = None
    """Why the tail was dropped, with stream and position; None: nothing was."""
    records: list[Record] | None = None
    """All that was folded, in order, for who wants the history; None: only its outcome."""
    error: DagschedError | None = None
    """Why nothing can be read (state ``unreadable``)."""


def fold_entries(
    stream: str, entries: Iterable[Entry], *, run: int = 0, with_records: bool = False
) -> JournalState:
    """Read a whole journal.

    Args:
        stream: its name, for messages.
        entries: in the order of the stream.
        run: whose it is, for `JournalState.run`.
        with_records: whether `JournalState.records` is wanted.

    Raises:
        StoreUnavailable: there is damage that is not at the end.
        VersionMismatch: a newer dagsched wrote in it.
    """
    state = JournalState(stream, run, records=[] if with_records else None)
    parts: dict[int, dict[int, Part]] = {}
    for entry in entries:
        if state.dropped is not None:
            raise StoreUnavailable(
                f"the journal is damaged in its middle, so the run can't be resumed from it: "
                f"{state.dropped}"
            )
        if entry.position < state.next_position:
            continue  # a repeat
        if entry.position > state.next_position:
            raise StoreUnavailable(
                f"the journal lacks entries, so the run can't be resumed from it: stream {stream}, "
                f"position {state.next_position} to {entry.position - 1}"
            )
        bodies, damage = split_frames(entry.data)
        offset = 0
        try:
            for body in bodies:
                _take(state, decode_body(body), parts)
                offset += 1
        except ValueError as error:
            state.dropped = f"stream {stream}, position {entry.position}, record {offset}: {error}"
            continue
        if damage is not None:
            state.dropped = (
                f"stream {stream}, position {entry.position}, byte {damage.offset}: {damage.reason}"
            )
            continue
        state.next_position = entry.position + 1
    return state


def fold_records(stream: str, records: Iterable[Record]) -> JournalState:
    """The same for records that never were bytes, as in simulations."""
    state = JournalState(stream)
    parts: dict[int, dict[int, Part]] = {}
    for record in records:
        _take(state, record, parts)
    return state


def _take(state: JournalState, record: Record, parts: dict[int, dict[int, Part]]) -> None:
    """Fold one record in, or keep a part until its record is whole."""
    if isinstance(record, Part):
        pieces = parts.setdefault(record.group, {})
        pieces[record.index] = record
        if len(pieces) < record.count:
            return
        del parts[record.group]
        record = decode_parts([pieces[index] for index in range(record.count)])
    state.record_count += 1
    if state.records is not None:
        state.records.append(record)
    _apply(state, record)


def _apply(state: JournalState, record: Record) -> None:
    match record:
        case EnvironmentOpened():
            state.environment = record
        case NodesChanged():
            state.nodes = record
        case Submitted():
            state.submitted = record
            if state.state == "absent":
                state.state = "open"
        case Placed(epoch, placements):
            state.epoch = max(state.epoch, epoch)
            for subtree, broker, attempt in placements:
                known = state.placements.get(subtree)
                if known is None or (epoch, attempt) >= known[1:]:
                    state.placements[subtree] = (broker, epoch, attempt)
        case SubtreeDone():
            state.epoch = max(state.epoch, record.epoch)
            before = state.done.get(record.subtree)
            if before is None or (record.epoch, record.attempt) >= (before.epoch, before.attempt):
                state.done[record.subtree] = record
        case Outputs():
            _apply_outputs(state, record)
        case Failed():
            state.failed = state.failed or record
        case Ended():
            state.state = record.state
        case Part():
            raise ValueError("a part within a part")


def _apply_outputs(state: JournalState, record: Outputs) -> None:
    state.epoch = max(state.epoch, record.epoch)
    data = iter(record.data)
    for broker, info in record.objects:
        inline = next(data, None) if info.location is None else None
        if info.location is None and inline is None:
            raise ValueError(f"the bytes of output {info.first} are missing")
        known = state.outputs.get(info.first)
        if known is None or record.epoch >= known.epoch:
            state.outputs[info.first] = Output(broker, record.epoch, info, inline)


def missing_subtrees(state: JournalState, subtree_count: int) -> Sequence[int]:
    """Subtrees that the journal does not know to be done, in rising order."""
    return [subtree for subtree in range(subtree_count) if subtree not in state.done]


def family_of(states: Mapping[int, JournalState], root: int) -> list[int]:
    """A run and those of graphs that its tasks returned, unless they are over; parents first."""
    children: dict[int, list[int]] = {}
    for number, state in sorted(states.items()):
        if state.submitted is not None and state.submitted.parent and state.state == "open":
            children.setdefault(state.submitted.parent[0], []).append(number)
    family = [root]
    for number in family:  # grows meanwhile
        family += children.get(number, ())
    return family
