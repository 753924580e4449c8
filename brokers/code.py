"""What an executor knows of a run besides values: its functions and argument entries.

Responsible for loading them from their pickles when first needed, and for turning one that can't
be loaded into an error of the tasks that need it.
"""

import copy
import pickle
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from dagsched.protocol.messages import CHUNK_TASKS, Frame, FunctionInfo
from dagsched.serialize import is_plain_entry

CHUNK_SHIFT = CHUNK_TASKS.bit_length() - 1
LOADED_CHUNKS_MAX = 1_024

Function = Callable[..., Any]


class ArgumentError(Exception):
    """A task's function or arguments can't be loaded here; the cause says why."""


class Special:
    """An entry that the hot loop leaves to `arguments_entry`: it must be loaded for each call."""

    def make(self) -> Any:
        """An entry of one of the four kinds that nobody else uses."""
        raise NotImplementedError


class PickledEntry(Special):
    """A small entry with mutable arguments: loaded for each call."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def make(self) -> Any:
        """The entry, new.

        Raises:
            ArgumentError: it can't be loaded.
        """
        try:
            return pickle.loads(self.data)
        except Exception as error:
            raise ArgumentError from error


class SharedEntry(Special):
    """A larger entry, or one of classes that travel by value: copied for each call."""

    __slots__ = ("chunk", "entry", "index")

    def __init__(self, entry: Any, chunk: bytes, index: int) -> None:
        self.entry = entry
        self.chunk = chunk
        self.index = index

    def make(self) -> Any:
        """The entry, new.

        Raises:
            ArgumentError: it can't be copied.
        """
        try:
            return copy.deepcopy(self.entry)
        except Exception:  # noqa: BLE001 - a __deepcopy__ of the user's own; loading it again always works
            return pickle.loads(self.chunk)[0][self.index]


class GeneralEntry(Special):
    """A general entry of a plain chunk."""

    __slots__ = ("entry", "is_flat")

    def __init__(self, entry: Any) -> None:
        self.entry = entry
        self.is_flat = is_plain_entry(entry)

    def make(self) -> Any:
        """The entry; a copy if it has containers, which the task might change."""
        return self.entry if self.is_flat else copy.deepcopy(self.entry)


class BrokenEntry(Special):
    """An entry that can't be loaded."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def make(self) -> NoReturn:
        """Raise ArgumentError."""
        raise ArgumentError from self.error


class RunCode:
    """Functions and chunks of argument entries of one run."""

    def __init__(self) -> None:
        self._chunks: dict[int, bytes] = {}
        self._entries: dict[int, list[Any]] = {}
        self._pickles: dict[int, bytes] = {}
        self._functions: dict[int, Function] = {}
        self._names: dict[int, str] = {}

    def add_chunk(self, number: int, frame: Frame) -> None:
        """Keep a chunk; it is loaded when a task of it runs."""
        self._chunks[number] = bytes(frame)
        self._entries.pop(number, None)

    def add_function(self, info: FunctionInfo, frame: Frame) -> None:
        """Keep a function; it is loaded when a task calls it."""
        self._pickles[info.index] = bytes(frame)
        self._names[info.index] = info.name
        self._functions.pop(info.index, None)

    def function_name(self, index: int) -> str:
        """What the function is called."""
        return self._names.get(index, "")

    def functions_of(self, indexes: Sequence[int]) -> list[Function]:
        """The function for each index; one that can't be loaded raises when it is called."""
        known = self._functions
        if indexes and indexes.count(indexes[0]) == len(indexes):  # mostly they are all the same
            index = indexes[0]
            if index not in known:
                known[index] = self._load_function(index)
            return [known[index]] * len(indexes)
        for index in set(indexes) - known.keys():
            known[index] = self._load_function(index)
        return [known[index] for index in indexes]

    def entries_of(self, positions: Sequence[int]) -> list[Any]:
        """The argument entries of rising positions."""
        entries: list[Any] = []
        start, count = 0, len(positions)
        while start < count:
            first = positions[start]
            chunk = self._entries.get(first >> CHUNK_SHIFT)
            if chunk is None:
                chunk = self._load_chunk(first >> CHUNK_SHIFT)
            last_of_chunk = first | (CHUNK_TASKS - 1)
            end = bisect_left(positions, last_of_chunk + 1, start)
            place = first & (CHUNK_TASKS - 1)
            if positions[end - 1] - first == end - 1 - start:
                entries += chunk[place : place + end - start]
            else:
                entries += [chunk[p & (CHUNK_TASKS - 1)] for p in positions[start:end]]
            start = end
        return entries

    def _load_function(self, index: int) -> Function:
        try:
            function = pickle.loads(self._pickles[index])
        except BaseException as error:  # noqa: BLE001 - modules run at import; tasks will tell
            return _raiser(error)
        if not callable(function):
            return _raiser(TypeError(f"{type(function).__name__} object is not callable"))
        return function  # type: ignore[no-any-return]

    def _load_chunk(self, number: int) -> list[Any]:
        if len(self._entries) >= LOADED_CHUNKS_MAX:
            self._entries.clear()
        data = self._chunks[number]
        try:
            loaded = pickle.loads(data)
        except BaseException as error:  # noqa: BLE001 - classes of the user's; tasks will tell
            return [BrokenEntry(error)] * CHUNK_TASKS
        together: Sequence[int] = ()
        if type(loaded) is tuple:
            loaded, together = loaded
        entries: list[Any] = loaded
        if bytes in map(type, entries):
            entries = [PickledEntry(entry) if type(entry) is bytes else entry for entry in entries]
        for index in together:
            entries[index] = SharedEntry(entries[index], data, index)
        if dict in map(type, entries):
            entries = [GeneralEntry(entry) if type(entry) is dict else entry for entry in entries]
        self._entries[number] = entries
        return entries


def _raiser(error: BaseException) -> Function:
    def fail(*_: object, **__: object) -> NoReturn:
        raise ArgumentError from error

    return fail
