"""Futures whose large values stay on their nodes until they are asked for.

Responsible for fetching a value once, and in a thread that may wait where somebody is called back.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from dagsched.background import BackgroundThread
from dagsched.ref import Ref, resolver_of

if TYPE_CHECKING:
    from dagsched.plugins.items import Item

T = TypeVar("T")


class Stored(NamedTuple):
    """In a future: its value lies on a node."""

    ref: Ref


class LazyFuture(Future[T]):
    """A future whose value, if it is large, is fetched when it is asked for.

    Who adds a callback, as event loops do, finds the value fetched when that is called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stored: Ref | None = None
        self.is_watched = False
        self.item: Item | None = None  # until it is done
        self._fetching = threading.Lock()

    def result(self, timeout: float | None = None) -> T:
        """As of `Future`."""
        value = super().result(timeout)
        return self.fetch() if isinstance(value, Stored) else value

    def fetch(self) -> T:
        """The value of a future that is done, or will be when this has returned."""
        with self._fetching:
            if isinstance(self._result, Stored) or self._result is None:
                assert self.stored is not None
                self._result = cast("T", resolver_of(self.stored).fetch(self.stored))
            return self._result

    def add_done_callback(self, fn: "Callable[[Future[T]], object]") -> None:
        """As of `Future`."""
        with self._condition:
            self.is_watched = True
            is_far = self.done() and isinstance(self._result, Stored)
        if is_far:
            fetch_and(self, lambda: super(LazyFuture, self).add_done_callback(fn))
        else:
            super().add_done_callback(fn)

    def add_hook(self, hook: "Callable[[Future[T]], object]") -> None:
        """Have `hook` called when it is done, wherever the value is then."""
        super().add_done_callback(hook)


def fetch_and(future: LazyFuture[Any], then: Callable[[], object]) -> None:
    """Fetch a value in a thread that may wait for that, and go on in it."""

    def fetch() -> None:
        try:
            future.fetch()
        except Exception as error:  # noqa: BLE001 - it is the future's from now on
            with future._condition:
                future._result, future._exception = None, error
        then()
        fetcher.stop(0)

    fetcher = BackgroundThread("dagsched-fetch")
    fetcher.do(fetch)


def set_fetched(future: LazyFuture[Any]) -> None:
    """A future whose value was fetched before anybody knew of it is done."""
    value, error = future._result, future._exception
    if error is not None:
        future._exception = None
        future.set_exception(error)
    else:
        future.set_result(value)
