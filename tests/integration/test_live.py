"""The live page over HTTP: its numbers are those of the run, and it is for its owner only."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagsched import NodeEnv, RunEnv, addprocs, delayed, rundag, submit
from dagsched.errors import ClosedError
from tests.live import Page


@delayed
def double(x):
    return 2 * x


@delayed
def nap(seconds, *_):
    time.sleep(seconds)
    return seconds


@delayed
def broken(x):
    raise ValueError(f"<b>no {x}</b>")


@delayed
def say_and_wait(path, text):
    print(text, flush=True)
    while not Path(path).exists():
        time.sleep(0.01)
    return text


def flaky(path):
    with open(path, "a") as tries:
        tries.write("x")
    if os.path.getsize(path) < 3:
        raise OSError("not yet")
    return os.path.getsize(path)


@pytest.fixture
def env() -> Iterator[RunEnv]:
    with RunEnv(executors=2, metastore="memory://", dashboard=True) as environment:
        yield environment


@pytest.fixture
def page(env: RunEnv) -> Page:
    return Page.of(env)


def test_a_known_run_has_its_numbers(env: RunEnv, page: Page, tmp_path: Path) -> None:
    doubled = [double(n) for n in range(500)]
    run = submit(env, [*doubled, nap(0.2), delayed(flaky, retries=5)(str(tmp_path / "tries"))])
    run.result()
    shown = page.snapshot()
    (row,) = shown["runs"]
    assert (row["run_id"], row["state"], row["task_count"]) == (run.run_id, "done", 502)
    assert (row["done_count"], row["failed_count"], row["retry_count"]) == (502, 0, 2)
    assert (row["left_s"], shown["shown"]) == (None, run.run_id)
    assert abs(row["submitted_s"] - time.time()) < 60
    by_name = {one["name"]: one for one in shown["functions"]}
    assert {name: (one["task_count"], one["done_count"]) for name, one in by_name.items()} == {
        "double": (500, 500), "nap": (1, 1), "flaky": (1, 1),
    }  # fmt: skip
    assert 0.2 <= by_name["nap"]["longest_s"] < 5
    assert by_name["nap"]["mean_s"] == pytest.approx(by_name["nap"]["busy_s"])
    assert sum(cell["done_count"] for cell in shown["subtrees"]["cells"]) == 502
    assert shown["subtrees"]["task_count"] == 502
    assert {cell["state"] for cell in shown["subtrees"]["cells"]} == {"done"}
    assert sum(sum(lane["tasks"]) for lane in shown["stream"]["lanes"]) == 502
    assert shown["rate"] > 0
    assert sum(shown["rates"]) / 2 == 502
    retried = [one for one in shown["failures"] if one["kind"] == "retried"]
    assert [(one["type"], one["text"], one["final"]) for one in retried] == [
        ("OSError", "not yet", False)
    ] * 2
    assert retried[0]["function"] == "flaky"


def test_a_failure_comes_with_its_traceback_as_plain_text(env: RunEnv, page: Page) -> None:
    one = broken(3)
    run = submit(env, one)
    assert isinstance(run.exception(), ValueError)
    shown = page.snapshot()
    assert [(row["state"], row["failed_count"]) for row in shown["runs"]] == [("failed", 1)]
    (told,) = shown["failures"]
    assert (told["run_id"], told["key"], told["function"]) == (run.run_id, one.key, "broken")
    assert (told["kind"], told["final"], told["type"]) == ("failed", True, "ValueError")
    assert told["text"] == "<b>no 3</b>"
    assert "in broken" in told["traceback"]
    assert told["node"] == env.nodes[0].brokerid
    assert told["executor"] in env.nodes[0].executorids
    assert sum(sum(lane["failed"]) for lane in shown["stream"]["lanes"]) == 1


def test_what_runs_is_seen_while_it_runs(env: RunEnv, page: Page, tmp_path: Path) -> None:
    go = tmp_path / "go"
    one = say_and_wait(str(go), "hello from the task")
    run = submit(env, nap(0.01, one))
    shown = page.wait_for(lambda s: any(e["doing"] for n in s["nodes"] for e in n["executors"]))
    (node,) = shown["nodes"]
    (executor,) = [one for one in node["executors"] if one["doing"]]
    doing = executor["doing"]
    assert (doing["run_id"], doing["key"], doing["function"]) == (
        run.run_id, one.key, "say_and_wait",
    )  # fmt: skip
    assert abs(doing["since_s"] - shown["time_s"]) < 30
    assert (executor["state"], node["state"], node["host"]) == ("busy", "up", "127.0.0.1")
    assert executor["pid"] > 0
    assert executor["rss_bytes"] > 1 << 20
    assert node["memory_total_bytes"] > node["memory_used_bytes"] > 0
    assert node["shared_limit_bytes"] > 0
    # A task that has not ended yet is seen in its executor's lane.
    shown = page.wait_for(lambda s: any(100 in lane["busy"] for lane in s["stream"]["lanes"]))
    lane = next(lane for lane in shown["stream"]["lanes"] if 100 in lane["busy"])
    assert lane["executor"] == executor["id"]
    number = lane["function"][lane["busy"].index(100)]
    assert shown["stream"]["functions"][number] == "say_and_wait"
    # Why the other one waits, its keys, and what was printed.
    answer = page.json("/api/why", run=run.run_id, key=one.key)
    assert "is running on executor" in answer["text"]
    assert any("submitted with run" in line for line in answer["story"])
    assert page.json("/api/keys", run=run.run_id, like="say_")["keys"] == [one.key]
    at = {"node": node["id"], "executor": executor["id"], "lines": 5}
    assert page.json("/api/logs", **at)["lines"] == ["hello from the task"]
    go.touch()
    run.result()


def test_questions_without_an_answer_say_what_to_do(env: RunEnv, page: Page) -> None:
    run = submit(env, double(1))
    run.result()

    def refusal(path: str, **query: object) -> tuple[int, str]:
        answer = page.ask(path, **query)
        return answer.status, json.loads(answer.text)["error"]

    assert refusal("/api/why", run="no") == (
        400,
        "name a run: ?run=ID, an id as the list of runs has it",
    )
    status, text = refusal("/api/why", run="00000000-1", key="x-1")
    assert (status, "keep what submit() returned" in text) == (404, True)
    status, text = refusal("/api/why", run=run.run_id, key="doubel-1")
    assert (status, "there are double-" in text) == (404, True)
    assert refusal("/api/why", run=run.run_id)[0] == 400
    assert refusal("/api/logs", node="two") == (400, "node must be a number: ?node=2")
    assert refusal("/api/logs", node=77)[0] == 404
    assert refusal("/api/logs", node=env.nodes[0].brokerid, executor=99)[0] == 404


def test_nobody_gets_in_without_the_token(page: Page) -> None:
    for path in ("/", "/api/snapshot", "/events", "/metrics", "/static/index.html", "/nosuch"):
        answer = page.ask(path, headers={})
        assert answer.status == 403, path
        assert "needs its token" in answer.text
    assert page.ask("/?token=wrong", headers={}).status == 403
    # Only the page itself takes it from the URL, where it can be read over a shoulder.
    assert page.ask(f"/api/snapshot?token={page.token}", headers={}).status == 403
    assert page.ask("/metrics", headers={"Authorization": "Bearer wrong"}).status == 403
    assert page.ask("/metrics").status == 200


def test_the_cookie_lets_a_browser_in_and_no_script_reads_it(page: Page) -> None:
    first = page.ask(f"/?token={page.token}", headers={})
    assert first.status == 200
    assert "text/html" in first.headers["content-type"]
    cookie = first.headers["set-cookie"]
    name, _, rest = cookie.partition("=")
    assert name == f"dagsched-{page.port}"  # browsers don't tell the ports of a host apart
    assert {part.strip().lower() for part in rest.split(";")[1:]} == {
        "path=/", "httponly", "samesite=strict",
    }  # fmt: skip
    kept = {"Cookie": cookie.partition(";")[0]}
    assert page.ask("/api/snapshot", headers=kept).status == 200
    assert "set-cookie" not in page.ask("/", headers=kept).headers
    assert page.ask("/api/snapshot", headers={"Cookie": f"{name}=wrong"}).status == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:80", "", "localhost.evil"]
)
def test_another_name_for_this_machine_is_refused(page: Page, host: str) -> None:
    """A page of somebody else can have its own name point here, but not change the header."""
    right = {"Authorization": f"Bearer {page.token}"}
    assert page.ask("/api/snapshot", headers=right | {"Host": host}).status == 400
    for ours in (f"127.0.0.1:{page.port}", f"localhost:{page.port}", f"[::1]:{page.port}"):
        assert page.ask("/api/snapshot", headers=right | {"Host": ours}).status == 200


def test_the_page_can_load_nothing_from_elsewhere(page: Page) -> None:
    for path in ("/", "/api/snapshot", "/metrics", "/nosuch"):
        headers = page.ask(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'self';")
        assert "unsafe-inline" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
    connection = http.client.HTTPConnection(page.host, page.port, timeout=20)
    connection.request("POST", "/", headers={"Authorization": f"Bearer {page.token}"})
    assert connection.getresponse().status == 405
    connection.close()


def test_files_of_the_page_are_served_and_no_others(page: Page) -> None:
    assert page.ask("/static/index.html").status == 200
    for name in ("..%2fserver.py", "%2e%2e/server.py", "server.py", "nosuch.js"):
        assert page.ask(f"/static/{name}").status == 404, name


def test_events_come_as_things_change_and_carry_only_news(env: RunEnv, page: Page) -> None:
    connection = http.client.HTTPConnection(page.host, page.port, timeout=30)
    connection.request("GET", "/events", headers={"Authorization": f"Bearer {page.token}"})
    response = connection.getresponse()
    assert response.headers["content-type"].startswith("text/event-stream")

    def following() -> "dict[str, object]":
        while not (line := response.readline()).startswith(b"data: "):
            assert line, "the stream has ended"
        return json.loads(line[6:])  # type: ignore[no-any-return]

    first = following()
    assert first["runs"] == []
    assert first["stream"]["bins"] == 240  # type: ignore[index]
    run = submit(env, [nap(0.05) for _ in range(20)])
    stream = dict.fromkeys(("first_bin",), None)
    tasks: dict[tuple[int, int, int], int] = {}
    state = ""
    while state != "done":
        shown = following()
        stream = shown["stream"]  # type: ignore[assignment]
        assert stream["bins"] < 60  # type: ignore[operator]
        for lane in stream["lanes"]:  # type: ignore[attr-defined]
            for at, count in enumerate(lane["tasks"]):
                tasks[lane["node"], lane["executor"], stream["first_bin"] + at] = count
        state = next((row["state"] for row in shown["runs"]), "")  # type: ignore[attr-defined]
    # Bins that are sent again take the place of those before.
    assert sum(tasks.values()) == 20
    run.result()
    begun = time.monotonic()
    env.close()
    assert time.monotonic() - begun < 5, "an open stream must not hold up the end"
    assert b"event" not in response.read()[-20:]
    connection.close()


def test_the_loss_of_a_node_is_seen(tmp_path: Path) -> None:
    ids = addprocs(6)
    nodes = [NodeEnv(ids[0], "127.0.0.1", ids[1:3]), NodeEnv(ids[3], "127.0.0.1", ids[4:])]
    with RunEnv(nodes=nodes, metastore="memory://", dashboard=True) as env:
        env.wait_for_nodes()
        page = Page.of(env)
        run = submit(env, delayed(sum)([nap(0.02 + n / 1e6) for n in range(200)]))
        shown = page.wait_for(
            lambda s: (
                len([n for n in s["nodes"] if n["pid"] and n["executors"][0]["task_count"]]) == 2
            )
        )
        victim = shown["nodes"][1]
        os.kill(victim["pid"], signal.SIGKILL)
        assert run.result() == pytest.approx(sum(0.02 + n / 1e6 for n in range(200)))
        shown = page.wait_for(lambda s: s["environment"]["counters"]["node_losses"] == 1)
        states = {node["id"]: node["state"] for node in shown["nodes"]}
        assert states == {ids[0]: "up", ids[3]: "lost"}
        lost = next(node for node in shown["nodes"] if node["id"] == ids[3])
        assert [one["state"] for one in lost["executors"]] == ["lost", "lost"]
        told = [one for one in shown["failures"] if one["kind"] == "node_lost"]
        assert [(one["node"], one["run_id"]) for one in told] == [(ids[3], run.run_id)]
        assert "SIGKILL" in told[0]["text"] or "signal 9" in told[0]["text"]
        (row,) = shown["runs"]
        assert (row["state"], row["done_count"]) == ("done", row["task_count"])
        functions = {one["name"]: one["done_count"] for one in shown["functions"]}
        assert functions == {"nap": 200, "sum": 1}
        assert sum(cell["task_count"] for cell in shown["subtrees"]["cells"]) == 201


def test_a_node_that_says_nothing_is_suspected() -> None:
    ids = addprocs(4)
    nodes = [NodeEnv(ids[0], "127.0.0.1", ids[1:2]), NodeEnv(ids[2], "127.0.0.1", ids[3:])]
    with RunEnv(nodes=nodes, metastore="memory://", dashboard=True) as env:
        env.wait_for_nodes()
        page = Page.of(env)
        shown = page.wait_for(lambda s: all(node["pid"] for node in s["nodes"]))
        pid = shown["nodes"][1]["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            page.wait_for(lambda s: s["nodes"][1]["state"] == "suspected")
            page.wait_for(lambda s: s["nodes"][1]["state"] == "lost")
            assert page.snapshot()["nodes"][0]["state"] == "up"
        finally:
            with contextlib.suppress(ProcessLookupError):  # it was given up, and ended
                os.kill(pid, signal.SIGCONT)


def test_two_environments_have_two_pages() -> None:
    with (
        RunEnv(executors=1, metastore="memory://", dashboard=True) as one,
        RunEnv(executors=1, metastore="memory://", dashboard=True) as two,
    ):
        pages = [Page.of(one), Page.of(two)]
        assert pages[0].token != pages[1].token
        assert rundag(one, double(4)) == 8
        counts = [len(page.snapshot()["runs"]) for page in pages]
        assert counts == [1, 0]
        other = {"Authorization": f"Bearer {pages[1].token}"}
        assert pages[0].ask("/api/snapshot", headers=other).status == 403


def test_nothing_is_left_of_a_closed_environment() -> None:
    env = RunEnv(executors=1, metastore="memory://", dashboard=True)
    page = Page.of(env)
    assert page.snapshot()["environment"]["pid"] == os.getpid()
    cluster = env._cluster
    assert cluster is not None
    env.close()
    assert env.dashboard_url is None
    with pytest.raises(ConnectionRefusedError):
        page.snapshot()
    with pytest.raises(ClosedError, match="has been closed"):
        cluster.dashboard.open()
    names = [one.name for one in threading.enumerate()]
    assert [name for name in names if name.startswith("dagsched-")] == []


def test_addresses() -> None:
    for wrong in ("nohost", "127.0.0.1:", ":80", "127.0.0.1:x", "127.0.0.1:70000"):
        with pytest.raises(ValueError, match="is not valid: it is True, or 'HOST:PORT'"):
            RunEnv(dashboard=wrong)
    with pytest.raises(TypeError, match="dashboard must be a bool or"):
        RunEnv(dashboard=8080)  # type: ignore[arg-type]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match=f"can't be served at {address}: .*any free port"):
            RunEnv(executors=1, metastore="memory://", dashboard=address)
    with RunEnv(executors=1, metastore="memory://", dashboard=address) as env:
        assert str(env.dashboard_url).startswith(f"http://{address}/?token=")


def test_the_url_is_printed_once(capfd: pytest.CaptureFixture[str]) -> None:
    with RunEnv(executors=1, metastore="memory://", dashboard=True) as env:
        assert capfd.readouterr().err == f"dagsched: live page at {env.dashboard_url}\n"


def test_nothing_of_the_page_is_loaded_without_one() -> None:
    code = (
        "import sys; from dagsched import RunEnv, delayed, rundag\n"
        "with RunEnv(executors=1, metastore='memory://') as env:\n"
        "    rundag(env, delayed(abs)(-1)); assert env.dashboard_url is None\n"
        "found = [n for n in sys.modules if n.partition('.')[0] in "
        "('starlette', 'uvicorn', 'prometheus_client') or n.startswith('dagsched.viz')]\n"
        "assert found == [], found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_is_missing_is_named() -> None:
    code = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "from dagsched import RunEnv\n"
        "try:\n"
        "    RunEnv(executors=1, metastore='memory://', dashboard=True)\n"
        "except ImportError as error:\n"
        "    assert \"pip install 'dagsched[dashboard]'\" in str(error), error\n"
        "else:\n"
        "    raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- from another process -------------------------------------------------------------------------


def command(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "dagsched", *words],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_another_process_opens_the_page_and_sees_what_was_before() -> None:
    with RunEnv(executors=2, metastore="memory://") as env:
        assert env.dashboard_url is None
        run = submit(env, [double(n) for n in range(100)])
        run.result()
        token = run.run_id.partition("-")[0]
        done = command("dashboard", token)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip() == env.dashboard_url
        page = Page.of(env)
        (row,) = page.snapshot()["runs"]
        assert (row["run_id"], row["state"], row["done_count"]) == (run.run_id, "done", 100)
        rundag(env, [double(n) for n in range(10)])
        functions = page.snapshot()["functions"]
        assert [(one["name"], one["done_count"]) for one in functions] == [("double", 10)]
        told = json.loads(command("dashboard", "--json", token).stdout)
        assert told == {"environment": token, "pid": os.getpid(), "url": env.dashboard_url}
        shown = json.loads(command("top", "--json", token).stdout)
        assert [row["done_count"] for row in shown["runs"]] == [10, 100]
        once = command("top", "--once", token)
        assert once.returncode == 0
        assert f"dagsched {token}" in once.stdout
        assert "double" in once.stdout


def test_which_environment_must_be_said_if_there_are_several() -> None:
    with (
        RunEnv(executors=1, metastore="memory://") as one,
        RunEnv(executors=1, metastore="memory://") as two,
    ):
        tokens = [env._cluster.token for env in (one, two)]  # type: ignore[union-attr]
        done = command("dashboard")
        assert done.returncode == 1
        assert "several environments are open; say which" in done.stderr
        assert all(token in done.stderr for token in tokens)
        assert [one.dashboard_url, two.dashboard_url] == [None, None]
        done = command("dashboard", tokens[1])
        assert done.stdout.strip() == two.dashboard_url
        assert one.dashboard_url is None


def test_no_environment_is_a_clear_error() -> None:
    done = command("top", "ffffffff-none")
    assert done.returncode == 1
    assert "no environment of yours is open" in done.stderr or "is called ffffffff-none" in (
        done.stderr
    )
