"""Keys that look like what was typed."""

from dagsched.delayed import delayed
from dagsched.graph import build_graph
from dagsched.viz.live.searching import keys_like


def load(n):
    return n


def unload(n):
    return n


def test_keys_by_name_and_by_the_beginning_of_a_number() -> None:
    calls = [delayed(load)(n) for n in range(200)] + [delayed(unload)(1)]
    named = delayed(load, name="own")(7)
    graph = build_graph([*calls, named])
    keys = [call.key for call in calls]
    assert keys_like(graph, "unlo", 20) == [calls[-1].key]
    assert keys_like(graph, "own", 20) == [named.key]
    assert keys_like(graph, named.key, 1) == [named.key]
    assert keys_like(graph, keys[150], 1) == [keys[150]]
    found = keys_like(graph, keys[150][:-1], 500)
    assert keys[150] in found[: len([key for key in keys if key.startswith(keys[150][:-1])])]
    # Those of the very name come before those that only contain it.
    assert keys_like(graph, "load", 200) == [key for key in keys if key.startswith("load-")][:200]
    assert len(keys_like(graph, "", 20)) == 20
    assert keys_like(graph, "nothing like it", 20) == []
