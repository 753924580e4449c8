"""Large graphs of all shapes, on one node and on two, against what they must give."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from dagsched import NodeEnv, RunEnv, addprocs, delayed, submit
from tests import graphs

HOST = "127.0.0.1"

pytestmark = pytest.mark.slow


def random_graph(task_count: int, seed: int = 0) -> tuple[list[Any], list[int]]:
    """Tasks that need up to three of the 1,000 before; the results are those nobody needs."""
    rng = random.Random(seed)
    add = delayed(mixed)
    nodes, values, needed = [], [], set()
    for number in range(task_count):
        places = [
            rng.randrange(max(0, number - 1000), number)
            for _ in range(min(number, rng.randrange(4)))
        ]
        needed.update(places)
        nodes.append(add(number, *(nodes[place] for place in places)))
        values.append(mixed(number, *(values[place] for place in places)))
    last = [number for number in range(task_count) if number not in needed]
    return [nodes[number] for number in last], [values[number] for number in last]


def mixed(*values: int) -> int:
    """A number that depends on each argument and its place."""
    return sum((k + 1) * value for k, value in enumerate(values)) % 1_000_003


SHAPES: dict[str, tuple[Callable[[], tuple[Any, Any]], int]] = {
    "chain_1e5": (lambda: graphs.chain(100_000), 100_000),
    "chain_1e6": (lambda: graphs.chain(1_000_000), 1_000_000),
    "ladder_2_to_40": (lambda: graphs.ladder(40), 121),
    "wide_1e5": (lambda: graphs.wide(100_000), 100_000),
    "tree_2_to_17": (lambda: graphs.tree(2**17), 2**18 - 1),
    "butterfly_1024": (lambda: graphs.butterfly(1024), 1024 * 11),
    "random_50000": (lambda: random_graph(50_000), 50_000),
    "fan_in_1e4": (lambda: graphs.fan_in(10_000), 10_001),
    "fan_out_1e5": (lambda: graphs.fan_out(100_000), 100_001),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("executors", [(2,), (1, 1)], ids=["one_node", "two_nodes"])
def test_shape(name: str, executors: tuple[int, ...]) -> None:
    build, task_count = SHAPES[name]
    dag, expected = build()
    if task_count <= 50_000:
        assert graphs.serial(dag) == expected
    ids = iter(addprocs(len(executors) + sum(executors)))
    nodes = [NodeEnv(next(ids), HOST, [next(ids) for _ in range(k)]) for k in executors]
    with RunEnv(nodes=nodes, metastore="memory://") as env:
        env.wait_for_nodes(timeout=20)
        run = submit(env, dag)
        assert run.result(100) == expected
        stats = run.stats()
        assert stats["run"]["task_count"] == stats["run"]["done_count"] == task_count
        assert sum(row["task_count"] for row in stats["executors"]) == task_count
        live = env.stats()["brokers"]
        assert [(row["live_object_count"], row["live_bytes"]) for row in live] == [(0, 0)] * len(
            live
        )
