"""Facts, traces and stats for tests of the live page's sums."""

import numpy as np

from dagsched.master.events import TracesArrived
from dagsched.nodes import NodeEnv
from dagsched.trace import TaskNames
from dagsched.viz.live.facts import RunFacts
from dagsched.viz.live.snapshot import Surroundings

SECOND = 1_000_000_000


def facts(
    functions: list[str],
    function_of: list[int],
    *,
    number: int = 1,
    starts: list[int] | None = None,
) -> RunFacts:
    """A run whose positions are its graph's ids in reverse."""
    count = len(function_of)
    order = np.arange(count, dtype=np.int32)[::-1].copy()
    by_id = np.array(function_of, np.int32)[np.argsort(order)]
    names = TaskNames(functions, by_id, np.arange(count) + 100)
    bounds = np.array(starts or [0, count])
    return RunFacts(number, f"00000000-{number}", names, order, bounds, 1000.0)


def traces(
    positions: list[int], stamps_s: list[float], *, executor: int = 3, node: int = 2, run: int = 1
) -> TracesArrived:
    """Tasks that ended on an executor."""
    stamps = np.array([round(s * SECOND) for s in stamps_s], np.int64)
    return TracesArrived(
        run, node, executor, 1, np.array(positions, np.int32).tobytes(), stamps.tobytes(), b"", b""
    )


def surroundings(*nodes: tuple[NodeEnv, str]) -> Surroundings:
    """An environment whose wall clock is 5,000 s ahead of the monotonic one."""
    one = ((NodeEnv(2, "127.0.0.1", [3, 4]), "up"),)
    return Surroundings(
        token="cafe0001", rootpath="/D", pid=7, host="here", dagsched="1.2.3", opened_s=900.0,
        store={"state": "up", "reason": ""}, nodes=nodes or one,
        wall_offset_s=5000.0,
    )  # fmt: skip
