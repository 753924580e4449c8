"""Why tasks are where they are, and what happened to them, with real processes."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dagsched import NodeEnv, RunEnv, addprocs, delayed, faults, resume, rmprocs, submit
from dagsched.config import Config
from dagsched.errors import GraphError, TaskCancelled
from dagsched.run import Run
from tests import orphans
from tests.checkout import ROOT

TIMEOUT_S = 30.0


def soon(condition: Callable[[], bool]) -> None:
    """Look until something is so: who changes it (an executor's process) says nothing of it."""
    look = threading.Event()
    for _ in range(int(TIMEOUT_S / 0.02)):
        if condition():
            return
        look.wait(0.02)
    raise AssertionError("it isn't so yet")


@pytest.fixture
def two_nodes() -> Iterator[RunEnv]:
    ids = addprocs(6)
    nodes = [NodeEnv(ids[0], "127.0.0.1", ids[1:3]), NodeEnv(ids[3], "127.0.0.1", ids[4:6])]
    try:
        with RunEnv(nodes=nodes, metastore="memory://") as env:
            env.wait_for_nodes(timeout=TIMEOUT_S)
            yield env
    finally:
        rmprocs(ids)


def open_gate(path: Path) -> None:
    path.write_text("")


@delayed(timeout=60)
def at_gate(path: str, value: int) -> int:
    """A task, dispatched alone, that runs until a file is there."""
    import time

    while not os.path.exists(path):
        time.sleep(0.005)
    return value


@delayed
def total(*values: int) -> int:
    return sum(values)


def text_when(run: Run, key: object, part: str) -> str:
    """The explanation, once it has this part."""
    texts = [run.explain(key)]

    def has_part() -> bool:
        texts.append(run.explain(key))
        return part in texts[-1]

    try:
        soon(has_part)
    except AssertionError:
        raise AssertionError(f"{part!r} isn't in {texts[-1]!r}") from None
    return texts[-1]


def test_running_and_waiting_are_told_with_places_and_inputs(
    two_nodes: RunEnv, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    first, second = at_gate(str(gate), 1), at_gate(str(gate), 2)
    last = total(first, second, total(3))
    run = submit(two_nodes, last)
    text = text_when(run, first, "is running on executor")
    assert text.startswith(f"{first.key} is running on executor")
    text = text_when(run, last, "of 3 inputs")
    assert f"{first.key} is running" in text or f"{second.key} is running" in text
    with pytest.raises(GraphError, match=f"has no task with key 'total-0'; there are .*{last.key}"):
        run.explain("total-0")
    open_gate(gate)
    assert run.result(TIMEOUT_S) == 6
    assert f"{last.key} has run on executor" in run.explain(last.key)
    story = run.story(first)
    assert any("placed on node" in line for line in story)
    assert any("started on executor" in line for line in story)
    assert story[-1].endswith("the run ended as done")


def test_a_crash_and_an_exception_are_in_the_story_and_counted_apart(
    two_nodes: RunEnv, tmp_path: Path
) -> None:
    marks = [tmp_path / "crashed", tmp_path / "raised"]

    def crash_once(mark: str) -> int:
        if not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return 1

    def raise_once(mark: str) -> int:
        if not os.path.exists(mark):
            open(mark, "w").close()
            raise ValueError("not yet")
        return 2

    crashing = delayed(crash_once)(str(marks[0]))
    raising = delayed(raise_once, retries=1)(str(marks[1]))
    run = submit(two_nodes, total(crashing, raising))
    assert run.result(TIMEOUT_S) == 3
    crashed = "\n".join(run.story(crashing))
    assert "attempt 1 on executor" in crashed
    assert "was killed by signal 9" in crashed
    assert "attempt 2" in crashed
    raised = "\n".join(run.story(raising))
    assert "came to nothing: ValueError: not yet" in raised
    numbers = run.stats()["run"]
    assert (numbers["crash_retry_count"], numbers["exception_retry_count"]) == (1, 1)
    assert numbers["retry_count"] == 2
    counters = two_nodes.stats()["counters"]
    assert counters["executor_losses"] == 1
    assert (counters["crash_retries"], counters["exception_retries"]) == (1, 1)
    assert two_nodes.stats()["stalls"] == 0


def test_a_stopped_executor_is_a_stall_that_names_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate, pid_file = tmp_path / "gate", tmp_path / "pid"

    def wait_there(path: str, pid_path: str) -> int:
        import time

        Path(f"{pid_path}.new").write_text(str(os.getpid()))
        Path(f"{pid_path}.new").rename(pid_path)
        while not os.path.exists(path):
            time.sleep(0.005)
        return 7

    config = Config(stall_warning_s=0.3)
    with RunEnv(executors=1, metastore="memory://", config=config) as env:
        env.wait_for_nodes(timeout=TIMEOUT_S)
        task = delayed(wait_there)(str(gate), str(pid_file))
        run = submit(env, task)
        soon(pid_file.exists)
        pid = int(pid_file.read_text())
        with caplog.at_level(logging.WARNING, logger="dagsched"):
            os.kill(pid, signal.SIGSTOP)
            soon(lambda: env.stats()["stalls"] == 1)
        os.kill(pid, signal.SIGCONT)
        open_gate(gate)
        assert run.result(TIMEOUT_S) == 7
        [warning] = [
            r.getMessage() for r in caplog.records if "nothing has moved" in r.getMessage()
        ]
        assert f"{task.key} was begun" in warning
        assert "whose process has been stopped by a signal" in warning
        assert any("nothing moved in the run" in line for line in run.story(task))
        assert run.stats()["run"]["stall_count"] == 1


def test_executors_that_die_at_start_are_the_cause_of_a_stall(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(faults.VARIABLE, "executor.before_hello:1:kill")
    config = Config(stall_warning_s=0.3)
    with (
        caplog.at_level(logging.WARNING, logger="dagsched"),
        RunEnv(executors=1, metastore="memory://", config=config) as env,
    ):
        env.wait_for_nodes(timeout=TIMEOUT_S)
        task = total(1)
        run = submit(env, task)
        died = f"executor {env.nodes[0].executorids[0]} was killed by signal 9"
        text_when(run, task, f"has no executor yet ({died})")
        soon(lambda: any(died in record.getMessage() for record in caplog.records))
        run.cancel()
        assert isinstance(run.exception(TIMEOUT_S), TaskCancelled)


def test_a_lost_node_is_in_the_story_of_what_it_ran(two_nodes: RunEnv, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    tasks = [at_gate(str(gate), n) for n in range(2)]
    run = submit(two_nodes, total(*tasks))
    for task in tasks:
        text_when(run, task, "is running on executor")
    lost = next(
        node for node in two_nodes.nodes if f"of node {node.brokerid}" in run.explain(tasks[0])
    )
    broker = two_nodes._cluster._brokers.latest(lost.brokerid)  # type: ignore[union-attr]
    assert broker is not None
    os.kill(broker.process.pid, signal.SIGKILL)
    soon(lambda: any(f"node {lost.brokerid} was lost" in line for line in run.story(tasks[0])))
    open_gate(gate)
    assert run.result(TIMEOUT_S) == 1
    assert run.stats()["run"]["node_loss_count"] == 1
    places = [line for line in run.story(tasks[0]) if "placed on node" in line]
    assert len(places) >= 2
    assert f"placed on node {lost.brokerid} " in places[0]
    assert f"placed on node {lost.brokerid} " not in places[-1]


# --- from the journal -----------------------------------------------------------------------------


def told_by_command(*args: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "dagsched", *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    return done.returncode, done.stdout, done.stderr


def test_another_process_reads_why_from_the_journal_of_a_living_client(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with RunEnv(executors=1) as env:
        first = at_gate(str(gate), 1)
        last = total(first, 2)
        run = submit(env, last)
        soon(lambda: "placed" in told_by_command("story", run.run_id, last.key)[1])
        code, text, errors = told_by_command("explain", run.run_id, first.key)
        assert (code, errors) == (0, "")
        assert text.startswith(f"{first.key} was placed on node {env.nodes[0].brokerid}")
        assert f"Its client, process {os.getpid()}, lives: run.explain(..)" in text
        code, text, _ = told_by_command("explain", run.run_id, last.key, "--json")
        told = json.loads(text)
        assert (code, told["state"], told["node"]) == (0, "placed", env.nodes[0].brokerid)
        assert told["story"][0].endswith(f"depends on {first.key}")
        code, text, errors = told_by_command("explain", run.run_id, "total-0")
        assert (code, text) == (1, "")
        assert f"has no task with key 'total-0'; there are {last.key}" in errors
        assert "Traceback" not in errors
        open_gate(gate)
        assert run.result(TIMEOUT_S) == 3
        soon(lambda: "is done" in told_by_command("explain", run.run_id, first.key)[1])


BEGIN = """
env = RunEnv(executors=1)
env.wait_for_nodes()
task = delayed(time.sleep, name="sleeper")(0)
slow = delayed(max, name="slow")(delayed(time.sleep, timeout=60)(20), task)
run = submit(env, [task, slow])
print(run.run_id, task.key, slow.key, flush=True)
while "placed" not in subprocess.run(
    [sys.executable, "-m", "dagsched", "story", run.run_id, task.key],
    capture_output=True, text=True,
).stdout:
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_journal_of_a_dead_client_tells_why_and_what_to_do() -> None:
    run_id, task, slow = orphans.dead_client("import subprocess\n" + BEGIN)
    code, text, errors = told_by_command("explain", run_id, slow)
    assert (code, errors) == (0, "")
    assert text.startswith(f"{slow} was placed on node")
    assert f"`dagsched resume {run_id}` goes on with the run" in text
    code, text, _ = told_by_command("story", run_id, task)
    assert code == 0
    assert (
        text.splitlines()[0] == f"submitted with run {run_id}, function sleep, depends on nothing"
    )
    assert "placed on node" in text
    with RunEnv(executors=1, rootpath="/heir") as env:
        run = resume(env, run_id)
        run.cancel()
        assert isinstance(run.exception(TIMEOUT_S), TaskCancelled)
        story = run.story(task)
        assert story[0].startswith(f"earlier: {task} submitted with run {run_id}")
        assert any("the run goes on here, for its last client was lost" in line for line in story)
    code, text, errors = told_by_command("explain", run_id, task)
    assert (code, text) == (1, "")
    assert f"nothing is left of the environment of run {run_id}" in errors
    assert "Traceback" not in errors


def test_runs_in_the_memory_of_their_client_are_said_to_be(tmp_path: Path) -> None:
    with RunEnv(executors=1, metastore="memory://") as env:
        task = total(1, 2)
        run = submit(env, task)
        assert run.result(TIMEOUT_S) == 3
        code, _, errors = told_by_command("explain", run.run_id, task.key)
        assert code == 1
        assert "own memory (metastore 'memory://')" in errors
