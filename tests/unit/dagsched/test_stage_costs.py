"""No stage of a task has become twice as expensive: CPU time beside a plain loop, in one process.

Robust where the clock on the wall is not: a whole run of real parts goes through one thread
(`dagsched.bench.inline`), what counts is that thread's CPU time, the best of several, as a multiple
of a plain loop's in the same minute. On two CPUs with eight busy processes, the multiples of eight
repetitions were within a sixth of their median but for one (scheduling a wide graph: a third).

`TODAY` are those medians (2 CPUs, AMD EPYC, CPython 3.11.7, load 8); a stage fails at `SLACK` times
that. Who makes a stage faster lowers its number, or the gain is lost unnoticed.

Seen to fail, each by a step in Python for each task:

- `hash(repr(args))` before the loop over `args` in `dagsched.walking.walked_plainly`
  (where nothing is compiled): client;
- `[sum(divmod(p, 7)) + len(str(p)) for p in bundle.positions.tolist()]` twice at the top of
  `dagsched.brokers.dispatch.bundle_parcel`: scheduling;
- `str((index, code, position) * 4)` after ``status[STARTED] = now`` in `BundleRun.run_tasks`:
  executors.
"""

from collections.abc import Callable, Iterator

import pytest

from dagsched import walking
from dagsched.bench.graphs import Measured, chain, tree, wide
from dagsched.bench.inline import InlineCluster
from dagsched.bench.measuring import loop_cpu_s

TASKS = 20_000
ROUNDS = 5
SLACK = 2.0

GRAPHS: dict[str, Callable[[], Measured]] = {
    "wide": lambda: wide(TASKS),
    "chain": lambda: chain(TASKS),
    "tree": lambda: tree(8_192),
}

STAGES = {
    "client": ("walk", "cut", "encode"),
    "scheduling": ("master", "broker"),
    "executors": ("decode", "call", "reply"),
}

TODAY = {
    ("wide", "client"): 9.0, ("wide", "scheduling"): 8.8, ("wide", "executors"): 25,
    ("chain", "client"): 5.6, ("chain", "scheduling"): 4.4, ("chain", "executors"): 15,
    ("tree", "client"): 12.3, ("tree", "scheduling"): 6.2, ("tree", "executors"): 20,
}  # fmt: skip
"""How many calls in a plain loop a task costs in each stage."""

if walking._part is None:  # no compiler here
    TODAY |= {("wide", "client"): 23, ("chain", "client"): 22, ("tree", "client"): 32}


@pytest.fixture(scope="module")
def cluster() -> Iterator[InlineCluster]:
    with InlineCluster() as opened:
        yield opened


@pytest.mark.parametrize("graph", GRAPHS)
def test_no_stage_costs_twice_as_much_as_it_did(cluster: InlineCluster, graph: str) -> None:
    make = GRAPHS[graph]
    cluster.run(make())  # functions are measured, memory is warm
    loops_us, told = [], []
    for _ in range(ROUNDS):
        loops_us.append(loop_cpu_s(TASKS) / TASKS * 1e6)
        told.append(cluster.run(make()).per_task_us())
    found = {
        stage: min(sum(us[part] for part in parts) for us in told) / min(loops_us)
        for stage, parts in STAGES.items()
    }
    too_much = {
        stage: f"{multiple:.1f} plain calls a task, it was {TODAY[graph, stage]:.1f}"
        for stage, multiple in found.items()
        if multiple > SLACK * TODAY[graph, stage]
    }
    assert too_much == {}
