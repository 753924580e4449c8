"""The thread that brings the journal's records to the store.

Responsible for batching, order, reconnecting, and for saying how it stands. Who puts records never
waits: while the store is away they pile up, within limits; beyond those they are dropped and the
run's journal counts as *torn*. A torn journal, or one that the store has lost, is written anew from
the master's state once the store is there: `Journal` asks for that by its callback `on_torn`;
`restart` (or `forget`) is the answer. A run that is over leaves what gives its result again.
"""

import enum
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dagsched.config import Config
from dagsched.errors import StoreUnavailable
from dagsched.metastore.keys import ENVIRONMENT_RUN
from dagsched.metastore.port import Batch, MetaStore, Refusal
from dagsched.metastore.records import PART_BYTES, Record, encode_record, record_bytes
from dagsched.metastore.results import Results

logger = logging.getLogger(__name__)

_EXCHANGE_BYTES = 4 * PART_BYTES
_HURRY_COUNT = 2_000
"""Records in the queue from which on the thread does not wait for more."""

_BACKOFF_FIRST_S = 0.05
_BACKOFF_MAX_S = 1.0
_WARNING_PAUSE_S = 60.0
"""A store that comes and goes is told of once in this time."""

_END_PATIENCE_S = 0.2
"""A call to the store that lasts longer while the journal is being closed is cut short."""


class JournalHealth(NamedTuple):
    """``ok`` or ``degraded`` (then why), and what waits or was dropped so far."""

    state: str
    reason: str
    dropped_count: int


class _Order(enum.Enum):
    """What the queue holds beside records."""

    RESUME = "resume"
    RESTART = "restart"
    FINISH = "finish"
    FORGET = "forget"
    FLUSH = "flush"


@dataclass(slots=True)
class _Run:
    """One run's stream, as its writer knows it."""

    position: int = 1
    frames: list[bytes] = field(default_factory=list)
    frames_bytes: int = 0
    total_bytes: int = 0  # all that was encoded since it began
    pending_count: int = 0  # batches that wait
    is_fresh: bool = False
    is_stored: bool = False  # something of it may be in the store
    is_torn: bool = False
    is_asked: bool = False  # to be written anew
    is_too_large: bool = False
    is_taken: bool = False  # another master writes it

    @property
    def is_closed(self) -> bool:
        """Records of it are dropped."""
        return self.is_torn or self.is_too_large or self.is_taken


class _End(NamedTuple):
    records: Sequence[Any]
    is_whole: bool


class _Flush(NamedTuple):
    answered: threading.Event
    appended: list[Any]  # not empty: all before it has been appended, and the question answered
    question: Callable[[MetaStore], Any] | None = None


class Journal:
    """Appends records to a store, in a thread of its own.

    Args:
        store: where to; only the thread uses it from `open` to `close`.
        config: limits and times.
        convert: makes a record of what was put, in the thread; None: records are put.
        on_health: is told each change of `health`, in the thread.
        on_torn: is told the runs whose journal has to be written anew, in the thread; it must have
            `restart` or `forget` called for each by the thread that puts.
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
        self._pending: deque[Batch | _Flush] = deque()
        self._pending_bytes = 0
        self._results = Results(
            config.results_max, config.results_bytes_max, config.result_expiry_s
        )
        self._backoff_s = 0.0
        self._try_again_s = 0.0
        self._warned_s = -_WARNING_PAUSE_S

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

    def finish(self, run: int, records: Sequence[Any], *, is_whole: bool) -> None:
        """The run is over: keep what gives its result again, for a while.

        Args:
            run: its number; nothing more will be put for it.
            records: all that is to be kept, the last one not put yet; none: keep nothing.
            is_whole: the journal is needed as it is, with the last record.
        """
        self._overflowed.discard(run)
        self._order(run, _Order.FINISH, _End(tuple(records), is_whole))

    def forget(self, run: int) -> None:
        """Drop a run's journal: nobody will resume it."""
        self._overflowed.discard(run)
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

    def ask(self, question: Callable[[MetaStore], Any], timeout_s: float) -> Any:
        """What `question` finds in the store, once all that was put is there.

        It is called in the thread, and may fail with `StoreUnavailable` only.

        Raises:
            StoreUnavailable: no answer came in that time.
        """
        flush = _Flush(threading.Event(), [], question)
        self._order(0, _Order.FLUSH, flush)
        self._hurry.set()
        if self._has_ended or not (flush.answered.wait(timeout_s) and flush.appended):
            state, reason = self.state
            raise StoreUnavailable(
                f"the metadata store has not answered within {timeout_s:g} s ({state}) {reason}"
            )
        return flush.appended[0]

    def close(self, *, flush_timeout_s: float = 1.0) -> bool:
        """End the thread, after a flush of at most this length. True: nothing is left."""
        if self._thread is None:
            return self._is_flushed
        self._is_flushed = flush_timeout_s > 0 and self.flush(flush_timeout_s)
        thread, self._thread = self._thread, None
        self._closing.set()
        self._wake.set()
        self._hurry.set()
        thread.join(_END_PATIENCE_S)
        while thread.is_alive():
            self._store.interrupt()
            thread.join(_END_PATIENCE_S)
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
                if time.monotonic() >= self._try_again_s:
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
        if self._backoff_s or self._pending:
            # The store is away. What comes meanwhile is taken, for what waits encoded is bounded.
            pause_s = self._try_again_s - time.monotonic()
            if pause_s > 0:
                self._closing.wait(min(pause_s, self._config.journal_batch_s))
            return not self._closing.is_set()
        self._wake.clear()
        self._is_idle = True
        # `close` sets its flag before it wakes us; looked at before `clear`, it could be missed.
        if not self._queue and not self._overflowed and not self._closing.is_set():
            goes_on = any(run != ENVIRONMENT_RUN for run in self._runs)
            if not self._wake.wait(self._config.journal_check_s if goes_on else None):
                self._check()
        self._is_idle = False
        if self._closing.is_set():
            return False
        if self._queue or self._overflowed:
            self._hurry.wait(self._config.journal_batch_s)
        self._hurry.clear()
        return not self._closing.is_set()

    def _take_queue(self) -> None:
        """Encode what was put and make batches of it."""
        queue = self._queue
        items = [queue.popleft() for _ in range(len(queue))]
        # Of a run that has ended meanwhile only what is kept is encoded, so short runs cost little.
        ends = {
            run: index
            for index, (run, order, item) in enumerate(items)
            if order is _Order.FORGET or (order is _Order.FINISH and not item.is_whole)
        }
        for index, (run, order, item) in enumerate(items):
            try:
                if self._closing.is_set():
                    queue.extendleft(reversed(items[index:]))  # for flushes to be answered
                    return
                self._take(run, order, item, is_over=index <= ends.get(run, -1))
            except BaseException:
                queue.extendleft(reversed(items[index:]))  # for the same reason
                raise
        self._seal_all()
        while self._overflowed:
            self._tear(self._overflowed.pop(), "more records wait than may")

    def _take(self, run: int, order: _Order | None, item: Any, *, is_over: bool) -> None:
        """Do with one thing of the queue what it asks for."""
        if order is None:
            if not is_over:
                self._encode(run, item)
        elif order is _Order.FLUSH:
            self._seal_all()
            self._pending.append(item)
        elif order is _Order.FINISH:
            self._finish(run, item)
        elif order is _Order.FORGET:
            self._leave(run)
        elif order is _Order.RESUME:
            self._results.release(run)
            self._runs[run] = _Run(position=item, is_stored=True)
        else:
            self._begin_anew(run, item)

    def _encode(self, run: int, item: Any) -> None:
        stream = self._runs.get(run)
        if stream is None:
            stream = self._runs[run] = _Run()
        if stream.is_closed:
            self._dropped_count += 1
            return
        record = item if self._convert is None else self._convert(item)
        if record is None:
            return
        if record_bytes(record) > self._config.journal_bytes_max:
            self._discard(run)
            stream.is_too_large = True
            self._tell("degraded", f"run {run} is larger than Config.journal_bytes_max")
            return
        # Unique in the stream: a batch's position is, and so is the record's place in it.
        group = (stream.position << 32) + len(stream.frames)
        for frame in encode_record(record, group=group):
            if stream.frames_bytes + len(frame) > PART_BYTES and stream.frames:
                self._seal(run, stream)
            stream.frames.append(frame)
            stream.frames_bytes += len(frame)
            stream.total_bytes += len(frame)
            self._pending_bytes += len(frame)
        if self._pending_bytes > self._config.journal_bytes_max:
            self._tear(run, "more bytes wait than may")

    def _begin_anew(self, run: int, items: Sequence[Any]) -> None:
        before = self._runs.get(run)
        self._discard(run)
        self._runs[run] = _Run(is_fresh=True, is_stored=before is not None and before.is_stored)
        for item in items:
            self._encode(run, item)

    def _finish(self, run: int, end: _End) -> None:
        """Keep what gives a finished run's result again; its journal, or its last words alone."""
        stream = self._runs.get(run)
        if not end.records or (stream is not None and stream.is_taken):
            self._leave(run)
            return
        if not end.is_whole:
            frames: list[bytes] = []
            for item in end.records:
                record = item if self._convert is None else self._convert(item)
                if record is not None:
                    frames += encode_record(record, group=len(frames))
            data = b"".join(frames)
            if len(data) <= PART_BYTES:
                self._leave(run)
                self._results.keep(run, data, time.monotonic())
                return
        if stream is None or stream.is_torn or not end.is_whole:
            self._begin_anew(run, end.records)
        else:
            self._encode(run, end.records[-1])
        stream = self._runs[run]
        if not stream.is_closed:
            self._seal(run, stream, expiry_s=self._config.result_expiry_s)
            self._results.keep_journal(run, stream.total_bytes, time.monotonic())
        self._runs.pop(run, None)

    def _leave(self, run: int) -> None:
        """Forget a run, and have its journal dropped."""
        self._discard(run)
        stream = self._runs.pop(run, None)
        if stream is not None and stream.is_stored and not stream.is_taken:
            self._results.drop_journal(run)

    def _seal_all(self) -> None:
        for run, stream in self._runs.items():
            if stream.frames:
                self._seal(run, stream)

    def _seal(self, run: int, stream: _Run, expiry_s: int | None = None) -> None:
        """Make a batch of the frames so far."""
        data = stream.frames[0] if len(stream.frames) == 1 else b"".join(stream.frames)
        self._pending.append(Batch(run, stream.position, data, stream.is_fresh, expiry_s))
        stream.pending_count += 1
        stream.position += 1
        stream.is_fresh = False
        stream.frames.clear()
        stream.frames_bytes = 0

    def _send(self) -> None:
        """Append batches until none waits or the store is away."""
        # A store that comes back may have lost what it had; until that is known all is not well.
        if self._backoff_s and not self._check():
            return
        settlement = self._results.untold()
        if settlement is not None:
            self._drop_pending(set(settlement.dropped) - self._runs.keys())
            if not self._try(lambda: self._store.settle(settlement)):
                return
            self._results.told()
        while self._pending and not self._closing.is_set():
            first = self._pending[0]
            if isinstance(first, _Flush):
                question = first.question
                if question is None:
                    first.appended.append(True)
                elif not self._try(lambda: first.appended.append(question(self._store))):  # noqa: B023 - called at once
                    return
                first.answered.set()
                self._pending.popleft()
            elif not self._append():
                return
        self._mend()

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

        def append() -> None:
            for batch in batches:
                if batch.run in self._runs:
                    self._runs[batch.run].is_stored = True  # even if no answer comes
            refusals.extend(self._store.append(batches))

        if not self._try(append):
            return False
        for _ in batches:
            batch = self._pending.popleft()
            assert isinstance(batch, Batch)
            self._pending_bytes -= len(batch.data)
            stream = self._runs.get(batch.run)
            if stream is not None:
                stream.pending_count -= 1
        for refusal in refusals:
            self._refused(refusal.run, refusal.kind)
        return True

    def _try(self, operation: Callable[[], object]) -> bool:
        """Do something with the store; False: it is away, so wait and open it again."""
        try:
            if self._backoff_s:
                self._store.open()
            operation()
        except StoreUnavailable as error:
            self._backoff_s = min(max(_BACKOFF_FIRST_S, 2 * self._backoff_s), _BACKOFF_MAX_S)
            self._try_again_s = time.monotonic() + self._backoff_s
            self._tell("degraded", str(error))
            return False
        self._backoff_s = 0.0
        return True

    # --- journals that are lost, torn, or not ours any more ---------------------------------------

    def _check(self) -> bool:
        """See that the store still has all that it was given; False: it is away."""
        anew = {entry.run for entry in self._pending if isinstance(entry, Batch) and entry.is_fresh}
        runs = [
            run for run, stream in self._runs.items() if not stream.is_closed and run not in anew
        ]
        lengths: list[int] = []

        def ask() -> None:
            self._store.ping()
            lengths.extend(self._store.lengths(runs))

        if not self._try(ask):
            return False
        for run, length in zip(runs, lengths, strict=True):
            stream = self._runs[run]
            # What waits may have been appended already, if only the answer was lost.
            most = stream.position - 1
            if not most - stream.pending_count <= length <= most:
                self._refused(run, "gone" if length < most else "taken")
        return True

    def _mend(self) -> None:
        """The store is there: have torn journals written anew; all is well if there are none."""
        for run, stream in list(self._runs.items()):
            if stream.is_torn and not stream.is_asked and self._on_torn is not None:
                stream.is_asked = True
                self._on_torn(run)
        if not any(stream.is_closed for stream in self._runs.values()):
            self._tell("ok", "")

    def _refused(self, run: int, kind: str) -> None:
        stream = self._runs.get(run)
        if stream is None or stream.is_closed:
            return
        if kind == "gone":
            self._tear(run, "the store has lost it")
            return
        self._discard(run)
        stream.is_taken = True
        self._tell("degraded", f"another master writes the journal of run {run}")

    def _tear(self, run: int, reason: str) -> None:
        """Stop writing a run's journal until it is written anew."""
        stream = self._runs.setdefault(run, _Run())
        self._discard(run)
        if stream.is_closed:
            return
        stream.is_torn = True
        self._tell("degraded", f"the journal of run {run} has to be written anew: {reason}")

    def _discard(self, run: int) -> None:
        """Forget what waits of a run."""
        stream = self._runs.get(run)
        if stream is None:
            return
        self._dropped_count += len(stream.frames)
        self._pending_bytes -= stream.frames_bytes
        stream.frames.clear()
        stream.frames_bytes = 0
        if stream.pending_count:
            self._drop_pending({run})
            stream.pending_count = 0

    def _drop_pending(self, runs: set[int]) -> None:
        """Forget batches of these runs."""
        if not runs or not self._pending:
            return
        kept: deque[Batch | _Flush] = deque()
        for entry in self._pending:
            if isinstance(entry, Batch) and entry.run in runs:
                self._pending_bytes -= len(entry.data)
            else:
                kept.append(entry)
        self._pending = kept

    def _tell(self, state: str, reason: str) -> None:
        before = self._health
        self._health = JournalHealth(state, reason, self._dropped_count + self._overflow_count)
        if before[:2] == self._health[:2]:
            return
        if state == "degraded":
            now = time.monotonic()
            level = logging.DEBUG
            if before.state == "ok" and now - self._warned_s >= _WARNING_PAUSE_S:
                self._warned_s, level = now, logging.WARNING
            logger.log(
                level, "the journal is degraded, so runs could not be resumed now: %s", reason
            )
        if self._on_health is not None:
            self._on_health(self._health)
