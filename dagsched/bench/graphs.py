"""Graphs that measure, each with the value that it must give, and the functions of their tasks.

Responsible for shapes only. The patterns are those of Task Bench (Slaughter et al., "Task Bench: A
Parameterized Benchmark for Evaluating Parallel Runtime Performance", SC20, section II): a number of
steps, each a row of tasks, which need tasks of the row before.
"""

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from dagsched.delayed import Delayed, delayed

Measured = tuple[Delayed, object]
"""A graph and its value."""

RANDOM_PERIOD = 3
"""The pattern ``random`` has so many different rows of arrows, which take turns."""


def noop(number: int) -> int:
    """Do nothing."""
    return number


def count_all(*values: object) -> int:
    """How many there are."""
    return len(values)


def increment(number: int) -> int:
    """One more."""
    return number + 1


def add(one: int, other: int) -> int:
    """The sum."""
    return one + other


def wide(count: int) -> Measured:
    """Independent calls, and one that takes them all."""
    call = delayed(noop)
    return delayed(count_all)(*[call(number) for number in range(count)]), count


def chain(count: int) -> Measured:
    """Each call needs the one before."""
    call = delayed(increment)
    node: Any = 0
    for _ in range(count):
        node = call(node)
    return node, count


def tree(leaves: int) -> Measured:
    """A binary tree of sums: ``2 * leaves - 1`` tasks; `leaves` is a power of two."""
    leaf, join = delayed(noop), delayed(add)
    level = [leaf(number) for number in range(leaves)]
    while len(level) > 1:
        level = [join(level[at], level[at + 1]) for at in range(0, len(level), 2)]
    return level[0], leaves * (leaves - 1) // 2


def burn(cpu_s: float, *depths: int) -> int:
    """Use so many seconds of this thread's CPU time; returns how deep in the graph this is.

    CPU time, not time: whoever loses its core to the engine's own processes meanwhile still owes
    all of the work.
    """
    clock = time.thread_time
    end_s = clock() + cpu_s
    while clock() < end_s:
        pass
    return max(depths, default=0) + 1


def deepest(*depths: int) -> int:
    """The last row's depth."""
    return max(depths)


def _stencil(step: int, at: int, width: int) -> Sequence[int]:  # noqa: ARG001 - of all patterns
    return range(max(0, at - 1), min(width, at + 2))


def _fft(step: int, at: int, width: int) -> Sequence[int]:
    stride = 1 << (step - 1) % max(1, (width - 1).bit_length())
    return [other for other in (at - stride, at, at + stride) if 0 <= other < width]


def _nearest(step: int, at: int, width: int) -> Sequence[int]:  # noqa: ARG001 - of all patterns
    return range(max(0, at - 2), min(width, at + 3))


def _random(step: int, at: int, width: int) -> Sequence[int]:
    rng = random.Random(step % RANDOM_PERIOD * width + at)
    near = _nearest(step, at, width)
    return [other for other in near if other == at or rng.random() < 0.25]


PATTERNS: dict[str, Callable[[int, int, int], Sequence[int]]] = {
    "stencil": _stencil,
    "fft": _fft,
    "nearest": _nearest,
    "random": _random,
}
"""By name: which tasks of the row before a task needs, by step, place in the row and width.

``stencil`` is Task Bench's stencil_1d; ``nearest`` has radix 5; ``random`` is random_nearest: of
those five oneself always, and each other one with a probability of a quarter.
"""


def task_bench(pattern: str, width: int, steps: int, cpu_s: float) -> Measured:
    """Rows of `width` tasks that each burn `cpu_s`, and one that takes the last row."""
    needs, call = PATTERNS[pattern], delayed(burn)
    row: list[Delayed] = [call(cpu_s) for _ in range(width)]
    for step in range(1, steps):
        row = [call(cpu_s, *[row[x] for x in needs(step, at, width)]) for at in range(width)]
    return delayed(deepest)(*row), steps
