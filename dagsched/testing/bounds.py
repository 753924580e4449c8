"""What a schedule can be measured against: least makespans, and schedules without any cost.

No scheduler ends earlier than `least_makespan_s`. `greedy_makespan_s` is what one reaches that
hands out single tasks at no cost, never knows how long one will take, and leaves nobody idle while
a task is ready (Graham, Bounds on multiprocessing timing anomalies, 1969): where the longest task
comes last, more can't be promised.
"""

from collections.abc import Sequence
from heapq import heapify, heappop, heappush


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
