"""Programs of Dask's collections on our scheduler and on dask.distributed's, turn by turn.

Question: how many times our seconds does LocalCluster take for the same program, both with two
processes of one thread that are up? From `compute` on a collection that is new each time until the
value is back: Dask's own optimisation and making of the graph are in both. *Without it*: the same
less what Dask takes by itself. Shuffles are by tasks in both, for they say what a task costs.

    python benchmarks/dask_collections.py [--rounds 3] [--seconds 300] [--write]

With ``--write`` the table of README.md between the marks ``dask`` is replaced. A program gets as
many rounds as asked for while its share of the seconds lasts, and at least one.

Needs `pip install 'dagsched[dask,bench-peers]'`.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from common import README, arguments, positive, print_section, replaced

from dagsched import RunEnv
from dagsched.bench.display import figure, markdown, spread_text
from dagsched.bench.measuring import Spread, check_value, machine_line, ratios

try:
    import dask
    import dask.array as da
    import dask.bag as db
    import dask.dataframe as dd
    import pandas as pd
    from distributed import Client, LocalCluster
except ImportError as error:
    raise SystemExit(
        f"{error.name} is missing: pip install 'dagsched[dask,bench-peers]'"
    ) from error

from dagsched.plugins.dask import get

PROCESSES = 2


def transposed(blocks: int) -> Any:
    side = round(blocks**0.5)
    x = da.ones((side * 10, side * 10), chunks=(10, 10))
    return (x + x.T).sum()


def overlapped(blocks: int) -> Any:
    side = round(blocks**0.5)
    x = da.ones((side * 10, side * 10), chunks=(10, 10))
    return x.map_overlap(np.square, depth=1, boundary="none").sum()


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


def shuffled(partitions: int) -> Any:
    return frame(partitions).shuffle("a", npartitions=partitions).b.sum()


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
    """Something to compute, of a size, and of another that warms up, or for a quick look."""

    make: Callable[[int], Any]
    size: int
    small: int
    target: float  # times our seconds that LocalCluster should take
    part: int = 30  # of the time, as many parts as 1,000 tasks would take in all rounds


SHORT, LONG = 5.0, 1.0

PROGRAMS = {
    "array, x + x.T, sum": Program(transposed, 8_649, 100, SHORT, 60),
    "array, overlap, sum": Program(overlapped, 1_089, 100, SHORT, 33),
    "dataframe, shuffle": Program(shuffled, 289, 16, SHORT, 36),
    "delayed, 20 ms each": Program(slept, 400, 40, LONG, 25),
    "array, products of 500 x 500": Program(multiplied, 64, 16, LONG, 25),
    "array, x + x.T, sum, larger": Program(transposed, 26_244, 100, SHORT, 61),
}
"""Asked unless others are; the short ones have 10,000 to 100,000 tasks. The larger one's part of
the time is that of one round, the others' that of three."""

OTHERS = {
    "dataframe, filter, groupby": Program(grouped, 1_000, 100, SHORT),
    "array, neighbours twice, sum": Program(shifted, 10_000, 400, SHORT),
    "array, slice, rechunk, mean": Program(rechunked, 4_900, 400, SHORT),
    "dataframe, assign, sum, max": Program(chained, 4_000, 200, SHORT),
    "bag, map, sum": Program(mapped, 10_000, 400, SHORT),
    "delayed, pairs": Program(pairs, 4_096, 256, SHORT),
}
"""Asked by ``--only``."""


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


def rounds_of(count: int, until_s: float, *measures: Callable[[], float]) -> list[list[float]]:
    """Each measure once a round, in turns which comes first; no round that would end too late."""
    taken: list[list[float]] = [[] for _ in measures]
    longest_s = 0.0
    for number in range(count):
        begun_s = time.perf_counter()
        if number and begun_s + longest_s > until_s:
            break
        for index in range(len(measures))[:: 1 if number % 2 else -1]:
            taken[index].append(measures[index]())
        longest_s = max(longest_s, time.perf_counter() - begun_s)
    return taken


def cells(
    program: Program, client: Any, env: RunEnv, rounds: int, until_s: float, small: bool
) -> list[str]:
    """Of a program's line."""
    size = program.small if small else program.size

    def make() -> Any:
        return program.make(size)

    def ours(graph: Any, keys: Any, **_: Any) -> Any:
        return get(graph, keys, env=env)

    for scheduler in (client, ours):  # imports and functions are there afterwards
        program.make(program.small).compute(scheduler=scheduler)
    expected = np.asarray(make().compute(scheduler=ours)).tolist()  # theirs must be the same
    count = env.stats()["run"]["task_count"]
    theirs, own, dask_s = rounds_of(
        rounds,
        until_s,
        lambda: seconds_of(make, client, expected),
        lambda: seconds_of(make, ours, expected),
        lambda: preparation_s(make),
    )
    rest = [max(a - b, 1e-9) for a, b in zip(own, dask_s, strict=True)]
    alone = ratios([a - b for a, b in zip(theirs, dask_s, strict=True)], rest)
    times = ratios(theirs, own)
    is_met = "met" if times.median >= program.target else "missed"
    return [
        f"{count:,}",
        str(len(own)),
        spread_text(Spread.of(theirs)),
        spread_text(Spread.of(own)),
        spread_text(times),
        f">= {program.target:g}, {is_met}",
        figure(Spread.of(dask_s).median),
        figure(alone.median),
        figure(Spread.of(rest).median * 1e6 / count),
    ]


HEADING = (
    "program", "tasks", "rounds", "LocalCluster, s", "ours, s", "times", "target",
    "Dask itself, s", "times without it", "ours without it, us a task",
)  # fmt: skip


@contextlib.contextmanager
def opened() -> Iterator[tuple[Any, RunEnv]]:
    """A client of LocalCluster, and an environment, both with their processes up."""
    with (
        dask.config.set({"dataframe.shuffle.method": "tasks"}),
        LocalCluster(
            n_workers=PROCESSES, threads_per_worker=1, dashboard_address=None, silence_logs=40
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
        RunEnv(executors=PROCESSES) as env,
    ):
        client.wait_for_workers(PROCESSES)
        yield client, env


def section(rounds: int, seconds: float, small: bool = False, only: Sequence[str] = ()) -> str:
    programs = {
        name: program
        for name, program in {**PROGRAMS, **OTHERS}.items()
        if (any(part in name for part in only) if only else name in PROGRAMS)
    }
    rows = []
    with opened() as (client, env):
        end_s = time.perf_counter() + seconds
        parts = sum(program.part for program in programs.values())
        for name, program in programs.items():
            now_s = time.perf_counter()
            until_s = now_s + (end_s - now_s) * program.part / parts
            parts -= program.part
            rows.append([name, *cells(program, client, env, rounds, until_s, small)])
            print(f"{name}: {time.perf_counter() - now_s:.0f} s", flush=True)
    return markdown(HEADING, rows)


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--small", action="store_true", help="a few hundred tasks each")
    parser.add_argument("--seconds", type=positive, default=300, help="about so long in all")
    parser.add_argument("--only", action="append", help="programs with this in their name")
    parser.add_argument("--write", action="store_true", help="into README.md")
    args = parser.parse_args()
    if args.write and (args.small or args.only):
        raise SystemExit("README.md has the table of all programs: no --small or --only")
    day, load = time.strftime("%Y-%m-%d"), os.getloadavg()[0]
    text = section(args.rounds, args.seconds, args.small, args.only or ())
    print_section(text)
    if args.write:
        where = f"Dask {dask.__version__}, {machine_line()}; load {load:.1f} when it began"
        text += f"\n\n`python benchmarks/dask_collections.py`, {day}: {where}."
        README.write_text(replaced(README.read_text(), "dask", text))


if __name__ == "__main__":
    main()
