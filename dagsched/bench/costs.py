"""What one more task costs, end to end: graphs of calls that do nothing."""

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from dagsched.bench.graphs import Measured, chain, noop, tree, wide
from dagsched.bench.measuring import (
    Answer,
    Spread,
    alternated,
    check_value,
    loop_s,
    ratios,
    run_s,
)

if TYPE_CHECKING:
    from dagsched.runenv import RunEnv


class Case(NamedTuple):
    """A graph of no-ops."""

    name: str
    task_count: int
    make: Callable[[], Measured]
    target_us: float | None


CASES = {
    "wide": Case("wide, 100,000", 100_001, lambda: wide(100_000), 5.0),
    "chain": Case("chain of 10,000", 10_000, lambda: chain(10_000), 3.0),
    "chain-long": Case("chain of 100,000", 100_000, lambda: chain(100_000), None),
    "tree": Case("tree, 65,536 leaves", 131_071, lambda: tree(65_536), 6.0),
}
SHORT = ("wide", "chain", "tree")

POOL_TASKS = 10_000
SMALL_RUN_TASKS = 10
SMALL_RUN_TARGET_MS = 2.0
SMALL_RUNS = 20  # a round, for one is too short to be told from the rest of the machine


def task_cost(env: "RunEnv", key: str, rounds: int) -> Answer:
    """Microseconds a task of one of `CASES`, beside a plain loop of as many calls."""
    case = CASES[key]
    run_s(env, case.make())  # functions are measured, pages are warm
    own, loop = alternated(rounds, lambda: run_s(env, case.make()), lambda: loop_s(case.task_count))
    scale = 1e6 / case.task_count
    return Answer(
        case.name, Spread.of(own).scaled(scale), "us/task", case.target_us,
        beside="plain loop", beside_value=Spread.of(loop).scaled(scale),
    )  # fmt: skip


@contextmanager
def warm_pool() -> Iterator[ProcessPoolExecutor]:
    """A process pool that is up.

    Open it before any environment: it forks, and an environment has threads.
    """
    # A terminal's Ctrl-C is for the caller, who ends them.
    ignored = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(2, initializer=signal.signal, initargs=ignored) as pool:
        list(pool.map(noop, range(100)))
        yield pool


def pool_cost(env: "RunEnv", pool: ProcessPoolExecutor, rounds: int) -> Answer:
    """Beside the nearest peer that needs no installation: the standard library's process pool."""

    def mapped_s() -> float:
        start = time.perf_counter()
        done = sum(1 for _ in pool.map(noop, range(POOL_TASKS)))
        seconds = time.perf_counter() - start
        check_value(done, POOL_TASKS)
        return seconds

    run_s(env, wide(POOL_TASKS))
    own, theirs = alternated(rounds, lambda: run_s(env, wide(POOL_TASKS)), mapped_s)
    scale = 1e6 / POOL_TASKS
    return Answer(
        f"wide, {POOL_TASKS:,}", Spread.of(own).scaled(scale), "us/task",
        beside="process pool", beside_value=Spread.of(theirs).scaled(scale),
    )  # fmt: skip


def small_run(env: "RunEnv", rounds: int) -> Answer:
    """Milliseconds of a run of ten tasks on an environment that is up."""

    def small_s() -> float:
        made = [wide(SMALL_RUN_TASKS - 1) for _ in range(SMALL_RUNS)]
        return Spread.of(run_s(env, each) for each in made).median

    small_s()
    return Answer(
        f"run of {SMALL_RUN_TASKS} tasks, warm",
        Spread.of(small_s() for _ in range(rounds)).scaled(1e3),
        "ms",
        SMALL_RUN_TARGET_MS,
        note=f"each round the median of {SMALL_RUNS} runs",
    )


def nodes_cost(one: "RunEnv", two: "RunEnv", key: str, rounds: int) -> Answer:
    """How many times the seconds of one node the same executors on two nodes take.

    Args:
        one: a node of two executors.
        two: two nodes of one executor.
        key: of `CASES`.
        rounds: of both, turn by turn.
    """
    case = CASES[key]
    for env in (one, two):
        run_s(env, case.make())
    single, double = alternated(
        rounds, lambda: run_s(one, case.make()), lambda: run_s(two, case.make())
    )
    return Answer(
        f"two nodes, {case.name}",
        ratios(double, single),
        "",
        1.1,
        beside="one node: 1",
    )
