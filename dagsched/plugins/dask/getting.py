"""`get`: a Dask scheduler that runs graphs on an environment of ours."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import dask

from dagsched.graph import TaskGraph
from dagsched.plugins.dask.annotations import options_by_key
from dagsched.plugins.dask.callbacks import Watcher, active_callbacks
from dagsched.plugins.dask.constants import Constants
from dagsched.plugins.dask.conversion import convert_graph
from dagsched.ref import is_executor
from dagsched.runenv import default_env
from dagsched.submission import rundag, submit

if TYPE_CHECKING:
    from dagsched.runenv import RunEnv


def get(
    dsk: Any,
    keys: Any,
    *,
    env: "RunEnv | None" = None,
    timeout: float | None = None,
    priority: int = 0,
    **_: Any,
) -> Any:
    """Computes keys of a Dask graph; what ``dask.config.set(scheduler=get)`` needs.

    A task that itself computes something with it does that in its own process.

    Args:
        dsk: a graph: a mapping, layers, or an expression.
        keys: the key whose value is wanted, or a list of such, which may be nested.
        env: the environment; None: the one in use, see `setrunenv`.
        timeout: seconds that the run may take.
        priority: of the run.
        **_: whatever else Dask passes on; it has no effect.

    Returns:
        The value, or tuples of values, nested like `keys`.

    Raises:
        GraphError, CycleError: this is no graph that can be run.
        Exception: a task's own; otherwise as `rundag`.

    >>> import dask.array as da
    >>> da.arange(10, chunks=5).sum().compute(scheduler=get)  # doctest: +SKIP
    45
    """
    if is_executor() and env is None:
        return dask.get(low_level_graph(dsk), keys)
    computation = _Computation(env or default_env(), dsk, keys, timeout, priority)
    with active_callbacks() as callbacks, computation:
        if not callbacks:
            return computation.run()
        watcher = Watcher(callbacks, computation.graph)
        failed = True
        try:
            watcher.start()
            value = computation.run_watched(watcher)
            failed = False
        finally:
            watcher.finish(failed)
        return value


class _Computation:
    """What `get` was asked for, and the files that its tasks use meanwhile."""

    def __init__(
        self, env: "RunEnv", dsk: Any, keys: Any, timeout: float | None, priority: int
    ) -> None:
        self.graph = low_level_graph(dsk)
        self._env = env
        self._keys = keys
        self._options = options_by_key(dsk)
        self._timeout = timeout
        self._priority = priority
        self._constants: list[Constants] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for constants in self._constants:
            constants.close()

    def _converted(self, keys: Any) -> TaskGraph:
        self._constants.append(Constants())
        return convert_graph(self.graph, keys, self._options, self._constants[-1])

    def run(self) -> Any:
        """The value."""
        return rundag(
            self._env, self._converted(self._keys),
            timeout=self._timeout, priority=self._priority, progress=False,
        )  # fmt: skip

    def run_watched(self, watcher: Watcher) -> Any:
        """The value, with callbacks told of what happens."""
        graph = self._converted(self._keys)
        all_keys = list(graph.own_keys or ())
        if watcher.wants_values:
            graph = self._converted([self._keys, all_keys])
        run = submit(self._env, graph, timeout=self._timeout, priority=self._priority)
        try:
            watcher.watch(run)
        except BaseException:
            run.cancel()
            raise
        value = run.result()
        if watcher.wants_values:
            value, of_all = value
            watcher.give_values(dict(zip(all_keys, of_all, strict=True)))
        return value


def low_level_graph(dsk: Any) -> dict[Any, Any]:
    """The nodes of a graph by key; a new dict.

    Raises:
        TypeError: it is no graph.
    """
    if not isinstance(dsk, Mapping) and hasattr(dsk, "__dask_graph__"):
        dsk = dsk.__dask_graph__()
    if not isinstance(dsk, Mapping):
        raise TypeError(f"a Dask graph is a mapping of keys to tasks, not {type(dsk).__name__}")
    return dict(dsk)
