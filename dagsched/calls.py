"""Many calls as one task: what travels to an executor, and what comes back.

Responsible for front ends that get calls one by one, each as if it were alone: with arguments that
no other call can change, a result that no later call can, and a failure that harms no other. What
is a chunk, and when, is their matter.

A chunk's results are ``(marks, values)``: a byte and a value for each call. An atomic value stands
as it is; any other is pickled the moment that it is there.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Any, NamedTuple

from dagsched.errors import DagschedError, RemoteTraceback, SerializationError, TaskFailed
from dagsched.pickling import dumps
from dagsched.remote_errors import DumpedException, dump_exception, load_exception
from dagsched.serialize import ATOMIC_TYPES, find_unpicklable

PLAIN, PICKLED, FAILED = range(3)

Row = tuple[Any, ...]


Call = tuple[int, Row, dict[str, Any]]
"""One call of a chunk: index into the chunk's functions, and arguments."""


class Earlier(NamedTuple):
    """Stands, in the arguments of a call, for the value of an earlier call of its chunk."""

    place: int


class Outcome(NamedTuple):
    """What came of one call: a value, or the error that it raised."""

    value: Any
    error: BaseException | None


class Spent(NamedTuple):
    """Time that a chunk's calls of one function took."""

    function: int
    calls: int
    seconds: float
    longest_s: float


Results = tuple[bytes, list[Any]]


# --- before: in the client -----------------------------------------------------------------------


def pack_rows(rows: Sequence[Row]) -> bytes:
    """The arguments of several calls of one function.

    Raises:
        SerializationError: one of them can't travel.
    """
    for row in rows:
        if not ATOMIC_TYPES.issuperset(map(type, row)):
            break
    else:
        return pickle.dumps((True, rows), 5)
    return pickle.dumps((False, [pack(row, "args") for row in rows]), 5)


def pack_call(call: Call) -> bytes | Call:
    """A call as it can stand in a chunk: as it is, or pickled if it could be changed.

    Raises:
        SerializationError: an argument can't travel.
    """
    _, args, kwargs = call
    if not kwargs and ATOMIC_TYPES.issuperset(map(type, args)):
        return call
    return pack(call, "args")


def pack(value: object, root: str) -> bytes:
    """The pickle of what belongs to one call.

    Raises:
        SerializationError: it can't travel; `path`, which begins with `root`, says where in it.
    """
    try:
        return dumps(value)
    except Exception as error:
        path = find_unpicklable(value, root)
        raise SerializationError(
            f"{path} can't be pickled: {type(error).__name__}: {error}", path
        ) from error


# --- in the executor -----------------------------------------------------------------------------


def run_rows(function: Callable[..., Any], data: bytes) -> tuple[Results, float]:
    """Call a function with each row, up to the first that fails; the time is that of all calls."""
    begun_s = perf_counter()
    is_plain, rows = pickle.loads(data)
    marks, values = bytearray(), list[Any]()
    for row in rows:
        args = row if is_plain else pickle.loads(row)
        try:
            value = function(*args)
            if type(value) in ATOMIC_TYPES:
                marks.append(PLAIN)
                values.append(value)
                continue
            values.append(pack(value, "result"))
            marks.append(PICKLED)
        except BaseException as error:  # noqa: BLE001 - user code may raise anything
            marks.append(FAILED)
            values.append(tuple(dump_exception(error)))
            break
    return (bytes(marks), values), perf_counter() - begun_s


def run_calls(
    functions: Sequence[Callable[..., Any]], calls: Sequence[bytes | Call]
) -> tuple[Results, list[Spent]]:
    """Make each of several calls, as `pack_call` gives them, whatever becomes of the others."""
    marks, values = bytearray(), list[Any]()
    spent: dict[int, Spent] = {}
    for item in calls:
        begun_s = perf_counter()
        mark, index = FAILED, 0
        value: Any = None
        try:
            call: Call = pickle.loads(item) if isinstance(item, bytes) else item
            index, args, kwargs = call
            if kwargs or not ATOMIC_TYPES.issuperset(map(type, args)):
                args, kwargs = _with_earlier(args, kwargs, marks, values)
            value = functions[index](*args, **kwargs)
            if type(value) in ATOMIC_TYPES:
                mark = PLAIN
            else:
                value = pack(value, "result")
                mark = PICKLED
        except _EarlierFailed as failure:
            mark, value = FAILED, failure.dumped
        except BaseException as error:  # noqa: BLE001 - user code may raise anything
            mark, value = FAILED, tuple(dump_exception(error))
        marks.append(mark)
        values.append(value)
        seconds = perf_counter() - begun_s
        _, before, before_s, longest_s = spent.get(index, (0, 0, 0.0, 0.0))
        spent[index] = Spent(index, before + 1, before_s + seconds, max(longest_s, seconds))
    return (bytes(marks), values), list(spent.values())


def run_packed_calls(data: bytes) -> tuple[Results, list[Spent]]:
    """`run_calls` with a pickle of both arguments."""
    return run_calls(*pickle.loads(data))


class _EarlierFailed(Exception):
    """A call needs the value of one that failed."""

    def __init__(self, dumped: tuple[Any, ...]) -> None:
        super().__init__()
        self.dumped = dumped


def _with_earlier(
    args: Row, kwargs: dict[str, Any], marks: bytearray, values: list[Any]
) -> tuple[Row, dict[str, Any]]:
    """The arguments of a call, with values in place of `Earlier`."""
    from dagsched.containers import rebuild

    def value_of(item: Any) -> Any:
        if marks[item.place] == FAILED:
            raise _EarlierFailed(values[item.place])
        value = values[item.place]
        return pickle.loads(value) if marks[item.place] == PICKLED else value

    found: tuple[Row, dict[str, Any]] = rebuild((args, kwargs), value_of, is_earlier)
    return found


def is_earlier(item: object) -> bool:
    """Whether it stands for the value of an earlier call."""
    return type(item) is Earlier


# --- after: in the client ------------------------------------------------------------------------


def outcomes(results: Results, where: str) -> Iterator[Outcome]:
    """What came of each call, in order.

    Args:
        results: of a chunk.
        where: for notes of errors: which calls these were.
    """
    for mark, value in zip(*results, strict=True):
        if mark == PLAIN:
            yield Outcome(value, None)
        elif mark == PICKLED:
            try:
                yield Outcome(pickle.loads(value), None)
            except Exception as error:  # noqa: BLE001 - of the user's own unpickling code
                yield Outcome(None, error)
        else:
            yield Outcome(None, raised_error(DumpedException(*value), where))


def raised_error(dumped: DumpedException, where: str) -> BaseException:
    """The user's own exception where it can be raised here as itself, else `TaskFailed`."""
    original: BaseException | None = None
    if dumped.data:
        try:
            original = load_exception(dumped.data)
        except DagschedError:
            original = None  # its class is not known here; name, text and traceback are
    remote = RemoteTraceback(dumped.traceback_text)
    if isinstance(original, Exception):
        original.__cause__ = remote
        original.add_note(f"raised by {where}")
        return original
    error = TaskFailed(f"{where} raised {dumped.type_name}: {dumped.text[:2000]}")
    if original is not None:
        original.__cause__ = remote
    error.__cause__ = original or remote
    return error
