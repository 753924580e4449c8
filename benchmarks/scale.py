"""What does a large graph cost: time to the result and to the first task, memory of the client?

Question: how long does a graph of N no-op tasks take from `submit` to its value and to the start of
its first task, and how many bytes a task does the client with its master need at the peak, beyond
what the user's own graph of `delayed` calls takes?

    python benchmarks/scale.py                            1,000,000 tasks, all shapes
    python benchmarks/scale.py --tasks 10000 --shape tree

Each measurement is a process of its own, whose peak is the kernel's (VmHWM of /proc, set back once
the graph has been written down). The client's process holds the master, a thread of it.
"""

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from dagsched import Delayed, RunEnv, delayed, submit
from dagsched.bench.graphs import add, chain, increment, noop, tree, wide

MB = 1_000_000
STEPS = 100


def stencil(count: int) -> tuple[Delayed, object]:
    """Rows of cells, each of which needs its two left neighbours of the row before."""
    width = max(2, count // STEPS)
    row = [delayed(noop)(i) for i in range(width)]
    for _ in range(STEPS - 1):
        row = [delayed(add)(row[i - 1], row[i]) for i in range(width)]
    return delayed(len)(row), width


def layered(count: int) -> tuple[Delayed, object]:
    """Layers of tasks that need one or two random ones of the layer before."""
    rng, width = random.Random(1), max(2, count // STEPS)
    layer = [delayed(noop)(i) for i in range(width)]
    for _ in range(STEPS - 1):
        layer = [
            delayed(add)(rng.choice(layer), rng.choice(layer))
            if rng.random() < 0.5
            else delayed(increment)(rng.choice(layer))
            for _ in range(width)
        ]
    return delayed(len)(layer), width


def leaves(count: int) -> tuple[Delayed, object]:
    """A binary reduction with about so many tasks in all; the number of leaves is a power of 2."""
    return tree(1 << max(1, round(math.log2(count / 2))))


SHAPES = {"wide": wide, "tree": leaves, "chain": chain, "stencil": stencil, "random": layered}


def memory(name: str) -> int:
    """Bytes that the kernel says this process has: VmRSS now, VmHWM at the most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"no {name} in /proc/self/status")


def measure(shape: str, count: int, executors: int, store: str | None) -> dict[str, float]:
    with RunEnv(executors=executors, metastore=store) as env:
        env.wait_for_nodes(timeout=60)
        submit(env, [delayed(increment)(1), delayed(add)(1, 2), delayed(noop)(0)]).result(60)
        bare = memory("VmRSS")
        graph, right = SHAPES[shape](count)
        built = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        begin_ns = time.monotonic_ns()
        run = submit(env, graph)
        submitted_ns = time.monotonic_ns()
        value = run.result(1800)
        end_ns = time.monotonic_ns()
        peak = memory("VmHWM")
        if value != right:
            sys.exit(f"{shape}: {value} is not {right}")
        trace = run.trace()
        tasks = trace.task_count
        first_ns = int(trace.start_ns[trace.ran].min())
    return {
        "tasks": tasks,
        "seconds": (end_ns - begin_ns) / 1e9,
        "submit_s": (submitted_ns - begin_ns) / 1e9,
        "first_s": (first_ns - begin_ns) / 1e9,
        "peak": peak,
        "graph": (built - bare) / tasks,
        "state": (peak - built) / tasks,
    }


def measured(shape: str, options: argparse.Namespace) -> list[dict[str, float]]:
    """Each round in a process of its own."""
    command = [sys.executable, __file__, "--one", shape, "--tasks", str(options.tasks)]
    command += ["--executors", str(options.executors)]
    command += ["--store", options.store] if options.store else []
    found = []
    for _ in range(options.rounds):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{shape}: {done.stdout}{done.stderr}")
        found.append(json.loads(done.stdout))
    return found


def spread(values: list[float], form: str) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    if len(values) == 1:
        return f"{middle:{form}}"
    return f"{middle:{form}} ({low:{form}} .. {high:{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--executors", type=int, default=2)
    parser.add_argument("--store", help="metadata store (default: the embedded one)")
    parser.add_argument("--one", choices=SHAPES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        found = measure(options.one, options.tasks, options.executors, options.store)
        print(json.dumps(found))
        return
    print(
        "| graph | tasks | to the result, s | to the first task, s | peak of the client, MB "
        "| the user's graph, B a task | beyond it at the peak, B a task |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for shape in options.shape or SHAPES:
        rounds = measured(shape, options)
        columns = {name: [each[name] for each in rounds] for name in rounds[0]}
        print(
            f"| {shape} | {rounds[0]['tasks']:,} | {spread(columns['seconds'], '.2f')} | "
            f"{spread(columns['first_s'], '.2f')} | "
            f"{spread([peak / MB for peak in columns['peak']], ',.0f')} | "
            f"{spread(columns['graph'], '.0f')} | {spread(columns['state'], '.0f')} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
