"""`get`: a Dask scheduler that runs graphs on an environment of ours."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dask

from dagsched.plugins.dask.annotations import options_by_key
from dagsched.plugins.dask.callbacks import Watcher, active_callbacks
from dagsched.plugins.dask.conversion import convert_graph
from dagsched.progress import wait_for_run
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
    graph = low_level_graph(dsk)
    options = options_by_key(dsk)
    env = env or default_env()
    with active_callbacks() as callbacks:
        if not callbacks:
            return rundag(
                env, convert_graph(graph, keys, options),
                timeout=timeout, priority=priority, progress=False,
            )  # fmt: skip
        watcher = Watcher(callbacks, graph)
        failed = True
        try:
            watcher.start()
            value = _watched(watcher, env, graph, keys, options, timeout, priority)
            failed = False
        finally:
            watcher.finish(failed)
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


def _watched(
    watcher: Watcher,
    env: "RunEnv",
    graph: dict[Any, Any],
    keys: Any,
    options: Mapping[Any, Any],
    timeout: float | None,
    priority: int,
) -> Any:
    """The value, with callbacks told of what happens."""
    converted = convert_graph(graph, keys, options)
    if watcher.wants_values:
        converted = convert_graph(graph, [keys, list(converted.own_keys or ())], options)
    run = submit(env, converted, timeout=timeout, priority=priority)
    try:
        watcher.watch(run)
        wait_for_run(run, False)
    except BaseException:
        run.cancel()
        raise
    value = run.result()
    if watcher.wants_values:
        value, of_all = value
        watcher.give_values(dict(zip(converted.own_keys or (), of_all, strict=False)))
    return value
