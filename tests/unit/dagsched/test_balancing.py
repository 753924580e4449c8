"""When work moves between nodes, and how fast nodes are taken to be."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from dagsched.ids import ProcessId
from dagsched.master import balancing
from dagsched.master.paces import CALLS_MAX, SLOWNESS_MAX, Paces
from dagsched.master.state import Node
from dagsched.protocol.messages import AskHoldings, PlaceSubtree, Progress
from tests.unit.dagsched.test_master_core import Driver, alone, plan_of, ready

DIGEST = b"0123456789abcdef"  # of the function that `plan_of` has


def node(broker: int) -> Node:
    return Node(ProcessId(broker), "h", "there", 1, (ProcessId(100), ProcessId(101)), 0.0, None)


# --- paces ----------------------------------------------------------------------------------------


def noted(*measures: tuple[int, float]) -> list[float]:
    """Slowness of nodes 2, 3, .. which have each measured so many calls of so many seconds."""
    paces, nodes = Paces(), [node(2 + index) for index in range(len(measures))]
    for _ in range(2):  # who tells first doesn't know yet that another is faster
        for each, (calls, mean_s) in zip(nodes, measures, strict=True):
            paces.note(each, DIGEST, calls, calls * mean_s)
    return [each.slowness for each in nodes]


def test_a_node_is_as_slow_as_its_calls_beside_those_of_the_best():
    assert noted((20, 0.01), (20, 0.05)) == [1.0, pytest.approx(5.0)]


def test_a_few_calls_or_a_small_difference_say_nothing():
    assert noted((20, 0.01), (3, 0.05)) == [1.0, 1.0]
    assert noted((20, 0.01), (20, 0.014)) == [1.0, 1.0]


def test_slowness_has_a_limit():
    assert noted((20, 0.01), (20, 100.0)) == [1.0, SLOWNESS_MAX]


def test_what_was_long_ago_counts_little():
    paces, fast, slow = Paces(), node(2), node(3)
    paces.note(fast, DIGEST, 50, 0.5)
    paces.note(slow, DIGEST, 50, 5.0)
    assert slow.slowness == pytest.approx(10.0)
    for _ in range(10):
        paces.note(slow, DIGEST, int(CALLS_MAX) + 1, 0.01 * (CALLS_MAX + 1))
    assert slow.slowness == 1.0
    assert slow.speed == 2.0


# --- when work moves ------------------------------------------------------------------------------


def wait(driver: Driver, now: float) -> None:
    driver.now = now
    driver.core.handle_timer(now)
    driver.take()


def one_is_done(tasks: int = 80, task_s: float = 0.01) -> Driver:
    """Nodes 2 and 5 had a subtree each; 5 has ended its own."""
    driver = ready({2: 1, 5: 1})
    driver.core._lives._estimates[DIGEST] = task_s  # type: ignore[index]
    driver.submit(1, alone(tasks, 2))
    assert driver.placed() == {2: [0], 5: [1]}
    wait(driver, 0.5)
    driver.now = 1.0
    driver.done(5, 1, 1)
    return driver


def test_what_a_busy_node_has_not_begun_is_asked_back_for_one_that_stays_idle():
    driver = one_is_done()
    assert driver.sent(2, AskHoldings) == []
    assert driver.core.next_timer() is not None
    wait(driver, 1.0 + balancing.WAIT_S / 2)
    assert driver.sent(2, AskHoldings) == []
    wait(driver, 1.0 + balancing.WAIT_S)
    (asked,) = driver.sent(2, AskHoldings)
    assert asked.message.give_back == [1]
    driver.tell(5, 1, 1, has=range(40, 80))
    driver.tell(2, 1, 1, has=range(10), works=[(0, 1, range(10, 12))])
    positions = {
        broker: sum(
            len(parcel.frames[0]) // 4 or parcel.message.hi - parcel.message.lo
            for parcel in driver.sent(broker, PlaceSubtree)
        )
        for broker in (2, 5)
    }
    assert positions[5] > 0
    assert positions[2] + positions[5] <= 28
    assert driver.core.counters["rebalances"] == 1
    assert driver.core.counters["recoveries"] == 0
    assert driver.core.counters["recomputed_tasks"] == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: one_is_done(tasks=4),
        lambda: one_is_done(task_s=1e-5),
    ],
    ids=["two tasks are begun anyway", "it isn't worth the asking"],
)
def test_little_work_is_not_moved(make: Callable[[], Driver]):
    driver = make()
    wait(driver, 1.5)
    assert driver.sent(2, AskHoldings) == []


def test_a_chain_is_not_moved():
    driver = ready({2: 1, 5: 1})
    driver.submit(1, plan_of([[]] + [[n - 1] for n in range(1, 80)], [0, 80], [79]))
    wait(driver, 2.0)
    driver.core._balance.maybe_idle(2.0)
    wait(driver, 3.0)
    assert driver.sent(2, AskHoldings) == []


def test_a_node_whose_executors_wait_gets_of_what_is_ready_at_another():
    driver = ready({2: 1, 5: 1})
    driver.core._lives._estimates[DIGEST] = 0.01  # type: ignore[index]
    driver.submit(1, alone(80, 2))
    driver.now = 1.0
    driver.receive(5, Progress(1, 3, 1, False))
    wait(driver, 1.1)
    assert driver.sent(2, AskHoldings) == [], "nobody says that he has too much"
    driver.receive(2, Progress(1, 3, 0, True))
    wait(driver, 1.2)
    assert [p.message.give_back for p in driver.sent(2, AskHoldings)] == [[1]]
    assert [p.message.give_back for p in driver.sent(5, AskHoldings)] == [[1]]


def test_it_is_not_asked_again_before_long_if_the_idle_node_got_nothing():
    driver = one_is_done()
    wait(driver, 1.02)
    driver.tell(5, 1, 1, has=range(40, 80))
    driver.tell(2, 1, 1, has=range(1), works=[(0, 1, range(1, 40))])  # all of it has begun
    assert driver.core._lives.runs[1].recovery is None
    wait(driver, 1.1)
    assert driver.sent(2, AskHoldings) == []
    wait(driver, 1.9)
    assert len(driver.sent(2, AskHoldings)) == 1


def test_measures_on_the_way_tell_how_slow_a_node_is():
    driver = ready({2: 1, 5: 1})
    driver.submit(1, alone(80, 8))
    driver.receive(2, Progress(1, 20, 0, True, [(0, 20, 0.2)]))
    driver.receive(5, Progress(1, 20, 0, True, [(0, 20, 2.0)]))
    nodes = driver.core._members.nodes
    assert [nodes[ProcessId(b)].slowness for b in (2, 5)] == [1.0, pytest.approx(10.0)]
    assert np.isclose(nodes[ProcessId(5)].speed, 0.1)


def test_while_no_task_has_ended_it_is_asked_ever_more_rarely():
    driver = ready({2: 1, 5: 1})
    driver.submit(1, plan_of([[] for _ in range(80)], [0, 78, 80], range(80)))  # never measured
    asked_at = []
    for step in range(1, 400):
        driver.receive(5, Progress(1, 0, 1))
        driver.receive(2, Progress(1, 0, 0, True))
        wait(driver, 0.02 * step)
        if driver.sent(2, AskHoldings):
            asked_at.append(driver.now)
            number = driver.sent(2, AskHoldings)[0].message.number
            run = driver.core._lives.runs[1]
            for broker in (2, 5):
                works = [
                    (int(s.number), s.attempt, s.positions().tolist())
                    for s in run.subtrees
                    if s.state.name == "PLACED" and s.home == broker
                ]
                driver.tell(broker, 1, number, works=works)
    assert 5 <= len(asked_at) <= 9
    gaps = np.diff([0.0, *asked_at])
    assert all(later >= 0.9 * before for before, later in pairwise(gaps)), gaps
    assert gaps[-1] >= 2.0
