"""`dagsched bench` as a user runs it: real processes, real figures; their order of size only."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dagsched import RunEnv
from dagsched.bench import arrays, costs, stages
from dagsched.bench.measuring import BenchError
from dagsched.bench.short import two_nodes
from tests.checkout import ROOT


def bench(*args: str, cwd: Path) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "dagsched", "bench", "--json", *args],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_the_short_version_answers_every_question(tmp_path: Path) -> None:
    told = bench("--rounds", "1", "--no-arrays", cwd=tmp_path)
    answers = {answer["question"]: answer for answer in told["answers"]}
    assert list(answers) == [
        "import", "RunEnv to first result", "cleanup",
        "wide, 100,000", "chain of 10,000", "tree, 65,536 leaves", "run of 10 tasks, warm",
        "wide, 10,000", "METG(50 %), stencil", "efficiency at 1 ms, stencil",
        "two nodes, wide, 100,000",
    ]  # fmt: skip
    assert told["machine"]["cpus"] >= 1
    for answer in answers.values():
        spread = answer["measured"]
        assert 0 < spread["least"] <= spread["median"] <= spread["most"]
    assert answers["wide, 100,000"]["ratio"] > 1
    # However busy the machine: a task on the pool is a message each way, and here it is none.
    assert answers["wide, 10,000"]["ratio"] < 1
    assert 0 < answers["efficiency at 1 ms, stencil"]["measured"]["median"] <= 100


def test_the_stages_add_up_to_the_time_that_all_processes_took(tmp_path: Path) -> None:
    told = bench("--stages", "--rounds", "1", cwd=tmp_path)
    us = {stage["key"]: stage["us"]["median"] for stage in told["stages"]}
    whole = ["client", "scheduling", "executors", "journal", "rest"]
    assert us["total"] == pytest.approx(sum(us[key] for key in whole))
    assert us["scheduling"] == pytest.approx(us["master"] + us["broker"])
    assert all(us[key] > 0 for key in ("walk", "cut", "encode", "decode", "call", "reply"))
    assert all(us[key] > 0 for key in whole)
    # No more CPU time than there are CPUs; all that counts ends with the run, or soon after.
    assert us["total"] <= told["wall_us"]["median"] * told["machine"]["cpus"] * 1.5
    assert us["client"] > 0.5 * (us["walk"] + us["cut"])


def test_the_chain_of_arrays_changes_its_executor() -> None:
    with RunEnv(executors=2, metastore="memory://") as env:
        answer = arrays.chain_answer(env, 1, steps=6, megabytes=2)
        # On a busy machine a step may be ready before the executor that it left.
        assert re.fullmatch(r"changed executors in [3-6] to [3-6] of 6 steps", answer.note)
        assert arrays.plain_chain_answer(env, 1, steps=6, megabytes=2).target is None
        assert arrays.reading_answer(env, 1, readers=4, megabytes=2).measured.median > 0


def test_a_chain_that_can_not_change_its_executor_is_an_error() -> None:
    with (
        RunEnv(executors=1, metastore="memory://") as env,
        pytest.raises(BenchError, match="the chain of 4 arrays changed its executor only 0 times"),
    ):
        arrays.chain_answer(env, 1, steps=4, megabytes=1)


def test_two_nodes_stand_beside_one() -> None:
    with RunEnv(executors=2, metastore="memory://") as one, two_nodes() as two:
        answer = costs.nodes_cost(one, two, "chain", 1)
    assert answer.measured.median > 0
    assert answer.target == 1.1


def test_stages_leave_other_environments_alone(env: RunEnv) -> None:
    told = stages.measure_stages(2_000, 1)
    assert told.task_count == 2_001
    assert env.nodes
