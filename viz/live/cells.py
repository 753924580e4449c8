"""What every executor did in each quarter of a second of the last minute. Pure.

A *cell* is a bin of time, a lane (an executor) and a function: how long it was busy with that, and
how many tasks ended. Cells lie in arrays, sorted by bin; what is older than the window is cut off,
so that memory is bounded by lanes and functions, never by tasks. Tasks come by thousands, as
arrays: no Python is executed for a single one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

BIN_NS = 250_000_000
BIN_S = BIN_NS / 1e9
BINS = 240
"""A minute of bins is kept."""

LANES_MAX = 1 << 16
FUNCTIONS_MAX = 1 << 8
"""Names of functions are numbered across runs up to this; see `totals.Names`."""

_NOTHING = np.empty(0, np.int64)


class Spans(NamedTuple):
    """Tasks that ended, an element each: who ran it, what it called, from when to when."""

    lanes: Int64
    functions: Int64
    start_ns: Int64
    end_ns: Int64


BLOCK_TASKS = 8_192
"""So many are summed at once: larger arrays take fresh memory from the system each time, which
costs several times what is done with them."""


def in_blocks(spans: Sequence[Spans], most: int = BLOCK_TASKS) -> Iterator[Spans]:
    """The same tasks in about as few pieces as may be, none of more than `most`."""
    waiting: list[Spans] = []
    count = 0
    for whole in spans:
        for start in range(0, len(whole.lanes), most):
            piece = Spans(*(column[start : start + most] for column in whole))
            if count + len(piece.lanes) > most:
                yield _joined(waiting)
                waiting, count = [], 0
            waiting.append(piece)
            count += len(piece.lanes)
    if waiting:
        yield _joined(waiting)


def _joined(spans: Sequence[Spans]) -> Spans:
    if len(spans) == 1:
        return spans[0]
    return Spans(*(np.concatenate(columns) for columns in zip(*spans, strict=True)))


@dataclass(frozen=True, slots=True)
class Grid:
    """Bins ``first`` up to ``first + bins`` of some lanes, as matrices: a row a lane."""

    first: int
    busy_share: NDArray[np.float64]  # 0 to 1
    function: Int64  # that took most of the bin; -1: none
    ended: Int64


class Cells:
    """The cells of the last minute.

    Example:
        >>> cells = Cells()
        >>> one = np.array([0])
        >>> cells.add(Spans(one, one, np.array([0]), np.array([BIN_NS + BIN_NS // 2])), BIN_NS * 2)
        0
        >>> cells.grid(1, 0, 2).busy_share.tolist(), cells.grid(1, 0, 2).ended.tolist()
        ([[1.0, 0.5]], [[0, 1]])
    """

    def __init__(self) -> None:
        self._keys = self._busy_ns = self._ended = _NOTHING

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, spans: Spans, now_ns: int) -> int | None:
        """Take tasks in; what is older than the window at `now_ns` is left out, and dropped.

        Returns:
            The first bin that has changed; None: none has.
        """
        first = now_ns // BIN_NS - BINS + 1
        self._cut(first)
        keys, busy_ns, ended = _cells_of(spans, first)
        if not len(keys):
            return None
        changed = int(keys[0]) // (LANES_MAX * FUNCTIONS_MAX)
        at = int(np.searchsorted(self._keys, keys[0]))
        # What lies before the first new one stays as it is.
        merged = _summed(
            np.concatenate([self._keys[at:], keys]),
            np.concatenate([self._busy_ns[at:], busy_ns]),
            np.concatenate([self._ended[at:], ended]),
        )
        self._keys = np.concatenate([self._keys[:at], merged[0]])
        self._busy_ns = np.concatenate([self._busy_ns[:at], merged[1]])
        self._ended = np.concatenate([self._ended[:at], merged[2]])
        return changed

    def with_open(self, spans: Spans, now_ns: int) -> "Cells":
        """The same with tasks that have not ended yet; this one stays as it is."""
        copy = Cells()
        copy._keys, copy._busy_ns, copy._ended = self._keys, self._busy_ns, self._ended
        if len(spans.lanes):
            keys, busy_ns, _ = _cells_of(spans, now_ns // BIN_NS - BINS + 1)
            copy._keys, copy._busy_ns, copy._ended = _summed(
                np.concatenate([self._keys, keys]),
                np.concatenate([self._busy_ns, busy_ns]),
                np.concatenate([self._ended, np.zeros(len(keys), np.int64)]),
            )
        return copy

    def grid(self, lane_count: int, first: int, bins: int) -> Grid:
        """Lanes 0 to `lane_count` and so many bins from `first` on, as matrices."""
        a_bin = LANES_MAX * FUNCTIONS_MAX
        lo, hi = np.searchsorted(self._keys, [first * a_bin, (first + bins) * a_bin])
        keys, busy_ns, ended = self._keys[lo:hi], self._busy_ns[lo:hi], self._ended[lo:hi]
        lanes = keys // FUNCTIONS_MAX % LANES_MAX
        places = lanes * bins + (keys // a_bin - first)
        size, shape = lane_count * bins, (lane_count, bins)
        busy = np.bincount(places, busy_ns, size)[:size].reshape(shape) / BIN_NS
        function = np.full(size, -1, np.int64)
        # Assigning to a place several times keeps the last, which is the longest.
        order = np.argsort(busy_ns, kind="stable")
        function[places[order]] = (keys % FUNCTIONS_MAX)[order]
        count = np.bincount(places, ended, size)[:size].astype(np.int64).reshape(shape)
        return Grid(first, np.minimum(busy, 1.0), function.reshape(shape), count)

    def _cut(self, first: int) -> None:
        at = int(np.searchsorted(self._keys, first * LANES_MAX * FUNCTIONS_MAX))
        if at:
            self._keys, self._busy_ns = self._keys[at:], self._busy_ns[at:]
            self._ended = self._ended[at:]


def _cells_of(spans: Spans, first: int) -> tuple[Int64, Int64, Int64]:
    """Keys, busy time and ended tasks of the cells that these tasks lie in, from bin `first` on."""
    recent = spans.end_ns > first * BIN_NS
    if not recent.all():
        spans = Spans(*(column[recent] for column in spans))
    if not len(spans.lanes):
        return _NOTHING, _NOTHING, _NOTHING
    lanes = spans.lanes * FUNCTIONS_MAX + spans.functions
    starts, ends = np.maximum(spans.start_ns, first * BIN_NS), spans.end_ns
    begin = starts // BIN_NS
    last = np.maximum((ends - 1) // BIN_NS, begin)
    if (begin == last).all():
        bins, busy_ns, ended = begin, ends - starts, np.ones(len(lanes), np.int64)
    else:
        counts = last - begin + 1
        task = np.repeat(np.arange(len(lanes)), counts)
        firsts = np.cumsum(counts) - counts
        bins = begin[task] + np.arange(len(task)) - firsts[task]
        lows = np.maximum(starts[task], bins * BIN_NS)
        busy_ns = np.minimum(ends[task], (bins + 1) * BIN_NS) - lows
        ended = (bins == last[task]).astype(np.int64)
        lanes = lanes[task]
    keys = bins * (LANES_MAX * FUNCTIONS_MAX) + lanes
    # Tasks of one executor come in order, often of one function: most fall together unsorted.
    return _summed(*_neighbours_summed(keys, busy_ns, ended))


def _neighbours_summed(keys: Int64, busy_ns: Int64, ended: Int64) -> tuple[Int64, Int64, Int64]:
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[starts], np.add.reduceat(busy_ns, starts), np.add.reduceat(ended, starts)


def _summed(keys: Int64, busy_ns: Int64, ended: Int64) -> tuple[Int64, Int64, Int64]:
    """Sorted by key, a cell each."""
    order = np.argsort(keys, kind="stable")
    return _neighbours_summed(keys[order], busy_ns[order], ended[order])
