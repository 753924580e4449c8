"""A client dies by SIGKILL; its run is continued by another process, and nothing is lost."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dagsched import NodeEnv, RunEnv, addprocs, resume
from tests import orphans
from tests.chaos import harness

BEGIN = """
directory, leaves, seconds, width, kill_at = sys.argv[1], *map(float, sys.argv[2:])
env = RunEnv(nodes=two_nodes())
env.wait_for_nodes()
run = submit(env, orphans.tree(directory, int(leaves), seconds, int(width)))
print(run.run_id, flush=True)
time.sleep(0.15)  # the plan is in the store by then
die_at(run, kill_at)
"""

CONTINUE = """
run_id, kill_at = sys.argv[1], float(sys.argv[2])
env = RunEnv(executors=2, rootpath="/second")
run = resume(env, run_id)
die_at(run, kill_at)
"""


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Where tasks note their executions."""
    directory = tmp_path / "notes"
    directory.mkdir()
    return directory


def check_resumed(run_id: str, notes: Path, leaf_count: int, width: int = 2) -> float | None:
    """Continue a run here and compare everything; seconds until a first task on our own node."""
    expected, task_count = orphans.tree_value(leaf_count, width)
    with RunEnv(executors=2, rootpath="/other") as env:
        env.wait_for_nodes(timeout=20)
        resumed_s = time.monotonic()
        run = resume(env, run_id)
        assert run.run_id == run_id
        assert harness.value_of(env, run, 20) == expected
        assert run.progress() == (task_count, task_count)
        assert resume(env, run_id) is run
    counts = orphans.counts(notes)
    assert len(counts) == task_count
    again = {task: count for task, count in counts.items() if count != 1}
    assert not again, f"{len(again)} tasks whose values lived were executed again"
    known = {e.pid for e in orphans.executions(notes) if e.at_s < resumed_s}
    ours = (e.at_s - resumed_s for e in orphans.executions(notes) if e.pid not in known)
    return min(ours, default=None)


def check_nothing_again(run_id: str, notes: Path, leaf_count: int) -> None:
    """The result of a run that had ended, without executing anything once more."""
    expected, task_count = orphans.tree_value(leaf_count)
    with RunEnv(executors=2) as env:
        assert harness.value_of(env, resume(env, run_id), 20) == expected
    counts = orphans.counts(notes)
    assert len(counts) == task_count
    assert max(counts.values()) == 1


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "share", [0.3, *(pytest.param(share, marks=SLOW) for share in (0.0, 0.05, 0.6, 0.95))]
)
def test_the_client_of_20_000_tasks_dies(notes: Path, share: float) -> None:
    leaf_count, seconds = 10_000, 0.000_2
    kill_at = share * 20_000
    (run_id,) = orphans.dead_client(BEGIN, notes, leaf_count, seconds, 2, kill_at)
    first_s = check_resumed(run_id, notes, leaf_count)
    if first_s is None:
        assert share > 0.9, "brokers of the dead client had all of the rest"
    else:
        assert first_s < 2


@SLOW
def test_the_client_of_100_000_tasks_dies(notes: Path) -> None:
    leaf_count, seconds = 90_000, 0.000_05
    (run_id,) = orphans.dead_client(BEGIN, notes, leaf_count, seconds, 10, 20_000)
    first_s = check_resumed(run_id, notes, leaf_count, 10)
    assert first_s is not None
    assert first_s < 2
    print(f"first task of the new node after {first_s:.3f} s")


def test_whoever_resumes_dies_too(notes: Path) -> None:
    leaf_count, seconds = 10_000, 0.000_2
    (run_id,) = orphans.dead_client(BEGIN, notes, leaf_count, seconds, 2, 3_000)
    orphans.dead_client(CONTINUE, run_id, 8_000)
    orphans.dead_client(CONTINUE, run_id, 14_000)
    check_resumed(run_id, notes, leaf_count)


def test_a_client_that_dies_as_its_run_ends(notes: Path) -> None:
    # Brokers have freed everything by then: the journal must have the outputs before they do.
    leaf_count, seconds = 1_000, 0.000_4
    ending = BEGIN.replace(
        "die_at(run, kill_at)",
        "run.add_done_callback(lambda run: os.kill(os.getpid(), signal.SIGKILL))\ntime.sleep(20)",
    )
    (run_id,) = orphans.dead_client(ending, notes, leaf_count, seconds, 2, 0)
    check_nothing_again(run_id, notes, leaf_count)


def test_the_result_outlives_whoever_resumed_the_run(notes: Path) -> None:
    leaf_count, seconds = 1_000, 0.000_2
    (run_id,) = orphans.dead_client(BEGIN, notes, leaf_count, seconds, 2, 500)
    finishing = CONTINUE.replace(
        "die_at(run, kill_at)",
        "run.exception(20)\n"
        "adopted = [b for b in env._cluster._brokers._started if b.node.brokerid >= 10**9]\n"
        "assert adopted\n"
        "for broker in adopted: broker.process.wait(20)\n"
        "os.kill(os.getpid(), signal.SIGKILL)",
    )
    orphans.dead_client(finishing, run_id, 0)
    for _ in range(2):  # the first one's sweep must not take what it looks for
        with RunEnv(executors=1):
            pass
    check_nothing_again(run_id, notes, leaf_count)


def test_a_broker_dies_with_the_client(notes: Path) -> None:
    leaf_count, seconds = 10_000, 0.000_2
    killing = BEGIN.replace(
        "die_at(run",
        "victim = env._cluster._brokers.own()[0][0]\n"
        "while run.progress()[0] < kill_at: time.sleep(0.0005)\n"
        "os.kill(victim, signal.SIGKILL)\ndie_at(run",
    )
    (run_id,) = orphans.dead_client(killing, notes, leaf_count, seconds, 2, 6_000)
    expected, task_count = orphans.tree_value(leaf_count)
    with RunEnv(executors=2) as env:
        assert harness.value_of(env, resume(env, run_id), 20) == expected
    counts = orphans.counts(notes)
    assert len(counts) == task_count
    assert max(counts.values()) <= 2
    # What the living broker had is not computed again, nor what it had needed of the dead one.
    assert sum(counts.values()) < 1.5 * task_count


def test_on_the_command_line(notes: Path, tmp_path: Path) -> None:
    leaf_count = 2_000
    (run_id,) = orphans.dead_client(BEGIN, notes, leaf_count, 0.000_5, 2, 1_000)
    expected, task_count = orphans.tree_value(leaf_count)
    command = [sys.executable, "-m", "dagsched"]
    listed = subprocess.run(
        [*command, "runs"], capture_output=True, text=True, check=True, timeout=60
    )
    line = next(line for line in listed.stdout.splitlines() if line.startswith(run_id))
    assert "resumable" in line
    assert f"/{task_count}" in line
    said = subprocess.run(
        [*command, "resume", run_id, "--executors", "2", "-o", str(tmp_path / "value")],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout == f"{expected}\n"
    again = subprocess.run(
        [*command, "resume", run_id], capture_output=True, text=True, check=False
    )
    assert again.returncode == 1
    assert again.stderr.startswith(f"dagsched: run '{run_id}' is unknown")
    assert "Traceback" not in again.stderr


@SLOW
def test_nodes_of_any_kind_go_on(notes: Path) -> None:
    (run_id,) = orphans.dead_client(BEGIN, notes, 2_000, 0.000_5, 2, 1_000)
    expected, _ = orphans.tree_value(2_000)
    ids = addprocs(5)
    nodes = [NodeEnv(ids[0], "127.0.0.1", ids[1:3]), NodeEnv(ids[3], "127.0.0.1", ids[4:])]
    with RunEnv(nodes=nodes, rootpath="/quite/another") as env:
        assert harness.value_of(env, resume(env, run_id), 10) == expected
    assert set(orphans.counts(notes).values()) == {1}


@pytest.mark.parametrize("listens", [(True, False), (False, True), (True, True)])
def test_over_tcp_and_paths(notes: Path, listens: tuple[bool, bool]) -> None:
    """Orphans have no keys of the next environment: they are heard over a path."""
    first, second = ("tcp://127.0.0.1" if listen else None for listen in listens)
    begin = BEGIN.replace("nodes=two_nodes()", f"nodes=two_nodes(), listen={first!r}")
    (run_id,) = orphans.dead_client(begin, notes, 2_000, 0.000_5, 2, 1_000)
    expected, _ = orphans.tree_value(2_000)
    ids = addprocs(5)
    nodes = [NodeEnv(ids[0], "127.0.0.1", ids[1:3]), NodeEnv(ids[3], "127.0.0.1", ids[4:])]
    with RunEnv(nodes=nodes, rootpath="/other", listen=second) as env:
        assert harness.value_of(env, resume(env, run_id), 10) == expected
    assert set(orphans.counts(notes).values()) == {1}


def test_no_client_of_ours_is_disturbed(notes: Path) -> None:
    """The sweep of an environment that opens spares what can be resumed."""
    (run_id,) = orphans.dead_client(BEGIN, notes, 2_000, 0.000_5, 2, 1_000)
    with RunEnv(executors=1, metastore="memory://") as bystander:
        bystander._cluster._sweeper.stop(5)  # type: ignore[union-attr]
    expected, _ = orphans.tree_value(2_000)
    with RunEnv(executors=2) as env:
        assert harness.value_of(env, resume(env, run_id), 10) == expected
    assert set(orphans.counts(notes).values()) == {1}
    assert os.listdir(notes)
