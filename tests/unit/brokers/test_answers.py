"""How a task stands on a node: a known situation in the core, the exact answer out."""

import numpy as np

from dagsched.brokers.answers import INPUTS_MAX, Look, task_answer
from dagsched.brokers.status import AWAITING_POSITION
from dagsched.protocol.asking import AskTask, TaskAnswer, TaskView
from dagsched.protocol.messages import (
    EXPORTED,
    OUTPUT,
    SOLO,
    CancelRun,
    ObjectInfo,
    ObjectsData,
    SetPeers,
    TaskOptions,
)
from tests.unit.brokers.test_core import Node, bundle_positions, bundles_of, inline
from tests.unit.brokers.test_gangs import GangNode


def ask(node: Node, position: int, run: int = 1) -> TaskAnswer:
    """The answer that the broker sends, by way of the core."""
    node.tell(AskTask(7, run, position))
    [parcel] = [p for p in node.turn().to_master if isinstance(p.message, TaskAnswer)]
    assert parcel.message.request == 7
    return parcel.message


def alone(count: int) -> dict[str, object]:
    """Tasks that each are a bundle of their own."""
    return {"flags": [SOLO] * (count - 1) + [SOLO | OUTPUT], "seconds": 1.0}


def test_a_run_that_the_node_does_not_know() -> None:
    answer = ask(Node(), 3, run=9)
    assert (answer.task, answer.running_count) == (TaskView(3, "unknown"), 0)


def test_running_ready_and_not_cut() -> None:
    node = Node()
    node.place([[] for _ in range(40)], **alone(40))
    bundles = bundles_of(node.turn())
    assert [bundle_positions(p) for _, p in bundles] == [[0], [1]]
    node.now = 2.5
    assert ask(node, 1).task == TaskView(1, "running", 4, 2.5, 1)
    ready = ask(node, 3)
    assert ready.task == TaskView(3, "ready", attempt=1, ahead_count=1)
    assert (ready.running_count, ready.input_count, ready.missing_count) == (2, 0, 0)
    uncut = ask(node, 39).task
    assert uncut.state == "uncut"
    assert 0 < uncut.ahead_count < 39


def test_what_the_process_says_counts_before_what_the_core_knows() -> None:
    node = Node((3,))
    node.place([[], [0], [1], [2]])
    [(_, parcel)] = bundles_of(node.turn())
    assert bundle_positions(parcel) == [0, 1, 2, 3]
    node.core.look = lambda _: Look(1, 4.0, False)
    node.now = 4.5
    states = [ask(node, position).task for position in range(4)]
    assert states == [
        TaskView(0, "ended", 3, attempt=1),
        TaskView(1, "running", 3, 0.5, 1),
        TaskView(2, "bundled", 3, 4.5, 1, 1),
        TaskView(3, "bundled", 3, 4.5, 1, 2),
    ]
    node.core.look = lambda _: Look(1, 4.0, True)
    answer = ask(node, 1)
    assert answer.task == TaskView(1, "stopped", 3, 0.5, 1)
    assert (answer.executor_count, answer.running_count, answer.stopped_count) == (1, 0, 1)


def test_the_second_bundle_of_an_executor_is_queued_until_the_first_has_ended() -> None:
    node = Node((3,))
    node.place([[] for _ in range(4000)], seconds=1e-5)
    first, second, *_ = [parcel for _, parcel in bundles_of(node.turn())]
    position = bundle_positions(second)[0]
    assert ask(node, position).task == TaskView(position, "queued", 3, attempt=1)
    node.now = 3.0
    node.done(3, first)
    node.now = 3.25
    assert ask(node, position).task == TaskView(position, "running", 3, 0.25, 1)
    assert ask(node, bundle_positions(first)[-1]).task.state == "ended"


def test_waiting_names_the_missing_inputs_and_the_cause_behind_them() -> None:
    node = Node((3,))
    # 1 needs 0; 2 needs 1; 9 needs 2 .. 8, of which 3 to 8 are alone.
    deps = [[], [0], [1], [], [], [], [], [], [], [2, 3, 4, 5, 6, 7, 8]]
    node.place(deps, **{**alone(10), "seconds": 0.001})
    [(_, parcel)] = bundles_of(node.turn())
    assert bundle_positions(parcel) == [0]
    answer = ask(node, 9)
    assert answer.task.state == "waiting"
    assert (answer.input_count, answer.missing_count) == (7, 7)
    assert len(answer.inputs) == INPUTS_MAX
    assert answer.inputs[0] == TaskView(2, "waiting", attempt=1)
    assert answer.inputs[1].state == "ready"
    assert answer.cause == TaskView(0, "running", 3, 0.0, 1)
    assert answer.depth == 3
    node.done(3, parcel, objects=[inline(0)], frames=[b"0"])
    assert ask(node, 0).task == TaskView(0, "held")
    assert ask(node, 1).missing_count == 0


def test_an_input_of_another_node_is_being_fetched_until_it_comes() -> None:
    node = Node((3,))
    node.place([[2, 3]], lo=0, total=4, imports={2: 5, 3: 5})
    node.turn()
    answer = ask(node, 0)
    assert (answer.input_count, answer.missing_count) == (2, 2)
    assert answer.inputs == [TaskView(2, "fetching", node=5), TaskView(3, "fetching", node=5)]
    assert (answer.cause, answer.depth) == (TaskView(2, "fetching", node=5), 1)
    node.core.receive_peer(5, ObjectsData(1, [ObjectInfo(2, 1, 3)]), [b"abc"], node.now)
    assert ask(node, 0).inputs == [TaskView(3, "fetching", node=5)]
    node.core.receive_master(SetPeers([]), (), node.now)
    node.core.peer_lost(5, node.now)
    assert ask(node, 0).inputs == [TaskView(3, "lacking")]


def test_the_first_open_task_when_none_is_named() -> None:
    node = Node((3,))
    node.place([[5], [0]], lo=0, total=6, imports={5: 4}, flags=[EXPORTED, OUTPUT])
    node.turn()
    answer = ask(node, -1)
    assert answer.task.position == 0
    assert answer.cause == TaskView(5, "fetching", node=4)


def test_a_stopped_run_says_so() -> None:
    node = Node((3,))
    node.place([[], []])
    node.turn()
    node.tell(CancelRun(1, 1.0))
    assert ask(node, 1).task == TaskView(1, "cancelled")


def test_a_retried_task_has_its_attempt() -> None:
    from dagsched.protocol.messages import ExitInfo

    node = Node((3,))
    node.place([[]], options=[TaskOptions(0, crash_limit=5)])
    [(_, parcel)] = bundles_of(node.turn())
    node.core.executor_lost(3, ExitInfo(signal=9), parcel.message.bundle, 0, node.now)
    node.turn()
    assert ask(node, 0).task == TaskView(0, "ready", attempt=2)
    node.hello(3)
    node.turn()
    assert ask(node, 0).task == TaskView(0, "running", 3, 0.0, 2)


def test_answers_change_nothing_and_a_walk_is_bounded() -> None:
    node = Node((3,))
    count = 30_000
    node.place([[] if k == 0 else [k - 1] for k in range(count)], seconds=0.001)
    node.turn()
    before = np.copy(node.core.runs[1].left)
    answer = task_answer(node.core, AskTask(1, 1, count - 1), 0.0)
    assert answer.task.state == "uncut"
    assert answer.cause is not None
    assert answer.depth > 1
    assert (node.core.runs[1].left == before).all()
    node.core.check()


def test_of_a_gang_the_executor_of_the_tasks_own_lane_is_named() -> None:
    node = GangNode()
    first, second = node.gang()
    assert bundle_positions(first[1]) == [1, 0, 4, 5, 8, 9]
    assert bundle_positions(second[1]) == [2, 3, 7, 6, 11, 10]
    at = {3: Look(0, 4.0, False), 4: Look(6, 4.25, False)}
    node.core.look = at.get
    node.now = 4.5
    # In the order in which a lane runs, which is not that of positions.
    assert [ask(node, position).task for position in (1, 0, 4, 7, 6, 11, 10)] == [
        TaskView(1, "ended", 3, attempt=1),
        TaskView(0, "running", 3, 0.5, 1),
        TaskView(4, "bundled", 3, 4.5, 1, 1),
        TaskView(7, "ended", 4, attempt=1),
        TaskView(6, "running", 4, 0.25, 1),
        TaskView(11, "bundled", 4, 4.5, 1, 1),
        TaskView(10, "bundled", 4, 4.5, 1, 2),
    ]
    at[4] = Look(AWAITING_POSITION, 4.25, False)
    assert ask(node, 11).task == TaskView(11, "in_lane", 4, 4.5, 1)


def test_a_lane_that_has_ended_or_is_lost_while_others_go_on() -> None:
    node = GangNode()
    first, _ = node.gang()
    node.whole(first)
    assert ask(node, 9).task == TaskView(9, "ended", attempt=1)
    assert ask(node, 10).task.executor == 4
    other = GangNode()
    other.gang()
    other.lose(3)
    assert ask(other, 9).task == TaskView(9, "ready", attempt=1)
