"""Whole simulated clusters: any graph on any cluster equals the oracle, and leaves nothing."""

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dagsched.testing import SimCluster, SimGraph, serial_values
from dagsched.testing.graphs import SimTask, constant

WITHOUT_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)
"""An example is a whole cluster: to shrink one took longer than a test may, and hid the failure."""


@st.composite
def sim_graphs(draw: st.DrawFn) -> SimGraph:
    count = draw(st.integers(1, 60))
    source_count = draw(st.integers(0, 2))
    deps: list[list[int]] = []
    for number in range(count):
        span = draw(st.sampled_from((3, 60)))
        near = list(range(max(0, number - span), number)) + list(range(count, count + source_count))
        row = draw(st.lists(st.sampled_from(near), max_size=4, unique=True)) if near else []
        deps.append(row)
    used = {dep for row in deps for dep in row}
    graph = SimGraph(deps, [number for number in range(count) if number not in used])
    graph.sources = [constant(500 + k) for k in range(source_count)]
    seconds = st.sampled_from((1e-5, 1e-3, 2e-2))
    graph.function_s = draw(st.lists(seconds, min_size=1, max_size=min(3, count)))
    indices = st.integers(0, len(graph.function_s) - 1)
    graph.function_of = draw(st.lists(indices, min_size=count, max_size=count))
    for number in draw(st.sets(st.integers(0, count - 1), max_size=5)):
        graph.tasks[number] = SimTask(number, size_bytes=50_000)
    graph.meta = frozenset(draw(st.sets(st.integers(0, count - 1), max_size=2)))
    return graph


clusters = st.dictionaries(
    st.sampled_from((2, 3, 7, 12)), st.integers(1, 3), min_size=1, max_size=4
)


@settings(
    max_examples=60,
    deadline=None,
    phases=WITHOUT_SHRINKING,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(graph=sim_graphs(), nodes=clusters, seed=st.integers(0, 1_000))
def test_any_graph_on_any_cluster(graph: SimGraph, nodes: dict[int, int], seed: int):
    cluster = SimCluster(nodes, seed=seed)
    outcome = cluster.submit(graph)
    cluster.wait(outcome, limit_s=10.0)
    values = serial_values(graph)
    assert outcome.state == "done"
    assert {i: outcome.value_of(i) for i in graph.outputs} == {i: values[i] for i in graph.outputs}
    assert sum(cluster.executed.values()) == graph.count
    for ref in set(outcome.refs):
        assert cluster.fetch(*ref) is not None
        cluster.drop_ref(*ref)
    assert cluster.left_behind() == []


@settings(
    max_examples=40,
    deadline=None,
    phases=WITHOUT_SHRINKING,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    graph=sim_graphs(),
    nodes=clusters,
    when_s=st.floats(0.0, 0.3),
    what=st.sampled_from(("cancel", "failure", "executor")),
    victim=st.integers(0, 59),
)
def test_any_end_leaves_nothing(
    graph: SimGraph, nodes: dict[int, int], when_s: float, what: str, victim: int
):
    if what == "failure":
        graph.tasks[victim % graph.count] = SimTask(victim, fails=True)
    cluster = SimCluster(nodes, seed=victim)
    outcome = cluster.submit(graph)
    if what == "cancel":
        cluster.clock.at(when_s, lambda: cluster.cancel(outcome))
    elif what == "executor":
        broker = sorted(nodes)[victim % len(nodes)]
        cluster.clock.at(when_s, lambda: cluster.kill_executor(broker, victim))
    cluster.wait(outcome, limit_s=10.0)
    allowed = {"cancel": ("cancelled", "done"), "failure": ("failed",), "executor": ("done",)}
    assert outcome.state in allowed[what]
    if outcome.state == "done":
        values = serial_values(graph)
        assert all(outcome.value_of(i) == values[i] for i in graph.outputs)
    for ref in set(outcome.refs):
        cluster.drop_ref(*ref)
    assert cluster.left_behind() == []
