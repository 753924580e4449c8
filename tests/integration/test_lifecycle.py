"""How environments begin and end: what is left, what is refused, who owns what."""

import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from dagsched import (
    Config,
    RunEnv,
    cleanup,
    collect,
    delayed,
    getrunenv,
    print_stats,
    rundag,
    setrunenv,
    submit,
)
from dagsched.errors import ClosedError, NoNodesError, StoreUnavailable
from tests import leaks


def add(x: int, y: int = 0) -> int:
    return x + y


def script(code: str, **options: object) -> "subprocess.CompletedProcess[str]":
    """Run a script of a user's own; it has no main guard."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,  # type: ignore[call-overload]
    )


def broker_pid(env: RunEnv) -> int:
    return env._cluster._brokers._started[0].process.pid  # type: ignore[union-attr]


def test_the_first_result_comes_soon() -> None:
    started = time.monotonic()
    with RunEnv(executors=2) as env:
        assert rundag(env, delayed(add)(1, 2)) == 3
        took_s = time.monotonic() - started
    assert took_s < 5


def test_a_closed_environment_refuses_everything() -> None:
    env = RunEnv(executors=1, metastore="memory://")
    assert rundag(env, delayed(add)(1)) == 1
    cleanup(env)
    cleanup(env)
    env.close()
    assert env.nodes == []
    assert repr(env) == "RunEnv (closed)"
    for use in (
        lambda: rundag(env, delayed(add)(1)),
        lambda: submit(env, delayed(add)(1)),
        env.stats,
        lambda: env.wait_for_nodes(1, 1),
        lambda: print_stats(env),
        env.__enter__,
    ):
        with pytest.raises(ClosedError, match="has been closed"):
            use()


def test_closing_ends_runs_that_go_on() -> None:
    env = RunEnv(executors=2, metastore="memory://")
    run = submit(env, [delayed(time.sleep)(60) for _ in range(4)])
    errors: list[BaseException | None] = []
    waiter = threading.Thread(target=lambda: errors.append(run.exception()))
    waiter.start()
    started = time.monotonic()
    env.close()
    waiter.join(10)
    assert time.monotonic() - started < 4
    assert [type(error) for error in errors] == [ClosedError]
    with pytest.raises(ClosedError, match="closed while the run went on"):
        run.result()


def test_cleanup_with_a_dead_broker() -> None:
    env = RunEnv(executors=2, metastore="memory://")
    env.wait_for_nodes(timeout=20)
    os.kill(broker_pid(env), signal.SIGKILL)
    cleanup(env)


def test_cleanup_with_a_stopped_broker() -> None:
    env = RunEnv(executors=2, metastore="memory://", config=Config(close_timeout_s=0.5))
    env.wait_for_nodes(timeout=20)
    os.kill(broker_pid(env), signal.SIGSTOP)
    started = time.monotonic()
    cleanup(env)
    assert time.monotonic() - started < 5


def test_a_lost_node_is_not_shown_any_more() -> None:
    config = Config(no_nodes_grace_s=0.3)
    with RunEnv(executors=2, metastore="memory://", config=config) as env:
        env.wait_for_nodes(timeout=20)
        run = submit(env, [delayed(time.sleep)(60) for _ in range(4)])
        os.kill(broker_pid(env), signal.SIGKILL)
        with pytest.raises(NoNodesError, match="signal 9"):
            run.result(timeout=20)
        assert env.nodes == []


def test_waiting_for_a_node_that_can_not_come_any_more() -> None:
    with RunEnv(executors=2, metastore="memory://") as env:
        os.kill(broker_pid(env), signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(NoNodesError, match=r"0 of 1 nodes are there .*signal 9"):
            env.wait_for_nodes(timeout=20)
        assert time.monotonic() - started < 10


def test_a_store_that_is_not_there_is_an_error_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1"):
        RunEnv(metastore="redis://127.0.0.1:1/0")
    assert time.monotonic() - started < 6
    with pytest.raises(ValueError, match="metastore"):
        RunEnv(metastore="nonsense://x")
    with pytest.raises(TypeError, match="metastore must be a str"):
        RunEnv(metastore=5)  # type: ignore[arg-type]


def test_wrong_arguments_start_nothing() -> None:
    for wrong in ("D", "/a b", "/..", 5):
        with pytest.raises((ValueError, TypeError), match="rootpath"):
            RunEnv(rootpath=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="positional"):
        RunEnv("/D")  # type: ignore[misc]
    with pytest.raises(ValueError, match="remotetrack address"):
        RunEnv(remotetrack="nowhere")


def test_two_environments_side_by_side() -> None:
    with RunEnv(executors=1, metastore="memory://") as one:
        with RunEnv(executors=1, metastore="memory://") as two:
            assert one.rootpath == two.rootpath == "/D"
            runs = [submit(env, delayed(add)(n, 1)) for n in range(5) for env in (one, two)]
            assert [run.result(30) for run in runs] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
        assert rundag(one, delayed(add)(5)) == 5


def test_the_environment_in_use() -> None:
    assert getrunenv() is None
    with RunEnv(executors=1, metastore="memory://") as env:
        assert getrunenv() is env
        assert delayed(add)(2, 3).compute() == 5
        others: list[object] = []
        thread = threading.Thread(target=lambda: others.append(getrunenv()))
        thread.start()
        thread.join()
        assert others == [None]
        with RunEnv(executors=1, metastore="memory://") as inner:
            assert getrunenv() is inner
        assert getrunenv() is env
    assert getrunenv() is None


def test_the_default_environment_of_the_process() -> None:
    env = RunEnv(executors=1, metastore="memory://")
    assert setrunenv(env) is env
    seen: list[object] = []
    thread = threading.Thread(target=lambda: seen.append(getrunenv()))
    thread.start()
    thread.join()
    assert seen == [env]
    assert delayed(add)(2, 3).compute() == 5
    env.close()
    with pytest.raises(ClosedError):
        delayed(add)(2, 3).compute()
    assert setrunenv(None) is None
    assert getrunenv() is None


def test_a_script_without_a_guard_closes_at_exit() -> None:
    before = leaks.look()
    done = script(
        """
        from dagsched import delayed

        def triple(x):
            return helper(x) * 3

        def helper(x):
            return x + 1

        print(delayed(triple)(4).compute())
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "15\n", "")
    assert leaks.left_behind(before) == []


def test_an_environment_closes_though_somebody_has_closed_its_lifeline() -> None:
    """The descriptor's number is somebody else's by then, who keeps it."""
    before = leaks.look()
    done = script(
        """
        import os
        from dagsched import RunEnv, delayed, rundag
        with RunEnv(executors=1) as env:
            print(rundag(env, delayed(sum)([1, 2])))
            (broker,) = env._cluster._brokers._started
            fd = broker.lifeline._fd
            os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
        os.fstat(fd)
        """
    )
    assert (done.returncode, done.stdout) == (0, "3\n")
    assert "somebody has closed the lifeline" in done.stderr
    assert leaks.left_behind(before) == []


def test_a_script_that_fails_keeps_its_exit_code() -> None:
    before = leaks.look()
    done = script(
        """
        from dagsched import RunEnv, delayed, submit
        import sys, time
        env = RunEnv(executors=1)
        submit(env, delayed(time.sleep)(60))
        sys.exit(7)
        """
    )
    assert (done.returncode, done.stderr) == (7, "")
    assert leaks.left_behind(before) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_client_that_is_killed_leaves_nothing_after_the_grace(number: int) -> None:
    before = leaks.look()
    code = """
        import os, time
        from dagsched import Config, RunEnv, delayed, submit
        env = RunEnv(executors=2, config=Config(master_grace_s=0.3))
        env.wait_for_nodes(timeout=20)
        run = submit(env, [delayed(time.sleep)(60), delayed(bytes)(10**7)])
        print("ready", flush=True)
        time.sleep(60)
    """
    client = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    assert client.stdout is not None
    with client.stdout:
        assert client.stdout.readline() == "ready\n"
        client.send_signal(number)
        assert client.wait(10) == -number
    with RunEnv(executors=1, metastore="memory://") as env:
        assert rundag(env, delayed(add)(1)) == 1
    assert leaks.left_behind(before) == []


def test_ctrl_c_cancels_the_run_and_is_raised() -> None:
    before = leaks.look()
    code = """
        import time
        from dagsched import RunEnv, delayed, rundag
        with RunEnv(executors=2) as env:
            env.wait_for_nodes(timeout=20)
            try:
                print("ready", flush=True)
                rundag(env, [delayed(time.sleep)(60) for _ in range(4)])
            except KeyboardInterrupt:
                print(rundag(env, delayed(sum)([1, 2])), flush=True)
    """
    client = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert client.stdout is not None
    first = client.stdout.readline()
    if first:
        os.killpg(client.pid, signal.SIGINT)
    out, errors = client.communicate(timeout=30)
    assert (client.returncode, first, out, errors) == (0, "ready\n", "3\n", "")
    assert leaks.left_behind(before) == []


def test_a_forked_child_touches_nothing_of_its_parent() -> None:
    with RunEnv(executors=1, metastore="memory://") as env:
        assert rundag(env, delayed(add)(1)) == 1
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            said = "nothing"
            try:
                rundag(env, delayed(add)(1))
            except ClosedError as error:
                said = str(error)
            env.close()
            os.write(write_end, f"{said} {getrunenv()}".encode())
            os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end) as pipe:
            assert pipe.read() == (
                "the environment belongs to the parent of this process; make another one here None"
            )
        assert os.waitpid(child, 0)[1] == 0
        assert rundag(env, delayed(add)(2)) == 2


def test_a_forked_child_does_not_keep_brokers_alive() -> None:
    before = leaks.look()
    done = script(
        """
        import os, sys, time
        from dagsched import RunEnv, delayed, rundag
        env = RunEnv(executors=1, metastore="memory://")
        rundag(env, delayed(sum)([1]))
        pid = env._cluster._brokers._started[0].process.pid
        if os.fork() == 0:
            os.close(1), os.close(2)
            deadline = time.monotonic() + 20
            while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
                time.sleep(0.01)
            os._exit(0)
        print(pid, flush=True)
        os.kill(os.getpid(), 9)
        """
    )
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{pid}").exists()
    with RunEnv(executors=1, metastore="memory://"):
        pass
    assert leaks.left_behind(before) == []


def test_a_working_directory_and_modules_of_the_client(tmp_path: Path) -> None:
    (tmp_path / "own_module.py").write_text("def shout(x):\n    return x.upper()\n")
    done = script(
        """
        import os
        from dagsched import delayed
        import own_module
        print(delayed(own_module.shout)("abc").compute(), delayed(os.getcwd)().compute())
        """,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert (done.stdout, done.stderr) == (f"ABC {tmp_path}\n", "")


def test_a_working_directory_that_has_been_removed() -> None:
    result = script(
        """
        import os, tempfile
        from dagsched import RunEnv, delayed, rundag
        directory = tempfile.mkdtemp()
        os.chdir(directory)
        os.rmdir(directory)
        with RunEnv(executors=1, metastore="memory://") as env:
            print(rundag(env, delayed(sum)([1, 2])), rundag(env, delayed(os.getcwd)()))
        """
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "3 /\n", "")


def test_nothing_is_written_into_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with RunEnv(executors=1) as env:
        rundag(env, delayed(add)(1))
    assert list(tmp_path.iterdir()) == []


def test_numbers_before_and_after_a_run() -> None:
    with RunEnv(executors=2, metastore="memory://") as env:
        out = io.StringIO()
        print_stats(env, file=out)
        assert out.getvalue() == "no run yet\n"
        rundag(env, [delayed(add)(n) for n in range(40)])
        stats = env.stats()
        assert stats["run"]["task_count"] == stats["run"]["done_count"] == 40
        assert stats["run"]["state"] == "done"
        assert sum(row["task_count"] for row in stats["executors"]) == 40
        assert {row["id"] for row in stats["executors"]} == set(env.nodes[0].executorids)
        assert stats["store"] == {"state": "ok", "reason": ""}


def test_a_profile_of_each_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with RunEnv(executors=1, metastore="memory://", profile=True) as env:
        assert repr(env).startswith("RunEnv [profile]\n")
        runs = [submit(env, [delayed(add)(n) for n in range(50)]) for _ in range(2)]
        for run in runs:
            run.result(30)
        ((broker, (executor,)),) = [(node.brokerid, node.executorids) for node in env.nodes]
    for run in runs:
        directory = tmp_path / f"profile-{run.run_id}"
        assert {path.name for path in directory.iterdir()} == {
            "master_1_1.profile",
            f"broker_{broker}_{broker}.profile",
            f"executor_{broker}_{executor}.profile",
        }
        for path in directory.iterdir():
            assert "function calls" in path.read_text()
        assert "(add)" in (directory / f"executor_{broker}_{executor}.profile").read_text()


def test_a_log_of_every_decision() -> None:
    done = script(
        """
        from dagsched import RunEnv, delayed, rundag
        with RunEnv(executors=1, metastore="memory://", debug=True) as env:
            print(repr(env).splitlines()[0], rundag(env, delayed(sum)([1])))
        with RunEnv(executors=1, metastore="memory://") as env:
            rundag(env, delayed(sum)([1]))
        """
    )
    assert done.stdout == "RunEnv [debug] 1\n"
    assert done.stderr.count("RunEnded(run=") == 1
    assert done.stderr.count("PlaceSubtree(run=") == 1


def test_events_are_sent_to_a_listener(tmp_path: Path) -> None:
    import json
    import socket
    import tempfile

    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as server:
        path = f"{directory}/track"
        server.bind(path)
        server.listen()
        with RunEnv(executors=1, metastore="memory://", remotetrack=f"unix:{path}") as env:
            connection, _ = server.accept()
            rundag(env, delayed(add)(1))
        with connection, connection.makefile() as lines:
            events = [json.loads(line) for line in lines]
    names = [event["event"] for event in events]
    assert "NodeJoined" in names
    assert names.index("RunStarted") < names.index("RunEnded")
    ended = events[names.index("RunEnded")]
    assert (ended["run"], ended["state"]) == (f"{ended['env']}-1", "done")


def test_a_listener_that_is_absent_costs_nothing(tmp_path: Path) -> None:
    with RunEnv(executors=1, metastore="memory://", remotetrack=f"unix:{tmp_path}/none") as env:
        assert rundag(env, delayed(add)(1)) == 1


def test_a_crash_of_the_master_fails_all_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from dagsched.errors import InternalError

    with RunEnv(executors=1, metastore="memory://") as env:
        refs = rundag(env, delayed(lambda *r: list(r), meta=True)(delayed(add)(1)))
        run = submit(env, delayed(time.sleep)(60))

        def crash(core: object, now: float) -> None:
            raise ZeroDivisionError("on purpose")

        env._cluster._call(crash)  # type: ignore[union-attr]
        with pytest.raises(InternalError, match="on purpose"):
            run.result(timeout=10)
        with pytest.raises(InternalError, match="on purpose"):
            rundag(env, delayed(add)(1))
        with pytest.raises(InternalError, match="on purpose"):
            collect(refs)
