"""Dask's callbacks (`dask.callbacks.Callback`, progress bars, profilers) on a run of ours.

They are called in the caller's thread as news of the run arrives, for each task once, when it is
known to have ended. How many have is known earlier than which, so `len` of the set of finished keys
may be more than what is in it, and of those waiting less. Values of tasks stay on their nodes; only
if a callback has a ``posttask`` all of them are outputs of the run, and it gets them at the end.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from dask.callbacks import Callback
from dask.diagnostics import Profiler

if TYPE_CHECKING:
    from dagsched.run import Run

POLL_S = 0.05
"""A run is looked at so often while callbacks wait for news of it."""

Function = Callable[..., Any]
Functions = tuple[
    Function | None, Function | None, Function | None, Function | None, Function | None
]
"""Of a callback: start, start_state, pretask, posttask, finish."""


@contextmanager
def active_callbacks() -> Iterator[Sequence[Functions]]:
    """Those in force; computations that are begun inside have none, as with Dask's schedulers."""
    active, Callback.active = Callback.active, set()
    try:
        yield list(active)
    finally:
        Callback.active = active


class Watcher:
    """Tells callbacks of one run.

    Args:
        callbacks: as `active_callbacks` gives them.
        graph: nodes by key; a callback may put values in place of nodes when it starts.
    """

    def __init__(self, callbacks: Sequence[Functions], graph: dict[Any, Any]) -> None:
        self._callbacks = callbacks
        self._graph = graph
        self._started: list[Functions] = []
        self._state: dict[str, Any] = {}
        self._waits_for_values = self.wants_values

    @property
    def wants_values(self) -> bool:
        """Whether a callback looks at the values of all tasks; Dask's profiler doesn't."""
        functions = [posttask for _, _, _, posttask, _ in self._callbacks if posttask is not None]
        return any(not isinstance(getattr(f, "__self__", None), Profiler) for f in functions)

    def start(self) -> None:
        """Before the graph is converted."""
        for functions in self._callbacks:
            if functions[0] is not None:
                functions[0](self._graph)
            self._started.append(functions)

    def watch(self, run: "Run") -> None:
        """Until the run is over."""
        keys = list(run.graph.own_keys or ())
        ended = _Counted((), lambda known: max(known, run.progress()[0]))
        waiting = _Counted(keys, lambda known: min(known, len(keys) - len(ended)))
        self._state = {
            "waiting": waiting, "ready": set(), "running": set(), "finished": ended,
            "released": set(), "cache": {}, "dependencies": _Dependencies(run),
        }  # fmt: skip
        for _, start_state, _, _, _ in self._callbacks:
            if start_state is not None:
                start_state(self._graph, self._state)
        told = np.zeros(len(keys), bool)
        if keys:  # the first of all needs nothing; bars begin with the first that does
            self._begun(keys[0])
        while not run.wait(POLL_S):
            self._tell_ended(run, told)
        self._tell_ended(run, told)
        if run.state == "done":
            for task in np.flatnonzero(~told).tolist():
                self._tell(keys[task], 0)

    def give_values(self, values: Mapping[Any, Any]) -> None:
        """The run went well, and these are the values of its tasks."""
        for key, value in values.items():
            self._state["cache"][key] = value
            self._ended(key, value, 0)

    def finish(self, failed: bool) -> None:
        """Whatever became of it."""
        for functions in self._started:
            if functions[4] is not None:
                functions[4](self._graph, self._state, failed)

    def _tell_ended(self, run: "Run", told: Any) -> None:
        trace = run.trace()
        new = np.flatnonzero(trace.ran & ~told)
        told[new] = True
        for task in new[np.argsort(trace.end_ns[new], kind="stable")].tolist():
            assert run.graph.own_keys is not None
            self._tell(run.graph.own_keys[task], int(trace.executor[task]))

    def _tell(self, key: Any, executor: int) -> None:
        """A task has begun, and ended unless its value is to come."""
        if key not in self._state["running"]:
            self._begun(key)
        if not self._waits_for_values:
            self._ended(key, None, executor)

    def _begun(self, key: Any) -> None:
        self._state["waiting"].discard(key)
        self._state["running"].add(key)
        for _, _, pretask, _, _ in self._callbacks:
            if pretask is not None:
                pretask(key, self._graph, self._state)

    def _ended(self, key: Any, value: Any, executor: int) -> None:
        self._state["running"].discard(key)
        self._state["finished"].add(key)
        for _, _, _, posttask, _ in self._callbacks:
            if posttask is not None:
                posttask(key, value, self._graph, self._state, executor)


class _Counted(set[Any]):
    """Keys of tasks; `count` says how many there are, given how many are known by name."""

    def __init__(self, keys: Iterable[Any], count: Callable[[int], int]) -> None:
        super().__init__(keys)
        self._count = count

    def __len__(self) -> int:
        return self._count(super().__len__())


class _Dependencies(Mapping[Any, set[Any]]):
    """What each task of a run needs, looked up when asked for."""

    def __init__(self, run: "Run") -> None:
        self._graph = run.graph
        self._keys = run.graph.own_keys or ()
        self._ids: dict[Any, int] = {}

    def __getitem__(self, key: Any) -> set[Any]:
        if not self._ids:
            self._ids = {own: task for task, own in enumerate(self._keys)}
        needed = self._graph.dependencies(self._ids[key]).tolist()
        return {self._keys[other] for other in needed if other < len(self._keys)}

    def __iter__(self) -> Iterator[Any]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
