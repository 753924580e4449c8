"""`Client`: the common calls of `distributed.Client` on an environment of ours.

Results stay on the nodes until they are asked for. What a Dask cluster has and we have not is not
pretended: addresses name nodes and executors, and there is no scheduler process to talk to.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import dask
import numpy as np
from dask.core import flatten
from dask.task_spec import DataNode, List, Task, TaskRef

from dagsched.attempts import attempted
from dagsched.composed import list_of
from dagsched.containers import leaves, rebuild
from dagsched.delayed import DEFAULTS, Options, identity
from dagsched.entries import slot
from dagsched.graph import TaskGraph
from dagsched.plugins.dask.annotations import options_by_key
from dagsched.plugins.dask.constants import Constants
from dagsched.plugins.dask.conversion import convert_graph
from dagsched.plugins.dask.futures import Batch, Future, opened
from dagsched.plugins.dask.getting import get, low_level_graph
from dagsched.plugins.dask.window import Window
from dagsched.ref import collect
from dagsched.run import Run
from dagsched.runenv import RunEnv, default_env
from dagsched.submission import submit

MAP_RUNS_MAX = 32
"""One `map` is so many runs at the most; futures of one run are done together."""

WINDOW_RUNS = 32
"""So many runs are under way at a time, or four for each executor."""


class Client:
    """Submits calls and collections; its futures are references to values on nodes.

    Args:
        env: the environment; None: the one in use, see `setrunenv`.
        set_as_default: Dask's own `compute` and `persist` use this client until it is closed; they
            shuffle by tasks, for nodes share no disk.

    Raises:
        TypeError: `env` is none; there are no addresses of clusters here.
    """

    asynchronous = False  # which Dask asks

    def __init__(self, env: RunEnv | None = None, *, set_as_default: bool = True) -> None:
        if not isinstance(env, RunEnv | None):
            raise TypeError(f"a Client needs a RunEnv or None, not {env!r}")
        self.env = default_env() if env is None else env
        self._numbers = itertools.count(1)
        executor_count = sum(len(node.executorids) for node in self.env.nodes)
        self._window = Window(max(WINDOW_RUNS, 4 * executor_count))
        self._restore = contextlib.ExitStack()
        if set_as_default:
            settings = {"scheduler": self.get, "dataframe.shuffle.method": "tasks"}
            self._restore.enter_context(dask.config.set(settings))

    # --- calls ------------------------------------------------------------------------------------

    def submit(
        self,
        function: Callable[..., Any],
        *args: Any,
        key: Any = None,
        retries: int | None = None,
        priority: int = 0,
        pure: bool = True,  # noqa: ARG002 - each submission is a run of its own
        workers: Any = None,  # noqa: ARG002 - names processes that there are not
        resources: Mapping[str, float] | None = None,
        allow_other_workers: bool = False,  # noqa: ARG002
        fifo_timeout: Any = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> Future:
        """Calls a function on a node.

        Args:
            function: what is called.
            *args: futures among them, also inside lists, tuples and dicts, stand for their values.
            key: of the future; None: a new one.
            retries: how often it is called again after an exception.
            priority: of the run.
            pure: has no effect.
            workers: has no effect.
            resources: what the call needs.
            allow_other_workers: has no effect.
            fifo_timeout: has no effect.
            **kwargs: of the function.
        """
        calls = [(key or self._key(function), args, kwargs)]
        return self._called(function, calls, retries or 0, priority, resources)[0]

    def map(
        self,
        function: Callable[..., Any],
        *iterables: Iterable[Any],
        key: Any = None,
        retries: int | None = None,
        priority: int = 0,
        pure: bool = True,  # noqa: ARG002 - as in submit
        workers: Any = None,  # noqa: ARG002
        resources: Mapping[str, float] | None = None,
        allow_other_workers: bool = False,  # noqa: ARG002
        fifo_timeout: Any = None,  # noqa: ARG002
        batch_size: int | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> list[Future]:
        """Calls a function with each item of iterables; `key` is a prefix or a list of keys."""
        calls = []
        for number, args in enumerate(zip(*iterables, strict=False)):
            own = key[number] if isinstance(key, list) else self._key(key or function)
            calls.append((own, args, kwargs))
        size = max(1, -(-len(calls) // MAP_RUNS_MAX))
        futures: list[Future] = []
        for start in range(0, len(calls), size):
            part = calls[start : start + size]
            futures += self._called(function, part, retries or 0, priority, resources)
        return futures

    def _called(
        self,
        function: Callable[..., Any],
        calls: Sequence[tuple[Any, tuple[Any, ...], dict[str, Any]]],
        retries: int,
        priority: int,
        resources: Mapping[str, float] | None,
    ) -> list[Future]:
        """Futures of calls that are one run."""
        inputs = list(leaves([call[1:] for call in calls], _is_future))
        keys = [key for key, _, _ in calls]

        def start() -> Run:
            graph = {}
            for key, args, kwargs in calls:
                given = [_node(arg) for arg in args]
                named = {name: _node(arg) for name, arg in kwargs.items()}
                graph[key] = Task(key, attempted, function, retries, *given, **named)
            options = {}
            if resources:
                options = dict.fromkeys(keys, Options(resources=dict(resources)))
            converted = convert_graph(graph, keys, options)
            names = [getattr(function, "__name__", "call")] * len(converted.function_names)
            return self._submit(replace(converted, function_names=names), priority)

        return self._futures(keys, start, inputs, priority)  # type: ignore[arg-type]  # leaves are Futures

    # --- collections ------------------------------------------------------------------------------

    def get(self, dsk: Any, keys: Any, **options: Any) -> Any:
        """The values of a graph's keys: Dask's own calls end here."""
        return get(dsk, keys, **{"env": self.env, **options})

    def compute(self, collections: Any, sync: bool = False, **options: Any) -> Any:
        """Starts to compute collections.

        Args:
            collections: one, or a list or tuple of them; what is none is a future of itself.
            sync: return values, not futures.
            **options: ``optimize_graph``, ``priority``.
        """
        futures: Any
        if isinstance(collections, list | tuple):
            futures = type(collections)([self.compute(one, **options) for one in collections])
        elif not dask.is_dask_collection(collections):
            futures = collections if _is_future(collections) else self.scatter([collections])[0]
        else:
            futures = self._computed(collections, **options)
        return self.gather(futures) if sync else futures

    def _computed(
        self, collection: Any, optimize_graph: bool = True, priority: int = 0, **_: Any
    ) -> Future:
        if optimize_graph:
            (collection,) = _optimized([collection])
        graph = low_level_graph(collection.__dask_graph__())
        finish, extra = collection.__dask_postcompute__()
        key = f"{type(collection).__name__.lower()}-{next(self._numbers)}"
        graph[key] = Task(key, finish, _nested(collection.__dask_keys__()), *extra)
        options = options_by_key(collection.__dask_graph__())
        return self._futures(
            [key], lambda: self._run(graph, [key], options, priority), (), priority
        )[0]

    def persist(
        self, collections: Any, optimize_graph: bool = True, priority: int = 0, **_: Any
    ) -> Any:
        """Starts to compute collections whose parts stay on the nodes; returns such collections."""
        if not isinstance(collections, list | tuple):
            return self.persist([collections], optimize_graph, priority)[0]
        if optimize_graph:
            collections = _optimized(collections)
        graph: dict[Any, Any] = {}
        options: dict[Any, Options] = {}
        for one in collections:
            graph.update(low_level_graph(one.__dask_graph__()))
            options.update(options_by_key(one.__dask_graph__()))
        keys_of = [list(flatten(one.__dask_keys__())) for one in collections]
        keys = list(dict.fromkeys(itertools.chain.from_iterable(keys_of)))
        futures = self._futures(
            keys, lambda: self._run(graph, keys, options, priority), (), priority
        )
        nodes = {f.key: DataNode(f.key, f) for f in futures}
        made = []
        for one, own in zip(collections, keys_of, strict=True):
            rebuilt, state = one.__dask_postpersist__()
            made.append(rebuilt({key: nodes[key] for key in own}, *state))
        return made

    # --- values -----------------------------------------------------------------------------------

    def scatter(self, data: Any, broadcast: bool = False, **_: Any) -> Any:
        """Puts values on a node; each node that needs one fetches it, once.

        Args:
            data: a list or tuple gives a list of futures, a dict a dict, anything else one future.
            broadcast: has no effect.
        """
        del broadcast
        if isinstance(data, Mapping):
            return dict(zip(data, self.scatter(list(data.values())), strict=True))
        if not isinstance(data, list | tuple):
            return self.scatter([data])[0]
        keys = [self._key(type(value)) for value in data]
        graph = {key: DataNode(key, value) for key, value in zip(keys, data, strict=True)}
        return self._futures(keys, lambda: self._run(graph, keys, {}, 0), (), 0)

    def gather(self, futures: Any, errors: str = "raise") -> Any:
        """The values of futures inside lists, tuples, dicts, in the same shape.

        Args:
            futures: one or several.
            errors: "raise": the first exception is raised; "skip": failed ones of a list are left
                out.
        """
        if errors == "skip":
            return self.gather([future for future in futures if future.exception() is None])
        if isinstance(futures, Iterator):
            futures = list(futures)
        found = list(dict.fromkeys(leaves(futures, _is_future)))
        if _is_future(futures):
            return futures.result()
        refs = [future.ref() for future in found]  # type: ignore[attr-defined]  # leaves are Futures
        fetched: Any = collect(refs)
        values = dict(zip(found, map(opened, fetched), strict=True))
        return rebuild(futures, values.__getitem__, _is_future)

    def cancel(self, futures: Any) -> None:
        """Stops the runs of futures inside containers."""
        for future in leaves([futures], _is_future):
            future.cancel()  # type: ignore[attr-defined]  # leaves are Futures

    def who_has(self, futures: Any) -> dict[Any, tuple[str, ...]]:
        """By key, the nodes that hold the values of futures that are done."""
        hosts = {node.brokerid: f"{node.host}#{node.brokerid}" for node in self.env.nodes}
        return {
            future.key: tuple(hosts[node] for node in future.ref().nodes if node in hosts)
            for future in leaves([futures], _is_future)
            if isinstance(future, Future)
        }

    # --- about it ---------------------------------------------------------------------------------

    def scheduler_info(self) -> dict[str, Any]:
        """Who there is: all executors, by a name that tells node and executor."""
        workers = {
            f"{node.host}#{node.brokerid}-{executor}": {
                "type": "Worker", "id": executor, "name": executor, "host": node.host,
                "nthreads": 1, "node": node.brokerid,
            }
            for node in self.env.nodes
            for executor in node.executorids
        }  # fmt: skip
        return {
            "type": "Scheduler", "id": "master", "address": "inproc://master", "services": {},
            "workers": workers,
        }  # fmt: skip

    def close(self) -> None:
        """Gives Dask back its own default; the environment stays open. Safe twice."""
        self._restore.close()

    shutdown = close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {len(self.scheduler_info()['workers'])} executors>"

    # --- inside -----------------------------------------------------------------------------------

    def _key(self, named: Any) -> str:
        name = named if isinstance(named, str) else getattr(named, "__name__", "call")
        return f"{name}-{next(self._numbers)}"

    def _run(
        self,
        graph: Mapping[Any, Any],
        keys: list[Any],
        options: Mapping[Any, Options],
        priority: int,
    ) -> Run:
        """A run of a Dask graph; files of its tasks are there until it is over."""
        constants = Constants()
        run = self._submit(convert_graph(graph, keys, options, constants), priority)
        run.add_done_callback(lambda _: constants.close())
        return run

    def _submit(self, graph: TaskGraph, priority: int) -> Run:
        return submit(self.env, by_reference(graph), priority=priority)

    def _futures(
        self,
        keys: Sequence[Any],
        start: Callable[[], Run],
        inputs: Sequence[Future],
        priority: int,
    ) -> list[Future]:
        batch = Batch(start, inputs, self._window, priority)
        futures = [Future(key, batch, index) for index, key in enumerate(keys)]
        batch.begin()
        return futures


def by_reference(graph: TaskGraph) -> TaskGraph:
    """The same graph, with a list of references in place of the tuple of values."""
    count = len(graph)
    wanted: Any = graph.shape
    places = tuple([(place, item.index) for place, item in enumerate(wanted)])
    constants = graph.outputs[graph.outputs >= count]
    added = len(constants) + 1
    deps, outputs = graph.deps.copy(), graph.outputs.copy()
    for numbers in (deps, outputs, constants):
        numbers[numbers >= count] += added
    outputs[outputs >= count] = np.arange(count, count + len(constants))
    ends = graph.indptr[-1] + np.arange(1, len(constants) + 1)
    total = graph.indptr[-1] + len(constants) + len(outputs)
    last = count + len(constants)
    number = len(graph.functions)
    called = [number] * len(constants) + [number + 1]
    return replace(
        graph,
        functions=[*graph.functions, identity, list_of],
        function_names=[*graph.function_names, "scatter", "references"],
        function_of=np.append(graph.function_of, called).astype(np.int32),
        indptr=np.concatenate((graph.indptr, ends, [total])),
        deps=np.concatenate((deps, constants, outputs)),
        entries=[*graph.entries, *[None] * (added - 1), [(None,) * len(places), places]],
        plain=graph.plain + b"\1" * added,
        options={**graph.options, last: replace(DEFAULTS, meta=True)},
        serials=np.arange(last + 1),
        outputs=np.array([last], np.int32),
        shape=slot(0),
        own_keys=[
            *(graph.own_keys or ()),
            *[f"scatter-{i}" for i in range(added - 1)],
            "references",
        ],
    )


def _optimized(collections: Sequence[Any]) -> list[Any]:
    """Collections with optimised graphs.

    Dataframes do that themselves: `dask.optimize` asks their expressions for a graph too early.
    """
    kinds_own = [hasattr(type(one), "optimize") for one in collections]
    others = [one for one, is_own in zip(collections, kinds_own, strict=True) if not is_own]
    done = iter(dask.optimize(*others))
    return [
        one.optimize() if is_own else next(done)
        for one, is_own in zip(collections, kinds_own, strict=True)
    ]


def _is_future(item: object) -> bool:
    return type(item) is Future


def _node(arg: Any) -> Any:
    """An argument with references to values in place of futures."""
    if type(arg) is Future:
        return DataNode(None, arg.ref())
    if type(arg) in (list, tuple, dict) and any(True for _ in leaves(arg, _is_future)):
        if type(arg) is dict:
            return Task(None, dict, List(*[List(name, _node(one)) for name, one in arg.items()]))
        parts = List(*map(_node, arg))
        return parts if type(arg) is list else Task(None, tuple, parts)
    return arg


def _nested(keys: Any) -> Any:
    return List(*map(_nested, keys)) if isinstance(keys, list) else TaskRef(keys)
