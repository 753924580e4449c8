"""Programs of Dask's collections on our scheduler and on dask.distributed's, turn by turn.

Question: how many times our seconds does LocalCluster take for the same program, both with two
processes of one thread that are up? From `compute` on a collection that is new each time until the
value is back: Dask's own optimisation and making of the graph are in both. *Scheduler alone*:
the same without them. Shuffles are by tasks in both, for they say what a task costs.

    python benchmarks/dask_collections.py [--rounds 3] [--small]

Needs `pip install 'dagsched[dask,bench-peers]'`.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
from common import arguments, print_section
from distributed import Client, LocalCluster

from dagsched import RunEnv
from dagsched.bench.display import figure, markdown, spread_text
from dagsched.bench.measuring import Spread, alternated, check_value, ratios
from dagsched.plugins.dask import get

PROCESSES = 2


def elementwise(blocks: int) -> Any:
    side = round(blocks**0.5)
    x = da.ones((side * 10, side * 10), chunks=(10, 10))
    return (x + x.T).sum()


def shifted(blocks: int) -> Any:
    y = da.arange(blocks * 10, chunks=10)
    for _ in range(2):
        y = y[1:] + y[:-1]
    return y.sum()


def rechunked(blocks: int) -> Any:
    side = round(blocks**0.5)
    x = da.ones((side * 12, side * 12), chunks=(12, 12))
    return x[: side * 10, : side * 10].rechunk((10, 10)).mean()


def frame(partitions: int) -> Any:
    numbers = np.arange(partitions * 10)
    return dd.from_pandas(pd.DataFrame({"a": numbers % 7, "b": numbers}), npartitions=partitions)


def grouped(partitions: int) -> Any:
    df = frame(partitions)
    return df[df.b > 3].groupby("a").b.sum()


def chained(partitions: int) -> Any:
    df = frame(partitions)
    df = df.assign(c=df.a + df.b)
    return df.c.sum() + df.b.max()


def mapped(partitions: int) -> Any:
    return db.range(partitions * 2, npartitions=partitions).map(lambda x: x + 1).sum()


def pairs(count: int) -> Any:
    add = dask.delayed(lambda x, y: x + y)
    level = [add(number, 1) for number in range(count)]
    while len(level) > 1:
        level = [add(*pair) for pair in zip(level[::2], level[1::2], strict=True)]
    return level[0]


def slept(count: int) -> Any:
    return dask.delayed(sum)([dask.delayed(_sleep)(0.02, number) for number in range(count)])


def multiplied(blocks: int) -> Any:
    side = round(blocks**0.5)
    x = da.ones((side * 500, side * 500), chunks=(500, 500))
    return (x @ x).sum()


def _sleep(seconds: float, value: int) -> int:
    time.sleep(seconds)
    return value


class Program(NamedTuple):
    """Something to compute, of a size, and of another for a quick look."""

    make: Callable[[int], Any]
    size: int
    small: int


PROGRAMS = {
    "array, x + x.T, sum": Program(elementwise, 10_000, 400),
    "array, neighbours twice, sum": Program(shifted, 10_000, 400),
    "array, slice, rechunk, mean": Program(rechunked, 4_900, 400),
    "dataframe, filter, groupby": Program(grouped, 4_000, 200),
    "dataframe, assign, sum, max": Program(chained, 4_000, 200),
    "bag, map, sum": Program(mapped, 10_000, 400),
    "delayed, pairs": Program(pairs, 4_096, 256),
    "delayed, 20 ms each": Program(slept, 400, 40),
    "array, products of 500 x 500": Program(multiplied, 64, 16),
}


def seconds_of(make: Callable[[], Any], scheduler: Any, expected: object) -> float:
    """From a collection to its value."""
    collection = make()
    start = time.perf_counter()
    value = collection.compute(scheduler=scheduler)
    seconds = time.perf_counter() - start
    check_value(np.asarray(value).tolist(), expected)
    return seconds


def preparation_s(make: Callable[[], Any]) -> float:
    """What Dask itself takes, whatever runs the graph: `compute` until it is there."""
    ends: list[float] = []

    def note(graph: Any, *_: Any, **__: Any) -> Any:
        graph.__dask_graph__()
        ends.append(time.perf_counter())
        raise _Enough

    collection = make()
    start = time.perf_counter()
    with contextlib.suppress(_Enough):
        collection.compute(scheduler=note)
    return ends[0] - start


class _Enough(Exception):
    """The graph is there."""


def cells(program: Program, client: Any, env: RunEnv, rounds: int, small: bool) -> list[str]:
    """Of a program's line."""
    size = program.small if small else program.size

    def make() -> Any:
        return program.make(size)

    def ours(graph: Any, keys: Any, **_: Any) -> Any:
        return get(graph, keys, env=env)

    expected = np.asarray(make().compute(scheduler="sync")).tolist()
    for scheduler in (client, ours):  # imports and functions are there afterwards
        small_one = program.make(program.small)
        small_one.compute(scheduler=scheduler)
    theirs, own, dask_s = alternated(
        rounds,
        lambda: seconds_of(make, client, expected),
        lambda: seconds_of(make, ours, expected),
        lambda: preparation_s(make),
    )
    count = env.stats()["run"]["task_count"]
    alone = ratios(
        [a - b for a, b in zip(theirs, dask_s, strict=True)],
        [max(a - b, 1e-9) for a, b in zip(own, dask_s, strict=True)],
    )
    return [
        f"{count:,}",
        spread_text(Spread.of(theirs)),
        spread_text(Spread.of(own)),
        figure(ratios(theirs, own).median),
        spread_text(Spread.of(dask_s)),
        figure(alone.median),
        figure(Spread.of([a - b for a, b in zip(own, dask_s, strict=True)]).median * 1e6 / count),
    ]


HEADING = (
    "program", "tasks", "LocalCluster, s", "ours, s", "times", "Dask itself, s", "times without it",
    "ours without it, us a task",
)  # fmt: skip


def section(rounds: int, small: bool, only: Sequence[str] = ()) -> str:
    rows = []
    with (
        dask.config.set({"dataframe.shuffle.method": "tasks"}),
        LocalCluster(
            n_workers=PROCESSES, threads_per_worker=1, dashboard_address=None, silence_logs=40
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
        RunEnv(executors=PROCESSES) as env,
    ):
        client.wait_for_workers(PROCESSES)
        for name, program in PROGRAMS.items():
            if not only or any(part in name for part in only):
                rows.append([name, *cells(program, client, env, rounds, small)])
    return markdown(HEADING, rows)


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--small", action="store_true", help="a few hundred tasks each")
    parser.add_argument("--only", action="append", help="programs with this in their name")
    args = parser.parse_args()
    print_section(section(args.rounds, args.small, args.only or ()))


if __name__ == "__main__":
    main()
