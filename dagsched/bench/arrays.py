"""Large arrays from task to task: what handing them over costs beside making them.

Which executor runs a task is the broker's choice; no option of a task pins it. But a task with a
timeout goes to an idle executor only, the first one, and of tasks that become ready together the
one of higher priority goes first. So in every second step of the chain a task that does nothing
(and gets a reference, not the array) becomes ready with the step, and takes the first executor; the
step goes to the second. Where each step ran is then read from the run's trace.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dagsched.bench.graphs import Measured
from dagsched.bench.measuring import Answer, BenchError, Spread, check_value, ratios, run_s
from dagsched.delayed import Delayed, delayed

if TYPE_CHECKING:
    from dagsched.runenv import RunEnv

STEPS, STEP_MB, CHAIN_TARGET = 20, 100, 1.3
READERS, READ_MB, READ_TARGET = 20, 200, 0.7
TIMEOUT_S = 600.0


def fresh(megabytes: int) -> Any:
    """An array of so many million bytes, all of them ones."""
    import numpy as np

    return np.ones(megabytes * 125_000)


def raised(array: Any) -> Any:
    """A fresh array of the same size."""
    return array + 1.0


def first_value(array: Any, *_: object) -> float:
    """Of an array."""
    return float(array[0])


def total(array: Any) -> float:
    """Of an array."""
    return float(array.sum())


def sum_all(*values: float) -> float:
    """Of numbers."""
    return sum(values)


def take_place(_array: object) -> None:
    """Keep an executor from being idle, for no time at all."""


def alternating_chain(steps: int, megabytes: int) -> tuple[Delayed, list[Delayed], float]:
    """A chain whose steps change executors, where a node has two of them.

    Returns:
        the graph, its steps, and its value.
    """
    step = delayed(raised, timeout=TIMEOUT_S)
    place = delayed(take_place, timeout=TIMEOUT_S, priority=1)
    arrays = [delayed(fresh, timeout=TIMEOUT_S)(megabytes)]
    places: list[Delayed] = []
    for number in range(1, steps + 1):
        if number % 2:
            places.append(place(arrays[-1]))
        arrays.append(step(arrays[-1]))
    return delayed(first_value)(arrays[-1], *places), arrays, 1.0 + steps


def plain_chain(steps: int, megabytes: int) -> Measured:
    """The same chain, whose steps run wherever the broker has them run."""
    array = delayed(fresh)(megabytes)
    for _ in range(steps):
        array = delayed(raised)(array)
    return delayed(first_value)(array), 1.0 + steps


def reading(readers: int, megabytes: int) -> Measured:
    """One array that many tasks read."""
    array = delayed(fresh)(megabytes)
    read = delayed(total)
    expected = float(readers * megabytes * 125_000)
    return delayed(sum_all)(*[read(array) for _ in range(readers)]), expected


def chain_loop_s(steps: int, megabytes: int) -> float:
    """The chain in one process."""
    start = time.perf_counter()
    array = fresh(megabytes)
    for _ in range(steps):
        array = raised(array)
    seconds = time.perf_counter() - start
    check_value(first_value(array), 1.0 + steps)
    return seconds


def reading_loop_s(readers: int, megabytes: int) -> float:
    """The readers one after the other in one process."""
    start = time.perf_counter()
    array = fresh(megabytes)
    value = sum(total(array) for _ in range(readers))
    seconds = time.perf_counter() - start
    check_value(value, float(readers * megabytes * 125_000))
    return seconds


def chain_answer(
    env: "RunEnv", rounds: int, steps: int = STEPS, megabytes: int = STEP_MB
) -> Answer:
    """How many times the seconds of a loop in one process the chain takes.

    Raises:
        BenchError: the chain hardly ever changed its executor, so that nothing was measured.
    """
    from dagsched.submission import submit

    own, loop, changed = [], [], []
    for number in range(rounds + 1):  # the first one warms pages up
        loop.append(chain_loop_s(steps, megabytes))
        dag, arrays, expected = alternating_chain(steps, megabytes)
        start = time.perf_counter()
        run = submit(env, dag)
        value = run.result()
        own.append(time.perf_counter() - start)
        check_value(value, expected)
        trace = run.trace()
        place_of = {key: number for number, key in enumerate(run.graph.keys())}
        where = trace.executor[[place_of[array.key] for array in arrays]]
        changed.append(int((where[1:] != where[:-1]).sum()))
    least = min(changed[1:])
    if 2 * least < steps:
        raise BenchError(f"the chain of {steps} arrays changed its executor only {least} times")
    return Answer(
        f"chain of {steps} x {megabytes} MB",
        ratios(own[1:], loop[1:]),
        "",
        CHAIN_TARGET,
        beside="in-process loop: 1",
        note=f"changed executors in {least} to {max(changed[1:])} of {steps} steps",
    )


def plain_chain_answer(
    env: "RunEnv", rounds: int, steps: int = STEPS, megabytes: int = STEP_MB
) -> Answer:
    """The same of a chain that needn't change executors."""
    measured = _beside(
        env, rounds, lambda: plain_chain(steps, megabytes), lambda: chain_loop_s(steps, megabytes)
    )
    return Answer("the same, as it comes", measured, "", beside="in-process loop: 1")


def reading_answer(
    env: "RunEnv", rounds: int, readers: int = READERS, megabytes: int = READ_MB
) -> Answer:
    """How many times the seconds of a loop in one process the readers take."""
    measured = _beside(
        env, rounds, lambda: reading(readers, megabytes), lambda: reading_loop_s(readers, megabytes)
    )
    return Answer(
        f"{readers} readers of {megabytes} MB", measured, "", READ_TARGET,
        beside="in-process loop: 1",
    )  # fmt: skip


def _beside(
    env: "RunEnv", rounds: int, make: Callable[[], Measured], loop_s: Callable[[], float]
) -> Spread:
    """Seconds of a graph as multiples of a loop's, in turn; the first round warms pages up."""
    own, loop = [], []
    for _ in range(rounds + 1):
        loop.append(loop_s())
        own.append(run_s(env, make()))
    return ratios(own[1:], loop[1:])
