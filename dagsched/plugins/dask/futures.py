"""Futures of a `Client`: values that a run leaves on its nodes, each under a key.

A future is one output of a `Batch`, which is one run. What a task raises is such a value too, so
that the other tasks of its batch go on.
"""

import itertools
import logging
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any

from dagsched.attempts import Raised
from dagsched.errors import RemoteTraceback, TaskCancelled
from dagsched.plugins.dask.window import Window
from dagsched.ref import Ref, collect
from dagsched.run import Run

logger = logging.getLogger(__name__)

_numbers = itertools.count(1)


def _call(callback: Callable[[], object]) -> None:
    """One that raises keeps no other from being called, among them those that start runs."""
    try:
        callback()
    except Exception:
        logger.exception("a callback of a future has failed")


class Batch:
    """One run, or one that is to come once its inputs are there and it is its turn.

    Args:
        start: begins the run, which returns a list of references.
        inputs: futures that must be done before.
        window: gives it its turn.
        priority: among those that wait for theirs.
    """

    def __init__(
        self,
        start: Callable[[], Run],
        inputs: Sequence["Future"],
        window: Window,
        priority: int = 0,
    ) -> None:
        self._start = start
        self._inputs = inputs
        self._window = window
        self.priority = priority
        self.number = next(_numbers)
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], object]] = []
        self._run: Run | None = None
        self._refs: list[Ref] = []
        self._error: BaseException | None = None
        self._over = threading.Event()

    def begin(self) -> None:
        """Has the run start as soon as all inputs are done."""
        waiting = [future for future in self._inputs if not future.done()]
        if waiting:
            waiting[0].batch.call_back(self.begin)
            return
        failed = next((f for f in self._inputs if f.exception() is not None), None)
        if failed is not None:
            self._end(failed.exception())
        else:
            self._window.enter(self)

    def launch(self) -> bool:
        """Starts the run; False: it can't be, or it was cancelled."""
        try:
            with self._lock:
                if self._over.is_set():
                    return False
                run = self._run = self._start()
        except BaseException as error:
            self._end(error)
            if not isinstance(error, Exception):  # Ctrl-C
                raise
            return False
        run.add_done_callback(self._take)
        return True

    def _take(self, run: Run) -> None:
        error: BaseException | None = None
        try:
            self._refs = run.result()
        except Exception as raised:  # noqa: BLE001 - the futures tell
            error = raised
        try:
            self._end(error)
        finally:
            self._window.leave()

    def _end(self, error: BaseException | None) -> None:
        with self._lock:
            if self._over.is_set():
                return
            self._error = error
            self._over.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            _call(callback)

    def call_back(self, callback: Callable[[], object]) -> None:
        """Calls something once the batch is over."""
        with self._lock:
            if not self._over.is_set():
                self._callbacks.append(callback)
                return
        _call(callback)

    def cancel(self) -> None:
        """Stops the run, or keeps it from starting."""
        with self._lock:
            run = self._run
        if run is not None:
            run.cancel()
        else:
            self._end(TaskCancelled("it was cancelled before it had begun"))

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self._over.is_set()

    def refs(self, timeout: float | None) -> list[Ref]:
        """References to all values.

        Raises:
            TimeoutError: they aren't there yet.
            Exception: why they won't be.
        """
        if not self._over.wait(timeout):
            raise TimeoutError(f"it isn't done after {timeout} s")
        if self._error is not None:
            raise self._error
        return self._refs


class Future:
    """A value that is, or will be, on a node. Made by a `Client`."""

    def __init__(self, key: Any, batch: Batch, index: int) -> None:
        self.key = key
        self.batch = batch
        self._index = index

    def ref(self, timeout: float | None = None) -> Ref:
        """The reference to the value; waits for it."""
        return self.batch.refs(timeout)[self._index]

    def result(self, timeout: float | None = None) -> Any:
        """The value.

        Raises:
            TimeoutError: it isn't there after so many seconds.
            Exception: what the task raised.
        """
        return opened(collect(self.ref(timeout)))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What `result` raises; None: it gives a value."""
        try:
            ref = self.ref(timeout)
        except TimeoutError:
            raise
        except Exception as error:  # noqa: BLE001 - is what was asked for
            return error
        if not ref.type_name.endswith(Raised.__qualname__):
            return None
        try:
            self.result()
        except Exception as error:  # noqa: BLE001 - is what was asked for
            return error
        return None

    def done(self) -> bool:
        """Whether the value is there, or won't be."""
        return self.batch.is_over

    def cancel(self) -> None:
        """Stops the run that this is part of."""
        self.batch.cancel()

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self.done() and isinstance(self.exception(), TaskCancelled)

    @property
    def status(self) -> str:
        """One of pending, finished, error, cancelled."""
        if not self.done():
            return "pending"
        if self.cancelled():
            return "cancelled"
        return "finished" if self.exception() is None else "error"

    def release(self) -> None:
        """Nothing: a value is let go with the last future of its batch."""

    def add_done_callback(self, callback: Callable[["Future"], object]) -> None:
        """Calls ``callback(future)`` once it is done."""
        self.batch.call_back(lambda: callback(self))

    def __await__(self) -> Generator[Any, None, Any]:
        import asyncio

        return asyncio.to_thread(self.result).__await__()

    def __dask_tokenize__(self) -> tuple[str, int, int]:
        return ("dagsched.Future", self.batch.number, self._index)

    def __repr__(self) -> str:
        return f"<Future {self.key}: {self.status}>"


def opened(value: Any) -> Any:
    """A value as it is; an exception is raised."""
    if type(value) is Raised:
        raise value.error from RemoteTraceback(value.text)
    return value
