"""A client leaves, by every way there is: nothing of its environment stays, and soon."""

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests import orphans
from tests.chaos import harness

GRACE_S = 2.0
AT_ONCE_S = 1.5

SLOW = pytest.mark.slow

OPEN = """
env = RunEnv(executors=2, config=Config(master_grace_s=2.0))
env.wait_for_nodes()
busy = "busy" in sys.argv
if busy:
    run = submit(env, [delayed(orphans.leaf)(sys.argv[1], n, 0.01) for n in range(100_000)])
    while not run.progress()[0]:
        time.sleep(0.001)
own = env._cluster._names.directory
print(own, *(pid for pid, _ in env._cluster._brokers.own()), flush=True)
"""

ORDERLY = {
    "the end": "",
    "sys.exit": "sys.exit(3)",
    "an exception": "raise ValueError('on purpose')",
    "close": "env.close()",
    "a with block": "\nwith env: pass",
}
SUDDEN = {
    "os._exit": "os._exit(5)",
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM)",
    "a child lives on": """
if os.fork() == 0:
    os.read(0, 1)  # until the test has seen the rest go
    os._exit(0)
os.kill(os.getpid(), signal.SIGKILL)
""",
}
SIGNALS = {"SIGINT": 1, "SIGINT twice": 2}


def fast(chosen: str, ways: Iterable[str]) -> list[object]:
    """All ways, of which but one are slow tests."""
    return [way if way == chosen else pytest.param(way, marks=SLOW) for way in ways]


def begin(code: str, notes: Path, *, busy: bool) -> "tuple[object, Path, list[int]]":
    client = orphans.start_client(OPEN + code, notes, *["busy"] * busy)
    assert client.stdout is not None
    directory, *pids = client.stdout.readline().split()
    return client, Path(directory), list(map(int, pids))


def gone_after(directory: Path, pids: list[int]) -> float:
    """Seconds until nothing of an environment is left."""
    token = directory.name.rpartition("-")[2]

    def is_gone() -> bool:
        return (
            not directory.exists()
            and not any(map(harness.is_alive, pids))
            and not any(token in name for name in os.listdir("/dev/shm"))
        )

    started = time.monotonic()
    harness.until(is_gone, what=f"the end of {directory}, {pids}")
    return time.monotonic() - started


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    directory = tmp_path / "notes"
    directory.mkdir()
    return directory


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("way", fast("sys.exit", ORDERLY))
def test_in_order(way: str, busy: bool, notes: Path) -> None:
    client, directory, pids = begin(ORDERLY[way], notes, busy=busy)
    with client:
        client.stdin.close()
        assert client.wait(10) == {"sys.exit": 3, "an exception": 1}.get(way, 0)
    assert gone_after(directory, pids) < AT_ONCE_S


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("way", fast("SIGINT", SIGNALS))
def test_by_an_interrupt(way: str, busy: bool, notes: Path) -> None:
    client, directory, pids = begin("\nwhile True: time.sleep(0.01)", notes, busy=busy)
    with client:
        for _ in range(SIGNALS[way]):
            client.send_signal(signal.SIGINT)
        client.wait(10)
        client.stdin.close()
    # Twice may break off the first one's way out; then it is a sudden death.
    limit_s = AT_ONCE_S if SIGNALS[way] == 1 else 2 * GRACE_S
    assert gone_after(directory, pids) < limit_s


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("way", fast("SIGKILL", SUDDEN))
def test_all_of_a_sudden(way: str, busy: bool, notes: Path) -> None:
    client, directory, pids = begin(SUDDEN[way], notes, busy=busy)
    with client:
        client.wait(10)
        took_s = gone_after(directory, pids)
        client.stdin.close()
    if busy:
        assert GRACE_S * 0.8 < took_s < 3 * GRACE_S
    else:
        assert took_s < AT_ONCE_S
