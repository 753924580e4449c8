"""From what a user wrote down to a run: `rundag`, `submit`, `resume`.

Responsible for checking what is submitted, for having it made a graph and a plan, and for waiting
in the caller's thread. It starts nothing and holds nothing.
"""

import sys
from typing import TYPE_CHECKING, Any

from dagsched.progress import wait_for_run

if TYPE_CHECKING:
    from dagsched.run import Run
    from dagsched.runenv import RunEnv


def rundag(
    env: "RunEnv",
    dag: object,
    *,
    timeout: float | None = None,
    priority: int = 0,
    progress: bool | None = None,
) -> Any:
    """Run a graph and return its value.

    Args:
        env: the environment to run in.
        dag: a `Delayed`, a list, tuple, dict, set or dataclass with any inside, or a
            `networkx.DiGraph` whose nodes have a callable as attribute ``func``.
        timeout: seconds that the run may take; then it is stopped. None: as long as it takes.
        priority: of the run; tasks of runs with higher ones go first.
        progress: True shows a progress bar; None shows one on a terminal if the run takes longer
            than a second.

    Returns:
        The value, in the shape of `dag`.

    Raises:
        Exception: a task's own, as its own type, if one failed.
        TaskTimedOut: the run took longer than `timeout`.
        CycleError, GraphError: `dag` is no graph that can be run.
        ClosedError: the environment has been closed.
        NoNodesError: there is no node to run on.
        TypeError, ValueError: an argument is not what it should be.

    Example:
        >>> from dagsched import RunEnv, delayed, rundag
        >>> with RunEnv() as env:  # doctest: +SKIP
        ...     rundag(env, delayed(max)(1, delayed(abs)(-2)))
        2
    """
    started: list[Run] = []
    try:
        run = _submitted(env, dag, timeout, priority, started)
        wait_for_run(run, progress)
    except BaseException:
        # Ctrl-C, which may come between any two steps, or a progress bar that can't draw: nobody
        # will ask for this run again.
        for run in started:
            run.cancel()
        raise
    return run.result()


def submit(
    env: "RunEnv",
    dag: object,
    *,
    timeout: float | None = None,
    priority: int = 0,
    as_refs: bool = False,
) -> "Run":
    """Start a run and return its handle; see `rundag` for the arguments.

    Runs of one environment go on side by side; each gets its turn.

    Args:
        env: the environment to run in.
        dag: what to run.
        timeout: seconds that the run may take.
        priority: of the run.
        as_refs: large outputs stay where they are, and the result has a `Ref` in place of each:
            to be given to tasks of other runs, or fetched by `collect`.

    Example:
        >>> from dagsched import RunEnv, delayed, submit
        >>> with RunEnv() as env:  # doctest: +SKIP
        ...     run = submit(env, delayed(sum)([1, 2]))
        ...     run.result()
        3
    """
    return _submitted(env, dag, timeout, priority, [], as_refs=as_refs)


def _submitted(
    env: "RunEnv",
    dag: object,
    timeout: float | None,
    priority: int,
    started: "list[Run]",
    *,
    as_refs: bool = False,
) -> "Run":
    """Check everything and start a run, which is in `started` before anything can run."""
    _check_environment(env)
    if timeout is not None:
        if isinstance(timeout, bool) or not isinstance(timeout, int | float):
            raise TypeError(f"timeout must be seconds, not {type(timeout).__name__}")
        if not timeout >= 0:
            raise ValueError(f"timeout must not be negative, not {timeout!r}")
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise TypeError(f"priority must be an int, not {type(priority).__name__}")
    return env._cluster_in_use().start_run(
        _checked_dag(dag), timeout_s=timeout, priority=priority, started=started, as_refs=as_refs
    )


def resume(env: "RunEnv", run_id: str) -> "Run":
    """The handle of a run, by its id: of this environment, or of a client that has died.

    A run whose client died goes on here, under the id that it had. Nothing is computed again whose
    value still lives: the brokers of the dead client go on with what they had, hold all values, and
    leave when the run is over; what they have not, the nodes of `env` do. `env` may have any nodes
    and any root path, and ends, when it is closed, all that it took over. A run that is over gives
    its result again, until that expires (`Config.result_expiry_s`).

    Args:
        env: the environment.
        run_id: as in `Run.run_id`.

    Raises:
        DagschedError: no such run is known; its client lives, and runs it still; or its client
            died before the plan had reached the store. The message says which.
        StoreUnavailable: the store can't be reached, or the run's journal is damaged.
        VersionMismatch: another version of Python or dagsched has begun the run.

    Example:
        >>> from dagsched import RunEnv, resume
        >>> with RunEnv() as env:  # doctest: +SKIP
        ...     resume(env, "5f0c2a91-7").result()
        3
    """
    _check_environment(env)
    if not isinstance(run_id, str):
        raise TypeError(f"run_id must be a str, not {type(run_id).__name__}")
    return env._cluster_in_use().find_run(run_id)


def _check_environment(env: object) -> None:
    from dagsched.runenv import RunEnv

    if not isinstance(env, RunEnv):
        raise TypeError(
            f"the first argument must be a RunEnv, not {type(env).__name__}: rundag(env, dag)"
        )


def _checked_dag(dag: object) -> object:
    """`dag` as `build_graph` takes it, or a graph that a front end has made.

    Raises:
        TypeError: it is neither a `Delayed` nor a container that can hold one.
    """
    from dagsched.containers import is_container
    from dagsched.delayed import Delayed
    from dagsched.graph import TaskGraph
    from dagsched.ref import Ref

    # Only who has imported networkx can have a graph of it, and importing it takes long.
    networkx = sys.modules.get("networkx")
    if networkx is not None and isinstance(dag, networkx.Graph):
        from dagsched.plugins.networkx import from_networkx

        return from_networkx(dag)
    if isinstance(dag, Delayed | Ref | TaskGraph) or is_container(dag):
        return dag
    hint = " (call it: delayed(f)(x))" if callable(dag) else ""
    raise TypeError(
        f"what is run must be a Delayed, or a list, tuple or dict of them, not "
        f"{type(dag).__name__}{hint}"
    )
