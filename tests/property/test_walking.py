"""The compiled walk finds what the plain one finds, in the same order, and fails alike."""

import operator
import threading
import time
from pathlib import Path
from sys import getrefcount
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dagsched
from dagsched import delayed, walking
from dagsched.delayed import Delayed
from dagsched.errors import CycleError
from dagsched.graph import TaskGraph, build_graph

is_compiled = bool(list(Path(dagsched.__file__).parent.glob("_walking*.so")))
needs_compiled = pytest.mark.skipif(not is_compiled, reason="_walking.c is not compiled here")

SOURCE_BYTES_MIN = 200
LARGE = np.arange(100)


class Thing:
    def method(self, *args: Any) -> int:
        return len(args)


THING = Thing()
FUNCTIONS = [
    delayed(max),
    delayed(operator.add),
    delayed(operator.add, retries=2),
    delayed(sum, name="own", persist=True),
    delayed(Thing.method),
]
CONSTANTS = st.sampled_from(
    [0, 1.5, True, None, 2j, "text", b"bytes", "long" * 60, b"long" * 60, LARGE, range(3), (1, 2)]
)


@st.composite
def graphs(draw: st.DrawFn) -> list[Delayed]:
    """Calls with everything that arguments may be, and some of them as outputs."""
    calls: list[Delayed] = []
    for _ in range(draw(st.integers(1, 25))):
        args = []
        for _ in range(draw(st.integers(0, 12))):
            kind = draw(st.integers(0, 9))
            if kind < 6 and calls:
                args.append(draw(st.sampled_from(calls)))
            elif kind < 7 and calls:
                args.append([draw(st.sampled_from(calls)), {"k": draw(CONSTANTS)}])
            else:
                args.append(draw(CONSTANTS))
        kwargs = {}
        if draw(st.integers(0, 5)) == 0:
            kwargs = {"key": draw(st.sampled_from(calls)) if calls else 7}
        function = draw(st.sampled_from([*FUNCTIONS, None]))
        # A method looked up anew each time is another object for the same function.
        call = delayed(THING.method) if function is None else function
        calls.append(call(*args, **kwargs))
    count = draw(st.integers(1, 5))
    return [draw(st.sampled_from(calls)) for _ in range(count)]


def plainly(dag: object) -> TaskGraph:
    """The graph by the walk in Python."""
    part, walking._part = walking._part, None
    try:
        return build_graph(dag, SOURCE_BYTES_MIN)
    finally:
        walking._part = part


def fields(graph: TaskGraph) -> dict[str, Any]:
    """All that a graph holds, in a form that compares."""
    result: dict[str, Any] = {}
    for name in TaskGraph.__slots__:
        value = getattr(graph, name)
        if isinstance(value, np.ndarray):
            result[name] = (value.dtype.str, value.tolist())
        elif name == "sources":
            result[name] = list(map(id, value))
        elif name == "functions":  # of a method any of its objects
            result[name] = [getattr(item, "__func__", item) for item in value]
        else:
            result[name] = repr(value)
    return result


@needs_compiled
@given(graphs())
@settings(max_examples=300, deadline=None)
def test_both_walks_find_the_same(dag: list[Delayed]) -> None:
    assert fields(build_graph(dag, SOURCE_BYTES_MIN)) == fields(plainly(dag))


@needs_compiled
def test_a_deep_and_a_wide_graph_are_the_same_for_both() -> None:
    last = delayed(abs)(1)
    for _ in range(100_000):
        last = delayed(abs)(last)
    wide = delayed(max)(*[delayed(abs)(number) for number in range(50_000)], last)
    graph = build_graph(wide)
    assert graph.deps.tolist() == plainly(wide).deps.tolist()
    assert len(graph.entries) == 150_002


@needs_compiled
@pytest.mark.parametrize("length", [1, 2, 40])
def test_both_find_the_same_cycle(length: int) -> None:
    boxes: list[list[Any]] = [[] for _ in range(length)]
    calls = [delayed(sum)(box) for box in boxes]
    for index, box in enumerate(boxes):
        box.append(calls[(index + 1) % length])
    messages = []
    for build in (build_graph, plainly):
        with pytest.raises(CycleError) as caught:
            build(calls[0])
        messages.append((str(caught.value), caught.value.cycle))
    assert messages[0] == messages[1]
    assert len(messages[0][1]) == length


@needs_compiled
def test_an_error_of_an_argument_comes_through_and_leaves_nothing_counted() -> None:
    """What the walk holds is let go whatever happens in the middle of it."""
    kept = delayed(abs)(1)
    bad = delayed(max)(*[kept] * 20, {kept: 1})
    counts = []
    for _ in range(3):
        for build in (build_graph, plainly):
            with pytest.raises(Exception, match="dict with a Delayed as a key"):
                build([delayed(abs)(kept), bad])
        counts.append(getrefcount(kept))
    assert counts[0] == counts[1] == counts[2]


@needs_compiled
def test_nothing_is_counted_too_often() -> None:
    leaf, argument, text = delayed(abs)(1), object(), "t" * 50
    dag = [delayed(max)(leaf, leaf, text), delayed(max)(leaf, argument), delayed(sum)([leaf])]
    build_graph(dag)
    before = [getrefcount(item) for item in (leaf, argument, text, dag[0], abs, walking.DEFAULTS)]
    for _ in range(10):
        build_graph(dag)
    after = [getrefcount(item) for item in (leaf, argument, text, dag[0], abs, walking.DEFAULTS)]
    assert after == before


@needs_compiled
def test_other_threads_run_meanwhile() -> None:
    """The master is one: who doesn't hear its nodes for some seconds takes them for lost."""
    call = delayed(abs)
    wide = delayed(max)(*[call(number) for number in range(1_000_000)])
    beats: list[float] = []
    is_over = threading.Event()

    def beat() -> None:
        while not is_over.wait(0.001):
            beats.append(time.monotonic())

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        begin_s = time.monotonic()
        build_graph(wide)
        end_s = time.monotonic()
    finally:
        is_over.set()
        thread.join()
    inside = [at_s for at_s in beats if begin_s < at_s < end_s]
    assert len(inside) >= 5


@needs_compiled
def test_what_is_only_half_made_is_an_error() -> None:
    half = Delayed.__new__(Delayed)
    with pytest.raises(AttributeError):
        build_graph(delayed(max)(half, 1))


def test_a_graph_without_the_compiled_part() -> None:
    graph = plainly(delayed(max)(delayed(abs)(-3), 2))
    assert (graph.function_names, graph.entries) == (
        ["abs", "max"],
        [(-3,), [(None, 2), ((0, 0),)]],
    )
