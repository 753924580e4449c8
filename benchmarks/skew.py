"""How far from the best possible is a run whose tasks differ a thousandfold, or whose node is slow?

Question: how many times longer does a run take than a list schedule of its single tasks that costs
nothing, where calls take 0.1 to 100 ms (log-uniform), where an executor or a node is slow, or both?
Ratios within one run; `least` is all work at all speeds, or the longest path at the highest.

    python benchmarks/skew.py --simulated [--rounds 5]     real cores, simulated time
    python benchmarks/skew.py --real [--rounds 5]          real processes; needs idle CPUs

A slow process is stopped (SIGSTOP) for its share of each 20 ms; tasks count CPU time. Beside it the
standard library's pool does the same, with a slow process of its own; `without the slow`: in
simulation a run on the fast node alone, else that pool with one process.
"""

import argparse
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import psutil

from dagsched import NodeEnv, RunEnv, addprocs, delayed, rundag
from dagsched.testing import SimCluster, SimGraph
from dagsched.testing import graphs as shapes
from dagsched.testing.skew import (
    greedy_makespan_s,
    least_makespan_s,
    speeds_of,
    spread_by_argument,
    spread_by_function,
)

Made = tuple[SimGraph, list[float]]


def made(name: str, seed: int) -> Made:
    """A graph, and the seconds of its tasks."""
    rng = random.Random(seed)
    shape, _, times = name.partition(", ")
    graph = {
        "1,000 alone": lambda: shapes.wide(1_000),
        "200 alone": lambda: shapes.wide(200),
        "tree of 512 leaves": lambda: shapes.tree(9),
        "12 layers of up to 80": lambda: shapes.layered(rng, 12, 80, 3),
    }[shape]()
    if times == "20 ms each":
        graph.function_s = [0.02]
        return graph, [0.02] * graph.count
    if times == "by function":
        return graph, spread_by_function(graph, rng)
    order = "drawn" if times == "by argument" else times
    return graph, spread_by_argument(graph, rng, order)


GRAPHS = (
    "1,000 alone, by argument", "1,000 alone, longest last", "1,000 alone, by function",
    "200 alone, 20 ms each", "tree of 512 leaves, by argument",
    "12 layers of up to 80, by argument",
)  # fmt: skip

CLUSTERS: dict[str, tuple[dict[int, int], dict[int, float]]] = {
    "one node of 4": ({2: 4}, {}),
    "one of 4 executors 10 x slower": ({2: 4}, {200: 10.0}),
    "two nodes of 2": ({2: 2, 5: 2}, {}),
    "one of them 2 x slower": ({2: 2, 5: 2}, {5: 2.0}),
    "one of them 10 x slower": ({2: 2, 5: 2}, {5: 10.0}),
    "one of them 20 x slower": ({2: 2, 5: 2}, {5: 20.0}),
}


def spread(values: Sequence[float]) -> str:
    """Median and extremes."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} .. {max(values):.2f})"


def simulated_s(graph: SimGraph, nodes: dict[int, int], slowness: dict[int, float]) -> float:
    cluster = SimCluster(nodes, seed=1, slowness=slowness, checks=False, is_wired=False)
    cluster.let_pass(0.3)
    outcome = cluster.run(graph)
    if outcome.state != "done":
        raise SystemExit(f"the run ended as {outcome.state}")
    return outcome.makespan_s


def simulated(rounds: int) -> None:
    print("| cluster | graph | to a list schedule | to the least | without the slow |")
    print("| --- | --- | --- | --- | --- |")
    for place, (nodes, slowness) in CLUSTERS.items():
        for name in GRAPHS:
            to_greedy, to_least, to_without = [], [], []
            for seed in range(1, rounds + 1):
                graph, seconds = made(name, seed)
                took_s = simulated_s(graph, nodes, slowness)
                speeds = speeds_of(nodes, slowness)
                to_greedy.append(took_s / greedy_makespan_s(graph.deps, seconds, speeds))
                to_least.append(took_s / least_makespan_s(graph.deps, seconds, speeds))
                if 5 in slowness:
                    to_without.append(took_s / simulated_s(graph, {2: 2}, {}))
            without = spread(to_without) if to_without else ""
            row = (place, name, spread(to_greedy), spread(to_least), without)
            print("| " + " | ".join(row) + " |", flush=True)


# --- real processes -------------------------------------------------------------------------------


def busy(seconds: float) -> float:
    """Use so much CPU time."""
    end_s = time.thread_time() + seconds
    while time.thread_time() < end_s:
        pass
    return seconds


SLOWER = """
import os, signal, sys, time
share, pids = float(sys.argv[1]), [int(pid) for pid in sys.argv[2:]]
while True:
    for what, seconds in ((signal.SIGCONT, 0.02 * share), (signal.SIGSTOP, 0.02 * (1 - share))):
        for pid in pids:
            os.kill(pid, what)
        time.sleep(seconds)
"""


@contextlib.contextmanager
def slowed(pids: Sequence[int], share: float) -> Iterator[None]:
    """Within, these processes run only for this share of the time."""
    if not pids:
        yield
        return
    command = [sys.executable, "-c", SLOWER, str(share), *map(str, pids)]
    with subprocess.Popen(command) as process:
        try:
            yield
        finally:
            process.kill()
            process.wait()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


def brokers() -> list[psutil.Process]:
    """Brokers below this process, by age; those below them are the zygote and executors."""
    below = psutil.Process().children(recursive=True)
    found = [p for p in below if p.ppid() == os.getpid() and "dagsched.brokers" in p.cmdline()]
    return sorted(found, key=lambda process: (process.create_time(), process.pid))


def executors_of(broker: psutil.Process) -> list[int]:
    by_age = sorted(broker.children(), key=lambda process: (process.create_time(), process.pid))
    return [process.pid for process in by_age[1:]]


def total(*values: float) -> float:
    return sum(values)


def real_s(env: RunEnv, seconds: Sequence[float]) -> float:
    dag = delayed(total)(*[delayed(busy)(own_s) for own_s in seconds])
    start = time.perf_counter()
    value = rundag(env, dag, progress=False)
    took_s = time.perf_counter() - start
    if abs(value - sum(seconds)) > 1e-6:
        raise SystemExit(f"wrong result: {value}")
    return took_s


def pool_s(seconds: Sequence[float], share: float, workers: int = 2) -> float:
    """The same on the standard library's pool, which hands out single tasks."""
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(busy, [0.001] * 10))
        slow = list(pool._processes)[:1] if share < 1.0 else []
        with slowed(slow, share):
            start = time.perf_counter()
            list(pool.map(busy, seconds))
            return time.perf_counter() - start


def real_case(env: RunEnv, name: str, rounds: int, slow: list[int], share: float) -> None:
    for order in ("by argument", "longest last"):
        to_pool, to_greedy, to_without = [], [], []
        for seed in range(1, rounds + 1):
            _, seconds = made(f"200 alone, {order}", seed)
            deps: list[list[int]] = [[] for _ in seconds]
            with slowed(slow, share):
                took_s = real_s(env, seconds)
            to_pool.append(took_s / pool_s(seconds, share))
            to_greedy.append(took_s / greedy_makespan_s(deps, seconds, [1.0, share]))
            if slow:
                to_without.append(took_s / pool_s(seconds, 1.0, workers=1))
        without = spread(to_without) if to_without else ""
        row = (name, f"200 alone, {order}", spread(to_pool), spread(to_greedy), without)
        print("| " + " | ".join(row) + " |", flush=True)


def real(rounds: int) -> None:
    print("| cluster | graph | to ProcessPoolExecutor | to a list schedule | without the slow |")
    print("| --- | --- | --- | --- | --- |")
    with RunEnv(executors=2) as env:
        real_s(env, [0.001] * 10)
        real_case(env, "one node of 2", rounds, [], 1.0)
        slow = executors_of(brokers()[0])[:1]
        real_case(env, "one of 2 executors has 10 % of a CPU", rounds, slow, 0.1)
    first = addprocs(4)[0]
    nodes = [
        NodeEnv(first, "127.0.0.1", [first + 1]),
        NodeEnv(first + 2, "127.0.0.1", [first + 3]),
    ]
    with RunEnv(nodes=nodes) as env:
        real_s(env, [0.001] * 10)
        real_case(env, "two nodes of 1", rounds, [], 1.0)
        second = brokers()[1]
        pids = [second.pid, *executors_of(second)]
        for share in (0.5, 0.1, 0.05):
            name = f"one of them has {100 * share:.0f} % of a CPU"
            real_case(env, name, rounds, pids, share)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulated", action="store_true", help="in simulated time (default)")
    parser.add_argument("--real", action="store_true", help="with real processes")
    parser.add_argument("--rounds", type=int, default=5, help="seeds of each row (default: 5)")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    if args.simulated or not args.real:
        simulated(args.rounds)
    if args.real:
        real(args.rounds)


if __name__ == "__main__":
    main()
