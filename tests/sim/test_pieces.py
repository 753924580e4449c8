"""What is computed again after a loss, where its tasks and those of others need each other."""

from dagsched.testing import SimCluster, SimGraph, serial_values
from dagsched.testing.graphs import SimTask

LARGE = 50_000


def test_a_piece_waits_for_what_others_make_of_its_own_tasks():
    # Node 12 is lost with 10 and what was to come of 13, which another piece on node 7 is to make
    # of 10: in one bundle with 16, which needs 13, task 10 would wait for itself.
    graph = SimGraph(
        deps=[
            [], [], [1], [1, 2, 0], [0, 3, 2, 1], [4, 3, 2], [3, 5, 4, 0], [6, 5, 4],
            [1, 3, 7, 0], [4, 1], [], [4], [10, 9, 11], [12, 10, 11], [12, 13, 11], [], [13],
        ],
        outputs=[8, 14, 15, 16],
        function_of=[1, 2, 1, 1, 0, 0, 1, 2, 1, 1, 0, 2, 1, 2, 2, 0, 2],
        function_s=[1e-05, 0.001, 1e-05],
        tasks={number: SimTask(number, size_bytes=LARGE) for number in (1, 4, 6, 16)},
        meta=frozenset({12}),
    )  # fmt: skip
    cluster = SimCluster({7: 3, 12: 1}, seed=3)
    outcome = cluster.submit(graph, priority=3, timeout_s=50.0)
    cluster.let_pass(0.058921835375968394)
    cluster.kill_node(12)
    cluster.wait(outcome, limit_s=10.0)
    assert outcome.state == "done"
    values = serial_values(graph)
    assert [outcome.value_of(number) for number in graph.outputs] == [
        values[number] for number in graph.outputs
    ]
    assert cluster.left_behind() == []
