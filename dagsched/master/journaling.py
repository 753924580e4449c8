"""From what the master core writes down to what the metadata store keeps. Pure.

Runs in the journal's thread: to encode a plan takes longer than a turn of the master may.
"""

from typing import assert_never

from dagsched.master.journal import (
    Ended,
    Failed,
    OutputsReached,
    Placed,
    Record,
    Submitted,
    SubtreeEnded,
)
from dagsched.metastore import records
from dagsched.protocol.plans import pack_plan

OwnRecord = records.EnvironmentOpened | records.NodesChanged
"""What the environment itself writes down, in the store's form already."""


def stored_record(record: Record | OwnRecord) -> records.Record:
    """The store's record for one of the core's; for `Journal(convert=..)`."""
    match record:
        case records.EnvironmentOpened() | records.NodesChanged():
            return record
        case Submitted():
            return records.Submitted(
                record.priority,
                record.timeout_s,
                () if record.plan is None else pack_plan(record.plan),
                record.parent,
                record.client() if callable(record.client) else record.client,
            )
        case Placed():
            return records.Placed(record.epoch, record.placements)
        case SubtreeEnded():
            return records.SubtreeDone(
                record.epoch,
                record.subtree,
                record.attempt,
                record.broker,
                record.positions,
                record.sizes,
            )
        case OutputsReached():
            data = [frame for _, info, frame in record.objects if info.location is None]
            return records.Outputs(
                record.epoch,
                [(broker, info) for broker, info, _ in record.objects],
                [b"" if frame is None else frame for frame in data],
            )
        case Failed():
            return records.Failed(record.failure, record.frame or b"", record.node)
        case Ended():
            return records.Ended(record.state)
        case _:
            assert_never(record)
