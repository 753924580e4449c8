"""Running one bundle: the loop that every task goes through.

Responsible for resolving arguments, calling, timing, keeping results, and for what is reported of
it all. The hot loop (`BundleRun.run_tasks`) handles tasks with nothing special in a few hundred
nanoseconds; whatever needs more is a `Special` entry and goes through `_run_special`.
"""

import operator
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, repeat
from time import monotonic_ns
from typing import Any

import numpy as np

from dagsched.brokers.code import ArgumentError, RunCode, Special
from dagsched.brokers.exports import Exports
from dagsched.brokers.objects.arena import Arena
from dagsched.brokers.objects.nursery import Nursery
from dagsched.brokers.objects.reader import Reader
from dagsched.brokers.restoring import ProcessState
from dagsched.brokers.status import IDLE_POSITION, POSITION, STARTED, STOP
from dagsched.brokers.values import Values
from dagsched.config import Config
from dagsched.delayed import Delayed
from dagsched.entries import fill
from dagsched.errors import InternalError, OutOfMemory, SerializationError
from dagsched.plan import ClusterShape
from dagsched.protocol.asking import TaskRetried
from dagsched.protocol.messages import Failure, Frame, ObjectInfo, RunBundle, TaskOptions
from dagsched.ref import Ref
from dagsched.remote_errors import dump_exception, exception_in_short

RETRIES_MAX = 20
"""Retries of one bundle that are told one by one; all are counted."""

# What the hot loop does with a result: HAND_OVER to its only user, or the sum of the others.
HAND_OVER, USED, EXPORTED = 1, 2, 4

Rows = Iterator[tuple[int, int, int, Callable[..., Any], Any, int, int]]
"""Index, what becomes of the result, position, function, entry, begin and end of dependencies."""

LONG_BUNDLE_NS = 100_000_000
"""A bundle that takes longer, because its tasks were never measured, ends there: what has ended is
safe with the broker then, and what is left may go to other executors."""

SCALAR_TYPES = frozenset({int, float, bool, complex, type(None)})
"""Results of these types are shared as they are, whatever becomes of them."""


class ResultError(Exception):
    """A result can't be kept; the cause says why."""


@dataclass(slots=True)
class Services:
    """What an executor has for all its bundles."""

    executor: int
    config: Config
    reader: Reader
    arena: Arena
    nursery: Nursery
    state: ProcessState
    shape: ClusterShape
    token: str


@dataclass(slots=True)
class Outcome:
    """What came of a bundle's tasks."""

    done: list[int] = field(default_factory=list)
    stamps: list[int] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    failure_frames: list[bytes] = field(default_factory=list)
    expanded: list[tuple[int, int]] = field(default_factory=list)
    expanded_frames: list[Frame] = field(default_factory=list)
    deferred: list[int] = field(default_factory=list)
    infos: list[ObjectInfo] = field(default_factory=list)
    inline: list[bytes] = field(default_factory=list)
    seconds: list[tuple[int, int, float]] = field(default_factory=list)
    retry_count: int = 0
    retries: list[TaskRetried] = field(default_factory=list)  # the first `RETRIES_MAX`


class SlowTask(Special):
    """A task with retries, or whose function gets references."""

    __slots__ = ("entry", "is_meta", "retries")

    def __init__(self, entry: Any, retries: int, is_meta: bool) -> None:
        self.entry = entry
        self.retries = retries
        self.is_meta = is_meta

    def make(self) -> Any:
        """The entry for one call.

        Raises:
            ArgumentError: it can't be loaded.
        """
        return self.entry.make() if isinstance(self.entry, Special) else self.entry


class BundleRun:
    """One bundle while it runs.

    Args:
        message: what to run.
        frames: as `RunBundle` says, without new chunks and functions.
        imports: frames of inline imports.
        code: the run's functions and entries.
        services: of this executor.
        status: words shared with the broker.
    """

    def __init__(
        self,
        message: RunBundle,
        frames: Sequence[Frame],
        imports: Sequence[Frame],
        code: RunCode,
        services: Services,
        status: memoryview,
    ) -> None:
        self.message = message
        self.services = services
        self.status = status
        self.code = code
        self._position_frame = frames[0]
        self.positions = int32_list(frames[0])
        self.indptr = int32_list(frames[1])
        self.deps = int32_list(frames[2])
        self.function_of = int32_list(frames[3])
        self.groups = int32_list(frames[4])
        self.outcome = Outcome()
        self.values = Values(
            message.run,
            services.reader,
            services.arena,
            services.nursery,
            services.config.inline_bytes_max,
            frozenset(message.referenced),
        )
        self._import_frames = imports
        self._functions: list[Callable[..., Any]] = []
        self._entries: list[Any] = []
        self._uses: dict[int, int] = {}
        self._exported: set[int] = set()
        self._broken: set[int] = set()  # failed, deferred or expanded: dependents must wait
        self._users: dict[int, list[int]] | None = None
        self._attempt = 1
        self._infos = {info.first: info for info in message.imports}

    def run(self) -> Outcome:
        """Run all tasks and pack what leaves the bundle."""
        self._prepare()
        codes = self._codes()
        self.outcome.stamps.append(monotonic_ns())
        self.run_tasks(codes)
        self.services.state.restore_streams()
        self._export()
        self.outcome.seconds = self._seconds()
        return self.outcome

    def reply_frames(self) -> list[Frame]:
        """The frames that `BundleDone` says, of what has come of the tasks."""
        outcome = self.outcome
        # Most often all have ended, in their order.
        is_all = outcome.done == self.positions
        done = bytes(self._position_frame) if is_all else _int32_frame(outcome.done)
        stamps = _int64_frame(outcome.stamps) if self.services.config.trace else b""
        tasks = (*outcome.inline, *outcome.failure_frames, *outcome.expanded_frames)
        return [done, stamps, *tasks]

    def release(self) -> None:
        """Let go of all values; what was sealed for this bundle only can be freed afterwards."""
        self.values.clear()
        self._functions.clear()
        self._entries.clear()

    def run_tasks(self, codes: Sequence[int]) -> None:
        """Run all tasks; see `_codes` for `codes`."""
        self.run_rows(self.rows(codes), self.outcome.stamps[-1] + LONG_BUNDLE_NS)

    def rows(self, codes: Sequence[int]) -> Rows:
        """What the hot loop takes for each task."""
        columns = (self.positions, self._functions, self._entries, self.indptr, self.indptr[1:])
        return zip(count(), codes, *columns, strict=False)

    def run_rows(self, rows: Rows, until: int) -> None:
        """The hot loop, up to a time (monotonic ns). It keeps no value in a local name for long."""
        bundle, deps, broken = self.message.bundle, self.deps, self._broken
        once, many, raw = self.values.once, self.values.many, self.values.raw
        pop, take, take_all = once.pop, self.values.take, self.values.take_all
        clock = monotonic_ns
        add_done, add_stamp = self.outcome.done.append, self.outcome.stamps.append
        status, state = self.status, self.services.state
        now = self.outcome.stamps[-1]
        for index, code, position, function, entry, begin, end in rows:
            if status[STOP] == bundle or now > until:
                self._defer_from(index)
                return
            if broken and not broken.isdisjoint(deps[begin:end]):
                self._defer(position)
                continue
            status[POSITION] = position
            status[STARTED] = now
            try:
                width = end - begin
                if entry is None and width == 1:
                    d = deps[begin]
                    if d in once:
                        result = function(pop(d))
                    else:
                        result = function(many[d] if d in many else take(d))
                elif entry is None and width == 2:
                    d, e = deps[begin], deps[begin + 1]
                    result = function(
                        pop(d) if d in once else many[d] if d in many else take(d),
                        pop(e) if e in once else many[e] if e in many else take(e),
                    )
                elif entry is None:
                    result = function(*take_all(deps[begin:end]))
                elif type(entry) is tuple:
                    result = function(*entry)
                elif type(entry) is list:
                    result = function(*_filled(entry, list(map(take, deps[begin:end]))))
                else:
                    result = self._run_special(function, entry, deps[begin:end])
                if type(result) is Delayed:
                    self._expand(position, result)
                    result = None
                    continue
                if code == HAND_OVER:
                    once[position] = result
                elif code and type(result) in SCALAR_TYPES:
                    if code & USED:
                        many[position] = result
                    if code & EXPORTED:
                        raw[position] = result
                elif code:
                    given, result = [result], None
                    self._keep(position, given)
            except BaseException as error:  # noqa: BLE001 - user code may raise anything
                self._fail(position, error)
                now = clock()
            else:
                now = clock()
                add_stamp(now)
                add_done(position)
            result = None
            if state.is_dirty:
                state.restore()

    # --- before the tasks -------------------------------------------------------------------------

    def _prepare(self) -> None:
        message = self.message
        self._functions = self.code.functions_of(self.function_of)
        self._entries = self.entries()
        self.values.add_imports(message.imports, self._import_frames)
        if message.options or message.meta:
            place = dict(zip(self.positions, count(), strict=False))
            meta = set(message.meta)
            options = {o.position: o for o in message.options}
            for position in meta | options.keys():
                index = place.get(position)
                asked = options.get(position, TaskOptions(position))
                if index is not None and (asked.retries or position in meta):
                    self._entries[index] = SlowTask(
                        self._entries[index], asked.retries, position in meta
                    )

    def entries(self) -> list[Any]:
        """The argument entries of all tasks."""
        return self.code.entries_of(self.positions)

    def _codes(self) -> list[int]:
        """For each task what becomes of its result; 0: nobody needs it."""
        # A task alone is nobody's dependency in its bundle, though it may take thousands of values.
        uses = Counter(self.deps) if len(self.positions) > 1 else Counter[int]()
        self._uses = uses
        self._exported = exported = self.exported()
        if not uses and len(exported) == len(self.positions):
            return [EXPORTED] * len(exported)
        counts = map(uses.get, self.positions, repeat(0))
        codes = [USED if number > 1 else number for number in counts]
        if exported:
            codes = [
                (EXPORTED | USED if code else EXPORTED) if position in exported else code
                for position, code in zip(self.positions, codes, strict=True)
            ]
        return codes

    def exported(self) -> set[int]:
        """Tasks whose values leave the bundle."""
        groups = iter(self.groups)
        exported: set[int] = set()
        for first, length in zip(groups, groups, strict=True):
            exported.update(range(first, first + length))
        return exported

    # --- one task that needs more -----------------------------------------------------------------

    def _run_special(self, function: Callable[..., Any], entry: Any, deps: Sequence[int]) -> object:
        if isinstance(entry, SlowTask):
            return self._run_slow(function, entry, deps)
        made = entry.make() if isinstance(entry, Special) else entry
        return _call(function, made, list(map(self.values.take, deps)))

    def _run_slow(
        self, function: Callable[..., Any], task: SlowTask, deps: Sequence[int]
    ) -> object:
        """Call a task again where it failed and asked for it, with inputs nobody has touched."""
        self._attempt = 1
        while True:
            is_last = self._attempt > task.retries
            if task.is_meta:
                values: list[object] = [self._reference(d) for d in deps]
            elif is_last:
                values = list(map(self.values.take, deps))
            else:
                values = [self._spare(d) for d in deps]
            try:
                result = _call(function, task.make(), values)
            except ArgumentError:
                raise
            except Exception as error:
                if is_last or self.status[STOP] == self.message.bundle:
                    raise
                self._note_retry(error)
            else:
                for d in deps if not is_last and not task.is_meta else ():
                    self.values.take(d)  # the copies counted as no use
                return result
            self._attempt += 1
            if self.services.state.is_dirty:
                self.services.state.restore()
            self.status[STARTED] = monotonic_ns()

    def _note_retry(self, error: Exception) -> None:
        outcome = self.outcome
        outcome.retry_count += 1
        if len(outcome.retries) < RETRIES_MAX:
            attempt = self.message.attempt + self._attempt - 1
            outcome.retries.append(
                TaskRetried(
                    0, self.status[POSITION], attempt, "exception", self.services.executor,
                    exception_in_short(error),
                )
            )  # fmt: skip

    def _spare(self, position: int) -> object:
        try:
            return self.values.copy(position)
        except SerializationError:  # never leaves this bundle, so need not be picklable
            return self.values.once[position]

    def _reference(self, position: int) -> Ref:
        info = self._infos.get(position)
        if info is None:
            raise InternalError(f"input {position} of a meta task has no description")
        brokers = dict(self.message.ref_brokers)
        return Ref(
            self.message.run,
            position,
            info.size_bytes,
            info.type_name,
            (brokers[position],) if position in brokers else (),
            self.services.token,
        )

    # --- results ----------------------------------------------------------------------------------

    def _keep(self, position: int, given: list[object]) -> None:
        try:
            self.values.keep(
                position, given, self._uses.get(position, 0), position in self._exported, self
            )
        except Exception as error:
            raise ResultError from error

    def item_users(self, position: int) -> Sequence[tuple[int, int]]:
        """(task, item) of the uses of `position`, if each of them is ``operator.getitem``."""
        if self._users is None:
            users: dict[int, list[int]] = {}
            for task, (begin, end) in enumerate(zip(self.indptr, self.indptr[1:], strict=False)):
                for d in self.deps[begin:end]:
                    users.setdefault(d, []).append(task)
            self._users = users
        found: list[tuple[int, int]] = []
        for task in self._users.get(position, ()):
            entry = self._entries[task]
            if self._functions[task] is not operator.getitem or type(entry) is not list:
                return ()
            args, slots = entry
            if len(args) != 2 or type(args[1]) is not int or list(map(tuple, slots)) != [(0, 0)]:
                return ()
            found.append((task, args[1]))
        return found

    def give_item(self, task: int, function: Callable[[], object]) -> None:
        """The task shall call `function`, which has its item."""
        self._functions[task] = function
        self._entries[task] = ()

    def _expand(self, position: int, value: Delayed) -> None:
        """The task returned a graph: hand that to the master as a plan."""
        from dagsched.brokers.expansion import expand

        self._broken.add(position)
        frames = expand(value, self.services.shape, self.services.config)
        self.outcome.expanded.append((position, len(frames)))
        self.outcome.expanded_frames += frames

    def _defer(self, position: int) -> None:
        self.outcome.deferred.append(position)
        self._broken.add(position)

    def _defer_from(self, index: int) -> None:
        for position in self.positions[index:]:
            self._defer(position)

    def _fail(self, position: int, error: BaseException) -> None:
        """Book a failure of a task that ran, or that could not begin."""
        attempt = self.message.attempt + self._attempt - 1
        self._attempt = 1
        self._broken.add(position)
        if isinstance(error, ArgumentError):
            self._add_failure(position, attempt, "argument", error.__cause__ or error)
        elif isinstance(error, ResultError):
            self._fail_result(position, error.__cause__, attempt)
        else:
            kind = "raised" if isinstance(error, Exception) else "not_exception"
            self._add_failure(position, attempt, kind, error)

    def _fail_result(self, position: int, error: BaseException | None, attempt: int) -> None:
        if isinstance(error, OutOfMemory):
            self._add_failure(position, attempt, "memory", error)
        elif isinstance(error, SerializationError):
            self._add_failure(position, attempt, "result", error, error.path)
        else:
            self._add_failure(position, attempt, "result", error or InternalError("no cause"))

    def _add_failure(
        self, position: int, attempt: int, kind: str, error: BaseException, path: str = ""
    ) -> None:
        data, name, text, trace = dump_exception(error)
        self.outcome.failures.append(
            Failure(position, attempt, kind, name, text, trace, path, self.services.executor)
        )
        if kind in ("raised", "not_exception"):
            self.outcome.failure_frames.append(data)

    # --- after the tasks --------------------------------------------------------------------------

    def _export(self) -> None:
        """Pack exports, and what deferred tasks will need of this bundle."""
        exports = Exports(self.values, self._fail_export, self.status)
        groups = iter(self.groups)
        for first, length in zip(groups, groups, strict=True):
            exports.add_group(first, length)
        self.add_more(exports)
        self.status[POSITION] = IDLE_POSITION
        self.outcome.infos, self.outcome.inline = exports.infos, exports.frames

    def add_more(self, exports: Exports) -> None:
        """Export what was not to leave the bundle, but is needed elsewhere after all."""
        if self.outcome.deferred:
            for position in self._needed_by_deferred():
                exports.add_extra(position)

    def ended_here(self) -> set[int]:
        """Whose values are here."""
        return set(self.outcome.done)

    def _needed_by_deferred(self) -> list[int]:
        """Positions that ended here, are not exported, and that a deferred task depends on."""
        ended = self.ended_here() - self._exported
        deferred = set(self.outcome.deferred)
        needed: set[int] = set()
        for position, begin, end in zip(self.positions, self.indptr, self.indptr[1:], strict=False):
            if position in deferred:
                needed.update(ended.intersection(self.deps[begin:end]))
        return sorted(needed)

    def _fail_export(self, position: int, error: Exception) -> None:
        """A task whose value can't leave the bundle has failed after all."""
        if position not in self.outcome.done:
            return  # another lane's: who needs it has it computed again
        self._fail_result(position, error, self.message.attempt)
        index = self.outcome.done.index(position)
        del self.outcome.done[index], self.outcome.stamps[index + 1]

    def _seconds(self) -> list[tuple[int, int, float]]:
        """Calls and time of each function."""
        done, stamps = self.outcome.done, self.outcome.stamps
        if not done:
            return []
        if len(done) == len(self.positions):
            functions = self.function_of
        else:
            of = dict(zip(self.positions, self.function_of, strict=True))
            functions = [of[position] for position in done]
        calls = Counter(functions)
        if len(calls) == 1:
            return [(functions[0], len(done), (stamps[-1] - stamps[0]) / 1e9)]
        spent = dict.fromkeys(calls, 0)
        for function, begin, end in zip(functions, stamps, stamps[1:], strict=False):
            spent[function] += end - begin
        return [(function, calls[function], spent[function] / 1e9) for function in sorted(calls)]


def _call(function: Callable[..., Any], entry: Any, values: Sequence[object]) -> object:
    """Call with the arguments of an entry that is nobody else's."""
    if entry is None:
        return function(*values)
    kind = type(entry)
    if kind is tuple:
        return function(*entry)
    if kind is list:
        return function(*_filled(entry, values))
    positional, keywords = fill(entry, values)
    return function(*positional, **keywords)


def _filled(entry: Any, values: Sequence[object]) -> list[Any]:
    """Positional arguments, with the values of dependencies in their places."""
    args: list[Any] = list(entry[0])
    for place, dependency in entry[1]:
        args[place] = values[dependency]
    return args


def int32_list(frame: Frame) -> list[int]:
    """The numbers of a little-endian int32 frame."""
    return memoryview(frame).cast("B").cast("i").tolist()


def _int32_frame(numbers: Sequence[int]) -> bytes:
    """Numbers as a little-endian int32 frame."""
    return array("i", numbers).tobytes()


_FEW = 64


def _int64_frame(numbers: Sequence[int]) -> bytes:
    """Numbers as a little-endian int64 frame."""
    if len(numbers) < _FEW:
        return array("q", numbers).tobytes()
    return np.array(numbers, "<i8").tobytes()  # the same in two thirds of the time
