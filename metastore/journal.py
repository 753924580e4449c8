"""The thread that brings the journal's records to the store.

Responsible for batching, order, reconnecting, and for saying how it stands. Who puts records never
waits: while the store is away they pile up, within limits; beyond those they are dropped and the
run's journal counts as *torn*. A torn journal, or one that the store has lost, is written anew from
the master's state: `Journal` asks for that by its callback `on_torn`; `restart` is the answer.
"""

import enum
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dagsched.config import Config
from dagsched.errors import StoreUnavailable
from dagsched.metastore.port import Batch, MetaStore, Refusal
from dagsched.metastore.records import PART_BYTES, Record, encode_record

logger = logging.getLogger(__name__)

PENDING_BYTES_MAX = 256 << 20
"""Encoded bytes that wait for a store that is away."""

_EXCHANGE_BYTES = 4 * PART_BYTES
_HURRY_COUNT = 2_000
"""Records in the queue from which on the thread does not wait for more."""

_BACKOFF_FIRST_S = 0.05
_BACKOFF_MAX_S = 1.0


class JournalHealth(NamedTuple):
    """``ok`` or ``degraded`` (then why), and what waits or was dropped so far."""

    state: str
    reason: str
    dropped_count: int


class _Order(enum.Enum):
    """What the queue holds beside records."""

    RESUME = "resume"
    RESTART = "restart"
    FORGET = "forget"
    FLUSH = "flush"


@dataclass(slots=True)
class _Run:
    """One run's stream, as its writer knows it."""

    position: int = 1
    frames: list[bytes] = field(default_factory=list)
    frames_bytes: int = 0
    is_fresh: bool = False
    is_torn: bool = False
    is_taken: bool = False


class _Drop(NamedTuple):
    run: int


class _Flush(NamedTuple):
    answered: threading.Event
    appended: list[bool]  # not empty: all before it has been appended


class Journal:
    """Appends records to a store, in a thread of its own.

    Args:
        store: where to; only the thread uses it from `open` to `close`.
        config: limits and times.
        convert: makes a record of what was put, in the thread; None: records are put.
        on_health: is told each change of `health`, in the thread.
        on_torn: is told the runs whose journal has to be written anew, in the thread; it must have
            `restart` called for each by the thread that puts.
    """

    def __init__(
        self,
        store: MetaStore,
        config: Config,
        *,
        convert: Callable[[Any], Record | None] | None = None,
        on_health: Callable[[JournalHealth], None] | None = None,
        on_torn: Callable[[int], None] | None = None,
    ) -> None:
        self._store = store
        self._config = config
        self._convert = convert
        self._on_health = on_health
        self._on_torn = on_torn
        self._thread: threading.Thread | None = None
        self._queue: deque[tuple[int, Any, Any]] = deque()
        self._queue_max = config.journal_queue_max
        self._is_idle = False
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._closing = threading.Event()
        self._has_ended = False
        self._is_flushed = False
        self._overflowed: set[int] = set()
        self._overflow_count = 0
        self._health = JournalHealth("ok", "", 0)
        # Touched by the thread only.
        self._dropped_count = 0
        self._runs: dict[int, _Run] = {}
        self._pending: deque[Batch | _Drop | _Flush] = deque()
        self._pending_bytes = 0
        self._backoff_s = 0.0

    def open(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._main, name="dagsched-journal", daemon=True)
        self._thread.start()

    def put(self, run: int, record: Any) -> None:
        """Take a record of a run; never waits. The record must not be changed any more."""
        queue = self._queue
        length = len(queue)
        if length >= self._queue_max:
            self._overflowed.add(run)
            self._overflow_count += 1
            return
        queue.append((run, None, record))
        if self._is_idle:
            self._wake.set()
        elif length == _HURRY_COUNT:
            self._hurry.set()

    def resume(self, run: int, next_position: int) -> None:
        """Go on with a run's stream after what was read of it."""
        self._order(run, _Order.RESUME, next_position)

    def restart(self, run: int, records: Sequence[Any]) -> None:
        """Write a run's journal anew: these are all its records until now."""
        self._overflowed.discard(run)
        self._order(run, _Order.RESTART, tuple(records))

    def forget(self, run: int) -> None:
        """Drop a run's journal: nobody will resume it."""
        self._order(run, _Order.FORGET, None)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until all that was put is in the store; False: it was not, in that time."""
        if self._thread is None:
            return False
        flush = _Flush(threading.Event(), [])
        self._order(0, _Order.FLUSH, flush)
        self._hurry.set()
        # A thread that ends after this line answers all flushes in the queue.
        if self._has_ended:
            return False
        return flush.answered.wait(timeout_s) and bool(flush.appended)

    def close(self, *, flush_timeout_s: float = 1.0) -> bool:
        """End the thread, after a flush of at most this length. True: nothing is left."""
        if self._thread is None:
            return self._is_flushed
        self._is_flushed = flush_timeout_s > 0 and self.flush(flush_timeout_s)
        thread, self._thread = self._thread, None
        self._closing.set()
        self._wake.set()
        self._hurry.set()
        thread.join()
        return self._is_flushed

    @property
    def health(self) -> JournalHealth:
        """How it stands."""
        return self._health

    @property
    def state(self) -> tuple[str, str]:
        """``ok`` or ``degraded``, and why."""
        return self._health.state, self._health.reason

    def _order(self, run: int, order: _Order, argument: Any) -> None:
        # Orders are few and may exceed the bound; dropping one would break its promise.
        self._queue.append((run, order, argument))
        if self._is_idle:
            self._wake.set()

    # --- the thread -----------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            # Connecting takes long the first time, so it does not wait for the first record.
            self._try(self._store.ping)
            while self._wait():
                self._take_queue()
                self._send()
        except BaseException as error:
            self._tell("degraded", f"the journal's thread has ended: {error!r}")
            raise
        finally:
            self._has_ended = True
            for flush in [*self._pending, *(item for _, _, item in self._queue)]:
                if isinstance(flush, _Flush):
                    flush.answered.set()

    def _wait(self) -> bool:
        """Wait for work, and then for more of it; False: close."""
        if self._pending:
            # The store is away.
            if self._backoff_s:
                self._closing.wait(self._backoff_s)
            return not self._closing.is_set()
        self._wake.clear()
        self._is_idle = True
        # `close` sets its flag before it wakes us; looked at before `clear`, it could be missed.
        if not self._queue and not self._overflowed and not self._closing.is_set():
            self._wake.wait()
        self._is_idle = False
        if self._closing.is_set():
            return False
        self._hurry.wait(self._config.journal_batch_s)
        self._hurry.clear()
        return not self._closing.is_set()

    def _take_queue(self) -> None:
        """Encode what was put and make batches of it."""
        queue = self._queue
        while queue and not self._closing.is_set():
            run, order, item = queue.popleft()
            if order is None:
                self._encode(run, item)
            elif order is _Order.FLUSH:
                self._seal_all()
                self._pending.append(item)
            elif order is _Order.FORGET:
                self._discard(run)
                self._runs.pop(run, None)
                self._pending.append(_Drop(run))
            elif order is _Order.RESUME:
                self._runs[run] = _Run(position=item)
            else:
                self._discard(run)
                self._runs[run] = _Run(is_fresh=True)
                for record in item:
                    self._encode(run, record)
        self._seal_all()
        while self._overflowed:
            self._tear(self._overflowed.pop(), "more records wait than may")

    def _encode(self, run: int, item: Any) -> None:
        stream = self._runs.get(run)
        if stream is None:
            stream = self._runs[run] = _Run()
        if stream.is_torn or stream.is_taken:
            self._dropped_count += 1
            return
        record = item if self._convert is None else self._convert(item)
        if record is None:
            return
        # Unique in the stream: a batch's position is, and so is the record's place in it.
        group = (stream.position << 32) + len(stream.frames)
        for frame in encode_record(record, group=group):
            if stream.frames_bytes + len(frame) > PART_BYTES and stream.frames:
                self._seal(run, stream)
            stream.frames.append(frame)
            stream.frames_bytes += len(frame)
            self._pending_bytes += len(frame)
        if self._pending_bytes > PENDING_BYTES_MAX:
            self._tear(run, "more bytes wait than may")

    def _seal_all(self) -> None:
        for run, stream in self._runs.items():
            if stream.frames:
                self._seal(run, stream)

    def _seal(self, run: int, stream: _Run) -> None:
        """Make a batch of the frames so far."""
        data = b"".join(stream.frames)
        self._pending.append(Batch(run, stream.position, data, stream.is_fresh))
        stream.position += 1
        stream.is_fresh = False
        stream.frames.clear()
        stream.frames_bytes = 0

    def _send(self) -> None:
        """Append batches until none waits or the store is away."""
        while self._pending and not self._closing.is_set():
            first = self._pending[0]
            if isinstance(first, _Flush):
                first.appended.append(True)
                first.answered.set()
                self._pending.popleft()
            elif isinstance(first, _Drop):
                drop = first
                if not self._try(lambda: self._store.drop(drop.run)):  # noqa: B023 - called at once
                    return
                self._pending.popleft()
            elif not self._append():
                return

    def _append(self) -> bool:
        """One exchange; what it held is removed from `pending` if the store has answered."""
        batches: list[Batch] = []
        size_bytes = 0
        for entry in self._pending:
            if not isinstance(entry, Batch) or (batches and size_bytes > _EXCHANGE_BYTES):
                break
            batches.append(entry)
            size_bytes += len(entry.data)
        refusals: list[Refusal] = []
        if not self._try(lambda: refusals.extend(self._store.append(batches))):
            return False
        for _ in batches:
            self._pending_bytes -= len(self._popped_batch().data)
        for refusal in refusals:
            self._refused(refusal)
        return True

    def _popped_batch(self) -> Batch:
        batch = self._pending.popleft()
        assert isinstance(batch, Batch)
        return batch

    def _try(self, operation: Callable[[], object]) -> bool:
        """Do something with the store; False: it is away, so wait and open it again."""
        try:
            if self._backoff_s:
                self._store.open()
            operation()
        except StoreUnavailable as error:
            self._backoff_s = min(max(_BACKOFF_FIRST_S, 2 * self._backoff_s), _BACKOFF_MAX_S)
            self._tell("degraded", str(error))
            return False
        self._backoff_s = 0.0
        if not any(stream.is_torn or stream.is_taken for stream in self._runs.values()):
            self._tell("ok", "")
        return True

    def _refused(self, refusal: Refusal) -> None:
        stream = self._runs.get(refusal.run)
        if stream is None or stream.is_torn or stream.is_taken:
            return
        if refusal.kind == "gone":
            self._tear(refusal.run, "the store has lost it")
            return
        stream.is_taken = True
        self._discard(refusal.run)
        self._tell("degraded", f"another master writes the journal of run {refusal.run}")

    def _tear(self, run: int, reason: str) -> None:
        """Stop writing a run's journal until it is written anew."""
        stream = self._runs.setdefault(run, _Run())
        self._discard(run)
        if stream.is_torn:
            return
        stream.is_torn = True
        logger.warning("the journal of run %d has to be written anew: %s", run, reason)
        self._tell("degraded", f"the journal of run {run} has to be written anew: {reason}")
        if self._on_torn is not None:
            self._on_torn(run)

    def _discard(self, run: int) -> None:
        """Forget what waits of a run."""
        stream = self._runs.get(run)
        if stream is not None:
            self._dropped_count += len(stream.frames)
            self._pending_bytes -= stream.frames_bytes
            stream.frames.clear()
            stream.frames_bytes = 0
        if any(isinstance(entry, Batch) and entry.run == run for entry in self._pending):
            kept: deque[Batch | _Drop | _Flush] = deque()
            for entry in self._pending:
                if isinstance(entry, Batch) and entry.run == run:
                    self._pending_bytes -= len(entry.data)
                else:
                    kept.append(entry)
            self._pending = kept

    def _tell(self, state: str, reason: str) -> None:
        health = JournalHealth(state, reason, self._dropped_count + self._overflow_count)
        is_news = health[:2] != self._health[:2]
        self._health = health
        if not is_news:
            return
        if state == "degraded":
            logger.warning("the journal is degraded: %s", reason)
        if self._on_health is not None:
            self._on_health(health)
