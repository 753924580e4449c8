"""A store fails and recovers during a run; then the client dies, and the run is resumed from it."""

from pathlib import Path

import pytest

from dagsched import RunEnv, resume
from tests import orphans
from tests.chaos import harness
from tests.chaos.servers import OwnServer

LEAVES = 4_000
SECONDS = 0.000_3

BEGIN = """
from pathlib import Path
from tests.chaos import harness
from tests.chaos.servers import OwnServer

directory, metastore, fault = sys.argv[1:4]
env = RunEnv(nodes=two_nodes(), metastore=None if metastore == "none" else metastore,
             config=Config(journal_check_s=0.05, journal_batch_s=0.005))
env.wait_for_nodes()
run = submit(env, orphans.tree(directory, {leaves}, {seconds}))
print(run.run_id, flush=True)
storing = env._cluster._storing
while run.progress()[0] < 500:
    time.sleep(0.001)
assert storing.journal.flush(10)


def cut_file():
    (path,) = (harness.directory_of(env) / "store").glob("appendonlydir/*.incr.aof")
    os.truncate(path, path.stat().st_size * 2 // 3)


if fault in ("killed", "cut"):
    server = harness.server_pid(env)
    store = storing._store
    start_server = store._start_server
    store._start_server = lambda: (cut_file() if fault == "cut" else None, start_server())
    os.kill(server, signal.SIGKILL)
    harness.until(lambda: storing.state()["state"] == "degraded")
else:
    import redis

    with redis.Redis.from_url(metastore) as client:
        client.flushall()
    harness.until(lambda: storing.state()["state"] == "degraded")
harness.until(lambda: storing.state()["state"] == "ok", 20)
assert storing.journal.flush(10)
os.kill(os.getpid(), signal.SIGKILL)
""".replace("{leaves}", str(LEAVES)).replace("{seconds}", str(SECONDS))


def check_resumed(run_id: str, notes: Path) -> None:
    """The right value, and nothing whose value lived was computed again."""
    expected, task_count = orphans.tree_value(LEAVES)
    with RunEnv(executors=2) as env:
        run = resume(env, run_id)
        assert harness.value_of(env, run, 2 * SECONDS * task_count) == expected
    counts = orphans.counts(notes)
    assert len(counts) == task_count
    assert set(counts.values()) == {1}


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Where tasks note their executions."""
    directory = tmp_path / "notes"
    directory.mkdir()
    return directory


@pytest.mark.parametrize("fault", [pytest.param("killed", marks=pytest.mark.slow), "cut"])
def test_the_embedded_server_was_killed(fault: str, notes: Path) -> None:
    (run_id,) = orphans.dead_client(BEGIN, notes, "none", fault)
    check_resumed(run_id, notes)


@pytest.mark.slow
def test_the_server_was_emptied(notes: Path) -> None:
    with OwnServer() as server:
        (run_id,) = orphans.dead_client(BEGIN, notes, server.url, "emptied")
        check_resumed(run_id, notes)
        assert server.do("KEYS", "*") == []
