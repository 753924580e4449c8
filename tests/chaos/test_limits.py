"""Few descriptors, few processes, little memory, and clocks: what is left works, or says why not.

Control groups need root and a writable hierarchy; the tests that make some are skipped, visibly,
where there is none.
"""

import ast
import contextlib
import os
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagsched import RunEnv, delayed, submit
from dagsched.config import Config
from dagsched.errors import NoNodesError
from dagsched.faults import LOG_VARIABLE, VARIABLE
from tests.chaos import harness
from tests.checkout import ROOT, listed_files

CGROUPS = Path("/sys/fs/cgroup")


def script(code: str, *, before: str = "true", timeout_s: float = 100) -> str:
    """What a script prints, in a process of which the shell changes something first."""
    done = subprocess.run(
        ["sh", "-c", f'{before} && exec {sys.executable} -c "$CODE"'],
        env={**os.environ, "CODE": textwrap.dedent(code)},
        capture_output=True, text=True, check=False, timeout=timeout_s,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextlib.contextmanager
def cgroup(controller: str, **settings: int) -> Iterator[str]:
    """A control group of a version 1 hierarchy; gives the shell's command that enters it."""
    path = CGROUPS / controller / f"dagsched-test-{uuid.uuid4().hex[:8]}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"needs a control group of {controller}, and can't make one: {error}")
    try:
        for name, value in settings.items():
            (path / f"{controller}.{name}").write_text(str(value))
        yield f"echo $$ > {path}/cgroup.procs"
    finally:
        harness.until(lambda: not (path / "cgroup.procs").read_text(), 5, "an empty group")
        path.rmdir()


# --- descriptors ----------------------------------------------------------------------------------

EIGHT = """
    from dagsched import RunEnv, delayed, submit
    from tests.chaos import harness
    try:
        with RunEnv(executors=8) as env:
            print(sum(harness.value_of(env, submit(env, [delayed(abs)(n) for n in range(2000)]))))
            harness.assert_whole(env, 8)
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""


def test_512_descriptors_are_enough_for_eight_executors() -> None:
    assert script(EIGHT, before="ulimit -n 512") == "1999000\n"


def test_64_descriptors_are_an_error_at_once() -> None:
    said = script(EIGHT, before="ulimit -n 64", timeout_s=10)
    assert said.startswith("DagschedError: the broker of node ")
    assert "needs 72 open files for its 8 executors, and 64 are available" in said


@pytest.mark.slow
def test_a_broker_takes_its_hard_limit_and_executors_keep_the_users() -> None:
    code = """
        import resource
        from dagsched import RunEnv, delayed, rundag
        from tests.chaos import harness
        with RunEnv(executors=1, metastore="memory://") as env:
            print(rundag(env, delayed(resource.getrlimit)(resource.RLIMIT_NOFILE)))
            (pid,) = harness.broker_pids(env)
            print(resource.prlimit(pid, resource.RLIMIT_NOFILE))
    """
    assert script(code, before="ulimit -Sn 200 && ulimit -Hn 3000") == "(200, 3000)\n(3000, 3000)\n"


# --- processes ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_system_that_lets_no_executor_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOG_VARIABLE, str(tmp_path / "faults"))
    faults = [f"zygote.before_fork:{nth}:error:EAGAIN" for nth in range(1, 101)]
    monkeypatch.setenv(VARIABLE, ",".join(faults))
    config = Config(no_nodes_grace_s=0.3)
    with RunEnv(executors=2, metastore="memory://", config=config) as env:
        run = submit(env, delayed(abs)(-1))
        error = harness.error_of(env, run)
        assert isinstance(error, NoNodesError)
        assert "Resource temporarily unavailable" in str(error)
    tried = len((tmp_path / "faults").read_text().splitlines())
    assert 16 <= tried <= 24, "each executor a few times, with growing pauses, then no more"


def test_one_of_two_executors_can_not_start_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOG_VARIABLE, str(tmp_path / "faults"))
    faults = [f"zygote.before_fork:{nth}:error:EAGAIN" for nth in range(2, 6)]
    monkeypatch.setenv(VARIABLE, ",".join(faults))
    with RunEnv(executors=2, metastore="memory://") as env:
        run = submit(env, [delayed(abs)(n) for n in range(500)])
        assert harness.value_of(env, run) == list(range(500))
        harness.assert_whole(env, 2)
        log = next(harness.directory_of(env).glob("broker-*.log")).read_text()
        assert "died 3 times at start and is started again in 0.1 s" in log
        assert "no process could be forked: Resource temporarily unavailable" in log


@pytest.mark.slow
def test_fewer_executors_where_the_system_allows_no_more_processes() -> None:
    code = """
        import os, pathlib, signal, sys
        from dagsched import RunEnv, delayed, submit
        from tests.chaos import harness
        group = pathlib.Path("/sys/fs/cgroup/pids" + next(
            line.split(":")[2].strip() for line in open("/proc/self/cgroup") if ":pids:" in line))
        with RunEnv(executors=8, metastore="memory://") as env:
            harness.assert_whole(env, 8)
            (broker,) = harness.broker_pids(env)
            group.joinpath("pids.max").write_text(group.joinpath("pids.current").read_text())
            limit = int(group.joinpath("pids.max").read_text())
            group.joinpath("pids.max").write_text(str(limit - 3))
            for pid in harness.executor_pids(broker)[:4]:
                os.kill(pid, signal.SIGKILL)
            run = submit(env, [delayed(abs)(n) for n in range(2000)])
            assert harness.value_of(env, run) == list(range(2000))
            print(len(harness.executor_pids(broker)))
            group.joinpath("pids.max").write_text("max")
            harness.assert_whole(env, 8)
    """
    with cgroup("pids") as enter:
        assert int(script(code, before=enter)) in range(4, 8)


@pytest.mark.slow
def test_a_fork_bomb_is_ended_as_a_group() -> None:
    code = """
        import os, time
        from dagsched import RunEnv, delayed, submit
        from dagsched.errors import TaskTimedOut
        from tests.chaos import harness

        def bomb():
            while True:
                try:
                    os.fork()
                except OSError:
                    time.sleep(0.001)

        with RunEnv(executors=2, metastore="memory://") as env:
            error = harness.error_of(env, submit(env, delayed(bomb, timeout=3)()))
            assert isinstance(error, TaskTimedOut), repr(error)
            harness.assert_whole(env, 2)
            (broker,) = harness.broker_pids(env)
            import psutil
            harness.until(lambda: len(psutil.Process(broker).children(recursive=True)) == 3)
            print("whole")
    """
    with cgroup("pids", max=200) as enter:
        assert script(code, before=enter) == "whole\n"


# --- memory ---------------------------------------------------------------------------------------


def test_the_kernel_is_offered_executors_before_brokers(env: RunEnv) -> None:
    env.wait_for_nodes(timeout=20)
    (broker,) = harness.broker_pids(env)

    def score(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    own = score(os.getpid())
    assert score(broker) == own
    harness.until(
        lambda: [score(pid) for pid in harness.executor_pids(broker)] == [500, 500],
        what="executors that have raised theirs",
    )


@pytest.mark.slow
def test_a_task_that_takes_all_memory() -> None:
    code = """
        import time
        from dagsched import RunEnv, delayed, submit
        from dagsched.errors import ExecutorLost
        from tests.chaos import harness

        def eat():
            held = []
            while True:
                held.append(bytearray(b"x" * (16 << 20)))

        def square(n):
            return n * n

        with RunEnv(executors=2, metastore="memory://") as env:
            harness.assert_whole(env)
            run = submit(env, delayed(eat, crash_limit=2)())
            other = submit(env, [delayed(square)(n) for n in range(500)])
            error = harness.error_of(env, run)
            assert isinstance(error, ExecutorLost), repr(error)
            assert "by the kernel, which was out of memory" in str(error), str(error)
            assert error.signal == 9 and error.rss_bytes > 100 << 20
            assert harness.value_of(env, other) == [n * n for n in range(500)]
            harness.assert_whole(env)
            print(sum(harness.restart_counts(env).values()))
    """
    with cgroup("memory", limit_in_bytes=700 << 20) as enter:
        assert script(code, before=enter) == "2\n"


# --- clocks ---------------------------------------------------------------------------------------

PEOPLE = {
    "brokers/orphanage.py",  # until when an orphan waits, for listings
    "dagsched/cli.py",  # listings
    "dagsched/cluster.py",  # when a run was submitted, for listings
    "dagsched/envfile.py",  # when an environment was opened, for listings
    "dagsched/storing.py",  # the same
    "dagsched/tracking.py",  # when something happened, for listeners
}
"""Files that may look at the wall clock: they show it to people, and decide nothing by it."""

WALL_CLOCKS = {
    "time.time", "time.time_ns", "datetime.now", "datetime.datetime.now", "datetime.utcnow",
    "time.localtime", "time.gmtime", "date.today", "datetime.date.today",
}  # fmt: skip


def wall_clock_calls() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in listed_files():
        path = ROOT / name
        top = name.split("/")[0]
        if top not in ("dagsched", "brokers", "metastore") or path.suffix != ".py":
            continue
        if path.is_symlink() or not path.is_file():
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in WALL_CLOCKS:
                found.setdefault(name, []).append(ast.unparse(node))
            if isinstance(node, ast.ImportFrom) and node.module == "time":
                names = [alias.name for alias in node.names if f"time.{alias.name}" in WALL_CLOCKS]
                if names:
                    found.setdefault(name, []).extend(names)
    return found


def test_nothing_is_decided_by_a_clock_that_can_be_set() -> None:
    found = wall_clock_calls()
    assert set(found) <= PEOPLE, found
