"""What do calls cost that are submitted one by one, or mapped?

Question: how many times the calls a second of the standard library's process pool, and of joblib's
loky, does an environment make, with as many processes, in turn? And what do a million inputs (or
ten) cost in time and memory, where they are mapped lazily? Ratios within one run, medians.

    python benchmarks/frontends.py [--rounds 5] [--inputs 1000000] [--executors 2]

Calls add 1 to an int. loky is asked only where joblib is installed.
"""

import contextlib
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context

from common import arguments, positive, print_section

from dagsched import RunEnv
from dagsched.plugins.futures import DagschedExecutor

CALLS = 10_000


def add_one(x: int) -> int:
    return x + 1


def submitted_s(executor: Executor) -> float:
    """Seconds from the first of the submits until the last result was there."""
    begun_s = time.perf_counter()
    futures = [executor.submit(add_one, n) for n in range(CALLS)]
    assert sum(future.result() for future in futures) == CALLS * (CALLS + 1) // 2
    return time.perf_counter() - begun_s


def chained_s(submit: Callable[[int], int], count: int) -> float:
    begun_s = time.perf_counter()
    value = 0
    for _ in range(count):
        value = submit(value)
    assert value == count
    return time.perf_counter() - begun_s


def chain_of_futures_s(executor: DagschedExecutor, count: int) -> float:
    begun_s = time.perf_counter()
    future = executor.submit(add_one, 0)
    for _ in range(count - 1):
        future = executor.submit(add_one, future)  # type: ignore[arg-type]  # it stands for an int
    assert future.result() == count
    return time.perf_counter() - begun_s


def joblib_s(**options: object) -> float:
    import joblib

    with joblib.parallel_config(**options):
        begun_s = time.perf_counter()
        found = joblib.Parallel()(joblib.delayed(add_one)(n) for n in range(CALLS))
        assert found[-1] == CALLS
        return time.perf_counter() - begun_s


def row(name: str, ours: Sequence[float], theirs: Sequence[float], other: str) -> str:
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    ours_us, theirs_us = (1e6 * statistics.median(times) / CALLS for times in (ours, theirs))
    return f"| {name} | {ours_us:.1f} us | {other}: {theirs_us:.1f} us | {ratio:.1f} x |"


def mapped(env: RunEnv, count: int) -> str:
    """Time, memory and how far inputs were ahead, of a lazy map."""
    taken = ahead = 0

    def inputs() -> Iterator[int]:
        nonlocal taken
        for n in range(count):
            taken += 1
            yield n

    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    begun_s = time.perf_counter()
    total = 0
    for given, value in enumerate(env.map(add_one, inputs()), 1):
        total += value
        ahead = max(ahead, taken - given)
    seconds = time.perf_counter() - begun_s
    assert total == count * (count + 1) // 2
    grown_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before_mb
    return (
        f"env.map over {count:,} inputs: {seconds:.1f} s, {1e6 * seconds / count:.2f} us each; "
        f"the client grew by {grown_mb:.0f} MB, inputs were at most {ahead:,} ahead"
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--inputs", type=positive, default=1_000_000)
    parser.add_argument("--executors", type=positive, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    rows = []
    with contextlib.ExitStack() as opened:
        env = opened.enter_context(RunEnv(executors=given.executors))
        ours = opened.enter_context(DagschedExecutor(env=env))
        context = get_context("forkserver")
        pool = opened.enter_context(ProcessPoolExecutor(given.executors, context))
        for executor in (ours, pool):
            submitted_s(executor)
        times = [(submitted_s(ours), submitted_s(pool)) for _ in range(given.rounds)]
        rows.append(row(f"{CALLS:,} submits", *zip(*times, strict=True), "process pool"))
        times = [
            (
                chain_of_futures_s(ours, CALLS),
                chained_s(lambda x: pool.submit(add_one, x).result(), CALLS),
            )
            for _ in range(given.rounds)
        ]
        rows.append(row(f"chain of {CALLS:,}", *zip(*times, strict=True), "pool, one by one"))
        try:
            from dagsched.plugins.joblib import register

            register()
        except ImportError as error:
            print(error)
        else:
            loky = {"backend": "loky", "n_jobs": given.executors}
            dagsched = {"backend": "dagsched", "env": env}
            for options in (loky, dagsched):
                joblib_s(**options)
            times = [(joblib_s(**dagsched), joblib_s(**loky)) for _ in range(given.rounds)]
            rows.append(row(f"joblib, {CALLS:,} calls", *zip(*times, strict=True), "loky"))
        table = "| calls | a call | beside it | so many times faster |\n| --- | --- | --- | --- |\n"
        print_section(table + "\n".join(rows) + "\n\n" + mapped(env, given.inputs))


if __name__ == "__main__":
    main()
