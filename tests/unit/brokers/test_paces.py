"""An executor that is much slower than the others of its node, and what it is given."""

import pytest

from dagsched.brokers import paces
from dagsched.brokers.state import Executor
from dagsched.ids import ProcessId, RunNo
from tests.unit.brokers.test_core import Node, bundle_positions, bundles_of

TASK_S = 0.02


def with_a_slow_one(task_count: int) -> Node:
    """Executors 3 and 4, of which 4 is ten times slower, as was measured."""
    node = Node(executors=(3, 4))
    node.core.executors[ProcessId(4)] = slow = node.core.executors[ProcessId(4)]
    slow.call_count, slow.expected_s, slow.took_s = 10.0, 10 * TASK_S, 100 * TASK_S
    node.place([[] for _ in range(task_count)], seconds=TASK_S)
    return node


def test_calls_that_take_longer_than_elsewhere_are_believed_when_there_are_some():
    node = Node(executors=(3,))
    node.place([[]], seconds=0.01)
    run = node.core.runs[RunNo(1)]
    executor = Executor(ProcessId(3))
    slowness = []
    for _ in range(10):
        paces.note(executor, run, [(0, 1, 0.08)])
        slowness.append(paces.slowness(executor))
    assert slowness == [1.0] * (paces.CALLS_MIN - 1) + [pytest.approx(8.0)] * 3


def test_a_small_difference_is_chance_and_what_was_long_ago_counts_little():
    node = Node(executors=(3,))
    node.place([[]], seconds=0.01)
    run = node.core.runs[RunNo(1)]
    executor = Executor(ProcessId(3))
    paces.note(executor, run, [(0, 20, 20 * 0.03)])
    assert paces.slowness(executor) == 1.0
    paces.note(executor, run, [(0, 40, 40 * 0.3)])
    assert paces.slowness(executor) > 10
    for _ in range(10):
        paces.note(executor, run, [(0, 40, 40 * 0.01)])
    assert paces.slowness(executor) == 1.0


def test_a_slow_executor_gets_nothing_that_the_others_do_before_it():
    node = with_a_slow_one(3)
    sent = bundles_of(node.turn())
    assert {executor for executor, _ in sent} == {3}


def test_a_slow_executor_has_its_part_of_what_would_keep_the_others_longer():
    node = with_a_slow_one(40)
    node.core.config = node.core.config.__class__(bundle_s=TASK_S)
    sent = bundles_of(node.turn())
    assert [executor for executor, _ in sent].count(4) == 1


def test_nothing_waits_longer_than_the_slow_one_takes():
    node = with_a_slow_one(2)
    assert [executor for executor, _ in bundles_of(node.turn())] == [3]
    node.now = node.core.next_timer()
    while node.now < 10 * TASK_S - 1e-9:
        node.core.handle_timer(node.now)
        assert bundles_of(node.turn()) == []
        node.now = node.core.next_timer()
    assert node.now == pytest.approx(10 * TASK_S)
    node.core.handle_timer(node.now)
    [(executor, parcel)] = bundles_of(node.turn())
    assert (executor, bundle_positions(parcel)) == (4, [1])
