"""A million tasks: what the client with its master needs, as the benchmark measures it."""

import json
import os
import subprocess
import sys

import pytest

from tests.checkout import ROOT

PEAK_BYTES_MAX = 1_000_000_000
STATE_BYTES_MAX = 300  # a task, beyond the graph that the user has written down


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["wide", "chain"])
def test_a_million_tasks_within_their_memory(shape: str) -> None:
    script = str(ROOT / "benchmarks" / "scale.py")
    done = subprocess.run(
        [sys.executable, script, "--one", shape, "--tasks", "1000000"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tasks"] >= 1_000_000
    assert found["peak"] <= PEAK_BYTES_MAX
    assert found["state"] <= STATE_BYTES_MAX
