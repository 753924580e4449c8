"""What does a task cost? Graphs of no-ops end to end, each beside a plain loop in the same run.

Question: how many microseconds does one more task cost, from the call of `rundag` on a built graph
until the value is back, with two executors and the embedded store?

    python benchmarks/floor.py [--nodes 1|2] [--rounds 5]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from graphs import chain, noop, tree, wide

from dagsched import Delayed, NodeEnv, RunEnv, addprocs, delayed, rundag


def fresh(megabytes):
    return np.ones(megabytes * 125_000)


def next_array(array):
    return array + 1.0


def first_value(array):
    return float(array[0])


def loop_seconds(count: int) -> float:
    """The floor: as many calls in a plain loop that keeps each result."""
    start = time.perf_counter()
    values = {}
    for i in range(count):
        values[i] = noop(i)
    return time.perf_counter() - start


def measured(env: RunEnv, make: Callable[[], tuple[Delayed, object]], rounds: int) -> list[float]:
    seconds = []
    for _ in range(rounds):
        dag, expected = make()
        start = time.perf_counter()
        value = rundag(env, dag, progress=False)
        seconds.append(time.perf_counter() - start)
        if value != expected:
            raise SystemExit(f"wrong result: {value!r} instead of {expected!r}")
    return seconds


def pool_row(env: RunEnv, rounds: int) -> str:
    """The nearest peer that needs no installation: the standard library's process pool."""
    count = 10_000
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(noop, range(100)))
        pool_us, own_us = [], []
        for _ in range(rounds):
            start = time.perf_counter()
            done = sum(1 for _ in pool.map(noop, range(count)))
            pool_us.append((time.perf_counter() - start) / count * 1e6)
            own_us.append(measured(env, lambda: wide(count), 1)[0] / count * 1e6)
            if done != count:
                raise SystemExit(f"the pool did {done} of {count} tasks")
    ratio = statistics.median(pool / own for pool, own in zip(pool_us, own_us, strict=True))
    return (
        f"wide, 10,000: {statistics.median(own_us):.2f} us a task here, "
        f"{statistics.median(pool_us):.1f} us on ProcessPoolExecutor.map: {ratio:.0f} times less"
    )


def arrays_row(env: RunEnv, rounds: int) -> str:
    """A chain of 20 arrays of 100 MB, each step a bundle of its own."""
    ratios = []
    for _ in range(rounds):
        start = time.perf_counter()
        array = fresh(100)
        for _ in range(20):
            array = next_array(array)
        loop_s = time.perf_counter() - start
        node = delayed(fresh)(100)
        for _ in range(20):
            node = delayed(next_array)(node)
        start = time.perf_counter()
        value = rundag(env, delayed(first_value)(node), progress=False)
        ratios.append((time.perf_counter() - start) / loop_s)
        if value != 21.0:
            raise SystemExit(f"wrong result: {value}")
    return f"20 arrays of 100 MB in a chain: {statistics.median(ratios):.2f} times the plain loop"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=1, choices=(1, 2))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    start = time.perf_counter()
    nodes = None
    if args.nodes == 2:
        first = addprocs(4)[0]
        nodes = [
            NodeEnv(first, "127.0.0.1", [first + 1]),
            NodeEnv(first + 2, "127.0.0.1", [first + 3]),
        ]
    with RunEnv(nodes=nodes, executors=None if nodes else 2) as env:
        rundag(env, delayed(noop)(1))
        print(f"{args.nodes} node(s); first result after {time.perf_counter() - start:.3f} s")
        print("| graph | us a task, median (least .. most) | plain loop | ratio |")
        print("| --- | --- | --- | --- |")
        cases: list[tuple[str, int, Callable[[], tuple[Delayed, object]]]] = [
            ("wide, 100,000 and one reduction", 100_001, lambda: wide(100_000)),
            ("chain of 10,000", 10_000, lambda: chain(10_000)),
            ("chain of 100,000", 100_000, lambda: chain(100_000)),
            ("binary tree, 65,536 leaves", 131_071, lambda: tree(65_536)),
            ("10 tasks", 10, lambda: wide(9)),
        ]
        for name, count, make in cases:
            loop_us = statistics.median(loop_seconds(count) for _ in range(5)) / count * 1e6
            each = sorted(s / count * 1e6 for s in measured(env, make, args.rounds))
            median = statistics.median(each)
            print(
                f"| {name} | {median:.2f} ({each[0]:.2f} .. {each[-1]:.2f}) | {loop_us:.3f} | "
                f"{median / loop_us:.0f} |"
            )
        print()
        print(pool_row(env, args.rounds))
        print(arrays_row(env, 3))


main()
