"""Rows of a trace as columns: what bundles, transfers and spills of a run were. Pure.

Responsible for how many rows are kept, and for their columns; `dagsched.trace` has those of tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dagsched.protocol.tracing import FILE_MADE, FILE_MOVED, FILE_READ

Int64 = NDArray[np.int64]

ROWS_MAX = 1_000_000

BUNDLE_COLUMNS = (
    "node", "executor", "bundle", "attempt", "start_ns", "end_ns", "task_count", "read_bytes",
    "written_bytes",
)  # fmt: skip
TRANSFER_COLUMNS = (
    "task", "value_count", "source", "target", "size_bytes", "asked_ns", "start_ns", "end_ns"
)  # fmt: skip
SPILL_COLUMNS = ("task", "value_count", "node", "kind", "size_bytes", "start_ns", "end_ns")

COLUMNS = {"bundles": BUNDLE_COLUMNS, "transfers": TRANSFER_COLUMNS, "spills": SPILL_COLUMNS}
"""Of the tables beside that of tasks; see `Trace.table` for what they mean."""

SPILL_KINDS = {FILE_MOVED: "moved", FILE_MADE: "made", FILE_READ: "read"}
"""What `kind` means: moved from memory as the store was full; made in a file, for memory had no
room; read from a file by a bundle."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Columns of one length, by name; all int64.

    Example:
        >>> rows = Rows.of("spills", np.array([[4, 1, 2, 0, 5_000, 10, 30]]))
        >>> len(rows), rows["size_bytes"].tolist(), rows.every
        (1, [5000], 1)
    """

    columns: Mapping[str, Int64]
    every: int = 1
    """Each row stands for so many: there were more than are kept."""

    @classmethod
    def of(cls, table: str, rows: NDArray[Any], every: int = 1) -> "Rows":
        """Of a table's rows, as an array with a column each."""
        names = COLUMNS[table]
        columns = np.asarray(rows, np.int64).reshape(-1, len(names)).T
        return cls(
            {name: column.copy() for name, column in zip(names, columns, strict=True)}, every
        )

    @classmethod
    def none(cls, table: str) -> "Rows":
        """A table without rows."""
        return cls.of(table, np.empty(0))

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def __getitem__(self, name: str) -> Int64:
        return self.columns[name]

    def words(self, what: str) -> str:
        """That only some are kept, and which; empty if all are."""
        if self.every == 1:
            return ""
        return f"1 of {self.every:,} {what} is kept, counted as they were told"


class Sample:
    """Rows that come piece by piece, of which no more than so many are kept.

    All are, up to the limit; then every second of those that ever came, then every fourth, and so
    on: by the order in which they came, so that what is kept depends on nothing else.

    Args:
        width: numbers in a row.
        rows_max: most rows that are kept.

    Example:
        >>> sample = Sample(1, rows_max=3)
        >>> for value in range(10):
        ...     sample.add(np.array([[value]]))
        >>> rows, every = sample.taken()
        >>> rows.ravel().tolist(), every
        ([0, 4, 8], 4)
    """

    def __init__(self, width: int, rows_max: int = ROWS_MAX) -> None:
        self.width = width
        self.rows_max = rows_max
        self._came_count = 0
        self._kept_count = 0
        # What is kept, and one of how many: set as one, for another thread may look.
        self._state: tuple[list[Int64], int] = ([], 1)

    def add(self, rows: Int64) -> None:
        """Take some more rows."""
        pieces, every = self._state
        kept = rows[-self._came_count % every :: every]
        self._came_count += len(rows)
        if not len(kept):
            return
        self._kept_count += len(kept)
        pieces.append(kept if every == 1 else kept.copy())  # not a view that keeps all
        while self._kept_count > self.rows_max:
            rest = self.taken()[0][::2].copy()
            every *= 2
            self._state = ([rest], every)
            self._kept_count = len(rest)

    def taken(self) -> tuple[Int64, int]:
        """Rows that are kept, in the order in which they came, and one of how many each is."""
        pieces, every = self._state
        return np.concatenate([np.empty((0, self.width), np.int64), *pieces]), every


def thinned(rows: Int64, rows_max: int) -> tuple[Int64, int]:
    """The rows that a `Sample` would keep of all these, and one of how many each is.

    Example:
        >>> rows, every = thinned(np.arange(10).reshape(-1, 1), 3)
        >>> rows.ravel().tolist(), every
        ([0, 4, 8], 4)
    """
    every = 1
    while -(-len(rows) // every) > rows_max:
        every *= 2
    return rows[::every], every


def input_bytes(indptr: NDArray[Any], deps: NDArray[Any], sizes: Int64) -> Int64:
    """Bytes of each task's inputs as far as their sizes are known.

    Returns:
        the sum of those known; -1 where none of the inputs has a known size; 0 for tasks without.

    Example:
        >>> input_bytes(np.array([0, 0, 0, 2, 3]), np.array([0, 1, 2]), np.array([8, -1, -1, 3]))
        array([ 0,  0,  8, -1])
    """
    is_known = sizes[deps] >= 0
    sums = np.zeros((2, len(deps) + 1), np.int64)
    np.cumsum(np.where(is_known, sizes[deps], 0), out=sums[0, 1:])
    np.cumsum(is_known, out=sums[1, 1:])
    total, known_count = sums[:, indptr[1:]] - sums[:, indptr[:-1]]
    return np.where((known_count == 0) & (np.diff(indptr) > 0), -1, total)
