"""The thread behind a `DagschedExecutor`: from calls that were submitted to runs, and back.

Responsible for which calls are handed out, when, and which of them together; for the values of
futures among arguments; and for what becomes of all when the executor is broken.

One thread has all state; others put messages into its inbox. A call that takes long, or was never
measured, is a run of its own, so that its value is told when it is there. Calls of functions that
were short whenever they were measured are gathered into chunks of some milliseconds of work: a
call of such a function that blocks for once keeps back the values of those before it in its chunk.
"""

import logging
import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, NamedTuple

from dagsched.calls import Call, outcomes, pack, pack_call, run_packed_calls
from dagsched.containers import has_leaf, leaves, rebuild
from dagsched.delayed import Delayed, delayed
from dagsched.errors import ClosedError, DagschedError, ExecutorLost, InternalError, TaskFailed
from dagsched.plugins.items import (
    Item,
    Unit,
    chunk_call,
    failed_input,
    is_far,
    is_future,
    is_plain,
    value_of,
)
from dagsched.plugins.lazy import LazyFuture, Stored, fetch_and, set_fetched
from dagsched.plugins.setup import InitializerFailed, Prepared, PreparedCalls, Setup
from dagsched.plugins.shortness import Shortness
from dagsched.ref import Ref

if TYPE_CHECKING:
    from dagsched.runenv import RunEnv

logger = logging.getLogger(__name__)
stdlib_logger = logging.getLogger("concurrent.futures")  # where executors tell of initializers

CHUNK_S = 0.01
"""Work of a chunk of short calls."""

CHUNK_TOGETHER_S = 0.000_5
"""Less work than this isn't shared out between chunks, each of which costs as much."""

CHUNK_CALLS_MAX = 4_096


class BrokenDagschedExecutor(BrokenProcessPool):
    """A call took down its executor again and again, or the environment is closed."""


class _Arrived(NamedTuple):
    """A future among an item's arguments is done."""

    item: Item
    future: Future[Any]


class _Finish(NamedTuple):
    """No more calls will come."""

    cancel: bool  # what hasn't been handed out
    stop: bool  # what has


_living: "weakref.WeakSet[Pool]" = weakref.WeakSet()


class Pool:
    """State of one executor. Arguments as of `DagschedExecutor`."""

    def __init__(self, max_workers: int | None, env: "RunEnv | None", setup: Setup | None) -> None:
        self._max_workers = max_workers
        self._env = env
        self._setup = setup
        self._pid = os.getpid()
        self._inbox: queue.SimpleQueue[Item | Unit | _Arrived | _Finish] = queue.SimpleQueue()
        # Guards what follows; reentrant, for the end of the executor, which the garbage collector
        # may notice anywhere, calls `finish`.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._is_finishing = False
        self._broken: BrokenDagschedExecutor | None = None
        # The rest is the thread's.
        self._is_last = False  # no more calls will come
        self._ready: deque[Item] = deque()
        self._waiting: dict[Item, None] = {}
        self._in_hand: list[Item] = []  # on their way between those and the next, or to their ends
        self._under_way: dict[Unit, None] = {}
        self._shortness = Shortness()

    # --- for the executor, in any thread --------------------------------------------------------

    def put(self, item: Item) -> None:
        """Take a call.

        Raises:
            RuntimeError: it comes too late.
        """
        with self._lock:
            if self._broken is not None:
                raise self._broken_error()
            if self._is_finishing:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if self._thread is None or not self.is_ours:
                self._start()
            self._inbox.put(item)

    def finish(self, *, cancel: bool = False, stop: bool = False) -> None:
        """Take no more calls, and end the thread when it has done those that there are.

        Args:
            cancel: calls that haven't been handed out.
            stop: calls that have.
        """
        with self._lock:
            self._is_finishing = True
            if self._thread is not None:
                self._inbox.put(_Finish(cancel, stop))

    def join(self) -> None:
        """Wait for the end of the thread."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    @property
    def is_broken(self) -> bool:
        """Whether all that is submitted fails."""
        return self._broken is not None

    @property
    def is_ours(self) -> bool:
        """Whether this process made it; not after a fork."""
        return self._pid == os.getpid()

    def _start(self) -> None:
        from dagsched.runenv import default_env

        if not self.is_ours:
            raise RuntimeError(
                "the executor belongs to the parent of this process; make another one here"
            )
        if self._env is None:
            self._env = default_env()
        if self._env.closed:
            raise BrokenDagschedExecutor("the environment has been closed; make another RunEnv")
        _living.add(self)
        self._thread = threading.Thread(target=self._serve, name="dagsched-executor", daemon=True)
        self._thread.start()

    # --- the thread -----------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while self._broken is None and not self._is_idle_for_good():
                message = self._inbox.get()
                while True:
                    self._take(message)
                    # Nothing may be kept alive while nothing happens.
                    del message
                    try:
                        message = self._inbox.get_nowait()
                    except queue.Empty:
                        break
                self._hand_out()
        except BaseException as error:
            logger.exception("the thread of an executor has failed")
            self._break(f"its thread has failed: {error!r}", error)
        while not self._inbox.empty():  # of a broken one: nothing came after it was
            self._take(self._inbox.get())

    def _is_idle_for_good(self) -> bool:
        return self._is_last and not (self._under_way or self._ready or self._waiting)

    def _take(self, message: "Item | Unit | _Arrived | _Finish") -> None:
        if isinstance(message, Item):
            if self._broken is not None:
                self._fail(message, self._broken_error())
            else:
                self._take_item(message)
        elif isinstance(message, Unit):
            self._take_end(message)
        elif isinstance(message, _Arrived):
            item = message.item
            item.missing.discard(message.future)
            if not item.missing and not item.is_sent and item in self._waiting:
                del self._waiting[item]
                self._ready.append(item)
        else:
            self._is_last = True
            if message.cancel:
                if not message.stop:
                    self._hand_out()  # first, what executors wait for
                self._cancel_all()
            if message.stop:
                self._stop_all()

    def _take_item(self, item: Item) -> None:
        if not is_plain(item):
            for future in set(leaves((item.args, item.kwargs), is_future)):
                assert isinstance(future, Future)
                if not future.done():
                    item.missing.add(future)
        item.future.item = item
        if not item.missing:
            self._ready.append(item)
            return
        self._waiting[item] = None
        for future in list(item.missing):
            self._depend(item, future)

    def _depend(self, item: Item, future: Future[Any]) -> None:
        def tell(done: Future[Any]) -> None:
            self._inbox.put(_Arrived(item, done))

        if isinstance(future, LazyFuture):
            if future.item is not None:
                future.item.dependents.append(item)
            future.add_hook(tell)
        else:
            future.add_done_callback(tell)

    def _cancel_all(self) -> None:
        for item in [*self._ready, *self._waiting]:
            item.future.cancel()
            self._is_wanted(item)
        self._ready.clear()
        self._waiting.clear()

    def _stop_all(self) -> None:
        for unit in self._under_way:
            try:
                unit.run.cancel()
            except DagschedError:
                logger.debug("run %s has gone with its environment", unit.run.run_id)

    # --- out ------------------------------------------------------------------------------------

    def _limit(self, head: Item) -> int:
        """How many units may be under way at once."""
        assert self._env is not None
        executors = sum(len(node.executorids) for node in self._env.nodes) or 1
        if self._max_workers is not None and self._max_workers < executors:
            return self._max_workers
        return 2 * executors if self._shortness.of(head.function) is not None else executors + 1

    def _hand_out(self) -> None:
        if self._broken is None and self._ready and self._env is not None and self._env.closed:
            self._break("the environment has been closed", None)
        while self._ready and self._broken is None:
            free = self._limit(self._ready[0]) - len(self._under_way)
            if free <= 0:
                return
            items = self._next_items(free)
            try:
                if items:
                    self._send(items)
            except (ClosedError, InternalError) as error:
                self._break(str(error), error)
            self._in_hand = []

    def _next_items(self, free: int) -> list[Item]:
        """Calls for one unit; none if the next one need not be made."""
        head = self._ready.popleft()
        items = self._in_hand = [head]
        if not self._is_wanted(head):
            return []
        if (error := failed_input(head)) is not None:
            self._fail(head, error)
            return []
        budget_s = self._cost(head)
        if budget_s is None:
            return items
        share = -(-(len(self._ready) + 1) // free)
        spent_s = budget_s
        members = {head.future}
        grown = deque(head.dependents)
        while len(items) < CHUNK_CALLS_MAX and spent_s < CHUNK_S:
            item = self._next_member(items, grown, members, share, spent_s)
            if item is None:
                break
            cost_s = self._cost(item)
            assert cost_s is not None
            spent_s += cost_s
            items.append(item)
            members.add(item.future)
            grown += item.dependents
        return items

    def _next_member(
        self,
        items: list[Item],
        grown: deque[Item],
        members: set[LazyFuture[Any]],
        share: int,
        spent_s: float,
    ) -> Item | None:
        """A call that may join a chunk: one that waits for nothing but its members, or is next."""
        while grown:
            item = grown.popleft()
            if item in self._waiting and item.missing <= members and self._cost(item) is not None:
                del self._waiting[item]
                if self._is_wanted(item):
                    return item
        if len(items) >= share and spent_s >= CHUNK_TOGETHER_S:
            return None
        while self._ready:
            item = self._ready[0]
            if self._cost(item) is None or failed_input(item) is not None:
                return None
            self._ready.popleft()
            if self._is_wanted(item):
                return item
        return None

    @staticmethod
    def _is_wanted(item: Item) -> bool:
        """Whether a call is to be made: nobody has cancelled it, and nobody can from now on."""
        if item.future.set_running_or_notify_cancel():
            return True
        item.release()
        return False

    def _cost(self, item: Item) -> float | None:
        """Seconds that a call takes, if it may be in a chunk."""
        seconds = self._shortness.of(item.function)
        if seconds is None or is_plain(item):
            return seconds
        return None if has_leaf((item.args, item.kwargs), is_far) else seconds

    def _send(self, items: list[Item]) -> None:
        """Make a run of these calls, of which those that can't travel fail."""
        from dagsched.submission import submit

        assert self._env is not None
        for item in items:
            item.is_sent = True
        if len(items) > 1:
            self._send_chunk(items)
            return
        item = items[0]
        args, kwargs = item.args, item.kwargs
        if not is_plain(item):
            args, kwargs = rebuild((args, kwargs), value_of, is_future)
        try:
            function = item.function
            if self._setup is not None:
                function = Prepared(self._setup, function)
            run = submit(self._env, delayed(function)(*args, **kwargs), as_refs=True)
        except (ClosedError, InternalError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is about this call
            self._fail(item, error)
        else:
            self._begin(Unit(items, [], run))

    def _send_chunk(self, items: list[Item]) -> None:
        from dagsched.submission import submit

        assert self._env is not None
        functions: list[Callable[..., Any]] = []
        index_of: dict[int, int] = {}
        place_of: dict[Future[Any], int] = {}
        packed: list[bytes | Call] = []
        sent: list[Item] = []
        for item in items:
            index = index_of.setdefault(id(item.function), len(functions))
            try:
                if index == len(functions):
                    pack(item.function, "function")
                    functions.append(item.function)
                packed.append(pack_call(chunk_call(item, index, place_of)))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is about this call
                if index == len(functions):
                    del index_of[id(item.function)]
                self._fail(item, error)
            else:
                place_of[item.future] = len(sent)
                sent.append(item)
        if sent:
            data = pack((functions, packed), "chunk")
            function = PreparedCalls(self._setup) if self._setup is not None else run_packed_calls
            run = submit(self._env, delayed(function, name="short calls")(data))
            self._begin(Unit(sent, functions, run))

    def _begin(self, unit: Unit) -> None:
        self._under_way[unit] = None
        unit.run.add_internal_callback(lambda: self._inbox.put(unit))

    # --- back -----------------------------------------------------------------------------------

    def _take_end(self, unit: Unit) -> None:
        if self._under_way.pop(unit, self) is self:
            return  # the executor is broken, and its calls have failed
        self._in_hand = unit.items
        error = unit.run.exception()
        value = None
        if error is None:
            try:
                value = unit.run.result()
            except Exception as raised:  # noqa: BLE001 - of the user's own unpickling code
                error = raised
        if isinstance(error, ExecutorLost | ClosedError | InternalError | InitializerFailed):
            self._break(_broken_text(error), error)
        elif error is not None:
            for item in unit.items:
                self._fail(item, error)
        elif unit.is_chunk:
            self._take_results(unit, value)
        else:
            self._take_value(unit, value)
        self._in_hand = []

    def _take_value(self, unit: Unit, value: object) -> None:
        item = unit.items[0]
        seconds = unit.run.traces.seconds_of(unit.run.shape.outputs)
        if seconds:  # not told, if a node was lost
            self._shortness.note(item.function, 1, seconds)
        future = item.future
        item.release()
        if not unit.run.kept_positions:
            future.set_result(value)
            return
        assert isinstance(value, Ref)
        future.stored = value
        with future._condition:
            is_watched = future.is_watched
        if is_watched:
            fetch_and(future, lambda: set_fetched(future))
        else:
            future.set_result(Stored(value))

    def _take_results(self, unit: Unit, value: Any) -> None:
        results, spent = value
        for index, count, seconds, longest_s in spent:
            self._shortness.note(unit.functions[index], count, seconds, longest_s)
        where = f"one of {len(unit.items)} short calls that travelled together"
        for item, outcome in zip(unit.items, outcomes(results, where), strict=True):
            if outcome.error is not None:
                self._fail(item, outcome.error)
            elif type(outcome.value) is Delayed:
                # A call that returns a graph stands for its value.
                self._resend(item, outcome.value)
            else:
                item.release()
                item.future.set_result(outcome.value)

    def _resend(self, item: Item, value: Delayed) -> None:
        from dagsched.submission import submit

        assert self._env is not None
        self._begin(Unit([item], [], submit(self._env, value, as_refs=True)))

    def _fail(self, item: Item, error: BaseException) -> None:
        if item.future.running() or self._is_wanted(item):
            item.release()
            item.future.set_exception(_as_raised(error))

    def _break(self, text: str, cause: BaseException | None) -> None:
        """Nothing more can be done: all that was submitted fails."""
        broken = BrokenDagschedExecutor(f"the executor is broken: {text}")
        broken.__cause__ = cause
        with self._lock:
            self._broken = broken
        self._stop_all()
        units, self._under_way = self._under_way, {}
        waiting: Iterable[Item] = [*self._in_hand, *self._ready, *self._waiting]
        self._ready.clear()
        self._waiting.clear()
        for item in [*(item for unit in units for item in unit.items), *waiting]:
            if not item.future.done() or item.future.cancelled():
                self._fail(item, self._broken_error())

    def _broken_error(self) -> BrokenDagschedExecutor:
        """The error anew for each call, so that no traceback grows."""
        assert self._broken is not None
        error = BrokenDagschedExecutor(*self._broken.args)
        error.__cause__ = self._broken.__cause__
        return error


def _as_raised(error: BaseException) -> BaseException:
    """The error of a call as other executors give it: SystemExit and its like as themselves."""
    original = error.__cause__
    is_exit = type(error) is TaskFailed and original is not None
    return original if is_exit and not isinstance(original, Exception) else error  # type: ignore[return-value]  # it isn't None


def _broken_text(error: BaseException) -> str:
    if isinstance(error, InitializerFailed):
        stdlib_logger.critical("an initializer has failed: %s", error)
        return f"its initializer has failed: {error}"
    return str(error)


def _finish_all() -> None:
    """Before the interpreter ends: what was submitted is done, as by other executors."""
    pools = [pool for pool in _living if pool.is_ours]
    for pool in pools:
        pool.finish()
    for pool in pools:
        pool.join()


# As `concurrent.futures.thread` does: called before the interpreter waits for threads, and so
# before environments are closed.
threading._register_atexit(_finish_all)  # type: ignore[attr-defined]  # not public, nor is another way
