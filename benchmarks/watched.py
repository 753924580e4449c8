"""What does an open page cost? 100,000 tasks that do nothing, with somebody who reads and without.

Two environments live side by side and take turns; a turn is some runs, one after the other. The
order changes with each round. CPU time is of the client, brokers and executors, server and observer
among them, and suffers little from whatever else the machine does; the reader is a process of its
own, as a browser is, and its CPU isn't counted.

    python benchmarks/watched.py [--rounds 15] [--tasks 100000] [--json]
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import psutil

from dagsched import Delayed, RunEnv, delayed, rundag

RUNS = 4  # a turn

READER = """
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]))
connection.request("GET", "/events", headers={"Authorization": "Bearer " + sys.argv[3]})
response = connection.getresponse()
while line := response.readline():
    if line.startswith(b"data: "):
        print("read", flush=True)
"""


def nothing() -> None:
    return None


@contextlib.contextmanager
def reader_of(env: RunEnv) -> "Iterator[subprocess.Popen[str] | None]":
    """Somebody who looks, if the environment has a page."""
    if env.dashboard_url is None:
        yield None
        return
    parts = urlsplit(env.dashboard_url)
    words = [str(parts.hostname), str(parts.port), parts.query.partition("=")[2]]
    command = [sys.executable, "-c", READER, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "read\n"
        yield process
        process.terminate()


def cpu_s(but: int) -> float:
    """Of this process and all that it has started, without one of them."""
    own = psutil.Process()
    total = 0.0
    for process in [own, *own.children(recursive=True)]:
        if process.pid != but:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
    return total


def turn(env: RunEnv, graphs: list[list[Delayed]]) -> tuple[float, float]:
    """Seconds of the wall and of CPU that the runs of these took, in all."""
    with reader_of(env) as reader:
        but = 0 if reader is None else reader.pid
        begun_s, spent_s = time.perf_counter(), cpu_s(but)
        for calls in graphs:
            rundag(env, calls)
        return time.perf_counter() - begun_s, cpu_s(but) - spent_s


def ratio_of(took: dict[str, list[float]]) -> dict[str, float]:
    """Medians of both, and of the ratios by rounds, with quarters."""
    ratios = [b / a for a, b in zip(took["alone"], took["watched"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    medians = {name: statistics.median(rows) / RUNS for name, rows in took.items()}
    return medians | {"ratio": middle, "low": low, "high": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    wall: dict[str, list[float]] = {"alone": [], "watched": []}
    cpu: dict[str, list[float]] = {"alone": [], "watched": []}
    graphs = [[delayed(nothing)() for _ in range(options.tasks)] for _ in range(RUNS)]
    with RunEnv(executors=2) as alone, RunEnv(executors=2, dashboard=True) as watched:
        envs = {"alone": alone, "watched": watched}
        for env in envs.values():
            turn(env, graphs)
        for number in range(options.rounds):
            for name in sorted(envs, reverse=bool(number % 2)):
                wall_s, spent_s = turn(envs[name], graphs)
                wall[name].append(wall_s)
                cpu[name].append(spent_s)
    result = {"wall_s": ratio_of(wall), "cpu_s": ratio_of(cpu)}
    if options.json:
        print(json.dumps({"tasks": options.tasks, "rounds": options.rounds, **result}))
        return
    print(
        f"{options.tasks:,} tasks that do nothing, {options.rounds} rounds of {RUNS} runs, medians"
    )
    for name, found in result.items():
        print(
            f"{name:6}  alone {found['alone']:.3f}, watched {found['watched']:.3f}; "
            f"ratio {found['ratio']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
        )


if __name__ == "__main__":
    main()
