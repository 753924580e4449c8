"""Environments: `RunEnv`, the one in use, and what changes or ends one.

Responsible for checking what users give and for the process-wide default. The machinery behind an
environment is `cluster`; imports of this module are light, so that brokers are started first.
"""

import atexit
import contextvars
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from dagsched.config import Config
from dagsched.dashboard import announce, dashboard_address
from dagsched.debuglog import start_debug_log, stop_debug_log
from dagsched.errors import ClosedError, NoNodesError
from dagsched.limits import check_descriptors
from dagsched.nodes import (
    LOCAL_HOST,
    NodeChanges,
    NodeEnv,
    check_listen,
    check_nodes,
    group_nodes,
)
from dagsched.notebook import Shown
from dagsched.procs import process_hosts, reserve_private
from dagsched.rundir import check_rootpath, make_run_directory, remove_run_directory
from dagsched.submission import resume, rundag, submit
from dagsched.tracking import track_address

if TYPE_CHECKING:
    from dagsched.cluster import Cluster
    from dagsched.pastrun import PastRun
    from dagsched.run import Run

__all__ = [
    "RunEnv",
    "cleanup",
    "default_env",
    "getrunenv",
    "reset",
    "resume",
    "rundag",
    "setrunenv",
    "submit",
]

_open_environments: "weakref.WeakSet[RunEnv]" = weakref.WeakSet()
_default: "RunEnv | None" = None
_default_lock = threading.Lock()
_in_block: "contextvars.ContextVar[RunEnv | None]" = contextvars.ContextVar(
    "dagsched_env", default=None
)


class RunEnv(Shown):
    """Processes to run graphs on; live once it is made.

    A context manager, that is the environment in use in its block and is closed at its end.

    Args:
        rootpath: prefix of all keys, segments, sockets and files: ``/part/part``.
        nodes: the nodes; None: the processes added so far, one node a host; if there are none, one
            node on this machine.
        executors: for one node on this machine with so many executors, whatever processes were
            added; None: as many as CPUs that this process may use, if none were added.
        metastore: of the journal: None for an embedded store, ``memory://``, ``redis://host:port/db``,
            ``rediss://...`` or ``unix:///path``.
        debug: log every decision (logger ``dagsched``; on standard error if nothing else is set).
        profile: write profiles of master, brokers and executors, files of each run, to the working
            directory.
        remotetrack: send events as JSON lines to a listener: ``host:port``, ``unix:PATH``, or True
            for the address in ``DAGSCHED_TRACK``.
        dashboard: serve a live page: True (this machine only, any free port) or ``HOST:PORT``;
            its URL is printed once, and is `dashboard_url`. Needs the extra ``dashboard``.
        listen: ``tcp://HOST``, an address of this machine, for TCP between master and brokers,
            encrypted and with keys made for this environment; None: Unix sockets.
        config: limits and defaults.

    Raises:
        ValueError, TypeError: an argument is not what it should be.
        NoNodesError: there is no node, or one would be on another host.
        StoreUnavailable: the metadata store can't be reached.

    Example:
        >>> from dagsched import RunEnv, delayed, rundag
        >>> with RunEnv(executors=2) as env:  # doctest: +SKIP
        ...     rundag(env, delayed(sum)([1, 2, 3]))
        6
    """

    def __init__(
        self,
        *,
        rootpath: str = "/D",
        nodes: Iterable[NodeEnv] | None = None,
        executors: int | None = None,
        metastore: str | None = None,
        debug: bool = False,
        profile: bool = False,
        remotetrack: bool | str = False,
        dashboard: bool | str = False,
        listen: str | None = None,
        config: Config | None = None,
    ) -> None:
        self._rootpath = check_rootpath(rootpath)
        if config is not None and not isinstance(config, Config):
            raise TypeError(f"config must be a dagsched.Config, not {type(config).__name__}")
        if metastore is not None and not isinstance(metastore, str):
            raise TypeError(f"metastore must be a str or None, not {type(metastore).__name__}")
        self._config = Config() if config is None else config
        self._listen = None if listen is None else check_listen(listen)
        page = dashboard_address(dashboard)
        self._flags = {"debug": debug, "profile": profile, "remotetrack": bool(remotetrack)}
        self._private: tuple[NodeEnv, ...] = ()
        self._lock = threading.RLock()
        self._tokens: list[contextvars.Token[RunEnv | None]] = []
        self._closed = False
        self._cluster: Cluster | None = None
        wanted = self._first_nodes(nodes, executors)
        self._open(wanted, metastore, track_address(remotetrack), page)

    # --- use ------------------------------------------------------------------------------------

    @property
    def rootpath(self) -> str:
        """Prefix of all keys, segments, sockets and files."""
        return self._rootpath

    @property
    def config(self) -> Config:
        """Limits and defaults."""
        return self._config

    @property
    def nodes(self) -> list[NodeEnv]:
        """The nodes, without those that were lost; empty once it is closed."""
        if self._closed or self._cluster is None:
            return []
        return list(self._cluster.nodes)

    @property
    def runs(self) -> "list[Run]":
        """Runs that are not over, or whose handles are held somewhere; oldest first."""
        return [] if self._cluster is None else self._cluster.runs

    def _newest_run(self) -> "Run | PastRun | None":
        """What a picture of the environment shows."""
        if self._cluster is None:
            return None
        held, last = self.runs, self._cluster.enquiries.last_run
        if held and (last is None or held[-1].number >= last.number):
            return held[-1]
        return last

    @property
    def dashboard_url(self) -> str | None:
        """Of the live page, with the token that lets a browser in; None: it isn't open."""
        return None if self._cluster is None else self._cluster.dashboard.url

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._closed

    def stats(self) -> dict[str, Any]:
        """Numbers of the last run, and what brokers hold now.

        Returns:
            ``run`` (a dict, or None if there was no run; its fields as in `Run.stats`), ``brokers``
            and ``executors`` (lists of dicts, one a process), ``store`` (``state`` ok or degraded,
            and a ``reason``), ``stalls`` (how often a run stood still and it was warned of), and
            ``counters`` of all since the environment began: ``node_losses``, ``executor_losses``
            (processes of executors that died or were killed), ``exception_retries``,
            ``crash_retries``, ``timeout_retries``, ``stalls``, ``stale_messages`` (of those who
            didn't know yet that they were gone), ``recoveries``, ``rebalances`` (work not begun
            was taken from busy nodes for idle ones), ``recomputed_tasks``,
            ``moved_objects``, ``stale_peer_batches`` (the same, between brokers); and ``links``
            (batches that were stale, nonsense, repeated, resent or relayed; connections refused).

        Raises:
            ClosedError: the environment has been closed.
        """
        return self._cluster_in_use().stats()

    def map(
        self,
        function: Callable[..., Any],
        /,
        *iterables: Iterable[Any],
        chunksize: int | None = None,
        ordered: bool = True,
    ) -> Iterator[Any]:
        """Call a function with each input, on all executors, and iterate over the results.

        Lazy: inputs are taken as results are, so that they may be far more than memory holds:
        at most ``2 * executors + 2`` chunks of 10,000 inputs, less where they take time or room,
        are ahead. Nothing happens before the first result is asked for; leaving a loop early
        cancels what is under way.

        Args:
            function: of one argument for each of `iterables`. Calls are made in chunks of some
                50 ms, one after the other in one executor; each call has copies of its own of
                arguments that can be changed. An argument that is a `Ref` or `Delayed` stands for
                its value.
            iterables: of arguments; the shortest ends it.
            chunksize: inputs of a chunk; None: as many as measured times and sizes suggest.
            ordered: results in the order of the inputs; False: as chunks complete.

        Raises:
            Exception: the function's own, in the place of its result; or that of `iterables`.
            ClosedError: the environment has been closed.

        Example:
            >>> from dagsched import RunEnv
            >>> with RunEnv(executors=2) as env:  # doctest: +SKIP
            ...     sum(env.map(abs, range(-1000, 1000)))
            1000000
        """
        if not iterables:
            raise TypeError("map needs at least one iterable: env.map(function, inputs)")
        return self.starmap(function, zip(*iterables), chunksize=chunksize, ordered=ordered)  # noqa: B905 - the shortest ends it

    def starmap(
        self,
        function: Callable[..., Any],
        rows: Iterable[Iterable[Any]],
        /,
        *,
        chunksize: int | None = None,
        ordered: bool = True,
    ) -> Iterator[Any]:
        """`map` with the arguments of each call in one iterable: ``function(*row)``."""
        from dagsched.mapping import mapped

        self._cluster_in_use()
        return mapped(self, function, _tuples(rows), chunksize, ordered)

    def wait_for_nodes(self, n: int | None = None, timeout: float | None = None) -> None:
        """Wait until nodes have joined. Runs need not wait for that: they start when one has.

        Args:
            n: how many; None: all.
            timeout: seconds; None: as long as it takes.

        Raises:
            TimeoutError: they have not joined in that time.
            ClosedError: the environment has been closed.
        """
        self._cluster_in_use().wait_for_nodes(n, timeout)

    def close(self) -> None:
        """End everything and leave nothing: no process, segment, socket, file or key.

        Safe to call twice; works with any of the processes dead.
        """
        with self._lock:
            was_open, self._closed = not self._closed, True
            if self._cluster is not None:
                self._cluster.close()
            if was_open and self._flags["debug"]:
                stop_debug_log()
            _open_environments.discard(self)

    def __enter__(self) -> Self:
        self._cluster_in_use()
        self._tokens.append(_in_block.set(self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        token = self._tokens.pop()
        try:
            _in_block.reset(token)
        except ValueError:
            # Left in another context (a generator, another task) than it was entered in.
            _in_block.set(None)
        self.close()

    def __repr__(self) -> str:
        on = ", ".join(name for name, is_on in self._flags.items() if is_on)
        closed = " (closed)" if self._closed else ""
        lines = [f"RunEnv{f' [{on}]' if on else ''}{closed}"]
        return "\n".join(lines + [f" ↳ {node!r}" for node in self.nodes])

    # --- inside ---------------------------------------------------------------------------------

    def _first_nodes(
        self, nodes: Iterable[NodeEnv] | None, executors: int | None
    ) -> tuple[NodeEnv, ...]:
        hosts = process_hosts()
        if executors is not None:
            if nodes is not None:
                raise ValueError("give either nodes or executors, not both")
            if isinstance(executors, bool) or not isinstance(executors, int):
                raise TypeError(f"executors must be an int, not {type(executors).__name__}")
            if executors < 1:
                raise ValueError(f"executors must be at least 1, not {executors}")
        if nodes is not None:
            return check_nodes(nodes, hosts)
        if executors is None and hosts:
            return check_nodes(group_nodes(hosts), hosts)
        count = executors if executors is not None else len(os.sched_getaffinity(0))
        ids = reserve_private(count + 1)
        self._private = (NodeEnv(ids[0], LOCAL_HOST, ids[1:]),)
        return self._private

    def _nodes_for_reset(self, nodes: Iterable[NodeEnv] | None) -> tuple[NodeEnv, ...]:
        hosts = process_hosts()
        private_ids = [number for node in self._private for number in node.ids]
        if nodes is not None:
            given = check_nodes(nodes, hosts, private_ids)
            check_descriptors(given)
            return given
        try:
            added = group_nodes(hosts) if hosts else ()
        except NoNodesError:
            if not self._private:
                raise
            added = ()
        wanted = check_nodes((*self._private, *added), hosts, private_ids)
        check_descriptors(wanted)
        return wanted

    def _open(
        self,
        nodes: tuple[NodeEnv, ...],
        metastore: str | None,
        track: str | None,
        page: tuple[str, int] | None,
    ) -> None:
        """Start everything; what was started is ended again if that fails."""
        check_descriptors(nodes)
        names = make_run_directory(self._rootpath)
        if self._flags["debug"]:
            start_debug_log()
        try:
            from dagsched.cluster import Cluster

            self._cluster = Cluster(
                names,
                self._config,
                nodes,
                debug=self._flags["debug"],
                profile=self._flags["profile"],
                track=track,
                listen=self._listen,
            )
            self._cluster.open(metastore)
            if page is not None:
                announce(self._cluster.dashboard.open(page))
        except BaseException:
            self.close()
            remove_run_directory(names)
            raise
        _open_environments.add(self)

    def _cluster_in_use(self) -> "Cluster":
        """The machinery, if it can be used.

        Raises:
            ClosedError: it can't.
        """
        if self._closed or self._cluster is None:
            raise ClosedError("the environment has been closed; make another RunEnv")
        self._cluster.check_open()
        return self._cluster


def _tuples(rows: Iterable[Iterable[Any]]) -> Iterator[tuple[Any, ...]]:
    return rows if isinstance(rows, zip) else (tuple(row) for row in rows)


def setrunenv(env: RunEnv | None) -> RunEnv | None:
    """Set the environment that front ends use when none is given; None: none.

    Returns:
        `env`.
    """
    global _default
    if env is not None and not isinstance(env, RunEnv):
        raise TypeError(f"setrunenv needs a RunEnv or None, not {type(env).__name__}")
    with _default_lock:
        _default = env
    return env


def getrunenv() -> RunEnv | None:
    """The environment of the `with` block around, else the one that was set, else None."""
    return _in_block.get() or _default


def default_env() -> RunEnv:
    """The environment in use; if there is none, a local one is made, and closed at exit."""
    global _default
    env = getrunenv()
    if env is not None:
        return env
    with _default_lock:
        if _default is None:
            _default = RunEnv()
        return _default


def reset(
    env: RunEnv, nodes: Iterable[NodeEnv] | None = None, *, drop: bool = False
) -> NodeChanges:
    """Take into account processes added or removed since; what is untouched keeps running.

    A node that is no longer wanted ends what it runs, hands over the values that are still needed,
    and leaves; no task is repeated for that.

    Args:
        env: the environment.
        nodes: its nodes from now on; None: the processes that there are now, grouped by host.
        drop: nodes that are no longer wanted leave at once; what is lost with them is computed
            again, and no task is charged for that.

    Returns:
        The nodes that were added, removed and kept.

    Raises:
        NoNodesError, ValueError, TypeError: these can't be its nodes; nothing was changed.
        ClosedError: the environment has been closed.
    """
    cluster = env._cluster_in_use()
    with env._lock:
        return cluster.set_nodes(env._nodes_for_reset(nodes), drop=drop)


def cleanup(env: RunEnv) -> None:
    """End an environment and leave nothing of it; safe to call twice."""
    env.close()


def _close_all() -> None:
    """At exit: what the program left open is closed."""
    for env in list(_open_environments):
        env.close()


def _forget_after_fork() -> None:
    """In a forked child: the parent's environments are not the child's."""
    global _default
    for env in list(_open_environments):
        if env._cluster is not None:
            env._cluster.forget_after_fork()
    _open_environments.clear()
    _default = None
    _in_block.set(None)


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_after_fork)
