"""Graphs for whole clusters that lose parts: many small tasks that note each execution.

Each task appends one line of fixed length to a file, so that a killed process loses none, and the
number of executions so far is the file's size. `Mixed` is a wide layer with a tree above it beside
a stencil; its oracle is a loop.
"""

import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dagsched import delayed
from tests.chaos import harness

LINE_BYTES = 30
_open_files: dict[str, int] = {}


@dataclass(frozen=True)
class Marks:
    """Executions by task, with the executor and the broker that each was on."""

    path: str

    def mark(self, number: int) -> None:
        """In a task: it runs now."""
        fd = _open_files.get(self.path)
        if fd is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            fd = _open_files[self.path] = os.open(self.path, flags, 0o600)
        os.write(fd, b"%9d %9d %9d\n" % (number, os.getpid(), os.getppid()))

    @property
    def count(self) -> int:
        """Executions so far."""
        path = Path(self.path)
        return path.stat().st_size // LINE_BYTES if path.exists() else 0

    def wait_for(self, count: int, timeout_s: float = 60.0) -> None:
        """In the test: until so many executions have begun."""
        harness.until(lambda: self.count >= count, timeout_s, f"{count} executions")

    def lines(self) -> list[tuple[int, int, int]]:
        """Task, executor's process, broker's process; in order."""
        path = Path(self.path)
        text = path.read_text() if path.exists() else ""
        rows = [line.split() for line in text.splitlines()]
        return [(int(task), int(pid), int(broker)) for task, pid, broker in rows]

    def by_task(self) -> dict[int, list[tuple[int, int]]]:
        """Executor's and broker's process of each execution of each task."""
        found: dict[int, list[tuple[int, int]]] = {}
        for task, pid, broker in self.lines():
            found.setdefault(task, []).append((pid, broker))
        return found

    def brokers(self) -> set[int]:
        """Brokers' processes below which something was executed."""
        return {broker for _, _, broker in self.lines()}


def combined(number: int, values: Sequence[int]) -> int:
    """What a task makes of its inputs; depends on their order."""
    result = number * 2_654_435_761 % 1_000_003
    for value in values:
        result = (result * 31 + value) % 1_000_003
    return result


def work(marks: Marks, number: int, micros: int, *values: int) -> int:
    """A task that keeps a CPU busy for so long."""
    marks.mark(number)
    until_ns = time.perf_counter_ns() + micros * 1000
    result = combined(number, values)
    while time.perf_counter_ns() < until_ns:
        pass
    return result


def nap(marks: Marks, number: int, seconds: float, *values: int) -> int:
    """A task that takes its time and no CPU."""
    marks.mark(number)
    time.sleep(seconds)
    return combined(number, values)


def naps(marks: Marks, count: int, seconds: float, first: int = 0) -> list[Any]:
    """Tasks that need nothing of each other."""
    return [delayed(nap)(marks, number, seconds) for number in range(first, first + count)]


def nap_values(count: int, first: int = 0) -> list[int]:
    """What `naps` give."""
    return [combined(number, ()) for number in range(first, first + count)]


@dataclass
class Mixed:
    """A graph, its value, and its edges.

    Args:
        marks: where executions are noted.
        seed: of the durations.
        wide: tasks without inputs, below a tree that takes 8 together.
        columns: of the stencil, each task of which has 3 inputs.
        rows: of the stencil.
        micros_max: a task takes between 0 and so many microseconds.
    """

    marks: Marks
    seed: int = 0
    wide: int = 8_600
    columns: int = 64
    rows: int = 160
    micros_max: int = 200
    inputs: list[tuple[int, ...]] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    number_by_key: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = random.Random(self.seed)
        layer = [self._add(rng, ()) for _ in range(self.wide)]
        while len(layer) > 1:
            layer = [self._add(rng, tuple(layer[low : low + 8])) for low in range(0, len(layer), 8)]
        row = [self._add(rng, ()) for _ in range(self.columns)]
        for _ in range(self.rows - 1):
            row = [
                self._add(rng, tuple(row[max(0, column - 1) : column + 2]))
                for column in range(self.columns)
            ]
        self.outputs = [*layer, *row]

    def _add(self, rng: random.Random, inputs: tuple[int, ...]) -> int:
        self.inputs.append(inputs)
        self.durations.append(rng.randrange(self.micros_max + 1))
        return len(self.inputs) - 1

    @property
    def task_count(self) -> int:
        """All tasks."""
        return len(self.inputs)

    @property
    def serial_s(self) -> float:
        """How long the tasks take one after the other."""
        return sum(self.durations) / 1e6 + 20e-6 * self.task_count

    def dag(self) -> list[Any]:
        """The graph."""
        call = delayed(work)
        made: list[Any] = []
        for number, (inputs, micros) in enumerate(zip(self.inputs, self.durations, strict=True)):
            made.append(call(self.marks, number, micros, *[made[i] for i in inputs]))
        self.number_by_key = {task.key: number for number, task in enumerate(made)}
        return [made[number] for number in self.outputs]

    def value(self) -> list[int]:
        """What it must give, computed one by one."""
        values: list[int] = []
        for number, inputs in enumerate(self.inputs):
            values.append(combined(number, [values[i] for i in inputs]))
        return [values[number] for number in self.outputs]
