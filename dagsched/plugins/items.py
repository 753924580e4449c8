"""Calls that were submitted to an executor, and what their arguments stand for."""

from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any

from dagsched.calls import Call, Earlier
from dagsched.containers import leaves, rebuild
from dagsched.delayed import Delayed
from dagsched.graph import SOURCE_BYTES_MIN
from dagsched.plugins.lazy import LazyFuture
from dagsched.ref import Ref
from dagsched.serialize import ATOMIC_TYPES

if TYPE_CHECKING:
    from dagsched.run import Run


class Item:
    """A call that was submitted. Arguments as of `DagschedExecutor.submit`."""

    __slots__ = ("args", "dependents", "function", "future", "is_sent", "kwargs", "missing")

    def __init__(
        self,
        future: LazyFuture[Any],
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.future = future
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.missing: set[Future[Any]] = set()  # futures among the arguments that aren't done
        self.dependents: list[Item] = []
        self.is_sent = False

    def release(self) -> None:
        """Nobody will look at it any more; callbacks of its arguments may go on naming it."""
        self.future.item = None
        self.args, self.kwargs, self.dependents = (), {}, []


class Unit:
    """Calls that are under way as one run."""

    __slots__ = ("functions", "is_chunk", "items", "run")

    def __init__(self, items: list[Item], functions: list[Callable[..., Any]], run: "Run") -> None:
        self.items = items
        self.functions = functions
        self.run = run
        self.is_chunk = bool(functions)


def is_plain(item: Item) -> bool:
    """Whether its arguments hold nothing that stands for another value."""
    return not item.kwargs and ATOMIC_TYPES.issuperset(map(type, item.args))


def is_future(value: object) -> bool:
    """Whether it stands for the value of a call."""
    return isinstance(value, Future)


def is_far(value: object) -> bool:
    """Whether it stands for a value elsewhere, or is an array that better travels alone."""
    if isinstance(value, LazyFuture):
        return value.stored is not None
    if isinstance(value, Delayed | Ref):
        return True
    size_bytes = getattr(value, "nbytes", 0) if hasattr(type(value), "nbytes") else 0
    return isinstance(size_bytes, int) and size_bytes >= SOURCE_BYTES_MIN


def value_of(future: Any) -> object:
    """What stands for a future that is done in the arguments of a run."""
    stored = getattr(future, "stored", None)
    return stored if stored is not None else future.result(0)


def failed_input(item: Item) -> BaseException | None:
    """The error of a future among the arguments that has failed, or was cancelled."""
    if is_plain(item):
        return None
    for future in leaves((item.args, item.kwargs), is_future):
        assert isinstance(future, Future)
        if future.cancelled():
            return CancelledError("a future among the arguments was cancelled")
        if future.done() and (error := future.exception(0)) is not None:
            return error
    return None


def chunk_call(item: Item, function: int, place_of: dict[Future[Any], int]) -> Call:
    """A call as it stands in a chunk, in which futures have these places."""
    if is_plain(item):
        return (function, item.args, item.kwargs)

    def value_of(future: Any) -> object:
        place = place_of.get(future)
        return Earlier(place) if place is not None else future.result(0)

    args, kwargs = rebuild((item.args, item.kwargs), value_of, is_future)
    return (function, args, kwargs)
