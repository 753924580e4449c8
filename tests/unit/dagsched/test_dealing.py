"""Long tasks, each a subtree of its own: when they are cut so, in which order, who gets them."""

import numpy as np
import pytest

from dagsched.config import Config
from dagsched.ids import ProcessId, SubtreeNo
from dagsched.master.dealing import Turn, dealt_order, next_deal
from dagsched.master.events import TaskExplained
from dagsched.master.explaining import words
from dagsched.master.placement import Candidate
from dagsched.partition import cut_graph
from dagsched.partition.arrays import edges_of
from dagsched.partition.singles import dealing_order, is_dealt
from dagsched.plan import ClusterShape, RunPlan
from dagsched.protocol.messages import AskHoldings, PlaceSubtree, Progress
from tests.unit.dagsched.test_master_core import Driver, plan_of, ready

MB = 1_000_000


def csr(*rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    indptr = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return indptr, np.array([dep for row in rows for dep in row], np.int32)


def candidate(number: int, weight_s: float, **bytes_by_broker: float) -> Candidate:
    places = {ProcessId(int(name[1:])): size for name, size in bytes_by_broker.items()}
    return Candidate(SubtreeNo(number), weight_s, places)


# --- the cut --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "task_s", "critical_s", "executors", "is_so"),
    [
        (1_000, 1.0, 1.0, 4, True),
        (1_000, 0.001, 0.001, 4, False),  # a decision costs more than it can win
        (1_000, 0.1, 0.1, 400, False),  # 4,000 decisions a second
        (1_000, 0.1, 10.0, 400, True),  # but not where they wait for each other
    ],
)
def test_tasks_are_dealt_if_the_master_has_time_to_decide_on_each(
    count: int, task_s: float, critical_s: float, executors: int, is_so: bool
):
    assert is_dealt(count, count * task_s, critical_s, executors) is is_so


def test_long_tasks_are_subtrees_of_their_own_and_short_ones_are_not():
    indptr, deps = csr(*([] for _ in range(100)))
    for task_s, subtrees in ((1.0, 100), (0.001, 8)):
        cut = cut_graph(indptr, deps, np.full(100, task_s), ClusterShape(2, 4), Config())
        assert len(cut.subtree_starts) - 1 == subtrees
        assert not cut.interlocked
    one = cut_graph(indptr, deps, np.full(100, 1.0), ClusterShape(1, 4), Config())
    assert len(one.subtree_starts) - 1 == 1


def test_what_is_far_from_the_end_comes_first_where_that_pays():
    # Six tasks alone, then a chain of three: depth first the chain would be begun last.
    edges = edges_of(*csr([], [], [], [], [], [], [], [6], [7]))
    order = dealing_order(edges, np.ones(9), 3, 0.0)
    assert order.tolist() == [6, 7, 0, 1, 2, 3, 4, 5, 8]


def test_depth_first_order_stays_where_nothing_is_won():
    edges = edges_of(*csr([], [0], [], [2], [], [4], [], [6]))  # four chains on two executors
    assert dealing_order(edges, np.ones(8), 2, 0.0).tolist() == list(range(8))


# --- the choice -----------------------------------------------------------------------------------


def deal(free: list[int], *candidates: Candidate, waited_s: float = 0.0) -> tuple[int, int]:
    turns = [Turn(candidate, waited_s) for candidate in candidates]
    return next_deal(turns, {ProcessId(broker): 1 for broker in free})


def test_the_first_goes_where_most_of_its_bytes_lie_if_that_is_free():
    first = candidate(0, 1.0, b2=MB, b5=2 * MB, b7=5 * MB)
    assert deal([2, 5], first) == (0, 5)
    assert deal([9], first) == (0, 9)


def test_one_whose_inputs_are_there_overtakes_one_that_would_wait_for_its_own():
    slow = candidate(0, 0.1, b5=100 * MB)  # 0.1 s to bring in
    near = candidate(1, 0.1, b2=100 * MB)
    assert deal([2], slow, near) == (1, 2)
    assert deal([2], candidate(0, 10.0, b5=100 * MB), near) == (0, 2)
    assert deal([2], slow, candidate(1, 0.1, b5=200 * MB)) == (0, 2)


def test_but_not_for_longer_than_it_takes_to_bring_them():
    slow = candidate(0, 0.1, b5=100 * MB)
    near = candidate(1, 0.1, b2=100 * MB)
    assert deal([2], slow, near, waited_s=0.09) == (1, 2)
    assert deal([2], slow, near, waited_s=0.11) == (0, 2)


# --- the master -----------------------------------------------------------------------------------


def singles(*rows: list[int], seconds: float = 1.0) -> RunPlan:
    count = len(rows)
    return plan_of(rows, range(count + 1), [count - 1], seconds=seconds)


def dealing(*rows: list[int]) -> Driver:
    driver = ready({2: 2, 5: 1})
    driver.submit(1, singles(*rows))
    return driver


def test_each_executor_gets_one_and_the_next_when_it_has_ended():
    driver = dealing([], [], [], [], [], [3, 4])
    assert driver.placed() == {2: [0, 1], 5: [2]}
    driver.done(5, 1, 2)
    assert driver.placed() == {5: [3]}
    driver.done(5, 1, 3, exports=[3], sizes=[9])
    assert driver.placed() == {5: [4]}
    driver.done(2, 1, 0)
    assert driver.placed() == {}  # what is left waits for task 4, which hasn't ended
    driver.done(5, 1, 4, exports=[4], sizes=[9])
    assert driver.placed() == {5: [5]}  # where its inputs are, not where somebody waited for long


def test_those_that_were_idle_are_not_forgotten():
    driver = dealing([], [0], [0], [0])
    assert driver.placed() == {2: [0]}
    driver.done(2, 1, 0, exports=[0], sizes=[9])
    assert driver.placed() == {2: [1, 2], 5: [3]}


def test_what_becomes_ready_late_keeps_its_turn():
    driver = dealing([], [], [], [0], [], [], [3, 4, 5])
    assert driver.placed() == {2: [0, 1], 5: [2]}
    driver.done(2, 1, 0, exports=[0], sizes=[9])
    assert driver.placed() == {2: [3]}


def test_a_node_that_is_to_leave_gets_nothing_though_it_is_idle():
    driver = dealing([], [0], [0], [0])
    assert driver.placed() == {2: [0]}
    driver.core.set_nodes(driver.wanted[:1], driver.now)
    driver.take()
    driver.done(2, 1, 0, exports=[0], sizes=[9])
    assert driver.placed() == {2: [1, 2]}


def test_short_tasks_are_queued_ahead_as_ever():
    driver = ready({2: 2, 5: 1})
    driver.submit(1, singles([], [], [], [], [], [3, 4], seconds=0.001))
    assert sum(map(len, driver.placed().values())) == 6


def test_after_a_loss_nothing_that_was_placed_can_block_what_it_waits_for():
    driver = dealing([], [], [0, 1], [0, 1], [0, 1], [2, 3, 4])
    driver.done(2, 1, 0, exports=[0], sizes=[9])
    driver.done(2, 1, 1, exports=[1], sizes=[9])
    assert driver.placed() == {2: [2, 3], 5: [4]}
    driver.core.peer_lost(2, "gone", driver.now)
    driver.take()
    # All that node 5 can run waits for what was lost: it must get that beside what it has.
    driver.tell(5, 1, 1, lacks=[0, 1], works=[(4, 1, [4])])
    placed = [p.message for p in driver.sent(5, PlaceSubtree)]
    assert {message.lo for message in placed} >= {0, 1}


def test_it_is_told_why_a_task_waits():
    driver = dealing([], [], [], [], [], [3])

    def words_for(position: int) -> str:
        driver.core.explain(1, 1, position, driver.now)
        driver.take()
        (event,) = driver.events(TaskExplained)
        return words(event.found, "task {}".format)

    assert words_for(4) == (
        "task 4 is not placed yet: it is dealt to the first executor that gets free; 1 go before it"
    )
    assert "is not placed yet: its subtree 5 needs values of" in words_for(5)


# --- runs that turn out to be long ----------------------------------------------------------------


def begun(*means_s: float, tasks: int = 24) -> Driver:
    """A run of unknown functions on nodes 2 and 5; 2 has told how long some calls took."""
    driver = ready({2: 1, 5: 1})
    driver.submit(1, plan_of([[] for _ in range(tasks)], [0, tasks // 2, tasks], range(tasks)))
    assert driver.placed() == {2: [0], 5: [1]}
    driver.now = 1.0
    for count, mean_s in enumerate(means_s, 1):
        driver.receive(2, Progress(1, count, 0, False, [(0, 1, mean_s)]))
    driver.now = 1.1
    driver.core.handle_timer(driver.now)
    driver.take()
    return driver


def test_what_is_left_of_a_run_whose_tasks_are_long_is_dealt_one_by_one():
    driver = begun(1.0)
    [asked] = driver.sent(2, AskHoldings)
    assert asked.message.give_back == [1]
    driver.tell(2, 1, 1, has=[0], works=[(0, 1, [1])])
    driver.tell(5, 1, 1, works=[(1, 1, [12])])
    run = driver.core._lives.runs[1]
    assert run.is_dealt
    assert driver.placed() == {}, "both executors have something to do"
    assert len(run.homeless) == 21
    driver.done(2, 1, 0)
    [(broker, [number])] = driver.placed().items()
    assert (broker, run.subtrees[number].positions().tolist()) == (2, [2])


@pytest.mark.parametrize("means_s", [(), (1e-5,)], ids=["nothing is known", "they are short"])
def test_a_run_is_not_dealt_on_a_guess(means_s: tuple[float, ...]):
    assert begun(*means_s).sent(2, AskHoldings) == []


def test_it_is_looked_at_once_for_each_function_that_becomes_known():
    driver = begun(1e-5, 100.0)
    driver.now = 3.0
    driver.receive(2, Progress(1, 3, 0, False, [(0, 1, 100.0)]))
    driver.now = 3.1
    driver.core.handle_timer(driver.now)
    driver.take()
    assert driver.sent(2, AskHoldings) == []


def test_what_is_left_is_dealt_from_the_start_of_the_longest_path():
    # Six alone, and a chain of four behind 0, which is there: the chain comes first if others help.
    rows: list[list[int]] = [[], *([] for _ in range(6)), [0], [7], [8], [9]]
    plan = plan_of(rows, [0, 11], range(11))
    needed = np.arange(1, 11, dtype=np.int32)
    assert dealt_order(plan, needed, np.array([1.0]), 1).tolist() == needed.tolist()
    assert dealt_order(plan, needed, np.array([1.0]), 2).tolist()[:3] == [7, 8, 9]


def test_subtrees_that_wait_for_each_other_are_dealt_so_that_each_task_follows_what_it_needs():
    # Rows 0, 1, 2 of one node and 3, 4, 5 of another; each needs both of the row before.
    rows: list[list[int]] = [[], [0, 3], [1, 4], [], [0, 3], [1, 4]]
    plan = plan_of(rows, [0, 3, 6], range(6), interlocked=True)
    order = dealt_order(plan, np.arange(6, dtype=np.int32), np.array([1.0]), 2).tolist()
    assert [sorted(order[at : at + 2]) for at in (0, 2, 4)] == [[0, 3], [1, 4], [2, 5]]
    for few in ([], [4]):
        assert dealt_order(plan, np.array(few, np.int32), np.array([1.0]), 2).tolist() == few
