"""Values, functions, arguments and exceptions as bytes, and what to say of those that can't travel.

Responsible for how things are pickled (protocol 5, buffers out of band, cloudpickle where plain
pickle can't) and for clear errors; not for where the bytes go. Only clients and executors load
pickles.
"""

import pickle
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dagsched.brokers.objects.layout import plan_layout, write_header
from dagsched.entries import Slot
from dagsched.errors import SerializationError
from dagsched.pickling import cloud_dumps, dumps, is_picklable, plain_dumps, proxy_dumps
from dagsched.protocol.messages import Frame
from dagsched.remote_errors import DumpedException, dump_exception, load_exception
from dagsched.unpicklable import describe, find_culprit

__all__ = [
    "ATOMIC_TYPES",
    "Dumped",
    "DumpedException",
    "dump_constant",
    "dump_entries",
    "dump_exception",
    "dump_function",
    "dump_inline",
    "dump_value",
    "find_unpicklable",
    "is_plain_entry",
    "load_exception",
    "load_value",
    "numpy_array_type",
]

ATOMIC_TYPES = frozenset({int, float, str, bytes, bool, complex, type(None)})
"""Types whose values are immutable, hold nothing else, and pickle the same everywhere."""

_FLAT_TYPES = ATOMIC_TYPES | {Slot}

WHOLE_BYTES_MIN = 64 << 10
"""A bytes or bytearray from this length on goes out of band: one copy less each way."""

SMALL_BUFFER_BYTES = 512
"""Buffers below this stay in the pickle: an aligned place of their own costs more."""

SEPARATE_ENTRY_BYTES_MAX = 1024
"""Argument entries up to this size are pickled each for itself; see `dump_entries`."""


class Dumped(NamedTuple):
    """A pickled value: the pickle, and the buffers that it refers to in their order."""

    stream: bytes
    buffers: Sequence[memoryview]
    size_bytes: int


class _Whole:
    """Pickles as the bytes or bytearray that it wraps, with the data out of band."""

    __slots__ = ("value",)

    def __init__(self, value: bytes | bytearray) -> None:
        self.value = value

    def __reduce__(self) -> tuple[object, ...]:
        return type(self.value), (pickle.PickleBuffer(self.value),)


def dump_function(function: Callable[..., object]) -> bytes:
    """Pickle a function: by reference from modules that can be imported, otherwise by value.

    Raises:
        SerializationError: something that it captured can't travel.
    """
    try:
        return cloud_dumps(function)
    except Exception as error:
        name = getattr(function, "__name__", type(function).__name__)
        raise _explained(function, str(name), error) from error


def dump_entries(entries: Sequence[object], plain: bool) -> bytes:
    """Pickle the argument entries of one chunk.

    A task may change its arguments in place, so no two tasks may share a mutable one. Hence small
    entries that are not plain become a pickle of their own, loaded for each call; larger ones stay
    together, so that what many tasks share is sent once, and are copied for each call (but those
    with a manager's proxy, whose copy is no proxy). The result
    is the pickle of a list, or of ``(list, indexes of entries to be copied)``; in the list a
    ``bytes`` is a pickled entry.

    Args:
        entries: see "Argument entries" in dagsched/README.md.
        plain: all of them hold atomic builtins only.

    Raises:
        SerializationError: an argument can't travel; `path` as in ``args[1]['x'].lock``.
    """
    if plain:
        return pickle.dumps(list(entries), 5)
    packed: list[object] = []
    together: list[int] = []
    for index, entry in enumerate(entries):
        if is_plain_entry(entry):
            packed.append(entry)
            continue
        try:
            data = plain_dumps(entry)
        except Exception:  # noqa: BLE001 - cloudpickle may know how, and its error is the one to tell
            data = None
        if data is None or len(data) > SEPARATE_ENTRY_BYTES_MAX:
            data = proxy_dumps(entry)
        if data is not None:
            packed.append(data)
        else:
            together.append(index)
            packed.append(entry)
    if not together:
        return pickle.dumps(packed, 5)
    try:
        return dumps((packed, together))
    except Exception as error:
        for index in together:
            _check_entry(packed[index])
        raise _explained(packed, "args", error) from error


def is_plain_entry(entry: object) -> bool:
    """Whether an argument entry holds atomic builtins only, so that it can be used many times."""
    if entry is None:
        return True
    kind = type(entry)
    if kind is tuple:
        return ATOMIC_TYPES.issuperset(map(type, entry))  # type: ignore[call-overload]
    if kind is list:
        return ATOMIC_TYPES.issuperset(map(type, entry[0]))  # type: ignore[index]
    if kind is dict:
        return _FLAT_TYPES.issuperset(map(type, entry["args"])) and _FLAT_TYPES.issuperset(  # type: ignore[index]
            map(type, entry["kwargs"].values())  # type: ignore[index]
        )
    return False


def dump_constant(value: object) -> bytearray:
    """A value in the layout of objects in shared memory.

    Raises:
        SerializationError: it can't travel.
    """
    dumped = dump_value(value)
    layout = plan_layout(len(dumped.stream), [len(buffer) for buffer in dumped.buffers])
    data = bytearray(layout.size_bytes)
    target = memoryview(data)
    write_header(target, layout)
    target[layout.stream_offset : layout.stream_offset + len(dumped.stream)] = dumped.stream
    for offset, buffer in zip(layout.offsets, dumped.buffers, strict=True):
        target[offset : offset + len(buffer)] = buffer
    return data


def dump_value(value: object) -> Dumped:
    """Pickle a value; its large buffers are not copied.

    Raises:
        SerializationError: it can't travel; `path` says where in it the culprit is.

    Example:
        >>> dump_value([1, 2]).buffers
        ()
    """
    kind = type(value)
    if kind is bytes or kind is bytearray:
        if len(value) >= WHOLE_BYTES_MIN:  # type: ignore[arg-type]
            value = _Whole(value)  # type: ignore[arg-type]
    elif kind in ATOMIC_TYPES:
        stream = pickle.dumps(value, 5)
        return Dumped(stream, (), len(stream))
    found: list[pickle.PickleBuffer] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            if buffer.raw().nbytes < SMALL_BUFFER_BYTES:
                return True
        except BufferError:  # neither C- nor Fortran-contiguous
            return True
        found.append(buffer)
        return False

    try:
        stream = dumps(value, keep_in_band, found)
    except Exception as error:
        raise _explained(value, "result", error) from error
    if not found:
        return Dumped(stream, (), len(stream))
    buffers = [buffer.raw() for buffer in found]
    return Dumped(stream, buffers, len(stream) + sum(map(len, buffers)))


def dump_inline(value: object) -> bytes:
    """Pickle a value with all that it holds into one pickle.

    Raises:
        SerializationError: it can't travel; `path` says where in it the culprit is.
    """
    try:
        return dumps(value)
    except Exception as error:
        raise _explained(value, "result", error) from error


def load_value(stream: Frame, buffers: Sequence[Frame] = ()) -> object:
    """The value of a pickle and its out-of-band buffers, which it may go on using."""
    return pickle.loads(stream, buffers=buffers) if buffers else pickle.loads(stream)


def find_unpicklable(value: object, root: str = "result") -> str:
    """Where in `value` lies what can't be pickled, as in ``args[1]['x'].lock``.

    Args:
        value: something that can't be pickled.
        root: what the path begins with.

    Example:
        >>> find_unpicklable({"x": [1, (i for i in ())]})
        "result['x'][1]"
    """
    return find_culprit([(root, value)], is_picklable).path


def _check_entry(entry: object) -> None:
    """Raise SerializationError if an argument of this entry can't travel."""
    if is_picklable(entry):
        return
    if isinstance(entry, dict):
        parts = [("args", entry["args"]), *((key, v) for key, v in entry["kwargs"].items())]
    else:
        parts = [("args", entry[0] if isinstance(entry, list) else entry)]
    for root, value in parts:
        try:
            dumps(value)
        except Exception as error:
            raise _explained(value, root, error) from error


def _explained(value: object, root: str, error: BaseException) -> SerializationError:
    """The error to raise for a value that can't be pickled."""
    if isinstance(value, _Whole):
        value = value.value
    culprit = find_culprit([(root, value)], is_picklable)
    return SerializationError(describe(culprit, error), culprit.path)


def numpy_array_type() -> type | None:
    """The array type of numpy if numpy has been imported, so that looking costs no import."""
    numpy = sys.modules.get("numpy")
    return getattr(numpy, "ndarray", None)
