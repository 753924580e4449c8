"""`concurrent.futures` on an environment: `DagschedExecutor`.

Responsible for what users see: the executor and its futures. How calls become runs is
`dagsched.plugins.pool`.
"""

import itertools
import os
import pickle
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from dagsched.plugins.items import Item
from dagsched.plugins.lazy import LazyFuture
from dagsched.plugins.pool import BrokenDagschedExecutor, Pool
from dagsched.plugins.setup import Setup
from dagsched.serialize import ATOMIC_TYPES

if TYPE_CHECKING:
    from dagsched.runenv import RunEnv

__all__ = ["BrokenDagschedExecutor", "DagschedExecutor"]

P = ParamSpec("P")
T = TypeVar("T")


class DagschedExecutor(Executor):
    """Runs calls on the executors of an environment.

    Whatever `concurrent.futures.ProcessPoolExecutor` does, with these differences: functions and
    arguments may be anything that a task may have (lambdas, closures, large arrays without copies
    of copies); a future among the arguments, also inside lists, tuples and dicts, stands for its
    value; a large value stays on its node until `Future.result` asks for it; an executor process
    that dies is replaced, and its call made again, up to the environment's ``crash_limit`` times.
    Short calls that wait at the same moment travel together.

    Args:
        max_workers: calls that run at the same time at most; None: as many as the environment has
            executors.
        env: the environment; None: the one that is set (`setrunenv`), or else a local one, made
            when the first call is submitted. Closing the executor leaves it open.
        initializer: called once in each process before its first call; if it raises, the
            executor is broken.
        initargs: arguments of `initializer`.

    Raises:
        ValueError, TypeError: an argument is not what it should be.

    Example:
        >>> from dagsched.plugins.futures import DagschedExecutor
        >>> with DagschedExecutor() as executor:  # doctest: +SKIP
        ...     total = executor.submit(sum, [executor.submit(abs, -n) for n in range(4)])
        ...     total.result()
        6
    """

    def __init__(
        self,
        max_workers: int | None = None,
        env: "RunEnv | None" = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        if max_workers is not None:
            if isinstance(max_workers, bool) or not isinstance(max_workers, int):
                raise TypeError(f"max_workers must be an int, not {type(max_workers).__name__}")
            if max_workers <= 0:
                raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        setup = None if initializer is None else Setup(os.urandom(8), initializer, tuple(initargs))
        self._pool = Pool(max_workers, env, setup)
        # If nobody shuts it down, its thread ends when all that was submitted is done.
        weakref.finalize(self, self._pool.finish).atexit = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Have ``fn(*args, **kwargs)`` called; returns its future at once.

        Raises:
            RuntimeError: the executor has been shut down.
            BrokenDagschedExecutor: it is broken.
            TypeError: `fn` can't be called.
        """
        if not callable(fn):
            raise TypeError(f"what is submitted must be callable, not {type(fn).__name__}")
        future: LazyFuture[T] = LazyFuture()
        self._pool.put(Item(future, fn, args, kwargs))
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Results of ``fn`` for each input, in order; see `concurrent.futures.Executor.map`.

        Args:
            fn: of one argument for each of `iterables`.
            iterables: taken at once, unless `buffersize` bounds that.
            timeout: seconds from now until the last result must be there.
            chunksize: inputs of one call; short calls travel together anyway.
            buffersize: results ahead of the one that was taken last.

        Raises:
            TimeoutError: by the iterator.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None:
            if isinstance(buffersize, bool) or not isinstance(buffersize, int):
                raise TypeError("buffersize must be an integer or None")
            if buffersize < 1:
                raise ValueError("buffersize must be None or > 0")
        end_s = None if timeout is None else time.monotonic() + timeout
        rows = zip(*iterables)  # noqa: B905 - the shortest ends it, as in the builtin
        if chunksize == 1:
            futures = (self.submit(fn, *row) for row in rows)
            return _results(futures, end_s, buffersize)
        chunks = iter(lambda: list(itertools.islice(rows, chunksize)), [])
        of_chunks = (self.submit(*_chunk_call(fn, chunk)) for chunk in chunks)
        results: Iterator[list[T]] = _results(of_chunks, end_s, buffersize)
        return itertools.chain.from_iterable(results)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; the environment stays open.

        Args:
            wait: until all that was submitted has ended.
            cancel_futures: calls that haven't been handed out yet are cancelled.
        """
        self._pool.finish(cancel=cancel_futures)
        if wait:
            self._pool.join()

    def terminate_workers(self) -> None:
        """Shut down at once: calls that run are stopped, and their futures fail.

        A call that doesn't end soon is ended with its process, which is replaced.
        """
        self._pool.finish(cancel=True, stop=True)


def _chunk_call(fn: Callable[..., T], rows: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The call for some rows; where they can hold nothing else they travel as bytes.

    Nobody then looks into each for futures, or copies each so that no other call sees a change.
    """
    if ATOMIC_TYPES.issuperset(map(type, itertools.chain.from_iterable(rows))):
        return _call_each_packed, fn, pickle.dumps(rows, 5)
    return _call_each, fn, rows


def _call_each(fn: Callable[..., T], rows: list[tuple[Any, ...]]) -> list[T]:
    return [fn(*row) for row in rows]


def _call_each_packed(fn: Callable[..., T], rows: bytes) -> list[T]:
    return _call_each(fn, pickle.loads(rows))


def _results(
    futures: "Iterable[Future[T]]", end_s: float | None, buffersize: int | None
) -> Iterator[T]:
    """Results of futures in order; the first ones are made at once, and the rest as results go."""
    futures = iter(futures)
    waiting = deque(itertools.islice(futures, buffersize))

    def results() -> Iterator[T]:
        try:
            while waiting:
                if buffersize is not None and (further := next(futures, None)) is not None:
                    waiting.append(further)
                # Nothing here may keep a result alive after it was given.
                yield _taken(waiting.popleft(), end_s)
        finally:
            for future in waiting:
                future.cancel()

    return results()


def _taken(future: "Future[T]", end_s: float | None) -> T:
    try:
        try:
            return future.result(None if end_s is None else end_s - time.monotonic())
        finally:
            future.cancel()
    finally:
        del future
