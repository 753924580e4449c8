"""What a node says of itself while somebody watches, and that nobody else pays for it."""

import os

import numpy as np

from dagsched.brokers.answers import Look
from dagsched.brokers.machine import look_around
from dagsched.brokers.watched import Machine
from dagsched.protocol.messages import AskStats, Doing, EndRun, Stats, TaskTrace
from tests.unit.brokers.test_core import Node, bundles_of, messages


def asked(node, **question):
    node.tell(AskStats(9, **question))
    actions = node.turn()
    [told] = messages(actions.to_master, Stats)
    return told.stats, messages(actions.to_master, TaskTrace)


def test_counts_are_of_all_runs_those_that_are_over_included():
    node = Node()
    for run in (1, 2):
        node.place([[], [0]], run=run)
        [(executor, parcel)] = bundles_of(node.turn())
        node.done(executor, parcel)
        node.turn()
    node.tell(EndRun(1, ()))
    node.turn()
    stats, _ = asked(node, is_watched=True)
    assert sum(executor.task_count for executor in stats.executors) == 4
    assert stats.bundle_count == 2
    # Without anybody who watches it is what the node holds, as ever.
    stats, _ = asked(node)
    assert sum(executor.task_count for executor in stats.executors) == 0


def test_times_of_tasks_are_told_at_once_to_whoever_watches():
    node = Node()
    node.place([[], []], seconds=1.0)
    [one, _] = bundles_of(node.turn())
    node.done(*one)
    assert messages(node.turn().to_master, TaskTrace) == []
    assert asked(node)[1] == []
    assert asked(node, is_watched=True)[1] == [TaskTrace(1, one[0], 1)]
    assert asked(node, is_watched=True)[1] == []


def test_what_executors_do_is_told_with_their_memory():
    node = Node()
    node.place([[], []], seconds=1.0)
    node.turn()
    pids = []

    def look(asked_pids):
        pids.extend(asked_pids)
        return Machine(77, 0.5, 3, 4, {1003: 999})

    node.core.accounts.look_around = look
    node.core.look = lambda executor: Look(0, 2.5, False) if executor == 3 else None
    node.now = 4.0
    stats, _ = asked(node, is_watched=True)
    first, second = stats.executors
    assert (first.doing, first.rss_bytes) == (Doing(1, 0, 1, 2.5), 999)
    assert (second.doing, second.rss_bytes) == (Doing(1, 1, 1, 0.0), 0)
    assert (stats.pid, stats.cpu_load_1m) == (77, 0.5)
    assert (stats.memory_used_bytes, stats.memory_total_bytes) == (3, 4)
    assert pids == [1003, 1004]
    pids.clear()
    asked(node)
    assert pids == []


def test_an_idle_executor_does_nothing():
    stats, _ = asked(Node(), is_watched=True)
    assert [executor.doing for executor in stats.executors] == [None, None]


def test_the_limit_of_shared_memory_is_told():
    assert asked(Node(store_bytes_max=1 << 20), is_watched=True)[0].shared_limit_bytes == 1 << 20


def test_the_machine_is_looked_at():
    machine = look_around([os.getpid(), 1 << 30])
    assert machine.pid == os.getpid()
    assert set(machine.rss_bytes_by_pid) == {os.getpid()}
    assert machine.rss_bytes_by_pid[os.getpid()] > 1 << 20
    assert 0 < machine.memory_used_bytes < machine.memory_total_bytes
    assert np.isfinite(machine.cpu_load_1m)
