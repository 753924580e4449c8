"""Other engines, each started, given the same list of calls, and ended.

A graph is a list of `Call`s, dependencies first; its value is that of the last. Each adapter turns
it into its engine's own form, which is part of what is measured. Engines have two processes that
run tasks, and otherwise the settings they come with, but where it is said.
"""

import importlib
import importlib.metadata
import os
import queue
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

from dagsched import RunEnv, delayed, rundag
from dagsched.bench.graphs import Measured
from dagsched.graph import build_graph

PROCESSES = 2


class Need(NamedTuple):
    """An argument: the value of the call of this number."""

    number: int


class Call(NamedTuple):
    """A function and its arguments; some are `Need`s."""

    function: Callable[..., Any]
    args: Sequence[Any]


class NotSupportedError(Exception):
    """An engine can't run a graph of this shape."""


def calls_of(made: Measured) -> list[Call]:
    """The calls of one of our graphs, which has positional arguments only."""
    graph = build_graph(made[0])
    calls = []
    for number, entry in enumerate(graph.entries):
        needs = [Need(int(other)) for other in graph.dependencies(number)]
        if entry is None:
            args: list[Any] = list(needs)
        elif isinstance(entry, tuple):
            args = list(entry)
        else:
            args = list(entry[0])
            for place, index in entry[1]:
                args[place] = needs[index]
        calls.append(Call(graph.functions[int(graph.function_of[number])], args))
    return calls


class Peer:
    """An engine."""

    name = ""
    package: str | None = None  # what must be installed

    def version(self) -> str:
        return importlib.metadata.version(self.package) if self.package else ""

    def start(self) -> None:
        """Start processes, and wait until they are there."""

    def run(self, calls: Sequence[Call]) -> Any:
        """The value of the last call."""
        raise NotImplementedError

    def stop(self) -> None:
        """End everything."""

    def is_installed(self) -> bool:
        try:
            importlib.import_module(self.package or "sys")
        except ImportError:
            return False
        return True


class Futures(Peer):
    """An engine whose futures may be arguments."""

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        raise NotImplementedError

    def submitted(self, calls: Sequence[Call]) -> Any:
        """The future of the last call."""
        futures: list[Any] = []
        for function, args in calls:
            ready = [futures[x.number] if type(x) is Need else x for x in args]
            futures.append(self.submit(function, *ready))
        return futures[-1]


class Dagsched(Peer):
    name = package = "dagsched"

    def start(self) -> None:
        self.env = RunEnv(executors=PROCESSES)

    def run(self, calls: Sequence[Call]) -> Any:
        wrapped = {function: delayed(function) for function, _ in calls}
        nodes: list[Any] = []
        for function, args in calls:
            ready = [nodes[x.number] if type(x) is Need else x for x in args]
            nodes.append(wrapped[function](*ready))
        return rundag(self.env, nodes[-1], progress=False)

    def stop(self) -> None:
        self.env.close()


class Pool(Peer):
    """The standard library's process pool; the caller counts what each call waits for."""

    name = "process pool"

    def version(self) -> str:
        return f"Python {sys.version.split()[0]}"

    def start(self) -> None:
        self.pool = ProcessPoolExecutor(PROCESSES, get_context("spawn"))
        list(self.pool.map(abs, range(10)))

    def run(self, calls: Sequence[Call]) -> Any:
        needs = [{x.number for x in args if type(x) is Need} for _, args in calls]
        users: list[list[int]] = [[] for _ in calls]
        for number, needed in enumerate(needs):
            for other in needed:
                users[other].append(number)
        waits = [len(needed) for needed in needs]
        values: dict[int, Any] = {}
        ended: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        ready = [number for number, count in enumerate(waits) if count == 0]
        while len(values) < len(calls):
            for number in ready:
                function, args = calls[number]
                given = [values[x.number] if type(x) is Need else x for x in args]
                future = self.pool.submit(function, *given)
                future.add_done_callback(lambda done, number=number: ended.put((number, done)))
            number, done = ended.get()
            values[number] = done.result()
            ready = []
            for user in users[number]:
                waits[user] -= 1
                if waits[user] == 0:
                    ready.append(user)
        return values[len(calls) - 1]

    def stop(self) -> None:
        self.pool.shutdown()


class Joblib(Peer):
    """`Parallel` on processes: one flat map, and the last call in the caller."""

    name = package = "joblib"

    def start(self) -> None:
        from joblib import Parallel

        self.parallel = Parallel(n_jobs=PROCESSES).__enter__()
        self.run([Call(abs, [number]) for number in range(10)])

    def run(self, calls: Sequence[Call]) -> Any:
        from joblib import delayed as call_later

        *flat, last = calls
        if any(type(x) is Need for _, args in flat for x in args):
            raise NotSupportedError("maps only")
        values = self.parallel(call_later(function)(*args) for function, args in flat)
        given = [values[x.number] if type(x) is Need else x for x in last.args]
        return last.function(*given)

    def stop(self) -> None:
        self.parallel.__exit__(None, None, None)


class Dask(Peer):
    """dask.distributed: processes of one thread; the scheduler in the caller, as is its default."""

    name, package = "dask", "distributed"
    runs = 0

    def start(self) -> None:
        from distributed import Client, LocalCluster

        self.cluster = LocalCluster(
            n_workers=PROCESSES, threads_per_worker=1, dashboard_address=None, silence_logs=40
        )
        self.client = Client(self.cluster)
        self.client.wait_for_workers(PROCESSES)

    def run(self, calls: Sequence[Call]) -> Any:
        # New keys each time, or the last results would be the answer. The scheduler groups keys by
        # what stands before their numbers.
        self.runs += 1
        keys = [
            f"{function.__name__}-{self.runs}-{number}"
            for number, (function, _) in enumerate(calls)
        ]
        graph = {
            keys[number]: (function, *[keys[x.number] if type(x) is Need else x for x in args])
            for number, (function, args) in enumerate(calls)
        }
        return self.client.get(graph, keys[-1])

    def stop(self) -> None:
        self.client.close()
        self.cluster.close()


class Ray(Futures):
    """Ray on this machine, without dashboard."""

    name = package = "ray"

    def start(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        self.remote: dict[Callable[..., Any], Any] = {}
        ray.init(num_cpus=PROCESSES, include_dashboard=False, log_to_driver=False, logging_level=40)

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        import ray

        if function not in self.remote:
            self.remote[function] = ray.remote(function)
        return self.remote[function].remote(*args)

    def run(self, calls: Sequence[Call]) -> Any:
        import ray

        return ray.get(self.submitted(calls))

    def stop(self) -> None:
        import ray

        ray.shutdown()


class Parsl(Futures):
    """Parsl's HighThroughputExecutor, a block of this machine, without monitoring and scaling."""

    name = package = "parsl"

    def start(self) -> None:
        import parsl
        from parsl.config import Config
        from parsl.executors import HighThroughputExecutor
        from parsl.providers import LocalProvider

        # It starts programs of its own by name.
        os.environ["PATH"] = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
        self.apps: dict[Callable[..., Any], Any] = {}
        self.directory = tempfile.TemporaryDirectory(prefix="dagsched-bench-")
        executor = HighThroughputExecutor(
            max_workers_per_node=PROCESSES,
            cores_per_worker=1,
            address="127.0.0.1",
            provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1),
        )
        parsl.load(
            Config(
                executors=[executor], run_dir=self.directory.name, strategy="none",
                usage_tracking=0, initialize_logging=False,
            )
        )  # fmt: skip

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        import parsl

        if function not in self.apps:
            self.apps[function] = parsl.python_app(function)
        return self.apps[function](*args)

    def run(self, calls: Sequence[Call]) -> Any:
        return self.submitted(calls).result()

    def stop(self) -> None:
        import parsl

        parsl.dfk().cleanup()
        parsl.clear()
        self.directory.cleanup()


PEERS: Sequence[type[Peer]] = (Pool, Joblib, Dask, Ray, Parsl)
