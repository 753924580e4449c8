"""What does the journal cost? The same runs with and without a store, turn by turn, in one process.

Question: how much longer does a run take with the embedded store than with ``memory://``? Two
environments of the same form live side by side; each round runs the same graph on both, in turns
which comes first, so that what the machine does meanwhile hits both. Beside the ratio of seconds:
what the client and the store's server computed more, as a share of the run's seconds, which a busy
machine disturbs less.

    python benchmarks/journal.py [--rounds 15] [--only wide] [--metastore URL]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from dagsched import Delayed, RunEnv, rundag
from dagsched.bench.graphs import chain, tree, wide

Make = Callable[[], tuple[Delayed, object]]


def server_cpu_s(env: RunEnv) -> float:
    """CPU seconds of the embedded store's server; 0 if there is none."""
    directory = str(env._cluster._names.directory)
    for process in psutil.process_iter(["name", "cmdline"]):
        if "valkey" in process.info["name"] and directory in " ".join(process.info["cmdline"]):
            stats = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
            return sum(int(path.read_text().split()[0]) for path in stats) / 1e9
    return 0.0


def seconds(env: RunEnv, make: Make, repeats: int) -> tuple[float, float]:
    """Seconds of one run, the mean of several where one is short; and CPU seconds for it."""
    graphs = [make() for _ in range(repeats)]
    server_s, cpu_s, start = server_cpu_s(env), time.process_time(), time.perf_counter()
    values = [rundag(env, dag, progress=False) for dag, _ in graphs]
    taken_s = (time.perf_counter() - start) / repeats
    env._cluster._storing.journal.flush(10)
    cpu_s = (time.process_time() - cpu_s + server_cpu_s(env) - server_s) / repeats
    if values != [expected for _, expected in graphs]:
        raise SystemExit(f"wrong result: {values[:3]!r}")
    return taken_s, cpu_s


CASES: dict[str, tuple[str, Make, int]] = {
    "wide": ("wide, 100,000 and one reduction", lambda: wide(100_000), 1),
    "chain": ("chain of 10,000", lambda: chain(10_000), 10),
    "tree": ("binary tree, 32,768 leaves", lambda: tree(32_768), 2),
    "small": ("10 tasks", lambda: wide(9), 200),
}


def spread(values: list[float], unit: str = "") -> str:
    """Median, and between which half of the values lie."""
    ranked = sorted(values)
    low, high = ranked[len(ranked) // 4], ranked[-1 - len(ranked) // 4]
    return f"{statistics.median(ranked):.3f}{unit} ({low:.3f} .. {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", choices=CASES, action="append")
    parser.add_argument("--metastore", help="of a server; without: the embedded one")
    args = parser.parse_args()
    with (
        RunEnv(executors=2, rootpath="/M", metastore="memory://") as without,
        RunEnv(executors=2, rootpath="/S", metastore=args.metastore) as with_store,
    ):
        print("| graph | memory://, ms | with the store, ms | ratio | more CPU |")
        print("| --- | --- | --- | --- | --- |")
        for key in args.only or CASES:
            name, make, repeats = CASES[key]
            for env in (without, with_store):
                seconds(env, make, repeats)
            plain: list[tuple[float, float]] = []
            stored: list[tuple[float, float]] = []
            for index in range(args.rounds):
                pairs = [(without, plain), (with_store, stored)]
                for env, taken in pairs if index % 2 else reversed(pairs):
                    taken.append(seconds(env, make, repeats))
            both = list(zip(plain, stored, strict=True))
            print(
                f"| {name} | {spread([s * 1e3 for s, _ in plain])} | "
                f"{spread([s * 1e3 for s, _ in stored])} | "
                f"{spread([more[0] / less[0] for less, more in both])} | "
                f"{spread([100 * (more[1] - less[1]) / less[0] for less, more in both], ' %')} |"
            )


main()
