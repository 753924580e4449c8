"""What does it cost to record when and where each task ran, and each bundle, transfer and spill?

Question: how much longer do runs of 100,000 no-op tasks take with `Config.trace`, in seconds and in
CPU seconds of all our processes, than the same without, in alternation within one run?

Second, for machines that do other things, too: how much CPU time does recording add to that of all
stages of a run in one thread? That repeats within a percent, and has neither sockets nor waiting.

    python benchmarks/recording.py [--rounds 15] [--tasks 100000] [--nodes 1]
"""

import argparse
import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from common import arguments, positive, print_section

from dagsched import NodeEnv, RunEnv, addprocs
from dagsched.bench.display import markdown
from dagsched.bench.graphs import Measured, chain, task_bench, wide
from dagsched.bench.inline import InlineCluster
from dagsched.bench.measuring import alternated, family_cpu_s, run_s
from dagsched.config import Config

WIDTH = 16
"""Of the stencil, whose rows are as long as those of our other questions."""

SETTLED_S = 0.05
"""After a run what was its has been let go everywhere, and counts as its CPU time."""


class Taken(NamedTuple):
    """One run."""

    seconds: float
    cpu_s: float


def taken(env: RunEnv, made: Measured) -> Taken:
    cpu_s = family_cpu_s() or 0.0
    seconds = run_s(env, made)
    time.sleep(SETTLED_S)
    return Taken(seconds, (family_cpu_s() or 0.0) - cpu_s)


@contextlib.contextmanager
def environment(nodes: int, executors: int, *, is_recorded: bool) -> Iterator[RunEnv]:
    hosts = []
    for _ in range(nodes):
        broker, *ids = addprocs(1 + executors)
        hosts.append(NodeEnv(broker, "127.0.0.1", ids))
    with RunEnv(nodes=hosts, metastore="memory://", config=Config(trace=is_recorded)) as env:
        yield env


def row(name: str, made: Measured, on: RunEnv, off: RunEnv, rounds: int) -> list[str]:
    """Medians of both and how much more one is, and between which half of the rounds' ratios lie.

    Then the same of the least of all rounds: what others on the machine do adds to all others.
    """
    runs: list[list[Taken]] = [[], []]

    def measure(index: int, env: RunEnv) -> Callable[[], float]:
        def once() -> float:
            runs[index].append(taken(env, made))
            return runs[index][-1].seconds

        return once

    measures = measure(0, on), measure(1, off)
    for first in measures:
        first()
    for kept in runs:
        kept.clear()
    alternated(rounds, *measures)
    cells = [name]
    for column in Taken._fields:
        with_it, without = ([getattr(run, column) for run in kept] for kept in runs)
        more = statistics.median(with_it) / statistics.median(without) - 1
        quarters = statistics.quantiles(
            [one / other - 1 for one, other in zip(with_it, without, strict=True)], n=4
        )
        cells += [
            f"{1_000 * statistics.median(with_it):.1f}",
            f"{1_000 * statistics.median(without):.1f}",
            f"{100 * more:+.1f} % ({100 * quarters[0]:+.1f} .. {100 * quarters[2]:+.1f})",
            f"{100 * (min(with_it) / min(without) - 1):+.1f} %",
        ]
    return cells


def row_in_one_thread(name: str, made: Measured, rounds: int) -> list[str]:
    """Least CPU time a task of all stages, with and without."""
    with InlineCluster(Config()) as on, InlineCluster(Config(trace=False)) as off:
        sums: list[list[float]] = [[], []]
        for _ in range(rounds):
            for kept, cluster in zip(sums, (on, off), strict=True):
                kept.append(sum(cluster.run(made).per_task_us().values()))
    with_it, without = map(min, sums)
    return [name, f"{with_it:.3f}", f"{without:.3f}", f"{100 * (with_it / without - 1):+.1f} %"]


def main() -> None:
    parser = arguments(__doc__, rounds=15)
    parser.add_argument("--tasks", type=positive, default=100_000)
    parser.add_argument("--nodes", type=positive, default=1)
    parser.add_argument("--executors", type=positive, default=2, help="of each node")
    given: argparse.Namespace = parser.parse_args()
    count = given.tasks
    graphs = {
        "wide": wide(count),
        "chain": chain(count),
        "stencil": task_bench("stencil", WIDTH, count // WIDTH, 0.0),
    }
    one = given.nodes, given.executors
    with environment(*one, is_recorded=True) as on, environment(*one, is_recorded=False) as off:
        rows = [row(name, made, on, off, given.rounds) for name, made in graphs.items()]
    heading = ["graph"]
    for unit in ("ms", "CPU ms"):
        heading += [f"{unit}, on", f"{unit}, off", "more", "more, least"]
    inline = [row_in_one_thread(name, made, given.rounds) for name, made in graphs.items()]
    print_section(
        f"{count:,} tasks, {given.nodes} x {given.executors} executors, {given.rounds} rounds, "
        f"load {os.getloadavg()[0]:.1f}\n\n{markdown(heading, rows)}\n\n"
        + markdown(["in one thread", "us a task, on", "us a task, off", "more"], inline)
    )


if __name__ == "__main__":
    main()
