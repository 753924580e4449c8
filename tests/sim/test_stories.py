"""Clusters, graphs and faults by seed; every run equals the oracle, and nothing is left."""

import subprocess
import sys

import pytest

from dagsched.brokers import bundling, dispatch, exchange, table, wants
from dagsched.errors import InternalError
from dagsched.partition import arrays
from dagsched.testing.cluster import SimCluster
from dagsched.testing.graphs import SimGraph, SimTask
from dagsched.testing.memory import SimMemory
from dagsched.testing.stories import Story, drawn, play

SEEDS = 60
SEEDS_IN_ALL = 2_000
GROUP = 20


@pytest.mark.parametrize("first", range(0, SEEDS, GROUP))
def test_stories(first: int):
    for seed in range(first, first + GROUP):
        play(drawn(seed))


@pytest.mark.parametrize("first", range(0, 2 * GROUP, GROUP))
def test_stories_whose_few_values_are_taken_for_thousands(
    first: int, monkeypatch: pytest.MonkeyPatch
):
    """Their graphs are small, and what is done array by array wouldn't be met."""
    monkeypatch.setattr(wants, "CROWD_MIN", 1)
    monkeypatch.setattr(wants, "SPREAD_MAX", 1 << 30)
    monkeypatch.setattr(arrays, "SHALLOW_EDGES_MIN", 1)
    for module in (bundling, dispatch, exchange, table):
        monkeypatch.setattr(module, "SMALL", 0)
    for seed in range(first, first + GROUP):
        play(drawn(seed))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(SEEDS, SEEDS_IN_ALL, 5 * GROUP))
def test_many_stories(first: int):
    for seed in range(first, min(first + 5 * GROUP, SEEDS_IN_ALL)):
        play(drawn(seed))


def test_the_same_seed_tells_the_same_story():
    commands = [sys.executable, "-m", "dagsched.testing", "--seed", "4"]
    stories = [
        subprocess.run(
            commands, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": hash_seed}
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert stories[0] == stories[1]
    assert "1 stories ended as they should" in stories[0]
    assert "PlaceSubtree" in stories[0]


def test_a_wrong_value_is_noticed(monkeypatch: pytest.MonkeyPatch):
    story = Story(1, {2: 2}, [SimGraph([[], [0]], [1])], [0.0])
    play(story)
    monkeypatch.setattr("dagsched.testing.executor.mixed", lambda salt, values: salt)
    with pytest.raises(InternalError, match=r"seed 1: wrong values of \[1\]"):
        play(story)


def test_what_is_left_behind_is_noticed():
    cluster = SimCluster({2: 1})
    graph = SimGraph([[], [0]], [1], tasks={0: SimTask(0, size_bytes=50_000)}, meta=frozenset({1}))
    outcome = cluster.run(graph)
    assert outcome.refs == [(1, int(outcome.planned.position_of[0]))]
    assert len(cluster.left_behind()) == 2  # the object that the Ref holds, and its segment
    cluster.drop_ref(*outcome.refs[0])
    assert cluster.left_behind() == []


def test_memory_refuses_misuse():
    memory = SimMemory()
    location = memory.write("7-1-0", b"bytes")
    with pytest.raises(InternalError, match="not of executor"):
        memory.free(location, (8, 1))
    memory.free(location, (7, 1))
    with pytest.raises(InternalError, match="after it had been freed"):
        memory.read(location)
