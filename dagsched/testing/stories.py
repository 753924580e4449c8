"""Stories: a cluster, graphs and faults drawn from one seed, played, and judged by the oracle."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dagsched.config import Config
from dagsched.errors import InternalError
from dagsched.testing import faults, graphs
from dagsched.testing.cluster import SimCluster, SimOutcome
from dagsched.testing.faults import Fault
from dagsched.testing.graphs import SimGraph, SimTask
from dagsched.testing.judging import judge_run, unaccounted

LIMIT_S = 60.0  # of simulated time, for what comes after a story's last fault
LARGE_BYTES = 40_000  # of a value that goes through shared memory
SETTINGS: dict[str, Any] = {"transfer_chunk_bytes": 16_384, "transfer_window_bytes": 32_768}


@dataclass(slots=True)
class Story:
    """What is to happen."""

    seed: int
    nodes: dict[int, int]
    graphs: list[SimGraph]
    submitted_s: list[float]
    faults: list[Fault] = field(default_factory=list)
    library: list[SimGraph] = field(default_factory=list)
    slowness: dict[int, float] = field(default_factory=dict)
    is_local: bool = True
    clocks_differ: bool = False


def drawn(seed: int, *, with_faults: bool = True) -> Story:
    """A story by its seed."""
    rng = random.Random(seed)
    nodes = {2 + 3 * i: rng.randint(1, 4) for i in range(rng.choice((1, 2, 2, 2, 3, 4)))}
    library = [_random_graph(rng, small=True) for _ in range(rng.choice((0, 0, 2)))]
    for graph in library:
        graph.outputs = graph.outputs[-1:]
    if seed % 4 == 3:
        few = sorted(nodes)[: rng.choice((1, 1, 1, 2))]
        nodes = {broker: max(2, nodes[broker]) for broker in few}
        many = [_woven_graph(rng, len(library)) for _ in range(rng.choice((1, 1, 2)))]
    else:
        many = [_random_graph(rng, small=False) for _ in range(rng.choice((1, 1, 1, 3)))]
        for graph in many:
            _decorate(rng, graph, len(library))
    for index, graph in enumerate(library[:-1]):
        if rng.random() < 0.5:
            graph.tasks[rng.randrange(graph.count)] = SimTask(7, returns=index + 1)
    submitted_s = [rng.uniform(0.0, 0.1) for _ in many]
    story = Story(seed, nodes, many, submitted_s, library=library)
    story.slowness = {broker: rng.choice((1.0, 1.0, 3.0)) for broker in nodes}
    story.clocks_differ = rng.random() < 0.5
    if with_faults and rng.random() < 0.9:
        story.faults = faults.drawn(rng, nodes)
    if with_faults and seed % 4 == 3 and rng.random() < 0.7:
        # Runs of short tasks are over soon: else few executors would die amid them.
        when_s = submitted_s[0] + rng.uniform(0.0, 0.1)
        killed = Fault(when_s, "kill_executor", (rng.choice(sorted(nodes)), rng.randrange(4)))
        story.faults = sorted([*story.faults, killed], key=lambda fault: fault.at_s)
    return story


def _random_graph(rng: random.Random, *, small: bool) -> SimGraph:
    size = rng.randint(1, 12) if small else rng.choice((rng.randint(1, 30), rng.randint(1, 120)))
    shapes: list[Callable[[], SimGraph]] = [
        lambda: graphs.wide(size),
        lambda: graphs.chain(size),
        lambda: graphs.tree(min(7, size.bit_length())),
        lambda: graphs.stencil(rng.randint(2, 12), 1 + size // 12),
        lambda: graphs.butterfly(1 << min(5, max(1, size.bit_length() - 2))),
        lambda: graphs.layered(rng, 1 + size // 12, rng.randint(1, 16), rng.randint(0, 4)),
    ]
    return rng.choice(shapes)()


def _woven_graph(rng: random.Random, library_count: int) -> SimGraph:
    """Levels of short tasks, measured before, that wait for each other: work for gangs."""
    shapes: list[Callable[[], SimGraph]] = [
        lambda: graphs.stencil(rng.randint(2, 8), rng.randint(3, 60)),
        lambda: graphs.butterfly(1 << rng.randint(2, 5)),
        lambda: graphs.layered(rng, rng.randint(3, 60), rng.randint(2, 8), 3),
    ]
    graph = rng.choice(shapes)()
    graph.is_measured = rng.random() < 0.8
    graph.function_s = [
        rng.choice((1e-4, 5e-4, 2e-3)) for _ in range(rng.randint(1, min(2, graph.count)))
    ]
    graph.function_of = [rng.randrange(len(graph.function_s)) for _ in range(graph.count)]
    share = rng.choice((0.0, 0.005, 0.02, 0.05))
    for number in range(graph.count):
        if rng.random() < share:
            odd = [SimTask(number, size_bytes=LARGE_BYTES), SimTask(number, seconds=0.05)]
            if library_count:
                odd.append(SimTask(number, returns=rng.randrange(library_count)))
            graph.tasks[number] = rng.choice(odd)
    return graph


def _decorate(rng: random.Random, graph: SimGraph, library_count: int) -> None:
    """Durations, large values, constants, Refs and returned graphs here and there."""
    graph.function_s = [
        rng.choice((1e-5, 1e-3, 1e-2, 5e-2)) for _ in range(rng.randint(1, min(3, graph.count)))
    ]
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


def settings_of(story: Story) -> dict[str, Any]:
    """Limits of a story; each third one has a store that a handful of large values fill."""
    is_tight = story.seed % 3 == 0
    return SETTINGS | ({"store_bytes_max": 4 * LARGE_BYTES} if is_tight else {})


def begun(story: Story, *, is_recorded: bool = False, checks: bool = True) -> SimCluster:
    """The cluster of a story, before anything has happened."""
    return SimCluster(
        story.nodes,
        seed=story.seed,
        config=Config(**settings_of(story)),
        library=story.library,
        slowness=story.slowness,
        is_recorded=is_recorded,
        checks=checks,
        is_local=story.is_local,
        clocks_differ=story.clocks_differ,
        is_rescued=True,
    )


def play(
    story: Story,
    *,
    is_recorded: bool = False,
    checks: bool = True,
    cluster: SimCluster | None = None,
) -> SimCluster:
    """Play a story to its end, and compare every run with the oracle.

    Raises:
        InternalError: a value is wrong, a run didn't end well, or something is left behind.
    """
    if cluster is None:
        cluster = begun(story, is_recorded=is_recorded, checks=checks)
    outcomes: dict[int, SimOutcome] = {}  # by index of the graph

    def submit(index: int) -> None:
        outcomes[index] = cluster.submit(story.graphs[index])

    for index, when in enumerate(story.submitted_s):
        cluster.clock.at(when, partial(submit, index))
    for fault in story.faults:
        cluster.clock.at(fault.at_s, partial(faults.do, cluster, fault))
    end_s = max([0.0, *(fault.end_s for fault in story.faults)])
    cluster.step_until(
        lambda: len(outcomes) == len(story.graphs) and all(o.is_over for o in outcomes.values()),
        end_s + LIMIT_S,
    )
    wrong = []
    for index, graph in enumerate(story.graphs):
        wrong += judge_run(graph, story.library, outcomes[index])
    if not wrong:
        if cluster.clock.now < end_s:
            cluster.let_pass(end_s - cluster.clock.now)
        for outcome in outcomes.values():
            for run, position in sorted(set(outcome.refs)):
                cluster.drop_ref(run, position)
        wrong += [f"left behind: {what}" for what in cluster.left_behind()]
        wrong += unaccounted(cluster)
    if wrong:
        raise InternalError(f"seed {story.seed}: " + "; ".join(wrong))
    return cluster
