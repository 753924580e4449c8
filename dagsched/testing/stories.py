"""Stories: a cluster, a graph and faults drawn from one seed, played, and judged by the oracle."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from dagsched.config import Config
from dagsched.errors import InternalError
from dagsched.testing import graphs
from dagsched.testing.cluster import SimCluster, SimOutcome
from dagsched.testing.graphs import SimGraph, SimTask, serial_values

LIMIT_S = 20.0  # of simulated time, for a story
LARGE_BYTES = 40_000  # of a value that goes through shared memory


@dataclass(slots=True)
class Story:
    """What is to happen. Faults are (when, what, broker, index)."""

    seed: int
    nodes: dict[int, int]
    graphs: list[SimGraph]
    submitted_s: list[float]
    faults: list[tuple[float, str, int, int]] = field(default_factory=list)
    library: list[SimGraph] = field(default_factory=list)
    slowness: dict[int, float] = field(default_factory=dict)


def drawn(seed: int, *, with_faults: bool = True) -> Story:
    """A story by its seed."""
    rng = random.Random(seed)
    nodes = {2 + 3 * i: rng.randint(1, 4) for i in range(rng.choice((1, 1, 2, 2, 3, 4)))}
    library = [_random_graph(rng, small=True) for _ in range(rng.choice((0, 0, 2)))]
    for graph in library:
        graph.outputs = graph.outputs[-1:]
    many = [_random_graph(rng, small=False) for _ in range(rng.choice((1, 1, 1, 3)))]
    for graph in many:
        _decorate(rng, graph, len(library))
    for index, graph in enumerate(library[:-1]):
        if rng.random() < 0.5:
            graph.tasks[rng.randrange(graph.count)] = SimTask(7, returns=index + 1)
    submitted_s = [rng.uniform(0.0, 0.1) for _ in many]
    story = Story(seed, nodes, many, submitted_s, library=library)
    story.slowness = {broker: rng.choice((1.0, 1.0, 3.0)) for broker in nodes}
    if with_faults and rng.random() < 0.7:
        story.faults = _faults(rng, nodes)
    return story


def _random_graph(rng: random.Random, *, small: bool) -> SimGraph:
    size = rng.randint(1, 20) if small else rng.randint(1, 200)
    shapes: list[Callable[[], SimGraph]] = [
        lambda: graphs.wide(size),
        lambda: graphs.chain(size),
        lambda: graphs.tree(min(7, size.bit_length())),
        lambda: graphs.stencil(rng.randint(2, 12), 1 + size // 12),
        lambda: graphs.butterfly(1 << min(5, max(1, size.bit_length() - 2))),
        lambda: graphs.layered(rng, 1 + size // 12, rng.randint(1, 16), rng.randint(0, 4)),
    ]
    return rng.choice(shapes)()


def _decorate(rng: random.Random, graph: SimGraph, library_count: int) -> None:
    """Durations, large values, constants, Refs and returned graphs here and there."""
    graph.function_s = [rng.choice((1e-5, 1e-4, 1e-3, 1e-2)) for _ in range(rng.randint(1, 3))]
    graph.function_of = [rng.randrange(len(graph.function_s)) for _ in range(graph.count)]
    large_share = rng.choice((0.0, 0.0, 0.1, 0.5))
    returning_share = rng.choice((0.0, 0.05)) if library_count else 0.0
    for number in range(graph.count):
        if rng.random() < large_share:
            graph.tasks[number] = SimTask(number, size_bytes=LARGE_BYTES)
        if rng.random() < returning_share:
            graph.tasks[number] = SimTask(number, returns=rng.randrange(library_count))
    for index in range(rng.choice((0, 0, 0, 2))):
        graph.sources.append(graphs.constant(1_000 + index, 70_000))
        for row in graph.deps:
            if rng.random() < 0.2:
                row.append(graph.count + index)
    if rng.random() < 0.2:
        plain = [number for number in range(graph.count) if graph.task(number).returns < 0]
        graph.meta = frozenset(rng.sample(plain, min(len(plain), rng.randint(1, 3))))


def _faults(rng: random.Random, nodes: dict[int, int]) -> list[tuple[float, str, int, int]]:
    """Times are early enough to hit most runs; each executor dies less often than is fatal."""
    faults: list[tuple[float, str, int, int]] = []
    brokers = sorted(nodes)
    for _ in range(rng.randint(1, 2)):
        when = rng.uniform(0.05, 0.2)
        faults.append((when, "kill_executor", rng.choice(brokers), rng.randrange(4)))
    what = rng.choice(("nothing", "nothing", "kill_node", "add_node", "remove_node"))
    if what == "add_node":
        faults.append((rng.uniform(0.0, 0.2), what, max(brokers) + 1, rng.randint(1, 3)))
    elif what != "nothing" and len(brokers) > 1:
        faults.append((rng.uniform(0.0, 0.2), what, rng.choice(brokers), 0))
    return sorted(faults)


def play(story: Story, *, is_recorded: bool = False, checks: bool = True) -> SimCluster:
    """Play a story to its end, and compare every run with the oracle.

    Raises:
        InternalError: a value is wrong, a run didn't end well, or something is left behind.
    """
    cluster = SimCluster(
        story.nodes,
        seed=story.seed,
        config=Config(),
        library=story.library,
        slowness=story.slowness,
        is_recorded=is_recorded,
        checks=checks,
    )
    outcomes: dict[int, SimOutcome] = {}  # by index of the graph

    def submit(index: int) -> None:
        outcomes[index] = cluster.submit(story.graphs[index])

    for index, when in enumerate(story.submitted_s):
        cluster.clock.at(when, partial(submit, index))
    for when, what, broker, argument in story.faults:
        arguments = (broker,) if what in ("kill_node", "remove_node") else (broker, argument)
        cluster.clock.at(when, partial(getattr(cluster, what), *arguments))
    cluster.step_until(
        lambda: len(outcomes) == len(story.graphs) and all(o.is_over for o in outcomes.values()),
        LIMIT_S,
    )
    for index, graph in enumerate(story.graphs):
        _judge(story, graph, outcomes[index])
    for outcome in outcomes.values():
        for run, position in sorted(set(outcome.refs)):
            cluster.drop_ref(run, position)
    left = cluster.left_behind()
    if left:
        raise InternalError(f"seed {story.seed}: left behind: {left}")
    return cluster


def _judge(story: Story, graph: SimGraph, outcome: SimOutcome) -> None:
    if outcome.state != "done":
        raise InternalError(f"seed {story.seed}: {outcome.state}, {outcome.failure}")
    values = serial_values(graph, story.library)
    wrong = [number for number in graph.outputs if outcome.value_of(number) != values[number]]
    if wrong:
        raise InternalError(f"seed {story.seed}: wrong values of {wrong}")
