"""Runs asked for again by their id: finished ones, those of dead clients, and what is refused."""

import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dagsched import Delayed, RunEnv, collect, delayed, resume, rundag, submit
from dagsched.envfile import NOTE_NAME, read_note
from dagsched.errors import DagschedError, StoreUnavailable, VersionMismatch
from dagsched.metastore import open_store
from dagsched.metastore.keys import environment_prefix
from dagsched.rundir import find_run_directory
from tests import orphans
from tests.chaos import harness

WAIT_S = 30.0


def refuse(x: int) -> int:
    raise ValueError(f"no {x}")


def counting(size: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return np.arange(size)


def grown(directory: str, depth: int) -> Delayed | int:
    """A graph that returns a graph, some levels deep."""
    orphans.note(directory, depth)
    if not depth:
        return 1
    below = delayed(grown)(directory, depth - 1)
    return delayed(orphans.join)(directory, 100 + depth, 0.01, below, below)


def grown_value(depth: int) -> int:
    if not depth:
        return 1
    below = grown_value(depth - 1)
    return orphans.join_value(100 + depth, (below, below))


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    directory = tmp_path / "notes"
    directory.mkdir()
    return directory


@pytest.fixture(params=[None, "memory://"], ids=["embedded", "memory"])
def env(request: pytest.FixtureRequest) -> Iterator[RunEnv]:
    with RunEnv(executors=2, metastore=request.param) as env:
        yield env


# --- of the same environment ----------------------------------------------------------------------


def test_a_run_that_goes_on_is_the_same(env: RunEnv) -> None:
    run = submit(env, delayed(sum)([1, 2]))
    assert resume(env, run.run_id) is run
    assert run.result(WAIT_S) == 3
    assert resume(env, run.run_id) is run


def forgotten(env: RunEnv, dag: object) -> str:
    """The id of a run that is over and whose handle nobody has."""
    run = submit(env, dag)
    run.exception(WAIT_S)
    run_id = run.run_id
    del run
    deadline = time.monotonic() + WAIT_S
    # The thread that told of the end may hold the handle for a moment longer.
    while any(other.run_id == run_id for other in env.runs):
        assert time.monotonic() < deadline
        gc.collect()
    return run_id


def test_a_result_that_was_dropped_is_there_again(env: RunEnv) -> None:
    run_id = forgotten(env, {"a": delayed(sum)([1, 2]), "b": [7, "x" * 100_000]})
    run = resume(env, run_id)
    assert (run.run_id, run.state) == (run_id, "done")
    assert run.result(0) == {"a": 3, "b": [7, "x" * 100_000]}


def test_a_large_result_that_was_dropped_is_computed_again(env: RunEnv) -> None:
    run_id = forgotten(env, delayed(counting)(200_000))
    for _ in range(2):
        run = resume(env, run_id)
        assert np.array_equal(run.result(WAIT_S), np.arange(200_000))
        del run
        gc.collect()


def test_references_that_were_dropped_lead_to_values_again(env: RunEnv) -> None:
    run_id = forgotten(env, referenced())
    assert lengths(resume(env, run_id).result(WAIT_S)) == [100_000 + n for n in range(4)]


def test_a_failure_is_raised_again(env: RunEnv) -> None:
    run_id = forgotten(env, delayed(refuse)(5))
    run = resume(env, run_id)
    with pytest.raises(ValueError, match="no 5") as caught:
        run.result(0)
    assert "refuse" in caught.value.__notes__[0]
    assert run.state == "failed"


def test_an_unknown_run_is_refused_and_the_known_are_named(env: RunEnv) -> None:
    run = submit(env, delayed(sum)([1, 2]))
    token = run.run_id.partition("-")[0]
    with pytest.raises(DagschedError, match=f"unknown in this environment.*are: {run.run_id}"):
        resume(env, f"{token}-99")
    for run_id in ("", "x", f"{token}-0", "deadbeef-1"):
        with pytest.raises(DagschedError, match="is unknown: it is none of this environment"):
            resume(env, run_id)
    with pytest.raises(TypeError, match="must be a str, not int"):
        resume(env, 5)  # type: ignore[arg-type]


# --- of a client that died ------------------------------------------------------------------------

FINISHED = """
from tests.integration import test_resuming as t
env = RunEnv(executors=2)
small = {"a": delayed(sum)([1, 2]), "b": [7]}
for dag in (small, delayed(t.refuse)(5), delayed(t.counting)(200_000)):
    run = submit(env, dag)
    run.exception(30)
    print(run.run_id)
assert env._cluster._storing.journal.flush(10)
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_results_outlive_their_client() -> None:
    small, failed, large = orphans.dead_client(FINISHED)
    with RunEnv(executors=2) as env:
        run = resume(env, small)
        assert run.result(WAIT_S) == {"a": 3, "b": [7]}
        with pytest.raises(ValueError, match="no 5"):
            resume(env, failed).result(WAIT_S)
        assert np.array_equal(resume(env, large).result(WAIT_S), np.arange(200_000))
        del run
        gc.collect()
        assert resume(env, small).result(0) == {"a": 3, "b": [7]}


GRAPHS = """
from tests.integration import test_resuming as t
env = RunEnv(nodes=two_nodes())
env.wait_for_nodes()
run = submit(env, delayed(t.grown)(sys.argv[1], 6))
print(run.run_id, flush=True)
while sum(orphans.counts(__import__("pathlib").Path(sys.argv[1])).values()) < 4:
    time.sleep(0.001)
time.sleep(0.15)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_graphs_that_tasks_return_go_on_too(notes: Path) -> None:
    (run_id,) = orphans.dead_client(GRAPHS, notes)
    with RunEnv(executors=2) as env:
        assert harness.value_of(env, resume(env, run_id)) == grown_value(6)


LARGE = """
from tests.integration import test_resuming as t
import numpy as np
env = RunEnv(nodes=two_nodes())
env.wait_for_nodes()
parts = [delayed(t.piece)(sys.argv[1], n) for n in range(40)]
sums = [delayed(t.added)(sys.argv[1], n, parts[n], parts[-n]) for n in range(40)]
run = submit(env, [delayed(t.total)(sums), parts[3]])
print(run.run_id, flush=True)
time.sleep(0.15)
die_at(run, 30)
"""


def piece(directory: str, n: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    orphans.note(directory, n)
    orphans.spin(0.02)
    return np.full(50_000, n)


def added(directory: str, n: int, *parts: object) -> object:
    orphans.note(directory, 1000 + n)
    orphans.spin(0.02)
    return parts[0] + parts[1]  # type: ignore[operator]


def total(sums: list[object]) -> int:
    return int(sum(each.sum() for each in sums))  # type: ignore[attr-defined]


def test_large_values_are_taken_from_the_brokers_of_the_dead_client(notes: Path) -> None:
    (run_id,) = orphans.dead_client(LARGE, notes)
    with RunEnv(executors=2) as env:
        value, part = harness.value_of(env, resume(env, run_id), 2)
        assert value == 50_000 * sum(n + (40 - n if n else 0) for n in range(40))
        assert np.array_equal(part, np.full(50_000, 3))
    assert set(orphans.counts(notes).values()) == {1}


REFERENCES = """
from tests.integration import test_resuming as t
env = RunEnv(nodes=two_nodes())
env.wait_for_nodes()
finished = submit(env, t.referenced())
finished.result()
run = submit(env, [t.referenced(), orphans.tree(sys.argv[1], 300, 0.003)])
print(finished.run_id, run.run_id, flush=True)
assert env._cluster._storing.journal.flush(10)
die_at(run, 100)
"""


def same(*refs: object) -> list[object]:
    return list(refs)


def referenced() -> Delayed:
    return delayed(same, meta=True)(*(delayed(counting)(100_000 + n) for n in range(4)))


def lengths(value: object) -> list[int]:
    return [len(array) for array in collect(value)]  # type: ignore[attr-defined]


def test_references_of_a_dead_client_lead_to_values(notes: Path) -> None:
    finished, going_on = orphans.dead_client(REFERENCES, notes)
    wanted = [100_000 + n for n in range(4)]
    with RunEnv(executors=2) as env:
        references, value = resume(env, going_on).result(WAIT_S)
        assert lengths(references) == wanted
        assert value == orphans.tree_value(300)[0]
        assert lengths(resume(env, finished).result(WAIT_S)) == wanted
        # Arguments of runs of the environment's own, too.
        assert rundag(env, delayed(len)(references[1])) == 100_001


# --- refused --------------------------------------------------------------------------------------

WAITING = """
env = RunEnv(executors=1, metastore=sys.argv[1] if len(sys.argv) > 1 else None)
run = submit(env, delayed(orphans.spin)(0.001))
run.result()
env._cluster._storing.journal.flush(10)
print(run.run_id, flush=True)
sys.stdin.read()
"""


def said_by(client: "subprocess.Popen[str]") -> str:
    assert client.stdout is not None
    return client.stdout.readline().strip()


@pytest.fixture
def client() -> "Iterator[subprocess.Popen[str]]":
    with orphans.start_client(WAITING) as client:
        yield client
        assert client.stdin is not None
        client.stdin.close()


def test_a_run_whose_client_lives(client: "subprocess.Popen[str]") -> None:
    run_id = said_by(client)
    with (
        RunEnv(executors=1) as env,
        pytest.raises(DagschedError, match=f"are run by process {client.pid}, which lives"),
    ):
        resume(env, run_id)
    listed = subprocess.run(
        [sys.executable, "-m", "dagsched", "runs", "--json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    rows = {row["run"]: row for row in json.loads(listed.stdout)}
    assert rows[run_id]["state"] == "done"
    assert rows[run_id]["where"] == f"process {client.pid}"
    assert rows[run_id]["until_wall_s"] is None


def test_a_journal_in_the_memory_of_the_client_dies_with_it() -> None:
    with orphans.start_client(WAITING, "memory://") as client:
        run_id = said_by(client)
        directory = find_run_directory(run_id.partition("-")[0])
        assert directory is not None
        with (
            RunEnv(executors=1) as env,
            pytest.raises(DagschedError, match="which lives: ask for them there"),
        ):
            resume(env, run_id)
        client.kill()
    harness.until(lambda: not directory.exists(), what="end of all that it had")


def dead(client: "subprocess.Popen[str]") -> tuple[str, Path]:
    run_id = said_by(client)
    directory = find_run_directory(run_id.partition("-")[0])
    assert directory is not None
    client.kill()
    client.wait()
    return run_id, directory


def test_another_version(client: "subprocess.Popen[str]") -> None:
    run_id, directory = dead(client)
    note = directory / NOTE_NAME
    text = note.read_text()
    with RunEnv(executors=1) as env:
        note.write_text(text.replace('"dagsched": "', '"dagsched": "99.'))
        with pytest.raises(VersionMismatch, match=r"dagsched 99\..*with the same versions"):
            resume(env, run_id)
        note.write_text(text)
        assert resume(env, run_id).result(WAIT_S) is None


def test_a_damaged_journal(client: "subprocess.Popen[str]") -> None:
    run_id, directory = dead(client)
    token, _, count = run_id.partition("-")
    note = read_note(directory)
    assert note is not None
    from dagsched.config import Config
    from dagsched.metastore.port import Batch

    store = open_store(
        None, prefix=environment_prefix(0, "/D", token), run_directory=directory, config=Config()
    )
    number = (int(token, 16) << 24) + int(count) + 1
    try:
        store.append([Batch(number, n, b"nonsense") for n in (1, 2)])
    finally:
        store.close()
    with RunEnv(executors=1) as env:
        with pytest.raises(StoreUnavailable, match=f"damaged in its middle.*run {number}"):
            resume(env, f"{token}-{int(count) + 1}")
        # Nothing was taken, and the other run is whole.
        assert resume(env, run_id).result(WAIT_S) is None


def test_a_run_whose_plan_had_not_reached_the_store(client: "subprocess.Popen[str]") -> None:
    run_id, _ = dead(client)
    token = run_id.partition("-")[0]
    with RunEnv(executors=1) as env:
        with pytest.raises(DagschedError, match=f"before the plan had reached.*has: {run_id}"):
            resume(env, f"{token}-2")
        assert resume(env, run_id).result(WAIT_S) is None


# --- stores of others -----------------------------------------------------------------------------

SHARED = """
config = Config(master_grace_s=float(sys.argv[3]))
env = RunEnv(executors=2, rootpath="/shared", metastore=sys.argv[2], config=config)
run = submit(env, orphans.tree(sys.argv[1], 200, 0.005))
print(run.run_id, flush=True)
time.sleep(0.15)
die_at(run, 50)
"""


def test_a_store_of_others_knows_runs_whose_directory_has_gone(notes: Path, redis_url: str) -> None:
    (run_id,) = orphans.dead_client(SHARED, notes, redis_url, 0.2)
    token = run_id.partition("-")[0]
    harness.until(lambda: find_run_directory(token) is None, what="the brokers' leaving")
    command = [sys.executable, "-m", "dagsched", "runs", "--json", "--metastore", redis_url]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    rows = {row["run"]: row for row in json.loads(listed.stdout)}
    assert rows[run_id]["state"] == "resumable"
    assert rows[run_id]["where"] == "store only"
    with RunEnv(executors=2, rootpath="/shared", metastore=redis_url) as env:
        expected, _ = orphans.tree_value(200)
        assert resume(env, run_id).result(WAIT_S) == expected


def test_a_store_of_others_while_the_brokers_are_there(notes: Path, redis_url: str) -> None:
    (run_id,) = orphans.dead_client(SHARED, notes, redis_url, 30)
    with RunEnv(executors=2) as env:
        expected, _ = orphans.tree_value(200)
        assert resume(env, run_id).result(WAIT_S) == expected
    assert set(orphans.counts(notes).values()) == {1}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["resume"], 2, "Missing argument 'RUN'"),
        (["resume", "x", "--executors", "0"], 2, "is not in the range"),
        (["resume", "deadbeef-1"], 1, "run 'deadbeef-1' is unknown"),
        (["resume", "deadbeef-1", "--metastore", "redis://127.0.0.1:1"], 1, "StoreUnavailable"),
    ],
)
def test_the_command_line_says_what_is_wrong(arguments: list[str], code: int, words: str) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "dagsched", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert said.returncode == code
    assert words in said.stderr
    assert "Traceback" not in said.stderr


TWO = """
env = RunEnv(executors=2)
env.wait_for_nodes()
runs = [submit(env, orphans.tree(sys.argv[1], 200, 0.005)), submit(env, delayed(time.sleep)(60))]
print(*(run.run_id for run in runs), flush=True)
time.sleep(0.2)
die_at(runs[0], 50)
"""


def test_other_runs_of_the_dead_client_end_with_its_heir(
    notes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked, other = orphans.dead_client(TWO, notes)
    with RunEnv(executors=2) as env:
        expected, _ = orphans.tree_value(200)
        assert resume(env, asked).result(WAIT_S) == expected
        later = resume(env, other)  # while the heir is open each can be asked for
        assert later.cancel()
        later.exception(WAIT_S)
        assert later.state == "cancelled"
    assert "nobody asked for" not in caplog.text
    asked, other = orphans.dead_client(TWO, notes)
    with RunEnv(executors=2) as env:
        assert resume(env, asked).result(WAIT_S) == expected
    assert f"which nobody asked for end with this environment: {other}" in caplog.text
