"""Executors that die or stand still at the worst moments: what ran is repeated, nothing else."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from dagsched import RunEnv, delayed, submit
from dagsched.errors import TaskCancelled, TaskTimedOut
from dagsched.faults import LOG_VARIABLE, VARIABLE
from tests.chaos import harness
from tests.chaos.harness import Gate, Tally


@pytest.fixture
def fault_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where calls of fault points are counted across all processes of environments to come."""
    path = tmp_path / "faults"
    monkeypatch.setenv(LOG_VARIABLE, str(path))
    return path


def counted_array(tally: Tally, n: int) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    tally.mark(n)
    return np.full(50_000, float(n))


def counted(tally: Tally, n: int, seconds: float = 0.0) -> int:
    tally.mark(n)
    time.sleep(seconds)
    return n


def held(tally: Tally, gate: Gate, name: object) -> object:
    tally.mark(name)
    gate.wait()  # type: ignore[attr-defined]  # in a task it is the other end
    return name


@pytest.mark.parametrize(
    "point",
    [
        "arena.before_seal",
        "arena.in_allocator",
        pytest.param("arena.reserve", marks=pytest.mark.slow),
    ],
)
def test_killed_while_it_writes_shared_memory(
    point: str, tally: Tally, fault_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody shares the allocator, so there is no lock that the dead could hold.
    # The first call is the broker's, which stores a constant that all tasks share.
    nth = 1 if point == "arena.before_seal" else 2
    monkeypatch.setenv(VARIABLE, f"{point}:{nth}:kill")
    with RunEnv(executors=2, metastore="memory://") as env:
        tasks = [delayed(counted_array)(tally, n) for n in range(6)]
        run = submit(env, tasks)
        values = harness.value_of(env, run)
        assert [value.sum() for value in values] == [50_000.0 * n for n in range(6)]
        assert sum(harness.restart_counts(env).values()) == 1
        counts = tally.counts()
        assert sorted(counts) == [str(n) for n in range(6)]
        assert max(counts.values()) == 2
        del run, values
        # What the dead one had reserved is given back with the last object of its that lives.
        (row,) = env.stats()["brokers"]
        harness.until(lambda: env.stats()["brokers"][0]["live_bytes"] == 0, what=f"frees {row}")
        harness.assert_whole(env)


def test_killed_between_commit_and_acknowledgement(
    tally: Tally, fault_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "executor.after_report:1:kill")
    with RunEnv(executors=1, metastore="memory://") as env:
        run = submit(env, [delayed(counted)(tally, n) for n in range(200)])
        assert harness.value_of(env, run) == list(range(200))
        # The broker has read what the dead one sent: not one task is repeated or charged.
        assert set(tally.counts().values()) == {1}
        assert sum(harness.restart_counts(env).values()) == 1
        assert run.stats()["run"]["retry_count"] == 0


def test_killed_before_it_reports(
    tally: Tally, fault_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "executor.before_report:1:kill")
    with RunEnv(executors=1, metastore="memory://") as env:
        run = submit(env, [delayed(counted)(tally, n) for n in range(200)])
        assert harness.value_of(env, run) == list(range(200))
        counts = tally.counts()
        assert max(counts.values()) == 2
        repeated = [name for name, count in counts.items() if count == 2]
        assert repeated, "what the dead one had done is lost"
        assert len(repeated) < 100, "and only that"
        # Of several it is nobody's fault; a task that was alone in its bundle is charged.
        assert run.stats()["run"]["retry_count"] == (len(repeated) == 1)


@pytest.mark.slow
def test_killed_at_its_start(fault_log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = ",".join(f"executor.before_hello:{nth}:kill" for nth in range(1, 5))
    monkeypatch.setenv(VARIABLE, faults)
    with RunEnv(executors=2, metastore="memory://") as env:
        harness.assert_whole(env)
        assert len(fault_log.read_text().splitlines()) == 6


def test_a_long_bundle_gives_what_has_ended(env: RunEnv, tally: Tally, tmp_path: Path) -> None:
    # Never measured, they are taken for short and share bundles.
    with Gate(tmp_path / "gate") as gate:
        tasks: list[object] = [delayed(counted)(tally, n, 0.12) for n in range(6)]
        last = delayed(held)(tally, gate, "last")
        run = submit(env, [*tasks, last])
        (pid, *_) = tally.wait_for("last")
        harness.until(lambda: sum(tally.counts().values()) == 7, what="the others")
        os.kill(pid, signal.SIGKILL)
        tally.wait_for("last", 2)
        gate.open()
        assert harness.value_of(env, run, 1) == [*range(6), "last"]
    assert tally.counts() == {**{str(n): 1 for n in range(6)}, "last": 2}


# --- stopped --------------------------------------------------------------------------------------


def test_stopped_and_killed_by_its_timeout(env: RunEnv, tally: Tally, tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate:
        run = submit(env, delayed(held, timeout=1, retries=1)(tally, gate, "held"))
        (pid,) = tally.wait_for("held")
        os.kill(pid, signal.SIGSTOP)
        tally.wait_for("held", 2)  # in another executor; the zombie is gone and can't commit
        harness.until(lambda: not harness.is_alive(pid), what="end of the stopped one")
        gate.open()
        assert harness.value_of(env, run, 2) == "held"
    assert tally.counts()["held"] == 2
    harness.assert_whole(env)


@pytest.mark.slow
def test_stopped_without_retries(env: RunEnv, tally: Tally, tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate:
        run = submit(env, delayed(held, timeout=0.5)(tally, gate, "held"))
        (pid,) = tally.wait_for("held")
        os.kill(pid, signal.SIGSTOP)
        error = harness.error_of(env, run, 0.5)
    assert isinstance(error, TaskTimedOut)
    harness.assert_whole(env)


def test_stopped_and_cancelled(env: RunEnv, tally: Tally, tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate:
        run = submit(env, delayed(held)(tally, gate, "held"))
        (pid,) = tally.wait_for("held")
        os.kill(pid, signal.SIGSTOP)
        started = time.monotonic()
        assert run.cancel()
        assert isinstance(harness.error_of(env, run), TaskCancelled)
        harness.until(lambda: not harness.is_alive(pid), 2, "end of the stopped one")
        assert time.monotonic() - started < 2
    harness.assert_whole(env)


@pytest.mark.parametrize("seconds", [1, pytest.param(60, marks=pytest.mark.slow)])
def test_stopped_for_a_while(env: RunEnv, tally: Tally, tmp_path: Path, seconds: int) -> None:
    # Without a timeout nobody may say that it takes too long: the others go on, it is waited for.
    with Gate(tmp_path / "gate") as gate:
        long = submit(env, delayed(held)(tally, gate, "held"))
        (pid,) = tally.wait_for("held")
        os.kill(pid, signal.SIGSTOP)
        gate.open()
        stopped_at = time.monotonic()
        while time.monotonic() - stopped_at < seconds:
            run = submit(env, [delayed(counted)(tally, n) for n in range(100)])
            assert harness.value_of(env, run) == list(range(100))
        assert not long.done()
        os.kill(pid, signal.SIGCONT)
        assert harness.value_of(env, long, 1) == "held"
    assert tally.counts()["held"] == 1
    assert set(harness.restart_counts(env).values()) == {0}


def test_a_batch_of_before_its_kill_counts_once(
    tally: Tally, fault_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The executor reports just when its time is over; the kill comes after the report."""
    monkeypatch.setenv(VARIABLE, "executor.after_report:1:delay:1500")
    with RunEnv(executors=1, metastore="memory://") as env:
        run = submit(env, delayed(counted, timeout=1)(tally, 1, 0.5))
        assert harness.value_of(env, run, 1) == 1
        assert tally.counts()["1"] == 1
        harness.assert_whole(env, 1)


# --- a slow disk ----------------------------------------------------------------------------------


def talkative(n: int) -> int:
    print("line", n, flush=True)
    return n


def test_no_dispatch_waits_for_a_slow_disk(
    fault_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each write of what executors print takes half a second.
    faults = ",".join(f"log.before_write:{nth}:delay:500" for nth in range(1, 200))
    monkeypatch.setenv(VARIABLE, faults)
    with RunEnv(executors=2, metastore="memory://") as env:
        harness.assert_whole(env)
        started = time.monotonic()
        for _ in range(20):
            run = submit(env, [delayed(talkative)(n) for n in range(20)])
            assert harness.value_of(env, run) == list(range(20))
        assert time.monotonic() - started < 5, "ten seconds of writes and more"
