"""Explanations of tasks in simulated clusters, against what is known to be so; and the watchdog."""

import pickle
import random
from dataclasses import replace
from functools import partial

import pytest

from dagsched.config import Config
from dagsched.ids import ProcessId, RunNo
from dagsched.master.events import RunHappened, RunStalled, TaskExplained
from dagsched.master.explaining import Explanation, words
from dagsched.plan import ClusterShape
from dagsched.testing.cluster import SimCluster
from dagsched.testing.graphs import Planned, SimGraph, planned
from dagsched.testing.stories import begun, drawn, play

SLOW = pytest.mark.slow


def chain(count: int, seconds: float) -> SimGraph:
    return SimGraph(
        [[] if k == 0 else [k - 1] for k in range(count)], [count - 1], function_s=[seconds]
    )


def halves(seconds: float) -> Planned:
    """A few subtrees: four tasks, and four that need one of the first each; the last needs those.

    They are cut as if they took 40 ms: where they take longer, each is a subtree of its own.
    """
    deps: list[list[int]] = [[], [], [], [], [0], [1], [2], [3], [4, 5, 6, 7]]
    ready = planned(
        SimGraph(deps, [8], function_s=[0.04]), ClusterShape(2, 4), Config(subtrees_a_node=1)
    )
    assert 1 < ready.plan.subtree_count < 9
    return replace(ready, plan=replace(ready.plan, function_pickles=[pickle.dumps(seconds)]))


def name(position: int) -> str:
    return f"t{position}"


def explained(cluster: SimCluster, position: int, run: int = 1) -> Explanation:
    found = cluster.explain(run, position)
    assert found is not None
    return found


def text_of(cluster: SimCluster, position: int) -> str:
    return words(explained(cluster, position), name)


def running(cluster: SimCluster) -> dict[int, tuple[int, int]]:
    """What really runs: position -> node and executor."""
    return {
        position: (node.broker, executor.id)
        for node in cluster.nodes.values()
        for executor in node.executors.values()
        if (position := executor.running()[1]) >= 0
    }


def test_the_task_that_runs_and_the_ones_behind_it() -> None:
    cluster = SimCluster({2: 2})
    run = cluster.submit(chain(5, 2.0))
    cluster.step_until(lambda: 1 in running(cluster))
    cluster.let_pass(0.5)
    task = explained(cluster, 1).task
    assert (task.state, (task.node, task.executor)) == ("running", running(cluster)[1])
    executor = cluster.nodes[2].executors[task.executor]
    assert task.seconds == pytest.approx(cluster.clock.now - executor.running_since_s(), abs=0.01)
    assert task.seconds > 0.4
    found = explained(cluster, 4)
    assert found.task.state in ("waiting", "uncut", "bundled")
    assert explained(cluster, 0).task.state in ("held", "ended")
    cluster.wait(run)
    assert run.state == "done"


def test_what_a_task_waits_for_in_the_end_is_what_runs() -> None:
    """At many moments of many runs: nothing is said to run that doesn't, and causes move."""
    cluster = SimCluster({2: 2, 3: 2}, config=Config(subtrees_a_node=2))
    deps = [[] for _ in range(8)] + [[k, k + 1] for k in range(7)] + [[8, 10, 12], [9, 11, 13]]
    deps.append([15, 16])
    run = cluster.submit(SimGraph(deps, [len(deps) - 1], function_s=[0.3]))
    last = len(deps) - 1
    checked = 0
    while not run.is_over:
        found = cluster.explain(1, last)
        if found is None or found.task.state == "ending":
            break
        truth = running(cluster)
        for one in [found.task, *found.inputs, *([found.cause] if found.cause else [])]:
            if one.state == "running":
                assert truth.get(one.position) == (one.node, one.executor)
                checked += 1
        if found.task.state == "waiting":
            assert found.missing_count or found.cause is not None
        cluster.let_pass(0.05)
    cluster.wait(run)
    assert checked > 5


def test_an_input_on_another_node_is_named_with_its_place() -> None:
    cluster = SimCluster({2: 2, 3: 2}, config=Config(subtrees_a_node=1))
    run = cluster.submit_planned(halves(1.0))
    cluster.step_until(lambda: bool(running(cluster)))
    cluster.let_pass(0.4)
    found = explained(cluster, 8)
    assert found.task.state == "waiting"
    assert found.missing_count == found.input_count == 4
    truth = running(cluster)
    elsewhere = [one for one in found.inputs if one.node != found.task.node]
    assert elsewhere
    for one in found.inputs:
        assert (one.state == "running") == (one.position in truth)
        if one.state == "running":
            assert (one.node, one.executor) == truth[one.position]
    assert "it waits for 4 of 4 inputs: t" in words(found, name)
    cluster.wait(run)


def test_without_nodes_the_text_says_which_are_awaited_or_lost() -> None:
    cluster = SimCluster({2: 1})
    cluster.submit(chain(3, 1.0))
    assert "t0 can't be placed: node 2 has not joined yet (awaited for" in text_of(cluster, 0)
    cluster.step_until(lambda: bool(running(cluster)))
    cluster.kill_node(2)
    cluster.let_pass(0.1)
    assert "node 2 is not there (its process ended)" in text_of(cluster, 0)
    cluster.add_node(4, 1)
    cluster.step_until(lambda: 0 in running(cluster), 10.0)
    assert explained(cluster, 0).task.node == 4


def test_executors_that_die_at_start_are_quoted() -> None:
    cluster = SimCluster({2: 1})
    cluster.step_until(
        lambda: (
            2 in cluster.core._members.nodes
            and bool(cluster.core._members.nodes[ProcessId(2)].pid_by_executor)
        )
    )
    cluster.nodes[2]._start = lambda executor: None  # type: ignore[method-assign]  # it dies at once
    cluster.kill_executor(2, 0)
    cluster.submit(chain(2, 1.0))
    cluster.step_until(lambda: bool(cluster.core._members.nodes[ProcessId(2)].last_end))
    died = "executor 200 was killed by signal 9"
    assert f"no executor is there: {died}" in text_of(cluster, 0)
    cluster.submit(chain(2, 1.0))  # the master knows by now, and places nothing there
    found = explained(cluster, 0, run=2)
    assert f"node 2 has no executor yet ({died})" in words(found, name)


def test_the_last_node_leaves_and_another_comes_ten_seconds_later() -> None:
    cluster = SimCluster({2: 1}, config=Config(no_nodes_grace_s=100.0))
    run = cluster.submit(SimGraph([[] for _ in range(60)], list(range(60)), function_s=[0.1]))
    cluster.step_until(lambda: bool(running(cluster)))
    cluster.remove_node(2)
    cluster.let_pass(5.0)
    texts = [text_of(cluster, position) for position in range(60)]
    left = [text for text in texts if "has ended" not in text]
    assert left
    assert all("which is to leave" in text or "node 2 is leaving" in text for text in left)
    cluster.let_pass(5.0)
    cluster.add_node(3, 1)
    cluster.wait(run)
    assert run.state == "done"


def test_a_subtree_withheld_for_credit() -> None:
    # Sixty tasks in many subtrees on nodes that take few at once.
    cluster = SimCluster({2: 1, 3: 1}, config=Config(subtrees_a_node=20, placed_subtrees_max=1))
    run = cluster.submit(SimGraph([[] for _ in range(80)], list(range(80)), function_s=[0.5]))
    cluster.step_until(lambda: bool(running(cluster)))
    states = {explained(cluster, position).task.state for position in range(80)}
    assert "withheld" in states
    place = next(
        one
        for position in range(80)
        if (one := explained(cluster, position).task).state == "withheld"
    )
    assert place.node in (2, 3)
    assert "is not placed yet: its subtree" in words(Explanation(1, place), name)
    cluster.wait(run)


def test_a_node_that_does_not_answer_is_said_to() -> None:
    cluster = SimCluster({2: 1, 3: 1}, config=Config(lease_s=60.0))
    cluster.submit(SimGraph([[], []], [0, 1], function_s=[50.0]))
    cluster.step_until(lambda: len(running(cluster)) == 2)
    node = running(cluster)[0][0]
    cluster.pause_node(node, 30.0)
    assert f"t0 is on node {node}, which does not answer" in text_of(cluster, 0)


def test_unknown_runs_and_positions_are_answered_with_nothing() -> None:
    cluster = SimCluster({2: 1})
    cluster.submit(chain(2, 0.1))
    assert cluster.explain(99, 0) is None
    assert cluster.explain(1, 2) is None
    assert cluster.explain(1, -1) is None


# --- the watchdog ---------------------------------------------------------------------------------


def stalls(cluster: SimCluster) -> list[RunStalled]:
    return [event for event in cluster.events if isinstance(event, RunStalled)]


def test_long_tasks_are_no_stall() -> None:
    cluster = SimCluster({2: 1}, config=Config(stall_warning_s=5.0))
    run = cluster.submit(chain(2, 40.0))
    cluster.wait(run)
    assert stalls(cluster) == []


def test_a_run_without_nodes_is_warned_of_once() -> None:
    cluster = SimCluster({2: 1}, config=Config(stall_warning_s=5.0, no_nodes_grace_s=500.0))
    run = cluster.submit(chain(2, 1.0))
    cluster.step_until(lambda: bool(running(cluster)))
    cluster.kill_node(2)
    cluster.let_pass(60.0)
    [stall] = stalls(cluster)
    assert stall.time_s - stall.since_s >= 5.0
    assert stall.found is not None
    assert "can't be placed: node 2 is not there (its process ended)" in words(stall.found, name)
    cluster.add_node(3, 1)
    cluster.wait(run)
    assert run.state == "done"
    assert len(stalls(cluster)) == 1


def test_executors_that_were_all_stopped_are_the_cause() -> None:
    cluster = SimCluster({2: 2}, config=Config(stall_warning_s=5.0))
    run = cluster.submit(chain(2, 1.0))
    cluster.step_until(lambda: 0 in running(cluster))
    node = cluster.nodes[2]
    node._executors_stand = True
    cluster.let_pass(20.0)
    [stall] = stalls(cluster)
    assert stall.found is not None
    assert "whose process has been stopped by a signal" in words(stall.found, name)
    node._executors_stand = False
    for action in node._held_by_executors:
        action()
    cluster.wait(run)
    assert run.state == "done"


def test_a_story_is_told_within_its_bound_and_counted_beyond_it() -> None:
    cluster = SimCluster({2: 1, 3: 1}, config=Config(subtrees_a_node=20, story_events_max=5))
    run = cluster.submit(SimGraph([[] for _ in range(80)], list(range(80))))
    cluster.wait(run)
    told = [event for event in cluster.events if isinstance(event, RunHappened)]
    assert [event.kind for event in told].count("cut") == 1
    assert sum(len(event.placements) for event in told) <= 5


# --- while things go wrong ------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, *(pytest.param(n, marks=SLOW) for n in (20, 40))])
def test_questions_at_any_moment_of_any_story_are_answered_and_change_nothing(first: int) -> None:
    """`play` compares all results with the oracle and accounts for every object and message."""
    states: set[str] = set()
    for seed in range(first, first + 20):
        story = drawn(seed)
        cluster = begun(story)
        rng = random.Random(seed)
        end_s = max([1.0, *(fault.end_s for fault in story.faults)])
        asked = [
            (number, rng.randint(1, len(story.graphs)), rng.randrange(0, 40))
            for number in range(100_000, 100_040)
        ]
        for request, run, position in asked:
            cluster.clock.at(rng.uniform(0.0, end_s), partial(ask, cluster, request, run, position))
        play(story, cluster=cluster)
        cluster.let_pass(2.0)
        told = [event for event in cluster.events if isinstance(event, TaskExplained)]
        answered = sorted(event.request for event in told)
        if all(fault.what != "kill_master" for fault in story.faults):  # it takes questions along
            assert answered == sorted(number for number, _, _ in asked)
        assert set(answered) <= {number for number, _, _ in asked}
        for event in told:
            if event.found is not None:
                text = words(event.found, name)
                assert text.startswith(f"t{event.found.task.position} ")
                states.add(event.found.task.state)
    assert {"running", "waiting", "ending"} & states


def ask(cluster: SimCluster, request: int, run: int, position: int) -> None:
    cluster.command(lambda core, now: core.explain(request, run, position, now))


def test_a_run_that_recovers_says_so_and_then_what_is_computed_again() -> None:
    cluster = SimCluster({2: 2, 3: 2}, config=Config(subtrees_a_node=1))
    run = cluster.submit_planned(halves(1.0))
    cluster.step_until(lambda: len(cluster.executed) >= 4)
    found = explained(cluster, 8)
    cluster.let_pass(0.3)
    homes = {position: explained(cluster, position).task.node for position in range(9)}
    lost = homes[0]
    assert lost != 0
    cluster.kill_node(lost)
    cluster.step_until(lambda: cluster.core._lives.runs[RunNo(1)].recovering)
    waits = f"while the run recovers: node {lost} was lost; of nodes {5 - lost} it is not known yet"
    assert waits in text_of(cluster, 3)
    texts = []
    for _ in range(40):
        texts.append(text_of(cluster, 0))
        cluster.let_pass(0.05)
        if run.is_over:
            break
    cluster.wait(run)
    assert run.state == "done"
    assert found.run == 1
    # 0 had ended there, but its subtree had not: nobody knows that it is made a second time.
    assert any(f"is ready on node {5 - lost}" in text for text in texts)
    assert any(f"(it is placed again, for node {lost} was lost)" in text for text in texts)
    kinds = [event.kind for event in cluster.events if isinstance(event, RunHappened)]
    assert kinds.index("node_lost") < kinds.index("recovering") < kinds.index("recovered")
    assert "recomputed" in kinds


BEFORE = frozenset(
    ("unplaced", "dealt", "withheld", "uncut", "waiting", "ready", "queued", "bundled")
)
AFTER = frozenset(("ended", "held", "done", "fetching", "graph"))


@pytest.mark.parametrize("first", [0, *(pytest.param(n, marks=SLOW) for n in (10, 20, 30))])
def test_what_is_said_was_so_when_asked_or_is_so_when_answered(first: int) -> None:
    """Random graphs without faults: each task's state against what its executors really did."""
    seen: set[str] = set()
    for seed in range(first, first + 10):
        story = drawn(seed, with_faults=False)
        cluster = begun(story)
        rng = random.Random(seed)
        graph = story.graphs[0]
        run = cluster.submit(graph)
        # Not those that return graphs: their values are made elsewhere, and they end with those.
        plain = [number for number in range(graph.count) if graph.task(number).returns < 0]
        while not run.is_over:
            position = int(run.planned.position_of[rng.choice(plain)])
            begun_before = is_begun(cluster, position)
            runs_before = running(cluster).get(position)
            found = cluster.explain(1, position)
            if found is None or found.task.state == "ending":
                break
            task = found.task
            seen.add(task.state)
            if task.state in BEFORE:
                assert not begun_before, (seed, position, task)
            elif task.state in AFTER:
                assert is_begun(cluster, position), (seed, position, task)
            elif task.state == "running":
                # A short one may have begun and ended while the answer was under way.
                truth = {runs_before, running(cluster).get(position)} - {None}
                has_ended = not truth and is_begun(cluster, position)
                assert (task.node, task.executor) in truth or has_ended, (seed, position, task)
            cluster.let_pass(rng.uniform(0.0, 0.01))
        cluster.wait(run)
    assert {"running", "held"} <= seen
    assert seen & BEFORE


def is_begun(cluster: SimCluster, position: int) -> bool:
    """A task of run 1 has begun: it has ended, or is in a bundle that is beyond its start."""
    if cluster.executed[1, position]:
        return True
    for node in cluster.nodes.values():
        for executor in node.executors.values():
            bundle = executor._bundle
            if bundle is not None and bundle.message.run == 1 and position in bundle.positions:
                place = bundle.positions.index(position)
                starts = [bundle.began_s, *bundle.ends_s]
                if bundle.lane is not None:
                    starts = bundle.lane.begins_s[: bundle.lane.run_count]
                return place < len(starts) and starts[place] <= cluster.clock.now
    return False


def test_another_reason_for_standing_still_is_another_warning() -> None:
    cluster = SimCluster({2: 1}, config=Config(stall_warning_s=5.0, no_nodes_grace_s=500.0))
    run = cluster.submit(chain(2, 1.0))
    cluster.step_until(lambda: bool(running(cluster)))
    cluster.kill_node(2)
    cluster.let_pass(20.0)
    cluster.add_node(3, 1)
    node = cluster.nodes[3]
    node._start = lambda executor: None  # type: ignore[method-assign]  # no executor ever starts
    cluster.let_pass(9.0)
    first, second = [words(stall.found, name) for stall in stalls(cluster) if stall.found]
    assert "node 2 is not there" in first
    assert "node 3 has no executor yet" in second
    del node._start
    node._start(300)
    cluster.wait(run)
    assert run.state == "done"
