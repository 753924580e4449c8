"""What an open page costs: 100,000 tasks that do nothing, with a reader of its events and without.

Two environments live side by side; runs alternate between them, the order changes with each round,
and the medians are compared. The reader is a process of its own, as a browser is.

    python benchmarks/watched.py [--rounds 15] [--tasks 100000] [--json]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from urllib.parse import urlsplit

from dagsched import RunEnv, delayed, rundag

READER = """
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]))
connection.request("GET", "/events", headers={"Authorization": "Bearer " + sys.argv[3]})
response = connection.getresponse()
count = 0
print("ready", flush=True)
while line := response.readline():
    if line.startswith(b"data: "):
        count += 1
print(count, flush=True)
"""


def nothing() -> None:
    return None


def reader_of(env: RunEnv) -> "subprocess.Popen[str]":
    parts = urlsplit(str(env.dashboard_url))
    words = [str(parts.hostname), str(parts.port), parts.query.partition("=")[2]]
    process = subprocess.Popen(
        [sys.executable, "-c", READER, *words], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def seconds(env: RunEnv, tasks: int) -> tuple[float, float]:
    """Of one run from the built graph on: the wall's, and of the client's CPU."""
    calls = [delayed(nothing)() for _ in range(tasks)]
    begun_s, cpu_s = time.perf_counter(), time.process_time()
    rundag(env, calls)
    return time.perf_counter() - begun_s, time.process_time() - cpu_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    took: dict[str, list[tuple[float, float]]] = {"alone": [], "watched": []}
    with RunEnv(executors=2) as alone, RunEnv(executors=2, dashboard=True) as watched:
        envs = {"alone": alone, "watched": watched}
        reader = reader_of(watched)
        for env in envs.values():
            seconds(env, options.tasks)
        for number in range(options.rounds):
            for name in sorted(envs, reverse=bool(number % 2)):
                took[name].append(seconds(envs[name], options.tasks))
    assert reader.stdout is not None
    snapshots = int(reader.stdout.read())
    reader.wait()
    wall = {name: statistics.median(wall for wall, _ in rows) for name, rows in took.items()}
    cpu = {name: statistics.median(cpu for _, cpu in rows) for name, rows in took.items()}
    ratios = [b[0] / a[0] for a, b in zip(took["alone"], took["watched"], strict=True)]
    quarters = statistics.quantiles(ratios, n=4)
    result = {
        "tasks": options.tasks,
        "rounds": options.rounds,
        "snapshots": snapshots,
        "alone_s": wall["alone"],
        "watched_s": wall["watched"],
        "ratio": wall["watched"] / wall["alone"],
        "paired_ratio": statistics.median(ratios),
        "paired_quarters": [quarters[0], quarters[-1]],
        "client_cpu_us_a_task": {name: s / options.tasks * 1e6 for name, s in cpu.items()},
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"{options.tasks:,} tasks that do nothing, {options.rounds} rounds, medians")
    print(f"alone    {wall['alone']:.3f} s, client's CPU {cpu['alone']:.3f} s")
    print(f"watched  {wall['watched']:.3f} s, client's CPU {cpu['watched']:.3f} s")
    print(
        f"watched / alone {result['ratio']:.3f}; by pairs {result['paired_ratio']:.3f} "
        f"({quarters[0]:.3f} to {quarters[-1]:.3f}); {snapshots} snapshots were read"
    )


if __name__ == "__main__":
    main()
