"""What a journal tells of a task: records in, words out."""

import numpy as np
import pytest

from dagsched.delayed import Delayed, delayed
from dagsched.errors import GraphError
from dagsched.graph import build_graph
from dagsched.hearsay import Journalled, TaskTale, tell
from dagsched.metastore.records import (
    Ended,
    Failed,
    Outputs,
    Placed,
    Record,
    Submitted,
    SubtreeDone,
)
from dagsched.plan import RunPlan
from dagsched.protocol.messages import Failure, ObjectInfo
from dagsched.run import RunShape


def add(x: int, y: int) -> int:
    return x + y


def int32(*values: int) -> bytes:
    return np.array(values, "<i4").tobytes()


SUBMITTED = Submitted(0, None, ())
CLIENT = "Its client is gone"


class Case:
    """Tasks 0 and 1 in subtree 0, the sum of both in subtree 1."""

    def __init__(self, *, with_plan: bool = True) -> None:
        first, second = delayed(add)(1, 2), delayed(add)(3, 4)
        self.tasks: list[Delayed] = [first, second, delayed(add)(first, second)]
        self.graph = build_graph(self.tasks[2])
        order = np.arange(3, dtype=np.int32)
        starts = np.array([0, 2, 3], np.int64)
        self.shape = RunShape(order, starts, [2], ["add"])
        self.plan = self._plan(starts) if with_plan else None

    def _plan(self, starts: np.ndarray) -> RunPlan:
        return RunPlan(
            subtree_starts=starts, interlocked=False, indptr=self.graph.indptr,
            deps=self.graph.deps, function_of=self.graph.function_of,
            flags=np.zeros(3, np.uint8), level_starts=np.zeros(0, np.int32), functions=[],
            function_pickles=[], chunks=[], options={}, outputs=np.array([2], np.int32), sources=[],
        )  # fmt: skip

    def tell(self, task: int, *records: Record, damage: str | None = None) -> TaskTale:
        known = Journalled(
            "5f0c2a91-1", [SUBMITTED, *records], self.graph, self.shape, self.plan, CLIENT, damage
        )
        return tell(known, self.tasks[task].key)


def test_a_task_that_was_never_placed_names_what_comes_before() -> None:
    case = Case()
    tale = case.tell(2)
    key = case.tasks[2].key
    assert (tale.state, tale.node, tale.subtree) == ("waiting", None, 1)
    assert tale.text == (
        f"{key} has not been placed on a node, with subtree 1 (1 tasks), for it needs values of "
        "subtrees that have not been either: 0. Its client is gone"
    )
    first, second = case.tasks[0].key, case.tasks[1].key
    assert tale.story == [
        f"submitted with run 5f0c2a91-1, function add, depends on {first}, {second}"
    ]
    assert "though all that it needs has been" in case.tell(2, Placed(1, [(0, 2, 1)])).text


def test_a_task_that_was_placed_may_have_run_and_that_is_said() -> None:
    tale = Case().tell(0, Placed(1, [(0, 2, 1), (1, 5, 1)]))
    assert (tale.state, tale.node, tale.subtree) == ("placed", 2, 0)
    assert "single tasks never are" in tale.text
    assert tale.story[1:] == ["placed on node 2 with subtree 0, attempt 1"]


def test_an_ended_subtree_a_loss_and_a_value_made_again() -> None:
    records = [
        Placed(1, [(0, 2, 1)]),
        SubtreeDone(1, 0, 1, 2, int32(0, 1), b""),
        Placed(1, [(2, 5, 2)]),
        SubtreeDone(1, 2, 2, 5, int32(1), b""),
    ]
    case = Case()
    again, before = case.tell(1, *records), case.tell(0, *records)
    assert (again.state, again.node) == ("ended", 5)
    assert again.story[-1] == "its value was made in piece 2 on node 5"
    assert (before.state, before.node) == ("ended", 2)
    assert before.story[2:] == [
        "all of subtree 0 ended on node 2",
        (
            "a piece, subtree 2, was placed on node 5 for what was lost; which tasks are in it "
            "isn't in the journal"
        ),
    ]
    assert "1 piece of the run was placed to make good what was lost" in before.text


def test_a_failure_is_quoted_and_others_only_mentioned() -> None:
    failure = Failure(1, 3, "raised", "ValueError", "no\nmore lines", executor=7)
    records = [Placed(1, [(0, 2, 1)]), Failed(failure, b"", 2), Ended("failed")]
    case = Case()
    failed = case.tell(1, *records)
    assert (failed.state, failed.node) == ("failed", 2)
    assert failed.text.startswith(f"{case.tasks[1].key} failed for good (raised: ValueError: no)")
    assert failed.story[-2:] == [
        "failed for good on node 2, executor 7, attempt 3 (raised: ValueError: no)",
        "the run ended as failed",
    ]
    other = case.tell(0, *records)
    assert other.state == "placed"
    assert "and then the run ended as failed" in other.text
    assert "another task failed, and the run with it" in other.story


def test_what_is_left_of_a_finished_run_has_no_places() -> None:
    case = Case(with_plan=False)
    info = ObjectInfo(2, 1, 8)
    records = [Outputs(1, [(5, info)], [b"pickle"]), Ended("done")]
    tale = case.tell(0, *records)
    assert (tale.state, tale.node, tale.subtree) == ("unknown", None, None)
    assert "has ended, for the run is done; where isn't known any more" in tale.text
    output = case.tell(2, *records)
    assert (output.state, output.node) == ("ended", 5)
    cancelled = case.tell(0, Ended("cancelled"))
    assert "whether" in cancelled.text
    assert "had run by then isn't in the journal" in cancelled.text


def test_a_damaged_end_is_said() -> None:
    tale = Case().tell(0, damage="stream run 1, position 3, byte 0: cut off")
    assert tale.text.endswith("The journal is not whole: stream run 1, position 3, byte 0: cut off")


def test_a_journal_that_was_written_anew_begins_once() -> None:
    assert len(Case().tell(0, SUBMITTED, Placed(1, [(0, 2, 1)])).story) == 2


def test_an_unknown_key_names_others() -> None:
    case = Case()
    known = Journalled("5f0c2a91-1", [SUBMITTED], case.graph, case.shape, case.plan, CLIENT)
    with pytest.raises(GraphError, match="run 5f0c2a91-1 has no task with key 'add-0'; there are"):
        tell(known, "add-0")
