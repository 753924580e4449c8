"""What still counts of a run that is over; journals made anew are in tests/property."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dagsched.master.journal import Ended, Failed, OutputsReached, Submitted
from dagsched.master.rewriting import rest_of
from dagsched.protocol.messages import Failure, Location, ObjectInfo

INLINE = (2, ObjectInfo(0, 1, 5), b"bytes")
LARGE = (2, ObjectInfo(0, 1, 9, Location("segment", 0, 9)), None)
WITH_REF = (2, ObjectInfo(0, 1, 5, refs=((1, 4),)), b"bytes")
FAILURE = Failure(0, 1, "raised")


def run_that(outcome: str, **changes: Any) -> Any:
    """A run of three tasks, the first of which is its output."""
    facts = {
        "number": 7, "priority": 3, "parent": None, "client": b"handle", "outcome": outcome,
        "submitted_s": 10.0, "deadline_s": None, "epoch": 2, "announced": True,
        "plan": SimpleNamespace(outputs=np.array([0], np.int32), task_count=3),
        "objects": [INLINE], "failure": None, "failure_frame": None, "failed_node": None,
    }  # fmt: skip
    return SimpleNamespace(**{**facts, **changes})


def test_inline_outputs_are_all_that_counts() -> None:
    rest = rest_of(run_that("done", deadline_s=12.5))
    assert rest == [
        Submitted(7, 3, 2.5, None, None, b"handle"),
        OutputsReached(7, 2, [INLINE]),
    ]
    assert not Ended(7, "done", rest).is_whole


@pytest.mark.parametrize(
    "changes",
    [
        {"objects": [LARGE]},
        {"objects": [INLINE, WITH_REF]},
        {"plan": SimpleNamespace(outputs=np.array([0, 3], np.int32), task_count=3)},
        {"announced": False},
    ],
    ids=["large", "leads elsewhere", "a source", "outputs unknown"],
)
def test_the_plan_counts_where_outputs_would_be_computed_again(changes: dict[str, Any]) -> None:
    run = run_that("done", **changes)
    rest = rest_of(run)
    assert rest[0] == Submitted(7, 3, None, run.plan, None, b"handle")
    assert Ended(7, "done", rest).is_whole


def test_a_failure_needs_no_plan() -> None:
    run = run_that(
        "failed", announced=False, failure=FAILURE, failure_frame=b"pickle", failed_node=5
    )
    assert rest_of(run) == [
        Submitted(7, 3, None, None, None, b"handle"),
        Failed(7, FAILURE, b"pickle", 5),
    ]


def test_a_lost_run_may_be_resumed() -> None:
    run = run_that("lost", announced=False, failure=FAILURE)
    assert Ended(7, "lost", rest_of(run)).is_whole


def test_a_cancelled_run_leaves_its_handle() -> None:
    run = run_that("cancelled", announced=False, objects=[])
    assert rest_of(run) == [Submitted(7, 3, None, None, None, b"handle")]


def test_a_returned_graph_leaves_nothing() -> None:
    assert rest_of(run_that("done", parent=(1, 2))) == ()
