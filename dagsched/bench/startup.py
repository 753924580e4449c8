"""How long until something happens: import, first result, cleanup, each in a fresh process."""

import json
import subprocess
import sys
from typing import Any

from dagsched.bench.measuring import Answer, BenchError, Spread

PROGRAM = """
import json, time
start = time.perf_counter()
import dagsched
from dagsched import RunEnv, cleanup, delayed, rundag
imported = time.perf_counter()
env = RunEnv(executors={executors})
value = rundag(env, delayed(abs)(-1), progress=False)
first = time.perf_counter()
cleanup(env)
ended = time.perf_counter()
assert value == 1
print(json.dumps([imported - start, first - imported, ended - first]))
"""

TIMEOUT_S = 60.0
TARGETS_MS = {"import": 100.0, "RunEnv to first result": 400.0, "cleanup": 200.0}


def startup_s(executors: int = 2) -> list[float]:
    """Seconds of import, of `RunEnv` and a run of one task, and of `cleanup`, in a new process.

    Raises:
        BenchError: the process failed, or didn't end.
    """
    command = [sys.executable, "-c", PROGRAM.format(executors=executors)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise BenchError(
            f"a program with one task was not over after {TIMEOUT_S:.0f} s; look with: "
            "python -c 'from dagsched import *; rundag(RunEnv(debug=True), delayed(abs)(-1))'"
        ) from None
    if done.returncode != 0:
        raise BenchError(f"a program with one task failed: {done.stderr.strip()[-500:]}")
    seconds: Any = json.loads(done.stdout)
    return [float(each) for each in seconds]


def startup_answers(rounds: int) -> list[Answer]:
    """Import, first result and cleanup, in milliseconds; once more at first, for cold files."""
    startup_s()
    taken = [startup_s() for _ in range(rounds)]
    return [
        Answer(name, Spread.of(each).scaled(1e3), "ms", target)
        for (name, target), each in zip(TARGETS_MS.items(), zip(*taken, strict=True), strict=True)
    ]
