"""Constants in Dask's graphs: which travel with their task, and which are stored once a node."""

import functools
import shutil
import tempfile
from typing import Any

import numpy as np

from dagsched.plugins.dask.futures import Future
from dagsched.plugins.dask.nodes import TemporaryFile, makes_files
from dagsched.ref import Ref

_ATOMIC = frozenset((int, float, bool, type(None), complex))
_SIZED = frozenset((str, bytes))
_PARTS_MAX = 64

SOURCE_BYTES_MIN = 65_536  # as in Config


class Constants:
    """The constants of one graph that are sources.

    Args:
        source_bytes_min: constants from this size on are.
    """

    def __init__(self, source_bytes_min: int = SOURCE_BYTES_MIN) -> None:
        self.source_bytes_min = source_bytes_min
        self.sources: list[Any] = []
        self._number_by_id: dict[Any, int] = {}
        self._owner_by_id: dict[int, Any] = {}
        self._directory = ""  # for files of tasks; empty: none was needed

    def lasting(self, maker: Any) -> Any:
        """In place of what makes temporary files in a task: its files are there until `close`.

        Dask removes those of bags with the first object of them, whatever copies other tasks have,
        and those of dataframes when the interpreter ends, which executors don't wait for.

        Args:
            maker: something that `makes_files`; anything else comes back as it is.
        """
        if not makes_files(maker):
            return maker
        if not self._directory:
            import dask

            where = dask.config.get("temporary_directory", None)
            self._directory = tempfile.mkdtemp(prefix="dagsched-dask-", dir=where)
        if maker is TemporaryFile:
            return functools.partial(_made_file, self._directory)
        return type(maker)(maker.encode_cls, False, self._directory)

    def close(self) -> None:
        """Removes files of tasks."""
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)

    def source_of(self, value: Any, owner: Any) -> int | None:
        """The number of the source that a constant is; None: it travels with its task.

        Args:
            value: nothing that could be pickled with others without care.
            owner: key of the task that has it.
        """
        if type(value) is Future:
            value = value.ref()
        if type(value) is Ref:
            return self._number(value, value)
        number = self._number_by_id.get(id(value))
        if number is not None:
            return number
        # What several tasks have may be a model that all of them use, of a size nobody knows.
        if self._owner_by_id.setdefault(id(value), owner) is not owner:
            return self._number(id(value), value)
        if _size_bytes(value) >= self.source_bytes_min:
            return self._number(id(value), value)
        return None

    def add(self, value: Any) -> int:
        """The number of a source with this value."""
        if type(value) is Future:
            value = value.ref()
        return self._number(value if type(value) is Ref else id(value), value)

    def _number(self, key: Any, value: Any) -> int:
        number = self._number_by_id.get(key)
        if number is None:
            number = self._number_by_id[key] = len(self.sources)
            self.sources.append(value)
        return number


def _made_file(directory: str, *_: Any, **__: Any) -> Any:
    """A file in a directory, which doesn't remove it."""
    return TemporaryFile(tempfile.mkdtemp(suffix=".partd", dir=directory))


def is_plain(value: Any, size_max: int) -> bool:
    """Whether plain pickle knows a constant, no task can change it, and it is small.

    >>> is_plain((1, slice(2, None)), 100), is_plain([1], 100), is_plain("x" * 100, 100)
    (True, False, False)
    """
    kind = type(value)
    if kind in _ATOMIC:
        return True
    if kind in _SIZED:
        return len(value) < size_max
    if kind is tuple:
        if len(value) > _PARTS_MAX:
            return False
        for part in value:
            if type(part) not in _ATOMIC and not _is_plain_part(part, size_max):
                return False
        return True
    if kind is slice:
        return (
            type(value.start) in _ATOMIC
            and type(value.stop) in _ATOMIC
            and type(value.step) in _ATOMIC
        )
    if isinstance(value, np.generic):
        return kind.__module__ == "numpy" and not isinstance(value, np.void | np.object_)
    if isinstance(value, np.dtype):
        return value.metadata is None and value.names is None and not value.hasobject
    return False


def _is_plain_part(value: Any, size_max: int) -> bool:
    """The same for what is in a tuple; of tuples in it one level more, which is all there is."""
    if type(value) is tuple:
        return len(value) <= _PARTS_MAX and all(
            type(part) is not tuple and is_plain(part, size_max) for part in value
        )
    return is_plain(value, size_max)


def _size_bytes(value: Any) -> int:
    """How large a constant is, as far as Dask knows."""
    from dask.sizeof import sizeof

    return int(sizeof(value))
