"""What does the journal cost? The same runs with and without a store, turn by turn, in one process.

Question: how much longer does a run take with the embedded store than with ``memory://``? Two
environments of the same form live side by side; each round runs the same graph on both, in turns
which comes first, so that what the machine does meanwhile hits both.

    python benchmarks/journal.py [--rounds 15] [--only wide] [--metastore URL]
"""

import argparse
import statistics
import time
from collections.abc import Callable

from dagsched import Delayed, RunEnv, delayed, rundag


def noop(i):
    return i


def total(*values):
    return len(values)


def inc(x):
    return x + 1


def add(x, y):
    return x + y


def wide(count: int) -> tuple[Delayed, object]:
    return delayed(total)(*[delayed(noop)(i) for i in range(count)]), count


def chain(count: int) -> tuple[Delayed, object]:
    node: object = 0
    for _ in range(count):
        node = delayed(inc)(node)
    return node, count


def tree(leaves: int) -> tuple[Delayed, object]:
    level = [delayed(noop)(i) for i in range(leaves)]
    while len(level) > 1:
        level = [delayed(add)(level[i], level[i + 1]) for i in range(0, len(level), 2)]
    return level[0], leaves * (leaves - 1) // 2


Make = Callable[[], tuple[Delayed, object]]


def seconds(env: RunEnv, make: Make, repeats: int) -> float:
    """Seconds of one run, the mean of several where one is short."""
    graphs = [make() for _ in range(repeats)]
    start = time.perf_counter()
    values = [rundag(env, dag, progress=False) for dag, _ in graphs]
    taken_s = (time.perf_counter() - start) / repeats
    if values != [expected for _, expected in graphs]:
        raise SystemExit(f"wrong result: {values[:3]!r}")
    return taken_s


CASES: dict[str, tuple[str, Make, int]] = {
    "wide": ("wide, 100,000 and one reduction", lambda: wide(100_000), 1),
    "chain": ("chain of 10,000", lambda: chain(10_000), 10),
    "tree": ("binary tree, 32,768 leaves", lambda: tree(32_768), 2),
    "small": ("10 tasks", lambda: wide(9), 200),
}


def spread(values: list[float], unit: str = "") -> str:
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
        print("| graph | memory://, ms | with the store, ms | ratio, median (quartiles) |")
        print("| --- | --- | --- | --- |")
        for key in args.only or CASES:
            name, make, repeats = CASES[key]
            for env in (without, with_store):
                seconds(env, make, repeats)
            plain_s, stored_s = [], []
            for index in range(args.rounds):
                pairs = [(without, plain_s), (with_store, stored_s)]
                for env, taken in pairs if index % 2 else reversed(pairs):
                    taken.append(seconds(env, make, repeats))
            ratios = [stored / plain for stored, plain in zip(stored_s, plain_s, strict=True)]
            print(
                f"| {name} | {spread([s * 1e3 for s in plain_s])} | "
                f"{spread([s * 1e3 for s in stored_s])} | {spread(ratios)} |"
            )


main()
