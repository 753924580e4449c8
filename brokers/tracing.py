"""What a node notes of a run for its trace, until that is sent. Pure.

Bundles are noted as their executors tell of them, transfers and files as rows of numbers in arrays
that grow by themselves. What is noted travels in batches that are sent anyway: times of bundles by
the dozen, the rest with them or with the next word of progress. Nothing is noted a task: executors
stamp those, and their stamps are passed on as they came.
"""

from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dagsched.protocol.messages import Frame, ObjectInfo, Parcel
from dagsched.protocol.tracing import (
    FILE_COLUMNS,
    TRACE_GAP,
    TRANSFER_COLUMNS,
    NodeTrace,
    TaskTrace,
)

if TYPE_CHECKING:
    from dagsched.brokers.state import Bundle, Report

BUNDLES_MAX = 64
"""Bundles whose times are sent to the master as one batch."""

ROWS_MAX = 4_096
"""Transfers, or files, that wait for the next batch; more are sent by themselves."""

ORPHAN_BUNDLES_MAX = 10_000
ORPHAN_ROWS_MAX = 100_000
"""What is kept of the latest while there is no master."""

GAP_FRAME = np.array([TRACE_GAP], "<i4").tobytes()


class RunTrace:
    """Notes of one run.

    Args:
        total: positions of the run.
        now: the core's time, seconds.
        is_kept: whether anything is noted at all.
    """

    def __init__(self, total: int, now: Callable[[], float], *, is_kept: bool = True) -> None:
        self._is_kept = is_kept
        self._now = now
        self._total = total
        self._bundles: list[Parcel] = []
        self._transfers = array("q")
        self._files = array("q")
        # When each position was asked for, ns; made for the first one that is.
        self._asked_ns: np.ndarray[tuple[int], np.dtype[np.int64]] | None = None

    @property
    def is_due(self) -> bool:
        """Whether as much waits as is sent at once."""
        return len(self._bundles) >= BUNDLES_MAX or self.has_many_rows

    @property
    def has_many_rows(self) -> bool:
        """The same, of transfers and files only."""
        return len(self._transfers) >= ROWS_MAX * len(TRANSFER_COLUMNS) or (
            len(self._files) >= ROWS_MAX * len(FILE_COLUMNS)
        )

    def bundle_ended(self, report: "Report", bundle: "Bundle") -> None:
        """An executor tells of a bundle, or of its lane of one, some of whose tasks have ended."""
        if not self._is_kept:
            return
        message, frames = report.message, report.frames
        length = len(frames[0]) // 4
        row = array("q", (bundle.number, length, message.read_bytes, message.written_bytes))
        objects = array("q")
        for info in message.objects:
            objects.extend((info.first, info.count, info.size_bytes))
        self._bundles.append(
            Parcel(
                TaskTrace(bundle.run.number, report.executor.id, bundle.attempt),
                (bytes(frames[0]), bytes(frames[1]), row.tobytes(), objects.tobytes()),
            )
        )

    def asked(self, positions: "np.ndarray[tuple[int], np.dtype[np.int32]]") -> None:
        """Another node is asked for these."""
        if self._is_kept:
            if self._asked_ns is None:
                self._asked_ns = np.zeros(self._total, np.int64)
            self._asked_ns[positions] = self._now_ns()

    def arrived(
        self, position: int, info: ObjectInfo, node: int, span: tuple[float, float] | None
    ) -> None:
        """An object has come from another node.

        Args:
            position: its first one in this run.
            info: what it is.
            node: from which it came.
            span: when it began to come and was whole; None: all came at once, now.
        """
        if not self._is_kept:
            return
        asked_ns = 0 if self._asked_ns is None else int(self._asked_ns[position])
        start_s, end_s = span or (self._now(), self._now())
        start_ns, end_ns = round(start_s * 1e9), round(end_s * 1e9)
        if not 0 < asked_ns <= start_ns:  # asked for again since, and this is the first answer
            asked_ns = -1
        self._transfers.extend(
            (position, info.count, node, info.size_bytes, asked_ns, start_ns, end_ns)
        )

    def filed(self, kind: int, info: ObjectInfo, started_s: float | None = None) -> None:
        """An object went to a file, or is going to be read there; see `FILE_COLUMNS`."""
        if self._is_kept:
            end_ns = self._now_ns()
            start_ns = end_ns if started_s is None else round(started_s * 1e9)
            self._files.extend((info.first, info.count, kind, info.size_bytes, start_ns, end_ns))

    def take(self, number: int) -> list[Parcel]:
        """All that waits, as messages for the master."""
        bundles, self._bundles = self._bundles, []
        return merged(bundles) + self.take_rows(number)

    def take_rows(self, number: int) -> list[Parcel]:
        """Transfers and files that wait, as a message for the master."""
        if not self._transfers and not self._files:
            return []
        frames = (self._transfers.tobytes(), self._files.tobytes())
        self._transfers, self._files = array("q"), array("q")
        return [Parcel(NodeTrace(number), frames)]

    def trim(self) -> None:
        """There is no master: the oldest notes go, if there are many."""
        del self._bundles[:-ORPHAN_BUNDLES_MAX]
        del self._transfers[: -ORPHAN_ROWS_MAX * len(TRANSFER_COLUMNS)]
        del self._files[: -ORPHAN_ROWS_MAX * len(FILE_COLUMNS)]

    def _now_ns(self) -> int:
        return round(self._now() * 1e9)


def merged(bundles: Sequence[Parcel]) -> list[Parcel]:
    """One message an executor and attempt: the master pays for each, and passes it on unread."""
    by_source: dict[object, list[Parcel]] = {}
    for parcel in bundles:
        by_source.setdefault(parcel.message, []).append(parcel)
    joiners = (GAP_FRAME, b"", b"", b"")
    result = []
    for parcels in by_source.values():
        columns = zip(*(parcel.frames for parcel in parcels), strict=True)
        frames: list[Frame] = [
            joiner.join(frames) for joiner, frames in zip(joiners, columns, strict=True)
        ]
        result.append(Parcel(parcels[0].message, frames))
    return result
