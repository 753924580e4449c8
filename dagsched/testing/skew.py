"""Graphs whose tasks differ a thousandfold, and what their schedules can be measured against.

No scheduler ends earlier than `least_makespan_s`. `greedy_makespan_s` is what one reaches that
hands out single tasks at no cost, never knows how long one will take, and leaves nobody idle while
a task is ready (Graham, Bounds on multiprocessing timing anomalies, 1969): where the longest task
comes last, more can't be promised.
"""

import random
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import Literal

from dagsched.testing.graphs import SimGraph, SimTask

LEAST_S = 1e-4
MOST_S = 0.1

Order = Literal["drawn", "longest last", "longest first"]


def spread_by_argument(graph: SimGraph, rng: random.Random, order: Order = "drawn") -> list[float]:
    """Let each call of the only function take `LEAST_S` to `MOST_S`, log-uniform.

    Returns:
        Seconds of each task.
    """
    seconds = [LEAST_S * (MOST_S / LEAST_S) ** rng.random() for _ in range(graph.count)]
    if order != "drawn":
        seconds.sort(reverse=order == "longest first")
    graph.tasks = {number: SimTask(number, seconds=own_s) for number, own_s in enumerate(seconds)}
    return seconds


def spread_by_function(graph: SimGraph, rng: random.Random) -> list[float]:
    """Let each task call one of twenty functions, which take `LEAST_S` to `MOST_S`.

    Returns:
        Seconds of each task.
    """
    graph.function_s = [LEAST_S * (MOST_S / LEAST_S) ** (step / 19) for step in range(20)]
    graph.function_of = [rng.randrange(20) for _ in range(graph.count)]
    return [graph.function_s[function] for function in graph.function_of]


def speeds_of(nodes: Mapping[int, int], slowness: Mapping[int, float]) -> list[float]:
    """Speeds of the executors of a simulated cluster with these arguments."""
    return [
        1.0 / slowness.get(broker * 100 + index, slowness.get(broker, 1.0))
        for broker, count in nodes.items()
        for index in range(count)
    ]


def least_makespan_s(
    deps: Sequence[Sequence[int]], seconds: Sequence[float], speeds: Sequence[float]
) -> float:
    """A lower bound: all work at all speeds together, or the longest path at the highest.

    Args:
        deps: of each task, in a topological order.
        seconds: of each task at speed 1.
        speeds: of the executors.

    Example:
        >>> least_makespan_s([[], [], [0]], [2.0, 1.0, 1.0], [1.0, 1.0])
        3.0
    """
    path_s: list[float] = []
    for row, own_s in zip(deps, seconds, strict=True):
        path_s.append(own_s + max((path_s[dep] for dep in row), default=0.0))
    return max(sum(seconds) / sum(speeds), max(path_s, default=0.0) / max(speeds))


def greedy_makespan_s(
    deps: Sequence[Sequence[int]],
    seconds: Sequence[float],
    speeds: Sequence[float],
    *,
    longest_first: bool = False,
) -> float:
    """When list scheduling of single tasks is through.

    Of several idle executors the fastest takes the next task; of several ready tasks the first is
    taken, or with `longest_first` the longest (which no real scheduler knows beforehand).

    Example:
        >>> greedy_makespan_s([[], [], []], [1.0, 1.0, 2.0], [1.0, 1.0])
        3.0
        >>> greedy_makespan_s([[], [], []], [1.0, 1.0, 2.0], [1.0, 1.0], longest_first=True)
        2.0
    """
    waits = [len(row) for row in deps]
    users: list[list[int]] = [[] for _ in deps]
    for task, row in enumerate(deps):
        for dep in row:
            users[dep].append(task)

    def entry(task: int) -> tuple[float, int]:
        return (-seconds[task] if longest_first else 0.0, task)

    ready = [entry(task) for task, count in enumerate(waits) if not count]
    idle = [(-speed, index) for index, speed in enumerate(speeds)]
    heapify(ready)
    heapify(idle)
    running: list[tuple[float, int, int]] = []  # end, executor, task
    now = 0.0
    while ready or running:
        while ready and idle:
            _, task = heappop(ready)
            speed, index = heappop(idle)
            heappush(running, (now + seconds[task] / -speed, index, task))
        now, index, task = heappop(running)
        heappush(idle, (-speeds[index], index))
        for user in users[task]:
            waits[user] -= 1
            if not waits[user]:
                heappush(ready, entry(user))
    return now
