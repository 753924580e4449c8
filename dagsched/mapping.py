"""A function over many inputs, lazily: `RunEnv.map` and `RunEnv.starmap`.

Responsible for taking inputs as they are needed, making chunks of calls of them, keeping so many of
those under way that no executor waits, and giving results. What a chunk is to an executor is
`dagsched.calls`; each chunk is a run of its own.
"""

import contextlib
import queue
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING, Any

from dagsched.calls import Row, outcomes, pack_rows, run_rows
from dagsched.delayed import Delayed, delayed, function_name
from dagsched.errors import DagschedError, SerializationError
from dagsched.ref import Ref

if TYPE_CHECKING:
    from dagsched.run import Run
    from dagsched.runenv import RunEnv

CHUNK_S = 0.05
"""Work of a chunk: a run costs about a millisecond of the client and the node."""

CHUNK_ROWS_MAX = 10_000
CHUNK_BYTES_MAX = 1 << 20
"""Of arguments, or of results, of a chunk, as far as those before tell."""

GROWTH_MAX = 8
"""So many times larger than the last one may a chunk be."""

GATHER_S = 0.01
"""A chunk doesn't wait longer for inputs that come slowly."""

SPARE_CHUNKS = 2


def chunks_under_way(executor_count: int) -> int:
    """How many chunks are under way at once: none of the executors shall wait for the client."""
    return 2 * executor_count + SPARE_CHUNKS


@dataclass(slots=True, eq=False)
class _Chunk:
    """Inputs that are under way."""

    run: "Run"
    first: int  # number of the first input
    count: int
    is_single: bool
    data_bytes: int


def mapped(
    env: "RunEnv",
    function: Callable[..., Any],
    rows: Iterable[Row],
    chunksize: int | None,
    ordered: bool,
) -> Iterator[Any]:
    """Check the arguments; the iterator that `RunEnv.starmap` gives.

    Raises:
        TypeError, ValueError: an argument is not what it should be.
    """
    if not callable(function):
        raise TypeError(f"the function must be callable, not {type(function).__name__}")
    if chunksize is not None:
        if isinstance(chunksize, bool) or not isinstance(chunksize, int):
            raise TypeError(f"chunksize must be an int or None, not {type(chunksize).__name__}")
        if chunksize < 1:
            raise ValueError(f"chunksize must be at least 1, not {chunksize}")
    return _Map(env, function, iter(rows), chunksize, bool(ordered)).results()


class _Map:
    """One map while its results are being taken."""

    def __init__(
        self,
        env: "RunEnv",
        function: Callable[..., Any],
        rows: Iterator[Row],
        chunksize: int | None,
        ordered: bool,
    ) -> None:
        self._env = env
        self._function = function
        self._name = function_name(function)
        self._call_rows = delayed(run_rows, name=f"map {self._name}")
        self._call_one = delayed(function)
        self._rows = rows
        self._fixed_size = chunksize
        self._size = chunksize or 1
        self._ordered = ordered
        self._taken_count = 0
        self._is_exhausted = False
        self._input_error: BaseException | None = None
        self._under_way: dict[_Chunk, None] = {}  # in order
        self._ended: queue.SimpleQueue[_Chunk] = queue.SimpleQueue()

    def results(self) -> Iterator[Any]:
        """Results, while new chunks go out; leaving it early cancels what is under way."""
        try:
            self._refill()
            while self._under_way:
                chunk = next(iter(self._under_way)) if self._ordered else self._ended.get()
                chunk.run.wait(None)
                del self._under_way[chunk]
                self._refill()  # first, so that nobody waits while the caller is busy
                yield from self._of_chunk(chunk)
            if self._input_error is not None:
                raise self._input_error
        finally:
            for chunk in self._under_way:
                with contextlib.suppress(DagschedError):
                    chunk.run.cancel()

    # --- on the way out -------------------------------------------------------------------------

    def _refill(self) -> None:
        executors = sum(len(node.executorids) for node in self._env.nodes)
        while not self._is_exhausted and len(self._under_way) < chunks_under_way(executors):
            rows = self._next_rows()
            if not rows:
                continue
            try:
                self._send(rows)
            except SerializationError as error:  # after what came before it
                self._is_exhausted, self._input_error = True, error

    def _next_rows(self) -> list[Row]:
        """The next chunk's inputs: no more than there are without waiting for long."""
        rows: list[Row] = []
        begun_s, step = perf_counter(), 1
        try:
            while len(rows) < self._size:
                wanted = min(len(rows) + step, self._size)
                # Of a list that is extended what came before an error stays.
                rows.extend(islice(self._rows, wanted - len(rows)))
                if len(rows) < wanted:
                    self._is_exhausted = True
                    break
                if self._fixed_size is None and perf_counter() - begun_s > GATHER_S:
                    break
                step *= 2
        except Exception as error:  # noqa: BLE001 - of the caller's own inputs; raised in its place
            self._is_exhausted, self._input_error = True, error
        return rows

    def _send(self, rows: list[Row]) -> None:
        from dagsched.submission import submit

        is_single = len(rows) == 1 or any(map(_needs_engine, rows))
        data_bytes = 0
        if is_single:
            dag: object = [self._call_one(*row) for row in rows]
        else:
            data = pack_rows(rows)
            data_bytes = len(data)
            dag = self._call_rows(self._function, data)
        run = submit(self._env, dag)
        chunk = _Chunk(run, self._taken_count, len(rows), is_single, data_bytes)
        self._taken_count += len(rows)
        self._under_way[chunk] = None
        if not self._ordered:
            run.add_internal_callback(lambda: self._ended.put(chunk))

    # --- on the way back ------------------------------------------------------------------------

    def _of_chunk(self, chunk: _Chunk) -> Iterator[Any]:
        found = chunk.run.result()
        if chunk.is_single:
            self._adapt(chunk, chunk.run.traces.seconds_of(chunk.run.shape.outputs), 0)
            yield from found
            return
        results, seconds = found
        self._adapt(chunk, seconds, sum(map(_size_of, results[1])))
        last = chunk.first + chunk.count - 1
        where = f"a call of {self._name} on one of the inputs {chunk.first} .. {last}"
        for outcome in outcomes(results, where):
            if outcome.error is not None:
                raise outcome.error
            value = outcome.value
            yield value.compute(self._env) if type(value) is Delayed else value

    def _adapt(self, chunk: _Chunk, seconds: float, result_bytes: int) -> None:
        """The next chunk's size, from what this one took."""
        if self._fixed_size is not None or not seconds:  # or not told, if a node was lost
            return
        size = int(CHUNK_S * chunk.count / seconds)
        size = min(size, GROWTH_MAX * chunk.count, CHUNK_ROWS_MAX)
        largest_bytes = max(chunk.data_bytes, result_bytes)
        if largest_bytes:
            size = min(size, CHUNK_BYTES_MAX * chunk.count // largest_bytes)
        self._size = max(1, size)


def _needs_engine(row: Row) -> bool:
    """Whether arguments stand for values that only the engine can put in their places."""
    return any(type(argument) in (Delayed, Ref) for argument in row)


def _size_of(value: object) -> int:
    return len(value) if isinstance(value, bytes | str) else 0
