"""Waiting for several futures: `wait`, `as_completed`, `futures_of`."""

import queue
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Self

from dagsched.containers import leaves
from dagsched.plugins.dask.futures import Future

ALL_COMPLETED, FIRST_COMPLETED = "ALL_COMPLETED", "FIRST_COMPLETED"


class DoneAndNotDone(NamedTuple):
    """What `wait` returns."""

    done: set[Future]
    not_done: set[Future]


def wait(
    futures: Any, timeout: float | None = None, return_when: str = ALL_COMPLETED
) -> DoneAndNotDone:
    """Waits until futures are done, well or not.

    Args:
        futures: also inside lists, tuples and dicts, or those of collections that were persisted.
        timeout: most seconds.
        return_when: ``"ALL_COMPLETED"``, or ``"FIRST_COMPLETED"``: once one is done.

    Raises:
        TimeoutError: they aren't after so many seconds.
        ValueError: `return_when` is something else.
    """
    if return_when not in (ALL_COMPLETED, FIRST_COMPLETED):
        raise ValueError(f"return_when must be {ALL_COMPLETED!r} or {FIRST_COMPLETED!r}")
    waiting = dict.fromkeys(futures_of(futures))
    left = len(waiting) if return_when == ALL_COMPLETED else min(1, len(waiting))
    completed = as_completed(waiting, timeout=timeout)
    for _ in range(left):
        next(completed)
    done = {future for future in waiting if future.done()}
    return DoneAndNotDone(done, waiting.keys() - done)


def futures_of(collections: Any) -> list[Future]:
    """Futures inside lists, tuples, dicts, and those that hold the parts of Dask's collections."""
    import dask

    if isinstance(collections, Iterator | set | frozenset):
        collections = list(collections)

    def is_leaf(item: object) -> bool:
        return type(item) is Future or dask.is_dask_collection(item)

    found: dict[Future, None] = {}
    for leaf in leaves([collections], is_leaf):
        if type(leaf) is Future:
            found[leaf] = None
            continue
        for node in dict(leaf.__dask_graph__()).values():  # type: ignore[attr-defined]  # it is a collection
            value = getattr(node, "value", None)
            if type(value) is Future:
                found[value] = None
    return list(found)


class as_completed:  # noqa: N801 - Dask's name
    """Futures as they get done; further ones can be added meanwhile.

    Args:
        futures: the first ones.
        with_results: gives pairs of future and value; the first exception is raised.
        raise_errors: with `with_results`: False gives the exception in place of the value.
        timeout: seconds from now until the last must be done; `TimeoutError` after that.
    """

    def __init__(
        self,
        futures: Iterable[Future] = (),
        *,
        with_results: bool = False,
        raise_errors: bool = True,
        timeout: float | None = None,
    ) -> None:
        self._with_results = with_results
        self._raise_errors = raise_errors
        self._end_s = None if timeout is None else time.monotonic() + timeout
        self._ended: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._count = 0
        self.update(futures)

    def add(self, future: Future) -> None:
        """One more."""
        self._count += 1
        future.add_done_callback(self._ended.put)

    def update(self, futures: Iterable[Future]) -> None:
        """Some more."""
        for future in futures:
            self.add(future)

    def count(self) -> int:
        """How many haven't been given yet."""
        return self._count

    def is_empty(self) -> bool:
        """Whether all have been given."""
        return not self._count

    def has_ready(self) -> bool:
        """Whether the next one is there."""
        return not self._ended.empty()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if not self._count:
            raise StopIteration
        left_s = None if self._end_s is None else max(0.0, self._end_s - time.monotonic())
        try:
            future = self._ended.get(timeout=left_s)
        except queue.Empty:
            raise TimeoutError(f"{self._count} futures aren't done in time") from None
        self._count -= 1
        if not self._with_results:
            return future
        error = None if self._raise_errors else future.exception()
        return future, future.result() if error is None else error
