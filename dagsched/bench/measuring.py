"""Seconds, CPU seconds, medians and answers: what every question of the suite needs.

Responsible for taking figures and for their form, not for what is measured.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from dagsched.errors import DagschedError

if TYPE_CHECKING:
    from dagsched.bench.graphs import Measured
    from dagsched.runenv import RunEnv


class BenchError(DagschedError):
    """A measurement means nothing; the message says why."""


class Spread(NamedTuple):
    """Several measures of the same thing."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Of at least one value.

        >>> Spread.of([3, 1, 10])
        Spread(median=3, least=1, most=10)
        """
        ranked = sorted(values)
        return cls(median(ranked), ranked[0], ranked[-1])

    def scaled(self, factor: float) -> "Spread":
        """The same in another unit."""
        return Spread(*(value * factor for value in self))


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one question."""

    question: str
    measured: Spread
    unit: str  # of `measured`; empty: a ratio
    target: float | None = None  # in the same unit; None: there is none
    at_least: bool = False  # the target is a lower bound
    beside: str = ""  # what was measured in the same run, in words
    beside_value: Spread | None = None  # in the same unit
    note: str = ""
    bound: str = ""  # "<" or ">": what was looked for lies beyond `measured`

    @property
    def ratio(self) -> float | None:
        """To what was measured beside it; above 1: more."""
        if self.bound or self.beside_value is None or not self.beside_value.median:
            return None
        return self.measured.median / self.beside_value.median

    @property
    def is_met(self) -> bool | None:
        """Whether the median keeps the target; None: there is none."""
        if self.target is None:
            return None
        if self.at_least:
            return self.measured.median >= self.target
        return self.measured.median <= self.target


def run_s(env: "RunEnv", made: "Measured") -> float:
    """Seconds from the call of `rundag` on a built graph until the value is back.

    Raises:
        BenchError: the value is wrong.
    """
    from dagsched.submission import rundag

    dag, expected = made
    start = time.perf_counter()
    value = rundag(env, dag, progress=False)
    seconds = time.perf_counter() - start
    check_value(value, expected)
    return seconds


def check_value(value: object, expected: object) -> None:
    """Return if a graph gave what it must.

    Raises:
        BenchError: it didn't.
    """
    if value != expected:
        raise BenchError(f"a graph gave {value!r} instead of {expected!r}")


def loop_s(count: int) -> float:
    """The floor: seconds of as many calls in a plain loop that keeps each result."""
    return _loop_s(count, time.perf_counter)


def loop_cpu_s(count: int) -> float:
    """The same in CPU seconds of this thread."""
    return _loop_s(count, time.thread_time)


def _loop_s(count: int, clock: Callable[[], float]) -> float:
    from dagsched.bench.graphs import noop

    start = clock()
    values = {}
    for number in range(count):
        values[number] = noop(number)
    return clock() - start


def alternated(rounds: int, *measures: Callable[[], float]) -> list[list[float]]:
    """Each measure once a round, in turns which comes first, so that noise hits all alike."""
    taken: list[list[float]] = [[] for _ in measures]
    for number in range(rounds):
        order: Sequence[int] = range(len(measures))
        for index in order if number % 2 else reversed(order):
            taken[index].append(measures[index]())
    return taken


def ratios(values: Sequence[float], references: Sequence[float]) -> Spread:
    """Round by round, how many times the reference."""
    return Spread.of(value / other for value, other in zip(values, references, strict=True))


def thread_cpu_s(pid: int, thread: int) -> float:
    """CPU seconds that a sleeping thread has had, to a nanosecond.

    The kernel books the time of a thread that runs at ticks and switches only, so read it once
    the thread waits.
    """
    text = (Path("/proc") / str(pid) / "task" / str(thread) / "schedstat").read_text()
    return int(text.split()[0]) / 1e9


def process_cpu_s(pid: int) -> float:
    """CPU seconds of all threads that a process has now; 0 if it is gone."""
    total_s = 0.0
    for path in (Path("/proc") / str(pid) / "task").glob("*"):
        try:
            total_s += thread_cpu_s(pid, int(path.name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
    return total_s


def family_cpu_s() -> float | None:
    """CPU seconds of this process and of all that it started and that live; None: not told."""
    import psutil

    if not can_read_cpu():
        return None
    started = psutil.Process().children(recursive=True)
    return time.process_time() + sum(process_cpu_s(process.pid) for process in started)


def can_read_cpu() -> bool:
    """Whether this kernel tells the CPU time of threads to the nanosecond."""
    return Path("/proc/self/schedstat").exists()


def machine() -> dict[str, Any]:
    """On what the figures were taken."""
    from dagsched.info import gather_info

    info = gather_info()
    return {
        "cpu": _cpu_name(),
        "cpus": info["cpus"]["usable"],
        "memory_gb": round(info["memory_bytes"] / 2**30),
        "platform": info["platform"],
        "python": info["python"],
        "dagsched": info["dagsched"],
    }


def machine_line() -> str:
    """The same as a sentence."""
    on = machine()
    return (
        f"{on['cpus']} CPUs ({on['cpu']}), {on['memory_gb']} GiB, {on['platform']}, "
        f"Python {on['python']}, dagsched {on['dagsched']}"
    )


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "not known"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "not known"
