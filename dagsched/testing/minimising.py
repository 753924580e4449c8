"""A bad story made small: what can be left out without making it good is left out.

The result is written as a scenario, so that it stays a test when the drawing of stories changes.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from dagsched.errors import DagschedError
from dagsched.plan import ConstantSource
from dagsched.testing.graphs import SimGraph
from dagsched.testing.stories import Story, play, settings_of

TRIALS_MAX = 400

Item = TypeVar("Item")


def is_bad(story: Story) -> str | None:
    """In one line what goes wrong with a story; None: nothing."""
    try:
        play(story)
    except DagschedError as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    except Exception as error:  # noqa: BLE001 - whatever it is, a seed is to be named
        return f"{type(error).__name__}: {error!r}".splitlines()[0]
    return None


def minimised(story: Story, tell: Callable[[str], None]) -> Story:
    """A smaller story that is bad in the same way, by dropping one thing after the other."""
    trials, way = 0, _way(is_bad(story))
    is_smaller = True
    while is_smaller:
        is_smaller = False
        for candidate in _smaller(story):
            trials += 1
            if trials > TRIALS_MAX:
                return story
            if _way(is_bad(candidate)) == way:
                tell(f"{len(candidate.faults)} faults, graphs of {_counts(candidate)} tasks")
                story, is_smaller = candidate, True
                break
    return story


def _way(what: str | None) -> str:
    """What is wrong without the numbers in it."""
    return "".join(letter for letter in what or "" if not letter.isdigit())[:60]


def _counts(story: Story) -> list[int]:
    return [graph.count for graph in story.graphs]


def _smaller(story: Story) -> Iterator[Story]:
    """Stories with one thing less, the largest things first."""
    for index in range(len(story.graphs)):
        if len(story.graphs) > 1:
            yield replace(
                story,
                graphs=_without(story.graphs, index),
                submitted_s=_without(story.submitted_s, index),
            )
    for index in range(len(story.faults)):
        yield replace(story, faults=_without(story.faults, index))
    for broker in story.nodes:
        if len(story.nodes) > 1:
            yield replace(story, nodes={b: n for b, n in story.nodes.items() if b != broker})
    for index, graph in enumerate(story.graphs):
        for smaller in _smaller_graphs(graph):
            graphs = list(story.graphs)
            graphs[index] = smaller
            yield replace(story, graphs=graphs)
    if story.clocks_differ:
        yield replace(story, clocks_differ=False)
    for broker, executors in story.nodes.items():
        if executors > 1:
            yield replace(story, nodes={**story.nodes, broker: executors - 1})


def _without(items: Sequence[Item], index: int) -> list[Item]:
    return [item for other, item in enumerate(items) if other != index]


def _smaller_graphs(graph: SimGraph) -> Iterator[SimGraph]:
    """Graphs of its first tasks, or with less to them."""
    for count in (graph.count // 2, graph.count - 1):
        if 0 < count < graph.count:
            yield _cut(graph, count)
    if graph.tasks:
        yield replace(graph, tasks={})
    if graph.meta:
        yield replace(graph, meta=frozenset())
    if len(graph.function_s) > 1:
        yield replace(graph, function_s=graph.function_s[:1], function_of=[])


def _cut(graph: SimGraph, count: int) -> SimGraph:
    lacking = graph.count - count
    deps = [
        [dep if dep < count else dep - lacking for dep in row if dep < count or dep >= graph.count]
        for row in graph.deps[:count]
    ]
    used = {dep for row in deps for dep in row}
    return replace(
        graph,
        deps=deps,
        outputs=[number for number in range(count) if number not in used],
        function_of=graph.function_of[:count],
        tasks={number: task for number, task in graph.tasks.items() if number < count},
        meta=frozenset(number for number in graph.meta if number < count),
    )


# --- as a scenario --------------------------------------------------------------------------------


def scenario_text(story: Story, comment: str) -> str:
    """The story as the text of a scenario that expects what `play` demands."""
    library = [f"inner{index}" for index in range(len(story.library))]
    names = [f"graph{index}" for index in range(len(story.graphs))]
    kinds = ["rescued"]
    kinds += ["clocks"] if story.clocks_differ else []
    kinds += [] if story.is_local else ["remote"]
    lines = [
        f"# {comment}",
        "nodes " + " ".join(f"{broker}:{count}" for broker, count in story.nodes.items()),
        f"seed {story.seed}",
        "config " + " ".join(f"{name}={value}" for name, value in settings_of(story).items()),
        "cluster " + " ".join(kinds),
        "slowness " + " ".join(f"{broker}:{by}" for broker, by in story.slowness.items()),
    ]
    if library:
        lines.append("library " + " ".join(library))
    for name, graph in zip([*library, *names], [*story.library, *story.graphs], strict=True):
        lines += _graph_lines(name, graph, library)
    lines += [
        f"at {when!r} submit {name}" for name, when in zip(names, story.submitted_s, strict=True)
    ]
    for fault in story.faults:
        words = [fault.what, *map(repr, fault.arguments)]
        lines.append(f"at {fault.at_s!r} " + " ".join(words))
    lines.append("wait " + " ".join(names))
    lines += [f"expect {name} done" for name in names]
    lines.append(f"until {max([0.0, *(fault.end_s for fault in story.faults)])!r}")
    lines.append("drop " + " ".join(names))
    lines += ["expect nothing left", "expect nothing lost"]
    return "\n".join(lines) + "\n"


def _graph_lines(name: str, graph: SimGraph, library: Sequence[str]) -> list[str]:
    rows = [",".join(map(str, row)) or "-" for row in graph.deps]
    lines = [
        f"graph {name} rows " + " ".join(rows),
        f"outputs {name} " + " ".join(map(str, graph.outputs)),
        f"durations {name} " + " ".join(map(repr, graph.function_s)),
    ]
    if graph.is_measured:
        lines.append(f"measured {name}")
    if graph.function_of:
        lines.append(f"functions {name} " + " ".join(map(str, graph.function_of)))
    for source in graph.sources:
        assert isinstance(source, ConstantSource)
        lines.append(f"source {name} {pickle.loads(source.data)} {len(source.data)}")
    for number, task in sorted(graph.tasks.items()):
        if task.fails:
            lines.append(f"task {name} {number} fails")
        elif task.returns >= 0:
            lines.append(f"task {name} {number} returns {library[task.returns]}")
        elif task.size_bytes:
            lines.append(f"task {name} {number} large {task.size_bytes}")
        elif task.seconds is not None:
            lines.append(f"task {name} {number} takes {task.seconds!r}")
    if graph.meta:
        lines.append(f"meta {name} " + " ".join(map(str, sorted(graph.meta))))
    return lines
