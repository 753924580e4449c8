"""The smallest task that is worth it: efficiency by grain, and METG(50 %), as Task Bench has them.

Efficiency is the CPU time that the kernels burnt, shared among the executors, as a part of the
run's seconds, from the call of `rundag` on a built graph until the value is back. METG(50 %) is
the grain at which it is a half (Slaughter et al., SC20, section III). Both are told once more with
the CPU time of all our processes in place of the executors' seconds: what others compute on the
machine meanwhile spoils the former, and hardly the latter, in which waiting doesn't count.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from dagsched.bench.graphs import task_bench
from dagsched.bench.measuring import Answer, Spread, family_cpu_s, run_s

if TYPE_CHECKING:
    from dagsched.runenv import RunEnv

WIDTH, STEPS = 8, 1_000
HALF = 0.5
GRAINS_S = tuple(us * 1e-6 for us in (2, 4, 8, 16, 32, 64, 128, 1_000))
LONG_S = 0.001
METG_TARGET_US = 25.0
LONG_TARGET_PERCENT = 95.0


class Point(NamedTuple):
    """One run."""

    grain_s: float
    efficiency: float  # the share of its executors' time that went into kernels
    cpu_share: float | None  # of all our processes' CPU time; needs no idle machine. None: not told


def measure(env: "RunEnv", pattern: str, steps: int, grain_s: float) -> Point:
    """Run a pattern once."""
    made = task_bench(pattern, WIDTH, steps, grain_s)
    before_s = family_cpu_s()
    seconds = run_s(env, made)
    after_s = family_cpu_s()
    executors = sum(len(node.executorids) for node in env.nodes)
    kernels_s = steps * WIDTH * grain_s
    share = None
    if before_s is not None and after_s is not None:
        share = kernels_s / max(after_s - before_s, kernels_s)
    return Point(grain_s, kernels_s / executors / seconds, share)


def crossing(points: Iterable[tuple[float, float]], level: float = HALF) -> float | None:
    """The grain at which efficiency reaches `level`; None: it does so outside of the points.

    Between two points log(1 / efficiency - 1) is taken to be linear in log(grain), which is exact
    where each task costs a constant time t beside its grain g: then it is log(t) - log(g).

    >>> round(crossing([(g, g / (g + 12.0)) for g in (1, 4, 16, 64)]), 6)
    12.0
    """

    def over(share: float) -> float:
        return math.log(1 / min(max(share, 1e-9), 1 - 1e-9) - 1)

    ranked = sorted(points)
    if not ranked or ranked[0][1] >= level:
        return None
    for (grain, share), (next_grain, next_share) in pairwise(ranked):
        if next_share >= level:
            part = (over(level) - over(share)) / (over(next_share) - over(share))
            return grain * math.exp(part * math.log(next_grain / grain))
    return None


def sweep(
    env: "RunEnv", pattern: str, rounds: int, grains_s: Sequence[float], steps: int
) -> list[list[Point]]:
    """For each round a run with each grain."""
    measure(env, pattern, steps, grains_s[0])  # warms up
    return [[measure(env, pattern, steps, grain) for grain in grains_s] for _ in range(rounds)]


def metg_answer(pattern: str, rounds: Sequence[Sequence[Point]]) -> Answer:
    """METG(50 %) of a sweep; where a round doesn't cross, the nearest grain measured counts."""
    times = [[(point.grain_s, point.efficiency) for point in points] for points in rounds]
    shares = [
        [(point.grain_s, share) for point in points if (share := point.cpu_share) is not None]
        for points in rounds
    ]
    beyond = [points for points in times if crossing(points) is None]
    below = sum(min(points)[1] >= HALF for points in beyond)
    note = ""
    if beyond:
        note = f"{len(beyond)} of {len(rounds)} rounds beyond the grains measured"
    bound = ""
    if 2 * below > len(rounds):
        bound = "<"
    elif 2 * (len(beyond) - below) > len(rounds):
        bound = ">"
    return Answer(
        f"METG(50 %), {pattern}",
        Spread.of(map(_metg_us, times)),
        "us",
        METG_TARGET_US,
        **_beside("us", [_metg_us(points) for points in shares if points]),
        note=note,
        bound=bound,
    )


def long_answer(pattern: str, rounds: Sequence[Sequence[Point]]) -> Answer:
    """Efficiency of tasks of a millisecond, which the sweep has among its grains."""
    long = [point for points in rounds for point in points if point.grain_s == LONG_S]
    return Answer(
        f"efficiency at 1 ms, {pattern}",
        Spread.of(100 * point.efficiency for point in long),
        "%",
        LONG_TARGET_PERCENT,
        at_least=True,
        **_beside("%", [100 * share for p in long if (share := p.cpu_share) is not None]),
    )


class _Beside(TypedDict, total=False):
    beside: str
    beside_value: Spread


def _beside(unit: str, values: Sequence[float]) -> _Beside:
    """What is told of CPU time, if the kernel tells of it."""
    if not values:
        return {}
    return {"beside": f"by CPU time, {unit}", "beside_value": Spread.of(values)}


def _metg_us(points: Sequence[tuple[float, float]]) -> float:
    at_s = crossing(points)
    if at_s is None:
        first, last = min(points), max(points)
        at_s = first[0] if first[1] >= HALF else last[0]
    return at_s * 1e6
