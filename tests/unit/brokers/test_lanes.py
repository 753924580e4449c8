"""Lanes of gangs in two real executor processes that hand values over to each other."""

import operator
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from dagsched import delayed
from dagsched.brokers import lanes
from dagsched.brokers.handover import MESSAGE_BYTES_MAX
from dagsched.brokers.status import AWAITING_POSITION, IDLE_POSITION, POSITION, STOP
from dagsched.config import Config
from dagsched.protocol.messages import TRACE_GAP
from tests.unit.brokers.executor_harness import PairHarness, Result, Task

PROMPT_S = 10.0
"""Well before a lane gives up by itself, in these tests."""


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes wait for longer than any machine may need: executors are forked from here."""
    monkeypatch.setattr(lanes, "LONG_LANE_NS", 30_000_000_000)


@pytest.fixture
def pair() -> Iterator[PairHarness]:
    with PairHarness() as pair:
        yield pair


def mixed(*values: int) -> int:
    return sum((k + 1) * value for k, value in enumerate(values)) % 1_000_003 + 1


def constant(value: Any) -> Any:
    return value


def appended(own: Any, *others: list[int]) -> list[int]:
    """Changes all that it gets, in place."""
    for other in others:
        other.append(-1)
    return [own, sum(map(sum, others))]


def array_of(*others: np.ndarray) -> np.ndarray:
    total = np.arange(300.0)
    for other in others:
        total += other
        other[:] = -1.0
    return total


def blob_of(*others: bytes) -> bytes:
    return bytes(sum(other[0] for other in others) % 251 + 1 for _ in range(3_000))


def sleeping(seconds: float, *others: Any) -> float:
    time.sleep(seconds)
    return seconds


def a_lock(*others: Any) -> Any:
    return threading.Lock()


def raising(*others: Any) -> None:
    raise ValueError("as asked")


def returning_graph(*others: Any) -> Any:
    return delayed(constant)(7)


class OnlyOnce:
    """Can be pickled, and not unpickled."""

    def __reduce__(self) -> Any:
        return raising, ()


def only_once(*others: Any) -> OnlyOnce:
    return OnlyOnce()


class Deadly:
    """Ends the process that pickles it."""

    def __reduce__(self) -> Any:
        os._exit(3)


def deadly(*others: Any) -> Deadly:
    return Deadly()


def woven(function: Callable[..., Any], width: int, levels: int, seed: int) -> dict[int, Task]:
    """Levels of tasks that need some of the level before."""
    rng = random.Random(seed)
    tasks: dict[int, Task] = {}
    for level in range(levels):
        for column in range(width):
            deps = sorted(rng.sample(range(width), rng.randint(1, 3))) if level else []
            position = level * width + column
            tasks[position] = Task(function, None, [(level - 1) * width + d for d in deps])
    return tasks


def interlocked() -> dict[int, Task]:
    """Three levels of four tasks, each of which needs the whole level before."""
    return {
        position: Task(mixed, None, range(position // 4 * 4 - 4, position // 4 * 4))
        if position >= 4
        else Task(constant, (position,))
        for position in range(12)
    }


def columns(width: int, levels: int, share: int) -> list[list[int]]:
    """Two lanes: the first has so many columns of each level."""
    return [
        [level * width + column for level in range(levels) for column in part]
        for part in (range(share), range(share, width))
    ]


def serial(tasks: dict[int, Task]) -> dict[int, Any]:
    """Each task with copies of its own."""
    import copy

    values: dict[int, Any] = {}
    for position, task in sorted(tasks.items()):
        inputs = [copy.deepcopy(values[dep]) for dep in task.deps]
        args = task.entry if isinstance(task.entry, tuple) else ()
        values[position] = task.function(*args, *inputs)
    return values


def done_of(result: Result) -> list[int]:
    return [position for position in result.done if position != TRACE_GAP]


def told(results: list[Result]) -> dict[int, Any]:
    return {p: value for result in results for p, value in result.values.items()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [1, 3])
def test_numbers_are_those_of_one_process(pair: PairHarness, seed: int, share: int) -> None:
    tasks = woven(mixed, 6, 30, seed)
    parts = columns(6, 30, share)
    last = list(range(6 * 29, 6 * 30))
    results = pair.run(tasks, parts, last)
    assert told(results) == {p: serial(tasks)[p] for p in last}
    assert [done_of(result) for result in results] == parts
    for result in results:
        assert (result.message.deferred, result.message.failures) == ([], [])


@pytest.mark.parametrize("function", [appended, array_of, blob_of])
def test_values_that_are_changed_in_place_are_nobody_elses(
    pair: PairHarness, function: Callable[..., Any]
) -> None:
    tasks = woven(function, 4, 12, 5)
    if function is appended:
        for position, task in tasks.items():
            task.entry = (
                [
                    [position, *[None] * len(task.deps)],
                    [(place + 1, place) for place in range(len(task.deps))],
                ]
                if task.deps
                else (position,)
            )
    expected = serial_appended(tasks) if function is appended else serial(tasks)
    last = list(range(44, 48))
    values = told(pair.run(tasks, columns(4, 12, 2), last))
    for position in last:
        assert np.array_equal(values[position], expected[position])


def serial_appended(tasks: dict[int, Task]) -> dict[int, Any]:
    values: dict[int, Any] = {}
    for position, task in sorted(tasks.items()):
        values[position] = appended(position, *[list(values[dep]) for dep in task.deps])
    return values


def test_one_item_of_a_tuple_of_another_lane(pair: PairHarness) -> None:
    tasks = {
        0: Task(constant, ((1, [2, 3]),)),
        1: Task(constant, (5,)),
        2: Task(operator.getitem, [[None, 0], [(0, 0)]], [0]),
        3: Task(operator.getitem, [[None, 1], [(0, 0)]], [0]),
        4: Task(constant, None, [1]),
    }
    results = pair.run(tasks, [[0, 4], [1, 2, 3]], [2, 3, 4])
    assert told(results) == {2: 1, 3: [2, 3], 4: 5}


def test_gang_after_gang(pair: PairHarness) -> None:
    """What is sent early is kept for its own gang, and what is late is of no other."""
    for seed in range(20):
        tasks = woven(mixed, 4, 5, seed)
        results = pair.run(tasks, columns(4, 5, 2), [16, 17, 18, 19])
        assert told(results) == {p: serial(tasks)[p] for p in range(16, 20)}


def test_two_gangs_of_which_one_executor_hears_late(pair: PairHarness) -> None:
    first, second = woven(mixed, 4, 4, 1), woven(mixed, 4, 4, 2)
    # Nothing of the first level is awaited, so the first executor is ahead with both.
    for tasks in (first, second):
        for position in range(16):
            lane = position % 4 // 2
            tasks[position].deps = [d for d in tasks[position].deps if lane or d % 4 < 2]
            tasks[position].entry = None if tasks[position].deps else (position,)
    del first
    gangs = [pair.parcels(tasks, columns(4, 4, 2), [14, 15]) for tasks in (second, second)]
    for parcels in gangs:
        pair.executors[0].send(parcels[0])
    for _ in gangs:
        assert len(done_of(pair.executors[0].result())) == 8
    for parcels in gangs:
        pair.executors[1].send(parcels[1])
    for _ in gangs:
        values = pair.executors[1].result().values
        assert values == {p: serial(second)[p] for p in (14, 15)}


def test_times_have_gaps_and_no_waiting(pair: PairHarness) -> None:
    tasks = {
        0: Task(sleeping, (0.3,)),
        1: Task(constant, (1,)),
        2: Task(sleeping, [[0.01, None], [(1, 0)]], [0]),  # of the other lane
        3: Task(sleeping, [[0.02, None], [(1, 0)]], [0]),
    }
    slow, quick = pair.run(tasks, [[0, 3], [1, 2]], [2, 3])
    assert quick.done == [1, TRACE_GAP, 2]
    assert len(quick.stamps) == 4
    assert quick.stamps == sorted(quick.stamps)
    assert quick.stamps[2] - quick.stamps[1] > 0.2e9  # the gap is what it waited
    spent = {index: (calls, seconds) for index, calls, seconds in quick.message.seconds}
    assert sum(calls for calls, _ in spent.values()) == 2
    assert 0.01 <= sum(seconds for _, seconds in spent.values()) < 0.25
    assert slow.done == [0, TRACE_GAP, 3]
    assert sum(seconds for _, _, seconds in slow.message.seconds) >= 0.32


def test_waiting_before_the_first_task_is_no_time_of_it(pair: PairHarness) -> None:
    tasks = {0: Task(sleeping, (0.3,)), 1: Task(constant, None, [0]), 2: Task(constant, None, [0])}
    _, waited = pair.run(tasks, [[0, 1], [2]], [1, 2])
    assert waited.done == [2]
    ((_, calls, seconds),) = waited.message.seconds
    assert calls == 1
    assert seconds < 0.25
    assert seconds == pytest.approx((waited.stamps[1] - waited.stamps[0]) / 1e9)


class TestBroken:
    """A lane that does not do all that it has, and what becomes of the other one."""

    def both(self, pair: PairHarness, function: Callable[..., Any]) -> tuple[Result, Result]:
        """The second task of the first lane is like that; the other one waits for it."""
        tasks = {
            0: Task(constant, (1,)),
            1: Task(constant, ([2],)),
            2: Task(function, None, [0]),
            3: Task(constant, None, [1]),
            4: Task(mixed, None, [0]),
            5: Task(constant, None, [2]),
        }
        begun_s = time.monotonic()
        first, second = pair.run(tasks, [[0, 2, 4], [1, 3, 5]], [3, 4, 5])
        assert time.monotonic() - begun_s < PROMPT_S
        assert second.message.deferred == [5]
        assert second.values == {3: [2]}
        assert second.message.failures == []
        return first, second

    def test_a_task_that_raises(self, pair: PairHarness) -> None:
        first, _ = self.both(pair, raising)
        assert (first.failure.position, first.failure.kind) == (2, "raised")
        assert first.failure.type_name == "ValueError"

    def test_a_value_that_can_not_be_pickled(self, pair: PairHarness) -> None:
        first, _ = self.both(pair, a_lock)
        assert (first.failure.position, first.failure.kind) == (2, "result")
        assert done_of(first) == [0, 4] or done_of(first) == [0]

    def test_a_task_that_returns_a_graph(self, pair: PairHarness) -> None:
        first, _ = self.both(pair, returning_graph)
        assert [position for position, _ in first.message.expanded] == [2]
        assert len(first.expanded[0]) > 1

    @pytest.mark.parametrize("kind", [bytes, list, np.ones])
    def test_a_value_too_large_to_be_handed_over_is_told(
        self, pair: PairHarness, kind: Callable[[Any], Any]
    ) -> None:
        def large(_: Any) -> Any:
            return kind(MESSAGE_BYTES_MAX) if kind is not list else ["x" * 70] * 2_000 + [0]

        def large_list(_: Any) -> Any:
            return list(range(MESSAGE_BYTES_MAX))

        first, _ = self.both(pair, large_list if kind is list else large)
        assert len(first.values[2]) == MESSAGE_BYTES_MAX
        [info] = [info for info in first.message.objects if info.first == 2]
        assert info.location is not None
        assert set(done_of(first)) >= {0, 2}

    def test_a_value_that_can_not_be_unpickled(self, pair: PairHarness) -> None:
        first, second = self.both(pair, only_once)
        # Whoever is to get it as an object finds out, and says so; so does the broker that is told
        # of it, if the other lane was broken off before it could be handed over.
        assert isinstance(first.values.get(2, ValueError()), ValueError)
        assert done_of(second) == [1, 3]
        assert first.message.failures == []
        assert pair.run(woven(mixed, 4, 3, 1), columns(4, 3, 2), [8])[0].values

    def test_all_that_others_may_need_is_told(self, pair: PairHarness) -> None:
        """Both sides tell a value that one of them has only by handing over."""
        tasks = {
            0: Task(constant, ([1],)),
            1: Task(constant, (2,)),
            2: Task(mixed, None, [1]),
            3: Task(len, None, [0]),
            4: Task(raising, None, [2]),
            5: Task(mixed, [[None, None], [(0, 0), (1, 1)]], [3, 4]),
            6: Task(constant, None, [0]),
        }
        first, second = pair.run(tasks, [[0, 2, 4], [1, 3, 6, 5]], [5, 6])
        assert first.failure.position == 4
        assert first.values == {0: [1]}
        assert second.values[1] == 2  # was handed over
        assert second.values[3] == 1  # 5 needs it, which did not run
        assert second.message.deferred == [5]

    def test_no_room_for_what_has_come(self) -> None:
        with PairHarness(Config(memory_limit_bytes=4_096)) as pair:
            tasks = {
                0: Task(constant, (list(range(8_000)),)),
                1: Task(constant, (1,)),
                2: Task(len, None, [0]),
                3: Task(sum, None, [0]),
            }
            first, second = pair.run(tasks, [[0], [1, 2, 3]], [2, 3])
            assert done_of(second) == [1]
            assert second.message.deferred == [2, 3]
            assert second.message.failures == []
            # If it hears of it in time it tells the value, for which it has no room either.
            assert done_of(first) == [0] or first.failure.kind == "memory"
            assert pair.run(woven(mixed, 4, 3, 1), columns(4, 3, 2), [8])[0].values

    def test_stopped_while_it_waits(self, pair: PairHarness) -> None:
        _, parcel = pair.parcels(interlocked(), columns(4, 3, 2), range(8, 12))
        executor = pair.executors[1]
        begun_s = time.monotonic()
        executor.send(parcel)
        while executor.status[POSITION] != AWAITING_POSITION:
            assert time.monotonic() - begun_s < PROMPT_S
        executor.status[STOP] = parcel.message.bundle
        result = executor.result()
        assert time.monotonic() - begun_s < PROMPT_S
        assert done_of(result) == [2, 3]
        assert result.message.deferred == [6, 7, 10, 11]
        executor.wait_until_idle()
        assert executor.status[POSITION] == IDLE_POSITION

    def test_the_other_never_begins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        long_s = 0.3
        monkeypatch.setattr(lanes, "LONG_LANE_NS", round(long_s * 1e9))
        with PairHarness() as pair:
            parcels = pair.parcels(interlocked(), columns(4, 3, 2), range(8, 12))
            begun_s = time.monotonic()
            pair.executors[1].send(parcels[1])
            result = pair.executors[1].result()
            assert long_s <= time.monotonic() - begun_s < PROMPT_S
            assert result.message.deferred == [6, 7, 10, 11]
            # All that others may need is told, and nothing else.
            assert result.values == {2: 2, 3: 3}
            pair.executors[0].send(parcels[0])
            other = pair.executors[0].result()
            # What had been sent before is as good as ever.
            assert other.message.deferred == [8, 9]
            expected = serial(interlocked())
            assert other.values == {p: expected[p] for p in (0, 1, 4, 5)}

    @pytest.mark.parametrize(
        ("order", "position"), [([0, 1, 2, 4], 1), ([1, 0, 2, 4], IDLE_POSITION)]
    )
    def test_who_ends_the_process_while_it_is_handed_over(
        self, pair: PairHarness, order: list[int], position: int
    ) -> None:
        """One value is that of its task; of several it may be any."""
        tasks = {
            0: Task(constant, (0,)),
            1: Task(deadly, ()),
            2: Task(constant, (2,)),
            3: Task(constant, None, [1]),
            4: Task(constant, None, [2]),
            5: Task(constant, None, [0] if position == IDLE_POSITION else [3]),
        }
        parcels = pair.parcels(tasks, [order, [3, 5]], [4])
        executor = pair.executors[0]
        executor.send(parcels[0])
        with pytest.raises((AssertionError, ConnectionError)):
            executor.result()
        assert executor.status[POSITION] == position


def test_sockets_are_not_inherited_by_programs_that_tasks_start(pair: PairHarness) -> None:
    import subprocess
    import sys

    def descriptors() -> str:
        text = (
            "import os; print(sorted(os.readlink(f'/proc/self/fd/{n}') for n in (3, 4, 5, 6, 7, 8)"
        )
        text += " if os.path.exists(f'/proc/self/fd/{n}')))"
        return subprocess.run(
            [sys.executable, "-c", text],
            capture_output=True,
            text=True,
            check=True,
            close_fds=False,
        ).stdout

    result = pair.executors[0].run({0: Task(descriptors, ())}, exports=[(0, 1)])
    assert "socket" not in result.values[0]
